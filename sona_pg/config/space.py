"""What a space declares about its traffic."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sona_pg.config.checks import check_flag, check_within
from sona_pg.errors import ConfigError

STRATEGIES = ("learned", "frozen", "adapted", "familiar", "boosted", "stake", "fusion", "related", "shadow")
"""What may answer in a space; shadow learns and reports as learned does, and answers as frozen does."""

LEAST_SHARE = 0.001
"""Smallest share of answers that a control arm may have."""


@dataclass(frozen=True, slots=True)
class SpaceConfig:
    """What a space declares about its traffic.

    Parameters
    ----------
    reward_min, reward_max
        Declared range of rewards and qualities; others are refused. A reward above 0 is helpful.
    implicit_feedback
        Whether an item that was shown and not judged counts as unhelpful when another one helped.
    strategy
        What answers in a new space: 'learned' is whatever outcomes have proven to be best, any other one is fixed. One
        that is there goes by what it was given since, as with ``control_share``.
    examination
        Probability that an item is looked at, by position from 1; the last one holds beyond. None where it is unknown:
        then nothing is corrected for it.
    control_share
        Share of answers that the frozen embedding gives in a new space, to measure the lift by; 0 has no control arm.
    """

    reward_min: float = 0.0
    reward_max: float = 1.0
    implicit_feedback: bool = False
    strategy: str = "learned"
    examination: tuple[float, ...] | None = None
    control_share: float = 0.05

    def __post_init__(self) -> None:
        check_within("control_share", self.control_share, 0.0, 0.5)
        if 0 < self.control_share < LEAST_SHARE:
            raise ConfigError(
                f"control_share is {self.control_share}, expected 0, or {LEAST_SHARE} to 0.5: so few say nothing"
            )
        if not isinstance(self.strategy, str) or self.strategy not in STRATEGIES:
            raise ConfigError(f"strategy is {self.strategy!r}, expected one of {', '.join(STRATEGIES)}")
        if self.examination is not None:
            self._check_examination(self.examination)
        check_flag("implicit_feedback", self.implicit_feedback)
        check_within("reward_min", self.reward_min, -1e6, 1e6)
        check_within("reward_max", self.reward_max, -1e6, 1e6)
        for name in ("reward_min", "reward_max", "control_share"):
            # As the database keeps it, so that a bound belongs to its own range on both sides.
            object.__setattr__(self, name, struct.unpack("f", struct.pack("f", getattr(self, name)))[0])
        if not self.reward_min < self.reward_max or self.reward_max <= 0:
            raise ConfigError(
                f"the range of rewards is {self.reward_min} to {self.reward_max}: "
                "expected the lower bound below the upper one, and the upper one above 0: a reward above 0 is helpful"
            )

    def _check_examination(self, given: tuple[float, ...]) -> None:
        if not isinstance(given, tuple | list) or not 1 <= len(given) <= 1000:
            raise ConfigError(f"examination is {given!r}, expected 1 to 1000 probabilities, one for each position")
        for probability in given:
            check_within("examination", probability, 1e-6, 1.0)
        # As the database keeps it.
        object.__setattr__(self, "examination", struct.unpack(f"{len(given)}f", struct.pack(f"{len(given)}f", *given)))
