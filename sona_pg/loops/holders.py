"""The processes that hold the shards of a cycle: a pool of this machine, or the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from sona_pg.config import LOCAL, ShardConfig
from sona_pg.errors import ConfigError, SchedulerUnavailable, ShardLost, SonaError
from sona_pg.loops.cycle import Cycle

log = logging.getLogger("sona_pg")


@dataclass(frozen=True, slots=True)
class Holders:
    """The processes that hold shards.

    Parameters
    ----------
    executors
        One for each, so that a shard is asked where it lies.
    cycle
        Ends the waiting for them.
    check_alive
        Raises `ShardLost` where one is gone and its executor would not say so.
    is_cluster
        Whether they are of a Dask cluster.
    """

    executors: Sequence[Executor]
    cycle: Cycle
    check_alive: Callable[[], None]
    is_cluster: bool

    def __str__(self) -> str:
        return f"{len(self.executors)} {'Dask workers' if self.is_cluster else 'processes'}"

    def submit(self, number: int, function: Callable[..., Any], *args: object) -> Future[Any]:
        """Let the process that has the shard of this number call a function."""
        return self.executors[number % len(self.executors)].submit(function, *args)

    def results(self, futures: Sequence[Future[Any]]) -> list[Any]:
        """What they come to, in their order.

        Raises
        ------
        ShardLost
            If a process has died.
        Stopping
            If the worker is to end meanwhile, or has to since a signal has reached all of its processes.
        """
        try:
            while True:
                done, open_ = wait(futures, timeout=_LOOK_SECONDS, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if not open_:
                    return [future.result() for future in futures]
                self.cycle.check_stop()
                self.check_alive()
        except SonaError:
            self.cycle.check_stop()
            raise
        except (BrokenProcessPool, CancelledError, OSError) as cause:
            self.cycle.check_stop()
            raise ShardLost(f"a process that held a shard has died ({type(cause).__name__}: {cause})") from cause
        except Exception as cause:
            if type(cause).__module__.partition(".")[0] != "distributed":
                raise
            raise ShardLost(f"the cluster has lost a shard ({type(cause).__name__}: {cause})") from cause


_LOOK_SECONDS = 0.5
"""Time between two looks whether the worker is to end, while others compute."""


@contextlib.contextmanager
def opened_holders(config: ShardConfig, parts: int, cycle: Cycle) -> Iterator[Holders]:
    """Processes for so many parts."""
    with contextlib.ExitStack() as stack:
        if config.scheduler:
            try:
                found = _cluster(config, parts, cycle, stack)
            except SchedulerUnavailable as error:
                if config.without_scheduler != LOCAL:
                    raise
                log.warning("%s; the shards of this cycle are read by processes of this machine", error)
            else:
                yield found
                return
        yield Holders(_pools(min(config.processes, parts), stack), cycle, lambda: None, is_cluster=False)


def _pools(count: int, stack: contextlib.ExitStack) -> list[ProcessPoolExecutor]:
    # A fork would take over threads and connections of this process.
    spawn = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, spawn, initializer=_end_with_parent) for _ in range(count)]
    # Ctrl-C, and a stop of the whole group, are for the worker, which ends them: they never see one, from their start.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        for pool in pools:
            pool.submit(os.getpid)  # starts its process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for pool in pools:
        stack.callback(_end, pool)
    return pools


def _end(pool: ProcessPoolExecutor) -> None:
    """End a process: it has nothing to lose, and may hang."""
    # Python 3.14 has kill_workers for that.
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this process when the worker has, however that ended: nobody else would ask it for anything."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="sona-parent", daemon=True).start()


def _cluster(config: ShardConfig, parts: int, cycle: Cycle, stack: contextlib.ExitStack) -> Holders:
    address = config.scheduler
    try:
        distributed: Any = importlib.import_module("distributed")  # without types where it is not installed
    except ImportError as cause:
        raise ConfigError(f"scheduler {address} needs Dask: pip install 'sona-pg[dask]'") from cause
    try:
        client = distributed.Client(address, timeout=config.scheduler_timeout_seconds, set_as_default=False)
    except (OSError, ValueError) as cause:
        raise SchedulerUnavailable(f"there is no Dask scheduler at {address} ({cause}): check the address") from cause
    stack.enter_context(client)
    workers = sorted(client.ncores())[:parts]
    if not workers:
        raise SchedulerUnavailable(f"the Dask scheduler at {address} has no workers: start `dask worker {address}`")

    def check_alive() -> None:
        gone = set(workers) - set(client.ncores())
        if gone:
            raise ShardLost(f"Dask worker {min(gone)} has gone with its shards")

    # Each shard on one worker, which nobody may relieve of it. What one that is gone was asked waits for ever.
    executors = [client.get_executor(workers=[worker], allow_other_workers=False, pure=False) for worker in workers]
    return Holders(executors, cycle, check_alive, is_cluster=True)
