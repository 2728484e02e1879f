"""A space with a memory graph: topics in a ring, questions that need items of two, and cycles of loop C over it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg import SonaEngine, SpaceConfig
from sona_pg.config import BackgroundConfig, PatternConfig
from sona_pg.loops.background import background_loop
from sona_pg.loops.cycle import Loop
from sona_pg.loops.deep import DEEP
from sona_pg.store.connection import Connection, connect

from .cycles import run_cycle
from .own_spaces import connection as connection
from .vectors import unit

DIM, TOPICS, ITEMS = 16, 12, 20
"""Topics, and items of each."""

BACKGROUND = background_loop(BackgroundConfig(minimum=1), PatternConfig(k_clusters=TOPICS, min_cluster_size=2))
_tables = itertools.count()

Vector = NDArray[np.float32]


class World:
    """Topics; a question of one is helped by some items of it, which neighbours in a ring share more often."""

    def __init__(self, url: str, name: str, seed: int = 0, embedder: str | None = None) -> None:
        self.url, self.rng = url, np.random.default_rng(seed)
        centres = self.rng.standard_normal((TOPICS, DIM))
        self.items = unit(np.repeat(centres, ITEMS, axis=0) + 0.5 * self.rng.standard_normal((TOPICS * ITEMS, DIM)))
        self.centres = unit(centres)
        self.table = table = f"public.deep_{next(_tables)}"
        with connect(url) as connection:
            connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector)")
            connection.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s)", list(enumerate(self.items)))
        self.engine = SonaEngine.connect(
            url, space=name, dim=DIM, background=False, embedder=embedder, space_config=SpaceConfig(control_share=0.0)
        )
        self.engine.set_items(table, "id", "embedding")
        self.name, self.space_id = name, self.engine.space.space_id

    def teach(self, events: int, user: str | None = None) -> None:
        for topic in self.rng.integers(0, TOPICS, events):
            first = int(self.rng.integers(0, ITEMS))
            helped = [str(topic * ITEMS + (first + offset) % ITEMS) for offset in (0, 1, 2)]
            query = unit(self.centres[topic] + 0.2 * self.rng.standard_normal(DIM))
            unhelpful = str(int(self.rng.integers(0, TOPICS * ITEMS)))
            self.engine.record(query, [*helped, unhelpful], [1.0, 1.0, 1.0, 0.0], user_id=user)
        self.engine.flush()

    def cycle(self, loop: Loop = DEEP) -> dict[str, Any]:
        found = run_cycle(self.url, self.name, loop)
        assert found.state == "done", found.reason
        return found.facts


@pytest.fixture
def world(module_url: str, connection: Connection, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(module_url, request.node.name[:60])
    yield made
    made.engine.close()


def _rows(connection: Connection, statement: str, *values: object) -> list[Any]:
    return connection.execute(statement, values).fetchall()


MEMORY = {
    "memory_node": "node_id, kind, key, embedding::text, title, level, created_at",
    "memory_node_state": "node_id, importance, quality, access_count, last_access, consolidation_count",
    "memory_edge": "kind, source_kind, source, target_kind, target, weight, origin, created_at, updated_at, decayed_at",
}


def _memory(connection: Connection, world: World) -> dict[str, list[Any]]:
    return {
        table: _rows(
            connection,
            f"SELECT {columns} FROM sona.{table} WHERE space_id = %s ORDER BY 1, 2, 3, 4, 5",
            world.engine.space.space_id,
        )
        for table, columns in MEMORY.items()
    }


def _at_one_instant(world: World, connection: Connection, loop: Loop = DEEP, later: str = "0") -> dict[str, Any]:
    """Another cycle, as if it were asked for so long after the last one."""
    connection.execute("SELECT sona.run_cycle(%s, 'deep')", (world.name,))
    connection.execute(
        "UPDATE sona.loop_run r SET requested_at = (SELECT max(o.requested_at) FROM sona.loop_run o"
        " WHERE o.space_id = r.space_id AND o.loop = r.loop AND o.state = 'done') + %s::interval"
        " WHERE r.space_id = %s AND r.state = 'requested'",
        (later, world.engine.space.space_id),
    )
    return world.cycle(loop)
