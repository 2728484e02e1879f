"""Workers of loops: what three of them cost while there is nothing to do, and how late 100 spaces are served by one.

The rival of an idle worker is a process that asks the database for nothing as often as a worker looks. The figures are
microseconds of processor time in a second, of the process and of its server backends apart; KiB of memory; and
microseconds from when a cycle was due to when it began, while one space of the hundred fails every time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.harness import Row, row
from benchmarks.postgres import benchmark_engine
from sona_pg.config import ScheduleConfig, StoreConfig, WorkerConfig
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.cycle import Loop, Phase
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database

SPACES = 100
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024

_POLLER = """
import sys, time
import numpy, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    print(flush=True)
    while True:
        connection.execute("SELECT 1")
        time.sleep(float(sys.argv[2]))
"""


def _compute(space: str, _: object) -> int:
    if space == f"{_SPACE}0":
        raise ValueError("the space is poisonous")
    return 1


_SPACE = "sona-benchmark-loops-"


def _loop(name: str, schedule: ScheduleConfig) -> Loop:
    """A loop that does nothing, and fails in the first space."""
    phase = Phase("nothing", lambda _, cycle: cycle.space.name, _compute, lambda *_: {})
    return Loop(name, schedule, (phase,))


def run(*, quick: bool) -> list[Row]:
    """Idle for a minute, and due for two; with --quick for 10 s and 20 s."""
    with benchmark_engine(8) as engine, connect(engine.url) as connection, _spaces(connection):
        return [*_idle(engine.url, 10 if quick else 60), _lateness(engine.url, connection, 20 if quick else 120)]


@contextmanager
def _spaces(connection: Connection) -> Iterator[None]:
    for number in range(SPACES):
        connection.execute("SELECT sona.create_space(%s, 8)", (f"{_SPACE}{number}",))
    try:
        yield
    finally:
        for number in range(SPACES):
            connection.execute("SELECT sona.drop_space(%s)", (f"{_SPACE}{number}",))


def _idle(url: str, seconds: float) -> Iterator[Row]:
    poll = WorkerConfig().poll_interval_seconds
    rival = subprocess.Popen([sys.executable, "-c", _POLLER, url, str(poll)], stdout=subprocess.PIPE)
    workers = [subprocess.Popen([sys.executable, "-m", "sona_pg", "worker", "instant", "--url", url])]
    workers += [subprocess.Popen([sys.executable, "-m", "benchmarks.loops", url, f"idle-{n}"]) for n in range(2)]
    try:
        assert rival.stdout is not None
        rival.stdout.readline()
        time.sleep(5)  # what they do once at their start is not their idling
        with connect(url) as connection:
            found = connection.execute("SELECT backend FROM sona.workers").fetchall()
        pids = [process.pid for process in (*workers, rival)] + [pid for (pid,) in found if _is_here(pid)]
        began = [_ticks(pid) for pid in pids]
        time.sleep(seconds)
        spent = [(_ticks(pid) - before) / _TICKS / seconds * 1e6 for pid, before in zip(pids, began, strict=True)]
        resident = [_resident_kib(process.pid) for process in (*workers, rival)]
    finally:
        for process in (*workers, rival):
            process.send_signal(signal.SIGTERM)
            process.wait()
    params: dict[str, int | float | str] = {"spaces": SPACES, "poll_seconds": poll}
    yield row(
        "three idle workers, together", params, np.array([sum(spent[:3])]), "a poller alone", np.array([spent[3]])
    )
    if len(pids) == 7:  # the server is on this machine
        backends = np.array([sum(spent[4:])])
        yield row("their server backends, together", params, backends, "a poller alone", np.array([spent[3]]))
    above = np.array(resident[:3]) - resident[3]
    yield row("an idle worker, KiB over it", params, above, "a poller, with NumPy", np.array([resident[3]]))


def _is_here(pid: int) -> bool:
    """Whether a server backend is a process of this machine."""
    try:
        with open(f"/proc/{pid}/comm", encoding="ascii") as name:
            return name.read().startswith("postgres")
    except OSError:
        return False


def _ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _resident_kib(pid: int) -> float:
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return float(statm.read().split()[1]) * _PAGE_KIB


def _lateness(url: str, connection: Connection, seconds: float) -> Row:
    """How long after it was due a cycle began, one worker for all spaces."""
    loop = _loop("due", ScheduleConfig(every_seconds=5.0))
    coordinator = LoopCoordinator(Database(url, StoreConfig()), loop, WorkerConfig(set_aside_after=1_000_000))
    stop = threading.Event()
    thread = threading.Thread(target=coordinator.run, args=(stop,))
    thread.start()
    time.sleep(seconds)
    stop.set()
    thread.join()
    coordinator.close()
    late = [
        lateness
        for (lateness,) in connection.execute(
            "SELECT extract(epoch FROM r.started_at - lag(r.finished_at) OVER w)::float8 - 5.0"
            " FROM sona.loop_run r JOIN sona.space s USING (space_id) WHERE r.loop = 'due' AND s.name <> %s"
            " WINDOW w AS (PARTITION BY r.space_id ORDER BY r.run_id)",
            (f"{_SPACE}0",),
        ).fetchall()
        if lateness is not None
    ]
    params: dict[str, int | float | str] = {"spaces": SPACES, "every_seconds": 5, "cycles": len(late)}
    poll = np.array([WorkerConfig().poll_interval_seconds * 1e6])
    return row("from due to begun, one space poisonous", params, np.array(late) * 1e6, "a poll interval", poll)


def main() -> None:
    """A worker of a loop that is never due."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    loop = _loop(sys.argv[2], ScheduleConfig(every_seconds=86_400.0))
    coordinator = LoopCoordinator(Database(sys.argv[1], StoreConfig()), loop)
    coordinator.run(stop)
    coordinator.close()


if __name__ == "__main__":
    main()
