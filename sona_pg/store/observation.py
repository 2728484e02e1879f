"""What people and dashboards watch: figures of every space, in statements short enough to be asked all the time."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from sona_pg.store.connection import Connection, transaction, translated

DROPPED = "dropped"
"""Source of the entries in `sona.errors` that begin with how many trajectories and scores were dropped."""


@dataclass(frozen=True, slots=True)
class SpaceFigures:
    """What the database knows of a space.

    Parameters
    ----------
    space, key
        Its name, and what names it beyond its database.
    learned, last_learned_at
        Outcome events that changed a weight, and when the last one was learned.
    pending, pending_since
        Trajectories that wait for the instant worker, and since when the one in front does.
    unweighed
        Ledger entries that the strategist has not taken in.
    version, version_at
        The last published version, 0 for none, and when it was published.
    dropped
        Trajectories and scores that processes could not keep, and have counted.
    errors
        Entries in `sona.errors` of the last day.
    """

    space: str
    key: uuid.UUID
    learned: int
    last_learned_at: datetime
    pending: int
    pending_since: datetime | None
    unweighed: int
    version: int
    version_at: datetime | None
    dropped: int
    errors: int


@dataclass(frozen=True, slots=True)
class LiftSoFar:
    """What answers of a space are worth above those of the control arm, with a 95 % confidence sequence."""

    lift: float
    lower: float
    upper: float


def figures(
    connection: Connection, *, limit: int | None = None, name: str | None = None, timeout_seconds: float | None = None
) -> tuple[list[SpaceFigures], int]:
    """Figures of the spaces, of the first `limit` that were created or of one, and how many spaces there are.

    Raises
    ------
    DatabaseBusy
        If the database needs longer than `timeout_seconds`.
    """
    with transaction(connection):
        _limit_time(connection, timeout_seconds)
        rows = connection.execute(
            "SELECT v.space, s.space_key, v.events_learned, v.last_learned_at, v.pending,"
            " (SELECT p.created_at FROM sona.pending_trajectory p WHERE p.space_id = s.space_id"
            "  ORDER BY p.pending_id LIMIT 1), v.unweighed, v.version,"
            " (SELECT a.created_at FROM sona.adapter_version a"
            "  WHERE a.space_id = s.space_id AND a.version = v.version), coalesce(e.dropped, 0), coalesce(e.errors, 0)"
            " FROM (SELECT space_id, name, space_key FROM sona.space WHERE name = coalesce(%(name)s, name)"
            "       ORDER BY space_id LIMIT %(limit)s) s"
            " JOIN sona.status v ON v.space = s.name"
            " LEFT JOIN (SELECT space_id, count(*) FILTER (WHERE created_at > now() - interval '1 day') AS errors,"
            "            sum(CASE source WHEN %(dropped)s THEN substring(message, '^[0-9]{1,15}')::bigint END)::bigint"
            "              AS dropped FROM sona.error_log GROUP BY space_id) e ON e.space_id = s.space_id"
            " ORDER BY v.space",
            {"name": name, "limit": limit, "dropped": DROPPED},
        ).fetchall()
        total = connection.execute("SELECT count(*) FROM sona.space").fetchone()
    return [SpaceFigures(*row) for row in rows], 0 if total is None else int(total[0])


def lifts(connection: Connection, *, timeout_seconds: float | None = None) -> dict[str, LiftSoFar]:
    """The lift of every space in which both arms have answered, by name.

    Raises
    ------
    DatabaseBusy
        If the database needs longer than `timeout_seconds`.
    """
    with transaction(connection):
        _limit_time(connection, timeout_seconds)
        rows = connection.execute(
            "SELECT DISTINCT ON (space) space, lift_so_far, lower, upper FROM sona.lift ORDER BY space, day DESC"
        ).fetchall()
    return {row[0]: LiftSoFar(*row[1:]) for row in rows if None not in row}


def recent_errors(connection: Connection, space: str, limit: int) -> list[tuple[datetime, str, str]]:
    """When, where and what: the newest entries in `sona.errors` of a space, of the last day."""
    with translated():
        return connection.execute(
            "SELECT created_at, source, message FROM sona.errors"
            " WHERE space = %s AND created_at > now() - interval '1 day' ORDER BY created_at DESC LIMIT %s",
            (space, limit),
        ).fetchall()


def _limit_time(connection: Connection, seconds: float | None) -> None:
    if seconds is not None:
        connection.execute("SELECT set_config('statement_timeout', %s, true)", (f"{max(1, round(1000 * seconds))}ms",))
