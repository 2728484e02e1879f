"""The door: what may be recorded in a space, and what is refused before anything is kept.

What passes is owned by the recorder: arrays are read-only copies where the caller could still write to them, numbers
are rounded to what the database keeps, so that a replay from there gives the same weights.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral

import numpy as np

from sona_pg.config import MAX_ID_BYTES, MAX_METADATA_BYTES, MAX_METADATA_DEPTH, MAX_STEPS, SpaceConfig
from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.kernels import is_held, owned, single
from sona_pg.types import (
    EMPTY,
    UNKNOWN_ANSWER,
    Answer,
    Json,
    QueryTrajectory,
    Score,
    TrajectoryStep,
    finite_or_none,
)

_SHORT = 128
"""Ids below this length are checked at once; longer ones byte by byte."""

REFUSALS = (InvalidInput, DimensionMismatch)
"""Errors that are the fault of what was recorded: it is set aside, and the rest goes through."""


def admitted(trajectory: QueryTrajectory, dim: int, space: SpaceConfig) -> QueryTrajectory:
    """The trajectory as it will be kept.

    Raises
    ------
    DimensionMismatch, InvalidInput
        If it cannot be recorded in the space; says what was found and what was expected.
    """
    if not isinstance(trajectory, QueryTrajectory):
        raise InvalidInput(f"a {type(trajectory).__name__} was given, expected a QueryTrajectory")
    if len(trajectory.steps) > MAX_STEPS:
        raise InvalidInput(f"the trajectory has {len(trajectory.steps)} steps, expected at most {MAX_STEPS}: split it")
    if not isinstance(trajectory.id, uuid.UUID):
        raise InvalidInput(f"trajectory id is {trajectory.id!r}, expected a UUID")
    _check_whole(trajectory.latency_us, "latency_us", 0, 1 << 63)
    for text, what in ((trajectory.user_id, "user id"), (trajectory.session_id, "session id")):
        if text is not None:
            checked_text(text, what)
    if trajectory.answer is not UNKNOWN_ANSWER:
        _check_answer(trajectory.answer)
    steps = trajectory.steps
    low, high = space.reward_min, space.reward_max
    if not all(_is_clean(step, dim, low, high) for step in steps):
        steps = tuple([_admitted_step(step, dim, space) for step in steps])
    query = owned(trajectory.query_embedding, dim, "query embedding")
    quality = checked_reward(trajectory.final_quality, space, "final quality")
    metadata = private_json(trajectory.metadata, "metadata")
    if (
        query is trajectory.query_embedding
        and steps is trajectory.steps
        and quality == trajectory.final_quality
        and not metadata
    ):
        return trajectory
    return replace(trajectory, query_embedding=query, steps=steps, final_quality=quality, metadata=metadata)


def _is_clean(step: TrajectoryStep, dim: int, low: float, high: float) -> bool:
    """Whether a step may be kept as it is, as far as can be seen at once: those of a builder may."""
    if type(step) is not TrajectoryStep:
        return False
    activations, weights, reward, _, item_id, position = step
    return (
        (activations is EMPTY or is_held(activations, dim))
        and (weights is EMPTY or is_held(weights))
        and (reward is None or (type(reward) is float and low <= reward <= high and single(reward) == reward))
        and (position is None or (type(position) is int and 0 < position < 1 << 31))
        and (
            activations is not EMPTY
            if item_id is None
            else type(item_id) is str and 0 < len(item_id) < _SHORT and item_id.isascii() and "\0" not in item_id
        )
    )


def _admitted_step(step: TrajectoryStep, dim: int, space: SpaceConfig) -> TrajectoryStep:
    if not isinstance(step, TrajectoryStep):
        raise InvalidInput(f"a step is a {type(step).__name__}, expected a TrajectoryStep")
    activations, weights, reward, timestamp, item_id, position = step
    if item_id is not None:
        checked_text(item_id, "item id")
    elif np.size(activations) == 0:
        raise InvalidInput("a step has neither activations nor an item: give it one of them")
    if position is not None:
        _check_whole(position, "position", 1, 1 << 31)
    return TrajectoryStep(
        EMPTY if np.size(activations) == 0 else owned(activations, dim, "activations"),
        EMPTY if np.size(weights) == 0 else owned(weights, -1, "attention weights"),
        checked_reward(reward, space, "reward"),
        timestamp,
        item_id,
        position,
    )


def admitted_score(score: Score, space: SpaceConfig) -> Score:
    """The score as it will be kept.

    Raises
    ------
    InvalidInput
        If it cannot be recorded in the space; says what was found and what was expected.
    """
    value = checked_reward(score.value, space, "score")
    if value is None:
        raise InvalidInput("the score is None: a score says what something was worth, leave out what nobody judged")
    if not isinstance(score.trajectory_id, uuid.UUID):
        raise InvalidInput(f"trajectory id is {score.trajectory_id!r}, expected the UUID that record returned")
    if score.item_id is not None:
        checked_text(score.item_id, "item id")
    checked_text(score.name, "name")
    checked_text(score.score_id, "score id")
    return replace(score, value=value)


def checked_reward(value: float | None, space: SpaceConfig, what: str) -> float | None:
    """The reward, rounded to single precision; refuses what is outside of the range that the space declares."""
    number = finite_or_none(value, what)
    if number is not None and not space.reward_min <= number <= space.reward_max:
        raise InvalidInput(
            f"{what} is {value!r}, expected {space.reward_min} to {space.reward_max}, the range that the space declares"
        )
    return number


def checked_text(text: str, what: str) -> str:
    """`text`, if Postgres can store and index it: valid Unicode, not empty, not too long, without NUL."""
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
    if (type(value) is not int and not isinstance(value, Integral)) or not low <= value < end:
        raise InvalidInput(f"{what} is {value!r}, expected a whole number from {low} to {end - 1}")


def _check_answer(answer: Answer) -> None:
    checked_text(answer.arm, "arm")
    checked_text(answer.strategy, "strategy")
    _check_whole(answer.version, "version", 0, 1 << 63)
    propensity = finite_or_none(answer.propensity, "propensity")
    if propensity is None or not 0 < propensity <= 1:
        raise InvalidInput(f"propensity is {answer.propensity!r}, expected a probability above 0")


def private_json(value: Mapping[str, Json], what: str) -> dict[str, Json]:
    """A copy of a JSON object that later changes of the caller's do not reach."""
    if isinstance(value, dict) and not value:
        return {}
    try:
        encoded = json.dumps(value, allow_nan=False, ensure_ascii=False)
        size = len(encoded.encode())
        copy = json.loads(encoded)
    except (TypeError, ValueError, RecursionError) as cause:
        raise InvalidInput(f"{what} is not JSON ({cause}): use strings, numbers, lists and dicts") from cause
    if size > MAX_METADATA_BYTES:
        raise InvalidInput(f"{what} has {size} bytes as JSON, expected at most {MAX_METADATA_BYTES}: shorten it")
    if not isinstance(copy, dict):
        raise InvalidInput(f"{what} is a {type(value).__name__}, expected a dict")
    # What is written here can be written elsewhere, further down the stack; few JSON has so many brackets at all.
    if encoded.count("[") + encoded.count("{") > MAX_METADATA_DEPTH and _depth(copy) > MAX_METADATA_DEPTH:
        raise InvalidInput(f"{what} is nested more than {MAX_METADATA_DEPTH} deep: make it flatter")
    if "\\u0000" in encoded and _holds_nul(copy):
        raise InvalidInput(f"{what} holds a NUL character, which Postgres cannot store: remove it")
    return copy


def _depth(value: Json) -> int:
    """How deep lists and dicts are nested, found without recursion."""
    depth, parts = 0, [value]
    while parts := [part for part in parts if isinstance(part, list | dict)]:
        depth += 1
        parts = [inner for part in parts for inner in (part.values() if isinstance(part, dict) else part)]
    return depth


def _holds_nul(value: Json) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_holds_nul(part) for pair in value.items() for part in pair)
    return isinstance(value, list) and any(_holds_nul(part) for part in value)
