"""A database that goes away: recording goes on, on disk, and is learned once when the database is back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
from click.testing import CliRunner

from sona_pg import DatabaseBusy, DatabaseUnavailable, InstantLoopConfig, SonaEngine, StoreConfig
from sona_pg.cli.app import app
from sona_pg.store.connection import Connection
from sona_pg.store.database import Database
from sona_pg.store.server import EmbeddedServer
from sona_pg.worker import InstantWorker

from .conftest import DIM

SPACE = "outage"


@pytest.fixture
def server(home: Path) -> EmbeddedServer:
    made = EmbeddedServer(home)
    made.start()
    return made


@pytest.fixture
def recorder(home: Path, server: EmbeddedServer) -> Iterator[SonaEngine]:
    """An engine in front of a server of its own."""
    with SonaEngine.connect(home=home, space=SPACE, dim=DIM, background=False) as made:
        yield made
        server.start()


def _record(engine: SonaEngine, number: int) -> uuid.UUID:
    rng = np.random.default_rng(number)
    query, items = rng.standard_normal((2, DIM)).astype(np.float32), rng.standard_normal((3, DIM)).astype(np.float32)
    builder = engine.start(query[0])
    builder._id = uuid.UUID(int=number)
    for place, item in enumerate(items):
        builder.add_step(item, [0.1], float(place == 1), item_id=str(number % 7 + place), position=place + 1)
    return engine.record(builder)


def _ledger(url: str, space: str = SPACE) -> list[tuple[int, int]]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT trajectory_id, revision FROM sona.ledger WHERE space = %s ORDER BY ordinal", (space,)
        ).fetchall()
    return [(row[0].int, row[1]) for row in rows]


def test_an_outage_changes_nothing_about_what_is_learned(
    home: Path, server: EmbeddedServer, recorder: SonaEngine
) -> None:
    for number in range(10):
        _record(recorder, number)
    recorder.flush()
    before = recorder.adapt(np.ones(DIM))
    server.stop()
    for number in range(10, 40):
        _record(recorder, number)
        if number % 10 == 9:
            with pytest.raises(DatabaseUnavailable):
                recorder.flush()
    recorder.score(uuid.UUID(int=12), 1.0, "5")
    assert recorder.learn() == 0
    assert (recorder.metrics.spooled, recorder.metrics.dropped) == (30, 0)
    assert not np.array_equal(recorder.adapt(np.ones(DIM)), before), "learning goes on meanwhile, on the local copy"
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
from tests.db.test_outage import _record, SPACE
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


def test_while_a_flush_hangs_recording_goes_on_and_nothing_is_dropped(url: str, space_name: str) -> None:
    instant = InstantLoopConfig(max_pending_signals=200, flush_interval_seconds=0.01)
    with SonaEngine.connect(url, space=space_name, dim=DIM, instant=instant) as engine:
        with psycopg.connect(url) as blocker:
            blocker.execute("SELECT FROM sona.learner WHERE space_id = %s FOR UPDATE", (engine.space.space_id,))
            _record(engine, 0)
            while not engine.instant._turn.locked():
                time.sleep(0.001)
            time.sleep(0.05)  # the flush has the turn, and waits for the row
            for number in range(1, 1000):
                _record(engine, number)
                time.sleep(0.0005)
            assert engine.metrics.dropped == 0
            assert engine.metrics.spooled > 0
        engine.flush()
    assert _ledger(url, space_name) == [(number, 0) for number in range(1000)]


def test_several_engines_share_a_spool_folder(home: Path, server: EmbeddedServer) -> None:
    engines = [SonaEngine.connect(home=home, space=SPACE, dim=DIM, background=False) for _ in range(4)]
    server.stop()

    def record(place: int) -> None:
        for number in range(50):
            _record(engines[place], 1000 * place + number)
            if number % 10 == 9:
                with pytest.raises(DatabaseUnavailable):
                    engines[place].flush()

    threads = [threading.Thread(target=record, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.start()
    threads = [threading.Thread(target=engine.close) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = _ledger(engines[0].url)
    assert sorted(ledger) == [(1000 * place + number, 0) for place in range(4) for number in range(50)]
    for place in range(4):
        own = [number for number, _ in ledger if number // 1000 == place]
        assert own == sorted(own), "every process' events in their order"


def test_a_full_spool_counts_what_it_drops(home: Path, server: EmbeddedServer) -> None:
    instant = InstantLoopConfig(max_unflushed=5)
    store = StoreConfig(spool_max_bytes=3000)
    engine = SonaEngine.connect(home=home, space=SPACE, dim=DIM, background=False, instant=instant, store=store)
    server.stop()
    for number in range(40):
        _record(engine, number)
        with pytest.raises(DatabaseUnavailable):
            engine.flush()
    metrics = engine.metrics
    assert metrics.dropped > 0
    assert metrics.spooled + metrics.unflushed + metrics.pending + metrics.dropped == 40
    server.start()
    engine.close()
    kept = 40 - metrics.dropped
    assert _ledger(engine.url) == [(number, 0) for number in range(kept)]


def test_what_the_spool_brings_goes_through_the_door_again(
    connection: Connection, engine: SonaEngine, url: str, space_name: str, home: Path
) -> None:
    from sona_pg.store.spool import Spool
    from sona_pg.types import QueryTrajectory, Score

    spool = Spool(home / "spool", engine.space.key)
    good = QueryTrajectory(uuid.UUID(int=1), np.ones(DIM, dtype=np.float32), final_quality=1.0)
    spool.append(
        [
            QueryTrajectory(uuid.UUID(int=2), np.ones(3, dtype=np.float32)),
            QueryTrajectory(uuid.UUID(int=3), np.full(DIM, np.nan, dtype=np.float32)),
            Score(uuid.UUID(int=1), 99.0, None, "reward", "s"),
            good,
        ]
    )
    spool.close()
    worker = InstantWorker(Database(url, StoreConfig(), home))
    worker.step()
    worker.close()
    assert _ledger(url, space_name) == [(1, 0)]
    messages = [row[0] for row in connection.execute("SELECT message FROM sona.errors WHERE space = %s", (space_name,))]
    assert len(messages) == 3
    assert all("in the spool was refused" in message for message in messages)


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
