"""Logs of the command line: `SONA_LOG` says from which level on, and whether as text or as lines of JSON."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime

from sona_pg.errors import ConfigError
from sona_pg.telemetry import current_cycle

ENV_LOG = "SONA_LOG"

_FORMATS = ("TEXT", "JSON")

_identity: dict[str, str] = {}


def identify(worker: str, loop: str) -> None:
    """Say in every line of JSON which worker it is of, and what that runs."""
    _identity.update(worker=worker, loop=loop)


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON.

    `worker`, `loop` and `space` are there where they are known: from `extra=`, from the cycle that the thread is inside
    of, or from `identify`, the first that knows.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, str] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = dict(_identity)
        if (cycle := current_cycle()) is not None:
            fields |= {"loop": cycle.loop, "space": cycle.space}
        for name in ("worker", "loop", "space"):
            value = getattr(record, name, fields.get(name))
            if value is not None:
                line[name] = str(value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure() -> None:
    """Log to stderr as `SONA_LOG` says: a level, a format, or both with a comma between, like info or debug,json.

    Raises
    ------
    ConfigError
        If it says anything else.
    """
    given = os.environ.get(ENV_LOG, "").upper()
    words = [word.strip() for word in given.split(",")] if given else []
    levels = [word for word in words if word in logging.getLevelNamesMapping()]
    forms = [word for word in words if word in _FORMATS]
    if len(levels) > 1 or len(forms) > 1 or len(levels) + len(forms) < len(words):
        raise ConfigError(
            f"{ENV_LOG} is {given!r}, expected DEBUG, INFO, WARNING or ERROR, with ',json' behind it for lines of JSON"
        )
    level, form = (levels or ["WARNING"])[0], (forms or ["TEXT"])[0]
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter() if form == "JSON" else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level, handlers=[handler])
