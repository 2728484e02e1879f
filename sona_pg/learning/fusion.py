"""The learned fusion: what every strategy says of an item, weighed by weights that outcomes have taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import StrategyConfig
from sona_pg.learning.arrays import check_parts
from sona_pg.learning.remembered import Neighbourhood

Vector = NDArray[np.float64]

FEATURES = (
    "cosine",
    "familiar",
    "adapted",
    "helped near .5",
    "helped near .7",
    "helped near .85",
    "vote",
    "share of the vote",
    "helped near .5, below the best",
    "helped near .7, below the best",
    "helped near .85, below the best",
    "missed near .5",
    "missed near .8",
    "times helped",
    "ever helped",
    "ever helped, familiar .5",
    "ever helped, familiar .7",
    "ever helped, familiar .85",
)
"""What an item's score is made of, in the order of the weights."""

SHARPNESS = 20.0
"""Scale of cosines as logits: the frozen ranking's own weight is 1."""

_NEAR = (0.5, 0.7, 0.85)
_MISSED = (0.5, 0.8)


@dataclass(frozen=True, slots=True)
class Cosines:
    """Cosines of candidates to a query as the strategies ask it, float32 (n,) each.

    Parameters
    ----------
    frozen
        To the query itself.
    adapted
        To the adapted query.
    familiar
        To the query adapted by as much as the ground is familiar.
    """

    frozen: NDArray[np.float32]
    adapted: NDArray[np.float32]
    familiar: NDArray[np.float32]


def features(
    items: Sequence[str],
    cosines: Cosines,
    around: Neighbourhood,
    times_helped: Sequence[int] | NDArray[np.int64],
    best: float,
) -> Vector:
    """What is known of candidates, (n, len(FEATURES)).

    Parameters
    ----------
    items
        The candidates.
    cosines
        As the strategies see them.
    around
        What the nearest events say.
    times_helped
        In how many events each helped.
    best
        The largest cosine of any item to the query.
    """
    frozen = cosines.frozen.astype(np.float64)
    help_near = np.array([around.nearest_help.get(item, 0.0) for item in items])
    missed = np.array([around.nearest_miss.get(item, 0.0) for item in items])
    vote = np.array([around.votes.get(item, 0.0) for item in items])
    counts = np.asarray(times_helped, dtype=np.float64)
    total = sum(around.votes.values())
    near = [np.maximum(help_near - edge, 0.0) for edge in _NEAR]
    ever = (counts > 0).astype(np.float64)
    columns = [
        SHARPNESS * frozen,
        SHARPNESS * (cosines.familiar - frozen),
        SHARPNESS * (cosines.adapted - frozen),
        *near,
        2.0 * np.log1p(vote),
        vote / total if total > 0 else vote,
        *(hinge * (frozen - best) for hinge in near),
        *(np.maximum(missed - edge, 0.0) for edge in _MISSED),
        np.log1p(counts),
        ever,
        *(ever * max(around.familiarity - edge, 0.0) for edge in _NEAR),
    ]
    return np.stack(columns, axis=1)


class Fusion:
    """A linear score over `FEATURES`, learned by listwise softmax; a moving average of the weights is served.

    A fresh one scores as the frozen ranking does.

    Parameters
    ----------
    config
        Step size and average.
    """

    def __init__(self, config: StrategyConfig) -> None:
        self._config = config
        self._weights = np.zeros(len(FEATURES))
        self._weights[0] = 1.0
        self.served = self._weights.copy()
        """Weights that answer."""
        self._moment1 = np.zeros(len(FEATURES))
        self._moment2 = np.zeros(len(FEATURES))
        self._steps = 0

    def score(self, candidates: Vector) -> Vector:
        """Scores (n,) of candidates by the served weights."""
        return np.asarray(candidates @ self.served)

    def gradient(self, candidates: Vector, targets: Vector) -> Vector:
        """Gradient of the cross-entropy of the softmax of the scores against `targets`, which sum to 1."""
        logits = candidates @ self._weights
        shares = np.exp(logits - logits.max())
        return np.asarray((shares / shares.sum() - targets) @ candidates)

    def step(self, gradient: Vector) -> None:
        """One step of Adam (Kingma & Ba 2015), and of the served average."""
        self._steps += 1
        t, rate = self._steps, self._config.fusion_learning_rate
        self._moment1 += 0.1 * (gradient - self._moment1)
        self._moment2 += 0.001 * (gradient * gradient - self._moment2)
        mean, square = self._moment1 / (1.0 - 0.9**t), self._moment2 / (1.0 - 0.999**t)
        self._weights -= rate * mean / (np.sqrt(square) + 1e-8)
        decay = min(self._config.fusion_average, (1 + t) / (10 + t))
        self.served += (1.0 - decay) * (self._weights - self.served)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that a continuation needs, as arrays."""
        return {
            "weights": self._weights,
            "served": self.served,
            "moment1": self._moment1,
            "moment2": self._moment2,
            "steps": np.array(self._steps, dtype=np.int64),
        }

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave; bit for bit."""
        check_parts("fusion", state, self.state())
        for name, part in (
            ("weights", self._weights),
            ("served", self.served),
            ("moment1", self._moment1),
            ("moment2", self._moment2),
        ):
            part[:] = state[name]
        self._steps = int(state["steps"])
