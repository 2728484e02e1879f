"""Backups in full: ``python -m tests.acceptance.backups``

A dump of Postgres 16 is restored in 18, and a server of 18 is restored from a base backup and its archive to a moment
at which nobody took one. Both must give the 1,000 recalls of the original bit for bit, learn the same from the same
outcomes, and guard alike. Exits with 1 where one does not.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer
from sona_pg.store.server_account import account_of, binaries_of, make_private, run_as

from . import twins
from .dumps import dump, program, restore

RECALLS = 1000


@contextmanager
def server_in(home: Path, major: int = 18) -> Iterator[EmbeddedServer]:
    """A server that goes at the end."""
    server = EmbeddedServer(home, major=major)
    try:
        yield server
    finally:
        server.remove()


def answers(url: str) -> list[tuple[object, ...]]:
    """The recalls that are compared."""
    return list(twins.answers(url, RECALLS // len(twins.SPACES)))


def differences(expected: dict[str, object], found: dict[str, object], what: str) -> list[str]:
    """What is not the same, of what was compared; says what is."""
    wrong = [f"{what}: {name} differ" for name in expected if expected[name] != found[name]]
    same = [name for name in expected if expected[name] == found[name]]
    print(f"{what}: the same {', '.join(same)}")
    return wrong


def another_major(folder: Path) -> list[str]:
    """From 16 to 18 by pg_dumpall of the roles and pg_dump of the database."""
    with server_in(folder / "16", 16) as old, server_in(folder / "18") as new:
        original, copy = old.start(), new.start()
        migrate(original)
        twins.build(original)
        dump(original, folder / "sona.dump")
        roles = subprocess.run(
            [program("pg_dumpall", original), "--roles-only", "-d", original], check=True, stdout=subprocess.PIPE
        ).stdout
        # The superuser is there already, which psql says and passes over.
        subprocess.run(
            [program("psql", copy), "-X", "-q", "-o", "/dev/null", copy],
            input=roles,
            check=True,
            stderr=subprocess.DEVNULL,
        )
        restore(copy, folder / "sona.dump")
        # By the programs of 18, as everybody upgrades who follows docs/upgrade.md.
        migrate(copy)
        compared = [
            {
                f"{RECALLS} recalls": answers(url),
                "rights": {row for row in twins.access(url) if row[0] != "right" or "MAINTAIN" not in str(row)},
                "weights after 20 more events": twins.learned_from(url, twins.EVENTS, 20),
            }
            for url in (original, copy)
        ]
    return differences(compared[0], compared[1], "Postgres 16 to 18")


def to_a_moment(folder: Path) -> list[str]:
    """A base backup, and the archive up to a moment between two lots of events."""
    with server_in(folder / "original") as server, server_in(folder / "restored") as second:
        url, account = server.start(), account_of(server.directory / "data")
        archive = server.directory / "archive"
        make_private(archive, account)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET archive_mode = on")
            connection.execute(
                sql.SQL("ALTER SYSTEM SET archive_command = {}").format(f"test ! -f {archive}/%f && cp %p {archive}/%f")
            )
        server.stop()
        server.start()
        migrate(url)
        twins.build(url)
        second.start()
        second.stop()
        data = second.directory / "data"
        shutil.rmtree(data)
        make_private(data, account)
        backup = [str(binaries_of(18) / "pg_basebackup"), "-d", url, "-D", str(data), "-c", "fast"]
        done = run_as(account, backup)
        assert done.returncode == 0, done.stdout
        kept: dict[str, object] = {
            "weights": twins.learned_from(url, twins.EVENTS, 20),
            f"{RECALLS} recalls": answers(url),
        }
        with psycopg.connect(url, autocommit=True) as connection:
            (moment,) = connection.execute("SELECT clock_timestamp()::text").fetchone() or ("",)
            time.sleep(1.0)
            kept["weights after the rest, given again"] = twins.learned_from(url, twins.EVENTS + 20, 20)
            connection.execute("SELECT pg_switch_wal()")
        # At its end the server archives what is complete.
        server.stop()
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.write(
                f"archive_mode = off\nrestore_command = 'cp {archive}/%f %p'\n"
                f"recovery_target_time = '{moment}'\nrecovery_target_action = promote\n"
            )
        (data / "recovery.signal").touch()
        restored = second.start()
        with psycopg.connect(restored, autocommit=True) as connection:
            while connection.execute("SELECT pg_is_in_recovery()").fetchone() != (False,):
                time.sleep(0.1)
        found: dict[str, object] = {"weights": twins.learned(restored), f"{RECALLS} recalls": answers(restored)}
        # Of all of it: what was learned before the moment counts once.
        found["weights after the rest, given again"] = twins.learned_from(restored, twins.EVENTS, 40)
    return differences(kept, found, "To a moment")


def main() -> None:
    """Restore, and judge."""
    wrong: list[str] = []
    for restoring in (another_major, to_a_moment):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            wrong += restoring(Path(folder))
            print(f"{time.perf_counter() - began:.0f} s")
    for violation in wrong:
        print(f"violation: {violation}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
