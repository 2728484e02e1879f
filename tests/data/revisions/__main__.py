"""Makes the dumps: ``python -m tests.data.revisions [REVISION...]``, in a clone with its history.

For each revision the code of the last commit before the next one is installed into a folder of its own; it fills a
database of an embedded server (`fill`), and pg_dump writes that down. The suite needs only what comes out of it.
"""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from sona_pg.store.server import EmbeddedServer
from sona_pg.store.server_account import binaries_of

HERE = Path(__file__).parent
COMMITS = {
    "0001": "6310495",
    "0002": "734b1eb",
    "0003": "59020c5",
    "0004": "fb8973e",
    "0005": "d375dcd",
    "0006": "2de41b7",
    "0007": "1281400",
    "0008": "52c5798",
    "0009": "345f5d2",
}
"""The last commit of each revision that has no other."""


def install(commit: str, folder: Path) -> Path:
    """The package of a commit, in a folder that PYTHONPATH can name."""
    archive = subprocess.run(["git", "archive", commit], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder / "source", filter="data")
    target = folder / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(folder / "source")], check=True)
    return target


def dump(url: str, installed: Path, target: Path) -> None:
    """Fill the database by that code, and write it to a file; from the oldest server, which every one can read."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    subprocess.run([sys.executable, str(HERE / "fill.py"), url], check=True, env=environment, cwd=installed)
    # Plain SQL: the other formats leave definitions, which are most of it, as long as they are.
    command = [str(binaries_of(16) / "pg_dump"), "--no-owner", "--dbname", url]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    target.write_bytes(gzip.compress(text, 9, mtime=0))


def main() -> None:
    """Make the dumps of the revisions that are named, or of all."""
    with tempfile.TemporaryDirectory() as home:
        server = EmbeddedServer(Path(home), major=16)
        try:
            url = server.start()
            for revision in sys.argv[1:] or COMMITS:
                with tempfile.TemporaryDirectory() as folder:
                    installed = install(COMMITS[revision], Path(folder))
                    with psycopg.connect(url, autocommit=True) as connection:
                        connection.execute(f"DROP DATABASE IF EXISTS of_{revision}")
                        connection.execute(f"CREATE DATABASE of_{revision}")
                    dump(make_conninfo(url, dbname=f"of_{revision}"), installed, HERE / f"{revision}.sql.gz")
        finally:
            server.remove()


if __name__ == "__main__":
    main()
