"""An HTTP endpoint that speaks OpenAI's API: one POST of JSON, tried again where that may help."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from sona_pg.config import EndpointConfig
from sona_pg.config.text import check_key
from sona_pg.errors import ConfigError, SonaError

ENV_URL, ENV_KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"

_MAY_PASS = {408, 409, 429, 500, 502, 503, 504}
"""Statuses of which the next attempt may say something else."""

_SHOWN_BYTES = 500
"""Of what is said with a status that refuses."""


class Endpoint:
    """Where requests go.

    Parameters
    ----------
    config
        Settings; its address and key, where they are empty, are taken from OPENAI_BASE_URL and OPENAI_API_KEY.

    Raises
    ------
    ConfigError
        If there is no address, or one that is not of HTTP, or the key cannot be sent.
    """

    def __init__(self, config: EndpointConfig | None = None) -> None:
        self._config = EndpointConfig() if config is None else config
        self.url = (self._config.url or os.environ.get(ENV_URL, "")).rstrip("/")
        self._key = self._config.key or os.environ.get(ENV_KEY, "")
        check_key(f"key, or {ENV_KEY}," if not self._config.key else "key", self._key)
        if not _is_address(self.url):
            raise ConfigError(f"the address is {self.url!r}, expected http://… or https://…: give it, or set {ENV_URL}")

    def post(self, path: str, body: Mapping[str, Any], error: type[SonaError]) -> dict[str, Any]:
        """The object that is answered.

        A connection that fails or breaks off, a time that is over, and a status that may pass (408, 409, 429, 5xx) are
        tried again, `EndpointConfig.attempts` times in all, after a pause that doubles; what is refused otherwise is
        not. A redirect is refused, and never followed: the key is for this address.

        Raises
        ------
        SonaError
            `error`, saying why.
        """
        # Here and not above: who asks no endpoint need not have HTTP and TLS in memory.
        from http.client import HTTPException

        from sona_pg.text.posting import post

        url, seconds, pause = f"{self.url}/{path}", self._config.timeout_seconds, self._config.pause_seconds
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        try:
            asked = json.dumps(body).encode()
        except (TypeError, ValueError, RecursionError) as cause:
            raise error(f"what {url} is to be asked is no JSON: {cause}") from cause
        for attempt in range(1, self._config.attempts + 1):
            try:
                status, content, location = post(url, asked, headers, seconds)
            except (OSError, HTTPException) as cause:
                problem = f"{url}: {cause or type(cause).__name__}"
            else:
                if 200 <= status < 300:
                    return _object(url, content, error)
                if 300 <= status < 400:
                    raise error(f"{url} answered {status}, a redirect to {location!r}: set the address that is meant")
                problem = f"{url} answered {status}: {content[:_SHOWN_BYTES].decode(errors='replace')}"
                if status not in _MAY_PASS:
                    raise error(problem)
            if attempt < self._config.attempts:
                time.sleep(pause)
                pause *= 2
        raise error(f"{problem}; given up after {self._config.attempts} attempts")


def _is_address(url: str) -> bool:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
            and url.isascii()
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        return False


def _object(url: str, content: bytes, error: type[SonaError]) -> dict[str, Any]:
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as cause:
        raise error(f"{url} answered what is no JSON: {cause}") from cause
    if not isinstance(said, dict):
        raise error(f"{url} answered a {type(said).__name__}, expected an object")
    return said
