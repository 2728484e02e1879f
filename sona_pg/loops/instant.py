"""Loop A: record at every request, learn at once on a local copy, and make it durable in one transaction.

The caller's path is `on_inference`: it checks, appends to a lock-free buffer and returns. Learning, `learn_pending`,
and making durable, `flush_updates`, take turns under a lock that the caller's path never takes.

Several processes learn on one space. A flush takes the row lock of the space's learner: if nobody published since the
local copy was taken, it writes its state; otherwise it loads the published state, replays its own events on it in
order, and writes that. Adding up differences of weights would destroy what an adaptive optimiser depends on.

What the database does not take goes to the spool on local disk, and is replayed, in order, before anything newer.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain

from sona_pg.config import InstantLoopConfig, QueryAdapterConfig, SignalConfig, SpaceConfig
from sona_pg.errors import (
    ConfigError,
    DatabaseBusy,
    DatabaseError,
    DatabaseUnavailable,
    DimensionMismatch,
    EmbedderMismatch,
    InvalidInput,
    LearningError,
    SonaError,
    UnknownSpace,
)
from sona_pg.kernels import Ring
from sona_pg.learning.edges import EdgeWeights, apply_updates, edge_updates, helpful_items
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.learner import Learned, Learner
from sona_pg.learning.lora import MicroLoRA
from sona_pg.learning.outcome import OutcomeEvent
from sona_pg.learning.serving import Serving
from sona_pg.loops.admission import admitted, admitted_score, checked_text
from sona_pg.loops.buffer import TrajectoryBuffer
from sona_pg.loops.metrics import InstantLoopMetrics
from sona_pg.loops.sample import item_pool
from sona_pg.loops.space_store import SpaceStore
from sona_pg.steps import reached
from sona_pg.store import learning as learning_store
from sona_pg.store import spaces
from sona_pg.store.connection import Connection
from sona_pg.store.learning import LearningTransaction, LedgerEntry
from sona_pg.store.observation import DROPPED
from sona_pg.store.spaces import Space
from sona_pg.store.spool import Spool
from sona_pg.store.spool_record import Event
from sona_pg.types import FloatVector, QueryTrajectory, Score

log = logging.getLogger("sona_pg")

CHANGED_WEIGHTS = (Learned.ADAPTER, Learned.MICRO)

_DROPPED_SECONDS = 60.0
"""Longest time between two entries in `sona.errors` of how many were dropped; an overload drops all the time."""

_REFUSALS = (InvalidInput, DimensionMismatch)
"""Errors that are the fault of what was recorded: it is set aside, and the rest goes through."""


class InstantLoop:
    """Records, learns and makes durable what happens at every request.

    Without a store it learns in memory alone.

    Parameters
    ----------
    hidden_dim
        Dimension of the space.
    config, adapter, signal, space
        Settings.
    pool
        Sample of the items; read from the database where there is a store.
    store
        The space in the database, and how to connect to it.

    Examples
    --------
    >>> from sona_pg.types import TrajectoryBuilder
    >>> loop = InstantLoop(3)
    >>> builder = TrajectoryBuilder(1, [1.0, 0.0, 0.0])
    >>> builder.add_step([0.0, 1.0, 0.0], reward=1.0)
    >>> builder.add_step([0.0, 0.0, 1.0], reward=0.0)
    >>> loop.on_inference(builder.build(1.0))
    True
    >>> loop.flush_updates()
    >>> loop.metrics.learned
    1
    """

    def __init__(
        self,
        hidden_dim: int,
        config: InstantLoopConfig | None = None,
        *,
        adapter: QueryAdapterConfig | None = None,
        signal: SignalConfig | None = None,
        space: SpaceConfig | None = None,
        pool: ItemPool | None = None,
        store: SpaceStore | None = None,
    ) -> None:
        self.config = InstantLoopConfig() if config is None else config
        self.adapter_config = QueryAdapterConfig.for_dim(hidden_dim) if adapter is None else adapter
        self._signal_config = SignalConfig() if signal is None else signal
        self._space_config = SpaceConfig() if space is None else space
        self._dim = hidden_dim
        self._store = store
        self._buffer = TrajectoryBuffer(self.config.max_pending_signals)
        self._scores = Ring(self.config.max_pending_signals)
        self._turn = threading.Lock()
        """Held while learning or flushing; never on the caller's path."""
        self._moving = threading.Lock()
        """Held while the buffers are emptied: what they held is never in between. Never on the caller's path."""
        self._waiting: deque[QueryTrajectory] = deque()
        self._unflushed: list[LedgerEntry] = []
        self._unflushed_ids: set[uuid.UUID] = set()
        self._unflushed_scores: list[Score] = []
        self._spilled: deque[Event] = deque()
        """Taken out of the buffers while a flush took long, and not taken by the spool."""
        self._is_away = False
        """Whether the database failed the last time; learning does not ask it then."""
        self._spooled = 0
        self._began: float | None = None
        """When whoever holds the turn took it, by the monotonic clock."""
        self._has_copied = False
        self._complaints: list[str] = []
        self._dropped_told = 0
        self._tell_dropped_at = 0.0
        self._spool_batch = 1 if store is None else store.config.spool_batch
        self._drained: dict[uuid.UUID, QueryTrajectory] = {}
        self._edges = EdgeWeights(self.config.edge_update_scale)
        self._counts = InstantLoopMetrics()
        self._base: tuple[int, int, datetime | None] | None = None
        self._version = 0
        self._has_moved = False
        self._given_up: str | None = None
        self._lost_told = 0
        if store is None:
            self._learner = self._new_learner(pool)
        else:
            self._adopt_published(store.connection())
        self._serving = self._learner.serving()

    def _new_learner(self, pool: ItemPool | None) -> Learner:
        return Learner(
            self._dim,
            pool,
            adapter=self.adapter_config,
            instant=self.config,
            signal=self._signal_config,
            space=self._space_config,
        )

    # The caller's path -----------------------------------------------------------------------------------------

    def on_inference(self, trajectory: QueryTrajectory) -> bool:
        """Record a trajectory; never blocks.

        Returns
        -------
        bool
            False, and counted, if the buffers are full.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If it cannot belong to the space; nothing was recorded.
        """
        trajectory = admitted(trajectory, self._dim, self._space_config)
        return self._buffer.refuse() if self._is_full else self._buffer.record(trajectory)

    def on_inferences(self, trajectories: Iterable[QueryTrajectory], *, wait: bool = False) -> int:
        """Record trajectories, all or, where one is not valid, none; gives how many the buffers took, the first ones.

        Parameters
        ----------
        wait
            Whether to make room where the buffers are full: whoever waits learns and flushes. Without, it never blocks,
            and what does not fit is counted as dropped.

        Raises
        ------
        InvalidInput
            If one of them cannot belong to the space, or is no trajectory: says which row; nothing was recorded.
        DatabaseError
            With `wait`, if the database does not take what the buffers hold, and the spool has no room: says how many
            were recorded; the others are counted as dropped.
        """
        if not isinstance(wait, bool):
            raise InvalidInput(f"wait is {wait!r}, expected True or False")
        if not isinstance(trajectories, Iterable):
            raise InvalidInput(f"a {type(trajectories).__name__} was given, expected trajectories")
        checked: list[QueryTrajectory] = []
        try:
            for trajectory in trajectories:
                checked.append(admitted(trajectory, self._dim, self._space_config))
        except _REFUSALS as error:
            raise InvalidInput(f"row {len(checked)}: {error}; nothing was recorded") from error
        taken = 0
        try:
            while True:
                if not self._is_full:
                    taken = self._buffer.record_from(checked, taken)
                if not wait or taken == len(checked):
                    return taken
                self._make_room()
        except DatabaseError as error:
            raise DatabaseError(
                f"{taken} of {len(checked)} rows were recorded, the others dropped: the buffers are full, and {error}"
            ) from error
        finally:
            self._buffer.refuse(len(checked) - taken)

    def _make_room(self) -> None:
        """Learn what the buffers hold; where that is as much as may wait for the database, flush it."""
        if not self._is_full:
            self.learn_pending()
            return
        try:
            self.flush_updates()
        except DatabaseError:
            if self._is_full:
                raise

    def on_score(self, score: Score) -> bool:
        """Record a late outcome; never blocks. False, and counted, if the buffers are full.

        Raises
        ------
        ConfigError
            Without a store: what was recorded is not kept, so that nothing could be scored.
        """
        if self._store is None:
            raise ConfigError("late scores need a database: connect with SonaEngine, or give the reward when recording")
        return self._scores.refuse() if self._is_full else self._scores.push(score)

    @property
    def _is_full(self) -> bool:
        held = len(self._unflushed) + len(self._waiting) + len(self._unflushed_scores) + len(self._spilled)
        return held >= self.config.max_unflushed

    @property
    def is_half_full(self) -> bool:
        """Whether the buffers fill faster than they are emptied: time to call `spill`."""
        return 2 * max(len(self._buffer), len(self._scores)) > self.config.max_pending_signals

    @property
    def serving(self) -> Serving:
        """What answers: immutable, replaced whenever something was learned."""
        return self._serving

    @property
    def version(self) -> int:
        """Last published version that the local state comes from."""
        return self._version

    @property
    def space(self) -> Space | None:
        """The space, as it was when the loop was made; None without a store."""
        return None if self._store is None else self._store.space

    @property
    def has_moved(self) -> bool:
        """Whether a space of another embedder has taken the place of this one, as the last flush has seen it."""
        return self._has_moved

    @property
    def given_up(self) -> str | None:
        """What to tell whoever goes on, once the embedder of this space was given up and another space has its name."""
        return self._given_up

    @property
    def micro_lora(self) -> MicroLoRA:
        """The micro-LoRA that is being trained."""
        return self._learner.micro

    @property
    def edges(self) -> EdgeWeights:
        """Edge weights learned in memory; with a store they are in the database."""
        return self._edges

    @property
    def learner(self) -> Learner:
        """Everything that is being trained."""
        return self._learner

    @property
    def metrics(self) -> InstantLoopMetrics:
        """What the loop did so far."""
        waiting = len(self._buffer) + len(self._waiting) + len(self._spilled)
        return replace(
            self._counts,
            recorded=self._buffer.recorded_count,
            spooled=self._spooled,
            scored=self._scores.taken,
            dropped=self._buffer.dropped_count + self._scores.dropped,
            pending=waiting,
            unflushed=len(self._unflushed) + len(self._unflushed_scores) + len(self._scores),
        )

    # Learning --------------------------------------------------------------------------------------------------

    def learn_pending(self) -> int:
        """Learn what was recorded, on the local copy; what is learned is served at once.

        Returns
        -------
        int
            Number of events. While the database is away, what needs embeddings that only it has teaches nothing yet:
            the replay, once it is back, has them.
        """
        with self._take_turn():
            try:
                return self._learn_pending()
            except (DatabaseUnavailable, DatabaseBusy) as error:
                self._fail(error)
                return self._learn_pending()

    def _fail(self, error: BaseException) -> None:
        """The database failed, or what was learned meanwhile may not be what it has: start from there the next time."""
        self._base = None
        self._is_away = isinstance(error, DatabaseUnavailable | DatabaseBusy)
        self._note_error(error)
        if self._store is not None:
            self._store.discard()

    def _take_buffers(self) -> None:
        """Take out of the buffers what was recorded; everything keeps its order, that in the spool too."""
        with self._moving:
            self._drain(None if self._store is None else self._store.spool)

    def _drain(self, spool: Spool | None) -> None:
        if spool is not None and self._holds_any and spool.is_split:
            # Between what memory holds and what the buffers hold is what was spilled: these go behind that.
            self._append_behind(spool)
            return
        if spool is not None and not self._holds_any:
            spool.advance()
        self._has_copied = False
        while self._spilled:
            # First there, then gone from here: an interrupt in between does no harm.
            event = self._spilled[0]
            if isinstance(event, Score):
                self._unflushed_scores.append(event)
            else:
                self._waiting.append(event)
            self._spilled.popleft()
        self._buffer.drain_into(self._waiting)
        self._scores.drain_into(self._unflushed_scores)

    def _take_newest(self, spool: Spool) -> bool:
        """Empty the buffers, unless something was spilled in between, which is older and goes first."""
        with self._moving:
            if spool.holds_own and not self._holds_any:
                return False
            self._drain(spool)
            return True

    @property
    def _holds_any(self) -> bool:
        return bool(self._unflushed or self._waiting or self._unflushed_scores)

    def _learn_pending(self) -> int:
        self._take_buffers()
        return self._learn_waiting()

    def _learn_waiting(self) -> int:
        if not self._waiting:
            return 0
        events = [] if self._is_away else [OutcomeEvent(t) for t in self._waiting]
        resolve = self._embeddings_of(events, self._learner.pool)
        waited, before = len(self._waiting), self._learner.events
        entries: list[LedgerEntry] = []
        try:
            while self._waiting:
                entries += self._learn_next(self._waiting[0], resolve)
                self._waiting.popleft()
        except BaseException:
            # An interrupt may have come between learning and noting it: with a store, start from there the next time.
            self._base = None
            if self._store is None and self._waiting and self._learner.last == (self._waiting[0].id, 0):
                interrupted = self._waiting.popleft()
                self._drained[interrupted.id] = interrupted
            raise
        finally:
            self._count_learned(entries)
            self._count(repeated=waited - len(self._waiting) - len(entries))
            if self._learner.events > before:
                self._serving = self._learner.serving()
        return waited

    def _learn_next(self, trajectory: QueryTrajectory, resolve: Mapping[str, FloatVector]) -> list[LedgerEntry]:
        """Learn one trajectory, unless its id is there already; the entry that it makes."""
        if trajectory.id in self._unflushed_ids or trajectory.id in self._drained:
            return []
        (entry,) = self._learn(self._learner, [OutcomeEvent(trajectory)], resolve)
        if self._store is None:
            self._edges.update(edge_updates(entry.event))
            self._edges.commit()
            self._drained[trajectory.id] = trajectory
            if len(self._drained) > self.config.max_unflushed:
                self._drained.pop(next(iter(self._drained)))
        else:
            self._unflushed.append(entry)
            self._unflushed_ids.add(trajectory.id)
        return [entry]

    def _count_learned(self, entries: Sequence[LedgerEntry], sign: int = 1) -> None:
        learned = sum(entry.learned in CHANGED_WEIGHTS for entry in entries)
        self._count(learned=sign * learned, skipped=sign * (len(entries) - learned))

    def _count(self, **more: int) -> None:
        """Add to counts; only by whoever holds the turn."""
        added = {name: getattr(self._counts, name) + by for name, by in more.items()}
        self._counts = replace(self._counts, **added)

    def _note_error(self, error: BaseException | None) -> None:
        said = None if error is None else str(error) or type(error).__name__
        self._counts = replace(self._counts, last_error=said)

    @staticmethod
    def _learn(learner: Learner, events: list[OutcomeEvent], resolve: Mapping[str, FloatVector]) -> list[LedgerEntry]:
        return [LedgerEntry(event, learner.learn(event, resolve.get)) for event in events]

    def _embeddings_of(self, events: list[OutcomeEvent], pool: ItemPool) -> dict[str, FloatVector]:
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
            self._complain(f"item embeddings cannot be read, so nothing is learned from these items: {error}")
            return {}

    # Making durable --------------------------------------------------------------------------------------------

    def flush_updates(self) -> None:
        """Learn what waits, and make everything durable in one transaction; then take back what others published.

        What an outage left in the spool goes first.

        Raises
        ------
        DatabaseError
            If the database does not take it. Nothing is lost: it is in the spool, or in memory where there is none or
            it is full, and the next flush tries again.
        EmbedderMismatch
            If the embedder of the space was given up; what was not durable is lost, and counted in `sona.errors`.
        """
        with self._take_turn():
            if self._store is None:
                self._learn_pending()
            else:
                self._synchronize(self._store, claim=0)

    def learn_recorded(self, limit: int) -> int:
        """Learn up to `limit` trajectories that SQL clients recorded or scored; gives how many there were.

        Raises
        ------
        DatabaseError
            If the database does not take it; they wait for the next call.
        """
        with self._take_turn():
            return 0 if self._store is None else self._synchronize(self._store, claim=limit)

    def publish(self, cause: str) -> int | None:
        """Publish what is learned as a version, with what is known of the strategies; its number.

        None without a store, before anything was learned, or if the space has another epoch than the last flush has
        seen: what was deployed since is published.

        Raises
        ------
        InvalidInput
            If the cause is no text that Postgres can store.
        DatabaseError
            If the database does not take it.
        """
        checked_text(cause, "the cause")
        with self._take_turn():
            store, base = self._store, self._base
            if store is None or base is None:
                return None
            connection = store.connection()
            with learning_store.learning_transaction(connection, store.space, store.config) as transaction:
                head, state = transaction.head, transaction.state()
                if state is None or head.epoch != base[0]:
                    return None
                served = self._published(connection, head, state).adapter.map
                version = transaction.publish(cause, state, served)
            if head.base == self._base:
                self._version = version
            return version

    @contextlib.contextmanager
    def _take_turn(self) -> Iterator[None]:
        with self._turn:
            self._began, self._has_copied = time.monotonic(), False
            try:
                yield
            finally:
                self._began = None

    def _synchronize(self, store: SpaceStore, *, claim: int) -> int:
        claimed = 0
        try:
            connection = store.connection()
            self._is_away = False
            if store.spool is None:
                self._take_buffers()
            else:
                self._replay_spool(connection, store, store.spool)
                while not self._take_newest(store.spool):
                    self._replay_spool(connection, store, store.spool)
            self._learn_waiting()
            if claim or self._unflushed or self._unflushed_scores:
                claimed = self._flush_or_set_aside(connection, store, claim)
            elif learning_store.read_head(connection, store.space).key != (self._base, self._has_moved):
                self._adopt_published(connection)
                self._serving = self._learner.serving()
        except BaseException as error:
            self._fail(error)
            if isinstance(error, UnknownSpace):
                # Of a space that is gone nothing can ever be replayed.
                self._find_given_up(store)
                if self._given_up is not None:
                    raise EmbedderMismatch(self._given_up) from error
            elif isinstance(error, SonaError) and store.spool is not None:
                self._spill_held(store.spool)
            raise
        self._note_error(None)
        self._write_complaints(store)
        return claimed

    def _flush_or_set_aside(self, connection: Connection, store: SpaceStore, claim: int) -> int:
        """Flush everything; where the database refuses the data, one by one, so that what is valid goes through."""
        entries, scores = self._unflushed, self._unflushed_scores
        try:
            return self._flush(connection, store, entries, scores, claim)
        except _REFUSALS as error:
            self._base = None
            if entries or scores:
                self._flush_singly(connection, store, entries, scores)
            elif claim == 1:
                trajectory_id = learning_store.drop_oldest_pending(connection, store.space)
                self._complain(f"trajectory {trajectory_id}, which an SQL client wrote, was refused: {error}")
                self._count(refused=1)
                return 1
        return self._flush_or_set_aside(connection, store, 1) if claim else 0

    def _flush_singly(
        self,
        connection: Connection,
        store: SpaceStore,
        entries: Sequence[LedgerEntry],
        scores: Sequence[Score],
        *,
        is_learned: bool = True,
        spooled_since: datetime | None = None,
    ) -> None:
        singles: list[tuple[list[LedgerEntry], list[Score]]] = [([entry], []) for entry in entries]
        for one, of_it in [*singles, *(([], [score]) for score in scores)]:
            self._base = None
            try:
                self._flush(connection, store, one, of_it, claim=0, is_learned=is_learned, spooled_since=spooled_since)
            except _REFUSALS as error:
                self._complain(f"{', '.join(_named(one, of_it))} was refused: {error}")
                self._count(refused=1)
                self._forget(one, of_it)

    # The spool -------------------------------------------------------------------------------------------------

    def spill(self) -> None:
        """While a flush takes long, keep what is recorded safe on disk; by a thread of its own.

        The buffers are moved to the spool before they fill. Where the flush seems to hang, so is what it holds copied:
        the process may be killed before the database answers.
        """
        spool, began = None if self._store is None else self._store.spool, self._began
        hangs = began is not None and time.monotonic() - began > self.config.patience_seconds
        if spool is None or not (hangs or self.is_half_full):
            return
        if self._turn.acquire(blocking=False):
            self._turn.release()  # nobody flushes: whoever learns next empties the buffers
            return
        with self._moving:
            if hangs and not self._has_copied:
                # In this order: what moves from one to the other meanwhile is in both, and counts once all the same.
                waiting = list(self._waiting)
                held: list[Event] = [entry.event.trajectory for entry in self._unflushed]
                copies = [*held, *waiting, *self._unflushed_scores]
                self._has_copied = self._write_spool(spool.append, copies) == len(copies)
            self._append_behind(spool)

    @property
    def is_safe(self) -> bool:
        """Whether all that was recorded is on disk, though a flush hangs: the process may end."""
        with self._moving:
            held = len(self._buffer) + len(self._scores) + len(self._spilled)
            return self._began is not None and self._has_copied and not held

    def _append_behind(self, spool: Spool) -> None:
        """Move the buffers to the spool, behind what memory holds; what it does not take is held beside them."""
        self._buffer.drain_into(self._spilled)
        self._scores.drain_into(self._spilled)
        for _ in range(self._write_spool(spool.append_behind, list(self._spilled))):
            self._spilled.popleft()

    def _spill_held(self, spool: Spool) -> None:
        """Move what memory holds to the spool, and then the buffers, as far as it takes them."""
        self._spill_memory(spool)
        self._take_buffers()
        self._spill_memory(spool)

    def _spill_memory(self, spool: Spool) -> None:
        events: list[Event] = [entry.event.trajectory for entry in self._unflushed]
        events += [*self._waiting, *self._unflushed_scores]
        written = self._write_spool(spool.append, events)
        unlearned, self._unflushed = self._unflushed[:written], self._unflushed[written:]
        self._unflushed_ids = {entry.event.trajectory.id for entry in self._unflushed}
        written -= len(unlearned)
        passed = min(written, len(self._waiting))
        for _ in range(passed):
            self._waiting.popleft()
        self._unflushed_scores = self._unflushed_scores[written - passed :]
        # They are learned, and counted, when they are replayed.
        self._count_learned(unlearned, sign=-1)

    def _write_spool(self, append: Callable[[Sequence[Event]], int], events: Sequence[Event]) -> int:
        """How many of these events the spool took."""
        try:
            written = append(events)
        except SonaError as error:
            log.error("%s", error)
            return 0
        self._spooled += written
        if written < len(events):
            log.error("the spool takes no more: %d events wait in memory", len(events) - written)
        return written

    def _replay_spool(self, connection: Connection, store: SpaceStore, spool: Spool) -> None:
        """Make durable what an outage left on disk, of this process and of dead ones, before anything newer."""
        while True:
            if self._holds_any and spool.holds_own:
                self._spill_memory(spool)
            batch = spool.take(self._spool_batch, up_to_front=self._holds_any)
            if batch is None and self._holds_any and spool.holds_own:
                # The spool has no room for what is older than the rest of it: that goes first.
                self._base = None
                self._learn_waiting()
                self._flush_or_set_aside(connection, store, claim=0)
                continue
            if batch is None:
                return
            if self._holds_any:
                self._base = None  # the copy may have learned what is not durable yet
            events, refusals = self._readmitted(batch.events)
            scores = [event for event in events if isinstance(event, Score)]
            entries = [LedgerEntry(OutcomeEvent(event), "") for event in events if isinstance(event, QueryTrajectory)]
            try:
                self._flush(connection, store, entries, scores, claim=0, is_learned=False, spooled_since=batch.since)
            except _REFUSALS:
                self._flush_singly(connection, store, entries, scores, is_learned=False, spooled_since=batch.since)
            except DatabaseBusy:
                # A smaller transaction may pass where this one took too long.
                self._spool_batch = max(1, self._spool_batch // 4)
                raise
            spool.confirm(batch)
            self._count(refused=len(refusals))
            for refusal in [*batch.problems, *refusals]:
                self._complain(refusal)
            self._spool_batch = min(2 * self._spool_batch, store.config.spool_batch)
            if self.is_half_full:
                with self._moving:
                    self._append_behind(spool)
            if self._holds_any:
                self._base = None

    def _readmitted(self, read: Sequence[Event]) -> tuple[list[Event], list[str]]:
        """What was read from disk and passed the door again; and why the rest did not."""
        events: list[Event] = []
        refusals: list[str] = []
        for event in read:
            try:
                if isinstance(event, Score):
                    events.append(admitted_score(event, self._space_config))
                else:
                    events.append(admitted(event, self._dim, self._space_config))
            except SonaError as error:
                refusals.append(f"an event in the spool was refused: {error}")
        return events, refusals

    def _forget(self, entries: Sequence[LedgerEntry], scores: Sequence[Score]) -> None:
        gone = {id(part) for part in [*entries, *scores]}
        self._unflushed = [entry for entry in self._unflushed if id(entry) not in gone]
        self._unflushed_scores = [score for score in self._unflushed_scores if id(score) not in gone]
        self._unflushed_ids = {entry.event.trajectory.id for entry in self._unflushed}

    def _flush(
        self,
        connection: Connection,
        store: SpaceStore,
        waiting: Sequence[LedgerEntry],
        scores: Sequence[Score],
        claim: int,
        *,
        is_learned: bool = True,
        spooled_since: datetime | None = None,
    ) -> int:
        """One learning transaction, with up to `claim` trajectories of SQL clients; gives how many those were.

        What is not learned yet (`is_learned`) is learned here, as is what must be learned anew on another's state. Of
        what comes from the spool it is known when its file was begun (`spooled_since`).
        """
        started_at = datetime.now(UTC)
        # An interrupt may have entered one twice; the first counts.
        distinct = {entry.event.trajectory.id: entry for entry in reversed(waiting)}
        entries, learner, replayed = list(reversed(distinct.values())), self._learner, False
        reached("flush.before_lock")
        with learning_store.learning_transaction(connection, store.space, store.config) as transaction:
            reached("flush.after_lock")
            # A flush whose commit was not confirmed may have been taken all the same; and ids may be given twice.
            known = transaction.recorded([entry.event.trajectory.id for entry in entries])
            # What is there already has passed this door.
            unknown = [entry.event.trajectory for entry in entries if entry.event.trajectory.id not in known]
            dropped = transaction.forgotten(unknown, spooled_since)
            refused = len(dropped)
            if known or dropped or transaction.head.base != self._base:
                learner, replayed = self._published(connection, transaction.head, transaction.state()), True
            if replayed or not is_learned:
                gone = known | dropped
                events = [entry.event for entry in entries if entry.event.trajectory.id not in gone]
                entries = self._learn(learner, events, self._embeddings_of(events, learner.pool))
            reached("flush.after_state")
            transaction.write_trajectories([entry.event.trajectory for entry in entries])
            reached("flush.after_trajectories")
            fresh_scores = transaction.write_scores(scores)
            reached("flush.after_scores")
            recorded = {entry.event.trajectory.id: entry.event.trajectory for entry in entries}
            claimed = transaction.claim_pending(claim) if claim else []
            reached("flush.after_pending")
            dropped |= transaction.forgotten_claims(claimed)
            transaction.delete(dropped)
            touched = [*recorded, *(score.trajectory_id for score in scores), *claimed]
            late = transaction.unlearned_events(list(dict.fromkeys(touched)), recorded)
            late_entries = self._learn(learner, late, self._embeddings_of(late, learner.pool))
            ledger = entries + late_entries
            self._write_edges(transaction, [entry.event for entry in ledger])
            reached("flush.after_edges")
            head = transaction.head
            if ledger:
                head = transaction.write_learner(
                    learner.to_bytes(),
                    {"adapter": learner.adapter.map, "micro": learner.micro},
                    ledger,
                    sum(entry.learned in CHANGED_WEIGHTS for entry in ledger),
                    started_at=started_at,
                    replayed=replayed,
                    worker=store.worker,
                    config=store.config,
                )
            reached("flush.before_commit")
        reached("flush.after_commit")
        self._learner, self._base, self._version = learner, head.base, head.version
        self._has_moved = head.has_moved
        self._serving = learner.serving()
        self._forget(waiting, scores)
        if is_learned:
            self._count_learned(waiting, sign=-1)  # counted when they were learned; what was committed counts
        self._count_learned(ledger)
        self._count(
            repeated=len(waiting) - len(recorded) - refused + len(scores) - fresh_scores,
            refused=len(dropped),
            flushed=len(ledger),
            flushes=1,
            replays=int(replayed),
        )
        if dropped:
            # Without a name: that is what is to be forgotten.
            self._complain(
                f"{len(dropped)} trajectories were dropped: whoever asked was forgotten after they had been answered"
            )
        return len(claimed)

    def _write_edges(self, transaction: LearningTransaction, events: Sequence[OutcomeEvent]) -> None:
        helped = [helpful_items(event) for event in events]
        # Most items have no edges, and then nothing that was shown beside them can be weakened.
        connected = transaction.connected_items(list(dict.fromkeys(chain.from_iterable(helped))))
        connected.update(item for items in helped if len(items) > 1 for item in items)
        updates = [update for event in events for update in edge_updates(event, connected)]
        before = transaction.edge_weights(list(dict.fromkeys(update.edge for update in updates)))
        transaction.write_edges(apply_updates(before, updates, self.config.edge_update_scale))

    def _complain(self, message: str) -> None:
        """Say it in the log and, once the database is free for it, in `sona.errors`."""
        log.error("%s", message)
        self._complaints.append(message)

    def _write_complaints(self, store: SpaceStore) -> None:
        if self._complaints:
            complaints, self._complaints = self._complaints, []
            store.log_errors("instant", complaints)
        if time.monotonic() >= self._tell_dropped_at:
            self._tell_dropped(store)

    def _tell_dropped(self, store: SpaceStore) -> None:
        """What was dropped is counted where everybody can see it, too: the process takes its own counts along."""
        dropped = self._buffer.dropped_count + self._scores.dropped
        more = dropped - self._dropped_told
        if more:
            store.log_errors(DROPPED, [f"{more} trajectories and scores were dropped: buffers and spool were full"])
            self._dropped_told, self._tell_dropped_at = dropped, time.monotonic() + _DROPPED_SECONDS

    def _find_given_up(self, store: SpaceStore) -> None:
        """Where another space has the name of this one, which is gone: say so, and what is lost with this one there."""
        try:
            heir = spaces.find_space(store.connection(), store.space.name)
        except SonaError:
            return  # the next flush looks again
        if heir is None:
            return
        lost = self.metrics.pending + self.metrics.unflushed
        self._given_up = (
            f"space {store.space.name!r} is another one by now, of the embedder {heir.embedder!r}: the one of "
            f"{store.space.embedder!r} was given up (sona space re-embed --abort, --finish), or deleted, and {lost} "
            "trajectories and scores that were not durable are lost with it; embed with that model and connect again"
        )
        if lost > self._lost_told:
            more = (
                f"{lost - self._lost_told} trajectories and scores were dropped: the embedder {store.space.embedder!r} "
                "was given up before they were durable"
            )
            SpaceStore(heir, store.connection, store.config).log_errors(DROPPED, [more])
            self._lost_told = lost

    def _adopt_published(self, connection: Connection) -> None:
        assert self._store is not None
        head = learning_store.read_head(connection, self._store.space)
        self._learner = self._published(connection, head, learning_store.read_state(connection, self._store.space))
        self._base, self._version, self._has_moved = head.base, head.version, head.has_moved

    def _published(self, connection: Connection, head: learning_store.Head, state: bytes | None) -> Learner:
        """The published state as a learner, with the sample of items that belongs to it."""
        assert self._store is not None
        have_pool = self._base is not None and self._base[2] == head.items_sampled_at
        try:
            pool = self._learner.pool if have_pool else item_pool(connection, self._store.space, head.items_sampled_at)
            learner = self._new_learner(pool)
            if state is not None:
                learner.load_bytes(state)
        except InvalidInput as cause:
            # Not the fault of what is being recorded: that must not be taken for invalid.
            raise LearningError(f"what space {self._store.space.name!r} has learned cannot be used: {cause}") from cause
        return learner

    def close(self) -> None:
        """Close the connection to the database, and leave the spool to whoever opens the space next."""
        if self._store is not None:
            if not self._is_away:
                self._tell_dropped(self._store)
            self._store.close()

    def drain_trajectories(self) -> list[QueryTrajectory]:
        """What was learned in memory since the last call, at most `max_unflushed`; nothing with a store."""
        with self._turn:
            drained = list(self._drained.values())
            self._drained.clear()
            return drained


def _named(entries: Sequence[LedgerEntry], scores: Sequence[Score]) -> Iterator[str]:
    """How a complaint names what was refused: not by what it holds, so that a user who is forgotten is found in it."""
    for entry in entries:
        trajectory = entry.event.trajectory
        yield f"trajectory {trajectory.id} of user_id={trajectory.user_id!r}"
    for score in scores:
        yield f"score {score.score_id!r} of trajectory {score.trajectory_id}"
