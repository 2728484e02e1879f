"""Counts of the instant loop."""

from __future__ import annotations

from dataclasses import dataclass


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
