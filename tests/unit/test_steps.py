"""Steps at which a test may kill: registered in one place, each reached at one place, and nothing happens unasked."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import sona_pg
from sona_pg import steps
from sona_pg.errors import ConfigError

PACKAGE = Path(sona_pg.__file__).parent
REGISTERED = [name for names in steps.STEPS.values() for name in names]


def test_what_is_registered_is_reached_at_one_place_and_nothing_else() -> None:
    calls = [
        node.args[0]
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", None)) == "reached"
    ]
    assert Counter(call.value for call in calls if isinstance(call, ast.Constant)) == Counter(REGISTERED)
    assert len(calls) == len(REGISTERED) == len(set(REGISTERED))


def test_it_kills_when_the_step_is_reached_for_that_time() -> None:
    reach = "from sona_pg.steps import FLUSH, reached\nfor turn in range(3):\n    print(turn)\n    reached(FLUSH[1])"
    environment = {**os.environ, steps.ENV_KILL_AT: f"{steps.FLUSH[1]}:2"}
    done = subprocess.run([sys.executable, "-u", "-c", reach], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == [b"0", b"1"]


@pytest.mark.parametrize("aim", ["flush.nowhere", "flush.after_lock:soon", "flush.after_lock:-1", ":1"])
def test_an_aim_that_would_never_be_met_is_refused(aim: str) -> None:
    with pytest.raises(ConfigError, match="expected a step"):
        steps._killer(aim)


def test_nothing_is_aimed_at_unasked() -> None:
    assert steps._killer(None) is None
    assert steps._killer("") is None
