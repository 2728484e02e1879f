"""The processes of `sona worker all`: none is left behind, and none is started in a frenzy."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from sona_pg.errors import LearningError
from sona_pg.supervisor import Supervisor, _Child

_LIVES = "import time; time.sleep(600)"
_IS_KILLED = "import os; os.kill(os.getpid(), 9)"
_IS_REFUSED = "raise SystemExit(1)"


class _Scripted(Supervisor):
    """Starts scripts instead of workers: for each loop the next, the last one again and again."""

    def __init__(self, scripts: dict[str, list[str]], age_seconds: float) -> None:
        super().__init__(dict.fromkeys(scripts, ()), 1.0)
        self._scripts, self._age_seconds = scripts, age_seconds
        self.started: list[subprocess.Popen[bytes]] = []

    def _start(self, loop: str) -> _Child:
        scripts = self._scripts[loop]
        script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        process = subprocess.Popen([sys.executable, "-c", script])
        if script != _LIVES:
            process.wait()  # dead at the first look
        self.started.append(process)
        return _Child(loop, process, time.monotonic() - self._age_seconds * (script == _IS_KILLED))


def test_nobody_is_left_behind_when_another_is_refused() -> None:
    supervisor = _Scripted({"a": [_IS_KILLED, _LIVES], "b": [_IS_REFUSED]}, age_seconds=3600.0)
    with pytest.raises(LearningError, match="the b worker"):
        supervisor.run(threading.Event())
    alive = [process for process in supervisor.started if process.poll() is None]
    for process in alive:
        process.kill()
    assert len(supervisor.started) == 3
    assert not alive


def test_who_is_killed_at_every_start_is_not_started_in_a_frenzy() -> None:
    supervisor, stop = _Scripted({"a": [_IS_KILLED]}, age_seconds=0.0), threading.Event()
    timer = threading.Timer(3.0, stop.set)
    timer.start()
    supervisor.run(stop)
    assert len(supervisor.started) == 1
