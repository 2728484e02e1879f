"""Settings that have several names: what one of them says holds, two that say different things are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sona_pg import ConfigError, DeepLoopConfig, LoraConfig, PatternConfig, SonaConfig
from sona_pg.config import BackgroundConfig, BaseTrainingConfig, ConsolidationConfig, PhiConfig
from sona_pg.config.sona import AS_DECLARED, PART_TYPES, SAME, Name
from sona_pg.engine import cycles
from sona_pg.loops.background import background_loop
from sona_pg.loops.deep_config import DeepConfig
from sona_pg.loops.deep_loop import DeepLoop

VALUES: dict[str, tuple[Any, Any]] = {
    "phi_threshold": (0.9, 0.1),
    "consolidation_threshold": (0.1, 0.0),
    "max_trajectories": (100, 7),
    "rank": (3, 5),
}
EVERY = [(names, name) for names in SAME for name in names]
OTHERS = [(names, one, other) for names in SAME for one in names for other in names if one != other]


def said(*given: tuple[Name, object]) -> dict[str, Any]:
    """Arguments of `SonaConfig` that say this."""
    found: dict[str, Any] = {}
    for (field, setting), value in given:
        if setting is None:
            found[field] = value
        else:
            part = found.get(field) or PART_TYPES[field]()
            found[field] = replace(part, **{setting: value})
    return found


def as_toml(*given: tuple[Name, object]) -> str:
    alone = [f"{field} = {value}" for (field, setting), value in given if setting is None]
    return "\n".join(
        [*alone, *(f"[{field}]\n{setting} = {value}" for (field, setting), value in given if setting is not None)]
    )


def test_every_setting_that_has_several_names_is_tried() -> None:
    assert [names[0].setting for names in SAME] == list(VALUES)
    assert all(names[0].setting is not None and names[0].field not in AS_DECLARED for names in SAME)


@pytest.mark.parametrize(("names", "name"), EVERY, ids=str)
def test_what_one_name_says_holds(names: tuple[Name, ...], name: Name) -> None:
    for value in VALUES[str(names[0].setting)]:
        config = SonaConfig(**said((name, value)))
        assert names[0].of(config.settled) == value
        assert all(other.of(config.settled) == other.default for other in names[1:])
        assert SonaConfig(**said(*((every, value) for every in names))).settled == config.settled


@pytest.mark.parametrize(("names", "one", "other"), OTHERS, ids=str)
def test_two_names_that_differ_are_refused(names: tuple[Name, ...], one: Name, other: Name) -> None:
    first, second = VALUES[str(names[0].setting)]
    with pytest.raises(ConfigError, match="say it once") as refused:
        SonaConfig(**said((one, first), (other, second)))
    assert str(one) in str(refused.value)
    assert str(other) in str(refused.value)


@pytest.mark.parametrize(("names", "one", "other"), OTHERS, ids=str)
def test_a_file_that_says_the_default_says_it(names: tuple[Name, ...], one: Name, other: Name, tmp_path: Path) -> None:
    path = tmp_path / "sona.toml"
    default, value = names[0].default if one.default is None else one.default, VALUES[str(names[0].setting)][0]
    path.write_text(as_toml((one, default), (other, value)))
    with pytest.raises(ConfigError, match="say it once") as refused:
        SonaConfig.from_toml(path)
    assert str(one) in str(refused.value)
    assert str(other) in str(refused.value)
    path.write_text(as_toml((one, value), (other, value)))
    assert names[0].of(SonaConfig.from_toml(path).settled) == value


def test_what_a_file_says_comes_before_its_preset_under_either_name(tmp_path: Path) -> None:
    path = tmp_path / "sona.toml"
    preset = SonaConfig.preset("edge").settled.background_config
    for part in ("background_config", "pattern_config"):
        path.write_text(f"preset = 'edge'\n[{part}]\nmax_trajectories = 100")
        assert SonaConfig.from_toml(path).settled.background_config == replace(preset, max_trajectories=100)


@pytest.mark.parametrize(
    "environment",
    [
        {"SONA_LORA_RANK": "8", "SONA_BACKGROUND_RANK": "16"},
        {"SONA_PHI_THRESHOLD": "0.5", "SONA_DEEP_PHI_THRESHOLD": "0.3"},
        {"SONA_DEEP_THRESHOLD": "0.7", "SONA_DEEP_CONSOLIDATION_THRESHOLD": "0.6"},
        {"SONA_EMBEDDING_DIM": "3", "SONA_HIDDEN_DIM": "4"},
    ],
)
def test_a_variable_that_says_the_default_says_it(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"say it once|expected one number"):
        SonaConfig.from_environment(environment)


def test_a_dimension_of_patterns_that_is_the_default_is_refused_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sona.toml"
    path.write_text("embedding_dim = 384\n[pattern_config]\nembedding_dim = 256")
    with pytest.raises(ConfigError, match=r"embedding_dim is 384 and pattern_config.embedding_dim 256"):
        SonaConfig.from_toml(path)


def test_the_loops_of_an_engine_take_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr("sona_pg.loops.background.background_loop", lambda *parts: made.append(parts))
    monkeypatch.setattr("sona_pg.loops.deep.deep_loop", made.append)
    config = SonaConfig(
        phi_config=PhiConfig(threshold=0.9),
        consolidation_config=ConsolidationConfig(threshold=0.1),
        pattern_config=PatternConfig(max_trajectories=100),
        lora_config=LoraConfig(rank=3),
    )
    cycles.loop_of("background", config)
    cycles.loop_of("deep", config)
    background, deep = made
    assert (background[0].max_trajectories, background[3].training.rank) == (100, 3)
    assert (deep.phi.threshold, deep.consolidation.threshold) == (0.9, 0.1)


def test_parts_of_the_deep_loop_take_either_name() -> None:
    own = DeepConfig(phi=PhiConfig(threshold=0.0), consolidation=ConsolidationConfig(threshold=0.1))
    assert (own.phi.threshold, own.consolidation.threshold) == (0.0, 0.1)
    assert DeepConfig(DeepLoopConfig(phi_threshold=0.5)).phi.threshold == 0.5
    with pytest.raises(ConfigError, match=r"loop.phi_threshold is 0.5 and phi.threshold 0.4"):
        DeepConfig(DeepLoopConfig(phi_threshold=0.5), phi=PhiConfig(threshold=0.4))
    assert DeepLoop(DeepLoopConfig(dreams_per_cycle=3), settings=own).settings.phi.threshold == 0.0


def test_the_background_loop_takes_either_name() -> None:
    with pytest.raises(ConfigError, match="max_trajectories of the loop is 5 and that of its patterns 6"):
        background_loop(BackgroundConfig(max_trajectories=5), PatternConfig(max_trajectories=6))


def test_the_base_has_the_memory_of_the_loop_unless_it_says_its_own() -> None:
    loop = BackgroundConfig(max_vector_bytes=16 << 20)
    assert SonaConfig(background_config=loop).base_training.max_vector_bytes == 16 << 20
    assert BaseTrainingConfig().lists_of(1 << 14) == SonaConfig().base_training.lists_of(1 << 14)
    for size in (20_000_000, BackgroundConfig().max_vector_bytes):
        own = BaseTrainingConfig(max_vector_bytes=size)
        assert SonaConfig(background_config=loop, training_config=own).base_training == own
