"""The statements that the product really sends while tests run, checked as they go."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.sql import Composable

import sona_pg

from .space_predicates import findings

_PRODUCT = str(Path(sona_pg.__file__).parent)
_DRIVER = (str(Path(psycopg.__file__).parent), str(Path(_PRODUCT, "store", "reader.py")))

Cursor = psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]

ACROSS_SPACES = {
    "store/schedules.py:due": "a worker looks for what is due in any space that it may write",
    "store/schedules.py:unplanned": "a worker looks for schedules to plan by, of any space that it may write",
    "store/strategist_standing.py:spaces_unweighed": "the instant worker looks for spaces with events to weigh",
    "store/health.py:items_without_index": "sona doctor looks at the items tables of all spaces",
    "store/observation.py:figures": "metrics and health are of all spaces",
    "store/versions.py:spaces_with_more": "the instant worker looks for spaces with versions to prune",
}
"""Functions that read all spaces, and why they must: none of them is called to answer or to record."""


@dataclass
class Watch:
    """What was sent, and what of it does not say which space it is about."""

    sent: set[tuple[str, str]] = field(default_factory=set)
    """Function of the product, and statement."""
    wrong: list[str] = field(default_factory=list)

    def see(self, statement: str, origin: str) -> None:
        if (origin, statement) in self.sent:
            return
        self.sent.add((origin, statement))
        for found in findings(statement):
            if origin not in ACROSS_SPACES:
                kind = "nothing ties" if found.is_untied else "all spaces are read of"
                self.wrong.append(f"{origin}: {kind} {found.table} in: {statement}")


def _origin() -> str | None:
    """The function of the product that uses the driver; None where a test does."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_DRIVER):
        frame = frame.f_back
    file = frame.f_code.co_filename
    return f"{file[len(_PRODUCT) + 1 :]}:{frame.f_code.co_qualname}" if file.startswith(_PRODUCT) else None


@contextmanager
def watched() -> Iterator[Watch]:
    """Look at every statement that goes through psycopg, of whatever thread of this process."""
    watch = Watch()

    def looked_at(method: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(method)
        def wrapper(
            cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any],
            query: str | Composable,
            *args: object,
            **kwargs: object,
        ) -> object:
            origin = _origin()
            # Migrations are definitions, and the server's own start is before any table.
            if origin is not None and not origin.startswith(("store/migrate.py", "store/server")):
                text = query if isinstance(query, str) else query.as_string(cursor)
                watch.see(text, origin)
            return method(cursor, query, *args, **kwargs)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        # A named cursor has an execute of its own, and declares itself by what the other one does not see.
        every, own = ("execute", "executemany", "copy"), ("execute",)
        for kind, names in (
            (psycopg.Cursor, every),
            (psycopg.ServerCursor, own),
            (psycopg.AsyncCursor, every),
            (psycopg.AsyncServerCursor, own),
        ):
            for name in names:
                patch.setattr(kind, name, looked_at(getattr(kind, name)))
        yield watch
