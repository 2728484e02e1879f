"""Welch's test and Benjamini and Hochberg's adjustment, against published numbers and other computations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sona_pg.learning.significance import Moments, benjamini_hochberg, incomplete_beta, two_sided, welch

FIRST = [0.9, 0.8, 0.85, 0.95, 0.9]
SECOND = [0.5, 0.7, 0.6, 0.65, 0.4, 0.55]


def test_welch_of_the_example() -> None:
    test = welch(Moments.of(FIRST), Moments.of(SECOND))
    assert test.t == pytest.approx(6.151548, abs=1e-6)
    assert test.freedom == pytest.approx(7.810581, abs=1e-6)
    assert test.p == pytest.approx(3.014481e-4, abs=1e-10)
    assert welch(Moments.of(SECOND), Moments.of(FIRST)).t == pytest.approx(-test.t)


def test_student_is_that_of_known_quantiles() -> None:
    for t, freedom, p in [
        (12.706205, 1, 0.05), (2.570582, 5, 0.05), (2.228139, 10, 0.05), (4.587, 10, 0.001), (1.959964, 1e9, 0.05),
        (0.0, 3, 1.0),
    ]:  # fmt: skip
        assert two_sided(t, freedom) == pytest.approx(p, rel=1e-3)
    # Two degrees of freedom have a closed form.
    for t in (0.1, 1.0, 5.0, 40.0):
        assert two_sided(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)


def test_beta_is_symmetric_and_bounded() -> None:
    for a, b, x in [(0.5, 0.5, 0.3), (4, 0.5, 0.9), (200, 0.5, 0.99), (2, 7, 0.5)]:
        assert incomplete_beta(a, b, x) == pytest.approx(1 - incomplete_beta(b, a, 1 - x), rel=1e-9)
    assert incomplete_beta(2, 3, 0) == 0
    assert incomplete_beta(2, 3, 1) == 1


def test_moments_add_up() -> None:
    random = np.random.default_rng(0)
    values = random.normal(1e3, 1e-2, 100)
    grown = Moments()
    for value in values:
        grown = grown.add(float(value))
    parts = Moments.of(values[:30].tolist()) + Moments.of(values[30:].tolist())
    for moments in (grown, parts):
        assert moments.count == 100
        assert moments.mean == pytest.approx(values.mean(), rel=1e-12)
        assert moments.variance == pytest.approx(values.var(ddof=1), rel=1e-6)
    assert Moments() + Moments() == Moments()
    assert Moments() + parts == parts
    assert parts + Moments() == parts


def test_samples_that_say_nothing() -> None:
    assert welch(Moments.of([0.5]), Moments.of(FIRST)).p == 1
    assert welch(Moments(), Moments()).p == 1
    assert welch(Moments.of([0.8] * 5), Moments.of([0.8] * 9)).p == 1
    certain = welch(Moments.of([0.9] * 5), Moments.of([0.8] * 9))
    assert (certain.p, certain.t) == (0, math.inf)


def test_benjamini_hochberg() -> None:
    assert benjamini_hochberg([]) == []
    assert benjamini_hochberg([0.2]) == [0.2]
    # Benjamini & Hochberg 1995, section 3.2: four of fifteen are rejected at .05.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528]
    p += [0.7590, 1.0]
    adjusted = benjamini_hochberg(p[::-1])[::-1]
    assert [value <= 0.05 for value in adjusted] == [True] * 4 + [False] * 11
    assert adjusted == sorted(adjusted)
