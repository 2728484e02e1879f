"""Maps side by side add what they add one after the other; what comes from outside is the same function, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.kernels import LowRank
from sona_pg.learning.serving import Serving
from sona_pg.learning.stacking import LARGEST_GAIN, map_of, stacked

DIM = 24


def random_map(seed: int, rank: int, scale: float = 1.0, dim: int = DIM) -> LowRank:
    made = LowRank(dim, rank, scale)
    made.load(np.random.default_rng(seed).standard_normal((2 * rank, dim)) / dim**0.5)
    return made


def queries(n: int = 50, dim: int = DIM) -> np.ndarray:
    rows = np.random.default_rng(9).standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def dense(maps: list[LowRank]) -> np.ndarray:
    """ΔW in double precision."""
    total = np.zeros((DIM, DIM))
    for m in maps:
        w = m.weights.astype(np.float64)
        total += m.scale * w[: m.rank].T @ w[m.rank :]
    return total


def test_the_stack_of_maps_adds_what_they_add() -> None:
    maps = [random_map(1, 8), random_map(2, 2, 0.7)]
    made = stacked(maps)
    assert (made.rank, made.scale) == (10, 1.0)
    np.testing.assert_allclose(Serving([made]).adapt(queries()), Serving(maps).adapt(queries()), atol=1e-6)
    np.testing.assert_allclose(dense([made]), dense(maps), atol=1e-7)


def test_rows_that_add_nothing_are_left_out() -> None:
    maps = [random_map(1, 4), LowRank(DIM, 8), random_map(2, 3, 0.0)]
    maps[0].weights[6] = 0
    made = stacked(maps)
    assert made.rank == 3
    np.testing.assert_array_equal(dense([made]), dense(maps))


def test_nothing_learned_is_one_row_that_adds_nothing() -> None:
    made = stacked([LowRank(DIM, 4), LowRank(DIM, 1)])
    assert made.rank == 1
    assert made.is_zero


def test_more_rows_than_dimensions_become_as_many() -> None:
    maps = [random_map(seed, 16) for seed in range(3)]
    made = stacked(maps)
    assert made.rank == DIM
    np.testing.assert_allclose(dense([made]), dense(maps), atol=1e-5)


def test_maps_of_other_dimensions_are_refused() -> None:
    with pytest.raises(DimensionMismatch):
        stacked([LowRank(DIM, 1), LowRank(DIM + 1, 1)])


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.25])
def test_a_map_from_outside_gives_the_same_bits(scale: float) -> None:
    given = random_map(3, 5)
    made = map_of(given.weights[:5], given.weights[5:], scale)
    assert made.scale == 1.0
    own = LowRank(DIM, 5, scale)
    own.load(given.weights)
    np.testing.assert_array_equal(Serving([made]).adapt(queries()), Serving([own]).adapt(queries()))


def test_factors_at_the_ends_of_the_range_are_brought_into_it() -> None:
    given = random_map(3, 2)
    made = map_of(given.weights[:2].astype(np.float64) * 1e-60, given.weights[2:].astype(np.float64) * 1e60, 1.0)
    np.testing.assert_allclose(dense([made]), dense([given]), atol=1e-7)
    assert 0.5 <= np.linalg.norm(made.weights[0]) < 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_not_finite_or_runs_away_is_refused(bad: float) -> None:
    for place in (0, 1):
        weights = np.ones((2, 4))
        weights[place, 1] = bad
        with pytest.raises(InvalidInput):
            map_of(weights[:1], weights[1:], 1.0)


def test_the_largest_gain_is_that_of_a_unit_vector() -> None:
    unit = np.eye(4)[:1]
    assert map_of(unit, unit * LARGEST_GAIN, 1.0).rank == 1
    with pytest.raises(InvalidInput, match="diverged"):
        map_of(unit, unit * LARGEST_GAIN, 1.01)


def test_a_rank_above_the_dimension_is_refused() -> None:
    with pytest.raises(InvalidInput, match="rank"):
        map_of(np.ones((5, 4)), np.ones((5, 4)), 1.0)
