"""Graphs in compressed sparse rows: against the reference bit by bit, against closed forms, and with bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sona_pg import kernels
from sona_pg.errors import InvalidInput, MemoryGraphError
from sona_pg.kernels import graph_reference as reference
from sona_pg.kernels.graph_reference import EDGE, JUMP, RESTART, START

Graph = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]


def nodes(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def random_edges(seed: int, n: int, m: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, n, m).astype(np.int32)
    target = ((source + rng.integers(1, n, m)) % n).astype(np.int32)
    return source, target, rng.uniform(0.05, 0.9, m).astype(np.float32)


def random_graph(seed: int, n: int = 40, m: int = 90) -> Graph:
    return kernels.adjacency(n, *random_edges(seed, n, m))


def cumulative(graph: Graph) -> NDArray[np.float64]:
    return np.cumsum(graph[2], dtype=np.float64)


def dense(graph: Graph) -> NDArray[np.float64]:
    indptr, neighbours, weights = graph
    n = len(indptr) - 1
    matrix = np.zeros((n, n))
    matrix[np.repeat(np.arange(n), np.diff(indptr)), neighbours] = weights
    return matrix


# ---- building --------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), n=st.integers(2, 30), m=st.integers(0, 120))
@settings(max_examples=60, deadline=None)
def test_rows_are_those_of_the_reference(seed: int, n: int, m: int) -> None:
    edges = random_edges(seed, n, m)
    ours, theirs = kernels.adjacency(n, *edges), reference.adjacency(n, *edges)
    assert ours[0].tolist() == theirs[0].tolist()
    assert ours[1].tolist() == theirs[1].tolist()
    assert np.allclose(ours[2], theirs[2], rtol=1e-6)
    matrix = dense(ours)
    assert (matrix == matrix.T).all()
    assert not matrix.diagonal().any()
    assert ours[2].max(initial=0) <= 1
    assert [a.dtype for a in ours] == [np.int64, np.int32, np.float32]


def test_the_same_edge_is_added_up_to_one() -> None:
    indptr, neighbours, weights = kernels.adjacency(
        3, nodes(0, 1, 0, 2), nodes(1, 0, 1, 1), np.array([0.25, 0.25, 0.125, 0.75], dtype=np.float32)
    )
    assert indptr.tolist() == [0, 1, 3, 4]
    assert neighbours.tolist() == [1, 0, 2, 1]
    assert weights.tolist() == [0.625, 0.625, 0.75, 0.75]
    assert kernels.adjacency(2, nodes(0, 0), nodes(1, 1), np.ones(2, dtype=np.float32))[2].tolist() == [1, 1]
    # Weights of single edges are kept as they are up to 1, and graphs without edges or nodes are graphs.
    none = np.empty(0, dtype=np.float32)
    assert kernels.adjacency(3, nodes(), nodes(), none)[0].tolist() == [0, 0, 0, 0]
    assert kernels.adjacency(0, nodes(), nodes(), none)[0].tolist() == [0]


@pytest.mark.parametrize(
    ("source", "target", "weight"),
    [(0, 3, 0.5), (-1, 0, 0.5), (1, 1, 0.5), (0, 1, np.nan), (0, 1, np.inf), (0, 1, -0.1)],
)
def test_an_edge_that_is_none_is_refused(source: int, target: int, weight: float) -> None:
    with pytest.raises(MemoryGraphError, match="edge 1 joins"):
        kernels.adjacency(3, nodes(0, source), nodes(2, target), np.array([0.5, weight], dtype=np.float32))


def test_edges_are_found_where_they_are() -> None:
    indptr, neighbours, _ = random_graph(3)
    every = np.arange(40, dtype=np.int32)
    source, target = np.repeat(every, 40), np.tile(every, 40)
    found = kernels.find_edges(indptr, neighbours, source, target)
    assert found.tolist() == reference.find_edges(indptr, neighbours, source, target).tolist()
    assert (found >= 0).sum() == len(neighbours)
    assert kernels.find_edges(indptr, neighbours, nodes(), nodes()).tolist() == []
    with pytest.raises(MemoryGraphError, match="pair 1 is 0, 40"):
        kernels.find_edges(indptr, neighbours, nodes(0, 0), nodes(1, 40))


# ---- walks -----------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**64 - 1),
    first=st.integers(0, 2**32),
    m=st.integers(0, 60),
    restart=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    jump=st.sampled_from([0.0, 0.3, 0.5]),
)
@settings(max_examples=60, deadline=None)
def test_walks_are_those_of_the_reference(seed: int, first: int, m: int, restart: float, jump: float) -> None:
    jump = min(jump, 1 - restart)
    indptr, neighbours, weights = random_graph(m, 20, m)
    weights[::3] = 0
    sums, starts = np.cumsum(weights, dtype=np.float64), np.arange(20, dtype=np.int32)
    given = indptr, neighbours, sums, starts, 12, restart, jump, seed
    (ours, kinds), (theirs, their_kinds) = kernels.walk(*given, first=first), reference.walk(*given, first=first)
    assert ours.tolist() == theirs.tolist()
    assert kinds.tolist() == their_kinds.tolist()
    assert (ours.dtype, kinds.dtype) == (np.int32, np.uint8)


def test_a_walk_is_the_same_whatever_the_batch() -> None:
    graph = random_graph(1)
    sums, starts = cumulative(graph), np.arange(40, dtype=np.int32)
    whole = kernels.walk(*graph[:2], sums, starts, 15, 0.1, 0.3, 5)
    for part in (slice(0, 7), slice(7, 40), slice(39, 40)):
        alone = kernels.walk(*graph[:2], sums, starts[part], 15, 0.1, 0.3, 5, first=part.start)
        assert alone[0].tolist() == whole[0][part].tolist()
        assert alone[1].tolist() == whole[1][part].tolist()
    other = kernels.walk(*graph[:2], sums, starts, 15, 0.1, 0.3, 6)
    assert other[0].tolist() != whole[0].tolist()
    same_start = kernels.walk(*graph[:2], sums, np.zeros(40, dtype=np.int32), 15, 0.1, 0.3, 5)[0]
    assert len(np.unique(same_start, axis=0)) == 40


def test_shares_of_restarts_and_jumps() -> None:
    graph = random_graph(2, 200, 900)
    assert np.diff(graph[0]).min() > 0
    _, kinds = kernels.walk(*graph[:2], cumulative(graph), nodes(0), 100_001, 0.1, 0.3, 7)
    shares = np.bincount(kinds[0, 1:], minlength=4) / 100_000
    assert kinds[0, 0] == START
    assert shares[RESTART] == pytest.approx(0.1, abs=0.003)
    assert shares[JUMP] == pytest.approx(0.3, abs=0.0045)
    assert shares[START] == 0


def test_jumps_go_to_every_other_node_alike() -> None:
    graph = random_graph(2, 5, 20)
    walked, kinds = kernels.walk(*graph[:2], cumulative(graph), nodes(0), 100_001, 0.0, 1.0, 7)
    assert (kinds[0, 1:] == JUMP).all()
    assert (walked[0, 1:] != walked[0, :-1]).all()
    pairs = np.bincount(walked[0, :-1] * 5 + walked[0, 1:], minlength=25).reshape(5, 5)
    assert pairs[~np.eye(5, dtype=bool)] / 100_000 == pytest.approx(np.full(20, 1 / 20), abs=0.003)


def test_edges_are_drawn_by_their_weight_and_steps_follow_edges() -> None:
    star = kernels.adjacency(4, nodes(0, 0, 0), nodes(1, 2, 3), np.array([0.1, 0.6, 0.3], dtype=np.float32))
    walked, _ = kernels.walk(*star[:2], cumulative(star), nodes(0), 100_001, 0.0, 0.0, 3)
    assert (walked[0, ::2] == 0).all()
    shares = np.bincount(walked[0, 1::2], minlength=4) / 50_000
    assert shares == pytest.approx([0, 0.1, 0.6, 0.3], abs=0.008)
    graph = random_graph(8)
    walked, kinds = kernels.walk(*graph[:2], cumulative(graph), np.arange(40, dtype=np.int32), 30, 0.1, 0.3, 3)
    steps = kinds[:, 1:] == EDGE
    assert (dense(graph)[walked[:, :-1][steps], walked[:, 1:][steps]] > 0).all()
    assert (walked[kinds == RESTART] == np.nonzero(kinds == RESTART)[0]).all()


def test_an_endless_walk_is_where_personalised_pagerank_says() -> None:
    graph = random_graph(4, 30, 60)
    n, s = 30, 0
    walked, _ = kernels.walk(*graph[:2], cumulative(graph), nodes(s), 400_001, 0.1, 0.0, 11)
    visits = np.bincount(walked[0], minlength=n) / walked.size
    weights = dense(graph)
    strength = weights.sum(axis=1, keepdims=True)
    transition = np.divide(weights, strength, out=np.zeros((n, n)), where=strength > 0)
    transition[strength[:, 0] == 0, s] = 1
    solution = 0.1 * np.linalg.solve(np.eye(n) - 0.9 * transition.T, np.eye(n)[s])
    assert np.abs(visits - solution).sum() / 2 <= 0.02
    found = kernels.personalised_pagerank(*graph, np.eye(n)[s], 0.1, 1e-10)
    assert np.abs(found - solution).sum() <= 1e-10
    # By reference too, so that no two wrongs agree.
    assert np.abs(reference.personalised_pagerank(*graph, np.eye(n)[s], 0.1, 1e-10) - solution).sum() <= 1e-10


def test_without_edges_every_edge_step_restarts() -> None:
    none = np.empty(0, dtype=np.float32)
    empty = kernels.adjacency(3, nodes(), nodes(), none)
    walked, kinds = kernels.walk(*empty[:2], none.astype(np.float64), nodes(1), 200, 0.1, 0.3, 0)
    assert set(kinds[0, 1:].tolist()) == {JUMP, RESTART}
    assert (walked[kinds == RESTART] == 1).all()
    alone = kernels.adjacency(1, nodes(), nodes(), none)
    walked, kinds = kernels.walk(*alone[:2], none.astype(np.float64), nodes(0), 20, 0.1, 0.9, 0)
    assert not walked.any()
    assert set(kinds[0, 1:].tolist()) == {RESTART}
    zero = kernels.adjacency(2, nodes(0), nodes(1), np.zeros(1, dtype=np.float32))
    assert not kernels.walk(*zero[:2], cumulative(zero), nodes(0), 20, 0.0, 0.0, 0)[0].any()
    assert kernels.walk(*zero[:2], cumulative(zero), nodes(), 20, 0.1, 0.3, 0)[0].shape == (0, 20)


# ---- activation ------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), hops=st.integers(0, 4), factor=st.sampled_from([0.0, 0.7, 1.0]))
@settings(max_examples=40, deadline=None)
def test_activation_spreads_as_the_reference_says(seed: int, hops: int, factor: float) -> None:
    graph = random_graph(seed, 25, 30)
    mass = np.random.default_rng(seed).random(25) * (np.arange(25) % 3 == 0)
    ours = kernels.spread(*graph, mass, hops, factor)
    assert ours == pytest.approx(reference.spread(*graph, mass, hops, factor), abs=1e-12)
    assert (ours >= mass).all()
    exact = kernels.personalised_pagerank(*graph, mass, 0.2, 1e-9)
    assert exact == pytest.approx(reference.personalised_pagerank(*graph, mass, 0.2, 1e-9), abs=2e-9)
    assert exact.sum() == pytest.approx(1)


def test_activation_of_a_path() -> None:
    path = kernels.adjacency(3, nodes(0, 1), nodes(1, 2), np.array([0.5, 0.25], dtype=np.float32))
    mass = np.array([1.0, 0, 0])
    assert kernels.spread(*path, mass, 0, 0.7).tolist() == [1, 0, 0]
    assert kernels.spread(*path, mass, 1, 0.5).tolist() == [1, 0.5, 0]
    assert kernels.spread(*path, mass, 2, 0.5) == pytest.approx([1 + 1 / 6, 0.5, 1 / 12])
    assert kernels.personalised_pagerank(*path, mass, 1.0, 1e-12).tolist() == [1, 0, 0]
    # A tolerance below what rounding leaves ends too.
    assert kernels.personalised_pagerank(*path, mass, 0.1, 1e-300).sum() == pytest.approx(1)


# ---- rewiring --------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**64 - 1), m=st.integers(0, 60), tries=st.integers(0, 400))
@settings(max_examples=50, deadline=None)
def test_rewiring_keeps_degrees_and_is_that_of_the_reference(seed: int, m: int, tries: int) -> None:
    indptr, neighbours, _ = random_graph(m, 15, m)
    before = indptr.tolist(), neighbours.tolist()
    source, target = kernels.rewired(indptr, neighbours, tries, seed)
    assert (indptr.tolist(), neighbours.tolist()) == before
    theirs = reference.rewired(indptr, neighbours, tries, seed)
    assert (source.tolist(), target.tolist()) == (theirs[0].tolist(), theirs[1].tolist())
    assert np.bincount(np.concatenate([source, target]), minlength=15).tolist() == np.diff(indptr).tolist()
    pairs = {frozenset(pair) for pair in zip(source.tolist(), target.tolist(), strict=True)}
    assert len(pairs) == len(source) == len(neighbours) // 2
    assert all(len(pair) == 2 for pair in pairs)


def test_rewiring_leaves_little_of_what_was_there() -> None:
    indptr, neighbours, _ = random_graph(5, 300, 900)
    source, target = kernels.rewired(indptr, neighbours, 5 * len(neighbours), 1)
    kept = (kernels.find_edges(indptr, neighbours, source, target) >= 0).mean()
    assert kept < 0.05
    assert kernels.find_edges(indptr, neighbours, *kernels.rewired(indptr, neighbours, 0, 1)).min() >= 0


# ---- bad input -------------------------------------------------------------------------------------------------------

GRAPH = random_graph(9)
SUMS, MASS = cumulative(GRAPH), np.ones(40)
WALK = (GRAPH[0], GRAPH[1], SUMS, nodes(0), 5, 0.1, 0.3, 0)
SPREAD = (*GRAPH, MASS, 2, 0.7)
RANK = (*GRAPH, MASS, 0.1, 1e-9)


def changed(arguments: tuple[Any, ...], place: int, value: object) -> tuple[Any, ...]:
    return (*arguments[:place], value, *arguments[place + 1 :])


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (kernels.walk, changed(WALK, 0, GRAPH[0].astype(np.int32))),
        (kernels.walk, changed(WALK, 0, np.empty(0, dtype=np.int64))),
        (kernels.walk, changed(WALK, 1, GRAPH[1].astype(np.int64))),
        (kernels.walk, changed(WALK, 1, GRAPH[1][::2])),
        (kernels.walk, changed(WALK, 2, SUMS[:-1])),
        (kernels.walk, changed(WALK, 2, SUMS.astype(np.float32))),
        (kernels.walk, changed(WALK, 3, [0])),
        (kernels.walk, changed(WALK, 3, nodes(0)[:, np.newaxis])),
        (kernels.walk, changed(WALK, 4, 0)),
        (kernels.walk, changed(WALK, 5, 0.8)),
        (kernels.walk, changed(WALK, 5, -0.1)),
        (kernels.walk, changed(WALK, 6, np.nan)),
        (kernels.spread, changed(SPREAD, 2, GRAPH[2].astype(np.float64))),
        (kernels.spread, changed(SPREAD, 3, MASS[:-1])),
        (kernels.spread, changed(SPREAD, 3, -MASS)),
        (kernels.spread, changed(SPREAD, 3, MASS * np.nan)),
        (kernels.spread, changed(SPREAD, 4, -1)),
        (kernels.spread, changed(SPREAD, 5, 1.1)),
        (kernels.personalised_pagerank, changed(RANK, 3, MASS * 0)),
        (kernels.personalised_pagerank, changed(RANK, 3, MASS * np.inf)),
        (kernels.personalised_pagerank, changed(RANK, 3, MASS * 1e308)),
        (kernels.personalised_pagerank, changed(RANK, 4, 0.0)),
        (kernels.personalised_pagerank, changed(RANK, 5, 0.0)),
        (kernels.rewired, (GRAPH[0], GRAPH[1], -1, 0)),
        (kernels.adjacency, (-1, nodes(), nodes(), np.empty(0, dtype=np.float32))),
        (kernels.adjacency, (3, nodes(0), nodes(1, 2), np.ones(2, dtype=np.float32))),
    ],
)
def test_what_is_no_graph_is_refused(call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidInput):
        call(*arguments)


@pytest.mark.parametrize("start", [-1, 40])
def test_a_start_that_is_no_node_is_refused(start: int) -> None:
    with pytest.raises(MemoryGraphError, match=f"walk 1 starts at node {start}"):
        kernels.walk(*changed(WALK, 3, nodes(0, start)))


def damaged(place: int, value: float) -> list[Graph]:
    """The graph with each of its rows, neighbours or weights replaced, one at a time."""
    graphs = []
    for i in range(len(GRAPH[place])):
        parts = [part.copy() for part in GRAPH]
        parts[place][i] = value
        graphs.append((parts[0], parts[1], parts[2]))
    return graphs


@pytest.mark.parametrize(
    ("place", "value"), [(0, -5), (0, 10**9), (1, -1), (1, 40), (2, np.nan), (2, np.inf), (2, -1.0)]
)
def test_a_damaged_graph_never_leads_outside(place: int, value: float) -> None:
    starts = np.arange(40, dtype=np.int32)
    for indptr, neighbours, weights in damaged(place, value):
        if place < 2:
            with pytest.raises(MemoryGraphError):
                kernels.rewired(indptr, neighbours, 100, 0)
        with pytest.raises(MemoryGraphError, match="damaged"):
            kernels.spread(indptr, neighbours, weights, MASS, 1, 0.5)
        with pytest.raises(MemoryGraphError, match="damaged"):
            kernels.personalised_pagerank(indptr, neighbours, weights, MASS, 0.1, 1e-6)
        # Walks look at what they walk on; 4,000 steps do not miss a row, but may miss an edge.
        with np.errstate(invalid="ignore"):
            sums = np.cumsum(weights, dtype=np.float64)
        try:
            walked, _ = kernels.walk(indptr, neighbours, sums, starts, 100, 0.0, 0.2, 0)
        except MemoryGraphError:
            continue
        assert place != 0
        assert 0 <= walked.min() <= walked.max() < 40
