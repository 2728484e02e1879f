"""The memory graph in Postgres: what a cycle of the deep loop reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from psycopg.pq import TransactionStatus

from sona_pg.errors import LockLost
from sona_pg.learning.hierarchy import FIRST_CONCEPT
from sona_pg.learning.memory_columns import MemoryEdges, MemoryNodes, Origin
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.store.columns import BIGINT, DOUBLE, read_columns
from sona_pg.store.connection import Connection, hash_joins, snapshot_transaction
from sona_pg.store.patterns import read_patterns
from sona_pg.store.runs import Run
from sona_pg.store.spaces import space_gone
from sona_pg.types import FloatVector

KINDS = ("item", "pattern", "concept", "episode", "procedure", "dream")
"""Kinds of nodes; in the columns each is its place here, but for concepts of the hierarchy."""

PATTERN, HIERARCHICAL = KINDS.index("pattern"), len(KINDS)
"""Of a pattern and of a pattern of patterns: nodes that other phases keep."""

LEARNED = "learned "
"""Keys of the hierarchy's own concepts begin so, before a number: `sona.add_memory_node` gives no such key."""

WALKED = ("co_access", "pattern", "hierarchy", "given")
"""Kinds of edges that were observed, made of what was, or given by hand: dreams walk over them."""

DERIVED = ("pattern", "hierarchy")
"""Kinds of edges that every cycle makes anew: they do not fade."""

_ORIGINS = {
    "co_access": Origin.CO_ACCESS,
    "pattern": Origin.PATTERN,
    "creative": Origin.CREATIVE,
    "hierarchy": Origin.HIERARCHY,
    "given": Origin.GIVEN,
}

Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MemoryState:
    """How far the memory graph is, and the moment of a cycle: the same, whoever goes on with it.

    Parameters
    ----------
    generation
        Grows when a user is forgotten.
    last_node_id, last_dream_id
        The last ones that were given.
    now
        When the cycle was asked for, seconds since the epoch.
    seconds_left
        Until its deadline, as it is now.
    """

    generation: int
    last_node_id: int
    last_dream_id: int
    now: float
    seconds_left: float


@dataclass(frozen=True, slots=True, eq=False)
class StoredEdges:
    """Edges as columns, with what finds them again.

    Parameters
    ----------
    keys
        int64 (m,), by `sona._edge_key`.
    edges
        The columns; ends are rows of the nodes that were read with them.
    is_renamed
        bool (m,): whether it is stored under the name of a node that was merged.
    """

    keys: Rows
    edges: MemoryEdges
    is_renamed: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class OtherSpace:
    """Another space of the same embedder that allows comparison, too."""

    name: str
    patterns: list[LearnedPattern]


@contextlib.contextmanager
def memory_reader(connection: Connection, run: Run, deadline_seconds: float) -> Iterator[MemoryReader]:
    """Reads what a phase begins with, all of it as of one moment."""
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        # Of a cycle that is only tried, what the phases before have written is seen by its own transaction alone.
        hash_joins(connection)
        yield MemoryReader(connection, run, deadline_seconds)
        return
    with snapshot_transaction(connection):
        hash_joins(connection)
        yield MemoryReader(connection, run, deadline_seconds)


class MemoryReader:
    """Reads, in one transaction, what a phase begins with."""

    def __init__(self, connection: Connection, run: Run, deadline_seconds: float) -> None:
        self._connection, self._run, self._space = connection, run, run.space
        row = connection.execute(
            "SELECT coalesce(m.generation, 0), coalesce(m.last_node_id, 0), coalesce(m.last_dream_id, 0),"
            " extract(epoch FROM r.requested_at)::float8,"
            " %(seconds)s - extract(epoch FROM clock_timestamp() - r.claimed_at)::float8"
            " FROM sona.loop_run r LEFT JOIN sona.memory_state m USING (space_id)"
            " WHERE r.space_id = %(space)s AND r.run_id = %(run)s",
            {"seconds": deadline_seconds, "space": self._space.space_id, "run": run.run_id},
        ).fetchone()
        if row is None:
            raise space_gone(self._space.name, LockLost)
        self.state = MemoryState(*row)

    def patterns(self) -> list[LearnedPattern]:
        """Patterns of trajectories, without their text."""
        found = read_patterns(self._connection, self._space.space_id)
        return [pattern for pattern in found.values() if pattern.abstraction_level == 0]

    def queries(self, most: int) -> list[tuple[FloatVector, list[str]]]:
        """The newest remembered queries in which something helped, the oldest of them first, and what helped."""
        return self._connection.execute(
            "SELECT q.embedding, q.helped FROM (SELECT r.embedding, r.helped, r.ordinal FROM sona.remembered_query r"
            " WHERE r.space_id = %s AND r.ordinal IS NOT NULL AND r.helped <> '{}' ORDER BY r.ordinal DESC LIMIT %s) q"
            " ORDER BY q.ordinal",
            (self._space.space_id, most),
            binary=True,
        ).fetchall()

    def events(self, ids: Rows, most: int) -> list[Rows]:
        """Items that helped together: of each of the newest events with several, the oldest of them first.

        Each as rows of the nodes, of which `ids` are all, in order; an item that was merged is what it was merged into.
        """
        found = read_columns(
            self._connection,
            sql.SQL(
                "WITH place AS MATERIALIZED (" + _PLACES + "),"
                " newest AS MATERIALIZED (SELECT r.ordinal, r.helped FROM sona.remembered_query r"
                "  WHERE r.space_id = {space} AND r.ordinal IS NOT NULL AND cardinality(r.helped) > 1"
                "  ORDER BY r.ordinal DESC LIMIT {most})"
                " SELECT DISTINCT q.ordinal, p.node_id FROM newest q, unnest(q.helped) AS item (key)"
                " JOIN place p ON p.kind = 'item' AND p.key = item.key ORDER BY 1, 2"
            ).format(space=sql.Literal(self._space.space_id), most=sql.Literal(most)),
            {"event": BIGINT, "node": BIGINT},
        )
        rows = np.searchsorted(ids, cast(Rows, found["node"])).astype(np.int64)
        begin = np.flatnonzero(np.diff(cast(Rows, found["event"]))) + 1
        return np.split(rows, begin) if len(rows) else []

    def nodes(self, vector_bytes: int) -> MemoryNodes:
        """All nodes, in the order of their ids; embeddings of those accessed last, as many as may be in memory."""
        space_id = sql.Literal(self._space.space_id)
        found = read_columns(
            self._connection,
            sql.SQL(
                "SELECT n.node_id, CASE WHEN n.kind = 'concept' AND n.level > 0 THEN {concept} ELSE"
                "  array_position({kinds}, n.kind)::bigint - 1 END, t.access_count,"
                " extract(epoch FROM n.created_at)::float8, extract(epoch FROM t.last_access)::float8,"
                " coalesce(t.quality, 'NaN'), t.importance"
                " FROM sona.memory_node n JOIN sona.memory_node_state t USING (space_id, node_id)"
                " WHERE n.space_id = {space} ORDER BY n.node_id"
            ).format(kinds=sql.Literal(list(KINDS)), concept=sql.Literal(HIERARCHICAL), space=space_id),
            {"ids": BIGINT, "kinds": BIGINT, "access_count": BIGINT}
            | dict.fromkeys(("created", "last_access", "quality", "importance"), DOUBLE),
        )
        ids, dim = cast(Rows, found["ids"]), self._space.dim
        vectors = read_columns(
            self._connection,
            sql.SQL(
                "SELECT n.node_id, n.embedding FROM sona.memory_node n JOIN sona.memory_node_state t"
                " USING (space_id, node_id) WHERE n.space_id = {space} AND n.embedding IS NOT NULL"
                " ORDER BY t.last_access DESC, n.node_id LIMIT {most}"
            ).format(space=space_id, most=sql.Literal(max(vector_bytes // (4 * dim), 1))),
            {"ids": BIGINT},
            ("embedding", dim),
        )
        # The last row is that of all nodes whose embedding is not in memory.
        embeddings = np.zeros((len(vectors["ids"]) + 1, dim), dtype=np.float32)
        embeddings[:-1] = vectors["embedding"]
        places = np.full(len(ids), len(embeddings) - 1, dtype=np.int64)
        places[np.searchsorted(ids, cast(Rows, vectors["ids"]))] = np.arange(len(embeddings) - 1)
        return MemoryNodes(
            **cast("dict[str, Any]", found),
            embeddings=embeddings,
            has_embedding=places < len(embeddings) - 1,
            places=places,
        )

    def distinct(self, ids: Rows) -> NDArray[np.bool_]:
        """Which nodes, bool (n,), were merged and restored: they are not merged again."""
        rows = self._connection.execute(
            "SELECT node_id FROM sona.memory_node WHERE space_id = %s AND is_distinct", (self._space.space_id,)
        ).fetchall()
        return np.isin(ids, np.array([id for (id,) in rows], dtype=np.int64))

    def judged(self, ids: Rows) -> Rows:
        """How often items were judged and had helped, int64 (n, 2), in rows of all nodes; of other nodes zeros.

        An item counts for what it was merged into.
        """
        found = read_columns(
            self._connection,
            sql.SQL(
                f"WITH place AS MATERIALIZED ({_PLACES}), {_JUDGED}"
                " SELECT p.node_id, sum(j.times)::bigint, sum(j.helped)::bigint FROM judged j"
                " JOIN place p ON p.kind = 'item' AND p.key = j.key GROUP BY 1 ORDER BY 1"
            ).format(space=sql.Literal(self._space.space_id), most=sql.Literal(JUDGED_QUERIES)),
            {"ids": BIGINT, "times": BIGINT, "helped": BIGINT},
        )
        judged = np.zeros((len(ids), 2), dtype=np.int64)
        rows = np.searchsorted(ids, cast(Rows, found["ids"]))
        judged[rows, 0], judged[rows, 1] = found["times"], found["helped"]
        return judged

    def edges(self, ids: Rows, kinds: tuple[str, ...]) -> StoredEdges:
        """Edges of these kinds between nodes, of which `ids` are all, in order; where an end was merged, to that."""
        origins = " ".join(f"WHEN '{kind}' THEN {int(origin)}" for kind, origin in _ORIGINS.items())
        found = read_columns(
            self._connection,
            sql.SQL(
                "WITH place AS MATERIALIZED (" + _PLACES + ")"
                " SELECT sona._edge_key(e.kind, e.source_kind, e.source, e.target_kind, e.target), a.node_id,"
                f" b.node_id, e.weight, CASE e.kind {origins} END::bigint,"
                " CASE WHEN e.kind = ANY({derived}) THEN {now} ELSE extract(epoch FROM e.decayed_at)::float8 END,"
                " (a.is_gone OR b.is_gone)::int::bigint"
                " FROM sona.memory_edge e JOIN place a ON a.kind = e.source_kind AND a.key = e.source"
                " JOIN place b ON b.kind = e.target_kind AND b.key = e.target"
                " WHERE e.space_id = {space} AND e.kind = ANY({kinds}) AND e.weight BETWEEN 0 AND 1"
                " ORDER BY 2, 3, 5, 1"
            ).format(
                space=sql.Literal(self._space.space_id),
                derived=sql.Literal(list(DERIVED)),
                now=sql.Literal(self.state.now),
                kinds=sql.Literal(list(kinds)),
            ),
            {"keys": BIGINT, "source": BIGINT, "target": BIGINT, "weight": DOUBLE, "origin": BIGINT, "decayed": DOUBLE}
            | {"is_renamed": BIGINT},
        )
        source, target = (np.searchsorted(ids, cast(Rows, found[end])).astype(np.int64) for end in ("source", "target"))
        weight, decayed = cast(Doubles, found["weight"]), cast(Doubles, found["decayed"])
        edges = MemoryEdges(source, target, weight, decayed, cast(Rows, found["origin"]))
        return StoredEdges(cast(Rows, found["keys"]), edges, found["is_renamed"].astype(bool))

    def concepts(self) -> list[LearnedPattern]:
        """Patterns of patterns of the cycle before; their ids are the numbers of their keys, above `FIRST_CONCEPT`."""
        rows = self._connection.execute(
            "SELECT substr(n.key, %(number)s)::bigint, n.embedding, n.level, coalesce(t.quality, 0.5), t.access_count,"
            " extract(epoch FROM n.created_at)::float8, ARRAY(SELECT CASE WHEN e.target_kind = 'concept'"
            "  THEN substr(e.target, %(number)s)::bigint + %(first)s ELSE e.target::bigint END FROM sona.memory_edge e"
            "  WHERE e.space_id = n.space_id AND e.kind = 'hierarchy' AND e.source_kind = n.kind AND e.source = n.key"
            "  ORDER BY 1)"
            " FROM sona.memory_node n JOIN sona.memory_node_state t USING (space_id, node_id)"
            " WHERE n.space_id = %(space)s AND n.kind = 'concept' AND n.level > 0 AND n.embedding IS NOT NULL"
            " AND starts_with(n.key, %(learned)s) ORDER BY 1",
            {
                "space": self._space.space_id,
                "first": FIRST_CONCEPT,
                "learned": LEARNED,
                "number": len(LEARNED) + 1,
            },
            binary=True,
        ).fetchall()
        return [
            LearnedPattern(
                id=FIRST_CONCEPT + key,
                centroid=centroid,
                cluster_size=accesses,
                total_weight=float(accesses),
                avg_quality=quality,
                created_at=created,
                last_accessed=created,
                updated_at=created,
                decayed_at=created,
                abstraction_level=level,
                children=tuple(children),
            )
            for key, centroid, level, quality, accesses, created, children in rows
        ]

    def others(self, most_patterns: int) -> Iterator[OtherSpace]:
        """Spaces of the same embedder that allow comparison, too, where this one does; with their largest patterns."""
        rows = self._connection.execute(
            "SELECT o.space_id, o.name FROM sona.space s JOIN sona.space o ON o.dim = s.dim AND o.embedder = s.embedder"
            " AND o.space_id <> s.space_id WHERE s.space_id = %s AND s.may_transfer AND o.may_transfer ORDER BY 2",
            (self._space.space_id,),
        ).fetchall()
        for space_id, name in rows:
            yield OtherSpace(name, self.largest_patterns(space_id, most_patterns))

    def largest_patterns(self, space_id: int, most: int) -> list[LearnedPattern]:
        """The patterns of a space with the most outcomes, in the order of their ids."""
        ids = self._connection.execute(
            "SELECT pattern_id FROM sona.pattern WHERE space_id = %s AND abstraction_level = 0"
            " ORDER BY support DESC, pattern_id LIMIT %s",
            (space_id, most),
        ).fetchall()
        found = read_patterns(self._connection, space_id, [id for (id,) in ids])
        return list(found.values())

    def names(self) -> tuple[Rows, list[str | None]]:
        """Ids of all nodes, in order, and the names of those that are items; None of others."""
        rows = self._connection.execute(
            "SELECT node_id, CASE WHEN kind = 'item' THEN key END FROM sona.memory_node WHERE space_id = %s"
            " ORDER BY node_id",
            (self._space.space_id,),
        ).fetchall()
        return np.array([id for id, _ in rows], dtype=np.int64), [key for _, key in rows]

    def merged_items(self) -> dict[str, str]:
        """By item that was merged the one that stands for it."""
        return dict(
            self._connection.execute(
                "SELECT key, into_key FROM sona._merged_nodes(%s) WHERE kind = 'item' AND into_kind = 'item'",
                (self._space.space_id,),
            ).fetchall()
        )

    def ledger_entries(self) -> int:
        """How many entries the ledger has, all of which the edges may know."""
        row = self._connection.execute(
            "SELECT ordinal FROM sona.learner WHERE space_id = %s", (self._space.space_id,)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def is_empty(self) -> bool:
        """Whether there is neither a node nor an edge."""
        row = self._connection.execute(
            "SELECT EXISTS (SELECT FROM sona.memory_edge WHERE space_id = %(space)s)"
            " OR EXISTS (SELECT FROM sona.memory_node WHERE space_id = %(space)s)",
            {"space": self._space.space_id},
        ).fetchone()
        return row is None or not row[0]


_PLACES = (
    # What was merged stands for what it was merged into.
    "SELECT n.kind, n.key, n.node_id, false AS is_gone FROM sona.memory_node n WHERE n.space_id = {space}"
    " UNION ALL SELECT m.kind, m.key, m.node_id, true FROM sona._merged_nodes({space}) m"
)
"""Names of nodes and what they stand for."""

JUDGED_QUERIES = 100_000
"""Remembered queries, the newest, by which items are judged."""

_JUDGED = (
    "newest AS MATERIALIZED (SELECT helped, unhelpful FROM sona.remembered_query WHERE space_id = {space}"
    "  AND ordinal IS NOT NULL ORDER BY ordinal DESC LIMIT {most}),"
    " judged AS (SELECT j.key, count(*) FILTER (WHERE j.has_helped) AS helped, count(*) AS times FROM ("
    "  SELECT unnest(helped) AS key, true AS has_helped FROM newest UNION ALL"
    "  SELECT unnest(unhelpful), false FROM newest) j GROUP BY 1)"
)

JUDGED = _JUDGED.format(space="%(space)s", most="%(most)s")
"""How often items have helped of how many times, as a common table expression `judged` of a statement."""
