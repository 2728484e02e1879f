"""The patterns of a cycle by one process, by two, and by a Dask cluster of two: all come to the same, bit for bit.

The cycle reads outcomes from the database, clusters them and writes patterns and verdicts; it begins from nothing every
time. The rival is the pool of two processes. Microseconds; the seconds in which it reads, computes and writes stand
among the parameters.
"""

from __future__ import annotations

import os
from unittest import mock

import numpy as np

from benchmarks.background import BATCH, DIM, record_outcomes, weighed
from benchmarks.bank_worlds import embeddings, noisy
from benchmarks.harness import Row, row
from benchmarks.postgres import benchmark_engine
from sona_pg.config import BackgroundConfig, InstantLoopConfig, ShardConfig, StoreConfig
from sona_pg.engine import SonaEngine
from sona_pg.loops.background import background_loop
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.cycle import Loop
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import ENV_URL, Database

POOL = "2 processes"


def run(*, quick: bool) -> list[Row]:
    """100,000 outcomes, 20,000 with --quick, four parts, three times in turn."""
    from distributed import LocalCluster

    n, rounds = (20_000, 1) if quick else (100_000, 3)
    source = embeddings()
    instant = InstantLoopConfig(max_pending_signals=BATCH)
    with benchmark_engine(DIM, instant=instant) as engine, connect(engine.url) as connection:
        record_outcomes(engine, noisy(source, n, DIM, 2), noisy(source, 10_000, DIM, 1))
        weighed(connection, engine.space.space_id, 0)
        # What the workers of a cluster ask.
        with mock.patch.dict(os.environ, {ENV_URL: engine.url}):
            cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)  # type: ignore[no-untyped-call]
        with cluster:
            return _compared(connection, engine, n, rounds, cluster.scheduler_address)


def _compared(connection: Connection, engine: SonaEngine, n: int, rounds: int, scheduler: str) -> list[Row]:
    places = {
        "1 process": ShardConfig(processes=1),
        POOL: ShardConfig(processes=2),
        "2 Dask workers": ShardConfig(scheduler=scheduler),
    }
    times: dict[str, list[float]] = {name: [] for name in places}
    parts: dict[str, dict[str, float]] = {}
    found = None
    for _ in range(rounds):
        for name, shards in places.items():
            whole = background_loop(BackgroundConfig(minimum=1, shard_rows=n // 4), shards=shards)
            parts[name] = _cycle(connection, engine, Loop(whole.name, whole.schedule, whole.phases[:1]))
            times[name].append(sum(parts[name].values()))
            learned = connection.execute(
                "SELECT pattern_id, centroid::text, support, avg_quality FROM sona.pattern WHERE space_id = %s"
                " ORDER BY pattern_id",
                (engine.space.space_id,),
            ).fetchall()
            if found not in (None, learned):
                raise RuntimeError(f"the patterns of {name} are others")
            found = learned
    rival = np.array(times[POOL]) * 1e6
    return [
        row(
            "patterns",
            {"outcomes": n, "by": name, **{part: f"{seconds:.2f}s" for part, seconds in parts[name].items()}},
            np.array(taken) * 1e6,
            POOL,
            rival,
        )
        for name, taken in times.items()
    ]


def _cycle(connection: Connection, engine: SonaEngine, loop: Loop) -> dict[str, float]:
    """Seconds of a cycle from nothing, by what it did."""
    space = (engine.space.space_id,)
    for table in ("verdict", "pattern_history", "pattern_access", "pattern", "pattern_state"):
        connection.execute(f"DELETE FROM sona.{table} WHERE space_id = %s", space)
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (engine.space.name,))
    coordinator = LoopCoordinator(Database(engine.url, StoreConfig()), loop)
    coordinator.step()
    coordinator.close()
    ((state, phases),) = connection.execute(
        "SELECT state, phases FROM sona.runs WHERE space = %s ORDER BY run_id DESC LIMIT 1", (engine.space.name,)
    ).fetchall()
    if state != "done":
        raise RuntimeError(f"the cycle is {state}")
    return {part: phases[0][f"{part}_seconds"] for part in ("read", "compute", "write")}
