"""Consolidation of the memory graph: what is valuable is strengthened, the rest fades, what is twice becomes one.

`consolidation_plan` decides and changes nothing; a plan is executed by whoever keeps the graph, or by `apply_plan`.
After a plan was executed, another one of the same instant is empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np

from sona_pg.config import ConsolidationConfig
from sona_pg.errors import InvalidInput
from sona_pg.learning.arrays import rows_at
from sona_pg.learning.leaders import leaders
from sona_pg.learning.memory_columns import Doubles, Flags, MemoryEdges, MemoryNodes, Origin, Rows
from sona_pg.types import as_seconds

_NODE_BYTES, _EDGE_BYTES = 7 * 8 + 1, 5 * 8
"""Of the columns of a row, without its embedding."""


@dataclass(frozen=True, slots=True, eq=False)
class ConsolidationPlan:
    """What a consolidation does to n nodes and m edges. Rows are those of the columns that it was made for.

    Parameters
    ----------
    now
        Seconds since the epoch.
    value
        float64 (n,): what each node is worth, see `node_values`: by that it is decided what becomes of it.
    value_after
        float64 (n,): what each node that stays is worth in the graph that is left, so that a plan that changes nothing
        else changes no value; what it says of the others has no meaning.
    merged_into
        int64 (n,): the row of the node that each becomes part of; itself where it is not merged.
    archived
        int64 (k,): rows of the nodes that go because nothing speaks for them. Those that were merged are not among
        them; they go to the archive as well.
    edges
        The columns of all edges as they are afterwards, with the rows of nodes as they were; what they say of an edge
        that does not stay has no meaning.
    edge_into
        int64 (m,): the row of the edge that each becomes part of: itself where it stays, -1 where it goes.
    strengthened, decayed
        int64: rows of the edges that gain weight, and of those that lose some.
    pruned
        int64: rows of the edges that go because they are weak.
    """

    now: float
    value: Doubles
    value_after: Doubles
    merged_into: Rows
    archived: Rows
    edges: MemoryEdges
    edge_into: Rows
    strengthened: Rows
    decayed: Rows
    pruned: Rows

    @property
    def merged(self) -> Rows:
        """int64 (k, 2): rows of the nodes that are merged, and of those that they become part of."""
        rows = np.flatnonzero(self.merged_into != np.arange(len(self.merged_into)))
        return np.stack([rows, self.merged_into[rows]], axis=1)

    @property
    def node_stays(self) -> Flags:
        """bool (n,): whether a node is there afterwards."""
        stays = np.asarray(self.merged_into == np.arange(len(self.merged_into)))
        stays[self.archived] = False
        return stays

    @property
    def edge_stays(self) -> Flags:
        """bool (m,): whether an edge is there afterwards."""
        return np.asarray(self.edge_into == np.arange(len(self.edge_into)))

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        changed = len(self.strengthened) + len(self.decayed)
        return not changed and bool(self.node_stays.all() and self.edge_stays.all())


@dataclass(frozen=True, slots=True)
class Compression:
    """How much smaller the graph becomes.

    Parameters
    ----------
    nodes, edges
        Rows before and after.
    embedding_bytes
        Of the embeddings of nodes that have one, before and after.
    total_bytes
        With all other columns, before and after; what a database adds to a row is not among them.
    """

    nodes: tuple[int, int]
    edges: tuple[int, int]
    embedding_bytes: tuple[int, int]
    total_bytes: tuple[int, int]


# ---- value -----------------------------------------------------------------------------------------------------------


def node_values(
    nodes: MemoryNodes,
    strength: Doubles,
    now: float,
    config: ConsolidationConfig,
    *,
    most_strength: float | None = None,
) -> Doubles:
    """What each node is worth (n,), 0 to 1: a weighted mean of four parts, each 0 to 1.

    - frequency: ``log1p(accesses) / log1p(most accesses of the space)``, 0 where nothing was ever accessed. Not a rank:
      where all are accessed alike, none is better, and one that is accessed twice as often does not pass all others.
      The logarithm keeps a single node that is accessed all the time from making nothing of the rest.
    - recency: ``2^(-age / half-life)``, the age since the last access or the creation.
    - quality: as it was judged; the prior where it was not.
    - connectivity: ``log1p(strength) / log1p(largest strength)``, likewise.

    Parameters
    ----------
    strength
        float64 (n,): summed weights of a node's edges, as `node_strengths` gives them.
    now
        Seconds since the epoch.
    most_strength
        Largest strength of the space, if it is not among these.
    """
    age = np.maximum(now - np.maximum(nodes.last_access, nodes.created), 0)
    quality = np.where(np.isnan(nodes.quality), config.prior_quality, nodes.quality)
    value = (
        config.frequency_weight * _share_of_most(nodes.access_count.astype(np.float64))
        + config.recency_weight * np.exp2(-age / config.recency_half_life_seconds)
        + config.quality_weight * quality
        + config.connectivity_weight * _share_of_most(strength, most_strength)
    )
    return np.asarray(np.clip(value, 0, 1))


def _share_of_most(amount: Doubles, most: float | None = None) -> Doubles:
    largest = math.log1p(float(amount.max(initial=0)) if most is None else most)
    return np.log1p(amount) / largest if largest > 0 else np.zeros(len(amount))


def node_strengths(n: int, edges: MemoryEdges, counts: Flags | None = None) -> Doubles:
    """Summed weights (n,) of the edges of each node. Creative ones, which nothing has confirmed, and loops are none.

    Parameters
    ----------
    counts
        bool (m,): which edges count at all; all if None.
    """
    real = (edges.origin != Origin.CREATIVE) & (edges.source != edges.target)
    weight = np.where(real if counts is None else real & counts, edges.weight, 0.0)
    return np.asarray(np.bincount(edges.source, weight, n) + np.bincount(edges.target, weight, n), dtype=np.float64)


# ---- edges over time -------------------------------------------------------------------------------------------------


def decayed_weights(edges: MemoryEdges, now: float, config: ConsolidationConfig) -> Doubles:
    """Weights (m,) at a time: ``w 2^(-Δt / h)``, Δt since `decayed_at`, with a shorter h for creative edges.

    What was given by hand does not fade.

    t1 and then t2 is the same as t2 at once. At `decayed_at` itself, or before it, nothing changes.
    """
    half_life = np.where(edges.origin == Origin.CREATIVE, config.creative_half_life_seconds, config.half_life_seconds)
    elapsed = np.where(edges.origin == Origin.GIVEN, 0.0, np.maximum(now - edges.decayed_at, 0))
    return np.asarray(edges.weight * np.exp2(-elapsed / half_life))


def strengthened_weights(edges: MemoryEdges, now: float, config: ConsolidationConfig) -> Doubles:
    """Weights (m,) at a time of edges that are strengthened: ``w += η' (1 - w)``, ``η' = 1 - (1 - η)^(Δt / interval)``.

    A whole interval is one step of η, two halves of it are the same, and no time is none. More than an interval is one
    step, too: that the ends are valuable now says nothing of the weeks that were left out.
    """
    elapsed = np.clip((now - edges.decayed_at) / config.interval_seconds, 0, 1)
    return np.asarray(edges.weight + (1 - (1 - config.strengthening) ** elapsed) * (1 - edges.weight))


def _weighed(
    nodes: MemoryNodes, edges: MemoryEdges, now: float, config: ConsolidationConfig
) -> tuple[MemoryEdges, Doubles, Flags]:
    """Edges with their weights of now, the values of nodes that decide about them, and which edges are strengthened.

    An edge is strengthened or decays: what it is worth to keep does not fade meanwhile, else no step of η would hold
    against the half-life.
    """
    decayed = replace(edges, weight=decayed_weights(edges, now, config))
    value = node_values(nodes, node_strengths(len(nodes), decayed), now, config)
    valuable = value >= config.threshold
    is_observed = (edges.origin != Origin.CREATIVE) & (edges.origin != Origin.GIVEN)
    grows = valuable[edges.source] & valuable[edges.target] & is_observed
    grows &= edges.source != edges.target
    weight = np.where(grows, strengthened_weights(edges, now, config), decayed.weight)
    decayed_at = np.where(edges.origin == Origin.GIVEN, edges.decayed_at, np.maximum(edges.decayed_at, now))
    return replace(edges, weight=weight, decayed_at=decayed_at), value, grows


# ---- near duplicates -------------------------------------------------------------------------------------------------


def merged_into(nodes: MemoryNodes, value: Doubles, config: ConsolidationConfig) -> Rows:
    """By node (n,) the row of the one that it becomes part of, itself where there is none.

    In the order of value, the older first where it is equal, each node joins the first one of its kind that stands
    with a cosine above the threshold. Nodes without an embedding, or with one that is zero, are no duplicates.
    """
    into = np.arange(len(nodes))
    has_direction = np.asarray(nodes.embeddings.any(axis=1), dtype=bool)
    compared = nodes.has_embedding & (has_direction if nodes.places is None else has_direction[nodes.places])
    order = np.lexsort((nodes.ids, -value))
    order = order[compared[order]]
    for kind in np.unique(nodes.kinds[order]):
        own = order[nodes.kinds[order] == kind]
        into[own] = own[leaders(rows_at(nodes.embeddings, nodes.places, own), config.merge_threshold)]
    return into


def _merged_nodes(nodes: MemoryNodes, into: Rows) -> MemoryNodes:
    """Columns of which the rows that stand have taken in the others.

    Accesses are summed; the earliest creation, the latest access and the largest importance hold; quality is the mean
    of those that were judged, by their accesses and one; where it is known how often each was judged, it is the share
    of all of it, with the prior once. The one that stands keeps its id and its embedding.
    """
    if (into == np.arange(len(into))).all():
        return nodes
    access_count = np.zeros_like(nodes.access_count)
    np.add.at(access_count, into, nodes.access_count)
    created, last_access, importance = nodes.created.copy(), nodes.last_access.copy(), nodes.importance.copy()
    np.minimum.at(created, into, nodes.created)
    np.maximum.at(last_access, into, nodes.last_access)
    np.maximum.at(importance, into, nodes.importance)
    judged = ~np.isnan(nodes.quality)
    share = np.where(judged, nodes.access_count + 1.0, 0.0)
    total = np.bincount(into, share, len(into))
    worth = np.bincount(into, share * np.where(judged, nodes.quality, 0.0), len(into))
    alone = np.bincount(into, minlength=len(into)) < 2
    with np.errstate(invalid="ignore", divide="ignore"):
        # A mean may be above all that it is of by a rounding.
        mean = np.minimum(worth / total, 1.0)
    judgements = None
    if nodes.judged is not None:
        judgements = np.zeros_like(nodes.judged)
        np.add.at(judgements, into, nodes.judged)
        times, helped = judgements.T
        mean = np.where(times > 0, (helped + 1.0) / (times + 2.0), mean)
    return replace(
        nodes,
        access_count=access_count,
        created=created,
        last_access=last_access,
        importance=importance,
        quality=np.where(alone, nodes.quality, mean),
        judged=judgements,
    )


def _folded_edges(edges: MemoryEdges, into: Rows) -> tuple[MemoryEdges, Rows]:
    """Edges between the nodes that stand, and by edge (m,) the one that it becomes part of, -1 for a loop.

    Of several between the same two nodes the heaviest stays. Real ones become ``1 - Π (1 - w)``: that is what they
    would weigh if all that they were strengthened by, ``w += η (1 - w)``, had come to one edge. Creative ones are
    proposals of one thing, and become the heaviest of them; beside a real edge they vanish. Those that are given by
    hand are one with each other alone.
    """
    source, target = into[edges.source], into[edges.target]
    moved = (source != edges.source) | (target != edges.target)
    first, second = np.minimum(source, target), np.maximum(source, target)
    # What is given by hand stays what it is beside what outcomes say of the same two.
    key = (first * len(into) + second) * 2 + (edges.origin == Origin.GIVEN)
    is_creative = edges.origin == Origin.CREATIVE
    order = np.argsort(key, kind="stable")
    is_twice = np.zeros(len(key), dtype=bool)
    same = key[order[1:]] == key[order[:-1]]
    is_twice[order[1:][same]] = True
    is_twice[order[:-1][same]] = True
    # Of the few that share their ends: by ends, real ones first, the heaviest first.
    rows = np.flatnonzero(is_twice & (source != target))
    rows = rows[np.lexsort((rows, -edges.weight[rows], is_creative[rows], key[rows]))]
    starts = np.flatnonzero(np.r_[True, key[rows[1:]] != key[rows[:-1]]]) if len(rows) else rows
    stays = rows[starts]
    edge_into = np.where(source == target, -1, np.arange(len(key)))
    edge_into[rows] = np.repeat(stays, np.diff(np.r_[starts, len(rows)]))
    weight, decayed_at = edges.weight.copy(), edges.decayed_at.copy()
    if len(rows):
        decayed_at[stays] = np.maximum.reduceat(edges.decayed_at[rows], starts)
        missing = np.multiply.reduceat(np.where(is_creative[rows], 1.0, 1 - edges.weight[rows]), starts)
        is_sum = np.add.reduceat((~is_creative[rows]).astype(np.int64), starts) > 1
        weight[stays[is_sum]] = 1 - missing[is_sum]
    return replace(
        edges,
        source=np.where(moved, first, edges.source),
        target=np.where(moved, second, edges.target),
        weight=weight,
        decayed_at=decayed_at,
    ), edge_into


# ---- what goes -------------------------------------------------------------------------------------------------------


def _archived(
    nodes: MemoryNodes, edges: MemoryEdges, node_stands: Flags, edge_stays: Flags, now: float,
    config: ConsolidationConfig,
) -> Rows:  # fmt: skip
    """Rows of nodes of little value AND unused AND old, of those that stand.

    Edges between two nodes that are unused and old count for the value of neither: such nodes would hold up each
    other, and what goes now would let others go by another consolidation of the same instant.
    """
    touched = np.maximum(nodes.last_access, nodes.created)
    candidate = node_stands & (nodes.access_count < config.prune_accesses) & (now - touched > config.prune_age_seconds)
    if not candidate.any():
        return np.empty(0, dtype=np.int64)
    held = edge_stays & ~(candidate[edges.source] & candidate[edges.target])
    most = float(node_strengths(len(nodes), edges, edge_stays).max())
    strength = node_strengths(len(nodes), edges, held)
    value = node_values(nodes, strength, now, config, most_strength=most)
    return np.flatnonzero(candidate & (value < config.prune_value))


def _values_after(
    nodes: MemoryNodes, edges: MemoryEdges, node_stays: Flags, edge_stays: Flags, now: float,
    config: ConsolidationConfig,
) -> Doubles:  # fmt: skip
    """Values (n,) in the graph of what stays: of the other nodes nothing counts, nor what it makes the largest."""
    left = replace(nodes, access_count=np.where(node_stays, nodes.access_count, 0))
    return node_values(left, node_strengths(len(nodes), edges, edge_stays), now, config)


# ---- the whole -------------------------------------------------------------------------------------------------------


def consolidation_plan(
    nodes: MemoryNodes, edges: MemoryEdges, now: float, config: ConsolidationConfig | None = None
) -> ConsolidationPlan:
    """What a consolidation at this time does; nothing is changed.

    Edges are strengthened or decay, near duplicates are merged with their edges, weak edges go, then nodes for which
    nothing speaks, with their edges.

    Parameters
    ----------
    now
        Seconds since the epoch.

    Raises
    ------
    InvalidInput
        If an edge leads to a node that is not there, or `now` is no time.

    Examples
    --------
    >>> columns = {"created": np.zeros(3), "last_access": np.zeros(3), "quality": np.full(3, 0.9)}
    >>> nodes = MemoryNodes(
    ...     ids=np.arange(3), kinds=np.zeros(3, np.int64), access_count=np.array([5, 3, 4]), importance=np.ones(3),
    ...     embeddings=np.array([[1, 0], [1, 0.01], [0, 1]], np.float32), has_embedding=np.ones(3, bool), **columns)
    >>> ends, zero = (np.array([0, 1]), np.array([2, 2])), np.zeros(2)
    >>> edges = MemoryEdges(*ends, np.array([0.5, 0.5]), zero, zero.astype(int))
    >>> plan = consolidation_plan(nodes, edges, now=0.0)
    >>> plan.merged.tolist(), plan.edge_into.tolist(), float(plan.edges.weight[0])
    ([[1, 0]], [0, 0], 0.75)
    >>> consolidation_plan(*apply_plan(nodes, edges, plan), now=0.0).is_empty
    True
    """
    config = ConsolidationConfig() if config is None else config
    now = as_seconds(now)
    edges.check(len(nodes))
    weighed, value, grows = _weighed(nodes, edges, now, config)
    into = merged_into(nodes, value, config)
    folded, edge_into = _folded_edges(weighed, into)
    weak = (folded.weight < config.prune_weight) & (folded.origin != Origin.GIVEN)
    pruned = np.flatnonzero((edge_into >= 0) & weak[edge_into])
    edge_into[pruned] = -1
    rows = np.arange(len(edges))
    merged = _merged_nodes(nodes, into)
    archived = _archived(merged, folded, into == np.arange(len(into)), edge_into == rows, now, config)
    goes = np.zeros(len(nodes), dtype=bool)
    goes[archived] = True
    edge_into[goes[folded.source] | goes[folded.target]] = -1
    stays = edge_into == rows
    later = (edges.decayed_at < now) & stays & (edges.origin != Origin.GIVEN)
    return ConsolidationPlan(
        now=float(now),
        value=value,
        value_after=_values_after(merged, folded, (into == np.arange(len(into))) & ~goes, stays, now, config),
        merged_into=into,
        archived=archived,
        edges=folded,
        edge_into=edge_into,
        strengthened=np.flatnonzero(later & grows),
        decayed=np.flatnonzero(later & ~grows),
        pruned=pruned,
    )


def apply_plan(nodes: MemoryNodes, edges: MemoryEdges, plan: ConsolidationPlan) -> tuple[MemoryNodes, MemoryEdges]:
    """The columns after a plan that was made for these, in their order; rows of nodes are numbered anew.

    Raises
    ------
    InvalidInput
        If the plan was made for other columns.
    """
    if (len(plan.merged_into), len(plan.edge_into)) != (len(nodes), len(edges)):
        raise InvalidInput(
            f"the plan is for {len(plan.merged_into)} nodes and {len(plan.edge_into)} edges, "
            f"expected {len(nodes)} and {len(edges)}: make a plan for these columns"
        )
    node_stays, edge_stays = plan.node_stays, plan.edge_stays
    merged = _merged_nodes(nodes, plan.merged_into)
    row = np.cumsum(node_stays) - 1
    columns = {f.name: getattr(merged, f.name) for f in fields(MemoryNodes)}
    # Embeddings that nodes have by their places stay where they are.
    whole = () if merged.places is None else ("embeddings",)
    kept = {name: column if column is None or name in whole else column[node_stays] for name, column in columns.items()}
    return MemoryNodes(**kept), MemoryEdges(
        source=row[plan.edges.source[edge_stays]],
        target=row[plan.edges.target[edge_stays]],
        weight=plan.edges.weight[edge_stays],
        decayed_at=plan.edges.decayed_at[edge_stays],
        origin=plan.edges.origin[edge_stays],
    )


def compression(nodes: MemoryNodes, plan: ConsolidationPlan) -> Compression:
    """How much smaller a plan makes the graph that it was made for."""
    stays, edges_left = plan.node_stays, int(plan.edge_stays.sum())
    row_bytes = 4 * nodes.embeddings.shape[1]
    vectors = (int(nodes.has_embedding.sum()) * row_bytes, int(nodes.has_embedding[stays].sum()) * row_bytes)
    counts, edge_counts = (len(nodes), int(stays.sum())), (len(plan.edge_into), edges_left)
    before, after = (
        v + n * _NODE_BYTES + m * _EDGE_BYTES for v, n, m in zip(vectors, counts, edge_counts, strict=True)
    )
    return Compression(counts, edge_counts, vectors, (before, after))
