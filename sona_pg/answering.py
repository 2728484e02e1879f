"""From a text to an answer: embed, recall, what has proven good for such queries, respond, record."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sona_pg.errors import ResponderError, SonaError
from sona_pg.loops.admission import private_json
from sona_pg.text.embedders import CheckedEmbedder
from sona_pg.text.responders import Context, Item, Responder, best_items
from sona_pg.types import Json

if TYPE_CHECKING:
    from sona_pg.engine import SonaEngine

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
    """

    def __init__(
        self, embedder: CheckedEmbedder, responder: Responder | None = None, text_column: str | None = None
    ) -> None:
        self.embedder = embedder
        self._responder: Responder = best_items if responder is None else responder
        self._text_column = text_column

    def answer(self, engine: SonaEngine, query: str, context: Context, k: int) -> Response:
        """The answer to a query; recorded, so that it can be scored.

        A responder that fails is an outcome nobody can judge: the trajectory is kept with the failure in its metadata,
        under ``failure``, and the error is raised.
        """
        began = time.perf_counter_ns()
        metadata = dict(private_json(context.metadata, "metadata"))
        found = engine.recall(self.embedder.embed([query])[0], k)
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
