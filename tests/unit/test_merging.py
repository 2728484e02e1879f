"""Maps put together: the sum of what they do, as one map, and one form for each function."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput
from sona_pg.kernels import LowRank
from sona_pg.learning.merging import composed, gauge_fixed, merge, relative_error
from sona_pg.learning.serving import Serving

from .samples import Floats, bits

Doubles = NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def some_map(rng: np.random.Generator, dim: int, rank: int, size: float = 0.3, scale: float = 1.0) -> LowRank:
    """A map that moves a unit vector by about `size`."""
    made = LowRank(dim, rank, scale)
    block = rng.standard_normal((2 * rank, dim)) / np.sqrt(dim)
    block[rank:] *= size / scale
    made.load(block)
    return made


def matrix(low_rank: LowRank) -> Doubles:
    weights = low_rank.weights.astype(np.float64)
    product: Doubles = low_rank.scale * weights[: low_rank.rank].T @ weights[low_rank.rank :]
    return product


def unit_rows(rng: np.random.Generator, n: int, dim: int) -> Floats:
    rows = rng.standard_normal((n, dim))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def distance(maps: Sequence[LowRank], other: LowRank) -> float:
    """Frobenius, of the dense matrices."""
    return float(np.linalg.norm(matrix(other) - sum(matrix(m) for m in maps)))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[LowRank], np.random.Generator]:
    """One to four maps of ranks 1 to 6, some zero, some of the same A, of any scale."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim = draw(st.integers(1, 40))
    maps = [
        some_map(rng, dim, draw(st.integers(1, 6)), scale=draw(st.sampled_from((1.0, -0.5, 0.3))))
        for _ in range(draw(st.integers(1, 4)))
    ]
    for low_rank in maps:
        kind = draw(st.sampled_from(("free", "free", "zero", "shared")))
        weights = low_rank.weights.copy()
        if kind == "zero":
            weights[low_rank.rank :] = 0
        elif kind == "shared":
            rank = min(low_rank.rank, maps[0].rank)
            weights[:rank] = maps[0].weights[:rank]
        low_rank.load(weights)
    return maps, rng


@hypothesis.given(worlds())
def test_output_does_not_move_while_the_rank_fits(world: tuple[list[LowRank], np.random.Generator]) -> None:
    maps, rng = world
    dim, total = maps[0].dim, sum(m.rank for m in maps)
    merged, error = merge(maps, total)
    rows = unit_rows(rng, 20, dim)
    assert np.abs(Serving([merged]).adapt(rows) - Serving(maps).adapt(rows)).max() <= 1e-6
    assert error <= 1e-6
    whole = sum(matrix(m) for m in maps)
    assert merged.rank == max(1, np.linalg.matrix_rank(whole, tol=2e-7 * np.linalg.norm(whole, 2)))
    assert merged.is_zero == (not whole.any())


@hypothesis.given(worlds(), st.integers(1, 12))
def test_truncation_is_as_good_as_that_of_the_dense_matrix(
    world: tuple[list[LowRank], np.random.Generator], max_rank: int
) -> None:
    maps, _ = world
    merged, error = merge(maps, max_rank)
    assert merged.rank <= max_rank
    total = sum(matrix(m) for m in maps)
    best = float(np.sqrt((np.linalg.svd(total, compute_uv=False)[max_rank:] ** 2).sum()))
    size = float(np.linalg.norm(total))
    assert distance(maps, merged) <= best + 1e-6 * size
    assert error == pytest.approx(distance(maps, merged) / size if size else 0.0, rel=1e-3, abs=1e-7)


@hypothesis.given(worlds())
def test_a_map_has_one_form_whatever_its_factors(world: tuple[list[LowRank], np.random.Generator]) -> None:
    maps, rng = world
    first = maps[0]
    mixed = LowRank(first.dim, first.rank, 2.0)
    turn = rng.standard_normal((first.rank, first.rank)) + 3 * np.eye(first.rank)
    hypothesis.assume(np.linalg.cond(turn) < 100)
    weights = first.weights.astype(np.float64)
    down, up = weights[: first.rank].T @ turn, np.linalg.solve(turn, weights[first.rank :]) * first.scale / 2
    mixed.load(np.vstack([down.T, up]))
    ours, theirs = gauge_fixed(first), gauge_fixed(mixed)
    lengths = np.linalg.norm(ours.weights[ours.rank :].astype(np.float64), axis=1)
    spread = np.abs(np.subtract.outer(lengths, lengths)) + np.eye(len(lengths))
    hypothesis.assume(spread.min() > 1e-2 and (ours.is_zero or lengths.min() > 1e-2))
    np.testing.assert_allclose(theirs.weights, ours.weights, atol=2e-4)


def test_joint_rank_is_found_and_not_exceeded(rng: np.random.Generator) -> None:
    base, adapter = some_map(rng, 48, 6), some_map(rng, 48, 4)
    shared = adapter.weights.copy()
    shared[:3] = base.weights[:3]
    adapter.load(shared)
    merged, error = merge([base, adapter], 16)
    assert merged.rank == 7
    assert merge([base, adapter], 7)[1] == error < 1e-7
    assert merge([base, adapter], 6)[1] > 0.01
    assert merge([base, base], 16)[0].rank == 6


def test_maps_that_cancel_are_zero_and_zero_maps_count_for_nothing(rng: np.random.Generator) -> None:
    some = some_map(rng, 24, 3)
    against = LowRank(24, 3, -1.0)
    against.load(some.weights)
    merged, error = merge([some, against], 8)
    assert merged.is_zero
    assert error == 0
    silent = some_map(rng, 24, 5)
    silent.set_scale(0.0)
    alone, with_zeros = merge([some], 3)[0], merge([LowRank(24, 8), silent, some, LowRank(24, 1)], 3)[0]
    assert bits(alone.weights) == bits(with_zeros.weights)
    nothing, error = merge([LowRank(24, 8), silent], 4)
    assert nothing.is_zero
    assert error == 0
    x = np.array([-0.0, 1e-45, *range(22)], dtype=np.float32)
    assert bits(Serving([nothing]).adapt(x)) == bits(x)


def test_badly_scaled_factors_lose_nothing(rng: np.random.Generator) -> None:
    good = some_map(rng, 32, 4)
    stretch = np.array([1e8, 1e-8, 1e4, 1.0])[:, np.newaxis]
    bad = LowRank(32, 4)
    bad.load(np.vstack([good.weights[:4] * stretch, good.weights[4:] / stretch]))
    merged, _ = merge([bad, some_map(rng, 32, 2)], 6)
    assert merged.rank == 6
    fixed = gauge_fixed(bad)
    assert distance([good], fixed) <= 1e-6
    assert np.abs(fixed.weights).max() <= 2


def test_output_form(rng: np.random.Generator) -> None:
    source = some_map(rng, 40, 5, scale=0.7)
    for merged in (gauge_fixed(source), merge([source, some_map(rng, 40, 3)], 4)[0]):
        down, up = merged.weights[: merged.rank], merged.weights[merged.rank :]
        assert merged.scale == 1
        np.testing.assert_allclose(down @ down.T, np.eye(merged.rank), atol=1e-6)
        lengths = np.linalg.norm(up, axis=1)
        assert (np.diff(lengths) <= 0).all()
        np.testing.assert_allclose(up @ up.T, np.diag(lengths**2), atol=1e-6)
        assert (down[np.arange(merged.rank), np.abs(down).argmax(axis=1)] > 0).all()
    balanced = gauge_fixed(source, balanced=True)
    down, up = balanced.weights[:5], balanced.weights[5:]
    np.testing.assert_allclose(np.linalg.norm(down, axis=1), np.linalg.norm(up, axis=1), rtol=1e-5)
    assert distance([source], balanced) <= 1e-6
    assert gauge_fixed(LowRank(40, 5), balanced=True).is_zero


def test_queries_decide_what_is_kept(rng: np.random.Generator) -> None:
    dim, n = 32, 400
    maps = [some_map(rng, dim, 6), some_map(rng, dim, 6)]
    queries = (rng.standard_normal((n, dim)) * np.geomspace(1, 0.05, dim)).astype(np.float32)
    for max_rank in (1, 3, 6, 11):
        plain, _ = merge(maps, max_rank)
        weighed, error = merge(maps, max_rank, queries=queries)
        assert weighed.rank == max_rank
        assert error == pytest.approx(relative_error(maps, weighed, queries))
        assert error < relative_error(maps, plain, queries)
        assert relative_error(maps, plain) < relative_error(maps, weighed)
        # No map of that rank can be better: the tail of the dense outputs' singular values.
        outputs = queries.astype(np.float64) @ sum(matrix(m) for m in maps)
        tail = np.linalg.svd(outputs, compute_uv=False)
        best = float(np.sqrt((tail[max_rank:] ** 2).sum() / (tail**2).sum()))
        assert best <= error <= 1.01 * best
    unseen = (rng.standard_normal((n, dim)) * np.geomspace(1, 0.05, dim)).astype(np.float32)
    assert relative_error(maps, merge(maps, 6, queries=queries)[0], unseen) < relative_error(
        maps, merge(maps, 6)[0], unseen
    )


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_few_queries_and_queries_that_see_nothing(rng: np.random.Generator, n: int) -> None:
    maps = [some_map(rng, 16, 4), some_map(rng, 16, 3)]
    queries = unit_rows(rng, n, 16)
    merged, error = merge(maps, 3, queries=queries)
    assert merged.rank == 3
    assert error <= relative_error(maps, merge(maps, 3)[0], queries)
    # Directions that were not shown are still served: the whole is not given up for the sample.
    assert relative_error(maps, merged) < 1
    blind = np.zeros((3, 16), dtype=np.float32)
    without, error = merge(maps, 3, queries=blind)
    assert bits(without.weights) == bits(merge(maps, 3)[0].weights)
    assert error == 0


def test_a_chain_as_a_sum(rng: np.random.Generator) -> None:
    base, adapter = some_map(rng, 64, 8, 0.5, scale=0.8), some_map(rng, 64, 4, 0.5, scale=-0.6)
    rows = unit_rows(rng, 50, 64)
    chain = Serving([adapter]).adapt(Serving([base]).adapt(rows))
    made = composed(base, adapter)
    assert np.abs(Serving([base, made]).adapt(rows) - chain).max() <= 1e-6
    assert np.abs(Serving([base, adapter]).adapt(rows) - chain).max() > 1e-3
    assert bits(made.weights[4:]) == bits(adapter.weights[4:])
    merged, _ = merge([base, made], 12)
    assert np.abs(Serving([merged]).adapt(rows) - chain).max() <= 1e-6


def test_a_chain_with_nothing(rng: np.random.Generator) -> None:
    adapter = some_map(rng, 16, 3)
    assert bits(composed(LowRank(16, 8), adapter).weights) == bits(adapter.weights)
    fresh = LowRank(16, 3)
    fresh.load(np.vstack([adapter.weights[:3], np.zeros((3, 16))]))
    assert composed(some_map(rng, 16, 8), fresh).is_zero


def test_nothing_that_is_given_changes(rng: np.random.Generator) -> None:
    maps = [some_map(rng, 16, 3), some_map(rng, 16, 2)]
    before = [bits(m.weights) for m in maps]
    merge(maps, 2, queries=unit_rows(rng, 9, 16))
    composed(*maps)
    gauge_fixed(maps[0], balanced=True)
    assert [bits(m.weights) for m in maps] == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 3])
def test_damaged_weights_are_refused(rng: np.random.Generator, bad: float, row: int) -> None:
    good, damaged = some_map(rng, 16, 3), some_map(rng, 16, 2)
    damaged.weights[row, 5] = bad
    for call in (
        lambda: merge([good, damaged], 4),
        lambda: composed(good, damaged),
        lambda: composed(damaged, good),
        lambda: gauge_fixed(damaged),
        lambda: relative_error([good], damaged),
    ):
        with pytest.raises(InvalidInput, match="NaN or infinity"):
            call()


def test_wrong_arguments_are_refused(rng: np.random.Generator) -> None:
    good = some_map(rng, 16, 3)
    for max_rank in (0, -1, 1.5, True, None, "2"):
        with pytest.raises(ConfigError, match="largest rank is"):
            merge([good], max_rank)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="no map"):
        merge([], 4)
    other = some_map(rng, 8, 2)
    for call in (lambda: merge([good, other], 4), lambda: composed(good, other), lambda: relative_error([good], other)):
        with pytest.raises(DimensionMismatch):
            call()
    for queries in (np.ones(16), np.ones((3, 15)), np.full((2, 16), np.nan), "queries", [[1.0], [1.0, 2.0]]):
        with pytest.raises((InvalidInput, DimensionMismatch)):
            merge([good], 2, queries=queries)  # type: ignore[arg-type]


def test_weights_that_have_run_away_are_refused() -> None:
    far = LowRank(4, 1, 3e38)
    far.load(np.full((2, 4), 1e20))
    with pytest.raises(InvalidInput, match="range of float32"):
        merge([far], 1)
    with pytest.raises(InvalidInput, match="range of float32"):
        composed(far, far)
    assert relative_error([LowRank(4, 1)], far) == np.inf
