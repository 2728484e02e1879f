"""The door: arrays are converted, what cannot be recorded is refused with a typed error, and nothing of it is kept."""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
import pytest

from sona_pg.config import (
    MAX_ID_BYTES,
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    MAX_STEPS,
    InstantLoopConfig,
    QueryAdapterConfig,
    SpaceConfig,
)
from sona_pg.errors import DimensionMismatch, InvalidInput, SonaError
from sona_pg.loops.admission import admitted
from sona_pg.loops.instant import InstantLoop
from sona_pg.loops.metrics import InstantLoopMetrics
from sona_pg.types import EMPTY, Answer, QueryTrajectory, TrajectoryStep

from .samples import acted, axis, bits, floats, shown, trajectory

DIM = 4
QUERY = axis(0, DIM)
SPACE = SpaceConfig()


def nested(depth: int) -> list[object]:
    """A list in a list, `depth` of them."""
    made: list[object] = []
    for _ in range(depth - 1):
        made = [made]
    return made


DEEP = nested(100_000)


def with_step(**changes: object) -> QueryTrajectory:
    good = acted(axis(1, DIM), 1.0)
    return trajectory(QUERY, [good, good._replace(**changes)])  # type: ignore[arg-type]


def having(**changes: object) -> QueryTrajectory:
    return replace(trajectory(QUERY, [acted(axis(1, DIM), 1.0)]), **changes)  # type: ignore[arg-type]


BAD: dict[str, tuple[QueryTrajectory, type[SonaError], str]] = {
    "query dim": (
        having(query_embedding=axis(0, 3)),
        DimensionMismatch,
        r"query embedding has 3 dim.* expected 4",
    ),
    "query NaN": (having(query_embedding=axis(0, DIM, np.nan)), InvalidInput, "query embedding holds NaN"),
    "query infinite": (having(query_embedding=axis(0, DIM, np.inf)), InvalidInput, "query embedding holds NaN or inf"),
    "query matrix": (having(query_embedding=QUERY[None]), InvalidInput, r"query embedding has shape \(1, 4\)"),
    "query text": (having(query_embedding="abcd"), InvalidInput, "query embedding is not a vector"),
    "query None": (having(query_embedding=None), InvalidInput, "query embedding is not a vector"),
    "activations dim": (
        with_step(activations=axis(0, 5)),
        DimensionMismatch,
        r"activations has 5 dim.* expected 4",
    ),
    "activations NaN": (with_step(activations=axis(0, DIM, np.nan)), InvalidInput, "activations holds NaN"),
    "activations None": (with_step(activations=None), InvalidInput, "activations is not a vector"),
    "attention NaN": (with_step(attention_weights=axis(0, 2, np.nan)), InvalidInput, "attention weights holds NaN"),
    "reward NaN": (with_step(reward=np.nan), InvalidInput, "reward is nan, expected a finite number"),
    "reward infinite": (with_step(reward=np.inf), InvalidInput, "reward is inf, expected a finite number"),
    "reward above": (
        with_step(reward=1.5),
        InvalidInput,
        "reward is 1.5, expected 0.0 to 1.0, the range",
    ),
    "reward below": (with_step(reward=-0.5), InvalidInput, "reward is -0.5, expected 0.0 to 1.0"),
    "reward list": (with_step(reward=[1.0]), InvalidInput, r"reward is \[1.0\], expected a number"),
    "reward text": (with_step(reward="0.8"), InvalidInput, "reward is '0.8', expected a number"),
    "quality NaN": (having(final_quality=np.nan), InvalidInput, "final quality is nan"),
    "quality above": (having(final_quality=2), InvalidInput, "final quality is 2, expected 0.0 to 1.0"),
    "quality text": (having(final_quality="0.8"), InvalidInput, "final quality is '0.8', expected a number"),
    "item empty": (with_step(item_id=""), InvalidInput, "item id is '', expected a non-empty string"),
    "item NUL": (with_step(item_id="a\0b"), InvalidInput, r"item id is .* expected a non-empty string without NUL"),
    "item number": (with_step(item_id=3), InvalidInput, "item id is 3, expected a non-empty string"),
    "item surrogate": (with_step(item_id="\ud800"), InvalidInput, r"item id is .* expected valid Unicode"),
    "item long": (
        with_step(item_id="a" * (MAX_ID_BYTES + 1)),
        InvalidInput,
        "item id has 501 bytes, expected at most 500",
    ),
    "position 0": (with_step(position=0), InvalidInput, "position is 0, expected a whole number from 1"),
    "position fraction": (with_step(position=1.5), InvalidInput, "position is 1.5, expected a whole number"),
    "position large": (with_step(position=1 << 31), InvalidInput, "position is 2147483648, expected a whole number"),
    "arm": (having(answer=Answer(arm="")), InvalidInput, "arm is ''"),
    "strategy": (having(answer=Answer(strategy="\0")), InvalidInput, "strategy is"),
    "version": (having(answer=Answer(version=-1)), InvalidInput, "version is -1"),
    "propensity NaN": (having(answer=Answer(propensity=np.nan)), InvalidInput, "propensity is nan"),
    "propensity 0": (having(answer=Answer(propensity=0)), InvalidInput, "propensity is 0, expected a probability"),
    "user": (having(user_id=""), InvalidInput, "user id is ''"),
    "session": (having(session_id="\0"), InvalidInput, "session id is"),
    "metadata NaN": (having(metadata={"a": np.nan}), InvalidInput, "metadata is not JSON"),
    "metadata object": (having(metadata={"a": object()}), InvalidInput, "metadata is not JSON"),
    "metadata NUL": (having(metadata={"a": ["\0"]}), InvalidInput, "metadata holds a NUL character"),
    "metadata surrogate": (having(metadata={"a": "\ud800"}), InvalidInput, "metadata is not JSON"),
    "metadata large": (having(metadata={"a": "b" * MAX_METADATA_BYTES}), InvalidInput, r"metadata has \d+ bytes"),
    "metadata deep": (having(metadata={"a": nested(MAX_METADATA_DEPTH)}), InvalidInput, "nested more than 100 deep"),
    "metadata deep with NUL": (having(metadata={"a": nested(600), "b": "\0"}), InvalidInput, "metadata is nested"),
    "metadata too deep": (having(metadata={"a": DEEP}), InvalidInput, "metadata is not JSON"),
    "id": (having(id=7), InvalidInput, "trajectory id is 7, expected a UUID"),
    "latency": (having(latency_us=1 << 63), InvalidInput, "latency_us is 9223372036854775808, expected a whole"),
    "latency below 0": (having(latency_us=-1), InvalidInput, "latency_us is -1"),
    "steps": (having(steps=(acted(QUERY, None),) * (MAX_STEPS + 1)), InvalidInput, "has 10001 steps, expected at most"),
    "empty step": (with_step(activations=EMPTY), InvalidInput, "step"),
}


def make_loop(space: SpaceConfig | None = None) -> InstantLoop:
    return InstantLoop(DIM, InstantLoopConfig(), adapter=QueryAdapterConfig(rank=2), space=space)


@pytest.mark.parametrize(("bad", "error", "message"), BAD.values(), ids=BAD)
def test_bad_trajectory_is_refused_and_nothing_of_it_is_kept(
    bad: QueryTrajectory, error: type[SonaError], message: str
) -> None:
    loop = make_loop()
    with pytest.raises(error, match=message):
        loop.on_inference(bad)
    assert loop.metrics == InstantLoopMetrics()
    good = trajectory(QUERY, [acted(axis(1, DIM), 1.0), acted(axis(2, DIM), 0.0)], id=2)
    assert loop.on_inference(good)
    loop.flush_updates()
    assert loop.metrics == InstantLoopMetrics(recorded=1, learned=1)
    assert [t.id.int for t in loop.drain_trajectories()] == [2]


@pytest.mark.parametrize(
    "extreme",
    [
        trajectory(QUERY, [acted(axis(1, DIM, 3e38), 1.0)] * 3 + [acted(axis(1, DIM, -3e38), 0.0)] * 3),
        trajectory(np.full(DIM, 3e38), [acted(axis(1, DIM), 1.0), acted(axis(2, DIM), 0.0)]),
        trajectory(np.full(DIM, 3e38), [shown("a", 1.0, axis(1, DIM)), shown("b", 0.0, axis(2, DIM))]),
        trajectory(QUERY, [shown("a", 1.0, axis(1, DIM, 3e38)), shown("b", 0.0, np.full(DIM, 3e38, np.float32))]),
        trajectory(np.full(DIM, 1e-42), [shown("a", 1.0, axis(1, DIM, 1e-42)), shown("b", 0.0, axis(2, DIM))]),
    ],
    ids=["activations", "query of steps", "query of items", "items", "denormal"],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_extreme_but_finite_trajectory_is_refused_or_does_not_stop_learning(extreme: QueryTrajectory) -> None:
    loop = make_loop()
    try:
        loop.on_inference(extreme)
    except InvalidInput:
        return
    for number in range(2, 12):
        steps = [acted(axis(1, DIM), 1.0), acted(axis(2, DIM), 0.0)]
        loop.on_inference(trajectory(QUERY, steps, id=number))
    loop.flush_updates()
    assert loop.metrics.learned >= 10
    assert np.isfinite(loop.serving.adapt(QUERY)).all()


def test_arrays_of_a_hand_made_trajectory_are_converted() -> None:
    exact = [0.5, -0.25, 2.0, 0.125]
    step = TrajectoryStep(np.array(exact), [0.5, 0.25], 1.0, 0.0)  # type: ignore[arg-type]
    column = np.array([[v + 1, 9.0] for v in exact], dtype=np.float32)[:, 0]
    given = replace(trajectory(QUERY, [step, acted(column, 0.0)]), query_embedding=np.array(exact, dtype=np.float64))
    loop = make_loop()
    assert loop.on_inference(given)
    loop.flush_updates()
    assert loop.metrics.learned == 1
    [kept] = loop.drain_trajectories()
    arrays = [kept.query_embedding, *(s.activations for s in kept.steps), kept.steps[0].attention_weights]
    for array in arrays:
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
    assert [array.tolist() for array in arrays] == [exact, exact, [v + 1 for v in exact], [0.5, 0.25]]


def test_what_is_kept_is_out_of_reach_of_the_caller() -> None:
    query, activations, weights, metadata = axis(0, DIM), axis(1, DIM), floats([0.5, 0.25]), {"k": {"n": [1, 2]}}
    step = TrajectoryStep(activations, weights, 1.0, 0.0)
    given = replace(trajectory(query, [step, shown("a", None)], quality=0.5), metadata=metadata)
    kept = admitted(given, DIM, SPACE)
    assert kept is not given
    arrays = [kept.query_embedding, kept.steps[0].activations, kept.steps[0].attention_weights]
    for array in (*arrays, kept.steps[1].activations, kept.steps[1].attention_weights):
        assert not array.flags.writeable
    query[:] = activations[:] = weights[:] = 9
    metadata["k"]["n"].append(3)
    metadata["new"] = {}
    assert [array.tolist() for array in arrays] == [[1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.25]]
    assert kept.metadata == {"k": {"n": [1, 2]}}


def test_read_only_arrays_are_not_copied() -> None:
    query, activations, weights = axis(0, DIM), axis(1, DIM), floats([0.5, 0.25])
    for array in (query, activations, weights):
        array.setflags(write=False)
    kept = admitted(trajectory(query, [TrajectoryStep(activations, weights, 1.0, 0.0)]), DIM, SPACE)
    assert kept.query_embedding is query
    assert kept.steps[0].activations is activations
    assert kept.steps[0].attention_weights is weights
    assert admitted(kept, DIM, SPACE).query_embedding is query


def test_rewards_and_quality_are_rounded_to_what_the_database_keeps() -> None:
    kept = admitted(trajectory(QUERY, [acted(axis(1, DIM), 0.8), acted(axis(1, DIM), None)], quality=0.1), DIM, SPACE)
    assert [step.reward for step in kept.steps] == [0.800000011920929, None]
    assert kept.final_quality == 0.10000000149011612
    again = admitted(kept, DIM, SPACE)
    assert (again.steps[0].reward, again.final_quality) == (0.800000011920929, 0.10000000149011612)


@pytest.mark.parametrize(("low", "high"), [(-0.8, 0.8), (0.7, 0.9), (-0.7, 0.3)])
def test_bounds_that_single_precision_rounds_outwards_belong_to_the_range_too(low: float, high: float) -> None:
    space = SpaceConfig(reward_min=low, reward_max=high)
    for reward in (low, high):
        kept = admitted(having(steps=(acted(axis(1, DIM), reward),), final_quality=reward), DIM, space)
        assert (kept.steps[0].reward, kept.final_quality) == (pytest.approx(reward), pytest.approx(reward))


def test_item_without_activations_is_taken_whichever_empty_array_says_so() -> None:
    given = trajectory(QUERY, [shown("a", 1.0, np.zeros(0, dtype=np.float32)), shown("b", None)])
    kept = admitted(given, DIM, SPACE)
    assert [step.activations.size for step in kept.steps] == [0, 0]


def test_bounds_of_the_declared_range_belong_to_it() -> None:
    space = SpaceConfig(reward_min=-2.0, reward_max=3.0)
    for reward in (-2.0, 0, 3.0, None, np.float32(1.5), True):
        admitted(with_step(reward=reward), DIM, space)
        admitted(having(final_quality=reward), DIM, space)
    for reward in (-2.1, 3.1):
        with pytest.raises(InvalidInput, match=r"expected -2.0 to 3.0"):
            admitted(with_step(reward=reward), DIM, space)


def test_conversion_keeps_everything_else() -> None:
    given = replace(
        trajectory(QUERY, [shown("a", 1.0, np.zeros(DIM), position=3)], quality=0.5),  # type: ignore[arg-type]
        id=uuid.UUID(int=9),
        user_id="ü",
        session_id="s",
        metadata={"k": {"n": [1, 2.5, None, True]}},
        latency_us=12,
        query_embedding=np.array(QUERY, dtype=np.float64),
    )
    kept = admitted(given, DIM, SPACE)
    assert bits(kept.query_embedding) == bits(floats(QUERY))
    assert replace(kept, query_embedding=QUERY, steps=()) == replace(given, query_embedding=QUERY, steps=())
    assert kept.steps[0]._replace(activations=EMPTY) == given.steps[0]._replace(activations=EMPTY)


def test_metadata_as_deep_as_may_be_is_kept() -> None:
    metadata = {"a": nested(MAX_METADATA_DEPTH - 1), "b": [[]] * MAX_METADATA_DEPTH}
    assert admitted(replace(trajectory(QUERY, [], quality=0.5), metadata=metadata), DIM, SPACE).metadata == metadata
