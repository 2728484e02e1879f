"""The memory graph in memory: what edges become, what is found in it, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_pg.errors import DimensionMismatch, InvalidInput, MemoryGraphError
from sona_pg.learning.memory_graph import MemoryGraph, MemoryNode, NodeFacts, embedding_rows

EDGES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.sampled_from([0.0, 0.125, 0.5, 1.0])), max_size=40)


def ring(n: int = 6) -> MemoryGraph:
    return MemoryGraph.from_edges(n, np.arange(n), (np.arange(n) + 1) % n, np.full(n, 0.5))


def facts(n: int, **given: list[float]) -> NodeFacts:
    return NodeFacts.unknown(n)._replace(**{name: np.array(values) for name, values in given.items()})


@given(edges=EDGES)
@settings(max_examples=80, deadline=None)
def test_edges_are_undirected_added_up_and_without_loops(edges: list[tuple[int, int, float]]) -> None:
    expected = np.zeros((8, 8))
    for a, b, weight in edges:
        if a != b:
            expected[a, b] += weight
            expected[b, a] += weight
    expected = np.minimum(expected, 1)
    source, target, weight = ([edge[i] for edge in edges] for i in range(3))
    graph = MemoryGraph.from_edges(8, source, target, weight)
    found = np.array([[graph.weight(a, b) for b in range(8)] for a in range(8)])
    assert (found == expected).all()
    assert [[graph.has_edge(a, b) for b in range(8)] for a in range(8)] == (expected > 0).tolist()
    assert [graph.neighbours(a).tolist() for a in range(8)] == [np.flatnonzero(row).tolist() for row in expected]
    assert graph.degrees.tolist() == [graph.degree(a) for a in range(8)] == (expected > 0).sum(axis=1).tolist()
    assert graph.strengths == pytest.approx(expected.sum(axis=1))
    assert graph.edge_count == (expected > 0).sum() / 2
    assert graph.self_loops == sum(a == b for a, b, _ in edges)
    again = MemoryGraph.from_edges(8, *graph.edges())
    assert (again.indices == graph.indices).all()
    assert (again.weights == graph.weights).all()


@given(edges=EDGES, order=st.permutations(range(8)), size=st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_a_subgraph_has_the_edges_between_its_nodes(
    edges: list[tuple[int, int, float]], order: list[int], size: int
) -> None:
    source, target, weight = ([edge[i] for edge in edges] for i in range(3))
    importance = np.arange(8) / 10
    graph = MemoryGraph.from_edges(
        8, source, target, weight, embeddings=np.eye(8), facts=facts(8, importance=importance.tolist())
    )
    chosen = order[:size]
    part = graph.subgraph(chosen)
    assert len(part) == size
    for a, old_a in enumerate(chosen):
        for b, old_b in enumerate(chosen):
            assert part.weight(a, b) == graph.weight(old_a, old_b)
    assert part.embeddings is not None
    assert part.embeddings.tolist() == np.eye(8)[chosen].tolist()
    assert part.facts.importance.tolist() == importance[chosen].tolist()


def test_a_graph_of_the_size_of_a_memory_is_small() -> None:
    random = np.random.default_rng(0)
    n, m = 5_000, 100_000
    source = random.integers(0, n, m)
    target = (source + random.integers(1, n, m)) % n
    graph = MemoryGraph.from_edges(n, source, target, random.random(m, dtype=np.float32))
    graph.walk([0], 15, 0.1, 0.3)
    held = graph.indptr.nbytes + graph.indices.nbytes + graph.weights.nbytes + graph.cumulative().nbytes
    assert held / len(graph.indices) <= 24


def test_temperature_sharpens_and_flattens_what_walks_follow() -> None:
    graph = MemoryGraph.from_edges(3, [0, 0], [1, 2], [0.2, 0.8])
    for temperature in (0.5, 1.0, 2.0):
        walked, _ = graph.walk([0], 40_001, 0.0, 0.0, temperature=temperature)
        strong = 0.8 ** (1 / temperature)
        share = strong / (strong + 0.2 ** (1 / temperature))
        assert (walked[0, 1::2] == 2).mean() == pytest.approx(share, abs=0.012)
    # So cold that powers of the weights vanish: the strongest edge of each row is left, not none.
    faint = MemoryGraph.from_edges(4, [0, 0, 2], [1, 2, 3], [1e-6, 2e-6, 1.0])
    walked, _ = faint.walk([0], 201, 0.5, 0.0, temperature=0.05)
    assert (walked[0, np.flatnonzero(walked[0, :-1] == 0) + 1] != 1).all()
    assert (walked[0] == 3).any()


def test_activation_and_pagerank_take_any_floats() -> None:
    graph = ring()
    assert graph.spread([1, 0, 0, 0, 0, 0], 1, 0.5).tolist() == [1, 0.25, 0, 0, 0, 0.25]
    rank = graph.personalised_pagerank([2, 0, 0, 0, 0, 0])
    assert rank.sum() == pytest.approx(1)
    assert rank[1] == pytest.approx(rank[5])
    assert rank[0] > rank[1] > rank[2] > rank[3]


def test_graphs_without_edges_or_nodes() -> None:
    empty = MemoryGraph.from_edges(0, [], [])
    assert (len(empty), empty.edge_count, empty.degrees.tolist(), len(empty.edges()[0])) == (0, 0, [], 0)
    assert len(empty.subgraph([])) == 0
    alone = MemoryGraph.from_edges(2, [0], [0])
    assert (alone.edge_count, alone.self_loops, alone.neighbours(0).tolist(), alone.weight(0, 1)) == (0, 1, [], 0)
    assert alone.strengths.tolist() == [0, 0]
    assert alone.cumulative(0.5).tolist() == []
    assert ring().weights_between([], []).tolist() == []
    assert not ring().has_embedding.any()


def test_a_row_of_zeros_is_a_node_without_embedding() -> None:
    graph = MemoryGraph.from_edges(3, [0], [1], embeddings=[[1, 0], [0, 0], [0, 2]])
    assert graph.has_embedding.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, [], []), "n is -1"),
        ((2.5, [], []), "n is 2.5"),
        ((3, [0, 0], [1, 3]), "edge 1 has the target 3"),
        ((3, [-1], [1]), "edge 0 has the source -1"),
        ((3, [2**40], [1]), "edge 0 has the source"),
        ((3, [0.5], [1]), "source is float64"),
        ((3, [[0]], [1]), "source is int64"),
        ((3, [0], [1, 2]), "as many of each"),
        ((3, [0], [1], [0.5, 0.5]), "as many of each"),
        ((3, [0], [1], ["a"]), "as many of each"),
        ((3, [0, 1], [1, 2], [0.5, -0.1]), "edge 1 has the weight -0.1"),
        ((3, [0], [1], [1.1]), "edge 0 has the weight 1.1"),
        ((3, [0], [1], [np.nan]), "edge 0 has the weight nan"),
        ((3, [0], [1], [np.inf]), "edge 0 has the weight inf"),
    ],
)
def test_edges_that_are_none_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(MemoryGraphError, match=message):
        MemoryGraph.from_edges(*arguments)


def test_what_belongs_to_no_node_is_refused() -> None:
    with pytest.raises(MemoryGraphError, match="2 embeddings, expected 3"):
        MemoryGraph.from_edges(3, [0], [1], embeddings=np.eye(2))
    with pytest.raises(InvalidInput, match="NaN or infinity"):
        MemoryGraph.from_edges(2, [0], [1], embeddings=[[np.nan], [1]])
    for wrong in (
        {"importance": [0.5]},
        {"importance": [0.5, 1.5]},
        {"access_count": [1, -1]},
        {"quality": [0, np.nan]},
    ):
        with pytest.raises(MemoryGraphError, match=f"{next(iter(wrong))} "):
            MemoryGraph.from_edges(2, [0], [1], facts=facts(2, **wrong))
    graph = ring()
    for call in (graph.neighbours, graph.degree):
        for node in (-1, 6):
            with pytest.raises(MemoryGraphError, match=f"no node {node}"):
                call(node)
    with pytest.raises(MemoryGraphError, match="expected nodes from 0 below 6"):
        graph.has_edge(0, 6)
    with pytest.raises(MemoryGraphError, match="given twice"):
        graph.subgraph([0, 1, 0])
    with pytest.raises(MemoryGraphError, match="nodes of a subgraph"):
        graph.subgraph([0, 6])


# ---- nodes -----------------------------------------------------------------------------------------------------------


def test_a_node_keeps_its_embedding_to_itself() -> None:
    given = np.array([1.0, 2.0])
    node = MemoryNode(7, given, kind="episode")
    given[0] = 9
    assert node.embedding is not None
    assert (node.embedding.tolist(), node.embedding.dtype) == ([1, 2], np.float32)
    with pytest.raises(ValueError, match="read-only"):
        node.embedding[0] = 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "a"},
        {"id": True},
        {"embedding": [np.nan]},
        {"embedding": []},
        {"embedding": [[1.0]]},
        {"embedding": ["a"]},
        {"timestamp": np.inf},
        {"access_count": -1},
        {"access_count": 1.5},
        {"importance": 1.1},
        {"importance": np.nan},
        {"quality": -0.1},
        {"kind": "thing"},
        {"consolidation_count": -1},
    ],
)
def test_a_node_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        MemoryNode(**({"id": 1} | wrong))


def test_embeddings_of_nodes_as_rows() -> None:
    rows = embedding_rows([MemoryNode(1), MemoryNode(2, [1.0, 2.0])])
    assert rows is not None
    assert rows.tolist() == [[0, 0], [1, 2]]
    assert embedding_rows([MemoryNode(1)]) is None
    with pytest.raises(DimensionMismatch):
        embedding_rows([MemoryNode(1, [1.0]), MemoryNode(2, [1.0, 2.0])])
