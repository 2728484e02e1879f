"""What is refused or fails sets its own loop aside, is noted down, and stops no other space."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sona_pg.config import ScheduleConfig
from sona_pg.errors import ConfigError, DatabaseBusy, UnknownLoop, UnknownSpace
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.cycle import Cycle, Phase
from sona_pg.steps import ENV_KILL_AT
from sona_pg.store import runs, schedules
from sona_pg.store.connection import Connection, connect, translated
from tests.acceptance.demonstration import DEMONSTRATION, NAME

from .scheduled import CONFIG, _add, _copied, _runs, _space, _tell, _until, _worker
from .scheduled import connection as connection
from .scheduled import coordinate as coordinate
from .scheduled import loops_url as loops_url

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
