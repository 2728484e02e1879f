"""What is asked of a database to find out what is wrong with an installation. Nothing is changed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sona_pg.store.connection import Connection, translated

ROLES = ("sona_reader", "sona_app", "sona_worker")

UPDATE_PGVECTOR = "ALTER EXTENSION vector UPDATE"


@dataclass(frozen=True, slots=True)
class Rights:
    """What the login may do in schema sona.

    Parameters
    ----------
    login
        Its name.
    missing_roles
        Roles that `sona migrate` makes and that are not there.
    may_read, may_learn
        Whether it has the rights of a reader, and those of a worker.
    """

    login: str
    missing_roles: list[str]
    may_read: bool
    may_learn: bool

    @property
    def grant(self) -> str:
        """The statement by which the login may learn."""
        login = self.login.replace('"', '""')
        return f'GRANT sona_worker TO "{login}"'

    @property
    def make_roles(self) -> str:
        """The statements that make what is missing; `sona migrate` does the rest."""
        return "; ".join(f"CREATE ROLE {role} NOLOGIN" for role in self.missing_roles)


@dataclass(frozen=True, slots=True)
class Index:
    """An index that is missing or invalid, or the space or table that lacks it, and the statement that mends it."""

    name: str
    statement: str


@dataclass(frozen=True, slots=True)
class Frozen:
    """A space whose answers were worth less than the control arm's, and that answers as the frozen embedding since."""

    space: str
    strategy: str
    since: datetime


def server_versions(connection: Connection) -> tuple[str, str | None]:
    """The version of Postgres, and that of pgvector in this database; None where it is not created."""
    with translated():
        row = connection.execute(
            "SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'vector')"
        ).fetchone()
    assert row is not None
    return row[0], row[1]


def rights(connection: Connection) -> Rights:
    """What the login may do in schema sona, of which `sona migrate` has made the tables."""
    with translated():
        row = connection.execute(
            "SELECT current_user, ARRAY(SELECT r FROM unnest(%s::text[]) r WHERE to_regrole(r) IS NULL), u.may,"
            " u.may AND has_table_privilege(c.oid, 'SELECT'), u.may AND has_table_privilege(l.oid, 'UPDATE')"
            " FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'space'"
            " JOIN pg_class l ON l.relnamespace = n.oid AND l.relname = 'learner',"
            " LATERAL (SELECT has_schema_privilege(n.oid, 'USAGE') AS may) u WHERE n.nspname = 'sona'",
            (list(ROLES),),
        ).fetchone()
        if row is None:
            return Rights(connection.info.user, [], True, True)  # there is nothing yet that could be refused
    login, missing, may_use, may_read, may_learn = row
    return Rights(login, list(missing), may_use and may_read, may_use and may_learn)


def clock_ahead_seconds(connection: Connection) -> tuple[float, float]:
    """By how much the clock of the database is ahead of this machine's, and how uncertain that is."""
    with translated():
        connection.execute("SELECT clock_timestamp()")  # the first one may wait for anything
        before = time.time()
        row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        after = time.time()
    assert row is not None
    return row[0] - (before + after) / 2, (after - before) / 2


def invalid_indexes(connection: Connection) -> list[Index]:
    """Indexes of schema sona that are not used: their making was cut off. Those that are being made are no fault."""
    with translated():
        rows = connection.execute(
            "SELECT c.oid::regclass::text FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid"
            " WHERE c.relnamespace = 'sona'::regnamespace AND NOT (x.indisvalid AND x.indisready)"
            " AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = c.oid) ORDER BY 1"
        ).fetchall()
    return [Index(name, f"REINDEX INDEX CONCURRENTLY {name}") for (name,) in rows]


def missing_indexes(connection: Connection) -> list[Index]:
    """Indexes and primary keys that a migration has made, and that are not there any more."""
    # SQLAlchemy is needed for nothing else that a worker or an application does.
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import AddConstraint, CreateIndex

    from sona_pg.store.schema import metadata

    with translated():
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'sona'::regnamespace AND relkind IN ('i', 'I')"
        ).fetchall()
    there, dialect = {row[0] for row in rows}, postgresql.dialect()  # type: ignore[no-untyped-call]
    found = []
    for table in metadata.sorted_tables:
        if (name := str(table.primary_key.name)) not in there:
            found.append(Index(name, str(AddConstraint(table.primary_key).compile(dialect=dialect)).strip()))
        for index in sorted(table.indexes, key=lambda each: str(each.name)):
            if str(index.name) not in there:
                found.append(Index(str(index.name), str(CreateIndex(index).compile(dialect=dialect)).strip()))
    return found


def spaces_without_index(connection: Connection) -> list[Index]:
    """Spaces whose HNSW index is gone, though their queries are marked as in it: every answer reads them all."""
    with translated():
        rows = connection.execute(
            "SELECT s.name, format('SELECT sona.admit_queries(%L, 0)', s.name) FROM sona.space s"
            " WHERE sona._queries_index(s.space_id) IS NULL"
            " AND EXISTS (SELECT FROM sona.remembered_query r WHERE r.space_id = s.space_id AND r.admitted)"
            " ORDER BY s.space_id"
        ).fetchall()
    return [Index(*row) for row in rows]


def patterns_without_index(connection: Connection, rows_from: int) -> list[Index]:
    """Spaces with more than so many patterns and no HNSW index: every search reads them all."""
    with translated():
        rows = connection.execute(
            "SELECT s.name, format('SELECT sona.index_patterns(%%L, %%s)', s.name, %(rows)s::bigint) FROM sona.space s"
            " WHERE s.dim <= 4000 AND sona._vectors_index('pattern', s.space_id) IS NULL"
            " AND (SELECT count(*) FROM (SELECT FROM sona.pattern p WHERE p.space_id = s.space_id"
            "  LIMIT %(rows)s::bigint + 1) few) > %(rows)s::bigint"
            " ORDER BY s.space_id",
            {"rows": rows_from},
        ).fetchall()
    return [Index(*row) for row in rows]


def items_without_index(connection: Connection, rows_from: int) -> list[Index]:
    """Items tables with more than so many rows and no vector index: every answer reads them all."""
    with translated():
        rows = connection.execute(
            "SELECT DISTINCT t.oid::regclass::text, format('CREATE INDEX CONCURRENTLY ON %%s USING hnsw (%%I"
            " vector_cosine_ops)', t.oid::regclass, i.embedding_column)"
            " FROM sona.item_source i JOIN pg_class t ON t.oid = i.items WHERE t.relkind IN ('r', 'm')"
            " AND t.reltuples > %s AND NOT EXISTS (SELECT FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid"
            "  JOIN pg_am m ON m.oid = c.relam WHERE x.indrelid = t.oid AND m.amname IN ('hnsw', 'ivfflat'))"
            " ORDER BY 1",
            (rows_from,),
        ).fetchall()
    return [Index(*row) for row in rows]


def connected_workers(connection: Connection, application: str) -> int:
    """How many connections to this database call themselves `application`; a pooler may hide some."""
    with translated():
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND (application_name = %s OR starts_with(application_name, %s))",
            (application, f"{application} "),
        ).fetchone()
    return 0 if row is None else int(row[0])


def frozen_by_harm(connection: Connection) -> list[Frozen]:
    """Spaces that were frozen since answers were worth less than those of the control arm, and still are."""
    with translated():
        rows = connection.execute(
            "SELECT s.name, s.frozen_from, d.created_at FROM sona.space s CROSS JOIN LATERAL ("
            "  SELECT x.created_at FROM sona.deployment x WHERE x.space_id = s.space_id AND x.action = 'freeze'"
            "  ORDER BY x.deployment_id DESC LIMIT 1) d"
            " WHERE s.strategy = 'frozen' AND s.frozen_from IS NOT NULL"
            # Whoever froze it by hand knows; the loop writes both entries in one transaction.
            " AND EXISTS (SELECT FROM sona.error_log e"
            "  WHERE e.space_id = s.space_id AND e.source = 'lift' AND e.created_at = d.created_at)"
            " ORDER BY s.space_id"
        ).fetchall()
    return [Frozen(*row) for row in rows]


class HeldUp(NamedTuple):
    """A loop that does not learn in a space.

    Parameters
    ----------
    space, loop
        Where, and which.
    seconds
        For how long.
    reason
        Why it was set aside; None where a cycle waits and no worker of the loop is connected.
    """

    space: str
    loop: str
    seconds: float
    reason: str | None


class Withheld(NamedTuple):
    """Outcomes of a space that are kept from learning, and that no cycle has taken up for long.

    Parameters
    ----------
    space
        Where.
    outcomes
        How many.
    seconds
        Since the last cycle that took any.
    """

    space: str
    outcomes: int
    seconds: float


def left_withheld(connection: Connection, longest_seconds: float) -> list[Withheld]:
    """Spaces in which outcomes wait to judge a base, and no cycle was committed for so long."""
    with translated():
        rows = connection.execute(
            "SELECT * FROM (SELECT v.space, v.withheld, extract(epoch FROM clock_timestamp() - b.updated_at)::float8"
            "  AS seconds FROM sona.status v JOIN sona.space s ON s.name = v.space JOIN sona.base_state b"
            "  USING (space_id)) w WHERE w.withheld > 0 AND w.seconds > %s ORDER BY 1",
            (longest_seconds,),
        ).fetchall()
    return [Withheld(*row) for row in rows]


def held_up_loops(connection: Connection) -> list[HeldUp]:
    """Loops that were set aside, and cycles that were asked for or interrupted while no worker is there."""
    with translated():
        rows = connection.execute(
            "SELECT x.space, x.loop, extract(epoch FROM clock_timestamp() - x.set_aside_at)::float8,"
            " coalesce(x.reason, 'its schedule means no time') FROM sona.schedules x WHERE x.set_aside_at IS NOT NULL"
            " UNION ALL"
            " SELECT r.space, r.loop, extract(epoch FROM clock_timestamp() - r.requested_at)::float8, NULL"
            " FROM sona.runs r WHERE r.state IN ('requested', 'interrupted')"
            " AND NOT EXISTS (SELECT FROM sona.workers w WHERE w.loop = r.loop) ORDER BY 1, 2"
        ).fetchall()
    return [HeldUp(*row) for row in rows]
