"""A space with everything in it that there is, and what must be the same of it after it was saved and loaded."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sona_pg import SonaEngine, SpaceConfig
from sona_pg.config import BackgroundConfig, PatternConfig, StoreConfig
from sona_pg.learning.associations import Associations
from sona_pg.loops.background import background_loop
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.deep import DEEP
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database

NAME = "saved"
DIM, ITEMS, EVENTS = 16, 60, 120
BACKGROUND = background_loop(BackgroundConfig(minimum=1), PatternConfig(k_clusters=4, min_cluster_size=2))

DRAWN = {
    "strategy_turn": "turn_id",
    "deployment": "deployment_id",
    "score": "sequence",
    "memory_archive": "archive_id",
    "pending_trajectory": "pending_id",
    "error_log": "error_id",
}
RUNS = ("run_id", "patterns_run", "memory_run")
_ELSEWHERE = {("space", "name"), ("remembered_query", "admitted")}


def units(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    made = rng.standard_normal((*shape, DIM)).astype(np.float32)
    return made / np.linalg.norm(made, axis=-1, keepdims=True)


EMBEDDINGS = units(np.random.default_rng(1), ITEMS)
QUERIES = units(np.random.default_rng(2), 250)


def make_items(url: str, table: str = "public.doc", dim: int = DIM) -> None:
    with connect(url) as connection:
        connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector({dim}) NOT NULL)")
        for item, embedding in enumerate(EMBEDDINGS):
            connection.execute(f"INSERT INTO {table} VALUES (%s, %s)", (item, np.resize(embedding, dim)))


def record(engine: SonaEngine, first: int, count: int) -> None:
    """Record events by number, the same ones whenever the numbers are the same: what helps is not what is nearest."""
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((DIM, DIM)))[0].astype(np.float32)
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        query = units(rng)
        shown = np.argsort(-EMBEDDINGS @ query)[:5].tolist()
        best = int(np.argmax(EMBEDDINGS @ (0.5 * query + 0.5 * query @ turn)))
        items = list(dict.fromkeys([*shown, best]))
        id = uuid.UUID(int=number + 1)
        rewards = [1.0 if item == best else None if number % 3 else 0.0 for item in items]
        engine.record(
            query,
            list(map(str, items)),
            rewards,
            trajectory_id=id,
            user_id=f"user {number % 7}",
            metadata={"parameters": {"model": "ab"[number % 2]}},
        )
        if number % 4 == 3:
            engine.score(id, 0.75, str(shown[1]), score_id=f"late {number}")


def run_cycles(url: str, name: str) -> None:
    """A cycle of the background loop, and one of the deep loop."""
    for loop in (BACKGROUND, DEEP):
        with connect(url) as connection:
            connection.execute("SELECT sona.run_cycle(%s, %s)", (name, loop.name))
        coordinator = LoopCoordinator(Database(url, StoreConfig()), loop)
        coordinator.step()
        coordinator.close()
        assert coordinator.failing == []


def build(url: str, name: str) -> None:
    """A space that has learned, been weighed, published, deployed, forgotten a user, and left something to do."""
    config, store = SpaceConfig(control_share=0.0), StoreConfig(publish_every_events=30)
    with SonaEngine.connect(
        url, space=name, dim=DIM, embedder="model 1", background=False, space_config=config, store=store
    ) as engine:
        engine.set_items("public.doc", "id", "embedding", filter_columns=["id"])
        for first in range(0, EVENTS, 30):
            record(engine, first, 30)
            engine.flush()
        run_cycles(url, name)
        engine.deploy("frozen", "a look")
        engine.deploy("latest", "it was good")
        engine.forget("user 6")
        record(engine, 1000, 20)
        engine.flush()
    run_cycles(url, name)
    with connect(url) as connection:
        key = _space_id(connection, name)
        for _ in range(2):
            connection.execute("SELECT sona.record(%s, %s, '{1,2}', '{1,0}')", (name, QUERIES[0]))
        connection.execute("SELECT sona.score(%s, 0.5, '3', score_id => 'later')", (uuid.UUID(int=2),))
        connection.execute("SELECT sona.set_schedule(%s, 'background', every => '1 hour')", (name,))
        connection.execute("SELECT sona.run_cycle(%s, 'background')", (name,))
        connection.execute("SELECT sona.set_retention(%s, '900 days', '800 days')", (name,))
        connection.execute("SELECT sona.grant_space(%s, 'sona_reader', false)", (name,))
        for statement in (
            "INSERT INTO sona.error_log (space_id, source, worker, message) VALUES (%(s)s, 'a', 'b', E'c\\t\\\\.\\n')",
            "INSERT INTO sona.memory_archive (space_id, run_id, entity, content, reason) SELECT %(s)s, r.run_id,"
            ' \'node\', \'{"kind": "item", "key": "gone", "node_id": 9999, "level": 0,'
            ' "created_at": "2026-01-01"}\', \'a test\' FROM sona.loop_run r'
            " WHERE r.space_id = %(s)s AND r.state = 'done'",
            "INSERT INTO sona.strategy_turn (space_id, ordinal, trajectory_id, before, after, reason)"
            " VALUES (%(s)s, 0, gen_random_uuid(), 'frozen', 'fusion', 'a test'),"
            " (%(s)s, 1, gen_random_uuid(), 'fusion', 'frozen', 'a test')",
            "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight, origin) SELECT %(s)s, 'creative',"
            " 'no ' || min(d.run_id), 'other', 0.5, 'dreams of run ' || min(d.run_id) FROM sona.dream d"
            " WHERE d.space_id = %(s)s",
            "INSERT INTO sona.fisher_snapshot (space_id, snapshot_id, signature, layout, kind, fisher, anchor, lambda,"
            " samples, quality) SELECT %(s)s, 99, r.embedding, 'test', 'test', '', '', 1, 1, 0.5"
            " FROM sona.remembered_query r WHERE r.space_id = %(s)s LIMIT 1",
        ):
            connection.execute(statement, {"s": key})
        connection.execute(
            "INSERT INTO sona.memory_snapshot (space_id, run_id, ordinal, content) VALUES (%s, 1, 0, %s)"
            " ON CONFLICT DO NOTHING",
            (key, Associations.of_pairs([(("1", "2"), 0.5)]).to_bytes()),
        )
        connection.execute(
            "SELECT sona._count_accesses(p.space_id, array_agg(p.pattern_id), array_agg(3)) FROM sona.pattern p"
            " WHERE p.space_id = %s GROUP BY p.space_id",
            (key,),
        )


def _space_id(connection: Connection, name: str) -> int:
    row = connection.execute("SELECT space_id FROM sona.space WHERE name = %s", (name,)).fetchone()
    assert row is not None
    return int(row[0])


def rows_of(url: str, name: str) -> dict[str, list[tuple[object, ...]]]:
    """All rows of a space, as text: ids that are drawn for all spaces by their order, runs by their rank."""
    with connect(url) as connection:
        key = _space_id(connection, name)
        columns = connection.execute(
            "SELECT c.relname, array_agg(a.attname::text ORDER BY a.attname) FROM pg_class c JOIN pg_attribute a"
            " ON a.attrelid = c.oid WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind = 'r' AND a.attnum > 0"
            " AND NOT a.attisdropped AND c.relname NOT IN ('alembic_version', 'space_grant') GROUP BY 1 ORDER BY 1"
        ).fetchall()
        found: dict[str, list[dict[str, str | None]]] = {}
        for table, names in columns:
            drawn = DRAWN.get(table)
            kept = [n for n in names if n not in ("space_id", drawn) and (table, n) not in _ELSEWHERE]
            order = f"{drawn}" if drawn else "row_to_json(t)::text" if "run_id" not in kept else "run_id, t::text"
            listed = ", ".join(f"t.{n}::text" for n in kept)
            rows = connection.execute(
                f"SELECT {listed} FROM sona.{table} t WHERE space_id = %s ORDER BY {order}", (key,)
            ).fetchall()
            found[table] = [dict(zip(kept, row, strict=True)) for row in rows]
    runs = sorted({int(v) for rows in found.values() for row in rows for n in RUNS if (v := row.get(n)) is not None})
    ranks = {str(run): str(rank) for rank, run in enumerate(runs)}
    for rows in found.values():
        for row in rows:
            row.update({n: ranks[v] for n in RUNS if (v := row.get(n)) is not None})
            if (origin := row.get("origin")) is not None:
                row["origin"] = re.sub(r"^dreams of run (\d+)$", lambda m: f"dreams of run {ranks[m[1]]}", origin)
    for row in found["memory_edge"]:
        if (source := row["source"]) is not None and source.startswith("no "):
            row["source"] = "no run"
    if found["deployment"] and found["deployment"][-1]["action"] == "load":
        del found["deployment"][-1]
    listed_rows = {table: [tuple(row.values()) for row in rows] for table, rows in found.items()}
    return {t: rows if t in DRAWN else sorted(rows, key=str) for t, rows in listed_rows.items()}


Change = Callable[[dict[str, bytes], dict[str, object]], None]
"""Changes the parts of a file, by name, and its manifest."""


def forge(source: Path, target: Path, change: Change, *, compression: int = zipfile.ZIP_STORED) -> Path:
    """A file with other parts, of which the manifest says what it must for them to be believed, if `change` lets it."""
    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(parts.pop("manifest.json"))
    before = dict(parts)
    change(parts, manifest)
    for name, data in parts.items():
        table = manifest["tables"].get(name.removesuffix(".copy"))
        if table is not None and data != before.get(name):
            table |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, data in (parts | {"manifest.json": json.dumps(manifest).encode()}).items():
            archive.writestr(name, data)
    return target
