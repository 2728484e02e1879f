"""An HTTP endpoint that speaks OpenAI's API: one POST of JSON, tried again where that may help."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from sona_pg.config import EndpointConfig
from sona_pg.errors import ConfigError, SonaError

ENV_URL, ENV_KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"

_MAY_PASS = {408, 409, 429, 500, 502, 503, 504}
"""Statuses of which the next attempt may say something else."""


class Endpoint:
    """Where requests go.

    Parameters
    ----------
    config
        Settings; its address and key, where they are empty, are taken from OPENAI_BASE_URL and OPENAI_API_KEY.

    Raises
    ------
    ConfigError
        If there is no address, or one that is not of HTTP.
    """

    def __init__(self, config: EndpointConfig | None = None) -> None:
        self._config = EndpointConfig() if config is None else config
        self.url = (self._config.url or os.environ.get(ENV_URL, "")).rstrip("/")
        self._key = self._config.key or os.environ.get(ENV_KEY, "")
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"the address is {self.url!r}, expected http://… or https://…: give it, or set {ENV_URL}")

    def post(self, path: str, body: Mapping[str, Any], error: type[SonaError]) -> dict[str, Any]:
        """The object that is answered.

        A connection that fails, a time that is over, and a status that may pass (408, 409, 429, 5xx) are tried again,
        `EndpointConfig.attempts` times in all, after a pause that doubles; what is refused otherwise is not.

        Raises
        ------
        SonaError
            `error`, saying why.
        """
        # Here and not above: who asks no endpoint need not have HTTP and TLS in memory.
        import urllib.error
        import urllib.request

        request = urllib.request.Request(
            f"{self.url}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", **({"Authorization": f"Bearer {self._key}"} if self._key else {})},
        )
        pause = self._config.pause_seconds
        for attempt in range(1, self._config.attempts + 1):
            try:
                with urllib.request.urlopen(request, timeout=self._config.timeout_seconds) as answer:
                    said = json.load(answer)
                if not isinstance(said, dict):
                    raise error(f"{self.url}/{path} answered a {type(said).__name__}, expected an object")
                return said
            except urllib.error.HTTPError as refusal:
                reason = refusal.read(500).decode(errors="replace")
                problem = f"{self.url}/{path} answered {refusal.code}: {reason}"
                if refusal.code not in _MAY_PASS:
                    raise error(problem) from refusal
            except (OSError, ValueError) as cause:
                problem = f"{self.url}/{path}: {cause}"
                if isinstance(cause, json.JSONDecodeError):
                    raise error(f"{self.url}/{path} answered what is no JSON: {cause}") from cause
            if attempt < self._config.attempts:
                time.sleep(pause)
                pause *= 2
        raise error(f"{problem}; given up after {self._config.attempts} attempts")
