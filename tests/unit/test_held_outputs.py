"""Outputs that are held: the gradient of how far a map is from them."""

from __future__ import annotations

import numpy as np

from sona_pg.kernels import LowRank
from sona_pg.learning.held_outputs import HeldOutputs

from .samples import unit_rows

DIM, RANK = 6, 2


def test_the_gradient_is_that_of_the_mean_squared_error_and_is_added() -> None:
    rng = np.random.default_rng(0)
    query, then = unit_rows(rng.standard_normal((1, DIM))), rng.standard_normal((1, DIM)).astype(np.float32)
    weights = rng.standard_normal((2 * RANK, DIM))
    at = LowRank(DIM, RANK)
    at.load(weights)
    gradient = np.ones((2 * RANK, DIM), dtype=np.float32)
    HeldOutputs(query, then, [1], 3.0, 7).add_gradient(at, rng, gradient)

    def loss(w: np.typing.NDArray[np.float64]) -> float:
        off = (query @ w[:RANK].T) @ w[RANK:] - then
        return float(1.5 * np.square(off).sum())

    expected, step = np.empty_like(weights), 1e-5
    for place in np.ndindex(weights.shape):
        ahead, behind = weights.copy(), weights.copy()
        ahead[place] += step
        behind[place] -= step
        expected[place] = (loss(ahead) - loss(behind)) / (2 * step)
    np.testing.assert_allclose(gradient - 1, expected, rtol=1e-4, atol=1e-4)


def test_a_batch_stands_for_all_and_what_is_answered_as_then_is_left_alone() -> None:
    rng = np.random.default_rng(1)
    queries = unit_rows(rng.standard_normal((9, DIM)))
    at = LowRank(DIM, RANK)
    at.load(rng.standard_normal((2 * RANK, DIM)))
    then = np.zeros_like(queries)
    at.forward_batch(queries, then)
    still, pulled, once = (np.zeros((2 * RANK, DIM), dtype=np.float32) for _ in range(3))
    HeldOutputs(queries, then, [9], 3.0, 4).add_gradient(at, rng, still)
    assert np.abs(still).max() < 1e-5
    for _ in range(3000):
        HeldOutputs(queries, 0 * then, [9], 3.0, 4).add_gradient(at, rng, pulled)
    at.backward_batch(queries, then, once, 3.0 / len(queries))
    assert np.abs(pulled / 3000 - once).max() < 0.05 * np.abs(once).max()


def test_every_domain_counts_as_much_as_any_other() -> None:
    rng = np.random.default_rng(2)
    queries = unit_rows(rng.standard_normal((9, DIM)))
    at = LowRank(DIM, RANK)
    at.load(rng.standard_normal((2 * RANK, DIM)))
    off, found, expected = np.zeros_like(queries), *(np.zeros((2 * RANK, DIM), dtype=np.float32) for _ in range(2))
    HeldOutputs(queries, off, [1, 8], 3.0, 16).add_gradient(at, rng, found)
    at.forward_batch(queries, off)
    off[1:] /= 8
    at.backward_batch(queries, off, expected, 3.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
