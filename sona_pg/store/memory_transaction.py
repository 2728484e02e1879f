"""What all phases share that write the memory graph: nodes come, go to the archive, and are connected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg.types.json import Jsonb

from sona_pg.errors import LockLost
from sona_pg.store.connection import Connection, bound_locks, hash_joins
from sona_pg.store.memory import MemoryState
from sona_pg.store.runs import Run
from sona_pg.types import Json

TO_TIME = "to_timestamp(%(now)s)"
"""The moment of the cycle."""


class MemoryTransaction:
    """Writes what a phase has come to, in a transaction that the caller began.

    Raises
    ------
    LockLost
        If a user was forgotten since it was read: it may hold what they have left.
    """

    def __init__(self, connection: Connection, run: Run, state: MemoryState) -> None:
        self._connection, self._run, self._state, self._space = connection, run, state, run.space
        self._key: dict[str, object] = {"space": run.space.space_id, "run": run.run_id, "now": state.now}
        bound_locks(connection)
        connection.execute(
            "INSERT INTO sona.memory_state (space_id) VALUES (%(space)s) ON CONFLICT DO NOTHING", self._key
        )
        row = connection.execute(
            "UPDATE sona.memory_state SET run_id = %(run)s, updated_at = now() WHERE space_id = %(space)s"
            " RETURNING generation",
            self._key,
        ).fetchone()
        if row is None or row[0] != state.generation:
            raise LockLost(
                f"a user of space {run.space.name!r} was forgotten meanwhile: the memory graph is computed again"
            )
        hash_joins(connection)

    def _take_in(self, known: str, key: Mapping[str, object], rows: Sequence[tuple[object, ...]] = ()) -> int:
        """Make nodes of what is known, or bring those that there are up to date; how many are new.

        Parameters
        ----------
        known
            A query of kind, key, embedding, title, level, quality, access_count and last_access; with `key`.
        rows
            More of them.
        """
        named = self._key | dict(key)
        self._temporary("sona_known", f"AS {known}", named)
        self._connection.cursor().executemany(
            "INSERT INTO pg_temp.sona_known VALUES (%s, %s, %s, %s, %s, %s, %s, to_timestamp(%s))", rows
        )
        self._connection.execute(
            "UPDATE sona.memory_node n SET embedding = coalesce(k.embedding, n.embedding), level = k.level,"
            " title = coalesce(k.title, n.title) FROM pg_temp.sona_known k"
            " WHERE n.space_id = %(space)s AND n.kind = k.kind AND n.key = k.key"
            " AND ((k.embedding IS NOT NULL AND k.embedding::text IS DISTINCT FROM n.embedding::text)"
            "  OR n.level <> k.level OR coalesce(k.title, n.title) IS DISTINCT FROM n.title)",
            named,
        )
        created = self._connection.execute(
            "INSERT INTO sona.memory_node (space_id, node_id, kind, key, embedding, title, level, created_at)"
            " SELECT %(space)s, m.last_node_id + row_number() OVER (ORDER BY length(k.key), k.key), k.kind, k.key,"
            f" k.embedding, k.title, k.level, {TO_TIME} FROM pg_temp.sona_known k, sona.memory_state m"
            " WHERE m.space_id = %(space)s AND NOT EXISTS (SELECT FROM sona.memory_node n"
            "  WHERE n.space_id = m.space_id AND n.kind = k.kind AND n.key = k.key)",
            named,
        ).rowcount
        self._connection.execute(
            "UPDATE sona.memory_state SET last_node_id = last_node_id + %(created)s WHERE space_id = %(space)s",
            named | {"created": created},
        )
        self._connection.execute(
            "INSERT INTO sona.memory_node_state"
            " (space_id, node_id, importance, quality, access_count, last_access)"
            f" SELECT n.space_id, n.node_id, 0.5, k.quality, k.access_count, coalesce(k.last_access, {TO_TIME})"
            " FROM pg_temp.sona_known k JOIN sona.memory_node n ON n.space_id = %(space)s AND n.kind = k.kind"
            " AND n.key = k.key ON CONFLICT DO NOTHING",
            named,
        )
        self._connection.execute(
            "UPDATE sona.memory_node_state t SET quality = k.quality, access_count = k.access_count,"
            " last_access = greatest(t.last_access, k.last_access,"
            # Where nobody has noted down when, it was since the last cycle.
            f"  CASE WHEN k.last_access IS NULL AND k.access_count > t.access_count THEN {TO_TIME} END)"
            " FROM pg_temp.sona_known k JOIN sona.memory_node n ON n.space_id = %(space)s AND n.kind = k.kind"
            "  AND n.key = k.key WHERE t.space_id = n.space_id AND t.node_id = n.node_id"
            " AND (t.quality IS DISTINCT FROM k.quality OR t.access_count <> k.access_count"
            "  OR k.last_access > t.last_access)",
            named,
        )
        return created

    def _insert_edges(
        self, kind: str, origin: str, edges: Sequence[tuple[str, str, str, str, float]], *, replaces: bool = True
    ) -> int:
        """Insert edges, each with kind and key of both its ends and a weight; how many there are new.

        One of which an end is gone meanwhile, or has no node yet, is left out: that of a pattern, which the background
        loop makes and merges at any time. The targets of analogies are in other spaces.
        """
        ends = ("source",) if kind == "analogy" else ("source", "target")
        lead_to_nodes = " AND ".join(
            "EXISTS (SELECT FROM sona.memory_node n WHERE n.space_id = %(space)s"
            f" AND n.kind = k.{end}_kind AND n.key = k.{end})"
            for end in ends
        )
        conflict = "DO UPDATE SET weight = excluded.weight, origin = excluded.origin, decayed_at = excluded.decayed_at"
        columns = [list(column) for column in zip(*edges, strict=True)] or [[], [], [], [], []]
        return self._connection.execute(
            "INSERT INTO sona.memory_edge (space_id, kind, source_kind, source, target_kind, target, weight, origin,"
            " created_at, updated_at, decayed_at)"
            f" SELECT %(space)s, %(kind)s, k.*, %(origin)s, {TO_TIME}, {TO_TIME}, {TO_TIME}"
            " FROM unnest(%(a)s::text[], %(b)s::text[], %(c)s::text[], %(d)s::text[], %(e)s::float8[])"
            f" k (source_kind, source, target_kind, target, weight) WHERE {lead_to_nodes} ORDER BY 5, 7"
            " ON CONFLICT (space_id, kind, source, target, source_kind, target_kind) "
            + (conflict if replaces else "DO NOTHING"),
            self._key | {"kind": kind, "origin": origin} | dict(zip("abcde", columns, strict=True)),
        ).rowcount

    def _archive_nodes(self, which: str, reason: str, key: Mapping[str, object] | None = None) -> int:
        """Move nodes to the archive, with their edges; how many."""
        named = self._key | dict(key or {}) | {"reason": reason}
        self._temporary(
            "sona_gone",
            f"AS SELECT n.node_id, n.kind, n.key FROM sona.memory_node n WHERE n.space_id = %(space)s AND {which}",
            named,
        )
        for end in ("source", "target"):
            self._connection.execute(
                "WITH gone AS (DELETE FROM sona.memory_edge e USING pg_temp.sona_gone g WHERE e.space_id = %(space)s"
                f" AND e.{end}_kind = g.kind AND e.{end} = g.key RETURNING e.*)"
                " INSERT INTO sona.memory_archive (space_id, run_id, entity, content, reason, archived_at)"
                f" SELECT space_id, %(run)s, 'edge', to_jsonb(gone), %(reason)s, {TO_TIME} FROM gone"
                " ORDER BY kind, source, target, source_kind, target_kind",
                named,
            )
        return self._move_nodes(
            "'node', to_jsonb(gone) || jsonb_build_object('state', to_jsonb(t)), %(reason)s, NULL", named
        )

    def _move_nodes(self, row: str, key: Mapping[str, object], of: str = "") -> int:
        return self._connection.execute(
            "WITH gone AS (DELETE FROM sona.memory_node n USING pg_temp.sona_gone g WHERE n.space_id = %(space)s"
            " AND n.node_id = g.node_id RETURNING n.*),"
            " state AS (DELETE FROM sona.memory_node_state t USING pg_temp.sona_gone g WHERE t.space_id = %(space)s"
            " AND t.node_id = g.node_id RETURNING t.*)"
            " INSERT INTO sona.memory_archive (space_id, run_id, entity, content, reason, into_id, archived_at,"
            " is_merge)"
            f" SELECT gone.space_id, %(run)s, {row}, {TO_TIME}, {'true' if of else 'false'}"
            f" FROM gone LEFT JOIN state t USING (node_id) {of} ORDER BY gone.node_id",
            key,
        ).rowcount

    def _temporary(self, name: str, what: str, key: Mapping[str, object] | None = None) -> None:
        """A table of this transaction."""
        # Other phases of the cycle, on the same connection, have had theirs in transactions of their own; but of this
        # one an earlier step may have had it.
        self._connection.execute(f"DROP TABLE IF EXISTS pg_temp.{name}")
        columns, query = ("", what) if what.startswith("AS ") else (what, "")
        self._connection.execute(f"CREATE TEMP TABLE {name} {columns} ON COMMIT DROP {query}", key or self._key)

    def write_facts(self, column: str, facts: Mapping[str, Json]) -> None:
        """Keep `evidence` or `system` of the space."""
        assert column in ("evidence", "system")
        self._connection.execute(
            f"UPDATE sona.memory_state SET {column} = %(facts)s WHERE space_id = %(space)s",
            self._key | {"facts": Jsonb(dict(facts))},
        )
