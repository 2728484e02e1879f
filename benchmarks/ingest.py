"""Durable ingest against raw binary COPY of the same rows into tables with the same indexes, both committed."""

from __future__ import annotations

import time
import uuid

import numpy as np

from benchmarks.harness import Row, row
from benchmarks.postgres import benchmark_engine
from sona_pg.config import InstantLoopConfig
from sona_pg.store.connection import Connection, connect
from sona_pg.types import QueryTrajectory, TrajectoryBuilder

DIM, STEPS = 384, 10


def run(*, quick: bool) -> list[Row]:
    """Trajectories with activations: without outcomes (nothing to learn), and with (learned, edges, remembered)."""
    batches, size = (4, 500) if quick else (12, 1000)
    return [_ingest(judged, batches, size) for judged in (False, True)]


def _ingest(judged: bool, batches: int, size: int) -> Row:
    random = np.random.default_rng(0)
    items = random.standard_normal((1000, DIM), dtype=np.float32)
    instant = InstantLoopConfig(max_pending_signals=size)
    ours, raw = [], []
    with benchmark_engine(DIM, instant=instant) as engine, connect(engine.url) as rival:
        clone_tables(rival)
        for batch in range(batches + 1):
            trajectories = [_trajectory(random, items, judged) for _ in range(size)]
            began = time.perf_counter()
            for trajectory in trajectories:
                engine.record(trajectory)
            engine.instant.flush_updates()
            elapsed = time.perf_counter() - began
            payload = payload_of(rival, engine.space.space_id, [t.id for t in trajectories])
            began = time.perf_counter()
            raw_copy(rival, payload)
            if batch:  # the first warms caches
                ours.append(elapsed / size * 1e6)
                raw.append((time.perf_counter() - began) / size * 1e6)
    params: dict[str, int | float | str] = {
        "d": DIM,
        "steps": STEPS,
        "batch": size,
        "learned": "yes" if judged else "no",
    }
    return row("durable trajectory", params, np.array(ours), "raw binary COPY", np.array(raw))


def _trajectory(random: np.random.Generator, items: np.typing.NDArray[np.float32], judged: bool) -> QueryTrajectory:
    builder = TrajectoryBuilder(None, random.standard_normal(DIM, dtype=np.float32))
    for place, item in enumerate(random.choice(len(items), STEPS, replace=False)):
        reward = float(place == 0) if judged else None
        builder.add_step(items[item], [0.5], reward, item_id=str(item), position=place + 1)
    return builder.build()


_TABLES = ("trajectory", "trajectory_step")


def clone_tables(connection: Connection) -> None:
    """Tables as trajectories and their steps have, with the same indexes."""
    for table in _TABLES:
        connection.execute(f"DROP TABLE IF EXISTS benchmark_{table}")
        connection.execute(f"CREATE TABLE benchmark_{table} (LIKE sona.{table} INCLUDING ALL)")


def payload_of(connection: Connection, space_id: int, ids: list[uuid.UUID]) -> list[bytes]:
    """The rows of these trajectories and their steps, as COPY writes them."""
    chosen = ",".join(f"'{i}'" for i in ids)
    payload = []
    for table in _TABLES:
        with connection.cursor().copy(
            f"COPY (SELECT * FROM sona.{table} WHERE space_id = {space_id} AND trajectory_id IN ({chosen}))"
            " TO STDOUT (FORMAT BINARY)"
        ) as copy:
            payload.append(b"".join(bytes(block) for block in copy))
    return payload


def raw_copy(connection: Connection, payload: list[bytes]) -> None:
    """Copy what `payload_of` gave into these, in one transaction."""
    with connection.transaction():
        for table, data in zip(_TABLES, payload, strict=True):
            with connection.cursor().copy(f"COPY benchmark_{table} FROM STDIN (FORMAT BINARY)") as copy:
                copy.write(data)
