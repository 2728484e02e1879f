"""``python -m benchmarks.streams [--streams N] [--seed S] [--json] [DIR ...]``: what is served in bad times.

Closed loops: what is served is what feedback is on, and the loss is by what is truly relevant, whatever was fed back.

noise     nothing can be learned: frozen must answer at the end, and must not have cost anything on the way
to noise  outcomes are true for the first half, and noise from then on: frozen must answer at the end
change    the best strategy is another one in the second half: it must answer soon
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from benchmarks.harness import aligned
from benchmarks.worlds import Space, World
from sona_pg.config import SHOWN, SpaceConfig
from sona_pg.evaluation.collection import Collection, load_collection
from sona_pg.evaluation.feedback import Feedback, judge
from sona_pg.evaluation.metrics import Grades, ndcg_at_10
from sona_pg.kernels import unit
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.outcome import outcome_of
from sona_pg.learning.remembered import JudgedEvent
from sona_pg.learning.strategies import Lesson, Scored, Strategy
from sona_pg.types import EMPTY, FloatVector, QueryTrajectory, TrajectoryStep

Random = np.random.Generator
Helped = Mapping[str, float]

EVENTS = (30, 1000)
"""Of a stream of noise: the fewest and the most, drawn log-uniformly."""
HALF = 300
"""Events before outcomes become noise, or the best strategy another one; within as many a change is to be followed."""
MOVED = 0.3
"""nDCG@10 that frozen loses where answers are moved. The fusion wins 0.1 and more of it, once it has learned."""
CHANGE = 0.1
"""nDCG@10 by which another strategy is better."""
EXAMINATION = tuple(1.0 / place for place in range(1, SHOWN + 1))
"""How likely a position is looked at by those who click by position alone."""
SHARE = 0.2
"""Of the outcomes are at most another question's, where the best strategy changes."""


class Asked(NamedTuple):
    """A query with what is relevant to it: grades above 0 by row of the item."""

    query: FloatVector
    relevant: Grades


class Ground(Protocol):
    """Where queries come from."""

    pool: ItemPool

    def ask(self) -> Asked:
        """The next query."""
        ...

    def elsewhere(self, shown: Sequence[int]) -> Helped:
        """What helped on another query, after this was shown."""
        ...


class SyntheticGround:
    """Questions that recur in other words.

    Parameters
    ----------
    random
        Draws the world and every query.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._world = World(
            int(random.integers(1 << 32)),
            dim=round(_log_uniform(random, 32, 384)),
            items=round(_log_uniform(random, 200, 2000)),
            questions=round(_log_uniform(random, 20, 200)),
            words=float(random.uniform(0.3, 1.0)),
        )
        self.pool = self._world.pool

    def ask(self) -> Asked:
        question = int(self._random.integers(len(self._world.answers)))
        return Asked(self._world.ask(question), {self._world.answers[question]: 1.0})

    def elsewhere(self, shown: Sequence[int]) -> Helped:
        return {self.pool.ids[self._random.choice(self._world.answers)]: 1.0}


class LoggedGround:
    """Logged outcomes in an order of their own.

    Parameters
    ----------
    collection
        Where they come from.
    random
        Draws the order, and who gets whose outcome.
    """

    def __init__(self, collection: Collection, pool: ItemPool, random: Random) -> None:
        self.pool = pool
        self._collection, self._random = collection, random
        judged = np.array([query for query, grades in enumerate(collection.relevant) if grades])
        self._order = random.permutation(judged).tolist()
        self._others = random.permutation(judged).tolist()

    def __len__(self) -> int:
        return len(self._order)

    def ask(self) -> Asked:
        query = self._order.pop()
        return Asked(unit(self._collection.queries[query]), self._collection.relevant[query])

    def elsewhere(self, shown: Sequence[int]) -> Helped:
        grades, best = self._collection.relevant[self._others.pop()], self._collection.best_grade
        outcome = judge(grades, shown, Feedback.FULL, best_grade=best, seed=(0, len(self._others)))
        return {self.pool.ids[doc]: reward for doc, reward, _ in outcome if reward}


class ChangingGround:
    """Questions of which some are answered by what is nearest, and some by an item that stands further down.

    Before `change` and after it, what is nearest answers all of them in one half, and not the moved ones in the other.

    Parameters
    ----------
    random
        Draws the world and every query.
    to_moved
        Whether it is after the change that some are moved; else before it.
    to_others
        Whether other questions are asked after the change; else the same ones.
    moved
        nDCG@10 that frozen loses where answers are moved.
    """

    def __init__(self, random: Random, *, to_moved: bool, to_others: bool, moved: float = MOVED) -> None:
        self._random, self._is_moved, self._to_others = random, not to_moved, to_others
        self._world = World(
            int(random.integers(1 << 32)),
            dim=round(_log_uniform(random, 32, 384)),
            items=round(_log_uniform(random, 200, 2000)),
            questions=2 * int(random.integers(20, 41)),
        )
        self.pool = self._world.pool
        self._asked = range(len(self._world.answers) // 2)
        lost = [np.cumsum([self._lost(question) for question in half]) / len(half) for half in self._halves]
        self._moved = {
            half[place]
            for half, sums in zip(self._halves, lost, strict=True)
            for place in range(np.searchsorted(sums, moved))
        }

    @property
    def _halves(self) -> tuple[range, range]:
        n = len(self._world.answers)
        return range(n // 2), range(n // 2, n)

    def _lost(self, question: int) -> float:
        """nDCG@10 that frozen loses where the question's own answer is the right one."""
        queries = np.stack([self._world.ask(question) for _ in range(5)])
        best = np.argsort(-(queries @ self.pool.embeddings.T), axis=1)[:, :SHOWN]
        return 1.0 - float(ndcg_at_10(best, [{self._world.answers[question]: 1.0}] * len(queries)).mean())

    def change(self) -> None:
        """What is true is another thing from now on."""
        self._is_moved = not self._is_moved
        if self._to_others:
            self._asked = self._halves[1]

    def ask(self) -> Asked:
        question = int(self._random.choice(self._asked))
        query = self._world.ask(question)
        if self._is_moved and question in self._moved:
            return Asked(query, {self._world.answers[question]: 1.0})
        return Asked(query, {int(np.argmax(self.pool.embeddings @ query)): 1.0})

    def elsewhere(self, shown: Sequence[int]) -> Helped:
        return {self.pool.ids[self._random.choice(self._world.answers)]: 1.0}


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


def _log_uniform(random: Random, low: float, high: float) -> float:
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


@dataclass(frozen=True, slots=True)
class Noisy:
    """Streams of one kind of noise. Losses are nDCG@10 points over the events of a stream.

    Parameters
    ----------
    kind
        What was said to have helped.
    streams, at_frozen, ever_left
        How many; of them with frozen everywhere at the end; with anything else served at any time.
    loss, worst
        Of a stream, in the mean and the largest; below 0 where answers got better.
    """

    kind: str
    streams: int
    at_frozen: int
    ever_left: int
    loss: float
    worst: float


@dataclass(frozen=True, slots=True)
class Followed:
    """Streams in which something changes half-way.

    Parameters
    ----------
    kind
        What changes.
    streams, in_time
        How many in which the strategy that should give way was in force before; of them, that were followed in time.
    left_out
        How many in which it was not.
    median, p90
        Events until it was followed; None where so many never were.
    proven_in
        The median, counted from where the better strategy was better by `CHANGE` for 100 events: without what it takes
        to learn to be; from the change where it never was so much. None where so many were not followed.
    gain_before, gain_after
        nDCG@10 points of the fusion over frozen in the last 100 events before, and from the 200th to the 300th after.
    loss
        nDCG@10 points of what was served against frozen in the 300 events after it.
    """

    kind: str
    streams: int
    in_time: int
    left_out: int
    median: float | None
    p90: float | None
    proven_in: float | None
    gain_before: float
    gain_after: float
    loss: float


def noisy(kind: str, lives: Sequence[Lived]) -> Noisy:
    """What came of streams of noise."""
    return Noisy(
        kind,
        len(lives),
        sum(life.ended is Strategy.FROZEN for life in lives),
        sum(life.has_left for life in lives),
        round(float(np.mean([life.loss for life in lives])), 3),
        round(max(life.loss for life in lives), 3),
    )


def followed(kind: str, lives: Sequence[Lived], until: Callable[[Lived], int | None]) -> Followed:
    """What came of streams with a change; `until` gives the events from there to what should follow."""
    after = {place: until(life) for place, life in enumerate(lives)}
    known = [lives[place] for place, events in after.items() if events != 0]
    times = [math.inf if events is None else events for events in after.values() if events != 0]
    spread = np.quantile(times, (0.5, 0.9), method="inverted_cdf") if times else np.full(2, math.inf)
    median, p90 = (float(events) if math.isfinite(events) else None for events in spread)

    def mean(values: Sequence[Sequence[float]]) -> float:
        return round(float(np.mean(values)), 1) if values else 0.0

    return Followed(
        kind,
        len(known),
        sum(events <= HALF for events in times),
        len(lives) - len(known),
        median,
        p90,
        _median_since(known, times),
        mean([life.gains[HALF - 100 : HALF] for life in known]),
        mean([life.gains[2 * HALF - 100 : 2 * HALF] for life in known]),
        mean([life.losses[HALF : 2 * HALF] for life in known]),
    )


def _median_since(lives: Sequence[Lived], times: Sequence[float]) -> float | None:
    """Median events from the first of 100 in which the fusion is as good, or as bad, as the change makes it."""
    since = []
    for life, events in zip(lives, times, strict=True):
        after = np.convolve(life.gains[HALF:], np.full(100, 0.01), mode="valid")
        is_worse = life.in_force[HALF] is Strategy.FUSION
        since.append(events - int(np.argmax((-after if is_worse else after) >= 100 * CHANGE)))
    median = float(np.quantile(since, 0.5, method="inverted_cdf")) if since else math.inf
    return median if math.isfinite(median) else None


def run_noise(kinds: Mapping[str, Noise], streams: int, seed: int) -> list[Noisy]:
    """Some streams of each kind on synthetic ground."""
    found = []
    for kind, noise in kinds.items():
        lives = []
        for random in _randoms(seed, kind, streams):
            ground = SyntheticGround(random)
            lives.append(live_noise(ground, noise, round(_log_uniform(random, *EVENTS)), random))
        found.append(noisy(kind, lives))
    return found


def run_logged(collection: Collection, streams: int, seed: int) -> Noisy:
    """Some streams of logged queries, each with the outcome of another."""
    pool, lives = ItemPool(collection.doc_ids, collection.docs), []
    for random in _randoms(seed, collection.name, streams):
        ground = LoggedGround(collection, pool, random)
        events = min(round(_log_uniform(random, *EVENTS)), len(ground))
        lives.append(live_noise(ground, NOISE["outcomes of other questions"], events, random))
    return noisy(f"{collection.name}, shuffled", lives)


def run_to_noise(streams: int, seed: int) -> list[Followed]:
    """Some streams of each kind that are true at first."""
    found = []
    for kind, noise in NOISE.items():
        randoms = _randoms(seed, f"to {kind}", streams)
        lives = [live_to_noise(SyntheticGround(random), noise, random) for random in randoms]
        found.append(followed(f"to {kind}", lives, _until_frozen))
    return found


def run_change(streams: int, seed: int) -> list[Followed]:
    """Some streams of each way in which the best strategy changes."""
    found = []
    for what, to_others in (("answers", False), ("questions", True)):
        for way, to_moved, until in (("to fusion", True, until_fusion), ("from fusion", False, until_left)):
            randoms = _randoms(seed, f"{what} {way}", streams)
            lives = [
                live_change(ChangingGround(random, to_moved=to_moved, to_others=to_others), random)
                for random in randoms
            ]
            found.append(followed(f"{way}, the {what} change", lives, until))
    return found


def _until_frozen(life: Lived) -> int | None:
    """Until frozen answers everywhere and for good."""
    left = [event for event, strategy in enumerate(life.served) if strategy is not Strategy.FROZEN]
    if life.served[HALF] is Strategy.FROZEN:
        return 0
    return left[-1] + 1 - HALF if life.ended is Strategy.FROZEN else None


def until_fusion(life: Lived) -> int | None:
    """Events from the change to the fusion in force."""
    return next((n for n, strategy in enumerate(life.in_force[HALF:]) if strategy is Strategy.FUSION), None)


def until_left(life: Lived) -> int | None:
    """Events from the change to another strategy than the fusion in force."""
    return next((n for n, strategy in enumerate(life.in_force[HALF:]) if strategy is not Strategy.FUSION), None)


def _randoms(seed: int, kind: str, streams: int) -> list[Random]:
    """One for each stream; that of a stream is the same however many there are."""
    return [np.random.default_rng([seed, zlib.crc32(kind.encode()), stream]) for stream in range(streams)]


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streams", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dirs", nargs="*", type=Path, metavar="DIR", help="logged outcomes, as of `sona evaluate`")
    parser.add_argument("--streams", type=int, default=100, help="of noise in all; a fifth of them of everything else")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    if options.streams < len(NOISE):
        parser.error(f"--streams is {options.streams}, expected {len(NOISE)} or more: one of each kind of noise")
    each, seed = options.streams // len(NOISE), options.seed
    collections = [load_collection(path) for path in options.dirs]
    noise = run_noise(NOISE, each, seed)
    choices = run_noise(CHOICES, each, seed)
    logged = [run_logged(collection, each, seed) for collection in collections]
    to_noise = run_to_noise(each, seed)
    change = run_change(each, seed)
    if options.json:
        parts: dict[str, Sequence[Noisy | Followed]] = {
            "noise": noise,
            "choices": choices,
            "logged": logged,
            "to_noise": to_noise,
            "change": change,
        }
        document = {part: [asdict(row) for row in rows] for part, rows in parts.items()}
        print(json.dumps({"streams": options.streams, "seed": seed, **document}, indent=2))
        return 0
    print(
        _noise_table([*noise, _all(noise)]), "Known to be weak, not counted above:", _noise_table(choices), sep="\n\n"
    )
    if logged:
        print("", _noise_table(logged), sep="\n")
    print("", _change_table(to_noise), "", _change_table(change), sep="\n")
    return 0


def _all(rows: Sequence[Noisy]) -> Noisy:
    streams = sum(row.streams for row in rows)
    return Noisy(
        "all",
        streams,
        sum(row.at_frozen for row in rows),
        sum(row.ever_left for row in rows),
        round(sum(row.loss * row.streams for row in rows) / streams, 3),
        max(row.worst for row in rows),
    )


def _noise_table(rows: Sequence[Noisy]) -> str:
    head = ("noise", "streams", "at frozen", "ever left", "loss, points", "worst")
    return aligned(
        [head, *((r.kind, r.streams, r.at_frozen, r.ever_left, f"{r.loss:.3f}", f"{r.worst:.3f}") for r in rows)]
    )


def _change_table(rows: Sequence[Followed]) -> str:
    head = (
        "change",
        "streams",
        "in 300",
        "left out",
        "median",
        "p90",
        "since better",
        "fusion before",
        "fusion after",
        "loss, points",
    )
    cells = [
        (
            *(r.kind, r.streams, r.in_time, r.left_out),
            *("never" if events is None else f"{events:.0f}" for events in (r.median, r.p90, r.proven_in)),
            *(f"{r.gain_before:+.1f}", f"{r.gain_after:+.1f}", f"{r.loss:.1f}"),
        )
        for r in rows
    ]
    return aligned([head, *cells])


if __name__ == "__main__":
    sys.exit(main())
