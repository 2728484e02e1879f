"""LearningSignal: what REINFORCE makes of a trajectory, by hand."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from sona_pg.config import SignalConfig
from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.types import EMPTY, LearningSignal, QueryTrajectory, TrajectoryBuilder

from .samples import acted, axis, bits, floats, shown, trajectory

QUERY = [0.1, 0.2, 0.3]


def reference_trajectory() -> QueryTrajectory:
    """The test case of the API reference."""
    builder = TrajectoryBuilder(1, QUERY)
    builder.add_step([0.5, 0.3, 0.2], [0.4, 0.4, 0.2], 0.8)
    return builder.build(0.8)


def test_reference_case_keeps_the_quality_and_the_length_and_has_no_advantage_of_its_own() -> None:
    signal = LearningSignal.from_trajectory(reference_trajectory())
    assert signal.quality_score == 0.800000011920929  # as float32
    assert len(signal.gradient_estimate) == 3
    assert not signal.gradient_estimate.any()
    assert bits(signal.query_embedding) == bits(floats(QUERY))


def test_reference_case_has_a_gradient_where_the_space_has_a_baseline() -> None:
    signal = LearningSignal.from_trajectory(reference_trajectory(), baseline=0.5)
    np.testing.assert_allclose(signal.gradient_estimate, 0.3 * floats([0.5, 0.3, 0.2]), rtol=1e-6)
    worse = LearningSignal.from_trajectory(reference_trajectory(), baseline=0.9)
    np.testing.assert_allclose(worse.gradient_estimate, -0.1 * floats([0.5, 0.3, 0.2]), rtol=1e-6)


def test_gradient_is_the_sum_of_advantages_times_activations() -> None:
    # Mean 0.5: advantages .5, -.5 and 0; 0.5 (1, 0, 2) - 0.5 (0, 4, 0) = (.5, -2, 1)
    steps = [acted([1, 0, 2], 1.0), acted([0, 4, 0], 0.0), acted([7, 7, 7], 0.5)]
    signal = LearningSignal.from_trajectory(trajectory(QUERY, steps))
    assert signal.gradient_estimate.tolist() == [0.5, -2.0, 1.0]
    assert signal.quality_score == 0.5
    assert signal.metadata.trajectory_id == uuid.UUID(int=1)
    assert signal.metadata.step_count == 3
    assert signal.metadata.has_advantage


def test_own_mean_is_the_baseline_where_rewards_differ() -> None:
    steps = [acted([1, 0, 0], 1.0), acted([0, 1, 0], 0.0)]
    alone = LearningSignal.from_trajectory(trajectory(QUERY, steps))
    in_a_space = LearningSignal.from_trajectory(trajectory(QUERY, steps), baseline=0.9)
    assert bits(alone.gradient_estimate) == bits(in_a_space.gradient_estimate)


def test_equal_rewards_are_measured_against_the_baseline_of_the_space() -> None:
    steps = [acted([1, 0, 0], 0.75), acted([0, 1, 0], 0.75)]
    assert not LearningSignal.from_trajectory(trajectory(QUERY, steps)).gradient_estimate.any()
    signal = LearningSignal.from_trajectory(trajectory(QUERY, steps), baseline=0.5)
    assert signal.gradient_estimate.tolist() == [0.25, 0.25, 0.0]


def test_doubled_rewards_double_the_gradient() -> None:
    def gradient(factor: float) -> np.ndarray:
        steps = [acted([1, 2, 3], 0.5 * factor), acted([3, 1, 0], 0.125 * factor), acted([0, 1, 9], 0.25 * factor)]
        return LearningSignal.from_trajectory(trajectory(QUERY, steps)).gradient_estimate

    assert gradient(1).any()
    np.testing.assert_array_equal(gradient(2), 2 * gradient(1))


def test_gradient_longer_than_the_bound_is_cut_to_it_and_keeps_its_direction() -> None:
    steps = [acted([3, 0, 4], 1.0), acted([0, 0, 0], 0.0)]  # (1.5, 0, 2), length 2.5
    within = LearningSignal.from_trajectory(trajectory(QUERY, steps), config=SignalConfig(max_gradient_norm=2.5))
    assert within.gradient_estimate.tolist() == [1.5, 0.0, 2.0]
    cut = LearningSignal.from_trajectory(trajectory(QUERY, steps), config=SignalConfig(max_gradient_norm=0.5))
    np.testing.assert_allclose(cut.gradient_estimate, [0.3, 0.0, 0.4], rtol=1e-6)


def test_bound_of_the_norm_stands_in_the_settings() -> None:
    steps = [acted([300, 0, 400], 1.0), acted([0, 0, 0], 0.0)]
    signal = LearningSignal.from_trajectory(trajectory(QUERY, steps))
    assert np.linalg.norm(signal.gradient_estimate) == pytest.approx(SignalConfig().max_gradient_norm)


def test_finite_gradient_that_overflows_float32_is_still_cut_to_the_bound() -> None:
    steps = [acted([3e38, 0, 0], 1.0)] * 3 + [acted([-3e38, 0, 0], 0.0)] * 3
    with np.errstate(all="ignore"):
        signal = LearningSignal.from_trajectory(trajectory(QUERY, steps))
    np.testing.assert_allclose(signal.gradient_estimate, [SignalConfig().max_gradient_norm, 0, 0], rtol=1e-5)


def test_unjudged_steps_are_left_out() -> None:
    judged = [acted([1, 0, 0], 1.0), acted([0, 1, 0], 0.0)]
    with_unjudged = [judged[0], acted([9, 9, 9], None), judged[1]]
    gradient = LearningSignal.from_trajectory(trajectory(QUERY, with_unjudged)).gradient_estimate
    assert gradient.tolist() == [0.5, -0.5, 0.0]


def test_step_without_activations_is_left_out() -> None:
    steps = [acted([1, 0, 0], 1.0), shown("a", 0.0), acted([0, 1, 0], 0.5)]
    signal = LearningSignal.from_trajectory(trajectory(QUERY, steps))
    assert signal.gradient_estimate.tolist() == [0.25, -0.25, 0.0]


def test_final_quality_is_that_of_every_step_where_none_was_judged() -> None:
    steps = [acted([1, 0, 0], None), acted([0, 2, 0], None)]
    assert not LearningSignal.from_trajectory(trajectory(QUERY, steps, 0.75)).gradient_estimate.any()
    signal = LearningSignal.from_trajectory(trajectory(QUERY, steps, 0.75), baseline=0.5)
    assert signal.gradient_estimate.tolist() == [0.25, 0.5, 0.0]
    assert signal.quality_score == 0.75


def test_final_quality_stands_before_the_mean_reward() -> None:
    steps = [acted([1, 0, 0], 1.0), acted([0, 1, 0], 0.0)]
    assert LearningSignal.from_trajectory(trajectory(QUERY, steps, 0.9)).quality_score == 0.9


def test_trajectory_without_any_outcome_gives_a_zero_signal() -> None:
    for steps in ([], [acted([1, 0, 0], None)]):
        signal = LearningSignal.from_trajectory(trajectory(QUERY, steps), baseline=0.5)
        assert signal.quality_score == 0.0
        assert signal.gradient_estimate.tolist() == [0.0, 0.0, 0.0]


def test_activations_of_another_dimension_are_refused() -> None:
    steps = [acted([1, 0], 1.0), acted([0, 1], 0.0)]
    with pytest.raises(DimensionMismatch, match=r"activations has 2 dimensions, expected 3") as refused:
        LearningSignal.from_trajectory(trajectory(QUERY, steps))
    assert (refused.value.expected, refused.value.actual) == (3, 2)


def test_trajectory_is_not_changed_by_its_signal() -> None:
    steps = [acted([1, 0, 2], 1.0), acted([0, 4, 0], 0.0)]
    before = [bits(step.activations) for step in steps]
    LearningSignal.from_trajectory(trajectory(QUERY, steps), config=SignalConfig(max_gradient_norm=0.1))
    assert [bits(step.activations) for step in steps] == before


def test_own_gradient_is_converted_copied_and_left_to_be_signed_by_quality() -> None:
    query, gradient = np.array([1.0, 2.0]), axis(0, 2)
    signal = LearningSignal.with_gradient(query, gradient, 1)
    query[:] = gradient[:] = 9
    assert signal.query_embedding.tolist() == [1.0, 2.0]
    assert signal.gradient_estimate.tolist() == [1.0, 0.0]
    assert signal.query_embedding.dtype == signal.gradient_estimate.dtype == np.float32
    assert signal.quality_score == 1.0
    assert not signal.metadata.has_advantage
    assert signal.metadata.trajectory_id is None


@pytest.mark.parametrize(
    ("query", "gradient", "quality", "error", "message"),
    [
        ([1, 2], [1, 2, 3], 0.5, DimensionMismatch, "gradient has 3 dimensions, expected 2"),
        ([1, np.nan], [1, 2], 0.5, InvalidInput, "embedding holds NaN or infinity"),
        ([1, 2], [1, np.inf], 0.5, InvalidInput, "gradient holds NaN or infinity"),
        ([1, 2], [1, 2], np.nan, InvalidInput, "quality is nan, expected a finite number"),
        ([1, 2], [1, 2], np.inf, InvalidInput, "quality is inf, expected a finite number"),
        ([1, 2], [1, 2], None, InvalidInput, "quality is None"),
        ([1, 2], [1, 2], "good", InvalidInput, "quality is 'good', expected a number"),
        ([[1, 2]], [1, 2], 0.5, InvalidInput, r"embedding has shape \(1, 2\), expected one dimension"),
        (["a", "b"], [1, 2], 0.5, InvalidInput, "embedding is not a vector of numbers"),
    ],
)
def test_own_gradient_is_refused_with_what_was_found(
    query: object, gradient: object, quality: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LearningSignal.with_gradient(query, gradient, quality)  # type: ignore[arg-type]


def test_empty_activations_are_one_shared_array_that_nobody_can_change() -> None:
    assert EMPTY.size == 0
    with pytest.raises(ValueError, match="read-only"):
        EMPTY[...] = 1
