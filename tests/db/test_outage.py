"""A database that goes away: recording goes on, on disk, and is learned once when the database is back."""

from __future__ import annotations

import json
import os
import signal
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

from sona_pg import (
    DatabaseBusy,
    DatabaseUnavailable,
    InstantLoopConfig,
    SonaEngine,
    SpaceConfig,
    StoreConfig,
    UnknownSpace,
)
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
    answers = SpaceConfig(strategy="adapted")
    with SonaEngine.connect(home=home, space=SPACE, dim=DIM, background=False, space_config=answers) as made:
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


def test_whatever_fails_everything_is_learned_once_and_in_order(url: str, space_name: str) -> None:
    """Flushes that wait, that time out and that pass alternate, while the buffers overflow into the spool."""
    instant = InstantLoopConfig(max_pending_signals=200, flush_interval_seconds=0.02)
    store = StoreConfig(lock_timeout_seconds=1, spool_batch=100)
    with SonaEngine.connect(url, space=space_name, dim=DIM, instant=instant, store=store) as engine:
        done = threading.Event()

        def block() -> None:
            with psycopg.connect(url) as blocker:
                for hold in (1.5, 0.3, 0.3, 1.3, 0.2, 0.4):
                    blocker.execute("SELECT FROM sona.learner WHERE space_id = %s FOR UPDATE", (engine.space.space_id,))
                    time.sleep(hold)
                    blocker.rollback()
                    time.sleep(0.03)
            done.set()

        thread = threading.Thread(target=block)
        thread.start()
        recorded = scored = 0
        while not done.is_set():
            _record(engine, recorded)
            if recorded % 3 == 0:
                engine.score(uuid.UUID(int=recorded), 1.0, "9", score_id=f"{space_name} {recorded}")
                scored += 1
            recorded += 1
            time.sleep(0.0007)
        thread.join()
        engine.flush()
        metrics = engine.metrics
    assert metrics.spooled > 0
    assert (metrics.dropped, metrics.refused) == (0, 0)
    ledger = _ledger(url, space_name)
    assert [number for number, revision in ledger if revision == 0] == list(range(recorded))
    # A score is learned with its trajectory where both are flushed together, else after what is flushed with it.
    assert sorted(number for number, revision in ledger if revision == 1) == list(range(0, recorded, 3))
    assert metrics.learned + metrics.skipped == len(ledger) == recorded + scored


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
from tests.db.test_outage import SPACE, _record
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


def test_order_holds_where_the_spool_has_no_room_for_what_memory_holds(url: str, space_name: str) -> None:
    instant = InstantLoopConfig(max_pending_signals=10)
    store = StoreConfig(lock_timeout_seconds=1, spool_max_bytes=4500)
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False, instant=instant, store=store) as engine:
        for number in range(8):
            _record(engine, number)
        engine.learn()
        with psycopg.connect(url) as blocker:
            blocker.execute("SELECT FROM sona.learner WHERE space_id = %s FOR UPDATE", (engine.space.space_id,))
            failed: list[bool] = []

            def fail() -> None:
                with pytest.raises(DatabaseBusy):
                    engine.flush()
                failed.append(True)

            flush = threading.Thread(target=fail)
            flush.start()
            while not engine.instant._turn.locked():
                time.sleep(0.001)
            for number in range(8, 15):
                _record(engine, number)
            engine.instant.spill()
            flush.join()
        assert failed
        assert engine.metrics.spooled > 0
        assert engine.metrics.unflushed + engine.metrics.pending > 0, "not all of it found room"
        engine.flush()
    assert [number for number, _ in _ledger(url, space_name)] == list(range(15))


def test_damage_to_ones_own_spool_stops_nothing(home: Path, server: EmbeddedServer, recorder: SonaEngine) -> None:
    server.stop()
    _record(recorder, 1)
    with pytest.raises(DatabaseUnavailable):
        recorder.flush()
    (segment,) = (home / "spool").rglob("*.spool")
    segment.write_bytes(b"x" + segment.read_bytes()[1:])
    server.start()
    _record(recorder, 2)
    recorder.flush()
    assert _ledger(recorder.url) == [(2, 0)]
    with psycopg.connect(recorder.url) as connection:
        messages = connection.execute("SELECT message FROM sona.errors").fetchall()
    assert len(messages) == 1
    assert "is no spool" in messages[0][0]


def test_after_a_close_in_a_hang_the_spool_is_free_once_the_hang_ends(url: str, space_name: str) -> None:
    instant = InstantLoopConfig(patience_seconds=0.2)
    store = StoreConfig(lock_timeout_seconds=2)
    engine = SonaEngine.connect(url, space=space_name, dim=DIM, background=False, instant=instant, store=store)
    with psycopg.connect(url) as blocker:
        blocker.execute("SELECT FROM sona.learner WHERE space_id = %s FOR UPDATE", (engine.space.space_id,))
        for number in range(5):
            _record(engine, number)
        engine.close()  # it does not wait for the row
        for thread in threading.enumerate():
            if thread.name == "sona-last-flush":
                thread.join()
    with SonaEngine.connect(url, space=space_name, background=False) as other:
        other.flush()
    assert [number for number, _ in _ledger(url, space_name)] == list(range(5))


def test_an_interrupt_while_buffers_are_emptied_loses_nothing(url: str, space_name: str) -> None:
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False) as engine:
        backlog = engine.instant._backlog
        for number in range(40):
            _record(engine, number)
            interrupted = number % 8

            def trace(frame: object, event: str, _: object, at: int = interrupted) -> object:
                nonlocal lines
                if getattr(frame, "f_code", None) is not type(backlog)._drain.__code__:
                    return None if event == "call" and lines else trace
                lines += event == "line"
                if lines == at:
                    raise KeyboardInterrupt
                return trace

            lines = 0
            with backlog._moving:
                backlog.buffer.drain_into(backlog._spilled)
            sys.settrace(trace)  # type: ignore[arg-type]
            try:
                engine.learn()
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
        engine.flush()
    assert [number for number, _ in _ledger(url, space_name)] == list(range(40))
