"""What answers: conversion and refusal of queries, and copies that learning does not touch."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from sona_pg.config import StrategyConfig
from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.kernels import LowRank
from sona_pg.learning.serving import ServedStrategy, Serving

from .samples import Floats, bits, floats, unit_rows

DIM = 12


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.fixture
def maps(rng: np.random.Generator) -> list[LowRank]:
    made = [LowRank(DIM, 3), LowRank(DIM, 1, 0.5)]
    for low_rank in made:
        low_rank.load(rng.standard_normal((2 * low_rank.rank, DIM)))
    return made


def by_hand(maps: list[LowRank], rows: Floats) -> np.ndarray:
    out = rows.astype(np.float64)
    for m in maps:
        w = m.weights.astype(np.float64)
        out = out + m.scale * (rows @ w[: m.rank].T) @ w[m.rank :]
    return out


def test_output_is_the_input_plus_every_map_of_it(rng: np.random.Generator, maps: list[LowRank]) -> None:
    rows = rng.standard_normal((5, DIM)).astype(np.float32)
    serving = Serving(maps)
    np.testing.assert_allclose(serving.adapt(rows), by_hand(maps, rows), rtol=1e-4, atol=1e-5)
    for row, of_batch in zip(rows, serving.adapt(rows), strict=True):
        np.testing.assert_allclose(serving.adapt(row), of_batch, rtol=1e-5, atol=1e-6)


def test_maps_that_are_zero_leave_the_bits_alone() -> None:
    serving = Serving([LowRank(DIM, 2), LowRank(DIM, 1)])
    x = floats([-0.0, 0.0, 1e-45, *range(DIM - 3)])
    assert bits(serving.adapt(x)) == bits(x)
    assert bits(serving.adapt(x[None])) == bits(x)


def test_every_float_type_and_lists_are_converted(rng: np.random.Generator, maps: list[LowRank]) -> None:
    x = rng.standard_normal(DIM).astype(np.float16).astype(np.float32)
    serving = Serving(maps)
    expected = serving.adapt(x)
    assert expected.dtype == np.float32
    wide = np.repeat(x, 2)[::2]
    for given in (x.tolist(), tuple(x.tolist()), x.astype(np.float64), x.astype(np.float16), x.astype(">f4"), wide):
        assert bits(serving.adapt(given)) == bits(expected)
        as_rows = serving.adapt([given]) if isinstance(given, list | tuple) else serving.adapt(given[None])
        assert as_rows.dtype == np.float32
        np.testing.assert_allclose(as_rows, expected[None], rtol=1e-5, atol=1e-6)


def test_input_is_not_changed_and_the_output_is_the_callers_own(rng: np.random.Generator, maps: list[LowRank]) -> None:
    x = rng.standard_normal((2, DIM)).astype(np.float32)
    before = bits(x)
    for serving in (Serving(maps), Serving([LowRank(DIM, 1)])):
        for given in (x, x[0]):
            out = serving.adapt(given)
            assert out.flags.writeable
            out[...] = 9
            assert bits(x) == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(maps: list[LowRank], bad: float) -> None:
    for serving in (Serving(maps), Serving([LowRank(DIM, 1)])):
        for place in (0, DIM - 1):
            x = np.zeros(DIM, dtype=np.float32)
            x[place] = bad
            with pytest.raises(InvalidInput, match="holds NaN or infinity"):
                serving.adapt(x)
            with pytest.raises(InvalidInput, match="hold NaN or infinity"):
                serving.adapt(np.stack([np.zeros(DIM, dtype=np.float32), x]))


def test_numbers_beyond_float32_are_refused_without_a_warning(maps: list[LowRank]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidInput, match=r"holds? NaN or infinity"):
            Serving(maps).adapt(np.full(DIM, 1e300))
        with pytest.raises(InvalidInput, match=r"holds? NaN or infinity"):
            Serving(maps).adapt(np.full((2, DIM), 1e300))


@pytest.mark.parametrize("dim", [0, 1, DIM - 1, DIM + 1])
def test_another_dimension_is_refused(maps: list[LowRank], dim: int) -> None:
    for x, what in ((np.zeros(dim), "query"), (np.zeros((3, dim)), "queries")):
        with pytest.raises(DimensionMismatch, match=f"^{what} has {dim} dimensions, expected {DIM}: ") as refused:
            Serving(maps).adapt(x)
        assert (refused.value.expected, refused.value.actual) == (DIM, dim)


@pytest.mark.parametrize(
    "bad",
    [
        3.0,
        None,
        "query",
        np.zeros((2, 2, DIM)),
        ["a"] * DIM,
        [["a"] * DIM],
        np.zeros((2, DIM), dtype=complex),
        [[1.0] * DIM, [1.0]],
    ],
    ids=["number", "None", "text", "cube", "texts", "matrix of texts", "complex", "ragged"],
)
def test_what_is_no_vector_and_no_matrix_of_numbers_is_refused(maps: list[LowRank], bad: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((InvalidInput, DimensionMismatch)):
            Serving(maps).adapt(bad)  # type: ignore[arg-type]


def test_frozen_copies_answer_the_same_while_the_originals_go_on(rng: np.random.Generator, maps: list[LowRank]) -> None:
    serving = Serving.frozen([*maps, LowRank(DIM, 2)])
    x = rng.standard_normal(DIM).astype(np.float32)
    before = bits(serving.adapt(x))
    assert before == bits(Serving(maps).adapt(x))
    for m in maps:
        m.load(np.zeros_like(m.weights))
        m.set_scale(7.0)
    assert bits(serving.adapt(x)) == before


@pytest.mark.parametrize("strategy", ["frozen", "boosted", "related", "fused", "stake"])
@pytest.mark.parametrize("exceptions", [(None, None), (None, "frozen"), ("stake", "fused"), ("fused", None)])
def test_rows_are_adapted_as_each_of_them_alone(
    rng: np.random.Generator, maps: list[LowRank], strategy: str, exceptions: tuple[str | None, ...]
) -> None:
    config = StrategyConfig()
    rows = rng.standard_normal((40, DIM)).astype(np.float32)
    rows[5] = 0
    served = ServedStrategy(
        strategy,
        0.7,
        0.2,
        config,
        Serving(maps[:1]),
        Serving(maps[1:]),
        # Familiar ground for some of them.
        prototypes=unit_rows(rows[6:16]),
        centroids=unit_rows(rng.standard_normal((2, DIM))),
        exceptions=exceptions,
    )
    alone = np.stack([served.adapt(row) for row in rows])
    together = served.adapt_rows(rows)
    assert bits(together) == bits(alone)
    is_changed = (alone != rows).any(axis=1)
    if strategy in ("fused", "stake") or any(e in ("fused", "stake") for e in exceptions):
        assert is_changed.any()
    else:
        assert not is_changed.any()
    together[:] = 9
    assert served.adapt_rows(rows[:0]).shape == (0, DIM)
    assert bits(served.adapt_rows(rows)) == bits(alone)
