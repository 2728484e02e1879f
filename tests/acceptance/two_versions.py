"""An upgrade under load, by two versions of the code: ``python -m tests.acceptance.two_versions [--old DIRECTORY]``

The older one is that of the last commit of revision 0008, installed from the history of the clone. Its service answers
and records, its worker learns what an SQL client records; the schema is migrated; then the service and the worker are
replaced by those of this version. Exits with 1 if an answer failed, or an outcome is not in the ledger exactly once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import psycopg

from sona_pg import SonaEngine
from sona_pg.config import StoreConfig
from sona_pg.store.connection import connect
from sona_pg.store.database import Database
from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer
from sona_pg.worker import InstantWorker
from tests.data.revisions.__main__ import COMMITS, HERE, install

from .audit import inconsistencies

SPACE = "shop"
OLD_FIRST, NEW_FIRST, SQL_FIRST = 1_000_000, 2_000_000, 3_000_000
PHASE_SECONDS = 4.0


class SqlClient(threading.Thread):
    """Records by `sona.record` until it is told to stop; keeps the ids that were confirmed, and counts refusals."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url, self.stop, self.confirmed, self.failures, self.slowest = url, threading.Event(), [], 0, 0.0

    def run(self) -> None:
        rng = np.random.default_rng(5)
        with connect(self._url) as connection:
            number = SQL_FIRST
            while not self.stop.wait(0.02):
                began = time.perf_counter()
                try:
                    connection.execute(
                        "SELECT sona.record(%s, %s, '{1,2,3}', '{1,0,1}', trajectory_id => %s)",
                        (SPACE, rng.standard_normal(8).astype(np.float32), uuid.UUID(int=number)),
                    )
                    self.confirmed.append(number)
                except psycopg.Error as error:
                    self.failures += 1
                    print(f"sona.record: {error}", file=sys.stderr)
                self.slowest = max(self.slowest, time.perf_counter() - began)
                number += 1


def _start(python_path: Path | None, *command: str, home: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"SONA_HOME": str(home)}
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    return subprocess.Popen([sys.executable, *command], env=environment, cwd=python_path)


def _end(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    return process.wait(60)


def upgrade(url: str, old: Path, folder: Path, stack: contextlib.ExitStack) -> list[str]:
    """Do it; gives what went wrong. What it starts ends with the stack."""

    def start(python_path: Path | None, *command: str) -> subprocess.Popen[bytes]:
        process = _start(python_path, *command, home=home)
        stack.callback(process.kill)
        return process

    service, home = str(Path(__file__).with_name("service.py")), folder / "home"
    worker = ("-m", "sona_pg", "worker", "instant", "--url", url)
    filled = subprocess.run(
        [sys.executable, str(HERE / "fill.py"), url], env=os.environ | {"PYTHONPATH": str(old)}, cwd=old, check=True
    )
    assert filled.returncode == 0
    files = {"old": folder / "old", "new": folder / "new"}
    client = SqlClient(url)
    running = start(old, service, url, SPACE, str(OLD_FIRST), str(files["old"]))
    learning = start(old, *worker)
    client.start()
    _await_answers(files["old"])
    time.sleep(PHASE_SECONDS)
    began = time.perf_counter()
    print(f"migrated to {migrate(url)} in {time.perf_counter() - began:.2f} s, while it answers, records and learns")
    time.sleep(PHASE_SECONDS)
    print(f"the old worker {'runs' if learning.poll() is None else f'has ended with {learning.returncode}'}")
    spooled = sum(path.stat().st_size for path in home.rglob("*.spool"))
    print(f"{spooled:,} bytes wait in the spool")
    successor = start(None, service, url, SPACE, str(NEW_FIRST), str(files["new"]))
    _await_answers(files["new"])
    _end(running)
    _end(learning)
    learning = start(None, *worker)
    client.stop.set()
    client.join()
    wrong = _await_learned(url)
    ends = {"service": _end(successor), "worker": _end(learning)}
    wrong += [f"the new {name} ended with {code}" for name, code in ends.items() if code]
    _learn_the_rest(url, home)
    sent = set(client.confirmed)
    for name, file in files.items():
        *ids, last = file.read_text().split("\n")[:-1]
        failures, recall_ms, record_ms = (int(part) for part in last.split())
        print(
            f"{name} service: {len(ids)} answers, {failures} failed;"
            f" slowest recall {recall_ms} ms, record {record_ms} ms"
        )
        sent |= {int(id) for id in ids}
        if failures:
            wrong.append(f"{failures} answers of the {name} service failed")
    print(
        f"SQL client: {len(client.confirmed)} recorded, {client.failures} failed;"
        f" slowest {1000 * client.slowest:.0f} ms"
    )
    if client.failures:
        wrong.append(f"{client.failures} statements of the SQL client failed")
    return wrong + _audited(url, sent)


def _await_answers(file: Path) -> None:
    """Wait until a service has answered for the first time."""
    deadline = time.monotonic() + 60
    while not (file.exists() and file.stat().st_size):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the service that writes {file} has not answered for a minute")
        time.sleep(0.1)


def _await_learned(url: str) -> list[str]:
    """Wait until the worker has learned what the SQL client recorded, also while the old one could not."""
    with connect(url) as connection:
        for _ in range(600):
            row = connection.execute("SELECT count(*) FROM sona.pending_trajectory").fetchone()
            if row == (0,):
                return []
            time.sleep(0.1)
    return [f"after a minute the new worker has not learned {row} trajectories of the SQL client"]


def _learn_the_rest(url: str, home: Path) -> None:
    worker = InstantWorker(Database(url, StoreConfig(), home))
    while worker.step() + worker.weigh():
        pass
    worker.close()


def _audited(url: str, sent: set[int]) -> list[str]:
    with connect(url) as connection:
        rows = connection.execute(
            "SELECT trajectory_id FROM sona.learning_event WHERE revision = 0 AND loop = 'instant'"
        ).fetchall()
        learned = [row[0].int for row in rows]
        scores = connection.execute(
            "SELECT count(*) FROM sona.score WHERE score_id LIKE 'score %' AND revision IS NULL"
        ).fetchone()
        with SonaEngine.connect(url, space=SPACE, background=False) as engine:
            wrong = inconsistencies(connection, engine.space.space_id)
    lost, doubled = sent - set(learned), len(learned) - len(set(learned))
    print(f"{len(sent)} outcomes: {len(lost)} lost, {doubled} doubled; {scores} scores not taken in")
    # A background cycle of the dump has settled outcomes, which is no cycle of the instant loop.
    wrong = [each for each in wrong if each != "cycles are not one for each revision"]
    return wrong + [f"{len(lost)} are lost"] * bool(lost) + [f"{doubled} are doubled"] * bool(doubled)


def main() -> None:
    """Upgrade, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, help="where the older version is installed already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        old = arguments.old or install(COMMITS["0008"], Path(folder))
        server = EmbeddedServer(Path(folder) / "server")
        with contextlib.ExitStack() as stack:
            stack.callback(server.remove)
            wrong = upgrade(server.start(), old, Path(folder), stack)
    for violation in wrong:
        print(f"violation: {violation}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
