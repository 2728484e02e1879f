"""The sample of the items: unit rows by id."""

from __future__ import annotations

import numpy as np
import pytest

from sona_pg.errors import InvalidInput
from sona_pg.learning.item_pool import ItemPool, normalized_rows

from .samples import floats


def test_rows_are_scaled_to_unit_length_and_found_by_id() -> None:
    pool = ItemPool(["a", "b"], [[3.0, 4.0], [0.0, -2.0]])
    assert len(pool) == 2
    np.testing.assert_allclose(pool.embeddings, [[0.6, 0.8], [0.0, -1.0]], rtol=1e-6)
    assert pool.embeddings.dtype == np.float32
    assert (pool.row("a"), pool.row("b"), pool.row("c")) == (0, 1, None)


def test_embeddings_are_copied_and_cannot_be_changed() -> None:
    given = floats([[1.0, 0.0]])
    pool = ItemPool(["a"], given)
    given[:] = 9
    assert pool.embeddings.tolist() == [[1.0, 0.0]]
    with pytest.raises(ValueError, match="read-only"):
        pool.embeddings[0, 0] = 1


def test_zero_row_stays_zero() -> None:
    assert normalized_rows(floats([[0.0, 0.0], [0.0, 2.0]])).tolist() == [[0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("length", [1e-25, 1e25])
def test_very_short_and_very_long_rows_get_unit_length_too(length: float) -> None:
    with np.errstate(all="ignore"):
        rows = normalized_rows(floats([[3 * length, 4 * length]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8]], rtol=1e-5)


def test_empty_pool_has_a_dimension_and_no_rows() -> None:
    pool = ItemPool.empty(7)
    assert len(pool) == 0
    assert pool.embeddings.shape == (0, 7)
    assert pool.row("a") is None


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([], "0 item ids, 0 of them distinct"),
        (["a"], "1 item ids, 1 of them distinct"),
        (["a", "b", "c"], "3 item ids, 3 of them distinct"),
        (["a", "a"], "2 item ids, 1 of them distinct"),
    ],
)
def test_a_distinct_id_for_each_row_is_expected(ids: list[str], found: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^{found}, for embeddings of shape \(2, 2\): expected a distinct one for"):
        ItemPool(ids, np.eye(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(InvalidInput, match=r"^item embeddings hold NaN or infinity: check what the embedding model"):
        ItemPool(["a"], [[1.0, bad]])
