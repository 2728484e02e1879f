"""The spool: what the database cannot take, on local disk until it can.

Every process writes a folder of its own, so that none waits for another; what a dead one left behind is adopted by the
next that opens the space. An append is confirmed once it is synced to disk. Replaying twice does no harm: trajectories
and scores have ids, and the database knows them.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sona_pg.config import StoreConfig
from sona_pg.errors import IoError
from sona_pg.store.spool_folder import HEADER, MAGIC, VERSION, SpoolWriter, begun_at, writers_in
from sona_pg.store.spool_record import Event, encode, read_from
from sona_pg.store.spool_usage import SpoolUsage, usage

log = logging.getLogger("sona_pg")


_BATCH_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class SpoolBatch:
    """Events to be replayed, oldest first; `Spool.confirm` it once the database has them.

    Parameters
    ----------
    events
        Trajectories and scores.
    problems
        What could not be read, for people.
    since
        When the file that they are in was begun.
    """

    events: list[Event]
    problems: list[str]
    since: datetime
    _end: int
    _is_damaged: bool


@dataclass(slots=True)
class _Reading:
    """A segment that is being replayed, and how far it is confirmed."""

    path: Path
    confirmed: int = 0
    is_damaged: bool = False


class Spool:
    """The spool of one space, as one process writes and replays it.

    Nothing is created before the first append. Safe to use from several threads.

    Parameters
    ----------
    directory
        Folder of all spools.
    space_key
        What names the space beyond its database.
    config
        Its limits.
    """

    def __init__(self, directory: Path, space_key: uuid.UUID, config: StoreConfig | None = None) -> None:
        self._config = StoreConfig() if config is None else config
        self._folder = directory / str(space_key)
        self._key = space_key
        self._mutex = threading.Lock()
        self._writer: SpoolWriter | None = None
        self._adopted: SpoolWriter | None = None
        self._reading: _Reading | None = None
        self._unreadable: set[Path] = set()
        self._newest = 1
        self._front = 1

    # Writing ---------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """What is written by `append` from now on is newer than all that was written so far."""
        with self._mutex:
            self._front = self._newest

    @property
    def is_split(self) -> bool:
        """Whether `append_behind` has written since `advance`: what `append` writes now goes before that."""
        return self._front < self._newest

    @property
    def holds_own(self) -> bool:
        """Whether this process has something in it."""
        with self._mutex:
            return bool(self._own_segments())

    def _own_segments(self) -> list[Path]:
        segments = [] if self._writer is None else self._writer.segments()
        return [path for path in segments if path not in self._unreadable]

    def append(self, events: Sequence[Event]) -> int:
        """Write events that memory held, and sync them to disk; gives how many fitted.

        Raises
        ------
        IoError
            If the folder cannot be written.
        """
        with self._mutex:
            written, size = self._write(self._front, events)
            if size >= self._config.spool_segment_bytes and self._front == self._newest:
                self._front = self._newest = self._newest + 1
            return written

    def append_behind(self, events: Sequence[Event]) -> int:
        """Write events that are newer than those that memory still holds; otherwise as `append`."""
        with self._mutex:
            if self._newest == self._front:
                self._newest += 1
            written, size = self._write(self._newest, events)
            if size >= self._config.spool_segment_bytes:
                self._newest += 1
            return written

    def _write(self, number: int, events: Sequence[Event]) -> tuple[int, int]:
        """Append to a segment; how many events fitted, and how large it is now."""
        if not events:
            return 0, 0
        try:
            room = self._config.spool_max_bytes - usage(self._folder.parent, self._key).bytes
            if room <= 0:
                return 0, 0
            if self._writer is not None and not self._writer.folder.exists():
                self._writer.release()  # somebody deleted it, and what was in it
                self._writer = None
            if self._writer is None:
                self._writer = SpoolWriter.create(self._folder)
            with open(self._writer.segment(number), "ab", buffering=0) as file:
                return self._write_to(file.fileno(), events, room)
        except OSError as cause:
            raise IoError(
                f"the spool cannot be written ({cause}): make {self._folder} writable, or choose another SONA_HOME"
            ) from cause

    def _write_to(self, file: int, events: Sequence[Event], room: int) -> tuple[int, int]:
        begin = end = os.fstat(file).st_size
        is_new, written = begin == 0, 0
        try:
            if is_new:
                end += _put(file, HEADER.pack(MAGIC, VERSION, time.time(), self._key.bytes))
            for event in events:
                record = encode(event)
                if end + len(record) - begin > room:
                    break
                _put(file, record)
                end += len(record)
                written += 1
        except OSError as error:
            # A full disk takes the beginning of a record: what fitted stays, the rest is the caller's.
            log.error("the spool %s takes no more: %s", self._folder, error)
            if not written:
                os.ftruncate(file, begin)
                raise
            os.ftruncate(file, end)
        if not written:
            os.ftruncate(file, begin)
            return 0, begin
        os.fsync(file)
        if is_new and self._writer is not None:
            self._writer.sync()
        return written, end

    # Replaying -------------------------------------------------------------------------------------------------

    def take(self, limit: int, *, up_to_front: bool = False) -> SpoolBatch | None:
        """Up to `limit` of the oldest events that are not confirmed; None if there are none.

        Parameters
        ----------
        limit
            Most events.
        up_to_front
            Stop before what `append_behind` has written: memory holds what is older.

        Raises
        ------
        IoError
            If a file cannot be read.
        """
        with self._mutex:
            try:
                while self._reading is not None or self._next_segment(up_to_front):
                    try:
                        batch = self._read(limit)
                    except FileNotFoundError:
                        self._reading = None  # somebody deleted it
                        continue
                    if batch.events or batch.problems:
                        return batch
                    self._confirm(batch)
            except OSError as cause:
                raise IoError(f"the spool {self._folder} cannot be read: {cause}") from cause
        return None

    def confirm(self, batch: SpoolBatch) -> None:
        """The database has this batch: it is not replayed again, and a segment that is done is deleted."""
        with self._mutex:
            try:
                self._confirm(batch)
            except OSError as cause:
                raise IoError(f"the spool {self._folder} cannot be shortened: {cause}") from cause

    def _confirm(self, batch: SpoolBatch) -> None:
        reading = self._reading
        assert reading is not None, "a batch is confirmed once, after it was taken"
        reading.confirmed = batch._end
        reading.is_damaged |= batch._is_damaged
        if reading.path in self._unreadable:
            self._reading = None
        # It may have grown since it was read.
        elif not reading.path.exists() or reading.path.stat().st_size <= batch._end:
            self._reading = None
            if reading.is_damaged:
                # People may still find something in it.
                reading.path.rename(self._folder / f"damaged-{reading.path.parent.name}-{reading.path.stem}")
            else:
                reading.path.unlink(missing_ok=True)

    def _next_segment(self, up_to_front: bool) -> bool:
        """Turn to the oldest segment: of dead processes, then of this one."""
        if self._adopted is None:
            self._adopted = self._adopt()
        while self._adopted is not None:
            for path in self._adopted.segments():
                if path not in self._unreadable:
                    self._reading = _Reading(path)
                    return True
            self._unreadable.add(self._adopted.folder)
            self._adopted.close()
            self._adopted = self._adopt()
        own = self._own_segments()
        if not own or (up_to_front and self._writer is not None and own[0] > self._writer.segment(self._front)):
            return False
        self._reading = _Reading(own[0])
        return True

    def _adopt(self) -> SpoolWriter | None:
        mine = None if self._writer is None else self._writer.folder
        for folder in writers_in(self._folder):
            if folder != mine and folder not in self._unreadable:
                found = SpoolWriter.adopt(folder)
                if found is not None:
                    return found
        return None

    def _read(self, limit: int) -> SpoolBatch:
        reading = self._reading
        assert reading is not None
        with _mapped(reading.path) as data:
            if not reading.confirmed:
                found = self._check_header(reading.path, data)
                if found is not None:
                    self._unreadable.add(reading.path)
                    return SpoolBatch([], [found], begun_at(data), 0, False)
            events: list[Event] = []
            problems: list[str] = []
            begin = end = max(reading.confirmed, HEADER.size)
            is_damaged = False
            for record in read_from(data, begin):
                end = record.end
                if record.event is None:
                    is_damaged |= not record.is_torn
                    what = "were being written when the process died" if record.is_torn else "are damaged"
                    problems.append(f"the last of {end} bytes in the spool {reading.path}, {record.skipped}, {what}")
                else:
                    events.append(record.event)
                if len(events) >= limit or end - begin >= _BATCH_BYTES:
                    break
            return SpoolBatch(events, problems, begun_at(data), end, is_damaged)

    def _check_header(self, path: Path, data: memoryview) -> str | None:
        if len(data) < HEADER.size:
            return None  # the process died before there was anything in it
        magic, version, _, key = HEADER.unpack_from(data)
        if magic != MAGIC:
            return f"{path} is no spool: remove it"
        if version != VERSION:
            return f"the spool {path} is of version {version}, expected {VERSION}: use the sona-pg that wrote it"
        if key != self._key.bytes:
            return f"the spool {path} belongs to the space {uuid.UUID(bytes=key)}: put it into that folder"
        return None

    # The rest --------------------------------------------------------------------------------------------------

    def usage(self) -> SpoolUsage:
        """What all processes of this machine hold for the space."""
        return usage(self._folder.parent, self._key)

    def close(self) -> None:
        """Let go: what is left is adopted by the next process that opens the space."""
        with self._mutex:
            for writer in (self._adopted, self._writer):
                if writer is not None:
                    writer.close()
            self._adopted = self._writer = self._reading = None


def _put(file: int, data: bytes) -> int:
    """Write all of it; a write may take a part."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
    return len(data)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            yield memoryview(b"")
            return
        # Nobody closes it: an exception on its way may hold parts of it, and would be replaced by one that says so.
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    yield view
