"""Has the stream changed? A Shiryaev-Roberts detector over conformal ranks, with a bound on its false alarms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg import kernels
from sona_pg.config import BoundaryConfig
from sona_pg.errors import ConfigError, LearningError
from sona_pg.learning.arrays import check_parts

POWERS = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
"""Of the bets ε p^(ε-1): small ones win much on few small ranks, large ones little on many."""

LARGEST = 1e300
"""Of a score and of the evidence: beyond, a number of double precision is near its end."""

_MASK = 0xFFFF_FFFF_FFFF_FFFF


class TaskBoundary:
    """Tells when vectors stop being drawn as before, whatever that was, with few false alarms.

    Mean and variance of every component are taken from the first vectors, and then stay: so that, while nothing
    changes, the scores ``T² = Σ (x - μ)²/σ²`` of those that follow are exchangeable, however they are distributed.
    The rank of a score among the latest ones, equal ones ordered by a keyed draw, is then uniform (Vovk et al. 2003),
    every bet ε p^(ε-1) on small ranks has mean 1, and of ``R ← (1 + R) ε p^(ε-1)``, in the mean over ε, the
    probability to reach the run length within n steps is at most n over the run length (Shiryaev-Roberts).

    Parameters
    ----------
    dim
        Dimension of the vectors.
    config
        Its settings.
    """

    def __init__(self, dim: int, config: BoundaryConfig | None = None) -> None:
        if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= 1 << 28:
            raise ConfigError(f"dimension is {dim!r}, expected 1 to {1 << 28}")
        self.config = BoundaryConfig() if config is None else config
        self.dim = dim
        self._steps = 0
        self._begin()

    def _begin(self) -> None:
        self._seen = 0
        self._mean = np.zeros(self.dim)
        self._squares = np.zeros(self.dim)
        self._scores = np.zeros(self.config.window)
        self._sorted = np.zeros(0)
        self._evidence = np.zeros(len(POWERS))

    @property
    def evidence(self) -> float:
        """R, which sounds the alarm at the run length."""
        return float(self._evidence.mean())

    def observe(self, vector: ArrayLike) -> bool:
        """Take one vector in; whether it sounds the alarm, after which everything begins anew.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If it has another dimension, or NaN; nothing was changed.
        """
        x = kernels.as_vector(vector, self.dim, "the vector").astype(np.float64)
        self._steps += 1
        self._seen += 1
        if self._seen <= self.config.warm_up:
            moved = x - self._mean
            self._mean += moved / self._seen
            self._squares += moved * (x - self._mean)
            return False
        p = self._rank(self._score(x))
        self._evidence = np.minimum((1 + self._evidence) * POWERS * p ** (POWERS - 1), LARGEST)
        if self.evidence < self.config.run_length:
            return False
        self._begin()
        return True

    def _score(self, x: NDArray[np.float64]) -> float:
        variance = self._squares / (self.config.warm_up - 1)
        # A component that did not vary must not decide alone, but may.
        floor = max(1e-6 * float(variance.mean()), 1e-12 * float(np.square(self._mean).mean()), 1e-60)
        moved = x - self._mean
        return min(float(moved @ (moved / np.maximum(variance, floor))), LARGEST)

    def _rank(self, score: float) -> float:
        """Part of the latest scores that are at least as high, (0, 1]; the score joins them."""
        kept = self._sorted
        above = len(kept) - int(np.searchsorted(kept, score, side="right"))
        equal = len(kept) - above - int(np.searchsorted(kept, score, side="left"))
        p = (above + (1 - _draw(self.config.seed, self._steps)) * (equal + 1)) / (len(kept) + 1)
        slot = (self._seen - self.config.warm_up - 1) % self.config.window
        if len(kept) == self.config.window:
            kept = np.delete(kept, int(np.searchsorted(kept, self._scores[slot])))
        self._sorted = np.insert(kept, int(np.searchsorted(kept, score)), score)
        self._scores[slot] = score
        return p

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that a continuation needs, as arrays."""
        return {
            "steps": np.array(self._steps, dtype=np.int64),
            "seen": np.array(self._seen, dtype=np.int64),
            "mean": self._mean.copy(),
            "squares": self._squares.copy(),
            "scores": self._scores.copy(),
            "evidence": self._evidence.copy(),
        }

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave; bit for bit.

        Raises
        ------
        LearningError
            If a part is missing, of another shape, or not what it can be; nothing was changed.
        """
        check_parts("task boundary", state, self.state())
        squares, evidence, scores = (np.array(state[n], dtype=np.float64) for n in ("squares", "evidence", "scores"))
        steps, seen = int(state["steps"]), int(state["seen"])
        if squares.min() < 0 or evidence.min() < 0 or scores.min() < 0 or seen > steps:
            raise LearningError("the task boundary's state has negative sums of squares, or has seen too much: damaged")
        self._steps, self._seen = steps, seen
        self._mean = np.array(state["mean"], dtype=np.float64)
        self._squares, self._evidence, self._scores = squares, evidence, scores
        self._sorted = np.sort(scores[: max(0, min(self._seen - self.config.warm_up, self.config.window))])


def _draw(seed: int, step: int) -> float:
    """A number from 0 to below 1 that belongs to the step: splitmix64 (Steele et al. 2014)."""
    z = (seed + step * 0x9E37_79B9_7F4A_7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
    return ((z ^ (z >> 31)) >> 11) / 2**53
