"""Files that are written whole or not at all, and read within bounds."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from sona_pg.errors import IoError, SonaError

FilePath = str | os.PathLike[str]

MOST_BYTES = 1 << 31
"""A larger file is not read."""


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
        target = os.fspath(path)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(os.path.abspath(target)), prefix=".sona-")
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
        raise IoError(f"{path!r} cannot be written ({cause}): choose a directory that exists and has room") from cause
    except BaseException:
        _remove(temporary)
        raise


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
            raise FileNotFoundError("there is no such file")
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError, TypeError) as cause:
        raise IoError(f"{path!r} cannot be read ({cause}): pass the path of a file that was saved") from cause
    if len(data) > MOST_BYTES:
        raise IoError(f"{path!r} holds more than {MOST_BYTES} bytes: it is not what was saved")
    return data
