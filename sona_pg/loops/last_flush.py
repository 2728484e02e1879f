"""The flush of an engine that closes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from sona_pg.loops.instant import InstantLoop

LOOK_SECONDS = 0.5
"""Time between two looks whether a flush hangs."""


class LastFlush:
    """The flush of an engine that closes, in a thread: a database that hangs must not keep the process from ending."""

    def __init__(self, loop: InstantLoop, before: Sequence[threading.Thread], after: Callable[[], None]) -> None:
        self._loop, self._before, self._after = loop, before, after
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._parting = threading.Lock()
        self._is_left = False
        thread = threading.Thread(target=self._run, name="sona-last-flush", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._run()  # the interpreter shuts down, and lets no thread begin any more

    def _run(self) -> None:
        try:
            for thread in self._before:
                thread.join()
            self._loop.flush_updates()
        except BaseException as error:
            self._error = error
        with self._parting:
            self._ended.set()
            if self._is_left:
                self._after()

    def wait(self) -> bool:
        """Wait for its end; False if the database hangs, and everything is on disk: then it ends by itself."""
        while not self._ended.wait(LOOK_SECONDS):
            self._loop.spill()
            if self._loop.is_safe:
                with self._parting:
                    self._is_left = not self._ended.is_set()
                    return not self._is_left
        return True

    def check(self) -> None:
        """Raise what it has raised."""
        if self._error is not None:
            raise self._error
