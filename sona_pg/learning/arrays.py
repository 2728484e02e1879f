"""Matrices from outside: converted, checked, refused with what was found."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.errors import DimensionMismatch, InvalidInput, LearningError

_ROWS = 256
"""Rows that are taken together where another copy of all would take too much memory."""


def as_matrix(value: ArrayLike, dim: int, what: str) -> NDArray[np.float32]:
    """`value` as a finite, contiguous float32 matrix (n, dim); the array itself if it is one already.

    Parameters
    ----------
    value
        Rows of numbers, any float or integer type.
    dim
        Number of columns expected; any if negative.
    what
        Name of the value in errors.

    Raises
    ------
    InvalidInput
        If it is no matrix of finite numbers.
    DimensionMismatch
        If it has another number of columns.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"dtype {array.dtype}")
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(array, dtype=np.float32)
    except (TypeError, ValueError) as cause:
        raise InvalidInput(f"{what} are not a matrix of numbers ({cause}): pass shape (n, dim)") from cause
    if array.ndim != 2:
        raise InvalidInput(f"{what} have shape {array.shape}, expected (n, dim)")
    if dim >= 0 and rows.shape[1] != dim:
        raise DimensionMismatch(dim, rows.shape[1], what)
    if not np.isfinite(rows).all():
        raise InvalidInput(f"{what} hold NaN or infinity: check what the embedding model returned")
    return rows


def is_matrix(value: ArrayLike) -> bool:
    """Whether a value is meant as rows: an array of two dimensions, or a sequence of sequences."""
    if isinstance(value, np.ndarray):
        return value.ndim == 2
    # A list of rows that differ in length is no matrix, and must be refused as one, not as a vector.
    return isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], list | tuple | np.ndarray)


def normalized_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (n, dim) scaled to unit length; a zero row stays zero."""
    # In double precision: the squares of very long and very short rows leave the range of float32.
    norm = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, np.newaxis]
    out, by = np.empty(rows.shape, dtype=np.float32), np.where(norm > 0, norm, 1)
    for start in range(0, len(rows), _ROWS):
        # A part at a time: quotients are in double precision.
        part = slice(start, start + _ROWS)
        out[part] = rows[part] / by[part]
    return out


def check_parts(
    what: str,
    found: Mapping[str, NDArray[np.generic]],
    own: Mapping[str, NDArray[np.generic]],
    signed: Collection[str] = (),
) -> None:
    """Refuse a stored state of which a part is missing, of another type or shape than `own`, or not finite.

    Whole numbers are counts, and not negative, but in the parts named by `signed`.

    Raises
    ------
    LearningError
    """
    for name, part in own.items():
        given = found.get(name)
        if given is None:
            raise LearningError(f"the {what}'s state has no {name}: it is damaged")
        if (given.dtype, given.shape) != (part.dtype, part.shape):
            raise LearningError(
                f"{name} of the {what}'s state is {given.dtype} {given.shape}, expected {part.dtype} {part.shape}: "
                "it is damaged, or was learned with other settings"
            )
        is_count = given.dtype.kind == "i" and name not in signed
        if not np.isfinite(given).all() or (is_count and given.min(initial=0) < 0):
            raise LearningError(f"{name} of the {what}'s state is not finite, or negative: it is damaged")


def rows_at(
    matrix: NDArray[np.float32], places: NDArray[np.int64] | None, nodes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The rows (m, dim) of nodes (m,), a copy: where `places` (n,) says that they are, or as the nodes are numbered."""
    return np.take(matrix, nodes if places is None else places[nodes], axis=0)
