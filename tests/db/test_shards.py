"""A cycle in parts: in the worker, in processes, on a Dask cluster. What it comes to is the same, whoever dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from sona_pg import SonaEngine, SpaceConfig
from sona_pg.config import BackgroundConfig, ShardConfig
from sona_pg.errors import ShardLost
from sona_pg.learning import outcome_shard
from sona_pg.loops import shards as shards_module
from sona_pg.loops.background import background_loop
from sona_pg.loops.cycle import Loop
from sona_pg.steps import ENV_KILL_AT
from sona_pg.store.connection import Connection

from .cycles import Cycled, run_cycle
from .own_spaces import connection as connection

DIM, TOPICS, OUTCOMES = 8, 4, 240
HERE = ShardConfig(processes=1)
Cluster = Any  # distributed.LocalCluster, which has no types
WORKER = [sys.executable, "-m", "sona_pg", "worker", "background", "--once"]


def loop(shards: ShardConfig, rows: int = 50) -> Loop:
    return background_loop(BackgroundConfig(minimum=1, shard_rows=rows), shards=shards)


def taught(url: str, name: str) -> str:
    """A space with outcomes in topics, the same in every space but for their ids."""
    random = np.random.default_rng(0)
    topics = np.linalg.qr(random.standard_normal((DIM, TOPICS)))[0].T
    config = SpaceConfig(control_share=0.0)
    with SonaEngine.connect(url, space=name, dim=DIM, background=False, space_config=config) as engine:
        for i in range(OUTCOMES):
            query = topics[i % TOPICS] + 0.05 * random.standard_normal(DIM)
            parameters = {"model": "a" if i % 3 else "b"}
            engine.record(query, ["1"], quality=float(random.random()), metadata={"parameters": parameters})
        engine.flush()
    return name


def learned(connection: Connection, name: str) -> list[tuple[Any, ...]]:
    """Patterns with all their bits, and what is known of parameters."""
    return connection.execute(
        "SELECT p.pattern_id, p.centroid::text, p.cluster_size, p.support, p.avg_quality,"
        " (SELECT jsonb_agg(v.state ORDER BY v.parameter) FROM sona.verdict v"
        "  WHERE v.space_id = p.space_id AND v.pattern_id = p.pattern_id)"
        " FROM sona.pattern p JOIN sona.space s USING (space_id) WHERE s.name = %s ORDER BY 1",
        (name,),
    ).fetchall()


def cycled(url: str, name: str, shards: ShardConfig, rows: int = 50) -> Cycled:
    return run_cycle(url, taught(url, name), loop(shards, rows))


def test_parts_are_of_equal_size_and_none_is_lost(module_url: str, connection: Connection) -> None:
    found = cycled(module_url, "parts", HERE, rows=100)
    assert (found.facts["shards"], found.facts["computed"]) == (3, "here")
    assert (found.facts["trajectories"], found.facts["new"], found.facts["waiting"]) == (OUTCOMES, OUTCOMES, 0)
    assert sum(row[3] for row in learned(connection, "parts")) == OUTCOMES


@pytest.fixture(scope="module")
def cluster(module_url: str) -> Iterator[Cluster]:
    """A Dask cluster whose workers know the database by their environment: no password goes to a scheduler."""
    distributed = pytest.importorskip("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SONA_DATABASE_URL", module_url)
        made = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
    with made:
        yield made


def held_by(cluster: Cluster) -> int:
    """Shards that the workers of a cluster hold."""
    with cluster.get_client() as client:
        return sum(client.run(_held_here).values())


def _held_here() -> int:
    return len(shards_module._held)


@pytest.mark.parametrize("first_sample", [outcome_shard.FIRST_SAMPLE, 30])
def test_processes_and_a_cluster_come_to_the_same(
    first_sample: int, module_url: str, connection: Connection, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the sample of all rows that few have, and with steps over the shards after a smaller one."""
    monkeypatch.setattr(outcome_shard, "FIRST_SAMPLE", first_sample)
    steps: list[float] = []
    moved = outcome_shard._moved
    monkeypatch.setattr(outcome_shard, "_moved", lambda *args: steps.append(args[2]) or moved(*args))
    here = cycled(module_url, f"here {first_sample}", HERE)
    assert (here.facts["shards"], here.facts["computed"]) == (5, "here")
    apart = cycled(module_url, f"apart {first_sample}", ShardConfig(processes=2))
    assert (apart.facts["shards"], apart.facts["computed"]) == (5, "2 processes")
    there = cycled(module_url, f"there {first_sample}", ShardConfig(scheduler=cluster.scheduler_address))
    assert (there.facts["shards"], there.facts["computed"]) == (5, "2 Dask workers")
    assert held_by(cluster) == 0
    found = [learned(connection, f"{where} {first_sample}") for where in ("here", "apart", "there")]
    assert len(found[0]) >= TOPICS
    assert found[0] == found[1] == found[2]
    assert steps == ([] if first_sample > OUTCOMES else [1.0] * 3)


def test_a_worker_of_the_cluster_that_is_busy_keeps_its_shards(
    module_url: str, connection: Connection, cluster: Cluster
) -> None:
    """An idle one would steal what it is asked, and does not have them."""
    with cluster.get_client() as client:
        client.submit(time.sleep, 3, workers=[min(client.ncores())], pure=False)
        found = cycled(module_url, "busy", ShardConfig(scheduler=cluster.scheduler_address), rows=12)
    assert found.state == "done", found.reason
    assert sum(row[3] for row in learned(connection, "busy")) == OUTCOMES


def test_what_a_killed_worker_has_left_in_a_cluster_goes_with_the_next_cycle(
    module_url: str, connection: Connection, cluster: Cluster
) -> None:
    name = taught(module_url, "left behind")
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (name,))
    options = ["--minimum=1", "--shard-rows=50", f"--scheduler={cluster.scheduler_address}"]
    environment = {**os.environ, "SONA_DATABASE_URL": module_url, ENV_KILL_AT: "cycle.after_read"}
    assert subprocess.run([*WORKER, *options], env=environment, check=False).returncode == -signal.SIGKILL
    assert held_by(cluster) == 5
    del environment[ENV_KILL_AT]
    assert subprocess.run([*WORKER, *options], env=environment, check=False).returncode == 0
    assert held_by(cluster) == 0
    assert sum(row[3] for row in learned(connection, name)) == OUTCOMES


def test_a_worker_of_a_cluster_that_does_not_reach_the_database(
    module_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("SONA_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/nowhere")
    one = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(**one) as cluster:
        failed = cycled(module_url, "elsewhere", ShardConfig(scheduler=cluster.scheduler_address))
    assert failed.state == "failed"
    assert "could not be read by a Dask worker: its own SONA_DATABASE_URL" in str(failed.reason)
    monkeypatch.delenv("SONA_DATABASE_URL")
    with distributed.LocalCluster(**one) as cluster:
        failed = run_cycle(module_url, "elsewhere", loop(ShardConfig(scheduler=cluster.scheduler_address)))
    assert "SONA_DATABASE_URL is not set where a Dask worker runs" in str(failed.reason)
    assert run_cycle(module_url, "elsewhere", loop(HERE)).facts["new"] == OUTCOMES


def test_a_server_that_ends_idle_transactions_ends_no_cycle(module_url: str, connection: Connection) -> None:
    name = taught(module_url, "idle")
    database = connection.info.dbname
    connection.execute(f"ALTER DATABASE {database} SET idle_in_transaction_session_timeout = '100ms'")
    try:
        found = run_cycle(module_url, name, loop(ShardConfig(processes=2)))
    finally:
        connection.execute(f"ALTER DATABASE {database} RESET idle_in_transaction_session_timeout")
    assert found.state == "done", found.reason


def test_there_are_no_more_processes_than_parts(module_url: str, connection: Connection) -> None:
    found = cycled(module_url, "few parts", ShardConfig(processes=9), rows=120)
    assert (found.facts["shards"], found.facts["computed"]) == (2, "2 processes")


@pytest.mark.parametrize("given", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_leaves_the_cycle_to_the_next_worker(
    given: signal.Signals, module_url: str, connection: Connection
) -> None:
    """As Ctrl-C at a terminal, and as systemd ends a service."""
    name = taught(module_url, f"group {given}")
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (name,))
    environment = {**os.environ, "SONA_DATABASE_URL": module_url}
    worker = subprocess.Popen(
        [*WORKER, "--minimum=1", "--shard-rows=50"], env=environment, start_new_session=True, stderr=subprocess.PIPE
    )
    while not (children := psutil.Process(worker.pid).children()):
        time.sleep(0.005)
    os.killpg(worker.pid, given)
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 0, said
    assert b"Traceback" not in said
    assert connection.execute("SELECT message FROM sona.errors WHERE space = %s", (name,)).fetchall() == []
    psutil.wait_procs(children, timeout=30)
    assert run_cycle(module_url, name, loop(HERE)).state in ("done", "requested")
    assert sum(row[3] for row in learned(connection, name)) == OUTCOMES


def test_a_process_that_hangs_does_not_hold_a_worker_that_is_to_end(module_url: str, connection: Connection) -> None:
    name = taught(module_url, "hangs")
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (name,))
    environment = {**os.environ, "SONA_DATABASE_URL": module_url}
    worker = subprocess.Popen(
        [*WORKER, "--minimum=1", "--shard-rows=50", "--drain-seconds=100"], env=environment, stderr=subprocess.PIPE
    )
    while len(children := _spawned(worker.pid)) < 2:
        time.sleep(0.005)
    for child in children:
        child.suspend()
    worker.terminate()
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 0, said
    for child in children:
        if child.is_running():
            child.resume()
    assert psutil.wait_procs(children, timeout=30)[1] == []


def _spawned(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]


def test_one_part_is_not_sent_away(module_url: str, connection: Connection) -> None:
    found = cycled(module_url, "whole", ShardConfig(scheduler="tcp://127.0.0.1:9"), rows=OUTCOMES)
    assert (found.state, found.facts["computed"]) == ("done", "here")


def test_a_scheduler_that_cannot_be_reached(module_url: str, connection: Connection) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    brief = {"scheduler": address, "scheduler_timeout_seconds": 0.5}
    failed = cycled(module_url, "unreachable", ShardConfig(**brief))  # type: ignore[arg-type]
    assert failed.state == "failed"
    assert f"there is no Dask scheduler at {address}" in str(failed.reason)
    assert learned(connection, "unreachable") == []
    local = ShardConfig(**brief, processes=2, without_scheduler="local")  # type: ignore[arg-type]
    done = run_cycle(module_url, "unreachable", loop(local))
    assert (done.state, done.facts["computed"], done.facts["new"]) == ("done", "2 processes", OUTCOMES)


@pytest.mark.parametrize("when", ["loading", "asked"])
def test_a_process_that_dies_costs_the_cycle_and_no_outcome(
    when: str, module_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(_spawned(os.getpid()))
    if when == "loading":
        monkeypatch.setattr(shards_module, "_load", _die)
    else:
        monkeypatch.setattr(outcome_shard.OutcomeShard, "nearest_counts", _die)
        monkeypatch.setattr(outcome_shard.OutcomeShard, "sample", _die)
    failed = cycled(module_url, when, ShardConfig(processes=2))
    assert failed.state == "failed"
    assert "a process that held a shard has died" in str(failed.reason)
    assert learned(connection, when) == []
    monkeypatch.undo()
    assert run_cycle(module_url, when, loop(ShardConfig(processes=2))).facts["new"] == OUTCOMES
    assert sum(row[3] for row in learned(connection, when)) == OUTCOMES
    assert set(_spawned(os.getpid())) == before


def test_processes_end_with_their_worker(module_url: str, connection: Connection) -> None:
    name = taught(module_url, "orphans")
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (name,))
    mark = f"sona-orphans-{os.getpid()}"
    worker = [*WORKER, "--minimum=1", "--shard-rows=50"]
    environment = {
        **os.environ,
        "SONA_DATABASE_URL": module_url,
        ENV_KILL_AT: "cycle.after_read",
        "SONA_TEST_MARK": mark,
    }
    killed = subprocess.run(worker, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while left := [process for process in psutil.process_iter() if _has(process, mark)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    del environment[ENV_KILL_AT]
    assert subprocess.run(worker, env=environment, capture_output=True, check=False).returncode == 0
    assert sum(row[3] for row in learned(connection, name)) == OUTCOMES


def _has(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("SONA_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_shard_that_another_process_held_is_lost() -> None:
    with pytest.raises(ShardLost, match="it was started anew"):
        shards_module._ask("nobody's", 0, len, (), {})
