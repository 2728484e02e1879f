"""From a text to an answer: embed, recall, what has proven good for such queries, respond, record."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from numpy.typing import ArrayLike

from sona_pg.errors import ConfigError, NoItems, ResponderError, SonaError
from sona_pg.learning.recommendation import Recommendation
from sona_pg.loops.admission import checked_text, private_json
from sona_pg.store.search import Found
from sona_pg.text.embedders import CheckedEmbedder
from sona_pg.text.responders import Context, Item, Responder, best_items
from sona_pg.types import FloatVector, Json

PATTERNS = 5
"""Patterns, the nearest, that are asked what has proven good."""


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


@dataclass(frozen=True, slots=True)
class Response:
    """An answer.

    Parameters
    ----------
    text
        What the responder said; without one, the best item.
    confidence
        What answers to such queries are worth for sure, 0 to 1: by the patterns near the query, 0 where nothing is
        known. See `expected_quality`.
    patterns_used
        Patterns near the query that were asked.
    latency_us
        From text to answer, microseconds.
    trajectory_id
        For `score`: what the answer, or an item, was worth.
    items
        What was found, best first.
    parameters
        What had proven good for such queries, by name.
    """

    text: str
    confidence: float
    patterns_used: int
    latency_us: int
    trajectory_id: uuid.UUID
    items: tuple[Item, ...]
    parameters: Mapping[str, Json]


class Recalled(Protocol):
    """What was recalled for a query."""

    @property
    def query(self) -> FloatVector:
        """The query (dim,)."""

    @property
    def items(self) -> Sequence[Found]:
        """Items, best first."""


R = TypeVar("R", bound=Recalled)


class Engine(Protocol[R]):
    """What answering needs of an engine."""

    def recall(self, query: ArrayLike, k: int) -> R:
        """The k best items for a query."""

    def nothing_found(self, query: ArrayLike) -> R:
        """An answer without items."""

    def item_texts(self, ids: Sequence[str], column: str | None) -> Mapping[str, str | None]:
        """Texts of items by id."""

    def known_of(self, query: ArrayLike, k: int) -> Known:
        """What is known of answers to such queries."""

    def record(
        self,
        answered: R,
        *,
        latency_us: int,
        user_id: str | None,
        session_id: str | None,
        metadata: Mapping[str, Json],
    ) -> uuid.UUID:
        """Record what was answered."""


class Answering:
    """Answers texts.

    Parameters
    ----------
    embedder
        Makes vectors of them.
    responder
        Makes answers of items; the best item answers if None.
    text_column
        Column of the items table with their texts; None where there is none.

    Raises
    ------
    ConfigError, InvalidInput
        If the responder is no function, or the column no name.
    """

    def __init__(
        self, embedder: CheckedEmbedder, responder: Responder | None = None, text_column: str | None = None
    ) -> None:
        if responder is not None and not callable(responder):
            raise ConfigError(f"the responder is a {type(responder).__name__}, expected a function of query and items")
        if text_column is not None:
            checked_text(text_column, "text_column")
        self.embedder = embedder
        self._responder: Responder = best_items if responder is None else responder
        self._text_column = text_column

    def answer(self, engine: Engine[R], query: str, context: Context, k: int) -> Response:
        """The answer to a query; recorded, so that it can be scored.

        A responder that fails is an outcome nobody can judge: the trajectory is kept with the failure in its metadata,
        under ``failure``, and the error is raised.
        """
        began = time.perf_counter_ns()
        metadata = dict(private_json(context.metadata, "metadata"))
        vector = self.embedder.embed([query])[0]
        try:
            found = engine.recall(vector, k)
        except NoItems:
            # What was asked is worth knowing all the same: kinds of queries, and parameters that work for them.
            found = engine.nothing_found(vector)
        texts = engine.item_texts([item.item_id for item in found.items], self._text_column)
        items = tuple(Item(item.item_id, item.score, texts.get(item.item_id)) for item in found.items)
        known = engine.known_of(found.query, PATTERNS)
        parameters = {name: one.value for name, one in known.parameters.items() if one.confidence > 0}
        failure: SonaError | None = None
        text = ""
        try:
            text = self._responder(query, items, context, parameters)
            if not isinstance(text, str):
                failure = ResponderError(f"the responder answered a {type(text).__name__}, expected a text")
        except SonaError as error:
            failure = error
        except Exception as error:
            failure = ResponderError(f"the responder failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
        latency = max((time.perf_counter_ns() - began) // 1000, 1)
        if parameters:
            metadata.setdefault("parameters", parameters)
        if failure is not None:
            metadata["failure"] = str(failure)
        id = engine.record(
            found, latency_us=latency, user_id=context.user_id, session_id=context.session_id, metadata=metadata
        )
        if failure is not None:
            raise failure
        return Response(text, known.confidence, known.patterns, latency, id, items, parameters)
