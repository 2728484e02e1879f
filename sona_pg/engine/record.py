"""Record: what was answered, and what it was worth."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.engine.recalled import Recall
from sona_pg.engine.session import Session
from sona_pg.errors import InvalidInput
from sona_pg.ids import new_trajectory_id, new_trajectory_ids
from sona_pg.kernels import as_vector, owned
from sona_pg.learning.arrays import as_matrix
from sona_pg.loops.admission import admitted_score
from sona_pg.types import (
    EMPTY,
    UNKNOWN_ANSWER,
    Json,
    QueryTrajectory,
    Score,
    TrajectoryBuilder,
    TrajectoryStep,
    finite_or_none,
)

Rewards = Sequence[float | None] | Mapping[str, float | None]
"""What items were worth: one for each that was shown, or by item id."""

log = logging.getLogger("sona_pg")


class Recording(Session):
    """Takes what was answered; nothing here waits for the database."""

    def start(self, query: ArrayLike) -> TrajectoryBuilder:
        """Begin a trajectory whose steps are added one by one; hand it to `record`."""
        self.check_open()
        return TrajectoryBuilder(None, as_vector(query, self._space.dim, "query"))

    def record(
        self,
        answered: Recall | TrajectoryBuilder | QueryTrajectory | ArrayLike,
        item_ids: Sequence[str] | None = None,
        rewards: Rewards | None = None,
        quality: float | None = None,
        *,
        latency_us: int = 0,
        user_id: str | None = None,
        session_id: str | None = None,
        metadata: Mapping[str, Json] | None = None,
        trajectory_id: uuid.UUID | None = None,
    ) -> uuid.UUID:
        """Record what was answered and, as far as it is known, what it was worth. Never waits for the database.

        Parameters
        ----------
        answered
            What `recall` gave, a trajectory, or a query (dim,) whose items were found in another way.
        item_ids
            With a query: the items that were shown, best first.
        rewards
            What items were worth: one for each shown item, or by item id. An id that was not shown is an item that
            was judged all the same. None, and an item that is left out, is unjudged; 0 is unhelpful.
        quality
            What the whole answer was worth.
        latency_us
            Time that the answer took, microseconds.
        user_id, session_id, metadata
            Whatever the application wants to find again.
        trajectory_id
            With a query: an id of its own, so that recording it twice is refused.

        Returns
        -------
        uuid.UUID
            Id of the trajectory, for `score`.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If something is not valid; nothing was recorded.
        ConfigError
            If the engine is closed.
        """
        self.check_open()
        if isinstance(answered, QueryTrajectory | TrajectoryBuilder):
            timed = not isinstance(latency_us, int) or latency_us != 0
            if item_ids is not None or rewards is not None or trajectory_id is not None or timed:
                raise InvalidInput(
                    "a trajectory brings its own id, latency and steps: put items and rewards into add_step"
                )
            if isinstance(answered, TrajectoryBuilder):
                answered = answered.build(quality, user_id=user_id, session_id=session_id, metadata=metadata)
            elif quality is not None or user_id is not None or session_id is not None or metadata is not None:
                raise InvalidInput("a trajectory that is built already brings its quality, ids and metadata itself")
            self._check_shape(answered)
            return self._take(answered)
        scores: Sequence[float | None] = ()
        if isinstance(answered, Recall):
            if item_ids is not None or trajectory_id is not None:
                raise InvalidInput("what recall gave brings its own items and id: leave item_ids and trajectory_id out")
            query, trajectory_id, answer = answered.query, answered.trajectory_id, answered.answer
            item_ids = [item.item_id for item in answered.items]
            scores = [item.score for item in answered.items]
        else:
            query, answer = as_vector(answered, self._space.dim, "query").copy(), UNKNOWN_ANSWER
        return self._take(
            QueryTrajectory(
                id=new_trajectory_id() if trajectory_id is None else trajectory_id,
                query_embedding=query,
                steps=item_steps(() if item_ids is None else item_ids, rewards, scores),
                final_quality=quality,
                latency_us=latency_us,
                user_id=user_id,
                session_id=session_id,
                metadata={} if metadata is None else metadata,
                answer=answer,
            )
        )

    def _check_shape(self, trajectory: QueryTrajectory) -> None:
        """Refuse steps that the model which the settings declare cannot have made."""
        heads, layers = self._config.num_heads, self._config.num_layers
        if heads is None and layers is None:
            return
        acted = [step for step in trajectory.steps if isinstance(step, TrajectoryStep) and step.item_id is None]
        if layers is not None and len(acted) > layers:
            raise InvalidInput(f"the trajectory has {len(acted)} steps of a model with {layers} layers: one for each")
        for step in acted:
            count = np.size(step.attention_weights)
            if heads is not None and count % heads:
                raise InvalidInput(f"a step has {count} attention weights, expected rows of num_heads, {heads}")

    def record_batch(
        self,
        queries: ArrayLike,
        item_ids: Sequence[Sequence[str]] | None = None,
        rewards: Sequence[Rewards | None] | NDArray[np.floating] | None = None,
        qualities: Sequence[float | None] | NDArray[np.floating] | None = None,
        *,
        latencies_us: Sequence[int] | None = None,
        user_ids: Sequence[str | None] | None = None,
        session_ids: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Json] | None] | None = None,
        trajectory_ids: Sequence[uuid.UUID] | None = None,
        wait: bool = False,
    ) -> list[uuid.UUID]:
        """`record` for several queries at once, whose items were found in another way: all of them, or none.

        Parameters
        ----------
        queries
            Matrix (n, dim) of finite numbers.
        item_ids, rewards, qualities, latencies_us, user_ids, session_ids, metadata, trajectory_ids
            What `record` takes, for each query; `rewards` may be a matrix (n, k) where each was shown k items.
        wait
            Whether to wait where the buffers are full: this thread then learns and flushes what is in them. Without,
            nothing here waits for the database, and what is more than `InstantLoopConfig.max_unflushed` is dropped and
            counted in `metrics`.

        Returns
        -------
        list of uuid.UUID
            Ids of the trajectories, for `score`.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If something is not valid; says which row. Nothing was recorded.
        DatabaseError
            With `wait`, if neither the database nor the spool takes what the buffers hold; says how many rows, the
            first ones, were recorded.
        ConfigError
            If the engine is closed.
        """
        self.check_open()
        rows = as_matrix(queries, self._space.dim, "queries")
        n = len(rows)
        columns = (
            _column(item_ids, n, "item_ids"),
            _column(rewards, n, "rewards"),
            _column(qualities, n, "qualities"),
            _column(latencies_us, n, "latencies_us", 0),
            _column(user_ids, n, "user_ids"),
            _column(session_ids, n, "session_ids"),
            _column(metadata, n, "metadata"),
        )
        ids = new_trajectory_ids(n) if trajectory_ids is None else list(_column(trajectory_ids, n, "trajectory_ids"))
        made = (
            QueryTrajectory(
                id,
                owned(query),
                item_steps(() if items is None else items, worth, ()),
                quality,
                latency,
                user,
                session,
                {} if meta is None else meta,
            )
            for id, query, items, worth, quality, latency, user, session, meta in zip(ids, rows, *columns, strict=False)
        )
        try:
            taken = self._loop.on_inferences(made, wait=wait)
        finally:
            self._notify()
        if taken < n:
            log.warning("%d trajectories were dropped: the buffers are full", n - taken)
        return ids

    def _take(self, trajectory: QueryTrajectory) -> uuid.UUID:
        taken = self._loop.on_inference(trajectory)
        if not taken:
            log.warning("trajectory %s was dropped: the buffers are full", trajectory.id)
        self._notify()
        return trajectory.id

    def score(
        self,
        trajectory_id: uuid.UUID,
        value: float,
        item_id: str | None = None,
        *,
        name: str = "reward",
        score_id: str | None = None,
    ) -> None:
        """Say later what an answer, or one of its items, was worth. Never waits for the database.

        Parameters
        ----------
        trajectory_id
            What `record` gave; it may also come first, and the trajectory later.
        value
            What it was worth.
        item_id
            The item; None for the whole answer.
        name
            Which judgement this is.
        score_id
            An id of its own: the same id again is nothing.
        """
        self.check_open()
        given = str(uuid.uuid4()) if score_id is None else score_id
        score = admitted_score(Score(trajectory_id, value, item_id, name, given), self._space.config)
        if not self._loop.on_score(score):
            log.warning("score %s was dropped: the buffers are full", given)
        self._notify()


T = TypeVar("T")


def _column(
    given: Sequence[T] | NDArray[np.generic] | None, n: int, what: str, default: T | None = None
) -> Sequence[T]:
    """What is given for each of n rows; the default for each where nothing is."""
    if given is None:
        return [default] * n  # type: ignore[list-item]
    if isinstance(given, np.ndarray) and given.ndim:
        # Numbers of Python are checked faster than those of NumPy.
        given = cast("list[T]", given.tolist())
    if isinstance(given, np.ndarray) or not _is_list(given):
        raise InvalidInput(f"{what} is a {type(given).__name__}, expected one for each row")
    if len(given) != n:
        raise InvalidInput(f"{n} queries with {len(given)} {what}: one for each")
    return given


def item_steps(
    item_ids: Sequence[str],
    rewards: Rewards | None,
    scores: Sequence[float | None],
) -> tuple[TrajectoryStep, ...]:
    """The steps of a trajectory that showed items, best first, with what they were worth and their scores, if any."""
    if not _is_list(item_ids):
        raise InvalidInput(f"item_ids is a {type(item_ids).__name__}, expected a list of strings")
    n = len(item_ids)
    by_item: Sequence[float | None]
    marked: list[tuple[str, float | None]] = []
    if rewards is None:
        by_item = [None] * n
    elif isinstance(rewards, dict) or not (_is_list(rewards) or isinstance(rewards, np.ndarray)):
        if not isinstance(rewards, Mapping):
            raise InvalidInput(
                f"rewards is a {type(rewards).__name__}, expected a list of numbers, or a dict by item id"
            )
        try:
            shown = set(item_ids)
        except TypeError as cause:
            raise InvalidInput(f"an item id is no string ({cause})") from cause
        marked = [(item, reward) for item, reward in rewards.items() if item not in shown]
        by_item = [rewards.get(item) for item in item_ids]
    elif isinstance(rewards, np.ndarray) and rewards.ndim != 1:
        raise InvalidInput(f"rewards have shape {rewards.shape}, expected one for each item")
    elif len(rewards) != n:
        raise InvalidInput(f"{n} items with {len(rewards)} rewards: one reward, or None, for each item")
    else:
        by_item = cast(Sequence[float | None], rewards)
    weights = [np.array([score], dtype=np.float32) for score in scores] if scores else [EMPTY] * n
    steps = [
        TrajectoryStep(EMPTY, weight, finite_or_none(reward, "reward"), 0.0, item, place)
        for place, item, reward, weight in zip(range(1, n + 1), item_ids, by_item, weights, strict=True)
    ]
    if marked:
        steps += [
            TrajectoryStep(EMPTY, EMPTY, finite_or_none(worth, "reward"), 0.0, item, None) for item, worth in marked
        ]
    return tuple(steps)


def _is_list(value: object) -> bool:
    """Whether it is a sequence of things; the usual ones are told at once."""
    return isinstance(value, list | tuple) or (isinstance(value, Sequence) and not isinstance(value, str | bytes))
