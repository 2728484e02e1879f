"""Embedders: batches, memory, and what they must not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg.config import EmbeddingConfig
from sona_pg.errors import ConfigError, DimensionMismatch, EmbedderError, InvalidInput
from sona_pg.text.embedders import (
    CheckedEmbedder,
    Embedder,
    FunctionEmbedder,
    HashingEmbedder,
    SentenceTransformerEmbedder,
)

DIM = 4


def letters(texts: Sequence[str]) -> NDArray[np.float64]:
    return np.array([[text.lower().count(letter) + 0.1 for letter in "abcd"] for text in texts])


class Asked:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        self.batches.append(list(texts))
        return letters(texts)


class Broken:
    """Numbers that cannot be read, as a tensor on another device."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __array__(self, *args: object, **kwargs: object) -> object:
        raise self._error

    def __float__(self) -> float:
        raise self._error


class Saying:
    """An embedder that says, or raises, this of itself."""

    def __init__(self, dim: object = DIM, fingerprint: object = "letters") -> None:
        self._said = {"dim": dim, "fingerprint": fingerprint}

    def _say(self, name: str) -> object:
        if isinstance(self._said[name], Exception):
            raise self._said[name]  # type: ignore[misc]
        return self._said[name]

    @property
    def dim(self) -> object:
        return self._say("dim")

    @property
    def fingerprint(self) -> object:
        return self._say("fingerprint")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return letters(texts)


def checked(function: Callable[..., object], **settings: int) -> CheckedEmbedder:
    return CheckedEmbedder(FunctionEmbedder(function, DIM, "letters"), EmbeddingConfig(**settings))  # type: ignore[arg-type]


def test_texts_are_asked_in_batches_each_once_and_in_order() -> None:
    asked = Asked()
    embedder = checked(asked, batch_size=2)
    texts = ["a", "b", "a", "c", "d d", "b"]
    found = embedder.embed(texts)
    assert found.dtype == np.float32
    assert np.array_equal(found, letters(texts).astype(np.float32))
    assert asked.batches == [["a", "b"], ["c", "d d"]]
    assert np.array_equal(embedder.embed(["d d", "e"]), letters(["d d", "e"]).astype(np.float32))
    assert asked.batches[2:] == [["e"]]
    assert embedder.embed([]).shape == (0, DIM)
    assert (embedder.dim, embedder.fingerprint) == (DIM, "letters")


def test_only_so_many_are_remembered_those_asked_last() -> None:
    asked = Asked()
    embedder = checked(asked, cache_size=2)
    for text in ("a", "b", "a", "c"):
        embedder.embed([text])
    embedder.embed(["a", "b", "c"])
    assert asked.batches == [["a"], ["b"], ["c"], ["b"]]
    forgetful = checked(asked, cache_size=0)
    assert np.array_equal(forgetful.embed(["a", "a"]), letters(["a", "a"]).astype(np.float32))


def test_what_is_remembered_is_nobodys_to_change() -> None:
    embedder = checked(letters)
    embedder.embed(["a"])[:] = 7
    assert np.array_equal(embedder.embed(["a"]), letters(["a"]).astype(np.float32))


@pytest.mark.parametrize("text", ["", "  \n", 5, None, b"a", "a" * 11, "a\ud800"])
def test_what_is_no_text_is_refused_before_anybody_is_asked(text: object) -> None:
    asked = Asked()
    with pytest.raises(InvalidInput, match="text"):
        checked(asked, max_characters=10).embed(["a", text])  # type: ignore[list-item]
    assert asked.batches == []


@pytest.mark.parametrize(
    "answered",
    [
        None,
        "vectors",
        [1.0, 2.0, 3.0, 4.0],
        [[1.0] * DIM] * 3,
        [[np.nan] * DIM] * 2,
        [[np.inf] * DIM] * 2,
        [[0.0] * DIM] * 2,
        [[1.0] * DIM, [1.0]],
        [["a"] * DIM] * 2,
        Broken(RuntimeError("gone")),
        Broken(TypeError("on another device")),
        [[Broken(RuntimeError("gone"))] * DIM] * 2,
    ],
)
def test_what_are_no_vectors_is_an_error_of_the_embedder(answered: object) -> None:
    embedder = checked(lambda texts: answered)
    for _ in range(2):  # it is not remembered
        with pytest.raises(EmbedderError):
            embedder.embed(["a", "b"])


def test_another_dimension_is_said() -> None:
    with pytest.raises(DimensionMismatch, match="has 5 dimensions, expected 4"):
        checked(lambda texts: np.ones((len(texts), 5))).embed(["a"])


def test_an_embedder_that_fails_may_succeed_the_next_time() -> None:
    calls = iter([OSError("no route"), None])

    def function(texts: Sequence[str]) -> NDArray[np.float64]:
        if (error := next(calls)) is not None:
            raise error
        return letters(texts)

    embedder = checked(function)
    with pytest.raises(EmbedderError, match="OSError: no route"):
        embedder.embed(["a"])
    assert embedder.embed(["a"]).shape == (1, DIM)


def test_several_threads_may_ask() -> None:
    embedder, wrong = checked(letters, cache_size=5), []

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(200):
            texts = ["".join(random.choice(list("abcd"), 3)) for _ in range(3)]
            if not np.array_equal(embedder.embed(texts), letters(texts).astype(np.float32)):
                wrong.append(texts)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("said", [{"dim": RuntimeError("gone")}, {"fingerprint": OSError("gone")}])
def test_what_an_embedder_fails_to_say_of_itself_is_its_error(said: dict[str, Any]) -> None:
    with pytest.raises(EmbedderError, match=f"does not say its {next(iter(said))}: .*gone"):
        CheckedEmbedder(Saying(**said))  # type: ignore[arg-type]


@pytest.mark.parametrize("said", [{"dim": AttributeError("gone")}, {"fingerprint": ConfigError("gone")}])
def test_what_an_embedder_has_not_is_a_setting(said: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="gone"):
        CheckedEmbedder(Saying(**said))  # type: ignore[arg-type]


@pytest.mark.parametrize("dim", [0, -1, 16_001, 2.0, True, None, "4", np.float32(4)])
def test_an_embedder_of_no_dimension_is_refused(dim: object) -> None:
    with pytest.raises(ConfigError, match=r"dim of the embedder is .* expected a whole number"):
        CheckedEmbedder(Saying(dim=dim))  # type: ignore[arg-type]


@pytest.mark.parametrize("fingerprint", [None, "", 5, b"letters"])
def test_a_model_without_a_name_is_refused(fingerprint: object) -> None:
    with pytest.raises(ConfigError, match="fingerprint of the embedder is"):
        CheckedEmbedder(Saying(fingerprint=fingerprint))  # type: ignore[arg-type]


def test_a_dimension_of_numpy_is_a_whole_number() -> None:
    embedder = CheckedEmbedder(Saying(dim=np.int64(DIM)))  # type: ignore[arg-type]
    assert type(embedder.dim) is int
    assert embedder.embed(["a"]).shape == (1, DIM)
    assert HashingEmbedder(np.int64(8)).fingerprint == "sona-hashing-1/8"  # type: ignore[arg-type]


def test_what_is_no_embedder_is_refused() -> None:
    with pytest.raises(ConfigError, match="FunctionEmbedder"):
        CheckedEmbedder(letters)  # type: ignore[arg-type]
    assert isinstance(FunctionEmbedder(letters, DIM, "letters"), Embedder)


# ---- a hash ----------------------------------------------------------------------------------------------------------


def test_a_hash_puts_texts_of_the_same_letters_near_each_other() -> None:
    embedder = HashingEmbedder(512)
    near, same, other = embedder.embed(["Where is my parcel?", "where is my parcels", "Reset the password"])
    assert near @ same > 0.7 > 0.3 > abs(near @ other)
    assert np.array_equal(embedder.embed(["Where is my parcel?"])[0], near)
    assert embedder.fingerprint == "sona-hashing-1/512"


def test_a_hash_has_a_direction_for_every_text() -> None:
    rows = CheckedEmbedder(HashingEmbedder(8)).embed(["a", "?", "日本", "ab ab", *map(chr, range(0x61, 0x7B))])
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dim", [0, 7, 1 << 20, 2.5, True])
def test_a_hash_of_no_dimension_is_refused(dim: object) -> None:
    with pytest.raises(ConfigError, match="dim is"):
        HashingEmbedder(dim)  # type: ignore[arg-type]


# ---- a model of sentence-transformers --------------------------------------------------------------------------------


class Model:
    """As one of sentence-transformers."""

    def encode(self, sentences: list[str], *, show_progress_bar: bool) -> NDArray[np.float64]:
        assert not show_progress_bar
        return letters(sentences)

    def get_sentence_embedding_dimension(self) -> int:
        return DIM


def test_a_model_that_is_loaded_has_a_name() -> None:
    embedder = SentenceTransformerEmbedder(Model(), "letters-v1")
    assert (embedder.dim, embedder.fingerprint) == (DIM, "sentence-transformers/letters-v1")
    assert np.array_equal(CheckedEmbedder(embedder).embed(["abc"]), letters(["abc"]).astype(np.float32))
    with pytest.raises(ConfigError, match="needs a name"):
        SentenceTransformerEmbedder(Model())
