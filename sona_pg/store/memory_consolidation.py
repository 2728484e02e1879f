"""Does what a consolidation has planned: edges change, what is twice becomes one, and what goes is in the archive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sona_pg.learning.consolidation import ConsolidationPlan
from sona_pg.learning.memory_columns import MemoryNodes, Origin
from sona_pg.store.columns import write_columns
from sona_pg.store.learning import LearningTransaction
from sona_pg.store.memory import DERIVED, WALKED, StoredEdges
from sona_pg.store.memory_transaction import TO_TIME, MemoryTransaction

_SAME_VALUE = 1e-9
"""Two values of a node that differ by less are one."""


@dataclass(frozen=True, slots=True)
class Executed:
    """What was done of a plan; edges that an outcome has changed since it was made are left to the next cycle."""

    edges: int
    pruned: int
    archived: int
    merged: int


class ConsolidationTransaction(MemoryTransaction):
    """Executes a plan; what outcomes have changed since it was made is left to the next cycle."""

    def execute(self, nodes: MemoryNodes, stored: StoredEdges, plan: ConsolidationPlan) -> Executed:
        """Do what a plan says; what goes is in the archive.

        Parameters
        ----------
        nodes, stored
            What the plan was made for.
        """
        changed = self._stage_edges(nodes, stored, plan)
        # Flushes change edges, too: behind the lock of the learner they wait for each other in one order.
        LearningTransaction(self._connection, self._space)
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
            f"UPDATE sona.memory_state SET consolidated_at = {TO_TIME} WHERE space_id = %(space)s", self._key
        )
        return Executed(edges, pruned, archived, merged)

    def _stage_edges(self, nodes: MemoryNodes, stored: StoredEdges, plan: ConsolidationPlan) -> int:
        """What becomes of which edges, in a table of this transaction; how many there are."""
        edges, after, rows = stored.edges, plan.edges, np.arange(len(stored.keys))
        stays = plan.edge_into == rows
        is_moved = stored.is_renamed | (after.source != edges.source) | (after.target != edges.target)
        # Edges that become one, with the one that they become: all of them, or none.
        folds = ~stays & (plan.edge_into >= 0)
        into = np.where(folds, plan.edge_into, rows)
        # What was dreamt, and stands beside what was observed, goes: the other one takes nothing in.
        is_dream = edges.origin == Origin.CREATIVE
        gives = folds & (is_dream == is_dream[into])
        is_observed = folds & ~gives & ~is_moved & ~is_moved[into]
        # What weak edges were is in the archive in any case.
        is_merge = (is_moved | (folds & ~is_observed)).astype(np.int64)
        is_moved &= stays
        # Between other nodes, or under other names, it is another row.
        goes = ~stays | is_moved
        is_weak = np.zeros(len(rows), dtype=bool)
        is_weak[plan.pruned] = True
        changes = stays & ~is_moved & ((after.weight != edges.weight) | (after.decayed_at > edges.decayed_at))
        is_fold = np.zeros(len(rows), dtype=bool)
        is_fold[into[folds]] = is_fold[folds] = True
        takes_in = np.zeros(len(rows), dtype=np.int64)
        takes_in[into[gives]] = 1
        kept = np.flatnonzero(goes | changes | is_fold)
        # 0 another weight, 1 too weak, 2 with its node or twice, 3 between other nodes, 4 dreamt and observed by now.
        action = np.select([is_moved, is_weak, is_observed, goes], [3, 1, 4, 2], 0)
        self._temporary(
            "sona_edge_change",
            "(key bigint, was float8, weight float8, action bigint, source bigint, target bigint, fold bigint,"
            " is_merge bigint, takes_in bigint)",
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
            "takes_in": takes_in[kept],
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
            " WHEN 4 THEN 'observed by now'"
            f" ELSE 'of a node that was merged or went' END, {TO_TIME}, r.is_merge = 1 AND r.action > 1"
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
            f" min((r.edge).created_at) AS created_at, max((r.edge).updated_at) AS updated_at, {TO_TIME} AS decayed_at"
            " FROM pg_temp.sona_removed r JOIN sona.memory_node a ON a.space_id = %(space)s AND a.node_id = r.from_id"
            " JOIN sona.memory_node b ON b.space_id = %(space)s AND b.node_id = r.to_id"
            " WHERE r.action = 3 GROUP BY 1, 2, 3, 4, 5, 6",
        )
        # Of one that an outcome has made since the plan both count, as where edges become one. Where there is none, it
        # is the weight to the last bit: by that it is known for one that was only moved when all is brought back.
        weight = (
            "CASE WHEN e.kind IS NULL THEN m.weight WHEN e.kind = 'creative' THEN greatest(e.weight, m.weight)"
            " ELSE 1 - (1 - e.weight) * (1 - m.weight) END"
        )
        same = " AND ".join(f"{{0}}.{name} = {{1}}.{name}" for name in _EDGE_NAME)
        self._archive_before(
            "edge",
            f"to_jsonb(m) || jsonb_build_object('weight', coalesce(e.weight, 0), 'after', {weight},"
            " 'updated_at', coalesce(e.updated_at, m.updated_at))",
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
            f" SELECT %(space)s, %(run)s, '{entity} before', {content}, 'others became part of it', {TO_TIME}, true"
            f" FROM {of}",
            self._key,
        )

    def _change_edges(self) -> int:
        if self._has_folds():
            self._archive_before(
                "edge",
                "to_jsonb(e) || jsonb_build_object('after', c.weight)",
                f"sona.memory_edge e JOIN pg_temp.sona_edge_change c ON {_EDGE_KEY} = c.key WHERE c.takes_in = 1"
                " AND e.space_id = %(space)s AND c.action = 0 AND e.weight = c.was AND c.weight <> c.was"
                f" AND e.kind <> ALL({_DERIVED}) ORDER BY e.kind, e.source, e.target",
            )
        return self._connection.execute(
            f"UPDATE sona.memory_edge e SET weight = c.weight, decayed_at = greatest(e.decayed_at, {TO_TIME})"
            " FROM pg_temp.sona_edge_change c WHERE e.space_id = %(space)s AND c.action = 0"
            f" AND {_EDGE_KEY} = c.key AND e.weight = c.was",
            self._key,
        ).rowcount

    def _merge_nodes(self, nodes: MemoryNodes, plan: ConsolidationPlan) -> int:
        merged = plan.merged
        if not len(merged):
            return 0
        judged = np.zeros((len(nodes), 2), dtype=np.int64) if nodes.judged is None else nodes.judged
        ends = np.hstack([judged[merged[:, 0]], judged[merged[:, 1]]])
        key = self._key | {
            "ids": nodes.ids[merged[:, 0]].tolist(),
            "into": nodes.ids[merged[:, 1]].tolist(),
            **dict(zip(("times", "helped", "into_times", "into_helped"), ends.T.tolist(), strict=True)),
        }
        self._temporary(
            "sona_gone",
            "AS SELECT u.* FROM unnest(%(ids)s::bigint[], %(into)s::bigint[], %(times)s::bigint[],"
            " %(helped)s::bigint[], %(into_times)s::bigint[], %(into_helped)s::bigint[])"
            " u (node_id, into_id, times, helped, into_times, into_helped)"
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
            " last_access = greatest(t.last_access, g.last_access), quality = CASE WHEN g.times > 0"
            # As the next cycle says of all that they were judged by: the prior counts once.
            "  THEN (g.helped + 1.0)::float8 / (g.times + 2.0)::float8 ELSE coalesce("
            "  (coalesce(t.quality * (t.access_count + 1), 0) + g.worth)"
            "  / nullif((CASE WHEN t.quality IS NULL THEN 0 ELSE t.access_count + 1 END) + g.judged, 0), t.quality) END"
            " FROM (SELECT x.into_id, sum(s.access_count)::bigint AS access_count, max(s.last_access) AS last_access,"
            "  coalesce(sum(s.quality * (s.access_count + 1) ORDER BY s.node_id), 0) AS worth,"
            "  coalesce(sum(s.access_count + 1) FILTER (WHERE s.quality IS NOT NULL), 0) AS judged,"
            "  sum(x.times) + max(x.into_times) AS times, sum(x.helped) + max(x.into_helped) AS helped"
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

    def drop_old_archive(self, keep_seconds: float) -> int:
        """Delete what has been in the archive for longer; how many rows."""
        return self._connection.execute(
            "DELETE FROM sona.memory_archive"
            " WHERE space_id = %(space)s AND archived_at < to_timestamp(%(now)s - %(keep)s)",
            self._key | {"keep": keep_seconds},
        ).rowcount


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
