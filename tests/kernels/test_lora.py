"""The low-rank map, its gradient, and the listwise step, on every instruction set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from sona_pg import kernels
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, LearningError
from sona_pg.kernels import ListwiseTrainer, LowRank, reference

from .layouts import EPS, Floats, Layout, bits, read_only, strided, unaligned, wide_range

Doubles = NDArray[np.float64]

RANKS = (1, 2, 3, 4, 5, 8)  # rows are taken by four, by two and singly
BAD = (np.nan, np.inf, -np.inf)
NO_ROWS = np.zeros(0, dtype=np.int64)
NO_POOL = np.zeros((0, 0), dtype=np.float32)


def some(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


def unit_rows(rng: np.random.Generator, *shape: int) -> Floats:
    rows = rng.standard_normal(shape)
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)


def make(weights: Floats, scale: float = 1.0) -> LowRank:
    low_rank = LowRank(weights.shape[1], len(weights) // 2, scale)
    low_rank.load(weights)
    return low_rank


def position_classes(dim: int) -> list[int]:
    """First, middle and last component, and both sides of every border between a vector register and the rest."""
    borders = [b for width in (4, 8, 16, 32) for b in (dim // width * width - 1, dim // width * width)]
    return sorted({p for p in (0, dim // 2, dim - 1, *borders) if 0 <= p < dim})


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


def assert_is_gradient(
    found: Floats, function: Callable[[Doubles], float], weights: Floats, rng: np.random.Generator
) -> None:
    """Compare with central differences in float64: along random directions, and along some axes of each block."""
    at = weights.astype(np.float64)
    size = float(np.linalg.norm(found))
    directions = list(rng.standard_normal((12, *at.shape)))
    for row in range(len(at)):
        for column in {0, at.shape[1] // 2, at.shape[1] - 1}:
            axis = np.zeros(at.shape)
            axis[row, column] = 1
            directions.append(axis)
    for direction in directions:
        direction /= np.linalg.norm(direction)
        expected = (function(at + 1e-5 * direction) - function(at - 1e-5 * direction)) / 2e-5
        assert abs(float((found * direction).sum()) - expected) <= 2e-5 * size + 1e-7


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


# ---- the listwise step -----------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One judged list and the pool that negatives are drawn from."""

    x: Floats
    items: list[Floats]
    targets: list[float]
    pool: Floats
    skip: NDArray[np.int64]
    seed: int
    negatives: int

    def candidates(self) -> tuple[Floats, Floats]:
        """What the step must work on: the items, then the drawn rows, whose target is zero."""
        rows = reference.draw(self.seed, len(self.pool), self.negatives, self.skip)
        drawn = [self.pool[row] for row in rows]
        target = np.zeros(len(self.items) + len(drawn), dtype=np.float32)
        target[: len(self.items)] = np.array(self.targets) / sum(self.targets)
        return np.array([*self.items, *drawn], dtype=np.float32), target


class Shape(NamedTuple):
    items: int
    pool: int
    negatives: int
    skips: int


SHAPES = {
    "items only": Shape(4, 0, 0, 0),
    "one item": Shape(1, 0, 0, 0),
    "no pool": Shape(3, 0, 8, 0),
    "pool without negatives": Shape(5, 9, 0, 0),
    "pool": Shape(3, 40, 8, 0),
    "pool and skip": Shape(2, 12, 20, 5),
    "all of the pool skipped": Shape(3, 6, 20, 6),
}


@pytest.fixture(params=list(SHAPES.values()), ids=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> Shape:
    chosen: Shape = request.param
    return chosen


def make_case(dim: int, shape: Shape, rng: np.random.Generator) -> Case:
    return Case(
        x=unit_rows(rng, dim),
        items=list(unit_rows(rng, shape.items, dim)),
        targets=[1.0, *rng.choice([0.0, 0.5, 2.0], shape.items - 1).tolist()],
        pool=unit_rows(rng, shape.pool, dim) if shape.pool else NO_POOL,
        skip=rng.permutation(shape.pool)[: shape.skips].astype(np.int64),
        seed=int(rng.integers(2**63)),
        negatives=shape.negatives,
    )


class Constants(NamedTuple):
    temperature: float = 0.07
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


USUAL = Constants()
OTHER = Constants(0.5, 0.6, 0.7, 0.2)  # an epsilon that is not lost beside the root, and fast averages


def make_trainer(dim: int, rng: np.random.Generator, constants: Constants = USUAL) -> ListwiseTrainer:
    rank = min(dim, 5)
    weights = np.vstack([some(rng, rank, dim), some(rng, rank, dim) / 10])
    return ListwiseTrainer(make(weights, 0.7), make(weights, 0.7), *constants)


def run_step(trainer: ListwiseTrainer, case: Case, learning_rate: float = 1e-3, average: float = 0.8) -> float:
    return trainer.step(*case._replace(items=list(case.items)), learning_rate, average)


def blocks_of(trainer: ListwiseTrainer) -> tuple[Floats, ...]:
    return trainer.trained.weights, trainer.moment1, trainer.moment2, trainer.served.weights


def all_of(trainer: ListwiseTrainer) -> tuple[object, ...]:
    """Everything that a step changes."""
    return *map(bits, blocks_of(trainer)), trainer.steps, trainer.trained.is_zero, trainer.served.is_zero


@pytest.mark.parametrize("constants", [USUAL, OTHER], ids=["usual", "other"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_consecutive_steps_are_the_reference(
    isa: str, dim: int, shape: Shape, dtype: type[np.floating], constants: Constants, rng: np.random.Generator
) -> None:
    trainer = make_trainer(dim, rng, constants)
    weights, moment1, moment2, served = (block.astype(dtype) for block in blocks_of(trainer))
    state = reference.ListwiseState(weights, moment1, moment2, served)
    for step in range(1, 7):
        case = make_case(dim, shape, rng)
        candidates, target = case.candidates()
        # The constants as the kernel holds them: in float32, 1 - 0.999 has lost digits.
        expected = reference.listwise_step(
            state, case.x.astype(dtype), candidates.astype(dtype), target.astype(dtype), scale=trainer.trained.scale,
            temperature=trainer.temperature, learning_rate=1e-3, beta1=trainer.beta1, beta2=trainer.beta2,
            epsilon=trainer.epsilon, average=0.8,
        )  # fmt: skip
        assert run_step(trainer, case) == pytest.approx(expected, rel=2e-6, abs=2e-6)
        assert trainer.steps == state.steps == step
        for found, wanted in ((trainer.moment1, state.moment1), (trainer.moment2, state.moment2)):
            assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
        # A step moves a weight by up to 1e-3.
        assert np.abs(trainer.trained.weights - state.weights).max() <= 5e-6
        assert np.abs(trainer.served.weights - state.served).max() <= 5e-6


def test_what_else_is_part_of_the_loss_comes_as_its_gradient(
    isa: str, dim: int, shape: Shape, rng: np.random.Generator
) -> None:
    trainer = make_trainer(dim, rng, OTHER)
    state = reference.ListwiseState(*(block.copy() for block in blocks_of(trainer)))
    for _ in range(3):
        case, extra = make_case(dim, shape, rng), some(rng, *trainer.trained.weights.shape)
        expected = reference.listwise_step(
            state, case.x, *case.candidates(), scale=trainer.trained.scale, temperature=trainer.temperature,
            learning_rate=1e-3, beta1=trainer.beta1, beta2=trainer.beta2, epsilon=trainer.epsilon, average=0.8,
            extra=extra,
        )  # fmt: skip
        assert trainer.step(*case, 1e-3, 0.8, extra) == pytest.approx(expected, rel=2e-6, abs=2e-6)
        assert np.abs(trainer.moment1 - state.moment1).max() <= 1e-5 * np.abs(state.moment1).max()
        assert np.abs(trainer.moment2 - state.moment2).max() <= 1e-5 * np.abs(state.moment2).max()
        assert np.abs(trainer.trained.weights - state.weights).max() <= 5e-6
        assert np.abs(trainer.served.weights - state.served).max() <= 5e-6


@pytest.mark.parametrize("damage", [np.nan, np.inf, 1e20])
def test_a_gradient_that_is_out_of_range_or_of_another_shape_changes_nothing(
    isa: str, damage: float, rng: np.random.Generator
) -> None:
    trainer, case = make_trainer(17, rng), make_case(17, SHAPES["pool"], rng)
    run_step(trainer, case)
    before, extra = all_of(trainer), np.zeros_like(trainer.trained.weights)
    extra[-1, -1] = damage
    with pytest.raises(LearningError, match="out of range"):
        trainer.step(*case, 1e-3, 0.8, extra)
    with pytest.raises(InvalidInput, match=r"extra has shape \(9, 17\), expected \(10, 17\)"):
        trainer.step(*case, 1e-3, 0.8, extra[1:])
    assert all_of(trainer) == before


def exact_loss(weights: Doubles, scale: float, temperature: float, x: Floats, candidates: Floats, t: Floats) -> float:
    rank = len(weights) // 2
    u = x + scale * (weights[:rank] @ x.astype(np.float64)) @ weights[rank:]
    score = candidates.astype(np.float64) @ (u / np.linalg.norm(u)) / temperature
    return float(np.log(np.exp(score - score.max()).sum()) + score.max() - t.astype(np.float64) @ score)


def test_step_follows_the_gradient_of_the_loss(isa: str, dim: int, shape: Shape, rng: np.random.Generator) -> None:
    # Without memory, the moments are the gradient and its square.
    trainer = make_trainer(dim, rng, Constants(temperature=0.2, beta1=0, beta2=0))
    case, weights = make_case(dim, shape, rng), trainer.trained.weights.copy()
    candidates, target = case.candidates()

    def loss(w: Doubles) -> float:
        return exact_loss(w, trainer.trained.scale, trainer.temperature, case.x, candidates, target)

    before = loss(weights.astype(np.float64))
    assert run_step(trainer, case) == pytest.approx(before, rel=2e-6, abs=2e-6)
    assert_is_gradient(trainer.moment1, loss, weights, rng)
    np.testing.assert_allclose(trainer.moment2, trainer.moment1**2, rtol=1e-5, atol=1e-30)
    if dim > 1 and len(candidates) > 1:
        assert loss(trainer.trained.weights.astype(np.float64)) < before


def test_small_temperature_does_not_overflow(isa: str, rng: np.random.Generator) -> None:
    trainer, case = make_trainer(33, rng, Constants(temperature=1e-3)), make_case(33, SHAPES["pool"], rng)
    weights = trainer.trained.weights.astype(np.float64)
    expected = exact_loss(weights, trainer.trained.scale, trainer.temperature, case.x, *case.candidates())
    assert run_step(trainer, case) == pytest.approx(expected, rel=1e-3)
    assert all(np.isfinite(block).all() for block in blocks_of(trainer))


def test_damaged_row_that_is_skipped_does_no_harm(isa: str, rng: np.random.Generator) -> None:
    trainer, case = make_trainer(33, rng), make_case(33, SHAPES["pool and skip"], rng)
    pool = case.pool.copy()
    pool[case.skip] = np.nan
    assert run_step(trainer, case._replace(pool=pool)) >= 0
    assert all(np.isfinite(block).all() for block in blocks_of(trainer))


def test_only_the_ratio_of_targets_counts(isa: str, rng: np.random.Generator) -> None:
    weights, case = some(rng, 4, 17), make_case(17, SHAPES["pool"], rng)
    states = []
    for factor in (1, 8):
        trainer = ListwiseTrainer(make(weights), make(weights), *USUAL)
        run_step(trainer, case._replace(targets=[factor * target for target in case.targets]))
        states.append(all_of(trainer))
    assert states[0] == states[1]


def test_step_takes_any_layout_and_changes_no_input(isa: str, dim: int, layout: Layout) -> None:
    results = []
    for change in (np.copy, layout):
        rng = np.random.default_rng(3)
        trainer, case = make_trainer(dim, rng), make_case(dim, SHAPES["pool and skip"], rng)
        x, *items = (v.astype(np.float16).astype(np.float32) for v in (case.x, *case.items))
        given = case._replace(
            x=change(x),  # type: ignore[arg-type]
            items=[change(item) for item in items],  # type: ignore[misc]
            pool=read_only(case.pool),
            skip=read_only(case.skip),
        )
        loss = run_step(trainer, given)
        results.append((loss, *all_of(trainer)))
        for before, after in zip((x, *items), (given.x, *given.items), strict=True):
            assert bits(np.array(after, dtype=np.float32)) == bits(before)
    assert results[0] == results[1]


def test_first_step_ends_being_zero(isa: str, rng: np.random.Generator) -> None:
    weights = np.vstack([some(rng, 2, 9), np.zeros((2, 9))])
    trainer = ListwiseTrainer(make(weights), make(weights), *USUAL)
    assert trainer.trained.is_zero
    assert trainer.served.is_zero
    run_step(trainer, make_case(9, SHAPES["pool"], rng))
    assert not trainer.trained.is_zero
    assert not trainer.served.is_zero


def damage(vector: Floats, position: int, value: float) -> Floats:
    copy = vector.copy()
    copy[position] = value
    return copy


def wrong_cases(case: Case) -> list[tuple[str, type[Exception], Case]]:
    """Every way in which a case can be wrong, and the error for it."""
    dim, second = len(case.x), case.items[1]
    wrong: list[tuple[str, type[Exception], Case]] = [
        ("zero query", LearningError, case._replace(x=np.zeros(dim, np.float32))),
        ("longer query", DimensionMismatch, case._replace(x=np.ones(dim + 1, np.float32))),
        ("query of two dimensions", InvalidInput, case._replace(x=case.x[None])),
        ("longer item", DimensionMismatch, case._replace(items=[*case.items[:-1], np.ones(dim + 1, np.float32)])),
        ("no number", InvalidInput, case._replace(items=[*case.items[:-1], None])),  # type: ignore[list-item]
        ("no items", InvalidInput, case._replace(items=[], targets=[])),
        ("a target too few", InvalidInput, case._replace(targets=case.targets[:-1])),
        ("a target too many", InvalidInput, case._replace(targets=[*case.targets, 1.0])),
        ("other pool", DimensionMismatch, case._replace(pool=np.ones((5, dim + 1), np.float32))),
        ("fewer than no negatives", ConfigError, case._replace(negatives=-1)),
    ]
    for targets in ([0.0, 0.0, 0.0], [1.0, -0.5, 1.0], [-0.1, 0.0, 0.0], [1.0, 1.0, np.nan], [np.inf, 1.0, 1.0],
                    [1e39, 1.0, 1.0], [1e-60, 0.0, 0.0]):  # fmt: skip
        wrong.append((f"targets {targets}", InvalidInput, case._replace(targets=targets)))
    for position in position_classes(dim):
        for bad in BAD:
            found = f"{bad} at {position}"
            wrong.append((f"query {found}", InvalidInput, case._replace(x=damage(case.x, position, bad))))
            items = [case.items[0], damage(second, position, bad), case.items[2]]
            wrong.append((f"item {found}", InvalidInput, case._replace(items=items)))
            pool = case.pool.copy()
            pool[reference.draw(case.seed, len(pool), case.negatives, case.skip)[-1], position] = bad
            wrong.append((f"drawn row {found}", LearningError, case._replace(pool=pool)))
    return wrong


@pytest.mark.parametrize("steps", [0, 2])
def test_wrong_input_is_refused_and_changes_nothing(isa: str, dim: int, steps: int, rng: np.random.Generator) -> None:
    trainer = make_trainer(dim, rng)
    for _ in range(steps):
        run_step(trainer, make_case(dim, SHAPES["pool"], rng))
    case, before = make_case(dim, SHAPES["pool"], rng), all_of(trainer)
    for what, error, wrong in wrong_cases(case):
        with pytest.raises(error) as caught:
            run_step(trainer, wrong)
        assert type(caught.value) is error, what
        assert all_of(trainer) == before, what
    assert run_step(trainer, case) >= 0
    assert all_of(trainer) != before


def test_pool_and_skip_are_taken_only_as_they_are_stored(isa: str, rng: np.random.Generator) -> None:
    trainer, case = make_trainer(9, rng), make_case(9, SHAPES["pool and skip"], rng)
    before = all_of(trainer)
    for pool in (case.pool.astype(np.float64), case.pool.T.copy().T, case.pool[0]):
        with pytest.raises((TypeError, ValueError)):
            run_step(trainer, case._replace(pool=pool))  # type: ignore[arg-type]
    for skip in (case.skip.astype(np.int32), np.repeat(case.skip, 2)[::2]):
        with pytest.raises((TypeError, ValueError)):
            run_step(trainer, case._replace(skip=skip))  # type: ignore[arg-type]
    assert all_of(trainer) == before


def test_loss_that_is_not_finite_changes_nothing(isa: str, dim: int, rng: np.random.Generator) -> None:
    case = make_case(dim, SHAPES["pool"], rng)
    for row in (0, -1):
        for bad in BAD:
            trainer = make_trainer(dim, rng)
            trainer.trained.weights[row, -1] = bad
            before = all_of(trainer)
            with pytest.raises(LearningError, match="not finite"):
                run_step(trainer, case)
            assert all_of(trainer) == before
    trainer = make_trainer(dim, rng)
    before = all_of(trainer)
    for huge in (1e25, 1e38):
        with pytest.raises(LearningError, match="not finite"):
            run_step(trainer, case._replace(x=case.x * np.float32(huge)))
    assert all_of(trainer) == before


def test_item_of_huge_length_leaves_the_state_finite(isa: str, rng: np.random.Generator) -> None:
    trainer, case = make_trainer(33, rng), make_case(33, SHAPES["pool"], rng)
    for huge in (1e21, 1e30, 3e38):
        with contextlib.suppress(LearningError):
            run_step(trainer, case._replace(items=[case.items[0] * np.float32(huge), *case.items[1:]]))
    assert all(np.isfinite(block).all() for block in blocks_of(trainer))


def test_maps_of_a_trainer_must_agree() -> None:
    for served in (LowRank(8, 2), LowRank(9, 3)):
        with pytest.raises(ConfigError, match="differ in dimension or rank"):
            ListwiseTrainer(LowRank(9, 2), served, *USUAL)
    with pytest.raises(TypeError):
        ListwiseTrainer(LowRank(9, 2), None, *USUAL)  # type: ignore[arg-type]
