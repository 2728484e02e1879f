"""The task boundary: few false alarms whatever the distribution, shifts found soon, and nothing that breaks it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg.config import BoundaryConfig
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, LearningError
from sona_pg.learning.task_boundary import TaskBoundary

DIM = 256
Rows = NDArray[np.float64]


def alarms(rows: Iterable[Rows], boundary: TaskBoundary) -> list[int]:
    """Steps, from 1, at which there was an alarm."""
    return [step for step, row in enumerate(rows, 1) if boundary.observe(row)]


def gaussian(random: np.random.Generator, n: int, dim: int) -> Rows:
    return random.standard_normal((n, dim))


def heavy_tailed(random: np.random.Generator, n: int, dim: int) -> Rows:
    return random.standard_t(2, (n, dim))


def correlated(random: np.random.Generator, n: int, dim: int) -> Rows:
    return np.asarray(random.standard_normal((n, 3)) @ random.standard_normal((3, dim)))


def directions(random: np.random.Generator, n: int, dim: int) -> Rows:
    """Unit vectors around a few centres, as embeddings are."""
    rows = random.standard_normal((4, dim))[random.integers(0, 4, n)] + 0.5 * random.standard_normal((n, dim))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def repeated(random: np.random.Generator, n: int, dim: int) -> Rows:
    """Three vectors again and again: most scores are equal."""
    return np.asarray(random.standard_normal((3, dim))[random.integers(0, 3, n)])


def constant(random: np.random.Generator, n: int, dim: int) -> Rows:
    return np.ones((n, dim)) * random.standard_normal()


NULLS: list[Callable[[np.random.Generator, int, int], Rows]] = [
    gaussian, heavy_tailed, correlated, directions, repeated, constant,
]  # fmt: skip


@pytest.mark.parametrize("null", NULLS, ids=lambda f: f.__name__)
def test_false_alarms_are_few_whatever_the_distribution(null: Callable[..., Rows]) -> None:
    # At most n / 10⁴ of the streams are expected to have one within n steps: 4 of 20 in 2000.
    dim = DIM if null is gaussian else 16
    found = sum(len(alarms(null(np.random.default_rng(s), 2000, dim), TaskBoundary(dim))) for s in range(20))
    assert found <= 8


def test_false_alarms_follow_the_run_length() -> None:
    """And are not so few because nothing is ever found: a short run length is used up by half at least."""
    config = BoundaryConfig(run_length=50.0)
    found = sum(len(alarms(gaussian(np.random.default_rng(s), 2000, 8), TaskBoundary(8, config))) for s in range(20))
    assert 20 * 2000 / 50 / 8 <= found <= 20 * 2000 / 50


@pytest.mark.parametrize("before", [200, 500, 1000])
def test_a_shift_of_norm_8_is_found_within_ten_steps(before: int) -> None:
    found = 0
    for seed in range(10):
        random, boundary = np.random.default_rng(seed), TaskBoundary(DIM)
        alarms(gaussian(random, before, DIM), boundary)
        shift = random.standard_normal(DIM)
        shift *= 8 / np.linalg.norm(shift)
        found += bool(alarms(gaussian(random, 10, DIM) + shift, boundary))
    assert found >= 9


def test_mean_absolute_z_would_not_have_found_it() -> None:
    random = np.random.default_rng(0)
    shift = np.zeros(DIM)
    shift[0] = 32
    assert np.abs(gaussian(random, 1000, DIM) + shift).mean(axis=1).max() < 2
    boundary = TaskBoundary(DIM)
    assert not alarms(gaussian(random, 500, DIM), boundary)
    assert alarms(gaussian(random, 10, DIM) + shift, boundary)


def test_it_begins_anew_after_an_alarm_and_finds_the_next() -> None:
    random, boundary, found = np.random.default_rng(1), TaskBoundary(32), []
    for task in range(4):
        rows = gaussian(random, 400, 32) + 3.0 * task
        found += [(task, step) for step in alarms(rows, boundary)]
    assert [task for task, _ in found] == [1, 2, 3]
    assert all(step <= 10 for _, step in found)
    assert boundary.evidence < 1e4


def test_evidence_grows_as_bets_are_won() -> None:
    """R ← (1 + R) ε p^(ε-1), from the ranks that the scores have in one dimension."""
    config = BoundaryConfig(warm_up=2, window=16)
    boundary, evidence, scores = TaskBoundary(1, config), np.zeros(5), []
    powers = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    values = [-1.0, 1.0, 0.1, 0.2, 0.3, 0.05, 0.4, 0.15]  # mean 0, and no score twice
    for step, value in enumerate(values, 1):
        boundary.observe([value])
        if step <= 2:
            continue
        above, n = sum(score > value for score in scores), len(scores)
        scores.append(value)
        # Only the draw for the own rank is not known here: it lies between the two neighbours.
        low = (1 + evidence) * powers * ((above + 1) / (n + 1)) ** (powers - 1)
        high = (1 + evidence) * powers * (max(above, 1e-9) / (n + 1)) ** (powers - 1)
        assert (boundary._evidence >= low * (1 - 1e-12)).all()
        assert (boundary._evidence <= high).all()
        evidence = boundary._evidence.copy()


@pytest.mark.parametrize("cut", [0, 5, 31, 32, 33, 60, 120])
def test_state_continues_bit_for_bit(cut: int) -> None:
    config = BoundaryConfig(window=50)
    rows = repeated(np.random.default_rng(2), 300, 6) + np.repeat([0.0, 9.0], [150, 150])[:, np.newaxis]
    whole, part, rest = (TaskBoundary(6, config) for _ in range(3))
    expected = alarms(rows, whole)
    found = alarms(rows[:cut], part)
    rest.load_state(part.state())
    found += [cut + step for step in alarms(rows[cut:], rest)]
    assert found == expected != []
    first, second = whole.state(), rest.state()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_state_is_bounded() -> None:
    boundary = TaskBoundary(4, BoundaryConfig(window=64))
    alarms(gaussian(np.random.default_rng(0), 500, 4), boundary)
    assert sum(part.size for part in boundary.state().values()) == 2 + 4 + 4 + 64 + 5
    assert len(boundary._sorted) == 64
    assert np.array_equal(boundary._sorted, np.sort(boundary._scores))


def test_damaged_state_is_refused_and_changes_nothing() -> None:
    boundary = TaskBoundary(4)
    alarms(gaussian(np.random.default_rng(0), 100, 4), boundary)
    good = boundary.state()
    before = {name: part.tobytes() for name, part in good.items()}
    wrong = [{k: v for k, v in good.items() if k != name} for name in good]
    wrong += [{**good, name: part[..., np.newaxis]} for name, part in good.items()]
    wrong += [{**good, name: part - part - 1} for name, part in good.items() if name != "mean"]
    wrong += [{**good, name: part * np.nan} for name, part in good.items()]
    wrong += [{**good, "seen": good["seen"] + 1}, TaskBoundary(5).state()]
    for state in wrong:
        with pytest.raises(LearningError):
            boundary.load_state(state)
        assert {name: part.tobytes() for name, part in boundary.state().items()} == before


def test_bad_vectors_are_refused_and_change_nothing() -> None:
    boundary = TaskBoundary(4)
    alarms(gaussian(np.random.default_rng(0), 50, 4), boundary)
    before = {name: part.tobytes() for name, part in boundary.state().items()}
    for bad, error in (
        (np.ones(3), DimensionMismatch),
        (np.ones((1, 4)), InvalidInput),
        ([math.nan] * 4, InvalidInput),
        ("x", InvalidInput),
        (None, InvalidInput),
    ):
        with pytest.raises(error):
            boundary.observe(bad)  # type: ignore[arg-type]
    assert {name: part.tobytes() for name, part in boundary.state().items()} == before
    for dim in (0, -1, True, 1.5, None):
        with pytest.raises(ConfigError):
            TaskBoundary(dim)  # type: ignore[arg-type]


def test_huge_vectors_sound_an_alarm_and_stay_finite() -> None:
    boundary = TaskBoundary(4)
    alarms(gaussian(np.random.default_rng(0), 300, 4), boundary)
    huge = np.full(4, 3e38)
    assert alarms([huge] * 10, boundary)
    alarms([huge, -huge] * 100, boundary)
    assert all(np.isfinite(part).all() for part in boundary.state().values())
