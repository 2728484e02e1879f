"""What `process` costs over embedding the text and the bare query for items: at most 1 ms is asked for, by the median.

The bare query is sent as an application would that prepares it, over a connection with the same settings; the text is
embedded in both. `over_us` is the median of the differences of neighbouring calls.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Row, row
from benchmarks.postgres import SPACE, benchmark_engine, set_random_items
from sona_pg.engine import SonaEngine
from sona_pg.store.connection import Connection, connect
from sona_pg.text.embedders import CheckedEmbedder, FunctionEmbedder

DIM, ITEMS, K = 384, 10_000, 10


def run(*, quick: bool) -> list[Row]:
    """By an index and without one, before and after patterns were learned, with and without texts of items."""
    rounds = 300 if quick else 2000
    rows = []
    with benchmark_engine(DIM) as opened, connect(opened.url) as connection:
        set_random_items(opened, DIM, ITEMS)
        bare = "SELECT id, embedding <=> %s AS distance FROM benchmark_items ORDER BY distance LIMIT 10"
        for index in ("none", "HNSW"):
            if index == "HNSW":
                connection.execute("CREATE INDEX ON benchmark_items USING hnsw (embedding vector_cosine_ops)")
                connection.execute("SET hnsw.iterative_scan = relaxed_order")
            connection.execute("ANALYZE benchmark_items")
            for text_column in (None, "body"):
                with _processing(opened.url, text_column) as engine:
                    rows.append(_compare(engine, connection, bare, index, text_column, rounds))
        with _processing(opened.url, None) as engine:
            _learn_patterns(engine)
        with _processing(opened.url, "body") as engine:
            assert engine.process("a text").patterns_used
            rows.append(_compare(engine, connection, bare, "HNSW", "body", rounds))
    return rows


def _processing(url: str, text_column: str | None) -> SonaEngine:
    return SonaEngine.connect(url, space=SPACE, embedder=_embedder(), text_column=text_column, background=False)


def _learn_patterns(engine: SonaEngine) -> None:
    for number in range(200):
        found = engine.process(f"text {number}")
        engine.score(found.trajectory_id, number % 2)
    assert engine.background_learn().patterns


def _embedder() -> FunctionEmbedder:
    return FunctionEmbedder(_vectors, DIM, "sona-benchmark")


def _vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """A vector for each text that takes no time: what is measured is what comes on top."""
    seeds = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % len(_POOL) for text in texts]
    return _POOL[seeds]


_POOL = np.random.default_rng(1).standard_normal((1000, DIM), dtype=np.float32)


def _compare(
    engine: SonaEngine, connection: Connection, bare: str, index: str, text_column: str | None, rounds: int
) -> Row:
    embedder, numbers = CheckedEmbedder(_embedder()), itertools.count()

    def ours() -> None:
        engine.process(f"query {next(numbers)}", k=K)

    def rival() -> None:
        vector = embedder.embed([f"query {next(numbers)}"])[0]
        connection.execute(bare, (vector,), prepare=True, binary=True).fetchall()

    taken: dict[Callable[[], None], list[float]] = {ours: [], rival: []}
    for call in taken:
        for _ in range(20):
            call()
    gc.collect()
    for _ in range(rounds):
        for call, times in taken.items():
            began = time.perf_counter_ns()
            call()
            times.append((time.perf_counter_ns() - began) / 1e3)
        if engine.metrics.pending >= 400:
            engine.instant.flush_updates()
    assert engine.metrics.dropped == 0
    patterns = engine.process("a text").patterns_used
    params: dict[str, int | float | str] = {
        "d": DIM,
        "items": ITEMS,
        "index": index,
        "texts": "yes" if text_column else "no",
        "patterns": patterns,
    }
    made = row("process", params, np.array(taken[ours]), "embed + bare query", np.array(taken[rival]))
    over = float(np.median(np.array(taken[ours]) - np.array(taken[rival])))
    # On a machine that is busy with other things every statement waits for a core: the least that was seen does not.
    least = min(taken[ours]) - min(taken[rival])
    return replace(made, params={**params, "over_us": round(over, 1), "least_over_us": round(least, 1)})
