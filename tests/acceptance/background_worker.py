"""A worker of the background loop for the chaos: any outcome is worth a cycle, and no number of deaths fails one.

This file is run with a URL; SIGTERM ends it.
"""

from __future__ import annotations

import sys
import threading

from sona_pg.config import BackgroundConfig, BaseTrainingConfig, GateConfig, StoreConfig, WorkerConfig
from sona_pg.learning.base_cycle import BaseConfig
from sona_pg.loops.background import background_loop
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.signals import stop_at_signals
from sona_pg.store.database import Database

BASE = BaseConfig(BaseTrainingConfig(rank=6), GateConfig(withheld=0.2, related_z=0.0, min_events=2, losing_z=10.0))
"""A base is published as often as can be."""


def run(url: str, *, once: bool, stop: threading.Event | None = None) -> None:
    """Run what is due, once or until `stop` is set."""
    # Chaos kills more workers at one phase than would die at it in earnest.
    config = WorkerConfig(attempts=1000, longest_setback_seconds=1.0)
    loop = background_loop(BackgroundConfig(minimum=1), base=BASE)
    coordinator = LoopCoordinator(Database(url, StoreConfig()), loop, config)
    if once:
        coordinator.step()
    else:
        coordinator.run(threading.Event() if stop is None else stop)
    coordinator.close()


if __name__ == "__main__":
    run(sys.argv[1], once=False, stop=stop_at_signals(30.0))
