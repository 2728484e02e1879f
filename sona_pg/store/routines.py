"""The functions, views and policies of sql/, and which version of sona_pg those of a database are of.

They change between versions that work with the same revision. Whoever puts them in place notes down its version, and
a digest of the statements, in the comment of the table that holds the revision.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from typing import Any

import psycopg
from psycopg import sql

from sona_pg.config import VERSION
from sona_pg.store.connection import translated

_STAMP = re.compile(r"functions of sona-pg (\S+), sha256 ([0-9a-f]{64})")


class Standing(Enum):
    """Whose functions a database has, seen from this version of sona_pg."""

    OWN = "own"
    NEWER = "newer"
    """Of a later version, whose they stay."""
    OTHER = "other"
    """Of an earlier version, of another build that carries the same number, or nobody knows."""


@dataclass(frozen=True, slots=True)
class Installed:
    """The functions of a database.

    Parameters
    ----------
    standing
        Whose they are.
    version
        Version of sona_pg that put them in place; None where it did not say so.
    """

    standing: Standing
    version: str | None


def sql_files() -> list[tuple[str, str]]:
    """Names and texts of the files in sql/, in the order in which they are applied."""
    folder = resources.files("sona_pg.sql")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(name, (folder / name).read_text(encoding="utf-8")) for name in names]


def statements(vector_schema: str) -> list[tuple[str, str]]:
    """As `sql_files`, as they are executed; the schema that holds pgvector takes the place of @vector@."""
    return [(name, text.replace("@vector@", vector_schema)) for name, text in sql_files()]


def stamp(vector_schema: str) -> str:
    """What is noted down of the functions of this version."""
    text = "\0".join(text for _, text in statements(vector_schema))
    return f"functions of sona-pg {VERSION}, sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def note_down(connection: psycopg.Connection[Any], vector_schema: str) -> None:
    """Say in the database that the functions of this version have been put in place."""
    statement = sql.SQL("COMMENT ON TABLE sona.alembic_version IS {}")
    connection.execute(statement.format(stamp(vector_schema)))


def forget(connection: psycopg.Connection[Any]) -> None:
    """Say that there are none any more."""
    connection.execute("COMMENT ON TABLE sona.alembic_version IS NULL")


def installed(connection: psycopg.Connection[Any]) -> Installed:
    """The functions of a database that has a revision.

    Raises
    ------
    PermissionDenied
        If schema sona cannot be looked into.
    """
    with translated():
        row = connection.execute(
            "SELECT pg_catalog.obj_description('sona.alembic_version'::pg_catalog.regclass, 'pg_class'),"
            " (SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n"
            " ON n.oid = e.extnamespace WHERE e.extname = 'vector')"
        ).fetchone()
    assert row is not None
    noted = "" if row[0] is None else str(row[0])
    if row[1] is not None and noted == stamp(row[1]):
        return Installed(Standing.OWN, VERSION)
    found = _STAMP.fullmatch(noted)
    if found is None:
        return Installed(Standing.OTHER, None)
    is_newer = _release(found[1]) > _release(VERSION)
    return Installed(Standing.NEWER if is_newer else Standing.OTHER, found[1])


def _release(version: str) -> tuple[tuple[int, ...], int]:
    """What versions are compared by: the numbers that they begin with, and 1.10.0rc1 comes before 1.10."""
    begin, rest = re.fullmatch(r"([\d.]*)(.*)", version, re.DOTALL).groups()  # type: ignore[union-attr]
    numbers = [int(number) for number in begin.split(".") if number]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers), 0 if not rest or rest.startswith(("+", "post")) else -1
