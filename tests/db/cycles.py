"""A cycle of a loop, run in this process."""

from __future__ import annotations

from typing import Any, NamedTuple

from sona_pg.config import StoreConfig
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.cycle import Loop
from sona_pg.store.connection import connect
from sona_pg.store.database import Database


class Cycled(NamedTuple):
    """What became of a cycle; see `sona.runs`."""

    state: str
    facts: dict[str, Any]
    reason: str | None


def run_cycle(url: str, space: str, loop: Loop, store: StoreConfig | None = None) -> Cycled:
    """A cycle that is asked for, with all others that are due."""
    with connect(url) as connection:
        connection.execute("SELECT sona.run_cycle(%s, %s)", (space, loop.name))
        coordinator = LoopCoordinator(Database(url, store or StoreConfig()), loop)
        assert coordinator.step() >= 1
        coordinator.close()
        (found,) = connection.execute(
            "SELECT state, facts, reason FROM sona.runs WHERE space = %s ORDER BY run_id DESC LIMIT 1", (space,)
        ).fetchall()
    return Cycled(*found)
