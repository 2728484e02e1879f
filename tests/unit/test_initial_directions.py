"""The directions that a fresh query adapter reads a query by."""

from __future__ import annotations

import numpy as np
import pytest

from sona_pg.errors import ConfigError, InvalidInput, SonaError
from sona_pg.learning.lora import orthonormal_rows
from sona_pg.learning.query_adapter import initial_directions

from .samples import Floats, bits, unit_rows

DIM, RANK = 24, 5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def corpus(rng: np.random.Generator, n: int, dim: int = DIM) -> Floats:
    """Items with a mean that is not zero, and directions of different spread."""
    return unit_rows(rng.standard_normal((n, dim)) * np.linspace(3, 0.2, dim) + 1.5)


def assert_orthonormal(rows: Floats, rank: int, dim: int = DIM) -> None:
    assert rows.dtype == np.float32
    assert rows.shape == (rank, dim)
    assert rows.flags.c_contiguous
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(exact @ exact.T, np.eye(rank), atol=2e-6)


@pytest.mark.parametrize("n", [1, 2, 4, 5, 6, 23, 24, 25, 200])
def test_rows_are_orthonormal_however_many_items_there_are(rng: np.random.Generator, n: int) -> None:
    for rank in (1, 2, RANK, DIM):
        assert_orthonormal(initial_directions(corpus(rng, n), rank), rank)


@pytest.mark.parametrize("n", [3, 10, 200])
def test_first_row_is_the_direction_of_the_mean(rng: np.random.Generator, n: int) -> None:
    items = corpus(rng, n)
    mean = items.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(initial_directions(items, RANK)[0], mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize("n", [18, 200])
def test_further_rows_are_the_principal_directions_across_the_mean(rng: np.random.Generator, n: int) -> None:
    items = corpus(rng, n).astype(np.float64)
    rows = initial_directions(items, RANK)
    mean = items.mean(axis=0) / np.linalg.norm(items.mean(axis=0))
    spread = items - items.mean(axis=0)
    spread -= np.outer(spread @ mean, mean)
    _, _, principal = np.linalg.svd(spread, full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(rows[1:] * principal[: RANK - 1], axis=1)), 1, atol=1e-5)


def test_sign_of_a_principal_direction_is_that_of_its_largest_component(rng: np.random.Generator) -> None:
    for n in (10, 200):
        for row in initial_directions(corpus(rng, n), RANK)[1:]:
            assert row[np.argmax(np.abs(row))] > 0


def test_same_items_in_another_order_give_the_same_directions(rng: np.random.Generator) -> None:
    items = corpus(rng, 200)
    rows = initial_directions(items, RANK)
    assert bits(rows) == bits(initial_directions(items.copy(), RANK))
    np.testing.assert_allclose(rows, initial_directions(items[::-1], RANK), atol=1e-5)


def test_without_items_they_are_random_and_seeded() -> None:
    none = np.zeros((0, DIM))
    assert_orthonormal(initial_directions(none, RANK, seed=3), RANK)
    assert bits(initial_directions(none, RANK, seed=3)) == bits(orthonormal_rows(RANK, DIM, 3))
    assert bits(initial_directions(none, RANK, seed=3)) != bits(initial_directions(none, RANK, seed=4))


@pytest.mark.parametrize("n", [1, 2, 100])
def test_identical_items_give_their_direction_and_random_ones_across_it(n: int) -> None:
    item = unit_rows(np.arange(1.0, DIM + 1))
    rows = initial_directions(np.tile(item, (n, 1)), RANK)
    assert_orthonormal(rows, RANK)
    np.testing.assert_allclose(rows[0], item, atol=1e-6)
    assert bits(rows) == bits(initial_directions(np.tile(item, (n, 1)), RANK))


def test_items_whose_mean_is_zero_give_their_principal_directions() -> None:
    items = np.zeros((4, DIM))
    items[0, 3], items[1, 3], items[2, 7], items[3, 7] = 2, -2, 1, -1
    rows = initial_directions(items, 3)
    assert_orthonormal(rows, 3)
    np.testing.assert_allclose(rows[:2, [3, 7]], np.eye(2), atol=1e-6)


def test_zero_items_give_random_directions() -> None:
    assert_orthonormal(initial_directions(np.zeros((3, DIM)), RANK), RANK)


def test_rows_of_any_length_are_enough_alike(rng: np.random.Generator) -> None:
    items = corpus(rng, 50).astype(np.float64)
    for length in (1e-3, 1e3):
        np.testing.assert_allclose(initial_directions(items * length, RANK), initial_directions(items, RANK), atol=1e-5)


def test_items_that_nearly_span_fewer_directions_still_give_orthonormal_rows(rng: np.random.Generator) -> None:
    for noise in (1e-9, 1e-7, 1e-5, 1e-3):
        flat = rng.standard_normal((60, 2)) @ rng.standard_normal((2, DIM))
        assert_orthonormal(initial_directions(flat + noise * rng.standard_normal((60, DIM)), RANK), RANK)


def test_rank_above_the_dimension_is_refused(rng: np.random.Generator) -> None:
    for items in (np.zeros((0, 3)), corpus(rng, 10, 3)):
        with pytest.raises(ConfigError, match="rank 4 exceeds the dimension 3"):
            initial_directions(items, 4)


def test_items_that_are_no_matrix_of_finite_numbers_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"items have shape \(3,\), expected \(n, dim\)"):
        initial_directions(np.zeros(3), 1)
    with pytest.raises(SonaError):
        initial_directions(np.full((3, DIM), np.nan), RANK)
