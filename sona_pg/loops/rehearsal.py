"""A cycle that is only tried: it runs as it would, what it changes is seen, and all of it is undone."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from sona_pg.errors import DatabaseBusy, LearningError
from sona_pg.loops.cycle import Cycle, Loop, Skipped
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store import runs, spaces
from sona_pg.store.connection import translated
from sona_pg.store.database import Database
from sona_pg.store.memory_changes import MemoryChange, memory_changes, remember_memory
from sona_pg.store.schedules import Due


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a cycle would do.

    Parameters
    ----------
    facts
        By phase what it says of what it did; of a cycle that would be skipped, why.
    changes
        Every node and every edge of the memory graph that would be there, would go, or would be another one.
    """

    facts: dict[str, Any]
    changes: list[MemoryChange]


def rehearse(database: Database, loop: Loop, name: str) -> Rehearsal:
    """Run a cycle of the deep loop in a transaction that is rolled back.

    What is learned, scheduled or deployed in the space meanwhile waits for it.

    Parameters
    ----------
    name
        Of the space.

    Raises
    ------
    UnknownSpace, PermissionDenied
        If there is no such space, or this role may not run cycles.
    DatabaseBusy
        If a worker runs a cycle of the loop there, or the locks of the space are not to be had.
    """
    with database.connect() as connection:
        space = spaces.get_space(connection, name)
        runs.prepare(connection, loop.name, SpaceStore.worker_name())
        if not runs.try_lock(connection, space.space_id, loop.name):
            raise DatabaseBusy(f"a cycle of the {loop.name} loop is at work in space {name!r}: try again later")
        with translated(), connection.transaction(force_rollback=True):
            # All at once: a cycle locks the learner late, and its own request has locked the strategist by then.
            spaces.lock_space(connection, space)
            runs.request(connection, name, loop.name)
            due = Due(space.space_id, name, "manual")
            run = runs.claim(connection, due, loop.name, SpaceStore.worker_name())
            if run is None:
                raise LearningError(f"the {loop.name} loop of space {name!r} has just run: try again")
            # One that was interrupted goes on; what it has committed is there already.
            cycle = Cycle(run, database.config, threading.Event(), database.url)
            remember_memory(connection, space)
            facts: dict[str, Any] = {}
            try:
                for phase in loop.phases:
                    if phase.name not in run.done:
                        found = phase.read(connection, cycle)
                        facts.update(phase.write(connection, phase.compute(found, cycle), cycle))
            except Skipped as reason:
                return Rehearsal({"skipped": str(reason)}, [])
            return Rehearsal(facts, memory_changes(connection, space))
