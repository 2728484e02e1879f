"""Signals that end a worker."""

from __future__ import annotations

import subprocess
import sys

_INTERRUPTED = """
import os, signal
from sona_pg.signals import stop_at_signals
stop = stop_at_signals(None)
with stop._cond:  # as inside of stop.wait()
    os.kill(os.getpid(), signal.SIGTERM)
assert stop.wait(10)
"""


def test_a_signal_that_interrupts_the_wait_for_it_ends_it() -> None:
    assert subprocess.run([sys.executable, "-c", _INTERRUPTED], timeout=60, check=False).returncode == 0
