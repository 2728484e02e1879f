"""Types, methods and defaults of the API reference, by their names; what has another one is in docs/api-notes.md."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sona_pg
from sona_pg import LearningSignal, MicroLoRA, SignalMetadata, SonaError, TrajectoryBuilder

NOTES = (Path(__file__).parents[2] / "docs" / "api-notes.md").read_text()

NAMES = {
    "LearningSignal": "query_embedding gradient_estimate quality_score timestamp metadata from_trajectory"
    " with_gradient",
    "QueryTrajectory": "id query_embedding steps final_quality latency_us",
    "TrajectoryStep": "activations attention_weights reward timestamp",
    "LearnedPattern": "id centroid cluster_size total_weight avg_quality created_at last_accessed access_count"
    " merge decay should_prune",
    "MicroLoRA": "forward_simd forward_scalar accumulate_gradient apply_accumulated reset rank hidden_dim param_count"
    " scale set_scale",
    "BaseLoRA": "forward_layer merge_weights num_layers rank alpha set_alpha save load",
    "TrajectoryBuffer": "record drain __len__ is_empty dropped_count capacity",
    "TrajectoryBuilder": "add_step build step_count elapsed",
    "InstantLoop": "on_inference flush_updates drain_trajectories micro_lora metrics",
    "InstantLoopConfig": "micro_lora_rank micro_lora_lr edge_update_scale max_pending_signals",
    "BackgroundLoop": "run_cycle reasoning_bank ewc base_lora",
    "BackgroundLoopConfig": "extraction_interval_seconds min_trajectories base_lora_lr ewc_lambda",
    "DeepLoop": "run_cycle dream_engine",
    "DeepLoopConfig": "dreams_per_cycle consolidation_threshold phi_threshold max_cycle_seconds",
    "ReasoningBank": "add_trajectory extract_patterns trajectory_count clear get_pattern",
    "PatternConfig": "k_clusters embedding_dim max_iterations convergence_threshold min_cluster_size",
    "EwcPlusPlus": "apply_constraints update_fisher detect_task_boundary start_new_task consolidate_all_tasks lambda_"
    " set_lambda task_count",
    "EwcConfig": "param_count max_tasks initial_lambda fisher_ema_decay min_lambda max_lambda",
    "DreamEngine": "add_memory_node generate_dream generate_dreams integrate_dream node_count",
    "Dream": "id path creative_jumps total_novelty",
    "MemoryNode": "id embedding timestamp access_count importance",
    "DreamConfig": "path_length creative_jump_prob restart_prob novelty_weight coherence_weight utility_weight",
    "SonaEngine": "process query background_learn deep_learn metrics improvement_metrics save load",
    "SonaConfig": "hidden_dim embedding_dim num_heads num_layers lora_config pattern_config ewc_config dream_config"
    " database_url phi_threshold builder",
    "Context": "user_id session_id metadata",
    "Response": "text confidence patterns_used latency_us",
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "InstantLoopConfig": {
        "micro_lora_rank": 1,
        "micro_lora_lr": 0.001,
        "edge_update_scale": 0.01,
        "max_pending_signals": 1000,
    },
    "BackgroundLoopConfig": {"extraction_interval_seconds": 3600.0, "min_trajectories": 100},
    "DeepLoopConfig": {
        "dreams_per_cycle": 50,
        "consolidation_threshold": 0.7,
        "phi_threshold": 0.3,
        "max_cycle_seconds": 600.0,
    },
    "PatternConfig": {
        "k_clusters": 50,
        "embedding_dim": 256,
        "max_iterations": 100,
        "convergence_threshold": 0.001,
        "min_cluster_size": 5,
    },
    "EwcConfig": {"max_tasks": 10, "fisher_ema_decay": 0.999, "max_lambda": 10_000.0},
    "DreamConfig": {
        "path_length": 15,
        "creative_jump_prob": 0.3,
        "restart_prob": 0.1,
        "novelty_weight": 0.3,
        "coherence_weight": 0.4,
        "utility_weight": 0.3,
    },
}

RENAMED = {
    "extraction_interval": "extraction_interval_seconds",
    "max_cycle_duration": "max_cycle_seconds",
    "boundary_threshold": "run_length",
    "base_lora_lr": "learning rate",
    "ewc_lambda": "λ 30",
    "initial_lambda": "30, 1, 10 000",
}
"""What has another name or another default, and how the notes call it."""


@pytest.mark.parametrize("type_name", NAMES)
def test_names_of_the_reference(type_name: str) -> None:
    found = getattr(sona_pg, type_name)
    own = {each.name for each in fields(found)} if is_dataclass(found) else set(getattr(found, "_fields", ()))
    missing = [name for name in NAMES[type_name].split() if name not in own and not hasattr(found, name)]
    assert missing == []


@pytest.mark.parametrize("type_name", DEFAULTS)
def test_defaults_of_the_reference(type_name: str) -> None:
    made = getattr(sona_pg, type_name)()
    assert {name: getattr(made, name) for name in DEFAULTS[type_name]} == DEFAULTS[type_name]


@pytest.mark.parametrize(
    "name",
    [
        *("ConfigError", "IoError", "DatabaseError", "PatternExtractionError", "LearningError", "MemoryGraphError"),
        "DimensionMismatch",
    ],
)
def test_errors_of_the_reference(name: str) -> None:
    assert issubclass(getattr(sona_pg, name), SonaError)


@pytest.mark.parametrize("name", RENAMED)
def test_what_differs_is_in_the_notes(name: str) -> None:
    assert RENAMED[name] in NOTES


def test_the_example_of_a_lora_of_ones_own() -> None:
    micro = MicroLoRA(256, 1)
    given = np.full(256, 0.1, dtype=np.float32)
    output = np.zeros(256, dtype=np.float32)
    micro.forward_simd(given, output)
    assert not output.any()
    for quality in (0.2, 0.8):
        micro.accumulate_gradient(
            LearningSignal(
                query_embedding=given,
                gradient_estimate=np.full(256, 0.01, dtype=np.float32),
                quality_score=quality,
                metadata=SignalMetadata(),
            )
        )
        micro.apply_accumulated(0.001)
    micro.forward_simd(given, output)
    assert output.any()
    scalar = np.zeros(256, dtype=np.float32)
    micro.forward_scalar(given, scalar)
    np.testing.assert_allclose(output, scalar, rtol=1e-4)


def test_a_signal_keeps_what_was_said_of_the_answer() -> None:
    def signal(metadata: dict[str, Any], quality: float | None) -> SignalMetadata:
        builder = TrajectoryBuilder(None, [1.0, 0.0])
        builder.add_step([0.5, 0.5], reward=1.0)
        built = replace(builder.build(quality, metadata=metadata), latency_us=420)
        return LearningSignal.from_trajectory(built).metadata

    told = signal({"model_tier": "large"}, 0.25)
    assert (told.explicit_feedback, told.latency_us, told.model_tier) == (0.25, 420, "large")
    told = signal({"parameters": {"model_tier": "small"}}, None)
    assert (told.explicit_feedback, told.model_tier) == (None, "small")
    for metadata in ({}, {"parameters": 5}, {"model_tier": 5}):
        assert signal(metadata, None).model_tier is None
