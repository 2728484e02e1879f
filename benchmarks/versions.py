"""Versions: what one takes, how long a list of a thousand takes, and how soon a deploy answers."""

from __future__ import annotations

import statistics
import threading
import time
import uuid
from dataclasses import replace

import numpy as np

from benchmarks.harness import Row, compare
from benchmarks.postgres import SPACE, benchmark_engine
from sona_pg.engine import SonaEngine
from sona_pg.store.connection import connect

DIM = 384


def run(*, quick: bool) -> list[Row]:
    """On a space of rank 8 with a thousand versions, the fusion's map among what they hold."""
    count = 100 if quick else 1000
    random = np.random.default_rng(0)
    with benchmark_engine(DIM) as engine, connect(engine.url) as connection:
        connection.execute(f"CREATE TABLE benchmark_items (id integer PRIMARY KEY, embedding vector({DIM}))")
        items = random.standard_normal((500, DIM), dtype=np.float32)
        with connection.cursor().copy("COPY benchmark_items FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "vector"])
            for row in enumerate(items):
                copy.write_row(row)
        engine.set_items("benchmark_items", "id", "embedding")
        key = engine.space.space_id
        for event in range(60):
            query = items[event % 20] + np.float32(0.5) * random.standard_normal(DIM, dtype=np.float32)
            engine.record(query, [str(event % 20), str(100 + event)], [1.0, 0.0])
            engine.flush()
        connection.execute("SELECT sona.set_strategy(%s, 'fusion')", (SPACE,))
        # As a flush publishes it, squeezed.
        engine.instant._store.config = replace(engine.instant._store.config, publish_every_events=1)  # type: ignore[union-attr]
        for version in range(count):
            engine.record(items[version % 500], [str(version % 20), "100"], [1.0, 0.0])
            engine.instant.flush_updates()
        taken = connection.execute("SELECT avg(bytes)::float8, max(bytes) FROM sona.versions(%s)", (SPACE,)).fetchall()[
            0
        ]
        stored = connection.execute(
            "SELECT sum(pg_total_relation_size(t))::float8"
            " FROM (VALUES ('sona.adapter_version'), ('sona.version_row')) v (t)"
        ).fetchall()[0][0]
        params: dict[str, int | float | str] = {"versions": count, "d": DIM, "rank": 8}
        size = {"kB_each": round(taken[0] / 1e3, 1), "largest_kB": round(taken[1] / 1e3, 1),
                "on_disk_kB_each": round(stored / count / 1e3, 1)}  # fmt: skip
        listed = compare(
            "sona.versions",
            {**params, **size},
            lambda: connection.execute("SELECT * FROM sona.versions(%s)", (SPACE,)).fetchall(),
            "version and cause of every row",
            lambda: connection.execute(
                "SELECT version, cause FROM sona.adapter_version WHERE space_id = %s ORDER BY 1", (key,)
            ).fetchall(),
            rounds=30,
            inner=1,
        )
        deploys = iter(range(1, count))

        def deploy() -> object:
            return connection.execute("SELECT sona.deploy(%s, %s::bigint)", (SPACE, next(deploys))).fetchall()

        deployed = compare(
            "sona.deploy", params, deploy, "SELECT 1", lambda: connection.execute("SELECT 1").fetchall(),
            rounds=30, inner=1,
        )  # fmt: skip
        probe = random.standard_normal(DIM, dtype=np.float32)
        connection.execute("SELECT sona.set_strategy(%s, 'adapted')", (SPACE,))
        seconds = [_until_elsewhere(engine, probe, number) for number in range(40, 40 + (5 if quick else 20))]
        during = _deploys_during_learning(engine, items, count)
        connection.execute("DROP TABLE benchmark_items")
        elsewhere = replace(
            deployed, name="until another process answers by it", p99_us=max(seconds) * 1e6,
            median_us=statistics.median(seconds) * 1e6, rival="", rival_median_us=0.0, ratio=0.0,
        )  # fmt: skip
    return [listed, deployed, elsewhere, replace(elsewhere, name="deploys during learning", params=during)]


def _deploys_during_learning(engine: SonaEngine, items: np.ndarray, count: int) -> dict[str, int | float | str]:
    """Deploy so many versions at random while events are learned; which were lost, and which doubled."""
    stop, made, seconds = threading.Event(), [0], [0.0]

    def deploy_all_the_time() -> None:
        random = np.random.default_rng(1)
        with connect(engine.url) as own:
            began = time.perf_counter()
            while made[0] < count:
                own.execute("SELECT sona.deploy(%s, %s)", (SPACE, str(random.integers(1, count // 2))))
                made[0] += 1
            seconds[0] = time.perf_counter() - began
            stop.set()

    thread = threading.Thread(target=deploy_all_the_time)
    thread.start()
    ids: list[uuid.UUID] = []
    while not stop.is_set():
        ids.append(engine.record(items[len(ids) % 500], [str(len(ids) % 20), "100"], [1.0, 0.0]))
        engine.instant.flush_updates()
    thread.join()
    engine.flush()
    with connect(engine.url) as connection:
        rows = connection.execute(
            "SELECT trajectory_id, count(*) FROM sona.learning_event WHERE space_id = %s AND trajectory_id = ANY(%s)"
            " GROUP BY 1",
            (engine.space.space_id, ids),
        ).fetchall()
    doubled = sum(found - 1 for _, found in rows)
    return {
        "deploys": made[0], "events": len(ids), "lost": len(ids) - len(rows), "doubled": doubled,
        "seconds": round(seconds[0], 1), "rebased": engine.metrics.replays,
    }  # fmt: skip


def _until_elsewhere(engine: SonaEngine, probe: object, version: int) -> float:
    """Seconds from a deploy until an engine with threads of its own, as an application has it, serves it."""
    with SonaEngine.connect(engine.url, space=SPACE) as other:
        began = time.perf_counter()
        engine.deploy(version)
        while other.instant.version != version:
            time.sleep(0.005)
        return time.perf_counter() - began
