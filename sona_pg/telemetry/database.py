"""What the database says, for metrics and health: asked when somebody asks, and not more often than now and then."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

from sona_pg.config import TelemetryConfig
from sona_pg.errors import DatabaseBusy, DatabaseUnavailable, SonaError
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from sona_pg.store.observation import LiftSoFar, SpaceFigures, figures, lifts
from sona_pg.store.spool_usage import SpoolUsage, usage

log = logging.getLogger("sona_pg")

APPLICATION = "sona metrics"


@dataclass(frozen=True, slots=True)
class Look:
    """What was found at one look.

    Parameters
    ----------
    is_up
        Whether the database answered.
    problem
        Why some or all of the rest is missing; None if nothing is.
    spaces, total
        Figures of spaces, and how many spaces there are.
    lifts, spools
        Of those that have one, by name.
    """

    is_up: bool
    problem: str | None = None
    spaces: list[SpaceFigures] = field(default_factory=list)
    total: int | None = None
    lifts: dict[str, LiftSoFar] = field(default_factory=dict)
    spools: dict[str, SpoolUsage] = field(default_factory=dict)


class DatabaseWatch:
    """Looks at the database over a connection of its own, in a thread that nobody has to wait for.

    Parameters
    ----------
    database
        Where to look.
    config
        How often, and how long.
    """

    def __init__(self, database: Database, config: TelemetryConfig) -> None:
        self._database, self._config = database, config
        self._changed = threading.Condition()
        self._found: Look | None = None
        self._found_at = 0.0
        self._began: float | None = None
        """When the look that is under way began."""
        self._connection: Connection | None = None
        self._lifts: dict[str, LiftSoFar] = {}
        self._lifts_at: float | None = None

    def look(self) -> Look:
        """What was found of late; never waits for longer than `patience_seconds`."""
        with self._changed:
            if self._fresh() is None and self._began is None:
                self._began = time.monotonic()
                threading.Thread(target=self._run, name="sona-metrics-look", daemon=True).start()
            if self._began is not None:
                patience = self._began + self._config.patience_seconds - time.monotonic()
                self._changed.wait_for(lambda: self._began is None, max(0.0, patience))
            if self._began is not None:
                return Look(False, f"the database has not answered within {self._config.patience_seconds:g} s")
            assert self._found is not None
            return self._found

    def _fresh(self) -> Look | None:
        return self._found if time.monotonic() - self._found_at < self._config.cache_seconds else None

    def _run(self) -> None:
        found = Look(False, "the look at the database failed: see the log")
        try:
            found = self._ask()
        except Exception:
            log.exception("the metrics of the database could not be read")
        finally:
            if found.problem != (None if self._found is None else self._found.problem) and found.problem is not None:
                log.warning("metrics of the database are missing: %s", found.problem)
            with self._changed:
                self._found, self._found_at, self._began = found, time.monotonic(), None
                self._changed.notify_all()

    def _ask(self) -> Look:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connect(
                    self._database.url, vectors=False, config=self._database.config, application=APPLICATION
                )
            spaces, total = figures(
                self._connection,
                limit=self._config.max_spaces,
                timeout_seconds=self._config.statement_timeout_seconds,
            )
            problem = self._ask_lifts(self._connection)
        except DatabaseUnavailable as error:
            self._disconnect()
            return Look(False, str(error))
        except SonaError as error:
            return Look(True, str(error))
        directory = self._database.spool_directory
        spools = {} if directory is None else {each.space: usage(directory, each.key) for each in spaces}
        shown = {each.space for each in spaces}
        known = {space: lift for space, lift in self._lifts.items() if space in shown}
        return Look(True, problem, spaces, total, known, spools)

    def _ask_lifts(self, connection: Connection) -> str | None:
        """Read the lifts anew, unless they are young enough; what hindered it. Those that were known stay."""
        if self._lifts_at is not None and time.monotonic() - self._lifts_at < self._config.lift_cache_seconds:
            return None
        self._lifts_at = time.monotonic()
        try:
            self._lifts = lifts(connection, timeout_seconds=self._config.statement_timeout_seconds)
        except DatabaseBusy as error:
            return f"the lift could not be read: {error}"
        return None

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Disconnect, unless a look is under way: that ends with the process."""
        with self._changed:
            if self._began is None:
                self._disconnect()
