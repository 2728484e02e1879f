"""The transaction that forgets a user: every row of theirs, and all that was learned with them in it, or nothing."""

from __future__ import annotations

import contextlib
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sona_pg.errors import EmbedderMismatch
from sona_pg.kernels import LowRank
from sona_pg.learning.edges import Edge
from sona_pg.store.base import forget_base
from sona_pg.store.connection import Connection, bounded, translated, writing
from sona_pg.store.learning import Head, delete_trajectories, read_head, write_edge_weights
from sona_pg.store.ledger import LOOP, TAUGHT
from sona_pg.store.memory_facts import forget_memory
from sona_pg.store.patterns import forget_patterns
from sona_pg.store.served_rows import write_served
from sona_pg.store.spaces import Space, lock_space
from sona_pg.store.versions import publish


@dataclass(frozen=True, slots=True)
class Lost:
    """What a space has learned from and does not hold any more, since retention has deleted it.

    Parameters
    ----------
    trajectories
        Trajectories of the ledger that are gone; whose they were is not known any more.
    steps
        Trajectories that are there without the steps that taught.
    """

    trajectories: Sequence[uuid.UUID]
    steps: int

    def __bool__(self) -> bool:
        return bool(self.trajectories) or self.steps > 0


def find_lost(connection: Connection, space: Space, user_id: str) -> Lost:
    """What a replay of the ledger without this user would lack."""
    key = {"space": space.space_id, "loop": LOOP, "user": user_id}
    with translated():
        gone = connection.execute(
            "SELECT DISTINCT e.trajectory_id FROM sona.learning_event e WHERE e.space_id = %(space)s"
            " AND e.loop = %(loop)s AND NOT EXISTS (SELECT FROM sona.trajectory t"
            " WHERE t.space_id = e.space_id AND t.trajectory_id = e.trajectory_id) ORDER BY 1",
            key,
        ).fetchall()
        # Some are recorded without steps. These had some: they taught, or had helpful items without embeddings, or are
        # of a time whose steps retention has deleted.
        row = connection.execute(
            "SELECT count(*) FROM sona.trajectory t JOIN sona.space s USING (space_id) JOIN sona.learning_event e"
            " USING (space_id, trajectory_id) WHERE t.space_id = %(space)s AND e.loop = %(loop)s AND e.revision = 0"
            " AND t.user_id IS DISTINCT FROM %(user)s"
            " AND (e.learned IN ('adapter', 'micro', 'no embedding', 'withheld') OR t.created_at < s.steps_lost_before)"
            " AND NOT EXISTS (SELECT FROM sona.trajectory_step p"
            " WHERE p.space_id = t.space_id AND p.trajectory_id = t.trajectory_id)",
            key,
        ).fetchone()
    return Lost([id for (id,) in gone], 0 if row is None else row[0])


class Entry(NamedTuple):
    """An entry of the ledger: its place, the cycle that made it, and what became of the event."""

    ordinal: int
    cycle: int
    learned: str


class ForgetTransaction:
    """A transaction under the locks of a space's learner and strategist: nobody learns or weighs until it ends."""

    def __init__(self, connection: Connection, space: Space) -> None:
        self._connection = connection
        self._space = space
        self._key = {"space": space.space_id, "loop": LOOP}

    def head(self) -> Head:
        """Where the learner stands."""
        return read_head(self._connection, self._space)

    def trajectories_of(self, user_id: str) -> list[uuid.UUID]:
        """The trajectories of a user."""
        rows = self._connection.execute(
            "SELECT trajectory_id FROM sona.trajectory WHERE space_id = %(space)s AND user_id = %(user)s",
            self._key | {"user": user_id},
        ).fetchall()
        return [row[0] for row in rows]

    def entries(self, ids: Sequence[uuid.UUID]) -> list[Entry]:
        """The ledger entries of these trajectories, in order."""
        rows = self._connection.execute(
            "SELECT ordinal, cycle_id, learned FROM sona.learning_event"
            " WHERE space_id = %(space)s AND loop = %(loop)s AND trajectory_id = ANY(%(ids)s) ORDER BY ordinal",
            self._key | {"ids": list(ids)},
        ).fetchall()
        return [Entry(*row) for row in rows]

    def delete(self, ids: Sequence[uuid.UUID], user_id: str) -> dict[str, int]:
        """Delete everything that these trajectories of a user have left; how many rows, by table."""
        gone = delete_trajectories(self._connection, self._space, ids)
        for table in ("remembered_query", "answer_outcome", "strategy_turn", "learning_event"):
            gone[table] = self._delete(table, " AND trajectory_id = ANY(%(ids)s)", {"ids": list(ids)})
        # What is refused is quoted there as Python writes it.
        gone["error_log"] = self._delete(
            "error_log",
            " AND (position(%(quoted)s IN message) > 0 OR EXISTS (SELECT FROM regexp_matches(message,"
            " '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}', 'g') m WHERE m[1]::uuid = ANY(%(ids)s)))",
            {"quoted": f"user_id={user_id!r}", "ids": list(ids)},
        )
        return gone

    def _delete(self, table: str, which: str = "", values: Mapping[str, object] | None = None) -> int:
        statement = f"DELETE FROM sona.{table} WHERE space_id = %(space)s{which}"
        return self._connection.execute(statement, self._key | dict(values or {})).rowcount

    def delete_entries(self, ids: Sequence[uuid.UUID]) -> None:
        """Delete the ledger entries of trajectories that are gone."""
        self._delete("learning_event", " AND trajectory_id = ANY(%(ids)s)", {"ids": list(ids)})

    def close_ranks(self, gone: Sequence[Entry], became: Mapping[tuple[uuid.UUID, int], str]) -> None:
        """Make the ledger dense again where entries are gone, and note down what has become of others.

        Parameters
        ----------
        gone
            Entries that were deleted, in order.
        became
            By trajectory and revision, where it is something else than before.
        """
        # How many of those that are gone came before an entry; a join would be planned by statistics that may be stale.
        self._connection.execute(
            "UPDATE sona.learning_event SET ordinal = ordinal - width_bucket(ordinal, %(gone)s::bigint[])"
            " WHERE space_id = %(space)s AND loop = %(loop)s AND ordinal > %(first)s",
            self._key | {"gone": [entry.ordinal for entry in gone], "first": gone[0].ordinal},
        )
        # What a cycle has seen of the ledger is shorter by as much.
        for statement in (
            "UPDATE sona.loop_schedule SET consumed = consumed - width_bucket(consumed - 1, %(gone)s::bigint[])"
            " WHERE space_id = %(space)s",
            "UPDATE sona.loop_run SET ordinal = ordinal - width_bucket(ordinal - 1, %(gone)s::bigint[])"
            " WHERE space_id = %(space)s AND finished_at IS NULL",
        ):
            self._connection.execute(statement, self._key | {"gone": [entry.ordinal for entry in gone]})
        changed = {
            **self._key,
            "ids": [id for id, _ in became],
            "revisions": [revision for _, revision in became],
            "learned": list(became.values()),
        }
        source = (
            "unnest(%(ids)s::uuid[], %(revisions)s::int[], %(learned)s::text[]) k (id, revision, learned)"
            "{} WHERE e.space_id = %(space)s AND e.loop = %(loop)s AND e.trajectory_id = k.id"
            " AND e.revision = k.revision"
        )
        before = self._connection.execute(
            "SELECT e.cycle_id, e.learned, k.learned FROM " + source.format(", sona.learning_event e"), changed
        ).fetchall()
        self._connection.execute(
            "UPDATE sona.learning_event e SET learned = k.learned FROM " + source.format(""), changed
        )
        events = Counter(entry.cycle for entry in gone)
        learned = Counter(entry.cycle for entry in gone if entry.learned in TAUGHT)
        for cycle, was, now in before:
            learned[cycle] += (was in TAUGHT) - (now in TAUGHT)
        cycles = list({**events, **learned})
        self._connection.execute(
            "UPDATE sona.learning_cycle c SET events = c.events - k.events, learned = c.learned - k.learned"
            " FROM unnest(%(cycles)s::bigint[], %(events)s::int[], %(taught)s::int[]) k (cycle, events, learned)"
            " WHERE c.space_id = %(space)s AND c.loop = %(loop)s AND c.cycle_id = k.cycle",
            self._key
            | {
                "cycles": cycles,
                "events": [events[cycle] for cycle in cycles],
                "taught": [learned[cycle] for cycle in cycles],
            },
        )

    def forget_patterns(self, first: int) -> int:
        """Let no pattern hold the ledger entry of ordinal `first`, or one after it; how many patterns went."""
        return forget_patterns(self._connection, self._space, first)

    def forget_base(self) -> None:
        """Forget how far the base LoRA has read the ledger, and its tasks: it is learned anew."""
        forget_base(self._connection, self._space)

    def forget_memory(self) -> None:
        """Forget the memory graph but for co-access and what was given by hand: cycles make it anew of what is kept."""
        forget_memory(self._connection, self._space)

    def write_edges(self, edges: Mapping[Edge, float]) -> int:
        """Set the co-access edges of the space; how many there are fewer than before."""
        before = self._delete("memory_edge", " AND kind = 'co_access'")
        write_edge_weights(self._connection, self._space.space_id, edges)
        return before - len(edges)

    def write_learner(self, state: bytes | None, served: Mapping[str, LowRank], events: int) -> int:
        """Set the state and what answers by it; flushes in flight find another epoch. How many entries there are."""
        self._delete("served_row")
        write_served(self._connection, self._space.space_id, served)
        row = self._connection.execute(
            "UPDATE sona.learner SET epoch = epoch + 1, events = %(events)s, state = %(state)s, restored = NULL,"
            " ordinal = (SELECT count(*) FROM sona.learning_event WHERE space_id = %(space)s AND loop = %(loop)s),"
            " updated_at = now() WHERE space_id = %(space)s RETURNING ordinal",
            self._key | {"events": events, "state": state},
        ).fetchone()
        assert row is not None
        return int(row[0])

    def reset_strategist(self) -> None:
        """Let the strategist be as in a new space, before its first entry; what the space is set to stays."""
        self._connection.execute(
            "UPDATE sona.strategist SET ordinal = 0, events = 0, in_force = 'frozen', is_sane = false, known = 0,"
            " strange = 0, unseen = 0, weights = NULL, state = NULL, evidence = NULL, lift = NULL, restored = NULL,"
            " remembered_until = NULL, suspected_share = 0, epoch = epoch + 1, patterns_run = NULL,"
            " base_version = NULL, memory_run = NULL, updated_at = now()"
            " WHERE space_id = %(space)s",
            self._key,
        )
        for table in ("strategy_evidence", "strategy_region", "strategy_turn", "remembered_query", "item_outcome"):
            self._delete(table)
        self._delete("answer_outcome")

    def publish(self, first: int, cause: str, state: bytes, served: LowRank) -> tuple[int, int]:
        """Publish the state, and delete all versions that hold the ledger entry of ordinal `first`.

        Returns
        -------
        version, deleted
            The new version, which comes after the last one that is left; and how many are not.
        """
        # One of which it is not known how far the ledger was has fewer entries than events.
        tainted = "(ordinal > %(first)s OR ordinal < events)"
        key = self._key | {"first": first}
        self._connection.execute(
            "UPDATE sona.learner SET version = coalesce((SELECT max(version) FROM sona.adapter_version"
            f" WHERE space_id = %(space)s AND NOT {tainted}), 0) WHERE space_id = %(space)s",
            key,
        )
        # First the new one: no number is given twice.
        made = publish(self._connection, self._space, cause, state, served)
        which = f" AND version <> %(made)s AND {tainted}"
        deleted = self._delete("adapter_version", which, {"first": first, "made": made})
        self._delete(
            "version_row",
            " AND NOT EXISTS (SELECT FROM sona.adapter_version v"
            " WHERE v.space_id = version_row.space_id AND v.version = version_row.version)",
        )
        return made, deleted

    def shut_out(self, digest: bytes) -> datetime:
        """What was answered before now to the user of a digest is taken from nobody any more; now, by the database."""
        row = self._connection.execute(
            "INSERT INTO sona.forgotten_user AS f (space_id, digest, forgotten_at)"
            " VALUES (%(space)s, %(digest)s, clock_timestamp()) ON CONFLICT (space_id, digest)"
            " DO UPDATE SET forgotten_at = excluded.forgotten_at RETURNING forgotten_at",
            self._key | {"digest": digest},
        ).fetchone()
        assert row is not None
        moment: datetime = row[0]
        return moment

    def log(self, before: int, after: int, reason: str) -> None:
        """An entry of the audit trail; the user has no name there."""
        self._connection.execute(
            "SELECT sona._log_deployment(%s, 'forget', nullif(%s, 0)::text, nullif(%s, 0)::text, %s)",
            (self._space.space_id, before, after, reason),
        )


@contextlib.contextmanager
def forget_transaction(connection: Connection, space: Space) -> Iterator[ForgetTransaction]:
    """Begin a transaction that forgets; commits at the end, rolls back on any error.

    Raises
    ------
    EmbedderMismatch
        If the space has changed its embedder since it was opened, or gone back: it is another one that answers.
    PermissionDenied
        If this role may not learn in the space.
    DatabaseBusy
        If the locks are not to be had.
    """
    with writing(connection):
        lock_space(connection, space)
        row = connection.execute(
            "SELECT FROM sona.space WHERE space_id = %s AND standby_of IS NOT DISTINCT FROM %s",
            (space.space_id, space.standby_of),
        ).fetchone()
        if row is None:
            raise EmbedderMismatch(
                f"space {space.name!r} has changed its embedder since it was opened, and nobody was forgotten in it: "
                "connect again, and forget the user there"
            )
        yield ForgetTransaction(connection, space)


def drop_queries_index(connection: Connection, space: Space) -> None:
    """Drop the HNSW index of remembered queries, which holds those that were deleted; workers make another one."""
    _drop_index(
        connection,
        "SELECT sona._drop_queries_index(%(space)s, current_user) WHERE sona._queries_index(%(space)s) IS NOT NULL",
        {"space": space.space_id},
    )


def drop_vectors_index(connection: Connection, space: Space, of: str) -> None:
    """Drop the HNSW index of `pattern` or `memory_node`, which holds what was deleted; a cycle makes another one."""
    _drop_index(
        connection,
        "SELECT sona._drop_vectors_index(%(of)s, %(space)s, current_user)"
        " WHERE sona._vectors_index(%(of)s, %(space)s) IS NOT NULL",
        {"space": space.space_id, "of": of},
    )


def _drop_index(connection: Connection, statement: str, key: dict[str, object]) -> None:
    with bounded(connection):
        connection.execute(statement, key)
