"""The learning transaction: trajectories, outcomes, learned state, edges and ledger, together or not at all."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from psycopg import sql

from sona_pg.config import StoreConfig
from sona_pg.errors import UnknownVersion
from sona_pg.kernels import LowRank
from sona_pg.learning.edges import Edge
from sona_pg.learning.forgetting import digest_of, is_before
from sona_pg.learning.outcome import OutcomeEvent, next_revision
from sona_pg.steps import reached
from sona_pg.store.append import Appender
from sona_pg.store.connection import Connection, bound_locks, require_schema, transaction, translated
from sona_pg.store.ledger import LOOP, trajectories
from sona_pg.store.served_rows import write_served
from sona_pg.store.spaces import Space, space_gone
from sona_pg.store.versions import publish, read_version
from sona_pg.types import QueryTrajectory, Score


@dataclass(frozen=True, slots=True)
class Head:
    """Where the learner of a space stands.

    Parameters
    ----------
    epoch, revision
        Grow with every deploy, and with every flush.
    version
        Last published version.
    events, ordinal
        Events that changed a weight, and ledger entries, so far.
    items_sampled_at
        When the sample of the items was taken; None without items.
    unpublished_seconds
        How long ago the last version was published or, before the first, the space was made.
    has_moved
        Whether a space of another embedder has taken its place, or is to take another's.
    """

    epoch: int
    revision: int
    version: int
    events: int
    ordinal: int
    items_sampled_at: datetime | None
    unpublished_seconds: float
    has_moved: bool

    @property
    def base(self) -> tuple[int, int, datetime | None]:
        """What a local copy of the state was taken from."""
        return self.epoch, self.revision, self.items_sampled_at

    @property
    def key(self) -> tuple[tuple[int, int, datetime | None], bool]:
        """What a local copy depends on."""
        return self.base, self.has_moved


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One event and what became of it."""

    event: OutcomeEvent
    learned: str


_HEAD = (
    "SELECT l.epoch, l.revision, l.version, l.events, l.ordinal, i.sampled_at,"
    " extract(epoch FROM now() - coalesce(v.created_at, s.created_at))::float8,"
    " s.standby_of IS NOT NULL"
    " FROM sona.learner l JOIN sona.space s USING (space_id) LEFT JOIN sona.item_source i USING (space_id)"
    " LEFT JOIN sona.adapter_version v USING (space_id, version) WHERE l.space_id = %s"
)


def read_head(connection: Connection, space: Space) -> Head:
    """Where the learner stands, without a lock."""
    with translated():
        row = connection.execute(_HEAD, (space.space_id,)).fetchone()
    if row is None:
        raise space_gone(space.name)
    return Head(*row)


def read_state(connection: Connection, space: Space) -> bytes | None:
    """The learner's state, or that of the version that was deployed since; None before anything was learned."""
    state, restored = _held_state(connection, space)
    if restored is not None:
        try:
            return read_version(connection, space, restored)
        except UnknownVersion:
            # Something else was deployed, or somebody forgotten, and the version deleted, since it was read which.
            state, restored = _held_state(connection, space)
            if restored is not None:
                return read_version(connection, space, restored)
    return state


def _held_state(connection: Connection, space: Space) -> tuple[bytes | None, int | None]:
    """The state that the learner's row holds, and which version takes its place."""
    with translated():
        row = connection.execute(
            "SELECT state, restored FROM sona.learner WHERE space_id = %s", (space.space_id,)
        ).fetchone()
    state, restored = (None, None) if row is None else row
    return None if state is None else bytes(state), restored


def drop_oldest_pending(connection: Connection, space: Space) -> uuid.UUID | None:
    """Take the trajectory that waits longest out of those that SQL clients recorded or scored; which it was."""
    with translated():
        row = connection.execute(
            "DELETE FROM sona.pending_trajectory WHERE space_id = %(space)s AND pending_id ="
            " (SELECT pending_id FROM sona.pending_trajectory WHERE space_id = %(space)s ORDER BY pending_id LIMIT 1)"
            " RETURNING trajectory_id",
            {"space": space.space_id},
        ).fetchone()
    return None if row is None else row[0]


class LearningTransaction:
    """One learning transaction, under the row lock of the space's learner."""

    def __init__(self, connection: Connection, space: Space) -> None:
        self._connection = connection
        self._space = space
        bound_locks(connection)
        row = connection.execute("SELECT row_security_active('sona.trajectory')").fetchone()
        self._appender = Appender(connection, space, may_copy=row is not None and not row[0])
        require_schema(connection)
        row = connection.execute(_HEAD + " FOR UPDATE OF l", (space.space_id,)).fetchone()
        if row is None:
            raise space_gone(space.name)
        self.head = Head(*row)
        self._has_forgotten = False

    def state(self) -> bytes | None:
        """The learner's state; None before anything was learned."""
        return read_state(self._connection, self._space)

    def recorded(self, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Which of these trajectories are in the database already, or were and are in the ledger."""
        # One that retention has deleted must not come back: a spool may be replayed after it. By the way it is asked
        # whether anybody was forgotten here, which is known under the lock alone; then, there is no id.
        rows = self._connection.execute(
            "SELECT trajectory_id FROM sona.trajectory WHERE space_id = %(space)s AND trajectory_id = ANY(%(ids)s)"
            " UNION SELECT trajectory_id FROM sona.learning_event"
            " WHERE space_id = %(space)s AND loop = %(loop)s AND trajectory_id = ANY(%(ids)s)"
            " UNION SELECT NULL WHERE EXISTS (SELECT FROM sona.forgotten_user WHERE space_id = %(space)s)",
            {"space": self._space.space_id, "loop": LOOP, "ids": list(ids)},
        ).fetchall()
        self._has_forgotten = (None,) in rows
        return {row[0] for row in rows if row[0] is not None}

    def forgotten(self, trajectories: Sequence[QueryTrajectory], received_at: datetime | None) -> set[uuid.UUID]:
        """Which of these trajectories must not be kept: who asked was forgotten after they had been answered.

        Asks the database only where `recorded` has seen that anybody was ever forgotten in the space.

        Parameters
        ----------
        received_at
            When the first of them was received at the earliest, for those whose ids do not say; None is now.
        """
        if not self._has_forgotten:
            return set()
        key = self._space.key
        digests = {t.id: digest_of(key, t.user_id) for t in trajectories if t.user_id is not None}
        since: dict[bytes, datetime] = dict(
            self._connection.execute(
                "SELECT digest, forgotten_at FROM sona.forgotten_user WHERE space_id = %s AND digest = ANY(%s)",
                (self._space.space_id, list(set(digests.values()))),
            ).fetchall()
        )
        return {id for id, digest in digests.items() if digest in since and is_before(id, since[digest], received_at)}

    def forgotten_claims(self, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """The same of trajectories that SQL clients recorded: they are in the database, and not learned yet."""
        if not ids or not self._has_forgotten:
            return set()
        rows = self._connection.execute(
            "SELECT t.trajectory_id, t.created_at, f.forgotten_at FROM sona.trajectory t JOIN sona.forgotten_user f"
            " ON f.space_id = t.space_id AND f.digest = sha256(%s || convert_to(t.user_id, 'UTF8'))"
            " WHERE t.space_id = %s AND t.trajectory_id = ANY(%s) AND NOT EXISTS (SELECT FROM sona.learning_event e"
            " WHERE e.space_id = t.space_id AND e.loop = %s AND e.trajectory_id = t.trajectory_id)",
            (self._space.key.bytes, self._space.space_id, list(ids), LOOP),
        ).fetchall()
        # What was recorded before was answered before, whatever the client's clock says.
        return {id for id, at, forgotten_at in rows if at < forgotten_at or is_before(id, forgotten_at, at)}

    def delete(self, ids: Collection[uuid.UUID]) -> None:
        """Delete trajectories that were not learned, and scores that wait for them."""
        if ids:
            delete_trajectories(self._connection, self._space, ids)

    def write_trajectories(self, trajectories: Sequence[QueryTrajectory]) -> None:
        """Append trajectories and their steps."""
        self._appender.trajectories(trajectories)

    def write_scores(self, scores: Sequence[Score]) -> int:
        """Append late outcomes; gives how many were new. A score id that is known already changes nothing."""
        if not scores:
            return 0
        cursor = self._connection.cursor()
        cursor.executemany(
            "INSERT INTO sona.score (space_id, score_id, trajectory_id, item_id, name, value)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [(self._space.space_id, s.score_id, s.trajectory_id, s.item_id, s.name, s.value) for s in scores],
        )
        return cursor.rowcount

    def claim_pending(self, limit: int) -> list[uuid.UUID]:
        """Take up to `limit` trajectories that SQL clients recorded or scored; they are gone once this commits."""
        # An array, not a join: the planner would read a long backlog as a whole to hash it.
        rows = self._connection.execute(
            "DELETE FROM sona.pending_trajectory WHERE space_id = %(space)s AND pending_id = ANY(ARRAY("
            " SELECT pending_id FROM sona.pending_trajectory WHERE space_id = %(space)s"
            " ORDER BY pending_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED)) RETURNING pending_id, trajectory_id",
            {"space": self._space.space_id, "limit": limit},
        ).fetchall()
        return list(dict.fromkeys(trajectory_id for _, trajectory_id in sorted(rows)))

    def unlearned_events(
        self, ids: Sequence[uuid.UUID], recorded_now: Mapping[uuid.UUID, QueryTrajectory]
    ) -> list[OutcomeEvent]:
        """What is new about trajectories: themselves, if no ledger entry has them yet, and scores not yet taken in.

        Scores are marked with the revision that takes them in. A score without its trajectory waits for it.

        Parameters
        ----------
        ids
            Trajectories that something happened to, in the order in which it did.
        recorded_now
            Those that this transaction has written and learned as they were recorded.
        """
        if not ids:
            return []
        connection, space_id = self._connection, self._space.space_id
        earlier = [i for i in ids if i not in recorded_now]
        last: dict[uuid.UUID, int] = {}
        taught: set[uuid.UUID] = set()
        taught_by_steps: set[uuid.UUID] = set()
        for trajectory_id, revision, has_taught, steps_have in connection.execute(
            "SELECT trajectory_id, max(revision), bool_or(learned IN ('adapter', 'micro')),"
            " bool_or(learned IN ('adapter', 'micro') AND revision = 0) FROM sona.learning_event"
            " WHERE space_id = %s AND loop = %s AND trajectory_id = ANY(%s) GROUP BY trajectory_id",
            (space_id, LOOP, earlier),
        ):
            last[trajectory_id] = revision
            if has_taught:
                taught.add(trajectory_id)
            if steps_have:
                taught_by_steps.add(trajectory_id)
        scores: dict[uuid.UUID, list[tuple[int | None, Score]]] = {}
        for trajectory_id, score_id, item_id, name, value, revision in connection.execute(
            "SELECT trajectory_id, score_id, item_id, name, value, revision FROM sona.score"
            " WHERE space_id = %s AND trajectory_id = ANY(%s) ORDER BY revision NULLS LAST, sequence",
            (space_id, list(ids)),
        ):
            entry = (revision, Score(trajectory_id, value, item_id, name, score_id))
            scores.setdefault(trajectory_id, []).append(entry)
        known = {**trajectories(connection, self._space, earlier), **recorded_now}
        events: list[OutcomeEvent] = []
        taken: list[tuple[int, str]] = []
        for trajectory_id in ids:
            trajectory = known.get(trajectory_id)
            if trajectory is None:
                continue
            revision = 0 if trajectory_id in recorded_now else last.get(trajectory_id)
            is_new = revision is None
            if revision is None:
                events.append(OutcomeEvent(trajectory))
                revision = 0
            of_it = scores.get(trajectory_id, [])
            fresh = [score for at, score in of_it if at is None]
            if not fresh:
                continue
            taken.extend((revision + 1, score.score_id) for score in fresh)
            events.append(
                next_revision(
                    trajectory,
                    revision + 1,
                    [score for at, score in of_it if at is not None],
                    fresh,
                    has_taught=is_new or trajectory_id in taught or trajectory_id in recorded_now,
                    steps_have_taught=trajectory_id in taught_by_steps,
                )
            )
        if taken:
            connection.execute(
                "UPDATE sona.score s SET revision = k.revision FROM unnest(%s::int[], %s::text[]) AS k (revision, id)"
                " WHERE s.space_id = %s AND s.score_id = k.id",
                ([at for at, _ in taken], [id for _, id in taken], space_id),
            )
        return events

    def connected_items(self, items: Sequence[str]) -> set[str]:
        """Which of these items have co-access edges."""
        if not items:
            return set()
        rows = self._connection.execute(
            "SELECT i FROM unnest(%(items)s::text[]) AS i WHERE EXISTS (SELECT FROM sona.memory_edge e"
            " WHERE e.space_id = %(space)s AND e.kind = 'co_access' AND e.source = i)"
            " OR EXISTS (SELECT FROM sona.memory_edge e"
            " WHERE e.space_id = %(space)s AND e.kind = 'co_access' AND e.target = i)",
            {"items": list(items), "space": self._space.space_id},
        ).fetchall()
        return {row[0] for row in rows}

    def edge_weights(self, edges: Sequence[Edge]) -> dict[Edge, float]:
        """Weights of these co-access edges, of those that there are."""
        if not edges:
            return {}
        rows = self._connection.execute(
            "SELECT e.source, e.target, e.weight FROM unnest(%s::text[], %s::text[]) AS k (source, target)"
            " JOIN sona.memory_edge e ON e.space_id = %s AND e.kind = 'co_access'"
            " AND e.source = k.source AND e.target = k.target",
            ([a for a, _ in edges], [b for _, b in edges], self._space.space_id),
        ).fetchall()
        return {(a, b): weight for a, b, weight in rows}

    def write_edges(self, weights: Mapping[Edge, float]) -> None:
        """Set weights of co-access edges."""
        write_edge_weights(self._connection, self._space.space_id, weights)

    def publish(self, cause: str, state: bytes, served: LowRank) -> int:
        """Publish the state once more, with the evidence that there is by now; the version's number."""
        return publish(self._connection, self._space, cause, state, served)

    def write_learner(
        self,
        state: bytes,
        served: dict[str, LowRank],
        entries: Sequence[LedgerEntry],
        learned: int,
        *,
        started_at: datetime,
        replayed: bool,
        worker: str,
        config: StoreConfig,
    ) -> Head:
        """Write the state, the served map and the ledger; publish a version when enough was learned since the last."""
        connection, space_id, head = self._connection, self._space.space_id, self.head
        revision, events = head.revision + 1, head.events + learned
        after = replace(head, revision=revision, events=events, ordinal=head.ordinal + len(entries))
        connection.execute(
            "UPDATE sona.learner SET revision = %s, events = %s, ordinal = %s, state = %s, restored = NULL,"
            " updated_at = now() WHERE space_id = %s",
            (revision, events, after.ordinal, state, space_id),
        )
        if learned:
            write_served(connection, space_id, served)
        is_due = events // config.publish_every_events > head.events // config.publish_every_events
        if learned and (is_due or head.unpublished_seconds >= config.publish_every_seconds):
            version = publish(connection, self._space, f"{events} events learned", state, served["adapter"])
            after = replace(after, version=version)
        reached("flush.after_learner")
        connection.execute(
            "INSERT INTO sona.learning_cycle"
            " (space_id, cycle_id, loop, epoch, version, events, learned, replayed, worker, started_at, finished_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp())",
            (space_id, revision, LOOP, head.epoch, after.version, len(entries), learned, replayed, worker, started_at),
        )
        ledger = ((*e.event.key, revision, head.ordinal + place, e.learned) for place, e in enumerate(entries))
        self._appender.ledger(ledger, LOOP)
        reached("flush.after_ledger")
        return after


def delete_trajectories(connection: Connection, space: Space, ids: Collection[uuid.UUID]) -> dict[str, int]:
    """Delete trajectories and what was recorded with them, in the caller's transaction; how many rows, by table."""
    gone = {}
    for table in ("trajectory", "trajectory_step", "score", "pending_trajectory"):
        statement = sql.SQL("DELETE FROM {} WHERE space_id = %s AND trajectory_id = ANY(%s)")
        cursor = connection.execute(statement.format(sql.Identifier("sona", table)), (space.space_id, list(ids)))
        gone[table] = cursor.rowcount
    return gone


@contextlib.contextmanager
def learning_transaction(connection: Connection, space: Space) -> Iterator[LearningTransaction]:
    """Begin a learning transaction; commits at the end, rolls back on any error."""
    with transaction(connection):
        yield LearningTransaction(connection, space)


def write_edge_weights(connection: Connection, space_id: int, weights: Mapping[Edge, float]) -> None:
    """Set weights of co-access edges."""
    if not weights:
        return
    connection.execute(
        "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight)"
        " SELECT %s, 'co_access', k.source, k.target, k.weight"
        " FROM unnest(%s::text[], %s::text[], %s::float8[]) AS k (source, target, weight)"
        # In order: who changes edges in another one might wait for this, and this for them.
        " ORDER BY k.source, k.target ON CONFLICT (space_id, kind, source, target, source_kind, target_kind)"
        " DO UPDATE SET weight = excluded.weight, updated_at = now()",
        (space_id, [a for a, _ in weights], [b for _, b in weights], list(weights.values())),
    )
