"""The memory graph in Postgres: what a cycle of the deep loop writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from sona_pg.errors import DatabaseBusy, DatabaseUnavailable, LockLost, SonaError
from sona_pg.learning.consolidation import ConsolidationPlan
from sona_pg.learning.dreams import Dream
from sona_pg.learning.hierarchy import FIRST_CONCEPT
from sona_pg.learning.memory_columns import MemoryNodes
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.store import spaces
from sona_pg.store.columns import write_columns
from sona_pg.store.connection import Connection, hash_joins
from sona_pg.store.learning import LearningTransaction
from sona_pg.store.memory import DERIVED, LEARNED, WALKED, MemoryState, StoredEdges
from sona_pg.store.runs import Run
from sona_pg.store.spaces import Space
from sona_pg.types import Json

Rows = NDArray[np.int64]

_STEP_KINDS = ("start", "edge", "jump", "restart")
"""How a node of a dream was reached, by the kernel's codes."""

_READ_AT_ONCE = 2000
"""Items whose embeddings are read at once."""

_JUDGED_QUERIES = 100_000
"""Remembered queries, the newest, by which items are judged."""

_SAME_VALUE = 1e-9
"""Two values of a node that differ by less are one."""

_TO_TIME = "to_timestamp(%(now)s)"


@dataclass(frozen=True, slots=True)
class Growth:
    """How the graph has grown.

    Parameters
    ----------
    created, gone
        Nodes that are new, and those whose pattern is gone.
    pattern_edges
        Edges between patterns and the items that helped there.
    embedded
        Items whose embedding was read.
    refusal
        Why the table of items could not be read; None if it could.
    """

    created: int
    gone: int
    pattern_edges: int
    embedded: int
    refusal: str | None


@dataclass(frozen=True, slots=True)
class Executed:
    """What was done of a plan; edges that an outcome has changed since it was made are left to the next cycle."""

    edges: int
    pruned: int
    archived: int
    merged: int


class MemoryTransaction:
    """Writes what a phase has come to, in a transaction that the caller began.

    Raises
    ------
    LockLost
        If a user was forgotten since it was read: it may hold what they have left.
    """

    def __init__(self, connection: Connection, run: Run, state: MemoryState, lock_timeout_seconds: int) -> None:
        self._connection, self._run, self._state = connection, run, state
        self._space, self._lock_timeout = run.space, lock_timeout_seconds
        self._key: dict[str, object] = {"space": run.space.space_id, "run": run.run_id, "now": state.now}
        connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{lock_timeout_seconds}s",))
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

    # ---- growth ------------------------------------------------------------------------------------------------------

    def grow(self, pattern_edges: Sequence[tuple[int, str, float]]) -> Growth:
        """Make nodes of patterns and of items that helped together or in a pattern, and edges between the two.

        Parameters
        ----------
        pattern_edges
            Pattern, item, and weight, 0 to 1.
        """
        with hash_joins(self._connection):
            return self._grow(pattern_edges)

    def _grow(self, pattern_edges: Sequence[tuple[int, str, float]]) -> Growth:
        gone = self._archive_nodes(
            "n.kind = 'pattern' AND NOT EXISTS (SELECT FROM sona.pattern p WHERE p.space_id = n.space_id"
            " AND p.pattern_id::text = n.key)",
            "its pattern is gone",
        )
        created = self._take_in(
            "SELECT 'pattern' AS kind, p.pattern_id::text AS key, p.centroid AS embedding, p.title, 0 AS level,"
            " least(greatest(p.avg_quality, 0), 1) AS quality, p.support + coalesce(a.access_count, 0) AS access_count,"
            " greatest(p.updated_at, a.last_accessed) AS last_access"
            " FROM sona.pattern p LEFT JOIN sona.pattern_access a USING (space_id, pattern_id)"
            " WHERE p.space_id = %(space)s AND p.abstraction_level = 0",
            {},
        )
        created += self._take_in(
            _ITEMS, {"items": sorted({item for _, item, _ in pattern_edges}), "most": _JUDGED_QUERIES}
        )
        self._connection.execute(
            "DELETE FROM sona.memory_edge WHERE space_id = %(space)s AND kind = 'pattern'", self._key
        )
        standing = self._standing_items([item for _, item, _ in pattern_edges])
        lacking: dict[tuple[int, str], float] = {}
        for pattern, item, weight in pattern_edges:
            edge = pattern, standing.get(item, item)
            lacking[edge] = lacking.get(edge, 1.0) * (1 - weight)
        self._insert_edges(
            "pattern",
            "patterns",
            [("pattern", str(pattern), "item", item, 1 - rest) for (pattern, item), rest in lacking.items()],
        )
        return Growth(created, gone, len(lacking), *self._embed_items())

    def _standing_items(self, items: Sequence[str]) -> dict[str, str]:
        """By item that was merged the one that stands for it."""
        rows = self._connection.execute(
            "SELECT m.key, m.into_key FROM sona._merged_nodes(%(space)s) m"
            " WHERE m.kind = 'item' AND m.key = ANY(%(items)s)",
            self._key | {"items": list(items)},
        ).fetchall()
        return dict(rows)

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
            f" k.embedding, k.title, k.level, {_TO_TIME} FROM pg_temp.sona_known k, sona.memory_state m"
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
            f" SELECT n.space_id, n.node_id, 0.5, k.quality, k.access_count, coalesce(k.last_access, {_TO_TIME})"
            " FROM pg_temp.sona_known k JOIN sona.memory_node n ON n.space_id = %(space)s AND n.kind = k.kind"
            " AND n.key = k.key ON CONFLICT DO NOTHING",
            named,
        )
        self._connection.execute(
            "UPDATE sona.memory_node_state t SET quality = k.quality, access_count = k.access_count,"
            " last_access = greatest(t.last_access, k.last_access,"
            # Where nobody has noted down when, it was since the last cycle.
            f"  CASE WHEN k.last_access IS NULL AND k.access_count > t.access_count THEN {_TO_TIME} END)"
            " FROM pg_temp.sona_known k JOIN sona.memory_node n ON n.space_id = %(space)s AND n.kind = k.kind"
            "  AND n.key = k.key WHERE t.space_id = n.space_id AND t.node_id = n.node_id"
            " AND (t.quality IS DISTINCT FROM k.quality OR t.access_count <> k.access_count"
            "  OR k.last_access > t.last_access)",
            named,
        )
        return created

    def _embed_items(self) -> tuple[int, str | None]:
        """Read embeddings of items from the application's table; how many, and what is wrong.

        Those of items that have none here; of all, where the table was named anew since the last cycle.
        """
        done, after = 0, ""
        while True:
            rows = self._connection.execute(
                "SELECT n.key FROM sona.memory_node n WHERE n.space_id = %(space)s AND n.kind = 'item'"
                " AND n.key > %(after)s AND (n.embedding IS NULL OR EXISTS (SELECT FROM sona.item_source i"
                "  JOIN sona.memory_state m USING (space_id)"
                "  WHERE i.space_id = n.space_id AND i.sampled_at > m.consolidated_at))"
                " ORDER BY n.key LIMIT %(most)s",
                self._key | {"after": after, "most": _READ_AT_ONCE},
            ).fetchall()
            if not rows:
                return done, None
            items = [item for (item,) in rows]
            after = items[-1]
            try:
                found = spaces.item_embeddings(self._connection, self._space, items)
            except (DatabaseBusy, DatabaseUnavailable):
                raise
            except SonaError as error:
                # The table is gone, or another one: its items have no place until it is set anew.
                return done, str(error)
            cursor = self._connection.cursor()
            cursor.executemany(
                "UPDATE sona.memory_node SET embedding = %s WHERE space_id = %s AND kind = 'item' AND key = %s",
                [(vector, self._space.space_id, item) for item, vector in found.items()],
            )
            done += len(found)

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
            f" SELECT %(space)s, %(kind)s, k.*, %(origin)s, {_TO_TIME}, {_TO_TIME}, {_TO_TIME}"
            " FROM unnest(%(a)s::text[], %(b)s::text[], %(c)s::text[], %(d)s::text[], %(e)s::float8[])"
            f" k (source_kind, source, target_kind, target, weight) WHERE {lead_to_nodes} ORDER BY 5, 7"
            " ON CONFLICT (space_id, kind, source, target, source_kind, target_kind) "
            + (conflict if replaces else "DO NOTHING"),
            self._key | {"kind": kind, "origin": origin} | dict(zip("abcde", columns, strict=True)),
        ).rowcount

    def _temporary(self, name: str, what: str, key: Mapping[str, object] | None = None) -> None:
        """A table of this transaction."""
        # Other phases of the cycle, on the same connection, have had theirs in transactions of their own; but of this
        # one an earlier step may have had it.
        self._connection.execute(f"DROP TABLE IF EXISTS pg_temp.{name}")
        columns, query = ("", what) if what.startswith("AS ") else (what, "")
        self._connection.execute(f"CREATE TEMP TABLE {name} {columns} ON COMMIT DROP {query}", key or self._key)

    # ---- consolidation -----------------------------------------------------------------------------------------------

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
                f" SELECT space_id, %(run)s, 'edge', to_jsonb(gone), %(reason)s, {_TO_TIME} FROM gone"
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
            f" SELECT gone.space_id, %(run)s, {row}, {_TO_TIME}, {'true' if of else 'false'}"
            f" FROM gone JOIN state t USING (node_id) {of} ORDER BY gone.node_id",
            key,
        ).rowcount

    def execute(self, nodes: MemoryNodes, stored: StoredEdges, plan: ConsolidationPlan) -> Executed:
        """Do what a plan says; what goes is in the archive.

        Parameters
        ----------
        nodes, stored
            What the plan was made for.
        """
        with hash_joins(self._connection):
            return self._execute(nodes, stored, plan)

    def _execute(self, nodes: MemoryNodes, stored: StoredEdges, plan: ConsolidationPlan) -> Executed:
        changed = self._stage_edges(nodes, stored, plan)
        # Flushes change edges, too: behind the lock of the learner they wait for each other in one order.
        LearningTransaction(self._connection, self._space, self._lock_timeout)
        self._leave_changed_folds()
        ids = self._still_unused(nodes, plan)
        pruned = self._remove_edges()
        edges = self._change_edges() if changed else 0
        merged = self._merge_nodes(nodes, plan)
        archived = 0
        if ids:
            archived = self._archive_nodes(
                f"n.node_id = ANY(%(ids)s) AND NOT {_HAS_EDGES}",
                "of little value, unused and old",
                {"ids": ids},
            )
        self._write_values(nodes, stored, plan)
        self._connection.execute(
            f"UPDATE sona.memory_state SET consolidated_at = {_TO_TIME} WHERE space_id = %(space)s", self._key
        )
        return Executed(edges, pruned, archived, merged)

    def _stage_edges(self, nodes: MemoryNodes, stored: StoredEdges, plan: ConsolidationPlan) -> int:
        """What becomes of which edges, in a table of this transaction; how many there are."""
        edges, after, rows = stored.edges, plan.edges, np.arange(len(stored.keys))
        stays = plan.edge_into == rows
        is_moved = stored.is_renamed | (after.source != edges.source) | (after.target != edges.target)
        # What weak edges were is in the archive in any case.
        is_merge = (is_moved | (~stays & (plan.edge_into >= 0))).astype(np.int64)
        is_moved &= stays
        # Between other nodes, or under other names, it is another row.
        goes = ~stays | is_moved
        is_weak = np.zeros(len(rows), dtype=bool)
        is_weak[plan.pruned] = True
        changes = stays & ~is_moved & ((after.weight != edges.weight) | (after.decayed_at > edges.decayed_at))
        # Edges that become one, with the one that they become: all of them, or none.
        folds = ~stays & (plan.edge_into >= 0)
        into = np.where(folds, plan.edge_into, rows)
        is_fold = np.zeros(len(rows), dtype=bool)
        is_fold[into[folds]] = is_fold[folds] = True
        kept = np.flatnonzero(goes | changes | is_fold)
        # 0 another weight, 1 too weak, 2 with its node or twice, 3 between other nodes.
        action = np.where(is_moved, 3, np.where(is_weak, 1, np.where(goes, 2, 0)))
        self._temporary(
            "sona_edge_change",
            "(key bigint, was float8, weight float8, action bigint, source bigint, target bigint, fold bigint,"
            " is_merge bigint)",
        )
        columns = {
            "key": stored.keys[kept],
            "was": edges.weight[kept],
            "weight": after.weight[kept],
            "action": action[kept].astype(np.int64),
            "source": nodes.ids[after.source[kept]],
            "target": nodes.ids[after.target[kept]],
            # The row of the edge that it is of, or -1.
            "fold": np.where(is_fold, into, -1)[kept].astype(np.int64),
            "is_merge": is_merge[kept],
        }
        write_columns(self._connection, "pg_temp.sona_edge_change", list(columns), columns)
        self._connection.execute("ANALYZE pg_temp.sona_edge_change")
        return len(kept)

    def _still_unused(self, nodes: MemoryNodes, plan: ConsolidationPlan) -> list[int]:
        """Ids of nodes that go; those that somebody has changed since the plan was made stay, with their edges."""
        going = plan.archived
        if not len(going):
            return []
        columns = {
            "ids": nodes.ids[going].tolist(),
            "accesses": nodes.access_count[going].tolist(),
            "last": nodes.last_access[going].tolist(),
            "importance": nodes.importance[going].tolist(),
            "quality": nodes.quality[going].tolist(),
        }
        rows = self._connection.execute(
            "SELECT t.node_id FROM sona.memory_node_state t JOIN unnest(%(ids)s::bigint[], %(accesses)s::bigint[],"
            " %(last)s::float8[], %(importance)s::float8[], %(quality)s::float8[])"
            " u (node_id, access_count, last_access, importance, quality) USING (node_id, access_count, importance)"
            " WHERE t.space_id = %(space)s AND extract(epoch FROM t.last_access)::float8 = u.last_access"
            " AND coalesce(t.quality, 'NaN') = u.quality FOR UPDATE OF t",
            self._key | columns,
        ).fetchall()
        same = {int(id) for (id,) in rows}
        changed = [id for id in columns["ids"] if id not in same]
        if changed:
            self._connection.execute(
                "DELETE FROM pg_temp.sona_edge_change"
                " WHERE action = 2 AND is_merge = 0 AND (source = ANY(%(changed)s) OR target = ANY(%(changed)s))",
                {"changed": changed},
            )
        return sorted(same)

    def _has_folds(self) -> bool:
        row = self._connection.execute(
            "SELECT EXISTS (SELECT FROM pg_temp.sona_edge_change WHERE fold >= 0)"
        ).fetchone()
        return row is not None and bool(row[0])

    def _leave_changed_folds(self) -> None:
        """Leave edges that become one to the next cycle where an outcome has changed one of them since the plan."""
        if not self._has_folds():
            return
        self._connection.execute(
            "WITH same AS MATERIALIZED (SELECT c.key FROM sona.memory_edge e JOIN pg_temp.sona_edge_change c"
            f" ON {_EDGE_KEY} = c.key WHERE e.space_id = %(space)s AND c.fold >= 0 AND e.weight = c.was"
            " FOR UPDATE OF e)"
            " DELETE FROM pg_temp.sona_edge_change c WHERE c.fold IN (SELECT x.fold FROM pg_temp.sona_edge_change x"
            "  WHERE x.fold >= 0 AND x.key NOT IN (SELECT key FROM same))",
            self._key,
        )

    def _remove_edges(self) -> int:
        """Archive the edges that go, and put those that were moved between the nodes that stand."""
        self._temporary(
            "sona_removed",
            "AS SELECT e AS edge, 0::bigint AS action, 0::float8 AS becomes, 0::bigint AS from_id, 0::bigint AS to_id,"
            " 0::bigint AS is_merge"
            " FROM sona.memory_edge e WHERE false",
        )
        self._connection.execute(
            "WITH gone AS (DELETE FROM sona.memory_edge e USING pg_temp.sona_edge_change c WHERE e.space_id = %(space)s"
            f" AND {_EDGE_KEY} = c.key AND c.action > 0 AND e.weight = c.was"
            " RETURNING e AS edge, c.action, c.weight, c.source, c.target, c.is_merge)"
            " INSERT INTO pg_temp.sona_removed SELECT * FROM gone",
            self._key,
        )
        self._connection.execute(
            "INSERT INTO sona.memory_archive (space_id, run_id, entity, content, reason, archived_at, is_merge)"
            " SELECT %(space)s, %(run)s, 'edge', to_jsonb(r.edge), CASE r.action WHEN 1 THEN 'too weak'"
            f" ELSE 'of a node that was merged or went' END, {_TO_TIME}, r.is_merge = 1 AND r.action > 1"
            " FROM pg_temp.sona_removed r"
            # What is made anew in every cycle would go in every one.
            f" WHERE (r.edge).kind <> ALL({_DERIVED}) OR (r.action > 1 AND r.is_merge = 0)"
            " ORDER BY (r.edge).kind, (r.edge).source, (r.edge).target, (r.edge).source_kind, (r.edge).target_kind",
            self._key,
        )
        # An undirected edge stands once, source before target: by code points, as outcomes put them.
        first = 'a.key COLLATE "C" <= b.key'
        self._temporary(
            "sona_moved",
            "AS SELECT (r.edge).space_id, (r.edge).kind,"
            f" CASE WHEN {first} THEN a.kind ELSE b.kind END AS source_kind,"
            f" CASE WHEN {first} THEN a.key ELSE b.key END AS source,"
            f" CASE WHEN {first} THEN b.kind ELSE a.kind END AS target_kind,"
            f" CASE WHEN {first} THEN b.key ELSE a.key END AS target,"
            " max(r.becomes) AS weight, min((r.edge).origin) AS origin,"
            f" min((r.edge).created_at) AS created_at, max((r.edge).updated_at) AS updated_at, {_TO_TIME} AS decayed_at"
            " FROM pg_temp.sona_removed r JOIN sona.memory_node a ON a.space_id = %(space)s AND a.node_id = r.from_id"
            " JOIN sona.memory_node b ON b.space_id = %(space)s AND b.node_id = r.to_id"
            " WHERE r.action = 3 GROUP BY 1, 2, 3, 4, 5, 6",
        )
        # Of one that an outcome has made since the plan both count, as where edges become one.
        weight = (
            "CASE WHEN e.kind = 'creative' THEN greatest(e.weight, m.weight)"
            " ELSE 1 - (1 - coalesce(e.weight, 0)) * (1 - m.weight) END"
        )
        same = " AND ".join(f"{{0}}.{name} = {{1}}.{name}" for name in _EDGE_NAME)
        self._archive_before(
            "edge",
            f"to_jsonb(m) || jsonb_build_object('weight', coalesce(e.weight, 0), 'after', {weight})",
            f"pg_temp.sona_moved m LEFT JOIN sona.memory_edge e ON {same.format('m', 'e')}"
            f" WHERE m.kind <> ALL({_DERIVED}) ORDER BY m.kind, m.source, m.target",
        )
        self._connection.execute(
            f"UPDATE pg_temp.sona_moved m SET weight = {weight} FROM sona.memory_edge e WHERE {same.format('m', 'e')}"
        )
        self._connection.execute(
            "INSERT INTO sona.memory_edge (space_id, kind, source_kind, source, target_kind, target, weight, origin,"
            " created_at, updated_at, decayed_at) SELECT * FROM pg_temp.sona_moved"
            " ON CONFLICT (space_id, kind, source, target, source_kind, target_kind) DO UPDATE"
            " SET weight = excluded.weight, decayed_at = excluded.decayed_at"
        )
        row = self._connection.execute("SELECT count(*) FROM pg_temp.sona_removed WHERE action = 1").fetchone()
        assert row is not None
        return int(row[0])

    def _archive_before(self, entity: str, content: str, of: str) -> None:
        """Keep how what stands was before others became part of it, and how it is after: behind them in the archive."""
        self._connection.execute(
            "INSERT INTO sona.memory_archive (space_id, run_id, entity, content, reason, archived_at, is_merge)"
            f" SELECT %(space)s, %(run)s, '{entity} before', {content}, 'others became part of it', {_TO_TIME}, true"
            f" FROM {of}",
            self._key,
        )

    def _change_edges(self) -> int:
        if self._has_folds():
            self._archive_before(
                "edge",
                "to_jsonb(e) || jsonb_build_object('after', c.weight)",
                f"sona.memory_edge e JOIN pg_temp.sona_edge_change c ON {_EDGE_KEY} = c.key WHERE c.fold >= 0"
                " AND e.space_id = %(space)s AND c.action = 0 AND e.weight = c.was AND c.weight <> c.was"
                f" AND e.kind <> ALL({_DERIVED}) ORDER BY e.kind, e.source, e.target",
            )
        return self._connection.execute(
            f"UPDATE sona.memory_edge e SET weight = c.weight, decayed_at = greatest(e.decayed_at, {_TO_TIME})"
            " FROM pg_temp.sona_edge_change c WHERE e.space_id = %(space)s AND c.action = 0"
            f" AND {_EDGE_KEY} = c.key AND e.weight = c.was",
            self._key,
        ).rowcount

    def _merge_nodes(self, nodes: MemoryNodes, plan: ConsolidationPlan) -> int:
        merged = plan.merged
        if not len(merged):
            return 0
        key = self._key | {"ids": nodes.ids[merged[:, 0]].tolist(), "into": nodes.ids[merged[:, 1]].tolist()}
        self._temporary(
            "sona_gone",
            "AS SELECT u.* FROM unnest(%(ids)s::bigint[], %(into)s::bigint[]) u (node_id, into_id)"
            " JOIN sona.memory_node n ON n.space_id = %(space)s AND n.node_id = u.node_id"
            f" WHERE NOT {_HAS_EDGES}",
            key,
        )
        self._temporary(
            "sona_before",
            "AS SELECT n.node_id, n.created_at, t.access_count, t.last_access, t.quality FROM sona.memory_node n"
            " JOIN sona.memory_node_state t USING (space_id, node_id) WHERE n.space_id = %(space)s"
            " AND n.node_id IN (SELECT into_id FROM pg_temp.sona_gone)",
        )
        # What was merged into one of these before.
        self._connection.execute(
            "UPDATE sona.memory_archive a SET into_id = g.into_id FROM pg_temp.sona_gone g"
            " WHERE a.space_id = %(space)s AND a.entity = 'node' AND a.into_id = g.node_id",
            key,
        )
        self._connection.execute(
            "UPDATE sona.memory_node_state t SET access_count = t.access_count + g.access_count,"
            " last_access = greatest(t.last_access, g.last_access), quality = coalesce("
            "  (coalesce(t.quality * (t.access_count + 1), 0) + g.worth)"
            "  / nullif((CASE WHEN t.quality IS NULL THEN 0 ELSE t.access_count + 1 END) + g.judged, 0), t.quality)"
            " FROM (SELECT x.into_id, sum(s.access_count)::bigint AS access_count, max(s.last_access) AS last_access,"
            "  coalesce(sum(s.quality * (s.access_count + 1) ORDER BY s.node_id), 0) AS worth,"
            "  coalesce(sum(s.access_count + 1) FILTER (WHERE s.quality IS NOT NULL), 0) AS judged"
            "  FROM pg_temp.sona_gone x JOIN sona.memory_node_state s ON s.space_id = %(space)s"
            "  AND s.node_id = x.node_id GROUP BY 1) g WHERE t.space_id = %(space)s AND t.node_id = g.into_id",
            key,
        )
        self._connection.execute(
            "UPDATE sona.memory_node n SET created_at = least(n.created_at, g.created_at)"
            " FROM (SELECT x.into_id, min(o.created_at) AS created_at FROM pg_temp.sona_gone x JOIN sona.memory_node o"
            "  ON o.space_id = %(space)s AND o.node_id = x.node_id GROUP BY 1) g"
            " WHERE n.space_id = %(space)s AND n.node_id = g.into_id AND g.created_at < n.created_at",
            key,
        )
        gone = self._move_nodes(
            # The column is rewritten where what it became part of is merged, too; the content is not.
            "'node', to_jsonb(gone) || jsonb_build_object('state', to_jsonb(t), 'into_id', g.into_id),"
            " 'a near duplicate', g.into_id",
            key,
            of="JOIN pg_temp.sona_gone g USING (node_id)",
        )
        self._archive_before(
            "node",
            "to_jsonb(b) || jsonb_build_object('kind', n.kind, 'key', n.key, 'level', n.level, 'after',"
            " to_jsonb(t) || jsonb_build_object('created_at', n.created_at))",
            "pg_temp.sona_before b JOIN sona.memory_node n ON n.space_id = %(space)s AND n.node_id = b.node_id"
            " JOIN sona.memory_node_state t ON t.space_id = n.space_id AND t.node_id = n.node_id ORDER BY b.node_id",
        )
        return gone

    def _write_values(self, nodes: MemoryNodes, stored: StoredEdges, plan: ConsolidationPlan) -> None:
        """What nodes are worth, and which took part in what was strengthened."""
        strong = np.zeros(len(nodes), dtype=np.int64)
        grown = plan.strengthened
        strong[plan.edges.source[grown]] = strong[plan.edges.target[grown]] = 1
        # Sums over the same edges in another order differ by a rounding.
        changes = np.abs(plan.value_after - nodes.importance) > _SAME_VALUE
        rows = np.flatnonzero(plan.node_stays & (changes | (strong > 0)))
        self._temporary("sona_value", "(node_id bigint, value float8, strong bigint)")
        columns = {"node_id": nodes.ids[rows], "value": plan.value_after[rows], "strong": strong[rows]}
        write_columns(self._connection, "pg_temp.sona_value", list(columns), columns)
        self._connection.execute(
            "UPDATE sona.memory_node_state t SET importance = v.value,"
            " consolidation_count = t.consolidation_count + v.strong FROM pg_temp.sona_value v"
            " WHERE t.space_id = %(space)s AND t.node_id = v.node_id",
            self._key,
        )

    # ---- hierarchy, dreams, integration, transfer --------------------------------------------------------------------

    def write_hierarchy(self, concepts: Sequence[LearnedPattern]) -> int:
        """Let these be all patterns of patterns, with edges to what they are made of; how many are new."""
        names = {concept.id: _concept_key(concept.id) for concept in concepts}
        gone = "n.kind = 'concept' AND n.level > 0 AND n.key <> ALL(%(names)s)"
        # With what they are made of.
        self._archive_nodes(gone, "the hierarchy is another one", {"names": list(names.values())})
        self._connection.execute(
            "DELETE FROM sona.memory_edge WHERE space_id = %(space)s AND kind = 'hierarchy'", self._key
        )
        created = 0
        if concepts:
            created = self._take_in(
                "SELECT n.kind, n.key, n.embedding, n.title, n.level, 0::float8 AS quality, 0::bigint AS access_count,"
                " now() AS last_access FROM sona.memory_node n WHERE false",
                {},
                [
                    ("concept", names[c.id], c.centroid, None, c.abstraction_level, min(max(c.avg_quality, 0.0), 1.0))
                    + (c.cluster_size, self._state.now)
                    for c in concepts
                ],
            )
        self._insert_edges(
            "hierarchy",
            "patterns",
            [("concept", names[c.id], *_node_name(child), 1.0) for c in concepts for child in c.children],
        )
        return created

    def write_dreams(
        self, dreams: Iterable[tuple[Dream, float, float, str]], ids: Rows, *, dreamt: int, keep_runs: int
    ) -> None:
        """Note down dreams of this cycle, each with φ, the level to reach, and why it was integrated or not.

        Parameters
        ----------
        ids
            The nodes that they go over, by place.
        dreamt
            How many there were; their ids go on from the last one of the space.
        keep_runs
            Cycles whose dreams are kept.
        """
        made = [
            (self._space.space_id, self._run.run_id, [int(id) for id in ids[list(dream.nodes)]])
            + ([_STEP_KINDS[kind] for kind in dream.kinds], dream.creative_jumps, dream.quality.novelty)
            + (dream.quality.coherence, dream.quality.utility, dream.quality.diversity, dream.quality.overall)
            + (phi, level, not reason, reason or "integrated", self._state.now, 1 + dream.id)
            for dream, phi, level, reason in dreams
        ]
        self._connection.cursor().executemany(
            "INSERT INTO sona.dream (space_id, run_id, nodes, kinds, creative_jumps, novelty, coherence, utility,"
            " diversity, quality, phi, phi_threshold, is_integrated, reason, created_at, dream_id)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, to_timestamp(%s), %s)",
            made,
        )
        self._connection.execute(
            "UPDATE sona.memory_state SET last_dream_id = %(last)s WHERE space_id = %(space)s",
            self._key | {"last": self._state.last_dream_id + dreamt},
        )
        self._connection.execute(
            "DELETE FROM sona.dream WHERE space_id = %(space)s AND run_id NOT IN"
            " (SELECT DISTINCT run_id FROM sona.dream WHERE space_id = %(space)s ORDER BY run_id DESC LIMIT %(keep)s)",
            self._key | {"keep": keep_runs},
        )

    def write_creative(self, source: Rows, target: Rows, weight: float) -> int:
        """Connect nodes that dreams have brought together, weakly; how many edges are new."""
        rows = self._connection.execute(
            "SELECT u.at, n.kind, n.key FROM unnest(%(ids)s::bigint[]) WITH ORDINALITY u (id, at)"
            " JOIN sona.memory_node n ON n.space_id = %(space)s AND n.node_id = u.id",
            self._key | {"ids": [int(id) for pair in zip(source, target, strict=True) for id in pair]},
        ).fetchall()
        names = {at - 1: (kind, key) for at, kind, key in rows}
        edges = []
        for pair in range(len(source)):
            if 2 * pair in names and 2 * pair + 1 in names:
                # An undirected edge stands once, source before target.
                first, second = sorted((names[2 * pair], names[2 * pair + 1]), key=lambda name: (name[1], name[0]))
                edges.append((*first, *second, weight))
        return self._insert_edges("creative", f"dreams of run {self._run.run_id}", edges, replaces=False)

    def write_facts(self, column: str, facts: Mapping[str, Json]) -> None:
        """Keep `evidence` or `system` of the space."""
        assert column in ("evidence", "system")
        self._connection.execute(
            f"UPDATE sona.memory_state SET {column} = %(facts)s WHERE space_id = %(space)s",
            self._key | {"facts": Jsonb(dict(facts))},
        )

    def write_analogies(self, found: Sequence[tuple[int, str, int, float]]) -> None:
        """Let these be all analogies: own pattern, other space, its pattern, similarity 0 to 1."""
        self._connection.execute(
            "DELETE FROM sona.memory_edge WHERE space_id = %(space)s AND kind = 'analogy'", self._key
        )
        for other in sorted({space for _, space, _, _ in found}):
            edges = [
                ("pattern", str(own), "elsewhere", f"{other} {theirs}", similarity)
                for own, space, theirs, similarity in found
                if space == other
            ]
            self._insert_edges("analogy", f"space {other}", edges)

    def write_snapshot(self, ordinal: int, content: bytes) -> None:
        """Keep the graph as it is, for whoever is to weigh the events that come after so many of the ledger."""
        self._connection.execute(
            "INSERT INTO sona.memory_snapshot (space_id, run_id, ordinal, content)"
            " VALUES (%(space)s, %(run)s, %(ordinal)s, %(content)s) ON CONFLICT (space_id, run_id) DO NOTHING",
            self._key | {"ordinal": ordinal, "content": content},
        )

    def drop_old_archive(self, keep_seconds: float) -> int:
        """Delete what has been in the archive for longer; how many rows."""
        return self._connection.execute(
            "DELETE FROM sona.memory_archive"
            " WHERE space_id = %(space)s AND archived_at < to_timestamp(%(now)s - %(keep)s)",
            self._key | {"keep": keep_seconds},
        ).rowcount


def _node_name(pattern_id: int) -> tuple[str, str]:
    """Kind and key of a pattern, or of a pattern of patterns."""
    return ("concept", _concept_key(pattern_id)) if pattern_id >= FIRST_CONCEPT else ("pattern", str(pattern_id))


def _concept_key(pattern_id: int) -> str:
    return f"{LEARNED}{pattern_id - FIRST_CONCEPT}"


_WITH_NODES = "e.kind IN ('" + "', '".join((*WALKED, "creative")) + "')"
"""Of an edge e: both its ends are nodes of the space."""

_HAS_EDGES = (
    f"(EXISTS (SELECT FROM sona.memory_edge e WHERE e.space_id = n.space_id AND {_WITH_NODES}"
    "  AND e.source_kind = n.kind AND e.source = n.key) OR EXISTS (SELECT FROM sona.memory_edge e"
    f"  WHERE e.space_id = n.space_id AND {_WITH_NODES} AND e.target_kind = n.kind AND e.target = n.key))"
)
"""Of a node n that is to go, once its edges are gone: others are new, or have changed since the plan was made. It is
left to the next cycle."""

_EDGE_NAME = ("space_id", "kind", "source_kind", "source", "target_kind", "target")

_DERIVED = f"ARRAY{list(DERIVED)}"
"""As SQL."""

_EDGE_KEY = "sona._edge_key(e.kind, e.source_kind, e.source, e.target_kind, e.target)"

_ITEMS = (
    "WITH merged AS MATERIALIZED (SELECT m.key, m.into_key FROM sona._merged_nodes(%(space)s) m WHERE m.kind = 'item'),"
    " used AS (SELECT source AS key, max(updated_at) AS last FROM sona.memory_edge WHERE space_id = %(space)s"
    "  AND kind = 'co_access' GROUP BY 1 UNION ALL SELECT target, max(updated_at) FROM sona.memory_edge"
    "  WHERE space_id = %(space)s AND kind = 'co_access' GROUP BY 1"
    "  UNION ALL SELECT i, NULL FROM unnest(%(items)s::text[]) i"
    "  UNION ALL SELECT key, NULL FROM merged"
    "  UNION ALL SELECT key, NULL FROM sona.memory_node WHERE space_id = %(space)s AND kind = 'item'),"
    " newest AS MATERIALIZED (SELECT helped, unhelpful FROM sona.remembered_query WHERE space_id = %(space)s"
    "  AND ordinal IS NOT NULL ORDER BY ordinal DESC LIMIT %(most)s),"
    " judged AS (SELECT j.key, count(*) FILTER (WHERE j.has_helped) AS helped, count(*) AS times FROM ("
    "  SELECT unnest(helped) AS key, true AS has_helped FROM newest UNION ALL"
    "  SELECT unnest(unhelpful), false FROM newest) j GROUP BY 1),"
    " item AS (SELECT key, max(last) AS last FROM used GROUP BY 1)"
    " SELECT 'item' AS kind, coalesce(m.into_key, i.key) AS key,"
    " (SELECT n.embedding FROM sona.memory_node n WHERE false) AS embedding, NULL::text AS title,"
    " 0 AS level, (sum(j.helped) + 1.0)::float8 / (sum(j.times) + 2.0)::float8 AS quality,"
    " coalesce(sum(o.helped), 0)::bigint AS access_count, max(i.last) AS last_access"
    " FROM item i LEFT JOIN merged m ON m.key = i.key LEFT JOIN judged j ON j.key = i.key"
    " LEFT JOIN sona.item_outcome o ON o.space_id = %(space)s AND o.item_id = i.key GROUP BY 2"
)
"""Items that helped together or in a pattern; those that were merged count for what they were merged into."""


def index_nodes(connection: Connection, space: Space, exact_search_rows: int, lock_timeout_seconds: int) -> bool:
    """Make the HNSW index of a space that has many nodes and no index; whether that was done.

    In a transaction that the caller began.
    """
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{lock_timeout_seconds}s",))
    row = connection.execute("SELECT sona.index_nodes(%s, %s)", (space.name, exact_search_rows)).fetchone()
    return row is not None and bool(row[0])


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
