"""The learned fusion: what every strategy says of an item, weighed by weights that outcomes have taught."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import StrategyConfig
from sona_pg.kernels import adam_step, listwise_gradient
from sona_pg.learning.arrays import check_parts

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
        out = np.zeros(len(FEATURES))
        listwise_gradient(candidates, self._weights, targets, 1.0, out)
        return out

    def step(self, gradient: Vector) -> None:
        """One step of Adam (Kingma & Ba 2015), and of the served average."""
        self._steps += 1
        t, c = self._steps, self._config
        average = min(c.fusion_average, (1 + t) / (10 + t))
        adam_step(
            self._weights, self.served, self._moment1, self._moment2, gradient, t, c.fusion_learning_rate, average
        )

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
