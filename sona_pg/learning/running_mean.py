"""A mean that starts from a prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from sona_pg.config import SignalConfig


@dataclass(slots=True)
class RunningMean:
    """Mean of everything seen, and of a prior value that counts as `weight` observations.

    Parameters
    ----------
    value
        The mean so far.
    weight
        How many observations it stands for.
    """

    value: float
    weight: float

    @classmethod
    def from_config(cls, config: SignalConfig) -> Self:
        """The mean before anything was seen."""
        return cls(config.prior_reward, config.prior_weight)

    def add(self, observation: float) -> None:
        """Take one more observation into the mean."""
        self.weight += 1
        self.value += (observation - self.value) / self.weight
