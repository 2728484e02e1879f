"""What is recorded and what it teaches: trajectories, their steps, and learning signals. No I/O, no database."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.config import MAX_STEPS, SignalConfig
from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.ids import new_trajectory_id
from sona_pg.kernels import owned, single

FloatVector = NDArray[np.float32]
Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]

EMPTY: FloatVector = np.zeros(0, dtype=np.float32)
EMPTY.setflags(write=False)


class TrajectoryStep(NamedTuple):
    """One step: what was produced or shown, and what it was worth.

    Parameters
    ----------
    activations
        float32 (dim,); for retrieval the embedding of the item. Empty where the item is known by its id alone.
    attention_weights
        float32 (any,); for retrieval the score of the item.
    reward
        What it was worth; None is unjudged, 0 is unhelpful.
    timestamp
        Seconds since the epoch.
    item_id
        The item that was shown, where there is one.
    position
        1-based place at which it was shown; None for an item that was judged without having been shown.
    """

    activations: FloatVector
    attention_weights: FloatVector
    reward: float | None
    timestamp: float
    item_id: str | None = None
    position: int | None = None


UNKNOWN = "unknown"
"""Strategy of an answer that `recall` did not give."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How an answer came about: carried from `recall` to `record`.

    Parameters
    ----------
    arm
        'learned' or 'control'.
    version
        Version of the adapter that answered.
    strategy
        Name of the strategy that answered.
    propensity
        Probability with which this arm was drawn.
    """

    arm: str = "learned"
    version: int = 0
    strategy: str = UNKNOWN
    propensity: float = 1.0


UNKNOWN_ANSWER = Answer()
"""Of a trajectory that was not answered by `recall`."""


@dataclass(frozen=True, slots=True)
class QueryTrajectory:
    """A query, what was done for it, and what it was worth.

    Parameters
    ----------
    id
        Trajectory id; also keys the randomness of what is learned from it.
    query_embedding
        float32 (dim,).
    steps
        What was produced or shown, in order.
    final_quality
        Overall quality; None while unknown.
    latency_us
        Time that the answer took, microseconds.
    user_id, session_id, metadata
        Whatever the application wants to find again; metadata must be JSON.
    answer
        How the answer came about.
    """

    id: uuid.UUID
    query_embedding: FloatVector
    steps: tuple[TrajectoryStep, ...] = ()
    final_quality: float | None = None
    latency_us: int = 0
    user_id: str | None = None
    session_id: str | None = None
    metadata: Mapping[str, Json] = field(default_factory=dict)
    answer: Answer = UNKNOWN_ANSWER

    @property
    def has_outcome(self) -> bool:
        """Whether anything in it was judged."""
        return self.final_quality is not None or any(step.reward is not None for step in self.steps)

    @property
    def shows_items(self) -> bool:
        """Whether its steps are items, so that it teaches the query adapter."""
        return any(step.item_id is not None for step in self.steps)


@dataclass(frozen=True, slots=True)
class Score:
    """An outcome that comes after its trajectory, or corrects it.

    Parameters
    ----------
    trajectory_id
        The trajectory that is scored.
    value
        What it was worth.
    item_id
        The item that is scored; None scores the whole answer.
    name
        Which judgement this is.
    score_id
        The same id again is nothing.
    """

    trajectory_id: uuid.UUID
    value: float
    item_id: str | None
    name: str
    score_id: str


class TrajectoryBuilder:
    """Collects the steps of a trajectory while it runs.

    Parameters
    ----------
    id
        Trajectory id; a whole number is taken as the value of the UUID, None makes a new one.
    query_embedding
        Vector (dim,) of finite numbers; copied.

    Examples
    --------
    >>> builder = TrajectoryBuilder(1, [0.1, 0.2, 0.3])
    >>> builder.add_step([0.5, 0.3, 0.2], [0.4, 0.4, 0.2], 0.75)
    >>> builder.build(0.75).final_quality
    0.75
    """

    def __init__(self, id: int | uuid.UUID | None, query_embedding: ArrayLike) -> None:
        self._id = _as_uuid(id)
        self._query = _owned(query_embedding, -1, "query embedding")
        if self._query.size == 0:
            raise InvalidInput("query embedding is empty, expected a vector with at least one component")
        self._steps: list[TrajectoryStep] = []
        self._started = time.perf_counter()

    def add_step(
        self,
        activations: ArrayLike | None,
        attention_weights: ArrayLike | None = None,
        reward: float | None = None,
        *,
        item_id: str | None = None,
        position: int | None = None,
    ) -> None:
        """Append a step; arrays are copied, so that the caller may use its own again.

        Raises
        ------
        DimensionMismatch
            If the activations have another dimension than the query.
        InvalidInput
            If a number is NaN or infinite, a step has neither activations nor an item, or there are too many steps.
        """
        if len(self._steps) >= MAX_STEPS:
            raise InvalidInput(f"a trajectory has at most {MAX_STEPS} steps: build this one and start another")
        if activations is None:
            if item_id is None:
                raise InvalidInput("a step needs activations or the id of an item")
            held = EMPTY
        else:
            held = _owned(activations, self._query.size, "activations")
        weights = EMPTY if attention_weights is None else _owned(attention_weights, -1, "attention weights")
        self._steps.append(
            TrajectoryStep(held, weights, finite_or_none(reward, "reward"), time.time(), item_id, position)
        )

    @property
    def id(self) -> uuid.UUID:
        """The id that the trajectory will have."""
        return self._id

    @property
    def step_count(self) -> int:
        """How many steps there are so far."""
        return len(self._steps)

    @property
    def elapsed(self) -> float:
        """Seconds since the trajectory was started."""
        return time.perf_counter() - self._started

    def build(
        self,
        final_quality: float | None = None,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        metadata: Mapping[str, Json] | None = None,
        answer: Answer | None = None,
    ) -> QueryTrajectory:
        """The trajectory so far, its latency measured from the start to now."""
        return QueryTrajectory(
            id=self._id,
            query_embedding=self._query,
            steps=tuple(self._steps),
            final_quality=finite_or_none(final_quality, "final quality"),
            latency_us=int(self.elapsed * 1e6),
            user_id=user_id,
            session_id=session_id,
            metadata={} if metadata is None else metadata,
            answer=UNKNOWN_ANSWER if answer is None else answer,
        )


@dataclass(frozen=True, slots=True)
class SignalMetadata:
    """Where a signal came from.

    Parameters
    ----------
    trajectory_id
        None for a signal that was made by hand.
    step_count
        How many steps were behind it.
    has_advantage
        Whether the gradient already says better or worse, so that quality must not sign it again.
    explicit_feedback
        What somebody has said that the whole answer was worth; None where only its items were judged, or nothing.
    latency_us
        Time that the answer took, microseconds; 0 where nobody has measured it.
    model_tier
        Which model answered, as the application has recorded it: ``model_tier`` of the metadata, or of the parameters
        in them.
    """

    trajectory_id: uuid.UUID | None = None
    step_count: int = 0
    has_advantage: bool = False
    explicit_feedback: float | None = None
    latency_us: int = 0
    model_tier: str | None = None


@dataclass(frozen=True, slots=True)
class LearningSignal:
    """What one trajectory teaches.

    Parameters
    ----------
    query_embedding, gradient_estimate
        float32 (dim,): the input, and the direction in which its output should move.
    quality_score
        How good the trajectory was.
    timestamp
        Seconds since the epoch.
    metadata
        Where it came from.
    """

    query_embedding: FloatVector
    gradient_estimate: FloatVector
    quality_score: float
    timestamp: float = field(default_factory=time.time)
    metadata: SignalMetadata = SignalMetadata()

    @classmethod
    def from_trajectory(
        cls, trajectory: QueryTrajectory, *, baseline: float | None = None, config: SignalConfig | None = None
    ) -> LearningSignal:
        """The REINFORCE estimate ``Σ (reward - b) · activation`` (Williams 1992).

        The baseline b is the mean reward of the trajectory. Where all its rewards are equal, or there is only one, it
        has no advantage of its own; `baseline`, the running mean reward of the space, is used then, and without it the
        estimate is zero. Steps without a reward or without activations are left out; where no step has a reward, the
        final quality is that of every step. The size of the rewards is kept; only the norm is bounded.

        Raises
        ------
        DimensionMismatch
            If a step has another dimension than the query.
        """
        config = SignalConfig() if config is None else config
        query = trajectory.query_embedding
        acted = [s for s in trajectory.steps if s.activations.size]
        judged = [s for s in acted if s.reward is not None]
        gradient = np.zeros(query.size, dtype=np.float64)
        rewards = np.array([s.reward for s in judged], dtype=np.float64)
        if not judged and trajectory.final_quality is not None:
            judged, rewards = acted, np.full(len(acted), trajectory.final_quality)
        if len(judged) and np.ptp(rewards) > 0:
            baseline = float(rewards.mean())
        if baseline is not None:
            for step, reward in zip(judged, rewards, strict=True):
                if step.activations.size != query.size:
                    raise DimensionMismatch(query.size, step.activations.size, "activations")
                gradient += (reward - baseline) * step.activations.astype(np.float64)
        norm = float(np.linalg.norm(gradient))
        if norm > config.max_gradient_norm:
            gradient *= config.max_gradient_norm / norm
        quality = trajectory.final_quality
        if quality is None:
            quality = float(rewards.mean()) if len(judged) else 0.0
        return cls(
            query_embedding=query,
            gradient_estimate=gradient.astype(np.float32),
            quality_score=quality,
            metadata=SignalMetadata(
                trajectory.id,
                len(trajectory.steps),
                has_advantage=True,
                explicit_feedback=trajectory.final_quality,
                latency_us=trajectory.latency_us,
                model_tier=_model_tier(trajectory.metadata),
            ),
        )

    @classmethod
    def with_gradient(cls, embedding: ArrayLike, gradient: ArrayLike, quality: float) -> LearningSignal:
        """A signal from a gradient that the caller computed; `quality` against the running baseline signs it."""
        query = _owned(embedding, -1, "embedding")
        score = finite_or_none(quality, "quality")
        if score is None:
            raise InvalidInput("quality is None: a signal needs a number")
        return cls(query, _owned(gradient, query.size, "gradient"), score)


def _model_tier(metadata: Mapping[str, Json]) -> str | None:
    parameters = metadata.get("parameters")
    given = metadata.get("model_tier", parameters.get("model_tier") if isinstance(parameters, Mapping) else None)
    return given if isinstance(given, str) else None


def finite_or_none(value: float | None, what: str) -> float | None:
    """`value` as a float, or None; refuses NaN, infinity and what is no number."""
    if value is None:
        return None
    if type(value) is not float and not isinstance(value, float | int | np.floating | np.integer | np.bool_):
        raise InvalidInput(f"{what} is {value!r}, expected a number or None")
    if not -3.4e38 < value < 3.4e38:
        raise InvalidInput(f"{what} is {value!r}, expected a finite number")
    # As the database keeps it: a replay from there must give the same weights.
    return single(value)


def is_whole(value: object) -> bool:
    """Whether it is a whole number of Python or NumPy; a truth value is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a real number of Python or NumPy; a truth value is none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def as_seconds(time: float, what: str = "now") -> float:
    """A time as it is, seconds since the epoch: single precision would lose minutes of it.

    Raises
    ------
    InvalidInput
        If it is none.
    """
    if not is_number(time) or not -1e15 < time < 1e15:
        raise InvalidInput(f"{what} is {time!r}, expected seconds since the epoch")
    return float(time)


def _owned(value: ArrayLike, dim: int, what: str) -> FloatVector:
    return owned(value, dim, what)


def _as_uuid(id: int | uuid.UUID | None) -> uuid.UUID:
    if id is None:
        return new_trajectory_id()
    if isinstance(id, uuid.UUID):
        return id
    if not isinstance(id, int) or not 0 <= id < 1 << 128:
        raise InvalidInput(f"trajectory id is {id!r}, expected a UUID or a whole number below 2**128")
    return uuid.UUID(int=id)
