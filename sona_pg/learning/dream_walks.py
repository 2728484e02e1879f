"""Walks over the memory graph, and the weak edges that they propose: the part of dreams that is arrays alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg import kernels
from sona_pg.config import DreamConfig
from sona_pg.errors import InvalidInput, MemoryGraphError
from sona_pg.learning.arrays import normalized_rows, rows_at
from sona_pg.learning.memory_graph import Doubles, Flags, MemoryGraph, NodeFacts, Nodes, Rows
from sona_pg.types import is_whole

Kinds = NDArray[np.uint8]

START, EDGE, JUMP, RESTART = range(4)
"""Kinds of steps; of a node of a walk, how it was reached."""

MAX_DREAMS = 1_000_000
"""That are asked for at once."""

_STARTS, _ANCHORS = 1, 2
"""What a stream of random numbers is for: walks have theirs from the kernel."""


# ---- where dreams begin ----------------------------------------------------------------------------------------------


def activation(facts: NodeFacts, half_life_seconds: float) -> Doubles:
    """How active nodes are, (n,): importance, accesses and recency in one.

    ``importance (1 + ln(1 + accesses)) 2^(-age / half life)``, the age counted from the node that was accessed last,
    since only proportions count: no clock is needed.
    """
    if not len(facts.timestamp):
        return np.empty(0)
    age = facts.timestamp.max() - facts.timestamp
    active: Doubles = facts.importance * (1 + np.log1p(facts.access_count)) * np.exp2(-age / half_life_seconds)
    return active


def starts(graph: MemoryGraph, count: int, config: DreamConfig, *, first: int = 0) -> Nodes:
    """Nodes (count,) at which dreams begin, by `DreamConfig.start`.

    By activation, every start is drawn on its own: dream i begins where it does whatever the batch. Anchors are drawn
    by the squared distance to those that stand (Arthur & Vassilvitskii 2007), so that they are far from each other
    within one call; where there are fewer directions than starts, they come again in turn.

    Parameters
    ----------
    first
        Number of the first dream.

    Raises
    ------
    MemoryGraphError
        If the graph has no node, or anchors are asked for and no node has an embedding.
    InvalidInput
        If `count` is no whole number from 0 to `MAX_DREAMS`.
    """
    if not len(graph):
        raise MemoryGraphError("the memory graph is empty: there is nothing to dream of, add nodes first")
    if not is_whole(count) or not 0 <= count <= MAX_DREAMS:
        raise InvalidInput(f"count is {count!r}, expected a whole number from 0 to {MAX_DREAMS}")
    active = activation(graph.facts, config.half_life_seconds)
    if config.start == "anchors":
        return _anchors(graph, count, active, np.random.default_rng([config.seed, _ANCHORS, first]))
    bits = np.random.PCG64([config.seed, _STARTS])
    bits.advance(first)
    return _drawn(active, np.random.Generator(bits).random(count))


def _drawn(weights: Doubles, uniform: Doubles) -> Nodes:
    """Places drawn in proportion to weights; uniformly where all are zero."""
    sums = np.cumsum(weights if weights.any() else np.ones(len(weights)))
    places = np.searchsorted(sums, uniform * sums[-1], side="right")
    # Rounded up to the whole sum: the last one that weighs anything.
    drawn: Nodes = np.minimum(places, np.searchsorted(sums, sums[-1])).astype(np.int32)
    return drawn


def _anchors(graph: MemoryGraph, count: int, active: Doubles, random: np.random.Generator) -> Nodes:
    candidates = np.flatnonzero(graph.has_embedding)
    if graph.embeddings is None or not len(candidates):
        raise MemoryGraphError("no node has an embedding: start dreams by 'activation', or add embeddings")
    rows = normalized_rows(rows_at(graph.embeddings, graph.places, candidates))
    chosen: list[int] = []
    distance = active[candidates]  # the first anchor is drawn by activation
    for _ in range(min(count, len(candidates))):
        place = int(_drawn(distance, random.random(1))[0])
        # 1 - cosine is half of the squared distance; below what rounding leaves, it is the same direction.
        away = 1 - kernels.assign(rows, rows[place : place + 1])[1].astype(np.float64)
        away[away < 1e-6] = 0
        away[place] = 0
        distance = np.minimum(distance, away) if chosen else away
        chosen.append(place)
        if not distance.any():
            break
    return np.resize(candidates[chosen], count).astype(np.int32)


def dream_walks(
    graph: MemoryGraph,
    begin: ArrayLike,
    config: DreamConfig,
    *,
    creative: bool = True,
    seed: int | None = None,
    first: int = 0,
) -> tuple[Nodes, Kinds]:
    """Walks from nodes (m,): nodes and kinds (m, path_length); without creative jumps where they are not wanted.

    The seed is that of the configuration unless there is another one, and `first` the number of the first walk.
    """
    return graph.walk(
        begin,
        config.path_length,
        config.restart_prob,
        config.creative_jump_prob if creative else 0.0,
        seed=config.seed if seed is None else seed,
        first=first,
        temperature=config.temperature,
    )


# ---- what walks propose ----------------------------------------------------------------------------------------------


class CoOccurrences(NamedTuple):
    """Pairs of nodes that walks have brought together, source < target, in their order; each (m,)."""

    source: Nodes
    target: Nodes
    times: Rows
    score: Doubles


def co_occurrences(walks: Nodes, kinds: Kinds, window: int, degrees: Rows) -> CoOccurrences:
    """Pairs that came within `window` steps of each other, and how often beside what their degrees give.

    ``score = times / sqrt(degree_a degree_b)``: hubs are met everywhere, and that says nothing. The window ends at
    jumps and restarts: what lies on both sides of them has nothing to do with each other (on held-out edges of a real
    graph, an AUC of .77 with windows across jumps is .87 without).

    Parameters
    ----------
    walks, kinds
        int32 and uint8 (m, length), as `dream_walks` gives them.
    window
        Steps, at least 1.
    degrees
        Of all nodes, int64 (n,); a degree of 0 counts as 1.

    Raises
    ------
    InvalidInput
        If the arrays do not belong together.
    """
    if walks.ndim != 2 or walks.shape != kinds.shape or window < 1:
        raise InvalidInput(
            f"walks {walks.shape}, kinds {kinds.shape}, window {window}: expected two (m, length), and at least 1"
        )
    n = len(degrees)
    if walks.size and not (walks.min() >= 0 and walks.max() < n):
        raise InvalidInput(f"walks go over nodes {walks.min()} to {walks.max()}, expected nodes below {n}")
    segment = np.cumsum(kinds != EDGE, axis=1)
    keys = [np.empty(0, dtype=np.int64)]
    for lag in range(1, min(window, walks.shape[1] - 1) + 1):
        a, b = walks[:, :-lag], walks[:, lag:]
        together = (segment[:, :-lag] == segment[:, lag:]) & (a != b)
        a, b = a[together].astype(np.int64), b[together].astype(np.int64)
        keys.append(np.minimum(a, b) * n + np.maximum(a, b))
    met = np.concatenate(keys)
    if n * n <= len(met):  # counting needs no sorting where every pair can have a place
        every = np.bincount(met, minlength=n * n)
        pairs = np.flatnonzero(every)
        times = every[pairs]
    else:
        pairs, times = np.unique(met, return_counts=True)
    source, target = pairs // max(n, 1), pairs % max(n, 1)
    weight = np.maximum(degrees, 1).astype(np.float64)
    score = times / np.sqrt(weight[source] * weight[target])
    return CoOccurrences(source.astype(np.int32), target.astype(np.int32), times.astype(np.int64), score)


class CreativeEdges(NamedTuple):
    """New weak edges, the best first: nodes, source < target, score and weight; each (m,)."""

    source: Nodes
    target: Nodes
    score: Doubles
    weight: NDArray[np.float32]


def creative_edges(
    graph: MemoryGraph,
    walks: Nodes,
    kinds: Kinds,
    config: DreamConfig,
    *,
    standing: tuple[ArrayLike, ArrayLike] | None = None,
) -> CreativeEdges:
    """The pairs that walks brought together most and that have no edge yet, `max_edges` with those that stand at most.

    Parameters
    ----------
    graph
        What was observed; its edges are never proposed.
    walks, kinds
        As `dream_walks` gives them.
    standing
        Source and target of edges by earlier dreams that still stand; they are not proposed again, and count.
    """
    met = co_occurrences(walks, kinds, config.window, graph.degrees)
    new = graph.weights_between(met.source, met.target) == 0
    room = config.max_edges
    if standing is not None:
        a, b = (np.asarray(ends, dtype=np.int64).reshape(-1) for ends in standing)
        room = max(room - len(a), 0)
        new &= ~_among(met, np.minimum(a, b) * len(graph) + np.maximum(a, b), len(graph))
    kept = np.flatnonzero(new)
    best = kept[np.argsort(-met.score[kept], kind="stable")[:room]]
    weight = np.full(len(best), config.edge_weight, dtype=np.float32)
    return CreativeEdges(met.source[best], met.target[best], met.score[best], weight)


def _among(met: CoOccurrences, keys: Rows, n: int) -> Flags:
    return np.isin(met.source.astype(np.int64) * n + met.target, keys)
