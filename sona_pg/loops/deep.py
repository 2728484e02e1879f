"""Loop C: what was learned is put in order, and dreamt about.

A cycle makes a memory graph of items, patterns and what goes together, consolidates it, finds patterns of patterns,
dreams over it, and measures how much the patterns are one system. It proposes: what dreams connect is weak and marked,
and what is removed is in the archive. All of it is as of the moment in which the cycle was asked for, so that one that
was interrupted comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import DEEP_SCHEDULE
from sona_pg.learning.arrays import normalized_rows
from sona_pg.learning.associations import Associations
from sona_pg.learning.consolidation import Compression, ConsolidationPlan, compression, consolidation_plan
from sona_pg.learning.dream_walks import CreativeEdges
from sona_pg.learning.dreams import dreamt_edges
from sona_pg.learning.hierarchy import FIRST_CONCEPT, PatternHierarchy, pattern_hierarchy
from sona_pg.learning.judged_dreams import DreamNight, dream_night
from sona_pg.learning.memory_columns import Flags, MemoryEdges, MemoryNodes, Origin
from sona_pg.learning.memory_graph import MemoryGraph, NodeFacts
from sona_pg.learning.pattern_edges import pattern_edges
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.system_integration import SystemIntegration, system_integration
from sona_pg.learning.transfer import analogies
from sona_pg.loops.cycle import Cycle, Loop, Skipped
from sona_pg.loops.deep_config import DeepConfig
from sona_pg.loops.deep_phase import DeepPhase
from sona_pg.store.connection import Connection
from sona_pg.store.indexes import index_by_size
from sona_pg.store.memory import (
    HIERARCHICAL,
    PATTERN,
    WALKED,
    MemoryReader,
    MemoryState,
    StoredEdges,
)
from sona_pg.store.memory_consolidation import ConsolidationTransaction
from sona_pg.store.memory_dreams import DreamTransaction
from sona_pg.store.memory_growth import GrowthTransaction
from sona_pg.store.memory_transaction import MemoryTransaction
from sona_pg.store.runs import Facts
from sona_pg.types import FloatVector

NAME = "deep"

Rows = NDArray[np.int64]

# ---- growth ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Learned:
    patterns: list[LearnedPattern]
    queries: list[tuple[FloatVector, list[str]]]
    is_empty: bool


class _Grow(DeepPhase[_Learned, Sequence[tuple[int, str, float]], GrowthTransaction]):
    """Nodes and edges of what was learned."""

    name = "grow"
    transaction = GrowthTransaction

    def found(self, reader: MemoryReader, cycle: Cycle, check: Callable[[], None]) -> _Learned:
        limits = self.config.loop
        most = max(limits.max_vector_bytes // (4 * cycle.space.dim), 1)
        patterns = reader.patterns()
        return _Learned(patterns, reader.queries(min(most, _PATTERN_QUERIES)) if patterns else [], reader.is_empty())

    def made(self, state: MemoryState, found: _Learned, check: Callable[[], None]) -> Sequence[tuple[int, str, float]]:
        if found.is_empty and not found.patterns:
            raise Skipped("there are no patterns, nothing helped together, and nobody has added a memory node")
        return pattern_edges(found.patterns, found.queries, self.config.loop.pattern_items)

    def done(
        self,
        transaction: GrowthTransaction,
        made: Sequence[tuple[int, str, float]],
        connection: Connection,
        cycle: Cycle,
    ) -> Facts:
        grown = transaction.grow(made)
        return {
            "nodes_created": grown.created,
            "nodes_gone": grown.gone,
            "pattern_edges": grown.pattern_edges,
            "items_embedded": grown.embedded,
            "items_lost": grown.lost,
            "items_refused": grown.refusal,
        }


_PATTERN_QUERIES = 20_000
"""Remembered queries, the newest, that say which items helped in which pattern."""


# ---- consolidation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Consolidated:
    nodes: MemoryNodes
    stored: StoredEdges
    plan: ConsolidationPlan
    compression: Compression


@dataclass(frozen=True, slots=True, eq=False)
class _Weighed:
    nodes: MemoryNodes
    stored: StoredEdges
    is_distinct: Flags


class _Consolidate(DeepPhase[_Weighed, _Consolidated, ConsolidationTransaction]):
    """What is valuable is strengthened, the rest fades, what is twice becomes one."""

    name = "consolidate"
    transaction = ConsolidationTransaction

    def found(self, reader: MemoryReader, cycle: Cycle, check: Callable[[], None]) -> _Weighed:
        nodes = reader.nodes(self.config.loop.max_vector_bytes)
        nodes = replace(nodes, judged=reader.judged(nodes.ids))
        return _Weighed(nodes, reader.edges(nodes.ids, (*WALKED, "creative")), reader.distinct(nodes.ids))

    def made(self, state: MemoryState, found: _Weighed, check: Callable[[], None]) -> _Consolidated:
        nodes, stored = found.nodes, found.stored
        # Patterns are merged by the background loop, and patterns of patterns are made anew.
        own = nodes.has_embedding & (nodes.kinds != PATTERN) & (nodes.kinds != HIERARCHICAL) & ~found.is_distinct
        compared = replace(nodes, has_embedding=own)
        plan = consolidation_plan(compared, stored.edges, state.now, self.config.consolidation)
        return _Consolidated(nodes, stored, plan, compression(nodes, plan))

    def done(
        self, transaction: ConsolidationTransaction, made: _Consolidated, connection: Connection, cycle: Cycle
    ) -> Facts:
        executed = transaction.execute(made.nodes, made.stored, made.plan)
        smaller = made.compression
        return {
            "nodes": smaller.nodes[1],
            "edges": smaller.edges[1],
            "edges_strengthened": len(made.plan.strengthened),
            "edges_decayed": len(made.plan.decayed),
            "edges_changed": executed.edges,
            "edges_pruned": executed.pruned,
            "nodes_merged": executed.merged,
            "nodes_archived": executed.archived,
            "bytes_before": smaller.total_bytes[0],
            "bytes_after": smaller.total_bytes[1],
            "archive_expired": transaction.drop_old_archive(self.config.loop.keep_archive_seconds),
        }


# ---- hierarchy -------------------------------------------------------------------------------------------------------


class _Hierarchy(DeepPhase[list[LearnedPattern], PatternHierarchy, GrowthTransaction]):
    """Patterns of patterns."""

    name = "hierarchy"
    transaction = GrowthTransaction

    def found(self, reader: MemoryReader, cycle: Cycle, check: Callable[[], None]) -> list[LearnedPattern]:
        return [*reader.patterns(), *reader.concepts()]

    def made(self, state: MemoryState, found: list[LearnedPattern], check: Callable[[], None]) -> PatternHierarchy:
        # Every concept is a node: above the last node's number none was ever given.
        first = FIRST_CONCEPT + state.last_node_id + 1
        return pattern_hierarchy(found, next_id=first, now=state.now, config=self.config.hierarchy)

    def done(
        self, transaction: GrowthTransaction, made: PatternHierarchy, connection: Connection, cycle: Cycle
    ) -> Facts:
        transaction.write_hierarchy(made.patterns)
        return {
            "concepts": len(made.patterns),
            "created": len(made.created),
            "kept": len(made.updated),
            "retired": len(made.retired),
            "levels": max((pattern.abstraction_level for pattern in made.patterns), default=0),
        }


# ---- dreams ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Memory:
    nodes: MemoryNodes
    edges: MemoryEdges
    events: list[Rows] | None


@dataclass(frozen=True, slots=True, eq=False)
class _Dreamt:
    ids: Rows
    night: DreamNight
    edges: CreativeEdges


class _Dream(DeepPhase[_Memory, _Dreamt, DreamTransaction]):
    """Walks over the graph, and the weak edges that they propose where dreams have shown that they help."""

    name = "dream"
    transaction = DreamTransaction

    def found(self, reader: MemoryReader, cycle: Cycle, check: Callable[[], None]) -> _Memory:
        nodes = reader.nodes(self.config.loop.max_vector_bytes)
        edges = reader.edges(nodes.ids, (*WALKED, "creative")).edges
        # Edges that are given by hand alone come from no events.
        has_events = bool((edges.origin == Origin.CO_ACCESS).any())
        return _Memory(nodes, edges, reader.events(nodes.ids, _EVENTS) if has_events else None)

    def made(self, state: MemoryState, found: _Memory, check: Callable[[], None]) -> _Dreamt:
        is_dreamt = found.edges.origin == Origin.CREATIVE
        graph, standing = graph_of(found.nodes, found.edges.where(~is_dreamt)), found.edges.where(is_dreamt)
        # Nothing that was made of the same events.
        observed = found.edges.where(np.isin(found.edges.origin, (Origin.CO_ACCESS, Origin.GIVEN)))
        night = dream_night(
            graph, self.config.loop.dreams_of(len(graph)), self.config.dreams, self.config.evidence, self.config.phi,
            observed=MemoryGraph.from_edges(len(graph), observed.source, observed.target, observed.weight),
            events=found.events, first=state.last_dream_id, check_stop=check,
        )  # fmt: skip
        edges = dreamt_edges(graph, night.integrated, self.config.dreams, standing=(standing.source, standing.target))
        return _Dreamt(found.nodes.ids, night, edges)

    def done(self, transaction: DreamTransaction, made: _Dreamt, connection: Connection, cycle: Cycle) -> Facts:
        transaction.write_facts(
            "evidence",
            {
                "confirmed": made.night.evidence.confirmed,
                "auc": _number(made.night.evidence.auc),
                "control": _number(made.night.evidence.control),
                "p": made.night.evidence.p,
                "reason": made.night.evidence.reason,
            },
        )
        kept = sorted(made.night.dreams, key=lambda one: not one.is_integrated)[: self.config.loop.keep_dreams_each]
        transaction.write_dreams(
            [(one.dream, one.phi, one.level, one.refusal) for one in kept],
            made.ids,
            dreamt=len(made.night.dreams),
            keep_runs=self.config.loop.keep_dreams,
        )
        confirmed, weight = made.night.evidence.confirmed, self.config.dreams.edge_weight
        # What earlier dreams have made rests on the same evidence.
        withdrawn = 0 if confirmed else transaction.withdraw_creative()
        connected = transaction.write_creative(made.ids[made.edges.source], made.ids[made.edges.target], weight)
        return {
            "dreams": len(made.night.dreams),
            "integrated": len(made.night.integrated),
            "edges_proposed": connected,
            "edges_withdrawn": withdrawn,
            "confirmed": confirmed,
            "reason": made.night.evidence.reason,
        }


_EVENTS = 20_000
"""Remembered queries, the newest, that say what helped together."""


def graph_of(nodes: MemoryNodes, edges: MemoryEdges) -> MemoryGraph:
    """The graph that dreams walk on; an unknown quality is one half."""
    quality = np.where(np.isnan(nodes.quality), 0.5, nodes.quality)
    return MemoryGraph.from_edges(
        len(nodes),
        edges.source,
        edges.target,
        edges.weight,
        embeddings=nodes.embeddings,
        places=nodes.places,
        facts=NodeFacts(nodes.importance, quality, nodes.access_count, nodes.last_access),
    )


# ---- integration -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Activity:
    patterns: list[LearnedPattern]
    queries: list[tuple[FloatVector, list[str]]]


class _Integration(DeepPhase[_Activity, tuple[list[int], SystemIntegration], MemoryTransaction]):
    """How much the largest patterns are one system, by how each query activates them after the one before."""

    name = "integration"
    transaction = MemoryTransaction

    def found(self, reader: MemoryReader, cycle: Cycle, check: Callable[[], None]) -> _Activity:
        limits = self.config.loop
        most = min(limits.system_queries, max(limits.max_vector_bytes // (4 * cycle.space.dim), 1))
        patterns = reader.largest_patterns(cycle.space.space_id, limits.system_patterns)
        return _Activity(patterns, reader.queries(most) if len(patterns) > 1 else [])

    def made(
        self, state: MemoryState, found: _Activity, check: Callable[[], None]
    ) -> tuple[list[int], SystemIntegration]:
        ids = [pattern.id for pattern in found.patterns]
        if len(ids) < 2 or not found.queries:
            return ids, SystemIntegration(None, reason=f"{len(ids)} patterns and {len(found.queries)} queries")
        rows = normalized_rows(np.array([query for query, _ in found.queries], dtype=np.float32))
        centroids = np.array([pattern.centroid for pattern in found.patterns], dtype=np.float32)
        return ids, system_integration(rows @ centroids.T, self.config.phi)

    def done(
        self,
        transaction: MemoryTransaction,
        made: tuple[list[int], SystemIntegration],
        connection: Connection,
        cycle: Cycle,
    ) -> Facts:
        ids, found = made
        facts: Facts = {
            "phi": found.value,
            "chance": found.null,
            "whole": found.whole,
            "patterns": [ids[node] for node in found.nodes],
            "reason": found.reason,
        }
        transaction.write_facts("system", facts)
        return facts


# ---- transfer --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Spaces:
    own: list[LearnedPattern]
    others: dict[str, list[LearnedPattern]]


class _Transfer(DeepPhase[_Spaces, list[tuple[int, str, int, float]], DreamTransaction]):
    """Patterns of other spaces that correspond to some of this one, where both spaces allow it."""

    name = "transfer"
    transaction = DreamTransaction

    def found(self, reader: MemoryReader, cycle: Cycle, check: Callable[[], None]) -> _Spaces:
        most = self.config.loop.transfer_patterns
        others = {}
        for other in reader.others(most):
            check()
            others[other.name] = other.patterns
        return _Spaces(reader.largest_patterns(cycle.space.space_id, most) if others else [], others)

    def made(self, state: MemoryState, found: _Spaces, check: Callable[[], None]) -> list[tuple[int, str, int, float]]:
        pairs = []
        for name, theirs in found.others.items():
            if theirs and found.own:
                pairs += [
                    (pair.target, name, pair.source, min(max(pair.similarity, 0.0), 1.0))
                    for pair in analogies(theirs, found.own, self.config.transfer, check_stop=check)
                ]
        return pairs

    def done(
        self,
        transaction: DreamTransaction,
        made: list[tuple[int, str, int, float]],
        connection: Connection,
        cycle: Cycle,
    ) -> Facts:
        transaction.write_analogies(made)
        indexed = index_by_size(connection, cycle.space, cycle.config, "nodes")
        return {"analogies": len(made), "spaces": len({name for _, name, _, _ in made}), "nodes_indexed": indexed}


# ---- snapshot --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    ids: Rows
    names: list[str | None]
    merged: dict[str, str]
    edges: StoredEdges
    ordinal: int


class _Snapshot(DeepPhase[_Graph, tuple[int, Associations], DreamTransaction]):
    """The graph as the cycle leaves it: what the strategist weighs the strategy `related` by.

    As of one moment, and with how long the ledger was then: by a graph that grows meanwhile, an event that is weighed
    later than it is learned would be answered by what it has taught.
    """

    name = "snapshot"
    transaction = DreamTransaction

    def found(self, reader: MemoryReader, cycle: Cycle, check: Callable[[], None]) -> _Graph:
        ids, names = reader.names()
        edges = reader.edges(ids, (*WALKED, "creative"))
        return _Graph(ids, names, reader.merged_items(), edges, reader.ledger_entries())

    def made(self, state: MemoryState, found: _Graph, check: Callable[[], None]) -> tuple[int, Associations]:
        edges, is_item = found.edges.edges, np.array([name is not None for name in found.names], dtype=bool)
        place = np.empty(len(is_item), dtype=np.int64)
        place[np.argsort(~is_item, kind="stable")] = np.arange(len(is_item))
        graph = MemoryGraph.from_edges(len(is_item), place[edges.source], place[edges.target], edges.weight)
        items = [name for name in found.names if name is not None]
        return found.ordinal, Associations(items, graph, found.merged)

    def done(
        self, transaction: DreamTransaction, made: tuple[int, Associations], connection: Connection, cycle: Cycle
    ) -> Facts:
        ordinal, associations = made
        content = associations.to_bytes()
        transaction.write_snapshot(ordinal, content)
        return {"edges": len(associations), "bytes": len(content), "ledger_entries": ordinal}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def deep_loop(config: DeepConfig | None = None) -> Loop:
    """The loop with settings."""
    settings = DeepConfig() if config is None else config
    # The hierarchy first: what it connects counts for what nodes are worth.
    parts = (_Grow, _Hierarchy, _Consolidate, _Dream, _Integration, _Transfer, _Snapshot)
    return Loop(NAME, DEEP_SCHEDULE, tuple(part(settings).phase() for part in parts))


DEEP = deep_loop()
