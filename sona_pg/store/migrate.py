"""Brings a database to the current schema: the revisions, then the functions of sql/, in one transaction."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from importlib import resources
from typing import Any

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.dialects.postgresql.base import PGTypeCompiler

from sona_pg.config import SCHEMA_REVISION, VERSION, StoreConfig
from sona_pg.errors import DatabaseBusy, SchemaMismatch
from sona_pg.steps import reached
from sona_pg.store import routines
from sona_pg.store.connection import check_server, connect, engine_url, in_the_way, transaction, translated
from sona_pg.store.schema import SCHEMA

log = logging.getLogger("sona_pg")

_ATTEMPTS = 5
"""How often a migration is begun before it is given up for the locks of others."""

_LOCK_TIMEOUT_SECONDS = 5
"""Longest that it waits for a lock, unless the URL says it: everybody else waits behind it, and engines no more than
10."""


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(resources.files("sona_pg.migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["on_version_apply"] = _after_revision
    return config


def _after_revision(**_: object) -> None:
    reached("migrate.after_revision")


_PINNED = "SET LOCAL search_path = pg_catalog, pg_temp"
"""First in every transaction here. Whoever migrates is often a superuser: in a schema that others may create in, such
as public or one with the name of the role, a function of theirs may fit a call better than that of the server, and
would run with all rights, or be bound in the functions of sql/."""


class _QualifiedTypes(PGTypeCompiler):
    """Writes the types of pgvector with their schema, which may be any, and is not in the search path."""

    def __init__(self, dialect: sa.Dialect, schema: str) -> None:
        super().__init__(dialect)
        self._schema = schema

    def visit_user_defined(self, type_: sa.types.UserDefinedType[Any], **options: object) -> str:
        return f"{self._schema}.{super().visit_user_defined(type_, **options)}"


def qualify_vectors(connection: sa.Connection) -> None:
    """Let the revisions that run on this connection's engine find pgvector, and nothing else of its schema."""
    connection.exec_driver_sql(_PINNED)
    connection.dialect.type_compiler_instance = _QualifiedTypes(connection.dialect, _vector_schema(connection))


def migrate(
    url: str, *, revision: str = "head", dry_run: bool = False, config: StoreConfig | None = None
) -> str | None:
    """Bring the database at `url` to a revision, and install the functions that belong to the newest one.

    All of it is one transaction: a failure or a kill in between leaves the database as it was. Where another session
    holds a lock for longer than this one waits, or each waits for the other, it is tried again a few times. Where the
    revision is the wanted one already, it waits for none who only reads or writes tables, and none for it.

    The functions of a newer version of sona_pg that works with the same revision stay, unless `revision` is its id.

    Parameters
    ----------
    revision
        'head', 'base', or the id of a revision.
    dry_run
        Do everything and roll back.
    config
        How long it waits for a connection; and for a lock, where that is less than a migration waits.

    Returns
    -------
    str or None
        The revision that the database is at (with `dry_run`, would be at).

    Raises
    ------
    DatabaseUnavailable, UnsupportedServer, PermissionDenied, DatabaseBusy, DatabaseError
        If the server cannot be reached, is too old, lacks pgvector, is busy with something else, or refuses.
    """
    config = StoreConfig() if config is None else config
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _migrate_once(url, revision, dry_run, config)
        except DatabaseBusy as error:
            with connect(url, vectors=False, config=config) as probe:
                busy = DatabaseBusy(f"{error}{in_the_way(probe)}")
            if attempt == _ATTEMPTS:
                raise busy from error
            log.warning("the migration is begun again: %s", busy)
            time.sleep(attempt)  # who waited behind it goes first
    raise AssertionError("the last attempt returns or raises")


def _migrate_once(url: str, revision: str, dry_run: bool, config: StoreConfig) -> str | None:
    with connect(url, vectors=False, config=config) as probe, transaction(probe):
        probe.execute(_PINNED)
        check_server(probe)
    # Nothing is prepared: a pooler would hand it to the next client.
    settings = {"prepare_threshold": None}
    engine = sa.create_engine(engine_url(url, config), poolclass=sa.NullPool, connect_args=settings)
    # SQLAlchemy asks the server a few things before the transaction below, and rolls that back.
    sa.event.listen(engine, "connect", lambda driver, _: driver.execute(_PINNED), insert=True)
    with _refusals(), translated(), engine.connect() as connection, connection.begin() as begun:
        connection.exec_driver_sql(_PINNED)
        # What the server warns of, such as roles that it may not create, is for whoever migrates to read.
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        driver.add_notice_handler(_log_warning)
        # One migration at a time; the lock goes with the transaction.
        connection.execute(
            sa.text("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('sona.migrate', 0::bigint))")
        )
        # After that lock: a migration that is at work may take its time, and nobody waits behind who waits for it.
        connection.execute(
            sa.text("SELECT set_config('lock_timeout', :bound, true) WHERE current_setting('lock_timeout') = '0'"),
            {"bound": f"{min(_LOCK_TIMEOUT_SECONDS, config.lock_timeout_seconds)}s"},
        )
        # Who writes what it has learned has read the revision first: it ends before, or sees the new one. Where the
        # revision stays there is nothing to see: functions are replaced as a whole, statements find one or the other.
        if _changes_revision(connection, revision):
            connection.execute(sa.text(f"LOCK TABLE {SCHEMA}.alembic_version IN ACCESS EXCLUSIVE MODE"))
        connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public"))
        # Loads the library: a role that is no superuser may set its settings only once they are known.
        connection.execute(sa.text(f"SELECT '[1]'::{_vector_schema(connection)}.vector"))
        qualify_vectors(connection)
        connection.execute(sa.text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        keeps_newer = revision == "head" and _keeps_newer(connection, driver)
        scripts = _config(connection)
        if revision == "base" or _is_ancestor(connection, revision):
            _drop_routines(connection)
            routines.forget(driver)
            command.downgrade(scripts, revision)
        else:
            command.upgrade(scripts, revision)
        at = _current(connection)
        if at == SCHEMA_REVISION and not keeps_newer:
            install_routines(connection)
            routines.note_down(driver, _vector_schema(connection))
        reached("migrate.before_commit")
        if dry_run:
            begun.rollback()
    return at


def _log_warning(notice: psycopg.errors.Diagnostic) -> None:
    if notice.severity_nonlocalized == "WARNING":
        log.warning("%s", ": ".join(filter(None, (notice.message_primary, notice.message_hint))))


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except CommandError as cause:
        raise SchemaMismatch(
            f"the schema cannot be migrated ({cause}), this version works with {SCHEMA_REVISION}: "
            "install the version of sona-pg that made it"
        ) from cause


def _current(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA}).get_current_revision()


def _changes_revision(connection: sa.Connection, revision: str) -> bool:
    """Whether there is a revision already, and another one is wanted; refuses one that this version does not know."""
    current = _current(connection)
    if current is None:
        return False
    script = ScriptDirectory.from_config(_config())
    script.get_revision(current)
    return current != (script.get_current_head() if revision == "head" else revision)


def _keeps_newer(connection: sa.Connection, driver: psycopg.Connection[Any]) -> bool:
    """Whether the functions stay that are there: those of a newer version for the same revision are not taken back."""
    if _current(connection) != SCHEMA_REVISION:
        return False
    found = routines.installed(driver)
    if found.standing is not routines.Standing.NEWER:
        return False
    log.warning(
        "the functions of schema sona are of sona-pg %s, newer than this %s, and stay: name the revision to put those "
        "of this version in their place",
        found.version,
        VERSION,
    )
    return True


def _is_ancestor(connection: sa.Connection, revision: str) -> bool:
    current = _current(connection)
    if current is None or revision == "head" or current == revision:
        return False
    script = ScriptDirectory.from_config(_config())
    return revision in {r.revision for r in script.walk_revisions("base", current)}


def _drop_routines(connection: sa.Connection) -> None:
    """Remove functions, views and policies, which depend on the tables."""
    connection.execute(
        sa.text(
            """
            DO $$
            DECLARE statement text;
            BEGIN
                FOREACH statement IN ARRAY ARRAY(
                    SELECT format('DROP POLICY %I ON %s', p.polname, p.polrelid::regclass)
                    FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
                    WHERE c.relnamespace = 'sona'::regnamespace
                    UNION ALL
                    SELECT format('DROP VIEW IF EXISTS %s CASCADE', c.oid::regclass) FROM pg_class c
                    WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind = 'v'
                    UNION ALL
                    SELECT format('DROP ROUTINE IF EXISTS %s CASCADE', p.oid::regprocedure) FROM pg_proc p
                    WHERE p.pronamespace = 'sona'::regnamespace)
                LOOP EXECUTE statement; END LOOP;
            END $$
            """
        )
    )


def _vector_schema(connection: sa.Connection) -> str:
    return str(
        connection.execute(
            sa.text(
                "SELECT quote_ident(nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
                " WHERE extname = 'vector'"
            )
        ).scalar_one()
    )


def install_routines(connection: sa.Connection) -> None:
    """Create the functions, views and policies of sql/."""
    for name, text in routines.statements(_vector_schema(connection)):
        log.debug("installing %s", name)
        connection.exec_driver_sql(text.replace("%", "%%"))
