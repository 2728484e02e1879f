"""Brings a database to the current schema: the revisions, then the functions of sql/, in one transaction."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from importlib import resources

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from sona_pg.config import SCHEMA_REVISION
from sona_pg.errors import DatabaseBusy, SchemaMismatch
from sona_pg.steps import reached
from sona_pg.store.connection import check_server, connect, engine_url, translated
from sona_pg.store.schema import SCHEMA

log = logging.getLogger("sona_pg")

_ATTEMPTS = 5
"""How often a migration is begun before it is given up for the locks of others."""


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(resources.files("sona_pg.migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["on_version_apply"] = _after_revision
    return config


def _after_revision(**_: object) -> None:
    reached("migrate.after_revision")


def sql_files() -> list[tuple[str, str]]:
    """Names and texts of the files in sql/, in the order in which they are applied."""
    folder = resources.files("sona_pg.sql")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(name, (folder / name).read_text(encoding="utf-8")) for name in names]


def migrate(url: str, *, revision: str = "head", dry_run: bool = False) -> str | None:
    """Bring the database at `url` to a revision, and install the functions that belong to the newest one.

    All of it is one transaction: a failure or a kill in between leaves the database as it was. Where another session
    holds a lock for longer than this one waits, or each waits for the other, it is tried again a few times.

    Parameters
    ----------
    revision
        'head', 'base', or the id of a revision.
    dry_run
        Do everything and roll back.

    Returns
    -------
    str or None
        The revision that the database is at (with `dry_run`, would be at).

    Raises
    ------
    DatabaseUnavailable, UnsupportedServer, PermissionDenied, DatabaseBusy, DatabaseError
        If the server cannot be reached, is too old, lacks pgvector, is busy with something else, or refuses.
    """
    for _ in range(1, _ATTEMPTS):
        try:
            return _migrate_once(url, revision, dry_run)
        except DatabaseBusy as error:
            log.warning("the migration is begun again: %s", error)
    return _migrate_once(url, revision, dry_run)


def _migrate_once(url: str, revision: str, dry_run: bool) -> str | None:
    with connect(url, vectors=False) as probe:
        check_server(probe)
    # Nothing is prepared: a pooler would hand it to the next client.
    engine = sa.create_engine(engine_url(url), poolclass=sa.NullPool, connect_args={"prepare_threshold": None})
    with _refusals(), translated(), engine.connect() as connection, connection.begin() as transaction:
        # What the server warns of, such as roles that it may not create, is for whoever migrates to read.
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        driver.add_notice_handler(_log_warning)
        # One migration at a time; the lock goes with the transaction.
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('sona.migrate', 0))"))
        # Who writes what it has learned has read the revision first: it ends before, or sees the new one.
        if connection.execute(sa.text(f"SELECT to_regclass('{SCHEMA}.alembic_version')")).scalar_one() is not None:
            connection.execute(sa.text(f"LOCK TABLE {SCHEMA}.alembic_version IN ACCESS EXCLUSIVE MODE"))
        connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS vector"))
        # Loads the library: a role that is no superuser may set its settings only once they are known.
        connection.execute(sa.text(f"SELECT '[1]'::{_vector_schema(connection)}.vector"))
        # A role called sona would have schema sona first in its search path; the extension may be in any schema.
        connection.execute(sa.text(f"SET LOCAL search_path = {_vector_schema(connection)}, public"))
        connection.execute(sa.text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        config = _config(connection)
        if revision == "base" or _is_ancestor(connection, revision):
            _drop_routines(connection)
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)
        at = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA}).get_current_revision()
        if at == SCHEMA_REVISION:
            install_routines(connection)
        reached("migrate.before_commit")
        if dry_run:
            transaction.rollback()
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


def _is_ancestor(connection: sa.Connection, revision: str) -> bool:
    current = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA}).get_current_revision()
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
    """Create the functions, views and policies of sql/; the schema that holds pgvector takes the place of @vector@."""
    found = _vector_schema(connection)
    for name, text in sql_files():
        log.debug("installing %s", name)
        connection.exec_driver_sql(text.replace("@vector@", found).replace("%", "%%"))
