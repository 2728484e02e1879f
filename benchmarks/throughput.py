"""Queries per second of one process: adapted and recorded in batches, in memory, learned, and durable.

What is asked of the first row is 50,000 per second, 20 µs for a query: a burst into the buffers. How fast these empty
is another rate, and in the long run the one that counts: see the other rows. Nothing is dropped in any of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Row, row
from benchmarks.ingest import clone_tables, payload_of, raw_copy
from benchmarks.postgres import benchmark_engine, set_random_items
from sona_pg.config import InstantLoopConfig, SpaceConfig
from sona_pg.engine import SonaEngine
from sona_pg.ids import new_trajectory_ids
from sona_pg.loops.instant import InstantLoop
from sona_pg.store.connection import connect
from sona_pg.types import EMPTY, QueryTrajectory, TrajectoryStep

DIM, ITEMS, BATCH = 256, 1000, 2000

Batch = tuple[NDArray[np.float32], list[list[str]], NDArray[np.float32] | None]


def run(*, quick: bool) -> list[Row]:
    """Bursts of batches and of single queries, learning in memory, and what becomes durable while it is recorded."""
    batches = 5 if quick else 20
    instant = InstantLoopConfig(max_pending_signals=1 << 20, max_unflushed=1 << 20)
    rows = []
    with benchmark_engine(DIM, instant=instant, space_config=SpaceConfig(strategy="adapted")) as engine:
        random = np.random.default_rng(0)
        set_random_items(engine, DIM, ITEMS)
        # A map that is not the identity, so that adapting has something to do.
        engine.record_batch(*_batch(random, 50, judged=True))
        engine.instant.flush_updates()
        assert (engine.adapt(np.eye(DIM)) != np.eye(DIM)).any()
        for name, act in (("adapt + record, batch", _in_batches), ("adapt + record, one by one", _one_by_one)):
            rows.append(_burst(engine, name, act, random, 2 * batches))
        rows += [_in_memory(engine, random, batches)]
    rows += [_durable(judged, quick) for judged in (False, True)]
    return rows


def _batch(random: np.random.Generator, n: int, *, judged: bool) -> Batch:
    queries = random.standard_normal((n, DIM), dtype=np.float32)
    items = [[str(item)] for item in random.integers(0, ITEMS, n)]
    return queries, items, np.ones((n, 1), dtype=np.float32) if judged else None


def _in_batches(engine: SonaEngine, batch: Batch) -> None:
    engine.adapt(batch[0])
    engine.record_batch(*batch)


def _one_by_one(engine: SonaEngine, batch: Batch) -> None:
    assert batch[2] is not None
    for query, items, worth in zip(batch[0], batch[1], batch[2].tolist(), strict=True):
        engine.adapt(query)
        engine.record(query, items, worth)


def _empty_loop(batch: Batch) -> None:
    for _ in zip(batch[0], batch[1], strict=True):
        pass


def _burst(
    engine: SonaEngine,
    name: str,
    act: Callable[[SonaEngine, Batch], None],
    random: np.random.Generator,
    batches: int,
) -> Row:
    """Into the buffers, which hold all of it; made durable afterwards, out of the time that is taken."""
    before = engine.metrics
    ours, empty, busy = [], [], []
    for number in range(batches + 2):
        batch = _batch(random, BATCH, judged=True)
        began, working = time.perf_counter(), time.thread_time()
        act(engine, batch)
        taken, worked = time.perf_counter() - began, time.thread_time() - working
        began = time.perf_counter()
        _empty_loop(batch)
        if number >= 2:  # the first ones warm caches
            ours.append(taken / BATCH * 1e6)
            busy.append(worked / BATCH * 1e6)
            empty.append((time.perf_counter() - began) / BATCH * 1e6)
    recorded = engine.metrics.recorded - before.recorded
    assert recorded == (batches + 2) * BATCH
    dropped = engine.metrics.dropped - before.dropped
    engine.instant.flush_updates()
    assert engine.metrics.flushed - before.flushed == recorded
    # What the thread itself took: on a machine that is busy with other things, it waits for a core besides.
    of_thread = round(float(np.median(busy)), 2)
    batch_size = BATCH if act is _in_batches else 1
    params: dict[str, int | float | str] = {"batch": batch_size, "dropped": dropped, "thread_us": of_thread}
    return _row(name, params, ours, "empty loop", empty)


def _in_memory(engine: SonaEngine, random: np.random.Generator, batches: int) -> Row:
    """The same learned at once, by a loop without a database; beside it one that only records."""
    learning, recording = (InstantLoop(DIM, engine.instant.config, pool=engine.instant.learner.pool) for _ in range(2))
    ours, empty = [], []
    for number in range(batches + 1):
        made = list(_trajectories(random))
        began = time.perf_counter()
        learning.serving.adapt(np.stack([one.query_embedding for one in made]))
        learning.on_inferences(made)
        learning.learn_pending()
        taken = time.perf_counter() - began
        began = time.perf_counter()
        recording.on_inferences(made)
        if number:
            ours.append(taken / len(made) * 1e6)
            empty.append((time.perf_counter() - began) / len(made) * 1e6)
    assert learning.metrics.learned == (batches + 1) * BATCH // 2
    return _row(
        "adapt + record + learn, in memory",
        {"batch": BATCH // 2, "dropped": learning.metrics.dropped},
        ours,
        "record alone",
        empty,
    )


def _trajectories(random: np.random.Generator) -> Iterator[QueryTrajectory]:
    queries, items, _ = _batch(random, BATCH // 2, judged=True)
    for id, query, shown in zip(new_trajectory_ids(len(queries)), queries, items, strict=True):
        yield QueryTrajectory(id, query, (TrajectoryStep(EMPTY, EMPTY, 1.0, 0.0, shown[0], 1),))


def _durable(judged: bool, quick: bool) -> Row:
    """As an application does it, with the threads of the engine and its own settings, until all of it is durable."""
    chunks, size = (3, 4000) if quick else (6, 20_000)
    random = np.random.default_rng(1)
    ours, raw = [], []
    with benchmark_engine(DIM, background=True) as engine, connect(engine.url) as rival:
        set_random_items(engine, DIM, ITEMS)
        clone_tables(rival)
        recorded = 0
        for chunk in range(chunks + 1):
            ids = []
            batches = [_batch(random, 500, judged=judged) for _ in range(size // 500)]
            began = time.perf_counter()
            for batch in batches:
                engine.adapt(batch[0])
                ids += engine.record_batch(*batch, wait=True)
            engine.instant.flush_updates()
            taken = time.perf_counter() - began
            recorded += len(ids)
            payload = payload_of(rival, engine.space.space_id, ids)
            began = time.perf_counter()
            raw_copy(rival, payload)
            if chunk:
                ours.append(taken / size * 1e6)
                raw.append((time.perf_counter() - began) / size * 1e6)
        metrics = engine.metrics
        assert (metrics.flushed, metrics.dropped) == (recorded, 0)
    params: dict[str, int | float | str] = {
        "batch": 500,
        "learned": "yes" if judged else "no",
        "dropped": metrics.dropped,
        "spooled": metrics.spooled,
    }
    return _row("adapt + record, durable", params, ours, "raw binary COPY", raw)


def _row(
    name: str, params: dict[str, int | float | str], ours: list[float], rival_name: str, rival: list[float]
) -> Row:
    made = row(name, {"d": DIM, "steps": 1, **params}, np.array(ours), rival_name, np.array(rival))
    return replace(made, params={**made.params, "per_second": int(1e6 / made.median_us)})
