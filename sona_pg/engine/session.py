"""A process that works on one space: its connections and threads, and how it ends without losing anything."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from types import TracebackType
from typing import Self

from sona_pg.config import LearningMode, SonaConfig
from sona_pg.engine.requests import Requests
from sona_pg.errors import ConfigError, DatabaseError, EmbedderMismatch, SonaError, UnknownSpace
from sona_pg.loops.accesses import AccessCounts
from sona_pg.loops.evidence import EvidenceLoop
from sona_pg.loops.instant import InstantLoop
from sona_pg.loops.last_flush import LOOK_SECONDS, LastFlush
from sona_pg.loops.metrics import InstantLoopMetrics
from sona_pg.store.database import Database
from sona_pg.store.pool import ConnectionPool
from sona_pg.store.search import ItemSearch
from sona_pg.store.spaces import Space

log = logging.getLogger("sona_pg")


class Session:
    """What the parts of an engine share.

    Parameters
    ----------
    database
        Where the space is.
    space
        The space.
    loop, evidence
        Loop A, and the loop that finds the strategy.
    config
        Settings; by its learning mode they run in threads of this session, or do not.
    """

    def __init__(
        self, database: Database, space: Space, loop: InstantLoop, evidence: EvidenceLoop, config: SonaConfig
    ) -> None:
        self._config = config
        self._database = database
        self._space = space
        self._loop = loop
        self._evidence = evidence
        self._connections = ConnectionPool(database)
        self._search = ItemSearch(space, database.config)
        self._accesses = AccessCounts(space, self._connections.connection, database.config)
        self._requests = Requests(
            space, loop, evidence, self._search, self._accesses, self._connections, self.check_open
        )
        self._closed = False
        self._pid = os.getpid()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._crowded = threading.Event()
        self._threads: list[threading.Thread] = []
        if config.learning_loops is not LearningMode.MANUAL:
            for work in (self._run, self._spill):
                thread = threading.Thread(target=work, name=f"sona-instant-{space.name}", daemon=True)
                self._threads.append(thread)
                thread.start()
            # Nobody waits for this one: what it has not taken in is in the ledger.
            threading.Thread(target=self._weigh, name=f"sona-evidence-{space.name}", daemon=True).start()
        _open_sessions.add(self)
        if "multiprocessing" in sys.modules:
            _close_with_child()

    @property
    def space(self) -> Space:
        """The space as it was when the engine was connected."""
        return self._space

    @property
    def config(self) -> SonaConfig:
        """The settings that it was opened with."""
        return self._config

    @property
    def database(self) -> Database:
        """Where it is."""
        return self._database

    @property
    def requests(self) -> Requests:
        """What it answers requests by."""
        return self._requests

    @property
    def url(self) -> str:
        """Connection string of the database."""
        return self._database.url

    @property
    def metrics(self) -> InstantLoopMetrics:
        """What this process recorded, learned and flushed."""
        return self._loop.metrics

    @property
    def instant(self) -> InstantLoop:
        """Loop A."""
        return self._loop

    @property
    def evidence(self) -> EvidenceLoop:
        """The loop that finds the strategy."""
        return self._evidence

    def flush(self) -> None:
        """Learn and make durable everything that was recorded, and weigh the strategies by it; when it returns, it is.

        Raises
        ------
        DatabaseError
            If the database does not take it; nothing is lost, the next flush tries again.
        EmbedderMismatch
            If the embedder of the space was given up; what was not durable is lost, and counted in `sona.errors`.
        """
        self.check_open()
        self._loop.flush_updates()
        self._weigh_now()
        self._accesses.write()

    def _weigh_now(self) -> None:
        """Weigh the strategies by what is durable; that it is does not depend on it."""
        try:
            self._evidence.catch_up()
            self._evidence.refresh()
        except SonaError as error:
            log.warning("the strategies could not be weighed, will be tried again: %s", error)

    def _notify(self) -> None:
        """Wake the threads that have something to do."""
        if not self._wake.is_set():
            self._wake.set()
        if self._loop.is_half_full and not self._crowded.is_set():
            self._crowded.set()

    def _run(self) -> None:
        interval = self._loop.config.flush_interval_seconds
        due = time.monotonic() + interval
        failure = ""
        while not self._stop.is_set():
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            try:
                self._loop.learn_pending()
                if time.monotonic() >= due:
                    due = time.monotonic() + interval
                    self._loop.flush_updates()
                    failure = ""
            except SonaError as error:
                # Once, not twice a second for as long as the database is away.
                if str(error) != failure:
                    failure = str(error)
                    log.warning("flush failed, will be tried again: %s", error)
            except Exception:
                log.exception("the instant loop failed, will be tried again")

    def _weigh(self) -> None:
        failure = ""
        while not self._stop.wait(self._evidence.config.interval_seconds):
            self._accesses.write_if_due()
            try:
                while not self._stop.is_set() and self._evidence.advance():
                    failure = ""
                self._evidence.refresh()
            except SonaError as error:
                if str(error) != failure and not self._stop.is_set():
                    failure = str(error)
                    log.warning("the strategies could not be weighed, will be tried again: %s", error)
            except Exception:
                log.exception("the evidence loop failed, will be tried again")

    def _spill(self) -> None:
        while not self._stop.is_set():
            self._crowded.wait(LOOK_SECONDS)
            self._crowded.clear()
            try:
                self._loop.spill()
            except Exception:
                log.exception("what is recorded could not be spilled, will be tried again")

    def close(self) -> None:
        """Flush and disconnect. What the database does not take stays in the spool, for the next process.

        Raises
        ------
        DatabaseError
            If what was recorded could not be made durable, in neither of them; says how much that is.
        """
        if self._closed:
            return
        if self._pid != os.getpid():
            # The connections are the parent's: closing them here would break them there.
            self._closed = True
            return
        self._stop.set()
        self._wake.set()
        self._crowded.set()
        last = LastFlush(self._loop, self._threads, self._disconnect)
        if not last.wait():
            log.warning("the database does not answer: what was recorded last is in the spool on this machine")
            self._closed = True
            return
        try:
            last.check()
        except SonaError as error:
            waiting = self._loop.metrics.unflushed + self._loop.metrics.pending
            if isinstance(error, UnknownSpace | EmbedderMismatch):
                self._disconnect()  # nothing can be mended
                if waiting:
                    raise
                return
            if waiting:
                raise DatabaseError(
                    f"{waiting} trajectories and scores are not durable ({error}): "
                    "mend the database and call close again, or they are lost with this process"
                ) from error
            log.warning("what was recorded last is in the spool on this machine: %s", error)
        else:
            self._accesses.write()
        self._disconnect()

    def _disconnect(self) -> None:
        self._closed = True
        _open_sessions.discard(self)
        self._loop.close()
        self._evidence.close()
        self._connections.close()

    def check_open(self) -> None:
        """Refuse what cannot be done any more.

        Raises
        ------
        ConfigError
            If the engine is closed, or of another process.
        EmbedderMismatch
            If the space has moved to another embedder.
        """
        if self._closed:
            raise ConfigError("the engine is closed: connect again")
        if self._pid != os.getpid():
            raise ConfigError("the engine was connected before this process was forked: connect in each process")
        if self._loop.given_up is not None:
            raise EmbedderMismatch(self._loop.given_up)
        if self._loop.has_moved:
            raise EmbedderMismatch(
                f"space {self._space.name!r} has moved to another embedder than {self._space.embedder!r}: embed with "
                "that one and connect again; what was recorded until now is kept, and the next run of the change "
                "carries it over"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_open_sessions: set[Session] = set()
"""Sessions that are not closed: what they hold must not go with the last reference."""


def _close_with_child() -> None:
    """A child of multiprocessing ends without atexit."""
    from multiprocessing import parent_process, util

    if parent_process() is not None:
        util.Finalize(None, _close_at_exit, exitpriority=1)


@atexit.register
def _close_at_exit() -> None:
    """A process that ends without `close` flushes all the same."""
    for session in list(_open_sessions):
        if session._pid == os.getpid():
            try:
                session.close()
            except Exception as error:
                log.error("at exit: %s", error)
