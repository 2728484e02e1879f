"""The sample of a space's items, which the loops of a process share: it takes most of what one of them holds."""

from __future__ import annotations

import uuid
from datetime import datetime
from weakref import WeakValueDictionary

from sona_pg.learning.item_pool import ItemPool
from sona_pg.store import spaces
from sona_pg.store.connection import Connection
from sona_pg.store.spaces import Space

_known: WeakValueDictionary[tuple[uuid.UUID, datetime], ItemPool] = WeakValueDictionary()


def item_pool(connection: Connection, space: Space, sampled_at: datetime | None) -> ItemPool:
    """The sample as it was taken at a time; read once, for as long as anybody has it.

    Parameters
    ----------
    sampled_at
        When, as the head of the learner says; None of a space without items.

    Raises
    ------
    DatabaseError
        If it cannot be read.
    """
    if sampled_at is None:
        return ItemPool(*spaces.item_sample(connection, space))
    key = space.key, sampled_at
    pool = _known.get(key)
    # Two threads may read it at the same time: both then have the one that came first.
    return _known.setdefault(key, ItemPool(*spaces.item_sample(connection, space))) if pool is None else pool
