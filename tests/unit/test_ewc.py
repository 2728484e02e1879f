"""EWC++: the invariants of its mathematics with their numbers, its memory, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sona_pg.config import EwcConfig
from sona_pg.errors import ConfigError, InvalidInput
from sona_pg.learning.ewc import EwcPlusPlus
from sona_pg.learning.fisher import FisherAverage
from sona_pg.learning.task_memory import TaskMemory

from .ewcs import learned, make

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def held(fisher: float, anchor: float, strength: float, **settings: object) -> EwcPlusPlus:
    """One parameter, held by one task."""
    ewc = make(1, initial_lambda=strength, min_lambda=min(strength, 1.0), max_lambda=max(strength, 1e4), **settings)
    ewc.remember(TaskMemory(np.array([fisher], np.float32), np.array([anchor], np.float32), 1))
    return ewc


def sums(ewc: EwcPlusPlus) -> tuple[Doubles, Doubles]:
    """S and T by brute force."""
    stiffness, pull = np.zeros(ewc.param_count), np.zeros(ewc.param_count)
    for task in ewc.tasks:
        stiffness += ewc.lambda_ * task.weight * task.fisher.astype(np.float64)
        pull += ewc.lambda_ * task.weight * task.fisher.astype(np.float64) * task.anchor
    return stiffness, pull


# ---- Fisher ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999, 0.999999])
def test_fisher_of_a_constant_gradient_is_its_square_at_every_step(decay: float) -> None:
    two, signs = make(2, fisher_ema_decay=decay), make(2, fisher_ema_decay=decay)
    for step in range(1, 300):
        two.update_fisher([2.0, 2.0])
        signs.update_fisher([1.0, -1.0] if step % 2 else [-1.0, 1.0])
        assert two.fisher.tolist() == [4.0, 4.0]
        assert signs.fisher.tolist() == [1.0, 1.0]
        assert two.fisher_samples == step


def test_squares_are_of_samples_and_not_of_their_mean() -> None:
    ewc = make(2)
    ewc.update_fisher([[1.0, 3.0], [-1.0, -3.0]])
    assert ewc.fisher.tolist() == [1.0, 9.0]


def test_fisher_of_a_logistic_model_at_zero() -> None:
    # The probability is 1/2 at θ = 0, so that a sample's gradient is ± x / 2, and F = E[x²] / 4.
    random = np.random.default_rng(0)
    x = random.standard_normal((20_000, 3)) * [1.0, 2.0, 0.5]
    y = random.random(20_000) < 0.5
    ewc = make(3, fisher_ema_decay=0.999999)
    ewc.update_fisher((0.5 - y)[:, np.newaxis] * x)
    np.testing.assert_allclose(ewc.fisher, 0.25 * np.square(x).mean(axis=0), rtol=1e-5)


@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=8), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_fisher_forgets_by_samples_however_they_are_cut_into_batches(cuts: list[int], seed: int) -> None:
    """Squares that are the same within a batch: then only the weights of the batches count."""
    random, decay = np.random.default_rng(seed), 0.9
    batched, single = FisherAverage(4, decay), FisherAverage(4, decay)
    weights, squares = [], []
    for n in cuts:
        row = random.standard_normal(4).astype(np.float32)
        batched.update(np.repeat(row[np.newaxis], n, axis=0))
        for _ in range(n):
            single.update(row)
            squares.append(np.square(row.astype(np.float64)))
    weights = decay ** np.arange(len(squares))[::-1]
    exact = weights @ np.array(squares) / weights.sum()
    np.testing.assert_allclose(batched.value, exact, rtol=1e-5)
    np.testing.assert_allclose(single.value, exact, rtol=1e-5)
    assert batched.samples == single.samples == sum(cuts)


# ---- the ring --------------------------------------------------------------------------------------------------------


@given(
    scales=st.lists(st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6]), min_size=1, max_size=12),
    capacity=st.integers(1, 4),
    strengths=st.lists(st.floats(1, 1e4), min_size=12, max_size=12),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_sums_are_those_of_brute_force_after_any_eviction(
    scales: list[float], capacity: int, strengths: list[float], seed: int
) -> None:
    # A Fisher of 10¹² that was evicted must leave nothing behind in sums of 10⁻¹².
    random, ewc = np.random.default_rng(seed), make(7, max_tasks=capacity)
    anchors: list[Floats] = []
    for scale, strength in zip(scales, strengths, strict=False):
        ewc.update_fisher(scale * random.standard_normal((3, 7)))
        anchors.append(random.standard_normal(7).astype(np.float32))
        ewc.start_new_task(anchors[-1])
        ewc.set_lambda(strength)
        stiffness, pull = sums(ewc)
        np.testing.assert_allclose(ewc.stiffness, stiffness, rtol=1e-9)
        np.testing.assert_allclose(ewc.pull, pull, rtol=1e-9, atol=1e-9 * float(np.abs(stiffness).max()))
        kept = anchors[-capacity:]
        assert ewc.task_count == len(kept)
        assert all((task.anchor == anchor).all() for task, anchor in zip(ewc.tasks, kept, strict=True))


def test_a_task_is_remembered_with_what_it_ended_with() -> None:
    ewc, theta = make(2, fisher_kind="exact"), np.array([1, 2], np.float32)
    ewc.update_fisher([[1.0, 0.0], [3.0, 0.0]])
    task = ewc.start_new_task(theta, 0.5)
    assert task is ewc.tasks[0]
    assert (task.fisher.tolist(), task.anchor.tolist(), task.samples) == ([5.0, 0.0], [1.0, 2.0], 2)
    assert (task.quality, task.kind, task.weight) == (0.5, "exact", 1.0)
    theta[:] = 7
    assert task.anchor.tolist() == [1.0, 2.0]
    assert not ewc.fisher.any()
    assert ewc.fisher_samples == 0
    assert ewc.start_new_task(theta) is None
    assert ewc.task_count == 1


def test_anchors_of_all_may_be_the_latest() -> None:
    ewc = make(1, anchors="latest", initial_lambda=10.0)
    for theta in (1.0, 5.0):
        ewc.update_fisher([2.0])
        ewc.start_new_task([theta])
    assert [float(task.anchor[0]) for task in ewc.tasks] == [5.0, 5.0]
    assert (float(ewc.stiffness[0]), float(ewc.pull[0])) == (80.0, 400.0)


def test_consolidation_keeps_the_constraint_in_the_memory_of_one_task() -> None:
    ewc, random = learned(6, tasks=4), np.random.default_rng(5)
    theta, gradient = random.standard_normal((2, 6)).astype(np.float32)
    stiffness, pull, before = ewc.stiffness, ewc.pull, ewc.apply_constraints(gradient, theta, 0.1)
    rise = ewc.regularization_loss(theta) - ewc.regularization_loss(np.zeros(6))
    ewc.consolidate_all_tasks()
    assert ewc.task_count == 1
    assert (ewc.tasks[0].samples, ewc.tasks[0].quality) == (20, 0.5)
    np.testing.assert_allclose(ewc.stiffness, stiffness, rtol=1e-6)
    np.testing.assert_allclose(ewc.pull, pull, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(ewc.apply_constraints(gradient, theta, 0.1), before, rtol=1e-4, atol=1e-4)
    after = ewc.regularization_loss(theta) - ewc.regularization_loss(np.zeros(6))
    assert after == pytest.approx(rise, rel=1e-3, abs=1e-3)
    empty = make()
    empty.consolidate_all_tasks()
    assert empty.task_count == 0


# ---- the constraint --------------------------------------------------------------------------------------------------


def descend(constrained: Callable[[Floats], Floats], rate: float, steps: int = 2000) -> float:
    """Where gradient descent on ½(θ - 1)² ends."""
    theta = np.zeros(1, np.float32)
    for _ in range(steps):
        theta = np.asarray(theta - np.float32(rate) * constrained(theta), dtype=np.float32)
        if not abs(float(theta[0])) < 1e6:
            return math.inf
    return float(theta[0])


def test_ewc_moves_the_fixed_point_and_a_divided_gradient_does_not() -> None:
    ewc = held(1.0, 0.0, 9.0)
    assert descend(lambda theta: ewc.apply_constraints(theta - 1, theta, 0.1), 0.1) == pytest.approx(0.1, abs=1e-6)
    assert descend(lambda theta: (theta - 1) / np.float32(1 + 9 * 1), 0.1) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("strength", [1e-3, 9.0, 19.0, 21.0, 1e3, 1e6, 1e9])
def test_proximal_form_is_stable_where_the_explicit_one_diverges(strength: float) -> None:
    ewc, rate = held(1.0, 0.0, strength), 0.1
    found = descend(lambda theta: ewc.apply_constraints(theta - 1, theta, rate), rate, 20_000)
    assert found == pytest.approx(1 / (1 + strength), rel=1e-3)
    explicit = descend(lambda theta: (theta - 1) + np.float32(strength) * theta, rate)
    assert math.isinf(explicit) == (rate * (1 + strength) > 2)


@given(seed=st.integers(0, 999), rate=st.sampled_from([1e-4, 0.1, 10.0]), strength=st.sampled_from([1.0, 100.0, 1e4]))
@settings(max_examples=100, deadline=None)
def test_a_step_along_it_is_the_proximal_step(seed: int, rate: float, strength: float) -> None:
    random = np.random.default_rng(seed)
    ewc = learned(5, tasks=3, seed=seed)
    ewc.set_lambda(strength)
    gradient, theta = random.standard_normal((2, 5)).astype(np.float32)
    by_gradient = theta - rate * ewc.apply_constraints(gradient, theta, rate).astype(np.float64)
    stepped = np.asarray(theta - np.float32(rate) * gradient)
    ewc.proximal_step(stepped, rate)
    each = np.asarray(theta - np.float32(rate) * gradient)
    ewc.proximal_step(each, np.full(5, rate))
    stiffness, pull = sums(ewc)
    exact = (theta - rate * gradient.astype(np.float64) + rate * pull) / (1 + rate * stiffness)
    for found in (by_gradient, stepped, each):
        np.testing.assert_allclose(found, exact, rtol=2e-5, atol=2e-5)


def test_every_parameter_has_its_own_step() -> None:
    ewc = make(4, initial_lambda=10.0)
    ewc.update_fisher(np.ones(4))
    ewc.start_new_task(np.zeros(4))
    theta, steps = np.ones((2, 2), np.float32), np.array([[0.0, 0.1], [1.0, 100.0]], np.float32)
    ewc.proximal_step(theta, steps)
    np.testing.assert_allclose(theta, 1 / (1 + 10 * steps), rtol=1e-6)


def test_without_tasks_nothing_is_constrained() -> None:
    ewc, gradient = make(3), np.array([1, -0.5, 0.25], np.float32)
    assert ewc.apply_constraints(gradient, np.ones(3), 0.1).tolist() == gradient.tolist()
    theta = gradient.copy()
    ewc.proximal_step(theta, 0.1)
    assert theta.tolist() == gradient.tolist()
    assert (ewc.regularization_loss(theta), ewc.predicted_loss(theta), ewc.task_count) == (0, 0, 0)
    assert ewc.adapt_lambda(theta) == ewc.lambda_ == EwcConfig().initial_lambda


def test_parameters_may_be_bound_once() -> None:
    theta = np.zeros(2, np.float32)
    ewc = EwcPlusPlus(EwcConfig(learning_rate=0.1), theta)
    ewc.update_fisher([1.0, 0.0])
    ewc.start_new_task()
    theta[:] = 1
    assert (ewc.apply_constraints([1.0, 1.0]) == ewc.apply_constraints([1.0, 1.0], theta, 0.1)).all()
    assert ewc.regularization_loss() == ewc.regularization_loss(theta) == 0.5 * ewc.lambda_
    with pytest.raises(InvalidInput, match="no parameters"):
        make(2).apply_constraints([1.0, 1.0])


def test_sparsity_is_part_of_the_proximal_step() -> None:
    sparse, rate = 0.5, 0.1
    ewc, random = held(1.0, 0.3, 3.0, sparsity=sparse), np.random.default_rng(0)
    for _ in range(50):
        theta, gradient = random.standard_normal((2, 1)).astype(np.float32)
        moved = theta - rate * gradient + rate * ewc.pull
        exact = np.sign(moved) * np.maximum(np.abs(moved) - rate * sparse, 0) / (1 + rate * ewc.stiffness)
        found = theta - rate * ewc.apply_constraints(gradient, theta, rate)
        np.testing.assert_allclose(found, exact, atol=1e-6)
        stepped = np.asarray(theta - np.float32(rate) * gradient)
        ewc.proximal_step(stepped, rate)
        np.testing.assert_allclose(stepped, exact, atol=1e-6)
    assert ewc.sparsity_penalty([-2.0]) == 1.0
    assert make(1, sparsity=0.5).regularization_loss([-2.0]) == 1.0


def test_projection_takes_away_what_would_raise_the_penalty() -> None:
    plain, projecting = (learned(6, seed=3, project_gradients=on) for on in (False, True))
    random, changed = np.random.default_rng(1), 0
    for _ in range(50):
        gradient, theta = random.standard_normal((2, 6)).astype(np.float32)
        penalty = plain.stiffness * theta - plain.pull
        projected = gradient - min(0.0, gradient @ penalty) / (penalty @ penalty) * penalty
        assert projected @ penalty >= -1e-3
        changed += bool(gradient @ penalty < 0)
        found = projecting.apply_constraints(gradient, theta, 0.1)
        np.testing.assert_allclose(found, plain.apply_constraints(projected, theta, 0.1), rtol=1e-4, atol=1e-4)
    assert 10 < changed < 40


# ---- strength --------------------------------------------------------------------------------------------------------


def test_set_lambda_scales_what_is_remembered() -> None:
    ewc = learned()
    stiffness, before = ewc.stiffness, ewc.lambda_
    ewc.set_lambda(2 * before)
    assert ewc.lambda_ == 2 * before
    np.testing.assert_allclose(ewc.stiffness, 2 * stiffness, rtol=1e-12)
    for wrong in (0.0, -1.0, 1e5, math.nan, None, "1", True):
        with pytest.raises(ConfigError, match="expected 1 to 10000"):
            ewc.set_lambda(wrong)  # type: ignore[arg-type]
    assert ewc.lambda_ == 2 * before


def test_lambda_follows_the_loss_that_is_predicted() -> None:
    # D = ½ F Δ² = ½ · 4 · 0.1² = 0.02 nats, whatever λ is.
    ewc = held(4.0, 1.0, 30.0, tolerated_loss=0.01, lambda_rate=0.1)
    assert ewc.predicted_loss([1.1]) == pytest.approx(0.02, rel=1e-5)
    assert ewc.adapt_lambda([1.1]) == pytest.approx(30 * math.exp(0.1 * (0.02 / 0.01 - 1)), rel=1e-5)
    assert ewc.adapt_lambda([1.0]) == pytest.approx(30.0, rel=1e-5)
    assert ewc.adapt_lambda([1e6]) == 1e4
    # Where it is known better than the Fisher predicts it.
    ewc.set_lambda(30.0)
    assert ewc.adapt_lambda([1e6], loss=0.02) == pytest.approx(30 * math.exp(0.1), rel=1e-5)
    for loss in (-1.0, math.nan, math.inf, 10**400, "0", True):
        with pytest.raises(InvalidInput):
            ewc.adapt_lambda([1.0], loss=loss)  # type: ignore[arg-type]
    for _ in range(200):
        ewc.adapt_lambda([1.0])
    assert ewc.lambda_ == 1.0


@pytest.mark.parametrize("strength", [1.0, 30.0, 1e4])
def test_adaptive_lambda_holds_the_loss_on_old_tasks_at_what_is_tolerated(strength: float) -> None:
    ewc = held(2.0, 0.0, strength, tolerated_loss=0.05)
    theta = np.zeros(1, np.float32)
    for _ in range(5000):
        theta = theta - np.float32(0.1) * ewc.apply_constraints(theta - 1, theta, 0.1)
        ewc.adapt_lambda(theta)
    assert ewc.predicted_loss(theta) == pytest.approx(0.05, rel=0.02)


# ---- what it costs ---------------------------------------------------------------------------------------------------


def test_penalty_is_the_sum_over_tasks_and_its_gradient_is_the_constraint() -> None:
    ewc, random = learned(6, tasks=3), np.random.default_rng(2)
    theta = random.standard_normal(6).astype(np.float32)

    def penalty(at: Doubles) -> float:
        return sum(
            0.5 * ewc.lambda_ * task.weight * float(task.fisher.astype(np.float64) @ np.square(at - task.anchor))
            for task in ewc.tasks
        )

    assert ewc.regularization_loss(theta) == pytest.approx(penalty(theta.astype(np.float64)), rel=1e-5)
    assert ewc.lambda_ * ewc.drift_scores(theta).sum() == pytest.approx(ewc.regularization_loss(theta), rel=1e-5)
    gradient = ewc.apply_constraints(np.zeros(6), theta, 0.0)
    for i, unit in enumerate(np.eye(6)):
        slope = (penalty(theta + 1e-4 * unit) - penalty(theta - 1e-4 * unit)) / 2e-4
        assert gradient[i] == pytest.approx(slope, rel=1e-4, abs=1e-3)


def test_importance_is_relative_to_the_largest() -> None:
    ewc = make(3)
    assert ewc.importance_scores().tolist() == [0.0, 0.0, 0.0]
    ewc.update_fisher([2.0, 1.0, 0.0])
    ewc.start_new_task(np.zeros(3))
    assert ewc.importance_scores().tolist() == [1.0, 0.25, 0.0]
