"""An engine in front of a server that goes away."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest

from sona_pg import SonaEngine, SpaceConfig
from sona_pg.store.server import EmbeddedServer

from .conftest import DIM

SPACE = "outage"


@pytest.fixture
def server(home: Path) -> EmbeddedServer:
    made = EmbeddedServer(home)
    made.start()
    return made


@pytest.fixture
def recorder(home: Path, server: EmbeddedServer) -> Iterator[SonaEngine]:
    """An engine in front of a server of its own."""
    answers = SpaceConfig(strategy="adapted")
    with SonaEngine.connect(home=home, space=SPACE, dim=DIM, background=False, space_config=answers) as made:
        yield made
        server.start()


def _record(engine: SonaEngine, number: int) -> uuid.UUID:
    rng = np.random.default_rng(number)
    query, items = rng.standard_normal((2, DIM)).astype(np.float32), rng.standard_normal((3, DIM)).astype(np.float32)
    builder = engine.start(query[0])
    builder._id = uuid.UUID(int=number)
    for place, item in enumerate(items):
        builder.add_step(item, [0.1], float(place == 1), item_id=str(number % 7 + place), position=place + 1)
    return engine.record(builder)


def _ledger(url: str, space: str = SPACE) -> list[tuple[int, int]]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT trajectory_id, revision FROM sona.ledger WHERE space = %s ORDER BY ordinal", (space,)
        ).fetchall()
    return [(row[0].int, row[1]) for row in rows]
