"""Nodes and edges of what was learned: of items, patterns, and patterns of patterns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString

from sona_pg.errors import DatabaseBusy, DatabaseUnavailable, SonaError
from sona_pg.learning.hierarchy import FIRST_CONCEPT
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.store import spaces
from sona_pg.store.memory import JUDGED, JUDGED_QUERIES, LEARNED
from sona_pg.store.memory_transaction import MemoryTransaction

_READ_AT_ONCE = 2000
"""Items whose embeddings are read at once."""


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
    lost
        Items that had an embedding and are not in the table any more.
    refusal
        Why the table of items could not be read; None if it could.
    """

    created: int
    gone: int
    pattern_edges: int
    embedded: int
    lost: int
    refusal: str | None


class GrowthTransaction(MemoryTransaction):
    """Makes nodes and edges of what is known by now."""

    def grow(self, pattern_edges: Sequence[tuple[int, str, float]]) -> Growth:
        """Make nodes of patterns and of items that helped together or in a pattern, and edges between the two.

        Parameters
        ----------
        pattern_edges
            Pattern, item, and weight, 0 to 1.
        """
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
            _ITEMS, {"items": sorted({item for _, item, _ in pattern_edges}), "most": JUDGED_QUERIES}
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

    def _embed_items(self) -> tuple[int, int, str | None]:
        """Look items up in the application's table: how many were read there, how many are gone, and what is wrong.

        The embedding is read of items that have none here; of all, where the table was named anew since the last cycle.
        One that the table does not have any more has none here, either.
        """
        row = self._connection.execute(
            "SELECT coalesce(i.sampled_at > m.consolidated_at, false) FROM sona.item_source i"
            " LEFT JOIN sona.memory_state m USING (space_id) WHERE i.space_id = %(space)s",
            self._key,
        ).fetchone()
        if row is None:
            # Where there is no table, somebody may have said by hand where items lie.
            return 0, 0, None
        done, gone, after = 0, 0, ""
        while True:
            rows = self._connection.execute(
                "SELECT n.key, n.embedding IS NULL FROM sona.memory_node n WHERE n.space_id = %(space)s"
                " AND n.kind = 'item' AND n.key > %(after)s ORDER BY n.key LIMIT %(most)s",
                self._key | {"after": after, "most": _READ_AT_ONCE},
            ).fetchall()
            if not rows:
                return done, gone, None
            items, after = [item for item, _ in rows], rows[-1][0]
            unread = [item for item, lacks in rows if lacks or row[0]]
            try:
                found = spaces.item_embeddings(self._connection, self._space, unread)
                there = spaces.items_present(self._connection, self._space, sorted(set(items) - set(unread)))
            except (DatabaseBusy, DatabaseUnavailable):
                raise
            except SonaError as error:
                # Whether it has the items is not known of a table that is another one, only of one that is gone.
                return done, gone + self._forget_embeddings(_NO_TABLE), str(error)
            cursor = self._connection.cursor()
            cursor.executemany(
                "UPDATE sona.memory_node SET embedding = %s WHERE space_id = %s AND kind = 'item' AND key = %s",
                [(vector, self._space.space_id, item) for item, vector in found.items()],
            )
            done += len(found)
            gone += self._forget_embeddings(
                "n.key = ANY(%(lacking)s)", {"lacking": sorted(set(items) - there - found.keys())}
            )

    def _forget_embeddings(self, which: LiteralString, key: Mapping[str, object] | None = None) -> int:
        """Let items have no place any more; how many had one."""
        return self._connection.execute(
            "UPDATE sona.memory_node n SET embedding = NULL WHERE n.space_id = %(space)s AND n.kind = 'item'"
            f" AND n.embedding IS NOT NULL AND {which}",
            self._key | dict(key or {}),
        ).rowcount

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


def _node_name(pattern_id: int) -> tuple[str, str]:
    """Kind and key of a pattern, or of a pattern of patterns."""
    return ("concept", _concept_key(pattern_id)) if pattern_id >= FIRST_CONCEPT else ("pattern", str(pattern_id))


def _concept_key(pattern_id: int) -> str:
    return f"{LEARNED}{pattern_id - FIRST_CONCEPT}"


_NO_TABLE = (
    "NOT EXISTS (SELECT FROM sona.item_source i JOIN pg_class c ON c.oid = i.items WHERE i.space_id = n.space_id)"
)
"""Of the space of a node n: the table that it has named is gone."""

_ITEMS = (
    "WITH merged AS MATERIALIZED (SELECT m.key, m.into_key FROM sona._merged_nodes(%(space)s) m WHERE m.kind = 'item'),"
    " used AS (SELECT source AS key, max(updated_at) AS last FROM sona.memory_edge WHERE space_id = %(space)s"
    "  AND kind = 'co_access' GROUP BY 1 UNION ALL SELECT target, max(updated_at) FROM sona.memory_edge"
    "  WHERE space_id = %(space)s AND kind = 'co_access' GROUP BY 1"
    "  UNION ALL SELECT i, NULL FROM unnest(%(items)s::text[]) i"
    "  UNION ALL SELECT key, NULL FROM merged"
    "  UNION ALL SELECT key, NULL FROM sona.memory_node WHERE space_id = %(space)s AND kind = 'item')," + f" {JUDGED},"
    " item AS (SELECT key, max(last) AS last FROM used GROUP BY 1)"
    " SELECT 'item' AS kind, coalesce(m.into_key, i.key) AS key,"
    " (SELECT n.embedding FROM sona.memory_node n WHERE false) AS embedding, NULL::text AS title,"
    " 0 AS level, (sum(j.helped) + 1.0)::float8 / (sum(j.times) + 2.0)::float8 AS quality,"
    " coalesce(sum(o.helped), 0)::bigint AS access_count, max(i.last) AS last_access"
    " FROM item i LEFT JOIN merged m ON m.key = i.key LEFT JOIN judged j ON j.key = i.key"
    " LEFT JOIN sona.item_outcome o ON o.space_id = %(space)s AND o.item_id = i.key GROUP BY 2"
)
"""Items that helped together or in a pattern; those that were merged count for what they were merged into."""
