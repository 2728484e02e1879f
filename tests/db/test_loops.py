"""Cycles of slow loops: due once, by amount, time, window or request, and committed phase by phase."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sona_pg.config import ScheduleConfig
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.cycle import Cycle, Phase
from sona_pg.store import runs, schedules
from sona_pg.store.connection import Connection, connect
from tests.acceptance.demonstration import DEMONSTRATION, NAME

from .scheduled import CONFIG, _add, _copied, _runs, _space, _sums, _tell, _until
from .scheduled import connection as connection
from .scheduled import coordinate as coordinate
from .scheduled import loops_url as loops_url


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
