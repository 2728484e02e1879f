"""Applying what was learned in SQL: sona.adapt beside SELECT 1, sona.recall beside the bare pgvector query."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.harness import Row, compare
from benchmarks.postgres import SPACE, benchmark_engine
from sona_pg.store.connection import Connection, connect

DIM = 384


def run(*, quick: bool) -> list[Row]:
    """On a space that has learned, with an HNSW index on the items."""
    rounds = 300 if quick else 2000
    items = 5_000 if quick else 100_000
    random = np.random.default_rng(0)
    with benchmark_engine(DIM) as engine, connect(engine.url) as connection:
        _fill(connection, random, items)
        engine.set_items("benchmark_items", "id", "embedding")
        query = random.standard_normal(DIM, dtype=np.float32)
        for step in range(20):
            engine.record(random.standard_normal(DIM, dtype=np.float32), [str(step), str(step + 1)], [1.0, 0.0])
        engine.flush()
        connection.prepare_threshold = 1

        def fetch(statement: str, *parameters: object) -> object:
            return connection.execute(statement, parameters, binary=True).fetchall()

        adapt = compare(
            "sona.adapt",
            {"d": DIM, "rank": engine.instant.adapter_config.rank},
            lambda: fetch("SELECT sona.adapt(%s, %s)", SPACE, query),
            "SELECT 1",
            lambda: fetch("SELECT 1"),
            rounds=rounds,
            inner=1,
        )
        over = round(adapt.median_us - adapt.rival_median_us, 1)
        adapted = engine.adapt(query)
        bare = "SELECT id FROM benchmark_items ORDER BY embedding <=> %s LIMIT 10"
        recall = compare(
            "sona.recall",
            {"d": DIM, "items": items},
            lambda: fetch("SELECT * FROM sona.recall(%s, %s, 10)", SPACE, query),
            "bare pgvector query",
            lambda: fetch(bare, adapted),
            rounds=rounds,
            inner=1,
        )
        connection.execute("DROP TABLE benchmark_items")
    return [replace(adapt, params={**adapt.params, "over_us": over}), recall]


def _fill(connection: Connection, random: np.random.Generator, items: int) -> None:
    centres = random.standard_normal((100, DIM), dtype=np.float32)
    connection.execute("DROP TABLE IF EXISTS benchmark_items")
    connection.execute(f"CREATE TABLE benchmark_items (id integer PRIMARY KEY, embedding vector({DIM}))")
    with connection.cursor().copy("COPY benchmark_items FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "vector"])
        for item in range(items):
            noise = random.standard_normal(DIM, dtype=np.float32)
            copy.write_row((item, centres[item % len(centres)] + np.float32(0.7) * noise))
    connection.execute("SET maintenance_work_mem = '1GB'")
    connection.execute("CREATE INDEX ON benchmark_items USING hnsw (embedding vector_cosine_ops)")
    connection.execute("ANALYZE benchmark_items")
