"""How often patterns are found: counted in the process, written now and then, so that no search writes."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from sona_pg.config import StoreConfig
from sona_pg.errors import PermissionDenied, SonaError
from sona_pg.store.connection import Connection
from sona_pg.store.pattern_search import count_accesses
from sona_pg.store.spaces import Space

log = logging.getLogger("sona_pg")


class AccessCounts:
    """Accesses of the patterns of a space that the database does not know yet. Safe to use from several threads.

    A process that is killed takes along what it has counted since the last write, and nothing else.

    Parameters
    ----------
    space
        The space.
    connect
        Gives a connection that nobody else uses meanwhile.
    config
        Settings.
    """

    def __init__(
        self, space: Space, connect: Callable[[], AbstractContextManager[Connection]], config: StoreConfig
    ) -> None:
        self._space, self._connect, self._config = space, connect, config
        self._counts: Counter[int] = Counter()
        self._mutex = threading.Lock()
        self._may_count = True
        self._due = time.monotonic() + config.access_interval_seconds

    def found(self, ids: Iterable[int]) -> None:
        """Patterns were found; no more of them wait than the space has."""
        if self._may_count:
            with self._mutex:
                self._counts.update(ids)

    def write_if_due(self) -> None:
        """Write what waits, if that was not done for some time."""
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write what waits; where the database does not take it, it waits for the next time."""
        with self._mutex:
            self._due = time.monotonic() + self._config.access_interval_seconds
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            with self._connect() as connection:
                count_accesses(connection, self._space, counts)
        except PermissionDenied:
            # Who may only read a space is not counted in it.
            self._may_count = False
        except SonaError as error:
            log.debug("accesses of patterns wait for the next time: %s", error)
            with self._mutex:
                self._counts.update(counts)
