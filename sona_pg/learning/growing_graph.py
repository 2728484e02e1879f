"""A memory graph that grows node by node and is consolidated: what goes is given, and can be put back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sona_pg.config import NODE_KINDS, ConsolidationConfig
from sona_pg.errors import DimensionMismatch, InvalidInput, MemoryGraphError
from sona_pg.learning.consolidation import ConsolidationPlan, apply_plan, compression, consolidation_plan
from sona_pg.learning.memory_archive import (
    MERGED,
    OF_LITTLE_VALUE,
    TOO_WEAK,
    WITH_ITS_NODE,
    ArchivedEdge,
    ArchivedNode,
    Consolidation,
    EdgeBefore,
    NodeBefore,
)
from sona_pg.learning.memory_columns import MemoryEdges, MemoryNodes, Origin
from sona_pg.learning.memory_graph import MemoryGraph, MemoryNode, NodeFacts, Rows, embedding_rows
from sona_pg.types import as_seconds, is_number, is_whole

Pair = tuple[int, int]
"""Numbers of two nodes, the older one first."""


class Weight(NamedTuple):
    """Of an edge, and up to when it is strengthened or decayed; None: nobody has said since when it is there.

    Its version is another one whenever somebody sets it, not when it is strengthened or decays.
    """

    value: float
    decayed_at: float | None
    version: int


class GrowingGraph:
    """Nodes by their ids, observed edges between them, and the weak edges that dreams have made.

    Nothing goes but by `consolidate`, which gives what it takes out.
    """

    def __init__(self) -> None:
        self._nodes: dict[int, MemoryNode] = {}  # by number, in their order
        self._number: dict[int, int] = {}
        self._next_number = 0
        self._distinct: set[int] = set()
        self._edges: dict[Pair, Weight] = {}
        self._creative: dict[Pair, Weight] = {}
        self._versions = 0
        self._graph: MemoryGraph | None = None

    # ---- growth ------------------------------------------------------------------------------------------------------

    def add_memory_node(self, node: MemoryNode) -> None:
        """Add a node; one with an id that is there takes its place and keeps its edges, and when it came.

        Raises
        ------
        InvalidInput
            If it is no `MemoryNode`.
        DimensionMismatch
            If its embedding has another dimension than those of the others.
        """
        if not isinstance(node, MemoryNode):
            raise InvalidInput(f"the node is {type(node).__name__}, expected a MemoryNode")
        self._check_dimension(node)
        number = self._number.get(node.id)
        if number is None:
            number, self._next_number = self._next_number, self._next_number + 1
            self._number[node.id] = number
        elif node.created is None:
            node = replace(node, created=self._nodes[number].created)
        self._nodes[number] = node
        self._graph = None

    def _check_dimension(self, node: MemoryNode) -> None:
        if node.embedding is None:
            return
        others = (n.embedding for n in self._nodes.values() if n.embedding is not None and n.id != node.id)
        dim = len(next(others, node.embedding))
        if len(node.embedding) != dim:
            raise DimensionMismatch(dim, len(node.embedding), f"the embedding of node {node.id}")

    def add_edge(self, a: int, b: int, weight: float, *, at: float | None = None) -> None:
        """Add an observed edge between two ids, or give it a new weight; it takes the place of a creative one.

        Parameters
        ----------
        weight
            Above 0 to 1.
        at
            When it had this weight, seconds since the epoch; None: it fades from the first consolidation on.

        Raises
        ------
        MemoryGraphError
            If an id is unknown, both are the same, or the weight is not above 0 to 1.
        InvalidInput
            If `at` is no time.
        """
        for id in (a, b):
            if not is_whole(id) or int(id) not in self._number:
                raise MemoryGraphError(f"there is no memory node {id!r}: add it before its edges")
        if a == b:
            raise MemoryGraphError(f"node {a} cannot have an edge to itself")
        if not is_number(weight) or not 0 < weight <= 1:
            raise MemoryGraphError(f"the weight of the edge {a} - {b} is {weight!r}, expected above 0 to 1")
        edge = self._edge(a, b)
        self._edges[edge] = self._weight(weight, time_or_none(at))
        self._creative.pop(edge, None)
        self._graph = None

    def _weight(self, value: float, decayed_at: float | None) -> Weight:
        """One that somebody sets."""
        self._versions += 1
        return Weight(float(value), decayed_at, self._versions)

    @property
    def node_count(self) -> int:
        """Number of memory nodes."""
        return len(self._nodes)

    @property
    def edge_count(self) -> int:
        """Number of observed edges."""
        return len(self._edges)

    @property
    def nodes(self) -> tuple[MemoryNode, ...]:
        """All nodes, in the order in which they came."""
        return tuple(self._nodes.values())

    @property
    def graph(self) -> MemoryGraph:
        """Nodes in the order in which they came, and observed edges."""
        if self._graph is None:
            ends = self._places(self._edges)
            weights = np.array([weight.value for weight in self._edges.values()], dtype=np.float32)
            nodes = self.nodes
            self._graph = MemoryGraph.from_edges(
                len(nodes),
                ends[:, 0],
                ends[:, 1],
                weights,
                embeddings=embedding_rows(nodes),
                facts=NodeFacts.of(nodes),
            )
        return self._graph

    # ---- consolidation -----------------------------------------------------------------------------------------------

    def columns(self, now: float) -> tuple[MemoryNodes, MemoryEdges]:
        """Nodes and edges as a consolidation reads them; what has no time yet is of now.

        Parameters
        ----------
        now
            Seconds since the epoch.

        Raises
        ------
        InvalidInput
            If `now` is no time.
        """
        now = as_seconds(now, "the time")
        nodes, facts = self.nodes, NodeFacts.of(self.nodes)
        rows = embedding_rows(nodes)
        every = self._every_edge()
        ends = self._places([pair for pair, _ in every])
        since = [now if weight.decayed_at is None else weight.decayed_at for _, weight in every]
        return MemoryNodes(
            ids=self._numbers(),
            kinds=np.array([NODE_KINDS.index(node.kind) for node in nodes], dtype=np.int64),
            access_count=facts.access_count,
            created=np.array([now if node.created is None else node.created for node in nodes], dtype=np.float64),
            last_access=facts.timestamp,
            quality=facts.quality,
            importance=facts.importance,
            embeddings=np.zeros((len(nodes), 1), dtype=np.float32) if rows is None else rows,
            has_embedding=np.array([node.embedding is not None for node in nodes], dtype=bool),
        ), MemoryEdges(
            source=ends[:, 0],
            target=ends[:, 1],
            weight=np.array([weight.value for _, weight in every], dtype=np.float64),
            decayed_at=np.array(since, dtype=np.float64),
            origin=np.repeat([Origin.CO_ACCESS, Origin.CREATIVE], [len(self._edges), len(self._creative)]),
        )

    def consolidate(self, now: float, config: ConsolidationConfig | None = None) -> Consolidation:
        """Execute the `consolidation_plan` of now; at the same instant once more it changes nothing.

        Parameters
        ----------
        now
            Seconds since the epoch.
        config
            Its settings.

        Raises
        ------
        InvalidInput
            If `now` is no time; nothing was changed.
        """
        nodes, edges = self.columns(now)
        # What was merged and has come back is known for another.
        distinct = np.isin(nodes.ids, list(self._distinct))
        compared = replace(nodes, has_embedding=nodes.has_embedding & ~distinct)
        plan = consolidation_plan(compared, edges, now, config)
        edges_removed, versions = self._gone_edges(edges, plan), self._versions_of(plan)
        nodes_removed, before = self._gone_nodes(plan), self.nodes
        left, joined = apply_plan(nodes, edges, plan)
        strengthened = np.zeros(len(nodes), dtype=bool)
        strengthened[plan.edges.source[plan.strengthened]] = True
        strengthened[plan.edges.target[plan.strengthened]] = True
        stays, numbers = np.flatnonzero(plan.node_stays).tolist(), left.ids.tolist()
        self._nodes = {
            number: _consolidated(before[row], left, place, bool(strengthened[row]))
            for place, (number, row) in enumerate(zip(numbers, stays, strict=True))
        }
        self._number = {node.id: number for number, node in self._nodes.items()}
        pairs = zip(left.ids[joined.source].tolist(), left.ids[joined.target].tolist(), strict=True)
        weights = zip(joined.weight.tolist(), joined.decayed_at.tolist(), versions, strict=True)
        self._edges, self._creative = {}, {}
        for pair, weight, is_creative in zip(pairs, weights, (joined.origin == Origin.CREATIVE).tolist(), strict=True):
            (self._creative if is_creative else self._edges)[pair] = Weight(*weight)
        self._graph = None
        grown = [before[row] for row in np.unique(plan.merged[:, 1]).tolist() if plan.node_stays[row]]
        after = [NodeBefore(node, self._nodes[self._number[node.id]]) for node in grown]
        return Consolidation(plan, compression(nodes, plan), (*edges_removed, *nodes_removed, *after))

    def _gone_nodes(self, plan: ConsolidationPlan) -> list[ArchivedNode]:
        nodes, numbers = self.nodes, list(self._nodes)
        merged = [ArchivedNode(nodes[row], numbers[row], MERGED, nodes[into].id) for row, into in plan.merged.tolist()]
        return merged + [ArchivedNode(nodes[row], numbers[row], OF_LITTLE_VALUE) for row in plan.archived.tolist()]

    def _every_edge(self) -> list[tuple[Pair, Weight]]:
        """In the order of the columns."""
        return [*self._edges.items(), *self._creative.items()]

    def _versions_of(self, plan: ConsolidationPlan) -> list[int]:
        """Of the weights of the edges that stay."""
        every = self._every_edge()
        return [every[row][1].version for row in np.flatnonzero(plan.edge_stays).tolist()]

    def _gone_edges(self, edges: MemoryEdges, plan: ConsolidationPlan) -> list[ArchivedEdge | EdgeBefore]:
        """As they were: also those that lead elsewhere from now on; behind them what has taken them in."""
        stays, folds = plan.edge_stays, ~plan.edge_stays & (plan.edge_into >= 0)
        is_moved = (plan.edges.source != edges.source) | (plan.edges.target != edges.target)
        is_weak = np.zeros(len(edges), dtype=bool)
        is_weak[plan.pruned] = True
        is_merge = (is_moved | folds) & ~is_weak
        every, ids = self._every_edge(), [node.id for node in self._nodes.values()]
        gone: list[ArchivedEdge | EdgeBefore] = []
        for row in np.flatnonzero(~stays | is_moved).tolist():
            (a, b), weight = every[row]
            reason = TOO_WEAK if is_weak[row] else WITH_ITS_NODE
            ends = self._nodes[a].id, self._nodes[b].id
            is_creative, value, since = row >= len(self._edges), weight.value, weight.decayed_at
            gone.append(ArchivedEdge(*ends, value, since, is_creative, reason, bool(is_merge[row]), weight.version))
        takes_in = is_moved & stays
        # What was dreamt gives nothing to what was observed.
        is_dream = edges.origin == Origin.CREATIVE
        takes_in[plan.edge_into[folds & (is_dream == is_dream[plan.edge_into])]] = True
        for row in np.flatnonzero(takes_in).tolist():
            _, weight = every[row]
            value, since = (0.0, None) if is_moved[row] else (weight.value, weight.decayed_at)
            ends = ids[plan.edges.source[row]], ids[plan.edges.target[row]]
            is_creative, after = row >= len(self._edges), float(plan.edges.weight[row])
            gone.append(EdgeBefore(*ends, value, since, is_creative, after, weight.version))
        return gone

    def restore_node(self, archived: ArchivedNode) -> bool:
        """Put a node back where it was in the order of nodes; False if one with its id or number is there.

        One that had become part of another is not merged again.

        Raises
        ------
        DimensionMismatch
            If its embedding has another dimension than those that are here.
        InvalidInput
            If it is none from an archive.
        """
        if not isinstance(archived, ArchivedNode) or not isinstance(archived.node, MemoryNode):
            raise InvalidInput(f"a {type(archived).__name__} was given, expected an ArchivedNode")
        node, number = archived.node, archived.number
        if not is_whole(number) or not 0 <= number < 1 << 62:
            raise InvalidInput(f"node {node.id} has the number {number!r}, expected one that this engine gave")
        if node.id in self._number or number in self._nodes:
            return False
        self._check_dimension(node)
        number = int(number)
        self._nodes = dict(sorted({**self._nodes, number: node}.items()))
        self._number[node.id] = number
        if archived.into is not None:
            self._distinct.add(number)
        self._next_number = max(self._next_number, number + 1)
        self._graph = None
        return True

    def restore_edge(self, archived: ArchivedEdge) -> bool:
        """Put an edge back; False if there is one between its nodes.

        Raises
        ------
        MemoryGraphError
            If one of its nodes is not here.
        InvalidInput
            If it is none from an archive.
        """
        _check_edge(archived, ArchivedEdge)
        if not is_number(archived.weight) or not 0 <= archived.weight <= 1 or archived.a == archived.b:
            raise InvalidInput(f"{archived} is no edge: expected two nodes, and a weight from 0 to 1")
        since = time_or_none(archived.decayed_at)
        if archived.a not in self._number or archived.b not in self._number:
            raise MemoryGraphError(f"the edge {archived.a} - {archived.b} lacks a node: restore that first")
        pair = self._edge(archived.a, archived.b)
        if pair in self._edges or pair in self._creative:
            return False
        kept = self._creative if archived.is_creative else self._edges
        kept[pair] = Weight(archived.weight, since, archived.version)
        self._graph = None
        return True

    def restore_node_before(self, archived: NodeBefore) -> bool:
        """Take out of a node what others have brought into it; False if it is not here.

        What came since is its own.

        Raises
        ------
        InvalidInput
            If it is none from an archive.
        """
        if not isinstance(archived, NodeBefore) or not all(
            isinstance(node, MemoryNode) for node in (archived.node, archived.after)
        ):
            raise InvalidInput(f"a {type(archived).__name__} was given, expected a NodeBefore")
        before, after = archived.node, archived.after
        number = self._number.get(before.id)
        if number is None:
            return False
        node = self._nodes[number]
        taken = {
            name: getattr(before, name)
            for name in ("timestamp", "quality", "created")
            if getattr(node, name) == getattr(after, name)
        }
        count = max(node.access_count - (after.access_count - before.access_count), 0)
        self._nodes[number] = replace(node, access_count=count, **taken)
        self._graph = None
        return True

    def restore_edge_before(self, archived: EdgeBefore) -> bool:
        """Take out of an edge what others have brought into it; False if it is not here.

        One that was only moved there goes. What it has gained since is its own, and of what it has lost it bears its
        share; a weight that somebody has set since stays.

        Raises
        ------
        InvalidInput
            If it is none from an archive.
        """
        _check_edge(archived, EdgeBefore)
        weights = (archived.weight, archived.after)
        if not all(is_number(weight) and 0 <= weight <= 1 for weight in weights) or not archived.after:
            raise InvalidInput(f"{archived} is no edge: expected weights from 0 to 1")
        since, kept = time_or_none(archived.decayed_at), self._creative if archived.is_creative else self._edges
        if archived.a not in self._number or archived.b not in self._number:
            return False
        pair = self._edge(archived.a, archived.b)
        edge = kept.get(pair)
        if edge is None:
            return False
        if edge.version != archived.version:
            return True
        before, after = weights
        if edge.value == after:
            edge = edge._replace(value=before, decayed_at=since)
        elif edge.value > after:
            edge = edge._replace(value=1 - (1 - before) * (1 - (edge.value - after) / (1 - after)))
        else:
            edge = edge._replace(value=before * edge.value / after)
        if edge.value > 0:
            kept[pair] = edge
        else:
            del kept[pair]
        self._graph = None
        return True

    # ---- numbers and places ------------------------------------------------------------------------------------------

    def _numbers(self) -> Rows:
        return np.fromiter(self._nodes, dtype=np.int64, count=len(self._nodes))

    def _places(self, pairs: Iterable[Pair]) -> Rows:
        """Places (m, 2) in the order of nodes."""
        numbers = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
        return np.searchsorted(self._numbers(), numbers)

    def _edge(self, a: int, b: int) -> Pair:
        first, second = sorted((self._number[a], self._number[b]))
        return first, second


def _consolidated(node: MemoryNode, columns: MemoryNodes, place: int, is_strengthened: bool) -> MemoryNode:
    """A node that stays, with what it has taken in."""
    after = {
        "timestamp": float(columns.last_access[place]),
        "access_count": int(columns.access_count[place]),
        "importance": float(columns.importance[place]),
        "quality": float(columns.quality[place]),
        "created": float(columns.created[place]),
        "consolidation_count": node.consolidation_count + is_strengthened,
    }
    if all(getattr(node, name) == value for name, value in after.items()):
        return node
    return replace(node, **after)  # type: ignore[arg-type]


def _check_edge(archived: ArchivedEdge | EdgeBefore, kind: type[ArchivedEdge | EdgeBefore]) -> None:
    if not isinstance(archived, kind) or not all(
        is_whole(number) for number in (archived.a, archived.b, archived.version)
    ):
        raise InvalidInput(f"a {type(archived).__name__} was given, expected an {kind.__name__}")


def time_or_none(at: float | None) -> float | None:
    return None if at is None else as_seconds(at, "the time")
