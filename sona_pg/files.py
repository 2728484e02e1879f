"""Files that are written whole or not at all, and read within bounds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import BinaryIO

from sona_pg.errors import IoError, SonaError

FilePath = str | os.PathLike[str]

MOST_BYTES = 1 << 31
"""A larger file is not read."""

_PREFIX = ".sona-unfinished-"
_UNFINISHED = re.compile(re.escape(_PREFIX) + "[a-z0-9_]{8}")
"""What a file is called until all of it is on the disk. Nobody calls anything else so: what is left is removed."""

_LEAST_AGE_SECONDS = 60.0
"""What was written later is not taken for left: its writer may not have locked it yet."""


def _shown(path: object) -> str:
    """A path as an error shows it, as the text that it is."""
    return repr(str(path) if isinstance(path, PurePath) else path)


@contextlib.contextmanager
def replacing(path: FilePath) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of what is at `path` once all of it is on the disk.

    Raises
    ------
    IoError
        If it cannot be written; what was there is unchanged, as it is after any other error.
    """
    temporary = None
    try:
        target = _absolute(path)
        handle, temporary = _unfinished(os.path.dirname(target))
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
    except SonaError:
        _remove(temporary)
        raise
    except (OSError, ValueError, TypeError) as cause:
        _remove(temporary)
        raise IoError(
            f"{_shown(path)} cannot be written ({cause}): choose a directory that exists and has room"
        ) from cause
    except BaseException:
        _remove(temporary)
        raise


def _absolute(path: FilePath) -> str:
    named = os.fspath(path)
    if not named:
        raise ValueError("the name is empty")
    return os.path.abspath(named)


def _unfinished(directory: str) -> tuple[int, str]:
    """A new file that is locked while it is written; what writers that were killed have left there is removed."""
    _remove_left(directory)
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=_PREFIX)
    _lock(handle)
    return handle, temporary


def _lock(handle: int) -> bool:
    """Lock a file for as long as this process has it open; False where another has, or the file system cannot."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_left(directory: str) -> None:
    """Remove this user's unfinished files that nobody is writing.

    A lock says so, and not the number of a process: in another container the same one is of another process.
    """
    with contextlib.suppress(OSError):
        for name in filter(_UNFINISHED.fullmatch, os.listdir(directory)):
            with contextlib.suppress(OSError):
                _remove_if_left(os.path.join(directory, name))


def _remove_if_left(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(handle)
        if found.st_uid != os.geteuid() or time.time() - found.st_mtime < _LEAST_AGE_SECONDS or not _lock(handle):
            return
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path, ignore_errors=True)
        elif stat.S_ISREG(found.st_mode):
            os.unlink(path)
    finally:
        os.close(handle)


def _remove(temporary: str | bytes | None) -> None:
    if temporary is not None and os.path.exists(temporary):
        os.unlink(temporary)


def write_file(path: FilePath, data: bytes) -> None:
    """Write `data` to `path`; what was there stays until all of it is on the disk.

    Raises
    ------
    IoError
        If it cannot be written; what was there is unchanged.
    """
    with replacing(path) as file:
        file.write(data)


def read_file(path: FilePath) -> bytes:
    """All of a regular file.

    Raises
    ------
    IoError
        If it cannot be read, is no regular file, or holds more than 2 GB.
    """
    try:
        if not os.path.isfile(os.fspath(path)):
            raise OSError("it is no regular file" if os.path.exists(path) else "there is no such file")
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError, TypeError) as cause:
        raise IoError(f"{_shown(path)} cannot be read ({cause}): pass the path of a file that was saved") from cause
    if len(data) > MOST_BYTES:
        raise IoError(f"{_shown(path)} holds more than {MOST_BYTES} bytes: it is not what was saved")
    return data


def read_inside(directory: FilePath, name: str, most_bytes: int = MOST_BYTES) -> bytes:
    """All of a regular file of a directory; a link is none, wherever it leads.

    Raises
    ------
    IoError
        If it is not there, is a link, a pipe or a directory, cannot be read, or holds more than `most_bytes`.
    """
    path = None
    try:
        path = os.path.join(os.fspath(directory), name)
        # Without O_NONBLOCK a pipe would be waited for.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("it is no regular file")
            data = file.read(most_bytes + 1)
    except (OSError, ValueError, TypeError) as cause:
        raise IoError(
            f"{_shown(path or directory)} cannot be read ({cause}): "
            "pass a directory that was exported, with regular files"
        ) from cause
    if len(data) > most_bytes:
        raise IoError(f"{_shown(path)} holds more than {most_bytes} bytes: it is not what was exported")
    return data


@contextlib.contextmanager
def new_file(path: FilePath) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name when all of it is on the disk; what has that name already stays.

    Raises
    ------
    IoError
        If something is there already, or it cannot be written; nothing is left then.
    """
    try:
        target = _absolute(path)
        if _is_there(target):
            raise FileExistsError(_TAKEN)
        handle, temporary = _unfinished(os.path.dirname(target))
    except (OSError, ValueError, TypeError) as cause:
        raise _not_written(path, cause) from cause
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _give_name(temporary, target)
    except SonaError:
        raise
    except OSError as cause:
        raise _not_written(path, cause) from cause
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_directory(path: FilePath, files: Mapping[str, bytes]) -> None:
    """Write files into a directory that is not there yet, or is empty: all of them or none.

    Raises
    ------
    IoError
        If something is there already, or it cannot be written; nothing is left then.
    """
    temporary = handle = None
    try:
        target = _absolute(path)
        if _is_there(target) and (os.path.islink(target) or not os.path.isdir(target) or os.listdir(target)):
            raise FileExistsError(_TAKEN)
        _remove_left(os.path.dirname(target))
        temporary = tempfile.mkdtemp(dir=os.path.dirname(target), prefix=_PREFIX)
        handle = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        _lock(handle)
        for name, data in files.items():
            with open(os.path.join(temporary, name), "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        # A directory takes the place of an empty one alone, whoever has filled it meanwhile.
        os.rename(temporary, target)
    except (OSError, ValueError, TypeError) as cause:
        raise _not_written(path, cause) from cause
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if handle is not None:
            os.close(handle)


_TAKEN = "something is there already, and nothing is overwritten"


def _is_there(target: str | bytes) -> bool:
    try:
        os.lstat(target)  # unlike os.path.lexists it refuses what is no name
    except FileNotFoundError:
        return False
    return True


def _give_name(temporary: str, target: str) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError as cause:
        raise FileExistsError(_TAKEN) from cause
    except OSError:
        # A file system without hard links: whoever writes there in this moment is overwritten.
        if os.path.lexists(target):
            raise FileExistsError(_TAKEN) from None
        os.rename(temporary, target)


def _not_written(path: FilePath, cause: Exception) -> IoError:
    return IoError(
        f"{_shown(path)} cannot be written ({cause}): "
        "choose a name that is free, in a directory that exists and has room"
    )


@contextlib.contextmanager
def open_file(path: FilePath, most_bytes: int = MOST_BYTES) -> Iterator[BinaryIO]:
    """A regular file to read from.

    Raises
    ------
    IoError
        If it is not there, is no regular file, cannot be read, or holds more than `most_bytes`.
    """
    try:
        # Without O_NONBLOCK a pipe would be waited for.
        file = os.fdopen(os.open(os.fspath(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except (OSError, ValueError, TypeError) as cause:
        raise _not_read(path, cause) from cause
    with file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > most_bytes:
            raise _not_read(path, ValueError(f"expected a regular file of at most {most_bytes} bytes"))
        try:
            yield file
        except SonaError:
            raise
        except OSError as cause:
            raise _not_read(path, cause) from cause


def _not_read(path: FilePath, cause: Exception) -> IoError:
    return IoError(f"{_shown(path)} cannot be read ({cause}): pass the path of a file that was exported")
