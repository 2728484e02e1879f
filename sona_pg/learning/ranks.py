"""Ranks of what helped, and how likely they are by chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sona_pg.kernels import dot_rows, unit
from sona_pg.learning.fusion import Vector
from sona_pg.learning.remembered import FloatMatrix
from sona_pg.types import FloatVector

_WORD = (1 << 64) - 1


def ranks_among(query: FloatVector, items: FloatMatrix, among: FloatMatrix) -> list[int]:
    """1-based ranks of items (m, dim) among rows (n, dim) by cosine to a query."""
    to_query = cosines(among, query)
    return [1 + int(np.count_nonzero(to_query > item)) for item in cosines(items, query)]


def ranks_at(scores: Vector, at: NDArray[np.intp]) -> list[int]:
    """1-based ranks of candidates by their scores."""
    return [1 + int(np.count_nonzero(scores > scores[place])) for place in at]


def own_query_p_value(query: FloatVector, others: FloatMatrix, helped: FloatVector, draw: float) -> float:
    """p-value of the own query among others (n, dim), by nearness to what helped."""
    middle = unit(helped)
    return rank_p_value(float(query @ middle), cosines(others, middle), 1e-6, draw)


def rank_p_value(own: float, others: NDArray[np.floating], tie: float, draw: float) -> float:
    """Share of what is as large as `own` by chance, itself included; ties are drawn, so that it is uniform."""
    larger = np.count_nonzero(others > own + tie)
    equal = np.count_nonzero(others >= own - tie) - larger
    return (larger + draw * (equal + 1)) / (len(others) + 1)


def drawn(seed: int) -> float:
    """A number from 0 to 1 that any seed gives as a draw would (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (seed + 0x9E37_79B9_7F4A_7C15) & _WORD
    value = (value ^ value >> 30) * 0xBF58_476D_1CE4_E5B9 & _WORD
    value = (value ^ value >> 27) * 0x94D0_49BB_1331_11EB & _WORD
    return ((value ^ value >> 31) >> 11) / (1 << 53)


def cosines(rows: FloatMatrix, x: FloatVector) -> FloatVector:
    """Inner products (n,) of rows (n, dim) with x; by our own kernel, whose order of summation never changes."""
    out = np.empty(len(rows), dtype=np.float32)
    if len(rows):
        dot_rows(rows, x, out)
    return out
