"""The strategist: to learn an event, to answer, and to look around in memory, against what no implementation saves.

The rival of learning is a lower bound, no other implementation of the same: the steps of its four adapters, and the
three passes over 512 vectors by which stakes and sanity are weighed.
That of answering and of looking around is to rank the pool by the frozen embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import numpy as np

from benchmarks.harness import Row, compare
from benchmarks.worlds import World
from sona_pg.config import QueryAdapterConfig
from sona_pg.learning.query_adapter import QueryAdapter
from sona_pg.learning.remembered import FloatMatrix, JudgedEvent, Surroundings
from sona_pg.learning.strategies import Strategy

DIM, ITEMS, QUESTIONS, REMEMBERED = 384, 4096, 200, 1000


class _Prepared:
    """A strategist that has learned, and events that come next with what is around them."""

    def __init__(self, events: int) -> None:
        self.world = world = World(dim=DIM, items=ITEMS, questions=QUESTIONS)
        for event in range(REMEMBERED):
            self._outcome(event, learn=True)
        self.events = [self._outcome(REMEMBERED + event, learn=False) for event in range(events)]
        self.around = [world.look(event.query, event) for event in self.events]
        self.others: FloatMatrix = world.memory.latest(world.strategist.config.sanity_events)

    def _outcome(self, event: int, *, learn: bool) -> JudgedEvent:
        question = event % QUESTIONS
        query, helped = self.world.ask(question), {f"i{self.world.answers[question]}": 1.0}
        shown = self.world.answer(query).ranking(Strategy.FROZEN)
        judged = JudgedEvent(query, shown, helped, [item for item in shown if item not in helped], event)
        if learn:
            self.world.study(judged)
        return judged

    def next(self) -> Iterator[tuple[JudgedEvent, Surroundings]]:
        """The events with what is around them, over and over."""
        return cycle(zip(self.events, self.around, strict=True))


def run(*, quick: bool) -> list[Row]:
    """Each on a pool of 4,096 items after 1,000 events."""
    rounds = 100 if quick else 1000
    prepared = _Prepared(50 if quick else 200)
    world, strategist = prepared.world, prepared.world.strategist
    params: dict[str, int | float | str] = {"d": DIM, "items": ITEMS, "remembered": REMEMBERED}
    ours, theirs, asked, looked, ranked = (prepared.next() for _ in range(5))
    adapters = _Adapters(world)

    def learn() -> None:
        event, around = next(ours)
        strategist.learn(event, around, prepared.others)

    def answer() -> None:
        event, around = next(asked)
        strategist.answer(event.query, around)

    def look() -> None:
        event, _ = next(looked)
        world.look(event.query, event)

    def frozen() -> None:
        event, _ = next(ranked)
        world.index.nearest(event.query, strategist.config.candidates)

    sample, others = world.pool.embeddings[: strategist.config.rank_items], prepared.others

    def least() -> None:
        event, _ = next(theirs)
        adapters.learn(event)
        for rows in (sample, sample, others):
            rows @ event.query

    # One call at a time: the median and the 99th percentile are of single events.
    return [
        compare("Strategist.learn", params, learn, "four adapter steps, three passes", least, rounds=rounds, inner=1),
        compare("Strategist.answer", params, answer, "frozen ranking of the pool", frozen, rounds=rounds, inner=1),
        compare("look_around, to learn", params, look, "frozen ranking of the pool", frozen, rounds=rounds, inner=1),
    ]


class _Adapters:
    """The adapters of a strategist, and nothing else of it."""

    def __init__(self, world: World) -> None:
        self._pool, c = world.pool, world.strategist.config
        recipe = QueryAdapterConfig.for_dim(DIM)
        careful = QueryAdapterConfig(
            rank=c.stake_rank,
            learning_rate=c.stake_learning_rate,
            temperature=c.stake_temperature,
            negatives=c.stake_negatives,
        )
        # Of the folds, all but that of the event learn it.
        recipes = [recipe, careful, *[recipe] * (c.folds - 1)]
        self._adapters = [QueryAdapter(DIM, one, items=self._pool.embeddings) for one in recipes]

    def learn(self, event: JudgedEvent) -> None:
        """A step of each."""
        rows = [row for item in [*event.helped, *event.unhelpful] if (row := self._pool.row(item)) is not None]
        items, targets = [*self._pool.embeddings[rows]], [*event.helped.values(), *(0.0 for _ in event.unhelpful)]
        skip = np.array(rows, dtype=np.int64)
        for adapter in self._adapters:
            adapter.learn(event.query, items, targets, pool=self._pool.embeddings, skip=skip, seed=event.seed)
