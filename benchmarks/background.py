"""The background loop as a worker process: all its phases over outcomes that are new, and what it takes in memory.

Items are in a table of the application; every answer has shown five, of which one helped. The rival of a cycle is
reading the same trajectories with their steps. Microseconds; the largest resident memory of the worker, MiB, and what
became of the base stand among the parameters.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.bank_worlds import Floats, embeddings, noisy
from benchmarks.harness import Row, row
from benchmarks.postgres import SPACE, benchmark_engine
from sona_pg.config import InstantLoopConfig
from sona_pg.engine import SonaEngine
from sona_pg.store.connection import Connection, connect
from sona_pg.store.ledger import trajectories

DIM, ITEMS, SHOWN, BATCH = 384, 10_000, 5, 1000
TABLE = "public.sona_benchmark_items"
_THREADS = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def run(*, quick: bool) -> list[Row]:
    """1,000 outcomes, 1,000 more, and 100,000 more; 10,000 with --quick. After each a cycle."""
    source = embeddings()
    items = noisy(source, ITEMS, DIM, 1)
    rows: list[Row] = []
    instant = InstantLoopConfig(max_pending_signals=BATCH)
    with benchmark_engine(DIM, instant=instant) as engine, connect(engine.url) as connection:
        connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
        connection.execute(f"CREATE TABLE {TABLE} (id integer PRIMARY KEY, embedding vector)")
        connection.cursor().executemany(f"INSERT INTO {TABLE} VALUES (%s, %s)", list(enumerate(items)))
        engine.set_items(TABLE, "id", "embedding")
        first = 0
        for n in (1000, 1000, 10_000 if quick else 100_000):
            record_outcomes(engine, noisy(source, n, DIM, 2 + first), items)
            weighed(connection, engine.space.space_id, first)
            rows.append(_cycle(connection, engine, n, first))
            first += n
        connection.execute(f"DROP TABLE {TABLE}")
    return rows


def record_outcomes(engine: SonaEngine, queries: Floats, items: Floats) -> None:
    """What helped is among the ten items nearest to the query, turned a little."""
    random = np.random.default_rng(len(queries))
    turned = np.roll(queries, 1, axis=1)
    for start in range(0, len(queries), BATCH):
        block = slice(start, start + BATCH)
        near = np.argpartition(-(queries[block] @ items.T), SHOWN)[:, :SHOWN]
        wanted = near[np.arange(len(near)), np.einsum("nkd,nd->nk", items[near], turned[block]).argmax(axis=1)]
        for query, shown, helped in zip(queries[block], near, wanted, strict=True):
            rewards = [float(item == helped) for item in shown]
            engine.record(query, [str(item) for item in shown], rewards, quality=float(random.random()))
        engine.instant.flush_updates()


def weighed(connection: Connection, space_id: int, first: int) -> None:
    """As if the strategies were weighed: that takes its own time, which is measured elsewhere."""
    connection.execute(
        "INSERT INTO sona.answer_outcome (space_id, trajectory_id, ordinal, answered_at, arm, strategy, version,"
        " propensity, value) SELECT e.space_id, e.trajectory_id, e.ordinal, now(), 'learned', 'fusion', 1, 1, t.quality"
        " FROM sona.learning_event e JOIN sona.trajectory t USING (space_id, trajectory_id)"
        " WHERE e.space_id = %s AND e.ordinal >= %s",
        (space_id, first),
    )
    connection.execute(
        "UPDATE sona.strategist g SET ordinal = l.ordinal FROM sona.learner l WHERE l.space_id = g.space_id"
        " AND g.space_id = %s",
        (space_id,),
    )
    for table in ("trajectory", "trajectory_step", "answer_outcome", "learning_event"):
        connection.execute(f"VACUUM ANALYZE sona.{table}")


def _cycle(connection: Connection, engine: SonaEngine, n: int, first: int) -> Row:
    began = time.perf_counter()
    ids = connection.execute(
        "SELECT trajectory_id FROM sona.learning_event WHERE space_id = %s AND ordinal >= %s",
        (engine.space.space_id, first),
    ).fetchall()
    for start in range(0, len(ids), 500):
        trajectories(connection, engine.space, [id for (id,) in ids[start : start + 500]])
    reading = time.perf_counter() - began
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (SPACE,))
    mebibytes = work(engine.url, "background")
    ((state, facts, phases, seconds),) = connection.execute(
        "SELECT state, facts, phases, extract(epoch FROM finished_at - started_at)::float8 FROM sona.runs"
        " WHERE space = %s ORDER BY run_id DESC LIMIT 1",
        (SPACE,),
    ).fetchall()
    if state != "done" or facts["new"] != n:
        raise RuntimeError(f"the cycle is {state}: {facts}")
    params: dict[str, int | float | str] = {
        "new": n,
        "all": first + n,
        "dim": DIM,
        "resident": round(mebibytes),
        "base": facts["base"],
        "lists": facts["lists"],
    }
    params |= {
        phase["name"]: f"{sum(value for part, value in phase.items() if part.endswith('_seconds')):.2f}s"
        for phase in phases
    }
    return row("cycle", params, np.array([seconds * 1e6]), "reading it", np.array([reading * 1e6]))


def work(url: str, loop: str) -> float:
    """Run what is due of a loop in a process of its own; the most that it had in memory, MiB."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "sona_pg", "worker", loop, "--once"],
        env=os.environ | _THREADS | {"SONA_DATABASE_URL": url},
    )
    status, most = Path(f"/proc/{worker.pid}/status"), 0
    while worker.poll() is None:
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM"):
                most = max(most, int(line.split()[1]))
        time.sleep(0.02)
    if worker.returncode:
        raise RuntimeError(f"the worker has ended with {worker.returncode}")
    return most / 1024
