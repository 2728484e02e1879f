"""TrajectoryBuilder, trajectories, and their ids."""

from __future__ import annotations

import time
import uuid

import numpy as np
import pytest

from sona_pg import ids, types
from sona_pg.config import MAX_STEPS
from sona_pg.errors import DimensionMismatch, InvalidInput, LearningError, SonaError
from sona_pg.ids import learning_seed, new_trajectory_id
from sona_pg.types import EMPTY, Answer, QueryTrajectory, TrajectoryBuilder

from .samples import acted, floats, shown, trajectory

VALUES = [0.5, -0.25, 2.0]


def test_builder_gives_what_was_put_in() -> None:
    builder = TrajectoryBuilder(7, VALUES)
    builder.add_step([1, 2, 3], [0.5, 0.5], 0.8)
    builder.add_step(None, [0.9], None, item_id="a", position=1)
    assert builder.step_count == 2
    answer = Answer("control", 3, "frozen", 0.05)
    built = builder.build(0.6, user_id="u", session_id="s", metadata={"k": [1, None]}, answer=answer)
    assert built.id == builder.id == uuid.UUID(int=7)
    assert built.query_embedding.tolist() == VALUES
    first, second = built.steps
    assert first.activations.tolist() == [1, 2, 3]
    assert first.attention_weights.tolist() == [0.5, 0.5]
    assert (first.reward, first.item_id, first.position) == (0.800000011920929, None, None)  # as float32
    assert second.activations is EMPTY
    assert (second.reward, second.item_id, second.position) == (None, "a", 1)
    assert (built.final_quality, built.user_id, built.session_id) == (0.6000000238418579, "u", "s")
    assert built.metadata == {"k": [1, None]}
    assert built.answer == answer


def test_latency_is_the_time_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.25, 10.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    builder = TrajectoryBuilder(1, VALUES)
    assert builder.elapsed == 0.25
    assert builder.build().latency_us == 500_000


def test_trajectory_that_was_built_is_not_changed_by_further_steps() -> None:
    builder = TrajectoryBuilder(1, VALUES)
    builder.add_step(VALUES)
    built = builder.build()
    builder.add_step(VALUES)
    assert len(built.steps) == 1
    assert len(builder.build().steps) == 2


def test_arrays_are_copied_so_that_the_caller_may_use_its_own_again() -> None:
    query, activations, weights = floats(VALUES), floats(VALUES), floats(VALUES)
    builder = TrajectoryBuilder(1, query)
    builder.add_step(activations, weights)
    for array in (query, activations, weights):
        array[:] = 9
    built = builder.build()
    assert built.query_embedding.tolist() == VALUES
    assert built.steps[0].activations.tolist() == VALUES
    assert built.steps[0].attention_weights.tolist() == VALUES


def test_view_is_copied_too() -> None:
    block = np.ones((2, 3), dtype=np.float32)
    built = TrajectoryBuilder(1, block[0]).build()
    block[:] = 9
    assert built.query_embedding.tolist() == [1, 1, 1]


def test_object_that_lends_its_own_array_keeps_it() -> None:
    class Lender:
        """What an array library may do: give the array that it works on."""

        own = floats(VALUES)

        def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
            return self.own

    built = TrajectoryBuilder(1, Lender()).build()  # type: ignore[arg-type]
    Lender.own[:] = 9
    assert built.query_embedding.tolist() == VALUES


@pytest.mark.parametrize(
    "given",
    [
        VALUES,
        tuple(VALUES),
        np.array(VALUES, dtype=np.float64),
        np.array(VALUES, dtype=np.float16),
        np.array(VALUES, dtype=">f4"),
        np.array([[v, 9.0] for v in VALUES], dtype=np.float32)[:, 0],
        np.array(VALUES[::-1], dtype=np.float32)[::-1],
    ],
    ids=["list", "tuple", "float64", "float16", "big-endian", "column", "reversed"],
)
def test_any_kind_of_vector_is_converted(given: object) -> None:
    builder = TrajectoryBuilder(1, given)  # type: ignore[arg-type]
    builder.add_step(given, given)  # type: ignore[arg-type]
    built = builder.build()
    for array in (built.query_embedding, built.steps[0].activations, built.steps[0].attention_weights):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert not array.flags.writeable
        assert array.tolist() == VALUES


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_refused_and_the_steps_before_it_stay(bad: float) -> None:
    with pytest.raises(InvalidInput, match="query embedding holds NaN or infinity"):
        TrajectoryBuilder(1, [bad, 1.0])
    builder = TrajectoryBuilder(1, VALUES)
    builder.add_step(VALUES, reward=1.0)
    with pytest.raises(InvalidInput, match="activations holds NaN or infinity"):
        builder.add_step([1, bad, 3])
    with pytest.raises(InvalidInput, match="attention weights holds NaN or infinity"):
        builder.add_step(VALUES, [bad])
    with pytest.raises(InvalidInput, match=r"reward is .*, expected a finite number"):
        builder.add_step(VALUES, reward=bad)
    with pytest.raises(InvalidInput, match=r"final quality is .*, expected a finite number"):
        builder.build(bad)
    assert builder.step_count == 1
    assert builder.build(0.5).steps[0].reward == 1.0


def test_refusals_say_what_was_found_and_what_was_expected() -> None:
    builder = TrajectoryBuilder(1, VALUES)
    with pytest.raises(DimensionMismatch, match="activations has 2 dimensions, expected 3") as refused:
        builder.add_step([1, 2])
    assert (refused.value.expected, refused.value.actual) == (3, 2)
    with pytest.raises(InvalidInput, match=r"activations has shape \(1, 3\), expected one dimension"):
        builder.add_step([VALUES])
    with pytest.raises(InvalidInput, match="a step needs activations or the id of an item"):
        builder.add_step(None, reward=1.0)
    with pytest.raises(InvalidInput, match="reward is 'good', expected a number or None"):
        builder.add_step(VALUES, reward="good")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="query embedding is empty"):
        TrajectoryBuilder(1, [])
    with pytest.raises(InvalidInput, match="query embedding is not a vector of numbers"):
        TrajectoryBuilder(1, ["a"])  # type: ignore[list-item]
    assert issubclass(InvalidInput, LearningError)
    assert issubclass(DimensionMismatch, SonaError)


def test_one_step_more_than_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_STEPS == 10_000
    monkeypatch.setattr(types, "MAX_STEPS", 2)
    builder = TrajectoryBuilder(1, VALUES)
    builder.add_step(VALUES)
    builder.add_step(VALUES)
    with pytest.raises(InvalidInput, match="at most 2 steps: build this one and start another"):
        builder.add_step(VALUES)
    assert builder.step_count == 2


@pytest.mark.parametrize("bad", [-1, 1 << 128, "seven", 1.5])
def test_id_that_is_no_uuid_is_refused(bad: object) -> None:
    with pytest.raises(InvalidInput, match=r"trajectory id is .*, expected a UUID or a whole number"):
        TrajectoryBuilder(bad, VALUES)  # type: ignore[arg-type]


def test_id_is_taken_as_it_is_or_made() -> None:
    given = uuid.uuid4()
    assert TrajectoryBuilder(given, VALUES).id == given
    assert TrajectoryBuilder((1 << 128) - 1, VALUES).id.int == (1 << 128) - 1
    assert TrajectoryBuilder(None, VALUES).id != TrajectoryBuilder(None, VALUES).id


def test_trajectory_knows_whether_it_was_judged_and_whether_it_shows_items() -> None:
    assert not trajectory(VALUES).has_outcome
    assert not trajectory(VALUES, [acted(VALUES, None)]).has_outcome
    assert trajectory(VALUES, [acted(VALUES, 0.0)]).has_outcome
    assert trajectory(VALUES, quality=0.0).has_outcome
    assert not trajectory(VALUES, [acted(VALUES, 1.0)]).shows_items
    assert trajectory(VALUES, [acted(VALUES, 1.0), shown("a", None)]).shows_items


def test_trajectory_is_a_value() -> None:
    with pytest.raises(AttributeError):
        trajectory(VALUES).final_quality = 1.0  # type: ignore[misc]
    assert QueryTrajectory(uuid.uuid4(), floats(VALUES)).answer == Answer()


def test_new_ids_are_uuids_of_version_7_in_order_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    start_ms = 1_700_000_000_123
    made = []
    for later_ms in range(50):
        monkeypatch.setattr(ids.time, "time_ns", lambda ms=start_ms + later_ms: ms * 1_000_000 + 999_999)
        made.append(new_trajectory_id())
    assert {new.version for new in made} == {7}
    assert {new.variant for new in made} == {uuid.RFC_4122}
    assert made == sorted(made)
    assert [new.int >> 80 for new in made] == [start_ms + later_ms for later_ms in range(50)]


def test_ids_of_the_same_millisecond_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids.time, "time_ns", lambda: 1)
    assert len({new_trajectory_id() for _ in range(1000)}) == 1000


def test_seed_depends_on_the_id_and_the_revision_alone() -> None:
    one, other = uuid.UUID(int=0x1234_5678_9ABC_7DEF_8123_4567_89AB_CDEF), uuid.UUID(int=5)
    assert learning_seed(one) == learning_seed(uuid.UUID(str(one)), 0)
    seeds = {learning_seed(id, revision) for id in (one, other) for revision in range(100)}
    assert len(seeds) == 200
    assert all(0 <= seed < 1 << 64 for seed in seeds)
