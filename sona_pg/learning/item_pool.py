"""A bounded sample of the items, as unit rows: negatives for lists, and embeddings of items known by their id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.errors import InvalidInput
from sona_pg.learning.arrays import as_matrix, normalized_rows


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
        rows = as_matrix(embeddings, -1, "item embeddings")
        if not len(ids) == len(set(ids)) == len(rows):
            raise InvalidInput(
                f"{len(ids)} item ids, {len(set(ids))} of them distinct, for embeddings of shape {rows.shape}: "
                "expected a distinct one for each row"
            )
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

    def rows(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """Rows of those of the items that the sample holds."""
        found = [row for item in item_ids if (row := self._row.get(item)) is not None]
        return np.array(found, dtype=np.int64)
