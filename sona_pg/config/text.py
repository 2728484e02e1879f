"""How texts become vectors, and endpoints are asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from sona_pg.config.checks import check_whole, check_within
from sona_pg.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """How texts become vectors.

    Parameters
    ----------
    batch_size
        Texts that an embedder is given at once.
    cache_size
        Texts, those asked last, whose vectors are remembered; at 0 none. Each takes 4 dim bytes and some more.
    max_characters
        A longer text is refused: what a model cuts off is not in the vector.
    """

    batch_size: int = 64
    cache_size: int = 4096
    max_characters: int = 100_000

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size, 1, 100_000)
        check_whole("cache_size", self.cache_size, 0, 10_000_000)
        check_whole("max_characters", self.max_characters, 1, 100_000_000)


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """An endpoint that speaks OpenAI's API.

    Parameters
    ----------
    url, key
        Its address, with the version, and the key; OPENAI_BASE_URL and OPENAI_API_KEY where they are empty.
    timeout_seconds
        How long one attempt takes at most, from connecting to the last byte.
    attempts
        How often it is tried in all, where that may help.
    pause_seconds
        Before the second attempt; it doubles.

    Raises
    ------
    ConfigError
        If a setting is out of range or of another type, or the key cannot be sent.
    """

    url: str = ""
    key: str = field(default="", repr=False)
    timeout_seconds: float = 30.0
    attempts: int = 3
    pause_seconds: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.url, str):
            raise ConfigError(f"url is {self.url!r}, expected a text")
        check_key("key", self.key)
        check_within("timeout_seconds", self.timeout_seconds, 0.01, 3600.0)
        check_whole("attempts", self.attempts, 1, 100)
        check_within("pause_seconds", self.pause_seconds, 0.0, 600.0)


def check_key(name: str, key: str) -> None:
    """Refuse what no HTTP header can hold, with a `ConfigError` that does not show it."""
    if not isinstance(key, str):
        raise ConfigError(f"{name} is a {type(key).__name__}, expected a text")
    if any(not char.isprintable() or ord(char) > 0xFF for char in key):
        raise ConfigError(f"{name} has a line break or another character that no HTTP header holds: strip it")
