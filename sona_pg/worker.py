"""The instant worker: learns what SQL clients recorded, and finds the strategies, by the code of applications."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sona_pg.config import EvidenceConfig, WorkerConfig
from sona_pg.errors import DatabaseBusy, DatabaseUnavailable, SonaError
from sona_pg.loops.evidence import EvidenceLoop
from sona_pg.loops.instant import InstantLoop
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store import errors, runs, spaces, strategist_standing, strategy_settings, versions
from sona_pg.store.connection import Connection, require_schema
from sona_pg.store.database import Database
from sona_pg.store.spool_usage import waiting_spaces
from sona_pg.telemetry import NoTelemetry

log = logging.getLogger("sona_pg")


@dataclass(slots=True)
class _Setback:
    """A space that failed: not tried again before `until`, and longer after each failure."""

    failures: int
    until: float


class InstantWorker:
    """Learns, space after space, what waits in `sona.pending_trajectory`, and what ledgers say of strategies.

    Any number may run: row locks make one at a time learn in a space.

    Parameters
    ----------
    database
        Where the spaces are.
    config, evidence
        Settings.
    telemetry
        Told what is done.
    """

    def __init__(
        self,
        database: Database,
        config: WorkerConfig | None = None,
        evidence: EvidenceConfig | None = None,
        telemetry: NoTelemetry | None = None,
    ) -> None:
        self._database = database
        self._config = WorkerConfig() if config is None else config
        self._evidence_config = EvidenceConfig() if evidence is None else evidence
        self._telemetry = NoTelemetry() if telemetry is None else telemetry
        self._connection: Connection | None = None
        self._loops: dict[str, InstantLoop] = {}
        self._evidence: dict[str, EvidenceLoop] = {}
        self._setbacks: dict[tuple[str, str], _Setback] = {}
        self._retain_at = 0.0

    @property
    def failing(self) -> list[str]:
        """Names of the spaces that failed and were not learned since."""
        return sorted({name for _, name in self._setbacks})

    def run(self, stop: threading.Event) -> None:
        """Learn until `stop` is set, polling while there is nothing to do."""
        while not stop.is_set():
            try:
                worked = self.step() + self.weigh()
            except (DatabaseUnavailable, DatabaseBusy) as error:
                log.warning("the database is away or overloaded, will be tried again: %s", error)
                self.close()
                worked = 0
            self._telemetry.turned()
            if not worked:
                stop.wait(self._config.poll_interval_seconds)

    def step(self) -> int:
        """One batch of every space that has something to learn; gives how many trajectories there were.

        Now and then also one batch of what spaces have kept long enough.

        Raises
        ------
        DatabaseUnavailable
            If the database cannot be reached.
        DatabaseBusy
            If it is short of something, or another session holds what is needed.
        PermissionDenied
            If the role may not learn.
        SchemaMismatch
            If the schema was migrated since: another version of the code is to go on.
        """
        connection = self._connected()
        require_schema(connection)
        names = self._spaces_with_work(connection)
        learned = sum(self._attempt(connection, "instant", name, partial(self._learn, name)) for name in names)
        self._apply_retention(connection)
        return learned

    def weigh(self) -> int:
        """One batch of every ledger that the strategist has not taken in; gives how many entries there were.

        Raises
        ------
        DatabaseUnavailable
            If the database cannot be reached.
        """
        connection = self._connected()
        names = strategist_standing.spaces_unweighed(connection)
        return sum(self._attempt(connection, "evidence", name, partial(self._weigh, name)) for name in names)

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._database.connect()
            runs.require_learner(self._connection)
            runs.show_worker(self._connection, "instant", SpaceStore.worker_name())
        return self._connection

    def _attempt(self, connection: Connection, task: str, name: str, work: Callable[[], int]) -> int:
        """Do something for a space, unless it failed a moment ago; what fails is set back, and stops no other."""
        setback = self._setbacks.get((task, name))
        if setback is not None and time.monotonic() < setback.until:
            return 0
        try:
            with self._telemetry.cycle(task, name):
                done = work()
        except DatabaseUnavailable:
            raise
        except Exception as error:
            # What is no error of ours is a defect; it stops the space that has it, and no other.
            self._set_back(connection, task, name, error)
            return 0
        self._setbacks.pop((task, name), None)
        return done

    def _learn(self, name: str) -> int:
        loop = self._loop(name)
        before = loop.metrics
        try:
            return loop.learn_recorded(self._config.batch)
        finally:
            self._telemetry.learned(name, loop.metrics.flushed - before.flushed)
            self._telemetry.refused(name, loop.metrics.refused - before.refused)

    def _weigh(self, name: str) -> int:
        loop = self._evidence.pop(name, None)
        if loop is not None and not spaces.is_named(self._connected(), loop.space):
            loop = None
        if loop is None:
            while len(self._evidence) >= self._config.open_spaces:
                self._evidence.pop(next(iter(self._evidence))).close()
            with self._database.connect() as connection:
                space = spaces.get_space(connection, name)
                _, adapter = spaces.claim_settings(connection, space, None, None)
                strategy = strategy_settings.claim_settings(connection, space, None)
            store = SpaceStore(space, self._database.connect, self._database.config, None)
            loop = EvidenceLoop(store, strategy, adapter, self._evidence_config)
        self._evidence[name] = loop
        taken = loop.advance()
        loop.close()  # its copy of the state stays; a connection for every space would be many
        return taken

    def _spaces_with_work(self, connection: Connection) -> list[str]:
        """Where SQL clients recorded something, and where a process of this machine died with a spool."""
        names = spaces.spaces_with_pending(connection)
        spools = self._database.spool_directory
        keys = [] if spools is None else waiting_spaces(spools)
        if keys:
            names += spaces.spaces_of_keys(connection, keys).values()
        return list(dict.fromkeys(names))

    def _loop(self, name: str) -> InstantLoop:
        loop = self._loops.get(name)
        if loop is not None and loop.space is not None and not spaces.is_named(self._connected(), loop.space):
            self._loops.pop(name).close()
            loop = None
        if loop is None:
            while len(self._loops) >= self._config.open_spaces:
                self._loops.pop(next(iter(self._loops))).close()
            with self._database.connect() as connection:
                space = spaces.get_space(connection, name)
                instant, adapter = spaces.claim_settings(connection, space, None, None)
            spools = self._database.spool_directory
            store = SpaceStore(space, self._database.connect, self._database.config, spools)
            loop = InstantLoop(space.dim, instant, adapter=adapter, space=space.config, store=store)
        else:
            del self._loops[name]
        self._loops[name] = loop  # the one used last is the one closed last
        return loop

    def _apply_retention(self, connection: Connection) -> None:
        """Now and then, delete what is past its retention, a batch of every space; soon again while there is more."""
        if time.monotonic() < self._retain_at:
            return
        treated = 0
        for name in spaces.spaces_with_retention(connection):
            work = partial(spaces.apply_retention, connection, name, self._config.retention_batch)
            treated += self._attempt(connection, "retention", name, work)
        for name in versions.spaces_with_more(connection, self._config.keep_versions):
            prune = partial(versions.prune, connection, name, self._config.keep_versions)
            self._attempt(connection, "retention", name, prune)
        self._retain_at = time.monotonic() + (0.0 if treated else self._config.retention_interval_seconds)

    def _set_back(self, connection: Connection, task: str, name: str, error: Exception) -> None:
        is_ours = isinstance(error, SonaError)
        reason = str(error) if is_ours else f"{type(error).__name__}: {error}"
        before = self._setbacks.get((task, name))
        failures = 1 if before is None else before.failures + 1
        delay = min(self._config.longest_setback_seconds, 2.0 ** min(failures, 20))
        self._setbacks[task, name] = _Setback(failures, time.monotonic() + delay)
        self._telemetry.failed(name, reason)
        log.error(
            "%s of space %r failed, will be tried again in %.0f s: %s",
            *(task, name, delay, reason),
            extra={"loop": task, "space": name},
            exc_info=None if is_ours else error,
        )
        if (loop := self._loops.pop(name, None)) is not None:
            loop.close()
        if (evidence := self._evidence.pop(name, None)) is not None:
            evidence.close()
        with contextlib.suppress(SonaError):
            space = spaces.find_space(connection, name)
            if space is not None and failures == 1:
                errors.log_error(connection, space.space_id, task, SpaceStore.worker_name(), reason)

    def close(self) -> None:
        """Disconnect."""
        for loop in self._loops.values():
            loop.close()
        for evidence in self._evidence.values():
            evidence.close()
        self._loops.clear()
        self._evidence.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
