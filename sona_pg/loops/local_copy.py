"""The learner of a space as this process has it: it learns on this copy at once, and what it learns is served at once.

Several processes learn on one space. Whoever flushes writes its copy if nobody published since it was taken; otherwise
what was published is loaded, and learns the same events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from sona_pg.config import InstantLoopConfig
from sona_pg.errors import DatabaseBusy, DatabaseUnavailable, InvalidInput, LearningError, SonaError
from sona_pg.learning.edges import EdgeWeights, edge_updates
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.learner import Learner
from sona_pg.learning.outcome import OutcomeEvent
from sona_pg.loops.backlog import Backlog
from sona_pg.loops.complaints import Complaints
from sona_pg.loops.metrics import InstantLoopCounts
from sona_pg.loops.sample import item_pool
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store import learning as learning_store
from sona_pg.store import spaces
from sona_pg.store.connection import Connection
from sona_pg.store.learning import Head, LedgerEntry
from sona_pg.types import FloatVector, QueryTrajectory


class LocalCopy:
    """The learner of a space as this process has it.

    Parameters
    ----------
    new_learner
        Makes a learner that has learned nothing, from a sample of the items.
    pool
        That sample, where there is no store.
    store
        The space in the database; None learns in memory alone.
    config
        Settings.
    backlog
        What waits to be learned.
    counts, complaints
        Of the loop.
    """

    def __init__(
        self,
        new_learner: Callable[[ItemPool | None], Learner],
        pool: ItemPool | None,
        store: SpaceStore | None,
        config: InstantLoopConfig,
        backlog: Backlog,
        counts: InstantLoopCounts,
        complaints: Complaints,
    ) -> None:
        self._new_learner, self._store, self._config = new_learner, store, config
        self._backlog, self._counts, self._complaints = backlog, counts, complaints
        self.edges = EdgeWeights(config.edge_update_scale)
        """Edge weights learned in memory; with a store they are in the database."""
        self.drained: dict[UUID, QueryTrajectory] = {}
        """What was learned in memory alone, the last `max_unflushed`; none with a store."""
        self.is_away = False
        """Whether the database failed the last time; learning does not ask it then."""
        self.base: tuple[int, int, datetime | None] | None = None
        """What it was taken from; None if it may not be what the database has, and is to be taken from there."""
        self.version = 0
        """Last published version that it comes from."""
        self.has_moved = False
        """Whether a space of another embedder has taken the place of this one."""
        if store is None:
            self.learner = new_learner(pool)
        else:
            self._load_published(store, store.connection())
        self.serving = self.learner.serving()
        """What answers: immutable, replaced whenever something was learned."""

    # Learning --------------------------------------------------------------------------------------------------

    def learn_waiting(self) -> int:
        """Learn what waits in the backlog, which is to be flushed then; gives how many events waited."""
        waiting = self._backlog.waiting
        if not waiting:
            return 0
        events = [] if self.is_away else [OutcomeEvent(t) for t in waiting]
        resolve = self.embeddings_of(events, self.learner.pool)
        waited, before = len(waiting), self.learner.events
        entries: list[LedgerEntry] = []
        try:
            while waiting:
                entries += self._learn_next(waiting[0], resolve)
                waiting.popleft()
        except BaseException:
            # An interrupt may have come between learning and noting it: with a store, start from there the next time.
            self.base = None
            if self._store is None and waiting and self.learner.last == (waiting[0].id, 0):
                interrupted = waiting.popleft()
                self.drained[interrupted.id] = interrupted
            raise
        finally:
            self._counts.add_learned(entries)
            self._counts.add(repeated=waited - len(waiting) - len(entries))
            if self.learner.events > before:
                self.serving = self.learner.serving()
        return waited

    def _learn_next(self, trajectory: QueryTrajectory, resolve: Mapping[str, FloatVector]) -> list[LedgerEntry]:
        """Learn one trajectory, unless its id is there already; the entry that it makes."""
        if trajectory.id in self._backlog.unflushed_ids or trajectory.id in self.drained:
            return []
        (entry,) = learned(self.learner, [OutcomeEvent(trajectory)], resolve)
        if self._store is None:
            self.edges.update(edge_updates(entry.event))
            self.edges.commit()
            self.drained[trajectory.id] = trajectory
            if len(self.drained) > self._config.max_unflushed:
                self.drained.pop(next(iter(self.drained)))
        else:
            self._backlog.enter(entry)
        return [entry]

    def embeddings_of(self, events: Sequence[OutcomeEvent], pool: ItemPool) -> dict[str, FloatVector]:
        """Embeddings of the items of these events that neither the events nor the pool have."""
        if self._store is None:
            return {}
        missing = {
            step.item_id
            for event in events
            for step in event.trajectory.steps
            if step.item_id is not None and not step.activations.size and pool.row(step.item_id) is None
        }
        if not missing:
            return {}
        try:
            return spaces.item_embeddings(self._store.connection(), self._store.space, sorted(missing))
        except (DatabaseUnavailable, DatabaseBusy):
            raise
        except SonaError as error:
            # What was recorded must become durable all the same; the ledger says that nothing was learned from it.
            self._complaints.add(f"item embeddings cannot be read, so nothing is learned from these items: {error}")
            return {}

    # What was published ----------------------------------------------------------------------------------------

    def published(self, store: SpaceStore, connection: Connection, head: Head, state: bytes | None) -> Learner:
        """The published state as a learner, with the sample of items that belongs to it.

        Raises
        ------
        LearningError
            If it is damaged, or cannot be used.
        """
        have_pool = self.base is not None and self.base[2] == head.items_sampled_at
        try:
            pool = self.learner.pool if have_pool else item_pool(connection, store.space, head.items_sampled_at)
            learner = self._new_learner(pool)
            if state is not None:
                learner.load_bytes(state)
        except InvalidInput as cause:
            # Not the fault of what is being recorded: that must not be taken for invalid.
            raise LearningError(f"what space {store.space.name!r} has learned cannot be used: {cause}") from cause
        return learner

    def refresh(self, store: SpaceStore, connection: Connection) -> None:
        """Take what was published, if it is not what the copy was taken from."""
        if learning_store.read_head(connection, store.space).key != (self.base, self.has_moved):
            self._load_published(store, connection)
            self.serving = self.learner.serving()

    def _load_published(self, store: SpaceStore, connection: Connection) -> None:
        head = learning_store.read_head(connection, store.space)
        self.learner = self.published(store, connection, head, learning_store.read_state(connection, store.space))
        self._stand_at(head)

    def become(self, learner: Learner, head: Head) -> None:
        """The database has this learner: it is the copy from now on."""
        self.learner = learner
        self._stand_at(head)
        self.serving = learner.serving()

    def _stand_at(self, head: Head) -> None:
        self.base, self.version, self.has_moved = head.base, head.version, head.has_moved


def learned(learner: Learner, events: Sequence[OutcomeEvent], resolve: Mapping[str, FloatVector]) -> list[LedgerEntry]:
    """Let a learner learn events, in order; `resolve` has embeddings (dim,) of items that are not in its sample."""
    return [LedgerEntry(event, learner.learn(event, resolve.get)) for event in events]
