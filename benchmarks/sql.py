"""Clients that speak only SQL: what `sona.record` costs them, and how soon the instant worker has learned it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.harness import Row, compare, row
from benchmarks.postgres import benchmark_engine
from sona_pg.engine import SonaEngine
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import ENV_URL

DIM, ITEMS = 384, 10
LONGEST_SECONDS = 30.0


def run(*, quick: bool) -> list[Row]:
    """Latency of one record over one connection, and the time until it is learned."""
    numbers = np.random.default_rng(0)
    with benchmark_engine(DIM) as engine, connect(engine.url) as connection:
        items = numbers.standard_normal((1000, DIM), dtype=np.float32)
        connection.execute("DROP TABLE IF EXISTS public.benchmark_item")
        connection.execute(f"CREATE TABLE public.benchmark_item (id integer PRIMARY KEY, embedding vector({DIM}))")
        with connection.cursor().copy("COPY public.benchmark_item FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "vector"])
            for place, item in enumerate(items):
                copy.write_row((place, item))
        try:
            engine.set_items("public.benchmark_item", "id", "embedding")
            recorded = []
            for commit in ("off", "on"):  # without the disk, and with it
                connection.execute(f"SET synchronous_commit = {commit}")
                recorded.append(_record(connection, engine, numbers, commit, 300 if quick else 2000))
            learned = _learned(connection, engine, numbers, 20 if quick else 100)
        finally:
            connection.execute("DROP TABLE public.benchmark_item")
    return [*recorded, learned]


def _record(connection: Connection, engine: SonaEngine, numbers: np.random.Generator, commit: str, rounds: int) -> Row:
    shown = [str(place) for place in range(ITEMS)]
    rewards = [1.0, 0.0] + [None] * (ITEMS - 2)
    query = numbers.standard_normal(DIM, dtype=np.float32)
    tables = ("trajectory", "trajectory_step", "remembered_query", "pending_trajectory")
    for table in tables:
        connection.execute(f"DROP TABLE IF EXISTS benchmark_{table}")
        connection.execute(f"CREATE TABLE benchmark_{table} (LIKE sona.{table} INCLUDING ALL)")
    steps = ", ".join(["(1, %s, %s::int, %s, %s::int, %s::real)"] * ITEMS)
    # The same rows in one statement: one round trip and one commit, like ours.
    bare = (
        "WITH t AS (INSERT INTO benchmark_trajectory (space_id, trajectory_id, query) VALUES (1, %s, %s)),"
        " s AS (INSERT INTO benchmark_trajectory_step (space_id, trajectory_id, ordinal, item_id, position, reward)"
        f" VALUES {steps}),"
        " r AS (INSERT INTO benchmark_remembered_query (space_id, trajectory_id, embedding) VALUES (1, %s, %s))"
        " INSERT INTO benchmark_pending_trajectory (space_id, trajectory_id) VALUES (1, %s)"
    )

    def record() -> None:
        connection.execute(
            "SELECT sona.record(%s, %s, item_ids => %s, rewards => %s)", (engine.space.name, query, shown, rewards)
        )

    def insert() -> None:
        id = uuid.uuid4()
        given = [(id, n, item, n + 1, rewards[n]) for n, item in enumerate(shown)]
        connection.execute(bare, (id, query, *(value for step in given for value in step), id, query, id))

    params: dict[str, int | float | str] = {"d": DIM, "items": ITEMS, "synchronous_commit": commit}
    try:
        return compare("sona.record", params, record, "bare multi-row INSERT", insert, rounds=rounds, inner=1)
    finally:
        for table in tables:
            connection.execute(f"DROP TABLE benchmark_{table}")


def _learned(connection: Connection, engine: SonaEngine, numbers: np.random.Generator, rounds: int) -> Row:
    """From the call of sona.record until the ledger has it, committed by a worker process with its defaults."""
    pauses = random.Random(0)
    ours, rival = [], []
    with _worker(engine):
        _wait(connection, engine, None)  # what was recorded before
        for _ in range(rounds):
            # Anywhere between two polls.
            time.sleep(pauses.uniform(0, 0.5))
            query = numbers.standard_normal(DIM, dtype=np.float32)
            began = time.perf_counter()
            given = connection.execute(
                "SELECT sona.record(%s, %s, '{1,2,3}', '{1,0,NULL}')", (engine.space.name, query)
            ).fetchall()
            _wait(connection, engine, given[0][0])
            ours.append((time.perf_counter() - began) * 1e6)
            began = time.perf_counter()
            engine.record(query, ["1", "2", "3"], [1.0, 0.0, None])
            engine.flush()
            rival.append((time.perf_counter() - began) * 1e6)
    params: dict[str, int | float | str] = {"d": DIM, "poll ms": 500, "max ms": round(max(ours) / 1e3)}
    return row("recorded in SQL until learned", params, np.array(ours), "in process, with flush", np.array(rival))


def _wait(connection: Connection, engine: SonaEngine, id: uuid.UUID | None) -> None:
    """Until a trajectory is in the ledger; without an id until nothing waits."""
    statement = (
        "SELECT NOT EXISTS (SELECT FROM sona.pending_trajectory WHERE space_id = %s AND %s::uuid IS NULL)"
        if id is None
        else "SELECT EXISTS (SELECT FROM sona.learning_event WHERE space_id = %s AND loop = 'instant'"
        " AND trajectory_id = %s)"
    )
    until = time.monotonic() + LONGEST_SECONDS
    while not connection.execute(statement, (engine.space.space_id, id)).fetchall()[0][0]:
        if time.monotonic() > until:
            raise TimeoutError(f"not learned within {LONGEST_SECONDS:.0f} s: is the worker's output above?")
        time.sleep(0.002)


@contextmanager
def _worker(engine: SonaEngine) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "sona_pg", "worker", "instant"], env=os.environ | {ENV_URL: engine.url}
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
