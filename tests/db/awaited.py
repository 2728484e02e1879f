"""An engine for asyncio beside a plain one, and what its connections are at."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from psycopg.conninfo import make_conninfo

from sona_pg import AsyncSonaEngine, Recall, SonaEngine
from sona_pg.engine.async_engine import Opening
from sona_pg.store.connection import Connection

WAIT_SECONDS = 30

Vector = NDArray[np.float32]
Open = Callable[..., Opening]


@pytest.fixture
def application() -> str:
    """What the connections of this test are called."""
    return f"async {uuid.uuid4()}"


@pytest.fixture
def own_url(url: str, application: str) -> str:
    """The same database, under that name."""
    return make_conninfo(url, application_name=application)


@pytest.fixture
def opened(own_url: str, space_name: str, engine: SonaEngine) -> Open:
    """Opens an engine for asyncio on the space of `engine`."""

    def open_(**settings: Any) -> Opening:  # noqa: ANN401
        return AsyncSonaEngine.connect(own_url, space=space_name, background=False, **settings)

    return open_


def said(found: Recall) -> tuple[object, ...]:
    """All of an answer but its id."""
    return found.query.tobytes(), found.items, found.answer


async def until(holds: Callable[[], bool]) -> None:
    """Waits in the event loop."""
    for _ in range(WAIT_SECONDS * 100):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about")


def waiting(connection: Connection, application: str) -> int:
    """How many sessions wait for a lock."""
    ((found,),) = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'", (application,)
    ).fetchall()
    return int(found)


def sessions(connection: Connection, application: str) -> list[int]:
    """Processes of the server."""
    return [
        row[0]
        for row in connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s", (application,)
        ).fetchall()
    ]
