"""Settings by what an engine is best at. What each costs and brings is measured by ``python -m benchmarks presets``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from sona_pg.config.checks import check_whole, rank_within
from sona_pg.config.instant import InstantLoopConfig, QueryAdapterConfig
from sona_pg.config.limits import MAX_DIM
from sona_pg.config.loops import BackgroundConfig, DeepLoopConfig
from sona_pg.config.patterns import PatternConfig
from sona_pg.config.process import StoreConfig
from sona_pg.config.sona import LearningMode, SonaConfig
from sona_pg.config.strategy import EvidenceConfig, StrategyConfig
from sona_pg.config.text import EmbeddingConfig
from sona_pg.errors import ConfigError


def max_throughput() -> SonaConfig:
    """Most requests a second: less is looked at for an answer, and more may wait in memory to be learned."""
    return SonaConfig(
        instant_config=InstantLoopConfig(max_pending_signals=16_384, max_unflushed=65_536, flush_interval_seconds=1.0),
        strategy_config=StrategyConfig(candidates=20, neighbours=10, neighbours_learning=40),
        evidence_config=EvidenceConfig(interval_seconds=5.0),
    )


def max_quality() -> SonaConfig:
    """Best answers: more is looked at for each, and more is kept to learn from."""
    return SonaConfig(
        adapter_config=QueryAdapterConfig(rank=16, negatives=128, pool_size=16_384),
        strategy_config=StrategyConfig(candidates=100, neighbours=100, neighbours_learning=200),
        pattern_config=PatternConfig(k_clusters=200),
        deep_config=DeepLoopConfig(dreams_per_cycle=500),
    )


def edge() -> SonaConfig:
    """A small device: small buffers, samples and caches."""
    return SonaConfig(
        instant_config=InstantLoopConfig(max_pending_signals=200, max_unflushed=1_000),
        adapter_config=QueryAdapterConfig(rank=4, negatives=32, pool_size=512),
        evidence_config=EvidenceConfig(batch=16),
        store_config=StoreConfig(idle_connections=1, spool_max_bytes=64 << 20, spool_segment_bytes=1 << 20),
        embedding_config=EmbeddingConfig(batch_size=8, cache_size=256),
        background_config=BackgroundConfig(max_trajectories=10_000, max_vector_bytes=16 << 20),
        deep_config=DeepLoopConfig(max_vector_bytes=16 << 20, most_dreams=500),
    )


def batch() -> SonaConfig:
    """Outcomes by the file: nothing is learned before it is asked for, and then much at once."""
    return SonaConfig(
        learning_loops=LearningMode.MANUAL,
        instant_config=InstantLoopConfig(max_pending_signals=16_384, max_unflushed=65_536, flush_interval_seconds=60.0),
        evidence_config=EvidenceConfig(batch=1024),
        embedding_config=EmbeddingConfig(batch_size=512),
    )


PRESETS: Mapping[str, Callable[[], SonaConfig]] = {
    "max_throughput": max_throughput,
    "max_quality": max_quality,
    "edge": edge,
    "batch": batch,
}


def preset(name: str, dim: int | None = None) -> SonaConfig:
    """See `SonaConfig.preset`."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}, expected one of {', '.join(PRESETS)}")
    config = PRESETS[name]()
    if dim is None:
        return config
    check_whole("dim", dim, 1, MAX_DIM)
    adapter = config.adapter_config
    if adapter is not None:
        adapter = replace(adapter, rank=rank_within(dim, adapter.rank))
    return config.replace(embedding_dim=dim, adapter_config=adapter)
