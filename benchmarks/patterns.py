"""The background loop: a cycle over outcomes of which all are new, then a tenth, and what it takes in memory.

The rival of a cycle is reading the same vectors, and making nothing of them; of its memory, what these take; of a
search among patterns, the bare query, among many with the index of these. Microseconds, and KiB. Then an application
that uses what is recommended: what it loses to whoever knows the best parameters, in percent, beside a fixed default,
median and worst of the seeds.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.bank_replay import replay
from benchmarks.bank_worlds import Floats, embeddings, noisy
from benchmarks.harness import Row, row
from benchmarks.postgres import SPACE, benchmark_engine
from sona_pg import SonaEngine
from sona_pg.config import BackgroundConfig, StoreConfig
from sona_pg.loops.background import background_loop
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database

DIM = 384
REPLAY_DIM = 128
MODELS = ("small", "medium", "large")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


def run(*, quick: bool) -> list[Row]:
    """100,000 outcomes and 5 replays; 20,000 and one with --quick."""
    n = 20_000 if quick else 100_000
    source = embeddings()
    with benchmark_engine(DIM) as engine, connect(engine.url) as connection:
        space_id = engine.space.space_id
        loop = background_loop(BackgroundConfig(max_trajectories=n))
        coordinator = LoopCoordinator(Database(engine.url, StoreConfig()), loop)
        _fill(connection, space_id, 0, noisy(source, n, DIM, 0))
        rows = [*_cycle(connection, coordinator, space_id, {"outcomes": n, "new": n, "dim": DIM})]
        _fill(connection, space_id, n, noisy(source, n // 10, DIM, 1))
        rows += _cycle(connection, coordinator, space_id, {"outcomes": n, "new": n // 10, "dim": DIM})
        coordinator.close()
        rows.append(_search(connection, space_id, noisy(source, 200, DIM, 2)))
        connection.execute("DELETE FROM sona.pattern WHERE space_id = %s", (space_id,))
        rows += _search_many(connection, engine, noisy(source, n, DIM, 3), noisy(source, 1000, DIM, 4))
    return [*rows, *_useful(seeds=1 if quick else 5)]


def _fill(connection: Connection, space_id: int, first: int, queries: Floats) -> None:
    """Outcomes, as if learned and weighed; a model that is best for a part of the queries has been used for a third."""
    random = np.random.default_rng(first)
    best = np.argmax(queries[:, : len(MODELS)], axis=1)
    with connection.transaction():
        connection.execute(
            "CREATE TEMP TABLE raw (ordinal bigint, id uuid, query vector, value float8, metadata jsonb) ON COMMIT DROP"
        )
        with connection.cursor() as cursor, cursor.copy("COPY raw FROM STDIN") as copy:
            for i, query in enumerate(queries):
                used = int(random.integers(len(MODELS)))
                value = float(np.clip(0.5 + 0.2 * (used == best[i]) + 0.2 * random.standard_normal(), 0, 1))
                parameters = f'{{"parameters": {{"model": "{MODELS[used]}", "depth": {20 * int(random.integers(4))}}}}}'
                vector = "[" + ",".join(f"{x:.6g}" for x in query) + "]"
                copy.write_row((first + i, uuid.uuid4(), vector, value, parameters))
        connection.execute(
            "INSERT INTO sona.trajectory (space_id, trajectory_id, query, metadata) SELECT %s, id, query, metadata"
            " FROM raw",
            (space_id,),
        )
        connection.execute(
            "INSERT INTO sona.answer_outcome (space_id, trajectory_id, ordinal, answered_at, arm, strategy, version,"
            " propensity, value) SELECT %s, id, ordinal, now(), 'learned', 'fusion', 1, 1, value FROM raw",
            (space_id,),
        )
        for table in ("learner", "strategist"):
            connection.execute(
                f"UPDATE sona.{table} SET ordinal = %s WHERE space_id = %s", (first + len(queries), space_id)
            )
    for table in ("trajectory", "answer_outcome"):
        connection.execute(f"VACUUM ANALYZE sona.{table}")


def _cycle(
    connection: Connection, coordinator: LoopCoordinator, space_id: int, params: dict[str, int | float | str]
) -> Iterator[Row]:
    reading, _ = _watched(lambda: _read(connection, space_id, int(params["outcomes"])))
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (SPACE,))
    seconds, kib = _watched(coordinator.step)
    ((state, facts),) = connection.execute(
        "SELECT state, facts FROM sona.runs WHERE space = %s ORDER BY run_id DESC LIMIT 1", (SPACE,)
    ).fetchall()
    if state != "done" or (facts["trajectories"], facts["new"]) != (params["outcomes"], params["new"]):
        raise RuntimeError(f"the cycle is {state}: {facts}")
    vectors = 4 * DIM * int(params["outcomes"]) / 1024
    yield row("cycle", params, np.array([seconds * 1e6]), "reading the vectors", np.array([reading * 1e6]))
    if params["new"] == params["outcomes"]:  # a later one is given what this one has freed
        yield row("its memory, KiB", params, np.array([kib]), "the vectors alone", np.array([vectors]))


def _read(connection: Connection, space_id: int, n: int) -> None:
    with connection.transaction(), connection.cursor(name="rival") as cursor:
        cursor.execute(
            "SELECT t.query, o.value FROM sona.answer_outcome o JOIN sona.trajectory t USING (space_id, trajectory_id)"
            " WHERE o.space_id = %s ORDER BY o.ordinal DESC LIMIT %s",
            (space_id, n),
            binary=True,
        )
        for _ in cursor:
            pass


def _watched(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that it takes, and KiB that the process grows by meanwhile."""
    stop, base = threading.Event(), _resident_kib()
    most = [base]

    def watch() -> None:
        while not stop.wait(0.01):
            most[0] = max(most[0], _resident_kib())

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    stop.set()
    thread.join()
    return seconds, float(most[0] - base)


def _resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_KIB


def _search(connection: Connection, space_id: int, queries: Floats) -> Row:
    times: tuple[list[float], list[float]] = ([], [])
    statements: tuple[tuple[str, object], ...] = (
        ("SELECT pattern_id, similarity FROM sona.find_patterns(%s, %s, 5)", SPACE),
        ("SELECT pattern_id FROM sona.pattern WHERE space_id = %s ORDER BY centroid <=> %s LIMIT 5", space_id),
    )
    for query in queries:
        for spent, (statement, space) in zip(times, statements, strict=True):
            began = time.perf_counter()
            connection.execute(statement.encode(), (space, query)).fetchall()
            spent.append((time.perf_counter() - began) * 1e6)
    ((patterns,),) = connection.execute("SELECT count(*) FROM sona.pattern WHERE space_id = %s", (space_id,)).fetchall()
    ours, rival = map(np.array, times)
    return row("find_patterns", {"patterns": patterns, "dim": DIM}, ours, "the bare query", rival)


def _search_many(connection: Connection, engine: SonaEngine, centroids: Floats, queries: Floats) -> Iterator[Row]:
    """Through the index of so many patterns, beside the bare query with that index, as wide; and how much is found."""
    space_id = engine.space.space_id
    columns = "space_id, pattern_id, centroid, cluster_size, total_weight, avg_quality, confidence, support"
    with connection.cursor().copy(f"COPY sona.pattern ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "int8", "vector", "int8", "float8", "float8", "float8", "int8"])
        for id, centroid in enumerate(centroids):
            copy.write_row((space_id, id, centroid, 5, 5.0, 0.5, 0.5, 5))
    connection.execute("SET maintenance_work_mem = '1GB'")
    connection.execute("SELECT sona.index_patterns(%s)", (SPACE,))
    connection.execute("VACUUM ANALYZE sona.pattern")
    connection.execute("SET hnsw.iterative_scan = strict_order")
    connection.execute("SET hnsw.ef_search = 100")
    # The very expression of the index.
    bare = (
        f"SELECT {{}} FROM sona.pattern WHERE space_id = %s ORDER BY centroid::vector({DIM}) <=> %(query)s LIMIT 10"
    ).replace("%s", str(space_id))
    found = "pattern_id, {}, cluster_size, support, avg_quality, confidence, best_strategy, title, description, content"
    ours = f"SELECT {found.format('similarity')} FROM sona.find_patterns('{SPACE}', %(query)s, 10)"
    same = bare.format(found.format("1 - (centroid <=> %(query)s)"))

    def fetch(statement: str, query: NDArray[np.float32]) -> list[tuple[int, ...]]:
        return connection.execute(statement.encode(), {"query": query}, binary=True).fetchall()

    hits = [
        len({row[0] for row in fetch(ours, query)} & set(np.argpartition(-(centroids @ query), 10)[:10].tolist()))
        for query in queries
    ]
    params: dict[str, int | float | str] = {
        "patterns": len(centroids),
        "dim": DIM,
        "recall@10": round(float(np.mean(hits)) / 10, 4),
    }
    calls: tuple[tuple[str, Callable[[NDArray[np.float32]], object], Callable[[NDArray[np.float32]], object]], ...] = (
        ("sona.find_patterns", lambda query: fetch(ours, query), lambda query: fetch(same, query)),
        (
            "SonaEngine.find_patterns",
            lambda query: engine.find_patterns(query, 10),
            lambda query: fetch(bare.format("*"), query),
        ),
    )
    for name, call, rival in calls:
        times: tuple[list[float], list[float]] = ([], [])
        # Each call has a query of its own: one that was just asked is in the caches.
        for pair in zip(queries, np.roll(queries, len(queries) // 2, axis=0), strict=True):
            for query, work, spent in zip(pair, (call, rival), times, strict=True):
                began = time.perf_counter()
                work(query)
                spent.append((time.perf_counter() - began) * 1e6)
        yield row(name, params, np.array(times[0]), "the bare query, of the same columns", np.array(times[1]))


def _useful(seeds: int) -> list[Row]:
    """What is missing at the end to the quality of the oracle's parameters, and to good patterns."""
    found = []
    for seed in range(seeds):
        with benchmark_engine(REPLAY_DIM) as engine:
            found.append(replay(engine, seed))
    lost = np.array([100 * (1 - each.usefulness.recommended / each.usefulness.oracle) for each in found])
    default = np.array([100 * (1 - each.usefulness.default / each.usefulness.oracle) for each in found])
    missing = np.array([100 * (1 - each.good_quality) for each in found])
    params: dict[str, int | float | str] = {"events": 2000, "topics": 20, "sd": 0.2, "seeds": seeds}
    return [
        row("quality lost to the oracle, %", params, lost, "fixed default", default),
        row("missing to the quality of good patterns, %", params, missing, "allowed", np.array([30.0])),
    ]
