"""A bounded sample of the items, as unit rows: negatives for lists, and embeddings of items known by their id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.errors import InvalidInput


class ItemPool:
    """Item ids and their unit embeddings.

    Parameters
    ----------
    ids
        One for each row, distinct.
    embeddings
        (n, dim), finite; scaled to unit length.
    """

    def __init__(self, ids: Sequence[str], embeddings: ArrayLike) -> None:
        rows = np.array(embeddings, dtype=np.float32, order="C", ndmin=2)
        if len(ids) != (len(rows) if rows.size else 0):
            raise InvalidInput(f"{len(ids)} item ids for embeddings of shape {rows.shape}: expected one for each row")
        if not np.isfinite(rows).all():
            raise InvalidInput("item embeddings hold NaN or infinity: check the items table")
        self.ids = list(ids)
        self.embeddings: NDArray[np.float32] = normalized_rows(rows)
        self.embeddings.setflags(write=False)
        self._row = {item: row for row, item in enumerate(self.ids)}

    @classmethod
    def empty(cls, dim: int) -> ItemPool:
        """A pool without items."""
        return cls([], np.zeros((0, dim), dtype=np.float32))

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, item_id: str) -> int | None:
        """Row of an item, if the sample holds it."""
        return self._row.get(item_id)


def normalized_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (n, dim) scaled to unit length; a zero row stays zero."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norm > 0, norm, 1), dtype=np.float32)
