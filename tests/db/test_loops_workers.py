"""Workers of slow loops: what they may run, how they are seen, and that a standby takes over under the fence."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest

from sona_pg import DatabaseUnavailable, PermissionDenied, SonaEngine, StoreConfig
from sona_pg.config import ScheduleConfig
from sona_pg.errors import LockLost
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.cycle import Cycle
from sona_pg.steps import ENV_KILL_AT
from sona_pg.store import runs, schedules
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from tests.acceptance import demonstration
from tests.acceptance.demonstration import DEMONSTRATION, NAME

from .scheduled import CONFIG, _add, _copied, _runs, _space, _sums, _tell, _until, _worker
from .scheduled import connection as connection
from .scheduled import coordinate as coordinate
from .scheduled import loops_url as loops_url

# What it may run, and who sees it -----------------------------------------------------------------------------------


def test_a_role_without_rights_is_refused(loops_url: str, connection: Connection, role: Callable[..., str]) -> None:
    _space(connection)
    for group in ("sona_reader", "sona_app"):
        url = psycopg.conninfo.make_conninfo(loops_url, user=role("idler", group))
        coordinator = LoopCoordinator(Database(url, StoreConfig()), DEMONSTRATION, CONFIG)
        with pytest.raises(PermissionDenied, match="sona_worker"):
            coordinator.step()
        coordinator.close()


def test_a_worker_runs_only_what_it_was_granted(
    loops_url: str, connection: Connection, role: Callable[..., str]
) -> None:
    granted, other = _space(connection), _space(connection)
    login = role("labourer", "sona_worker")
    connection.execute("SELECT sona.grant_space(%s, %s)", (granted, login))
    for table in ("entry", "sum", "order"):
        connection.execute(f'GRANT ALL ON public.demonstration_{table} TO "{login}"')  # type: ignore[arg-type]
    url = psycopg.conninfo.make_conninfo(loops_url, user=login)
    coordinator = LoopCoordinator(Database(url, StoreConfig()), DEMONSTRATION, CONFIG)
    assert coordinator.step() == 1
    coordinator.close()
    assert _runs(connection, granted) == [("done",)]
    assert _runs(connection, other) == []


def test_what_a_worker_may_only_read_is_left_to_others(
    loops_url: str, connection: Connection, role: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    due, asked, malformed = (_space(connection) for _ in range(3))
    login = role("visitor", "sona_worker")
    schedules.ensure_schedules(connection, NAME, DEMONSTRATION.schedule)
    for space in (due, asked, malformed):
        connection.execute("SELECT sona.grant_space(%s, %s, false)", (space, login))
    connection.execute("SELECT sona.run_cycle(%s, %s)", (asked, NAME))
    connection.execute("SELECT sona.set_schedule(%s, %s, cron => '0 3 31 2 *')", (malformed, NAME))
    coordinator = LoopCoordinator(
        Database(psycopg.conninfo.make_conninfo(loops_url, user=login), StoreConfig()), DEMONSTRATION, CONFIG
    )
    assert coordinator.step() == 0
    coordinator.close()
    assert caplog.messages == []


def test_a_worker_is_seen_and_what_it_is_at_by_those_who_may(
    loops_url: str, connection: Connection, role: Callable[..., str]
) -> None:
    space, reader = _space(connection), role("onlooker", "sona_reader")
    seen = "SELECT loop, worker, space FROM sona.workers"
    with connect(loops_url) as worker, connect(psycopg.conninfo.make_conninfo(loops_url, user=reader)) as onlooker:
        runs.prepare(worker, NAME, "here:1")
        assert onlooker.execute(seen).fetchall() == [(NAME, "here:1", None)]
        ((space_id,),) = worker.execute("SELECT space_id FROM sona.space WHERE name = %s", (space,)).fetchall()
        runs.request(connection, space, "deep")
        assert runs.try_lock(worker, space_id, NAME)
        schedules.ensure_schedules(worker, NAME, ScheduleConfig(amount=1))
        assert runs.claim(worker, schedules.Due(space_id, space, "amount"), NAME, "here:1") is not None
        assert connection.execute(seen).fetchall() == [(NAME, "here:1", space)]
        assert onlooker.execute(seen).fetchall() == [(NAME, "here:1", None)]
        connection.execute("SELECT sona.grant_space(%s, %s, false)", (space, reader))
        assert onlooker.execute(seen).fetchall() == [(NAME, "here:1", space)]
    _until(lambda: connection.execute(seen).fetchall() == [], "the worker to go")


def test_of_workers_with_one_name_or_a_long_one_the_one_at_work_is_seen(loops_url: str, connection: Connection) -> None:
    space, name = _space(connection), f"{'host' * 15}:1"
    with connect(loops_url) as busy, connect(loops_url) as idle:
        for worker in (busy, idle):
            runs.prepare(worker, NAME, name)
        schedules.ensure_schedules(busy, NAME, ScheduleConfig(amount=1))
        (found,) = schedules.due(busy, NAME)
        assert runs.try_lock(busy, found.space_id, NAME)
        assert runs.claim(busy, found, NAME, name) is not None
        seen = connection.execute("SELECT backend, worker, space FROM sona.workers WHERE space IS NOT NULL").fetchall()
        assert seen == [(busy.info.backend_pid, name, space)]


# What dies ----------------------------------------------------------------------------------------------------------


def test_a_phase_that_was_committed_is_not_done_again(
    loops_url: str, connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space = _space(connection)
    killed = _worker(loops_url, **{ENV_KILL_AT: "cycle.after_read:2"})
    assert killed.wait(60) == -signal.SIGKILL
    _until(lambda: _runs(connection, space) == [("interrupted",)], "the lock to go")
    assert _sums(connection, space) == []
    # What came meanwhile is the next cycle's.
    _add(connection, space, 1)
    coordinator = coordinate()
    assert coordinator.step() == 1
    assert (_copied(connection, space), _sums(connection, space)) == ([0, 1, 2], [(3, 3)])
    assert coordinator.step() == 1
    assert _sums(connection, space) == [(3, 3), (1, 3)]


def test_a_standby_takes_over(loops_url: str, connection: Connection) -> None:
    space = _space(connection)
    _tell(connection, space, seconds=600.0)
    first = _worker(loops_url)
    _until(lambda: _runs(connection, space) == [("running",)], "the first worker")
    standby = _worker(loops_url)
    try:
        _until(lambda: len(connection.execute("SELECT FROM sona.workers").fetchall()) == 2, "the standby")
        ((loop, worker, name),) = connection.execute(
            "SELECT loop, worker, space FROM sona.workers WHERE run_id IS NOT NULL"
        ).fetchall()
        assert (loop, worker.rpartition(":")[2], name) == (NAME, str(first.pid), space)
        _tell(connection, space)
        first.kill()
        _until(lambda: _runs(connection, space) == [("done",)], "the standby to do it")
        ((worker,),) = _runs(connection, space, "worker")
        assert worker.endswith(f":{standby.pid}")
        assert _copied(connection, space) == [0, 1, 2]
    finally:
        for process in (first, standby):
            process.kill()
            process.communicate()


def test_what_a_worker_computed_while_its_connection_was_cut_is_not_written(
    loops_url: str, connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space, cut = _space(connection), threading.Event()

    def compute(entries: list[int], _: Cycle) -> list[int]:
        if not cut.is_set():
            cut.set()
            connection.execute("SELECT pg_terminate_backend(backend, 10000) FROM sona.workers")
            # Another worker does it meanwhile.
            assert coordinate().step() == 1
        return entries

    copy, add_up = DEMONSTRATION.phases
    loop = replace(DEMONSTRATION, phases=(replace(copy, compute=lambda f, c: compute(f[0], c)), add_up))
    coordinator = coordinate(loop)
    with pytest.raises(DatabaseUnavailable):
        coordinator.step()
    assert (_copied(connection, space), _sums(connection, space)) == ([0, 1, 2], [(3, 3)])
    assert coordinator.step() == 0  # connects anew, and finds it done
    assert _runs(connection, space, "state, attempts") == [("done", 1)]


def test_who_was_overtaken_cannot_write(
    loops_url: str, connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space = _space(connection)
    coordinator = coordinate()

    def overtake(found: object, cycle: Cycle) -> object:
        connection.execute("UPDATE sona.loop_schedule SET fence = fence + 1")
        with pytest.raises(LockLost, match="not this worker's any more"), runs.fenced(connection, cycle.run):
            raise AssertionError("the fence did not hold")
        return found

    copy, add_up = DEMONSTRATION.phases
    overtaken = replace(DEMONSTRATION, phases=(replace(copy, compute=overtake), add_up))
    assert coordinate(overtaken).step() == 0
    assert _copied(connection, space) == []
    assert coordinator.step() == 1
    assert _copied(connection, space) == [0, 1, 2]


def test_two_workers_of_one_name_do_it_once(connection: Connection, coordinate: Callable[..., LoopCoordinator]) -> None:
    spaces = [_space(connection) for _ in range(8)]
    pair = [coordinate() for _ in range(2)]  # of one process, hence of one name
    threads = [threading.Thread(target=coordinator.step) for coordinator in pair for _ in range(1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for space in spaces:
        assert _copied(connection, space) == [0, 1, 2]
        assert _sums(connection, space) == [(3, 3)]


def test_a_worker_that_is_to_end_leaves_the_cycle_to_the_next(loops_url: str, connection: Connection) -> None:
    space = _space(connection)
    _tell(connection, space, seconds=600.0)
    worker = _worker(loops_url)
    _until(lambda: _runs(connection, space) == [("running",)], "the worker")
    worker.terminate()
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 0, said
    assert _runs(connection, space, "state, worker, attempts") == [("interrupted", None, 0)]
    _tell(connection, space)
    with SonaEngine.connect(loops_url, space=space, background=False) as engine:
        assert engine.space.name == space
    successor = _worker(loops_url)
    _until(lambda: _runs(connection, space) == [("done",)], "the next worker")
    successor.terminate()
    successor.communicate(timeout=60)
    assert _copied(connection, space) == [0, 1, 2]


def test_a_worker_that_does_not_end_abandons_what_it_is_at(loops_url: str, connection: Connection) -> None:
    space = _space(connection)
    _tell(connection, space, seconds=2 * demonstration.DEAF_SECONDS)
    worker = _worker(loops_url, DRAIN_SECONDS="0.5")
    _until(lambda: _runs(connection, space) == [("running",)], "the worker")
    worker.terminate()
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert "abandoned after 0.5 s" in said
    _until(lambda: _runs(connection, space) == [("interrupted",)], "the lock to go")
    assert _copied(connection, space) == []
