"""Integration of a system that is known by its activations over time: fit, complex of largest Φ, null level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.config import PhiConfig
from sona_pg.errors import InvalidInput
from sona_pg.learning.integration import Integration, as_finite, check_nodes, stationary_integration

Doubles = NDArray[np.float64]


class LinearSystem(NamedTuple):
    """``x' = A x + e`` of standardised activations, as `causal_integration` takes it.

    Parameters
    ----------
    transition
        A, float64 (n, n).
    noise
        Covariance of e, float64 (n, n).
    """

    transition: Doubles
    noise: Doubles


@dataclass(frozen=True, slots=True)
class SystemIntegration:
    """What was measured of a system; a fitted system has more integration than the true one, so see `null` too.

    Parameters
    ----------
    value
        Φ_TE of the complex in nats, 0.0 where there are fewer than two nodes; None if it could not be measured.
    nodes
        The complex: columns of the series.
    whole
        Φ_TE of all nodes together.
    null
        Largest value of the same series with its columns shifted in time against each other; a system whose nodes have
        nothing to do with each other is above it with a chance of 1 / (shuffles + 1). None without shuffles.
    reason
        Why it could not be measured.
    """

    value: float | None
    nodes: tuple[int, ...] = ()
    whole: float | None = None
    null: float | None = None
    reason: str | None = None


class _Moments(NamedTuple):
    """``Cov(x)`` and ``Cov(x', x)``, each (n, n); of fewer nodes, what an observer of these alone would find."""

    covariance: Doubles
    lagged: Doubles

    def of(self, nodes: list[int]) -> _Moments:
        return _Moments(self.covariance[np.ix_(nodes, nodes)], self.lagged[np.ix_(nodes, nodes)])

    def fitted(self) -> LinearSystem:
        """``A = Cov(x', x) Cov(x)⁻¹``, and what is left of Cov(x)."""
        transition = np.asarray(np.linalg.solve(self.covariance, self.lagged.T).T, dtype=np.float64)
        noise = self.covariance - transition @ self.lagged.T
        return LinearSystem(transition, (noise + noise.T) / 2)

    def integration(self) -> Integration:
        return stationary_integration(self.covariance, self.lagged, self.fitted().noise)


def fit_system(series: ArrayLike, config: PhiConfig | None = None) -> LinearSystem:
    """The linear system of activations over time, by the Yule-Walker equations with a ridge (Lütkepohl 2005, 3.3.4).

    Least squares, up to the two ends of the series; the moments are divided by the number of steps, which draws A
    towards 0 by just so much that the system is stable whatever the series.

    Parameters
    ----------
    series
        (steps, nodes), a row for each step of time. Columns are standardised; one that never changes is noise.
    config
        Its settings.

    Raises
    ------
    InvalidInput
        If it is no finite matrix, or has fewer than `PhiConfig.steps_per_node` steps for each node.
    """
    settings = PhiConfig() if config is None else config
    activations = as_finite(series, 2, "the series")
    reason = _too_short(activations, settings)
    if reason is not None:
        raise InvalidInput(reason)
    return _moments(activations, settings).fitted()


def system_integration(series: ArrayLike, config: PhiConfig | None = None) -> SystemIntegration:
    """The complex of largest Φ_TE, found by descending along cuts of least Φ, beside its null level.

    All nodes are measured, cut where that costs least, and both sides measured and cut in turn: 2n measurements at
    most. Another set may have more; of 2^n sets these are the ones that the cuts lead to.

    Parameters
    ----------
    series
        (steps, nodes), at most 15 nodes.
    config
        Its settings.

    Returns
    -------
    integration
        Without a value, and with a reason, for a series that is too short.

    Raises
    ------
    InvalidInput
        If it is no finite matrix, or has more than 15 nodes.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((400, 3))
    >>> for step in range(1, 400):
    ...     x[step, :2] += 0.6 * x[step - 1, 1::-1]  # the first two read each other, the third nobody
    >>> found = system_integration(x)
    >>> found.nodes, found.value > found.null
    ((0, 1), True)
    """
    settings = PhiConfig() if config is None else config
    activations = as_finite(series, 2, "the series")
    steps, count = activations.shape
    check_nodes(count)
    reason = _too_short(activations, settings)
    if reason is not None:
        return SystemIntegration(None, reason=reason)
    if count < 2:
        return SystemIntegration(0.0, tuple(range(count)), 0.0, 0.0 if settings.shuffles else None)
    whole, value, nodes = _complex(_moments(activations, settings))
    random = np.random.default_rng(settings.seed)
    null = None
    for _ in range(settings.shuffles):
        # Shifted in a circle, not permuted: a node's own past must go on to explain it, else slow nodes that have
        # nothing to do with each other pass for a system.
        shifts = random.integers(steps, size=count)
        shifted = activations[(np.arange(steps)[:, np.newaxis] + shifts) % steps, np.arange(count)]
        null = max(null or 0.0, _complex(_moments(shifted, settings))[1])
    return SystemIntegration(value, nodes, whole, null)


def _too_short(activations: Doubles, config: PhiConfig) -> str | None:
    steps, count = activations.shape
    needed = config.steps_per_node * count
    if steps >= needed:
        return None
    return f"the series has {steps} steps of {count} nodes, expected {needed}: fewer fit any relation between them"


def _moments(activations: Doubles, config: PhiConfig) -> _Moments:
    steps, count = activations.shape
    # By the largest first: sums of squares of very large activations leave the range of float64.
    centred = activations / np.maximum(np.abs(activations).max(axis=0, initial=0.0), np.finfo(np.float64).tiny)
    centred -= centred.mean(axis=0) if steps else 0.0
    deviations = np.sqrt(np.square(centred).sum(axis=0) / max(steps, 1))
    is_changing = deviations > 1e-9
    standard = np.where(is_changing, centred / np.where(is_changing, deviations, 1.0), 0.0)
    covariance = standard.T @ standard / max(steps, 1)
    np.fill_diagonal(covariance, 1.0)
    return _Moments(covariance + config.system_ridge * np.eye(count), standard[1:].T @ standard[:-1] / max(steps, 1))


def _complex(moments: _Moments) -> tuple[float, float, tuple[int, ...]]:
    """Φ of all nodes; the largest Φ on the way down, and its nodes: of equal ones the first, and largest."""
    everything = list(range(len(moments.covariance)))
    whole, best, nodes = 0.0, -1.0, tuple(everything)
    waiting = [everything]
    while waiting:
        at = waiting.pop()
        found = moments.of(at).integration()
        if len(at) == len(everything):
            whole = found.value
        if found.value > best:
            best, nodes = found.value, tuple(at)
        part = [at[place] for place in found.part]
        rest = [node for node in at if node not in part]
        waiting += [side for side in (rest, part) if len(side) > 1]
    return whole, best, nodes
