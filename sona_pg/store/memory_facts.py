"""What people ask of the memory graph, and do with it."""

from __future__ import annotations

from collections.abc import Sequence

from sona_pg.store import spaces
from sona_pg.store.connection import Connection, transaction, translated


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
    """
    with translated():
        row = connection.execute("SELECT sona.restore_memory(%s, %s)", (name, list(archive_ids) or None)).fetchone()
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
