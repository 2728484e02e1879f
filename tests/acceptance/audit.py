"""What must hold of a space whatever was killed: read in one snapshot, while others go on learning."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sona_pg import SonaEngine
from sona_pg.learning.edges import EdgeWeights, edge_updates
from sona_pg.learning.learner import Learner
from sona_pg.learning.outcome import OutcomeEvent, with_scores
from sona_pg.store.connection import Connection
from sona_pg.store.learning import LearningTransaction
from sona_pg.types import QueryTrajectory, Score

from .recorder import EVENTS_OF_A_RUN

_CONSISTENT = {
    "ledger ordinals are not dense": (
        "SELECT count(*) = count(DISTINCT ordinal) AND count(*) = coalesce(max(ordinal) + 1, 0)"
        " AND count(*) = (SELECT ordinal FROM sona.learner WHERE space_id = %(space)s)"
        " FROM sona.learning_event WHERE space_id = %(space)s"
    ),
    "the learner's events are not the ledger entries that changed weights": (
        "SELECT count(*) = (SELECT events FROM sona.learner WHERE space_id = %(space)s)"
        " FROM sona.learning_event WHERE space_id = %(space)s AND learned IN ('adapter', 'micro')"
    ),
    "cycles and ledger entries differ": (
        "SELECT NOT EXISTS (SELECT FROM sona.learning_cycle c FULL JOIN (SELECT cycle_id, count(*) AS events,"
        " count(*) FILTER (WHERE learned IN ('adapter', 'micro')) AS learned FROM sona.learning_event"
        " WHERE space_id = %(space)s GROUP BY cycle_id) e USING (cycle_id)"
        " WHERE coalesce(c.space_id, %(space)s) = %(space)s"
        " AND (coalesce(c.events, -1), coalesce(c.learned, -1)) <> (coalesce(e.events, 0), coalesce(e.learned, 0)))"
    ),
    "cycles are not one for each revision": (
        "SELECT count(*) = (SELECT revision FROM sona.learner WHERE space_id = %(space)s)"
        " AND count(*) = coalesce(max(cycle_id), 0) FROM sona.learning_cycle WHERE space_id = %(space)s"
    ),
    "revisions of a trajectory are not dense": (
        "SELECT coalesce(bool_and(n = last + 1), true) FROM (SELECT count(*) AS n, max(revision) AS last"
        " FROM sona.learning_event WHERE space_id = %(space)s GROUP BY trajectory_id) t"
    ),
    "a score was taken in by no ledger entry, or a late entry has no score": (
        "SELECT NOT EXISTS (SELECT FROM (SELECT DISTINCT trajectory_id, revision FROM sona.score"
        " WHERE space_id = %(space)s AND revision IS NOT NULL) s FULL JOIN (SELECT trajectory_id, revision"
        " FROM sona.learning_event WHERE space_id = %(space)s AND revision > 0) e USING (trajectory_id, revision)"
        " WHERE s IS NULL OR e IS NULL)"
    ),
    "a trajectory is neither learned nor waiting, or was learned without being there": (
        "SELECT NOT EXISTS (SELECT FROM (SELECT trajectory_id FROM sona.trajectory WHERE space_id = %(space)s) t"
        " FULL JOIN (SELECT trajectory_id FROM sona.learning_event WHERE space_id = %(space)s AND revision = 0) e"
        " USING (trajectory_id) WHERE t IS NULL OR (e IS NULL AND NOT EXISTS (SELECT FROM sona.pending_trajectory p"
        " WHERE p.space_id = %(space)s AND p.trajectory_id = t.trajectory_id)))"
    ),
    "remembered queries are not those with an outcome": (
        "SELECT NOT EXISTS (SELECT FROM (SELECT trajectory_id FROM sona.remembered_query WHERE space_id = %(space)s) r"
        " FULL JOIN (SELECT t.trajectory_id FROM sona.trajectory t WHERE t.space_id = %(space)s AND (t.quality IS NOT"
        " NULL OR EXISTS (SELECT FROM sona.trajectory_step p WHERE p.space_id = %(space)s"
        " AND p.trajectory_id = t.trajectory_id AND p.reward IS NOT NULL) OR EXISTS (SELECT FROM sona.score c"
        " WHERE c.space_id = %(space)s AND c.trajectory_id = t.trajectory_id AND c.revision IS NOT NULL))) t"
        " USING (trajectory_id) WHERE r IS NULL OR t IS NULL)"
    ),
}
"""What must be true in every snapshot, by what is wrong when it is not."""


class Confirmed(NamedTuple):
    """Ids of trajectories, and score ids, that are durable and learned because a flush has returned."""

    trajectories: set[int]
    scores: set[str]


@dataclass(slots=True)
class Audit:
    """What was found.

    Parameters
    ----------
    losses
        Trajectories and scores that were confirmed and are not there.
    doubles
        Ledger entries, counts and orders that say that something counted twice, or not as it should.
    """

    losses: list[str] = field(default_factory=list)
    doubles: list[str] = field(default_factory=list)


def audit(connection: Connection, space_id: int, flushed: Confirmed, sent: set[int], firsts: set[int]) -> Audit:
    """Look at one snapshot.

    Parameters
    ----------
    flushed
        What flushes have confirmed.
    sent
        Ids that an SQL statement has confirmed: learned, or waiting for a worker.
    firsts
        First ids of the runs: everything in the table belongs to one of them.
    """
    found = Audit()
    space = {"space": space_id}
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        found.doubles += inconsistencies(connection, space_id)
        there = _ids(connection, "SELECT trajectory_id FROM sona.trajectory WHERE space_id = %(space)s", space)
        learned = _ids(
            connection,
            "SELECT trajectory_id FROM sona.learning_event WHERE space_id = %(space)s AND revision = 0",
            space,
        )
        scored = {
            row[0]
            for row in connection.execute(
                "SELECT score_id FROM sona.score WHERE space_id = %(space)s AND revision IS NOT NULL", space
            )
        }
    found.losses += [f"trajectory {id} was flushed and is not learned" for id in flushed.trajectories - learned]
    found.losses += [f"score {id} was flushed and is not learned" for id in flushed.scores - scored]
    found.losses += [f"trajectory {id} was recorded by SQL and is not there" for id in sent - there]
    found.doubles += [
        f"trajectory {id} was recorded by nobody" for id in there if id - id % EVENTS_OF_A_RUN not in firsts
    ]
    return found


def inconsistencies(connection: Connection, space_id: int) -> list[str]:
    """What is wrong with the ledger by itself; in a transaction, of one snapshot."""
    space = {"space": space_id}
    return [wrong for wrong, check in _CONSISTENT.items() if connection.execute(check, space).fetchall() != [(True,)]]


def _ids(connection: Connection, statement: str, space: Mapping[str, int]) -> set[int]:
    return {row[0].int for row in connection.execute(statement, space)}


def replayed(connection: Connection, engine: SonaEngine) -> tuple[Learner, EdgeWeights]:
    """What the ledger of the engine's space gives when its events are learned again, in order, from the tables."""
    space = engine.space
    with connection.transaction():
        ledger = connection.execute(
            "SELECT trajectory_id, revision, learned, cycle_id FROM sona.learning_event WHERE space_id = %s"
            " ORDER BY ordinal",
            (space.space_id,),
        ).fetchall()
        recorded = LearningTransaction(connection, space, 10).trajectories([row[0] for row in ledger])
        scores: dict[uuid.UUID, list[tuple[int, Score]]] = defaultdict(list)
        for revision, *score in connection.execute(
            "SELECT revision, trajectory_id, value, item_id, name, score_id FROM sona.score"
            " WHERE space_id = %s AND revision IS NOT NULL ORDER BY revision, sequence",
            (space.space_id,),
        ):
            scores[score[0]].append((revision, Score(*score)))
    own = engine.instant.learner
    learner = Learner(
        space.dim, own.pool, adapter=own.adapter.config, instant=own.instant_config, space=own.space_config
    )
    edges = EdgeWeights(own.instant_config.edge_update_scale)
    taught: set[uuid.UUID] = set()
    recorded_in: dict[uuid.UUID, int] = {}
    for id, revision, became, cycle in ledger:
        # A score beside its trajectory comes after it, whatever became of that.
        has_taught = id in taught or recorded_in.setdefault(id, cycle) == cycle
        event = _event(recorded[id], revision, scores[id], has_taught)
        if learner.learn(event) != became:
            raise AssertionError(f"event {id} revision {revision} became {became!r}, and something else in the replay")
        if became in ("adapter", "micro"):
            taught.add(id)
        edges.update(edge_updates(event))
        edges.commit()
    return learner, edges


def _event(
    trajectory: QueryTrajectory, revision: int, scores: list[tuple[int, Score]], has_taught: bool
) -> OutcomeEvent:
    before = with_scores(trajectory, [score for at, score in scores if at < revision])
    if revision == 0:
        return OutcomeEvent(trajectory)
    known = before.has_outcome and has_taught
    rewards: dict[str, float] = {}
    given = [(step.item_id, step.reward) for step in trajectory.steps]
    for item, reward in [*given, *((score.item_id, score.value) for at, score in scores if at < revision)]:
        if item is not None and reward is not None:
            rewards[item] = max(reward, rewards.get(item, reward))
    return OutcomeEvent(
        with_scores(before, [score for at, score in scores if at == revision]),
        revision,
        taught=rewards if known else {},
        had_outcome=known,
    )
