"""The door: what may be recorded in a space, and what is refused before anything is kept."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace

from sona_pg.config import MAX_ID_BYTES, MAX_METADATA_BYTES, MAX_STEPS, SpaceConfig
from sona_pg.errors import InvalidInput
from sona_pg.kernels import as_vector
from sona_pg.types import EMPTY, UNKNOWN_ANSWER, Answer, QueryTrajectory, TrajectoryStep, finite_or_none


def admitted(trajectory: QueryTrajectory, dim: int, space: SpaceConfig) -> QueryTrajectory:
    """The trajectory, its arrays converted where they need it.

    Raises
    ------
    DimensionMismatch, InvalidInput
        If it cannot be recorded in the space; says what was found and what was expected.
    """
    if len(trajectory.steps) > MAX_STEPS:
        raise InvalidInput(f"the trajectory has {len(trajectory.steps)} steps, expected at most {MAX_STEPS}: split it")
    if not isinstance(trajectory.id, uuid.UUID):
        raise InvalidInput(f"trajectory id is {trajectory.id!r}, expected a UUID")
    _check_whole(trajectory.latency_us, "latency_us", 0, 1 << 63)
    query = as_vector(trajectory.query_embedding, dim, "query embedding")
    steps = trajectory.steps
    for step in steps:
        if _needs_conversion(step, dim):
            steps = tuple(_converted(s, dim) for s in steps)
            break
    for step in steps:
        checked_reward(step.reward, space, "reward")
        if step.item_id is not None:
            checked_text(step.item_id, "item id")
        if step.position is not None:
            _check_whole(step.position, "position", 1, 1 << 31)
    checked_reward(trajectory.final_quality, space, "final quality")
    for text, what in ((trajectory.user_id, "user id"), (trajectory.session_id, "session id")):
        if text is not None:
            checked_text(text, what)
    if trajectory.metadata:
        _check_json(trajectory)
    if trajectory.answer is not UNKNOWN_ANSWER:
        _check_answer(trajectory.answer)
    if query is trajectory.query_embedding and steps is trajectory.steps:
        return trajectory
    return replace(trajectory, query_embedding=query, steps=steps)


def _needs_conversion(step: TrajectoryStep, dim: int) -> bool:
    activations, weights = step.activations, step.attention_weights
    if activations is not EMPTY and as_vector(activations, dim, "activations") is not activations:
        return True
    return weights is not EMPTY and as_vector(weights, -1, "attention weights") is not weights


def _converted(step: TrajectoryStep, dim: int) -> TrajectoryStep:
    activations = step.activations
    if activations is not EMPTY:
        activations = as_vector(activations, dim, "activations")
    return step._replace(
        activations=activations, attention_weights=as_vector(step.attention_weights, -1, "attention weights")
    )


def checked_reward(value: float | None, space: SpaceConfig, what: str) -> None:
    """Refuse a reward that is no finite number, or outside of the range that the space declares."""
    if value is None:
        return
    number = finite_or_none(value, what)
    if number is not None and not space.reward_min <= number <= space.reward_max:
        raise InvalidInput(
            f"{what} is {value!r}, expected {space.reward_min} to {space.reward_max}, the range that the space declares"
        )


def checked_text(text: str, what: str) -> str:
    """`text`, if Postgres can store it: valid Unicode, not empty, without NUL."""
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidInput(f"{what} is {text!r}, expected a non-empty string without NUL characters")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as cause:
        raise InvalidInput(f"{what} is {text!r}, expected valid Unicode") from cause
    if size > MAX_ID_BYTES:
        raise InvalidInput(f"{what} has {size} bytes, expected at most {MAX_ID_BYTES}: hash longer ones")
    return text


def _check_whole(value: int, what: str, low: int, end: int) -> None:
    if not isinstance(value, int) or not low <= value < end:
        raise InvalidInput(f"{what} is {value!r}, expected a whole number from {low} to {end - 1}")


def _check_answer(answer: Answer) -> None:
    checked_text(answer.arm, "arm")
    checked_text(answer.strategy, "strategy")
    _check_whole(answer.version, "version", 0, 1 << 63)
    propensity = finite_or_none(answer.propensity, "propensity")
    if propensity is None or not 0 < propensity <= 1:
        raise InvalidInput(f"propensity is {answer.propensity!r}, expected a probability above 0")


def _check_json(trajectory: QueryTrajectory) -> None:
    try:
        encoded = json.dumps(trajectory.metadata, allow_nan=False, ensure_ascii=False)
        size = len(encoded.encode())
    except (TypeError, ValueError, RecursionError) as cause:
        raise InvalidInput(
            f"metadata is not JSON ({cause}): pass strings, numbers, lists and dicts of these"
        ) from cause
    if "\\u0000" in encoded:
        raise InvalidInput("metadata holds a NUL character, which Postgres cannot store: remove it")
    if size > MAX_METADATA_BYTES:
        raise InvalidInput(
            f"metadata has {size} bytes as JSON, expected at most {MAX_METADATA_BYTES}: store a reference"
        )
