"""A cycle of the deep loop as a worker process over a large memory graph in Postgres, phase by phase, and its memory.

The first cycle makes the nodes and gives them their embeddings; a week later the next one finds them, and every edge
has faded. The rival is what any program must do that changes all edges: copy them out, and in again to a table with the
same indexes. Microseconds; seconds of every phase and MiB of the worker, in all and above one that has nothing to do,
stand among the parameters.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

import numpy as np

from benchmarks.background import TABLE, work
from benchmarks.consolidation import graph
from benchmarks.harness import Row, row
from benchmarks.postgres import SPACE, benchmark_engine
from sona_pg.engine import SonaEngine
from sona_pg.learning.arrays import normalized_rows
from sona_pg.store.columns import write_columns
from sona_pg.store.connection import Connection, connect

DIMS = (64, 384)
PATTERNS, QUERIES, SHOWN = 50, 20_000, 5
WEEK_SECONDS = 7 * 86_400


def run(*, quick: bool) -> list[Row]:
    """50,000 nodes with 1,000,000 edges; 5,000 with 100,000 with --quick."""
    nodes, edges = (5_000, 100_000) if quick else (50_000, 1_000_000)
    rows: list[Row] = []
    for dim in DIMS:
        with benchmark_engine(dim) as engine, connect(engine.url) as connection:
            idle = work(engine.url, "deep")
            _fill(connection, engine, nodes, edges, dim)
            for cycle in ("first", "next"):
                rows.append(_cycle(connection, engine, {"cycle": cycle, "d": dim}, idle))
                _let_a_week_pass(connection, engine.space.space_id)
            connection.execute(f"DROP TABLE {TABLE}")
    return rows


def _fill(connection: Connection, engine: SonaEngine, n: int, m: int, dim: int) -> None:
    """As traffic would have left it: items, what they were good for, and which of them helped together."""
    nodes, drawn = graph(n, m * 3 // 2, dim)
    random, space_id = np.random.default_rng(1), engine.space.space_id
    connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
    connection.execute(f"CREATE TABLE {TABLE} (id text PRIMARY KEY, embedding vector)")
    _copy(
        connection,
        f"{TABLE} (id, embedding)",
        "text vector",
        list(zip(map(str, range(n)), nodes.embeddings, strict=True)),
    )
    engine.set_items(TABLE, "id", "embedding")
    _copy(
        connection,
        "sona.item_outcome (space_id, item_id, helped)",
        "int8 text int8",
        [(space_id, str(i), count) for i, count in enumerate(nodes.access_count.tolist())],
    )
    keys = np.minimum(drawn.source, drawn.target) * n + np.maximum(drawn.source, drawn.target)
    keys = random.permutation(np.unique(keys[drawn.source != drawn.target]))[:m]
    connection.execute("CREATE TEMP TABLE drawn (a bigint, b bigint, weight float8, age float8)")
    columns = {
        "a": keys // n, "b": keys % n, "weight": drawn.weight[:m], "age": random.uniform(0, WEEK_SECONDS, m),
    }  # fmt: skip
    write_columns(connection, "pg_temp.drawn", list(columns), columns)
    connection.execute(
        "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight, created_at, updated_at, decayed_at)"
        ' SELECT %s, \'co_access\', least(a::text COLLATE "C", b::text), greatest(a::text COLLATE "C", b::text),'
        " weight, t, t, t FROM drawn, LATERAL (SELECT now() - make_interval(secs => age) AS t) x",
        (space_id,),
    )
    connection.execute("DROP TABLE drawn")
    topics = random.standard_normal((PATTERNS, dim), dtype=np.float32)
    _copy(
        connection,
        "sona.pattern (space_id, pattern_id, centroid, cluster_size, total_weight, avg_quality, confidence, support)",
        "int8 int8 vector int8 float8 float8 float8 int8",
        [
            (space_id, i, centroid, 400, 400.0, 0.7, 0.5, 400)
            for i, centroid in enumerate(normalized_rows(topics), start=1)
        ],
    )
    of_topic = random.integers(0, PATTERNS, QUERIES)
    queries = topics[of_topic] + random.standard_normal((QUERIES, dim), dtype=np.float32)
    shown = random.integers(0, n, (PATTERNS, 40))[of_topic[:, np.newaxis], random.integers(0, 40, (QUERIES, SHOWN))]
    _copy(
        connection,
        "sona.remembered_query (space_id, trajectory_id, embedding, ordinal, helped, unhelpful)",
        "int8 uuid vector int8 text[] text[]",
        [
            (space_id, uuid.UUID(int=i), query, i, [str(item) for item in items[:2]], [str(item) for item in items[2:]])
            for i, (query, items) in enumerate(zip(queries, shown.tolist(), strict=True))
        ],
    )
    _rest(connection)


def _copy(connection: Connection, table: str, types: str, rows: Sequence[tuple[object, ...]]) -> None:
    with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(types.split())
        for values in rows:
            copy.write_row(values)


def _rest(connection: Connection) -> None:
    """As a server has done it by itself before the next cycle."""
    for table in ("memory_edge", "memory_node", "memory_node_state", "memory_archive", "remembered_query"):
        connection.execute(f"VACUUM ANALYZE sona.{table}")
    connection.execute("CHECKPOINT")


def _let_a_week_pass(connection: Connection, space_id: int) -> None:
    """All that has happened was a week earlier."""
    for table, columns in {
        "memory_edge": ("created_at", "updated_at", "decayed_at"),
        "memory_node": ("created_at",),
        "memory_node_state": ("last_access",),
    }.items():
        earlier = ", ".join(f"{column} = {column} - make_interval(secs => {WEEK_SECONDS})" for column in columns)
        connection.execute(f"UPDATE sona.{table} SET {earlier} WHERE space_id = %s", (space_id,))
    _rest(connection)


def _cycle(connection: Connection, engine: SonaEngine, params: dict[str, int | float | str], idle: float) -> Row:
    copying = _copied_out_and_in(connection, engine.space.space_id)
    connection.execute("SELECT sona.run_cycle(%s, 'deep')", (SPACE,))
    resident = work(engine.url, "deep")
    ((state, facts, phases, seconds),) = connection.execute(
        "SELECT state, facts, phases, extract(epoch FROM finished_at - started_at)::float8 FROM sona.runs"
        " WHERE space = %s ORDER BY run_id DESC LIMIT 1",
        (SPACE,),
    ).fetchall()
    if state != "done":
        raise RuntimeError(f"the cycle is {state}: {facts}")
    consolidated = facts["consolidate"]
    params |= {
        "nodes": consolidated["nodes"], "edges": consolidated["edges"], "edges_changed": consolidated["edges_changed"],
        "merged": consolidated["nodes_merged"], "resident": round(resident), "above_idle": round(resident - idle),
    }  # fmt: skip
    for phase in phases:
        parts = (phase[f"{part}_seconds"] for part in ("read", "compute", "write"))
        params[phase["name"]] = "+".join(f"{part:.1f}" for part in parts)
    return row("deep cycle", params, np.array([seconds * 1e6]), "COPY out and in", np.array([copying * 1e6]))


def _copied_out_and_in(connection: Connection, space_id: int) -> float:
    """Seconds that it takes to copy all edges to this process and into another table."""
    connection.execute("DROP TABLE IF EXISTS public.sona_benchmark_edges")
    connection.execute("CREATE TABLE public.sona_benchmark_edges (LIKE sona.memory_edge INCLUDING ALL)")
    began = time.perf_counter()
    with connection.cursor().copy(
        "COPY (SELECT * FROM sona.memory_edge WHERE space_id = %s) TO STDOUT (FORMAT BINARY)", (space_id,)
    ) as out:
        blocks = list(out)
    with connection.cursor().copy("COPY public.sona_benchmark_edges FROM STDIN (FORMAT BINARY)") as into:
        for block in blocks:
            into.write(block)
    taken = time.perf_counter() - began
    connection.execute("DROP TABLE public.sona_benchmark_edges")
    return taken
