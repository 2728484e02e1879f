"""The spool of an outage: in order, within its room, shared, damaged, and emptied once."""

from __future__ import annotations

import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import psycopg
import pytest

from sona_pg import DatabaseBusy, DatabaseUnavailable, InstantLoopConfig, SonaEngine, StoreConfig
from sona_pg.store.connection import Connection
from sona_pg.store.database import Database
from sona_pg.store.server import EmbeddedServer
from sona_pg.worker import InstantWorker

from .conftest import DIM
from .outages import SPACE, _ledger, _record
from .outages import recorder as recorder
from .outages import server as server


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


def test_what_an_interrupt_has_written_to_the_spool_twice_is_learned_where_it_stands_first(
    url: str, space_name: str
) -> None:
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False) as engine:
        backlog = engine.instant._backlog
        assert backlog.spool is not None
        for number in range(6):
            _record(engine, number)
        backlog.take_buffers()
        for count in (4, 6, 3):
            backlog.spool.append(list(backlog.waiting)[:count])
        backlog.waiting.clear()
        engine.flush()
    assert [number for number, _ in _ledger(url, space_name)] == list(range(6))
