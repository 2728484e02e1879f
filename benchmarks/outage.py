"""The database goes away in the middle of traffic: what recording costs the caller meanwhile, and what is lost."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Row, row
from sona_pg.engine import SonaEngine
from sona_pg.store.connection import connect
from sona_pg.store.server import EmbeddedServer

DIM, STEPS, PER_SECOND = 384, 10, 500
SPACE = "sona-benchmark"


class _Traffic:
    """An application that records at a steady rate, and times every call."""

    def __init__(self, engine: SonaEngine) -> None:
        random = np.random.default_rng(0)
        self._engine = engine
        self._items = random.standard_normal((2000, DIM), dtype=np.float32)
        self._due = time.perf_counter()
        self.recorded = 0

    def record_for(self, seconds: float) -> NDArray[np.float64]:
        """Times of the calls, microseconds."""
        return np.concatenate([self.record() for _ in range(round(seconds * PER_SECOND))])

    def record(self) -> NDArray[np.float64]:
        """One trajectory when it is due; late ones follow each other at once."""
        time.sleep(max(0.0, self._due - time.perf_counter()))
        self._due += 1 / PER_SECOND
        first = self.recorded % 1900
        began = time.perf_counter_ns()
        builder = self._engine.start(self._items[first])
        for place, item in enumerate(self._items[first + 1 : first + 1 + STEPS]):
            builder.add_step(item, [0.5], float(place == 3), item_id=str(first + place), position=place + 1)
        self._engine.record(builder)
        taken = (time.perf_counter_ns() - began) / 1e3
        self.recorded += 1
        return np.array([taken])


def run(*, quick: bool) -> list[Row]:
    """500 trajectories a second of 10 steps; on an embedded server of its own, which is stopped and started."""
    away_seconds = 5 if quick else 60
    with tempfile.TemporaryDirectory(prefix="sona-benchmark-") as folder:
        home = Path(folder)
        server = EmbeddedServer(home)
        try:
            with SonaEngine.connect(home=home, space=SPACE, dim=DIM) as engine:
                traffic = _Traffic(engine)
                before = traffic.record_for(away_seconds / 4)
                server.stop()
                away = traffic.record_for(away_seconds)
                spool_bytes = sum(file.stat().st_size for file in (home / "spool").rglob("*.spool"))
                server.start()
                returned, draining = time.perf_counter(), []
                while list((home / "spool").rglob("*.spool")) or engine.metrics.flushed < traffic.recorded - PER_SECOND:
                    draining.append(traffic.record())
                drained_seconds = time.perf_counter() - returned
                draining.append(traffic.record_for(1))
                dropped = engine.metrics.dropped
            with connect(server.url) as connection:
                (stored,) = connection.execute(
                    "SELECT count(DISTINCT trajectory_id) FROM sona.learning_event"
                ).fetchone() or (0,)
        finally:
            server.remove()
    rival = f"while it is there, p99 {np.percentile(before, 99):.0f}"
    params: dict[str, int | float | str] = {"d": DIM, "steps": STEPS, "per_second": PER_SECOND}
    lost: dict[str, int | float | str] = {
        "recorded": traffic.recorded,
        "lost": traffic.recorded - int(stored),
        "dropped": dropped,
    }
    spool: dict[str, int | float | str] = {"away_seconds": away_seconds, "spool_mb": round(spool_bytes / 1e6)}
    back: dict[str, int | float | str] = {"drained_seconds": round(drained_seconds, 1), **lost}
    return [
        row("record, database away", params | spool, away, rival, before),
        row("record, being drained", params | back, np.concatenate(draining), rival, before),
    ]
