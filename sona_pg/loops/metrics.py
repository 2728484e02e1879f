"""Counts of the instant loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sona_pg.learning.learner import Learned
from sona_pg.store.learning import LedgerEntry

CHANGED_WEIGHTS = (Learned.ADAPTER, Learned.MICRO)


@dataclass(frozen=True, slots=True)
class InstantLoopMetrics:
    """What the loop did since it was made.

    Parameters
    ----------
    recorded, scored, dropped
        Trajectories and late scores taken, and how many of both were refused because the buffers were full.
    learned, skipped
        Events that changed a weight, and events that had nothing to teach.
    repeated
        Trajectories and scores whose id was there already: once is enough. What was copied to the spool while a flush
        seemed to hang, and was flushed all the same, counts here.
    refused
        Trajectories and scores that the database refused for what they are; each is in `sona.errors`.
    flushed, flushes, replays
        Ledger entries made durable, in how many transactions, and how many of those were rebased onto another's state.
    spooled
        Trajectories and scores written to the spool, while the database did not take them; on disk they are durable.
    pending, unflushed
        Waiting in memory to be learned, and not yet durable.
    last_error
        Why the last flush failed; None if it did not.
    """

    recorded: int = 0
    scored: int = 0
    dropped: int = 0
    learned: int = 0
    skipped: int = 0
    repeated: int = 0
    refused: int = 0
    flushed: int = 0
    flushes: int = 0
    replays: int = 0
    spooled: int = 0
    pending: int = 0
    unflushed: int = 0
    last_error: str | None = None


class InstantLoopCounts:
    """What the loop counts; by whoever holds its turn."""

    def __init__(self) -> None:
        self.so_far = InstantLoopMetrics()
        """What was counted; what waits is not in it."""

    def add(self, **more: int) -> None:
        """Add to counts, by their names in `InstantLoopMetrics`."""
        self.so_far = replace(self.so_far, **{name: getattr(self.so_far, name) + by for name, by in more.items()})

    def add_learned(self, entries: Sequence[LedgerEntry], sign: int = 1) -> None:
        """Count what became of events; `sign` -1 takes them back."""
        count = learned_count(entries)
        self.add(learned=sign * count, skipped=sign * (len(entries) - count))

    def note_error(self, error: BaseException | None) -> None:
        """Why the last flush failed; None if it did not."""
        self.so_far = replace(self.so_far, last_error=None if error is None else str(error) or type(error).__name__)


def learned_count(entries: Sequence[LedgerEntry]) -> int:
    """How many of these events changed a weight."""
    return sum(entry.learned in CHANGED_WEIGHTS for entry in entries)
