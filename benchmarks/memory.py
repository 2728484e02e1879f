"""Resident memory of the whole engine over an interpreter with NumPy and psycopg; KiB in the columns of time."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from benchmarks.harness import Row, row
from benchmarks.postgres import SPACE, benchmark_engine

DIM = 384

_MEASURE = """
import resource, sys
import numpy, psycopg
numpy.zeros((384, 384)) @ numpy.zeros((384, 384))
def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize() // 1024
before = resident()
from sona_pg import SonaEngine
with SonaEngine.connect(sys.argv[1], space=sys.argv[2]) as engine:
    random = numpy.random.default_rng(0)
    for _ in range(500):
        query = random.standard_normal(384, dtype=numpy.float32)
        engine.record(query, [str(i) for i in random.integers(0, 4096, 10)], [1.0] + [0.0] * 9)
    engine.flush()
    assert engine.metrics.learned == 500
    print(before, resident(), engine.instant.learner.adapter.nbytes // 1024)
"""


def run(*, quick: bool) -> list[Row]:
    """An engine with a full sample of items that has learned 500 events, in a process of its own."""
    with benchmark_engine(DIM) as engine:
        from sona_pg.store.connection import connect

        with connect(engine.url) as connection:
            connection.execute("DROP TABLE IF EXISTS benchmark_items")
            connection.execute(f"CREATE TABLE benchmark_items (id integer PRIMARY KEY, embedding vector({DIM}))")
            random = np.random.default_rng(0)
            with connection.cursor().copy("COPY benchmark_items FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["int4", "vector"])
                for item in range(5000):
                    copy.write_row((item, random.standard_normal(DIM, dtype=np.float32)))
            engine.set_items("benchmark_items", "id", "embedding")
            printed = subprocess.run(
                [sys.executable, "-c", _MEASURE, engine.url, SPACE], check=True, capture_output=True, text=True
            ).stdout.split()
            connection.execute("DROP TABLE benchmark_items")
    before, after, adapter = (np.array([float(part)]) for part in printed)
    return [
        row(
            "engine over it, KiB",
            {"d": DIM, "items sampled": 4096},
            after - before,
            "interpreter, NumPy, psycopg",
            before,
        ),
        row("adapter with moments and averages, KiB", {"d": DIM, "rank": 8}, adapter, "1 MiB", np.array([1024.0])),
    ]
