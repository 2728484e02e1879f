"""The transactions that fill the successor of a space that changes its embedder, and the one that switches."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping

from sona_pg.errors import LockLost
from sona_pg.kernels import LowRank
from sona_pg.store.connection import Connection, writing
from sona_pg.store.embedder_change import copy_grants, exchange
from sona_pg.store.forget import ForgetTransaction
from sona_pg.store.learning import Head, read_head
from sona_pg.store.ledger import TAUGHT
from sona_pg.store.recorded_queries import copy_queries, pair
from sona_pg.store.served_rows import write_served
from sona_pg.store.spaces import Space, lock_space
from sona_pg.store.versions import publish
from sona_pg.types import FloatVector


class SuccessorTransaction:
    """Fills the successor of a space, under the locks of the successor's learner and strategist."""

    def __init__(self, connection: Connection, space: Space, successor: Space) -> None:
        lock_space(connection, successor)
        self._connection, self._space, self._successor = connection, space, successor
        self._key = pair(space, successor)
        row = connection.execute(
            "SELECT FROM sona.space WHERE space_id = %(to)s AND standby_of = %(from)s AND replaced_at IS NULL",
            self._key,
        ).fetchone()
        if row is None:
            raise LockLost(f"another process has changed the embedder of space {space.name!r} meanwhile: look again")

    def head(self) -> Head:
        """Where the successor's learner stands."""
        return read_head(self._connection, self._successor)

    def write_queries(
        self, queries: Mapping[uuid.UUID, FloatVector], activations: Mapping[str, FloatVector]
    ) -> tuple[int, int]:
        """Write trajectories with their new embeddings, and their steps with those of items that are given.

        Returns
        -------
        written, dropped
            How many trajectories; and how many of their steps are of no item, and cannot be embedded.
        """
        written = copy_queries(self._connection, self._key, queries, activations)
        row = self._connection.execute(
            "SELECT count(*), EXISTS (SELECT FROM sona.learning_event e WHERE e.space_id = %(to)s AND e.loop = %(loop)s"
            " AND e.trajectory_id = ANY(%(ids)s)) FROM sona.trajectory_step s"
            " WHERE s.space_id = %(from)s AND s.trajectory_id = ANY(%(ids)s) AND s.item_id IS NULL",
            self._key | {"ids": list(queries)},
        ).fetchone()
        assert row is not None
        dropped, was_passed = row
        if was_passed:
            self.begin_learning()  # its entry of the ledger taught nothing, since it was not there yet
        return written, dropped

    def begin_learning(self) -> None:
        """Let the successor have learned nothing: the ledger of the space is to be learned from its first entry."""
        for table in ("learning_event", "learning_cycle", "score", "served_row"):
            self._connection.execute(f"DELETE FROM sona.{table} WHERE space_id = %(to)s", self._key)
        ForgetTransaction(self._connection, self._successor).reset_strategist()
        # By its epoch it is told whether somebody was forgotten meanwhile, and the ledger is another one.
        self._connection.execute(
            "UPDATE sona.learner SET events = 0, ordinal = 0, state = NULL,"
            " epoch = (SELECT epoch FROM sona.learner WHERE space_id = %(from)s) WHERE space_id = %(to)s",
            self._key,
        )
        self._connection.execute(
            "UPDATE sona.strategist SET changed_at = clock_timestamp() WHERE space_id = %(to)s", self._key
        )

    def copy_ledger(self, first: int, last: int) -> None:
        """Copy the entries from ordinal `first` to before `last`, with the late outcomes that they took in."""
        key = self._key | {"first": first, "last": last}
        self._connection.execute(
            "INSERT INTO sona.learning_event (space_id, loop, trajectory_id, revision, cycle_id, ordinal, learned)"
            " SELECT %(to)s, loop, trajectory_id, revision, cycle_id, ordinal, learned FROM sona.learning_event"
            " WHERE space_id = %(from)s AND loop = %(loop)s AND ordinal >= %(first)s AND ordinal < %(last)s",
            key,
        )
        self._connection.execute(
            "INSERT INTO sona.score (space_id, score_id, trajectory_id, item_id, name, value, created_at, revision)"
            " SELECT %(to)s, s.score_id, s.trajectory_id, s.item_id, s.name, s.value, s.created_at, s.revision"
            " FROM sona.score s WHERE s.space_id = %(from)s AND s.revision IS NOT NULL AND s.trajectory_id = ANY(ARRAY("
            "  SELECT e.trajectory_id FROM sona.learning_event e WHERE e.space_id = %(from)s AND e.loop = %(loop)s"
            "  AND e.ordinal >= %(first)s AND e.ordinal < %(last)s)) ORDER BY s.sequence ON CONFLICT DO NOTHING",
            key,
        )

    def write_learner(
        self, state: bytes, events: int, ordinal: int, became: Mapping[tuple[uuid.UUID, int], str]
    ) -> None:
        """Write what was learned of the ledger before `ordinal`, and what became of entries where it is another."""
        key = self._key | {"state": state, "events": events, "ordinal": ordinal}
        self._connection.execute(
            "UPDATE sona.learner SET state = %(state)s, events = %(events)s, ordinal = %(ordinal)s, updated_at = now()"
            " WHERE space_id = %(to)s",
            key,
        )
        self._connection.execute(
            "UPDATE sona.learning_event e SET learned = k.learned"
            " FROM unnest(%(ids)s::uuid[], %(revisions)s::int[], %(learned)s::text[]) k (id, revision, learned)"
            " WHERE e.space_id = %(to)s AND e.loop = %(loop)s AND e.trajectory_id = k.id AND e.revision = k.revision",
            key
            | {
                "ids": [id for id, _ in became],
                "revisions": [revision for _, revision in became],
                "learned": list(became.values()),
            },
        )

    def drop_deleted(self) -> None:
        """Delete what the space has deleted since it was copied, and what is remembered of it."""
        self._connection.execute(
            "DELETE FROM sona.trajectory n WHERE n.space_id = %(to)s AND NOT EXISTS (SELECT FROM sona.trajectory t"
            " WHERE t.space_id = %(from)s AND t.trajectory_id = n.trajectory_id)",
            self._key,
        )
        self._connection.execute(
            "DELETE FROM sona.trajectory_step n WHERE n.space_id = %(to)s AND NOT EXISTS ("
            "SELECT FROM sona.trajectory_step t WHERE t.space_id = %(from)s AND t.trajectory_id = n.trajectory_id"
            " AND t.ordinal = n.ordinal)",
            self._key,
        )
        self._connection.execute(
            "DELETE FROM sona.score n WHERE n.space_id = %(to)s AND NOT EXISTS (SELECT FROM sona.score s"
            " WHERE s.space_id = %(from)s AND s.score_id = n.score_id)",
            self._key,
        )
        self._connection.execute(
            "DELETE FROM sona.remembered_query n WHERE n.space_id = %(to)s AND NOT EXISTS (SELECT"
            " FROM sona.trajectory t WHERE t.space_id = %(from)s AND t.trajectory_id = n.trajectory_id)",
            self._key,
        )

    def forget(self, user_id: str) -> None:
        """Delete what is there of a user who is being forgotten in the space."""
        transaction = ForgetTransaction(self._connection, self._successor)
        ids = transaction.trajectories_of(user_id)
        has_learned = bool(transaction.entries(ids))
        transaction.delete(ids, user_id)
        if has_learned:
            self.begin_learning()

    def take_over(self, served: Mapping[str, LowRank]) -> None:
        """Copy what is left to copy: settings, schedules, what waits, edges and items of the memory graph."""
        for statement in _TAKE_OVER:
            self._connection.execute(statement, self._key | {"taught": list(TAUGHT)})
        copy_grants(self._connection, {"from": self._space.space_id, "to": self._successor.space_id})
        write_served(self._connection, self._successor.space_id, served)

    def switch(self, cause: str, state: bytes | None, served: LowRank) -> int | None:
        """Let the successor take the place of the space; the version that was published, if anything was learned."""
        connection = self._connection
        version = None if state is None else publish(connection, self._successor, cause, state, served)
        exchange(connection, self._space, self._successor)
        return version


_TAKE_OVER = (
    # What it is set to by now.
    "UPDATE sona.space s SET strategy = f.strategy, frozen_from = f.frozen_from, control_share = f.control_share,"
    " trajectory_retention = f.trajectory_retention, step_retention = f.step_retention,"
    " steps_deleted_before = f.steps_deleted_before, steps_lost_before = f.steps_lost_before,"
    " may_transfer = f.may_transfer FROM sona.space f WHERE s.space_id = %(to)s AND f.space_id = %(from)s",
    "INSERT INTO sona.loop_schedule (space_id, loop, every_seconds, cron, time_zone, amount, windows, is_enabled)"
    " SELECT %(to)s, loop, every_seconds, cron, time_zone, amount, windows, is_enabled FROM sona.loop_schedule"
    " WHERE space_id = %(from)s ON CONFLICT DO NOTHING",
    "INSERT INTO sona.learning_cycle (space_id, cycle_id, loop, epoch, version, events, learned, replayed, worker,"
    " started_at, finished_at) SELECT %(to)s, c.cycle_id, c.loop, c.epoch, c.version, c.events,"
    " coalesce(k.learned, 0), c.replayed, c.worker, c.started_at, c.finished_at FROM sona.learning_cycle c"
    " LEFT JOIN (SELECT cycle_id, count(*) AS learned FROM sona.learning_event WHERE space_id = %(to)s"
    "  AND loop = %(loop)s AND learned = ANY(%(taught)s) GROUP BY 1) k USING (cycle_id)"
    " WHERE c.space_id = %(from)s AND c.loop = %(loop)s",
    # What waits: outcomes of what could not be embedded wait for nothing.
    "INSERT INTO sona.score (space_id, score_id, trajectory_id, item_id, name, value, created_at)"
    " SELECT %(to)s, s.score_id, s.trajectory_id, s.item_id, s.name, s.value, s.created_at FROM sona.score s"
    " WHERE s.space_id = %(from)s AND s.revision IS NULL ORDER BY s.sequence ON CONFLICT DO NOTHING",
    "INSERT INTO sona.pending_trajectory (space_id, trajectory_id, created_at)"
    " SELECT %(to)s, p.trajectory_id, p.created_at FROM sona.pending_trajectory p WHERE p.space_id = %(from)s"
    " AND EXISTS (SELECT FROM sona.trajectory t WHERE t.space_id = %(to)s AND t.trajectory_id = p.trajectory_id)"
    " ORDER BY p.pending_id",
    # Where items lie by the new model the next cycle reads; of what was given by hand nobody knows.
    "INSERT INTO sona.memory_node (space_id, node_id, kind, key, title, level, created_at, is_distinct)"
    " SELECT %(to)s, node_id, kind, key, title, level, created_at, is_distinct FROM sona.memory_node"
    " WHERE space_id = %(from)s AND kind <> 'pattern' AND level = 0",
    "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight, updated_at, source_kind, target_kind,"
    " origin, created_at, decayed_at) SELECT %(to)s, e.kind, e.source, e.target, e.weight, e.updated_at, e.source_kind,"
    " e.target_kind, e.origin, e.created_at, e.decayed_at FROM sona.memory_edge e WHERE e.space_id = %(from)s"
    " AND (e.kind = 'co_access' OR (e.kind = 'given' AND NOT EXISTS (SELECT FROM (VALUES (e.source_kind, e.source),"
    "  (e.target_kind, e.target)) u (kind, key) WHERE NOT EXISTS (SELECT FROM sona.memory_node n"
    "  WHERE n.space_id = %(to)s AND n.kind = u.kind AND n.key = u.key))))",
    "INSERT INTO sona.memory_node_state (space_id, node_id, importance, quality, access_count, last_access,"
    " consolidation_count) SELECT %(to)s, t.node_id, t.importance, t.quality, t.access_count, t.last_access,"
    " t.consolidation_count FROM sona.memory_node_state t JOIN sona.memory_node n ON n.space_id = %(to)s"
    " AND n.node_id = t.node_id WHERE t.space_id = %(from)s",
    "INSERT INTO sona.memory_state (space_id, last_node_id, last_dream_id) SELECT %(to)s, last_node_id, last_dream_id"
    " FROM sona.memory_state WHERE space_id = %(from)s",
    "UPDATE sona.learner l SET version = f.version, revision = f.revision, epoch = f.epoch + 1, updated_at = now()"
    " FROM sona.learner f WHERE l.space_id = %(to)s AND f.space_id = %(from)s",
    # The lift begins anew: what the arms have shown is of the model before.
    "UPDATE sona.strategist SET epoch = epoch + 1, changed_at = clock_timestamp(), suspected_share = 0"
    " WHERE space_id = %(to)s",
)


@contextlib.contextmanager
def successor_transaction(
    connection: Connection, space: Space, successor: Space, *, both: bool = False
) -> Iterator[SuccessorTransaction]:
    """Begin a transaction that fills the successor, or that switches: then the space is locked, too.

    Raises
    ------
    PermissionDenied
        If this role may not learn in the space.
    SchemaMismatch
        If the schema was migrated meanwhile.
    DatabaseBusy
        If the locks are not to be had.
    """
    with writing(connection):
        if both:
            lock_space(connection, space)
        yield SuccessorTransaction(connection, space, successor)
