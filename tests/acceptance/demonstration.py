"""A loop that exercises the frame: it copies the ledger entries it has not seen, then sums them up.

Its tables have no keys, so that whatever is written twice is there twice. This file is run
with a URL as a worker; SIGTERM ends it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from sona_pg.config import ScheduleConfig, StoreConfig, WorkerConfig
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.cycle import Cycle, Loop, Phase, Skipped
from sona_pg.signals import stop_at_signals
from sona_pg.store.connection import Connection
from sona_pg.store.database import Database

NAME = "demonstration"

DEAF_SECONDS = 1000.0
"""A computation that is told to take longer does not look whether its worker is to end."""

TABLES = (
    "CREATE TABLE IF NOT EXISTS public.demonstration_entry (space_id bigint, run_id bigint, ordinal bigint)",
    "CREATE TABLE IF NOT EXISTS public.demonstration_sum (space_id bigint, run_id bigint, entries int, total bigint)",
    "CREATE TABLE IF NOT EXISTS public.demonstration_order (space_id bigint, seconds float, fault text)",
)
"""What a space is told to do by the last: to take so many seconds in its computation, and to fail in it."""


def _read_entries(connection: Connection, cycle: Cycle) -> tuple[list[int], float, str | None]:
    space_id = cycle.space.space_id
    rows = connection.execute(
        "SELECT ordinal FROM sona.learning_event WHERE space_id = %(space)s AND loop = 'instant' AND ordinal < %(end)s"
        " AND ordinal > (SELECT coalesce(max(ordinal), -1) FROM public.demonstration_entry WHERE space_id = %(space)s)",
        {"space": space_id, "end": cycle.run.ordinal},
    ).fetchall()
    told = connection.execute(
        "SELECT coalesce(max(seconds), 0), max(fault) FROM public.demonstration_order WHERE space_id = %s", (space_id,)
    ).fetchall()
    return [ordinal for (ordinal,) in rows], *told[0]


def _choose_entries(found: tuple[list[int], float, str | None], cycle: Cycle) -> list[int]:
    entries, seconds, fault = found
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if seconds < DEAF_SECONDS:
            cycle.check_stop()
        time.sleep(min(0.01, seconds))
    if fault is not None:
        raise ValueError(fault)
    if not entries:
        raise Skipped("no new entries")
    return entries


def _write_entries(connection: Connection, entries: list[int], cycle: Cycle) -> Mapping[str, int]:
    connection.execute(
        "INSERT INTO public.demonstration_entry SELECT %s, %s, unnest(%s::bigint[])",
        (cycle.space.space_id, cycle.run.run_id, entries),
    )
    return {"entries": len(entries)}


def _read_copied(connection: Connection, cycle: Cycle) -> list[int]:
    rows = connection.execute(
        "SELECT ordinal FROM public.demonstration_entry WHERE space_id = %s AND run_id = %s",
        (cycle.space.space_id, cycle.run.run_id),
    ).fetchall()
    return [ordinal for (ordinal,) in rows]


def _sum_up(entries: list[int], _: Cycle) -> tuple[int, int]:
    return len(entries), sum(entries)


def _write_sum(connection: Connection, found: tuple[int, int], cycle: Cycle) -> Mapping[str, int]:
    connection.execute(
        "INSERT INTO public.demonstration_sum VALUES (%s, %s, %s, %s)",
        (cycle.space.space_id, cycle.run.run_id, *found),
    )
    return {"total": found[1]}


DEMONSTRATION = Loop(
    NAME,
    ScheduleConfig(amount=1),
    (
        Phase("copy", _read_entries, _choose_entries, _write_entries),
        Phase("sum", _read_copied, _sum_up, _write_sum),
    ),
)


def main() -> None:
    """A worker of the loop."""
    stop = stop_at_signals(float(os.environ.get("DRAIN_SECONDS", "30")))
    # Chaos kills more workers at one phase than would die at it in earnest.
    config = WorkerConfig(poll_interval_seconds=0.5, attempts=1000, longest_setback_seconds=1.0)
    coordinator = LoopCoordinator(Database(sys.argv[1], StoreConfig()), DEMONSTRATION, config)
    coordinator.run(stop)
    coordinator.close()


if __name__ == "__main__":
    main()
