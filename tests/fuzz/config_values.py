"""Arguments of what makes all settings at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

import sona_pg

from .anything import anything, texts

Any_ = st.SearchStrategy[Any]

_FOLDER = tempfile.TemporaryDirectory(prefix="sona-fuzz-")


def settings_file(content: bytes = b'space = "support"\n[pattern_config]\nk_clusters = 7\n') -> str:
    """A file of settings."""
    path = Path(_FOLDER.name) / "sona.toml"
    path.write_bytes(content)
    return str(path)


_VARIABLES = st.sampled_from(
    ("SONA_PRESET", "SONA_HOME", "SONA_ADAPTER_RANK", "SONA_BACKGROUND_X", "SONA_LEARNING_LOOPS", "SONA_DEEP_LEVELS")
)

GOOD_OF: dict[str, dict[str, Any_]] = {
    "SonaConfig.builder": {"config": st.builds(sona_pg.SonaConfig)},
    "SonaConfig.from_environment": {
        "environment": st.sampled_from(({}, {"SONA_SPACE": "a"}, {"SONA_DEEP_LEVELS": "2", "PATH": "/"}))
    },
    "SonaConfig.from_toml": {"path": st.builds(settings_file)},
    "SonaConfig.preset": {
        "name": st.sampled_from(("edge", "batch", "max_throughput", "max_quality")),
        "dim": st.sampled_from((None, 1, 9, 384)),
    },
    # One keyword, which is no setting: what may be given here the constructor is given.
    "SonaConfig.replace": {"changes": st.none()},
    "SonaEngine.query": {"text": texts, "k": st.integers(1, 9)},
}
HOSTILE_OF: dict[str, dict[str, Any_]] = {
    "SonaConfig.from_environment": {
        "environment": st.one_of(st.dictionaries(_VARIABLES, st.one_of(texts, anything), max_size=3), anything)
    },
    "SonaConfig.from_toml": {"path": st.one_of(texts, st.builds(settings_file, st.binary(max_size=60)))},
}
MAKERS: dict[str, Callable[[], Any]] = {"SonaConfig": sona_pg.SonaConfig}
