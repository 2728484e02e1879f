"""Integration: what is lost if a whole is cut where that costs least. Of the nodes of a dream, and of a system in time.

Exact IIT 3.0 is out of reach beyond a few nodes; both measures here are its Gaussian relatives (Barrett & Seth 2011;
Oizumi, Tsuchiya & Amari 2016), and exact to `EXHAUSTIVE_NODES` nodes: every cut is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg import kernels
from sona_pg.errors import DimensionMismatch, InvalidInput, LearningError
from sona_pg.learning.minimum_cuts import search_normalised_cut

Doubles = NDArray[np.float64]

EXHAUSTIVE_NODES = 15
"""Nodes up to which every cut is looked at."""

_ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Embeddings are float32: what is shorter than this share of them has no direction."""


@dataclass(frozen=True, slots=True)
class Integration:
    """How much of a whole is more than its parts.

    Parameters
    ----------
    value
        φ of a dream, 0 to 1, or Φ of a system in nats; 0.0 of fewer than two nodes.
    part
        Places of the nodes on one side of the cut that costs least: of a dream the smaller side, of a system the nodes
        whose future needs the others least. Empty where nothing can be cut.
    is_exact
        Whether every cut was looked at; else the value is an upper bound.
    """

    value: float
    part: tuple[int, ...] = ()
    is_exact: bool = True


def dream_integration(embeddings: ArrayLike, center: ArrayLike, *, ridge: float) -> Integration:
    """φ of a set of memories: how strongly their directions hold together across the weakest cut.

    Rows are centred, scaled to unit length (Z), and taken for Gaussian variables with the covariance
    ``K = (1 - ridge) ZZᵀ + ridge I``; ``φ = min_S sqrt(1 - exp(-2 MI(S) / min(|S|, |S̄|)))`` is the correlation of a
    pair with as much mutual information as crosses the cut for each node on its smaller side.

    Parameters
    ----------
    embeddings
        (n, dim), one row for each node, any float type. Equal rows are one node.
    center
        (dim,): the mean of all embeddings of the space.
    ridge
        Share of the identity, 0 to 1. Without one, nodes that depend on each other linearly are refused.

    Returns
    -------
    integration
        Exact to 15 nodes; beyond, the best cut that `search_normalised_cut` finds. 0.0 if a node is the centre itself:
        it has no direction, and depends on nothing.

    Raises
    ------
    InvalidInput, DimensionMismatch
        If these are not finite numbers of one dimension.
    LearningError
        If K is singular.

    Examples
    --------
    >>> pair = [[1.0, 0.0], [0.5, 0.75 ** 0.5]]  # cosine .5
    >>> round(dream_integration(pair, [0.0, 0.0], ridge=0.01).value, 3)
    0.495
    """
    rows, middle = _checked(embeddings, center, ridge)
    members = _equal_rows(rows)
    if len(members) < 2:
        return Integration(0.0)
    directions, without = _directions(rows[[same[0] for same in members]], middle)
    if without.any():
        return Integration(0.0, tuple(members[int(np.argmax(without))]))
    value, side, is_exact = _least_correlation(directions @ directions.T, ridge)
    part = sorted(place for node in np.flatnonzero(side) for place in members[node])
    return Integration(value, tuple(part), is_exact)


def dream_integrations(
    embeddings: ArrayLike, center: ArrayLike, sets: Sequence[NDArray[np.int64]], *, ridge: float
) -> Doubles:
    """φ of many sets of rows, float64 (sets,), as `dream_integration` has it of each.

    The products of all rows are taken once, (n, n): for few rows and many sets.

    Raises
    ------
    InvalidInput, DimensionMismatch, LearningError
        As `dream_integration`.
    """
    rows, middle = _checked(embeddings, center, ridge)
    first = np.arange(len(rows))
    for same in _equal_rows(rows):
        first[same] = same[0]
    directions, without = _directions(rows, middle)
    products = directions @ directions.T
    values = np.zeros(len(sets))
    for number, chosen in enumerate(sets):
        # In the order of the path: beyond 15 nodes the cut that is found depends on it.
        distinct = np.array(list(dict.fromkeys(first[chosen].tolist())), dtype=np.int64)
        if len(distinct) > 1 and not without[distinct].any():
            values[number] = _least_correlation(products[np.ix_(distinct, distinct)], ridge)[0]
    return values


def _checked(embeddings: ArrayLike, center: ArrayLike, ridge: float) -> tuple[Doubles, Doubles]:
    rows = as_finite(embeddings, 2, "embeddings")
    middle = as_finite(center, 1, "the centre")
    if not 0 <= ridge <= 1:
        raise InvalidInput(f"ridge is {ridge!r}, expected 0 to 1")
    if len(middle) != rows.shape[1] and len(rows):
        raise DimensionMismatch(rows.shape[1], len(middle), "the centre")
    return rows, middle


def _directions(rows: Doubles, middle: Doubles) -> tuple[Doubles, NDArray[np.bool_]]:
    """Unit rows (n, dim) as seen from the centre, and which (n,) have none: they are the centre."""
    directions = rows - middle
    lengths = np.linalg.norm(directions, axis=1)
    without = lengths <= _ROUNDING * np.maximum(np.linalg.norm(rows, axis=1), np.linalg.norm(middle))
    directions /= np.where(without, 1.0, lengths)[:, np.newaxis]
    return directions, without


def _least_correlation(cosines: Doubles, ridge: float) -> tuple[float, NDArray[np.bool_], bool]:
    """φ of nodes (n >= 2) by the cosines between them; the smaller side of the cut, (n,); whether it is exact."""
    covariance = (1 - ridge) * cosines
    np.fill_diagonal(covariance, 1.0)
    is_exact = len(covariance) <= EXHAUSTIVE_NODES
    information, side = _least_cut(covariance) if is_exact else search_normalised_cut(covariance)
    if 2 * np.count_nonzero(side) > len(side):
        side = ~side
    return float(np.sqrt(-np.expm1(-2 * information))), side, is_exact


def _least_cut(covariance: Doubles) -> tuple[float, NDArray[np.bool_]]:
    """The least ``MI(S) / min(|S|, |S̄|)`` of all cuts, and its S, bool (n,)."""
    n = len(covariance)
    log_determinants = kernels.subset_log_determinants(covariance)
    # The complement of a mask is its mirror image; half of the masks name every cut once.
    half = slice(1, 1 << (n - 1))
    sizes = subset_sizes(n)
    information = log_determinants[half] + log_determinants[::-1][half] - log_determinants[-1]
    information *= 0.5 / np.minimum(sizes, n - sizes)[half]
    mask = int(np.argmin(information)) + 1
    return max(0.0, float(information[mask - 1])), (mask >> np.arange(n) & 1).astype(bool)


def causal_integration(transition: ArrayLike, noise: ArrayLike | None = None) -> Integration:
    """Φ_TE of ``x' = A x + e``: the information that crosses the weakest cut from one step to the next, in nats.

    ``min_S ½ ln(|Cov(x'_S | x_S)| / |Cov(e_S)|)`` over all nonempty proper S, in the stationary state: what the
    others' present adds to S's own present in predicting S, the transfer entropy from the others (Schreiber 2000;
    Barnett, Barrett & Seth 2009). 0 for what is disconnected, and for what only feeds forward.

    Parameters
    ----------
    transition
        A, (n, n): row i has the weights by which node i reads all nodes.
    noise
        Covariance of e, (n, n), or its diagonal, (n,); the identity if None.

    Returns
    -------
    integration
        In nats; `part` is S.

    Raises
    ------
    InvalidInput
        If the numbers are not finite, do not fit, or belong to more than 15 nodes.
    LearningError
        If there is no stationary state, or the noise leaves a direction of the nodes without any.
    """
    matrix = as_finite(transition, 2, "the transition")
    n = len(matrix)
    if matrix.shape != (n, n):
        raise InvalidInput(f"the transition has shape {matrix.shape}, expected (nodes, nodes)")
    check_nodes(n)
    innovations = _noise(noise, n)
    if n < 2:
        return Integration(0.0)
    radius = float(np.abs(np.linalg.eigvals(matrix)).max())
    if not radius < 1:
        raise LearningError(
            f"the spectral radius of the transition is {radius:.6g}, expected below 1: it has no stationary state"
        )
    # SciPy takes longer to import than all of this package, and nothing else here needs it.
    from scipy.linalg import solve_discrete_lyapunov

    stationary: Doubles = solve_discrete_lyapunov(matrix, innovations)
    return stationary_integration((stationary + stationary.T) / 2, matrix @ stationary, innovations)


def _noise(noise: ArrayLike | None, n: int) -> Doubles:
    if noise is None:
        return np.eye(n)
    given = as_finite(noise, 1 if np.ndim(noise) == 1 else 2, "the noise")
    covariance = np.diag(given) if given.ndim == 1 else given
    if covariance.shape != (n, n):
        raise InvalidInput(f"the noise has shape {given.shape}, expected ({n}, {n}) or ({n},): one for each node")
    return covariance


def stationary_integration(covariance: Doubles, lagged: Doubles, innovations: Doubles) -> Integration:
    """Φ_TE of at most 15 nodes by their second moments, see `causal_integration`.

    Parameters
    ----------
    covariance, lagged, innovations
        float64 (n, n), n >= 1: ``Cov(x)``, ``Cov(x', x)`` and ``Cov(x' | x)``.

    Raises
    ------
    InvalidInput, LearningError
        If one is no covariance of a stationary state with noise in every direction.
    """
    n = len(covariance)
    if n < 2:
        return Integration(0.0)
    # Node by node, its present beside its future: a block of the joint covariance.
    joint = np.empty((n, 2, n, 2))
    joint[:, 0, :, 0] = joint[:, 1, :, 1] = covariance
    joint[:, 1, :, 0], joint[:, 0, :, 1] = lagged, lagged.T
    given_own = kernels.subset_log_determinants(joint.reshape(2 * n, 2 * n), 2)
    given_own -= kernels.subset_log_determinants(covariance)
    transferred = 0.5 * (given_own - kernels.subset_log_determinants(innovations))[1:-1]
    mask = int(np.argmin(transferred)) + 1
    part = tuple(i for i in range(n) if mask >> i & 1)
    return Integration(max(0.0, float(transferred[mask - 1])), part)


def check_nodes(n: int) -> None:
    """Refuse a system of which not every cut can be looked at."""
    if n > EXHAUSTIVE_NODES:
        raise InvalidInput(
            f"the system has {n} nodes, expected {EXHAUSTIVE_NODES} at most: its measure is not symmetric and "
            "submodular, so that no search finds its least cut for certain; choose nodes, or join some"
        )


def subset_sizes(n: int) -> NDArray[np.int64]:
    """How many bits each mask of n bits has, (2^n,)."""
    sizes = np.zeros(1, dtype=np.int64)
    for _ in range(n):
        sizes = np.concatenate([sizes, sizes + 1])
    return sizes


def as_finite(value: ArrayLike, dimensions: int, what: str) -> Doubles:
    """`value` as an array of finite float64 of so many dimensions.

    Raises
    ------
    InvalidInput
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"dtype {array.dtype}")
        array = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError) as cause:
        raise InvalidInput(f"{what}: expected an array of numbers ({cause})") from cause
    if array.ndim != dimensions:
        raise InvalidInput(f"{what}: found shape {array.shape}, expected {dimensions} dimensions")
    if not np.isfinite(array).all():
        raise InvalidInput(f"{what}: found NaN or infinity, expected finite numbers")
    return array


def _equal_rows(rows: Doubles) -> list[list[int]]:
    """Places of equal rows, together, in the order of the first of each."""
    places: dict[bytes, list[int]] = {}
    for place, row in enumerate(rows + 0.0):  # -0.0 becomes 0.0
        places.setdefault(row.tobytes(), []).append(place)
    return list(places.values())
