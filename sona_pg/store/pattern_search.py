"""Search among the patterns of a space, and how often they were found."""

from __future__ import annotations

from collections.abc import Mapping

from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.recommendation import Best, NearPattern
from sona_pg.store.connection import Connection, bounded
from sona_pg.store.patterns import PATTERN_COLUMNS, pattern_of
from sona_pg.store.reader import Reader
from sona_pg.store.spaces import Space
from sona_pg.types import FloatVector


async def find_patterns(reader: Reader, space: Space, query: FloatVector, k: int) -> list[tuple[LearnedPattern, float]]:
    """The k patterns nearest to a query (dim,) by cosine, nearest first, with the cosine.

    Raises
    ------
    DatabaseError
        If the database cannot be asked.
    """
    rows = await reader.rows(
        f"SELECT n.similarity, {PATTERN_COLUMNS} FROM sona.find_patterns(%s, %s, %s) n"
        " JOIN sona.pattern p ON p.space_id = %s AND p.pattern_id = n.pattern_id"
        " LEFT JOIN sona.pattern_access a ON a.space_id = p.space_id AND a.pattern_id = p.pattern_id"
        " ORDER BY n.similarity DESC, n.pattern_id",
        (space.name, query, k, space.space_id),
        binary=True,
    )
    return [(pattern_of(row[1:]), row[0]) for row in rows]


async def near_patterns(reader: Reader, space: Space, query: FloatVector, k: int) -> tuple[list[NearPattern], float]:
    """The k patterns nearest to a query (dim,) with what they recommend, and the width to weigh their cosines by.

    No pattern is near before a cycle has said by what it recommends.

    Raises
    ------
    DatabaseError
        If the database cannot be asked.
    """
    rows = await reader.rows(
        "SELECT n.pattern_id, n.similarity, n.avg_quality, n.confidence,"
        " v.parameter, v.best_value, v.best_confidence, v.best_value IS NULL,"
        " (p.settings ->> 'similarity_width')::float8 FROM sona.find_patterns(%(name)s, %(query)s, %(k)s) n"
        " JOIN sona.pattern_state p ON p.space_id = %(space)s AND p.settings IS NOT NULL"
        " LEFT JOIN sona.verdict v ON v.space_id = p.space_id AND v.pattern_id = n.pattern_id",
        {"name": space.name, "space": space.space_id, "query": query, "k": k},
    )
    near: dict[int, NearPattern] = {}
    best: dict[int, dict[str, Best | None]] = {}
    for id, cosine, quality, sure, parameter, value, confidence, has_none, _ in rows:
        near.setdefault(id, NearPattern(id, cosine, best.setdefault(id, {}), quality, sure))
        if parameter is not None:
            best[id][parameter] = None if has_none else (value, confidence)
    return list(near.values()), rows[0][-1] if rows else 1.0


def count_accesses(connection: Connection, space: Space, counts: Mapping[int, int]) -> None:
    """Add how often patterns were found, by id; those that are gone are left out.

    Raises
    ------
    DatabaseBusy
        If a cycle merges some of them and takes too long; nothing is counted.
    PermissionDenied
        If this role may only read the space.
    """
    with bounded(connection):
        connection.execute(
            "SELECT sona._count_accesses(%s, %s::bigint[], %s::bigint[])",
            (space.space_id, list(counts), list(counts.values())),
        )
