"""EWC++: its state is continued bit for bit, and what is damaged, of another layout or no number is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sona_pg.config import BoundaryConfig, EwcConfig
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, LearningError
from sona_pg.learning.ewc import EwcPlusPlus

from .ewcs import learned


@pytest.mark.parametrize("tasks", [0, 1, 3])
def test_state_continues_bit_for_bit(tasks: int) -> None:
    ewc = learned(5, tasks=tasks)
    ewc.set_lambda(77.7)
    other = learned(5, tasks=2, seed=9)
    other.load_state(ewc.state())
    random = np.random.default_rng(3)
    for _ in range(2):
        gradient, theta = random.standard_normal((2, 5)).astype(np.float32)
        for each in (ewc, other):
            each.update_fisher(gradient)
            each.detect_task_boundary(theta)
        assert (ewc.apply_constraints(gradient, theta, 0.1) == other.apply_constraints(gradient, theta, 0.1)).all()
        assert ewc.lambda_ == other.lambda_
        first, second = ewc.state(), other.state()
        assert first.keys() == second.keys()
        assert all(first[name].tobytes() == second[name].tobytes() for name in first)
        for each in (ewc, other):
            each.start_new_task(theta, 0.25)
    assert [task.quality for task in ewc.tasks] == [task.quality for task in other.tasks]


def damaged_states() -> list[tuple[str, dict[str, Any]]]:
    state = learned(5).state()
    found: list[tuple[str, dict[str, Any]]] = []
    for name, part in state.items():
        found.append((f"without {name}", {k: v for k, v in state.items() if k != name}))
        found.append((f"longer {name}", {**state, name: np.zeros((*part.shape, 2), part.dtype)}))
        found.append((f"other type of {name}", {**state, name: part.astype(np.complex64)}))
        if part.dtype.kind == "f" and part.size:
            bad = part.copy()
            bad.flat[-1] = np.nan
            found.append((f"NaN in {name}", {**state, name: bad}))
        if (
            part.dtype.kind in "fi"
            and "anchor" not in name
            and "qualit" not in name
            and "mean" not in name
            and part.size
        ):
            bad = part.copy()
            bad.flat[-1] = -1
            found.append((f"negative {name}", {**state, name: bad}))
    found.append(("unknown kind", {**state, "task_kinds": np.array([0, 9])}))
    found.append(("no samples", {**state, "task_samples": np.array([0, 5])}))
    found.append(("λ out of range", {**state, "lambda": np.array(1e9)}))
    found.append(("Fisher out of range", {**state, "task_fishers": np.full((2, 5), 3e38, np.float32)}))
    return found


@pytest.mark.parametrize(("what", "state"), damaged_states(), ids=lambda v: v if isinstance(v, str) else "")
def test_damaged_state_is_refused_and_changes_nothing(what: str, state: dict[str, Any]) -> None:
    ewc = learned(5, tasks=1, seed=4)
    before = {name: part.tobytes() for name, part in ewc.state().items()}
    gradient = ewc.apply_constraints(np.ones(5), np.ones(5), 0.1)
    with pytest.raises(LearningError):
        ewc.load_state(state)
    assert {name: part.tobytes() for name, part in ewc.state().items()} == before
    assert (ewc.apply_constraints(np.ones(5), np.ones(5), 0.1) == gradient).all()


def test_state_of_another_layout_is_refused() -> None:
    for other in (learned(6), learned(5, tasks=4)):
        with pytest.raises(LearningError, match="expected"):
            learned(5, max_tasks=3).load_state(other.state())


def test_a_task_of_another_layout_or_damaged_is_not_remembered() -> None:
    ewc, good = learned(5), learned(5).tasks[0]
    before = ewc.stiffness
    nan, negative = good.anchor.copy(), good.fisher.copy()
    nan[2], negative[2] = np.nan, -1
    for wrong in (
        learned(6).tasks[0],
        replace(good, fisher=good.fisher.astype(np.float64)),  # type: ignore[arg-type]
        replace(good, anchor=nan),
        replace(good, fisher=negative),
        replace(good, fisher=np.full(5, 1e38, np.float32)),
        replace(good, samples=0),
        replace(good, weight=-1.0),
        replace(good, weight=math.nan),
        replace(good, kind="unknown"),
    ):
        with pytest.raises(LearningError):
            ewc.remember(wrong)
        assert (ewc.stiffness == before).all()
        assert ewc.task_count == 2
    ewc.remember(good)
    assert ewc.task_count == 3


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_number_of_parameters_must_be_known() -> None:
    for make_it in (EwcPlusPlus, lambda: EwcPlusPlus(EwcConfig())):
        with pytest.raises(ConfigError, match="number of parameters"):
            make_it()
    with pytest.raises(DimensionMismatch):
        EwcPlusPlus(EwcConfig(param_count=3), np.zeros(2, np.float32))
    assert EwcPlusPlus(theta=np.zeros(2, np.float32)).param_count == 2


def test_bad_input_is_refused_and_changes_nothing() -> None:
    ewc, good = learned(5), np.ones(5, np.float32)
    before = {name: part.tobytes() for name, part in ewc.state().items()}
    vectors = (np.ones(4), np.ones((1, 2, 5)), [math.nan] * 5, [math.inf] * 5, "x", None, [None] * 5, np.zeros(0))
    for bad in vectors:
        calls: list[Callable[[], object]] = [
            lambda bad=bad: ewc.apply_constraints(bad, good, 0.1),  # type: ignore[misc]
            lambda bad=bad: ewc.apply_constraints(good, bad, 0.1),  # type: ignore[misc]
            lambda bad=bad: ewc.update_fisher(bad),  # type: ignore[misc]
            lambda bad=bad: ewc.detect_task_boundary(bad),  # type: ignore[misc]
            lambda bad=bad: ewc.start_new_task(bad),  # type: ignore[misc]
            lambda bad=bad: ewc.regularization_loss(bad),  # type: ignore[misc]
            lambda bad=bad: ewc.adapt_lambda(bad),  # type: ignore[misc]
            lambda bad=bad: ewc.proximal_step(good.copy(), bad),  # type: ignore[misc]
            lambda bad=bad: ewc.proximal_step(bad, 0.1),  # type: ignore[misc]
        ]
        for call in calls:
            with pytest.raises((InvalidInput, DimensionMismatch, LearningError)):
                call()
    for rate in (-0.1, math.nan, 1e7, "x", True):
        with pytest.raises(ConfigError):
            ewc.apply_constraints(good, good, rate)  # type: ignore[arg-type]
    with pytest.raises(LearningError, match="1e18"):
        ewc.update_fisher(np.full(5, 1e30))
    with pytest.raises(InvalidInput):
        ewc.update_fisher(np.zeros((0, 5)))
    with pytest.raises(InvalidInput, match="a step is -1"):
        ewc.proximal_step(good.copy(), [-1.0] * 5)
    with pytest.raises(InvalidInput):
        ewc.start_new_task(good, math.nan)
    read_only = good.copy()
    read_only.setflags(write=False)
    for theta in (read_only, good.astype(np.float64), np.ones(10, np.float32)[::2]):
        with pytest.raises(InvalidInput, match="changed in place"):
            ewc.proximal_step(theta, 0.1)  # type: ignore[arg-type]
    theta = good.copy()
    theta[0] = np.nan
    with pytest.raises(LearningError, match="not finite"):
        ewc.proximal_step(theta, 0.1)
    assert theta[1:].tolist() == [1.0] * 4
    assert {name: part.tobytes() for name, part in ewc.state().items()} == before


def test_embeddings_of_the_boundary_may_have_a_dimension_of_their_own() -> None:
    ewc = EwcPlusPlus(EwcConfig(param_count=3), embedding_dim=8, boundary=BoundaryConfig(warm_up=16))
    random = np.random.default_rng(0)
    assert not any(ewc.detect_task_boundary(random.standard_normal(8)) for _ in range(300))
    assert any(ewc.detect_task_boundary(random.standard_normal(8) + 8) for _ in range(10))
    with pytest.raises(DimensionMismatch):
        ewc.detect_task_boundary(np.ones(3))
