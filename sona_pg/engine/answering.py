"""From a text to an answer: embed, recall, what has proven good for such queries, respond, record."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from numpy.typing import ArrayLike

from sona_pg.calls import Call
from sona_pg.engine.recalled import Known, Recall
from sona_pg.engine.requests import check_k
from sona_pg.errors import ConfigError, InvalidInput, NoItems, ResponderError, SonaError
from sona_pg.loops.admission import checked_text, private_json
from sona_pg.text.embedders import CheckedEmbedder
from sona_pg.text.responders import AsyncResponder, Context, Item, Responder, best_items
from sona_pg.types import Json

PATTERNS = 5
"""Patterns, the nearest, that are asked what has proven good."""


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


class Asked(Protocol):
    """What answering asks of an engine."""

    async def recall(self, query: ArrayLike, k: int) -> Recall:
        """The k best items for a query."""

    def nothing_found(self, query: ArrayLike) -> Recall:
        """An answer without items."""

    async def item_texts(self, ids: Sequence[str], column: str | None) -> Mapping[str, str | None]:
        """Texts of items by id."""

    async def known_of(self, query: ArrayLike, k: int) -> Known:
        """What is known of answers to such queries."""


class Record(Protocol):
    """Records what was answered."""

    def __call__(
        self,
        answered: Recall,
        *,
        latency_us: int,
        user_id: str | None,
        session_id: str | None,
        metadata: Mapping[str, Json],
    ) -> uuid.UUID:
        """Id of the trajectory."""


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
        self,
        embedder: CheckedEmbedder,
        responder: Responder | AsyncResponder | None = None,
        text_column: str | None = None,
    ) -> None:
        if responder is not None and not callable(responder):
            raise ConfigError(f"the responder is a {type(responder).__name__}, expected a function of query and items")
        if text_column is not None:
            checked_text(text_column, "text_column")
        self.embedder = embedder
        self._responder = responder
        self._text_column = text_column

    async def answer(
        self, engine: Asked, record: Record, call: Call, query: str, context: Context | None, k: int
    ) -> Response:
        """The answer to a query; recorded, so that it can be scored.

        A responder that fails is an outcome nobody can judge: the trajectory is kept with the failure in its metadata,
        under ``failure``, and the error is raised.

        Parameters
        ----------
        engine, record
            Who recalls, and what records.
        call
            Calls the embedder and the responder.
        query, context, k
            As of `SonaEngine.process`.
        """
        check_k(k)
        if context is not None and not isinstance(context, Context):
            raise InvalidInput(f"context is a {type(context).__name__}, expected a Context")
        context = Context() if context is None else context
        began = time.perf_counter_ns()
        # What `record` would refuse is refused before anybody has worked for it.
        metadata = dict(private_json(context.metadata, "metadata"))
        for text_of, what in ((context.user_id, "user id"), (context.session_id, "session id")):
            if text_of is not None:
                checked_text(text_of, what)
        (vector,) = await self.embedder.ask([query], call)
        try:
            found = await engine.recall(vector, k)
        except NoItems:
            # What was asked is worth knowing all the same: kinds of queries, and parameters that work for them.
            found = engine.nothing_found(vector)
        texts = await engine.item_texts([item.item_id for item in found.items], self._text_column)
        items = tuple(Item(item.item_id, item.score, texts.get(item.item_id)) for item in found.items)
        known = await engine.known_of(found.query, PATTERNS)
        parameters = {name: one.value for name, one in known.parameters.items() if one.confidence > 0}
        failure: SonaError | None = None
        text = ""
        try:
            if self._responder is None:
                text = best_items(query, items, context, parameters)
            else:
                text = await call(self._responder, query, items, context, parameters)
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
            metadata["failure"] = _storable(str(failure))
        id = record(
            found, latency_us=latency, user_id=context.user_id, session_id=context.session_id, metadata=metadata
        )
        if failure is not None:
            raise failure
        return Response(text, known.confidence, known.patterns, latency, id, items, parameters)


_FAILURE_CHARACTERS = 2000


def _storable(message: str) -> str:
    """As much of a message of somebody else's as can be kept: short, valid Unicode, without NUL."""
    return message[:_FAILURE_CHARACTERS].replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
