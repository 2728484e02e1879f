"""Preferences that outcomes show: of two items that were judged for a query, which one was worth more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sona_pg.config import SpaceConfig
from sona_pg.learning.outcome import outcome_of
from sona_pg.types import QueryTrajectory


class Preference(NamedTuple):
    """Two items of which one was worth more for a query.

    Parameters
    ----------
    chosen, rejected
        Their ids.
    chosen_reward, rejected_reward
        What each was worth, as it was given; 0 of an item that nobody judged, where feedback is implicit.
    """

    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float

    @property
    def margin(self) -> float:
        """By how much."""
        return self.chosen_reward - self.rejected_reward


def preferences(trajectory: QueryTrajectory, space: SpaceConfig) -> Iterator[Preference]:
    """Every item that helped, with every one that was worth less; best chosen first, and worst rejected.

    What nobody judged is not rejected, unless the space declares that feedback is implicit and the item was shown
    beside one that helped.
    """
    outcome = outcome_of(trajectory, space)
    worth = dict.fromkeys(outcome.unhelpful, 0.0)
    judged: dict[str, float] = {}
    for step in trajectory.steps:
        if step.item_id is not None and step.reward is not None:
            judged.setdefault(step.item_id, step.reward)
    worth |= judged
    order = sorted(worth.items(), key=lambda entry: (-entry[1], entry[0]))
    for chosen, best in order:
        if chosen not in outcome.helped:
            continue
        for rejected, least in reversed(order):
            if least >= best:
                break
            yield Preference(chosen, rejected, best, least)
