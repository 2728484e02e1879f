"""What answers: an immutable copy of the maps that were learned, safe to use while learning goes on."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.config import StrategyConfig
from sona_pg.kernels import LowRank, as_vector, unit
from sona_pg.learning.arrays import as_matrix, is_matrix
from sona_pg.learning.lift import CONTROL, LEARNED, SHADOW, is_control


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
        if is_matrix(x):
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


@dataclass(frozen=True, slots=True, eq=False)
class ServedStrategy:
    """The strategy in force, as far as a vector can say it: immutable, replaced when another one is proven.

    Parameters
    ----------
    strategy
        What answers, but in regions that are exceptions.
    known, strange
        How much of the careful map a stake serves, on familiar and on strange ground.
    config
        Settings of the strategist.
    proven, careful
        The maps of the fusion and of the stake.
    prototypes
        Unit queries (m, dim) by which familiar ground is told.
    centroids, exceptions
        Regions (r, dim), and what answers in each; None where it does as the space does.
    control_share
        Share of answers that the frozen embedding gives, to measure the lift by.
    is_shadow
        Whether the frozen embedding answers whatever is proven.
    """

    strategy: str
    known: float
    strange: float
    config: StrategyConfig
    proven: Serving
    careful: Serving
    prototypes: NDArray[np.float32]
    centroids: NDArray[np.float32]
    exceptions: tuple[str | None, ...]
    control_share: float = 0.0
    is_shadow: bool = False

    def arm(self, trajectory_id: uuid.UUID) -> tuple[str, float]:
        """To which arm an answer belongs, and how probable that was."""
        if self.is_shadow:
            return SHADOW, 1.0
        if is_control(trajectory_id, self.control_share):
            return CONTROL, self.control_share
        return LEARNED, 1.0 - self.control_share

    def strategy_for(self, query: NDArray[np.float32]) -> str:
        """What answers a query (dim,)."""
        if not any(self.exceptions):
            return self.strategy
        return self.exceptions[int(np.argmax(self.centroids @ query))] or self.strategy

    def adapt(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """The query (dim,) as the strategy in force asks it; itself where that is the frozen one."""
        strategy, base, share = self._asked(query)
        if share < _NOTHING:
            return query
        return _blend(base, self._map_of(strategy).adapt(base), share)

    def adapt_rows(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """`adapt` of queries (n, dim), bit for bit, in a new array; each map is asked once."""
        out = queries.copy()
        if self.strategy in _UNCHANGED and not any(self.exceptions):
            return out
        asked = [self._asked(query) for query in queries]
        for serving in {id(m): m for m in (self.proven, self.careful)}.values():
            rows = [
                row
                for row, (strategy, _, share) in enumerate(asked)
                if share >= _NOTHING and self._map_of(strategy) is serving
            ]
            if rows:
                mapped = serving.adapt(np.stack([asked[row][1] for row in rows]))
                for row, other in zip(rows, mapped, strict=True):
                    out[row] = _blend(asked[row][1], other, asked[row][2])
        return out

    def _asked(self, query: NDArray[np.float32]) -> tuple[str, NDArray[np.float32], float]:
        """What answers a query (dim,), the query at unit length, and the share of the map in what is asked."""
        strategy, base = self.strategy_for(query), unit(query)
        if strategy in _UNCHANGED:
            return strategy, base, 0.0
        near = float((self.prototypes @ base).max(initial=-1.0))
        c = self.config
        share = min(max((max(near, 0.0) - c.familiar_from) / c.familiar_width, 0.0), 1.0)
        if strategy == "stake":
            share = share * self.known + (1 - share) * self.strange
        return strategy, base, share

    def _map_of(self, strategy: str) -> Serving:
        return self.careful if strategy == "stake" else self.proven


_UNCHANGED = ("frozen", "boosted", "related")
"""Strategies that ask for the query as it is."""

_NOTHING = 1e-6
"""A share of a map that changes nothing."""


def _blend(base: NDArray[np.float32], mapped: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    return np.float32(1 - share) * base + np.float32(share) * unit(mapped)
