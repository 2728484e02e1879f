"""What passes between a space and the one that is kept beside it: recorded queries, and outcomes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sona_pg.store.connection import Connection, transaction, translated
from sona_pg.store.ledger import LOOP
from sona_pg.store.spaces import Space
from sona_pg.types import FloatVector, Json

_FIRST = uuid.UUID(int=0)


@dataclass(frozen=True, slots=True)
class RecordedQuery:
    """A query that was recorded, for whoever embeds it again.

    Parameters
    ----------
    trajectory_id
        Its trajectory.
    query
        Its embedding (dim,) by the embedder before.
    metadata
        What the application recorded with it; None if that is JSON that Python does not read.
    user_id, session_id
        Likewise.
    recorded_at
        When it was recorded.
    """

    trajectory_id: uuid.UUID
    query: FloatVector
    metadata: Mapping[str, Json] | None
    user_id: str | None
    session_id: str | None
    recorded_at: datetime


def unembedded(
    connection: Connection, source: Space, goal: Space, after: uuid.UUID | None, limit: int, *, unlearned: bool = False
) -> list[RecordedQuery]:
    """Queries of one space that the other does not have, in the order of their ids, from after one of them on.

    Parameters
    ----------
    unlearned
        Leave out what the other has learned from, or was to learn from, and does not have any more.
    """
    with translated():
        rows = connection.execute(
            "SELECT t.trajectory_id, t.query, t.metadata::text, t.user_id, t.session_id, t.created_at"
            f" FROM sona.trajectory t WHERE {_lacking(unlearned=unlearned)} AND t.trajectory_id > %(after)s"
            " ORDER BY t.trajectory_id LIMIT %(limit)s",
            {**pair(source, goal), "after": _FIRST if after is None else after, "limit": limit},
            binary=True,
        ).fetchall()
    return [RecordedQuery(id, query, _readable(metadata), *about) for id, query, metadata, *about in rows]


def pair(source: Space, goal: Space) -> dict[str, object]:
    return {"from": source.space_id, "to": goal.space_id, "loop": LOOP}


def _lacking(*, unlearned: bool) -> str:
    """Which trajectories of the space `from` the space `to` does not have."""
    condition = (
        "t.space_id = %(from)s AND NOT EXISTS (SELECT FROM sona.trajectory n"
        " WHERE n.space_id = %(to)s AND n.trajectory_id = t.trajectory_id)"
    )
    if unlearned:
        condition += (
            " AND NOT EXISTS (SELECT FROM sona.learning_event e WHERE e.space_id = %(to)s AND e.loop = %(loop)s"
            " AND e.trajectory_id = t.trajectory_id)"
        )
    return condition


def _readable(metadata: str) -> Mapping[str, Json] | None:
    try:
        read: dict[str, Json] = json.loads(metadata)
    except (ValueError, RecursionError):
        return None  # a number of more than 4,300 digits, a list in a list a thousand times
    return read


def activated_items(connection: Connection, source: Space, ids: Sequence[uuid.UUID]) -> list[str]:
    """Items whose embeddings were recorded with these trajectories."""
    with translated():
        rows = connection.execute(
            "SELECT DISTINCT item_id FROM sona.trajectory_step WHERE space_id = %s AND trajectory_id = ANY(%s)"
            " AND item_id IS NOT NULL AND activation IS NOT NULL ORDER BY item_id",
            (source.space_id, list(ids)),
        ).fetchall()
    return [item for (item,) in rows]


def copy_queries(
    connection: Connection,
    key: Mapping[str, object],
    queries: Mapping[uuid.UUID, FloatVector],
    activations: Mapping[str, FloatVector],
) -> int:
    """Copy trajectories from the space `from` to the space `to` with other embeddings, and their steps of items."""
    before = connection.execute(
        "SELECT count(*) FROM sona.trajectory WHERE space_id = %(to)s AND trajectory_id = ANY(%(ids)s)",
        {**key, "ids": list(queries)},
    ).fetchone()
    cursor = connection.cursor()
    cursor.executemany(
        "INSERT INTO sona.trajectory (space_id, trajectory_id, created_at, query, quality, latency_us, user_id,"
        " session_id, metadata, arm, version, strategy, propensity) SELECT %(to)s, trajectory_id, created_at,"
        " %(query)s, quality, latency_us, user_id, session_id, metadata, arm, version, strategy, propensity"
        " FROM sona.trajectory WHERE space_id = %(from)s AND trajectory_id = %(id)s ON CONFLICT DO NOTHING",
        [{**key, "id": id, "query": vector} for id, vector in queries.items()],
    )
    columns = "trajectory_id, ordinal, item_id, position, reward, attention"
    target = f"INSERT INTO sona.trajectory_step (space_id, {columns}, activation) SELECT %(to)s, {columns}"
    source = (
        " FROM sona.trajectory_step s WHERE s.space_id = %(from)s AND s.trajectory_id = ANY(%(ids)s)"
        " AND s.item_id IS NOT NULL"
    )
    ids = {**key, "ids": list(queries)}
    cursor.executemany(
        f"{target}, %(vector)s{source} AND s.activation IS NOT NULL AND s.item_id = %(item)s ON CONFLICT DO NOTHING",
        [{**ids, "item": item, "vector": vector} for item, vector in activations.items()],
    )
    connection.execute(f"{target}, NULL{source} ON CONFLICT DO NOTHING", ids)
    assert before is not None
    return len(queries) - int(before[0])


def carry(
    connection: Connection,
    source: Space,
    goal: Space,
    queries: Mapping[uuid.UUID, FloatVector],
    activations: Mapping[str, FloatVector],
) -> int:
    """Record in one space what came to the other one late: trajectories, to be learned by the instant worker."""
    key = pair(source, goal)
    with transaction(connection):
        written = copy_queries(connection, key, queries, activations)
        connection.execute(
            "INSERT INTO sona.pending_trajectory (space_id, trajectory_id) SELECT %(to)s, t.trajectory_id"
            " FROM sona.trajectory t WHERE t.space_id = %(to)s AND t.trajectory_id = ANY(%(ids)s)"
            " ORDER BY t.trajectory_id",
            {**key, "ids": list(queries)},
        )
    return written


def carry_scores(connection: Connection, source: Space, goal: Space) -> int:
    """Record in one space the outcomes that came to the other one alone; how many."""
    with transaction(connection):
        row = connection.execute(
            "WITH late AS (INSERT INTO sona.score (space_id, score_id, trajectory_id, item_id, name, value, created_at)"
            " SELECT %(to)s, s.score_id, s.trajectory_id, s.item_id, s.name, s.value, s.created_at FROM sona.score s"
            " WHERE s.space_id = %(from)s AND EXISTS (SELECT FROM sona.trajectory t WHERE t.space_id = %(to)s"
            "  AND t.trajectory_id = s.trajectory_id) AND NOT EXISTS (SELECT FROM sona.score n"
            "  WHERE n.space_id = %(to)s AND n.score_id = s.score_id)"
            " ORDER BY s.sequence ON CONFLICT DO NOTHING RETURNING trajectory_id),"
            " waits AS (INSERT INTO sona.pending_trajectory (space_id, trajectory_id)"
            "  SELECT DISTINCT %(to)s, trajectory_id FROM late)"
            " SELECT count(*) FROM late",
            pair(source, goal),
        ).fetchone()
    return 0 if row is None else int(row[0])


def count_lacking(connection: Connection, source: Space, goal: Space) -> int:
    """How many trajectories of one space the other has neither recorded nor learned."""
    with translated():
        row = connection.execute(
            f"SELECT count(*) FROM sona.trajectory t WHERE {_lacking(unlearned=True)}", pair(source, goal)
        ).fetchone()
    return 0 if row is None else int(row[0])
