"""Dreams: walks over the memory graph, what they are worth, and what they propose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sona_pg.config import DreamConfig
from sona_pg.errors import InvalidInput, MemoryGraphError
from sona_pg.learning.arrays import normalized_rows, rows_at
from sona_pg.learning.dream_walks import (
    EDGE,
    JUMP,
    RESTART,
    START,
    CreativeEdges,
    creative_edges,
    dream_walks,
    starts,
)
from sona_pg.learning.memory_graph import Doubles, MemoryGraph, MemoryNode, Rows


@dataclass(frozen=True, slots=True)
class DreamQuality:
    """What a dream is worth; all but `total_novelty` 0 to 1.

    A step is one along an edge or a jump; restarts are none.

    Parameters
    ----------
    novelty
        Mean over steps of 1 - weight of the edge between its nodes: 1 where memory has no edge.
    coherence
        Mean over steps of how near its nodes are: their cosine, 0 at least; where one has no embedding, the weight of
        their edge.
    utility
        Mean over the dream's nodes, each once, of the mean of importance and quality.
    diversity
        New nodes by step: (different nodes - 1) / (length - 1).
    overall
        By `overall_quality`.
    total_novelty
        Sum over steps of what `novelty` is the mean of.
    """

    novelty: float
    coherence: float
    utility: float
    diversity: float
    overall: float
    total_novelty: float


@dataclass(frozen=True, slots=True)
class Dream:
    """A walk over memory.

    Parameters
    ----------
    id
        Its number, from which, with the seed, everything in it follows.
    nodes
        Places in the graph, the start first.
    kinds
        How each was reached: 0 start, 1 edge, 2 jump, 3 restart.
    quality
        What it is worth.
    path
        The nodes themselves, where the engine knows them.
    """

    id: int
    nodes: tuple[int, ...]
    kinds: tuple[int, ...]
    quality: DreamQuality
    path: tuple[MemoryNode, ...] = ()

    @property
    def creative_jumps(self) -> int:
        """Number of creative jumps."""
        return self.kinds.count(JUMP)

    @property
    def total_novelty(self) -> float:
        """Sum of the novelty of its steps."""
        return self.quality.total_novelty


def overall_quality(novelty: float, coherence: float, utility: float, config: DreamConfig | None = None) -> float:
    """The three as one, weighted by `DreamConfig`.

    Examples
    --------
    >>> round(overall_quality(0.5, 0.8, 0.4), 6)
    0.59
    """
    weights = config or DreamConfig()
    return weights.novelty_weight * novelty + weights.coherence_weight * coherence + weights.utility_weight * utility


def evaluate_dream(
    nodes: ArrayLike, kinds: ArrayLike, graph: MemoryGraph, config: DreamConfig | None = None
) -> DreamQuality:
    """What a walk is worth on a graph; a walk without a step has neither novelty, coherence nor diversity.

    Parameters
    ----------
    nodes, kinds
        Whole numbers (length,), length at least 1, as `Dream` has them.

    Raises
    ------
    InvalidInput, MemoryGraphError
        If they do not belong together, or a node is none of the graph's.
    """
    walked, reached = _walk_of(nodes, kinds, len(graph))
    step = np.flatnonzero((reached[1:] == EDGE) | (reached[1:] == JUMP))
    weight = graph.weights_between(walked[step], walked[step + 1]).astype(np.float64)
    different = np.unique(walked)
    novelty = 1 - weight
    mean_novelty = float(novelty.mean()) if len(step) else 0.0
    coherence = float(_nearness(graph, walked, step, weight).mean()) if len(step) else 0.0
    utility = float((graph.facts.importance[different] + graph.facts.quality[different]).mean() / 2)
    return DreamQuality(
        novelty=mean_novelty,
        coherence=coherence,
        utility=utility,
        diversity=(len(different) - 1) / max(len(walked) - 1, 1),
        overall=overall_quality(mean_novelty, coherence, utility, config),
        total_novelty=float(novelty.sum()),
    )


def _nearness(graph: MemoryGraph, walked: Rows, step: Rows, weight: Doubles) -> Doubles:
    """Of each step, as `DreamQuality.coherence` says."""
    if graph.embeddings is None:
        return weight
    rows = normalized_rows(rows_at(graph.embeddings, graph.places, walked)).astype(np.float64)
    cosine = np.einsum("sd,sd->s", rows[step], rows[step + 1])
    has = np.asarray(rows.any(axis=1))
    return np.where(has[step] & has[step + 1], np.clip(cosine, 0.0, 1.0), weight)


def generate_dreams(
    graph: MemoryGraph,
    count: int,
    config: DreamConfig,
    *,
    creative: bool = True,
    first: int = 0,
    check_stop: Callable[[], None] = lambda: None,
) -> list[Dream]:
    """Dreams over a graph, with creative jumps or without; deterministic by `DreamConfig.seed`.

    A graph with one node, and a node without edges in a dream without jumps, give dreams that stay where they begin.

    Parameters
    ----------
    first
        Id of the first dream; the next ones follow.
    check_stop
        Called between dreams; what it raises ends them.

    Raises
    ------
    MemoryGraphError
        If the graph is empty, or `starts` cannot be found.
    """
    begin = starts(graph, count, config, first=first)
    walks, kinds = dream_walks(graph, begin, config, creative=creative, first=first)
    dreams = []
    for i, (nodes, reached) in enumerate(zip(walks, kinds, strict=True)):
        check_stop()
        quality = evaluate_dream(nodes, reached, graph, config)
        dreams.append(Dream(first + i, tuple(nodes.tolist()), tuple(reached.tolist()), quality))
    return dreams


def dreamt_edges(
    graph: MemoryGraph,
    dreams: Sequence[Dream],
    config: DreamConfig,
    *,
    standing: tuple[ArrayLike, ArrayLike] | None = None,
) -> CreativeEdges:
    """What dreams over a graph propose together, as `creative_edges` says.

    Raises
    ------
    InvalidInput, MemoryGraphError
        If a dream is none, or goes over nodes that the graph does not have.
    """
    length = max((len(dream.nodes) for dream in dreams), default=1)
    walks = np.zeros((len(dreams), length), dtype=np.int32)
    # What a shorter dream lacks is restarts: they are together with nothing.
    kinds = np.full((len(dreams), length), RESTART, dtype=np.uint8)
    for row, dream in enumerate(dreams):
        walked, reached = _walk_of(dream.nodes, dream.kinds, len(graph))
        walks[row, : len(walked)], kinds[row, : len(walked)] = walked, reached
    return creative_edges(graph, walks, kinds, config, standing=standing)


def _walk_of(nodes: ArrayLike, kinds: ArrayLike, n: int) -> tuple[Rows, Rows]:
    try:
        walked, reached = np.asarray(nodes), np.asarray(kinds)
    except ValueError as cause:
        raise InvalidInput(f"nodes and kinds of a dream are no two rows of whole numbers ({cause})") from cause
    whole = walked.dtype.kind in "iu" and reached.dtype.kind in "iu"
    if walked.ndim != 1 or walked.shape != reached.shape or not len(walked) or not whole:
        raise InvalidInput(
            f"a dream has nodes {walked.dtype} {walked.shape} and kinds {reached.dtype} {reached.shape}, "
            "expected as many whole numbers of each, at least one"
        )
    if not (walked.min() >= 0 and walked.max() < n):
        raise MemoryGraphError(f"a dream goes over nodes {walked.min()} to {walked.max()} of {n}")
    if not (reached.min() >= START and reached.max() <= RESTART):
        raise InvalidInput(f"a dream has kinds of steps from {reached.min()} to {reached.max()}, expected 0 to 3")
    return walked.astype(np.int64), reached.astype(np.int64)
