"""A cycle in parts: in the worker, in processes, on a Dask cluster. What it comes to is the same, whoever dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
from sona_pg.store.connection import Connection, connect

from .cycles import Cycled, run_cycle

DIM, TOPICS, OUTCOMES = 8, 4, 240
HERE = ShardConfig(processes=1)


@pytest.fixture(scope="module")
def shards_url(make_database: Callable[[], str]) -> str:
    from sona_pg.store.migrate import migrate

    made = make_database()
    migrate(made)
    return made


@pytest.fixture
def connection(shards_url: str) -> Iterator[Connection]:
    with connect(shards_url) as opened:
        yield opened
        for (name,) in opened.execute("SELECT name FROM sona.space").fetchall():
            opened.execute("SELECT sona.drop_space(%s)", (name,))


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


def test_parts_are_of_equal_size_and_none_is_lost(shards_url: str, connection: Connection) -> None:
    found = cycled(shards_url, "parts", HERE, rows=100)
    assert (found.facts["shards"], found.facts["computed"]) == (3, "here")
    assert (found.facts["trajectories"], found.facts["new"], found.facts["waiting"]) == (OUTCOMES, OUTCOMES, 0)
    assert sum(row[3] for row in learned(connection, "parts")) == OUTCOMES


def test_processes_and_a_cluster_come_to_the_same(
    shards_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    here = cycled(shards_url, "here", HERE)
    assert (here.facts["shards"], here.facts["computed"]) == (5, "here")
    apart = cycled(shards_url, "apart", ShardConfig(processes=2))
    assert (apart.facts["shards"], apart.facts["computed"]) == (5, "2 processes")
    # Workers of a cluster ask their own environment where the database is: no password goes to a scheduler.
    monkeypatch.setenv("SONA_DATABASE_URL", shards_url)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        monkeypatch.delenv("SONA_DATABASE_URL")
        there = cycled(shards_url, "there", ShardConfig(scheduler=cluster.scheduler_address))
        held = cluster.get_client().run(lambda: len(__import__("sona_pg.loops.shards").loops.shards._held))
    assert (there.facts["shards"], there.facts["computed"]) == (5, "2 Dask workers")
    # A cluster keeps nothing of a cycle.
    assert set(held.values()) == {0}
    assert len(learned(connection, "here")) == TOPICS
    assert learned(connection, "here") == learned(connection, "apart") == learned(connection, "there")


def test_one_part_is_not_sent_away(shards_url: str, connection: Connection) -> None:
    found = cycled(shards_url, "whole", ShardConfig(scheduler="tcp://127.0.0.1:9"), rows=OUTCOMES)
    assert (found.state, found.facts["computed"]) == ("done", "here")


def test_a_scheduler_that_cannot_be_reached(shards_url: str, connection: Connection) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    brief = {"scheduler": address, "scheduler_timeout_seconds": 0.5}
    failed = cycled(shards_url, "unreachable", ShardConfig(**brief))  # type: ignore[arg-type]
    assert failed.state == "failed"
    assert f"there is no Dask scheduler at {address}" in str(failed.reason)
    assert learned(connection, "unreachable") == []
    local = ShardConfig(**brief, processes=2, without_scheduler="local")  # type: ignore[arg-type]
    done = run_cycle(shards_url, "unreachable", loop(local))
    assert (done.state, done.facts["computed"], done.facts["new"]) == ("done", "2 processes", OUTCOMES)


@pytest.mark.parametrize("when", ["loading", "asked"])
def test_a_process_that_dies_costs_the_cycle_and_no_outcome(
    when: str, shards_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    if when == "loading":
        monkeypatch.setattr(shards_module, "_load", _die)
    else:
        monkeypatch.setattr(outcome_shard.OutcomeShard, "nearest_counts", _die)
        monkeypatch.setattr(outcome_shard.OutcomeShard, "sample", _die)
    failed = cycled(shards_url, when, ShardConfig(processes=2))
    assert failed.state == "failed"
    assert "a process that held a shard has died" in str(failed.reason)
    assert learned(connection, when) == []
    monkeypatch.undo()
    assert run_cycle(shards_url, when, loop(ShardConfig(processes=2))).facts["new"] == OUTCOMES
    assert sum(row[3] for row in learned(connection, when)) == OUTCOMES
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_processes_end_with_their_worker(shards_url: str, connection: Connection) -> None:
    name = taught(shards_url, "orphans")
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (name,))
    mark = f"sona-orphans-{os.getpid()}"
    worker = [sys.executable, "-m", "sona_pg", "worker", "background", "--once", "--minimum=1", "--shard-rows=50"]
    environment = {**os.environ, "SONA_DATABASE_URL": shards_url, ENV_KILL_AT: "cycle.after_read", "SONA_MARK": mark}
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
        return process.environ().get("SONA_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_shard_that_another_process_held_is_lost() -> None:
    with pytest.raises(ShardLost, match="the one that held it has died"):
        shards_module._ask("nobody's", 0, len, (), {})
