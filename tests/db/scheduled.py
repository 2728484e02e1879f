"""Spaces with slow loops that are due, workers that run them, and what is noted down of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sona_pg import StoreConfig
from sona_pg.config import WorkerConfig
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.cycle import Loop
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from tests.acceptance import demonstration
from tests.acceptance.demonstration import DEMONSTRATION, TABLES

CONFIG = WorkerConfig(poll_interval_seconds=0.05, set_aside_after=2, attempts=2, longest_setback_seconds=1.0)


@pytest.fixture(scope="module")
def loops_url(make_database: Callable[[], str]) -> str:
    from sona_pg.store.migrate import migrate

    made = make_database()
    migrate(made)
    with connect(made) as connection:
        for statement in TABLES:
            connection.execute(statement)
    return made


@pytest.fixture
def connection(loops_url: str) -> Iterator[Connection]:
    with connect(loops_url) as opened:
        yield opened
        # A loop runs in every space: what a test leaves is not the next one's.
        for (name,) in opened.execute("SELECT name FROM sona.space").fetchall():
            opened.execute("SELECT sona.drop_space(%s)", (name,))
        opened.execute("TRUNCATE public.demonstration_entry, public.demonstration_sum, public.demonstration_order")


@pytest.fixture
def coordinate(loops_url: str) -> Iterator[Callable[..., LoopCoordinator]]:
    made: list[LoopCoordinator] = []

    def make(loop: Loop = DEMONSTRATION, config: WorkerConfig = CONFIG) -> LoopCoordinator:
        made.append(LoopCoordinator(Database(loops_url, StoreConfig()), loop, config))
        return made[-1]

    yield make
    for coordinator in made:
        coordinator.close()


def _space(connection: Connection, entries: int = 3) -> str:
    name = f"loops-{uuid.uuid4().hex[:8]}"
    connection.execute("SELECT sona.create_space(%s, 2)", (name,))
    _add(connection, name, entries)
    return name


def _add(connection: Connection, space: str, entries: int) -> None:
    """Ledger entries, as if learned."""
    connection.execute(
        "WITH l AS (UPDATE sona.learner l SET ordinal = ordinal + %(n)s FROM sona.space s"
        " WHERE s.name = %(space)s AND s.space_id = l.space_id RETURNING l.space_id, l.ordinal)"
        " INSERT INTO sona.learning_event (space_id, loop, trajectory_id, revision, cycle_id, ordinal, learned)"
        " SELECT l.space_id, 'instant', gen_random_uuid(), 0, 1, l.ordinal - i, 'adapter'"
        " FROM l, generate_series(1, %(n)s) i",
        {"space": space, "n": entries},
    )


def _tell(connection: Connection, space: str, *, seconds: float = 0.0, fault: str | None = None) -> None:
    connection.execute("DELETE FROM public.demonstration_order o USING sona.space s WHERE s.name = %s"
                       " AND s.space_id = o.space_id", (space,))  # fmt: skip
    connection.execute(
        "INSERT INTO public.demonstration_order SELECT space_id, %s, %s FROM sona.space WHERE name = %s",
        (seconds, fault, space),
    )


def _runs(connection: Connection, space: str, columns: str = "state") -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT {columns} FROM sona.runs WHERE space = %s ORDER BY run_id", (space,)).fetchall()


def _copied(connection: Connection, space: str) -> list[int]:
    rows = connection.execute(
        "SELECT e.ordinal FROM public.demonstration_entry e JOIN sona.space s USING (space_id) WHERE s.name = %s"
        " ORDER BY e.ordinal",
        (space,),
    ).fetchall()
    return [ordinal for (ordinal,) in rows]


def _sums(connection: Connection, space: str) -> list[tuple[int, int]]:
    return connection.execute(
        "SELECT m.entries, m.total FROM public.demonstration_sum m JOIN sona.space s USING (space_id) WHERE s.name = %s"
        " ORDER BY m.run_id",
        (space,),
    ).fetchall()


def _until(so: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline, f"after {seconds} s, still waiting for {what}"
        time.sleep(0.02)


def _worker(url: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, demonstration.__file__, url],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
