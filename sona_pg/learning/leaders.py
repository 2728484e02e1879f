"""Near duplicates among many vectors, exactly, without ever holding all cosines at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

_BLOCK_ROWS = 512
_BLOCK_COLUMNS = 4096
"""Cosines that are held at once: 8 MB."""
_BASIS = 64
"""Directions of the bound."""
_SAMPLE = 4096
_VERIFIED = 1 << 20
"""Components of pairs whose cosines are computed in double precision at once."""


def leaders(rows: Floats, threshold: float) -> Rows:
    """By row (n,) the row that it becomes part of: leader clustering in the order of the rows (Hartigan 1975).

    Each row joins the first leader whose cosine with it is above the threshold, and is a leader itself where there is
    none. Whoever joins is near to its leader, never by way of a third one; no two leaders are near to each other, so
    that the same again among leaders changes nothing.

    Matrix products in single precision find who may be near; of many dimensions they are products of bounds. With P of
    orthonormal rows and ``r = sqrt(1 - |Pa|²)``, ``cos(a, b) <= Pa·Pb + r_a r_b`` (Cauchy & Schwarz). What that leaves
    open is decided in double precision, one pair like another, so that nothing depends on blocks or on BLAS.

    Parameters
    ----------
    rows
        float32 (n, dim), finite, none of them zero, the most valuable first.
    threshold
        Cosine, 0 to 1. Above 1 there is none, also not of equal rows by a rounding.

    Returns
    -------
    NDArray[np.int64]
        (n,): the row itself for a leader.
    """
    n = len(rows)
    into = np.arange(n)
    if threshold >= 1:
        return into
    search = _Search(rows, threshold)
    found = np.empty(0, dtype=np.int64)
    for start in range(0, n, _BLOCK_ROWS):
        open_rows = np.arange(start, min(start + _BLOCK_ROWS, n))
        for column in range(0, len(found), _BLOCK_COLUMNS):
            candidates = found[column : column + _BLOCK_COLUMNS]
            left, right = search.near(open_rows, candidates)
            joined, first = np.unique(left, return_index=True)
            into[open_rows[joined]] = candidates[right[first]]
            open_rows = np.delete(open_rows, joined)
        found = np.concatenate([found, _new_leaders(search, open_rows, into)])
    return into


def _new_leaders(search: _Search, open_rows: Rows, into: Rows) -> Rows:
    """Of rows that are near to no leader before them, those that lead; the others are put into `into`."""
    near = np.zeros((len(open_rows), len(open_rows)), dtype=bool)
    near[search.near(open_rows, open_rows)] = True
    near &= np.tri(len(near), k=-1, dtype=bool)
    leads = np.ones(len(near), dtype=bool)
    for place in np.flatnonzero(near.any(axis=1)):
        own = near[place] & leads
        if own.any():
            leads[place] = False
            into[open_rows[place]] = open_rows[int(np.argmax(own))]
    return open_rows[leads]


class _Search:
    """Which of two sets of rows are near to each other."""

    def __init__(self, rows: Floats, threshold: float) -> None:
        n, dim = rows.shape
        self._rows, self._threshold = rows, threshold
        # Of single precision, products, sums and the basis together; as a multiple of the bound on a dot product.
        self._margin = 4 * dim * float(np.finfo(np.float32).eps)
        self._scale = np.empty(n)
        for start in range(0, n, _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS].astype(np.float64)
            self._scale[start : start + _BLOCK_ROWS] = 1 / np.sqrt(np.square(block).sum(axis=1))
        self._is_bound = dim > 3 * _BASIS // 2
        self._reduced = self._bounds() if self._is_bound else self._unit(np.arange(n))

    def _unit(self, places: Rows) -> Floats:
        # Very long and very short rows have no length in single precision.
        return (self._rows[places] * self._scale[places, np.newaxis]).astype(np.float32)

    def _bounds(self) -> Floats:
        """Rows (Pa, r_a): their products bound the cosines."""
        n, dim = self._rows.shape
        sample = self._unit(np.arange(0, n, max(1, n // _SAMPLE)))
        # The range of the sample, found by random vectors (Halko, Martinsson & Tropp 2011): the smaller what is left
        # of a row outside of P, the tighter the bound. Any P is right.
        random = np.random.default_rng(0).standard_normal((dim, _BASIS), dtype=np.float32)
        basis = np.linalg.qr((sample.T @ (sample @ random)).astype(np.float64))[0].astype(np.float32)
        reduced = np.empty((n, _BASIS + 1), dtype=np.float32)
        for start in range(0, n, _BLOCK_ROWS):
            part = self._unit(np.arange(start, min(start + _BLOCK_ROWS, n))) @ basis
            block = reduced[start : start + _BLOCK_ROWS]
            block[:, :-1] = part
            block[:, -1] = np.sqrt(np.maximum(1 - np.square(part.astype(np.float64)).sum(axis=1), 0))
        return reduced

    def near(self, left: Rows, right: Rows) -> tuple[Rows, Rows]:
        """Places in `left` and `right` of all pairs of rows whose cosine is above the threshold, in order."""
        least = self._threshold - self._margin
        cosines = self._reduced[left] @ self._reduced[right].T
        i, j = _where(cosines > least)
        is_bound = self._is_bound
        if is_bound and 16 * len(i) > cosines.size:
            # The bound excludes too little here.
            cosines = self._unit(left) @ self._unit(right).T
            i, j = _where(cosines > least)
            is_bound = False
        holds = np.zeros(len(i), dtype=bool) if is_bound else cosines[i, j] > self._threshold + self._margin
        unsure = np.flatnonzero(~holds)
        step = max(1, _VERIFIED // self._rows.shape[1])
        for start in range(0, len(unsure), step):
            pairs = unsure[start : start + step]
            holds[pairs] = self._cosine(left[i[pairs]], right[j[pairs]]) > self._threshold
        return i[holds], j[holds]

    def _cosine(self, left: Rows, right: Rows) -> NDArray[np.float64]:
        first, second = self._rows[left].astype(np.float64), self._rows[right].astype(np.float64)
        # The product of the scales first: a pair is near whichever of the two is asked about.
        return np.asarray((first * second).sum(axis=1) * (self._scale[left] * self._scale[right]))


def _where(mask: NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """Rows and columns of what is true: of one dimension that takes half the time where it is little."""
    i, j = np.divmod(np.flatnonzero(mask), mask.shape[1])
    return i, j
