"""Applying what was learned: sona.adapt beside SELECT 1, recall beside the bare queries, with filters and fusion."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import replace

import numpy as np

from benchmarks.harness import Row, compare
from benchmarks.postgres import SPACE, benchmark_engine
from sona_pg.engine import SonaEngine
from sona_pg.store.connection import Connection, connect

DIM = 384


def run(*, quick: bool) -> list[Row]:
    """On a space that has learned, with an HNSW index on the items."""
    rounds = 300 if quick else 2000
    items = 5_000 if quick else 100_000
    random = np.random.default_rng(0)
    with benchmark_engine(DIM) as engine, connect(engine.url) as connection:
        _fill(connection, random, items)
        engine.set_items(
            "benchmark_items", "id", "embedding", filter_columns=["one_in_10", "one_in_100", "one_in_1000"]
        )
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
        engine_recall = compare(
            "SonaEngine.recall",
            {"d": DIM, "items": items},
            lambda: engine.recall(query),
            "bare pgvector query",
            lambda: fetch(bare, adapted),
            rounds=rounds,
            inner=1,
        )
        filters = [_filtered(engine, connection, random, share, rounds // 10) for share in (10, 100, 1000)]
        fused = _fused(engine, connection, random, items, rounds)
        connection.execute("DROP TABLE benchmark_items")
    return [replace(adapt, params={**adapt.params, "over_us": over}), recall, engine_recall, *filters, *fused]


def _fused(
    engine: SonaEngine, connection: Connection, random: np.random.Generator, size: int, rounds: int
) -> list[Row]:
    """recall by the fusion over as many remembered outcomes as items, beside the two bare queries that it needs."""
    connection.execute("SELECT sona.set_strategy(%s, 'fusion')", (SPACE,))
    rows = connection.execute("SELECT id, embedding FROM benchmark_items", binary=True).fetchall()
    columns = "space_id, trajectory_id, embedding, admitted, ordinal, helped, rewards, unhelpful"
    with connection.cursor().copy(f"COPY sona.remembered_query ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "uuid", "vector", "bool", "int8", "text[]", "float4[]", "text[]"])
        for place in range(size):
            near = [rows[(place + step * 100) % size] for step in range(10)]
            query = near[0][1] + np.float32(0.3) * random.standard_normal(DIM, dtype=np.float32)
            ids = [str(item) for item, _ in near]
            copy.write_row((engine.space.space_id, uuid.uuid4(), query, True, 1000 + place, ids[:1], [1.0], ids[1:]))
    connection.execute(
        "INSERT INTO sona.item_outcome (space_id, item_id, helped)"
        " SELECT %s, id::text, 1 FROM benchmark_items ON CONFLICT DO NOTHING",
        (engine.space.space_id,),
    )
    connection.execute("SELECT sona._index_queries(%s, %s, current_user)", (engine.space.space_id, DIM))
    connection.execute("ANALYZE sona.remembered_query")
    connection.execute("ANALYZE sona.item_outcome")
    engine.flush()
    # Of every cluster alike: those of one would keep what they touch of the indexes in the caches.
    queries = [
        rows[place][1] + np.float32(0.3) * random.standard_normal(DIM, dtype=np.float32)
        for place in random.choice(len(rows), min(997, len(rows)), replace=False)
    ]
    # Each call has a query of its own: one that was just asked is in the caches.
    asked = itertools.cycle(queries)

    bare_items = "SELECT id FROM benchmark_items ORDER BY embedding <=> %s LIMIT 10"
    # The very expression of the index; what recall asks for, without anything else.
    bare_memory = (
        f"SELECT helped, rewards, unhelpful FROM sona.remembered_query WHERE space_id = {engine.space.space_id}"
        " AND admitted"
        f" ORDER BY embedding::vector({DIM}) <=> %s::vector({DIM}) LIMIT 40"
    )

    def fetch(statement: str, *parameters: object) -> object:
        return connection.execute(statement, parameters, binary=True).fetchall()

    def both() -> object:
        query = next(asked)
        return fetch(bare_items, query), fetch(bare_memory, query)

    connection.execute("SET hnsw.iterative_scan = relaxed_order")
    params: dict[str, int | float | str] = {"d": DIM, "items": size, "trajectories": size}
    rival = "bare item query + bare memory query"
    return [
        compare(
            "sona.recall by the fusion",
            params,
            lambda: fetch("SELECT * FROM sona.recall(%s, %s, 10)", SPACE, next(asked)),
            rival,
            both,
            rounds=rounds,
            inner=1,
        ),
        compare(
            "SonaEngine.recall by the fusion",
            params,
            lambda: engine.recall(next(asked)),
            rival,
            both,
            rounds=rounds,
            inner=1,
        ),
    ]


def _filtered(engine: SonaEngine, connection: Connection, random: np.random.Generator, share: int, rounds: int) -> Row:
    """recall with a filter that one item in `share` passes, beside an exhaustive search with the same filter."""
    column = f"one_in_{share}"
    rows = connection.execute("SELECT embedding FROM benchmark_items WHERE id %% 97 = 3 LIMIT %s", (rounds,)).fetchall()
    queries = [row[0] + np.float32(0.3) * random.standard_normal(DIM, dtype=np.float32) for row in rows]
    exact = f"SELECT id::text FROM benchmark_items WHERE {column} = 0 ORDER BY (embedding <=> %s) + 0 LIMIT 10"
    found, full = 0, 0
    for query in queries:
        items = {item.item_id for item in engine.recall(query, filter={column: 0}).items}
        full += len(items) == 10
        nearest = connection.execute(exact, (engine.adapt(query),)).fetchall()
        found += len(items & {row[0] for row in nearest})
    timed = compare(
        "recall with a filter",
        {"passes": f"{100 / share:g} %"},
        lambda: engine.recall(queries[0], filter={column: 0}),
        "exhaustive search",
        lambda: connection.execute(exact, (queries[0],), binary=True).fetchall(),
        rounds=rounds,
        inner=1,
    )
    quality: dict[str, int | float | str] = {
        "recall_at_10": round(found / (10 * len(queries)), 3),
        "all_10_rows": f"{full} of {len(queries)}",
    }
    return replace(timed, params={**timed.params, **quality})


def _fill(connection: Connection, random: np.random.Generator, items: int) -> None:
    centres = random.standard_normal((100, DIM), dtype=np.float32)
    connection.execute("DROP TABLE IF EXISTS benchmark_items")
    connection.execute(
        "CREATE TABLE benchmark_items"
        f" (id integer PRIMARY KEY, embedding vector({DIM}),"
        " one_in_10 integer, one_in_100 integer, one_in_1000 integer)"
    )
    with connection.cursor().copy("COPY benchmark_items FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "vector", "int4", "int4", "int4"])
        for item in range(items):
            noise = random.standard_normal(DIM, dtype=np.float32)
            groups = [int(random.integers(size)) for size in (10, 100, 1000)]
            copy.write_row((item, centres[item % len(centres)] + np.float32(0.7) * noise, *groups))
    for column in ("one_in_10", "one_in_100", "one_in_1000"):
        connection.execute(f"CREATE INDEX ON benchmark_items ({column})")
    connection.execute("SET maintenance_work_mem = '1GB'")
    connection.execute("CREATE INDEX ON benchmark_items USING hnsw (embedding vector_cosine_ops)")
    connection.execute("ANALYZE benchmark_items")
