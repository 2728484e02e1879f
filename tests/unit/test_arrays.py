"""Matrices from outside: converted, or refused with what was found and what was expected."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.learning.arrays import as_matrix

from .samples import bits, floats

ROWS = [[0.5, -0.25, 2.0], [1.0, 0.0, 3.0]]


def test_rows_of_any_number_type_and_layout_become_contiguous_float32() -> None:
    block = floats(ROWS)
    for given in (ROWS, np.array(ROWS), np.array(ROWS, dtype=">f8"), np.asfortranarray(block), block[::-1][::-1]):
        rows = as_matrix(given, 3, "rows")
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        assert bits(rows) == bits(block)
    assert as_matrix([[1, 2]], 2, "rows").tolist() == [[1.0, 2.0]]
    assert as_matrix([[True, False]], 2, "rows").tolist() == [[1.0, 0.0]]
    assert as_matrix(np.zeros((0, 3)), 3, "rows").shape == (0, 3)


def test_matrix_that_is_one_already_is_not_copied() -> None:
    block = floats(ROWS)
    assert as_matrix(block, 3, "rows") is block
    assert as_matrix(block, -1, "rows") is block


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([1.0, 2.0, 3.0], r"^rows have shape \(3,\), expected \(n, dim\)"),
        (np.zeros((2, 2, 3)), r"^rows have shape \(2, 2, 3\), expected \(n, dim\)"),
        (1.0, r"^rows have shape \(\), expected \(n, dim\)"),
        ([["a", "b", "c"]], r"^rows are not a matrix of numbers \(dtype <U1\): pass shape \(n, dim\)"),
        (np.zeros((2, 3), dtype=complex), r"^rows are not a matrix of numbers \(dtype complex128\)"),
        ([[1.0, 2.0, 3.0], [1.0]], r"^rows are not a matrix of numbers \("),
        (None, r"^rows are not a matrix of numbers \(dtype object\)"),
        ([[1.0, np.nan, 3.0]], "^rows hold NaN or infinity: check what the embedding model returned"),
        ([[1.0, 2.0, -np.inf]], "^rows hold NaN or infinity"),
        ([[1.0, 2.0, 1e300]], "^rows hold NaN or infinity"),
    ],
    ids=["vector", "cube", "number", "texts", "complex", "ragged", "None", "NaN", "infinite", "beyond float32"],
)
def test_what_is_no_matrix_of_finite_numbers_is_refused_without_a_warning(bad: object, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidInput, match=message):
            as_matrix(bad, 3, "rows")  # type: ignore[arg-type]


@pytest.mark.parametrize("dim", [0, 2, 4])
def test_another_number_of_columns_is_refused(dim: int) -> None:
    with pytest.raises(DimensionMismatch, match=f"^rows has 3 dimensions, expected {dim}: ") as refused:
        as_matrix(ROWS, dim, "rows")
    assert (refused.value.expected, refused.value.actual) == (dim, 3)
