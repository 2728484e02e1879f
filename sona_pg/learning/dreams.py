"""Dreams: walks over the memory graph, what they are worth, and an engine that keeps a graph of its own to dream on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sona_pg.config import DreamConfig
from sona_pg.errors import DimensionMismatch, InvalidInput, MemoryGraphError
from sona_pg.learning.arrays import normalized_rows
from sona_pg.learning.dream_walks import EDGE, JUMP, creative_edges, dream_walks, starts
from sona_pg.learning.memory_graph import Doubles, MemoryGraph, MemoryNode, NodeFacts, Rows, embedding_rows


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
    walked, reached = np.asarray(nodes), np.asarray(kinds)
    if walked.ndim != 1 or walked.shape != reached.shape or not len(walked) or walked.dtype.kind not in "iu":
        raise InvalidInput(
            f"a dream has nodes {walked.shape} and kinds {reached.shape}, expected as many, at least one"
        )
    if not (walked.min() >= 0 and walked.max() < len(graph)):
        raise MemoryGraphError(f"a dream goes over nodes {walked.min()} to {walked.max()} of {len(graph)}")
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
    rows = normalized_rows(graph.embeddings[walked]).astype(np.float64)
    cosine = np.einsum("sd,sd->s", rows[step], rows[step + 1])
    has = np.asarray(rows.any(axis=1))
    return np.where(has[step] & has[step + 1], np.clip(cosine, 0.0, 1.0), weight)


def generate_dreams(
    graph: MemoryGraph, count: int, config: DreamConfig, *, creative: bool = True, first: int = 0
) -> list[Dream]:
    """Dreams over a graph, with creative jumps or without; deterministic by `DreamConfig.seed`.

    A graph with one node, and a node without edges in a dream without jumps, give dreams that stay where they begin.

    Parameters
    ----------
    first
        Id of the first dream; the next ones follow.

    Raises
    ------
    MemoryGraphError
        If the graph is empty, or `starts` cannot be found.
    """
    begin = starts(graph, count, config, first=first)
    walks, kinds = dream_walks(graph, begin, config, creative=creative, first=first)
    return [
        Dream(first + i, tuple(nodes.tolist()), tuple(reached.tolist()), evaluate_dream(nodes, reached, graph, config))
        for i, (nodes, reached) in enumerate(zip(walks, kinds, strict=True))
    ]


class CreativeEdge(NamedTuple):
    """A weak edge that a dream has made, between two ids."""

    a: int
    b: int
    weight: float


class DreamEngine:
    """A memory graph that grows node by node, dreams over it, and the weak edges that dreams have made.

    Dreams walk over observed edges alone: what dreams have made never makes dreams. Nothing is ever deleted but by
    `remove_creative_edges`.

    Parameters
    ----------
    config
        Defaults if None.

    Examples
    --------
    >>> engine = DreamEngine(DreamConfig(creative_jump_prob=0.0, restart_prob=0.0, path_length=6))
    >>> for id in (10, 20, 30):
    ...     engine.add_memory_node(MemoryNode(id))
    >>> engine.add_edge(10, 20, 0.8)
    >>> engine.add_edge(20, 30, 0.8)
    >>> dream = engine.generate_dream()
    >>> len(dream.path), dream.creative_jumps
    (6, 0)
    >>> [(edge.a, edge.b, edge.weight) for edge in engine.integrate_dream(dream)]
    [(10, 30, 0.15)]
    """

    def __init__(self, config: DreamConfig | None = None) -> None:
        self.config = config or DreamConfig()
        self._nodes: list[MemoryNode] = []
        self._place: dict[int, int] = {}
        self._edges: dict[tuple[int, int], float] = {}
        self._creative: dict[tuple[int, int], float] = {}
        self._graph: MemoryGraph | None = None
        self._dreamt = 0

    def add_memory_node(self, node: MemoryNode) -> None:
        """Add a node; one with an id that is there takes its place and keeps its edges.

        Raises
        ------
        InvalidInput
            If it is no `MemoryNode`.
        DimensionMismatch
            If its embedding has another dimension than those of the others.
        """
        if not isinstance(node, MemoryNode):
            raise InvalidInput(f"the node is {type(node).__name__}, expected a MemoryNode")
        dim = next((len(n.embedding) for n in self._nodes if n.embedding is not None and n.id != node.id), None)
        if dim is not None and node.embedding is not None and len(node.embedding) != dim:
            raise DimensionMismatch(dim, len(node.embedding), f"the embedding of node {node.id}")
        place = self._place.setdefault(node.id, len(self._nodes))
        self._nodes[place : place + 1] = [node]
        self._graph = None

    def add_edge(self, a: int, b: int, weight: float) -> None:
        """Add an observed edge between two ids, or give it a new weight; it takes the place of a creative one.

        Raises
        ------
        MemoryGraphError
            If an id is unknown, both are the same, or the weight is not above 0 to 1.
        """
        for id in (a, b):
            if id not in self._place:
                raise MemoryGraphError(f"there is no memory node {id!r}: add it before its edges")
        if a == b:
            raise MemoryGraphError(f"node {a} cannot have an edge to itself")
        if not isinstance(weight, int | float) or not 0 < weight <= 1:
            raise MemoryGraphError(f"the weight of the edge {a} - {b} is {weight!r}, expected above 0 to 1")
        edge = self._edge(a, b)
        self._edges[edge] = float(weight)
        self._creative.pop(edge, None)
        self._graph = None

    def generate_dream(self, *, creative: bool = True) -> Dream:
        """One dream; without creative jumps if they are not wanted.

        Raises
        ------
        MemoryGraphError
            If there is no node.
        """
        return self.generate_dreams(1, creative=creative)[0]

    def generate_dreams(self, count: int, *, creative: bool = True) -> list[Dream]:
        """The next dreams: every call goes on where the last one ended.

        Raises
        ------
        MemoryGraphError
            If there is no node.
        """
        dreams = generate_dreams(self.graph, count, self.config, creative=creative, first=self._dreamt)
        self._dreamt += len(dreams)
        return [replace(dream, path=tuple(self._nodes[place] for place in dream.nodes)) for dream in dreams]

    def integrate_dream(self, dream: Dream) -> list[CreativeEdge]:
        """Make weak edges of what a dream has brought together, as `creative_edges` says; those that were made.

        Observed edges stay as they are, and no more than `DreamConfig.max_edges` ever stand.

        Raises
        ------
        MemoryGraphError
            If the dream goes over nodes that are not here.
        """
        if len(dream.nodes) and not (min(dream.nodes) >= 0 and max(dream.nodes) < len(self._nodes)):
            raise MemoryGraphError(f"dream {dream.id} goes over nodes that are not here: it is one of another graph")
        standing = np.array(list(self._creative), dtype=np.int64).reshape(-1, 2)
        made = creative_edges(
            self.graph,
            np.array([dream.nodes], dtype=np.int32),
            np.array([dream.kinds], dtype=np.uint8),
            self.config,
            standing=(standing[:, 0], standing[:, 1]),
        )
        pairs = list(zip(made.source.tolist(), made.target.tolist(), strict=True))
        self._creative |= dict.fromkeys(pairs, self.config.edge_weight)
        return [self._as_edge(pair) for pair in pairs]

    @property
    def creative_edges(self) -> list[CreativeEdge]:
        """The edges by dreams that stand, the oldest first."""
        return [self._as_edge(pair) for pair in self._creative]

    def remove_creative_edges(self) -> int:
        """Remove all edges by dreams; how many there were."""
        removed = len(self._creative)
        self._creative.clear()
        return removed

    @property
    def node_count(self) -> int:
        """Number of memory nodes."""
        return len(self._nodes)

    @property
    def edge_count(self) -> int:
        """Number of observed edges."""
        return len(self._edges)

    @property
    def graph(self) -> MemoryGraph:
        """Nodes in the order in which they came, and observed edges."""
        if self._graph is None:
            ends = np.array(list(self._edges), dtype=np.int64).reshape(-1, 2)
            weights = np.array(list(self._edges.values()), dtype=np.float32)
            self._graph = MemoryGraph.from_edges(
                len(self._nodes),
                ends[:, 0],
                ends[:, 1],
                weights,
                embeddings=embedding_rows(self._nodes),
                facts=NodeFacts.of(self._nodes),
            )
        return self._graph

    def _edge(self, a: int, b: int) -> tuple[int, int]:
        first, second = sorted((self._place[a], self._place[b]))
        return first, second

    def _as_edge(self, pair: tuple[int, int]) -> CreativeEdge:
        return CreativeEdge(self._nodes[pair[0]].id, self._nodes[pair[1]].id, self._creative[pair])
