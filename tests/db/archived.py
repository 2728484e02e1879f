"""Episodes and near duplicates for a cycle of loop C to remove or merge, and how they are restored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from sona_pg.config import DeepLoopConfig
from sona_pg.loops.cycle import Cycle, Loop, Phase
from sona_pg.loops.deep import deep_loop
from sona_pg.loops.deep_config import DeepConfig
from sona_pg.store.connection import Connection

from .deep_worlds import DIM, World
from .vectors import unit

QUIET = deep_loop(DeepConfig(DeepLoopConfig(dreams_per_cycle=0)))
"""Without dreams."""


def _add(connection: Connection, world: World, key: str, vector: NDArray[Any] | None = None) -> None:
    connection.execute("SELECT sona.add_memory_node(%s, 'episode', %s, %s)", (world.name, key, vector))


def _restore(connection: Connection, world: World, ids: list[int] | None = None) -> int:
    found = connection.execute("SELECT sona.restore_memory(%s, %s)", (world.name, ids)).fetchone()
    assert found is not None
    return int(found[0])


def _meanwhile(what: Callable[[], object]) -> Loop:
    """A cycle while whose consolidation is computed something happens."""

    def changed(phase: Phase[Any, Any]) -> Phase[Any, Any]:
        def compute(found: object, cycle: Cycle) -> object:
            made = phase.compute(found, cycle)
            what()
            return made

        return replace(phase, compute=compute) if phase.name == "consolidate" else phase

    return replace(QUIET, phases=tuple(changed(phase) for phase in QUIET.phases))


def _twins(world: World, connection: Connection) -> None:
    """Let items 0 and 1 be near duplicates."""
    connection.execute(
        f"UPDATE {world.table} SET embedding = %s WHERE id = 1",
        (unit(world.items[0] + 1e-3 * world.rng.standard_normal(DIM)),),
    )
    world.engine.set_items(world.table, "id", "embedding")


def _help(world: World, *items: str, times: int = 1) -> None:
    for _ in range(times):
        query = unit(world.centres[0] + 0.2 * world.rng.standard_normal(DIM))
        world.engine.record(query, items, [1.0] * len(items))
    world.engine.flush()


def _near_duplicates(world: World, connection: Connection, *keys: str) -> None:
    """Episodes that are nearly one, each with an edge to `far`, and ten accesses."""
    _add(connection, world, "far", unit(world.items[50]))
    for place, key in enumerate(keys):
        _add(connection, world, key, unit(world.items[7] + 1e-3 * place * world.items[100]))
        connection.execute("SELECT sona.add_memory_edge(%s, 'episode', %s, 'episode', 'far', 0.5)", (world.name, key))
    connection.execute(
        "UPDATE sona.memory_node_state t SET access_count = 10 FROM sona.memory_node n WHERE t.space_id = %s"
        " AND n.space_id = t.space_id AND n.node_id = t.node_id AND n.kind = 'episode'",
        (world.engine.space.space_id,),
    )


EPISODES = (
    "SELECT key, access_count, quality, last_access, created_at FROM sona.memory"
    " WHERE space = %s AND kind = 'episode' ORDER BY 1"
)
GIVEN = "SELECT source, target, weight FROM sona.edges WHERE space = %s AND kind = 'given' ORDER BY 1, 2"


def _without_dreaming() -> Loop:
    """A cycle that does not ask whether dreams help."""
    return replace(QUIET, phases=tuple(phase for phase in QUIET.phases if phase.name != "dream"))
