"""Integration of systems that are known by their activations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from sona_pg.config import PhiConfig
from sona_pg.errors import InvalidInput
from sona_pg.learning.integration import causal_integration
from sona_pg.learning.system_integration import fit_system, system_integration

from .systems import activations, pair_among

QUICK = PhiConfig(shuffles=0)


def test_a_long_series_gives_the_system_back() -> None:
    a = np.array([[0.3, 0.6], [0.6, 0.3]])
    x = activations(a, 40_000)
    fitted = fit_system(x)
    assert fitted.transition == pytest.approx(a, abs=0.02)  # both have the same variance
    assert fitted.noise * x.var() == pytest.approx(np.eye(2), abs=0.05)
    assert causal_integration(*fitted).value == pytest.approx(0.251763, abs=0.01)
    assert system_integration(x, QUICK).value == pytest.approx(0.251763, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 40), st.sampled_from(["noise", "walk", "trend"]))
def test_whatever_is_fitted_is_stable(seed: int, n: int, more: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((4 * n + more, n))
    if kind == "walk":
        x = x.cumsum(axis=0)
    if kind == "trend":
        x = np.arange(len(x))[:, np.newaxis] * random.standard_normal(n) + 1e-6 * x
    transition, noise = fit_system(x)
    assert np.abs(np.linalg.eigvals(transition)).max() < 1
    assert np.linalg.eigvalsh(noise).min() > 0
    whole = system_integration(x, QUICK).whole
    assert whole == pytest.approx(causal_integration(transition, noise).value, abs=1e-6)


def test_the_complex_is_found_among_others_and_stands_above_its_null() -> None:
    found = system_integration(activations(pair_among(6), 600))
    assert found.nodes == (1, 3)
    assert found.value is not None
    assert found.null is not None
    assert found.whole is not None
    assert found.value == pytest.approx(causal_integration(pair_among(2 + 2)[np.ix_([1, 3], [1, 3])]).value, abs=0.05)
    assert found.value > 3 * found.null
    assert found.whole < 0.2 * found.value
    assert found.reason is None


def test_a_whole_that_is_its_own_complex_is_not_cut() -> None:
    ring = 0.4 * np.eye(5) + 0.4 * np.roll(np.eye(5), 1, axis=1)
    found = system_integration(activations(ring, 800))
    assert found.nodes == (0, 1, 2, 3, 4)
    assert found.value == found.whole
    assert found.null is not None
    assert found.value > found.null


@pytest.mark.parametrize("memory", [0.0, 0.95])
def test_nodes_without_relation_are_seldom_above_the_null(memory: float) -> None:
    above = 0
    for seed in range(40):
        found = system_integration(activations(memory * np.eye(4), 120, seed))
        assert found.value is not None
        assert found.null is not None
        assert found.value > 0  # which is why there is a null
        above += found.value > found.null
    assert above <= 7  # 40/21 expected; 8 or more come once in 2,000


def test_it_is_deterministic_by_its_seed() -> None:
    x = activations(pair_among(4), 100)
    assert system_integration(x) == system_integration(x.copy())
    assert system_integration(x, PhiConfig(seed=1)).null != system_integration(x).null
    assert system_integration(x, QUICK).null is None


def test_it_knows_no_order_and_no_units() -> None:
    x = activations(pair_among(5), 300)
    order = [4, 2, 3, 0, 1]
    found, renumbered = system_integration(x, QUICK), system_integration(x[:, order], QUICK)
    assert sorted(order[node] for node in renumbered.nodes) == list(found.nodes)
    assert renumbered.value == pytest.approx(found.value, abs=1e-9)
    moved = system_integration(x * [1e-6, 1.0, 1e6, 7.0, 0.1] + [0.0, 5.0, -3.0, 0.0, 1e3], QUICK)
    assert moved.value == pytest.approx(found.value, abs=1e-6)


def test_nodes_that_never_change_or_repeat_another_are_defined() -> None:
    x = activations(pair_among(4), 200)
    x[:, 0] = 1e9
    found = system_integration(x, QUICK)
    assert found.nodes == (1, 3)
    assert found.whole == pytest.approx(0.0, abs=1e-9)
    x[:, 2] = x[:, 1]
    twice = system_integration(x)
    assert twice.value is not None
    assert math.isfinite(twice.value)
    still = system_integration(np.ones((40, 3)))
    assert (still.value, still.null) == (0.0, 0.0)


def test_very_large_and_very_small_activations_are_defined() -> None:
    x = activations(pair_among(4), 100)
    expected = system_integration(x, QUICK).value
    for scale in (1e-300, 1e300):
        assert system_integration(x * scale, QUICK).value == pytest.approx(expected, abs=1e-9)


def test_fewer_than_two_nodes_have_none() -> None:
    for n in (0, 1):
        found = system_integration(np.ones((10, n)))
        assert (found.value, found.nodes, found.whole, found.null) == (0.0, tuple(range(n)), 0.0, 0.0)
    assert system_integration(np.empty((0, 0)), QUICK).null is None


def test_a_series_that_is_too_short_is_not_measured_and_not_fitted() -> None:
    x = activations(pair_among(4), 16)
    assert system_integration(x, QUICK).value is not None
    found = system_integration(x[:15])
    assert (found.value, found.nodes, found.whole, found.null) == (None, (), None, None)
    assert found.reason == "the series has 15 steps of 4 nodes, expected 16: fewer fit any relation between them"
    with pytest.raises(InvalidInput, match="15 steps of 4 nodes, expected 16"):
        fit_system(x[:15])
    assert system_integration(x[:15], PhiConfig(steps_per_node=2)).value is not None
    assert system_integration(np.empty((0, 3))).value is None


def test_fifteen_nodes_are_measured_and_sixteen_are_refused() -> None:
    x = np.random.default_rng(1).standard_normal((100, 16))
    assert system_integration(x[:, :15], QUICK).value is not None
    with pytest.raises(InvalidInput, match="16 nodes, expected 15 at most"):
        system_integration(x)
    assert fit_system(x).transition.shape == (16, 16)


@pytest.mark.parametrize("series", [[1.0, 2.0], [[math.nan]], [[math.inf]], [["a"]], None, [[1.0], [1.0, 2.0]]])
def test_what_is_no_series_is_refused(series: ArrayLike) -> None:
    for call in (fit_system, system_integration):
        with pytest.raises(InvalidInput):
            call(series)
