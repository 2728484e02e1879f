"""The graph kernels in NumPy and plain Python: what they must give, and the rival in the benchmarks."""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Nodes = NDArray[np.int32]
Rows = NDArray[np.int64]

START, EDGE, JUMP, RESTART = range(4)

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_GAMMA = 0x9E37_79B9_7F4A_7C15


class Stream:
    """Random numbers by splitmix64 (Steele et al. 2014), a stream for each seed and number."""

    def __init__(self, seed: int, number: int) -> None:
        mixed = self._mixed(seed + _GAMMA) + (number + 1) * 0xD134_2543_DE82_EF95
        self._state = self._mixed(mixed)

    def bits(self) -> int:
        """64 random bits."""
        self._state = (self._state + _GAMMA) & _MASK
        return self._mixed(self._state)

    def unit(self) -> float:
        """A number from 0 to below 1."""
        return float(self.bits() >> 11) * 2.0**-53

    def below(self, size: int) -> int:
        """A whole number from 0 to below `size`."""
        return ((self.bits() >> 32) * size) >> 32

    @staticmethod
    def _mixed(z: int) -> int:
        z &= _MASK
        z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
        return z ^ (z >> 31)


def adjacency(n: int, source: Nodes, target: Nodes, weight: Floats) -> tuple[Rows, Nodes, Floats]:
    """Undirected edges as sorted rows: indptr (n + 1,), neighbours and weights; equal edges are added up, to 1."""
    key = np.concatenate([source.astype(np.int64) * n + target, target.astype(np.int64) * n + source])
    keys, entry = np.unique(key, return_inverse=True)
    sums = np.bincount(entry, np.concatenate([weight, weight]), minlength=len(keys))
    indptr = np.concatenate([[0], np.bincount(keys // max(n, 1), minlength=n).cumsum()])
    return indptr.astype(np.int64), (keys % max(n, 1)).astype(np.int32), np.minimum(sums, 1).astype(np.float32)


def find_edges(indptr: Rows, neighbours: Nodes, source: Nodes, target: Nodes) -> Rows:
    """By pair the place of its entry, -1 where there is none."""
    found = []
    for a, b in zip(source.tolist(), target.tolist(), strict=True):
        at = np.flatnonzero(neighbours[indptr[a] : indptr[a + 1]] == b)
        found.append(int(indptr[a] + at[0]) if len(at) else -1)
    return np.array(found, dtype=np.int64)


def walk(
    indptr: Rows,
    neighbours: Nodes,
    cumulative: Doubles,
    starts: Nodes,
    length: int,
    restart: float,
    jump: float,
    seed: int,
    *,
    first: int = 0,
) -> tuple[Nodes, NDArray[np.uint8]]:
    """Random walks: nodes and kinds (m, length)."""
    nodes = np.empty((len(starts), length), dtype=np.int32)
    kinds = np.empty((len(starts), length), dtype=np.uint8)
    n = len(indptr) - 1
    for row, start in enumerate(starts.tolist()):
        stream, node = Stream(seed, first + row), start
        nodes[row, 0], kinds[row, 0] = start, START
        for i in range(1, length):
            drawn, kind = stream.unit(), RESTART
            if restart <= drawn < restart + jump:
                if n > 1:
                    other = stream.below(n - 1)
                    node, kind = other + (other >= node), JUMP
            elif drawn >= restart:
                begin, end = int(indptr[node]), int(indptr[node + 1])
                base = float(cumulative[begin - 1]) if begin else 0.0
                top = float(cumulative[end - 1]) if end > begin else base
                if top > base:
                    at = base + stream.unit() * (top - base)
                    found = (
                        bisect.bisect_right(cumulative, at, begin, end)
                        if at < top
                        else bisect.bisect_left(cumulative, top, begin, end)
                    )
                    node, kind = int(neighbours[found]), EDGE
            node = start if kind == RESTART else node
            nodes[row, i], kinds[row, i] = node, kind
    return nodes, kinds


def _arriving(indptr: Rows, neighbours: Nodes, weights: Floats, mass: Doubles) -> tuple[Doubles, float]:
    """``Pᵀ mass``, and what lies on nodes without edges."""
    n = len(mass)
    rows = np.repeat(np.arange(n), np.diff(indptr))
    strength = np.bincount(rows, weights, minlength=n)
    share = np.divide(mass, strength, out=np.zeros(n), where=strength > 0)
    arriving = np.bincount(neighbours, share[rows] * weights, minlength=n).astype(np.float64)
    return arriving, float(mass[strength == 0].sum())


def spread(indptr: Rows, neighbours: Nodes, weights: Floats, mass: Doubles, hops: int, factor: float) -> Doubles:
    """Spreading activation ``Σ_h (factor Pᵀ)^h mass`` (n,)."""
    total, now = mass.copy(), mass
    for _ in range(hops):
        now = factor * _arriving(indptr, neighbours, weights, now)[0]
        total += now
    return total


def personalised_pagerank(
    indptr: Rows, neighbours: Nodes, weights: Floats, mass: Doubles, restart: float, tolerance: float
) -> Doubles:
    """``restart (I - (1 - restart) Pᵀ)⁻¹ s`` (n,) by power iteration; nodes without edges go back to s."""
    s: Doubles = mass / mass.sum()
    now = s
    while True:
        arriving, stuck = _arriving(indptr, neighbours, weights, now)
        then: Doubles = (1 - restart) * arriving + (restart + (1 - restart) * stuck) * s
        change = float(np.abs(then - now).sum())
        now = then
        if change * (1 - restart) <= tolerance * restart:
            return now


def rewired(indptr: Rows, neighbours: Nodes, tries: int, seed: int) -> tuple[Nodes, Nodes]:
    """Edges (m,) of a random graph with the same degrees, by swaps of the ends of two edges."""
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    edges = [[int(a), int(b)] for a, b in zip(rows, neighbours, strict=True) if a < b]
    joined, stream = {frozenset(edge) for edge in edges}, Stream(seed, 0)
    for _ in range(tries if len(edges) > 1 else 0):
        i, j = stream.below(len(edges)), stream.below(len(edges))
        (a, b), (c, d) = edges[i], reversed(edges[j]) if stream.bits() >> 63 else edges[j]
        new = frozenset((a, d)), frozenset((c, b))
        if len({a, b, c, d}) < 4 or new[0] in joined or new[1] in joined:
            continue
        joined -= {frozenset((a, b)), frozenset((c, d))}
        joined |= set(new)
        edges[i], edges[j] = [a, d], [c, b]
    pairs = np.array(edges, dtype=np.int32).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()
