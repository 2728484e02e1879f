"""The instant worker: learns what SQL clients recorded, through the same code that learns in an application."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sona_pg.config import WorkerConfig
from sona_pg.errors import DatabaseUnavailable, SonaError
from sona_pg.loops.instant import InstantLoop
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store import errors, spaces
from sona_pg.store.connection import Connection
from sona_pg.store.database import Database
from sona_pg.store.spool import waiting_spaces

log = logging.getLogger("sona_pg")


@dataclass(slots=True)
class _Setback:
    """A space that failed: not tried again before `until`, and longer after each failure."""

    failures: int
    until: float


class InstantWorker:
    """Learns, space after space, what waits in `sona.pending_trajectory`.

    Any number may run: the row lock of a space's learner makes one learn at a time.

    Parameters
    ----------
    database
        Where the spaces are.
    config
        Settings.
    """

    def __init__(self, database: Database, config: WorkerConfig | None = None) -> None:
        self._database = database
        self._config = WorkerConfig() if config is None else config
        self._connection: Connection | None = None
        self._loops: dict[str, InstantLoop] = {}
        self._setbacks: dict[tuple[str, str], _Setback] = {}
        self._admit_at: dict[str, float] = {}
        self._retain_at = 0.0

    @property
    def failing(self) -> list[str]:
        """Names of the spaces that failed and were not learned since."""
        return sorted({name for _, name in self._setbacks})

    def run(self, stop: threading.Event) -> None:
        """Learn until `stop` is set, polling while there is nothing to do."""
        while not stop.is_set():
            try:
                worked = self.step()
            except DatabaseUnavailable as error:
                log.warning("the database is away, will be tried again: %s", error)
                self.close()
                worked = 0
            if not worked:
                stop.wait(self._config.poll_interval_seconds)

    def step(self) -> int:
        """One batch of every space that has something to learn; gives how many trajectories there were.

        Now and then also one batch of what spaces have kept long enough.

        Raises
        ------
        DatabaseUnavailable
            If the database cannot be reached.
        """
        if self._connection is None or self._connection.closed:
            self._connection = self._database.connect()
        names = self._spaces_with_work(self._connection)
        learned = sum(self._attempt(self._connection, "instant", name, partial(self._learn, name)) for name in names)
        self._apply_retention(self._connection)
        return learned

    def _attempt(self, connection: Connection, task: str, name: str, work: Callable[[], int]) -> int:
        """Do something for a space, unless it failed a moment ago; what fails is set back, and stops no other."""
        setback = self._setbacks.get((task, name))
        if setback is not None and time.monotonic() < setback.until:
            return 0
        try:
            done = work()
        except DatabaseUnavailable:
            raise
        except SonaError as error:
            self._set_back(connection, task, name, error)
            return 0
        self._setbacks.pop((task, name), None)
        return done

    def _learn(self, name: str) -> int:
        learned = self._loop(name).learn_recorded(self._config.batch)
        self._admit(name)
        return learned

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

    def _admit(self, name: str) -> None:
        """Now and then, move the remembered queries of a large space into their index."""
        if self._connection is None or time.monotonic() < self._admit_at.get(name, 0.0):
            return
        self._admit_at[name] = time.monotonic() + self._config.admit_interval_seconds
        space = spaces.get_space(self._connection, name)
        spaces.admit_queries(self._connection, space, self._database.config.exact_search_rows)

    def _apply_retention(self, connection: Connection) -> None:
        """Now and then, delete what is past its retention, a batch of every space; soon again while there is more."""
        if time.monotonic() < self._retain_at:
            return
        treated = 0
        for name in spaces.spaces_with_retention(connection):
            work = partial(spaces.apply_retention, connection, name, self._config.retention_batch)
            treated += self._attempt(connection, "retention", name, work)
        self._retain_at = time.monotonic() + (0.0 if treated else self._config.retention_interval_seconds)

    def _set_back(self, connection: Connection, task: str, name: str, error: SonaError) -> None:
        before = self._setbacks.get((task, name))
        failures = 1 if before is None else before.failures + 1
        delay = min(self._config.longest_setback_seconds, 2.0 ** min(failures, 20))
        self._setbacks[task, name] = _Setback(failures, time.monotonic() + delay)
        log.error("%s of space %r failed, will be tried again in %.0f s: %s", task, name, delay, error)
        loop = self._loops.pop(name, None)
        if loop is not None:
            loop.close()
        with contextlib.suppress(SonaError):
            space = spaces.find_space(connection, name)
            if space is not None and failures == 1:
                errors.log_error(connection, space.space_id, task, SpaceStore.worker_name(), str(error))

    def close(self) -> None:
        """Disconnect."""
        for loop in self._loops.values():
            loop.close()
        self._loops.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
