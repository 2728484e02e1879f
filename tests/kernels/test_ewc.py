"""The loops of EWC++ on every instruction set: against NumPy to the last bit, and against double precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sona_pg import kernels
from sona_pg.errors import ConfigError, InvalidInput, LearningError
from sona_pg.kernels import reference

from .layouts import EPS, Floats, bits, read_only, unaligned, wide_range

BAD = (np.nan, np.inf, -np.inf)
ROWS = (1, 2, 3, 4, 5, 8, 33)  # squares are added by four rows and singly
LENGTHS = (1, 7, 8, 9, 15, 16, 17, 31, 33, 384, 1023, 1024, 1025, 2500)  # sums are made in blocks of 1024


def positive(rng: np.random.Generator, *shape: int) -> Floats:
    return np.abs(wide_range(rng, *shape))


def case(rng: np.random.Generator, p: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Gradient, θ, S and T."""
    stiffness = positive(rng, p)
    stiffness[::3] = 0  # what no task needs
    return wide_range(rng, p), wide_range(rng, p), stiffness, stiffness * wide_range(rng, p)


# ---- Fisher ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 1e-3, 0.7, 1.0])
@pytest.mark.parametrize("p", LENGTHS)
def test_fisher_is_the_average_of_squares(isa: str, p: int, weight: float, rng: np.random.Generator) -> None:
    for n in ROWS:
        gradients, around = wide_range(rng, n, p), np.full(p + 2, 7, dtype=np.float32)
        around[1:-1] = before = positive(rng, p)
        kernels.fisher_average(around[1:-1], gradients, weight)
        mean, w = np.square(gradients.astype(np.float64)).mean(axis=0), float(np.float32(weight))
        bound = 2 * (n + 4) * EPS * (before + w * mean)
        assert (np.abs(around[1:-1] - (before + w * (mean - before))) <= bound).all()
        assert around[0] == around[-1] == 7
        by_reference = before.copy()
        reference.fisher_average(by_reference, gradients, weight)
        if n == 1:
            assert bits(around[1:-1]) == bits(by_reference)
        assert (np.abs(around[1:-1] - by_reference) <= 2 * bound).all()


@pytest.mark.parametrize("p", LENGTHS)
def test_results_have_the_same_bits_on_every_instruction_set(p: int, rng: np.random.Generator) -> None:
    before, found = kernels.active(), set()
    gradients, fisher, (gradient, theta, stiffness, pull) = wide_range(rng, 7, p), positive(rng, p), case(rng, p)
    steps = positive(rng, p)
    for name in kernels.available():
        kernels.use(name)
        parts = [fisher.copy() for _ in range(5)]
        kernels.fisher_average(parts[0], gradients, 0.3)
        kernels.constrain(gradient, theta, stiffness, pull, 0.1, parts[1])
        kernels.proximal(theta, stiffness, pull, 0.1, None, parts[2])
        kernels.proximal(theta, stiffness, pull, 0.0, steps, parts[3])
        kernels.add_drift(fisher, theta, gradient, 0.2, parts[4])
        found.add(b"".join(map(bits, parts)))
    kernels.use(before)
    assert len(found) == 1


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("p", [1, 8, 17, 33, 1030])
def test_fisher_refuses_what_has_no_square_and_changes_nothing(
    isa: str, p: int, n: int, rng: np.random.Generator
) -> None:
    fisher = positive(rng, p)
    before = bits(fisher)
    for position in {0, p // 2, p - 1}:
        for bad in (*BAD, 1e20, -3e38):
            gradients = wide_range(rng, n, p)
            gradients[n // 2, position] = bad
            with pytest.raises(LearningError, match="above 1e18"):
                kernels.fisher_average(fisher, gradients, 0.5)
            assert bits(fisher) == before


def test_fisher_takes_read_only_and_unaligned_views(isa: str, rng: np.random.Generator) -> None:
    gradients, fisher = wide_range(rng, 3, 33), positive(rng, 33)
    expected = fisher.copy()
    kernels.fisher_average(expected, gradients, 0.5)
    for layout in (read_only, unaligned):
        found = fisher.copy()
        kernels.fisher_average(found, layout(gradients), 0.5)
        assert bits(found) == bits(expected)


def test_fisher_refuses_shapes_and_weights_that_do_not_fit(isa: str) -> None:
    fisher, rows = np.ones(4, np.float32), np.ones((2, 4), np.float32)
    for bad in (
        fisher[None],
        fisher.astype(np.float64),
        fisher.astype(">f4"),
        np.ones(8, np.float32)[::2],
        read_only(fisher),
    ):
        with pytest.raises(InvalidInput):
            kernels.fisher_average(bad, rows, 0.5)
    for wrong in (np.ones((2, 3), np.float32), np.ones((0, 4), np.float32)):
        with pytest.raises(InvalidInput):
            kernels.fisher_average(fisher, wrong, 0.5)
    for weight in (-0.1, 1.1, np.nan):
        with pytest.raises(ConfigError):
            kernels.fisher_average(fisher, rows, weight)
    for form in (rows[0], rows.astype(np.float64), rows.T):
        with pytest.raises((TypeError, ValueError)):
            kernels.fisher_average(fisher, form, 0.5)
    assert (fisher == 1).all()
    kernels.fisher_average(fisher[:0], rows[:, :0].copy(), 0.5)


# ---- constraint, proximal step, drift --------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 1e-4, 0.1, 100.0])
@pytest.mark.parametrize("p", LENGTHS)
def test_constraint_and_proximal_step(isa: str, p: int, rate: float, rng: np.random.Generator) -> None:
    gradient, theta, stiffness, pull = case(rng, p)
    steps = positive(rng, p)
    g, t, s, u = (part.astype(np.float64) for part in (gradient, theta, stiffness, pull))
    r = float(np.float32(rate))
    out, expected = np.empty((2, p), dtype=np.float32)

    kernels.constrain(gradient, theta, stiffness, pull, rate, out)
    reference.constrain(gradient, theta, stiffness, pull, rate, expected)
    assert bits(out) == bits(expected)
    bound = 4 * EPS * (np.abs(g) + np.abs(s * t) + np.abs(u)) / (1 + r * s) + 4 * EPS * np.abs(out)
    assert (np.abs(out - (g + s * t - u) / (1 + r * s)) <= bound).all()

    for each in (None, steps):
        eta = r if each is None else each.astype(np.float64)
        kernels.proximal(theta, stiffness, pull, rate, each, out)
        reference.proximal(theta, stiffness, pull, rate, each, expected)
        assert bits(out) == bits(expected)
        bound = 4 * EPS * (np.abs(t) + np.abs(eta * u)) / (1 + eta * s) + 4 * EPS * np.abs(out)
        assert (np.abs(out - (t + eta * u) / (1 + eta * s)) <= bound).all()


@pytest.mark.parametrize("p", LENGTHS)
def test_drift_is_added(isa: str, p: int, rng: np.random.Generator) -> None:
    fisher, theta, anchor, out = positive(rng, p), wide_range(rng, p), wide_range(rng, p), positive(rng, p)
    expected, weight = out.copy(), float(np.float32(0.3))
    exact = out + weight * fisher.astype(np.float64) * np.square(theta.astype(np.float64) - anchor)
    kernels.add_drift(fisher, theta, anchor, 0.3, out)
    reference.add_drift(fisher, theta, anchor, 0.3, expected)
    assert bits(out) == bits(expected)
    moved = np.abs(theta.astype(np.float64)) + np.abs(anchor)
    assert (np.abs(out - exact) <= 8 * EPS * (exact + weight * fisher * np.square(moved))).all()


def calls(gradient: Floats, theta: Floats, stiffness: Floats, pull: Floats) -> dict[str, Callable[[Floats], None]]:
    """Every loop on the same arrays."""
    steps = np.abs(gradient)
    return {
        "constrain": lambda out: kernels.constrain(gradient, theta, stiffness, pull, 0.1, out),
        "proximal": lambda out: kernels.proximal(theta, stiffness, pull, 0.1, None, out),
        "proximal, each": lambda out: kernels.proximal(theta, stiffness, pull, 0.0, steps, out),
        "add_drift": lambda out: kernels.add_drift(stiffness, theta, gradient, 0.1, out),
    }


def test_out_may_be_what_it_replaces(isa: str, rng: np.random.Generator) -> None:
    for p in LENGTHS:
        given = case(rng, p)
        for name, call in calls(*given).items():
            if name == "add_drift":
                continue
            expected = np.empty(p, dtype=np.float32)
            call(expected)
            copies = [part.copy() for part in given]
            calls(*copies)[name](copies[1])
            assert bits(copies[1]) == bits(expected)


@pytest.mark.parametrize("p", [1, 9, 33, 384])
def test_what_is_not_finite_is_refused(isa: str, p: int, rng: np.random.Generator) -> None:
    for position in {0, p // 2, p - 1}:
        for bad in BAD:
            theta = wide_range(rng, p)
            theta[position] = bad
            gradient, _, stiffness, pull = case(rng, p)
            stiffness[:] = 1  # no weight of zero, which would make the drift of infinity NaN all the same
            for call in calls(gradient, theta, stiffness, pull).values():
                with pytest.raises(LearningError, match="not finite"):
                    call(np.zeros(p, dtype=np.float32))


def test_layouts_and_lengths(isa: str, rng: np.random.Generator) -> None:
    given = case(rng, 33)
    for name, call in calls(*given).items():
        expected = np.zeros(33, dtype=np.float32)
        call(expected)
        for layout in (read_only, unaligned):
            out = np.zeros(33, dtype=np.float32)
            calls(*(layout(part) for part in given))[name](out)  # type: ignore[arg-type]
            assert bits(out) == bits(expected)
        with pytest.raises(InvalidInput, match="parameters, expected"):
            call(np.zeros(32, dtype=np.float32))
        for bad in (read_only(expected), expected[None], expected.astype(np.float64), expected.astype(">f4")):
            with pytest.raises(InvalidInput):
                call(bad)
    used = {"constrain": (0, 1, 2, 3), "proximal": (1, 2, 3), "proximal, each": (0, 1, 2, 3), "add_drift": (0, 1, 2)}
    for name, places in used.items():
        for short in places:
            parts = [part[:32] if place == short else part for place, part in enumerate(given)]
            with pytest.raises(InvalidInput, match="parameters, expected"):
                calls(*parts)[name](np.zeros(33, dtype=np.float32))


def test_rates_are_not_negative_and_empty_vectors_are_no_work(isa: str, rng: np.random.Generator) -> None:
    gradient, theta, stiffness, pull = case(rng, 9)
    out = np.zeros(9, dtype=np.float32)
    for bad in (-0.1, np.nan, np.inf):
        with pytest.raises(ConfigError):
            kernels.constrain(gradient, theta, stiffness, pull, bad, out)
        with pytest.raises(ConfigError):
            kernels.proximal(theta, stiffness, pull, bad, None, out)
        with pytest.raises(ConfigError):
            kernels.add_drift(stiffness, theta, gradient, bad, out)
    assert not out.any()
    for call in calls(gradient[:0], theta[:0], stiffness[:0], pull[:0]).values():
        call(out[:0])
