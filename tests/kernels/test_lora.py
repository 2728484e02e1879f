"""The low-rank map, its gradient, its weights, and the draw of negatives, on every instruction set."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sona_pg import kernels
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput
from sona_pg.kernels import LowRank, reference

from .layouts import EPS, Floats, Layout, bits, read_only, strided, unaligned, wide_range
from .lora_maps import BAD, RANKS, Doubles, assert_is_gradient, make, position_classes, some

NO_ROWS = np.zeros(0, dtype=np.int64)


# ---- forward ---------------------------------------------------------------------------------------------------------


def exact_forward(weights: Floats, scale: float, x: Floats, out: Floats) -> tuple[Doubles, Doubles]:
    """``out + s (x A) B`` in float64, and how far float32 may be from it."""
    rank = len(weights) // 2
    s, d = float(np.float32(scale)), x.shape[-1]
    down, up, x64 = weights[:rank].astype(np.float64), weights[rank:].astype(np.float64), x.astype(np.float64)
    z, z_magnitude = s * (x64 @ down.T), abs(s) * (np.abs(x64) @ np.abs(down).T)
    z_error = 2 * (d + 1) * EPS * z_magnitude
    bound = z_error @ np.abs(up) + 2 * (rank + 1) * EPS * (np.abs(out) + (np.abs(z) + z_error) @ np.abs(up))
    return out + z @ up, bound


@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_forward(isa: str, dim: int, scale: float, rng: np.random.Generator) -> None:
    for rank in RANKS:
        weights, x, before = wide_range(rng, 2 * rank, dim), wide_range(rng, dim), wide_range(rng, dim)
        around = np.concatenate([[7], before, [7]], dtype=np.float32)
        out, by_reference = around[1:-1], before.copy()
        make(weights, scale).forward(x, out)
        reference.forward(weights, scale, x, by_reference)
        exact, bound = exact_forward(weights, scale, x, before)
        assert (np.abs(out - exact) <= bound).all()
        assert (np.abs(out - by_reference) <= 2 * bound).all()
        assert around[0] == around[-1] == 7


def test_forward_takes_any_layout(isa: str, dim: int, layout: Layout, rng: np.random.Generator) -> None:
    x = some(rng, dim).astype(np.float16).astype(np.float32)
    low_rank, out, expected = make(some(rng, 6, dim)), np.ones(dim, np.float32), np.ones(dim, np.float32)
    low_rank.forward(x, expected)
    low_rank.forward(layout(x.copy()), out)
    assert bits(out) == bits(expected) != bits(np.ones(dim, np.float32))


def test_forward_onto_its_own_input(isa: str, dim: int, rng: np.random.Generator) -> None:
    low_rank, x = make(some(rng, 6, dim)), some(rng, dim)
    expected = x.copy()
    low_rank.forward(x, expected)
    low_rank.forward(x, x)
    assert bits(x) == bits(expected)


def test_forward_writes_only_to_contiguous_float32(isa: str, rng: np.random.Generator) -> None:
    low_rank, x, out = make(some(rng, 4, 9)), some(rng, 9), some(rng, 9)
    for bad in (out.astype(np.float64), read_only(out), strided(out), unaligned(out), out.astype(">f4"), out[None]):
        before = bits(bad)
        with pytest.raises(InvalidInput, match="output must be a contiguous, writeable float32 vector"):
            low_rank.forward(x, bad)  # type: ignore[arg-type]
        assert bits(bad) == before
    with pytest.raises(InvalidInput, match="output"):
        low_rank.forward(x, out.tolist())
    before = bits(out)
    with pytest.raises(DimensionMismatch, match="output has 8 dimensions, expected 9"):
        low_rank.forward(x, out[:8])
    for wrong in (x[:8], np.zeros(10, np.float32), x[:8].tolist(), np.zeros(0)):
        with pytest.raises(DimensionMismatch, match="input"):
            low_rank.forward(wrong, out)
    for wrong_input in (x[None], "x", None):
        with pytest.raises(InvalidInput, match="input"):
            low_rank.forward(wrong_input, out)  # type: ignore[arg-type]
    assert bits(out) == before


@pytest.mark.parametrize("fresh", [False, True])
def test_forward_refuses_what_is_not_finite(isa: str, dim: int, fresh: bool, rng: np.random.Generator) -> None:
    for rank in (1, 4, 5):
        weights = some(rng, 2 * rank, dim)
        weights[:rank, ::2] = 0  # a weight of zero must not hide it
        low_rank = LowRank(dim, rank) if fresh else make(weights)
        out, many = some(rng, dim), some(rng, 3, dim)
        before, many_before = bits(out), bits(many)
        for position in position_classes(dim):
            for bad in BAD:
                x, rows = some(rng, dim), some(rng, 3, dim)
                x[position] = rows[position % 3, position] = bad
                for form in (x, unaligned(x), x.astype(np.float64), x.tolist()):
                    with pytest.raises(InvalidInput, match="input holds NaN or infinity"):
                        low_rank.forward(form, out)
                with pytest.raises(InvalidInput, match="input holds NaN or infinity"):
                    low_rank.forward_batch(rows, many)
        assert bits(out) == before
        assert bits(many) == many_before


def test_fresh_map_leaves_every_bit_alone(isa: str, dim: int, rng: np.random.Generator) -> None:
    odd = np.array([-0.0, 0.0, 1e-45, -1e-45, 3.4e38, np.inf, np.nan, 1.5], dtype=np.float32)
    out, many = np.resize(odd, dim), np.resize(odd, (5, dim))
    before, many_before = bits(out), bits(many)
    fresh, only_down = LowRank(dim, 2), LowRank(dim, 2)
    only_down.load(np.vstack([some(rng, 2, dim), np.zeros((2, dim))]))
    for low_rank in (fresh, only_down):
        assert low_rank.is_zero
        low_rank.forward(some(rng, dim), out)
        low_rank.forward_batch(some(rng, 5, dim), many)
    assert bits(out) == before
    assert bits(many) == many_before


def test_is_zero_follows_the_weights(dim: int) -> None:
    low_rank = LowRank(dim, 1)
    weights = np.zeros((2, dim), np.float32)
    weights[1, -1] = 1e-45
    low_rank.load(weights)
    assert not low_rank.is_zero
    low_rank.load(np.zeros((2, dim)))
    assert low_rank.is_zero
    low_rank.weights[1, 0] = 1
    low_rank.refresh()
    assert not low_rank.is_zero


# ---- forward_batch ---------------------------------------------------------------------------------------------------


def test_forward_batch_gives_the_bits_of_forward(isa: str, dim: int, rng: np.random.Generator) -> None:
    for rank in RANKS:
        for rows in (0, 1, 2, 5):
            low_rank, x, out = make(some(rng, 2 * rank, dim), 0.7), some(rng, rows, dim), some(rng, rows, dim)
            before, expected = out.copy(), out.copy()
            for vector, target in zip(x, expected, strict=True):
                low_rank.forward(vector, target)
            low_rank.forward_batch(x, out)
            assert bits(out) == bits(expected)
            exact, bound = exact_forward(low_rank.weights, 0.7, x, before)
            assert (np.abs(out - exact) <= bound).all()
            for form in (read_only(x), unaligned(x)):
                again = before.copy()
                low_rank.forward_batch(form, again)
                assert bits(again) == bits(expected)


def test_forward_batch_takes_only_contiguous_float32(isa: str, rng: np.random.Generator) -> None:
    low_rank, x, out = make(some(rng, 4, 9)), some(rng, 3, 9), some(rng, 3, 9)
    before = bits(out)
    for bad in (x.astype(np.float64), x.T.copy().T, x.astype(">f4"), x[0], x.tolist()):
        with pytest.raises((TypeError, ValueError)):
            low_rank.forward_batch(bad, out)  # type: ignore[arg-type]
    for bad_out in (out.astype(np.float64), out.T.copy().T, read_only(out), out[0]):
        kept = bits(bad_out)
        with pytest.raises((TypeError, ValueError)):
            low_rank.forward_batch(x, bad_out)  # type: ignore[arg-type]
        assert bits(bad_out) == kept
    with pytest.raises(DimensionMismatch, match="input"):
        low_rank.forward_batch(some(rng, 3, 8), out)
    with pytest.raises(DimensionMismatch, match="output"):
        low_rank.forward_batch(x, some(rng, 3, 8))
    for rows in (0, 2, 4):
        with pytest.raises(InvalidInput, match=f"output has 3 rows, expected {rows}"):
            low_rank.forward_batch(some(rng, rows, 9), out)
    assert bits(out) == before


# ---- backward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, -0.4])
def test_backward(isa: str, dim: int, weight: float, rng: np.random.Generator) -> None:
    for rank in RANKS:
        weights, x, g, before = (
            wide_range(rng, *shape) for shape in ((2 * rank, dim), (dim,), (dim,), (2 * rank, dim))
        )
        out, kept = before.copy(), bits(weights)
        low_rank = make(weights, 0.7)
        low_rank.backward(x, g, out, weight)
        factor = float(np.float32(weight)) * float(np.float32(0.7))
        down, up, x64, g64 = (part.astype(np.float64) for part in (weights[:rank], weights[rank:], x, g))
        step = factor * np.vstack([np.outer(up @ g64, x64), np.outer(down @ x64, g64)])
        magnitude = abs(factor) * np.vstack(
            [np.outer(np.abs(up) @ np.abs(g64), np.abs(x64)), np.outer(np.abs(down) @ np.abs(x64), np.abs(g64))]
        )
        bound = 2 * EPS * ((dim + 4) * magnitude + np.abs(before) + np.abs(step))
        assert (np.abs(out - (before + step)) <= bound).all()
        by_reference = before + np.float32(weight) * reference.backward(weights, 0.7, x, g)
        assert (np.abs(out - by_reference) <= 2 * bound).all()
        assert bits(low_rank.weights) == kept


def test_backward_against_numerical_differentiation(isa: str, dim: int, rng: np.random.Generator) -> None:
    for rank in (1, 2, 5):
        weights, x, g = some(rng, 2 * rank, dim), some(rng, dim), some(rng, dim)
        out = np.zeros((2 * rank, dim), np.float32)
        make(weights, 0.7).backward(x, g, out)

        def along(w: Doubles, x: Floats = x, g: Floats = g, rank: int = rank) -> float:
            return float(g @ (float(np.float32(0.7)) * (w[:rank] @ x.astype(np.float64)) @ w[rank:]))

        assert_is_gradient(out, along, weights, rng)


def test_backward_takes_any_layout(isa: str, dim: int, layout: Layout, rng: np.random.Generator) -> None:
    x, g = (some(rng, dim).astype(np.float16).astype(np.float32) for _ in range(2))
    low_rank, out, expected = make(some(rng, 4, dim)), np.ones((4, dim), np.float32), np.ones((4, dim), np.float32)
    low_rank.backward(x, g, expected)
    low_rank.backward(layout(x), layout(g), out)
    assert bits(out) == bits(expected)


def test_backward_refuses_wrong_input_and_changes_nothing(isa: str, dim: int, rng: np.random.Generator) -> None:
    low_rank, x, out = make(some(rng, 4, dim)), some(rng, dim), some(rng, 4, dim)
    before = bits(out)
    for position in position_classes(dim):
        for bad in BAD:
            damaged = x.copy()
            damaged[position] = bad
            with pytest.raises(InvalidInput, match="input holds NaN"):
                low_rank.backward(damaged, x, out)
            with pytest.raises(InvalidInput, match="gradient holds NaN"):
                low_rank.backward(x, damaged, out)
    longer = some(rng, dim + 1)
    with pytest.raises(DimensionMismatch, match="input"):
        low_rank.backward(longer, x, out)
    with pytest.raises(DimensionMismatch, match="gradient"):
        low_rank.backward(x, longer, out)
    for shape in ((2, dim), (6, dim), (4, dim + 1), (0, 0)):
        wrong = np.full(shape, 7, np.float32)
        with pytest.raises(InvalidInput, match="out has shape"):
            low_rank.backward(x, x, wrong)
        assert (wrong == 7).all()
    for wrong in (read_only(out), out.astype(np.float64)):  # type: ignore[assignment]
        kept = bits(wrong)
        with pytest.raises((TypeError, ValueError)):
            low_rank.backward(x, x, wrong)
        assert bits(wrong) == kept
    assert bits(out) == before


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_add_moves_the_weights(isa: str, dim: int, rng: np.random.Generator) -> None:
    weights, step = some(rng, 6, dim), some(rng, 6, dim)
    low_rank = make(weights)
    low_rank.add(step, -0.25)
    exact = weights.astype(np.float64) - 0.25 * step
    assert (np.abs(low_rank.weights - exact) <= 4 * EPS * (np.abs(weights) + np.abs(step))).all()
    before = bits(low_rank.weights)
    for shape in ((2, dim), (6, dim + 1), (0, 0)):
        with pytest.raises(InvalidInput, match="step has shape"):
            low_rank.add(np.zeros(shape, np.float32), 1.0)
    assert bits(low_rank.weights) == before


def test_load_refuses_damaged_weights_and_keeps_the_old(dim: int, rng: np.random.Generator) -> None:
    weights = some(rng, 4, dim)
    low_rank = make(weights)
    for bad in BAD:
        damaged = weights.copy()
        damaged[2, dim // 2] = bad
        with pytest.raises(InvalidInput, match="NaN or infinity"):
            low_rank.load(damaged)
    for shape in ((2, dim), (4, dim + 1), (4 * dim,)):
        with pytest.raises(InvalidInput, match="weights have shape"):
            low_rank.load(np.zeros(shape))
    assert bits(low_rank.weights) == bits(weights)
    assert low_rank.weights.ctypes.data % 64 == 0


def test_dimension_rank_and_scale_are_checked() -> None:
    for dim, rank in ((0, 1), (1, 0), (-1, 1), (1, -1)):
        with pytest.raises(ConfigError, match="at least 1"):
            LowRank(dim, rank)
    low_rank = LowRank(3, 1, 0.5)
    for bad in BAD:
        with pytest.raises(ConfigError, match="finite"):
            LowRank(3, 1, bad)
        with pytest.raises(ConfigError, match="finite"):
            low_rank.set_scale(bad)
    assert low_rank.scale == 0.5


# ---- the draw of negatives -------------------------------------------------------------------------------------------


@hypothesis.settings(deadline=None, database=None, max_examples=300)
@hypothesis.given(
    seed=st.integers(0, 2**64 - 1),
    size=st.integers(0, 40) | st.integers(0, 2**32),
    n=st.integers(0, 80),
    skip=st.lists(st.integers(0, 40), max_size=20),
)
def test_draw_is_the_reference_distinct_and_skips(seed: int, size: int, n: int, skip: list[int]) -> None:
    rows = np.array(skip, dtype=np.int64)
    drawn = kernels.draw(seed, size, n, rows)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == reference.draw(seed, size, n, rows).tolist()
    assert len(set(drawn.tolist())) == len(drawn) <= n
    assert not set(drawn.tolist()) & set(skip)
    assert ((drawn >= 0) & (drawn < size)).all()


# The first two rows: half of what splitmix64 gives in Vigna's own test vectors for these seeds.
@pytest.mark.parametrize(
    ("seed", "size", "n", "skip", "expected"),
    [
        (1234567, 1 << 32, 5, [], [1503580183, 745795716, 2285812965, 1069479744, 3820500071]),
        (0, 1 << 32, 4, [], [3793791033, 1853398634, 113532184, 4169906344]),
        (0, 1000, 8, [], [883, 431, 26, 970, 106, 327, 173, 771]),
        (42, 10, 12, [], [7, 1, 2, 3, 0, 8, 6, 4]),
        (42, 10, 12, [1, 3, 7], [2, 0, 8, 6, 4]),
        (2**64 - 1, 4096, 8, [], [3661, 3737, 898, 1745, 2890, 3377, 3860, 1029]),
        (7, 3, 20, [], [1, 0, 2]),
        (7, 3, 20, [0, 1, 2], []),
        (7, 0, 20, [], []),
        (7, 1, 0, [], []),
    ],
)
def test_draw_gives_the_same_rows_for_ever(seed: int, size: int, n: int, skip: list[int], expected: list[int]) -> None:
    rows = np.array(skip, dtype=np.int64)
    assert kernels.draw(seed, size, n, rows).tolist() == expected
    assert reference.draw(seed, size, n, rows).tolist() == expected


def test_draw_reaches_every_row_alike() -> None:
    counts = np.zeros(20)
    for seed in range(2000):
        counts[kernels.draw(seed * 7919, 20, 3, NO_ROWS)] += 1
    assert np.abs(counts / counts.mean() - 1).max() < 0.25  # five standard deviations
