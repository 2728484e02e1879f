"""How a worker process ends: it finishes what is in hand, or abandons it when that takes too long."""

from __future__ import annotations

import logging
import os
import signal
import threading

log = logging.getLogger("sona_pg")


def stop_at_signals(drain_seconds: float | None) -> threading.Event:
    """An event that SIGTERM and SIGINT set; whoever has not ended `drain_seconds` later is ended."""
    stop = threading.Event()

    def abandon() -> None:
        # Nothing is half done: a transaction is committed or not, and the next worker goes on from there.
        log.warning("what is in hand is abandoned after %g s; the next worker begins it again", drain_seconds)
        os._exit(0)

    def drain(*_: object) -> None:
        if not stop.is_set() and drain_seconds is not None:
            timer = threading.Timer(drain_seconds, abandon)
            timer.daemon = True
            timer.start()
        # Not here: whoever waits for the event in this thread may have been interrupted while holding its lock.
        threading.Thread(target=stop.set, daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, drain)
    return stop
