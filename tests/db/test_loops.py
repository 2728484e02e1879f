"""Cycles of slow loops: due once, committed phase by phase under the fence, resumed, and no space stops another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sona_pg import DatabaseUnavailable, PermissionDenied, SonaEngine, StoreConfig
from sona_pg.config import ScheduleConfig, WorkerConfig
from sona_pg.errors import ConfigError, DatabaseBusy, LockLost, UnknownLoop, UnknownSpace
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.cycle import Cycle, Loop, Phase
from sona_pg.steps import ENV_KILL_AT
from sona_pg.store import runs, schedules
from sona_pg.store.connection import Connection, connect, translated
from sona_pg.store.database import Database
from tests.acceptance import demonstration
from tests.acceptance.demonstration import DEMONSTRATION, NAME, TABLES

CONFIG = WorkerConfig(poll_interval_seconds=0.05, set_aside_after=2, attempts=2, longest_setback_seconds=1.0)


@pytest.fixture(scope="module")
def loops_url(make_database: Callable[[], str]) -> str:
    from sona_pg.store.migrate import migrate

    made = make_database()
    migrate(made)
    with connect(made) as connection:
        for statement in TABLES:
            connection.execute(statement)
    return made


@pytest.fixture
def connection(loops_url: str) -> Iterator[Connection]:
    with connect(loops_url) as opened:
        yield opened
        # A loop runs in every space: what a test leaves is not the next one's.
        for (name,) in opened.execute("SELECT name FROM sona.space").fetchall():
            opened.execute("SELECT sona.drop_space(%s)", (name,))
        opened.execute("TRUNCATE public.demonstration_entry, public.demonstration_sum, public.demonstration_order")


@pytest.fixture
def coordinate(loops_url: str) -> Iterator[Callable[..., LoopCoordinator]]:
    made: list[LoopCoordinator] = []

    def make(loop: Loop = DEMONSTRATION, config: WorkerConfig = CONFIG) -> LoopCoordinator:
        made.append(LoopCoordinator(Database(loops_url, StoreConfig()), loop, config))
        return made[-1]

    yield make
    for coordinator in made:
        coordinator.close()


def _space(connection: Connection, entries: int = 3) -> str:
    name = f"loops-{uuid.uuid4().hex[:8]}"
    connection.execute("SELECT sona.create_space(%s, 2)", (name,))
    _add(connection, name, entries)
    return name


def _add(connection: Connection, space: str, entries: int) -> None:
    """Ledger entries, as if learned."""
    connection.execute(
        "WITH l AS (UPDATE sona.learner l SET ordinal = ordinal + %(n)s FROM sona.space s"
        " WHERE s.name = %(space)s AND s.space_id = l.space_id RETURNING l.space_id, l.ordinal)"
        " INSERT INTO sona.learning_event (space_id, loop, trajectory_id, revision, cycle_id, ordinal, learned)"
        " SELECT l.space_id, 'instant', gen_random_uuid(), 0, 1, l.ordinal - i, 'adapter'"
        " FROM l, generate_series(1, %(n)s) i",
        {"space": space, "n": entries},
    )


def _tell(connection: Connection, space: str, *, seconds: float = 0.0, fault: str | None = None) -> None:
    connection.execute("DELETE FROM public.demonstration_order o USING sona.space s WHERE s.name = %s"
                       " AND s.space_id = o.space_id", (space,))  # fmt: skip
    connection.execute(
        "INSERT INTO public.demonstration_order SELECT space_id, %s, %s FROM sona.space WHERE name = %s",
        (seconds, fault, space),
    )


def _runs(connection: Connection, space: str, columns: str = "state") -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT {columns} FROM sona.runs WHERE space = %s ORDER BY run_id", (space,)).fetchall()


def _copied(connection: Connection, space: str) -> list[int]:
    rows = connection.execute(
        "SELECT e.ordinal FROM public.demonstration_entry e JOIN sona.space s USING (space_id) WHERE s.name = %s"
        " ORDER BY e.ordinal",
        (space,),
    ).fetchall()
    return [ordinal for (ordinal,) in rows]


def _sums(connection: Connection, space: str) -> list[tuple[int, int]]:
    return connection.execute(
        "SELECT m.entries, m.total FROM public.demonstration_sum m JOIN sona.space s USING (space_id) WHERE s.name = %s"
        " ORDER BY m.run_id",
        (space,),
    ).fetchall()


def _until(so: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline, f"after {seconds} s, still waiting for {what}"
        time.sleep(0.02)


def _worker(url: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, demonstration.__file__, url],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


# What is due ------------------------------------------------------------------------------------------------------


def test_a_cycle_runs_when_the_amount_is_there_and_not_again(
    connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space, coordinator = _space(connection), coordinate()
    assert coordinator.step() == 1
    assert coordinator.step() == 0
    assert _runs(connection, space, "state, cause, facts") == [("done", "amount", {"entries": 3, "total": 3})]
    assert _copied(connection, space) == [0, 1, 2]
    _add(connection, space, 2)
    assert coordinator.step() == 1
    assert _sums(connection, space) == [(3, 3), (2, 7)]


def test_phases_are_noted_down_with_their_times(
    connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space = _space(connection)
    _tell(connection, space, seconds=0.2)
    coordinate().step()
    ((phases, worker),) = _runs(connection, space, "phases, worker")
    assert [phase["name"] for phase in phases] == ["copy", "sum"]
    assert phases[0]["compute_seconds"] >= 0.2 > phases[1]["compute_seconds"]
    assert worker.endswith(f":{os.getpid()}")


def test_an_interval_is_due_after_it(connection: Connection, coordinate: Callable[..., LoopCoordinator]) -> None:
    space, coordinator = _space(connection), coordinate(replace(DEMONSTRATION, schedule=ScheduleConfig(3600.0)))
    assert coordinator.step() == 0
    ((next_at,),) = connection.execute("SELECT next_at FROM sona.schedules WHERE space = %s", (space,)).fetchall()
    assert timedelta(minutes=59) < next_at - datetime.now(UTC) < timedelta(minutes=61)
    connection.execute("UPDATE sona.loop_schedule SET next_at = now() - interval '1 week'")
    assert coordinator.step() == 1
    assert coordinator.step() == 0  # once, however many were missed
    assert _runs(connection, space, "cause") == [("time",)]


def test_a_cron_expression_is_planned(connection: Connection, coordinate: Callable[..., LoopCoordinator]) -> None:
    space, coordinator = _space(connection), coordinate()
    coordinator.step()
    connection.execute(
        "SELECT sona.set_schedule(%s, %s, cron => '0 3 * * 0', time_zone => 'Asia/Tokyo')", (space, NAME)
    )
    assert coordinator.step() == 0
    ((local,),) = connection.execute(
        "SELECT next_at AT TIME ZONE 'Asia/Tokyo' FROM sona.schedules WHERE space = %s", (space,)
    ).fetchall()
    assert (local.isoweekday(), local.hour, local.minute) == (7, 3, 0)


def test_a_first_time_that_is_given_is_kept(connection: Connection, coordinate: Callable[..., LoopCoordinator]) -> None:
    space, coordinator = _space(connection), coordinate()
    coordinator.step()
    at = datetime.now(UTC) + timedelta(days=3)
    connection.execute("SELECT sona.set_schedule(%s, %s, every => '1 hour', first_at => %s)", (space, NAME, at))
    assert coordinator.step() == 0
    assert connection.execute("SELECT next_at FROM sona.schedules WHERE space = %s", (space,)).fetchall() == [(at,)]


def test_a_clock_that_went_back_does_not_put_a_cycle_off(
    connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space, coordinator = _space(connection), coordinate(replace(DEMONSTRATION, schedule=ScheduleConfig(3600.0)))
    coordinator.step()
    # As it was planned while the clock was in the year after.
    connection.execute(
        "UPDATE sona.loop_schedule SET planned_at = now() + interval '1 year', next_at = now() + interval '8761 hours',"
        " retry_at = now() + interval '1 year'"
    )
    coordinator.step()
    ((next_at,),) = connection.execute("SELECT next_at FROM sona.schedules WHERE space = %s", (space,)).fetchall()
    assert next_at - datetime.now(UTC) < timedelta(minutes=61)
    connection.execute("UPDATE sona.loop_schedule SET next_at = now()")
    assert coordinator.step() == 1


def test_outside_of_its_windows_nothing_is_due(
    connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space, coordinator = _space(connection), coordinate()
    coordinator.step()
    _add(connection, space, 1)
    now = datetime.now(UTC)
    shut = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"
    around = f"{now - timedelta(hours=1):%H:%M}-{now + timedelta(hours=1):%H:%M}"
    connection.execute("SELECT sona.set_schedule(%s, %s, amount => 1, windows => %s)", (space, NAME, [shut]))
    assert coordinator.step() == 0
    connection.execute("SELECT sona.set_schedule(%s, %s, amount => 1, windows => %s)", (space, NAME, [shut, around]))
    assert coordinator.step() == 1


def test_what_another_worker_has_put_off_or_a_window_shuts_is_not_claimed(connection: Connection) -> None:
    space = _space(connection)
    schedules.ensure_schedules(connection, NAME, DEMONSTRATION.schedule)
    (found,) = schedules.due(connection, NAME)
    now = datetime.now(UTC)
    shut = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"
    for change in (
        "failures = 1, retry_at = now() + interval '1 hour'",
        "is_enabled = false",
        "set_aside_at = now()",
        f"windows = ARRAY['{shut}']",
    ):
        with connection.transaction(force_rollback=True):
            connection.execute(f"UPDATE sona.loop_schedule SET {change}")  # type: ignore[arg-type]
            assert runs.claim(connection, found, NAME, "here:1") is None, change
    assert runs.claim(connection, found, NAME, "here:1") is not None
    assert _runs(connection, space) == [("interrupted",)]


def test_a_cycle_that_found_nothing_does_not_put_off_the_one_that_is_due_by_time(
    connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space = _space(connection, entries=0)
    coordinator = coordinate(
        replace(DEMONSTRATION, schedule=ScheduleConfig(3600.0, amount=1)),
        replace(CONFIG, longest_setback_seconds=300.0),
    )
    for _ in range(2):
        coordinator.step()
        connection.execute("UPDATE sona.loop_schedule SET next_at = now()")
    assert coordinator.step() == 1
    assert _runs(connection, space, "state, cause") == [("skipped", "time")] * 2
    connection.execute("UPDATE sona.loop_schedule SET consumed = -1")
    assert coordinator.step() == 0


def test_a_first_time_that_is_set_during_a_cycle_is_kept(
    loops_url: str, connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space = _space(connection)
    at = datetime.now(UTC) + timedelta(days=3)

    def reschedule(read: object, _: Cycle) -> object:
        with connect(loops_url) as another:
            another.execute("SELECT sona.set_schedule(%s, %s, first_at => %s)", (space, NAME, at))
        return read

    loop = replace(DEMONSTRATION, phases=(Phase("set", lambda *_: None, reschedule, lambda *_: {}),))
    assert coordinate(loop).step() == 1
    assert connection.execute("SELECT next_at FROM sona.schedules WHERE space = %s", (space,)).fetchall() == [(at,)]


def test_what_was_planned_of_a_schedule_that_is_another_by_now_is_dropped(connection: Connection) -> None:
    space = _space(connection)
    schedules.ensure_schedules(connection, NAME, ScheduleConfig(every_seconds=60.0))
    now, (before,) = schedules.unplanned(connection, NAME)
    connection.execute("SELECT sona.set_schedule(%s, %s, cron => '0 3 * * 0')", (space, NAME))
    schedules.plan(connection, NAME, now, {before: now + timedelta(minutes=1)})
    assert not schedules.set_schedule_aside(connection, before, NAME)
    found = connection.execute("SELECT next_at, set_aside_at FROM sona.schedules WHERE space = %s", (space,)).fetchall()
    assert found == [(None, None)]


def test_windows_go_over_midnight(connection: Connection) -> None:
    def is_in(moment: str, *windows: str) -> bool:
        row = connection.execute(
            "SELECT sona._in_windows(%s, 'Europe/Berlin', %s::timestamptz)", (list(windows), moment)
        ).fetchone()
        assert row is not None
        return bool(row[0])

    assert is_in("2026-06-01 12:00+00")
    for moment, inside in {
        "21:59": False,
        "22:00": True,
        "23:59": True,
        "00:00": True,
        "05:59": True,
        "06:00": False,
    }.items():
        assert is_in(f"2026-06-01 {moment}+02", "22:00-06:00") is inside
        assert is_in(f"2026-06-01 {moment}+02", "06:00-22:00") is not inside


def test_what_is_disabled_is_due_when_it_is_asked_for(
    connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space, coordinator = _space(connection), coordinate()
    coordinator.step()
    connection.execute("SELECT sona.set_schedule(%s, %s, amount => 1, enabled => false)", (space, NAME))
    _add(connection, space, 1)
    assert coordinator.step() == 0
    ((asked,),) = connection.execute("SELECT sona.run_cycle(%s, %s)", (space, NAME)).fetchall()
    ((again,),) = connection.execute("SELECT sona.run_cycle(%s, %s)", (space, NAME)).fetchall()
    assert asked == again
    found = connection.execute("SELECT state, requested_by FROM sona.runs WHERE run_id = %s", (asked,)).fetchall()
    assert found == [("requested", connection.info.user)]
    assert coordinator.step() == 1
    found = connection.execute("SELECT state, cause, facts FROM sona.runs WHERE run_id = %s", (asked,)).fetchall()
    assert found == [("done", "manual", {"entries": 1, "total": 3})]


def test_a_cycle_that_finds_nothing_consumes_nothing_and_says_so(
    connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space, coordinator = _space(connection, entries=0), coordinate()
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (space,))  # another loop's
    coordinator.step()
    connection.execute("SELECT sona.run_cycle(%s, %s)", (space, NAME))
    assert coordinator.step() == 1
    assert _runs(connection, space, "loop, state, reason") == [
        ("background", "requested", None),
        (NAME, "skipped", "no new entries"),
    ]
    assert coordinator.failing == []


def test_a_request_wakes_a_worker(connection: Connection, coordinate: Callable[..., LoopCoordinator]) -> None:
    space = _space(connection)
    coordinator = coordinate(config=replace(CONFIG, poll_interval_seconds=3600.0))
    coordinator.step()
    stop = threading.Event()
    thread = threading.Thread(target=coordinator.run, args=(stop,))
    thread.start()
    try:
        _until(lambda: connection.execute("SELECT FROM sona.workers WHERE run_id IS NULL").fetchall(), "the worker")
        time.sleep(0.2)
        connection.execute("SELECT sona.run_cycle(%s, %s)", (space, NAME))
        _until(lambda: _runs(connection, space)[-1:] == [("skipped",)], "the cycle that was asked for")
    finally:
        stop.set()
        thread.join()


def test_many_requests_during_a_cycle_cause_one_look(
    loops_url: str, connection: Connection, coordinate: Callable[..., LoopCoordinator], monkeypatch: pytest.MonkeyPatch
) -> None:
    space, looks, find = _space(connection, entries=0), [0.0], schedules.due

    def due(asker: Connection, loop: str) -> list[schedules.Due]:
        looks.append(time.monotonic())
        return find(asker, loop)

    monkeypatch.setattr(schedules, "due", due)
    coordinator = coordinate(config=replace(CONFIG, poll_interval_seconds=3600.0))
    coordinator.step()
    for _ in range(500):
        connection.execute("SELECT sona.run_cycle(%s, %s)", (space, NAME))
    stop = threading.Event()
    thread = threading.Thread(target=coordinator.run, args=(stop,))
    thread.start()
    try:
        _until(lambda: _runs(connection, space) == [("skipped",)], "the cycle that was asked for")
        _until(lambda: time.monotonic() > looks[-1] + 1.0, "the worker to wait")
    finally:
        stop.set()
        thread.join()
    assert len(looks) < 10


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("cron => '0 3 * *'", "cron expression"),
        ("cron => 'DROP TABLE x'", "cron expression"),
        ("every => '0 seconds'", "every 0"),
        ("every => '-1 hour'", "every -3600"),
        ("every => '1 hour', cron => '0 3 * * 0'", "one of the two"),
        ("amount => 0", "after 0"),
        ("windows => '{22:00}'", "the window"),
        ("windows => '{25:00-26:00}'", "the window"),
        ("windows => '{10:00-10:00}'", "the window"),
        ("windows => ARRAY[NULL::text]", "the window"),
        ("windows => NULL", "NULL"),
        ("time_zone => 'Mars/Olympus'", "time zone"),
        ("first_at => now() - interval '1 hour'", "past"),
        ("first_at => 'infinity'", "never"),
        ("enabled => NULL", "NULL"),
    ],
)
def test_a_schedule_that_says_nothing_is_refused(connection: Connection, arguments: str, says: str) -> None:
    space = _space(connection)
    with pytest.raises(ConfigError, match=says), translated():
        connection.execute(f"SELECT sona.set_schedule('{space}', 'background', {arguments})")  # type: ignore[arg-type]


@pytest.mark.parametrize("loop", ["instant", "backgroud", "", None])
def test_an_unknown_loop_is_refused(connection: Connection, loop: str | None) -> None:
    space = _space(connection)
    for statement in ("SELECT sona.run_cycle(%s, %s)", "SELECT sona.set_schedule(%s, %s, every => '1 hour')"):
        with pytest.raises(UnknownLoop, match=r"expected background or deep|have cycles"), translated():
            connection.execute(statement, (space, loop))


def test_an_unknown_space_is_refused(connection: Connection) -> None:
    with pytest.raises(UnknownSpace):
        runs.request(connection, "nowhere", "background")


def test_an_expression_that_only_a_worker_can_refuse_sets_the_loop_aside(
    connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space, other, coordinator = _space(connection), _space(connection), coordinate()
    coordinator.step()
    connection.execute("SELECT sona.set_schedule(%s, %s, cron => '0 3 31 2 *')", (space, NAME))
    _add(connection, other, 1)
    assert coordinator.step() == 1
    assert coordinator.step() == 0
    ((aside,),) = connection.execute("SELECT set_aside_at FROM sona.schedules WHERE space = %s", (space,)).fetchall()
    assert aside is not None
    ((message,),) = connection.execute("SELECT message FROM sona.errors WHERE space = %s", (space,)).fetchall()
    assert "means no time" in message
    assert "sona.set_schedule" in message


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


# What fails ---------------------------------------------------------------------------------------------------------


def test_a_poisonous_space_is_set_aside_and_stops_no_other(
    connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    poisonous, healthy, coordinator = _space(connection), _space(connection), coordinate()
    _tell(connection, poisonous, fault="poison")
    assert coordinator.step() == 2
    assert _runs(connection, healthy) == [("done",)]
    assert coordinator.failing == [poisonous]
    _until(coordinator.step, "the second try")
    assert _runs(connection, poisonous, "state, reason") == [("failed", "ValueError: poison")] * 2
    ((failures, aside, reason),) = connection.execute(
        "SELECT failures, set_aside_at IS NOT NULL, reason FROM sona.schedules WHERE space = %s", (poisonous,)
    ).fetchall()
    assert (failures, aside, reason) == (2, True, "ValueError: poison")
    messages = [m for (m,) in connection.execute("SELECT message FROM sona.errors WHERE space = %s", (poisonous,))]
    assert ["set aside" in message for message in messages] == [False, True]
    connection.execute("UPDATE sona.loop_schedule SET retry_at = now()")
    assert coordinator.step() == 0
    # Mended, and asked for.
    _tell(connection, poisonous)
    connection.execute("SELECT sona.run_cycle(%s, %s)", (poisonous, NAME))
    assert coordinator.step() == 1
    assert _copied(connection, poisonous) == [0, 1, 2]
    assert coordinator.failing == []
    _add(connection, poisonous, 1)
    assert coordinator.step() == 1


@pytest.mark.parametrize("statement", ["SELECT 1", "SELECT 1 / 0"])
def test_a_phase_that_leaves_a_transaction_fails_alone(
    connection: Connection, coordinate: Callable[..., LoopCoordinator], statement: str
) -> None:
    careless, careful = _space(connection), _space(connection)
    copy, add_up = DEMONSTRATION.phases

    def read(own: Connection, cycle: Cycle) -> object:
        if cycle.space.name == careless:
            own.execute("BEGIN")
            own.execute(statement)  # type: ignore[arg-type]
        return copy.read(own, cycle)

    coordinator = coordinate(replace(DEMONSTRATION, phases=(replace(copy, read=read), add_up)))
    assert coordinator.step() == 2
    assert (_runs(connection, careless), _runs(connection, careful)) == ([("failed",)], [("done",)])
    assert (_copied(connection, careless), _copied(connection, careful)) == ([], [0, 1, 2])


@pytest.mark.parametrize("facts", [{"a": "\0"}, {"a": "\ud800"}, {"a": float("nan")}, {"a": object()}, None])
def test_facts_that_are_no_json_fail_the_cycle(
    connection: Connection, coordinate: Callable[..., LoopCoordinator], facts: dict[str, object] | None
) -> None:
    space = _space(connection)
    phase: Phase[Any, Any] = Phase("tell", lambda *_: None, lambda *_: None, lambda *_: facts)
    assert coordinate(replace(DEMONSTRATION, phases=(phase,))).step() == 1
    assert _runs(connection, space, "state, phases") == [("failed", [])]


@pytest.mark.parametrize("reason", ["\0", "\ud800", "é" * 20_000], ids=["zero", "half", "long"])
def test_a_reason_that_is_no_text_is_noted_down_as_near_as_it_can_be(
    connection: Connection, coordinate: Callable[..., LoopCoordinator], reason: str
) -> None:
    space = _space(connection)

    def fail(*_: object) -> None:
        raise ValueError(reason)

    phase: Phase[Any, Any] = Phase("fail", lambda *_: None, fail, lambda *_: {})
    assert coordinate(replace(DEMONSTRATION, phases=(phase,))).step() == 1
    ((said,),) = _runs(connection, space, "reason")
    assert said.startswith("ValueError: ")
    assert connection.execute("SELECT message FROM sona.errors WHERE space = %s", (space,)).fetchall() == [(said,)]


def test_a_server_that_is_short_of_something_does_not_end_the_worker(
    connection: Connection, coordinate: Callable[..., LoopCoordinator], monkeypatch: pytest.MonkeyPatch
) -> None:
    space, ensure, refusals = _space(connection), schedules.ensure_schedules, [1, 2, 3]

    def refuse(asker: Connection, loop: str, default: ScheduleConfig) -> int:
        if refusals:
            refusals.pop()
            raise DatabaseBusy("no space left on device")
        return ensure(asker, loop, default)

    monkeypatch.setattr(schedules, "ensure_schedules", refuse)
    stop, coordinator = threading.Event(), coordinate()
    thread = threading.Thread(target=coordinator.run, args=(stop,))
    thread.start()
    try:
        _until(lambda: _runs(connection, space) == [("done",)], "the cycle")
    finally:
        stop.set()
        thread.join()


def test_a_schedule_that_was_set_aside_stays_so_when_what_was_asked_for_fails(
    connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space, coordinator = _space(connection), coordinate()
    coordinator.step()
    connection.execute("SELECT sona.set_schedule(%s, %s, cron => '0 3 31 2 *')", (space, NAME))
    coordinator.step()
    _tell(connection, space, fault="poison")
    connection.execute("SELECT sona.run_cycle(%s, %s)", (space, NAME))
    assert coordinator.step() == 1
    found = connection.execute("SELECT failures, set_aside_at IS NULL FROM sona.schedules WHERE space = %s", (space,))
    assert found.fetchall() == [(1, False)]


def test_a_cycle_that_kills_worker_after_worker_is_set_aside(
    loops_url: str, connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space = _space(connection)
    for _ in range(CONFIG.attempts):
        killed = _worker(loops_url, **{ENV_KILL_AT: "cycle.after_read"})
        assert killed.wait(60) == -signal.SIGKILL
    coordinator = coordinate()
    assert coordinator.step() == 1
    ((state, reason, phases),) = _runs(connection, space, "state, reason, phases")
    assert (state, phases) == ("failed", [])
    assert "2 workers have died" in reason
    assert "'copy'" in reason


def test_a_full_disk_is_no_fault_of_the_space(
    server_url: str, connection: Connection, coordinate: Callable[..., LoopCoordinator], tmp_path: Path
) -> None:
    disk = Path(tempfile.mkdtemp(prefix="sona-disk-"))  # where the server's account may go
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False).returncode:
        # Only root may mount one, as on the machines where changes are checked.
        pytest.skip("no small disk can be mounted")
    try:
        disk.chmod(0o777)
        ((data,),) = connection.execute("SHOW data_directory").fetchall()
        owner = os.stat(data)
        os.chown(disk, owner.st_uid, owner.st_gid)
        disk.chmod(0o700)
        connection.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")  # type: ignore[arg-type]
        connection.execute("ALTER TABLE public.demonstration_entry SET TABLESPACE small")
        space, other = _space(connection, entries=40_000), _space(connection)
        ballast = disk / "ballast"
        ballast.write_bytes(b"0" * (7 << 20))
        coordinator = coordinate()
        coordinator.step()
        ((state, reason),) = _runs(connection, space, "state, reason")
        assert (state, "No space left on device" in reason) == ("failed", True)
        for _ in range(CONFIG.set_aside_after):
            connection.execute("UPDATE sona.loop_schedule SET retry_at = NULL")
            coordinator.step()
        assert connection.execute("SELECT FROM sona.schedules WHERE set_aside_at IS NOT NULL").fetchall() == []
        ballast.unlink()
        connection.execute("UPDATE sona.loop_schedule SET retry_at = NULL")
        coordinator.step()
        assert len(_copied(connection, space)) == 40_000
        assert _copied(connection, other) == [0, 1, 2]
    finally:
        connection.execute("ALTER TABLE public.demonstration_entry SET TABLESPACE pg_default")
        connection.execute("DROP TABLESPACE IF EXISTS small")
        subprocess.run(["umount", str(disk)], check=True)


def test_a_space_that_is_deleted_in_the_middle_is_left(
    connection: Connection, loops_url: str, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space, other = _space(connection), _space(connection)

    def drop(read: object, cycle: Cycle) -> object:
        if cycle.space.name == space:
            with connect(loops_url) as another:
                another.execute("SELECT sona.drop_space(%s)", (space,))
        return read

    loop = replace(DEMONSTRATION, phases=(Phase("drop", lambda *_: None, drop, lambda *_: {}), *DEMONSTRATION.phases))
    assert coordinate(loop).step() == 1
    assert _runs(connection, other) == [("done",)]


def test_a_space_is_deleted_after_what_a_cycle_writes_and_neither_waits_for_the_other(
    loops_url: str, connection: Connection, coordinate: Callable[..., LoopCoordinator]
) -> None:
    space, droppers, written = _space(connection), list[threading.Thread](), list[int]()

    def drop() -> None:
        with connect(loops_url, application="dropper") as another:
            another.execute("SELECT sona.drop_space(%s)", (space,))

    def write(own: Connection, _: object, cycle: Cycle) -> dict[str, int]:
        droppers.append(threading.Thread(target=drop))
        droppers[0].start()
        waits = "SELECT FROM pg_stat_activity WHERE application_name = 'dropper' AND wait_event_type = 'Lock'"
        _until(lambda: connection.execute(waits).fetchall(), "the deletion to wait")
        own.execute("UPDATE sona.learner SET updated_at = now() WHERE space_id = %s", (cycle.space.space_id,))
        written.append(cycle.run.run_id)
        return {}

    phase: Phase[Any, Any] = Phase("write", lambda *_: None, lambda *_: None, write)
    coordinate(replace(DEMONSTRATION, phases=(phase,))).step()
    droppers[0].join()
    assert connection.execute("SELECT FROM sona.space WHERE name = %s", (space,)).fetchall() == []
    assert len(written) == 1


def test_a_space_that_is_deleted_while_it_is_claimed_is_left(loops_url: str, connection: Connection) -> None:
    space = _space(connection)
    schedules.ensure_schedules(connection, NAME, DEMONSTRATION.schedule)
    (found,) = schedules.due(connection, NAME)
    waits = "SELECT FROM pg_stat_activity WHERE application_name = 'claimer' AND wait_event_type = 'Lock'"
    refused: list[UnknownSpace] = []

    def claim() -> None:
        with connect(loops_url, application="claimer") as another:
            try:
                runs.claim(another, found, NAME, "here:1")
            except UnknownSpace as error:
                refused.append(error)

    claimer = threading.Thread(target=claim)
    with connection.transaction():
        connection.execute("SELECT FROM sona.loop_schedule FOR UPDATE")
        claimer.start()
        with connect(loops_url) as onlooker:
            _until(lambda: onlooker.execute(waits).fetchall(), "the claim to wait")
        connection.execute("SELECT sona.drop_space(%s)", (space,))
    claimer.join()
    assert len(refused) == 1


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


def test_old_runs_go(connection: Connection, coordinate: Callable[..., LoopCoordinator]) -> None:
    space, coordinator = _space(connection), coordinate(config=replace(CONFIG, keep_runs=2))
    for _ in range(4):
        _add(connection, space, 1)
        assert coordinator.step() == 1
    assert _runs(connection, space) == [("done",)] * 2
    _tell(connection, space, fault="poison")
    _add(connection, space, 1)
    for _ in range(3):
        connection.execute("SELECT sona.run_cycle(%s, %s)", (space, NAME))
        assert coordinator.step() == 1
    assert _runs(connection, space) == [("failed",)] * 2
