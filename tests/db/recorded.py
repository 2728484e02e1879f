"""Events for an engine to record, and how many rows came of them."""

from __future__ import annotations

import uuid

import numpy as np
from numpy.typing import NDArray

from sona_pg import SonaEngine
from sona_pg.store.connection import Connection

from .conftest import DIM

Matrix = NDArray[np.float32]


def _query(rng: np.random.Generator) -> Matrix:
    return rng.standard_normal(DIM).astype(np.float32)


def _count(connection: Connection, table: str, space_id: int) -> int:
    return connection.execute(f"SELECT count(*) FROM sona.{table} WHERE space_id = %s", (space_id,)).fetchall()[0][0]


def _counts(connection: Connection, engine: SonaEngine) -> dict[str, int]:
    tables = ("trajectory", "trajectory_step", "remembered_query", "learning_event", "learning_cycle", "score")
    return {
        table: connection.execute(
            f"SELECT count(*) FROM sona.{table} WHERE space_id = %s", (engine.space.space_id,)
        ).fetchall()[0][0]
        for table in tables
    }


def _another(engine: SonaEngine, **settings: object) -> SonaEngine:
    return SonaEngine.connect(engine.url, space=engine.space.name, background=False, **settings)  # type: ignore[arg-type]


def _record_some(engine: SonaEngine, rng: np.random.Generator, events: int, prefix: int = 0) -> list[uuid.UUID]:
    return [
        engine.record(
            _query(rng), ["1", "2", "3"], [1.0, 0.0, None], trajectory_id=uuid.UUID(int=(prefix << 64) + event)
        )
        for event in range(events)
    ]
