"""How the learned fusion learns: gradient, step and order, against their twins and against the fusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, LearningError
from sona_pg.kernels import adam_step, listwise_gradient, order_by_score, reference, shuffled_sums
from sona_pg.learning.fusion import Fusion

from .fusion_cases import BAD, COMPILED_AND_TWIN, CONFIG, INPUT_LAYOUTS, SIZES, Doubles, strided, swapped
from .layouts import bits, read_only, unaligned

# ---- gradient --------------------------------------------------------------------------------------------------------


def some_list(rng: np.random.Generator, n: int, f: int) -> tuple[Doubles, Doubles, Doubles]:
    targets = rng.random(n) * (rng.random(n) < 0.3)
    targets[0] += 1
    return rng.standard_normal((n, f)), rng.standard_normal(f), targets / targets.sum()


@pytest.mark.parametrize("n", SIZES[1:])
def test_gradient(n: int, rng: np.random.Generator) -> None:
    for f in (*SIZES, 18):
        table, weights, targets = some_list(rng, n, f)
        before = rng.standard_normal(f)
        for weight in (1.0, 0.25, -2.0, 0.0):
            found, expected = before.copy(), before.copy()
            loss = listwise_gradient(table, weights, targets, weight, found)
            assert loss == pytest.approx(reference.listwise_gradient(table, weights, targets, weight, expected))
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@COMPILED_AND_TWIN
def test_gradient_is_the_fusions(kernel: str, rng: np.random.Generator) -> None:
    gradient = listwise_gradient if kernel == "compiled" else reference.listwise_gradient
    fusion = Fusion(CONFIG)
    for _ in range(5):
        fusion.step(rng.standard_normal(18))
    weights = np.asarray(fusion.state()["weights"], dtype=np.float64)
    table, _, targets = some_list(rng, 100, 18)
    found = np.zeros(18)
    loss = gradient(table, weights, targets, 1.0, found)
    np.testing.assert_allclose(found, fusion.gradient(table, targets), rtol=0, atol=1e-12)
    for place in range(18):
        step = np.zeros(18)
        step[place] = 1e-6
        after, before = (gradient(table, weights + sign * step, targets, 0.0, np.zeros(18)) for sign in (1, -1))
        assert found[place] == pytest.approx((after - before) / 2e-6, abs=1e-6)
    logits = table @ weights
    assert loss == pytest.approx(float(np.log(np.exp(logits).sum()) - targets @ logits))


def test_gradient_of_large_scores_is_finite() -> None:
    table, out = np.array([[1e4], [-1e4], [0.0]]), np.zeros(1)
    assert listwise_gradient(table, np.ones(1), np.array([0.0, 1.0, 0.0]), 1.0, out) == pytest.approx(2e4)
    assert out[0] == pytest.approx(2e4)


@pytest.mark.parametrize("layout", INPUT_LAYOUTS)
def test_gradient_of_any_layout(layout: str, rng: np.random.Generator) -> None:
    parts, found, expected = some_list(rng, 9, 18), np.ones(18), np.ones(18)
    change = INPUT_LAYOUTS[layout]
    loss = listwise_gradient(*parts, 0.5, expected)
    assert listwise_gradient(*map(change, parts), 0.5, found) == loss
    assert bits(found) == bits(expected)


def test_gradient_onto_the_weights(rng: np.random.Generator) -> None:
    table, weights, targets = some_list(rng, 9, 18)
    expected = weights.copy()
    listwise_gradient(table, weights, targets, 0.5, expected)
    listwise_gradient(table, weights, targets, 0.5, weights)
    assert bits(weights) == bits(expected)


def test_bad_gradients_are_refused_and_change_nothing(rng: np.random.Generator) -> None:
    table, weights, targets = some_list(rng, 9, 18)
    out = rng.standard_normal(18)
    before = bits(out)

    def refused(error: type[Exception], message: str, **wrong: object) -> None:
        given: dict[str, Any] = {
            "features": table,
            "weights": weights,
            "targets": targets,
            "weight": 1.0,
            "out": out,
            **wrong,
        }
        with pytest.raises(error, match=message) as caught:
            listwise_gradient(**given)
        assert type(caught.value) is error
        assert bits(out) == before

    for bad in BAD:
        for place in (0, 8):
            wrong = table.copy()
            wrong[place, 17 - place] = bad
            refused(LearningError, "not finite", features=wrong)
            refused(LearningError, "not finite", targets=np.where(np.arange(9) == place, bad, targets))
            refused(LearningError, "not finite", weights=np.where(np.arange(18) == place, bad, weights))
        refused(LearningError, "not finite", weight=bad)
    refused(LearningError, "not finite", features=table * 1e200, weights=weights * 1e200)
    refused(LearningError, "not finite", features=table * 1e200, weights=np.zeros(18), weight=1e200)
    refused(InvalidInput, "0 candidates with 0 targets", features=table[:0], targets=targets[:0])
    refused(InvalidInput, "9 candidates with 8 targets", targets=targets[:8])
    refused(DimensionMismatch, "weights has 17 dimensions, expected 18", weights=weights[:17])
    refused(DimensionMismatch, "out has 17 dimensions, expected 18", out=np.zeros(17))
    refused(InvalidInput, "features is float32", features=table.astype(np.float32))
    refused(InvalidInput, "features has shape .*expected 2 dimensions", features=table[0])
    for wrong in (np.zeros(18, np.float32), read_only(out), strided(out), unaligned(out), swapped(out), out.tolist()):
        refused(InvalidInput, "out must be a contiguous, writeable float64 vector", out=wrong)


# ---- step ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", SIZES)
def test_step(f: int, rng: np.random.Generator) -> None:
    found = [rng.standard_normal(f) for _ in range(4)]
    found[3] **= 2
    expected = [part.copy() for part in found]
    for steps in (1, 2, 3, 500, 10**9):
        gradient = rng.standard_normal(f)
        for constants in ({}, {"beta1": 0.5, "beta2": 0.0, "epsilon": 0.1}):
            adam_step(*found, gradient, steps, 0.03, 0.98, **constants)
            reference.adam_step(*expected, gradient, steps, 0.03, 0.98, **constants)
    for part, twin in zip(found, expected, strict=True):
        np.testing.assert_allclose(part, twin, rtol=1e-12, atol=1e-12)


@COMPILED_AND_TWIN
def test_steps_are_the_fusions(kernel: str, rng: np.random.Generator) -> None:
    step = adam_step if kernel == "compiled" else reference.adam_step
    fusion = Fusion(CONFIG)
    weights = np.eye(18)[0]
    parts = (weights, weights.copy(), np.zeros(18), np.zeros(18))
    for steps in range(1, 101):
        gradient = rng.standard_normal(18)
        fusion.step(gradient)
        step(*parts, gradient, steps, CONFIG.fusion_learning_rate, CONFIG.fusion_average)
    for part, key in zip(parts, ("weights", "served", "moment1", "moment2"), strict=True):
        np.testing.assert_allclose(part, fusion.state()[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", INPUT_LAYOUTS)
def test_step_by_a_gradient_of_any_layout(layout: str, rng: np.random.Generator) -> None:
    gradient, found, expected = rng.standard_normal(18), np.zeros((4, 18)), np.zeros((4, 18))
    adam_step(*expected, gradient, 1, 0.03, 0.98)
    adam_step(*found, INPUT_LAYOUTS[layout](gradient), 1, 0.03, 0.98)
    assert bits(found) == bits(expected)


def test_bad_steps_are_refused_and_change_nothing(rng: np.random.Generator) -> None:
    parts = {key: rng.random(9) for key in ("weights", "served", "moment1", "moment2")}
    before = {key: bits(part) for key, part in parts.items()}
    good = {**parts, "gradient": rng.standard_normal(9), "steps": 1, "learning_rate": 0.03, "average": 0.98}

    def refused(error: type[Exception], message: str, **wrong: object) -> None:
        with pytest.raises(error, match=message) as caught:
            adam_step(**{**good, **wrong})
        assert type(caught.value) is error
        assert {key: bits(part) for key, part in parts.items()} == before

    for bad in (*BAD, 1e160, -1e160):
        for place in (0, 8):
            refused(LearningError, "the gradient is not finite", gradient=np.where(np.arange(9) == place, bad, 1.0))
    for key in parts:
        refused(DimensionMismatch, f"{key} has 8 dimensions, expected 9", **{key: np.zeros(8)})
        for wrong in (np.zeros(9, np.float32), read_only(np.zeros(9)), strided(np.zeros(9)), unaligned(np.zeros(9))):
            refused(InvalidInput, f"{key} must be a contiguous, writeable float64 vector", **{key: wrong})
    refused(InvalidInput, "gradient is float32", gradient=np.zeros(9, np.float32))
    for key, values in (
        ("steps", (0, -1)),
        ("learning_rate", (-0.1, *BAD)),
        ("average", (-0.1, 1.1, *BAD)),
        ("beta1", (-0.1, 1.0, np.nan)),
        ("beta2", (-0.1, 1.0, np.nan)),
        ("epsilon", (0.0, -1.0, *BAD)),
    ):
        for value in values:
            refused(ConfigError, "expected", **{key: value})


# ---- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_order(n: int, rng: np.random.Generator) -> None:
    for scores in (
        rng.standard_normal(n),
        rng.integers(0, 3, n).astype(np.float64),  # ties
        np.zeros(n),
        np.where(rng.random(n) < 0.5, 0.0, -0.0),
        np.arange(n, dtype=np.float64),
        -np.arange(n, dtype=np.float64),
        rng.choice([-np.inf, 0.0, np.inf], n),
    ):
        for k in (0, 1, 2, 3, 10, n // 2, max(n - 1, 0), n, n + 1, 1000):
            found = order_by_score(scores, k)
            assert found.dtype == np.int64
            assert found.tolist() == reference.order_by_score(scores, k).tolist()
            for change in INPUT_LAYOUTS.values():
                assert order_by_score(change(scores), k).tolist() == found.tolist()


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False), max_size=60), st.integers(0, 70))
def test_order_of_any_scores(scores: list[float], k: int) -> None:
    found = order_by_score(np.array(scores, dtype=np.float64), k)
    assert found.tolist() == sorted(range(len(scores)), key=lambda row: -scores[row])[:k]


def test_bad_orders_are_refused() -> None:
    for place in (0, 5, 8):
        with pytest.raises(InvalidInput, match=f"score of row {place} is NaN"):
            order_by_score(np.where(np.arange(9) == place, np.nan, 1.0), 2)
    with pytest.raises(ConfigError, match="the -1 best"):
        order_by_score(np.zeros(9), -1)
    with pytest.raises(InvalidInput, match="scores is float32"):
        order_by_score(np.zeros(9, np.float32), 2)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="scores has shape"):
        order_by_score(np.zeros((3, 3)), 2)


# ---- orders by chance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 7, 10, 33])
def test_sums_of_orders(n: int, rng: np.random.Generator) -> None:
    worth, heights = rng.standard_normal(n), rng.standard_normal((2, n))
    for seed in (0, 1, 2**64 - 1):
        found = shuffled_sums(worth, heights, seed, 50)
        np.testing.assert_allclose(found, reference.shuffled_sums(worth, heights, seed, 50), rtol=1e-12, atol=1e-12)
        assert found.tobytes() == shuffled_sums(read_only(worth), heights.copy(), seed, 50).tobytes()


def test_every_order_is_as_likely(rng: np.random.Generator) -> None:
    # Worth 1, 10, 100, ... at heights 0, 1, 2, ...: every order has a sum of its own.
    found = shuffled_sums(10.0 ** np.arange(4), np.arange(4.0)[np.newaxis], 7, 240_000)[0]
    sums, counts = np.unique(found, return_counts=True)
    assert len(sums) == 24
    assert abs(counts / 10_000 - 1).max() < 0.05


def test_bad_orders_by_chance_are_refused() -> None:
    for worth, heights, orders, error in (
        (np.ones(3), np.ones((2, 4)), 10, InvalidInput),
        (np.ones((3, 1)), np.ones((2, 3)), 10, InvalidInput),
        (np.ones(3), np.ones(3), 10, InvalidInput),
        (np.ones(3, dtype=np.float32), np.ones((2, 3)), 10, InvalidInput),
        (np.ones(3), np.ones((2, 3)), -1, ConfigError),
        (np.ones(3), np.ones((2, 3)), 1 << 30, ConfigError),
    ):
        with pytest.raises(error):
            shuffled_sums(worth, heights, 0, orders)
