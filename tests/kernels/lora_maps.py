"""Low-rank maps and vectors for their kernels, and what a gradient is by central differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sona_pg.kernels import LowRank

from .layouts import Floats

Doubles = NDArray[np.float64]

RANKS = (1, 2, 3, 4, 5, 8)  # rows are taken by four, by two and singly
BAD = (np.nan, np.inf, -np.inf)


def some(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


def make(weights: Floats, scale: float = 1.0) -> LowRank:
    low_rank = LowRank(weights.shape[1], len(weights) // 2, scale)
    low_rank.load(weights)
    return low_rank


def position_classes(dim: int) -> list[int]:
    """First, middle and last component, and both sides of every border between a vector register and the rest."""
    borders = [b for width in (4, 8, 16, 32) for b in (dim // width * width - 1, dim // width * width)]
    return sorted({p for p in (0, dim // 2, dim - 1, *borders) if 0 <= p < dim})


def assert_is_gradient(
    found: Floats, function: Callable[[Doubles], float], weights: Floats, rng: np.random.Generator
) -> None:
    """Compare with central differences in float64: along random directions, and along some axes of each block."""
    at = weights.astype(np.float64)
    size = float(np.linalg.norm(found))
    directions = list(rng.standard_normal((12, *at.shape)))
    for row in range(len(at)):
        for column in {0, at.shape[1] // 2, at.shape[1] - 1}:
            axis = np.zeros(at.shape)
            axis[row, column] = 1
            directions.append(axis)
    for direction in directions:
        direction /= np.linalg.norm(direction)
        expected = (function(at + 1e-5 * direction) - function(at - 1e-5 * direction)) / 2e-5
        assert abs(float((found * direction).sum()) - expected) <= 2e-5 * size + 1e-7
