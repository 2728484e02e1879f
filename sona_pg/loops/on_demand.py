"""A cycle of a slow loop now, in one space, by whoever asks: an application without workers learns by it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any

from sona_pg.errors import DatabaseBusy, LearningError
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.cycle import Loop
from sona_pg.store import runs
from sona_pg.store.database import Database
from sona_pg.store.spaces import Space

_LOOK_SECONDS = 0.05


def learn_now(
    database: Database, space: Space, loop: Loop, wait_seconds: float, stop: threading.Event
) -> Mapping[str, Any]:
    """Run a cycle here; where a worker is at it, wait for what it comes to. A row of `sona.runs`.

    Raises
    ------
    LearningError
        If the cycle has failed; says why. If `stop` is set meanwhile: what is left of it is left to the next worker.
    DatabaseBusy
        If a worker is at it for longer than `wait_seconds`.
    PermissionDenied
        If the role may not run cycles.
    """
    deadline = time.monotonic() + wait_seconds
    with (
        database.connect() as connection,
        contextlib.closing(LoopCoordinator(database, loop, only=space)) as coordinator,
    ):
        run_id = runs.request(connection, space.name, loop.name)
        while True:
            coordinator.step(stop)
            (found,) = runs.latest_runs(connection, space, run_id=run_id)
            if found["state"] == "failed":
                raise LearningError(f"the {loop.name} cycle of space {space.name!r} failed: {found['reason']}")
            if found["finished_at"] is not None:
                return found
            if stop.is_set():
                raise LearningError(
                    f"the engine was closed during the {loop.name} cycle of space {space.name!r}: "
                    "a worker, or the next call, goes on with it"
                )
            if time.monotonic() >= deadline:
                raise DatabaseBusy(
                    f"a worker is at the {loop.name} cycle of space {space.name!r} for {wait_seconds:g} seconds: "
                    "look at sona.runs, and ask again"
                )
            time.sleep(_LOOK_SECONDS)
