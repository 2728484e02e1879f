"""Would it help? Every event of a stream is answered and learned once; the queries that were held out measure it."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from sona_pg.config import QueryAdapterConfig, SpaceConfig
from sona_pg.errors import ConfigError
from sona_pg.evaluation.baselines import BASELINES, Baseline, frozen_outcomes
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.feedback import SPACE, Feedback, Judgement, judge
from sona_pg.evaluation.metrics import FloatMatrix, QueryScores, Ranking, rank_documents, score_ranking
from sona_pg.evaluation.report import ADAPTED, FROZEN, CollectionReport, SplitResult, summarize
from sona_pg.evaluation.splits import Split, SplitKind, make_split
from sona_pg.evaluation.strategies import StrategySystem
from sona_pg.evaluation.trace import Trace
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.learner import Learner
from sona_pg.learning.outcome import OutcomeEvent
from sona_pg.learning.strategies import Lesson, Strategy
from sona_pg.types import FloatVector, QueryTrajectory, TrajectoryBuilder

SPLITS = 10
"""How many splits are evaluated where nothing else is asked for."""

_EVENTS = uuid.UUID("5e0a9d0c-6f0b-5b52-9c7e-3a1d8f2b4c60")
"""Namespace of the trajectory ids (RFC 9562, version 5)."""

Progress = Callable[[int, int], None]
"""Is told how many events of all splits are done, and how many there are."""


class System(Protocol):
    """What is evaluated: it answers queries, and learns from the outcomes of its answers."""

    served: str
    """Name of the strategy that answers."""

    def answer(self, queries: FloatMatrix) -> Mapping[str, Ranking]:
        """Rankings of the documents for queries (n, dim), by strategy; `served` is one of them."""
        ...

    def observe(self, trajectory: QueryTrajectory) -> None:
        """Learn an answer with its outcome, and serve what was learned when this returns; the time is measured."""

    def close(self) -> None:
        """Release what the system holds; it is not used any more."""


@runtime_checkable
class Traced(Protocol):
    """A system that tests its strategies on every event before it learns from it. Not every `System` does."""

    @property
    def lessons(self) -> Sequence[Lesson]:
        """One for each trajectory that was observed, in order."""
        ...

    @property
    def in_force(self) -> Strategy:
        """The strategy that answers now."""
        ...


SystemFactory = Callable[[Collection], System]
"""Gives a system that has learned nothing; asked once for every split."""


class MemorySystem:
    """The adapter alone in memory, every document in its pool: what `SonaEngine` serves so far.

    Parameters
    ----------
    collection
        Where the documents come from.
    adapter
        The recipe.
    space
        What the traffic is.
    """

    served = ADAPTED

    def __init__(
        self, collection: Collection, *, adapter: QueryAdapterConfig | None = None, space: SpaceConfig = SPACE
    ) -> None:
        pool = ItemPool(collection.doc_ids, collection.docs)
        self._docs = collection.unit_docs
        self._learner = Learner(collection.docs.shape[1], pool, adapter=adapter, space=space)
        self._serving = self._learner.serving()

    def answer(self, queries: FloatMatrix) -> Mapping[str, Ranking]:
        """Documents by cosine to the adapted queries."""
        return {ADAPTED: rank_documents(self._serving.adapt(queries), self._docs)}

    def observe(self, trajectory: QueryTrajectory) -> None:
        """Learn, and serve what was learned."""
        self._learner.learn(OutcomeEvent(trajectory))
        self._serving = self._learner.serving()

    def close(self) -> None:
        """Nothing is held."""


def evaluate_collection(
    collection: Collection,
    *,
    splits: int = SPLITS,
    split_kind: SplitKind = SplitKind.RANDOM,
    feedback: Feedback = Feedback.FULL,
    system_factory: SystemFactory = StrategySystem,
    events: int | None = None,
    continuing: bool = False,
    shuffle_outcomes: bool = False,
    baselines: bool = False,
    progress: Progress | None = None,
) -> CollectionReport:
    """Answer and learn the stream of every split, then measure on its held-out queries.

    The same collection and settings give the same report, except for the time it took.

    Parameters
    ----------
    collection
        Logged outcomes.
    splits
        How many.
    split_kind
        How queries are parted.
    feedback
        How much becomes known about an answer.
    system_factory
        What is evaluated; a fresh one for every split.
    events
        Only so many of a stream, its first ones: what a small space would learn.
    continuing
        Whether learning goes on through the held-out part: each of its queries is answered, and then learned.
    shuffle_outcomes
        Whether every event of the stream gets the outcome of another one: nothing can be learned from that.
    baselines
        Whether to run the rivals of `sona_pg.evaluation.baselines` on the same splits.
    progress
        Is told how many events are done, and how many there are.

    Raises
    ------
    ConfigError
        If fewer than one split is asked for.
    InvalidInput
        If a split leaves nothing to learn from, or to measure on.
    """
    if splits < 1:
        raise ConfigError(f"splits is {splits}, expected at least 1")
    if events is not None and events < 1:
        raise ConfigError(f"events is {events}, expected at least 1")
    parts = [make_split(collection, split_kind, index) for index in range(splits)]
    parts = [replace(split, stream=split.stream[:events]) for split in parts]
    total = sum(len(split.stream) for split in parts)
    done = itertools.count(1)

    def tick() -> None:
        if progress is not None:
            progress(next(done), total)

    rivals = BASELINES if baselines else {}
    streams = [Stream(collection, split, feedback, shuffle_outcomes=shuffle_outcomes) for split in parts]
    results = [_run_split(stream, system_factory, rivals, tick, continuing=continuing) for stream in streams]
    return summarize(collection, results)


def trajectory_id(collection: Collection, split: Split, event: int) -> uuid.UUID:
    """The id of an event, the same in every run, so that a replay draws the same numbers."""
    return uuid.uuid5(_EVENTS, f"{collection.name}/{split.kind}/{split.index}/{event}")


class Stream:
    """What is asked in a split, and what becomes known about the answers.

    Events are the stream's, then those of the held-out part.

    Parameters
    ----------
    collection, split
        The logged outcomes, and how they are parted.
    feedback
        How much becomes known about an answer.
    shuffle_outcomes
        Whether every event of the stream gets the outcome of another one.
    """

    def __init__(
        self, collection: Collection, split: Split, feedback: Feedback, *, shuffle_outcomes: bool = False
    ) -> None:
        self.collection, self.split, self.feedback = collection, split, feedback
        self._rows = [*split.stream, *split.held_out]
        self._judged_as = list(self._rows)
        if shuffle_outcomes:
            # RandomState's numbers are frozen (NEP 19): the same events in every version of NumPy.
            order = np.random.RandomState(7000 + split.index).permutation(len(split.stream))
            self._judged_as[: len(order)] = [split.stream[place] for place in order]

    def query(self, event: int) -> FloatVector:
        """The query of an event."""
        query: FloatVector = self.collection.queries[self._rows[event]]
        return query

    def trajectory(self, event: int, shown: Ranking) -> QueryTrajectory:
        """An answer with its outcome."""
        outcome = judge(
            self.collection.relevant[self._judged_as[event]],
            shown.tolist(),
            self.feedback,
            best_grade=self.collection.best_grade,
            seed=(self.split.index, event),
        )
        id = trajectory_id(self.collection, self.split, event)
        return build_trajectory(self.collection, id, self.query(event), outcome)


def _run_split(
    stream: Stream,
    system_factory: SystemFactory,
    rivals: Mapping[str, Baseline],
    tick: Callable[[], None],
    *,
    continuing: bool,
) -> SplitResult:
    collection, split = stream.collection, stream.split
    held_out = collection.queries[list(split.held_out)]
    relevant = [collection.relevant[query] for query in split.held_out]
    events = len(split.stream)

    def measure(ranking: Ranking) -> QueryScores:
        return score_ranking(ranking, relevant)

    learning_seconds = 0.0
    with closing(system_factory(collection)) as system:
        for event in range(events):
            shown = system.answer(stream.query(event)[np.newaxis])[system.served][0]
            trajectory = stream.trajectory(event, shown)
            started = time.perf_counter()
            system.observe(trajectory)
            learning_seconds += time.perf_counter() - started
            tick()
        if continuing:
            answers: list[Mapping[str, Ranking]] = []
            for event in range(events, events + len(held_out)):
                answers.append(system.answer(stream.query(event)[np.newaxis]))
                system.observe(stream.trajectory(event, answers[-1][system.served][0]))
            rankings = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
        else:
            rankings = dict(system.answer(held_out))
        served = system.served
        trace = Trace(tuple(system.lessons), system.in_force) if isinstance(system, Traced) else None
    helped = frozen_outcomes(collection, split, stream.feedback) if rivals else []
    return SplitResult(
        index=split.index,
        held_out=split.held_out,
        events=events,
        learning_us=learning_seconds * 1e6,
        served=served,
        strategies={
            FROZEN: measure(rank_documents(held_out, collection.unit_docs)),
            **{name: measure(ranking) for name, ranking in rankings.items()},
        },
        baselines={name: measure(rank(collection, split, helped)) for name, rank in rivals.items()},
        trace=trace,
    )


def build_trajectory(
    collection: Collection, id: uuid.UUID, query: FloatVector, outcome: list[Judgement]
) -> QueryTrajectory:
    """An answer with its outcome; documents by their ids, as an application records them."""
    builder = TrajectoryBuilder(id, query)
    for doc, reward, position in outcome:
        builder.add_step(None, None, reward, item_id=collection.doc_ids[doc], position=position)
    return builder.build()
