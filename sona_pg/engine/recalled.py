"""What was answered to a query."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sona_pg.store.search import Found
from sona_pg.types import Answer, FloatVector


@dataclass(frozen=True, slots=True)
class Recall:
    """What `recall` answered; hand it to `record` with what the items were worth.

    Parameters
    ----------
    trajectory_id
        Id under which the outcome is recorded.
    query
        The query (dim,), before adaptation.
    items
        The items, best first.
    answer
        How the answer came about.
    """

    trajectory_id: uuid.UUID
    query: FloatVector
    items: tuple[Found, ...]
    answer: Answer
