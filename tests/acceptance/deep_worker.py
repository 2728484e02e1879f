"""A worker of the deep loop for the chaos: nothing fades, dreams may leave something behind, and no number of deaths
fails a cycle.

This file is run with a URL; SIGTERM ends it.
"""

from __future__ import annotations

import sys
import threading

from sona_pg.config import ConsolidationConfig, DeepLoopConfig, DreamEvidenceConfig, StoreConfig, WorkerConfig
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.deep import DeepConfig, deep_loop
from sona_pg.signals import stop_at_signals
from sona_pg.store.database import Database

PRUNE_WEIGHT = 0.001
"""Far below what an outcome makes, so that what was learned stays as it is."""

LOOP = deep_loop(
    DeepConfig(
        # Every dream is kept, so that they can be counted.
        loop=DeepLoopConfig(
            # All dreams are kept, so that their numbers tell whether one is missing.
            phi_threshold=0.0,
            keep_dreams=10_000,
            dreams_per_cycle=10,
            dreams_per_node=0,
        ),
        consolidation=ConsolidationConfig(
            half_life_seconds=1e12, creative_half_life_seconds=1e12, strengthening=0.0, prune_weight=PRUNE_WEIGHT
        ),
        evidence=DreamEvidenceConfig(repeats=3, margin=0.0, alpha=0.5, min_edges=10, max_pairs=50, walks=10),
    )
)


def run(url: str, *, once: bool, stop: threading.Event | None = None) -> None:
    """Run what is due, once or until `stop` is set."""
    config = WorkerConfig(attempts=1000, longest_setback_seconds=1.0)
    coordinator = LoopCoordinator(Database(url, StoreConfig()), LOOP, config)
    if once:
        coordinator.step()
    else:
        coordinator.run(threading.Event() if stop is None else stop)
    coordinator.close()


if __name__ == "__main__":
    run(sys.argv[1], once=False, stop=stop_at_signals(30.0))
