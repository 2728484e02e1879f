"""Log-determinants of all principal submatrices: against NumPy, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg import kernels
from sona_pg.errors import InvalidInput, LearningError
from sona_pg.kernels import reference

from .layouts import bits, read_only, unaligned

Doubles = NDArray[np.float64]
SHAPES = [(1, 1), (1, 3), (2, 1), (2, 2), (3, 1), (5, 2), (7, 3), (9, 1), (10, 2)]


def covariance(rng: np.random.Generator, order: int) -> Doubles:
    x = rng.standard_normal((order, order + 3)) * 10.0 ** rng.uniform(-3, 3, (order, 1))
    return np.asarray(x @ x.T)


@pytest.mark.parametrize(("n", "block"), SHAPES)
def test_every_subset_has_its_log_determinant(n: int, block: int, rng: np.random.Generator) -> None:
    matrix = covariance(rng, n * block)
    found = kernels.subset_log_determinants(matrix, block)
    assert found.shape == (1 << n,)
    assert found[0] == 0.0
    for mask in range(1, 1 << n):
        rows = [i * block + j for i in range(n) if mask >> i & 1 for j in range(block)]
        sign, expected = np.linalg.slogdet(matrix[np.ix_(rows, rows)])
        assert sign == 1
        assert found[mask] == pytest.approx(expected, abs=1e-9)
    assert np.allclose(reference.subset_log_determinants(matrix, block), found, rtol=0, atol=1e-9)


def test_of_a_diagonal_matrix_they_are_sums_of_logarithms() -> None:
    found = kernels.subset_log_determinants(np.diag(np.exp([1.0, 2.0, 4.0])))
    assert found == pytest.approx(np.arange(8), abs=1e-14)


def test_fifteen_nodes_agree_with_the_reference(rng: np.random.Generator) -> None:
    matrix = covariance(rng, 15)
    assert np.allclose(kernels.subset_log_determinants(matrix), reference.subset_log_determinants(matrix), atol=1e-9)


def test_no_rows_have_one_subset() -> None:
    for empty in (np.empty((0, 0)), np.empty((0, 0), dtype=np.float32)):
        assert kernels.subset_log_determinants(empty, 2).tolist() == [0.0]


def test_twenty_blocks_are_taken_and_one_more_is_refused() -> None:
    assert kernels.subset_log_determinants(2 * np.eye(20))[-1] == pytest.approx(20 * np.log(2))
    with pytest.raises(InvalidInput, match="21 blocks, expected 20"):
        kernels.subset_log_determinants(np.eye(42), 2)


def test_layouts_have_the_same_bits_and_are_not_changed(rng: np.random.Generator) -> None:
    matrix = covariance(rng, 6)
    expected = bits(kernels.subset_log_determinants(matrix, 2))
    for given in (
        read_only(matrix),
        unaligned(matrix),
        np.asfortranarray(matrix),
        matrix.astype(">f8"),
        matrix.tolist(),
    ):
        before = bits(np.asarray(given))
        assert bits(kernels.subset_log_determinants(given, 2)) == expected
        assert bits(np.asarray(given)) == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (2, 1), (1, 2)])
def test_what_is_not_finite_is_refused(bad: float, at: tuple[int, int]) -> None:
    matrix = np.eye(3)
    matrix[at] = bad
    with pytest.raises(InvalidInput, match="NaN or infinity"):
        kernels.subset_log_determinants(matrix)


@pytest.mark.parametrize(
    ("matrix", "block", "said"),
    [
        (np.ones(4), 1, "shape"),
        (np.float64(2), 1, "shape"),
        (np.eye(3)[:2], 1, "shape"),
        (np.eye(3)[None], 1, "shape"),
        (np.eye(3), 2, "no blocks of 2"),
        (np.eye(3), 0, "no blocks of 0"),
        (np.eye(3), -3, "no blocks of -3"),
        ([[1.0, 0.5], [0.4, 1.0]], 1, "not symmetric"),
        ([["a", "b"], ["c", "d"]], 1, "real numbers"),
        (np.eye(2) * 1j, 1, "real numbers"),
        ([[1.0], [1.0, 2.0]], 1, "different lengths"),
        (None, 1, "real numbers"),
    ],
)
def test_what_is_no_matrix_of_blocks_is_refused(matrix: object, block: int, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        kernels.subset_log_determinants(matrix, block)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("matrix", "members"),
    [
        (np.zeros((1, 1)), "[0]"),
        (np.diag([1.0, -1.0, 1.0]), "[0, 1]"),
        (np.ones((2, 2)), "[0, 1]"),
        ([[1.0, 2.0], [2.0, 1.0]], "[0, 1]"),
        (np.diag([1.0, 1e-320, 0.0]), "[0, 1, 2]"),
    ],
)
def test_what_is_not_positive_definite_is_refused(matrix: object, members: str) -> None:
    with pytest.raises(LearningError, match="not positive definite") as raised:
        kernels.subset_log_determinants(matrix)  # type: ignore[arg-type]
    assert members in str(raised.value)
    assert not isinstance(raised.value, InvalidInput)


def test_linear_dependence_is_not_taken_for_a_small_determinant(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 3)) * 1e3
    with pytest.raises(LearningError, match="linear combination"):
        kernels.subset_log_determinants(x @ x.T)
