"""Files are written whole or not at all, overwrite nothing, and are read only where they are what they should be."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sona_pg.errors import DatabaseError, IoError
from sona_pg.files import new_file, open_file, read_inside, replacing, write_directory, write_file


def test_a_new_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with new_file(path) as file:
        file.write(b"a")
        assert not path.exists()
    assert path.read_bytes() == b"a"
    assert os.listdir(tmp_path) == ["rows.jsonl"]


@pytest.mark.parametrize("error", [DatabaseError, OSError, ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path: Path, error: type[BaseException]) -> None:
    expected = IoError if error is OSError else error

    def interrupted() -> None:
        with new_file(tmp_path / "rows.jsonl") as file:
            file.write(b"a")
            raise error

    with pytest.raises(expected):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("rows.jsonl", "link"):
        with pytest.raises(IoError, match="already"):
            with new_file(tmp_path / name):
                raise AssertionError
    late = tmp_path / "late"
    with pytest.raises(IoError, match="already"):
        with new_file(late):
            late.write_bytes(b"mine")
    assert late.read_bytes() == path.read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["late", "link", "rows.jsonl"]


def test_without_hard_links_nothing_is_overwritten_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    with new_file(tmp_path / "a") as file:
        file.write(b"a")
    assert (tmp_path / "a").read_bytes() == b"a"
    with pytest.raises(IoError, match="already"):
        with new_file(tmp_path / "b"):
            (tmp_path / "b").write_bytes(b"mine")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "b").read_bytes() == b"mine"


def test_a_directory_is_written_as_a_whole(tmp_path: Path) -> None:
    write_directory(tmp_path / "new", {"a": b"1", "b": b"2"})
    (tmp_path / "empty").mkdir()
    write_directory(tmp_path / "empty", {"a": b"3"})
    assert {p.name: p.read_bytes() for p in (tmp_path / "new").iterdir()} == {"a": b"1", "b": b"2"}
    assert (tmp_path / "empty" / "a").read_bytes() == b"3"
    assert sorted(os.listdir(tmp_path)) == ["empty", "new"]


def test_a_directory_that_holds_something_stays(tmp_path: Path) -> None:
    full, file, link = tmp_path / "full", tmp_path / "file", tmp_path / "link"
    write_directory(full, {"a": b"mine"})
    file.write_bytes(b"mine")
    link.symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    for taken in (full, file, link):
        with pytest.raises(IoError, match="already"):
            write_directory(taken, {"a": b"yours"})
    assert (full / "a").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "full", "link"]


def test_nothing_is_left_of_a_directory_that_was_not_finished(tmp_path: Path) -> None:
    with pytest.raises(IoError):
        write_directory(tmp_path / "new", {"a": b"1", "b/c": b"2"})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["nowhere/at/all", "", "\0", 3, None, b"\xff\0"])
def test_a_place_that_is_none_is_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for act in (
        lambda: write_directory(path, {"a": b""}),
        lambda: new_file(path).__enter__(),
        lambda: write_file(path, b""),
        lambda: open_file(path).__enter__(),
        lambda: read_inside(path, "a"),
    ):
        with pytest.raises(IoError):
            act()
    assert os.listdir(tmp_path) == []


def test_only_regular_files_of_the_directory_itself_are_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "good").write_bytes(b"good")
    (folder / "link").symlink_to(secret)
    (folder / "inner").mkdir()
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(folder / "socket"))
    assert read_inside(folder, "good", 4) == b"good"
    with pytest.raises(IoError, match="more than 3"):
        read_inside(folder, "good", 3)
    for name in ("link", "inner", "pipe", "socket", "none"):
        with pytest.raises(IoError):
            read_inside(folder, name)
        if name != "link":
            with pytest.raises(IoError), open_file(folder / name):
                raise AssertionError
    with pytest.raises(IoError, match="at most 3"), open_file(folder / "good", 3):
        raise AssertionError


KILLED = {
    "replaced": "with files.replacing(path) as file: killed(file)",
    "new": "with files.new_file(path) as file: killed(file)",
    "directory": "os.fsync = lambda handle: os.kill(os.getpid(), 9); files.write_directory(path, {'a': b'secret'})",
}
NEXT = {
    "replaced": lambda path: write_file(path, b"new"),
    "new": lambda path: new_file(path).__enter__(),
    "directory": lambda path: write_directory(path, {"a": b"new"}),
}


def killed_while_writing(path: Path, how: str) -> Path:
    """What a process leaves that was killed."""
    script = (
        "import os, sys\nfrom sona_pg import files\npath = sys.argv[1]\n"
        "def killed(file):\n    file.write(b'secret'); file.flush(); os.kill(os.getpid(), 9)\n" + KILLED[how]
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (entry for entry in path.parent.iterdir() if entry.name.startswith(".sona-unfinished-"))
    return left


def make_old(path: Path) -> None:
    os.utime(path, (time.time() - 120, time.time() - 120), follow_symlinks=False)


@pytest.mark.parametrize("how", KILLED)
@pytest.mark.parametrize("then", NEXT)
def test_what_a_killed_writer_has_left_goes_with_the_next_one(tmp_path: Path, how: str, then: str) -> None:
    left = killed_while_writing(tmp_path / "saved", how)
    NEXT[then](tmp_path / "young")
    assert left.exists(), "somebody may have made it, and be about to lock it"
    make_old(left)
    NEXT[then](tmp_path / "next")
    assert not left.exists()


def test_what_another_is_writing_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    names = "settings", "unfinished-notes", "unfinished-abcdefghi", "unfinished-link_123", "unfinished-pipe_123"
    others = [tmp_path / f".sona-{name}" for name in names]
    others[0].mkdir()
    others[1].write_text("mine")
    others[2].write_text("mine")
    others[3].symlink_to(others[1])
    os.mkfifo(others[4])
    with replacing(tmp_path / "first") as file:
        file.write(b"first")
        file.flush()
        (unfinished,) = (entry for entry in tmp_path.iterdir() if entry not in others)
        for path in (unfinished, *others):
            make_old(path)
        write_file(tmp_path / "second", b"second")
        assert unfinished.exists()
    assert (tmp_path / "first").read_bytes() == b"first"
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "first", tmp_path / "second"])


def test_a_path_may_lead_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    with new_file(tmp_path / "linked" / "rows.jsonl") as file:
        file.write(b"a")
    (tmp_path / "latest.jsonl").symlink_to("real/rows.jsonl")
    for path in (tmp_path / "linked" / "rows.jsonl", tmp_path / "latest.jsonl"):
        with open_file(path) as opened:
            assert opened.read() == b"a"
    write_directory(tmp_path / "linked" / "adapter", {"a": b"b"})
    assert read_inside(tmp_path / "linked" / "adapter", "a") == b"b"
