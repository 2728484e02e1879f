"""AsyncSonaEngine.recall beside SonaEngine.recall in threads: how many answers a second, of as many callers at once."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.harness import Row, row
from benchmarks.postgres import benchmark_engine
from sona_pg.config import StoreConfig
from sona_pg.engine import SonaEngine
from sona_pg.engine.async_engine import AsyncSonaEngine
from sona_pg.store.connection import connect

DIM = 384
CALLERS = 16
DEFAULT = StoreConfig().async_connections


def run(*, quick: bool) -> list[Row]:
    """Over an HNSW index; both with a connection for each caller, and ours with the default number as well."""
    items, rounds, calls = (5_000, 15, 25) if quick else (50_000, 40, 100)
    random = np.random.default_rng(0)
    with benchmark_engine(DIM) as engine, connect(engine.url) as connection:
        connection.execute(f"CREATE TABLE benchmark_items (id integer PRIMARY KEY, embedding vector({DIM}))")
        with connection.cursor().copy("COPY benchmark_items FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "vector"])
            for place in range(items):
                copy.write_row((place, random.standard_normal(DIM, dtype=np.float32)))
        connection.execute("CREATE INDEX ON benchmark_items USING hnsw (embedding vector_cosine_ops)")
        engine.set_items("benchmark_items", "id", "embedding")
        queries = random.standard_normal((CALLERS, DIM)).astype(np.float32)
        rows = [
            _compared(engine, queries, rounds, calls, number) for number in (CALLERS, StoreConfig().async_connections)
        ]
        connection.execute("DROP TABLE benchmark_items")
    return rows


def _compared(
    engine: SonaEngine, queries: np.typing.NDArray[np.float32], rounds: int, calls: int, connections: int
) -> Row:
    """Time of one answer, microseconds: that of a round by the answers in it."""
    store = StoreConfig(idle_connections=CALLERS, async_connections=connections)
    ours, rival = np.empty(rounds), np.empty(rounds)
    with (
        SonaEngine.connect(engine.url, space=engine.space.name, background=False, store=store) as beneath,
        ThreadPoolExecutor(CALLERS) as pool,
        asyncio.Runner() as runner,
    ):

        async def opened() -> AsyncSonaEngine:
            return AsyncSonaEngine(beneath)

        sona = runner.run(opened())

        async def asks(query: np.typing.NDArray[np.float32]) -> None:
            for _ in range(calls):
                await sona.recall(query)

        async def awaited() -> None:
            await asyncio.gather(*(asks(query) for query in queries))

        def waits(query: np.typing.NDArray[np.float32]) -> None:
            for _ in range(calls):
                beneath.recall(query)

        for place in range(-1, rounds):
            began = time.perf_counter_ns()
            runner.run(awaited())
            between = time.perf_counter_ns()
            list(pool.map(waits, queries))
            ended = time.perf_counter_ns()
            if place >= 0:
                ours[place], rival[place] = between - began, ended - between
        runner.run(sona.close())
    per_us = 1e-3 / (CALLERS * calls)
    params: dict[str, int | float | str] = {"callers": CALLERS, "connections": connections}
    return row("AsyncSonaEngine.recall", params, ours * per_us, "SonaEngine.recall in threads", rival * per_us)
