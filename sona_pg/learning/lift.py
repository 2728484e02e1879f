"""The lift: what answers against the frozen embedding, by two arms drawn at random."""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import StrategyConfig
from sona_pg.learning.arrays import check_parts
from sona_pg.learning.evidence import Gate
from sona_pg.learning.packing import pack, unpack

STATE_FORMAT = 1
CONTROL = "control"
LEARNED = "learned"
SHADOW = "shadow"


def is_control(trajectory_id: uuid.UUID, share: float) -> bool:
    """Whether an answer belongs to the control arm: a hash of its id, the same that SQL takes."""
    digest = hashlib.md5(f"control {trajectory_id}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def confidence_sequence(
    counts: NDArray[np.float64],
    sums: NDArray[np.float64],
    squares: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Running means and their 95 % bounds, which hold at all times of looking together; NaN where nothing was counted.

    ``mean ± (σ √(2 (nρ² + 1)/(n²ρ²) ln(√(nρ² + 1)/α)) + w ln(1/α)/n)`` with ρ² = .01, tightest near n = 1,000
    (Waudby-Smith et al. 2021, asymptotic). The last term is for what σ, estimated, does not know of yet: a rare value
    of an arm that is rare itself. `sona.lift` has the same.

    Parameters
    ----------
    counts, sums, squares
        So far: how many there are, their sum, and that of their squares.
    weights
        w so far: the largest inverse of an arm's probability.

    Returns
    -------
    mean, lower, upper
        Each as long as `counts`.
    """
    rho2 = 0.01
    n = np.where(counts > 0, counts, np.nan)
    mean = sums / n
    variance = np.maximum(squares / n - mean**2, 0.0)
    spread = 2 * (n * rho2 + 1) / (n**2 * rho2) * np.log(np.sqrt(n * rho2 + 1) / 0.05)
    margin = np.sqrt(variance * spread) + weights * np.log(1 / 0.05) / n
    return mean, mean - margin, mean + margin


class LiftTest:
    """Whether what answers is worth less than the frozen embedding would be.

    Every answer of value y gives an unbiased estimate of the lift: ``(y − m) (L/(1 − π) − C/π)``, L and C its arm, π
    the share of the control arm, m what answers were worth so far (inverse propensity weighting around a baseline,
    Robins, Rotnitzky & Zhao 1994). Of these a gate bets that they are negative: it opens wrongly with probability
    1/threshold, at any time of looking.

    While they look negative the control arm is enlarged, which tells sooner, whatever the answer is.

    Parameters
    ----------
    config
        Settings.
    """

    def __init__(self, config: StrategyConfig) -> None:
        self._config = config
        self._mean = np.array([0.5, 1.0])
        """What answers were worth so far, and how many count for it."""
        self._key = np.zeros(1, dtype=np.int64)
        self.begin(0, 0.0)

    def begin(self, key: int, at: float) -> None:
        """Begin anew: something else answers from a time on, in seconds since the epoch."""
        self._key[0] = key
        self._since = np.array([at])
        self._gate = Gate(self._config.harm_threshold, self._config.harm_later)
        self._sums = np.zeros(3)
        """Of the bets, of their squares, and how many controls there were."""
        self._suspected = np.zeros(1, dtype=np.int64)

    def turn(self, at: float) -> None:
        """Begin anew at a time, but not before it began last: a late outcome may bring about a turn."""
        self.begin(self.key, max(at, float(self._since[0])))

    @property
    def key(self) -> int:
        """What `begin` was given."""
        return int(self._key[0])

    def contrast(self, value: float, *, control: bool, share: float) -> float:
        """The estimate of the lift by an answer of a value, 0 to 1, which the control arm had a share to give."""
        centred = value - self._mean[0] / self._mean[1]
        return float(-centred / share if control else centred / (1.0 - share))

    def add(self, value: float, *, control: bool, share: float, answers: bool, at: float | None = None) -> float:
        """Take in an answer of a value, 0 to 1; gives its contrast.

        Parameters
        ----------
        control, share
            Its arm, and the probability of the control arm, above 0 and below 1.
        answers
            Whether anything but the frozen embedding answers at present: both arms are the same without.
        at
            When the answer was given, in seconds since the epoch: one from before it began anew says nothing of what
            answers now. None where that is unknown.
        """
        found, c = self.contrast(value, control=control, share=share), self._config
        self._mean = c.stake_keep * self._mean + (value, 1.0)
        if not answers or (at is not None and at < self._since[0]):
            return found
        bet = -found * min(share, 1.0 - share)
        self._sums = c.harm_keep * self._sums + (bet, bet * bet, control)
        if self._sums[2] >= c.suspected_controls and self._sums[1] > 0:
            z = self._sums[0] / math.sqrt(self._sums[1])
            self._suspected[0] = z >= (c.suspected_until if self._suspected[0] else c.suspected_from)
        if not self._gate.is_open:
            self._gate.add(bet)
        return found

    @property
    def is_harmful(self) -> bool:
        """Whether it is proven that the frozen embedding is better."""
        return self._gate.is_open

    @property
    def suspected_share(self) -> float:
        """Share of the control arm while what answers may do harm; 0 while there is no sign of that."""
        return self._config.suspected_share if self._suspected[0] else 0.0

    def to_bytes(self) -> bytes:
        """Everything that a continuation needs."""
        return pack({"format": STATE_FORMAT}, self._state())

    def load_bytes(self, data: bytes) -> None:
        """Continue from what `to_bytes` gave; bit for bit.

        Raises
        ------
        LearningError
            If the data are damaged.
        """
        arrays = unpack(data, {"format": STATE_FORMAT}, "lift test")
        check_parts("lift test", arrays, self._state())
        self._mean, self._sums = np.array(arrays["mean"]), np.array(arrays["sums"])
        self._key, self._suspected = np.array(arrays["key"]), np.array(arrays["suspected"])
        self._since = np.array(arrays["since"])
        self._gate.load_state({n[5:]: a for n, a in arrays.items() if n.startswith("gate.")})

    def _state(self) -> Mapping[str, NDArray[np.generic]]:
        return {
            "mean": self._mean,
            "key": self._key,
            "since": self._since,
            "sums": self._sums,
            "suspected": self._suspected,
            **{f"gate.{name}": part for name, part in self._gate.state().items()},
        }
