"""The base LoRA of a space: what a cycle begins with, and what it writes under the lock of the learner."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sona_pg.errors import LockLost
from sona_pg.kernels import LowRank
from sona_pg.store.connection import Connection, transaction
from sona_pg.store.learning import Head, LearningTransaction, read_head, read_state, write_served
from sona_pg.store.ledger import LOOP
from sona_pg.store.runs import Run
from sona_pg.store.spaces import Space
from sona_pg.store.versions import publish


@dataclass(frozen=True, slots=True)
class BaseState:
    """How far the base of a space has read its ledger.

    Parameters
    ----------
    consumed
        Entries whose outcomes were taken in.
    judged
        Entries before which what was withheld has been judged by.
    generation
        Grows when a user is forgotten.
    reservoir
        Trajectories that are learned again.
    state
        What `write_base` was given; None before the first cycle.
    head
        Where the learner stands: what it has learned is read up to there.
    learner
        Its state; None before anything was learned.
    """

    consumed: int
    judged: int
    generation: int
    reservoir: tuple[uuid.UUID, ...]
    state: bytes | None
    head: Head
    learner: bytes | None


@contextlib.contextmanager
def base_reader(connection: Connection, space: Space) -> Iterator[BaseReader]:
    """Reads what a cycle begins with, all of it as of one moment."""
    with transaction(connection):
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
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
            "SELECT consumed, judged, generation, reservoir, state FROM sona.base_state WHERE space_id = %s",
            (self._space.space_id,),
        ).fetchone()
        consumed, judged, generation, reservoir, state = (0, 0, 0, [], None) if row is None else row
        return BaseState(
            # Fewer than there were, if somebody was forgotten.
            min(consumed, head.ordinal),
            min(judged, head.ordinal),
            generation,
            tuple(reservoir),
            None if state is None else bytes(state),
            head,
            read_state(self._connection, self._space),
        )

    def trajectories(self, first: int, last: int, learned: str) -> list[uuid.UUID]:
        """Trajectories of which this became, by ledger entries from `first` to before `last`, in the ledger's order."""
        rows = self._connection.execute(
            "SELECT trajectory_id FROM sona.learning_event WHERE space_id = %s AND loop = %s AND ordinal >= %s"
            " AND ordinal < %s AND learned = %s GROUP BY trajectory_id ORDER BY max(ordinal)",
            (self._space.space_id, LOOP, first, last, learned),
        ).fetchall()
        return [id for (id,) in rows]


class BaseTransaction:
    """Writes what a cycle has come to, under the lock of the learner; in a transaction that the caller began.

    Parameters
    ----------
    state
        What the cycle began with.
    lock_timeout_seconds
        Longest wait for the lock.

    Raises
    ------
    LockLost
        If something was deployed, or somebody forgotten, since: what was computed belongs to what is gone.
    """

    def __init__(self, connection: Connection, run: Run, state: BaseState, lock_timeout_seconds: int) -> None:
        self._connection, self._run, self._state = connection, run, state
        self.learner = LearningTransaction(connection, run.space, lock_timeout_seconds)
        """Where the learner stands by now, and its state."""
        if self.learner.head.epoch != state.head.epoch:
            raise LockLost(
                f"another version of space {run.space.name!r} was deployed, or somebody forgotten, meanwhile: the base "
                "is computed again"
            )

    def write_learner(self, state: bytes, served: dict[str, LowRank]) -> None:
        """Replace the state of the learner and what answers by it; flushes in flight take it over."""
        key = {"space": self._run.space.space_id, "state": state, "tiers": list(served)}
        self._connection.execute(
            "UPDATE sona.learner SET revision = revision + 1, state = %(state)s, restored = NULL, updated_at = now()"
            " WHERE space_id = %(space)s",
            key,
        )
        self._connection.execute(
            "DELETE FROM sona.served_row WHERE space_id = %(space)s AND tier = ANY(%(tiers)s)", key
        )
        write_served(self._connection, self._run.space.space_id, served)

    def publish(self, cause: str, state: bytes, served: LowRank) -> int:
        """Publish the state of the learner as a version that the strategist is to go on with; its number."""
        version = publish(self._connection, self._run.space, cause, state, served)
        self._connection.execute(
            "UPDATE sona.base_state SET version = %s WHERE space_id = %s", (version, self._run.space.space_id)
        )
        return version

    def advance(self, reservoir: Sequence[uuid.UUID], state: bytes, *, has_judged: bool) -> None:
        """Note down that what was read is taken in, and whether by what was withheld something was decided.

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
            "UPDATE sona.base_state SET consumed = %s, judged = %s, reservoir = %s, state = %s, updated_at = now()"
            " WHERE space_id = %s AND generation = %s RETURNING consumed",
            (ordinal, ordinal if has_judged else self._state.judged, list(reservoir), state, space_id)
            + (self._state.generation,),
        ).fetchone()
        if row is None:
            raise LockLost(
                f"a user of space {self._run.space.name!r} was forgotten meanwhile: the base is computed again"
            )


def forget_base(connection: Connection, space: Space) -> None:
    """Forget how far the base has read, and its tasks; in a transaction that the caller began.

    The base itself is part of the learner, which is learned anew without it: cycles make another one of what is kept.
    """
    key = {"space": space.space_id}
    connection.execute(
        "INSERT INTO sona.base_state AS b (space_id, generation) VALUES (%(space)s, 1) ON CONFLICT (space_id)"
        " DO UPDATE SET generation = b.generation + 1, consumed = 0, judged = 0, version = NULL, reservoir = '{}',"
        " state = NULL, updated_at = now()",
        key,
    )
    connection.execute("DELETE FROM sona.fisher_snapshot WHERE space_id = %(space)s", key)
