"""What dreams are worth in Postgres, gates and all: one-hop recall@50 over the edges that a deep cycle makes.

Memory graphs of `benchmarks.two_hop`, with the defaults of the deep loop; with ``SONA_DATA`` also the collection
``two_hop``. What is *missing* to a recall of 100 % stands where times do, beside that with as many random edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.bank_worlds import DATA
from benchmarks.harness import Row, row
from benchmarks.postgres import benchmark_engine
from benchmarks.two_hop import TwoHop
from sona_pg.config import DreamConfig, StoreConfig
from sona_pg.engine import SonaEngine
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.deep import DEEP
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database


@dataclass(frozen=True, slots=True)
class Dreamt:
    """One-hop recall@50 without edges by dreams, with them, and with as many at random; facts of the cycle."""

    without: float
    dreams: float
    random: float
    facts: dict[str, dict[str, object]]


def run(*, quick: bool) -> list[Row]:
    """10 worlds, 2 with --quick, and the collection where it is."""
    worlds = {f"seed {seed}": TwoHop.made(seed) for seed in range(2 if quick else 10)}
    path = DATA / "two_hop" / "two_hop.npz"
    if path.exists():
        worlds["two_hop"] = TwoHop.load(path)
    found = {name: dreamt(world) for name, world in worlds.items()}
    made = [each for name, each in found.items() if name != "two_hop"]
    rows = [_row(f"{len(made)} worlds", made)]
    if "two_hop" in found:
        rows.append(_row("two_hop", [found["two_hop"]]))
    return rows


def _row(name: str, found: list[Dreamt]) -> Row:
    recall = np.array([each.dreams for each in found])
    return row(
        "missing to one-hop recall@50, %",
        {
            "graph": name,
            "recall": round(float(recall.mean()), 3),
            "least": round(float(recall.min()), 3),
            "without": round(float(np.mean([each.without for each in found])), 3),
            "dreams": int(np.mean([int(str(each.facts["dream"]["dreams"])) for each in found])),
            "integrated": int(np.mean([int(str(each.facts["dream"]["integrated"])) for each in found])),
            "confirmed": sum(bool(each.facts["dream"]["confirmed"]) for each in found),
        },
        100 * (1 - recall),
        "random edges",
        100 * (1 - np.array([each.random for each in found])),
    )


def dreamt(world: TwoHop) -> Dreamt:
    """A deep cycle over a world in a space of its own."""
    embeddings = world.graph.embeddings
    assert embeddings is not None
    with benchmark_engine(embeddings.shape[1]) as engine, connect(engine.url) as connection:
        _fill(connection, engine.space.space_id, world)
        facts = _cycle(connection, engine)
        edges = connection.execute(
            "SELECT source::int, target::int, weight FROM sona.memory_edge WHERE space_id = %s AND kind = 'creative'",
            (engine.space.space_id,),
        ).fetchall()
    made = np.array(edges, dtype=np.float64).reshape(-1, 3)
    ends = made[:, :2].astype(np.int64)
    graph = world.with_edges(ends[:, 0], ends[:, 1], made[:, 2].astype(np.float32))
    config = DreamConfig(max_edges=max(len(made), 1))
    return Dreamt(world.recall(world.graph, 1), world.recall(graph, 1), world.recall(world.at_random(config), 1), facts)


def _fill(connection: Connection, space_id: int, world: TwoHop) -> None:
    assert world.graph.embeddings is not None
    with connection.transaction():
        cursor = connection.cursor()
        cursor.executemany(
            "INSERT INTO sona.memory_node (space_id, node_id, kind, key, embedding) VALUES (%s, %s, 'episode', %s, %s)",
            [(space_id, 1 + at, str(at), vector) for at, vector in enumerate(world.graph.embeddings)],
        )
        connection.execute(
            "INSERT INTO sona.memory_node_state (space_id, node_id, importance) SELECT space_id, node_id, 0.5"
            " FROM sona.memory_node WHERE space_id = %s",
            (space_id,),
        )
        connection.execute(
            "INSERT INTO sona.memory_state (space_id, last_node_id) VALUES (%s, %s)", (space_id, len(world.graph))
        )
        cursor.executemany(
            "INSERT INTO sona.memory_edge (space_id, kind, source_kind, source, target_kind, target, weight)"
            " VALUES (%s, 'given', 'episode', %s, 'episode', %s, %s)",
            [(space_id, str(a), str(b), float(w)) for a, b, w in zip(*world.graph.edges(), strict=True)],
        )


def _cycle(connection: Connection, engine: SonaEngine) -> dict[str, dict[str, object]]:
    ((run_id,),) = connection.execute("SELECT sona.run_cycle(%s, 'deep')", (engine.space.name,)).fetchall()
    coordinator = LoopCoordinator(Database(engine.url, StoreConfig()), DEEP)
    coordinator.step()
    coordinator.close()
    ((state, facts, reason),) = connection.execute(
        "SELECT state, facts, reason FROM sona.runs WHERE run_id = %s", (run_id,)
    ).fetchall()
    assert state == "done", reason
    found: dict[str, dict[str, object]] = facts
    return found
