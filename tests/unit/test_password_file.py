"""PGPASSWORD_FILE: a password that stands in no environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sona_pg.cli.main import read_password
from sona_pg.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that what the code sets is taken back.
    for name in ("PGPASSWORD", "PGPASSWORD_FILE"):
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize(
    ("content", "password"),
    [
        ("secret", "secret"),
        ("secret\n", "secret"),
        ("secret\r\n", "secret"),
        (" a b \nsecond\n", " a b "),
        ("ü$'\"", "ü$'\""),
    ],
)
def test_the_first_line_is_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, password: str
) -> None:
    (tmp_path / "file").write_bytes(content.encode())
    monkeypatch.setenv("PGPASSWORD_FILE", str(tmp_path / "file"))
    read_password()
    assert os.environ["PGPASSWORD"] == password


def test_a_password_of_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "given")
    monkeypatch.setenv("PGPASSWORD_FILE", str(tmp_path / "absent"))
    read_password()
    assert os.environ["PGPASSWORD"] == "given"


def test_without_a_file_nothing_changes() -> None:
    read_password()
    assert os.environ["PGPASSWORD"] == ""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"", "is no password"),
        (b"\nsecret", "is no password"),
        (b"\xff", "cannot be read"),
        (b"a\0", "is no password"),
    ],
)
def test_a_file_without_a_password_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, says: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("PGPASSWORD_FILE", str(path))
    with pytest.raises(ConfigError, match=says):
        read_password()
    assert os.environ["PGPASSWORD"] == ""
