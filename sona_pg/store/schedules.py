"""Schedules of loops: when one is to learn in a space, and where a cycle is due."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from psycopg.rows import dict_row

from sona_pg.config import ScheduleConfig
from sona_pg.store.connection import Connection, translated
from sona_pg.store.spaces import Space

_MAY_WRITE = (
    "space_id IN (SELECT g.space_id FROM sona.space_grant g WHERE g.may_write AND sona._is_member(g.role_name))"
)
"""Of a table with a space_id: whether this role may write its space. What it may only read is for other workers."""

_IS_UNPLANNED = "(x.next_at IS NULL OR x.planned_at > clock_timestamp())"
"""Of a schedule x: nobody has planned it, or somebody did at a time that is yet to come: the clock went back since."""

IS_DUE = (
    "x.is_enabled AND x.set_aside_at IS NULL"
    " AND (x.next_at <= now() OR l.ordinal - x.consumed >= x.amount)"
    # One that found nothing puts off what is due by amount alone. Nothing is put off for a day: the clock went back.
    " AND (x.retry_at IS NULL OR x.retry_at <= now() OR x.retry_at > now() + interval '1 day'"
    "  OR x.failures = 0 AND x.next_at <= now())"
    # Which function cannot be inlined, and most have none.
    " AND (x.windows = '{}' OR sona._in_windows(x.windows, x.time_zone, now()))"
)
"""Of a schedule x and the learner l of its space: whether a cycle is due by itself."""


class Schedule(NamedTuple):
    """When a loop learns in a space, as somebody sets it: see `sona.set_schedule`."""

    every: str | None
    cron: str | None
    amount: int | None
    windows: tuple[str, ...]
    time_zone: str
    first_at: datetime | None
    is_enabled: bool


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
            f"  WHERE x.loop = %(loop)s AND {IS_DUE}) d"
            " JOIN sona.space s USING (space_id) WHERE s.standby_of IS NULL"
            f" AND d.{_MAY_WRITE} ORDER BY d.class, d.since, d.space_id",
            {"loop": loop},
        ).fetchall()
    # One that is in the list twice is due for the first reason.
    return list({row[0]: Due(*row) for row in reversed(rows)}.values())[::-1]
