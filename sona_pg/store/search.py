"""Search over the application's own table of items."""

from __future__ import annotations

from typing import NamedTuple

from sona_pg.store.connection import Connection, translated
from sona_pg.store.spaces import Space
from sona_pg.types import FloatVector


class Found(NamedTuple):
    """An item that was found.

    Parameters
    ----------
    item_id
        Its id, as text.
    rank
        1-based place.
    score
        Cosine to the query that was asked.
    """

    item_id: str
    rank: int
    score: float


def nearest_items(connection: Connection, space: Space, query: FloatVector, k: int) -> list[Found]:
    """The k items nearest to a query (dim,) by cosine, best first."""
    with translated():
        rows = connection.execute(
            "SELECT item_id, rank, score FROM sona._search_items(%s, %s, %s) ORDER BY rank",
            (space.space_id, query, k),
            binary=True,
        ).fetchall()
    return [Found(*row) for row in rows]
