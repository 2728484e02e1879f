"""The engine over time: what a consolidation does to it, what goes, and how it comes back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sona_pg.config import ConsolidationConfig, DreamConfig, DreamEvidenceConfig, PhiConfig
from sona_pg.errors import DimensionMismatch, InvalidInput, MemoryGraphError
from sona_pg.learning.consolidation import apply_plan, consolidation_plan
from sona_pg.learning.dream_engine import DreamEngine
from sona_pg.learning.dreams import generate_dreams
from sona_pg.learning.memory_archive import ArchivedEdge, ArchivedNode, Consolidation, EdgeBefore, NodeBefore
from sona_pg.learning.memory_columns import MemoryEdges
from sona_pg.learning.memory_graph import MemoryNode

from .memories import DAY, topical
from .samples import bits


def snapshot(engine: DreamEngine) -> dict[str, object]:
    """All that is in an engine, to the bit."""
    nodes, edges = engine.columns(1e9)
    order = np.lexsort((edges.target, edges.source, edges.origin))
    edges = MemoryEdges(*(getattr(edges, name)[order] for name in edges.__slots__))
    columns = {f"{of}.{name}": bits(getattr(part, name)) for of, part in (("node", nodes), ("edge", edges))
               for name in part.__slots__}  # fmt: skip
    graph = engine.graph
    walked = [(dream.nodes, dream.kinds, dream.quality) for dream in generate_dreams(graph, 20, engine.config)]
    return columns | {
        "ids": [node.id for node in engine.nodes],
        "counts": [node.consolidation_count for node in engine.nodes],
        "graph": (bits(graph.indptr), bits(graph.indices), bits(graph.weights)),
        "creative": sorted(engine.creative_edges),
        "walked": walked,
    }


def restored(
    engine: DreamEngine, removed: tuple[ArchivedNode | NodeBefore | ArchivedEdge | EdgeBefore, ...]
) -> list[bool]:
    back = []
    for gone in reversed(removed):
        if isinstance(gone, ArchivedNode):
            back.append(engine.restore_node(gone))
        elif isinstance(gone, NodeBefore):
            back.append(engine.restore_node_before(gone))
        elif isinstance(gone, EdgeBefore):
            back.append(engine.restore_edge_before(gone))
        else:
            back.append(engine.restore_edge(gone))
    return back


def test_an_engine_does_what_the_plan_of_its_columns_says() -> None:
    engine = topical()
    for dream in engine.generate_dreams(20):
        engine.integrate_dreams([dream], at=0.0)
    engine.add_memory_node(MemoryNode(999, engine.nodes[3].embedding, kind="item", created=0.0, access_count=2))
    engine.add_edge(999, 4, 0.5, at=0.0)
    nodes, edges = engine.columns(100 * DAY)
    plan = consolidation_plan(nodes, edges, 100 * DAY)
    after = apply_plan(nodes, edges, plan)
    done = engine.consolidate(100 * DAY)
    left = engine.columns(100 * DAY)
    for expected, found in zip(after, left, strict=True):
        for name in expected.__slots__:
            assert bits(getattr(expected, name)) == bits(getattr(found, name)), name
    assert len(done.plan.merged) == 1
    assert done.compression.nodes == (len(nodes), len(left[0]))
    gone = [entry.node.id for entry in done.removed if isinstance(entry, ArchivedNode)]
    assert len(gone) == len(nodes) - len(left[0])
    assert len({3, 999} & set(gone)) == 1


def test_twice_at_one_instant_changes_nothing() -> None:
    engine = topical()
    engine.consolidate(30 * DAY)
    before = snapshot(engine)
    again = engine.consolidate(30 * DAY)
    assert again.plan.is_empty
    assert again.removed == ()
    assert snapshot(engine) == before


def test_what_nobody_has_dated_begins_with_the_first_consolidation() -> None:
    engine = DreamEngine()
    for id in range(3):
        engine.add_memory_node(MemoryNode(id))
    engine.add_edge(0, 1, 0.8)
    now = 2e9
    # Long after 1970, but nobody said that they are so old.
    first = engine.consolidate(now)
    assert first.plan.is_empty
    assert [node.created for node in engine.nodes] == [now] * 3
    engine.consolidate(now + 90 * DAY)
    assert engine.graph.weight(0, 1) == pytest.approx(0.4)
    # A node that is given again keeps when it came, and an edge begins anew.
    engine.add_memory_node(MemoryNode(2, importance=1.0))
    assert engine.nodes[2].created == now
    engine.add_edge(0, 1, 0.8)
    engine.consolidate(now + 90 * DAY)
    assert engine.graph.weight(0, 1) == pytest.approx(0.8)
    gone = engine.consolidate(now + 200 * DAY).removed
    # Its importance is the user's: it says nothing of its value.
    assert [(entry.node.id, entry.reason) for entry in gone if isinstance(entry, ArchivedNode)] == [
        (id, "of little value, unused and old") for id in range(3)
    ]
    assert engine.node_count == 0


def test_what_is_removed_comes_back_bit_for_bit() -> None:
    engine = topical()
    for dream in engine.generate_dreams(20):
        engine.integrate_dreams([dream], at=0.0)
    config = ConsolidationConfig(prune_value=0.35, merge_threshold=1.0, half_life_seconds=1e12, strengthening=0.0)
    now = 200 * DAY
    engine.consolidate(now, replace(config, prune_value=0.0, prune_weight=0.0))
    before = snapshot(engine)
    gone = engine.consolidate(now, replace(config, prune_weight=0.4))
    assert len(gone.plan.archived) > 10
    assert len(gone.plan.pruned) > 10
    assert snapshot(engine) != before
    assert all(restored(engine, gone.removed))
    assert snapshot(engine) == before
    assert not any(restored(engine, gone.removed))
    assert snapshot(engine) == before


def test_near_duplicates_become_one_and_both_again() -> None:
    engine = DreamEngine()
    for id, vector in ((7, [1.0, 0.0]), (8, [1.0, 0.01]), (9, [0.0, 1.0])):
        engine.add_memory_node(MemoryNode(id, vector, access_count=id, timestamp=float(id), quality=0.5, created=0.0))
    engine.add_edge(7, 9, 0.5, at=0.0)
    engine.add_edge(8, 9, 0.5, at=0.0)
    before, seven = snapshot(engine), engine.nodes[0]
    done = engine.consolidate(0.0)
    assert [(node.id, node.access_count, node.timestamp) for node in engine.nodes] == [(8, 15, 8.0), (9, 9, 9.0)]
    assert engine.graph.edges()[2].tolist() == [0.75]
    (node,) = [gone for gone in done.removed if isinstance(gone, ArchivedNode)]
    assert (node.into, node.reason, node.node) == (8, "a near duplicate", seven)
    edge, other = [gone for gone in done.removed if isinstance(gone, ArchivedEdge)]
    assert (edge.a, edge.b, edge.weight, edge.decayed_at) == (7, 9, 0.5, 0.0)
    assert (other.a, other.b) == (8, 9)
    with pytest.raises(MemoryGraphError, match="restore that first"):
        engine.restore_edge(edge)
    assert all(restored(engine, done.removed))
    assert engine.nodes[0] is seven
    # But for what nodes are worth, which every consolidation says anew.
    after = snapshot(engine)
    assert {name for name in before if before[name] != after[name]} <= {"importance", "walked"}


def test_what_was_dreamt_gives_nothing_to_an_edge_that_was_observed() -> None:
    engine = DreamEngine()
    for id, vector in ((7, [1.0, 0.0]), (8, [1.0, 0.01]), (9, [0.0, 1.0])):
        engine.add_memory_node(MemoryNode(id, vector, access_count=id, timestamp=float(id), quality=0.5, created=0.0))
    engine.add_edge(8, 9, 0.5, at=0.0)
    assert engine.restore_edge(ArchivedEdge(7, 9, 0.15, 0.0, True, "a dream"))
    done = engine.consolidate(30 * DAY, ConsolidationConfig(threshold=1.0, prune_value=0.0))
    assert [(gone.a, gone.b) for gone in done.removed if isinstance(gone, ArchivedEdge)] == [(7, 9)]
    faded = engine.graph.edges()[2].tolist()
    assert faded[0] < 0.5
    restored(engine, done.removed)
    assert engine.graph.edges()[2].tolist()[0] == faded[0]
    assert [(edge.a, edge.b, edge.weight) for edge in engine.creative_edges] == [(7, 9, 0.15)]


def test_what_came_since_a_merge_is_its_own_where_it_is_undone() -> None:
    def merged() -> tuple[DreamEngine, Consolidation]:
        engine = DreamEngine()
        for id, vector, accesses in ((0, [1.0, 0.0], 10), (1, [1.0, 1e-3], 4), (2, [0.0, 1.0], 5)):
            engine.add_memory_node(MemoryNode(id, vector, access_count=accesses, timestamp=float(id), created=0.0))
        engine.add_edge(0, 2, 0.5, at=0.0)
        engine.add_edge(1, 2, 0.2, at=0.0)
        return engine, engine.consolidate(0.0)

    def weights(engine: DreamEngine) -> list[float]:
        return engine.graph.edges()[2].tolist()

    engine, done = merged()
    assert weights(engine) == pytest.approx([0.6])
    (both,) = (node for node in engine.nodes if node.id == 0)
    assert (both.access_count, both.timestamp) == (14, 1.0)
    engine.add_memory_node(replace(both, access_count=17, timestamp=9.0))
    # It fades to a half, of which each bears its share.
    engine.consolidate(90 * DAY, ConsolidationConfig(threshold=1.0, half_life_seconds=90 * DAY, prune_value=0.0))
    restored(engine, done.removed)
    assert [(node.id, node.access_count, node.timestamp) for node in engine.nodes[:2]] == [(0, 13, 9.0), (1, 4, 1.0)]
    assert weights(engine) == pytest.approx([0.25, 0.2])
    # It has gained a tenth of what it lacked, and only that is its own.
    engine, done = merged()
    engine.consolidate(7 * DAY, ConsolidationConfig(threshold=0.0, strengthening=0.1))
    assert weights(engine) == pytest.approx([0.64])
    restored(engine, done.removed)
    assert weights(engine) == pytest.approx([0.55, 0.2])


@pytest.mark.parametrize("weight", [0.9, 0.6, 0.1])
def test_a_weight_that_was_set_since_a_merge_stays(weight: float) -> None:
    """0.6 is what it has become."""
    engine = DreamEngine()
    for id, vector in ((0, [1.0, 0.0]), (1, [1.0, 1e-3]), (2, [0.0, 1.0]), (3, [-1.0, 0.0])):
        engine.add_memory_node(MemoryNode(id, vector, access_count=(90, 4, 5, 6)[id], created=0.0))
    for a, b, value in ((0, 2, 0.5), (1, 2, 0.2), (1, 3, 0.6)):
        engine.add_edge(a, b, value, at=0.0)
    done = engine.consolidate(0.0)
    assert [node.id for node in engine.nodes] == [0, 2, 3]
    for other in (2, 3):
        engine.add_edge(0, other, weight, at=0.0)
    restored(engine, done.removed)
    source, target, weights = engine.graph.edges()
    assert list(zip(source.tolist(), target.tolist(), strict=True)) == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert weights.tolist() == pytest.approx([weight, weight, 0.2, 0.6])


def test_what_took_part_in_what_was_strengthened_is_counted() -> None:
    engine = DreamEngine()
    for id in range(3):
        engine.add_memory_node(MemoryNode(id, access_count=9 if id < 2 else 0, quality=1.0, created=0.0))
    engine.add_edge(0, 1, 0.5, at=0.0)
    engine.add_edge(1, 2, 0.5, at=0.0)
    done = engine.consolidate(7 * DAY, ConsolidationConfig(threshold=0.7))
    assert len(done.plan.strengthened) == 1
    assert engine.graph.weight(0, 1) == pytest.approx(0.55)
    assert [node.consolidation_count for node in engine.nodes] == [1, 1, 0]


def test_edges_by_dreams_fade_sooner_and_go() -> None:
    engine = topical(config=DreamConfig(edge_weight=0.16))
    dreams = engine.generate_dreams(20)
    (one, *_) = made = engine.integrate_dreams(dreams, at=0.0)
    assert made == engine.creative_edges
    engine.consolidate(14 * DAY)
    weights = {(edge.a, edge.b): edge.weight for edge in engine.creative_edges}
    assert weights[one.a, one.b] == pytest.approx(0.08)
    done = engine.consolidate(60 * DAY)
    assert engine.creative_edges == []
    assert sum(gone.is_creative for gone in done.removed if isinstance(gone, ArchivedEdge)) == len(made)


def test_dreams_together_are_those_of_one_list() -> None:
    engine, other = topical(), topical()
    dreams = engine.generate_dreams(6)
    together = engine.integrate_dreams(dreams)
    alone = [edge for dream in other.generate_dreams(6) for edge in other.integrate_dream(dream)]
    assert {(edge.a, edge.b) for edge in together} == {(edge.a, edge.b) for edge in alone}
    assert engine.integrate_dreams(dreams) == engine.integrate_dreams([]) == []
    # Dreams of different lengths propose what they do alone.
    short = [
        replace(dream, nodes=dream.nodes[:n], kinds=dream.kinds[:n], path=dream.path[:n])
        for dream, n in zip(dreams[:2], (3, 9), strict=True)
    ]
    mixed = topical().integrate_dreams(short)
    apart = topical()
    assert {edge[:2] for edge in mixed} == {edge[:2] for dream in short for edge in apart.integrate_dream(dream)}


def test_a_dream_from_before_is_integrated_between_the_nodes_it_went_over() -> None:
    engine = DreamEngine(DreamConfig(creative_jump_prob=0.0, restart_prob=0.0))
    for id in range(6):
        engine.add_memory_node(MemoryNode(id, created=0.0, access_count=0 if id < 2 else 9))
    for id in range(2, 5):
        engine.add_edge(id, id + 1, 0.9, at=200 * DAY)
    dream = next(dream for dream in engine.generate_dreams(50) if {2, 3, 4} <= set(dream.nodes))
    stale = next(dream for dream in engine.generate_dreams(500) if set(dream.nodes) == {0})
    engine.consolidate(200 * DAY)
    assert [node.id for node in engine.nodes] == [2, 3, 4, 5]
    assert (2, 4) in {(edge.a, edge.b) for edge in engine.integrate_dream(dream)}
    with pytest.raises(MemoryGraphError, match="not here"):
        engine.integrate_dream(stale)


def test_judged_dreams_are_the_next_ones() -> None:
    engine, other = topical(), topical()
    night = engine.judged_dreams(10, DreamEvidenceConfig(repeats=3), PhiConfig(random_paths=50))
    expected = other.generate_dreams(12)
    assert [judged.dream.nodes for judged in night.dreams] == [dream.nodes for dream in expected[:10]]
    assert [judged.dream.path for judged in night.dreams] == [
        tuple(engine.nodes[place] for place in dream.nodes) for dream in expected[:10]
    ]
    assert engine.creative_edges == []

    def stop() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        engine.judged_dreams(1, DreamEvidenceConfig(repeats=3), check_stop=stop)
    # What was not judged to its end was not dreamt.
    assert engine.generate_dream().nodes == expected[10].nodes
    assert DreamEngine().judged_dreams(5).dreams == ()


def test_numbers_of_numpy_are_numbers_and_truth_values_are_none() -> None:
    engine, other = DreamEngine(), DreamEngine()
    for id in range(3):
        engine.add_memory_node(MemoryNode(id, access_count=id, importance=0.5, timestamp=2.0, created=1.0))
        other.add_memory_node(
            MemoryNode(
                np.int64(id),  # type: ignore[arg-type]
                access_count=np.uint8(id),  # type: ignore[arg-type]
                importance=np.float32(0.5),  # type: ignore[arg-type]
                timestamp=np.int32(2),
                created=np.float32(1.0),  # type: ignore[arg-type]
            )
        )
    engine.add_edge(0, 1, 0.5, at=0.0)
    other.add_edge(np.int64(0), np.int32(1), np.float32(0.5), at=np.int64(0))  # type: ignore[arg-type]
    assert snapshot(engine) == snapshot(other)
    assert {type(getattr(node, name)) for node in other.nodes for name in ("id", "access_count")} == {int}
    assert {type(getattr(node, name)) for node in other.nodes for name in ("importance", "created")} == {float}
    dreams = [dream.nodes for dream in engine.generate_dreams(3)]
    assert [dream.nodes for dream in other.generate_dreams(np.int64(3))] == dreams  # type: ignore[arg-type]
    assert len(other.judged_dreams(np.int64(2)).dreams) == 2  # type: ignore[arg-type]
    gone = ArchivedNode(MemoryNode(np.int64(7)), np.int64(9), "gone")  # type: ignore[arg-type]
    assert other.restore_node(gone)
    assert other.restore_edge(ArchivedEdge(np.int64(7), 0, np.float32(0.5), None, False, "gone"))  # type: ignore[arg-type]
    before = snapshot(other)
    for ends in ((True, 0, 0.5), (0, np.True_, 0.5), (1, 2, True), (1, 2, np.True_), (1, 2, "0.5"), (1.0, 2, 0.5)):
        with pytest.raises(MemoryGraphError):
            other.add_edge(*ends)  # type: ignore[arg-type]
    for wrong in (True, np.True_, 1.5):
        for fields in ({"id": wrong}, {"id": 1, "access_count": wrong}, {"id": 1, "consolidation_count": wrong}):
            with pytest.raises(InvalidInput):
                MemoryNode(**fields)  # type: ignore[arg-type]
    for name in ("importance", "quality", "timestamp", "created"):
        for wrong in (True, np.True_, float("nan"), "1"):
            with pytest.raises(InvalidInput):
                MemoryNode(1, **{name: wrong})  # type: ignore[arg-type]
    for archived in (ArchivedEdge(1, 2, True, None, False, ""), ArchivedEdge(1, True, 0.5, None, False, "")):
        with pytest.raises(InvalidInput):
            other.restore_edge(archived)
    with pytest.raises(InvalidInput):
        other.restore_node(ArchivedNode(MemoryNode(8), True, ""))
    assert snapshot(other) == before


def test_what_is_no_dream_time_or_count_is_refused() -> None:
    engine = topical()
    before = snapshot(engine)
    dream = engine.generate_dream()
    for wrong in (None, "dream", 3):
        with pytest.raises(InvalidInput):
            engine.integrate_dream(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            engine.integrate_dreams(wrong)  # type: ignore[arg-type]
    unreal = replace(dream, nodes=(0.5,) * 15, path=())  # type: ignore[arg-type]
    for changed in (replace(dream, kinds=()), replace(dream, kinds=(9,) * 15), unreal):
        with pytest.raises(InvalidInput):
            engine.integrate_dream(changed)
    for time in (float("nan"), float("inf"), "now", True):
        with pytest.raises(InvalidInput):
            engine.consolidate(time)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            engine.add_edge(0, 1, 0.5, at=time)  # type: ignore[arg-type]
    for count in (-1, 1.5, True, 10**7):
        with pytest.raises(InvalidInput):
            engine.generate_dreams(count)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            engine.judged_dreams(count)  # type: ignore[arg-type]
    assert snapshot(engine) == before
    gone = ArchivedNode(MemoryNode(1000, [1.0]), 5000, "gone")
    with pytest.raises(DimensionMismatch):
        engine.restore_node(gone)
    for wrong in (None, "x", gone, NodeBefore(gone.node, None), EdgeBefore(0, 1, 0.5, None, False, 0.0, 1)):  # type: ignore[arg-type]
        for restore in (engine.restore_node_before, engine.restore_edge_before):
            with pytest.raises(InvalidInput):
                restore(wrong)  # type: ignore[arg-type, operator]
    assert not engine.restore_node_before(NodeBefore(gone.node, gone.node))
    assert not engine.restore_edge_before(EdgeBefore(0, 1000, 0.5, None, False, 0.7, 1))
    assert snapshot(engine) == before
