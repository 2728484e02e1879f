"""Connections: how they are made, what they speak, and how their errors become ours."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import psycopg
from psycopg import sql
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg.types import TypeInfo

from sona_pg.config import SCHEMA_REVISION, StoreConfig
from sona_pg.errors import (
    ConfigError,
    DamagedVersion,
    DatabaseBusy,
    DatabaseError,
    DatabaseUnavailable,
    DimensionMismatch,
    InvalidInput,
    NoItems,
    PermissionDenied,
    SchemaMismatch,
    SonaError,
    UnknownLoop,
    UnknownSpace,
    UnknownTrajectory,
    UnknownVersion,
    UnsupportedServer,
)
from sona_pg.store.vectors import Float4ArrayDumper, VectorDumper, VectorLoader, VectorTextLoader

log = logging.getLogger("sona_pg")

_T = TypeVar("_T")


class Connection(psycopg.Connection[TupleRow]):
    """A connection, and how long its transactions wait for locks.

    It is closed where an exception that is none of the driver, such as one of a signal handler, ends the wait for a
    statement: nobody has read the answer, and no other statement could be sent.
    """

    lock_timeout_seconds: int = StoreConfig().lock_timeout_seconds

    def wait(self, gen: PQGen[_T], *args: Any, **kwargs: Any) -> _T:  # noqa: ANN401
        """As of psycopg, which cancels the statement itself where it is interrupted from the keyboard."""
        try:
            return super().wait(gen, *args, **kwargs)
        except psycopg.Error:
            raise
        except BaseException:
            if self.info.transaction_status == TransactionStatus.ACTIVE:
                try:
                    # The server would go on with it, and keep its locks.
                    self.cancel_safe(timeout=_CANCEL_SECONDS)
                except psycopg.Error as error:
                    log.warning("a statement that was interrupted could not be cancelled: %s", error)
                finally:
                    self.close()
            raise


AsyncConnection = psycopg.AsyncConnection[TupleRow]

_CANCEL_SECONDS = 5.0

MIN_POSTGRES = 16
MIN_PGVECTOR = (0, 8)

UNKNOWN_SPACE = "SN001"
WRONG_DIMENSION = "SN002"
INVALID_INPUT = "SN003"
REFUSED_SETTING = "SN004"
UNKNOWN_VERSION = "SN005"
DAMAGED_VERSION = "SN006"
UNKNOWN_TRAJECTORY = "SN007"
UNKNOWN_LOOP = "SN008"
NO_ITEMS = "SN009"
"""SQLSTATEs that the functions of sql/ raise."""


_VECTOR_TYPE = (
    # The extension may be outside of the search path, and another type may have its name.
    "SELECT t.oid, t.typarray FROM pg_extension e JOIN pg_type t ON t.typnamespace = e.extnamespace"
    " WHERE e.extname = 'vector' AND t.typname = 'vector'"
)


def _register_vectors(connection: Connection | AsyncConnection, found: TupleRow | None) -> None:
    """Let a connection send float32 arrays as vectors and receive vectors as float32 arrays."""
    if found is None:
        raise UnsupportedServer(
            "the database has no type 'vector': install pgvector 0.8 or newer, then run 'sona migrate'"
        )
    info = TypeInfo("vector", found[0], found[1])
    info.register(connection)
    dumper = type("SpaceVectorDumper", (VectorDumper,), {"oid": info.oid})
    # Both take arrays; COPY chooses by the type of the column, parameters of statements are vectors.
    connection.adapters.register_dumper(np.ndarray, Float4ArrayDumper)
    connection.adapters.register_dumper(np.ndarray, dumper)
    connection.adapters.register_loader(info.oid, VectorLoader)
    connection.adapters.register_loader(info.oid, VectorTextLoader)


def use_vector_schema(connection: Connection) -> None:
    """Put the schema that holds pgvector into the search path, as applications do that write ``<=>`` without it."""
    row = connection.execute(
        "SELECT quote_ident(nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
        " WHERE extname = 'vector'"
    ).fetchone()
    if row is not None:
        connection.execute(sql.SQL("SET search_path = public, {}").format(sql.SQL(row[0])))


def connect(
    url: str,
    *,
    vectors: bool = True,
    autocommit: bool = True,
    config: StoreConfig | None = None,
    application: str = "sona",
) -> Connection:
    """A connection to `url`, whose transactions are explicit; in `pg_stat_activity` it is called `application`.

    Raises
    ------
    DatabaseUnavailable
        If the server cannot be reached.
    ConfigError
        If `url` is no connection string.
    UnsupportedServer
        If vectors are asked for and the database has none.
    """
    config = StoreConfig() if config is None else config
    conninfo = _conninfo(url, config, application)
    with translated():
        connection = Connection.connect(conninfo, autocommit=autocommit)
    connection.lock_timeout_seconds = config.lock_timeout_seconds
    try:
        if not config.prepare_statements:
            connection.prepare_threshold = None
        if vectors:
            with translated():
                _register_vectors(connection, connection.execute(_VECTOR_TYPE).fetchone())
    except BaseException:
        connection.close()
        raise
    return connection


async def connect_async(url: str, *, config: StoreConfig, application: str = "sona") -> AsyncConnection:
    """As `connect`, for the event loop that runs."""
    conninfo = _conninfo(url, config, application)
    with translated():
        connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    try:
        if not config.prepare_statements:
            connection.prepare_threshold = None
        with translated():
            cursor = await connection.execute(_VECTOR_TYPE)
            _register_vectors(connection, await cursor.fetchone())
    except BaseException:
        await connection.close()
        raise
    return connection


def is_over(connection: Connection | AsyncConnection) -> bool:
    """Whether a connection is closed, or is idle and the server has spoken unasked: it does when it ends one."""
    if connection.closed:
        return True
    if connection.info.transaction_status != TransactionStatus.IDLE:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _conninfo(url: str, config: StoreConfig, application: str) -> str:
    # A host that vanishes is noticed in half a minute; whoever wants it otherwise says so in the URL.
    defaults: dict[str, str | int] = {
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": 30_000,
        "application_name": application,
    }
    try:
        given = conninfo_to_dict(url)
        # As libpq does, which takes from the environment what a URL leaves out; the setting is for the rest.
        patience = given.get("connect_timeout") or os.environ.get("PGCONNECT_TIMEOUT") or config.connect_timeout_seconds
        timeout_from_conninfo({"connect_timeout": patience})
        return make_conninfo(
            url,
            connect_timeout=patience,
            client_encoding="utf8",
            **{name: value for name, value in defaults.items() if name not in given},
        )
    except (psycopg.ProgrammingError, UnicodeError) as cause:
        raise ConfigError(f"the database URL is no connection string ({cause}): see SONA_DATABASE_URL") from cause


def engine_url(url: str, config: StoreConfig | None = None) -> str:
    """`url` for a migration by SQLAlchemy over psycopg; keyword strings and sockets included."""
    from sqlalchemy.engine import URL

    conninfo = _conninfo(url, StoreConfig() if config is None else config, "sona migrate")
    known = {key: str(value) for key, value in conninfo_to_dict(conninfo).items() if value is not None}
    port = known.pop("port", None)
    return URL.create(
        "postgresql+psycopg",
        username=known.pop("user", None),
        password=known.pop("password", None),
        database=known.pop("dbname", None),
        query=known | ({"port": port} if port else {}),
    ).render_as_string(hide_password=False)


def check_server(connection: Connection) -> None:
    """Refuse a server that is too old, or has no pgvector that is new enough.

    Raises
    ------
    UnsupportedServer
    """
    major = connection.info.server_version // 10_000
    if major < MIN_POSTGRES:
        raise UnsupportedServer(f"the server is Postgres {major}, expected {MIN_POSTGRES} or newer: upgrade it")
    with translated():
        row = connection.execute(
            "SELECT coalesce((SELECT extversion FROM pg_extension WHERE extname = 'vector'),"
            " (SELECT default_version FROM pg_available_extensions WHERE name = 'vector'))"
        ).fetchone()
    version = None if row is None or row[0] is None else str(row[0])
    needed = ".".join(map(str, MIN_PGVECTOR))
    if version is None:
        raise UnsupportedServer(f"the server has no pgvector, expected {needed} or newer: install the package pgvector")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MIN_PGVECTOR:
        raise UnsupportedServer(
            f"pgvector is {version}, expected {needed} or newer: install it, then ALTER EXTENSION vector UPDATE"
        )


class translated(contextlib.AbstractContextManager[None]):  # noqa: N801
    """Turns errors of psycopg and SQLAlchemy into ours, keeping the cause."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        found = getattr(error, "orig", error)
        if isinstance(found, psycopg.Error):
            raise _translation(found) from found


def _translation(error: psycopg.Error) -> SonaError:
    state = error.sqlstate or ""
    message = error.diag.message_primary or str(error).strip() or type(error).__name__
    if error.diag.message_hint:
        message = f"{message}: {error.diag.message_hint}"
    if state == UNKNOWN_SPACE:
        return UnknownSpace(message)
    if state == UNKNOWN_VERSION:
        return UnknownVersion(message)
    if state == DAMAGED_VERSION:
        return DamagedVersion(message)
    if state == UNKNOWN_TRAJECTORY:
        return UnknownTrajectory(message)
    if state == UNKNOWN_LOOP:
        return UnknownLoop(message)
    if state == WRONG_DIMENSION:
        numbers = re.findall(r"\d+", message)
        if len(numbers) >= 2:
            return DimensionMismatch(expected=int(numbers[1]), actual=int(numbers[0]))
    if state in (INVALID_INPUT, WRONG_DIMENSION) or state[:2] in ("22", "54"):
        return InvalidInput(message)
    if not state and isinstance(error, psycopg.DataError | psycopg.ProgrammingError):
        return InvalidInput(message)  # psycopg could not send a value
    if state == REFUSED_SETTING:
        return ConfigError(message)
    if state == NO_ITEMS:
        return NoItems(message)
    if state in ("42501", "28000", "28P01"):
        return PermissionDenied(f"{message}: ask the owner of schema sona for the right, or use another role")
    if state in ("3F000", "42P01", "42883", "42703") and "sona" in message:
        return SchemaMismatch(f"{message}: run 'sona migrate'")
    if state in ("26000", "42P05"):
        return DatabaseError(
            f"{message}: a pooler in transaction mode mixes up prepared statements, which StoreConfig("
            "prepare_statements=False) does without (sona worker: --pooled)"
        )
    if state in ("55P03", "40001", "40P01", "57014") or state.startswith("53"):
        return DatabaseBusy(f"{message}: another session holds what is needed, or the server is short of it; try again")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and (
        not state or state[:2] == "08" or state[:4] == "57P0"
    ):
        return DatabaseUnavailable(f"{message}: check that the server runs and SONA_DATABASE_URL is right")
    return DatabaseError(f"{message} (SQLSTATE {state or 'none'})")


@contextlib.contextmanager
def transaction(connection: Connection) -> Iterator[Connection]:
    """A transaction whose errors are ours.

    Raises
    ------
    DatabaseUnavailable
        If the connection has ended meanwhile: nothing was committed.
    """
    is_outermost = connection.info.transaction_status == TransactionStatus.IDLE
    try:
        with translated(), connection.transaction():
            yield connection
            if connection.closed:
                # psycopg would end the block as if it had committed.
                raise DatabaseUnavailable(
                    "the connection ended within a transaction, of which nothing is committed: try again"
                )
    finally:
        # Interrupted between its begin and the block, it would stay open, and the next one would be a part of it.
        if is_outermost and connection.info.transaction_status != TransactionStatus.IDLE:
            connection.close()


@contextlib.contextmanager
def snapshot_transaction(connection: Connection) -> Iterator[Connection]:
    """A `transaction` that reads, all of it as of one moment, however long it takes."""
    with transaction(connection):
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield connection


def schema_mismatch(found: str | None) -> SchemaMismatch:
    """What is wrong with a schema at revision `found`, and the way out."""
    remedy = "run 'sona migrate'"
    if found is not None and found > SCHEMA_REVISION:
        remedy = "start this process again with the version of sona-pg that migrated it"
    return SchemaMismatch(f"the schema is at revision {found or 'none'}, expected {SCHEMA_REVISION}: {remedy}")


_REVISION = "SELECT version_num FROM sona.alembic_version"


def _bounded_revision(connection: Connection) -> str | None:
    """The revision, with a bound for the rest of the transaction; whoever waits for it in vain is told who has it."""
    bound = sql.SQL("SET LOCAL lock_timeout = {}").format(f"{connection.lock_timeout_seconds}s")
    try:
        with translated():
            # One message: outside of a transaction both statements are one.
            cursor = connection.execute(sql.SQL("{}; {}").format(bound, sql.SQL(_REVISION)), prepare=False)
            cursor.nextset()
            row = cursor.fetchone()
    except DatabaseBusy as error:
        if connection.info.transaction_status != TransactionStatus.IDLE:
            raise
        raise DatabaseBusy(f"{error}{in_the_way(connection)}") from error
    return None if row is None else str(row[0])


def in_the_way(connection: Connection) -> str:
    """Who has locks in schema sona, those that have had them longest first; empty where nobody has."""
    with translated():
        rows = connection.execute(
            "SELECT format('%s (%s, process %s)', coalesce(nullif(a.application_name, ''), 'a session'), a.usename,"
            " a.pid) FROM pg_stat_activity a WHERE a.pid <> pg_backend_pid() AND EXISTS (SELECT FROM pg_locks l"
            " JOIN pg_class c ON c.oid = l.relation WHERE l.pid = a.pid AND l.database = a.datid AND a.datname ="
            " current_database() AND c.relnamespace = to_regnamespace('sona')) ORDER BY a.xact_start NULLS LAST, a.pid"
            " LIMIT 5"
        ).fetchall()
    return f"; at work in schema sona, the longest first: {', '.join(row[0] for row in rows)}" if rows else ""


def require_schema(connection: Connection) -> None:
    """Refuse a schema that was migrated since this process looked; no migration begins before the transaction ends.

    In a transaction that writes it comes first: a migration takes its locks in the same order, that of the revision
    before those of tables. In a transaction it waits as that waits for locks.

    Raises
    ------
    SchemaMismatch
        If the schema is older or newer than this version of sona_pg.
    DatabaseBusy
        If a migration is under way, or waits for somebody else.
    """
    if connection.info.transaction_status == TransactionStatus.IDLE:
        _refuse_other(_bounded_revision(connection))
        return
    with translated():
        row = connection.execute(_REVISION).fetchone()
    _refuse_other(None if row is None else str(row[0]))


def _refuse_other(found: str | None) -> None:
    if found != SCHEMA_REVISION:
        raise schema_mismatch(found)


def bound_locks(connection: Connection) -> None:
    """No lock is waited for without limit, for the rest of the transaction."""
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{connection.lock_timeout_seconds}s",))


@contextlib.contextmanager
def bounded(connection: Connection) -> Iterator[Connection]:
    """A `transaction` that waits for no lock without limit."""
    with transaction(connection):
        bound_locks(connection)
        yield connection


@contextlib.contextmanager
def writing(connection: Connection) -> Iterator[Connection]:
    """A `transaction` that writes what this version of the code has computed, in the schema that it knows.

    It waits for no lock without limit.

    Raises
    ------
    SchemaMismatch, DatabaseBusy
        As `require_schema`.
    """
    with transaction(connection):
        _refuse_other(_bounded_revision(connection))
        yield connection


def require_right(connection: Connection, what: str, table: str, *rights: str) -> None:
    """Refuse a role that lacks rights on a table, and say which role has them.

    Raises
    ------
    PermissionDenied
    """
    with translated():
        row = connection.execute(
            "SELECT bool_and(has_table_privilege(%s, needed)) FROM unnest(%s::text[]) needed", (table, list(rights))
        ).fetchone()
    if row is None or not row[0]:
        raise PermissionDenied(f"the role {connection.info.user!r} may not {what}: make it a member of sona_worker")


_OTHER_JOINS = ("enable_nestloop", "enable_mergejoin")


def hash_joins(connection: Connection) -> None:
    """Join by hash from now on in this transaction, in which very many rows are joined.

    The planner does not know how many there are where most of them are new, or are found by an expression. Where it
    takes a million for a few, a nested loop or sorting them by text takes minutes; hashing a few loses little.
    """
    for joins in _OTHER_JOINS:
        connection.execute(sql.SQL("SET LOCAL {} TO off").format(sql.Identifier(joins)))


def current_revision(url: str, config: StoreConfig | None = None) -> str | None:
    """The revision that the database is at; None where sona_pg was never installed.

    Parameters
    ----------
    url, config
        As of `connect`.

    Raises
    ------
    DatabaseUnavailable, PermissionDenied
        If the database cannot be reached, or read.
    DatabaseBusy
        If a migration is under way, or waits for somebody else.
    """
    with connect(url, vectors=False, config=config) as connection, translated():
        row = connection.execute("SELECT to_regclass('sona.alembic_version') IS NOT NULL").fetchone()
        if row is None or not row[0]:
            return None
        return _bounded_revision(connection)
