"""Dreams: where they begin, what they are worth, what they propose, and what the engine keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from benchmarks.two_hop import TwoHop
from sona_pg.config import DreamConfig
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, MemoryGraphError
from sona_pg.learning.dream_engine import DreamEngine
from sona_pg.learning.dream_walks import (
    EDGE,
    JUMP,
    RESTART,
    START,
    activation,
    co_occurrences,
    creative_edges,
    dream_walks,
    starts,
)
from sona_pg.learning.dreams import Dream, evaluate_dream, generate_dreams, overall_quality
from sona_pg.learning.memory_graph import MemoryGraph, MemoryNode, NodeFacts

CONFIG = DreamConfig()


def walks(*rows: list[int]) -> NDArray[np.int32]:
    return np.array(rows, dtype=np.int32)


def kinds(*rows: list[int]) -> NDArray[np.uint8]:
    return np.array(rows, dtype=np.uint8)


def random_graph(
    seed: int = 0, n: int = 60, embeddings: NDArray[np.float64] | None = None, facts: NodeFacts | None = None
) -> MemoryGraph:
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, n, (3 * n, 2))
    return MemoryGraph.from_edges(
        n, ends[:, 0], ends[:, 1], rng.uniform(0.1, 1, len(ends)), embeddings=embeddings, facts=facts
    )


# ---- where dreams begin ----------------------------------------------------------------------------------------------


def test_activation_is_importance_accesses_and_recency() -> None:
    facts = NodeFacts(np.array([1.0, 0.5, 1.0, 0.0]), np.zeros(4), np.array([0, 0, 6, 9]), np.array([0.0, 10, 10, 10]))
    assert activation(facts, 10) == pytest.approx([0.5, 0.5, 1 + np.log(7), 0])
    # What matters is the age beside that of others: no clock.
    later = facts._replace(timestamp=facts.timestamp + 1e9)
    assert activation(later, 10) == pytest.approx(activation(facts, 10))
    assert activation(NodeFacts.unknown(0), 10).tolist() == []


def test_dreams_begin_where_memory_is_active() -> None:
    facts = NodeFacts.unknown(4)._replace(importance=np.array([0.0, 0.2, 0.3, 0.5]))
    graph = MemoryGraph.from_edges(4, [0], [1], facts=facts)
    drawn = np.bincount(starts(graph, 20_000, CONFIG), minlength=4) / 20_000
    assert drawn == pytest.approx([0, 0.2, 0.3, 0.5], abs=0.015)
    nothing = MemoryGraph.from_edges(4, [0], [1], facts=facts._replace(importance=np.zeros(4)))
    assert np.bincount(starts(nothing, 8000, CONFIG), minlength=4) / 8000 == pytest.approx([0.25] * 4, abs=0.02)
    whole = starts(graph, 50, CONFIG)
    assert starts(graph, 20, CONFIG, first=30).tolist() == whole[30:].tolist()
    assert starts(graph, 50, replace(CONFIG, seed=1)).tolist() != whole.tolist()
    old = NodeFacts.unknown(2)._replace(timestamp=np.array([0.0, 1e12]))
    assert set(starts(MemoryGraph.from_edges(2, [], [], facts=old), 100, CONFIG).tolist()) == {1}
    assert set(starts(MemoryGraph.from_edges(2, [], [], facts=old), 100, replace(CONFIG, half_life_seconds=1e12))) == {
        0,
        1,
    }


def test_anchors_are_far_from_each_other() -> None:
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((16, 16)))[0][:5]
    rows = np.repeat(directions, 40, axis=0) + 0.001 * rng.standard_normal((200, 16))
    rows[::7] = 0  # nodes without an embedding
    graph = MemoryGraph.from_edges(200, [0], [1], embeddings=rows)
    for seed in range(10):
        found = starts(graph, 5, DreamConfig(start="anchors", seed=seed))
        assert sorted(found // 40) == [0, 1, 2, 3, 4]
        assert (found % 7 != 0).all()
        assert starts(graph, 5, DreamConfig(start="anchors", seed=seed)).tolist() == found.tolist()
    same = MemoryGraph.from_edges(3, [0], [1], embeddings=[[1, 0], [2, 0], [0, 1]])
    assert len(starts(same, 7, DreamConfig(start="anchors"))) == 7
    assert len(set(starts(same, 7, DreamConfig(start="anchors")).tolist())) == 2
    with pytest.raises(MemoryGraphError, match="no node has an embedding"):
        starts(random_graph(), 5, DreamConfig(start="anchors"))


# ---- what walks propose ----------------------------------------------------------------------------------------------


def test_co_occurrences_end_at_jumps_and_restarts() -> None:
    walked = walks([0, 1, 2, 3, 0, 1])
    reached = kinds([START, EDGE, JUMP, EDGE, RESTART, EDGE])
    met = co_occurrences(walked, reached, 5, np.array([1, 4, 1, 0]))
    assert list(zip(met.source.tolist(), met.target.tolist(), met.times.tolist(), strict=True)) == [
        (0, 1, 2),
        (2, 3, 1),
    ]
    assert met.score.tolist() == [2 / np.sqrt(4), 1.0]


def test_co_occurrences_within_the_window() -> None:
    walked, reached = walks([0, 1, 2, 1]), kinds([START, EDGE, EDGE, EDGE])
    ones = np.ones(3, dtype=np.int64)
    for window, expected in ((1, {(0, 1): 1, (1, 2): 2}), (2, {(0, 1): 1, (0, 2): 1, (1, 2): 2})):
        met = co_occurrences(walked, reached, window, ones)
        assert dict(
            zip(zip(met.source.tolist(), met.target.tolist(), strict=True), met.times.tolist(), strict=True)
        ) == (expected)
    met = co_occurrences(walked, reached, 99, ones)
    assert met.times.tolist() == [2, 1, 2]
    for empty in (walks([0]), np.empty((0, 4), dtype=np.int32)):
        assert len(co_occurrences(empty, np.zeros(empty.shape, dtype=np.uint8), 2, ones).score) == 0
    for bad in ((walked, reached[:, 1:], 2, ones), (walked, reached, 0, ones), (walked, reached, 2, ones[:2])):
        with pytest.raises(InvalidInput):
            co_occurrences(*bad)


def test_many_co_occurrences_are_counted_as_few_are() -> None:
    graph = random_graph(2, 12)
    walked, reached = dream_walks(graph, np.arange(200) % 12, CONFIG)
    whole = co_occurrences(walked, reached, 2, graph.degrees)
    times = np.zeros((12, 12), dtype=int)
    for row in range(200):
        part = co_occurrences(walked[row : row + 1], reached[row : row + 1], 2, graph.degrees)
        times[part.source, part.target] += part.times
    assert times[whole.source, whole.target].tolist() == whole.times.tolist()
    assert times.sum() == whole.times.sum()


def test_creative_edges_are_new_the_best_and_capped() -> None:
    graph = random_graph()
    walked, reached = dream_walks(graph, np.arange(60), CONFIG)
    every = creative_edges(graph, walked, reached, CONFIG)
    assert len(every.source) > 50
    assert (graph.weights_between(every.source, every.target) == 0).all()
    assert (every.source < every.target).all()
    assert (np.diff(every.score) <= 0).all()
    assert set(every.weight.tolist()) == {np.float32(CONFIG.edge_weight)}
    few = creative_edges(graph, walked, reached, replace(CONFIG, max_edges=20, edge_weight=0.05))
    assert few.source.tolist() == every.source[:20].tolist()
    assert few.weight[0] == np.float32(0.05)
    standing = every.target[:15], every.source[:15]  # in either direction
    more = creative_edges(graph, walked, reached, replace(CONFIG, max_edges=20), standing=standing)
    assert more.source.tolist() == every.source[15:20].tolist()
    full = creative_edges(graph, walked, reached, replace(CONFIG, max_edges=10), standing=standing)
    assert len(full.source) == 0


def test_edges_by_dreams_bring_what_lies_two_hops_away_within_one() -> None:
    """Theory: without .004, random edges .025, with edges by dreams at least .20; here on worlds of other seeds."""
    for world_seed in range(2):
        world = TwoHop.made(world_seed)
        assert world.recall(world.graph, 1) < 0.01
        assert world.recall(world.graph, 2) > 0.5
        configs = [DreamConfig(seed=seed) for seed in range(10)]
        recall = [world.recall(world.dreamt(config), 1) for config in configs]
        random = [world.recall(world.at_random(config), 1) for config in configs]
        assert np.mean(recall) >= 0.20
        assert min(recall) >= 0.15
        assert np.mean(random) <= 0.05


# ---- what dreams are worth -------------------------------------------------------------------------------------------


def test_overall_quality() -> None:
    assert overall_quality(0.5, 0.8, 0.4) == pytest.approx(0.59)
    other = DreamConfig(novelty_weight=1.0, coherence_weight=0.0, utility_weight=0.0)
    assert overall_quality(0.5, 0.8, 0.4, other) == 0.5


def test_scores_of_a_dream() -> None:
    facts = NodeFacts.unknown(4)._replace(
        importance=np.array([1.0, 0.5, 0.0, 0.2]), quality=np.array([1.0, 0.5, 0.0, 0.4])
    )
    graph = MemoryGraph.from_edges(
        4, [0, 1], [1, 3], [0.25, 0.75], embeddings=[[1, 0], [3, 4], [-1, 0], [0, 0]], facts=facts
    )
    #        0 -edge- 1 -jump- 2 -restart- 0 -edge- 1 -edge- 3 (without embedding)
    quality = evaluate_dream([0, 1, 2, 0, 1, 3], [START, EDGE, JUMP, RESTART, EDGE, EDGE], graph)
    assert quality.total_novelty == pytest.approx(0.75 + 1 + 0.75 + 0.25)
    assert quality.novelty == pytest.approx(2.75 / 4)
    assert quality.coherence == pytest.approx((0.6 + 0 + 0.6 + 0.75) / 4)
    assert quality.utility == pytest.approx((1 + 0.5 + 0 + 0.3) / 4)
    assert quality.diversity == pytest.approx(3 / 5)
    assert quality.overall == pytest.approx(0.3 * quality.novelty + 0.4 * quality.coherence + 0.3 * quality.utility)
    only = evaluate_dream([1], [START], graph)
    assert (only.novelty, only.coherence, only.diversity, only.utility) == (0, 0, 0, 0.5)


def test_scores_lie_between_nought_and_one() -> None:
    rng = np.random.default_rng(1)
    for seed in range(5):
        graph = random_graph(
            seed,
            embeddings=rng.standard_normal((60, 8)) * (rng.random((60, 1)) < 0.7),
            facts=NodeFacts.unknown(60)._replace(importance=rng.random(60), quality=rng.random(60)),
        )
        for dream in generate_dreams(graph, 40, replace(CONFIG, seed=seed)):
            q = dream.quality
            for score in (q.novelty, q.coherence, q.utility, q.diversity, q.overall):
                assert 0 <= score <= 1
            assert dream.total_novelty == q.total_novelty >= 0


@pytest.mark.parametrize(
    ("nodes", "reached", "error"),
    [
        ([], [], InvalidInput),
        ([0, 1], [0], InvalidInput),
        ([0.5], [0], InvalidInput),
        ([[0]], [[0]], InvalidInput),
        ([60], [0], MemoryGraphError),
        ([-1], [0], MemoryGraphError),
    ],
)
def test_what_is_no_dream_is_refused(nodes: ArrayLike, reached: ArrayLike, error: type[Exception]) -> None:
    with pytest.raises(error):
        evaluate_dream(nodes, reached, random_graph())


# ---- dreams ----------------------------------------------------------------------------------------------------------


def test_dreams_are_deterministic_and_independent_of_the_batch() -> None:
    graph = random_graph(3)
    whole = generate_dreams(graph, 30, CONFIG)
    assert generate_dreams(graph, 30, CONFIG) == whole
    assert generate_dreams(graph, 10, CONFIG, first=12) == whole[12:22]
    assert [dream.id for dream in whole] == list(range(30))
    assert generate_dreams(graph, 30, replace(CONFIG, seed=9)) != whole
    assert generate_dreams(graph, 0, CONFIG) == []
    with pytest.raises(InvalidInput, match="count is -1"):
        generate_dreams(graph, -1, CONFIG)


def test_settings_are_honoured() -> None:
    graph = random_graph(3)
    dreams = generate_dreams(graph, 400, CONFIG)
    steps = np.array([dream.kinds[1:] for dream in dreams]).ravel()
    assert {len(dream.nodes) for dream in dreams} == {15}
    assert (steps == JUMP).mean() == pytest.approx(0.3, abs=0.025)
    assert sum(dream.creative_jumps for dream in dreams) == (steps == JUMP).sum()
    regular = generate_dreams(graph, 50, CONFIG, creative=False)
    assert {dream.creative_jumps for dream in regular} == {0}
    wild = generate_dreams(graph, 5, replace(CONFIG, path_length=4, creative_jump_prob=1.0, restart_prob=0.0))
    assert {dream.kinds for dream in wild} == {(START, JUMP, JUMP, JUMP)}
    home = generate_dreams(graph, 5, replace(CONFIG, creative_jump_prob=0.0, restart_prob=1.0))
    assert all(set(dream.nodes) == {dream.nodes[0]} for dream in home)
    hot = generate_dreams(graph, 50, replace(CONFIG, temperature=50.0))
    assert hot != generate_dreams(graph, 50, CONFIG)


def test_settings_that_do_not_go_together_are_refused() -> None:
    for wrong in ({"creative_jump_prob": 0.95}, {"novelty_weight": 0.5}, {"start": "anywhere"}):
        with pytest.raises(ConfigError):
            DreamConfig(**wrong)  # type: ignore[arg-type]


# ---- engine ----------------------------------------------------------------------------------------------------------


def engine_on_a_path(config: DreamConfig = CONFIG, n: int = 5) -> DreamEngine:
    engine = DreamEngine(config)
    for id in range(100, 100 + n):
        engine.add_memory_node(MemoryNode(id, np.eye(n)[id - 100]))
    for id in range(100, 99 + n):
        engine.add_edge(id, id + 1, 0.9)
    return engine


def test_an_engine_dreams_and_integrates() -> None:
    engine = engine_on_a_path(DreamConfig(max_edges=4))
    dreams = [engine.generate_dream(), *engine.generate_dreams(29)]
    assert [dream.id for dream in dreams] == list(range(30))
    again = engine_on_a_path(DreamConfig(max_edges=4)).generate_dreams(30)
    assert [(d.nodes, d.kinds) for d in again] == [(d.nodes, d.kinds) for d in dreams]
    assert [node.id for node in dreams[0].path] == [100 + place for place in dreams[0].nodes]
    made = [edge for dream in dreams for edge in engine.integrate_dream(dream)]
    # On a path, two steps apart: the window holds no other pairs without an edge.
    assert {(edge.a, edge.b) for edge in made} == {(100, 102), (101, 103), (102, 104)}
    assert len(made) == 3
    assert {edge.weight for edge in made} == {0.15}
    assert engine.creative_edges == made
    # What was observed is as it was, and dreams go on as if nothing had been made.
    assert engine.edge_count == 4
    assert engine.graph.weight(0, 1) == np.float32(0.9)
    assert not engine.graph.has_edge(0, 2)
    follows = engine_on_a_path(DreamConfig(max_edges=4))
    follows.generate_dreams(30)
    assert follows.generate_dream().nodes == engine.generate_dream().nodes
    assert engine.remove_creative_edges() == 3
    assert engine.creative_edges == []
    assert engine.remove_creative_edges() == 0


def test_the_cap_holds_over_dreams() -> None:
    engine = engine_on_a_path(DreamConfig(max_edges=2), n=30)
    made = [edge for dream in engine.generate_dreams(50) for edge in engine.integrate_dream(dream)]
    assert len(made) == len(engine.creative_edges) == 2
    none = engine_on_a_path(DreamConfig(max_edges=0))
    assert none.integrate_dream(none.generate_dream()) == []


def test_an_observed_edge_takes_the_place_of_a_creative_one() -> None:
    engine = engine_on_a_path()
    for dream in engine.generate_dreams(30):
        engine.integrate_dream(dream)
    assert (100, 102, 0.15) in engine.creative_edges
    engine.add_edge(102, 100, 0.7)
    assert engine.graph.weight(0, 2) == np.float32(0.7)
    assert all((edge.a, edge.b) != (100, 102) for edge in engine.creative_edges)
    for dream in engine.generate_dreams(30):
        assert all((edge.a, edge.b) != (100, 102) for edge in engine.integrate_dream(dream))
    engine.add_edge(100, 102, 0.2)
    assert engine.graph.weight(0, 2) == np.float32(0.2)


def test_small_memories() -> None:
    engine = DreamEngine()
    assert engine.node_count == 0
    with pytest.raises(MemoryGraphError, match="memory graph is empty"):
        engine.generate_dream()
    engine.add_memory_node(MemoryNode(5))
    dream = engine.generate_dream()
    assert set(dream.nodes) == {0}
    assert {node.id for node in dream.path} == {5}
    assert dream.creative_jumps == 0
    assert engine.integrate_dream(dream) == []
    engine.add_memory_node(MemoryNode(6, [1.0, 0.0]))
    assert set(engine.generate_dream(creative=False).kinds[1:]) == {RESTART}
    assert {place for dream in engine.generate_dreams(5) for place in dream.nodes} == {0, 1}
    # The same id again is the same node.
    engine.add_memory_node(MemoryNode(5, importance=0.9))
    assert engine.node_count == 2
    assert engine.graph.facts.importance.tolist() == [0.9, 0.5]


def test_an_engine_refuses_what_does_not_belong() -> None:
    engine = engine_on_a_path()
    with pytest.raises(InvalidInput, match="expected a MemoryNode"):
        engine.add_memory_node("a")  # type: ignore[arg-type]
    with pytest.raises(DimensionMismatch):
        engine.add_memory_node(MemoryNode(9, [1.0, 2.0]))
    assert engine.node_count == 5
    for a, b, weight in ((100, 999, 0.5), (100, 100, 0.5), (100, 101, 0.0), (100, 101, 1.1), (100, 101, float("nan"))):
        with pytest.raises(MemoryGraphError):
            engine.add_edge(a, b, weight)
    larger = engine_on_a_path(n=40)
    stranger: Dream = next(dream for dream in larger.generate_dreams(50) if max(dream.nodes) >= 5)
    with pytest.raises(MemoryGraphError, match="another graph"):
        engine.integrate_dream(stranger)
