"""Test, then train: what each event showed before it was learned from, and when another strategy took over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.learning.strategist import Lesson, Strategy


@dataclass(frozen=True, slots=True)
class Turn:
    """Another strategy took over.

    Parameters
    ----------
    event
        The event that was learned from, counted from 0; the next one is the first to be answered otherwise.
    before, after
        The strategies in force.
    reason
        Why, in the strategist's words.
    """

    event: int
    before: Strategy
    after: Strategy
    reason: str


@dataclass(frozen=True, slots=True)
class Trace:
    """The prequential record of a split (Dawid 1984): every event is a test of what was learned before it.

    Parameters
    ----------
    lessons
        One for each event, in order; without gains where nothing was known to have helped.
    in_force
        The strategy in force after the last one.
    """

    lessons: tuple[Lesson, ...]
    in_force: Strategy

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The events after which another strategy is in force."""
        in_force = [*(lesson.in_force for lesson in self.lessons), self.in_force]
        return tuple(
            Turn(event, lesson.in_force, after, lesson.turned)
            for event, (lesson, after) in enumerate(zip(self.lessons, in_force[1:], strict=True))
            if lesson.turned is not None
        )

    def gains(self, strategy: Strategy | None = None) -> NDArray[np.float64]:
        """nDCG@10 over frozen at each event, of a strategy or of the one in force; NaN where nothing had helped."""
        asked = (lesson.in_force if strategy is None else strategy for lesson in self.lessons)
        found = [lesson.gains.get(name, np.nan) for lesson, name in zip(self.lessons, asked, strict=True)]
        return np.array(found, dtype=np.float64)


def running_mean(gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean up to each event and with it, NaN left out; NaN until there is a value.

    Examples
    --------
    >>> running_mean(np.array([np.nan, 1.0, np.nan, 2.0]))
    array([nan, 1. , 1. , 1.5])
    """
    known = ~np.isnan(gains)
    count = known.cumsum()
    total = np.where(known, gains, 0.0).cumsum()
    mean = np.full(len(gains), np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean
