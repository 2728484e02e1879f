"""Databases written to files and read from them, by the programs of Postgres."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import psycopg

from sona_pg.store.server_account import INSTALLATIONS, binaries_of

REVISIONS = Path(__file__).parent.parent / "data" / "revisions"


def program(name: str, url: str) -> str:
    """A program of Postgres that understands this server: of its version, or the next newer one that there is."""
    with psycopg.connect(url) as connection:
        major = connection.info.server_version // 10_000
    return str(binaries_of(min(found for found in INSTALLATIONS if found >= major)) / name)


def dump(url: str, file: Path) -> None:
    """``pg_dump -Fc``."""
    subprocess.run([program("pg_dump", url), "-Fc", "-f", str(file), "-d", url], check=True)


def restore(url: str, file: Path) -> None:
    """``pg_restore`` into an empty database."""
    subprocess.run([program("pg_restore", url), "--exit-on-error", "-d", url, str(file)], check=True)


def restore_revision(url: str, revision: str) -> None:
    """What the code of a revision has left, into an empty database of a server that has the roles."""
    command = [program("psql", url), "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--output=/dev/null", url]
    text = gzip.decompress((REVISIONS / f"{revision}.sql.gz").read_bytes())
    subprocess.run(command, input=text, check=True)
