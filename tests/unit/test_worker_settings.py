"""What workers are told by a file and by their environment reaches what they open and run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sona_pg.cli import worker as commands
from sona_pg.config import EvidenceConfig, SonaConfig, StoreConfig
from sona_pg.errors import ConfigError
from sona_pg.loops.catalog import LOOPS

EVERY = ["instant", "all", *LOOPS]
FILE = """
database_url = "postgresql:///of-the-file"
home = "/of/the/file"
space = "of engines"
memory_budget_mb = 50
[store_config]
connect_timeout_seconds = 2
exact_search_rows = 77
prepare_statements = false
[evidence_config]
batch = 16
[phi_config]
threshold = 0.9
"""


class Opened(Exception):
    """A worker has got as far as its database."""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in [name for name in os.environ if name.startswith("SONA_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "sona.toml"
    path.write_text(FILE)
    return str(path)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, str | None, StoreConfig]]:
    found: list[tuple[str | None, str | None, StoreConfig]] = []

    def open_database(url: str | None, *, home: str | None, config: StoreConfig, application: str) -> None:
        found.append((url, home, config))
        raise Opened

    monkeypatch.setattr(commands, "open_database", open_database)
    return found


def run(*words: str) -> Result:
    return CliRunner().invoke(commands.worker, words)


@pytest.mark.parametrize("command", EVERY)
def test_a_worker_opens_the_database_of_its_file(
    command: str, file: str, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(run(command, f"--config={file}").exception, Opened)
    store = StoreConfig(connect_timeout_seconds=2, exact_search_rows=77, prepare_statements=False)
    assert opened == [("postgresql:///of-the-file", "/of/the/file", store)]
    run(command, f"--config={file}", "--url=postgresql:///of-the-option")
    assert opened[1] == ("postgresql:///of-the-option", "/of/the/file", store)
    monkeypatch.setenv("SONA_DATABASE_URL", "postgresql:///of-the-variable")
    monkeypatch.setenv("SONA_HOME", "/of/the/variable")
    monkeypatch.setenv("SONA_STORE_CONNECT_TIMEOUT_SECONDS", "3")
    run(command, f"--config={file}")
    assert opened[2][:2] == ("postgresql:///of-the-variable", "/of/the/variable")
    assert opened[2][2].connect_timeout_seconds == 3
    run(command)
    assert opened[3] == (*opened[2][:2], StoreConfig(connect_timeout_seconds=3))


def test_options_of_the_instant_worker_come_before_the_file(file: str, opened: list[Any]) -> None:
    run("instant", f"--config={file}", "--exact-search-rows=5")
    assert (opened[0][2].exact_search_rows, opened[0][2].prepare_statements) == (5, False)
    run("instant", "--pooled")
    assert opened[1] == (None, None, StoreConfig(prepare_statements=False))


def test_the_instant_worker_weighs_as_its_file_says(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "open_database", lambda *_, **__: None)
    made: list[EvidenceConfig] = []

    def instant_worker(database: object, config: object, evidence: EvidenceConfig, telemetry: object) -> None:
        made.append(evidence)
        raise Opened

    monkeypatch.setattr(commands, "InstantWorker", instant_worker)
    run("instant", f"--config={file}")
    run("instant")
    assert made == [EvidenceConfig(batch=16), EvidenceConfig()]


def test_all_hands_the_file_on_to_each(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Database:
        url = "postgresql:///of-the-file"

    found: dict[str, Sequence[str]] = {}

    def supervisor(workers: Mapping[str, Sequence[str]], drain_seconds: float, environment: Mapping[str, str]) -> None:
        found.update(workers)
        raise Opened

    monkeypatch.setattr(commands, "open_database", lambda *_, **__: Database())
    monkeypatch.setattr(commands, "Supervisor", supervisor)
    assert isinstance(run("all", f"--config={file}").exception, Opened)
    assert set(found) == {"instant", *LOOPS}
    assert all(f"--config={file}" in words for words in found.values())
    assert "--phi-threshold=0.9" in found["deep"]
    run("all")
    assert not any("--config" in word for words in found.values() for word in words)


@pytest.mark.parametrize("command", EVERY)
@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("SONA_BACKGROUND_MINIMUN", "5", "did you mean SONA_BACKGROUND_MINIMUM"),
        ("SONA_BACKGROUND_CONVERGENCE_THRESHOLD", "-7", "convergence_threshold is -7.0"),
        ("SONA_PHI_THRESHOLD", "1", "phi_threshold is 1.0"),
        ("SONA_LORA_RANK", "99", "rank is 99"),
    ],
)
def test_a_worker_refuses_a_variable_that_is_wrong(
    command: str, variable: str, value: str, says: str, file: str, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    for words in ((command,), (command, f"--config={file}")):
        refused = run(*words).exception
        assert isinstance(refused, ConfigError)
        assert says in str(refused)
    assert opened == []


@pytest.mark.parametrize(
    ("loop", "variable", "value"),
    [
        ("background", "SONA_LORA_RANK", "3"),
        ("background", "SONA_BACKGROUND_RANK", "3"),
        ("background", "SONA_BACKGROUND_CONVERGENCE_THRESHOLD", "0.25"),
        ("deep", "SONA_PHI_THRESHOLD", "0.25"),
        ("deep", "SONA_DEEP_PHI_THRESHOLD", "0.25"),
        ("deep", "SONA_DEEP_THRESHOLD", "0.25"),
        ("deep", "SONA_DEEP_RANDOM_PATHS", "3"),
    ],
)
def test_a_worker_runs_the_loop_of_an_engine_with_this_environment(
    loop: str, variable: str, value: str, file: str, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SonaConfig] = []
    monkeypatch.setattr("sona_pg.cli.settings.cycles.loop_of", lambda name, config: made.append(config.settled))
    monkeypatch.setenv(variable, value)
    assert isinstance(run(loop).exception, Opened)
    assert made == [SonaConfig.from_environment().settled]
    assert made != [SonaConfig()]


def test_the_base_has_the_memory_that_it_has_in_an_engine(
    opened: list[Any], file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[int | None] = []
    monkeypatch.setattr(
        "sona_pg.cli.settings.cycles.loop_of", lambda name, config: made.append(config.base_training.max_vector_bytes)
    )
    path = tmp_path / "own.toml"
    path.write_text("[background_config]\nmax_vector_bytes = 40000000\n[training_config]\nmax_vector_bytes = 20000000")
    run("background", f"--config={path}")
    run("background", f"--config={path}", "--max-vector-bytes=30000000")
    assert made == [20_000_000, 20_000_000] == [SonaConfig.from_toml(path).base_training.max_vector_bytes] * 2
    path.write_text("[background_config]\nmax_vector_bytes = 40000000")
    run("background", f"--config={path}")
    run("background", f"--config={path}", "--max-vector-bytes=30000000")
    assert made[2:] == [40_000_000, 30_000_000]
