"""What was recorded and is not durable yet: in the buffers, in memory and, while the database is away, on disk."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence

from sona_pg.config import InstantLoopConfig
from sona_pg.errors import SonaError
from sona_pg.kernels import Ring
from sona_pg.loops.buffer import TrajectoryBuffer
from sona_pg.loops.metrics import InstantLoopCounts
from sona_pg.store.learning import LedgerEntry
from sona_pg.store.spool import Spool
from sona_pg.store.spool_record import Event
from sona_pg.types import QueryTrajectory, Score

log = logging.getLogger("sona_pg")


class Backlog:
    """What was recorded and is not durable yet; everything keeps its order, what is in the spool too.

    Anybody may record, and `spill`; what else changes it is for whoever holds the turn of the loop.

    Parameters
    ----------
    config
        How much may wait.
    spool
        Takes what the database cannot; None keeps none.
    counts
        What the loop counts.
    """

    def __init__(self, config: InstantLoopConfig, spool: Spool | None, counts: InstantLoopCounts) -> None:
        self._config, self._counts = config, counts
        self.spool = spool
        self.buffer = TrajectoryBuffer(config.max_pending_signals)
        self.scores = Ring(config.max_pending_signals)
        self.waiting: deque[QueryTrajectory] = deque()
        """Taken out of the buffer, to be learned."""
        self.unflushed: list[LedgerEntry] = []
        """Learned, to be flushed."""
        self.unflushed_ids: set[uuid.UUID] = set()
        self.unflushed_scores: list[Score] = []
        self.has_copied = False
        """Whether what memory holds was copied to the spool in this turn."""
        self.spooled = 0
        """Events that the spool took so far."""
        self._spilled: deque[Event] = deque()
        """Taken out of the buffers early: the spool did not take it, or more came at once than they hold."""
        self._is_aside = False
        """Whether any of it was set aside, and not offered to the spool yet."""
        self._moving = threading.Lock()
        """Held while the buffers are emptied: what they held is never in between. Of those who record, only who records
        more at once than they hold waits for it: for no database, but while the spool is written to."""

    # The caller's path -----------------------------------------------------------------------------------------

    def record(self, trajectory: QueryTrajectory) -> bool:
        """Record a trajectory; never blocks. False, and counted, if there is no room."""
        return self.buffer.refuse() if self.is_full else self.buffer.record(trajectory)

    def record_score(self, score: Score) -> bool:
        """Record a late outcome; never blocks. False, and counted, if there is no room."""
        return self.scores.refuse() if self.is_full else self.scores.push(score)

    @property
    def is_full(self) -> bool:
        """Whether as much as may wait for the database waits for it."""
        held = len(self.unflushed) + len(self.waiting) + len(self.unflushed_scores) + len(self._spilled)
        return held >= self._config.max_unflushed

    @property
    def is_half_full(self) -> bool:
        """Whether the buffers fill faster than they are emptied: time to call `spill`."""
        return self._is_aside or 2 * max(len(self.buffer), len(self.scores)) > self._config.max_pending_signals

    @property
    def dropped(self) -> int:
        """Trajectories and scores that were refused because there was no room."""
        return self.buffer.dropped_count + self.scores.dropped

    @property
    def pending(self) -> int:
        """Trajectories that wait to be learned, and what was spilled."""
        return len(self.buffer) + len(self.waiting) + len(self._spilled)

    @property
    def unflushed_count(self) -> int:
        """Entries and scores that wait to be flushed."""
        return len(self.unflushed) + len(self.unflushed_scores) + len(self.scores)

    def set_aside(self) -> None:
        """Empty the buffer for who records more at once than it holds."""
        with self._moving:
            self._is_aside = True
            self.buffer.drain_into(self._spilled)

    # In a turn -------------------------------------------------------------------------------------------------

    @property
    def holds_any(self) -> bool:
        """Whether memory holds anything that was taken out of the buffers."""
        return bool(self.unflushed or self.waiting or self.unflushed_scores)

    def take_buffers(self) -> None:
        """Take out of the buffers what was recorded."""
        with self._moving:
            self._drain()

    def take_newest(self, spool: Spool) -> bool:
        """Empty the buffers, unless something was spilled in between, which is older and goes first."""
        with self._moving:
            if spool.holds_own and not self.holds_any:
                return False
            self._drain()
            return True

    def _drain(self) -> None:
        spool = self.spool
        if spool is not None and self.holds_any and spool.is_split:
            # Between what memory holds and what the buffers hold is what was spilled: these go behind that.
            self._append_behind(spool)
            return
        self._is_aside = False
        if spool is not None and not self.holds_any:
            spool.advance()
        self.has_copied = False
        while self._spilled:
            # First there, then gone from here: an interrupt in between does no harm.
            event = self._spilled[0]
            if isinstance(event, Score):
                self.unflushed_scores.append(event)
            else:
                self.waiting.append(event)
            self._spilled.popleft()
        self.buffer.drain_into(self.waiting)
        self.scores.drain_into(self.unflushed_scores)

    def enter(self, entry: LedgerEntry) -> None:
        """A trajectory was learned: it is to be flushed."""
        self.unflushed.append(entry)
        self.unflushed_ids.add(entry.event.trajectory.id)

    def forget(self, entries: Sequence[LedgerEntry], scores: Sequence[Score]) -> None:
        """These are durable, or were refused: nobody has to hold them any more."""
        gone = {id(part) for part in [*entries, *scores]}
        self.unflushed = [entry for entry in self.unflushed if id(entry) not in gone]
        self.unflushed_scores = [score for score in self.unflushed_scores if id(score) not in gone]
        self.unflushed_ids = {entry.event.trajectory.id for entry in self.unflushed}

    # To the spool ----------------------------------------------------------------------------------------------

    def spill(self, spool: Spool, *, hangs: bool) -> None:
        """Move the buffers to the spool while somebody else has the turn; where that hangs, copy what memory holds."""
        with self._moving:
            if hangs and not self.has_copied:
                # In this order: what moves from one to the other meanwhile is in both, and counts once all the same.
                waiting = list(self.waiting)
                held: list[Event] = [entry.event.trajectory for entry in self.unflushed]
                copies = [*held, *waiting, *self.unflushed_scores]
                self.has_copied = self._write(spool.append, copies) == len(copies)
            self._append_behind(spool)

    def spill_buffers(self, spool: Spool) -> None:
        """Move the buffers to the spool, behind what memory holds."""
        with self._moving:
            self._append_behind(spool)

    def spill_memory(self, spool: Spool) -> None:
        """Move what memory holds to the spool, as far as it takes it."""
        events: list[Event] = [entry.event.trajectory for entry in self.unflushed]
        events += [*self.waiting, *self.unflushed_scores]
        written = self._write(spool.append, events)
        unlearned, self.unflushed = self.unflushed[:written], self.unflushed[written:]
        self.unflushed_ids = {entry.event.trajectory.id for entry in self.unflushed}
        written -= len(unlearned)
        passed = min(written, len(self.waiting))
        for _ in range(passed):
            self.waiting.popleft()
        self.unflushed_scores = self.unflushed_scores[written - passed :]
        # They are learned, and counted, when they are replayed.
        self._counts.add_learned(unlearned, sign=-1)

    def spill_all(self, spool: Spool) -> None:
        """Move what memory holds to the spool, and then the buffers, as far as it takes them."""
        self.spill_memory(spool)
        self.take_buffers()
        self.spill_memory(spool)

    @property
    def is_on_disk(self) -> bool:
        """Whether what memory holds was copied to the spool in this turn, and nothing came since."""
        with self._moving:
            return self.has_copied and not len(self.buffer) + len(self.scores) + len(self._spilled)

    def _append_behind(self, spool: Spool) -> None:
        """What the spool does not take is held beside the buffers."""
        self._is_aside = False
        self.buffer.drain_into(self._spilled)
        self.scores.drain_into(self._spilled)
        for _ in range(self._write(spool.append_behind, list(self._spilled))):
            self._spilled.popleft()

    def _write(self, append: Callable[[Sequence[Event]], int], events: Sequence[Event]) -> int:
        """How many of these events the spool took."""
        try:
            written = append(events)
        except SonaError as error:
            log.error("%s", error)
            return 0
        self.spooled += written
        if written < len(events):
            log.error("the spool takes no more: %d events wait in memory", len(events) - written)
        return written
