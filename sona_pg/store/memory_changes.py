"""What a transaction has changed in the memory graph, row by row."""

from __future__ import annotations

from typing import NamedTuple

from sona_pg.store.connection import Connection
from sona_pg.store.spaces import Space


class MemoryChange(NamedTuple):
    """A node or an edge that is another one.

    Parameters
    ----------
    entity
        node or edge.
    change
        created, removed or changed.
    what
        Kind and key of the node; of an edge its kind, and both its ends.
    before, after
        What of it has changed: weight of an edge; of a node its importance, accesses and quality, and its level and
        title, if it has any. To the last digit.
    reason
        Why it was removed.
    """

    entity: str
    change: str
    what: str
    before: str | None
    after: str | None
    reason: str | None


def remember_memory(connection: Connection, space: Space) -> None:
    """Keep how the graph is, in tables of this transaction."""
    for statement in (
        f"CREATE TEMP TABLE sona_nodes_before ON COMMIT DROP AS {_NODES}",
        f"CREATE TEMP TABLE sona_edges_before ON COMMIT DROP AS {_EDGES}",
        "CREATE TEMP TABLE sona_archive_before ON COMMIT DROP AS SELECT coalesce(max(archive_id), 0) AS last"
        " FROM sona.memory_archive WHERE space_id = %(space)s",
    ):
        connection.execute(statement, {"space": space.space_id})


def memory_changes(connection: Connection, space: Space) -> list[MemoryChange]:
    """What is another than `remember_memory` has found, in the same transaction."""
    rows = connection.execute(
        "WITH gone AS (SELECT a.entity, a.reason, CASE a.entity WHEN 'node'"
        f"   THEN {_NODE_NAME.format('r')} ELSE {_EDGE_NAME.format('x')} END AS name FROM sona.memory_archive a,"
        "   jsonb_populate_record(NULL::sona.memory_node, a.content) r,"
        "   jsonb_populate_record(NULL::sona.memory_edge, a.content) x, pg_temp.sona_archive_before b"
        "  WHERE a.space_id = %(space)s AND a.archive_id > b.last),"
        " every AS (SELECT 'node' AS entity, name, coalesce(b.what, n.what) AS what, b.facts AS before,"
        "   n.facts AS after"
        f"  FROM pg_temp.sona_nodes_before b FULL JOIN ({_NODES}) n USING (name)"
        "  UNION ALL SELECT 'edge', name, coalesce(b.what, e.what), b.facts, e.facts"
        f"  FROM pg_temp.sona_edges_before b FULL JOIN ({_EDGES}) e USING (name))"
        " SELECT e.entity, CASE WHEN e.before IS NULL THEN 'created' WHEN e.after IS NULL THEN 'removed' ELSE 'changed'"
        "  END, e.what, e.before, e.after,"
        " (SELECT min(g.reason) FROM gone g WHERE g.entity = e.entity AND g.name = e.name"
        "  AND e.after IS NULL) FROM every e WHERE e.before IS DISTINCT FROM e.after ORDER BY 1 DESC, 2, 3, e.name",
        {"space": space.space_id},
    ).fetchall()
    return [MemoryChange(*row) for row in rows]


# Keys may hold what is put between them where they are shown: two edges that look alike are two.
_NODE_NAME = "ARRAY[{0}.kind, {0}.key]"
_EDGE_NAME = "ARRAY[{0}.kind, {0}.source_kind, {0}.source, {0}.target_kind, {0}.target]"

_NODES = (
    f"SELECT {_NODE_NAME.format('n')} AS name, n.kind || ' ' || n.key AS what,"
    " 'importance ' || t.importance || ', accesses ' || t.access_count"
    " || coalesce(', quality ' || t.quality, '') || CASE WHEN n.level > 0 THEN ', level ' || n.level ELSE '' END"
    " || coalesce(', title ' || n.title, '') AS facts"
    " FROM sona.memory_node n JOIN sona.memory_node_state t USING (space_id, node_id) WHERE n.space_id = %(space)s"
)
_EDGES = (
    f"SELECT {_EDGE_NAME.format('e')} AS name, e.kind || ': ' || e.source_kind || ' ' || e.source || ' - '"
    " || e.target_kind || ' ' || e.target AS what, 'weight ' || e.weight AS facts"
    " FROM sona.memory_edge e WHERE e.space_id = %(space)s"
)
