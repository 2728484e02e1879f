"""A database that goes away: recording goes on, on disk, and is learned once when the database is back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import psycopg
import pytest
from click.testing import CliRunner

from sona_pg import DatabaseBusy, DatabaseUnavailable, InstantLoopConfig, SonaEngine, StoreConfig, UnknownSpace
from sona_pg.cli.app import app
from sona_pg.store.connection import Connection
from sona_pg.store.database import Database
from sona_pg.store.server import EmbeddedServer
from sona_pg.worker import InstantWorker

from .conftest import DIM
from .outages import SPACE, _ledger, _record
from .outages import recorder as recorder
from .outages import server as server


def test_an_outage_changes_nothing_about_what_is_learned(
    home: Path, server: EmbeddedServer, recorder: SonaEngine
) -> None:
    for number in range(10):
        _record(recorder, number)
    recorder.flush()
    server.stop()
    for number in range(10, 40):
        _record(recorder, number)
        if number % 10 == 9:
            before = recorder.adapt(np.ones(DIM))
            with pytest.raises(DatabaseUnavailable):
                recorder.flush()
            after = recorder.adapt(np.ones(DIM))
            assert not np.array_equal(after, before), "learning goes on meanwhile, on the local copy"
    recorder.score(uuid.UUID(int=12), 1.0, "5")
    assert recorder.learn() == 0
    assert (recorder.metrics.spooled, recorder.metrics.dropped) == (30, 0)
    server.start()
    recorder.flush()
    assert _ledger(recorder.url) == [*((number, 0) for number in range(40)), (12, 1)]
    assert recorder.metrics.learned + recorder.metrics.skipped == 41
    with SonaEngine.connect(home=home, space="straight", dim=DIM, background=False) as straight:
        for number in range(40):
            _record(straight, number)
        straight.flush()
        straight.score(uuid.UUID(int=12), 1.0, "5")
        straight.flush()
        assert straight.instant.learner.to_bytes() == recorder.instant.learner.to_bytes()
    assert not (home / "spool").exists() or not list((home / "spool").rglob("*.spool"))


def test_a_process_that_ends_in_an_outage_leaves_its_spool_to_the_next(
    home: Path, server: EmbeddedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SonaEngine.connect(home=home, space=SPACE, dim=DIM, background=False)
    _record(engine, 1)
    engine.flush()
    server.stop()
    _record(engine, 2)
    engine.score(uuid.UUID(int=1), 1.0, "9")
    engine.close()
    server.start()
    monkeypatch.setenv("SONA_HOME", str(home))
    monkeypatch.delenv("SONA_DATABASE_URL", raising=False)
    shown = CliRunner().invoke(app, ["status", "--json"])
    (row,) = json.loads(shown.stdout)
    assert row["spool_bytes"] > 0
    assert row["spool_age_seconds"] >= 0
    worker = InstantWorker(Database(engine.url, StoreConfig(), home))
    worker.step()
    worker.close()
    assert sorted(_ledger(engine.url)) == [(1, 0), (1, 1), (2, 0)]
    (row,) = json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)
    assert (row["spool_bytes"], row["spool_age_seconds"]) == (0, None)


KILLED = """
import sys, uuid
from pathlib import Path
from tests.db.outages import _record, SPACE
from sona_pg import SonaEngine, DatabaseUnavailable
engine = SonaEngine.connect(home=Path(sys.argv[1]), space=SPACE, dim=16, background=False)
print("ready", flush=True)
sys.stdin.readline()
for number in range(100_000):
    _record(engine, number)
    try:
        engine.flush()
    except DatabaseUnavailable:
        print(number, flush=True)
"""


def test_a_process_killed_in_an_outage_loses_nothing_that_was_spooled(home: Path, server: EmbeddedServer) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    server.stop()
    process.stdin.write("\n")
    process.stdin.flush()
    spooled = [process.stdout.readline() for _ in range(20)]
    process.kill()
    spooled += [line for line in process.stdout.readlines() if line.endswith("\n")]
    process.wait()
    process.stdin.close()
    process.stdout.close()
    server.start()
    with SonaEngine.connect(home=home, space=SPACE, background=False) as engine:
        engine.flush()
        learned = [number for number, _ in _ledger(engine.url)]
    last = int(spooled[-1])
    assert learned[: last + 1] == list(range(last + 1))
    assert len(learned) <= last + 2


def test_a_server_that_hangs_is_an_outage_too(home: Path, server: EmbeddedServer) -> None:
    instant = InstantLoopConfig(patience_seconds=0.5, flush_interval_seconds=0.05)
    engine = SonaEngine.connect(home=home, space=SPACE, dim=DIM, instant=instant)
    postmaster = server.status().pid
    assert postmaster is not None
    children = subprocess.run(["pgrep", "-P", str(postmaster)], capture_output=True, text=True, check=True)
    processes = [postmaster, *map(int, children.stdout.split())]
    try:
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        for number in range(30):
            _record(engine, number)
            time.sleep(0.02)
        engine.close()  # it returns, though the database never answers
        assert engine.metrics.spooled >= 30
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)
    with SonaEngine.connect(home=home, space=SPACE, background=False) as other:
        while len(_ledger(engine.url)) < 30:  # the flush that hung may end as well
            other.flush()
    assert [number for number, _ in _ledger(engine.url)] == list(range(30))


ENDS = """
import multiprocessing, sys, uuid
from pathlib import Path
from tests.db.outages import SPACE, _record
from sona_pg import SonaEngine

def work(home, first):
    engine = SonaEngine.connect(home=Path(home), space=SPACE, dim=16, background=False)
    for number in range(first, first + 10):
        _record(engine, number)
    del engine

if __name__ == "__main__":
    work(sys.argv[1], 0)
    for place, way in enumerate(("fork", "spawn"), start=1):
        child = multiprocessing.get_context(way).Process(target=work, args=(sys.argv[1], 100 * place))
        child.start()
        child.join()
"""


def test_a_process_that_ends_without_close_flushes_all_the_same(
    home: Path, server: EmbeddedServer, tmp_path: Path
) -> None:
    script = tmp_path / "ends.py"
    script.write_text(ENDS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, str(script), str(home)], check=True, env=environment)
    expected = [first + number for first in (0, 100, 200) for number in range(10)]
    assert sorted(number for number, _ in _ledger(server.url)) == expected


def test_one_bad_row_of_an_sql_client_does_not_stop_the_others(
    connection: Connection, engine: SonaEngine, url: str, space_name: str, home: Path
) -> None:
    bad, good = uuid.UUID(int=1), uuid.UUID(int=2)
    space_id = engine.space.space_id
    for statement in (
        "INSERT INTO sona.trajectory (space_id, trajectory_id, query, quality) VALUES (%s, %s, '[1,2,3]', 1)",
        "INSERT INTO sona.trajectory_step (space_id, trajectory_id, ordinal, item_id, reward)"
        " VALUES (%s, %s, 0, '1', 1)",
        "INSERT INTO sona.pending_trajectory (space_id, trajectory_id) VALUES (%s, %s)",
    ):
        connection.execute(statement, (space_id, bad))
    query = np.ones(DIM, dtype=np.float32)
    connection.execute("SELECT sona.record(%s, %s, '{1}', '{1}', trajectory_id => %s)", (space_name, query, good))
    worker = InstantWorker(Database(url, StoreConfig(), home))
    while worker.step():
        pass
    assert worker.failing == []
    worker.close()
    assert _ledger(url, space_name) == [(2, 0)]
    messages = connection.execute("SELECT message FROM sona.errors WHERE space = %s", (space_name,)).fetchall()
    assert len(messages) == 1
    assert str(bad) in messages[0][0]


def test_looking_for_work_writes_no_empty_cycles(
    connection: Connection, engine: SonaEngine, url: str, space_name: str, home: Path
) -> None:
    foreign = home / "spool" / str(engine.space.key) / "somebody"
    foreign.mkdir(parents=True)
    (foreign / "lock").touch()
    (foreign / "0000000001.spool").write_bytes(b"not one of ours" * 10)
    worker = InstantWorker(Database(url, StoreConfig(), home))
    for _ in range(4):
        worker.step()
    worker.close()
    cycles = connection.execute("SELECT count(*) FROM sona.cycles WHERE space = %s", (space_name,)).fetchall()
    assert cycles == [(0,)]
    messages = connection.execute("SELECT message FROM sona.errors WHERE space = %s", (space_name,)).fetchall()
    assert len(messages) == 1


def test_an_engine_whose_space_was_dropped_says_so_and_closes(url: str, space_name: str) -> None:
    engine = SonaEngine.connect(url, space=space_name, dim=DIM, background=False)
    _record(engine, 1)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT sona.drop_space(%s)", (space_name,))
    with pytest.raises(UnknownSpace, match="somebody deleted it"):
        engine.close()
    engine.close()


def test_a_statement_timeout_in_mid_flush_loses_nothing(url: str, space_name: str, home: Path) -> None:
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False) as patient:
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        role = f"hurried_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
            connection.execute(f'ALTER ROLE {role} IN DATABASE "{name}" SET statement_timeout = 60')
        try:
            with psycopg.connect(url) as blocker:
                hurried = SonaEngine.connect(f"{url} user={role}", space=space_name, background=False)
                for number in range(20):
                    _record(hurried, number)
                blocker.execute("LOCK TABLE sona.learning_event IN ACCESS EXCLUSIVE MODE")
                with pytest.raises(DatabaseBusy, match="statement timeout"):
                    hurried.flush()
                assert hurried.metrics.spooled == 20
                hurried.close()
            patient.flush()
        finally:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"DROP ROLE {role}")
    assert _ledger(url, space_name) == [(number, 0) for number in range(20)]


def test_a_clock_that_jumped_back_shows_no_negative_age(
    home: Path, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SonaEngine.connect(home=home, space=SPACE, dim=DIM, background=False)
    server.stop()
    with monkeypatch.context() as patch:
        later = time.time() + 86_400
        patch.setattr(time, "time", lambda: later)
        patch.setattr(time, "time_ns", lambda: int(later * 1e9))
        _record(engine, 1)
        with pytest.raises(DatabaseUnavailable):
            engine.flush()
    _record(engine, 2)
    engine.close()
    server.start()
    monkeypatch.setenv("SONA_HOME", str(home))
    monkeypatch.delenv("SONA_DATABASE_URL", raising=False)
    (row,) = json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)
    assert row["spool_age_seconds"] == 0
    with SonaEngine.connect(home=home, space=SPACE, background=False) as other:
        other.flush()
    assert _ledger(engine.url) == [(1, 0), (2, 0)]
