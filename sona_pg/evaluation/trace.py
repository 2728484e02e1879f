"""Test, then train: what each event showed before it was learned from, and when another strategy took over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.learning.strategies import Lesson, Strategy, Turn


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
    def turns(self) -> tuple[tuple[int, Turn], ...]:
        """The events, counted from 0, after which another strategy is in force in the space, and how that came."""
        return tuple(
            (event, turn) for event, lesson in enumerate(self.lessons) for turn in lesson.turns if turn.region is None
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
