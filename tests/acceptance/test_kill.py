"""Processes that are really killed: what a flush confirmed is there, once, and the weights are those of the ledger."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest

from sona_pg import SonaEngine
from sona_pg.store.server import EmbeddedServer

DIM = 24

RECORDER = """
import sys, uuid
import numpy as np
from pathlib import Path
from sona_pg import SonaEngine
home, first = Path(sys.argv[1]), int(sys.argv[2])
engine = SonaEngine.connect(home=home, space="kill", dim=24, background=False)
event = first
while True:
    rng = np.random.default_rng(event)
    query, items = rng.standard_normal((2, 24)).astype(np.float32), rng.standard_normal((3, 24)).astype(np.float32)
    builder = engine.start(query[0])
    builder._id = uuid.UUID(int=event)
    for place, item in enumerate(items):
        builder.add_step(item, [0.1], float(place == 1), item_id=str(event % 7 + place), position=place + 1)
    engine.record(builder)
    event += 1
    if event % 5 == 0:
        engine.flush()
        print(event - 1, flush=True)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    made = EmbeddedServer(tmp_path)
    made.start()
    yield made
    made.remove()


def _run_and_kill(home: Path, first: int, seconds: float) -> int:
    """Record until killed; the last event whose flush was confirmed."""
    process = subprocess.Popen(
        [sys.executable, "-c", RECORDER, str(home), str(first)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    confirmed = [process.stdout.readline()]  # it is up, and has flushed once
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    confirmed += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    return int(next(line for line in reversed(confirmed) if line.endswith("\n")))


def test_recorders_killed_at_random_moments_lose_and_double_nothing(tmp_path: Path, server: EmbeddedServer) -> None:
    rng = np.random.default_rng()
    confirmed: set[int] = set()
    for run in range(6):
        first = run * 1_000_000
        confirmed.update(range(first, _run_and_kill(tmp_path, first, float(rng.uniform(0, 0.3))) + 1))
    with psycopg.connect(server.url) as connection:
        ledger = connection.execute(
            "SELECT trajectory_id, ordinal FROM sona.learning_event ORDER BY ordinal"
        ).fetchall()
        recorded = {row[0].int for row in connection.execute("SELECT trajectory_id FROM sona.trajectory").fetchall()}
        state = connection.execute("SELECT state, events FROM sona.learner").fetchone()
    learned = [row[0].int for row in ledger]
    assert confirmed <= set(learned)
    assert len(learned) == len(set(learned))
    assert set(learned) == recorded
    assert [row[1] for row in ledger] == list(range(len(ledger)))
    assert state is not None
    assert state[1] == len(learned)
    # A replay of the ledger gives the stored weights, bit for bit.
    with SonaEngine.connect(home=tmp_path, space="replay", dim=DIM, background=False) as replay:
        for event in learned:
            draws = np.random.default_rng(event)
            query = draws.standard_normal((2, DIM)).astype(np.float32)[0]
            items = draws.standard_normal((3, DIM)).astype(np.float32)
            builder = replay.start(query)
            builder._id = uuid.UUID(int=event)
            for place, item in enumerate(items):
                builder.add_step(item, [0.1], float(place == 1), item_id=str(event % 7 + place), position=place + 1)
            replay.record(builder)
            replay.learn()
        assert replay.instant.learner.to_bytes() == bytes(state[0])


def test_a_server_that_is_killed_while_recording_loses_nothing_that_was_confirmed(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RECORDER, str(tmp_path), "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    confirmed = [process.stdout.readline()]
    time.sleep(0.3)
    pid = server.status().pid
    assert pid is not None
    subprocess.run(["kill", "-9", str(pid)], check=True)
    confirmed += process.stdout.readlines()  # the recorder ends with an error: its flush failed
    assert process.wait() == 1
    process.stdout.close()
    server.start()
    with psycopg.connect(server.url) as connection:
        learned = [row[0].int for row in connection.execute("SELECT trajectory_id FROM sona.learning_event").fetchall()]
    assert set(range(int(confirmed[-1]) + 1)) <= set(learned)
    assert len(learned) == len(set(learned))
