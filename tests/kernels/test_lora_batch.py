"""Gradients and Fisher information of a low-rank map over a batch, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.kernels import LowRank, reference

from .layouts import EPS, Floats, bits, read_only, unaligned, wide_range
from .lora_maps import BAD, RANKS, Doubles, make, position_classes, some

# Samples pass by 64: one block, the borders of it, and a last one that is not full.
SIZES = (0, 1, 2, 5, 63, 64, 65, 130)


def exact(weights: Floats, scale: float, x: Floats, g: Floats, squares: bool) -> tuple[Doubles, Doubles]:
    """The sum over single samples in float64, written out, and how far float32 may be from it."""
    rank, dim = len(weights) // 2, weights.shape[1]
    w, x64, g64, s = weights.astype(np.float64), x.astype(np.float64), g.astype(np.float64), float(np.float32(scale))
    total, bound = np.zeros((2 * rank, dim)), np.zeros((2 * rank, dim))
    for one, of_output in zip(x64, g64, strict=True):
        step = s * np.vstack([np.outer(w[rank:] @ of_output, one), np.outer(w[:rank] @ one, of_output)])
        size = abs(s) * np.vstack(
            [
                np.outer(np.abs(w[rank:]) @ np.abs(of_output), np.abs(one)),
                np.outer(np.abs(w[:rank]) @ np.abs(one), np.abs(of_output)),
            ]
        )
        total += step**2 if squares else step
        bound += (size**2 if squares else size) * 2 * EPS * (dim + len(x) + 8) * (2 if squares else 1)
    return total, bound


@pytest.mark.parametrize("squares", [False, True])
def test_batch_is_the_sum_over_its_samples(isa: str, dim: int, squares: bool, rng: np.random.Generator) -> None:
    for rank in RANKS:
        for n in (0, 1, 5, 65) if dim != 384 else SIZES:
            weights, x, g = wide_range(rng, 2 * rank, dim), some(rng, n, dim), wide_range(rng, n, dim)
            low_rank, kept = make(weights, 0.7), bits(weights)
            around = np.full((2 * rank + 2, dim), 7, dtype=np.float32)
            around[1:-1] = before = some(rng, 2 * rank, dim)
            out = around[1:-1]
            (low_rank.fisher_batch if squares else low_rank.backward_batch)(x, g, out, -0.5)
            step, bound = exact(weights, 0.7, x, g, squares)
            bound = bound + 2 * EPS * (n + 2) * np.abs(before)
            assert (np.abs(out - (before - 0.5 * step)) <= bound).all()
            by_reference = (reference.fisher_batch if squares else reference.backward_batch)(weights, 0.7, x, g)
            assert (np.abs(out - (before - np.float32(0.5) * by_reference)) <= 2 * bound).all()
            assert (around[0] == 7).all()
            assert (around[-1] == 7).all()
            assert bits(low_rank.weights) == kept
            if n == 0:
                assert bits(out) == bits(before)


@pytest.mark.parametrize("squares", [False, True])
def test_wide_samples_pass_in_smaller_blocks(isa: str, squares: bool, rng: np.random.Generator) -> None:
    weights, x, g = some(rng, 6, 5001), some(rng, 19, 5001), some(rng, 19, 5001)
    out = np.zeros((6, 5001), np.float32)
    (make(weights).fisher_batch if squares else make(weights).backward_batch)(x, g, out)
    step, bound = exact(weights, 1.0, x, g, squares)
    assert (np.abs(out - step) <= bound).all()


def test_of_a_frozen_down_projection_no_gradient_is_taken(isa: str, dim: int, rng: np.random.Generator) -> None:
    for rank in RANKS:
        low_rank, x, g = make(some(rng, 2 * rank, dim), 0.7), some(rng, 70, dim), some(rng, 70, dim)
        for method in (low_rank.backward_batch, low_rank.fisher_batch):
            both, around = np.ones((2 * rank, dim), np.float32), np.ones((rank + 2, dim), np.float32)
            method(x, g, both, 0.3)
            method(x, g, around[1:-1], 0.3, up_only=True)
            assert bits(around[1:-1]) == bits(both[rank:])
            assert (around[[0, -1]] == 1).all()
            with pytest.raises(InvalidInput, match="out has shape"):
                method(x, g, both, up_only=True)


def test_one_sample_is_that_of_backward(isa: str, dim: int, rng: np.random.Generator) -> None:
    low_rank, x, g = make(some(rng, 10, dim), 0.7), some(rng, 1, dim), some(rng, 1, dim)
    single, batch, squares = (np.zeros((10, dim), np.float32) for _ in range(3))
    low_rank.backward(x[0], g[0], single)
    low_rank.backward_batch(x, g, batch)
    low_rank.fisher_batch(x, g, squares)
    np.testing.assert_allclose(batch, single, rtol=1e-5)
    np.testing.assert_allclose(squares, single**2, rtol=1e-5)


def test_samples_that_cancel_have_no_gradient_and_a_fisher(isa: str, dim: int, rng: np.random.Generator) -> None:
    low_rank, x, g = make(some(rng, 4, dim)), some(rng, 1, dim), some(rng, 1, dim)
    gradient, fisher, half = (np.zeros((4, dim), np.float32) for _ in range(3))
    low_rank.backward_batch(np.vstack([x, x]), np.vstack([g, -g]), gradient)
    low_rank.fisher_batch(np.vstack([x, x]), np.vstack([g, -g]), fisher)
    low_rank.fisher_batch(x, g, half)
    assert (np.abs(gradient) <= 4 * EPS * np.sqrt(half)).all()
    np.testing.assert_allclose(fisher, 2 * half, rtol=1e-6)
    assert (fisher >= 0).all()


def test_where_the_rows_lie_does_not_matter(isa: str, dim: int, rng: np.random.Generator) -> None:
    low_rank, x, g = make(some(rng, 6, dim)), some(rng, 5, dim), some(rng, 5, dim)
    for method in (low_rank.backward_batch, low_rank.fisher_batch):
        expected = np.ones((6, dim), np.float32)
        method(x, g, expected)
        for form in (read_only, unaligned):
            out = unaligned(np.ones((6, dim), np.float32))
            method(form(x), form(g), out)
            assert bits(out) == bits(expected) != bits(np.ones((6, dim), np.float32))


def test_batch_refuses_wrong_input_and_changes_nothing(isa: str, dim: int, rng: np.random.Generator) -> None:
    low_rank, x, out = make(some(rng, 4, dim)), some(rng, 3, dim), some(rng, 4, dim)
    before = bits(out)
    for method in (low_rank.backward_batch, low_rank.fisher_batch):
        for position in position_classes(dim):
            for bad in (*BAD, 2e9):
                damaged = x.copy()
                damaged[2, position] = bad
                for pair in ((damaged, x), (x, damaged)):
                    with pytest.raises(InvalidInput, match="holds NaN, or is longer"):
                        method(*pair, out)
        with pytest.raises(DimensionMismatch, match="input"):
            method(some(rng, 3, dim + 1), x, out)
        with pytest.raises(DimensionMismatch, match="gradient"):
            method(x, some(rng, 3, dim + 1), out)
        with pytest.raises(InvalidInput, match="gradient has 2 rows, expected 3"):
            method(x, x[:2], out)
        for shape in ((2, dim), (6, dim), (4, dim + 1), (0, 0)):
            wrong = np.full(shape, 7, np.float32)
            with pytest.raises(InvalidInput, match="out has shape"):
                method(x, x, wrong)
            assert (wrong == 7).all()
        for bad_rows in (x.astype(np.float64), x.tolist(), x[0], None):
            with pytest.raises((TypeError, ValueError)):
                method(bad_rows, x, out)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError)):
            method(x, x, read_only(out))
    assert bits(out) == before


def test_a_fresh_map_teaches_its_up_projection_alone(isa: str, rng: np.random.Generator) -> None:
    low_rank = LowRank(33, 2)
    low_rank.load(np.vstack([some(rng, 2, 33), np.zeros((2, 33))]))
    gradient, fisher = np.zeros((4, 33), np.float32), np.zeros((4, 33), np.float32)
    x, g = some(rng, 9, 33), some(rng, 9, 33)
    low_rank.backward_batch(x, g, gradient)
    low_rank.fisher_batch(x, g, fisher)
    for out in (gradient, fisher):
        assert not out[:2].any()
        assert out[2:].all()
