"""``sona export`` and ``sona import``, as a program uses them."""

from __future__ import annotations

import json
import os
import shlex
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from psycopg.conninfo import make_conninfo

from sona_pg import SonaEngine
from sona_pg.store.connection import Connection

from .command_line import sona
from .conftest import DIM
from .exchanged import Vectors, plain, read


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
    named = sona("export", name, str(tmp_path / "adapter.parquet"), url=url)
    assert named.returncode == 2
    assert "--what patterns" in named.stderr
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
        (("export", "SPACE", ""), 1, "the name is empty"),
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


def test_a_hint_can_be_pasted_into_a_shell(url: str, tmp_path: Path) -> None:
    name = f'it\'s "q" ünï {uuid.uuid4().hex[:8]}'
    with SonaEngine.connect(url, space=name, dim=DIM, background=False) as engine:
        engine.save_pretrained(tmp_path / "adapter")
    done = sona("import", str(tmp_path / "adapter"), url=url)
    assert done.returncode == 0, done.stderr
    for said in (done.stdout, sona("deploy", name, "frozen", url=url).stdout):
        command = shlex.split(said[said.index("sona deploy") :])
        assert command[:3] == ["sona", "deploy", name]
        assert sona(*command[1:], url=url).returncode == 0


def test_a_key_that_no_trajectory_has_is_said(judged: SonaEngine, tmp_path: Path, url: str) -> None:
    for key, warning in (("nothing", "no trajectory"), ("question", "")):
        path = str(tmp_path / f"{key}.jsonl")
        done = sona("export", judged.space.name, path, "--what", "preferences", "--prompt-key", key, url=url)
        assert done.returncode == 0
        assert warning in done.stderr if warning else not done.stderr
        assert done.stdout.endswith(f"{path}\n")


def test_a_role_that_may_not_is_told_which_one_may(
    with_patterns: SonaEngine,
    role: Callable[..., str],
    connection: Connection,
    tmp_path: Path,
    url: str,
) -> None:
    name = with_patterns.space.name
    with_patterns.save_pretrained(tmp_path / "adapter")
    with_patterns.export_patterns(tmp_path / "patterns.jsonl")
    with_patterns.save(tmp_path / "saved")
    login = role("app", "sona_app")
    connection.execute("SELECT sona.grant_space(%s, %s)", (name, login))
    for command in (
        ("import", str(tmp_path / "adapter")),
        ("import", str(tmp_path / "patterns.jsonl")),
        ("space", "save", name, str(tmp_path / "again")),
        ("space", "load", str(tmp_path / "saved"), "--name", "another"),
    ):
        done = sona(*command, url=make_conninfo(url, user=login))
        assert done.returncode == 1
        assert "may not" in done.stderr
        assert "sona_worker" in done.stderr
