"""Closed loops: noise and true outcomes on what is served, and what it costs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.grounds import Asked, ChangingGround, Ground, Helped, Random
from benchmarks.worlds import Space
from sona_pg.config import SHOWN, SpaceConfig
from sona_pg.evaluation.metrics import ndcg_at_10
from sona_pg.learning.outcome import outcome_of
from sona_pg.learning.remembered import JudgedEvent
from sona_pg.learning.strategies import Lesson, Scored, Strategy
from sona_pg.types import EMPTY, FloatVector, QueryTrajectory, TrajectoryStep

HALF = 300
"""Events before outcomes become noise, or the best strategy another one; within as many a change is to be followed."""
EXAMINATION = tuple(1.0 / place for place in range(1, SHOWN + 1))
"""How likely a position is looked at by those who click by position alone."""
SHARE = 0.2
"""Of the outcomes are at most another question's, where the best strategy changes."""


class Noise(NamedTuple):
    """Outcomes that have nothing to do with the query: what is said to have helped, after `shown` was."""

    helped: Callable[[Random, Ground, Sequence[int]], Helped]
    space: SpaceConfig = SpaceConfig(implicit_feedback=True)


def _shuffled(random: Random, ground: Ground, shown: Sequence[int]) -> Helped:
    return ground.elsewhere(shown)


def _any_items(random: Random, ground: Ground, shown: Sequence[int]) -> Helped:
    return {ground.pool.ids[row]: 1.0 for row in random.choice(len(ground.pool), random.integers(1, 4), replace=False)}


def _clicks(random: Random, ground: Ground, shown: Sequence[int]) -> Helped:
    return {ground.pool.ids[row]: 1.0 for row in shown if random.uniform() < 0.2}


def _everything(random: Random, ground: Ground, shown: Sequence[int]) -> Helped:
    return {ground.pool.ids[row]: 1.0 for row in shown}


def _popular(random: Random, ground: Ground, shown: Sequence[int]) -> Helped:
    return {ground.pool.ids[0]: 1.0}


def _clicks_by_position(random: Random, ground: Ground, shown: Sequence[int]) -> Helped:
    clicks = zip(shown, EXAMINATION, strict=False)
    return {ground.pool.ids[row]: 1.0 for row, looked_at in clicks if random.uniform() < 0.5 * looked_at}


NOISE = {
    "outcomes of other questions": Noise(_shuffled),
    "any items": Noise(_any_items),
    "clicks on what is shown": Noise(_clicks),
    "everything shown": Noise(_everything),
    "one popular item": Noise(_popular),
}
"""What must leave the answers as they are."""
CHOICES = {
    "clicks by position": Noise(_clicks_by_position),
    "clicks by position, examination declared": Noise(
        _clicks_by_position, SpaceConfig(implicit_feedback=True, examination=EXAMINATION)
    ),
}
"""What looks like choices, and is known to be taken for them."""


@dataclass(frozen=True, slots=True)
class Lived:
    """One stream.

    Parameters
    ----------
    served
        Strategy by event, before it was learned.
    in_force
        That of the space likewise: a region may be served another one.
    ended
        The strategy in force at the end; frozen if it answers everywhere.
    losses
        nDCG@10 points of frozen over what was served, by what is relevant, for each event.
    gains
        nDCG@10 points of the fusion over frozen likewise, served or not.
    """

    served: list[Strategy]
    in_force: list[Strategy]
    ended: Strategy
    losses: list[float]
    gains: list[float]

    @property
    def loss(self) -> float:
        """In the mean over its events."""
        return float(np.mean(self.losses))

    @property
    def has_left(self) -> bool:
        """Whether anything but frozen was ever served."""
        return any(strategy is not Strategy.FROZEN for strategy in self.served)


class Loop:
    """A closed loop of answers and outcomes.

    Parameters
    ----------
    ground
        Where queries come from.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._space = Space(ground.pool)
        self._served: list[Strategy] = []
        self._in_force: list[Strategy] = []
        self._losses: list[float] = []
        self._gains: list[float] = []
        self._asked: list[FloatVector] = []

    @property
    def in_force(self) -> Strategy:
        """The strategy that answers."""
        return self._space.strategist.in_force

    def step(self, helped: Callable[[Asked, Sequence[int]], Helped], space: SpaceConfig) -> Lesson | None:
        """Answer a query and learn its outcome."""
        asked = self._ground.ask()
        strategy = self._space.strategist.strategy_for(asked.query)
        scored = self._space.answer(asked.query)
        shown = self._rows(scored, strategy)
        frozen, served, fusion = self._ndcg(asked, scored, strategy)
        self._asked.append(asked.query)
        self._served.append(strategy)
        self._in_force.append(self.in_force)
        self._losses.append(100 * (frozen - served))
        self._gains.append(100 * (fusion - frozen))
        return self._learn(asked.query, shown, helped(asked, shown), space)

    def _rows(self, scored: Scored, strategy: Strategy) -> list[int]:
        return [row for item in scored.ranking(strategy) if (row := self._ground.pool.row(item)) is not None]

    def _ndcg(self, asked: Asked, scored: Scored, strategy: Strategy) -> list[float]:
        ranked = [self._rows(scored, one) for one in (Strategy.FROZEN, strategy, Strategy.FUSION)]
        found: list[float] = ndcg_at_10(np.array(ranked), [asked.relevant] * 3).tolist()
        return found

    def _learn(self, query: FloatVector, shown: Sequence[int], helped: Helped, space: SpaceConfig) -> Lesson | None:
        """As an application's outcome is taken in."""
        items = [self._ground.pool.ids[row] for row in shown]
        steps = [
            TrajectoryStep(EMPTY, EMPTY, helped.get(item), 0.0, item, place)
            for place, item in enumerate(items, start=1)
        ]
        marked = helped.keys() - set(items)
        steps += [TrajectoryStep(EMPTY, EMPTY, helped[item], 0.0, item, None) for item in sorted(marked)]
        outcome = outcome_of(QueryTrajectory(uuid.UUID(int=len(self._served)), query, tuple(steps)), space)
        if not outcome.helped:
            self._space.memory.add(query, outcome.helped, outcome.unhelpful)
            return None
        seed = len(self._served)
        return self._space.study(JudgedEvent(query, outcome.shown, outcome.helped, outcome.unhelpful, seed))

    def lived(self) -> Lived:
        """What came of it."""
        everywhere = {self._space.strategist.strategy_for(query) for query in self._asked} | {self.in_force}
        exceptions = sorted(everywhere - {Strategy.FROZEN})
        ended = exceptions[0] if exceptions else Strategy.FROZEN
        return Lived(self._served, self._in_force, ended, self._losses, self._gains)


def live_noise(ground: Ground, noise: Noise, events: int, random: Random) -> Lived:
    """Noise from the first event on."""
    loop = Loop(ground)
    for _ in range(events):
        loop.step(lambda _, shown: noise.helped(random, ground, shown), noise.space)
    return loop.lived()


def live_to_noise(ground: Ground, noise: Noise, random: Random) -> Lived:
    """True outcomes for `HALF` events, then noise for as many."""
    loop = Loop(ground)
    for _ in range(HALF):
        loop.step(lambda asked, _: _truth(ground, asked), noise.space)
    for _ in range(HALF):
        loop.step(lambda _, shown: noise.helped(random, ground, shown), noise.space)
    return loop.lived()


def live_change(ground: ChangingGround, random: Random) -> Lived:
    """`HALF` events, a change, and twice as many; some outcomes are another question's all the time."""
    loop, share_of_noise = Loop(ground), random.uniform(0.0, SHARE)

    def helped(asked: Asked, shown: Sequence[int]) -> Helped:
        return ground.elsewhere(shown) if random.uniform() < share_of_noise else _truth(ground, asked)

    for event in range(3 * HALF):
        if event == HALF:
            ground.change()
        loop.step(helped, SpaceConfig(implicit_feedback=True))
    return loop.lived()


def _truth(ground: Ground, asked: Asked) -> Helped:
    return {ground.pool.ids[row]: grade for row, grade in asked.relevant.items()}
