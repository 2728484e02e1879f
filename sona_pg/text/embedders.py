"""What makes vectors of texts: a hash that needs no model, a local model, an endpoint, or a function of your own."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.calls import Call, at_once, call_here
from sona_pg.config import MAX_DIM, EmbeddingConfig, EndpointConfig
from sona_pg.errors import ConfigError, DimensionMismatch, EmbedderError, InvalidInput, SonaError
from sona_pg.kernels import as_vector
from sona_pg.text.endpoint import Endpoint

Vectors = NDArray[np.float32]


@runtime_checkable
class Embedder(Protocol):
    """Makes vectors of texts; any object that has these is one."""

    @property
    def dim(self) -> int:
        """Components of a vector."""

    @property
    def fingerprint(self) -> str:
        """Names the model: vectors of two that differ are not comparable. A space belongs to one."""

    def embed(self, texts: Sequence[str]) -> ArrayLike:
        """Vectors (n, dim) of finite numbers, none of them zero, of texts that are not empty."""


class AsyncEmbedder(Protocol):
    """As an `Embedder`, asked by AsyncSonaEngine in its event loop."""

    @property
    def dim(self) -> int:
        """Components of a vector."""

    @property
    def fingerprint(self) -> str:
        """Names the model."""

    async def embed(self, texts: Sequence[str]) -> ArrayLike:
        """As of `Embedder`."""


class HashingEmbedder:
    """Character n-grams and words, hashed: no model, no download, and similar only where the letters are.

    For tests, for a first look, and for texts that are names and codes; a model knows what words mean.

    Parameters
    ----------
    dim
        Components.

    Raises
    ------
    ConfigError
        If scikit-learn is not installed, or `dim` is out of range.

    Examples
    --------
    >>> vectors = HashingEmbedder(256).embed(["Where is my parcel?", "where is my parcel"])
    >>> bool(vectors[0] @ vectors[1] > 0.9)
    True
    """

    def __init__(self, dim: int = 1024) -> None:
        self._dim = _whole_dim("dim", dim, 8)
        try:
            from sklearn.feature_extraction.text import HashingVectorizer
        except ImportError as cause:
            raise ConfigError("HashingEmbedder needs scikit-learn: pip install 'sona-pg[text]'") from cause
        self._parts = [
            HashingVectorizer(n_features=self._dim, analyzer="char_wb", ngram_range=(3, 5), norm="l2"),
            HashingVectorizer(n_features=self._dim, token_pattern=r"\S+", norm="l2"),
        ]

    @property
    def dim(self) -> int:
        """Components."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Names how texts are hashed."""
        return f"sona-hashing-1/{self._dim}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors float32 (n, dim) of unit length."""
        if not texts:
            return np.empty((0, self._dim), dtype=np.float32)
        summed = sum(part.transform(texts) for part in self._parts)
        rows = np.asarray(summed.toarray(), dtype=np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        # Signs of features may cancel out, in a text of two letters.
        rows[lengths[:, 0] == 0, 0] = 1
        return np.asarray(rows / np.where(lengths > 0, lengths, 1), dtype=np.float32)


class SentenceModel(Protocol):
    """A model of sentence-transformers, as far as it is used here."""

    def encode(self, sentences: list[str], *, show_progress_bar: bool) -> ArrayLike:
        """Vectors (n, dim)."""

    def get_sentence_embedding_dimension(self) -> int | None:
        """Components."""


class SentenceTransformerEmbedder:
    """A model of sentence-transformers, on this machine.

    Parameters
    ----------
    model
        Its name, or a model that is loaded.
    name
        Names a model that is loaded.

    Raises
    ------
    ConfigError
        If sentence-transformers is not installed, or a model that is loaded has no name.
    EmbedderError
        If the model cannot be loaded.
    """

    def __init__(self, model: str | SentenceModel, name: str | None = None) -> None:
        self._model: SentenceModel
        if isinstance(model, str):
            try:
                from sentence_transformers import SentenceTransformer
            except ImportError as cause:
                raise ConfigError(
                    "SentenceTransformerEmbedder needs sentence-transformers: pip install 'sona-pg[transformers]'"
                ) from cause
            try:
                self._model = SentenceTransformer(model)
            except Exception as cause:
                raise EmbedderError(f"the model {model!r} could not be loaded: {cause}") from cause
            self._name = model if name is None else name
        elif name is None:
            raise ConfigError("a model that is loaded needs a name: vectors of two models are not comparable")
        else:
            self._model, self._name = model, name

    @property
    def dim(self) -> int:
        """Components."""
        return int(self._model.get_sentence_embedding_dimension() or 0)

    @property
    def fingerprint(self) -> str:
        """Names the model."""
        return f"sentence-transformers/{self._name}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors float32 (n, dim)."""
        return np.asarray(self._model.encode(list(texts), show_progress_bar=False), dtype=np.float32)


class EndpointEmbedder:
    """Any endpoint that speaks OpenAI's embeddings API.

    Parameters
    ----------
    model
        Its name there.
    dim
        Components of its vectors.
    endpoint
        Where it is, and how often and how long it is tried; OPENAI_BASE_URL and OPENAI_API_KEY if None.
    """

    def __init__(self, model: str, dim: int, endpoint: EndpointConfig | None = None) -> None:
        self._model, self._dim, self._endpoint = model, dim, Endpoint(endpoint)

    @property
    def dim(self) -> int:
        """Components."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Names the model, not where it runs."""
        return f"openai/{self._model}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors float32 (n, dim).

        Raises
        ------
        EmbedderError
            If the endpoint does not answer, refuses, or answers something else.
        """
        answer = self._endpoint.post("embeddings", {"model": self._model, "input": list(texts)}, EmbedderError)
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            if [row["index"] for row in rows] != list(range(len(texts))):
                raise ValueError(f"expected each index from 0 to {len(texts) - 1} once")
            return np.array([row["embedding"] for row in rows], dtype=np.float32)
        except (KeyError, TypeError, ValueError, OverflowError) as cause:
            raise EmbedderError(f"{self._endpoint.url} answered what are no embeddings ({cause!r})") from cause


class FunctionEmbedder:
    """A function of your own.

    Parameters
    ----------
    function
        Of a list of texts to vectors (n, dim).
    dim
        Components.
    fingerprint
        Names the model.
    """

    def __init__(self, function: Callable[[Sequence[str]], ArrayLike], dim: int, fingerprint: str) -> None:
        self._function, self._dim, self._fingerprint = function, dim, fingerprint

    @property
    def dim(self) -> int:
        """Components."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Names the model."""
        return self._fingerprint

    def embed(self, texts: Sequence[str]) -> ArrayLike:
        """What the function says."""
        return self._function(texts)


class CheckedEmbedder:
    """An embedder that is asked in batches, remembers what it was asked last, and whose answers are checked.

    Safe to use from several threads.

    Parameters
    ----------
    embedder
        Whose vectors these are.
    config
        Settings.

    Raises
    ------
    ConfigError
        If it is no embedder: its dimension is no whole number in range, or its fingerprint no text.
    EmbedderError
        If it fails to say them.
    """

    def __init__(self, embedder: Embedder | AsyncEmbedder, config: EmbeddingConfig | None = None) -> None:
        dim, fingerprint, _ = (_attribute(embedder, name) for name in ("dim", "fingerprint", "embed"))
        if not isinstance(fingerprint, str) or not fingerprint:
            raise ConfigError(f"the fingerprint of the embedder is {fingerprint!r}, expected the name of its model")
        self._dim, self._fingerprint = _whole_dim("the dim of the embedder", dim, 1), fingerprint
        self._embedder, self._config = embedder, EmbeddingConfig() if config is None else config
        self._known: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def dim(self) -> int:
        """Components, as the embedder said at the beginning."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Names the model."""
        return self._fingerprint

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors float32 (n, dim).

        Raises
        ------
        InvalidInput
            If a text is none, is empty, has half of a character, or is longer than `EmbeddingConfig.max_characters`;
            the embedder was not asked.
        EmbedderError
            If it fails, or answers what are no vectors.
        DimensionMismatch
            If its vectors have another dimension than it says.
        """
        return at_once(self.ask(texts, call_here))

    async def ask(self, texts: Sequence[str], call: Call) -> Vectors:
        """As `embed`; the embedder is called by `call`."""
        checked = [self._checked(text) for text in texts]
        keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in checked]
        found: dict[bytes, Vectors] = {}
        with self._lock:
            for key in keys:
                if key in self._known:
                    self._known.move_to_end(key)
                    found[key] = self._known[key]
        new = {key: text for key, text in zip(keys, checked, strict=True) if key not in found}
        places, size = list(new), self._config.batch_size
        for start in range(0, len(places), size):
            batch = places[start : start + size]
            found.update(zip(batch, await self._ask([new[key] for key in batch], call), strict=True))
        with self._lock:
            for key in places:
                self._known[key] = found[key]
            while len(self._known) > self._config.cache_size:
                self._known.popitem(last=False)
        return np.stack([found[key] for key in keys]) if keys else np.empty((0, self.dim), dtype=np.float32)

    def _checked(self, text: str) -> str:
        if not isinstance(text, str):
            raise InvalidInput(f"a text is a {type(text).__name__}, expected a string")
        if not text.strip():
            raise InvalidInput("a text is empty: there is nothing to embed")
        try:
            text.encode()
        except UnicodeEncodeError as cause:
            raise InvalidInput(f"a text has half of a character, {text[cause.start]!r}: decode it anew") from cause
        if len(text) > self._config.max_characters:
            raise InvalidInput(
                f"a text has {len(text)} characters, expected at most {self._config.max_characters}: cut it into parts"
            )
        return text

    async def _ask(self, texts: list[str], call: Call) -> list[Vectors]:
        try:
            answered = await call(self._embedder.embed, texts)
        except SonaError:
            raise
        except Exception as cause:
            raise EmbedderError(f"the embedder failed: {type(cause).__name__}: {cause}") from cause
        try:
            rows = np.asarray(answered)
        except Exception as cause:
            raise _no_vectors(cause) from cause
        if rows.ndim != 2 or len(rows) != len(texts):
            raise EmbedderError(f"the embedder answered {rows.shape} for {len(texts)} texts, expected a row for each")
        try:
            vectors = [as_vector(row, self.dim, "what the embedder answered").copy() for row in rows]
        except DimensionMismatch:
            raise
        except InvalidInput as cause:
            raise EmbedderError(str(cause)) from cause
        except Exception as cause:
            raise _no_vectors(cause) from cause
        if not all(vector.any() for vector in vectors):
            raise EmbedderError("the embedder answered a vector of zeros: it has no direction")
        return vectors


def _whole_dim(what: str, dim: object, low: int) -> int:
    if not isinstance(dim, int | np.integer) or isinstance(dim, bool) or not low <= dim <= MAX_DIM:
        raise ConfigError(f"{what} is {dim!r}, expected a whole number from {low} to {MAX_DIM}")
    return int(dim)


def _attribute(embedder: object, name: str) -> object:
    """What an embedder has by this name; it may be a property that fails."""
    try:
        return getattr(embedder, name)
    except SonaError:
        raise
    except AttributeError as cause:
        raise ConfigError(
            f"the embedder is a {type(embedder).__name__} without dim, fingerprint or embed ({cause}): "
            "wrap a function in FunctionEmbedder"
        ) from cause
    except Exception as cause:
        raise EmbedderError(f"the embedder does not say its {name}: {type(cause).__name__}: {cause}") from cause


def _no_vectors(cause: Exception) -> EmbedderError:
    return EmbedderError(f"the embedder answered what are no vectors ({type(cause).__name__}: {cause})")
