"""What makes an answer of the items that were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from sona_pg.config import EndpointConfig
from sona_pg.errors import ConfigError, ResponderError
from sona_pg.text.endpoint import Endpoint
from sona_pg.types import Json


@dataclass(frozen=True, slots=True)
class Context:
    """What is known of who asks.

    Parameters
    ----------
    user_id, session_id
        As the application calls them.
    metadata
        Whatever it wants to find again.
    """

    user_id: str | None = None
    session_id: str | None = None
    metadata: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """An item that was found.

    Parameters
    ----------
    item_id
        As the application calls it.
    score
        How well it fits; higher is better.
    text
        Its text; None where the space does not know a column of texts.
    """

    item_id: str
    score: float
    text: str | None = None


@runtime_checkable
class Responder(Protocol):
    """Makes an answer; any function of these arguments is one."""

    def __call__(self, query: str, items: Sequence[Item], context: Context, parameters: Mapping[str, Json]) -> str:
        """The answer to a query, of the items that were found, best first.

        Parameters
        ----------
        parameters
            What worked best for such queries, by name; empty where nothing is known.
        """


class AsyncResponder(Protocol):
    """As a `Responder`, awaited by AsyncSonaEngine in its event loop."""

    async def __call__(
        self, query: str, items: Sequence[Item], context: Context, parameters: Mapping[str, Json]
    ) -> str:
        """As of `Responder`."""


def best_items(query: str, items: Sequence[Item], context: Context, parameters: Mapping[str, Json]) -> str:
    """The best item itself: its text, or its id where there is none; nothing where nothing was found."""
    return "" if not items else items[0].item_id if items[0].text is None else items[0].text


class EndpointResponder:
    """Any endpoint that speaks OpenAI's chat API; the items are given to it beside the question.

    Parameters
    ----------
    model
        Its name there; with ``tune=("model",)`` a parameter ``model`` that has proven better takes its place.
    endpoint
        Where it is, and how often and how long it is tried; OPENAI_BASE_URL and OPENAI_API_KEY if None.
    instruction
        What it is told before the items.
    tune
        Names of parameters that are handed on where something is known of them, such as ``temperature``; no others
        are. Not ``messages``, which are the question and the items.

    Raises
    ------
    ConfigError
        If there is no address, or `tune` is no sequence of such names.
    """

    def __init__(
        self,
        model: str,
        endpoint: EndpointConfig | None = None,
        *,
        instruction: str = "Answer the question by the passages below. Say so if they do not contain the answer.",
        tune: Sequence[str] = (),
    ) -> None:
        self._model, self._endpoint = model, Endpoint(endpoint)
        self._instruction, self._tune = instruction, _names(tune)

    def __call__(self, query: str, items: Sequence[Item], context: Context, parameters: Mapping[str, Json]) -> str:
        """The answer.

        Raises
        ------
        ResponderError
            If the endpoint does not answer, refuses, or answers something else.
        """
        passages = "\n\n".join(f"[{item.item_id}] {item.text or ''}".rstrip() for item in items)
        body = {
            "model": self._model,
            "messages": [
                {"role": "system", "content": f"{self._instruction}\n\n{passages}".rstrip()},
                {"role": "user", "content": query},
            ],
            **{name: parameters[name] for name in self._tune if name in parameters},
        }
        answer = self._endpoint.post("chat/completions", body, ResponderError)
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as cause:
            raise ResponderError(f"{self._endpoint.url} answered what is no completion ({cause!r})") from cause
        text = _text(content)
        if text is None:
            shown = repr(content)[:_SHOWN_CHARACTERS]
            raise ResponderError(f"{self._endpoint.url} answered the content {shown}, expected a text or parts of one")
        return text


_SHOWN_CHARACTERS = 200
"""Of a content that is no text."""


def _text(content: object) -> str | None:
    """What a message says, with its parts joined; None if that is no text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


def _names(tune: Sequence[str]) -> tuple[str, ...]:
    if isinstance(tune, str) or not isinstance(tune, Sequence) or not all(isinstance(name, str) for name in tune):
        raise ConfigError(f"tune is {tune!r}, expected names of parameters, such as ('temperature',)")
    if "messages" in tune:
        raise ConfigError("tune has 'messages', which are the question and the items: leave it out")
    return tuple(tune)
