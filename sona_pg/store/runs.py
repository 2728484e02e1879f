"""Runs of loops: who may run a cycle that is due, and what was committed of it.

The session lock of (space, loop) on the worker's own connection decides who runs a cycle; whoever has it knows that a
row which is still marked as running belongs to a dead worker. The fence decides who may write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from sona_pg.errors import LearningError, LockLost
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, bounded, require_right, translated, writing
from sona_pg.store.errors import storable
from sona_pg.store.schedules import IS_DUE, Due
from sona_pg.store.spaces import Space

CHANNEL = "sona_loop"
"""What is notified when somebody asks for a cycle or sets a schedule: a hint, the poll finds it as well."""

Facts = Mapping[str, Any]
"""What a phase says of what it did: names to values that JSON knows."""


_NEXT_AT = (
    "CASE WHEN planned_at > (SELECT r.started_at FROM sona.loop_run r"
    "  WHERE r.space_id = %(space)s AND r.run_id = %(run)s) THEN next_at END"
)
"""What becomes of the time that a cycle was due at when it ends: one that was set meanwhile is for the next."""


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
        require_right(connection, "run cycles", "sona.loop_run", "INSERT", "UPDATE")
        show_worker(connection, loop, worker)
        # The lock must outlast a long computation, and go soon after a host has vanished.
        for name in ("idle_session_timeout", "idle_in_transaction_session_timeout"):
            connection.execute(f"SET {name} = 0")
        for name, value in {"idle": 5, "interval": 2, "count": 3}.items():
            connection.execute(f"SET tcp_keepalives_{name} = {value}")
        connection.execute(f"LISTEN {CHANNEL}")


def require_learner(connection: Connection) -> None:
    """Refuse a role that may learn in no space, whatever is granted to it: it would find nothing to do for ever.

    Raises
    ------
    PermissionDenied
    """
    require_right(connection, "learn", "sona.learner", "INSERT", "UPDATE")


def show_worker(connection: Connection, loop: str, worker: str) -> None:
    """Let `sona.workers` show a connection as that of a worker."""
    with translated():
        connection.execute("SELECT set_config('application_name', %s, false)", (f"sona worker {loop} {worker}",))


def forget_hints(connection: Connection) -> None:
    """Drop the notifications that have come."""
    for _ in connection.notifies(timeout=0):
        pass


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
        gone = spaces.space_gone(found.name)
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
                f" WHERE x.space_id = %(space)s AND x.loop = %(loop)s AND {IS_DUE}" + returning,
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
        If another worker has claimed the loop since, a user was forgotten so that the cycle begins again, or the space
        is gone.
    """
    with writing(connection):
        row = connection.execute(
            "SELECT fence FROM sona.loop_schedule WHERE space_id = %s AND loop = %s FOR NO KEY UPDATE",
            (run.space.space_id, run.loop),
        ).fetchone()
        if row is None or row[0] != run.fence:
            found = (
                "the space is gone"
                if row is None
                else (
                    f"another worker has claimed it, or a user was forgotten and it begins again, with token {row[0]}"
                )
            )
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


def request(connection: Connection, name: str, loop: str) -> int:
    """Ask for a cycle now; gives its run.

    Raises
    ------
    UnknownSpace, UnknownLoop, PermissionDenied, DatabaseBusy
    """
    with bounded(connection):
        row = connection.execute("SELECT sona.run_cycle(%s, %s)", (name, loop)).fetchone()
    assert row is not None
    return int(row[0])


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
