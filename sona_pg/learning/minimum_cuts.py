"""Queyranne's algorithm: cuts through Gaussian variables that little information crosses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sona_pg.errors import LearningError

Doubles = NDArray[np.float64]
Sides = NDArray[np.bool_]


def mutual_information(covariance: Doubles, side: Sides) -> float:
    """Between the variables on a side and all others, in nats: ``½ ln(|K_S| |K_S̄| / |K|)``, for K (n, n), side (n,)."""
    parts = [np.linalg.slogdet(covariance[np.ix_(kept, kept)])[1] for kept in (side, ~side)]
    return max(0.0, float(0.5 * (sum(parts) - np.linalg.slogdet(covariance)[1])))


def pendant_cuts(covariance: Doubles) -> Sides:
    """n - 1 cuts, of which one has the least mutual information of all 2^(n-1) - 1 (Queyranne 1998).

    The mutual information of a set with its complement is symmetric and submodular. Each round orders the groups so
    that the last one is the best cut between itself and the last but one, and then joins the two. O(n⁴) in all.

    Parameters
    ----------
    covariance
        float64 (n, n), symmetric and positive definite.

    Returns
    -------
    sides
        bool (n - 1, n), in which each row marks one side of a cut; shape (0, n) for n < 2.

    Raises
    ------
    LearningError
        If the matrix is not positive definite.
    """
    n = len(covariance)
    try:
        np.linalg.cholesky(covariance)
        precision = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    except np.linalg.LinAlgError as cause:
        raise LearningError("the covariance is not positive definite: a ridge on its diagonal helps") from cause
    groups = [[i] for i in range(n)]
    sides = np.zeros((max(n - 1, 0), n), dtype=bool)
    for side in sides:
        first, last = _pendant_pair(covariance, precision, groups)
        side[groups[last]] = True
        groups[first] += groups[last]
        del groups[last]
    return sides


def search_normalised_cut(covariance: Doubles) -> tuple[float, Sides]:
    """A cut with little ``MI(S) / min(|S|, |S̄|)``, which is no submodular measure: no search for it is exact.

    The cuts of `pendant_cuts`, each improved by moving one variable at a time to the other side while that helps.

    Parameters
    ----------
    covariance
        float64 (n, n), n >= 2, symmetric and positive definite.

    Returns
    -------
    per_variable, side
        Nats by the variables on the smaller side, and bool (n,).

    Raises
    ------
    LearningError
        If the matrix is not positive definite.
    """
    found = [_improved(covariance, side) for side in pendant_cuts(covariance)]
    return min(found, key=lambda cut: cut[0])


def _improved(covariance: Doubles, side: Sides) -> tuple[float, Sides]:
    """The cut at the end of the steepest descent by moves of one variable."""
    n = len(side)
    side = side.copy()
    information = mutual_information(covariance, side)
    best = information / min(side.sum(), n - side.sum())
    while True:
        after = np.maximum(information + _changes_by_moves(covariance, side), 0.0)
        sizes = side.sum() + np.where(side, -1, 1)
        smaller = np.minimum(sizes, n - sizes)
        values = np.divide(after, smaller, out=np.full(n, np.inf), where=smaller > 0)
        moved = int(np.argmin(values))
        # Less than rounding is no progress, and could go round in circles.
        if not values[moved] < best * (1 - 1e-9) - 1e-12:
            return best, side
        side[moved] ^= True
        information, best = float(after[moved]), float(values[moved])


def _changes_by_moves(covariance: Doubles, side: Sides) -> Doubles:
    """By how much the mutual information changes if each variable alone goes to the other side, (n,)."""
    change = np.zeros(len(side))
    for kept in (side, ~side):
        inverse = np.linalg.inv(covariance[np.ix_(kept, kept)])
        across = covariance[np.ix_(~kept, kept)]
        variances = np.diagonal(covariance)[~kept] - np.einsum("ij,jk,ik->i", across, inverse, across)
        change[kept] += 0.5 * np.log(np.diagonal(inverse))
        change[~kept] += 0.5 * np.log(variances)
    return change


def _pendant_pair(covariance: Doubles, precision: Doubles, groups: list[list[int]]) -> tuple[int, int]:
    """The last two groups of an order in which each next u has the least ``MI(W + u) - MI(u)``, W all before it.

    ``ln |K_(W+u)| - ln |K_W|`` is that of u's block in K once W is eliminated; for the complement of W + u the same
    holds of K⁻¹. So one elimination in both prices all that may come next.
    """
    k, p = covariance.copy(), precision.copy()
    own = _log_determinants(k, groups) + _log_determinants(p, groups)
    order, left = [0], list(range(1, len(groups)))
    while left:
        for matrix in (k, p):
            eliminated = groups[order[-1]]
            columns = matrix[:, eliminated]
            matrix -= columns @ np.linalg.solve(matrix[np.ix_(eliminated, eliminated)], columns.T)
            matrix[:, eliminated] = matrix[eliminated] = 0
        waiting = [groups[i] for i in left]
        price = _log_determinants(k, waiting) + _log_determinants(p, waiting) - own[left]
        order.append(left.pop(int(np.argmin(price))))
    return order[-2], order[-1]


def _log_determinants(matrix: Doubles, groups: list[list[int]]) -> Doubles:
    """``ln |matrix[g, g]|`` for each group g."""
    found = np.log(np.diagonal(matrix)[[group[0] for group in groups]])
    for i, group in enumerate(groups):
        if len(group) > 1:
            found[i] = np.linalg.slogdet(matrix[np.ix_(group, group)])[1]
    return found
