"""What was answered to a query, and what is known of such queries."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from sona_pg.learning.recommendation import Recommendation
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


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of answers to such queries.

    Parameters
    ----------
    parameters
        By name, what worked; see `SonaEngine.optimized_params`.
    confidence
        What answers are worth for sure, 0 to 1.
    patterns
        Patterns that were asked.
    """

    parameters: Mapping[str, Recommendation]
    confidence: float
    patterns: int
