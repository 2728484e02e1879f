"""Where the shards of a cycle are: in this process, in a pool of processes, or in those of a Dask cluster.

A shard reads its own rows, as of the moment in which the cycle began, and keeps them: what it is asked goes there, and
what it says comes back. It is asked in the process in which it lies, and what is added up is added up in the order of
the shards, so that a cycle comes to the same, bit for bit, wherever they are.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from sona_pg.config import LOCAL, ShardConfig, StoreConfig, VerdictConfig
from sona_pg.errors import ConfigError, InvalidInput, SchedulerUnavailable, ShardLost, SonaError
from sona_pg.learning.outcome_shard import HeldShards, OutcomeShard, OutcomeShards
from sona_pg.loops.cycle import Cycle
from sona_pg.store.database import ENV_URL, open_database
from sona_pg.store.patterns import Part, PatternReader, PatternState, pattern_reader
from sona_pg.store.spaces import Space

log = logging.getLogger("sona_pg")

P = ParamSpec("P")
T = TypeVar("T")

_CHECK_EVERY = 1000
"""Outcomes after which it is looked whether the worker is to end."""


class Loaded(NamedTuple):
    """What a shard has read.

    Parameters
    ----------
    kept
        Outcomes.
    new
        Outcomes that no cycle has read.
    without_direction
        Those of them whose query is zero: they are not kept.
    unusable
        Kept ones whose parameters, precision or recall cannot be used.
    """

    kept: int
    new: int
    without_direction: int
    unusable: int


@dataclass(frozen=True, slots=True)
class Shards:
    """Shards that have read their rows.

    Parameters
    ----------
    loaded
        Of each what it has read.
    outcomes
        To be asked.
    where
        For the ledger of cycles: in what they lie.
    """

    loaded: Sequence[Loaded]
    outcomes: OutcomeShards
    where: str


@contextlib.contextmanager
def opened_shards(
    reader: PatternReader, state: PatternState, parts: Sequence[Part], verdicts: VerdictConfig, cycle: Cycle,
    config: ShardConfig,
) -> Iterator[Shards]:  # fmt: skip
    """Shards of these parts; `reader` must be open until they are, not longer.

    Raises
    ------
    SchedulerUnavailable
        If there is no scheduler at the address, and the settings do not allow to do without.
    ShardLost
        If a process that held one has died.
    """
    if len(parts) < 2 or (config.processes == 1 and not config.scheduler):
        yield _here(reader, state, parts, verdicts, cycle)
        return
    source = _Source(uuid.uuid4().hex, cycle.space, state, verdicts, reader.snapshot(), cycle.config)
    with _executors(config) as (executors, where):
        if where == "processes":
            source = source.at(cycle.url)
        asked = [
            executors[number % len(executors)].submit(_load, source, number, part) for number, part in enumerate(parts)
        ]
        loaded = _results(asked)
        cycle.check_stop()
        outcomes = _RemoteShards(executors, source.token, [one.kept for one in loaded], cycle)
        try:
            yield Shards(loaded, outcomes, f"{len(executors)} {where}")
        finally:
            # The processes of a cluster live longer than a cycle.
            with contextlib.suppress(Exception):
                _results([executor.submit(_release, source.token) for executor in executors])


# ---- in this process -------------------------------------------------------------------------------------------------


def _here(
    reader: PatternReader, state: PatternState, parts: Sequence[Part], verdicts: VerdictConfig, cycle: Cycle
) -> Shards:
    loaded, shards = [], []
    for part in parts:
        shard, of = _read(reader, state, part, verdicts, cycle.space.dim, cycle.check_stop)
        loaded.append(of)
        shards.append(shard)
    return Shards(loaded, HeldShards(shards, cycle.check_stop), "here")


def _read(
    reader: PatternReader,
    state: PatternState,
    part: Part,
    verdicts: VerdictConfig,
    dim: int,
    check_stop: Callable[[], None],
) -> tuple[OutcomeShard, Loaded]:
    shard = OutcomeShard(dim, part.size, verdicts)
    new = without_direction = unusable = 0
    for number, outcome in enumerate(reader.outcomes(state, part)):
        if number % _CHECK_EVERY == 0:
            check_stop()
        is_new = outcome.ordinal >= state.consumed
        new += is_new
        try:
            if not is_new and outcome.ordinal not in state.waiting:
                shard.add_counted(outcome.query, outcome.quality)
            elif not shard.add_outcome(*outcome):
                unusable += 1
        except InvalidInput:
            without_direction += is_new
    return shard, Loaded(len(shard), new, without_direction, unusable)


# ---- in others -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """What another process needs to read a shard; without a URL it asks its own environment, as every command does."""

    token: str
    space: Space
    state: PatternState
    verdicts: VerdictConfig
    snapshot: str
    config: StoreConfig
    url: str | None = None

    def at(self, url: str) -> _Source:
        return _Source(self.token, self.space, self.state, self.verdicts, self.snapshot, self.config, url)


_held: dict[tuple[str, int], OutcomeShard] = {}
"""What this process holds, by cycle and number."""


def _load(source: _Source, number: int, part: Part) -> Loaded:
    if source.url is None and not os.environ.get(ENV_URL):
        raise ConfigError(f"{ENV_URL} is not set where a Dask worker runs: it says where the shards are to be read")
    database = open_database(source.url, config=source.config, application="sona shard")
    with (
        contextlib.closing(database.connect()) as connection,
        pattern_reader(connection, source.space, source.snapshot) as reader,
    ):
        shard, loaded = _read(reader, source.state, part, source.verdicts, source.space.dim, lambda: None)
    _held[source.token, number] = shard
    return loaded


def _ask(token: str, number: int, ask: Callable[..., T], args: tuple[Any, ...], named: dict[str, Any]) -> T:
    try:
        shard = _held[token, number]
    except KeyError:
        raise ShardLost(f"shard {number} is not in the process that was asked: the one that held it has died") from None
    return ask(shard, *args, **named)


def _release(token: str) -> None:
    for key in [key for key in _held if key[0] == token]:
        del _held[key]


class _RemoteShards:
    """Shards of other processes, each by way of the executor of its own."""

    def __init__(self, executors: Sequence[Executor], token: str, sizes: Sequence[int], cycle: Cycle) -> None:
        self._executors, self._token, self._sizes, self._cycle = executors, token, sizes, cycle

    @property
    def sizes(self) -> Sequence[int]:
        """Outcomes of each."""
        return self._sizes

    def map(self, ask: Callable[Concatenate[OutcomeShard, P], T], *args: P.args, **named: P.kwargs) -> list[T]:
        """Ask all at once."""
        self._cycle.check_stop()
        executors = itertools.cycle(self._executors)
        return _results(
            [
                executor.submit(_ask, self._token, number, ask, args, named)
                for number, executor in zip(range(len(self._sizes)), executors, strict=False)
            ]
        )


def _results(futures: Sequence[Any]) -> list[Any]:
    """What they come to, in their order.

    Raises
    ------
    ShardLost
        If a process has died.
    """
    try:
        return [future.result() for future in futures]
    except SonaError:
        raise
    except (BrokenProcessPool, CancelledError, OSError) as cause:
        raise ShardLost(f"a process that held a shard has died ({type(cause).__name__}: {cause})") from cause
    except Exception as cause:
        if type(cause).__module__.partition(".")[0] != "distributed":
            raise
        raise ShardLost(f"the cluster has lost a shard ({type(cause).__name__}: {cause})") from cause


@contextlib.contextmanager
def _executors(config: ShardConfig) -> Iterator[tuple[Sequence[Executor], str]]:
    """An executor for each process, so that a shard is asked where it lies; and what they are."""
    with contextlib.ExitStack() as stack:
        if config.scheduler:
            try:
                found = _cluster(config.scheduler, config.scheduler_timeout_seconds, stack), "Dask workers"
            except SchedulerUnavailable as error:
                if config.without_scheduler != LOCAL:
                    raise
                log.warning("%s; the shards of this cycle are read by processes of this machine", error)
            else:
                yield found
                return
        # A fork would take over threads and connections of this process.
        spawn = multiprocessing.get_context("spawn")
        pools = [ProcessPoolExecutor(1, spawn, initializer=_end_with_parent) for _ in range(config.processes)]
        for pool in pools:
            stack.callback(pool.shutdown, cancel_futures=True)
        yield pools, "processes"


def _end_with_parent() -> None:
    """End this process when the worker has, however that ended: nobody else would ask it for anything."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which ends this one
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="sona-parent", daemon=True).start()


def _cluster(address: str, timeout_seconds: float, stack: contextlib.ExitStack) -> Sequence[Executor]:
    try:
        from distributed import Client
    except ImportError as cause:
        raise ConfigError(f"scheduler {address} needs Dask: pip install 'sona-pg[dask]'") from cause
    try:
        client = stack.enter_context(Client(address, timeout=timeout_seconds, set_as_default=False))  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as cause:
        raise SchedulerUnavailable(f"there is no Dask scheduler at {address} ({cause}): check the address") from cause
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    if not workers:
        raise SchedulerUnavailable(f"the Dask scheduler at {address} has no workers: start `dask worker {address}`")
    # One that has died is replaced, so that who asks hears that the shard is lost, and does not wait for ever.
    return [client.get_executor(workers=[worker], allow_other_workers=True, pure=False) for worker in workers]
