"""What the strategist has written of a space, and what it writes when the ledger is read again from its beginning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sona_pg.config import EvidenceConfig, QueryAdapterConfig, StoreConfig, StrategyConfig
from sona_pg.loops.evidence import EvidenceLoop
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store.connection import Connection
from sona_pg.store.spaces import Space

from .recorder import EXACT_SEARCH_ROWS

EVIDENCE = {
    "strategist": "SELECT ordinal, events, in_force, is_sane, known, strange, unseen, weights, state"
    " FROM sona.strategist WHERE space_id = %s",
    "served_row": "SELECT tier, ordinal, down, up FROM sona.served_row"
    " WHERE space_id = %s AND tier IN ('proven', 'careful') ORDER BY 1, 2",
    "strategy_evidence": "SELECT strategy, events, gain, recent_gain FROM sona.strategy_evidence"
    " WHERE space_id = %s ORDER BY 1",
    # Not the gain: it is shrunk to that of the space at the end of the batch in which the region was last met.
    "strategy_region": "SELECT region, centroid, events, verdict FROM sona.strategy_region"
    " WHERE space_id = %s ORDER BY 1",
    "strategy_turn": "SELECT ordinal, trajectory_id, region, before, after, reason FROM sona.strategy_turn"
    " WHERE space_id = %s ORDER BY turn_id",
    "remembered_query": "SELECT trajectory_id, embedding, ordinal, helped, rewards, unhelpful, is_prototype"
    " FROM sona.remembered_query WHERE space_id = %s ORDER BY ordinal",
    "item_outcome": "SELECT item_id, helped FROM sona.item_outcome WHERE space_id = %s AND helped > 0 ORDER BY 1",
}
"""All that the strategist writes, but times and what is numbered through."""

FORGET = (
    "UPDATE sona.strategist SET ordinal = 0, events = 0, in_force = 'frozen', is_sane = false, known = 0, strange = 0,"
    " unseen = 0, weights = NULL, state = NULL, memory_run = NULL WHERE space_id = %s",
    "DELETE FROM sona.served_row WHERE space_id = %s AND tier IN ('proven', 'careful')",
    "DELETE FROM sona.strategy_evidence WHERE space_id = %s",
    "DELETE FROM sona.strategy_region WHERE space_id = %s",
    "DELETE FROM sona.strategy_turn WHERE space_id = %s",
    "DELETE FROM sona.remembered_query WHERE space_id = %s",
    "DELETE FROM sona.item_outcome WHERE space_id = %s",
)
"""The strategist as it was when the space was made."""


def weighed(connection: Connection, space: Space) -> dict[str, list[list[object]]]:
    """All that the strategist has written in a space, by table; vectors as their bytes."""
    return {
        table: [
            [value.tobytes() if isinstance(value, np.ndarray) else value for value in row]
            for row in connection.execute(statement, (space.space_id,), binary=True)
        ]
        for table, statement in EVIDENCE.items()
    }


def weigh_again(
    connection: Connection, connect: Callable[[], Connection], space: Space, *, batch: int
) -> dict[str, list[list[object]]]:
    """Forget the evidence of a space and take its ledger in once more, so many entries at a time, searched exactly."""
    with connection.transaction():
        for statement in FORGET:
            connection.execute(statement, (space.space_id,))
    row = connection.execute(
        "SELECT g.settings, l.settings -> 'adapter', l.ordinal FROM sona.strategist g JOIN sona.learner l"
        " USING (space_id) WHERE space_id = %s",
        (space.space_id,),
    ).fetchone()
    if row is None:
        raise AssertionError(f"space {space.name!r} is gone")
    store = SpaceStore(space, connect, StoreConfig(exact_search_rows=EXACT_SEARCH_ROWS), None)
    strategy, adapter = StrategyConfig(**row[0]), QueryAdapterConfig(**row[1])
    again = EvidenceLoop(store, strategy, adapter, EvidenceConfig(batch=batch))
    try:
        taken = again.catch_up()
    finally:
        again.close()
    if taken != row[2]:
        raise AssertionError(f"{taken} entries were taken in, of {row[2]}")
    return weighed(connection, space)
