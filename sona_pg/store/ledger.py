"""Reading what was recorded, and the ledger of what was learned from it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sona_pg.learning.outcome import OutcomeEvent, next_revision
from sona_pg.store.connection import Connection
from sona_pg.store.spaces import Space
from sona_pg.types import EMPTY, Answer, QueryTrajectory, Score, TrajectoryStep

LOOP = "instant"

_TAUGHT = ("adapter", "micro")
"""What became of events that changed a weight."""


class LedgerEvent(NamedTuple):
    """An entry of the ledger, and the event as it was learned.

    Parameters
    ----------
    ordinal
        Place in the order in which events were learned.
    event
        None if retention has deleted the trajectory.
    learned
        What became of it.
    """

    ordinal: int
    trajectory_id: uuid.UUID
    event: OutcomeEvent | None
    learned: str


def ledger_events(
    connection: Connection, space: Space, first: int, limit: int, *, with_activations: bool = True
) -> list[LedgerEvent]:
    """Up to `limit` entries of the ledger from ordinal `first` on, in order, each as it was learned then.

    Without activations steps are known by their items alone: whoever needs no more reads a tenth.
    """
    rows = connection.execute(
        "SELECT ordinal, trajectory_id, revision, cycle_id, learned FROM sona.learning_event"
        " WHERE space_id = %s AND loop = %s AND ordinal >= %s ORDER BY ordinal LIMIT %s",
        (space.space_id, LOOP, first, limit),
    ).fetchall()
    ids = list(dict.fromkeys(row[1] for row in rows))
    recorded = trajectories(connection, space, ids, with_activations=with_activations)
    late = list(dict.fromkeys(row[1] for row in rows if row[2] > 0))
    scores = _scores_taken_in(connection, space, late)
    history: dict[uuid.UUID, dict[int, tuple[int, str]]] = {}
    for id, revision, cycle, learned in connection.execute(
        "SELECT trajectory_id, revision, cycle_id, learned FROM sona.learning_event"
        " WHERE space_id = %s AND loop = %s AND trajectory_id = ANY(%s)",
        (space.space_id, LOOP, late),
    ):
        history.setdefault(id, {})[revision] = (cycle, learned)
    events = []
    for ordinal, id, revision, cycle, learned in rows:
        trajectory = recorded.get(id)
        event = None
        if trajectory is not None and revision == 0:
            event = OutcomeEvent(trajectory)
        elif trajectory is not None:
            before = {at: entry for at, entry in history[id].items() if at < revision}
            # A score beside its trajectory comes after it, whatever became of that.
            is_beside = before.get(0, (None, ""))[0] == cycle
            event = next_revision(
                trajectory,
                revision,
                [score for at, score in scores.get(id, ()) if at < revision],
                [score for at, score in scores.get(id, ()) if at == revision],
                has_taught=is_beside or any(became in _TAUGHT for _, became in before.values()),
                steps_have_taught=before.get(0, (0, ""))[1] in _TAUGHT,
            )
        events.append(LedgerEvent(ordinal, id, event, learned))
    return events


def _scores_taken_in(
    connection: Connection, space: Space, ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, list[tuple[int, Score]]]:
    """Scores of trajectories with the revision that took them in, in its order."""
    scores: dict[uuid.UUID, list[tuple[int, Score]]] = {}
    for revision, *score in connection.execute(
        "SELECT revision, trajectory_id, value, item_id, name, score_id FROM sona.score"
        " WHERE space_id = %s AND trajectory_id = ANY(%s) AND revision IS NOT NULL ORDER BY revision, sequence",
        (space.space_id, list(ids)),
    ):
        scores.setdefault(score[0], []).append((revision, Score(*score)))
    return scores


def trajectories(
    connection: Connection, space: Space, ids: Sequence[uuid.UUID], *, with_activations: bool = True
) -> dict[uuid.UUID, QueryTrajectory]:
    """Trajectories as they were recorded, of those that are there."""
    if not ids:
        return {}
    steps: dict[uuid.UUID, list[TrajectoryStep]] = {}
    for trajectory_id, activation, attention, reward, item_id, position in connection.execute(
        "SELECT trajectory_id, CASE WHEN %s THEN activation END, attention, reward, item_id, position"
        " FROM sona.trajectory_step WHERE space_id = %s AND trajectory_id = ANY(%s) ORDER BY trajectory_id, ordinal",
        (with_activations, space.space_id, list(ids)),
        binary=True,
    ):
        step = TrajectoryStep(
            EMPTY if activation is None else activation,
            EMPTY if attention is None else np.array(attention, dtype=np.float32),
            reward,
            0.0,
            item_id,
            position,
        )
        steps.setdefault(trajectory_id, []).append(step)
    rows = connection.execute(
        "SELECT trajectory_id, query, quality, latency_us, user_id, session_id, metadata, arm, version, strategy,"
        " propensity FROM sona.trajectory WHERE space_id = %s AND trajectory_id = ANY(%s)",
        (space.space_id, list(ids)),
        binary=True,
    ).fetchall()
    return {
        trajectory_id: QueryTrajectory(
            id=trajectory_id,
            query_embedding=query,
            steps=tuple(steps.get(trajectory_id, ())),
            final_quality=quality,
            latency_us=latency_us,
            user_id=user_id,
            session_id=session_id,
            metadata=metadata,
            answer=Answer(*answer),
        )
        for trajectory_id, query, quality, latency_us, user_id, session_id, metadata, *answer in rows
    }
