"""Reading what was recorded, and the ledger of what was learned from it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from sona_pg.learning.outcome import OutcomeEvent, next_revision, with_scores
from sona_pg.store.connection import Connection, translated
from sona_pg.store.spaces import Space
from sona_pg.types import EMPTY, Answer, QueryTrajectory, Score, TrajectoryStep

LOOP = "instant"

_NOTHING_ELSE: Mapping[tuple[uuid.UUID, int], str] = MappingProxyType({})

TAUGHT = ("adapter", "micro")
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


class LedgerBatch:
    """Entries of the ledger that follow each other, with what they were learned from.

    Parameters
    ----------
    rows
        Ordinal, trajectory, revision, cycle and what became of it, in order.
    recorded
        The trajectories, of those that are there.
    scores
        Late outcomes with the revision that took them in, in its order.
    history
        Cycle and what became of it, by trajectory and revision, of trajectories with late outcomes.
    """

    def __init__(
        self,
        rows: Sequence[tuple[int, uuid.UUID, int, int, str]],
        recorded: Mapping[uuid.UUID, QueryTrajectory],
        scores: Mapping[uuid.UUID, list[tuple[int, Score]]],
        history: Mapping[uuid.UUID, dict[int, tuple[int, str]]],
    ) -> None:
        self._rows, self._recorded, self._scores, self._history = rows, recorded, scores, history

    def __len__(self) -> int:
        return len(self._rows)

    def items(self) -> set[str]:
        """Items that are known by their ids alone, in any of the events."""
        shown = (step for trajectory in self._recorded.values() for step in trajectory.steps)
        found = {step.item_id for step in shown if step.item_id is not None and not step.activations.size}
        judged = (score.item_id for scores in self._scores.values() for _, score in scores)
        return found.union(item for item in judged if item is not None)

    def events(self, became: Mapping[tuple[uuid.UUID, int], str] = _NOTHING_ELSE) -> Iterator[LedgerEvent]:
        """The entries in order, each as it was learned then.

        Parameters
        ----------
        became
            For a replay: what became of entries, by trajectory and revision, where it is not what the ledger says.
            Later entries follow from it; it is looked up when they are asked for.
        """
        for ordinal, id, revision, cycle, learned in self._rows:
            trajectory = self._recorded.get(id)
            event = None
            if trajectory is not None and revision == 0:
                event = OutcomeEvent(trajectory)
            elif trajectory is not None:
                before = {
                    at: (within, became.get((id, at), then))
                    for at, (within, then) in self._history[id].items()
                    if at < revision
                }
                # A score beside its trajectory comes after it, whatever became of that.
                is_beside = before.get(0, (None, ""))[0] == cycle
                scores = self._scores.get(id, ())
                event = next_revision(
                    trajectory,
                    revision,
                    [score for at, score in scores if at < revision],
                    [score for at, score in scores if at == revision],
                    has_taught=is_beside or any(then in TAUGHT for _, then in before.values()),
                    steps_have_taught=before.get(0, (0, ""))[1] in TAUGHT,
                )
            yield LedgerEvent(ordinal, id, event, learned)


def ledger_events(
    connection: Connection, space: Space, first: int, limit: int, *, with_activations: bool = True
) -> list[LedgerEvent]:
    """Up to `limit` entries of the ledger from ordinal `first` on, in order, each as it was learned then.

    Without activations steps are known by their items alone: whoever needs no more reads a tenth.
    """
    return list(read_ledger(connection, space, first, limit, with_activations=with_activations).events())


def read_ledger(
    connection: Connection, space: Space, first: int, limit: int, *, with_activations: bool = True
) -> LedgerBatch:
    """`ledger_events` for whoever learns them once more."""
    with translated():
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
    return LedgerBatch(rows, recorded, scores, history)


def what_became(connection: Connection, space: Space, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, str]:
    """What became of trajectories when they were learned last, by id; those that were not are left out.

    Raises
    ------
    DatabaseError
        If the database cannot be asked.
    """
    with translated():
        rows = connection.execute(
            "SELECT DISTINCT ON (trajectory_id) trajectory_id, learned FROM sona.learning_event"
            " WHERE space_id = %s AND loop = %s AND trajectory_id = ANY(%s) ORDER BY trajectory_id, revision DESC",
            (space.space_id, LOOP, list(ids)),
        ).fetchall()
    return dict(rows)


def judged_events(
    connection: Connection, space: Space, ids: Sequence[uuid.UUID], *, with_activations: bool = True
) -> list[OutcomeEvent]:
    """Trajectories with all the outcomes that the ledger has taken in, in the order of `ids`; those that are there."""
    with translated():
        recorded = trajectories(connection, space, ids, with_activations=with_activations)
        scores = _scores_taken_in(connection, space, list(recorded))
    return [
        OutcomeEvent(with_scores(recorded[id], [score for _, score in scores.get(id, ())]))
        for id in ids
        if id in recorded
    ]


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
    """Trajectories as they were recorded, of those that are there; without metadata.

    Nothing is learned from that, and what SQL has recorded there may be JSON that Python does not read: a number of
    more than 4,300 digits, a list in a list a thousand times.
    """
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
        "SELECT trajectory_id, query, quality, latency_us, user_id, session_id, arm, version, strategy, propensity"
        " FROM sona.trajectory WHERE space_id = %s AND trajectory_id = ANY(%s)",
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
            answer=Answer(*answer),
        )
        for trajectory_id, query, quality, latency_us, user_id, session_id, *answer in rows
    }
