"""What loop C in memory removes or merges is in the archive, and can be brought back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sona_pg import ConsolidationConfig, DeepLoop, DeepLoopConfig, MemoryNode, PatternConfig, ReasoningBank
from sona_pg.errors import InvalidInput
from sona_pg.learning.memory_archive import ArchivedEdge, ArchivedNode, ArchivedPattern

from .deep_loops import QUICK, bank_of
from .memories import DAY, topical
from .samples import bits, floats, trajectory

STRICT = replace(
    QUICK,
    loop=DeepLoopConfig(dreams_per_cycle=0),
    consolidation=ConsolidationConfig(prune_value=0.35, prune_weight=0.1, half_life_seconds=90 * DAY),
)


def test_what_was_removed_is_in_the_archive_and_comes_back() -> None:
    engine, bank = topical(), bank_of(quality=0.05)
    loop = DeepLoop(engine=engine, bank=bank, settings=STRICT)
    nodes = {node.id: node for node in engine.nodes}
    patterns = {pattern.id: pattern for pattern in bank.patterns}
    result = loop.run_cycle(now=200 * DAY)
    kinds = [type(entry.content) for entry in loop.archive()]
    assert kinds.count(ArchivedNode) == result.nodes_archived + result.nodes_merged > 10
    assert kinds.count(ArchivedEdge) >= result.edges_pruned > 10
    assert kinds.count(ArchivedPattern) == result.patterns_pruned == len(patterns)
    assert [entry.id for entry in loop.archive()] == list(range(1, len(kinds) + 1))
    assert {entry.archived_at for entry in loop.archive()} == {200 * DAY}
    assert bank.patterns == []
    assert loop.restore() == len(kinds)
    assert loop.archive() == ()
    assert [node.id for node in engine.nodes] == list(nodes)
    for node in engine.nodes:
        assert bits(floats(node.embedding)) == bits(floats(nodes[node.id].embedding))
        assert (node.timestamp, node.access_count, node.created) == (0.0, nodes[node.id].access_count, 0.0)
    assert {pattern.id: pattern for pattern in bank.patterns} == patterns
    assert engine.edge_count == topical().edge_count


def test_some_of_it_comes_back_and_no_edge_without_its_node() -> None:
    engine = topical()
    loop = DeepLoop(engine=engine, settings=STRICT)
    loop.run_cycle(now=200 * DAY)
    entries = loop.archive()
    gone = {entry.content.node.id for entry in entries if isinstance(entry.content, ArchivedNode)}
    orphan = next(e for e in entries if isinstance(e.content, ArchivedEdge) and e.content.a in gone)
    assert loop.restore([orphan.id]) == 0
    assert orphan in loop.archive()
    node = next(e for e in entries if isinstance(e.content, ArchivedNode) and e.content.node.id == orphan.content.a)
    with pytest.raises(InvalidInput, match="no entry 99999"):
        loop.restore([node.id, 99_999])
    for wrong in (3, "x", [1.5], [None]):
        with pytest.raises(InvalidInput):
            loop.restore(wrong)  # type: ignore[arg-type]
    assert len(loop.archive()) == len(entries)
    assert loop.restore([node.id]) == 1
    assert node.content.node in engine.nodes
    # A node that somebody has added again stays as it is.
    other = next(e for e in loop.archive() if isinstance(e.content, ArchivedNode))
    engine.add_memory_node(MemoryNode(other.content.node.id, importance=1.0))
    loop.restore()
    assert next(n for n in engine.nodes if n.id == other.content.node.id).importance == 1.0
    assert loop.archive() == ()
    assert engine.edge_count == topical().edge_count


def test_what_was_merged_and_restored_is_not_merged_again() -> None:
    loop = DeepLoop()
    engine = loop.dream_engine()
    for id, embedding, accesses in ((0, [1, 0, 0], 10), (1, [1, 0.001, 0], 4), (2, [0, 1, 0], 5)):
        engine.add_memory_node(MemoryNode(id, floats(embedding), access_count=accesses))
    engine.add_edge(0, 2, 0.5)
    engine.add_edge(1, 2, 0.5)
    assert loop.run_cycle(now=1.0).nodes_merged == 1
    loop.restore()
    before = [(node.id, node.access_count) for node in engine.nodes], engine.edge_count
    assert [id for id, _ in before[0]] == [0, 1, 2]
    for _ in range(3):
        assert loop.run_cycle(now=1.0).nodes_merged == 0
        loop.restore()
        assert ([(node.id, node.access_count) for node in engine.nodes], engine.edge_count) == before
    # Others are, as ever.
    engine.add_memory_node(MemoryNode(3, floats([0, 1, 0.001])))
    assert loop.run_cycle(now=1.0).nodes_merged == 1


def test_merges_are_undone_from_the_last_one_back() -> None:
    """1 becomes part of 0, and 0 of 3 later; with the first merge the second is undone, too."""
    loop = DeepLoop(DeepLoopConfig(dreams_per_cycle=0))
    engine = loop.dream_engine()
    for id, vector, accesses in ((0, [1.0, 0.0], 10), (1, [1.0, 1e-3], 4), (2, [0.0, 1.0], 5)):
        engine.add_memory_node(MemoryNode(id, floats(vector), access_count=accesses, created=0.0))
    engine.add_edge(0, 2, 0.5)
    engine.add_edge(1, 2, 0.2)
    assert loop.run_cycle(now=0.0).nodes_merged == 1
    engine.add_memory_node(MemoryNode(3, floats([1.0, 2e-3]), access_count=100, quality=1.0, created=0.0))
    engine.add_edge(3, 2, 0.9)
    assert loop.run_cycle(now=0.0).nodes_merged == 1
    assert [(node.id, node.access_count) for node in engine.nodes] == [(2, 5), (3, 114)]
    middle = [entry.id for entry in loop.archive() if entry.cycle == 2]
    assert loop.restore([middle[-1]]) == len(middle)
    assert [(node.id, node.access_count) for node in engine.nodes] == [(0, 14), (2, 5), (3, 100)]
    assert engine.graph.edges()[2].tolist() == pytest.approx([0.6, 0.9])
    loop.restore()
    assert [(node.id, node.access_count) for node in engine.nodes] == [(0, 10), (1, 4), (2, 5), (3, 100)]
    assert engine.graph.edges()[2].tolist() == pytest.approx([0.5, 0.2, 0.9])
    assert loop.archive() == ()


def test_edges_by_dreams_go_when_dreams_do_not_help_any_more_and_wait_for_new_evidence() -> None:
    engine = topical()
    loop = DeepLoop(engine=engine, settings=QUICK)
    first = loop.run_cycle(now=7 * DAY)
    made = engine.creative_edges
    assert (first.edges_created, first.edges_withdrawn) == (len(made), 0)
    second = loop.run_cycle(now=7 * DAY, events=[])
    assert second.evidence is not None
    assert not second.evidence.confirmed
    assert (second.edges_withdrawn, engine.creative_edges) == (len(made), [])
    gone = [entry.id for entry in loop.archive() if isinstance(entry.content, ArchivedEdge)]
    assert len(gone) == len(made) > 0
    assert loop.run_cycle(now=7 * DAY, events=[]).edges_withdrawn == 0
    with pytest.raises(InvalidInput, match="dreams do not help here"):
        loop.restore(gone[:1])
    loop.restore()
    assert (engine.creative_edges, len(loop.archive())) == ([], len(made))
    assert loop.run_cycle(now=7 * DAY).edges_withdrawn == 0
    loop.restore()
    assert {(edge.a, edge.b) for edge in made} <= {(edge.a, edge.b) for edge in engine.creative_edges}


def test_what_was_removed_twice_comes_back_as_it_was_the_last_time() -> None:
    loop = DeepLoop(settings=STRICT)
    engine = loop.dream_engine()
    for time in (0.0, 1.0):
        engine.add_memory_node(MemoryNode(1, timestamp=time, created=0.0))
        assert loop.run_cycle(now=200 * DAY).nodes_archived == 1
    assert len(loop.archive()) == 2
    assert loop.restore() == 1
    assert [node.timestamp for node in engine.nodes] == [1.0]
    assert loop.archive() == ()


def test_near_duplicate_patterns_become_one_and_can_be_parted() -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=2, k_clusters=2, min_cluster_size=2, merge_threshold=1.0))
    for id, vector in enumerate([[1.0, 0.1], [1.0, -0.1]] * 4):
        bank.add_trajectory(trajectory(vector, (), 0.8, id), parameters={"k": id % 2})
    first, second = bank.extract_patterns(now=0.0)
    evidence = bank.get_verdict(second.id)
    bank.config = replace(bank.config, merge_threshold=0.95)
    loop = DeepLoop(bank=bank)
    result = loop.run_cycle(now=0.0)
    assert (result.patterns_merged, result.patterns_strengthened, result.patterns_pruned) == (1, 1, 0)
    (both,) = bank.patterns
    assert (both.id, both.cluster_size) == (first.id, 8)
    (entry,) = loop.archive()
    assert isinstance(entry.content, ArchivedPattern)
    assert (entry.content.pattern, entry.content.into) == (second, first.id)
    assert loop.restore() == 1
    assert bank.patterns == [both, second]
    assert bank.get_verdict(second.id) == evidence
    with pytest.raises(InvalidInput, match="none of this bank"):
        bank.put_back(replace(second, id=99), {})
    assert not bank.put_back(second, {})


def test_the_archive_is_kept_for_so_long() -> None:
    loop = DeepLoop(DeepLoopConfig(dreams_per_cycle=0, keep_archive_seconds=30 * DAY), engine=topical(),
                    settings=replace(STRICT, loop=DeepLoopConfig()))  # fmt: skip
    loop.run_cycle(now=200 * DAY)
    kept = len(loop.archive())
    assert kept > 0
    loop.run_cycle(now=230 * DAY)
    assert len(loop.archive()) >= kept
    loop.run_cycle(now=231 * DAY)
    assert min(entry.archived_at for entry in loop.archive()) == 230 * DAY
