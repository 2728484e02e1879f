"""``sona export`` and ``sona import``, as a program uses them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sona_pg import (
    SonaEngine,
)

from .conftest import DIM
from .exchanged import Vectors, plain, read
from .test_cli import sona


def test_the_command_line_exports_and_imports(
    taught: tuple[SonaEngine, Callable[[int], None]],
    open_space: Callable[..., SonaEngine],
    queries: Vectors,
    tmp_path: Path,
    url: str,
) -> None:
    name, path = taught[0].space.name, str(tmp_path / "adapter")
    done = sona("export", name, path, "--json", url=url)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["what"], said["space"], said["path"], said["dim"]) == ("adapter", name, path, DIM)
    assert "already" in sona("export", name, path, url=url).stderr
    other = open_space(" other")
    done = sona("import", path, "--space", other.space.name, "--json", url=url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"space": other.space.name, "what": "adapter", "version": 2}
    other.flush()
    np.testing.assert_allclose(other.adapt(queries), taught[0].adapt(queries), atol=1e-6)
    # Without --space it goes where it comes from.
    assert f"in force in '{name}'" in sona("import", path, url=url).stdout


def test_the_command_line_writes_rows_and_reads_patterns(
    judged: SonaEngine,
    with_patterns: SonaEngine,
    open_space: Callable[..., SonaEngine],
    tmp_path: Path,
    url: str,
) -> None:
    name, path = with_patterns.space.name, str(tmp_path / "patterns.parquet")
    done = sona("export", name, path, "--what", "patterns", url=url)
    assert (done.returncode, done.stdout) == (0, f"4 patterns of {name!r}: {path}\n"), done.stderr
    other = open_space(" other")
    done = sona("import", path, "--space", other.space.name, "--json", url=url)
    assert json.loads(done.stdout) == {
        "space": other.space.name,
        "what": "patterns",
        "read": 4,
        "created": 4,
        "merged": 0,
        "known": 0,
    }
    pairs = str(tmp_path / "pairs.jsonl")
    given = ("--what", "preferences", "--text-column", "body", "--prompt-key", "question", "--json")
    done = sona("export", judged.space.name, pairs, *given, url=url)
    assert json.loads(done.stdout)["rows"] == len(read(tmp_path / "pairs.jsonl")) == 3


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("export", "nowhere", "adapter"), 1, "no space"),
        (("export", "SPACE", "rows.csv", "--what", "patterns"), 2, "neither"),
        (("export", "SPACE", "rows.jsonl", "--what", "patterns", "--version", "1"), 2, "--version"),
        (("export", "SPACE", "adapter", "--text-column", "body"), 2, "--text-column"),
        (("export", "SPACE", "adapter", "--what", "everything"), 2, "--what"),
        (("export", "SPACE", "nowhere/adapter"), 1, "cannot be written"),
        (("import", "nothing.jsonl"), 1, "cannot be read"),
        (("import", "nothing"), 2, "neither"),
        (("import", "empty"), 1, "cannot be read"),
        (("import", "broken.jsonl"), 1, "JSON"),
        (("import", "plain"), 2, "--space"),
        (("import", "plain", "--space", "SPACE"), 2, "does not say"),
        (("import", "plain", "--space", "SPACE", "--embedder", "another"), 2, "another"),
    ],
)
def test_the_command_line_refuses_with_a_status_that_says_whose_fault_it_is(
    with_patterns: SonaEngine, tmp_path: Path, url: str, arguments: tuple[str, ...], status: int, message: str
) -> None:
    with_patterns.save_pretrained(tmp_path / "plain")
    plain(tmp_path / "plain")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jsonl").write_text("{\n")
    command = [with_patterns.space.name if part == "SPACE" else part for part in arguments]
    if "/" in command[-1] or command[0] == "import":
        command[1 + (command[0] == "export")] = str(tmp_path / command[1 + (command[0] == "export")])
    before = sorted(os.listdir(tmp_path))
    done = sona(*command, url=url)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert not done.stdout
    assert sorted(os.listdir(tmp_path)) == before
