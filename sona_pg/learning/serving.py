"""What answers: an immutable copy of the maps that were learned, safe to use while learning goes on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.kernels import LowRank, as_vector
from sona_pg.learning.arrays import as_matrix


class Serving:
    """``adapt(x) = x + Σ scale (x A) B`` over the maps that are not zero.

    Parameters
    ----------
    maps
        At least one, all of one dimension; copied by `frozen`, not here.
    """

    def __init__(self, maps: Sequence[LowRank]) -> None:
        self.dim = maps[0].dim
        self.maps = [m for m in maps if not m.is_zero]

    @classmethod
    def frozen(cls, maps: Sequence[LowRank]) -> Serving:
        """Serve copies, so that the originals may go on learning."""
        copies = []
        for source in maps:
            copy = LowRank(source.dim, source.rank, source.scale)
            if not source.is_zero:
                copy.load(source.weights)
            copies.append(copy)
        return cls(copies)

    def adapt(self, x: ArrayLike) -> NDArray[np.float32]:
        """The adapted query or queries, float32, in a new array; the bits of the input where nothing was learned.

        Parameters
        ----------
        x
            (dim,) or (n, dim), finite numbers of any float type.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If the input has another dimension, or holds NaN or infinity.
        """
        if _is_matrix(x):
            return self._adapt_rows(x)
        vector = as_vector(x, self.dim, "query")
        out = vector.copy()
        for low_rank in self.maps:
            low_rank.forward(vector, out)
        return out

    def _adapt_rows(self, x: ArrayLike) -> NDArray[np.float32]:
        rows = as_matrix(x, self.dim, "queries")
        out = rows.copy()
        for low_rank in self.maps:
            low_rank.forward_batch(rows, out)
        return out


def _is_matrix(x: ArrayLike) -> bool:
    if isinstance(x, np.ndarray):
        return x.ndim == 2
    # A list of rows that differ in length is no matrix, and must be refused as one, not as a vector.
    return isinstance(x, list | tuple) and len(x) > 0 and isinstance(x[0], list | tuple | np.ndarray)
