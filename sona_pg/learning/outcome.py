"""What an answer's outcome says: which items helped, which did not, and what of it is new."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sona_pg.config import SHOWN, SpaceConfig
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
    was_shown: bool


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
        seen[item] = JudgedItem(item, max(reward, 0.0), step.activations, step.position is not None)
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


def next_revision(
    trajectory: QueryTrajectory,
    revision: int,
    earlier: Sequence[Score],
    new: Sequence[Score],
    *,
    has_taught: bool,
    steps_have_taught: bool,
) -> OutcomeEvent:
    """The event that late outcomes make of a trajectory.

    Parameters
    ----------
    trajectory
        As it was recorded.
    revision
        Number of the event, from 1.
    earlier, new
        The scores that earlier revisions took in, and those that this one does.
    has_taught
        Whether earlier revisions have taught anything: an outcome from which nothing could be learned counts again.
    steps_have_taught
        Whether what was recorded with it has.
    """
    before = with_scores(trajectory, earlier)
    after = with_scores(before, new)
    # What helped once was taught, even if it was taken back since: up, down and up again is one lesson.
    rewards: dict[str, float] = {}
    given = [(step.item_id, step.reward) for step in trajectory.steps]
    for item, reward in [*given, *((score.item_id, score.value) for score in earlier)]:
        if item is not None and reward is not None:
            rewards[item] = max(reward, rewards.get(item, reward))
    known = before.has_outcome and has_taught
    if steps_have_taught and not trajectory.steps:
        # Retention has deleted the steps that taught: any item may have been among them, so none teaches again.
        known, rewards = True, {step.item_id: 1.0 for step in after.steps if step.item_id is not None}
    return OutcomeEvent(after, revision, taught=rewards if known else {}, had_outcome=known)


class Outcome(NamedTuple):
    """What an answer was worth, item by item.

    Parameters
    ----------
    shown
        Items that were shown, best first, each once.
    helped
        Items that helped, shown or not, with how much, above 0 and, where every position is looked at, up to 1.
    unhelpful
        Items that were shown and did not help; what nobody judged only if feedback is implicit.
    """

    shown: tuple[str, ...]
    helped: Mapping[str, float]
    unhelpful: tuple[str, ...]


def outcome_of(trajectory: QueryTrajectory, space: SpaceConfig) -> Outcome:
    """The outcome of a trajectory, as the traffic of a space means it.

    Where the space declares how likely a position is looked at, what helped there counts by its inverse: an item far
    down that helped stands for those that nobody saw (inverse propensity scoring; Joachims, Swaminathan & Schnabel
    2017). What helped without having been shown was found otherwise, and counts as it is.
    """
    positions: dict[str, int] = {}
    rewards: dict[str, float] = {}
    for step in trajectory.steps:
        if step.item_id is None:
            continue
        if step.position is not None:
            positions[step.item_id] = min(step.position, positions.get(step.item_id, step.position))
        if step.reward is not None:
            rewards.setdefault(step.item_id, step.reward)
    shown = tuple(sorted(positions, key=lambda item: positions[item]))
    helped = {
        item: worth * _seldom_seen(positions.get(item), space.examination)
        for item, reward in rewards.items()
        if (worth := reward / space.reward_max) > SMALLEST_WORTH
    }
    # Unjudged is unjudged: without a declaration it says nothing.
    is_unhelpful = 0.0 if space.implicit_feedback and helped else 1.0
    return Outcome(shown, helped, tuple(item for item in shown if rewards.get(item, is_unhelpful) <= 0))


def worth_of(trajectory: QueryTrajectory, space: SpaceConfig) -> float | None:
    """What a whole answer was worth, 0 to 1; None where nobody said, or nothing was shown: a row of a log is no answer.

    Its quality, where that was given, by the declared range. Else nDCG@10 of what was shown, by the rewards, against
    the best order of all that was judged: 0 where nothing helped.
    """
    low, high = space.reward_min, space.reward_max
    if trajectory.final_quality is not None:
        return min(max((trajectory.final_quality - low) / (high - low), 0.0), 1.0)
    rewards: dict[str, float] = {}
    positions: dict[str, int] = {}
    has_shown = False
    for step in trajectory.steps:
        has_shown = has_shown or step.position is not None
        if step.item_id is None or step.reward is None:
            continue
        rewards.setdefault(step.item_id, max(step.reward, 0.0))
        if step.position is not None and step.position <= SHOWN:
            positions.setdefault(step.item_id, step.position)
    if not rewards or not has_shown:
        return None
    ideal = sum(worth / math.log2(place + 1) for place, worth in enumerate(_best(rewards.values()), 1))
    found = sum(rewards[item] / math.log2(place + 1) for item, place in positions.items())
    return min(found / ideal, 1.0) if ideal > 0 else 0.0


def _best(rewards: Iterable[float]) -> list[float]:
    return sorted(rewards, reverse=True)[:SHOWN]


SMALLEST_WORTH = 1e-6
"""Of the largest reward there is: less has helped nobody, and could not be told from nothing in single precision."""

MOST_WEIGHT = 10.0
"""What is looked at more seldom than by one in so many counts no more: a single outcome must not decide."""


def _seldom_seen(position: int | None, examination: tuple[float, ...] | None) -> float:
    if position is None or not examination:
        return 1.0
    return min(1.0 / examination[min(position, len(examination)) - 1], MOST_WEIGHT)
