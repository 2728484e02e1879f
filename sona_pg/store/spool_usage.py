"""What the spools of this machine hold, for whoever looks after them."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sona_pg.store.spool_folder import HEADER, MAGIC, SUFFIX, SpoolWriter, files_in, folders_in, moment_of, writers_in


@dataclass(frozen=True, slots=True)
class SpoolUsage:
    """What the spool of a space holds on this machine.

    Parameters
    ----------
    bytes
        Size of its files.
    oldest
        When the oldest of them was begun; None if there is none.
    """

    bytes: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class SpoolState:
    """The spool of a space on this machine, for whoever looks for what is wrong.

    Parameters
    ----------
    usage
        What it holds.
    is_left_behind
        Whether some of it is of a process that is dead.
    damaged
        Files that could not be read as a whole and are kept to be looked at.
    """

    usage: SpoolUsage
    is_left_behind: bool
    damaged: list[Path]


def usage(directory: Path, space_key: uuid.UUID) -> SpoolUsage:
    """What the spool of a space holds, of all processes of this machine; damaged files count."""
    size, oldest = 0, None
    folder = directory / str(space_key)
    for path in [*files_in(folder), *(path for writer in writers_in(folder) for path in files_in(writer))]:
        with contextlib.suppress(OSError):  # replayed meanwhile, or another user's
            size += path.stat().st_size
            with open(path, "rb") as file:
                header = file.read(HEADER.size)
            if len(header) == HEADER.size and header.startswith(MAGIC):
                begun = HEADER.unpack(header)[2]
                oldest = begun if oldest is None else min(oldest, begun)
    return SpoolUsage(size, None if oldest is None else moment_of(oldest))


def waiting_spaces(directory: Path) -> list[uuid.UUID]:
    """Keys of the spaces whose spools hold something that a dead process left behind."""
    found = []
    for folder in folders_in(directory):
        with contextlib.suppress(ValueError):
            key = uuid.UUID(folder.name)
            if any(_is_left_behind(writer) for writer in writers_in(folder)):
                found.append(key)
    return found


def spool_states(directory: Path) -> dict[uuid.UUID, SpoolState]:
    """The spools that hold anything, by the keys of their spaces."""
    found: dict[uuid.UUID, SpoolState] = {}
    left_behind = set(waiting_spaces(directory))
    for folder in folders_in(directory):
        with contextlib.suppress(ValueError):
            key = uuid.UUID(folder.name)
            if (held := usage(directory, key)).bytes:
                found[key] = SpoolState(held, key in left_behind, files_in(folder))
    return found


def _is_left_behind(folder: Path) -> bool:
    if not any(path.suffix == SUFFIX for path in files_in(folder)):
        return False
    writer = SpoolWriter.adopt(folder)
    if writer is not None:
        writer.release()
    return writer is not None
