"""All settings of an engine: checked, immutable, from Python, a file and the environment."""

from __future__ import annotations

import os
import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sona_pg import (
    ConfigError,
    DeepLoopConfig,
    EwcConfig,
    IoError,
    LearningMode,
    LoraConfig,
    PatternConfig,
    SonaConfig,
    SpaceConfig,
)
from sona_pg.cli.settings import SETTINGS
from sona_pg.config import BaseTrainingConfig
from sona_pg.config.presets import PRESETS
from sona_pg.config.sona import PART_TYPES
from sona_pg.config.sources import of_process
from sona_pg.config.variables import OF_TESTS, OTHERS, PREFIXES, PRESET, said_by, variables


def test_the_example_of_the_reference() -> None:
    config = SonaConfig(hidden_dim=256, embedding_dim=256, num_heads=8, num_layers=12)
    assert (config.dim, config.num_heads, config.num_layers) == (256, 8, 12)
    assert SonaConfig().dim is None
    assert (SonaConfig(embedding_dim=3).dim, SonaConfig(hidden_dim=3).dim) == (3, 3)


def test_the_builder_of_the_reference() -> None:
    config = (
        SonaConfig.builder()
        .lora_rank(8)
        .ewc_lambda(1000.0)
        .learning_loops(LearningMode.ALL_THREE_TIERS)
        .memory_budget_mb(50)
        .target_latency_us(100)
        .build()
    )
    assert config.lora_config == LoraConfig(rank=8)
    assert config.settled.training_config == BaseTrainingConfig(rank=8)
    assert config.base_training.rank == 8
    assert config.ewc_config == EwcConfig(initial_lambda=1000.0)
    assert config.learning_loops.slow_loops == ("background", "deep")
    assert (config.memory_budget_mb, config.target_latency_us) == (50, 100)
    again = SonaConfig.builder(config).lora_rank(4).build()
    assert (again.base_training.rank, again.ewc_config.initial_lambda) == (4, 1000.0)


def test_every_step_of_the_builder_sets_its_setting() -> None:
    steps: dict[str, Any] = {
        "database_url": "postgresql:///x",
        "home": "/tmp/x",
        "space": "a",
        "embedding_dim": 8,
        "hidden_dim": 8,
        "num_heads": 2,
        "num_layers": 3,
        "phi_threshold": 0.5,
        "learning_loops": LearningMode.MANUAL,
        "memory_budget_mb": 70.0,
        "target_latency_us": 500.0,
    }
    builder = SonaConfig.builder()
    for name, value in steps.items():
        getattr(builder, name)(value)
    config = builder.micro_lora_rank(2).pattern_clusters(7).dreams_per_cycle(9).build()
    assert {name: getattr(config, name) for name in steps} == steps
    assert config.instant_config is not None
    assert config.instant_config.micro_lora_rank == 2
    assert config.pattern_config.k_clusters == 7
    assert config.settled.deep_config == DeepLoopConfig(dreams_per_cycle=9, phi_threshold=0.5)
    with pytest.raises(ConfigError, match="no setting 'lorarank'"):
        builder.set(lorarank=3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"embedding_dim": 0}, "embedding_dim is 0, expected 1"),
        ({"embedding_dim": 3, "hidden_dim": 4}, "expected one number"),
        ({"hidden_dim": 10, "num_heads": 3}, "no multiple of num_heads"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"space": ""}, "space is ''"),
        ({"home": 5}, "home is 5"),
        ({"embedder": ""}, "embedder is ''"),
        ({"database_url": 5}, "database_url is of another type"),
        ({"learning_loops": "instant"}, "expected one of LearningMode.MANUAL"),
        ({"memory_budget_mb": 0}, "memory_budget_mb is 0"),
        ({"target_latency_us": float("nan")}, "target_latency_us is nan"),
        ({"pattern_config": {}}, "pattern_config is a dict, expected a PatternConfig"),
        ({"pattern_config": None}, "pattern_config is a NoneType"),
        ({"phi_threshold": 1.0}, "phi_threshold is 1.0"),
        ({"phi_threshold": np.array([0.1, 0.2])}, "phi_threshold is array"),
        ({"phi_threshold": 0.4, "deep_config": DeepLoopConfig(phi_threshold=0.5)}, "say it once"),
        ({"lora_config": LoraConfig(rank=4), "training_config": BaseTrainingConfig(rank=3)}, "say it once"),
        ({"lora_config": LoraConfig(num_layers=2)}, "expected only a rank"),
        ({"lora_config": LoraConfig(alpha=4.0)}, "expected only a rank"),
        ({"embedding_dim": 8, "pattern_config": PatternConfig(embedding_dim=9)}, "leave it out"),
    ],
)
def test_what_cannot_be_honoured_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SonaConfig(**settings)


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(SonaConfig(database_url="postgresql://a:secret@host/db"))


def test_settings_are_frozen_and_documented() -> None:
    config = SonaConfig()
    for each in fields(SonaConfig):
        with pytest.raises(FrozenInstanceError):
            setattr(config, each.name, None)
        assert each.name in (SonaConfig.__doc__ or "")
    assert SonaConfig() == SonaConfig()
    assert {each.name for each in fields(SonaConfig) if each.name.endswith("_config")} == set(PART_TYPES)


def test_cycles_with_settings_of_their_own_are_told() -> None:
    assert not SonaConfig().has_own_cycles
    assert not SonaConfig(space="a", space_config=SpaceConfig()).has_own_cycles
    assert SonaConfig(phi_threshold=0.5).has_own_cycles
    assert SonaConfig(lora_config=LoraConfig(rank=3)).has_own_cycles
    assert SonaConfig(pattern_config=PatternConfig(k_clusters=3)).has_own_cycles


# ---- a file ----------------------------------------------------------------------------------------------------------


def written(folder: Path, content: str) -> Path:
    path = folder / "sona.toml"
    path.write_text(content)
    return path


def test_a_file_says_what_python_says(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        preset = "edge"
        space = "support"
        embedding_dim = 384
        learning_loops = "all_three_tiers"
        memory_budget_mb = 80.5
        [pattern_config]
        k_clusters = 100
        [space_config]
        examination = [1.0, 0.7]
        [adapter_config]
        rank = 3
        """,
    )
    edge = SonaConfig.preset("edge")
    assert edge.adapter_config is not None
    config = SonaConfig.from_toml(path)
    assert config == edge.replace(
        space="support",
        embedding_dim=384,
        learning_loops=LearningMode.ALL_THREE_TIERS,
        memory_budget_mb=80.5,
        pattern_config=PatternConfig(k_clusters=100),
        space_config=SpaceConfig(examination=(1.0, 0.7)),
        # What the file does not say of a part stays as the preset has it.
        adapter_config=type(edge.adapter_config)(rank=3, negatives=32, pool_size=512),
    )
    assert SonaConfig.from_toml(str(written(tmp_path, ""))) == SonaConfig()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("spcae = 'a'", "no setting 'spcae' in .*did you mean space"),
        ("[pattern_config]\nclusters = 1", "no setting 'clusters' of pattern_config in"),
        ("pattern_config = 5", "expected a table"),
        ("[pattern_config]\nk_clusters = 0", "k_clusters is 0"),
        ("[pattern_config]\nk_clusters = true", "k_clusters is True"),
        ("learning_loops = 'all'", "learning_loops is 'all', expected one of manual, instant"),
        ("preset = 'fast'", "no preset 'fast', expected one of max_throughput"),
        ("preset = 1", "no preset 1"),
        ("a = ", "is no TOML"),
        ("a = " + "[" * 3000, "no TOML|nested too deeply"),
    ],
)
def test_a_file_that_is_wrong_is_refused(content: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        SonaConfig.from_toml(written(tmp_path, content))


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(IoError, match=f"^'{tmp_path}/nowhere.toml' cannot be read .there is no such file"):
        SonaConfig.from_toml(tmp_path / "nowhere.toml")
    with pytest.raises(IoError, match=f"^'{tmp_path}' cannot be read .it is no regular file"):
        SonaConfig.from_toml(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=f"^'{binary}' is no TOML"):
        SonaConfig.from_toml(binary)


# ---- the environment -------------------------------------------------------------------------------------------------


def test_the_environment_says_what_python_says(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "SONA_PRESET": "edge",
        "SONA_SPACE": "support",
        "SONA_EMBEDDING_DIM": "384",
        "SONA_LEARNING_LOOPS": "manual",
        "SONA_TARGET_LATENCY_US": "99.5",
        "SONA_BACKGROUND_K_CLUSTERS": "100",
        "SONA_SPACE_IMPLICIT_FEEDBACK": "true",
        "SONA_DEEP_PHI_THRESHOLD": "",
        "SONA_SIMD": "scalar",
        "PATH": "/bin",
    }
    expected = SonaConfig.preset("edge").replace(
        space="support",
        embedding_dim=384,
        learning_loops=LearningMode.MANUAL,
        target_latency_us=99.5,
        pattern_config=PatternConfig(k_clusters=100),
        space_config=SpaceConfig(implicit_feedback=True),
    )
    assert SonaConfig.from_environment(environment) == expected
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert SonaConfig.from_environment().replace(home=None, database_url=None) == expected


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("SONA_BACKGROUND_KCLUSTERS", "7", "did you mean SONA_BACKGROUND_K_CLUSTERS"),
        ("SONA_ADAPTER_RANK", "eight", "SONA_ADAPTER_RANK is 'eight'"),
        ("SONA_ADAPTER_RANK", "0", "rank is 0"),
        ("SONA_SPACE_IMPLICIT_FEEDBACK", "perhaps", "neither true nor false"),
        ("SONA_LEARNING_LOOPS", "all", "expected one of manual"),
        ("SONA_PRESET", "fast", "no preset 'fast'"),
        ("SONA_MEMORY_BUDGET", "50", "did you mean SONA_MEMORY_BUDGET_MB"),
        ("SONA_LEARNING_MODE", "manual", "did you mean SONA_LEARNING_LOOPS"),
    ],
)
def test_a_variable_that_is_wrong_is_refused(variable: str, value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SonaConfig.from_environment({variable: value})


@pytest.mark.parametrize("variable", ["SONA_PRESETT", "SONA_PRESETS"])
def test_a_preset_that_is_misspelt_is_refused(variable: str) -> None:
    with pytest.raises(ConfigError, match=f"no setting '{variable}' that a variable sets: did you mean SONA_PRESET"):
        SonaConfig.from_environment({variable: "edge"})


SERVICES = {
    "SONA_SERVICE_HOST": "10.0.0.1",
    "SONA_BACKGROUND_SERVICE_PORT_METRICS": "9464",
    "SONA_BACKGROUND_PORT": "tcp://10.0.0.1:9464",
    "SONA_DEEP_PORT_9464_TCP_ADDR": "10.0.0.1",
}
"""As Kubernetes sets them in containers beside a service."""


def test_variables_of_others_are_none_of_an_engine() -> None:
    environment = {**dict.fromkeys((*OTHERS, "SONA_TEST_DATABASE_URL"), "1"), **SERVICES}
    assert SonaConfig.from_environment({**environment, "SONA_OF_THE_APPLICATION": "1"}) == SonaConfig()
    assert said_by(environment, is_ours=True) == {}


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("SONA_BACKGROUND_MINIMUN", "did you mean SONA_BACKGROUND_MINIMUM"),
        ("SONA_LOGS", "did you mean SONA_LOG"),
        ("SONA_DATABSE_URL", "did you mean SONA_DATABASE_URL"),
        ("SONA_METRICS_PORT", "no setting 'SONA_METRICS_PORT'"),
        ("SONA_OF_THE_APPLICATION", "no setting 'SONA_OF_THE_APPLICATION' that a variable sets: docs/configuration"),
    ],
)
def test_a_process_of_ours_refuses_what_nothing_knows(variable: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=meant):
        said_by({variable: "1"}, is_ours=True)


ROOT = Path(__file__).parents[2]
READ = [
    *(ROOT / "sona_pg").rglob("*.py"),
    *(ROOT / "benchmarks").rglob("*.py"),
    *(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)),
    ROOT / "cython_ext" / "_simd.pyx",
    *(path for folder in ("deploy", ".ci", "docs", "examples") for path in (ROOT / folder).rglob("*")),
    *ROOT.glob("docker-compose*.yml"),
    ROOT / "Makefile",
    ROOT / "Dockerfile",
    ROOT / "README.md",
]
"""Where variables are read, set or named."""

MISSPELT = ("SONA_BACKGROUND_X", "SONA_BACKGROUND_MINIMUN")
"""In other tests, of what is refused."""


def test_every_variable_is_known() -> None:
    known = {*variables(), PRESET, *OTHERS, *MISSPELT}
    found: dict[str, Path] = {}
    for path in READ:
        if path.is_file() and path.suffix not in {".so", ".png", ".parquet", ".gz"}:
            names = re.findall(r"\bSONA_[A-Z][A-Z0-9_]*[A-Z0-9]\b(?![_*…])", path.read_text(errors="ignore"))
            found.update(dict.fromkeys(names, path))
    assert {"SONA_LOG", "SONA_SIMD", "SONA_DB_PORT", "SONA_DATABASE_URL"} <= set(found)
    assert {name: path for name, path in found.items() if name not in known and not name.startswith(OF_TESTS)} == {}
    assert set(OTHERS) <= set(found)


def test_workers_and_engines_share_their_variables() -> None:
    known = variables()
    for loop, settings in SETTINGS.items():
        for setting in settings:
            part, name = known[setting.variable(loop)]
            assert (PART_TYPES[part], name) == (setting.config, setting.field)


# ---- both ------------------------------------------------------------------------------------------------------------


def test_a_variable_comes_before_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        home = "/nowhere"
        embedding_dim = 7
        preset = "edge"
        [phi_config]
        threshold = 0.5
        ridge = 0.02
        [lora_config]
        rank = 6
        num_layers = 1
        [store_config]
        connect_timeout_seconds = 2
        lock_timeout_seconds = 3
        """,
    )
    for name in [name for name in os.environ if name.startswith("SONA_")]:
        monkeypatch.delenv(name)
    assert of_process(path) == SonaConfig.from_toml(path)
    assert of_process(None) == SonaConfig()
    said = {
        "SONA_HOME": "/here",
        "SONA_HIDDEN_DIM": "9",
        "SONA_PHI_THRESHOLD": "0.3",
        "SONA_BACKGROUND_RANK": "16",
        "SONA_STORE_LOCK_TIMEOUT_SECONDS": "4",
        "SONA_PRESET": "batch",
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    both = of_process(path)
    assert (both.home, both.dim, both.learning_loops) == ("/here", 9, LearningMode.MANUAL)
    assert both.settled.deep_config.phi_threshold == 0.3
    assert (both.phi_config.ridge, both.base_training.rank) == (0.02, 16)
    assert (both.store_config.connect_timeout_seconds, both.store_config.lock_timeout_seconds) == (2, 4)
    monkeypatch.setenv("SONA_BACKGROUND_MINIMUN", "5")
    with pytest.raises(ConfigError, match="did you mean SONA_BACKGROUND_MINIMUM"):
        of_process(path)


def test_a_file_that_is_wrong_is_refused_whatever_variables_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SONA_BACKGROUND_RANK", "16")
    with pytest.raises(ConfigError, match="rank is 0"):
        of_process(written(tmp_path, "[training_config]\nrank = 0"))


def test_every_part_has_variables() -> None:
    assert {part for parts in PREFIXES.values() for part in parts} == set(PART_TYPES)


# ---- presets ---------------------------------------------------------------------------------------------------------


def test_presets_are_four_and_no_two_alike() -> None:
    made = [SonaConfig.preset(name) for name in PRESETS]
    assert list(PRESETS) == ["max_throughput", "max_quality", "edge", "batch"]
    assert len({repr(config) for config in [*made, SonaConfig()]}) == 5
    assert made == [PRESETS[name]() for name in PRESETS]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_a_dimension(name: str, tmp_path: Path) -> None:
    whole = SonaConfig.preset(name)
    for dim in (1, 3, 16, 384):
        config = SonaConfig.preset(name, dim)
        assert config.embedding_dim == dim
        assert config.adapter_config is None or config.adapter_config.rank <= dim
        for says in (f"embedding_dim = {dim}", f"hidden_dim = {dim}"):
            assert SonaConfig.from_toml(written(tmp_path, f"preset = '{name}'\n{says}")).adapter_config == (
                config.adapter_config
            )
        environment = {"SONA_PRESET": name, "SONA_EMBEDDING_DIM": str(dim)}
        assert SonaConfig.from_environment(environment) == config
    assert SonaConfig.preset(name, 384) == whole.replace(embedding_dim=384)


def test_a_rank_that_is_said_beside_a_preset_stays(tmp_path: Path) -> None:
    config = SonaConfig.from_toml(
        written(tmp_path, "preset = 'max_quality'\nembedding_dim = 8\n[adapter_config]\nrank = 12")
    )
    assert config.adapter_config is not None
    assert config.adapter_config.rank == 12


@pytest.mark.parametrize("dim", [0, 16_001, True, 2.5, "8"])
def test_a_preset_of_no_dimension_is_refused(dim: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dim is"):
        SonaConfig.preset("edge", dim)  # type: ignore[arg-type]
    said = str(dim).lower() if isinstance(dim, bool) else repr(dim)
    with pytest.raises(ConfigError, match="embedding_dim is"):
        SonaConfig.from_toml(written(tmp_path, f"preset = 'edge'\nembedding_dim = {said}"))
