"""What people ask of the memory graph, and do with it."""

from __future__ import annotations

from collections.abc import Sequence

from sona_pg.errors import InvalidInput
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, transaction, translated
from sona_pg.store.spaces import Space


def memory_facts(connection: Connection, name: str) -> dict[str, object]:
    """Sizes of the graph of a space, and what the last cycle of the deep loop has found.

    Raises
    ------
    UnknownSpace
        If there is no such space.
    """
    space = spaces.get_space(connection, name)
    with transaction(connection):
        nodes = connection.execute(
            "SELECT kind, count(*) FROM sona.memory_node WHERE space_id = %s GROUP BY 1 ORDER BY 1", (space.space_id,)
        ).fetchall()
        edges = connection.execute(
            "SELECT kind, count(*) FROM sona.memory_edge WHERE space_id = %s GROUP BY 1 ORDER BY 1", (space.space_id,)
        ).fetchall()
        row = connection.execute(
            "SELECT (SELECT count(*) FROM sona.memory_archive a WHERE a.space_id = %(space)s), i.consolidated_at,"
            " i.dreams_help, i.dream_auc, i.control_auc, i.dream_reason, i.phi, i.chance, i.reason"
            " FROM (SELECT) one LEFT JOIN sona.integration i ON i.space = %(name)s",
            {"space": space.space_id, "name": name},
        ).fetchone()
    assert row is not None
    archived, *facts = row
    names = (
        "consolidated_at",
        "dreams_help",
        "dream_auc",
        "control_auc",
        "dream_reason",
        "phi",
        "chance",
        "phi_reason",
    )
    return {
        "nodes": sum(count for _, count in nodes),
        **{f"nodes, {kind}": count for kind, count in nodes},
        "edges": sum(count for _, count in edges),
        **{f"edges, {kind}": count for kind, count in edges},
        "archived": archived,
        **dict(zip(names, facts, strict=True)),
    }


def restore_memory(connection: Connection, name: str, archive_ids: Sequence[int] = ()) -> int:
    """Bring back entries of the archive of a space, or all if none is named; how many rows.

    Raises
    ------
    UnknownSpace, PermissionDenied
    InvalidInput
        If an entry is not in the archive, or is an edge by dreams while these do not help; nothing was restored.
    """
    none = [id for id in archive_ids if not -(1 << 63) <= id < 1 << 63]
    if none:
        raise InvalidInput(
            f"there is no entry {none[0]} in the archive of space {name!r}: expected ids that the column archive_id of"
            " sona.archive has for this space"
        )
    with translated():
        row = connection.execute(
            "SELECT sona.restore_memory(%s, %s::bigint[])", (name, list(archive_ids) or None)
        ).fetchone()
    return 0 if row is None else int(row[0])


def forget_dreams(connection: Connection, name: str) -> int:
    """Delete all edges by dreams of a space; how many.

    Raises
    ------
    UnknownSpace, PermissionDenied
    """
    with translated():
        row = connection.execute("SELECT sona.forget_dreams(%s)", (name,)).fetchone()
    return 0 if row is None else int(row[0])


def forget_memory(connection: Connection, space: Space) -> None:
    """Forget what cycles have made of the memory graph; co-access stays, and what was given by hand.

    What was learned from a user cannot be taken out of it again: cycles make it anew of what is kept. One that is at
    work begins again with its first phase; where none is, the next one is due now, if the schedule lets one be. In a
    transaction that the caller began, and in which it holds the locks of the space.
    """
    key = {"space": space.space_id}
    began_again = connection.execute(
        "UPDATE sona.loop_run SET phases = '[]', facts = '{}', attempts = 0"
        " WHERE space_id = %(space)s AND loop = 'deep' AND state = 'running'",
        key,
    ).rowcount
    if began_again:
        # What its worker has in hand is not written: it believes that the phases before are done.
        connection.execute(
            "UPDATE sona.loop_schedule SET fence = fence + 1 WHERE space_id = %(space)s AND loop = 'deep'", key
        )
    row = connection.execute(
        "UPDATE sona.memory_state SET generation = generation + 1, consolidated_at = NULL, evidence = NULL,"
        " system = NULL, run_id = NULL, updated_at = now() WHERE space_id = %(space)s RETURNING generation",
        key,
    ).fetchone()
    if row is None:
        return  # no cycle of the deep loop has ever been here
    if not began_again:
        connection.execute(
            "UPDATE sona.loop_schedule SET next_at = now(), planned_at = now()"
            " WHERE space_id = %(space)s AND loop = 'deep'",
            key,
        )
    for table in ("dream", "memory_snapshot"):
        connection.execute(f"DELETE FROM sona.{table} WHERE space_id = %(space)s", key)
    connection.execute(
        "DELETE FROM sona.memory_archive a WHERE a.space_id = %(space)s AND NOT coalesce(CASE"
        "  WHEN a.entity IN ('edge', 'edge before') THEN a.content ->> 'kind' = 'given'"
        "  ELSE a.content ->> 'kind' IN ('episode', 'procedure', 'dream')"
        "   OR (a.content ->> 'kind' = 'concept' AND a.content ->> 'level' = '0') END, false)",
        key,
    )
    connection.execute(
        "WITH gone AS (DELETE FROM sona.memory_node WHERE space_id = %(space)s AND (kind IN ('item', 'pattern')"
        " OR (kind = 'concept' AND level > 0)) RETURNING node_id) DELETE FROM sona.memory_node_state t USING gone"
        " WHERE t.space_id = %(space)s AND t.node_id = gone.node_id",
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
