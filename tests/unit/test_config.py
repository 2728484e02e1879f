"""Settings: frozen, and refused when they are given out of range."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest

from sona_pg import config
from sona_pg.config import (
    InstantLoopConfig,
    LearningMode,
    LoraConfig,
    QueryAdapterConfig,
    SignalConfig,
    SonaConfig,
    SpaceConfig,
    StoreConfig,
    WorkerConfig,
)
from sona_pg.errors import ConfigError

from .ranges import ALL, OUT_OF_RANGE

NUMBERS = [(each, f.name) for each in ALL for f in fields(each) if f.type in ("int", "float")]
WHOLE = [(each, f.name) for each in ALL for f in fields(each) if f.type == "int"]
NUMERIC = [
    (each, f.name) for each in [*ALL, SonaConfig] for f in fields(each) if set(f.type.split(" | ")) & {"int", "float"}
]
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
