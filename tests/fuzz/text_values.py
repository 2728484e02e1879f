"""Arguments for what makes vectors and answers of texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

import sona_pg
from sona_pg import EndpointConfig

from .anything import DIM, Any_, anything, numbers, texts, vectors

NOBODY = EndpointConfig("http://127.0.0.1:9/v1", attempts=1, timeout_seconds=0.1, pause_seconds=0.0)
"""Refuses at once."""


def _ones(given: list[str]) -> Any:  # noqa: ANN401
    return np.ones((len(given), DIM))


class _Model:
    """As one of sentence-transformers."""

    def encode(self, sentences: list[str], *, show_progress_bar: bool) -> Any:  # noqa: ANN401
        return _ones(sentences)

    def get_sentence_embedding_dimension(self) -> int:
        return DIM


def function_embedder() -> sona_pg.FunctionEmbedder:
    """A model of the engine's dimension."""
    return sona_pg.FunctionEmbedder(_ones, DIM, "fuzz")


_of_texts = {"texts": st.lists(st.text(max_size=9), max_size=3)}
_contexts = st.builds(
    sona_pg.Context,
    st.one_of(st.none(), st.just("ann")),
    st.one_of(st.none(), st.just("s")),
    st.dictionaries(st.sampled_from(("channel", "parameters")), st.just({"model": "a"}), max_size=1),
)

_config = sona_pg.SonaConfig(space="fuzz python", learning_loops=sona_pg.LearningMode.MANUAL)

GOOD_OF: dict[str, dict[str, Any_]] = {
    "AsyncSonaEngine.open": {"config": st.just(_config), "embedder": st.none(), "responder": st.none()},
    "EndpointEmbedder.__init__": {"model": st.just("small"), "dim": st.just(DIM), "endpoint": st.just(NOBODY)},
    "EndpointEmbedder.embed": _of_texts,
    "EndpointResponder.__init__": {
        "model": st.just("chat"),
        "endpoint": st.just(NOBODY),
        "instruction": st.just("Answer."),
        "tune": st.just(("temperature",)),
    },
    "FunctionEmbedder.__init__": {"function": st.just(_ones), "dim": st.just(DIM), "fingerprint": st.just("fuzz")},
    "FunctionEmbedder.embed": _of_texts,
    "HashingEmbedder.__init__": {"dim": st.just(64)},
    "HashingEmbedder.embed": _of_texts,
    "SentenceTransformerEmbedder.__init__": {"model": st.builds(_Model), "name": st.just("m")},
    "SentenceTransformerEmbedder.embed": _of_texts,
    "SonaEngine.background_learn": {"loop": st.none(), "minimum": st.just(1_000_000), "wait_seconds": st.just(5.0)},
    "SonaEngine.deep_learn": {"loop": st.none(), "wait_seconds": st.just(5.0)},
    "SonaEngine.item_texts": {"ids": st.just(["1", "2"]), "column": st.sampled_from((None, "id"))},
    "SonaEngine.known_of": {"query": vectors, "k": st.integers(1, 9)},
    "SonaEngine.learn_one": {"query": vectors, "outcome": st.just({"1": 1.0})},
    "SonaEngine.partial_fit": {"queries": st.just([[1.0] * DIM]), "outcomes": st.just([{"1": 1.0}])},
    "SonaEngine.predict_one": {"query": vectors, "k": st.integers(1, 9)},
    "SonaEngine.process": {"query": texts, "context": st.one_of(st.none(), _contexts), "k": st.integers(1, 9)},
}
HOSTILE_OF: dict[str, dict[str, Any_]] = {
    # What these are asked is checked by whoever asks them, `CheckedEmbedder`.
    **{entry: _of_texts for entry in GOOD_OF if entry.endswith(".embed")},
    "EndpointEmbedder.__init__": {"model": texts, "dim": numbers, "endpoint": st.sampled_from((NOBODY, None))},
    "EndpointResponder.__init__": {"model": texts, "endpoint": st.sampled_from((NOBODY, None)), "tune": anything},
    "FunctionEmbedder.__init__": GOOD_OF["FunctionEmbedder.__init__"],
    "SentenceTransformerEmbedder.__init__": {"model": st.builds(_Model), "name": st.none()},
}
MAKERS: dict[str, Callable[[], Any]] = {
    "EndpointEmbedder": lambda: sona_pg.EndpointEmbedder("small", DIM, NOBODY),
    "EndpointResponder": lambda: sona_pg.EndpointResponder("chat", NOBODY),
    "FunctionEmbedder": function_embedder,
    "HashingEmbedder": lambda: sona_pg.HashingEmbedder(64),
    "SentenceTransformerEmbedder": lambda: sona_pg.SentenceTransformerEmbedder(_Model(), "m"),
}
