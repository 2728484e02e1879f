"""The memory graph in Postgres."""

from __future__ import annotations

from sona_pg.store.connection import Connection
from sona_pg.store.spaces import Space


def forget_memory(connection: Connection, space: Space) -> None:
    """Forget what cycles have made of the memory graph; co-access stays, and what was given by hand.

    What was learned from a user cannot be taken out of it again: cycles make it anew of what is kept. In a transaction
    that the caller began.
    """
    key = {"space": space.space_id}
    row = connection.execute(
        "UPDATE sona.memory_state SET generation = generation + 1, consolidated_at = NULL, evidence = NULL,"
        " system = NULL, run_id = NULL, updated_at = now() WHERE space_id = %(space)s RETURNING generation",
        key,
    ).fetchone()
    if row is None:
        return  # no cycle of the deep loop has ever been here
    for table in ("dream", "memory_archive"):
        connection.execute(f"DELETE FROM sona.{table} WHERE space_id = %(space)s", key)
    connection.execute(
        "DELETE FROM sona.memory_node WHERE space_id = %(space)s"
        " AND (kind IN ('item', 'pattern') OR (kind = 'concept' AND level > 0))",
        key,
    )
    connection.execute(
        "DELETE FROM sona.memory_edge e WHERE e.space_id = %(space)s AND (e.kind NOT IN ('co_access', 'given')"
        # Of what was given by hand, edges to what is gone.
        " OR (e.kind = 'given' AND EXISTS (SELECT FROM (VALUES (e.source_kind, e.source), (e.target_kind, e.target)) u"
        "  (kind, key) WHERE NOT EXISTS (SELECT FROM sona.memory_node n WHERE n.space_id = e.space_id"
        "  AND n.kind = u.kind AND n.key = u.key))))",
        key,
    )
