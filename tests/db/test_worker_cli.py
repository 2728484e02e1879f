"""Workers and cycles on the command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from sona_pg.config import BackgroundConfig
from sona_pg.loops.catalog import LOOPS
from sona_pg.store.connection import Connection, connect

from .command_line import sona


@pytest.fixture
def space(url: str) -> Iterator[str]:
    name = f"cycles-{uuid.uuid4().hex[:8]}"
    with connect(url) as connection:
        connection.execute("SELECT sona.create_space(%s, 2)", (name,))
        yield name
        connection.execute("SELECT sona.drop_space(%s)", (name,))


@contextlib.contextmanager
def _all_workers(url: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "sona_pg", "worker", "all", "--url", url, "--poll-interval", "0.1", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _children(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


def _connected(connection: Connection) -> set[str]:
    return {loop for (loop,) in connection.execute("SELECT loop FROM sona.workers").fetchall()}


def _until(so: object, what: str) -> None:
    deadline = time.monotonic() + 60
    while not so():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.05)


def test_all_loops_have_a_process_which_is_replaced_when_it_dies(url: str) -> None:
    everything = {"instant", *LOOPS}
    with connect(url) as connection, _all_workers(url) as process:
        _until(lambda: _connected(connection) == everything, "the workers")
        children = _children(process)
        assert len(children) == len(everything)
        os.kill(children[0], signal.SIGKILL)
        _until(
            lambda: children[0] not in _children(process) and len(_children(process)) == len(children), "another one"
        )
        _until(lambda: _connected(connection) == everything, "the workers")
        children = _children(process)
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "died with status -9 and is started again" in said
        _until(lambda: not _connected(connection), "the connections to go")
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def test_a_worker_has_one_thread(url: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-m", "sona_pg", "worker", "instant", "--url", url]
    with connect(url) as connection:
        worker = subprocess.Popen(command, env=environment)
        try:
            _until(lambda: _connected(connection) == {"instant"}, "the worker")
            assert len(os.listdir(f"/proc/{worker.pid}/task")) == 1
        finally:
            worker.terminate()
            worker.wait()


def test_workers_that_are_refused_end_with_their_reason(url: str) -> None:
    nowhere = make_conninfo(url, dbname="nowhere")
    done = sona("worker", "all", "--url", nowhere)
    assert done.returncode == 1
    assert "nowhere" in done.stderr


@pytest.mark.parametrize("loop", ["instant", *LOOPS])
def test_a_login_that_may_not_learn_is_refused(url: str, role: Callable[..., str], loop: str) -> None:
    for group in ("sona_reader", "sona_app"):
        done = sona("worker", loop, "--once", url=make_conninfo(url, user=role("guest", group)))
        assert done.returncode == 1
        assert "make it a member of sona_worker" in done.stderr
    done = sona("worker", loop, "--once", url=make_conninfo(url, user=role("guest", "sona_worker")))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("loop", ["instant", "all", *LOOPS])
@pytest.mark.parametrize(("revision", "way_out"), [("0001", "sona migrate"), ("9999", "that migrated it")])
def test_a_worker_refuses_another_schema(empty_url: str, loop: str, revision: str, way_out: str) -> None:
    with connect(empty_url, vectors=False) as connection:
        connection.execute("CREATE SCHEMA sona")
        connection.execute("CREATE TABLE sona.alembic_version (version_num text)")
        connection.execute("INSERT INTO sona.alembic_version VALUES (%s)", (revision,))
    done = sona("worker", loop, url=empty_url)
    assert done.returncode == 1
    assert f"revision {revision}" in done.stderr
    assert way_out in done.stderr


def _skipped(connection: Connection, space: str) -> list[str]:
    """Why cycles were skipped, the newest first."""
    rows = connection.execute(
        "SELECT reason FROM sona.runs WHERE space = %s AND state = 'skipped' ORDER BY run_id DESC", (space,)
    )
    return [reason for (reason,) in rows]


@pytest.mark.parametrize(
    ("options", "environment", "minimum"),
    [
        ((), {}, BackgroundConfig().minimum),
        ((), {"SONA_BACKGROUND_MINIMUM": ""}, BackgroundConfig().minimum),
        ((), {"SONA_BACKGROUND_MINIMUM": "7"}, 7),
        (("--minimum", "5"), {"SONA_BACKGROUND_MINIMUM": "7"}, 5),
    ],
)
def test_a_setting_is_the_option_then_the_environment_then_the_default(
    url: str, space: str, options: tuple[str, ...], environment: dict[str, str], minimum: int
) -> None:
    with connect(url) as connection:
        connection.execute("SELECT sona.run_cycle(%s, 'background')", (space,))
        done = sona("worker", "background", "--once", *options, url=url, **environment)
        assert done.returncode == 0, done.stderr
        assert _skipped(connection, space)[0] == f"0 of {minimum} new trajectories with an outcome"


def test_a_worker_works_in_the_database_of_its_file(url: str, space: str, tmp_path: Path) -> None:
    file = tmp_path / "sona.toml"
    with connect(url) as connection:
        connection.execute("SELECT sona.run_cycle(%s, 'background')", (space,))
        file.write_text(f"database_url = {json.dumps(url)}\n[background_config]\nminimum = 9")
        done = sona("worker", "background", "--once", f"--config={file}", home=tmp_path)
        assert done.returncode == 0, done.stderr
        assert _skipped(connection, space)[0] == "0 of 9 new trajectories with an outcome"
    assert sona("worker", "instant", "--once", f"--config={file}", home=tmp_path).returncode == 0
    nowhere = make_conninfo(url, dbname="nowhere")
    file.write_text(f"database_url = {json.dumps(nowhere)}")
    for loop in ("instant", "deep", "all"):
        done = sona("worker", loop, f"--config={file}", home=tmp_path)
        assert done.returncode == 1
        assert "nowhere" in done.stderr
    done = sona("worker", "deep", "--once", f"--config={file}", url=url)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("loop", ["instant", "all", *LOOPS])
def test_a_worker_refuses_a_variable_that_nothing_knows(url: str, loop: str) -> None:
    done = sona("worker", loop, url=url, SONA_BACKGROUND_MINIMUN="5")
    assert (done.returncode, "did you mean SONA_BACKGROUND_MINIMUM?" in done.stderr) == (2, True)


def test_settings_reach_the_processes_of_all_loops(url: str, space: str) -> None:
    with connect(url) as connection:
        connection.execute("SELECT sona.run_cycle(%s, 'background')", (space,))
        with _all_workers(url, "--minimum", "3"):
            _until(lambda: _skipped(connection, space), "the cycle")
        assert _skipped(connection, space)[0] == "0 of 3 new trajectories with an outcome"


@pytest.mark.parametrize("command", ["background", "all"])
@pytest.mark.parametrize(
    ("options", "environment", "says"),
    [
        (("--minimum", "0"), {}, "minimum is 0, expected 1"),
        (("--quality-threshold", "nan"), {}, "quality_threshold is nan"),
        (("--max-trajectories", "many"), {}, "'many' is not a valid integer"),
        ((), {"SONA_BACKGROUND_K_CLUSTERS": "0"}, "k_clusters is 0, expected 1"),
        ((), {"SONA_BACKGROUND_PRUNE_AGE_SECONDS": "soon"}, "SONA_BACKGROUND_PRUNE_AGE_SECONDS"),
    ],
)
def test_settings_that_are_none_are_wrong_usage(
    url: str, command: str, options: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    done = sona("worker", command, *options, url=url, **environment)
    assert done.returncode == 2
    assert says in done.stderr


def test_an_unknown_loop_is_wrong_usage() -> None:
    done = sona("worker", "sideways")
    assert done.returncode == 2
    assert "sideways" in done.stderr


def test_a_schedule_is_set_and_shown(url: str, space: str) -> None:
    done = sona(
        "cycle", "schedule", space, "deep", "--cron", "0 3 * * 0", "--time-zone", "Europe/Berlin", "--amount", "7",
        "--window", "22:00-06:00", "--json", url=url,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert (found["loop"], found["cron"], found["amount"], found["is_enabled"]) == ("deep", "0 3 * * 0", 7, True)
    assert found["windows"] == ["22:00-06:00"]
    off = sona("cycle", "schedule", space, "deep", "--off", "--json", url=url)
    (found,) = json.loads(off.stdout)
    assert (found["cron"], found["amount"], found["is_enabled"]) == (None, None, False)
    assert "deep" in sona("cycle", "schedule", space, url=url).stdout


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("deep", "--cron", "0 3 31 2 *"), 2, "means no time"),
        (("deep", "--cron", "0 3 * *"), 2, "fields"),
        (("deep", "--every", "soon"), 1, "soon"),
        (("deep", "--every", "1 hour", "--first", "2020-01-01"), 2, "past"),
        (("deep", "--every", "1 hour", "--window", "noon"), 2, "noon"),
        (("deep", "--amount", "0"), 2, "--amount"),
        (("deep", "--time-zone", "Europe/Berlin"), 2, "--time-zone"),
        (("--every", "1 hour"), 2, "which loop"),
        (("instant", "--every", "1 hour"), 1, "no loop 'instant'"),
    ],
)
def test_a_schedule_that_says_nothing_is_refused(
    url: str, space: str, arguments: tuple[str, ...], status: int, says: str
) -> None:
    done = sona("cycle", "schedule", space, *arguments, url=url)
    assert done.returncode == status
    assert says in done.stderr


def test_a_cycle_is_asked_for_and_listed(url: str, space: str) -> None:
    assert "no cycles yet" in sona("cycle", "list", space, url=url).stdout
    asked = sona("cycle", "run", space, "deep", "--json", url=url)
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)
    assert (found["loop"], found["state"], found["cause"]) == ("deep", "requested", "manual")
    waited = sona("cycle", "run", space, "deep", "--wait", "0.1", url=url)
    assert waited.returncode == 1
    assert f"run {found['run_id']} is requested" in waited.stderr
    listed = json.loads(sona("cycle", "list", space, "--json", url=url).stdout)
    assert [run["run_id"] for run in listed] == [found["run_id"]]


def test_a_cycle_of_what_there_is_not_is_refused(url: str, space: str) -> None:
    unknown = sona("cycle", "run", space, "sideways", url=url)
    assert unknown.returncode == 1
    assert "no loop 'sideways'" in unknown.stderr
    nowhere = sona("cycle", "run", "nowhere", "deep", url=url)
    assert nowhere.returncode == 1
    assert "nowhere" in nowhere.stderr
