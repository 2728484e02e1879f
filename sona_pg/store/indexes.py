"""HNSW indexes by size: a space that has few vectors of a kind is searched exactly."""

from __future__ import annotations

from typing import Literal

from sona_pg.config import StoreConfig
from sona_pg.store.connection import Connection, bound_locks
from sona_pg.store.spaces import Space


def index_by_size(connection: Connection, space: Space, config: StoreConfig, of: Literal["patterns", "nodes"]) -> bool:
    """Make the index of the patterns or memory nodes of a space that has many and no index; whether that was done.

    In a transaction that the caller began.

    Raises
    ------
    DatabaseBusy
        If others write them for too long.
    """
    bound_locks(connection)
    row = connection.execute(f"SELECT sona.index_{of}(%s, %s)", (space.name, config.exact_search_rows)).fetchone()
    return row is not None and bool(row[0])
