"""The memory graph in memory: nodes in the order in which they are given, undirected weighted edges as sorted rows.

It holds what was observed. Who asks for dreams keeps their edges apart, so that dreams are never made of dreams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg import kernels
from sona_pg.config import NODE_KINDS
from sona_pg.errors import DimensionMismatch, InvalidInput, MemoryGraphError
from sona_pg.learning.arrays import as_matrix, rows_at
from sona_pg.types import FloatVector, is_number, is_whole

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Nodes = NDArray[np.int32]
Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]

_MOST = 1 << 53
"""Largest count: the whole numbers up to here are exact in float64."""


@dataclass(frozen=True, slots=True, eq=False)
class MemoryNode:
    """Something that is remembered.

    Parameters
    ----------
    id
        Its id where it came from.
    embedding
        float32 (dim,), or None where there is none; kept as a read-only copy.
    timestamp
        Last access, seconds since the epoch.
    access_count
        How often it was used.
    importance, quality
        How much it matters, and what came of it; 0 to 1.
    kind
        One of `NODE_KINDS`.
    consolidation_count
        How often it was strengthened.
    created
        When it came, seconds since the epoch; None where nobody knows: when a consolidation meets it first.

    Raises
    ------
    InvalidInput
        If a value is not of that kind.
    """

    id: int
    embedding: FloatVector | None = None
    timestamp: float = 0.0
    access_count: int = 0
    importance: float = 0.5
    quality: float = 0.5
    kind: str = "concept"
    consolidation_count: int = 0
    created: float | None = None

    def __post_init__(self) -> None:
        if not is_whole(self.id):
            raise InvalidInput(f"the id of a memory node is {self.id!r}, expected a whole number")
        kept: dict[str, float | None] = {"id": int(self.id)}
        for name in ("access_count", "consolidation_count"):
            count = getattr(self, name)
            if not is_whole(count) or not 0 <= count <= _MOST:
                raise InvalidInput(f"{name} of node {self.id} is {count!r}, expected a whole number from 0 to {_MOST}")
            kept[name] = int(count)
        for name in ("importance", "quality"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise InvalidInput(f"{name} of node {self.id} is {value!r}, expected 0 to 1")
            kept[name] = float(value)
        for name in ("timestamp", "created"):
            time = getattr(self, name)
            is_unknown = time is None and name == "created"
            if not is_unknown and (not is_number(time) or not -1e15 < time < 1e15):
                raise InvalidInput(f"{name} of node {self.id} is {time!r}, expected seconds since the epoch")
            kept[name] = None if is_unknown else float(time)
        for name, number in kept.items():
            object.__setattr__(self, name, number)
        if not isinstance(self.kind, str) or self.kind not in NODE_KINDS:
            raise InvalidInput(f"kind of node {self.id} is {self.kind!r}, expected one of {', '.join(NODE_KINDS)}")
        if self.embedding is not None:
            embedding = kernels.owned(self.embedding, -1, f"the embedding of node {self.id}")
            if not len(embedding):
                raise InvalidInput(f"the embedding of node {self.id} has no number, expected (dim,), or None")
            object.__setattr__(self, "embedding", embedding)


class NodeFacts(NamedTuple):
    """What is known of nodes, as `MemoryNode` says it, each (n,): float64, counts int64."""

    importance: Doubles
    quality: Doubles
    access_count: Rows
    timestamp: Doubles

    @classmethod
    def unknown(cls, n: int) -> Self:
        """Of n nodes of which nothing is known: all alike."""
        return cls(np.full(n, 0.5), np.full(n, 0.5), np.zeros(n, dtype=np.int64), np.zeros(n))

    @classmethod
    def of(cls, nodes: Sequence[MemoryNode]) -> Self:
        """Of these nodes."""
        return cls(
            np.array([node.importance for node in nodes], dtype=np.float64),
            np.array([node.quality for node in nodes], dtype=np.float64),
            np.array([node.access_count for node in nodes], dtype=np.int64),
            np.array([node.timestamp for node in nodes], dtype=np.float64),
        )

    def at(self, places: Rows) -> NodeFacts:
        """Of the nodes at these places."""
        return NodeFacts(
            self.importance[places], self.quality[places], self.access_count[places], self.timestamp[places]
        )

    def checked(self, n: int) -> NodeFacts:
        """The same, of these types, if they are of n nodes and in range."""
        bounds = {"importance": (0.0, 1.0), "quality": (0.0, 1.0), "access_count": (0, math.inf)}
        own = []
        for name, given, kind in zip(self._fields, self, (float, float, np.int64, float), strict=True):
            values = _as_array(name, given)
            if values.shape != (n,) or values.dtype.kind not in "fiub":
                raise MemoryGraphError(f"{name} is {values.dtype} {values.shape}, expected {n} numbers, one for a node")
            low, high = bounds.get(name, (-math.inf, math.inf))
            wrong = np.flatnonzero(~(np.isfinite(values) & (values >= low) & (values <= high)))
            if len(wrong):
                raise MemoryGraphError(
                    f"{name} of node {wrong[0]} is {values[wrong[0]]}, expected a finite number from {low} to {high}"
                )
            own.append(values.astype(kind))
        return NodeFacts(*own)


class MemoryGraph:
    """Undirected weighted edges between the nodes 0 to n - 1, in memory.

    8 bytes for each of an edge's two entries, 16 once it was walked on; `from_edges` needs another 16 meanwhile.

    Parameters
    ----------
    indptr, indices, weights
        Rows as `kernels.adjacency` gives them: sorted, symmetric, weights above 0 to 1.
    embeddings
        float32 (n, dim), or None; a row of zeros is a node without one.
    places
        int64 (n,), the row of `embeddings` that is a node's, where these are (k, dim); its own row if None.
    facts
        What is known of nodes; nothing if None.
    self_loops
        How many of the given edges were none and left out.

    Raises
    ------
    MemoryGraphError
        If embeddings or facts are not those of n nodes.
    """

    __slots__ = ("_cumulative", "embeddings", "facts", "indices", "indptr", "places", "self_loops", "weights")

    def __init__(
        self,
        indptr: Rows,
        indices: Nodes,
        weights: Floats,
        *,
        embeddings: ArrayLike | None = None,
        places: ArrayLike | None = None,
        facts: NodeFacts | None = None,
        self_loops: int = 0,
    ) -> None:
        self.indptr, self.indices, self.weights = indptr, indices, weights
        self.self_loops = self_loops
        self.embeddings = None if embeddings is None else as_matrix(embeddings, -1, "embeddings")
        self.places = None if places is None else _as_array("places", places)
        if self.places is not None:
            rows, given = 0 if self.embeddings is None else len(self.embeddings), self.places
            if given.shape != (len(self),) or given.dtype.kind not in "iu" or not ((given >= 0) & (given < rows)).all():
                raise MemoryGraphError(f"places are no {len(self)} rows of {rows} embeddings, expected one for a node")
        elif self.embeddings is not None and len(self.embeddings) != len(self):
            raise MemoryGraphError(f"there are {len(self.embeddings)} embeddings, expected {len(self)}, one for a node")
        self.facts = NodeFacts.unknown(len(self)) if facts is None else facts.checked(len(self))
        self._cumulative: tuple[float, Doubles] | None = None

    @classmethod
    def from_edges(
        cls,
        n: int,
        source: ArrayLike,
        target: ArrayLike,
        weight: ArrayLike | None = None,
        *,
        embeddings: ArrayLike | None = None,
        places: ArrayLike | None = None,
        facts: NodeFacts | None = None,
    ) -> Self:
        """From edges in any order and direction.

        The same edge given twice counts once, with the sum of its weights, 1 at most. Self-loops are left out and
        counted; an edge with weight 0 is none.

        Parameters
        ----------
        n
            Number of nodes.
        source, target
            Whole numbers (m,), 0 to n - 1.
        weight
            (m,), 0 to 1; 1 for all if None.
        embeddings, places, facts
            As the class takes them.

        Raises
        ------
        MemoryGraphError
            If an edge leads to no node, or a weight is NaN, negative or above 1.

        Examples
        --------
        >>> graph = MemoryGraph.from_edges(3, [0, 1, 1, 2], [1, 0, 2, 2], [0.25, 0.5, 0.5, 1.0])
        >>> graph.neighbours(1).tolist(), graph.weight(0, 1), graph.self_loops
        ([0, 2], 0.75, 1)
        """
        if not is_whole(n) or not 0 <= n < 2**31 - 1:
            raise MemoryGraphError(f"n is {n!r}, expected a whole number from 0: how many nodes there are")
        n = int(n)
        ends = []
        for name, given in (("source", source), ("target", target)):
            nodes = _as_array(name, given)
            if nodes.ndim != 1 or (nodes.dtype.kind not in "iu" and nodes.size):
                raise MemoryGraphError(f"{name} is {nodes.dtype} {nodes.shape}, expected whole numbers (m,)")
            outside = np.flatnonzero((nodes < 0) | (nodes >= n))
            if len(outside):
                raise MemoryGraphError(
                    f"edge {outside[0]} has the {name} {nodes[outside[0]]}, expected a node from 0 below {n}"
                )
            ends.append(nodes.astype(np.int32))
        a, b = ends
        weights = np.ones(len(a), dtype=np.float32) if weight is None else _as_array("weight", weight)
        if weights.shape != a.shape or a.shape != b.shape or weights.dtype.kind not in "fiub":
            raise MemoryGraphError(
                f"there are {a.shape} sources, {b.shape} targets and {weights.dtype} {weights.shape} weights, "
                "expected as many of each"
            )
        wrong = np.flatnonzero(~((weights >= 0) & (weights <= 1)))
        if len(wrong):
            raise MemoryGraphError(f"edge {wrong[0]} has the weight {weights[wrong[0]]}, expected 0 to 1")
        weights = np.ascontiguousarray(weights, dtype=np.float32)
        loops = int(np.count_nonzero(a == b))
        kept = (a != b) & (weights > 0)
        if not kept.all():
            a, b, weights = a[kept], b[kept], weights[kept]
        rows = kernels.adjacency(n, a, b, weights)
        return cls(*rows, embeddings=embeddings, places=places, facts=facts, self_loops=loops)

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def edge_count(self) -> int:
        """Number of edges."""
        return len(self.indices) // 2

    @property
    def degrees(self) -> Rows:
        """Edges of each node, int64 (n,)."""
        return np.diff(self.indptr)

    @property
    def strengths(self) -> Doubles:
        """Sum of the weights of each node's edges, float64 (n,)."""
        return np.bincount(self._sources(), self.weights, minlength=len(self)).astype(np.float64)

    @property
    def has_embedding(self) -> Flags:
        """Whether a node has an embedding, (n,)."""
        if self.embeddings is None:
            return np.zeros(len(self), dtype=bool)
        known = np.asarray(self.embeddings.any(axis=1), dtype=bool)
        return known if self.places is None else known[self.places]

    def neighbours(self, node: int) -> Nodes:
        """Nodes at the other end of a node's edges, in their order."""
        return self.indices[self._row(node)]

    def degree(self, node: int) -> int:
        """Number of a node's edges."""
        row = self._row(node)
        return int(row.stop - row.start)

    def weight(self, a: int, b: int) -> float:
        """Weight of an edge; 0 where there is none."""
        return float(self.weights_between([a], [b])[0])

    def has_edge(self, a: int, b: int) -> bool:
        """Whether two nodes have an edge."""
        return self.weight(a, b) > 0

    def weights_between(self, source: ArrayLike, target: ArrayLike) -> Floats:
        """Weights (m,) of pairs of nodes; 0 where there is no edge.

        Raises
        ------
        MemoryGraphError
            If one of them is no node.
        """
        a, b = self._as_nodes("source", source), self._as_nodes("target", target)
        found = kernels.find_edges(self.indptr, self.indices, a, b)
        weights = np.zeros(len(found), dtype=np.float32)
        weights[found >= 0] = self.weights[found[found >= 0]]
        return weights

    def edges(self) -> tuple[Nodes, Nodes, Floats]:
        """Source, target and weight (m,) of every edge once, source < target, in their order."""
        sources = self._sources()
        once = sources < self.indices
        return sources[once], self.indices[once], self.weights[once]

    def subgraph(self, nodes: ArrayLike) -> MemoryGraph:
        """The graph of these nodes, numbered in the order given, and the edges between them.

        Raises
        ------
        MemoryGraphError
            If one of them is no node, or is given twice.
        """
        chosen = self._as_nodes("nodes of a subgraph", nodes).astype(np.int64)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(self)):
            raise MemoryGraphError(
                f"nodes of a subgraph are {chosen.min()} to {chosen.max()}, expected nodes from 0 below {len(self)}"
            )
        place = np.full(len(self), -1, dtype=np.int64)
        place[chosen] = np.arange(len(chosen))
        if len(chosen) != np.count_nonzero(place >= 0):
            raise MemoryGraphError("a node of a subgraph is given twice: pass each once")
        sizes = self.degrees[chosen]
        begin = np.repeat(self.indptr[chosen] - (np.cumsum(sizes) - sizes), sizes)
        entries = begin + np.arange(len(begin))
        a, b = np.repeat(np.arange(len(chosen)), sizes), place[self.indices[entries]]
        kept = a < b
        return MemoryGraph(
            *kernels.adjacency(
                len(chosen), a[kept].astype(np.int32), b[kept].astype(np.int32), self.weights[entries[kept]]
            ),
            embeddings=None if self.embeddings is None else rows_at(self.embeddings, self.places, chosen),
            facts=self.facts.at(chosen),
        )

    def cumulative(self, temperature: float = 1.0) -> Doubles:
        """Running sum (entries,) of weight^(1 / temperature), rows in proportion: what walks draw from.

        Raises
        ------
        InvalidInput
            If the temperature is not from 0.05 to 100.
        """
        _check_number("temperature", temperature, 0.05, 100.0)
        if self._cumulative is None or self._cumulative[0] != temperature:
            sizes = self.degrees
            scaled = self.weights.astype(np.float64)
            if temperature != 1 and len(scaled):
                # Powers of small weights vanish beside the sum of all others, where rows are not scaled first.
                largest = np.maximum.reduceat(scaled, self.indptr[:-1][sizes > 0])
                scaled /= np.repeat(largest, sizes[sizes > 0])
                np.power(scaled, 1 / temperature, out=scaled)
            self._cumulative = temperature, np.cumsum(scaled, out=scaled)
        return self._cumulative[1]

    def walk(
        self,
        starts: ArrayLike,
        length: int,
        restart: float,
        jump: float,
        *,
        seed: int = 0,
        first: int = 0,
        temperature: float = 1.0,
    ) -> tuple[Nodes, NDArray[np.uint8]]:
        """Random walks with restarts and jumps, as `kernels.walk` makes them: nodes and kinds (m, length).

        Raises
        ------
        InvalidInput, MemoryGraphError
            If a start is no node, the length not from 1 to 100 000, or another number is out of its range.
        """
        begin = self._as_nodes("starts", starts)
        _check_whole("length", length, 1, 100_000)
        for name, share in (("restart", restart), ("jump", jump)):
            _check_number(name, share, 0.0, 1.0)
        for name, number in (("seed", seed), ("first", first)):
            _check_whole(name, number, 0, (1 << 64) - 1)
        sums = self.cumulative(temperature)
        return kernels.walk(self.indptr, self.indices, sums, begin, length, restart, jump, seed, first=first)

    def spread(self, mass: ArrayLike, hops: int, factor: float) -> Doubles:
        """Activation (n,) after a mass (n,) has spread over so many hops, as `kernels.spread` says.

        Raises
        ------
        InvalidInput, MemoryGraphError
            If the mass is negative or not of n nodes, hops are not from 0 to 1000, or the factor is not from 0 to 1.
        """
        given = _as_mass(mass)
        _check_whole("hops", hops, 0, 1000)
        _check_number("factor", factor, 0.0, 1.0)
        return kernels.spread(self.indptr, self.indices, self.weights, given, hops, factor)

    def personalised_pagerank(self, mass: ArrayLike, restart: float = 0.15, tolerance: float = 1e-8) -> Doubles:
        """Where an endless walk from a mass (n,) is to be found, (n,), as `kernels.personalised_pagerank` says.

        Raises
        ------
        InvalidInput, MemoryGraphError
            If the mass is negative, zero or not of n nodes, the restart is not from 0.001 to 1, or the tolerance not
            from 1e-15 to 2, the largest difference that there can be.
        """
        given = _as_mass(mass)
        _check_number("restart", restart, 1e-3, 1.0)
        _check_number("tolerance", tolerance, 1e-15, 2.0)
        return kernels.personalised_pagerank(self.indptr, self.indices, self.weights, given, restart, tolerance)

    def _sources(self) -> Nodes:
        """The row of every entry."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.degrees)

    def _as_nodes(self, name: str, given: ArrayLike) -> Nodes:
        nodes = _as_array(name, given)
        if nodes.ndim != 1 or (nodes.dtype.kind not in "iu" and nodes.size):
            raise MemoryGraphError(f"{name} is {nodes.dtype} {nodes.shape}, expected whole numbers (m,)")
        # Kernels look at each of them again; a larger type might not survive until then.
        if nodes.dtype != np.int32 and nodes.size and not (nodes.min() >= 0 and nodes.max() < len(self)):
            raise MemoryGraphError(
                f"{name} are {nodes.min()} to {nodes.max()}, expected nodes from 0 below {len(self)}"
            )
        return np.ascontiguousarray(nodes, dtype=np.int32)

    def _row(self, node: int) -> slice:
        if not is_whole(node) or not 0 <= node < len(self):
            raise MemoryGraphError(f"there is no node {node!r}, expected 0 to below {len(self)}")
        return slice(int(self.indptr[node]), int(self.indptr[node + 1]))


def embedding_rows(nodes: Sequence[MemoryNode]) -> Floats | None:
    """Embeddings (n, dim) of nodes, zeros for those without; None if none has one.

    Raises
    ------
    DimensionMismatch
        If they differ in their dimension.
    """
    dim = next((len(node.embedding) for node in nodes if node.embedding is not None), None)
    if dim is None:
        return None
    rows = np.zeros((len(nodes), dim), dtype=np.float32)
    for row, node in zip(rows, nodes, strict=True):
        if node.embedding is not None:
            if len(node.embedding) != dim:
                raise DimensionMismatch(dim, len(node.embedding), f"the embedding of node {node.id}")
            row[:] = node.embedding
    return rows


def _as_array(name: str, given: ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(given)
    except (TypeError, ValueError) as cause:
        raise MemoryGraphError(f"{name} is no array of numbers ({cause})") from cause


def _as_mass(given: ArrayLike) -> Doubles:
    mass = _as_array("mass", given)
    if mass.ndim != 1 or mass.dtype.kind not in "fiub":
        raise InvalidInput(f"mass is {mass.dtype} {mass.shape}, expected a number for each node")
    return np.ascontiguousarray(mass, dtype=np.float64)


def _check_whole(name: str, value: int, low: int, high: int) -> None:
    if not is_whole(value) or not low <= value <= high:
        raise InvalidInput(f"{name} is {value!r}, expected a whole number from {low} to {high}")


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if not is_number(value) or not low <= value <= high:
        raise InvalidInput(f"{name} is {value!r}, expected {low:g} to {high:g}")
