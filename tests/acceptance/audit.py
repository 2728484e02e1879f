"""What must hold of a space whatever was killed: read in one snapshot, while others go on learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sona_pg import SonaEngine
from sona_pg.learning.edges import EdgeWeights, edge_updates
from sona_pg.learning.learner import Learner
from sona_pg.store.connection import Connection
from sona_pg.store.ledger import ledger_events

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
    # A score that the strategist has not come to yet is an outcome that is still to be remembered.
    "remembered queries are not those with an outcome": (
        "SELECT NOT EXISTS (SELECT FROM (SELECT trajectory_id FROM sona.remembered_query WHERE space_id = %(space)s) r"
        " FULL JOIN (SELECT DISTINCT t.trajectory_id FROM sona.trajectory t JOIN sona.learning_event e"
        " USING (space_id, trajectory_id) WHERE t.space_id = %(space)s"
        " AND e.ordinal < (SELECT g.ordinal FROM sona.strategist g WHERE g.space_id = %(space)s)"
        " AND (t.quality IS NOT NULL OR EXISTS (SELECT FROM sona.trajectory_step p WHERE p.space_id = %(space)s"
        " AND p.trajectory_id = t.trajectory_id AND p.reward IS NOT NULL) OR EXISTS (SELECT FROM sona.score c"
        " WHERE c.space_id = %(space)s AND c.trajectory_id = t.trajectory_id AND c.revision = e.revision))) t"
        " USING (trajectory_id) WHERE r IS NULL OR t IS NULL)"
    ),
    "the strategist is ahead of the ledger": (
        "SELECT g.ordinal <= l.ordinal FROM sona.strategist g JOIN sona.learner l USING (space_id)"
        " WHERE g.space_id = %(space)s"
    ),
    "a query was remembered by no entry of its own that the strategist took in": (
        "SELECT count(*) = count(DISTINCT r.ordinal) AND coalesce(bool_and(r.ordinal < g.ordinal AND EXISTS (SELECT"
        " FROM sona.learning_event e WHERE e.space_id = %(space)s AND e.ordinal = r.ordinal"
        " AND e.trajectory_id = r.trajectory_id)), true) FROM sona.strategist g LEFT JOIN sona.remembered_query r"
        " USING (space_id) WHERE g.space_id = %(space)s"
    ),
    "items have not helped as often as it is remembered": (
        "SELECT NOT EXISTS (SELECT FROM (SELECT item_id, helped FROM sona.item_outcome WHERE space_id = %(space)s) o"
        " FULL JOIN (SELECT h.item_id, count(*) AS times FROM sona.remembered_query r, unnest(r.helped) h (item_id)"
        " WHERE r.space_id = %(space)s GROUP BY 1) r USING (item_id)"
        " WHERE coalesce(o.helped, 0) <> coalesce(r.times, 0))"
    ),
}
"""What must be true in every snapshot, by what is wrong when it is not."""


MANY = 1 << 31
"""More entries than a ledger of these tests has."""


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
    with connection.transaction():
        ledger = ledger_events(connection, engine.space, 0, MANY)
    own = engine.instant.learner
    learner = Learner(
        engine.space.dim, own.pool, adapter=own.adapter.config, instant=own.instant_config, space=own.space_config
    )
    edges = EdgeWeights(own.instant_config.edge_update_scale)
    for entry in ledger:
        if entry.event is None:
            raise AssertionError(f"trajectory {entry.trajectory_id} is in the ledger, and not there")
        if learner.learn(entry.event) != entry.learned:
            raise AssertionError(
                f"event {entry.trajectory_id} revision {entry.event.revision} became {entry.learned!r},"
                " and something else in the replay"
            )
        edges.update(edge_updates(entry.event))
        edges.commit()
    return learner, edges
