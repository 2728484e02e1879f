"""An application on the host: ``client.py SPACE CONFIRMED``, which records with a `SonaEngine` until SIGTERM.

It never waits for the database; what that does not take goes to the spool. When it ends, it writes as JSON into the
file CONFIRMED what it has recorded, and what was dropped.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from sona_pg import SonaEngine, StoreConfig
from tests.acceptance.recorder import EVENTS_OF_A_RUN, EXACT_SEARCH_ROWS, SCORE_DELAY, record

EVENTS_A_SECOND = 25
RUN = 1


def main() -> None:
    """Record at an even pace."""
    space, confirmed = sys.argv[1], Path(sys.argv[2])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    slowest = 0.0
    events = 0
    with SonaEngine.connect(space=space, store=StoreConfig(exact_search_rows=EXACT_SEARCH_ROWS)) as engine:
        while not stop.wait(1 / EVENTS_A_SECOND):
            id = RUN * EVENTS_OF_A_RUN + events
            began = time.perf_counter()
            record(engine, id, id - SCORE_DELAY if events >= SCORE_DELAY else None)
            slowest = max(slowest, time.perf_counter() - began)
            events += 1
            if events == 1:
                confirmed.touch()
    confirmed.write_text(json.dumps({"events": events, "slowest_seconds": slowest, **asdict(engine.metrics)}))


if __name__ == "__main__":
    main()
