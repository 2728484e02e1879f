"""Loop A: record at every request, learn at once on a local copy, and make it durable in one transaction.

The caller's path is `on_inference`: it checks, appends to a lock-free buffer and returns; see `backlog`. Learning,
`learn_pending` (see `local_copy`), and making durable, `flush_updates` (see `flush`), take turns under a lock that the
caller's path never takes.

What the database does not take goes to the spool on local disk, and is replayed, in order, before anything newer.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from sona_pg.config import InstantLoopConfig, QueryAdapterConfig, SignalConfig, SpaceConfig
from sona_pg.errors import (
    ConfigError,
    DatabaseBusy,
    DatabaseError,
    DatabaseUnavailable,
    EmbedderMismatch,
    InvalidInput,
    SonaError,
    UnknownSpace,
)
from sona_pg.learning.edges import EdgeWeights
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.learner import Learner
from sona_pg.learning.lora import MicroLoRA
from sona_pg.learning.serving import Serving
from sona_pg.loops.admission import REFUSALS, admitted, checked_text
from sona_pg.loops.backlog import Backlog
from sona_pg.loops.complaints import Complaints
from sona_pg.loops.flush import Flusher
from sona_pg.loops.local_copy import LocalCopy
from sona_pg.loops.metrics import InstantLoopCounts, InstantLoopMetrics
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store import learning as learning_store
from sona_pg.store.spaces import Space
from sona_pg.types import QueryTrajectory, Score


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
        self._turn = threading.Lock()
        """Held while learning or flushing; never on the caller's path."""
        self._began: float | None = None
        """When whoever holds the turn took it, by the monotonic clock."""
        self._given_up: str | None = None
        self._counts, self._complaints = InstantLoopCounts(), Complaints()
        self._backlog = Backlog(self.config, None if store is None else store.spool, self._counts)
        self._copy = LocalCopy(
            self._new_learner, pool, store, self.config, self._backlog, self._counts, self._complaints
        )
        self._flusher = None
        if store is not None:
            self._flusher = Flusher(store, self.config, self._backlog, self._copy, self._counts, self._complaints)

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
        return self._backlog.record(admitted(trajectory, self._dim, self._space_config))

    def on_inferences(self, trajectories: Iterable[QueryTrajectory], *, wait: bool = False) -> int:
        """Record trajectories, all or, where one is not valid, none; gives how many the buffers took, the first ones.

        Parameters
        ----------
        wait
            Whether to make room where as much waits as may wait: whoever waits learns and flushes. Without, no database
            is waited for, and what does not fit is counted as dropped.

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
        except REFUSALS as error:
            raise InvalidInput(f"row {len(checked)}: {error}; nothing was recorded") from error
        taken = 0
        try:
            while True:
                if not self._backlog.is_full:
                    taken = self._backlog.buffer.record_from(checked, taken)
                if taken == len(checked):
                    return taken
                if wait:
                    self._make_room()
                elif self._backlog.is_full:
                    return taken
                else:
                    self._backlog.set_aside()
        except DatabaseError as error:
            raise DatabaseError(
                f"{taken} of {len(checked)} rows were recorded, the others dropped: the buffers are full, and {error}"
            ) from error
        finally:
            self._backlog.buffer.refuse(len(checked) - taken)

    def _make_room(self) -> None:
        """Learn what the buffers hold; where that is as much as may wait for the database, flush it."""
        if not self._backlog.is_full:
            self.learn_pending()
            return
        try:
            self.flush_updates()
        except DatabaseError:
            if self._backlog.is_full:
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
        return self._backlog.record_score(score)

    @property
    def is_half_full(self) -> bool:
        """Whether the buffers fill faster than they are emptied: time to call `spill`."""
        return self._backlog.is_half_full

    @property
    def serving(self) -> Serving:
        """What answers: immutable, replaced whenever something was learned."""
        return self._copy.serving

    @property
    def version(self) -> int:
        """Last published version that the local state comes from."""
        return self._copy.version

    @property
    def space(self) -> Space | None:
        """The space, as it was when the loop was made; None without a store."""
        return None if self._store is None else self._store.space

    @property
    def has_moved(self) -> bool:
        """Whether a space of another embedder has taken the place of this one, as the last flush has seen it."""
        return self._copy.has_moved

    @property
    def given_up(self) -> str | None:
        """What to tell whoever goes on, once the embedder of this space was given up and another space has its name."""
        return self._given_up

    @property
    def micro_lora(self) -> MicroLoRA:
        """The micro-LoRA that is being trained."""
        return self._copy.learner.micro

    @property
    def edges(self) -> EdgeWeights:
        """Edge weights learned in memory; with a store they are in the database."""
        return self._copy.edges

    @property
    def learner(self) -> Learner:
        """Everything that is being trained."""
        return self._copy.learner

    @property
    def metrics(self) -> InstantLoopMetrics:
        """What the loop did so far."""
        backlog = self._backlog
        return replace(
            self._counts.so_far,
            recorded=backlog.buffer.recorded_count,
            spooled=backlog.spooled,
            scored=backlog.scores.taken,
            dropped=backlog.dropped,
            pending=backlog.pending,
            unflushed=backlog.unflushed_count,
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
        self._copy.base = None
        self._copy.is_away = isinstance(error, DatabaseUnavailable | DatabaseBusy)
        self._counts.note_error(error)
        if self._store is not None:
            self._store.discard()

    def _learn_pending(self) -> int:
        self._backlog.take_buffers()
        return self._copy.learn_waiting()

    def drain_trajectories(self) -> list[QueryTrajectory]:
        """What was learned in memory since the last call, at most `max_unflushed`; nothing with a store."""
        with self._turn:
            drained = list(self._copy.drained.values())
            self._copy.drained.clear()
            return drained

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
            if self._flusher is None:
                self._learn_pending()
            else:
                self._synchronize(self._flusher, claim=0)

    def learn_recorded(self, limit: int) -> int:
        """Learn up to `limit` trajectories that SQL clients recorded or scored; gives how many there were.

        Raises
        ------
        DatabaseError
            If the database does not take it; they wait for the next call.
        """
        with self._take_turn():
            return 0 if self._flusher is None else self._synchronize(self._flusher, claim=limit)

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
            store, copy = self._store, self._copy
            if store is None or copy.base is None:
                return None
            connection = store.connection()
            with learning_store.learning_transaction(connection, store.space) as transaction:
                head, state = transaction.head, transaction.state()
                if state is None or head.epoch != copy.base[0]:
                    return None
                served = copy.published(store, connection, head, state).adapter.map
                version = transaction.publish(cause, state, served)
            if head.base == copy.base:
                copy.version = version
            return version

    @contextlib.contextmanager
    def _take_turn(self) -> Iterator[None]:
        with self._turn:
            self._began, self._backlog.has_copied = time.monotonic(), False
            try:
                yield
            finally:
                self._began = None

    def _synchronize(self, flusher: Flusher, *, claim: int) -> int:
        store, backlog, copy = flusher.store, self._backlog, self._copy
        claimed = 0
        try:
            connection = store.connection()
            copy.is_away = False
            if store.spool is None:
                backlog.take_buffers()
            else:
                flusher.replay(connection, store.spool)
                while not backlog.take_newest(store.spool):
                    flusher.replay(connection, store.spool)
            copy.learn_waiting()
            if claim or backlog.unflushed or backlog.unflushed_scores:
                claimed = flusher.flush(connection, claim)
            else:
                copy.refresh(store, connection)
        except BaseException as error:
            self._fail(error)
            if isinstance(error, UnknownSpace):
                # Of a space that is gone nothing can ever be replayed.
                lost = backlog.pending + backlog.unflushed_count
                self._given_up = self._complaints.find_given_up(store, lost) or self._given_up
                if self._given_up is not None:
                    raise EmbedderMismatch(self._given_up) from error
            elif isinstance(error, SonaError) and store.spool is not None:
                try:
                    if copy.is_away:
                        # What answers meanwhile has learned it; the replay learns it again, on what the database has.
                        self._learn_pending()
                finally:
                    backlog.spill_all(store.spool)
            raise
        self._counts.note_error(None)
        self._complaints.write(store, backlog.dropped)
        return claimed

    # The spool -------------------------------------------------------------------------------------------------

    def spill(self) -> None:
        """While a flush takes long, keep what is recorded safe on disk; by a thread of its own.

        The buffers are moved to the spool before they fill. Where the flush seems to hang, so is what it holds copied:
        the process may be killed before the database answers.
        """
        spool, began = self._backlog.spool, self._began
        hangs = began is not None and time.monotonic() - began > self.config.patience_seconds
        if spool is None or not (hangs or self.is_half_full):
            return
        if self._turn.acquire(blocking=False):
            self._turn.release()  # nobody flushes: whoever learns next empties the buffers
            return
        self._backlog.spill(spool, hangs=hangs)

    @property
    def is_safe(self) -> bool:
        """Whether all that was recorded is on disk, though a flush hangs: the process may end."""
        is_on_disk = self._backlog.is_on_disk
        return self._began is not None and is_on_disk

    def close(self) -> None:
        """Close the connection to the database, and leave the spool to whoever opens the space next."""
        if self._store is not None:
            if not self._copy.is_away:
                self._complaints.write_dropped(self._store, self._backlog.dropped)
            self._store.close()
