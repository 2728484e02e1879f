"""Runs the cycles of a slow loop, space after space: what is due, once, and as if no worker ever died.

One connection has the locks, reads and writes. While Python computes it idles, and needs nobody to keep it alive; when
it is cut, the locks are gone, and what was computed cannot be written, since it could be through that connection alone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

from sona_pg.config import WorkerConfig
from sona_pg.errors import (
    ConfigError,
    DatabaseBusy,
    DatabaseUnavailable,
    LockLost,
    SchedulerUnavailable,
    ShardLost,
    SonaError,
)
from sona_pg.loops.cycle import Cycle, Loop, Phase, Skipped, Stopping
from sona_pg.loops.schedule import next_time
from sona_pg.loops.space_store import SpaceStore
from sona_pg.steps import reached
from sona_pg.store import errors, runs, schedules
from sona_pg.store.connection import Connection, require_schema, translated
from sona_pg.store.database import Database
from sona_pg.store.runs import Run
from sona_pg.store.schedules import Due, Unplanned
from sona_pg.store.spaces import Space
from sona_pg.telemetry import NoTelemetry

log = logging.getLogger("sona_pg")


class LoopCoordinator:
    """Runs a loop in every space where it is due. Any number may run: a lock makes one at a time run it in a space.

    Parameters
    ----------
    database
        Where the spaces are; directly, not through a pooler.
    loop
        The loop.
    config
        Settings.
    telemetry
        Told what is done.
    only
        The one space that it works in; in all of them if None.
    """

    def __init__(
        self,
        database: Database,
        loop: Loop,
        config: WorkerConfig | None = None,
        telemetry: NoTelemetry | None = None,
        only: Space | None = None,
    ) -> None:
        self._only = only
        self._database = database
        self._loop = loop
        self._config = WorkerConfig() if config is None else config
        self._telemetry = NoTelemetry() if telemetry is None else telemetry
        self._worker = SpaceStore.worker_name()
        self._connection: Connection | None = None
        self._failing: dict[int, str] = {}

    @property
    def failing(self) -> list[str]:
        """Names of the spaces whose last cycle failed here."""
        return sorted(self._failing.values())

    def run(self, stop: threading.Event) -> None:
        """Run what is due until `stop` is set; the phase in hand is finished, and the rest left to the next worker."""
        while not stop.is_set():
            try:
                self.step(stop)
                self._telemetry.turned()
                self._wait(stop)
            except (DatabaseUnavailable, DatabaseBusy) as error:
                log.warning("the database is away or overloaded, will be tried again: %s", error)
                self.close()
                self._telemetry.turned()
                stop.wait(self._config.poll_interval_seconds)

    def step(self, stop: threading.Event | None = None) -> int:
        """A cycle in every space where one is due now; gives how many were done, skipped or failed.

        Raises
        ------
        DatabaseUnavailable
            If the database cannot be reached, or was cut off: what was computed meanwhile is not written.
        DatabaseBusy
            If it is short of something, or another session holds what is needed.
        PermissionDenied
            If the role may not run cycles.
        SchemaMismatch
            If the schema was migrated since: another version of the code is to go on.
        """
        stop = threading.Event() if stop is None else stop
        connection = self._connected()
        require_schema(connection)
        schedules.ensure_schedules(connection, self._loop.name, self._loop.schedule)
        self._plan(connection)
        # What was asked for until now, this look finds: the hints would only cause as many more.
        runs.forget_hints(connection)
        ended = 0
        for found in schedules.due(connection, self._loop.name):
            if self._only is not None and found.space_id != self._only.space_id:
                continue
            if stop.is_set():
                break
            ended += self._attempt(connection, found, stop)
        return ended

    def close(self) -> None:
        """Disconnect, and give back every lock by that."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._database.connect()
            runs.prepare(self._connection, self._loop.name, self._worker)
        return self._connection

    def _wait(self, stop: threading.Event) -> None:
        """Until the next look, or until somebody asks for something."""
        deadline = time.monotonic() + self._config.poll_interval_seconds
        with translated():
            while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
                # Signals set `stop` and do not wake the driver.
                for notification in self._connected().notifies(timeout=min(left, 0.5), stop_after=1):
                    if notification.payload == self._loop.name:
                        return

    def _plan(self, connection: Connection) -> None:
        now, unplanned = schedules.unplanned(connection, self._loop.name)
        times: dict[Unplanned, datetime] = {}
        for schedule in unplanned:
            try:
                found = next_time(now, schedule.every_seconds, schedule.cron, schedule.time_zone)
            except ConfigError as error:
                if schedules.set_schedule_aside(connection, schedule, self._loop.name):
                    self._complain(connection, schedule.space_id, f"{error}; set it anew with sona.set_schedule")
            else:
                assert found is not None
                times[schedule] = found
        if times:
            schedules.plan(connection, self._loop.name, now, times)

    def _attempt(self, connection: Connection, found: Due, stop: threading.Event) -> int:
        """A cycle of one space, if nobody else is at it; what goes wrong there stops no other space."""
        try:
            if not runs.try_lock(connection, found.space_id, self._loop.name):
                return 0
            with self._unlocking(connection, found.space_id):
                run = runs.claim(connection, found, self._loop.name, self._worker)
                if run is None:
                    return 0
                reached("cycle.after_claim")
                with self._telemetry.cycle(self._loop.name, found.name):
                    return self._cycle(connection, run, stop)
        except _Failed as failure:
            self._telemetry.failed(found.name, str(failure))
            return 1
        except DatabaseUnavailable:
            raise
        except SonaError as error:
            # Somebody deleted the space, has claimed the cycle, or another session has what it needs.
            log.warning("%s of space %r is left to the next look: %s", self._loop.name, found.name, error)
            return 0

    @contextlib.contextmanager
    def _unlocking(self, connection: Connection, space_id: int) -> Iterator[None]:
        try:
            yield
        finally:
            if not connection.closed and not connection.broken:
                runs.unlock(connection, space_id, self._loop.name)

    def _cycle(self, connection: Connection, run: Run, stop: threading.Event) -> int:
        cycle = Cycle(run, self._database.config, stop, self._database.url)
        began = time.monotonic()
        try:
            if run.attempts > self._config.attempts:
                raise _Deadly(
                    f"{run.attempts - 1} workers have died at it, one after the other, in phase {self._at(run)!r}"
                )
            for phase in self._loop.phases:
                if phase.name in run.done:
                    continue
                if stop.is_set():
                    raise Stopping("the worker is to end")
                self._phase(connection, cycle, phase)
            reached("cycle.before_finish")
            with runs.fenced(connection, run):
                runs.finish(connection, run, self._config.keep_runs)
        except Skipped as reason:
            with runs.fenced(connection, run):
                runs.skip(connection, run, str(reason), self._config.longest_setback_seconds, self._config.keep_runs)
        except Stopping:
            with runs.fenced(connection, run):
                runs.leave(connection, run)
            log.info("%s of space %r is left to the next worker", run.loop, run.space.name)
            return 0
        except (DatabaseUnavailable, LockLost):
            raise
        except Exception as error:
            if connection.closed or connection.broken:
                raise DatabaseUnavailable(f"the connection was cut in the middle of a cycle: {error}") from error
            raise _Failed(self._fail(connection, run, error)) from error
        reached("cycle.after_finish")
        self._failing.pop(run.space.space_id, None)
        log.info("%s of space %r: %.3f s", run.loop, run.space.name, time.monotonic() - began)
        return 1

    def _at(self, run: Run) -> str:
        return next((phase.name for phase in self._loop.phases if phase.name not in run.done), "the end")

    def _phase(self, connection: Connection, cycle: Cycle, phase: Phase[Any, Any]) -> None:
        run, times = cycle.run, [time.monotonic()]

        def lap() -> None:
            times.append(time.monotonic())

        with runs.reading(connection, phase.name):
            found = phase.read(connection, cycle)
        lap()
        reached("cycle.after_read")
        result = phase.compute(found, cycle)
        lap()
        reached("cycle.after_compute")
        with runs.fenced(connection, run), translated():
            reached("cycle.after_fence")
            facts = phase.write(connection, result, cycle)
            lap()
            seconds = {part: round(b - a, 6) for part, (a, b) in zip(_PARTS, pairwise(times), strict=True)}
            runs.write_phase(connection, run, {"name": phase.name, **seconds}, facts)
            reached("cycle.after_write")
        reached("cycle.after_commit")
        run.done.append(phase.name)
        run.facts.update(facts)
        log.info("%s of space %r, phase %s: %.3f s", run.loop, run.space.name, phase.name, times[-1] - times[0])

    def _fail(self, connection: Connection, run: Run, error: Exception) -> str:
        """Note down what went wrong, and say it; the space is tried again later, until it is set aside."""
        is_ours = isinstance(error, SonaError)
        reason = str(error) if is_ours else f"{type(error).__name__}: {error}"
        log.error("%s of space %r failed: %s", run.loop, run.space.name, reason, exc_info=None if is_ours else error)
        # A full disk, a lock that was not to be had or a process that died is no fault of the space.
        passes = isinstance(error, DatabaseBusy | ShardLost | SchedulerUnavailable)
        most = None if passes else self._config.set_aside_after
        with runs.fenced(connection, run):
            is_set_aside = runs.fail(
                connection, run, reason, most, self._config.longest_setback_seconds, self._config.keep_runs
            )
        if is_set_aside:
            reason += (
                f"; after {self._config.set_aside_after} failures the loop is set aside in this space: mend it, then "
                "ask for a cycle with sona.run_cycle, or set the schedule with sona.set_schedule"
            )
        self._failing[run.space.space_id] = run.space.name
        self._complain(connection, run.space.space_id, reason)
        return reason

    def _complain(self, connection: Connection, space_id: int, message: str) -> None:
        errors.log_error(connection, space_id, self._loop.name, self._worker, message)


_PARTS = ("read_seconds", "compute_seconds", "write_seconds")


class _Failed(SonaError):
    """A cycle that failed, which is noted down already."""


class _Deadly(SonaError):
    """A cycle at which worker after worker died."""
