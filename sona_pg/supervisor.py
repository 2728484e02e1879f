"""``sona worker all``: a process for each loop, started again when it dies."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sona_pg.errors import LearningError

log = logging.getLogger("sona_pg")

_LOOK_SECONDS = 0.5
"""Time between two looks whether all live."""

_SOON_SECONDS = 5.0
"""Whoever ends by itself so soon after its start ends so again: it is refused something, and has said what. Whoever is
killed so soon is started again after this time."""


@dataclass(slots=True)
class _Child:
    loop: str
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)


class Supervisor:
    """Keeps a worker process for each loop.

    Parameters
    ----------
    workers
        By name of the loop, as in `sona worker NAME`, the options that its worker is started with.
    drain_seconds
        How long a worker may take to end, by itself.
    environment
        Variables that workers see besides their own: what is a secret does not stand in the list of processes.
    """

    def __init__(
        self, workers: Mapping[str, Sequence[str]], drain_seconds: float, environment: Mapping[str, str] | None = None
    ) -> None:
        self._workers, self._drain_seconds = workers, drain_seconds
        self._environment = {**os.environ, **(environment or {})}
        self._children: list[_Child] = []

    def run(self, stop: threading.Event) -> None:
        """Keep them alive until `stop` is set, then let them end.

        Raises
        ------
        LearningError
            If one ends by itself soon after it was started.
        """
        try:
            # One by one: whoever is started is in the list, and ended with the others whatever happens next.
            for loop in self._workers:
                self._children.append(self._start(loop))
            while not stop.wait(_LOOK_SECONDS):
                for place, child in enumerate(self._children):
                    self._children[place] = self._replaced(child)
        finally:
            self._end()

    def _start(self, loop: str) -> _Child:
        # A group of its own: an interrupt from the keyboard comes to the children by this process alone, and once.
        command = [sys.executable, "-m", "sona_pg", "worker", loop, *self._workers[loop]]
        return _Child(loop, subprocess.Popen(command, start_new_session=True, env=self._environment))

    def _replaced(self, child: _Child) -> _Child:
        status = child.process.poll()
        if status is None:
            return child
        if time.monotonic() - child.started < _SOON_SECONDS:
            if status <= 0:
                return child  # and is started again then: what dies at its start would keep a core busy with starting
            raise LearningError(
                f"the {child.loop} worker ended with status {status} as soon as it was started: see what it said above"
            )
        log.error("the %s worker has died with status %d and is started again", child.loop, status)
        return self._start(child.loop)

    def _end(self) -> None:
        for child in self._children:
            child.process.terminate()
        deadline = time.monotonic() + self._drain_seconds + _SOON_SECONDS
        for child in self._children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
