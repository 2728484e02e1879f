"""Which database is meant: a URL that is given, SONA_DATABASE_URL, or the embedded server."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from sona_pg.config import SCHEMA_REVISION, StoreConfig
from sona_pg.store.connection import (
    AsyncConnection,
    Connection,
    check_server,
    connect,
    connect_async,
    current_revision,
    schema_mismatch,
)
from sona_pg.store.routines import Standing, installed
from sona_pg.store.server import EmbeddedServer, as_home, default_home

ENV_URL = "SONA_DATABASE_URL"


@dataclass(frozen=True, slots=True)
class Database:
    """A database with the schema that this version works with.

    Parameters
    ----------
    url
        libpq connection string.
    config
        How it is used.
    home
        Folder of the spool and, where it is embedded, of the server.
    application
        What connections are called in `pg_stat_activity`, unless the URL says something else.
    """

    url: str
    config: StoreConfig
    home: Path = field(default_factory=default_home)
    application: str = "sona"

    @property
    def spool_directory(self) -> Path | None:
        """Folder of the spools; None where none is kept."""
        return self.home.expanduser() / "spool" if self.config.spool_max_bytes else None

    def connect(self) -> Connection:
        """A new connection, with vectors."""
        return connect(self.url, config=self.config, application=self.application)

    async def connect_async(self) -> AsyncConnection:
        """The same, for the event loop that runs."""
        return await connect_async(self.url, config=self.config, application=self.application)


def resolve_url(url: str | None = None, *, home: Path | str | None = None) -> tuple[str, bool]:
    """The connection string that is meant, and whether it is the embedded server's, which is started for it.

    `url` comes before `home`, the embedded server's folder, and both before the environment.

    Raises
    ------
    ServerError, UnsupportedServer
        If there is no URL, and the embedded server cannot be started.
    """
    given = url or (None if home is not None else os.environ.get(ENV_URL))
    if given:
        return given, False
    return EmbeddedServer(default_home() if home is None else home).start(), True


def open_database(
    url: str | None = None,
    *,
    home: Path | str | None = None,
    config: StoreConfig | None = None,
    application: str = "sona",
) -> Database:
    """The database that is meant, checked; the embedded one is brought to the current schema and functions.

    Functions of a newer version that works with the same revision stay.

    Raises
    ------
    DatabaseUnavailable, UnsupportedServer
        If it cannot be reached, or is too old.
    SchemaMismatch
        If its schema is older or newer than this version of sona_pg.
    """
    config, folder = StoreConfig() if config is None else config, default_home() if home is None else as_home(home)
    resolved, embedded = resolve_url(url, home=home)
    found = current_revision(resolved, config)
    if found != SCHEMA_REVISION and not embedded:
        raise schema_mismatch(found)
    with connect(resolved, vectors=False, config=config) as connection:
        check_server(connection)
        # Other servers are migrated by who owns them; `sona doctor` tells it of those.
        is_due = embedded and (found != SCHEMA_REVISION or installed(connection).standing is Standing.OTHER)
    if is_due:
        # SQLAlchemy and Alembic are needed for nothing else: they stay out of the application's memory.
        from sona_pg.store.migrate import migrate

        migrate(resolved, config=config)
    return Database(resolved, config, folder, application)
