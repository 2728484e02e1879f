"""Memory of the whole engine over an interpreter with NumPy and psycopg; KiB in the columns of time.

At most 60 MiB are asked for, resident, after 10,000 answers over 10,000 items. Unique memory, what would be free if the
process ended, stands beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

from benchmarks.harness import Row, row
from benchmarks.postgres import SPACE, benchmark_engine, set_random_items

DIM, ITEMS = 384, 10_000

_MEASURE = """
import json, sys
import numpy, psycopg
numpy.zeros((384, 384)) @ numpy.zeros((384, 384))
url, space, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
vectors = numpy.random.default_rng(0).standard_normal((1000, 384), dtype=numpy.float32)
found = {}
def note(name):
    with open("/proc/self/smaps_rollup") as lines:
        sizes = {line.split()[0]: int(line.split()[1]) for line in list(lines)[1:]}
    found[name] = (sizes["Rss:"], sizes["Private_Clean:"] + sizes["Private_Dirty:"])
note("interpreter, NumPy, psycopg")
from sona_pg import SonaEngine
from sona_pg.text.embedders import FunctionEmbedder
note("imported")
embedder = FunctionEmbedder(lambda texts: vectors[[hash(text) % 1000 for text in texts]], 384, "benchmark")
with SonaEngine.connect(url, space=space, dim=384, embedder=embedder, text_column="body") as engine:
    engine.process("a text")
    note("connected, with its threads")
    for call in range(calls):
        answer = engine.process(f"text {call}")
        if call % 10 == 0:
            engine.score(answer.trajectory_id, 1.0, answer.items[0].item_id)
        if call % 500 == 499:
            engine.flush()
    assert engine.metrics.dropped == 0 and engine.metrics.learned == calls // 10
    note("answered, judged and learned")
    adapter = engine.instant.learner.adapter.nbytes // 1024
print(json.dumps({"sizes": found, "adapter": adapter}))
"""


def run(*, quick: bool) -> list[Row]:
    """A process of its own, after each of its stages; and what the adapter takes of it."""
    calls = 1000 if quick else 10_000
    with benchmark_engine(DIM) as engine:
        set_random_items(engine, DIM, ITEMS)
        printed = json.loads(
            subprocess.run(
                [sys.executable, "-c", _MEASURE, engine.url, SPACE, str(calls)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
    base, *stages = printed["sizes"].items()
    rows = []
    for stage, sizes in stages:
        params: dict[str, int | float | str] = {"d": DIM, "items": ITEMS}
        if stage.startswith("answered"):
            params["answers"] = calls
        for kind, over, before in zip(("resident", "unique"), sizes, base[1], strict=True):
            rows.append(_size(f"{stage}, {kind}, KiB", params, over - before, base[0], before))
    rows.append(
        _size("adapter with moments and averages, KiB", {"d": DIM, "rank": 8}, printed["adapter"], "1 MiB", 1024)
    )
    return rows


def _size(name: str, params: dict[str, int | float | str], ours: int, rival: str, its: int) -> Row:
    return row(name, params, np.array([float(ours)]), rival, np.array([float(its)]))
