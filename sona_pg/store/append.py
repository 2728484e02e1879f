"""Appending what was recorded and what was learned from it: by COPY, or by INSERT where a role may not copy."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from psycopg import sql
from psycopg.types.json import Jsonb

from sona_pg.store.connection import Connection
from sona_pg.store.spaces import Space
from sona_pg.types import QueryTrajectory, TrajectoryStep

_TRAJECTORY = {
    "space_id": "int8",
    "trajectory_id": "uuid",
    "query": "vector",
    "quality": "float4",
    "latency_us": "int8",
    "user_id": "text",
    "session_id": "text",
    "metadata": "jsonb",
    "arm": "text",
    "version": "int8",
    "strategy": "text",
    "propensity": "float4",
}
_STEP = {
    "space_id": "int8",
    "trajectory_id": "uuid",
    "ordinal": "int4",
    "item_id": "text",
    "position": "int4",
    "reward": "float4",
    "attention": "float4[]",
    "activation": "vector",
}
_LEDGER = {
    "space_id": "int8",
    "loop": "text",
    "trajectory_id": "uuid",
    "revision": "int4",
    "cycle_id": "int8",
    "ordinal": "int8",
    "learned": "text",
}


class Appender:
    """Appends rows to tables, in a transaction that the caller began.

    Parameters
    ----------
    connection
        Its connection.
    space
        Whose rows they are.
    may_copy
        Whether the role may COPY: row-level security keeps it from roles that it filters rows for.
    """

    def __init__(self, connection: Connection, space: Space, *, may_copy: bool) -> None:
        self._connection, self._space_id, self._may_copy = connection, space.space_id, may_copy

    def trajectories(self, trajectories: Sequence[QueryTrajectory]) -> None:
        """Append trajectories and their steps."""
        if trajectories:
            self._append("trajectory", _TRAJECTORY, (_trajectory_row(self._space_id, t) for t in trajectories))
            steps = ((t.id, ordinal, step) for t in trajectories for ordinal, step in enumerate(t.steps))
            self._append("trajectory_step", _STEP, (_step_row(self._space_id, *step) for step in steps))

    def ledger(self, rows: Iterable[tuple[uuid.UUID, int, int, int, str]], loop: str) -> None:
        """Append entries of a loop to the ledger: trajectory, revision, cycle, ordinal, what became of it."""
        self._append("learning_event", _LEDGER, ((self._space_id, loop, *row) for row in rows))

    def _append(self, table: str, columns: Mapping[str, str], rows: Iterable[tuple[object, ...]]) -> None:
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        target = sql.SQL("{} ({})").format(sql.Identifier("sona", table), names)
        cursor = self._connection.cursor()
        if self._may_copy:
            with cursor.copy(sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(target)) as copy:
                copy.set_types(list(columns.values()))
                for row in rows:
                    copy.write_row(row)
        else:
            values = sql.SQL(", ").join(sql.Placeholder() for _ in columns)
            floats = [place for place, kind in enumerate(columns.values()) if kind == "float4[]"]
            cursor.executemany(
                sql.SQL("INSERT INTO {} VALUES ({})").format(target, values),
                # A statement takes arrays as vectors; what is no vector goes as a list.
                (_with_lists(row, floats) for row in rows),
            )


def _trajectory_row(space_id: int, t: QueryTrajectory) -> tuple[object, ...]:
    a = t.answer
    given = (space_id, t.id, t.query_embedding, t.final_quality, int(t.latency_us), t.user_id, t.session_id)
    return given + (Jsonb(t.metadata), a.arm, int(a.version), a.strategy, a.propensity)


def _step_row(space_id: int, id: uuid.UUID, ordinal: int, step: TrajectoryStep) -> tuple[object, ...]:
    position = None if step.position is None else int(step.position)
    attention = step.attention_weights if step.attention_weights.size else None
    activation = step.activations if step.activations.size else None
    return (space_id, id, ordinal, step.item_id, position, step.reward, attention, activation)


def _with_lists(row: tuple[object, ...], places: Sequence[int]) -> list[object]:
    values = list(row)
    for place in places:
        value = values[place]
        if isinstance(value, np.ndarray):
            values[place] = value.tolist()
    return values
