"""The version stands in the settings, from where the package has it, and in what is built of it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import sona_pg
from sona_pg.config import VERSION


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == sona_pg.__version__ == VERSION
