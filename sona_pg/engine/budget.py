"""What an engine may take: an upper bound of its memory, and the time that a request spends in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sona_pg.config import (
    SHOWN,
    EmbeddingConfig,
    EvidenceConfig,
    InstantLoopConfig,
    QueryAdapterConfig,
    SonaConfig,
    SpaceConfig,
    StoreConfig,
    StrategyConfig,
)
from sona_pg.engine.record import item_steps
from sona_pg.errors import ConfigError
from sona_pg.ids import new_trajectory_id
from sona_pg.kernels import LowRank, owned
from sona_pg.learning.serving import Serving
from sona_pg.loops.admission import admitted
from sona_pg.loops.buffer import TrajectoryBuffer
from sona_pg.types import FloatVector, QueryTrajectory

CODE_BYTES = 16 << 20
"""Modules of an engine over an interpreter with NumPy and psycopg, by `python -m benchmarks memory`, and some more."""

_FLOAT, _DOUBLE, _POINTER = 4, 8, 8
_ARRAY = 128
"""An array of NumPy beside its numbers, as an object on the heap."""
_TEXT = 64
"""A short string, or another small object, beside its bytes."""
_ENTRY = 128
"""A place in a dict, a set or an ordered dict, while that grows."""
_CONNECTION = 256 << 10
"""Buffers of a connection, and its prepared statements."""
_EVENT = 768
"""A trajectory without its vectors, steps and texts, its id, its entry for the ledger and the edges that it touches."""
_STEP = 176
"""A step without its vectors and the id of its item."""

_HALVINGS = 7
"""How often what is not set is halved, at most."""
_BUFFERS_FIRST = 4
"""After so many halvings of the buffers the sample is halved, too."""
_TIMED = 500
"""Requests whose median is the latency."""


def memory_bound(
    dim: int,
    instant: InstantLoopConfig | None = None,
    adapter: QueryAdapterConfig | None = None,
    strategy: StrategyConfig | None = None,
    evidence: EvidenceConfig | None = None,
    embedding: EmbeddingConfig | None = None,
    store: StoreConfig | None = None,
    *,
    items: int = SHOWN,
    text_bytes: int = 256,
) -> int:
    """Bytes that the buffers, samples, caches and learned state of an engine take at most, all of them full.

    It is derived from what these settings allow to be held at once, `CODE_BYTES` come on top. What depends on the data
    alone is left out: activations and metadata that an application records with a trajectory, and the memory graph of a
    space that has one.

    Parameters
    ----------
    dim
        Dimension of the space.
    instant, adapter, strategy, evidence, embedding, store
        Settings; the defaults if None. Without an embedder, give ``EmbeddingConfig(cache_size=0)``.
    items
        Items that an answer shows, or that are judged with it.
    text_bytes
        Of ids, names and metadata of one trajectory beside the ids of its items.

    Raises
    ------
    ConfigError
        If the dimension or a number is out of range.
    """
    for name, given in (("dim", dim), ("items", items), ("text_bytes", text_bytes)):
        if (
            not isinstance(given, int)
            or isinstance(given, bool)
            or not 0 <= given < 1 << 31
            or (name == "dim" and not dim)
        ):
            raise ConfigError(f"{name} is {given!r}, expected a whole number")
    instant = InstantLoopConfig() if instant is None else instant
    adapter = QueryAdapterConfig.for_dim(dim) if adapter is None else adapter
    strategy = StrategyConfig() if strategy is None else strategy
    evidence = EvidenceConfig() if evidence is None else evidence
    embedding = EmbeddingConfig() if embedding is None else embedding
    store = StoreConfig() if store is None else store
    vector = dim * _FLOAT + _ARRAY
    # What waits: a buffer is taken out while it fills again, and what is learned may be as much and one buffer more.
    waiting = instant.max_unflushed + 2 * instant.max_pending_signals
    trajectories = waiting * (_EVENT + vector + text_bytes + items * (_STEP + _TEXT))
    slots = 1 << max(1, (instant.max_pending_signals - 1).bit_length())
    rings = 2 * slots * 2 * _POINTER
    # The sample of the items that the loops share, and another one that takes its place, before and after it is scaled;
    # while initial directions are sought, one in double precision.
    sample = adapter.pool_size * (dim * _FLOAT + _TEXT + _ENTRY)
    samples = 3 * sample + adapter.pool_size * dim * _DOUBLE + 4 * min(dim, adapter.pool_size) ** 2 * _DOUBLE
    # Four blocks of each adapter: trained, served, two moments; and packed, unpacked and served beside that.
    block = 2 * dim * _FLOAT
    state = block * (4 * (2 + strategy.folds) * adapter.rank + 4 * strategy.stake_rank + 4 * instant.micro_lora_rank)
    # Queries that were remembered last, twice so many; prototypes and regions, of what learns and of what answers.
    remembered = (2 * strategy.sanity_events + 3 * strategy.prototypes + 4 * strategy.regions) * vector
    # What is around one event: what helped in the events near it, as rows and as a matrix.
    around = strategy.candidates + strategy.neighbours_learning * min(items, strategy.most_remembered)
    events = evidence.batch * (_EVENT + vector + text_bytes + items * (_STEP + _TEXT))
    cache = embedding.cache_size * (vector + _TEXT + 2 * _ENTRY)
    connections = (store.idle_connections + 3) * _CONNECTION
    return trajectories + rings + samples + 4 * state + remembered + 2 * around * vector + events + cache + connections


def within_budget(
    config: SonaConfig,
    dim: int,
    instant: InstantLoopConfig | None,
    adapter: QueryAdapterConfig | None,
    strategy: StrategyConfig | None,
) -> SonaConfig:
    """The settings, with smaller buffers, cache and sample of items where the budget takes that.

    Only what is as it is by default is made smaller: first what may wait and what is cached, down to a hundredth, then
    the sample.

    Parameters
    ----------
    config
        Settings with a budget.
    dim
        Dimension of the space.
    instant, adapter, strategy
        As the space has declared them; None where it has not, and they may be chosen.

    Raises
    ------
    ConfigError
        If the settings need more than the budget.
    """
    assert config.memory_budget_mb is not None
    budget = int(config.memory_budget_mb * (1 << 20))
    default_sample = QueryAdapterConfig().pool_size
    asked = config.adapter_config
    may_choose = adapter is None and (asked is None or asked.pool_size == default_sample)
    adapter = adapter or config.adapter_config or QueryAdapterConfig.for_dim(dim)
    strategy = strategy or config.strategy_config
    asked_instant, usual = config.instant_config or instant or InstantLoopConfig(), InstantLoopConfig()
    least = 0
    for halvings in range(_HALVINGS + 1):
        instant = asked_instant
        if instant.max_unflushed == usual.max_unflushed:
            instant = replace(instant, max_unflushed=max(usual.max_unflushed >> halvings, 100))
        if instant.max_pending_signals == usual.max_pending_signals:
            instant = replace(instant, max_pending_signals=max(usual.max_pending_signals >> halvings, 50))
        embedding = config.embedding_config
        if embedding.cache_size == EmbeddingConfig().cache_size:
            embedding = replace(embedding, cache_size=embedding.cache_size >> halvings)
        # A sample that is half as large costs quality before small buffers cost anything.
        sample = adapter.pool_size >> max(halvings - _BUFFERS_FIRST, 0) if may_choose else adapter.pool_size
        chosen = replace(adapter, pool_size=sample)
        evidence, store = config.evidence_config, config.store_config
        least = CODE_BYTES + memory_bound(dim, instant, chosen, strategy, evidence, embedding, store)
        if least <= budget:
            return config.replace(
                instant_config=instant,
                embedding_config=embedding,
                adapter_config=chosen if may_choose else config.adapter_config,
            )
    raise ConfigError(
        f"memory_budget_mb is {config.memory_budget_mb:g}, and these settings take up to {least / (1 << 20):.0f} in a "
        f"space of {dim} dimensions: raise it, or lower max_unflushed, cache_size and pool_size"
    )


def check_latency(config: SonaConfig, dim: int, adapter: QueryAdapterConfig | None) -> None:
    """Refuse a target latency that this machine does not reach with these settings, with a `ConfigError`.

    Parameters
    ----------
    config
        Settings, with a target or without.
    dim
        Dimension of the space.
    adapter
        As the space has declared it; None where it has not.
    """
    target = config.target_latency_us
    if target is None:
        return
    rank = (adapter or config.adapter_config or QueryAdapterConfig.for_dim(dim)).rank
    served = Serving([_random_map(dim, min(rank, dim)), _random_map(dim, 1), _random_map(dim, 1)])
    measured = _median_us(served.adapt, dim, config.space_config or SpaceConfig())
    if measured > target:
        raise ConfigError(
            f"target_latency_us is {target:g}, and adapting and recording take {measured:.0f} here, in the median: "
            "raise it, or lower the rank of adapter_config"
        )


def _random_map(dim: int, rank: int) -> LowRank:
    """A map that is not zero: it costs what one that was learned does."""
    made = LowRank(dim, rank)
    made.load(np.random.default_rng(0).standard_normal(made.weights.shape).astype(np.float32))
    return made


def _median_us(adapt: Callable[[FloatVector], object], dim: int, space: SpaceConfig) -> float:
    """Of the microseconds that a request spends in `adapt` and `record`; the buffer is thrown away."""
    buffer = TrajectoryBuffer(_TIMED)
    queries = np.random.default_rng(0).standard_normal((64, dim), dtype=np.float32)
    shown, taken = [str(item) for item in range(SHOWN)], []
    for call in range(_TIMED):
        query = queries[call % len(queries)]
        began = time.perf_counter_ns()
        adapt(query)
        _record(buffer, query, shown, dim, space)
        taken.append(time.perf_counter_ns() - began)
    return float(np.median(taken)) / 1e3


def _record(
    buffer: TrajectoryBuffer, query: np.typing.NDArray[np.float32], shown: list[str], dim: int, space: SpaceConfig
) -> None:
    """What `record` does until the trajectory is in the buffer."""
    buffer.record(
        admitted(QueryTrajectory(new_trajectory_id(), owned(query, dim), item_steps(shown, None, ())), dim, space)
    )
