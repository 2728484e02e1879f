"""A recorder that lives until it is killed: ``recorder.py URL SPACE RUN CONFIRMED``, with SONA_TEST_KILL_AT for where.

Event n of run r has the id r·10⁶ + n. It writes the number of its last event to the file CONFIRMED after every flush;
the kernel keeps what was written when the process is killed. With CHAOS_PAUSE_AT it stops once at that step, says so
there and waits for a line on its standard input.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from pathlib import Path

import numpy as np

from sona_pg import SonaEngine, SonaError, StoreConfig, steps

EVENTS_OF_A_RUN = 1_000_000
FLUSH_EVERY = 3
EXACT_SEARCH_ROWS = 1_000_000
"""The replay has the strategist's bits as long as the space is searched exactly: an HNSW index is approximate."""
SCORE_DELAY = 4
"""Event n comes with late scores of event n - SCORE_DELAY, which another transaction has made durable."""


def scores_of(id: int) -> dict[str, float | str]:
    """Late scores of an event: by score id, the value and the item."""
    return {f"{id}-early": 0.25, f"{id}-late": (id % 5) / 4}


def record(engine: SonaEngine, id: int, delayed: int | None) -> None:
    """Record an event of one of four kinds, and late scores of an earlier one."""
    rng = np.random.default_rng(id)
    dim = engine.space.dim
    query = rng.standard_normal(dim).astype(np.float32)
    shown = [str(item) for item in rng.choice(40, 4, replace=False)]
    kind, key = id % 4, uuid.UUID(int=id)
    if kind == 0:  # nothing is known yet: late scores alone teach it
        engine.record(query, shown, trajectory_id=key)
    elif kind == 1:  # steps that are no items teach the micro-LoRA
        builder = engine.start(query)
        builder._id = key
        for reward in (1.0, 0.25, 0.0):
            builder.add_step(rng.standard_normal(dim).astype(np.float32), [0.5], reward)
        engine.record(builder)
    else:
        engine.record(query, shown, [1.0, 0.0, 0.5, None], trajectory_id=key)
    if delayed is not None:
        item = str(np.random.default_rng(delayed).integers(40))
        for score_id, value in scores_of(delayed).items():
            engine.score(uuid.UUID(int=delayed), float(value), item, score_id=score_id)


def main() -> None:
    """Record, flush and confirm, over and over; what the database does not take now is tried again."""
    url, space, run, confirmed = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    pause_at = os.environ.get("CHAOS_PAUSE_AT")
    with confirmed.open("a", buffering=1) as out:

        def pause(step: str) -> None:
            nonlocal pause_at
            if step == pause_at:
                pause_at = None
                print("paused", file=out)
                sys.stdin.readline()

        if pause_at is not None:
            steps._act = pause
        store = StoreConfig(exact_search_rows=EXACT_SEARCH_ROWS)
        engine = SonaEngine.connect(url, space=space, background=False, store=store)
        first = run * EVENTS_OF_A_RUN
        for event in range(EVENTS_OF_A_RUN):
            record(engine, first + event, first + event - SCORE_DELAY if event >= SCORE_DELAY else None)
            if (event + 1) % FLUSH_EVERY:
                continue
            while True:
                try:
                    engine.flush()
                    break
                except SonaError:
                    time.sleep(0.05)
            print(event, file=out)
            time.sleep(0.02)  # so that the strategist keeps up, and its lock is free for others


if __name__ == "__main__":
    main()
