"""Telemetry of a worker process that is asked for: /metrics for Prometheus, /healthz for whoever restarts it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sona_pg.config import TelemetryConfig
from sona_pg.store.database import Database
from sona_pg.telemetry.database import DatabaseWatch, Look
from sona_pg.telemetry.metrics import Histogram, counter, database_metrics, gauge, histogram
from sona_pg.telemetry.progress import NoTelemetry
from sona_pg.telemetry.server import PageServer, Reply

_REASON_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Failing:
    """What failed in a space and has not succeeded since."""

    space: str
    loop: str
    reason: str


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a worker process does what it is for.

    Parameters
    ----------
    status
        ok, or wrong, and then `reason` says why.
    worker, loop, since
        Host and process, what it runs, and when it began.
    last_progress_seconds
        Time since its loop turned, or a cycle ended.
    failing
        Spaces that fail; they do not make the process unhealthy: it tries them again, and serves the others.
    """

    status: str
    worker: str
    loop: str
    since: datetime
    last_progress_seconds: float
    failing: list[Failing]
    reason: str | None


class Telemetry(NoTelemetry):
    """What a process has done, and what the database says, over HTTP. Every method may be called by any thread.

    Parameters
    ----------
    database
        Asked, over a connection of its own, when somebody asks.
    worker, loop
        Host and process, and what it runs.
    config
        Settings.
    """

    def __init__(self, database: Database, worker: str, loop: str, config: TelemetryConfig | None = None) -> None:
        self.config = TelemetryConfig() if config is None else config
        self.registry = CollectorRegistry()
        self._worker, self._loop = worker, loop
        self._watch = DatabaseWatch(database, self.config)
        self._server: PageServer | None = None
        self._mutex = threading.Lock()
        self._since = datetime.now(UTC)
        self._turned_at, self._progressed = time.time(), time.monotonic()
        self._inside = 0
        self._labels: set[str] = set()
        self._learned: defaultdict[str, int] = defaultdict(int)
        self._refused: defaultdict[str, int] = defaultdict(int)
        self._failures: defaultdict[str, int] = defaultdict(int)
        self._failing: dict[tuple[str, str], str] = {}
        """Reasons by space and loop; gone once they are mended."""
        self._tried: dict[str, str] = {}
        """What was tried last in a space."""
        self._seconds: dict[str, Histogram] = {}
        self._succeeded: dict[str, float] = {}
        self.registry.register(_Collected(self))
        ProcessCollector(registry=self.registry)

    # What the main loop tells ----------------------------------------------------------------------------------

    def turned(self) -> None:
        with self._mutex:
            self._turned_at, self._progressed = time.time(), time.monotonic()

    @contextlib.contextmanager
    def cycle(self, loop: str, space: str) -> Iterator[None]:
        begin, is_done = time.monotonic(), False
        with self._mutex:
            self._inside += 1
            self._tried[space] = loop
        try:
            with super().cycle(loop, space):
                yield
            is_done = True
        finally:
            end = time.monotonic()
            with self._mutex:
                self._inside -= 1
                self._progressed = end
                self._seconds.setdefault(loop, Histogram()).add(end - begin)
                if is_done:
                    self._succeeded[loop] = time.time()
                    self._failing.pop((space, loop), None)
                    self._tried.pop(space, None)

    def learned(self, space: str, n: int) -> None:
        with self._mutex:
            self._learned[self._label(space)] += n

    def refused(self, space: str, n: int) -> None:
        with self._mutex:
            self._refused[self._label(space)] += n

    def failed(self, space: str, reason: str) -> None:
        with self._mutex:
            self._failures[self._label(space)] += 1
            self._failing[space, self._tried.get(space, self._loop)] = reason[:_REASON_LENGTH]

    def _label(self, space: str) -> str:
        """A space beyond the bound has no series of its own."""
        if space not in self._labels and len(self._labels) >= self.config.max_spaces:
            return ""
        self._labels.add(space)
        return space

    # What is asked ---------------------------------------------------------------------------------------------

    def serve(self, port: int) -> int:
        """Answer on a port, 0 for any that is free; gives which.

        Raises
        ------
        IoError
            If it cannot be listened on.
        """
        self._server = PageServer(self.config.host, port, {"/metrics": self._metrics, "/healthz": self._healthz})
        self._server.start()
        return self._server.port

    def health(self) -> Health:
        """Whether this process reaches the database, and its loop turned of late or is inside a cycle."""
        look = self._watch.look()
        with self._mutex:
            self._forget_dropped(look)
            still, is_inside = time.monotonic() - self._progressed, self._inside > 0
            failing = [Failing(space, loop, reason) for (space, loop), reason in self._failing.items()]
        reason = None
        # A database that is slow to give figures is reached all the same: a restart would not help it.
        if not look.is_up:
            reason = look.problem
        elif still > self.config.stall_seconds and not is_inside:
            reason = f"the loop has not turned for {still:.0f} s, expected {self.config.stall_seconds:g} s at most"
        shown = sorted(failing, key=lambda each: (each.space, each.loop))[: self.config.max_spaces]
        status = "ok" if reason is None else "wrong"
        return Health(status, self._worker, self._loop, self._since, round(still, 3), shown, reason)

    def _healthz(self, _: str) -> Reply:
        found = self.health()
        document = asdict(found) | {"since": found.since.isoformat(timespec="seconds")}
        body = json.dumps(document).encode() + b"\n"
        return Reply(200 if found.status == "ok" else 503, "application/json", body)

    def _metrics(self, accept: str) -> Reply:
        encode, content_type = choose_encoder(accept)
        return Reply(200, content_type, encode(self.registry))

    def collect(self) -> Iterator[Metric]:
        """Every metric but those of the interpreter."""
        look = self._watch.look()
        with self._mutex:
            self._forget_dropped(look)
            known = [*self._own()]
        yield from known
        yield gauge("sona_database_up", samples={(): float(look.is_up)})
        yield from database_metrics(look)

    def _own(self) -> Iterator[Metric]:
        labels = ("worker", "loop", "version")
        yield gauge("sona_worker_info", labels, {(self._worker, self._loop, version("sona-pg")): 1})
        for name, counts in (
            ("sona_learned_total", self._learned),
            ("sona_refused_total", self._refused),
            ("sona_failures_total", self._failures),
        ):
            yield counter(name, ("space",), {(space,): count for space, count in counts.items()})
        yield gauge("sona_failing", ("space",), {(self._shown(space),): 1 for space, _ in self._failing})
        yield histogram("sona_cycle_seconds", "loop", self._seconds)
        succeeded: dict[tuple[str, ...], float] = {(loop,): at for loop, at in self._succeeded.items()}
        yield gauge("sona_last_success_timestamp_seconds", ("loop",), succeeded)
        yield gauge("sona_last_turn_timestamp_seconds", samples={(): self._turned_at})

    def _forget_dropped(self, look: Look) -> None:
        """A space that is gone cannot fail any more."""
        if look.is_up and look.total == len(look.spaces):
            there = {each.space for each in look.spaces}
            for space, loop in [key for key in self._failing if key[0] not in there]:
                del self._failing[space, loop]

    def _shown(self, space: str) -> str:
        return space if space in self._labels else ""

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self._watch.close()


class _Collected(Collector):
    """What the registry asks at every scrape."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        return self._telemetry.collect()
