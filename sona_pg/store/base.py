"""The base LoRA of a space: what a cycle begins with, and what it writes under the lock of the learner."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import FISHER_KINDS
from sona_pg.errors import LearningError, LockLost
from sona_pg.kernels import LowRank, unit
from sona_pg.learning.base_tasks import BaseTask
from sona_pg.learning.judged_list import reservoir_key
from sona_pg.learning.learner import Learned
from sona_pg.store.connection import Connection, snapshot_transaction
from sona_pg.store.learning import Head, LearningTransaction, read_head, read_state
from sona_pg.store.ledger import LOOP, TAUGHT
from sona_pg.store.runs import Run
from sona_pg.store.served_rows import write_served
from sona_pg.store.spaces import Space
from sona_pg.store.versions import publish

_READ_AT_ONCE = 10_000
"""Ids that the driver holds."""

_JUDGED = (Learned.ADAPTER, Learned.WITHHELD)
"""What becomes of events in which something helped: there is a list to learn, or to judge by."""


@dataclass(frozen=True, slots=True)
class BaseState:
    """How far the base of a space has read its ledger.

    Parameters
    ----------
    consumed
        Entries whose outcomes were taken in.
    judged, learned
        Entries before which what was withheld has been judged by, and there is nothing of it left to learn.
    offered
        Lists that were ever offered to the reservoir.
    generation
        Grows when a user is forgotten.
    reservoir
        Trajectories that are learned again: a sample of all, and those that are owed.
    state
        What `BaseTransaction.advance` was given; None before the first cycle.
    head
        Where the learner stands: what it has learned is read up to there.
    learner
        Its state; None before anything was learned.
    """

    consumed: int
    judged: int
    learned: int
    offered: int
    generation: int
    reservoir: tuple[uuid.UUID, ...]
    state: bytes | None
    head: Head
    learner: bytes | None


class Sample(NamedTuple):
    """Some of many trajectories.

    Parameters
    ----------
    ordinals
        The ledger entry by which each was judged first, in this order.
    fresh
        How many of all, not only of these, had not been judged before.
    """

    ordinals: Mapping[uuid.UUID, int]
    fresh: int


@contextlib.contextmanager
def base_reader(connection: Connection, space: Space) -> Iterator[BaseReader]:
    """Reads what a cycle begins with, all of it as of one moment."""
    with snapshot_transaction(connection):
        yield BaseReader(connection, space)


class BaseReader:
    """Reads, in one transaction, what a cycle begins with."""

    def __init__(self, connection: Connection, space: Space) -> None:
        self._connection = connection
        self._space = space

    def state(self) -> BaseState:
        """How far the base is, and where the learner stands."""
        head = read_head(self._connection, self._space)
        row = self._connection.execute(
            "SELECT consumed, judged, learned, offered, generation, reservoir, state FROM sona.base_state"
            " WHERE space_id = %s",
            (self._space.space_id,),
        ).fetchone()
        consumed, judged, learned, offered, generation, reservoir, state = row or (0, 0, 0, 0, 0, [], None)
        return BaseState(
            # Fewer than there were, if somebody was forgotten.
            min(consumed, head.ordinal),
            min(judged, head.ordinal),
            min(learned, head.ordinal),
            offered,
            generation,
            tuple(reservoir),
            None if state is None else bytes(state),
            head,
            read_state(self._connection, self._space),
        )

    def trajectories(self, first: int, last: int, learned: str, size: int) -> Sample:
        """A sample of the trajectories of which this became, by ledger entries from `first` to before `last`.

        However many there are, no more than the sample is in memory.
        """
        return self._sample("", size, {"first": first, "last": last, "learned": learned})

    def unjudged(self, state: BaseState, size: int) -> Sample:
        """A sample of what was withheld, and no cycle has judged by or learned, as `trajectories` gives it."""
        # A late outcome of what was judged by, or learned before anything was withheld, makes it no news.
        known = (
            " AND NOT EXISTS (SELECT FROM sona.learning_event k WHERE k.space_id = e.space_id AND k.loop = e.loop"
            " AND k.trajectory_id = e.trajectory_id"
            " AND (k.learned = ANY(%(taught)s) OR (k.learned = %(learned)s AND k.ordinal < %(first)s)))"
        )
        key = {"first": state.judged, "last": state.head.ordinal, "learned": Learned.WITHHELD, "taught": list(TAUGHT)}
        return self._sample(known, size, key)

    def owed(self, state: BaseState) -> list[uuid.UUID]:
        """Trajectories that have judged, and were part of no base since; see `next_owed`."""
        # What was withheld in an hour that was noise is not in the reservoir.
        rows = self._connection.execute(
            "SELECT DISTINCT trajectory_id FROM sona.learning_event WHERE space_id = %s AND loop = %s AND learned = %s"
            " AND ordinal >= %s AND ordinal < %s AND trajectory_id = ANY(%s)",
            (self._space.space_id, LOOP, Learned.WITHHELD, state.learned, state.judged, list(state.reservoir)),
        ).fetchall()
        return [id for (id,) in rows]

    def _sample(self, condition: str, size: int, key: dict[str, object]) -> Sample:
        fresh = 0

        def counted(rows: Iterable[tuple[uuid.UUID, bool]]) -> Iterator[uuid.UUID]:
            nonlocal fresh
            for id, is_fresh in rows:
                fresh += is_fresh
                yield id

        with self._connection.cursor(name="sona_ledger") as cursor:
            cursor.itersize = _READ_AT_ONCE
            cursor.execute(
                "SELECT e.trajectory_id, NOT EXISTS (SELECT FROM sona.learning_event b WHERE b.space_id = e.space_id"
                " AND b.loop = e.loop AND b.trajectory_id = e.trajectory_id AND b.learned = ANY(%(judged)s)"
                " AND b.ordinal < %(first)s) FROM sona.learning_event e WHERE e.space_id = %(space)s"
                " AND e.loop = %(loop)s AND e.ordinal >= %(first)s AND e.ordinal < %(last)s"
                f" AND e.learned = %(learned)s{condition} GROUP BY e.space_id, e.loop, e.trajectory_id",
                {"space": self._space.space_id, "loop": LOOP, "judged": list(_JUDGED), **key},
                binary=True,
            )
            kept = nsmallest(size, counted(cursor), key=reservoir_key)
        return Sample(self.ordinals(kept), fresh)

    def ordinals(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, int]:
        """The ledger entry by which these trajectories were judged first, of those that were, in this order."""
        rows = self._connection.execute(
            "SELECT trajectory_id, min(ordinal) FROM sona.learning_event WHERE space_id = %s AND loop = %s"
            " AND trajectory_id = ANY(%s) AND learned = ANY(%s) GROUP BY trajectory_id ORDER BY 2",
            (self._space.space_id, LOOP, list(ids), list(_JUDGED)),
        ).fetchall()
        return dict(rows)

    def tasks(self, epoch: int) -> tuple[list[BaseTask], list[str]]:
        """The tasks that are remembered, those that ended last at the end; and why others cannot be used.

        Parameters
        ----------
        epoch
            The learner's: what ended in another one was learned by a base that is not there any more.
        """
        rows = self._connection.execute(
            "SELECT epoch = %s, snapshot_id, signature, layout, kind, fisher, anchor, samples, quality, times_met"
            " FROM sona.fisher_snapshot WHERE space_id = %s ORDER BY updated_at, snapshot_id",
            (epoch, self._space.space_id),
            binary=True,
        ).fetchall()
        tasks, refused = [], []
        for is_held, *row in rows:
            try:
                tasks.append(_task(row, self._space.dim, is_held=is_held))
            except LearningError as error:
                refused.append(str(error))
        return tasks, refused

    def next_task(self) -> int:
        """Id of a new task: larger than all there are, those that cannot be used too."""
        row = self._connection.execute(
            "SELECT coalesce(max(snapshot_id), 0) + 1 FROM sona.fisher_snapshot WHERE space_id = %s",
            (self._space.space_id,),
        ).fetchone()
        assert row is not None
        return int(row[0])


class BaseTransaction:
    """Writes what a cycle has come to, under the lock of the learner; in a transaction that the caller began.

    Parameters
    ----------
    state
        What the cycle began with.

    Raises
    ------
    LockLost
        If something was deployed, or somebody forgotten, since: what was computed belongs to what is gone.
    """

    def __init__(self, connection: Connection, run: Run, state: BaseState) -> None:
        self._connection, self._run, self._state = connection, run, state
        self.learner = LearningTransaction(connection, run.space)
        """Where the learner stands by now, and its state."""
        if self.learner.head.epoch != state.head.epoch:
            raise LockLost(
                f"another version of space {run.space.name!r} was deployed, or somebody forgotten, meanwhile: the base "
                "is computed again"
            )

    def waiting(self) -> list[uuid.UUID]:
        """All that is withheld by now and no base has learned, in the order in which it was judged."""
        reader, now = BaseReader(self._connection, self._run.space), replace(self._state, head=self.learner.head)
        found = {**reader.ordinals(reader.owed(now)), **reader.unjudged(now, sys.maxsize).ordinals}
        return sorted(found, key=lambda id: found[id])

    def write_learner(self, state: bytes, served: dict[str, LowRank], events: int) -> None:
        """Replace the state of the learner and what answers by it; flushes in flight take it over."""
        key = {"space": self._run.space.space_id, "state": state, "tiers": list(served), "events": events}
        self._connection.execute(
            "UPDATE sona.learner SET revision = revision + 1, events = %(events)s, state = %(state)s, restored = NULL,"
            " updated_at = now() WHERE space_id = %(space)s",
            key,
        )
        self._connection.execute(
            "DELETE FROM sona.served_row WHERE space_id = %(space)s AND tier = ANY(%(tiers)s)", key
        )
        write_served(self._connection, self._run.space.space_id, served)

    def publish_before(self, cause: str, state: bytes, served: LowRank) -> None:
        """Publish what the learner has learned by now, if it is not: what takes its place must have a way back."""
        space = self._run.space
        row = self._connection.execute("SELECT sona._is_published(%s)", (space.space_id,)).fetchone()
        if row is None or not row[0]:
            publish(self._connection, space, cause, state, served)

    def publish(self, cause: str, state: bytes, served: LowRank) -> int:
        """Publish the state of the learner as a version that the strategist is to go on with; its number."""
        version = publish(self._connection, self._run.space, cause, state, served)
        self._connection.execute(
            "UPDATE sona.base_state SET version = %s WHERE space_id = %s", (version, self._run.space.space_id)
        )
        return version

    def write_tasks(self, tasks: Sequence[BaseTask], strength: float, most: int) -> None:
        """Keep these tasks, each under its id, and no more than `most` of all, those that ended last."""
        space_id = self._run.space.space_id
        self._connection.cursor().executemany(
            "INSERT INTO sona.fisher_snapshot AS f (space_id, snapshot_id, signature, layout, kind, fisher, anchor,"
            " lambda, samples, quality, times_met, epoch, updated_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp())"
            " ON CONFLICT (space_id, snapshot_id) DO UPDATE SET signature = excluded.signature,"
            " layout = excluded.layout, kind = excluded.kind, fisher = excluded.fisher, anchor = excluded.anchor,"
            " lambda = excluded.lambda, samples = excluded.samples, quality = excluded.quality,"
            " times_met = excluded.times_met, epoch = excluded.epoch, updated_at = clock_timestamp()",
            [
                (space_id, t.id, t.signature, _layout(*t.fisher.shape), FISHER_KINDS[0], _bytes(t.fisher))
                + (_bytes(np.vstack([t.frame, t.anchor])), strength, t.samples, t.quality, t.times_met)
                + (self._state.head.epoch,)
                for t in tasks
            ],
        )
        self._connection.execute(
            "DELETE FROM sona.fisher_snapshot WHERE space_id = %(space)s AND snapshot_id IN (SELECT snapshot_id"
            " FROM sona.fisher_snapshot WHERE space_id = %(space)s ORDER BY updated_at DESC, snapshot_id DESC"
            " OFFSET %(most)s)",
            {"space": space_id, "most": most},
        )

    def advance(self, reservoir: Sequence[uuid.UUID], state: bytes, *, judged: int, learned: int, offered: int) -> None:
        """Note down that what was read is taken in; the others as in `BaseState`.

        Raises
        ------
        LockLost
            If somebody was forgotten since it was read: the reservoir may hold what they have left.
        """
        space_id, ordinal = self._run.space.space_id, self._state.head.ordinal
        self._connection.execute(
            "INSERT INTO sona.base_state (space_id) VALUES (%s) ON CONFLICT DO NOTHING", (space_id,)
        )
        row = self._connection.execute(
            "UPDATE sona.base_state SET consumed = %s, judged = %s, learned = %s, offered = %s, reservoir = %s,"
            " state = %s, updated_at = now() WHERE space_id = %s AND generation = %s RETURNING consumed",
            (ordinal, judged, learned, offered, list(reservoir), state, space_id, self._state.generation),
        ).fetchone()
        if row is None:
            raise LockLost(
                f"a user of space {self._run.space.name!r} was forgotten meanwhile: the base is computed again"
            )


def _layout(rank: int, dim: int) -> str:
    """Which numbers a snapshot holds, in which order."""
    return f"base: anchor frame ({rank}, {dim}) then coordinates ({rank}, {dim}), Fisher of the coordinates"


def _bytes(block: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(block, dtype="<f4").tobytes()


def _task(row: Sequence[Any], dim: int, *, is_held: bool) -> BaseTask:
    id, signature, layout, kind, fisher, anchor, samples, quality, times_met = row
    rank = len(fisher) // (4 * dim)
    fits = rank > 0 and len(fisher) == 4 * rank * dim and len(anchor) == 2 * len(fisher)
    if not fits or layout != _layout(rank, dim) or kind not in FISHER_KINDS or len(signature) != dim:
        raise LearningError(
            f"Fisher snapshot {id} is of {layout!r}, kind {kind!r}, with {len(fisher)} and {len(anchor)} bytes, "
            f"expected the layout {_layout(max(rank, 1), dim)!r}: delete it from sona.fisher_snapshot, and its task "
            "is remembered anew when it comes again"
        )
    weights = np.frombuffer(anchor, dtype="<f4").reshape(2 * rank, dim).astype(np.float32)
    information = np.frombuffer(fisher, dtype="<f4").reshape(rank, dim).astype(np.float32)
    if not (np.isfinite(weights).all() and np.isfinite(information).all() and information.min() >= 0):
        raise LearningError(
            f"Fisher snapshot {id} holds NaN, infinity or negative information: delete it from sona.fisher_snapshot"
        )
    frame, anchor = weights[:rank], weights[rank:]
    return BaseTask(id, unit(signature), frame, anchor, information, samples, quality, times_met, is_held)


def forget_base(connection: Connection, space: Space) -> None:
    """Forget how far the base has read, and its tasks; in a transaction that the caller began.

    The base itself is part of the learner, which is learned anew without it: cycles make another one of what is kept.
    """
    key = {"space": space.space_id}
    connection.execute(
        "INSERT INTO sona.base_state AS b (space_id, generation) VALUES (%(space)s, 1) ON CONFLICT (space_id)"
        " DO UPDATE SET generation = b.generation + 1, consumed = 0, judged = 0, learned = 0, offered = 0,"
        " version = NULL, reservoir = '{}', state = NULL, updated_at = now()",
        key,
    )
    connection.execute("DELETE FROM sona.fisher_snapshot WHERE space_id = %(space)s", key)
