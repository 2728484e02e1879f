"""Settings: frozen, and refused when they are given out of range."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest

from sona_pg import config
from sona_pg.config import (
    BackgroundConfig,
    BackgroundLoopConfig,
    BaseTrainingConfig,
    BoundaryConfig,
    ConsolidationConfig,
    DeepLoopConfig,
    DistillationConfig,
    DreamConfig,
    DreamEvidenceConfig,
    EmbeddingConfig,
    EndpointConfig,
    EvidenceConfig,
    EwcConfig,
    GateConfig,
    HierarchyConfig,
    InstantLoopConfig,
    LearningMode,
    LoraConfig,
    PatternConfig,
    PhiConfig,
    QueryAdapterConfig,
    ScheduleConfig,
    ShardConfig,
    SignalConfig,
    SonaConfig,
    SpaceConfig,
    StoreConfig,
    StrategyConfig,
    TelemetryConfig,
    TransferConfig,
    VerdictConfig,
    WorkerConfig,
)
from sona_pg.errors import ConfigError

ALL: list[type[Any]] = [
    BackgroundConfig,
    BaseTrainingConfig,
    DistillationConfig,
    DreamConfig,
    DreamEvidenceConfig,
    BoundaryConfig,
    ConsolidationConfig,
    EmbeddingConfig,
    EndpointConfig,
    EvidenceConfig,
    EwcConfig,
    GateConfig,
    HierarchyConfig,
    InstantLoopConfig,
    LoraConfig,
    PatternConfig,
    PhiConfig,
    QueryAdapterConfig,
    ScheduleConfig,
    ShardConfig,
    SignalConfig,
    SpaceConfig,
    StrategyConfig,
    StoreConfig,
    TelemetryConfig,
    TransferConfig,
    VerdictConfig,
    WorkerConfig,
]
NUMBERS = [(each, f.name) for each in ALL for f in fields(each) if f.type in ("int", "float")]
WHOLE = [(each, f.name) for each in ALL for f in fields(each) if f.type == "int"]
NUMERIC = [
    (each, f.name) for each in [*ALL, SonaConfig] for f in fields(each) if set(f.type.split(" | ")) & {"int", "float"}
]

# The first value beyond each end of the range.
OUT_OF_RANGE: dict[type[Any], dict[str, tuple[float, float]]] = {
    BackgroundConfig: {
        "minimum": (0, 1_000_001),
        "max_trajectories": (0, 10_000_001),
        "max_vector_bytes": ((1 << 20) - 1, (1 << 40) + 1),
        "shard_rows": (0, 10_000_001),
    },
    ShardConfig: {
        "processes": (0, 1025),
        "scheduler": ("127.0.0.1:8786", 8786, None),
        "without_scheduler": ("", "give up", True),
        "scheduler_timeout_seconds": (0.0, 3601.0),
    },
    DeepLoopConfig: {
        "dreams_per_cycle": (-1, 100_001),
        "dreams_per_node": (-0.1, 1000.1),
        "most_dreams": (-1, 100_001),
        "keep_dreams_each": (-1, 100_001),
        "consolidation_threshold": (-0.1, 1.1),
        "phi_threshold": (-0.1, 1.0),
        "max_cycle_seconds": (-1.0, 604_801.0),
        "max_vector_bytes": ((1 << 20) - 1, (1 << 40) + 1),
        "pattern_items": (-1, 10_001),
        "system_patterns": (1, 16),
        "system_queries": (1, 1_000_001),
        "transfer_patterns": (0, 2001),
        "keep_dreams": (0, 10_001),
        "keep_archive_seconds": (-1.0, 1.1e11),
    },
    ConsolidationConfig: {
        "frequency_weight": (-0.1, 1.1),
        "recency_weight": (-0.1, 1.1),
        "quality_weight": (-0.1, 1.1),
        "connectivity_weight": (-0.1, 1.1),
        "recency_half_life_seconds": (0.9, 1e13),
        "prior_quality": (-0.1, 1.1),
        "threshold": (-0.1, 1.1),
        "strengthening": (-0.1, 1.0),
        "interval_seconds": (0.9, 1e13),
        "half_life_seconds": (0.9, 1e13),
        "creative_half_life_seconds": (0.9, 90 * 86_400.0 + 1),
        "prune_weight": (-0.1, 1.1),
        "merge_threshold": (-0.1, 1.1),
        "prune_value": (-0.1, 1.1),
        "prune_accesses": (-1, (1 << 31) + 1),
        "prune_age_seconds": (-1.0, 1e13),
    },
    HierarchyConfig: {
        "levels": (0, 4),
        "branching": (0.9, 10.1),
        "tolerance": (-0.1, 10.1),
        "match_overlap": (0.009, 1.1),
        "max_rows": (15, 20_001),
        "seed": (-1, 1 << 63),
    },
    EmbeddingConfig: {"batch_size": [0, 100_001], "cache_size": [-1, 10_000_001], "max_characters": [0, 100_000_001]},
    EndpointConfig: {
        "timeout_seconds": [0.0, 3601.0],
        "attempts": [0, 101],
        "pause_seconds": [-0.1, 601.0],
    },
    TransferConfig: {
        "min_similarity": (-1.1, 1.1),
        "significance": (0.0009, 0.6),
        "null_draws": (0, 100_001),
        "max_weight": (-0.1, 1e7),
        "seed": (-1, 1 << 63),
    },
    BoundaryConfig: {
        "run_length": (0.9, 1e13),
        "warm_up": (1, 100_001),
        "window": (15, 1_000_001),
        "seed": (-1, 1 << 63),
    },
    DreamConfig: {
        "path_length": (0, 100_001),
        "creative_jump_prob": (-0.01, 0.91),
        "restart_prob": (-0.01, 0.71),
        "novelty_weight": (-0.01, 1.01),
        "coherence_weight": (-0.01, 1.01),
        "utility_weight": (-0.01, 1.01),
        "temperature": (0.04, 100.1),
        "window": (0, 1001),
        "max_edges": (-1, (1 << 24) + 1),
        "edge_weight": (0.0, 1.01),
        "half_life_seconds": (0.9, 1e13),
        "seed": (-1, 1 << 63),
    },
    DreamEvidenceConfig: {
        "held_out": (0.009, 0.51),
        "repeats": (2, 1001),
        "margin": (-0.01, 0.51),
        "alpha": (0.0, 0.51),
        "min_edges": (9, (1 << 24) + 1),
        "min_pairs": (0, 100_001),
        "max_pairs": (9, 100_001),
        "walks": (0, 10_001),
        "swaps": (0, 1001),
        "max_swaps": (0, (1 << 30) + 1),
    },
    EwcConfig: {
        "param_count": (0, (1 << 28) + 1),
        "max_tasks": (0, 1001),
        "initial_lambda": (0.9, 10_001.0),
        "min_lambda": (0, 1e10),
        "max_lambda": (29.9, 1e10),
        "fisher_ema_decay": (-0.1, 1.0),
        "tolerated_loss": (0, 1e7),
        "same_task": (-1.1, 1.1),
        "lambda_rate": (-0.1, 11.0),
        "learning_rate": (-1e-9, 1e7),
        "sparsity": (-0.1, 1e7),
    },
    BaseTrainingConfig: {
        "rank": (0, 65),
        "epochs": (-1, 101),
        "learning_rate": (-1e-9, 1.1),
        "decay": (-1e-9, 101.0),
        "reservoir": (0, (1 << 20) + 1),
        "max_vector_bytes": (1 << 19, 1 << 41),
        "distillation": (-1e-9, 1.1e6),
        "distillation_batch": (0, (1 << 16) + 1),
    },
    BackgroundLoopConfig: {
        "extraction_interval_seconds": (-1.0, 366 * 86_400.0 + 1),
        "min_trajectories": (0, 1_000_001),
        "base_lora_lr": (-1e-9, 1.1),
        "ewc_lambda": (0.0, 1.1e9),
    },
    DistillationConfig: {
        "queries": (0, (1 << 20) + 1),
        "weight": (-1e-9, 1.1e6),
        "batch": (0, (1 << 16) + 1),
    },
    GateConfig: {
        "withheld": (-1e-9, 0.51),
        "related_z": (-1e-9, 10.1),
        "min_events": (1, 1_000_001),
        "losing_z": (-1e-9, 10.1),
    },
    InstantLoopConfig: {
        "micro_lora_rank": (0, 3),
        "micro_lora_lr": (-1e-9, 1.1),
        "edge_update_scale": (-1e-9, 0.21),
        "max_pending_signals": (0, (1 << 20) + 1),
        "flush_interval_seconds": (0, 3601),
        "max_unflushed": (0, (1 << 24) + 1),
        "patience_seconds": (0, 3601),
    },
    LoraConfig: {"rank": (0, 17), "num_layers": (0, 1025), "alpha": (0, 1.1e6)},
    QueryAdapterConfig: {
        "rank": (0, 65),
        "learning_rate": (-1e-9, 1.1),
        "temperature": (0, 10.1),
        "negatives": (-1, 4097),
        "max_marked": (-1, 1001),
        "beta1": (-0.1, 1.0),
        "beta2": (-0.1, 1.0),
        "epsilon": (0, 1.1),
        "average_decay": (-0.1, 1.0),
        "pool_size": (-1, (1 << 20) + 1),
    },
    SignalConfig: {
        "max_gradient_norm": (0, 1e7),
        "prior_weight": (-1, 1e7),
        "centring_signals": (-1, (1 << 20) + 1),
    },
    SpaceConfig: {"reward_min": (-1e7, 1.0), "reward_max": (0.0, 1e7), "control_share": (-0.1, 0.6)},
    StrategyConfig: {
        "candidates": (0, 1001),
        "neighbours": (0, 1001),
        "misses_near": (-1, 1001),
        "related_starts": (0, 101),
        "related_hops": (-1, 11),
        "related_factor": (-0.1, 1.1),
        "related_weight": (-0.1, 10.1),
        "vote_kernel": (0, 10.1),
        "familiar_from": (-1.1, 1.1),
        "familiar_width": (0, 2.1),
        "fusion_learning_rate": (-1e-9, 1.1),
        "fusion_average": (-0.1, 1.0),
        "counterfactual_weight": (-0.1, 1.1),
        "folds": (1, 17),
        "stake_rank": (0, 65),
        "stake_learning_rate": (-1e-9, 1.1),
        "stake_temperature": (0, 10.1),
        "stake_negatives": (-1, 4097),
        "gate_threshold": (0.9, 1e10),
        "gate_later": (-0.1, 1.0),
        "stake_keep": (0.4, 1.1),
        "sanity_open": (0.9, 1e13),
        "sanity_close": (-0.1, 1e13),
        "sanity_window": (0, 10_001),
        "choice_open": (0.9, 1e13),
        "choice_window": (0, 10_001),
        "most_helped": (0, 1001),
        "sanity_events": (0, 1_000_001),
        "harm_threshold": (1.9, 1e10),
        "harm_later": (-0.1, 1.0),
        "harm_keep": (0.4, 1.1),
        "suspected_controls": (0, 1_000_001),
        "suspected_from": (-0.1, 101.0),
        "suspected_until": (-101.0, 0.6),
        "suspected_share": (-0.1, 0.6),
        "neighbours_learning": (39, 10_001),
        "rank_items": (0, (1 << 20) + 1),
        "regions": (0, 1001),
        "region_near": (-1.1, 1.1),
        "region_pattern": (-1.1, 1.1),
        "region_prior": (-1.0, 1e10),
        "prototypes": (0, 10_001),
        "prototype_near": (-1.1, 1.1),
        "most_remembered": (15, 10_001),
        "stake_from": (-0.1, 1.1),
        "stake_prior": (-0.1, 5.1),
        "strange_prior": (-0.1, 5.1),
    },
    PhiConfig: {
        "threshold": (-1e-9, 1.0),
        "ridge": (-1e-9, 1.1),
        "quantile": (-0.1, 1.1),
        "random_paths": (0, 1_000_001),
        "system_ridge": (0.0, 1.1),
        "steps_per_node": (1, 1_000_001),
        "shuffles": (-1, 1_000_001),
        "seed": (-1, 1 << 63),
    },
    PatternConfig: {
        "k_clusters": (0, 10_001),
        "embedding_dim": (0, 16_001),
        "max_iterations": (0, 10_001),
        "convergence_threshold": (-1e-9, 0.6),
        "min_cluster_size": (0, 1_000_001),
        "quality_threshold": (-1e7, 1e7),
        "max_trajectories": (0, 10_000_001),
        "match_threshold": (-1.1, 1.1),
        "merge_threshold": (-0.1, 1.1),
        "prior_quality": (-1e7, 1e7),
        "confidence_prior": (-0.1, 1e7),
        "half_life_seconds": (0, 1e13),
        "prune_accesses": (-1, (1 << 31) + 1),
        "prune_age_seconds": (-1.0, 1e13),
        "seed": (-1, 1 << 63),
    },
    VerdictConfig: {
        "quality_range": (0, 1e7),
        "decide_at": (0.9, 1e13),
        "max_parameters": (0, 10_001),
        "max_values": (1, 1001),
        "max_value_bytes": (0, (1 << 20) + 1),
        "max_waiting": (0, 10_001),
        "min_support": (0, 1_000_001),
        "shrinkage": (-0.1, 1e7),
        "similarity_width": (0, 10.1),
    },
    EvidenceConfig: {
        "interval_seconds": (0.001, 3601.0),
        "batch": (0, 10_001),
        "admit_interval_seconds": (-1.0, 86_401.0),
        "admit_rows": (0, 1.5),
        "stalled_seconds": (0.0, 86_401.0),
    },
    StoreConfig: {
        "connect_timeout_seconds": (0, 3601),
        "lock_timeout_seconds": (0, 3601),
        "idle_connections": (-1, 10_001),
        "async_connections": (0, 10_001),
        "publish_every_events": (0, (1 << 31) + 1),
        "publish_every_seconds": (0, (1 << 31) + 1),
        "exact_search_rows": (-1, (1 << 31) + 1),
        "access_interval_seconds": (-0.001, 86_400.5),
        "spool_max_bytes": (-1, (1 << 50) + 1),
        "spool_segment_bytes": (0, (1 << 32) + 1),
        "spool_batch": (0, 100_001),
        "replay_batch": (0, 100_001),
        "embed_batch": (0, 100_001),
    },
    TelemetryConfig: {
        "max_spaces": (0, 100_001),
        "cache_seconds": (-0.1, 3601.0),
        "lift_cache_seconds": (-0.1, 86_401.0),
        "statement_timeout_seconds": (0.0, 3601.0),
        "patience_seconds": (0.0, 3601.0),
        "stall_seconds": (0.0, 86_401.0),
    },
    WorkerConfig: {
        "poll_interval_seconds": (0.009, 3601),
        "batch": (0, 100_001),
        "open_spaces": (0, 10_001),
        "retention_interval_seconds": (-1, 86_401),
        "retention_batch": (0, 100_001),
        "keep_versions": (0, 1_000_001),
        "longest_setback_seconds": (0.9, 86_401),
        "set_aside_after": (0, 1_000_001),
        "attempts": (0, 1_000_001),
        "drain_seconds": (-1, 86_401),
        "keep_runs": (0, 1_000_001),
    },
    ScheduleConfig: {"every_seconds": (0.9, 366 * 86_400 + 1), "amount": (0, (1 << 62) + 1)},
}
CASES = [(each, name, value) for each, ends in OUT_OF_RANGE.items() for name, two in ends.items() for value in two]


def label(value: object) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


@pytest.mark.parametrize(("each", "name", "value"), CASES, ids=label)
def test_value_out_of_range_is_refused_with_what_was_found(each: type[Any], name: str, value: float) -> None:
    with pytest.raises(ConfigError) as refused:
        each(**{name: value})
    assert "expected" in str(refused.value)
    assert str(value) in str(refused.value)


@pytest.mark.parametrize(("each", "name"), NUMBERS, ids=label)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_not_finite_is_refused(each: type[Any], name: str, value: float) -> None:
    with pytest.raises(ConfigError):
        each(**{name: value})


@pytest.mark.parametrize(("each", "name"), NUMERIC, ids=label)
@pytest.mark.parametrize("value", [True, False])
def test_a_flag_is_no_number(each: type[Any], name: str, value: bool) -> None:
    with pytest.raises(ConfigError, match=f"{value}, expected"):
        each(**{name: value})


@pytest.mark.parametrize(("each", "name"), WHOLE, ids=label)
def test_fraction_is_refused_where_a_whole_number_is_expected(each: type[Any], name: str) -> None:
    with pytest.raises(ConfigError):
        each(**{name: 1.5})


@pytest.mark.parametrize("each", ALL, ids=label)
def test_settings_are_frozen_values(each: type[Any]) -> None:
    assert each() == each()
    for field in fields(each):
        with pytest.raises(FrozenInstanceError):
            setattr(each(), field.name, 1)
    with pytest.raises((AttributeError, TypeError)):
        each().unknown = 1
    with pytest.raises(TypeError):
        each(unknown=1)


@pytest.mark.parametrize("each", ALL, ids=label)
def test_every_setting_is_documented(each: type[Any]) -> None:
    for field in fields(each):
        assert field.name in (each.__doc__ or "")


def test_every_range_is_tested() -> None:
    assert set(OUT_OF_RANGE) == {
        v
        for v in vars(config).values()
        if isinstance(v, type) and v.__module__.startswith(config.__name__) and v not in (LearningMode, SonaConfig)
    }
    untested = {(each, name) for each, name in NUMBERS if name not in OUT_OF_RANGE[each]}
    assert untested == {(SignalConfig, "prior_reward")}  # any finite number


def test_defaults_of_the_instant_loop_are_those_of_the_reference() -> None:
    default = InstantLoopConfig()
    assert (default.micro_lora_rank, default.micro_lora_lr) == (1, 0.001)
    assert (default.edge_update_scale, default.max_pending_signals) == (0.01, 1000)


def test_defaults_of_the_query_adapter_are_the_recipe() -> None:
    default = QueryAdapterConfig()
    assert (default.rank, default.learning_rate, default.temperature) == (8, 1e-3, 0.07)
    assert (default.negatives, default.max_marked, default.average_decay) == (64, 3, 0.99)


@pytest.mark.parametrize(("dim", "rank"), [(1, 1), (4, 4), (8, 8), (9, 8), (16_000, 8)])
def test_recipe_of_a_dimension_has_a_rank_that_fits(dim: int, rank: int) -> None:
    assert QueryAdapterConfig.for_dim(dim) == QueryAdapterConfig(rank=rank)


def test_base_lora_of_the_reference_has_a_scale_of_one() -> None:
    assert LoraConfig() == LoraConfig(rank=8, num_layers=1, alpha=None, train_down=False)
    for alpha in (math.nan, math.inf, "8"):
        with pytest.raises(ConfigError, match="alpha is"):
            LoraConfig(alpha=alpha)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="train_down is"):
        LoraConfig(train_down=1)  # type: ignore[arg-type]
    assert [LoraConfig.for_dim(dim).rank for dim in (1, 4, 9, 16_000)] == [1, 4, 8, 8]


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.5), (0.5, 0.5), (-1.0, 0.0), (-2.0, -1.0)])
def test_range_of_rewards_has_room_above_zero(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match="a reward above 0 is helpful"):
        SpaceConfig(reward_min=low, reward_max=high)


@pytest.mark.parametrize("strategy", ["", "Frozen", "proven", None, 1, np.zeros(0), np.array(["frozen"] * 2), []])
def test_a_strategy_is_one_of_those_there_are(strategy: object) -> None:
    with pytest.raises(ConfigError, match="expected one of learned, frozen, adapted, familiar, boosted, stake, fusion"):
        SpaceConfig(strategy=strategy)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "examination",
    [(), (0.0,), (1.1,), (math.nan,), (0.5, "1"), "1", 0.5, (1.0,) * 1001, np.ones(2), {0.5}, [None], (True,)],
)
def test_examination_is_probabilities(examination: object) -> None:
    with pytest.raises(ConfigError, match="examination is"):
        SpaceConfig(examination=examination)  # type: ignore[arg-type]


def test_examination_is_held_as_the_database_keeps_it() -> None:
    assert SpaceConfig(examination=[1, 0.1]).examination == (1.0, float(np.float32(0.1)))  # type: ignore[arg-type]
    assert len(SpaceConfig(examination=(1e-6,) * 1000).examination or ()) == 1000


def test_ends_of_a_range_belong_to_it() -> None:
    InstantLoopConfig(micro_lora_rank=2, micro_lora_lr=0.0, edge_update_scale=0.2, max_pending_signals=1)
    QueryAdapterConfig(rank=64, learning_rate=0.0, negatives=0, max_marked=0, beta1=0.0, beta2=0.0, pool_size=0)
    SignalConfig(max_gradient_norm=1e-6, prior_weight=0.0, prior_reward=-1.0, centring_signals=0)
    StoreConfig(connect_timeout_seconds=1, lock_timeout_seconds=3600, publish_every_events=1, exact_search_rows=0)
    WorkerConfig(0.01, batch=1, open_spaces=1, longest_setback_seconds=1.0)
    SpaceConfig(reward_min=-1e6, reward_max=1e6)
