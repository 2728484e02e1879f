"""Where a spool lies on disk: a folder of each process that writes, locked for as long as that lives.

    <directory>/<key of the space>/<writer>/lock             held by its process for as long as it lives
    <directory>/<key of the space>/<writer>/0000000001.spool  segments, oldest first

What a dead process left behind is adopted by whoever gets its lock. A segment begins with a header.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import struct
import uuid
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

log = logging.getLogger("sona_pg")

VERSION = 1
HEADER = struct.Struct("<8sHd16s")
"""Magic, version, when it was begun (seconds since the epoch), key of the space."""
MAGIC = b"sonaspol"
SUFFIX = ".spool"


class SpoolWriter:
    """The folder of one process, whose lock is held."""

    _open: ClassVar[weakref.WeakSet[SpoolWriter]] = weakref.WeakSet()

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock
        self._open.add(self)

    @classmethod
    def create(cls, parent: Path) -> SpoolWriter:
        """A new folder for this process in that of the space; its lock is held before its name can be seen."""
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        # Under a name that nobody adopts until the lock is held.
        hidden = parent / f".{name}"
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, hidden, ignore_errors=True)
            hidden.mkdir(mode=0o700)
            lock = os.open(hidden / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            _sync(hidden)
            hidden.rename(parent / name)
            undo.pop_all()
        made = cls(parent / name, lock)
        _sync(parent)
        return made

    @classmethod
    def adopt(cls, folder: Path) -> SpoolWriter | None:
        """The folder of a process that is dead; None while it lives."""
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            # Gone meanwhile, or another user's: that one's processes will replay it.
            if not isinstance(error, FileNotFoundError):
                log.debug("the spool %s is left to its owner: %s", folder, error)
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return None
        return cls(folder, lock)

    def segment(self, number: int) -> Path:
        """The file of a segment, which may not exist yet."""
        return self.folder / f"{number:010d}{SUFFIX}"

    def segments(self) -> list[Path]:
        """Its segments, oldest first."""
        return [path for path in files_in(self.folder) if path.suffix == SUFFIX]

    def sync(self) -> None:
        """Make names of files in it durable."""
        _sync(self.folder)

    def close(self) -> None:
        """Release the lock; a folder without segments goes."""
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                if not self.segments():
                    shutil.rmtree(self.folder)
            self.release()

    def release(self) -> None:
        """Release the lock: whoever gets it next goes on with what is in the folder."""
        os.close(self._lock)
        self._lock = -1
        self._open.discard(self)

    @classmethod
    def release_all(cls) -> None:
        """In a forked child: the locks are the parent's, and must not outlive it."""
        for writer in list(cls._open):
            writer.release()


os.register_at_fork(after_in_child=SpoolWriter.release_all)


def folders_in(folder: Path) -> list[Path]:
    """Folders in a folder, by name; none where that is gone or another user's."""
    return [Path(entry.path) for entry in _entries(folder) if entry.is_dir()]


def writers_in(folder: Path) -> list[Path]:
    """Folders of the processes that write the spool of a space, dead or alive."""
    return [path for path in folders_in(folder) if not path.name.startswith(".")]


def files_in(folder: Path) -> list[Path]:
    """Files in a folder, by name, but not its lock."""
    return [Path(entry.path) for entry in _entries(folder) if entry.is_file() and entry.name != "lock"]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        log.debug("%s is left to its owner: %s", folder, error)
        return []


def begun_at(data: memoryview) -> datetime:
    """When a file was begun, by its header; long ago where that does not say."""
    found = moment_of(HEADER.unpack_from(data)[2]) if len(data) >= HEADER.size else None
    return datetime.fromtimestamp(0, UTC) if found is None else found


def moment_of(seconds: float) -> datetime | None:
    """A time in seconds since the epoch, as a damaged header may hold it; None where it is none."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
