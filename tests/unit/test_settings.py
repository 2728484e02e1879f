"""Settings of the slow loops on the command line, which are those of their configurations."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sona_pg.cli import settings
from sona_pg.cli.settings import SETTINGS, ProcessSettings, Setting, Value, as_options, loop_of
from sona_pg.cli.worker import worker
from sona_pg.config import SonaConfig
from sona_pg.errors import ConfigError
from sona_pg.loops.catalog import LOOPS
from sona_pg.loops.cycle import Loop

from .ranges import OUT_OF_RANGE

EVERY = [(loop, setting) for loop, known in SETTINGS.items() for setting in known]
DEFAULTS: dict[str, Value] = {setting.field: setting.default for _, setting in EVERY}


def _given(loop: str) -> dict[str, Value]:
    """Every setting as it is not by default."""
    texts = {"scheduler": "tcp://127.0.0.1:8786", "without_scheduler": "local"}
    return {s.field: texts.get(s.field) or _other(s.default) for s in SETTINGS[loop]}


def _other(default: Value) -> Value:
    assert not isinstance(default, str)
    return default + 1 if isinstance(default, int) else default * 0.75


@pytest.mark.parametrize("command", ["background", "all"])
def test_help_says_default_and_variable_of_every_setting(command: str) -> None:
    said = CliRunner().invoke(worker, [command, "--help"], terminal_width=1000).output
    for setting in SETTINGS["background"]:
        (line,) = [line for line in said.splitlines() if f" {setting.option} " in line]
        (default,) = [field.default for field in fields(setting.config) if field.name == setting.field]
        shown = default if default != "" else '""'
        assert f"[env var: {setting.variable('background')}; default: {shown}]" in line


def test_settings_reach_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: dict[str, Value] = {}

    def loop(name: str, config: SonaConfig) -> Loop:
        reached.update(settings.of_config(name, config))
        return LOOPS[name]

    monkeypatch.setattr(settings.cycles, "loop_of", loop)
    given = _given("background")
    assert all(given[name] != DEFAULTS[name] for name in given)
    loop_of("background", given)
    assert reached == given


def test_options_give_another_process_the_same() -> None:
    reached: dict[str, Value] = {}

    @settings.settings_options("background")
    def command(config: ProcessSettings, **given: Value) -> None:
        reached.update(given)

    given = _given("background")
    assert CliRunner().invoke(click.command(command), as_options("background", given)).exit_code == 0
    assert reached == given
    assert as_options("instant", given) == []


def test_a_file_comes_after_options_and_variables_and_says_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "sona.toml"
    path.write_text("""
        phi_threshold = 0.4
        [background_config]
        minimum = 3
        max_trajectories = 50
        [pattern_config]
        k_clusters = 9
        [verdict_config]
        max_values = 5
        [lora_config]
        rank = 6
    """)
    made: list[SonaConfig] = []

    def loop(name: str, config: SonaConfig) -> Loop:
        made.append(config)
        return LOOPS[name]

    monkeypatch.setattr(settings.cycles, "loop_of", loop)

    @settings.settings_options("background")
    def command(config: ProcessSettings, **given: Value) -> None:
        assert config.path == str(path)
        loop_of("background", given, config.config)
        loop_of("deep", settings.of_config("deep", config.config), config.config)

    monkeypatch.setenv("SONA_BACKGROUND_K_CLUSTERS", "8")
    run = CliRunner().invoke(click.command(command), [f"--config={path}", "--minimum=4"], catch_exceptions=False)
    assert run.exit_code == 0
    background, deep = made
    assert (background.background_config.minimum, background.background_config.max_trajectories) == (4, 50)
    assert (background.pattern_config.k_clusters, background.verdict_config.max_values) == (8, 5)
    assert background.base_training.rank == 6
    assert deep.settled.deep_config.phi_threshold == 0.4


@pytest.mark.parametrize(("loop", "setting"), EVERY, ids=lambda it: it.field if isinstance(it, Setting) else it)
def test_what_is_out_of_range_is_refused(loop: str, setting: Setting) -> None:
    for value in OUT_OF_RANGE[setting.config][setting.field]:
        with pytest.raises(ConfigError, match=f"^{setting.field} is"):
            loop_of(loop, {**DEFAULTS, setting.field: value})


def test_a_loop_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no loop 'sideways', expected instant or background or deep"):
        loop_of("sideways", {})


def test_the_page_has_every_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    named = set(re.findall(r"`(--[a-z-]+)`", page.split("## Metrics")[0]))
    assert named == {setting.option for own in SETTINGS.values() for setting in own} | {"--help", "--config"}
