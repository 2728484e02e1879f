"""Low-rank maps put together: a sum as one map, a chain as a sum, and one form for each function.

A map ``x ↦ s (x A) B`` is the matrix ``ΔW = s A B``, but the same matrix has many factors, ``(A G, G⁻¹ B)`` for every
regular G. Everything here depends on ΔW alone, is computed in double precision, and gives A orthonormal columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput
from sona_pg.kernels import LowRank
from sona_pg.learning.arrays import as_matrix

Doubles = NDArray[np.float64]

_EPS32 = float(np.finfo(np.float32).eps)
_EPS64 = float(np.finfo(np.float64).eps)


def merge(maps: Sequence[LowRank], max_rank: int, *, queries: ArrayLike | None = None) -> tuple[LowRank, float]:
    """One map that does what all of `maps` do together, as far as a rank of `max_rank` can.

    The sum is exact (to float32) while the rank of the sum fits. Beyond, it is the best approximation of that rank:
    of the matrix ΔW in the Frobenius norm (Eckart & Young 1936), or, given `queries`, of the outputs at queries of
    their second moment. One query without a preferred direction is added to them, so that directions which the sample
    does not show are kept after all others instead of anyhow.

    Parameters
    ----------
    maps
        At least one, of one dimension; those that are zero count for nothing.
    max_rank
        Largest rank of the result, at least 1; its rank is that of the sum where that is smaller.
    queries
        Sample (n, dim) of what will be mapped.

    Returns
    -------
    LowRank
        Of scale 1; A has orthonormal columns, the rows of B are orthogonal and longest first.
    float
        What it differs by, relative to the sum: root mean square of the outputs at `queries`, or the Frobenius norm
        without.

    Raises
    ------
    ConfigError
        If `max_rank` is no whole number of at least 1.
    InvalidInput
        If there is no map, one holds NaN or infinity, the queries are no matrix of finite numbers, or the sum leaves
        the range of float32.
    DimensionMismatch
        If the dimensions differ.
    """
    if not isinstance(max_rank, int) or max_rank is True or max_rank < 1:
        raise ConfigError(f"largest rank is {max_rank!r}, expected a whole number of at least 1")
    dim = _dim_of(maps)
    down, up = _stacked(maps)
    sample = None if queries is None else as_matrix(queries, dim, "queries").astype(np.float64)
    basis, core, end = _reduced(down, up)
    left, sigma, right = np.linalg.svd(core)
    rank = int(np.count_nonzero(sigma > _smallest(sigma, down, up)))
    if rank > max_rank:
        # ‖C^½ M‖ for the second moment C of the queries is ‖L core‖ with LᵀL = UᵀCU: no matrix (dim, dim) is needed.
        root = np.eye(len(core)) if sample is None else _moment_root(sample @ basis)
        left, sigma, right = np.linalg.svd(root @ core)
        rank = max_rank
        nearest = np.linalg.solve(root, left[:, :rank] * sigma[:rank]) @ right[:rank]
        left, sigma, right = np.linalg.svd(nearest)
    if rank == 0:
        return LowRank(dim, 1), 0.0
    merged = _made(basis @ left[:, :rank], sigma[:rank], right[:rank] @ end)
    return merged, _difference(maps, merged, sample)


def composed(base: LowRank, adapter: LowRank) -> LowRank:
    """The map to add to `base` where `adapter` was trained on its output: a chain as a sum.

    With ``y = x + base(x)``, ``y + adapter(y) = x + base(x) + composed(x)``; ``A' = A + s_b A_b (B_b A)``, B and the
    scale stay.

    Raises
    ------
    DimensionMismatch, InvalidInput
        If the dimensions differ, a map holds NaN or infinity, or the product leaves the range of float32.
    """
    _dim_of([base, adapter])
    (base_down, base_up), rank = _stacked([base]), adapter.rank
    down = adapter.weights[:rank].astype(np.float64).T
    made = LowRank(adapter.dim, rank, adapter.scale)
    _load(made, (down + base_down @ (base_up @ down)).T, adapter.weights[rank:])
    return made


def gauge_fixed(low_rank: LowRank, *, balanced: bool = False) -> LowRank:
    """The same map in the one form that its function determines; its rank is that of the function.

    Two maps with the same ΔW have the same form, but for rotations among equal singular values. It is of scale 1, with
    ΔW = U S Vᵀ: A = U and B = S Vᵀ, longest row first; of every column of A the component of largest magnitude is
    positive.

    Parameters
    ----------
    balanced
        Whether A = U S^½ and B = S^½ Vᵀ instead, so that a step of an optimiser moves both alike.

    Raises
    ------
    InvalidInput
        If the map holds NaN or infinity.
    """
    made, _ = merge([low_rank], low_rank.rank)
    if balanced and not made.is_zero:
        down, up = made.weights[: made.rank].astype(np.float64), made.weights[made.rank :].astype(np.float64)
        root = np.sqrt(np.linalg.norm(up, axis=1))[:, np.newaxis]
        _load(made, down * root, up / root)
    return made


def relative_error(maps: Sequence[LowRank], other: LowRank, queries: ArrayLike | None = None) -> float:
    """What `other` differs by from the sum of `maps`, as `merge` gives it; 0 where both are zero at all `queries`."""
    dim = _dim_of([*maps, other])
    return _difference(maps, other, None if queries is None else as_matrix(queries, dim, "queries").astype(np.float64))


def _dim_of(maps: Sequence[LowRank]) -> int:
    if not maps:
        raise InvalidInput("there is no map: pass at least one")
    dim = maps[0].dim
    for low_rank in maps:
        if low_rank.dim != dim:
            raise DimensionMismatch(dim, low_rank.dim, "map")
        if not np.isfinite(low_rank.weights).all():
            raise InvalidInput("the weights of a map hold NaN or infinity: load the state of an earlier version")
    return dim


def _stacked(maps: Sequence[LowRank]) -> tuple[Doubles, Doubles]:
    """Factors (dim, k) and (k, dim) of the sum of `maps`, k the sum of the ranks of those that are not zero."""
    kept = [m for m in maps if m.scale and m.weights[m.rank :].any()]
    empty = np.zeros((0, maps[0].dim))
    down = np.vstack([empty, *(m.weights[: m.rank].astype(np.float64) for m in kept)]).T
    return down, np.vstack([empty, *(m.scale * m.weights[m.rank :].astype(np.float64) for m in kept)])


def _reduced(down: Doubles, up: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Orthonormal columns U, a small core, and orthonormal rows V with ``down @ up = U core V``."""
    basis, of_down = np.linalg.qr(down)
    end, of_up = np.linalg.qr(up.T)
    return basis, of_down @ of_up.T, end.T


def _smallest(sigma: Doubles, down: Doubles, up: Doubles) -> float:
    """Singular values up to here are rounding: of float32 beside the largest, or of what cancelled in the sum."""
    magnitude = float(np.linalg.norm(down, axis=0) @ np.linalg.norm(up, axis=1))
    return max(_EPS32 * float(sigma.max(initial=0.0)), len(up) * _EPS64 * magnitude)


def _moment_root(projected: Doubles) -> Doubles:
    """L with LᵀL ∝ the second moment of the rows of `projected` (n, k), and of one more without a direction."""
    moment = projected.T @ projected
    k = len(moment)
    size = float(np.trace(moment)) / (max(len(projected), 1) * k)
    # What no query sees is as good as any other.
    if size == 0:
        return np.eye(k)
    return np.asarray(np.linalg.cholesky(moment + size * np.eye(k)).T, dtype=np.float64)


def _made(left: Doubles, sigma: Doubles, right: Doubles) -> LowRank:
    """The map with ΔW = left diag(sigma) right, the signs fixed."""
    sign = np.sign(left[np.abs(left).argmax(axis=0), np.arange(len(sigma))])
    made = LowRank(len(left), len(sigma))
    _load(made, (left * sign).T, (sign * sigma)[:, np.newaxis] * right)
    return made


def _load(low_rank: LowRank, down: NDArray[np.floating], up: NDArray[np.floating]) -> None:
    with np.errstate(over="ignore"):
        weights = np.vstack([down, up]).astype(np.float32)
    if not np.isfinite(weights).all():
        raise InvalidInput("the maps together leave the range of float32: their weights have run away")
    low_rank.load(weights)


def _difference(maps: Sequence[LowRank], other: LowRank, sample: Doubles | None) -> float:
    down, up = _stacked(maps)
    other_down, other_up = _stacked([other])
    if sample is not None:
        expected = (sample @ down) @ up
        error = float(np.linalg.norm((sample @ other_down) @ other_up - expected))
    else:
        _, expected, _ = _reduced(down, up)
        _, off, _ = _reduced(np.hstack([other_down, -down]), np.vstack([other_up, up]))
        error = float(np.linalg.norm(off))
    size = float(np.linalg.norm(expected))
    return error / size if size > 0 else math.inf if error > 0 else 0.0
