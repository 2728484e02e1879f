"""Schedules and runs of loops: what is due, who may run it, and what was committed of it.

The session lock of (space, loop) on the worker's own connection decides who runs a cycle; whoever has it knows that a
row which is still marked as running belongs to a dead worker. The fence decides who may write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from sona_pg.config import ScheduleConfig
from sona_pg.errors import LearningError, LockLost, PermissionDenied, UnknownSpace
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, translated, writing
from sona_pg.store.errors import storable
from sona_pg.store.spaces import Space

CHANNEL = "sona_loop"
"""What is notified when somebody asks for a cycle or sets a schedule: a hint, the poll finds it as well."""

Facts = Mapping[str, Any]
"""What a phase says of what it did: names to values that JSON knows."""


_MAY_WRITE = (
    "space_id IN (SELECT g.space_id FROM sona.space_grant g WHERE g.may_write AND sona._is_member(g.role_name))"
)
"""Of a table with a space_id: whether this role may write its space. What it may only read is for other workers."""

_IS_UNPLANNED = "(x.next_at IS NULL OR x.planned_at > clock_timestamp())"
"""Of a schedule x: nobody has planned it, or somebody did at a time that is yet to come: the clock went back since."""

_IS_DUE = (
    "x.is_enabled AND x.set_aside_at IS NULL"
    " AND (x.next_at <= now() OR l.ordinal - x.consumed >= x.amount)"
    # One that found nothing puts off what is due by amount alone. Nothing is put off for a day: the clock went back.
    " AND (x.retry_at IS NULL OR x.retry_at <= now() OR x.retry_at > now() + interval '1 day'"
    "  OR x.failures = 0 AND x.next_at <= now())"
    # Which function cannot be inlined, and most have none.
    " AND (x.windows = '{}' OR sona._in_windows(x.windows, x.time_zone, now()))"
)
"""Of a schedule x and the learner l of its space: whether a cycle is due by itself."""

_NEXT_AT = (
    "CASE WHEN planned_at > (SELECT r.started_at FROM sona.loop_run r"
    "  WHERE r.space_id = %(space)s AND r.run_id = %(run)s) THEN next_at END"
)
"""What becomes of the time that a cycle was due at when it ends: one that was set meanwhile is for the next."""


class Unplanned(NamedTuple):
    """A schedule whose next time is to be found.

    Parameters
    ----------
    space_id
        The space.
    every_seconds, cron, time_zone
        The schedule.
    """

    space_id: int
    every_seconds: float | None
    cron: str | None
    time_zone: str


class Due(NamedTuple):
    """A space in which a cycle is due.

    Parameters
    ----------
    space_id, name
        The space.
    cause
        time, amount, manual; or resume, where a worker died or ended in the middle of one.
    """

    space_id: int
    name: str
    cause: str


@dataclass(slots=True)
class Run:
    """A cycle that this worker has claimed.

    Parameters
    ----------
    space
        The space.
    loop
        Name of the loop.
    run_id, fence
        The row, and the token of the claim.
    attempts
        Claims since its last phase was committed, this one included.
    ordinal
        Ledger entries when it began.
    done
        Names of the phases that are committed.
    facts
        What these said of what they did.
    """

    space: Space
    loop: str
    run_id: int
    fence: int
    attempts: int
    ordinal: int
    done: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def prepare(connection: Connection, loop: str, worker: str) -> None:
    """Make a connection that of a worker: it is seen as one, may idle while Python computes, and hears of requests.

    Raises
    ------
    PermissionDenied
        If the role may not run cycles.
    """
    with translated():
        row = connection.execute(
            "SELECT has_table_privilege('sona.loop_run', 'INSERT') AND has_table_privilege('sona.loop_run', 'UPDATE')"
        ).fetchone()
        if row is None or not row[0]:
            raise PermissionDenied(
                f"the role {connection.info.user!r} may not run cycles: make it a member of sona_worker"
            )
        show_worker(connection, loop, worker)
        # The lock must outlast a long computation, and go soon after a host has vanished.
        for name in ("idle_session_timeout", "idle_in_transaction_session_timeout"):
            connection.execute(f"SET {name} = 0")
        for name, value in {"idle": 5, "interval": 2, "count": 3}.items():
            connection.execute(f"SET tcp_keepalives_{name} = {value}")
        connection.execute(f"LISTEN {CHANNEL}")


def show_worker(connection: Connection, loop: str, worker: str) -> None:
    """Let `sona.workers` show a connection as that of a worker."""
    with translated():
        connection.execute("SELECT set_config('application_name', %s, false)", (f"sona worker {loop} {worker}",))


def ensure_schedules(connection: Connection, loop: str, default: ScheduleConfig) -> int:
    """Give the loop a schedule in the spaces that this role may write and where it has none; how many."""
    with translated():
        return connection.execute(
            "INSERT INTO sona.loop_schedule (space_id, loop, every_seconds, cron, amount)"
            " SELECT s.space_id, %(loop)s, %(every)s, %(cron)s, %(amount)s FROM sona.space s"
            " WHERE s.standby_of IS NULL"
            " AND NOT EXISTS (SELECT FROM sona.loop_schedule x WHERE x.space_id = s.space_id AND x.loop = %(loop)s)"
            f" AND s.{_MAY_WRITE} ON CONFLICT DO NOTHING",
            {"loop": loop, "every": default.every_seconds, "cron": default.cron, "amount": default.amount},
        ).rowcount


def unplanned(connection: Connection, loop: str) -> tuple[datetime, list[Unplanned]]:
    """What time it is, by the database's clock, and the schedules whose next time is to be found.

    These are new ones, and those that were planned at a time that is yet to come: the clock went back since.
    """
    with translated():
        rows = connection.execute(
            "SELECT clock_timestamp(), x.space_id, x.every_seconds, x.cron, x.time_zone"
            " FROM (SELECT) one LEFT JOIN sona.loop_schedule x ON x.loop = %s AND x.is_enabled"
            " AND x.set_aside_at IS NULL AND (x.every_seconds IS NOT NULL OR x.cron IS NOT NULL)"
            f" AND {_IS_UNPLANNED} AND x.{_MAY_WRITE}",
            (loop,),
        ).fetchall()
    return rows[0][0], [Unplanned(*row[1:]) for row in rows if row[1] is not None]


def plan(connection: Connection, loop: str, now: datetime, times: Mapping[Unplanned, datetime]) -> None:
    """Note down when cycles are due next, where the schedule is still the one that says so."""
    with translated():
        connection.execute(
            "UPDATE sona.loop_schedule x SET next_at = t.next_at, planned_at = %(now)s"
            " FROM unnest(%(ids)s::bigint[], %(every)s::double precision[], %(crons)s::text[], %(zones)s::text[],"
            "  %(times)s::timestamptz[]) t (space_id, every_seconds, cron, time_zone, next_at)"
            f" WHERE x.space_id = t.space_id AND x.loop = %(loop)s AND {_IS_UNPLANNED}"
            " AND (x.every_seconds, x.cron, x.time_zone) IS NOT DISTINCT FROM (t.every_seconds, t.cron, t.time_zone)",
            {
                "now": now,
                "loop": loop,
                "ids": [schedule.space_id for schedule in times],
                "every": [schedule.every_seconds for schedule in times],
                "crons": [schedule.cron for schedule in times],
                "zones": [schedule.time_zone for schedule in times],
                "times": list(times.values()),
            },
        )


def forget_hints(connection: Connection) -> None:
    """Drop the notifications that have come."""
    for _ in connection.notifies(timeout=0):
        pass


def due(connection: Connection, loop: str) -> list[Due]:
    """Where a cycle is due, the one that waits longest first; what somebody asked for comes before all."""
    with translated():
        rows = connection.execute(
            "SELECT d.space_id, s.name, d.cause FROM ("
            " SELECT r.space_id, 'manual' AS cause, r.requested_at AS since, 0 AS class FROM sona.loop_run r"
            "  WHERE r.loop = %(loop)s AND r.state = 'requested'"
            " UNION ALL"
            " SELECT r.space_id, 'resume', r.started_at, 1 FROM sona.loop_run r"
            "  WHERE r.loop = %(loop)s AND r.state = 'running'"
            " UNION ALL"
            " SELECT x.space_id, CASE WHEN x.next_at <= now() THEN 'time' ELSE 'amount' END,"
            "  least(x.next_at, now()), 2 FROM sona.loop_schedule x JOIN sona.learner l USING (space_id)"
            f"  WHERE x.loop = %(loop)s AND {_IS_DUE}) d"
            " JOIN sona.space s USING (space_id) WHERE s.standby_of IS NULL"
            f" AND d.{_MAY_WRITE} ORDER BY d.class, d.since, d.space_id",
            {"loop": loop},
        ).fetchall()
    # One that is in the list twice is due for the first reason.
    return list({row[0]: Due(*row) for row in reversed(rows)}.values())[::-1]


def try_lock(connection: Connection, space_id: int, loop: str) -> bool:
    """Take the lock of a loop in a space, for as long as the connection lives; false if another worker has it."""
    with translated():
        row = connection.execute("SELECT pg_try_advisory_lock(sona._loop_key(%s, %s))", (space_id, loop)).fetchone()
    return row is not None and bool(row[0])


def unlock(connection: Connection, space_id: int, loop: str) -> None:
    """Give the lock back."""
    with translated():
        connection.execute("SELECT pg_advisory_unlock(sona._loop_key(%s, %s))", (space_id, loop))


def claim(connection: Connection, found: Due, loop: str, worker: str) -> Run | None:
    """Begin the cycle that is due, or go on with the one that was interrupted; None if it is due no more.

    Whoever calls it has the lock.

    Raises
    ------
    UnknownSpace
        If the space is gone.
    """
    key: dict[str, object] = {"space": found.space_id, "loop": loop, "worker": worker}
    with writing(connection):
        gone = UnknownSpace(f"space {found.name!r} is gone: somebody deleted it")
        space = spaces.find_space(connection, found.name)
        if space is None or space.space_id != found.space_id:
            raise gone
        # A loop that somebody asks for in a space that no worker has looked at yet has no schedule there.
        connection.execute(
            "INSERT INTO sona.loop_schedule (space_id, loop) VALUES (%(space)s, %(loop)s) ON CONFLICT DO NOTHING", key
        )
        row = connection.execute(
            "UPDATE sona.loop_schedule SET fence = fence + 1 WHERE space_id = %(space)s AND loop = %(loop)s"
            " RETURNING fence",
            key,
        ).fetchone()
        if row is None:
            raise gone  # since the statement before
        key["fence"] = row[0]
        claimed = (
            "state = 'running', worker = %(worker)s, fence = %(fence)s, attempts = attempts + 1,"
            " started_at = coalesce(started_at, clock_timestamp()), claimed_at = clock_timestamp(),"
            " ordinal = CASE WHEN started_at IS NULL THEN (SELECT l.ordinal FROM sona.learner l"
            "  WHERE l.space_id = %(space)s) ELSE ordinal END"
        )
        returning = " RETURNING run_id, fence, attempts, ordinal, phases, facts"
        run = connection.execute(
            f"UPDATE sona.loop_run SET {claimed} WHERE space_id = %(space)s AND loop = %(loop)s AND state = 'running'"
            + returning,
            key,
        ).fetchone()
        if run is None and found.cause == "manual":
            run = connection.execute(
                f"UPDATE sona.loop_run SET {claimed} WHERE space_id = %(space)s AND loop = %(loop)s"
                " AND state = 'requested'" + returning,
                key,
            ).fetchone()
        elif run is None and found.cause in ("time", "amount"):
            # Between the look and the lock another worker may have done it, or failed, and a window have closed.
            run = connection.execute(
                "INSERT INTO sona.loop_run AS r (space_id, loop, cause, state, worker, fence, attempts, ordinal,"
                " started_at, claimed_at)"
                " SELECT x.space_id, x.loop, %(cause)s, 'running', %(worker)s, %(fence)s, 1, l.ordinal,"
                " clock_timestamp(), clock_timestamp() FROM sona.loop_schedule x JOIN sona.learner l USING (space_id)"
                f" WHERE x.space_id = %(space)s AND x.loop = %(loop)s AND {_IS_DUE}" + returning,
                key | {"cause": found.cause},
            ).fetchone()
    if run is None:
        return None
    run_id, fence, attempts, ordinal, phases, facts = run
    return Run(space, loop, run_id, fence, attempts, ordinal, [phase["name"] for phase in phases], dict(facts))


@contextlib.contextmanager
def reading(connection: Connection, phase: str) -> Iterator[None]:
    """Around what a phase reads: errors are ours, and no transaction is left, in which nothing after it would commit.

    Raises
    ------
    LearningError
        If the phase left one.
    """
    try:
        with translated():
            yield
        if connection.info.transaction_status == TransactionStatus.INTRANS:
            raise LearningError(f"phase {phase!r} read in a transaction and left it open: end it where it was begun")
    finally:
        if connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            with translated():
                connection.rollback()


@contextlib.contextmanager
def fenced(connection: Connection, run: Run) -> Iterator[Connection]:
    """A transaction in which the claim holds; commits at the end, rolls back on any error.

    Raises
    ------
    LockLost
        If another worker has claimed the loop since, or the space is gone.
    """
    with writing(connection):
        row = connection.execute(
            "SELECT fence FROM sona.loop_schedule WHERE space_id = %s AND loop = %s FOR NO KEY UPDATE",
            (run.space.space_id, run.loop),
        ).fetchone()
        if row is None or row[0] != run.fence:
            found = "the space is gone" if row is None else f"another worker has claimed it, with token {row[0]}"
            raise LockLost(
                f"the {run.loop} cycle {run.run_id} of space {run.space.name!r} is not this worker's any more: {found},"
                f" expected {run.fence}; what it computed is not written"
            )
        yield connection


def write_phase(connection: Connection, run: Run, phase: Mapping[str, object], facts: Facts) -> None:
    """Note down, in the transaction that writes what it found, that a phase is done."""
    connection.execute(
        "UPDATE sona.loop_run SET phases = phases || %s, facts = facts || %s, attempts = 1"
        " WHERE space_id = %s AND run_id = %s",
        (Jsonb([phase]), Jsonb(dict(facts)), run.space.space_id, run.run_id),
    )


def finish(connection: Connection, run: Run, keep_runs: int) -> None:
    """End a cycle that is done: the next one is to be planned."""
    _end(connection, run, "done", None, keep_runs)
    connection.execute(
        f"UPDATE sona.loop_schedule SET next_at = {_NEXT_AT}, failures = 0, retry_at = NULL, set_aside_at = NULL,"
        # As it is by now: whoever forgets a user makes the ledger shorter.
        " consumed = greatest(consumed, (SELECT r.ordinal FROM sona.loop_run r"
        "  WHERE r.space_id = %(space)s AND r.run_id = %(run)s)) WHERE space_id = %(space)s AND loop = %(loop)s",
        {"space": run.space.space_id, "loop": run.loop, "run": run.run_id},
    )


def skip(connection: Connection, run: Run, reason: str, again_seconds: float, keep_runs: int) -> None:
    """End a cycle that found nothing to do, and has consumed nothing: what is due by amount is due again later."""
    _end(connection, run, "skipped", reason, keep_runs)
    connection.execute(
        f"UPDATE sona.loop_schedule SET next_at = {_NEXT_AT}, failures = 0, set_aside_at = NULL,"
        " retry_at = clock_timestamp() + make_interval(secs => %(again)s)"
        " WHERE space_id = %(space)s AND loop = %(loop)s",
        {"space": run.space.space_id, "loop": run.loop, "run": run.run_id, "again": again_seconds},
    )


def fail(
    connection: Connection,
    run: Run,
    reason: str,
    set_aside_after: int | None,
    longest_seconds: float,
    keep_runs: int,
) -> bool:
    """End a cycle that failed: it is tried again later, and later still; whether the loop is set aside in the space.

    With `set_aside_after` None it is not for that.
    """
    _end(connection, run, "failed", reason, keep_runs)
    row = connection.execute(
        "UPDATE sona.loop_schedule SET failures = failures + 1,"
        " retry_at = clock_timestamp() + make_interval(secs => least(2.0 ^ least(failures + 1, 20), %(longest)s)),"
        " set_aside_at = CASE WHEN failures + 1 >= %(most)s::int THEN clock_timestamp() ELSE set_aside_at END"
        " WHERE space_id = %(space)s AND loop = %(loop)s RETURNING set_aside_at IS NOT NULL",
        {
            "space": run.space.space_id,
            "loop": run.loop,
            "most": set_aside_after,
            "longest": longest_seconds,
        },
    ).fetchone()
    return row is not None and bool(row[0])


def _end(connection: Connection, run: Run, state: str, reason: str | None, keep_runs: int) -> None:
    """Note down how a cycle ended, and delete the oldest that are more than `keep_runs`."""
    connection.execute(
        "UPDATE sona.loop_run SET state = %s, reason = %s, finished_at = clock_timestamp()"
        " WHERE space_id = %s AND run_id = %s",
        (state, None if reason is None else storable(reason), run.space.space_id, run.run_id),
    )
    connection.execute(
        "DELETE FROM sona.loop_run WHERE space_id = %(space)s AND loop = %(loop)s AND finished_at IS NOT NULL"
        " AND run_id <= (SELECT run_id FROM sona.loop_run WHERE space_id = %(space)s AND loop = %(loop)s"
        "  ORDER BY run_id DESC OFFSET %(keep)s LIMIT 1)",
        {"space": run.space.space_id, "loop": run.loop, "keep": keep_runs},
    )


def leave(connection: Connection, run: Run) -> None:
    """Leave a cycle to the next worker, who goes on after the last phase that is committed."""
    connection.execute(
        "UPDATE sona.loop_run SET worker = NULL, attempts = attempts - 1 WHERE space_id = %s AND run_id = %s",
        (run.space.space_id, run.run_id),
    )


def set_schedule_aside(connection: Connection, schedule: Unplanned, loop: str) -> bool:
    """Let no cycle be due by itself, since the schedule says nothing; false if it is another one by now."""
    with translated():
        return bool(
            connection.execute(
                "UPDATE sona.loop_schedule SET set_aside_at = clock_timestamp() WHERE space_id = %s AND loop = %s"
                " AND (cron, time_zone) IS NOT DISTINCT FROM (%s::text, %s::text)",
                (schedule.space_id, loop, schedule.cron, schedule.time_zone),
            ).rowcount
        )


def request(connection: Connection, name: str, loop: str) -> int:
    """Ask for a cycle now; gives its run.

    Raises
    ------
    UnknownSpace, UnknownLoop, PermissionDenied
    """
    with translated():
        row = connection.execute("SELECT sona.run_cycle(%s, %s)", (name, loop)).fetchone()
    assert row is not None
    return int(row[0])


class Schedule(NamedTuple):
    """When a loop learns in a space, as somebody sets it: see `sona.set_schedule`."""

    every: str | None
    cron: str | None
    amount: int | None
    windows: tuple[str, ...]
    time_zone: str
    first_at: datetime | None
    is_enabled: bool


def set_schedule(connection: Connection, space: Space, loop: str, schedule: Schedule) -> None:
    """Set when a loop learns in a space.

    Raises
    ------
    UnknownLoop, ConfigError, InvalidInput, PermissionDenied
    """
    with translated():
        connection.execute(
            "SELECT sona.set_schedule(%s, %s, %s::interval, %s, %s, %s, %s, %s::timestamp AT TIME ZONE 'UTC', %s)",
            (space.name, loop, schedule.every, schedule.cron, schedule.amount, list(schedule.windows))
            + (schedule.time_zone, schedule.first_at, schedule.is_enabled),
        )


def schedules(connection: Connection, space: Space) -> list[dict[str, Any]]:
    """When the loops learn in a space, what waits for them, and why one does not; as `sona.schedules`."""
    with translated(), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT * FROM sona.schedules WHERE space = %s ORDER BY loop", (space.name,)).fetchall()


def latest_runs(
    connection: Connection, space: Space, *, last: int = 1, run_id: int | None = None
) -> list[dict[str, Any]]:
    """The last runs in a space, newest first, or one of them; as `sona.runs`."""
    with translated(), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "SELECT * FROM sona.runs WHERE space = %(space)s AND (%(run)s::bigint IS NULL OR run_id = %(run)s)"
            " ORDER BY run_id DESC LIMIT %(last)s",
            {"space": space.name, "run": run_id, "last": last},
        ).fetchall()
