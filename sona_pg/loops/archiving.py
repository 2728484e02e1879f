"""A space is saved to a file, and loaded into another database: it answers and learns on as it would have."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from sona_pg.config import SCHEMA_REVISION
from sona_pg.errors import DimensionMismatch, EmbedderMismatch, IoError, SchemaMismatch, SonaError
from sona_pg.files import FilePath
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.learner import Learner
from sona_pg.learning.lift import LiftTest
from sona_pg.learning.strategist import Strategist
from sona_pg.loops.admission import checked_text
from sona_pg.store import archive, spaces, strategist, strategy_settings
from sona_pg.store.archive import Column
from sona_pg.store.archive_file import ArchiveReader, Manifest, writing_archive
from sona_pg.store.connection import Connection, transaction, writing
from sona_pg.store.database import Database
from sona_pg.store.embedder_change import open_space
from sona_pg.store.indexes import index_by_size
from sona_pg.store.learning import read_state
from sona_pg.store.spaces import Space

log = logging.getLogger("sona_pg")


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What was saved.

    Parameters
    ----------
    space
        Name of the space.
    rows
        By table, how many.
    bytes, sha256
        Size of the file, and its SHA-256 in hexadecimal.
    """

    space: str
    rows: Mapping[str, int]
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What was loaded.

    Parameters
    ----------
    space
        Name of the space.
    rows
        By table, how many.
    items
        The application's own table of items, which `recall` searches; None where there is none.
    items_missing
        Why the table that the space had does not serve here: name one with `set_items`. None where it does, or the
        space had none.
    """

    space: str
    rows: Mapping[str, int]
    items: str | None
    items_missing: str | None


def save_space(connection: Connection, name: str, path: FilePath) -> SaveReport:
    """Write all that is recorded and learned in a space to a file, as it is at one moment; nobody waits for it.

    Raises
    ------
    UnknownSpace
        If there is none of that name.
    ConfigError
        If it is kept beside another one.
    IoError
        If the file cannot be written; what was there is unchanged.
    DatabaseError
        If the database cannot be asked.
    """
    checked_text(name, "the name of the space")
    with writing_archive(path) as file:
        with archive.snapshot(connection, name) as space:
            open_space(connection, name)
            for table, columns in archive.tables_of(connection).items():
                with file.table(table) as member:
                    rows = archive.read_rows(connection, space, table, columns, member.write)
                file.add(table, _described(columns), rows, member)
        postgres = connection.info.server_version // 10_000
        file.close(Manifest(SCHEMA_REVISION, postgres, space.name, space.dim, space.embedder, file.tables))
    return SaveReport(space.name, {name: table.rows for name, table in file.tables.items()}, file.bytes, file.sha256)


def load_space(
    database: Database,
    path: FilePath,
    name: str | None = None,
    *,
    embedder: str | None = None,
    dim: int | None = None,
) -> LoadReport:
    """Make a space of a file: all of it, or nothing.

    Parameters
    ----------
    name
        What it is to be called; as it was, if None.
    embedder
        Fingerprint that its embedder must have, if it has declared one.
    dim
        How many components its vectors must have.

    Raises
    ------
    IoError
        If the file cannot be read, or is not what was saved.
    SchemaMismatch
        If it was saved from a schema of another revision.
    EmbedderMismatch, DimensionMismatch
        If it belongs to another embedder, or its vectors have another dimension.
    InvalidInput
        If there is a space of that name.
    DatabaseError
        If the database does not take it.
    """
    with ArchiveReader(path) as file, database.connect() as connection:
        manifest = file.manifest
        if manifest.revision != SCHEMA_REVISION:
            raise SchemaMismatch(
                f"{path!r} was saved at revision {manifest.revision} of the schema, expected {SCHEMA_REVISION}: load "
                "it with the version of sona-pg that saved it, run 'sona migrate' with this one, and save it again"
            )
        if embedder is not None and manifest.embedder not in (None, embedder):
            raise EmbedderMismatch(
                f"{path!r} belongs to the embedder {manifest.embedder!r}, not to {embedder!r}: load it with that one"
            )
        if dim not in (None, manifest.dim):
            raise DimensionMismatch(manifest.dim, dim, f"the embedder for {path!r}")
        name = checked_text(manifest.space if name is None else name, "the name of the space")
        archive.check_name(connection, name)
        tables = archive.tables_of(connection)
        if {table: held.columns for table, held in manifest.tables.items()} != {
            table: _described(columns) for table, columns in tables.items()
        }:
            raise file.refusal("its tables have other columns than those of the schema")
        with writing(connection):
            for table, columns in tables.items():
                rows = archive.stage_rows(connection, table, columns, file.chunks(table), file.refusal)
                if rows != manifest.tables[table].rows:
                    raise file.refusal(f"it has {rows} rows of {table}, expected {manifest.tables[table].rows}")
            archive.check_staged(connection, tables, manifest.space, manifest.dim, manifest.embedder, file.refusal)
            loaded = archive.insert_staged(connection, tables, name, file.refusal)
            _check_states(connection, loaded.space, file)
        _index(database, connection, loaded.space)
    if loaded.items_missing is not None:
        log.warning(
            "space %r is loaded without its items: %s; name them with set_items",
            loaded.space.name,
            loaded.items_missing,
        )
    counts = {table: held.rows for table, held in manifest.tables.items()}
    return LoadReport(loaded.space.name, counts, loaded.items, loaded.items_missing)


def _described(columns: tuple[Column, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((column.name, column.kind) for column in columns)


def _check_states(connection: Connection, space: Space, file: ArchiveReader) -> None:
    """Refuse a space that could not answer or go on learning: what it has learned is read as engines do."""
    if damaged := archive.damaged_versions(connection, space):
        raise file.refusal(f"version {damaged[0]} is not what was published")
    try:
        instant, adapter = spaces.claim_settings(connection, space, None, None)
        pool = ItemPool(*spaces.item_sample(connection, space))
        learner = Learner(space.dim, pool, adapter=adapter, instant=instant, space=space.config)
        if (state := read_state(connection, space)) is not None:
            learner.load_bytes(state)
        settings = strategy_settings.claim_settings(connection, space, None)
        weighing, lift = strategist.read_states(connection, space)
        if weighing is not None:
            Strategist(pool, settings, adapter).load_bytes(weighing)
        if lift is not None:
            LiftTest(settings).load_bytes(lift)
    except IoError:
        raise
    except (SonaError, LookupError, TypeError, ValueError) as cause:
        raise file.refusal(f"what it has learned cannot be read: {cause}") from cause


def _index(database: Database, connection: Connection, space: Space) -> None:
    """Make the indexes that a space of this size has; without them it is searched exactly, and workers make them."""
    try:
        spaces.admit_queries(connection, space, database.config.exact_search_rows)
        with transaction(connection):
            index_by_size(connection, space, database.config, "patterns")
            index_by_size(connection, space, database.config, "nodes")
    except SonaError as error:
        log.warning("space %r is searched exactly for now: %s", space.name, error)
