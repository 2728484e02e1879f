"""Where the shards of a cycle are: in this process, in a pool of processes, or in those of a Dask cluster.

A shard reads its own rows, as of the moment in which the cycle began, and keeps them: what it is asked goes there, and
what it says comes back. It is asked in the process in which it lies, and what is added up is added up in the order of
the shards, so that a cycle comes to the same, bit for bit, wherever they are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from sona_pg.config import ShardConfig, StoreConfig, VerdictConfig
from sona_pg.errors import ConfigError, DatabaseError, InvalidInput, ShardLost
from sona_pg.learning.outcome_shard import HeldShards, OutcomeShard, OutcomeShards
from sona_pg.loops.cycle import Cycle
from sona_pg.loops.holders import Holders, opened_holders
from sona_pg.store.database import ENV_URL, open_database
from sona_pg.store.pattern_reader import Part, PatternReader, pattern_reader
from sona_pg.store.patterns import PatternState
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
    with opened_holders(config, len(parts), cycle) as holders:
        if not holders.is_cluster:
            source = replace(source, url=cycle.url)
        loading = [holders.submit(number, _load, source, number, part) for number, part in enumerate(parts)]
        loaded = _loaded(loading, holders)
        outcomes = _RemoteShards(holders, source.token, [one.kept for one in loaded])
        try:
            yield Shards(loaded, outcomes, str(holders))
        finally:
            if holders.is_cluster:
                # Its processes live longer than a cycle; one that is busy or gone does so later, see `_load`.
                released = [executor.submit(_release, source.token) for executor in holders.executors]
                wait(released, timeout=config.scheduler_timeout_seconds)


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


@dataclass(slots=True)
class _Held:
    """A shard that this process holds, of which space it is, and when it was asked last."""

    shard: OutcomeShard
    space: uuid.UUID
    asked: float


_held: dict[tuple[str, int], _Held] = {}
"""By cycle and number."""

_KEPT_SECONDS = 3600.0
"""What nobody has asked for so long is of a worker that has died."""


def _load(source: _Source, number: int, part: Part) -> Loaded:
    if source.url is None and not os.environ.get(ENV_URL):
        raise ConfigError(f"{ENV_URL} is not set where a Dask worker runs: it says where the shards are to be read")
    # What a worker that was killed has left here: a space has one cycle at a time.
    for key, held in list(_held.items()):
        is_older = held.space == source.space.key and key[0] != source.token
        if is_older or time.monotonic() - held.asked > _KEPT_SECONDS:
            _held.pop(key, None)
    database = open_database(source.url, config=source.config, application="sona shard")
    with (
        contextlib.closing(database.connect()) as connection,
        pattern_reader(connection, source.space, source.snapshot) as reader,
    ):
        shard, loaded = _read(reader, source.state, part, source.verdicts, source.space.dim, lambda: None)
    _held[source.token, number] = _Held(shard, source.space.key, time.monotonic())
    return loaded


def _ask(token: str, number: int, ask: Callable[..., T], args: tuple[Any, ...], named: dict[str, Any]) -> T:
    held = _held.get((token, number))
    if held is None:
        raise ShardLost(f"shard {number} is not in the process that was asked: it was started anew")
    held.asked = time.monotonic()
    return ask(held.shard, *args, **named)


def _release(token: str) -> None:
    for key in [key for key in _held if key[0] == token]:
        _held.pop(key, None)


class _RemoteShards:
    """Shards of other processes."""

    def __init__(self, holders: Holders, token: str, sizes: Sequence[int]) -> None:
        self._holders, self._token, self._sizes = holders, token, sizes

    @property
    def sizes(self) -> Sequence[int]:
        """Outcomes of each."""
        return self._sizes

    def map(self, ask: Callable[Concatenate[OutcomeShard, P], T], *args: P.args, **named: P.kwargs) -> list[T]:
        """Ask all at once."""
        submit, numbers = self._holders.submit, range(len(self._sizes))
        asked = [submit(number, _ask, self._token, number, ask, args, named) for number in numbers]
        return self._holders.results(asked)


def _loaded(futures: Sequence[Future[Any]], holders: Holders) -> list[Loaded]:
    try:
        return holders.results(futures)
    except DatabaseError as cause:
        # It is not the connection of this process that failed.
        where = f"a Dask worker: its own {ENV_URL} says where" if holders.is_cluster else "a process"
        raise ShardLost(f"a part of the rows could not be read by {where} ({cause})") from cause
