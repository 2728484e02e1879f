"""For tests of loops, which run in every space: what a test leaves is not the next one's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sona_pg.store.connection import Connection, connect


@pytest.fixture
def connection(module_url: str) -> Iterator[Connection]:
    with connect(module_url) as opened:
        yield opened
        for (name,) in opened.execute("SELECT name FROM sona.space").fetchall():
            opened.execute("SELECT sona.drop_space(%s)", (name,))
