"""Low-rank maps side by side: what several add to a vector as one map, and a map that came from outside.

`merging` finds the shortest form of a sum; here every row stays as it is, so that the numbers do, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.kernels import LowRank
from sona_pg.learning.merging import merge

Doubles = NDArray[np.float64]

LARGEST_GAIN = 1e6
"""Of a map from outside: what makes a vector so many times longer is no adapter, and leaves the range of float32."""


def stacked(maps: Sequence[LowRank]) -> LowRank:
    """One map of scale 1 that adds what `maps` add together: their rows, one below the other.

    Rows that add nothing are left out; of maps that are all zero one row is left. Where more rows are left than there
    are dimensions, it is `merging.merge` of them, which is the same to float32.

    Parameters
    ----------
    maps
        At least one, of one dimension.

    Raises
    ------
    DimensionMismatch
        If the dimensions differ.
    """
    dim = maps[0].dim
    down, up = [np.zeros((0, dim), dtype=np.float32)], [np.zeros((0, dim), dtype=np.float32)]
    for low_rank in maps:
        if low_rank.dim != dim:
            raise DimensionMismatch(dim, low_rank.dim, "map")
        rows = low_rank.weights[low_rank.rank :] * np.float32(low_rank.scale)
        adds = rows.any(axis=1)
        down.append(low_rank.weights[: low_rank.rank][adds])
        up.append(rows[adds])
    rank = sum(map(len, up))
    if rank > dim:
        return merge(maps, dim)[0]
    if rank == 0:
        down, up, rank = [maps[0].weights[:1]], [np.zeros((1, dim), dtype=np.float32)], 1
    made = LowRank(dim, rank)
    made.load(np.vstack([*down, *up]))
    return made


def map_of(down: ArrayLike, up: ArrayLike, scale: float) -> LowRank:
    """The map ``x ↦ scale (x A) B`` from outside, of scale 1; what it computes is the same, to the last bit if A is.

    Parameters
    ----------
    down, up
        Aᵀ and B (rank, dim).

    Raises
    ------
    InvalidInput
        If a number is not finite, the rank exceeds the dimension, or a vector could become `LARGEST_GAIN` times as
        long.
    """
    first, then = np.asarray(down, dtype=np.float64), np.asarray(up, dtype=np.float64)
    rank, dim = first.shape
    if rank > dim:
        raise InvalidInput(f"the adapter's rank is {rank}, expected at most its dimension, {dim}")
    with np.errstate(over="ignore", invalid="ignore"):
        then = then * scale
        lengths = np.linalg.norm(first, axis=1)
        gain = float(lengths @ np.linalg.norm(then, axis=1))
    if not (np.isfinite(first).all() and np.isfinite(then).all()):
        raise InvalidInput("the adapter's weights hold NaN or infinity: it is damaged, or its training has diverged")
    if not gain <= LARGEST_GAIN:
        raise InvalidInput(
            f"the adapter makes a vector up to {gain:.2g} times as long, expected at most {LARGEST_GAIN:g}: its "
            "training has diverged"
        )
    # A power of two for each row: no bit changes, and neither factor leaves the range of float32.
    _, exponent = np.frexp(lengths)
    first, then = np.ldexp(first, -exponent[:, np.newaxis]), np.ldexp(then, exponent[:, np.newaxis])
    made = LowRank(dim, rank)
    made.load(np.vstack([first, then]).astype(np.float32))
    return made
