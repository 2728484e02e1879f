"""What an answer's outcome says: which items helped, which did not, and what of it is new."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sona_pg.types import EMPTY, FloatVector, QueryTrajectory, Score, TrajectoryStep


@dataclass(frozen=True, slots=True)
class OutcomeEvent:
    """A trajectory with the outcomes known so far; learned once for each revision.

    Parameters
    ----------
    trajectory
        With its rewards as of this revision.
    revision
        0 when it was recorded, one more for every later change of its outcomes.
    taught
        Rewards by item that an earlier revision has taught already.
    had_outcome
        Whether an earlier revision had any outcome.
    """

    trajectory: QueryTrajectory
    revision: int = 0
    taught: Mapping[str, float] = field(default_factory=dict)
    had_outcome: bool = False

    @property
    def key(self) -> tuple[uuid.UUID, int]:
        """What is learned at most once."""
        return self.trajectory.id, self.revision


class JudgedItem(NamedTuple):
    """An item of a judged list: `target` is how much it helped, 0 if it did not."""

    item_id: str
    target: float
    activations: FloatVector


def judged_items(event: OutcomeEvent, *, implicit_feedback: bool, max_marked: int) -> list[JudgedItem]:
    """The judged list of an event; empty when nothing in it newly helped.

    An item's target is its reward where that is above 0. An item without a reward is unjudged and left out, unless
    feedback is implicit: then an item that was shown beside one that helped counts as unhelpful. What an earlier
    revision taught as helpful is left out. Of the helpful items that were not shown, `max_marked` count.
    """
    seen: dict[str, JudgedItem] = {}
    marked = 0
    for step in event.trajectory.steps:
        item, reward = step.item_id, step.reward
        if item is None or item in seen or event.taught.get(item, 0.0) > 0:
            continue
        if reward is None:
            if not implicit_feedback or step.position is None:
                continue
            reward = 0.0
        if step.position is None:
            if reward > 0 and marked == max_marked:
                continue
            marked += reward > 0
        seen[item] = JudgedItem(item, max(reward, 0.0), step.activations)
    items = list(seen.values())
    return items if any(i.target > 0 for i in items) else []


def with_scores(trajectory: QueryTrajectory, scores: Iterable[Score]) -> QueryTrajectory:
    """The trajectory with late outcomes applied in order: the last score of an item, or of the whole answer, holds.

    An item that was not shown becomes a step without a position: judged, and never learned as shown.
    """
    steps = list(trajectory.steps)
    quality = trajectory.final_quality
    for score in scores:
        if score.item_id is None:
            quality = score.value
            continue
        places = [place for place, step in enumerate(steps) if step.item_id == score.item_id]
        for place in places:
            steps[place] = steps[place]._replace(reward=score.value)
        if not places:
            steps.append(TrajectoryStep(EMPTY, EMPTY, score.value, 0.0, score.item_id, None))
    return replace(trajectory, steps=tuple(steps), final_quality=quality)
