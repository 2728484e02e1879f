"""Chaos for the cycles of a slow loop, whichever it is: workers are killed at every step of every phase, and at random
moments, while others stand by; their connections are cut and the server is stopped while they work.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import psycopg

from sona_pg.loops.cycle import Loop
from sona_pg.steps import CYCLE, ENV_KILL_AT
from sona_pg.store import schedules
from sona_pg.store.connection import Connection, connect
from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer

from .servers import stop_without_warning

PATIENCE_SECONDS = 120
"""After so long without what is waited for, the run is given up: something hangs."""

OF_PHASES = CYCLE[CYCLE.index("cycle.after_read") : CYCLE.index("cycle.after_commit") + 1]

RANDOM, CUT, STOPPED = "a random moment", "connection cut", "server stopped"


def aims_of(loop: Loop) -> list[tuple[str, str]]:
    """What kills a worker at every step of every phase of its first cycle, and how it is called."""
    return [
        (f"{step}:{time}", f"{step} of phase {phase.name}" if step in OF_PHASES else step)
        for step in CYCLE
        for time, phase in enumerate(loop.phases, 1)
        if step in OF_PHASES or time == 1
    ]


class CycleChaos(ABC):
    """Spaces in which there is something to learn, workers that are killed, and others that stand by.

    Parameters
    ----------
    home
        Folder of an embedded server of its own.
    seed
        Of the random moments.
    """

    loop: Loop
    """The loop whose cycles they are."""

    dim = 2
    """Of the spaces."""

    def __init__(self, home: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self._log = home / "workers.log"
        self._server = EmbeddedServer(home)
        self.url = self._server.start()
        migrate(self.url)
        self._connection: Connection = connect(self.url)
        self.spaces: list[int] = []
        for number in range(3):
            row = self._connection.execute("SELECT sona.create_space(%s, %s)", (f"space {number}", self.dim)).fetchone()
            assert row is not None
            self.spaces.append(row[0])
        schedules.ensure_schedules(self._connection, self.loop.name, self.loop.schedule)
        self.kills: dict[str, int] = defaultdict(int)
        self.takeovers: dict[str, list[float]] = defaultdict(list)
        self.violations: list[str] = []
        self._workers: list[subprocess.Popen[bytes]] = []

    # What differs from loop to loop ---------------------------------------------------------------------------

    @abstractmethod
    def command(self) -> list[str]:
        """Starts a worker of the loop."""

    @abstractmethod
    def grow(self) -> None:
        """Make something more to learn, and sometimes ask for a cycle."""

    @abstractmethod
    def drain(self) -> None:
        """Have everything learned that there is; all others are dead."""

    @abstractmethod
    def wrong(self, space_id: int) -> Iterator[str]:
        """What is wrong in a space once everything is learned."""

    def wrong_now(self, space_id: int) -> Iterator[str]:
        """What is wrong in a space at any moment; looked for after every kill."""
        yield from ()

    def take_time(self, seconds: float) -> None:  # noqa: B027 - real loops cannot be told
        """Let every computation take so long, if the loop can be told to."""

    # What is done ---------------------------------------------------------------------------------------------

    def start_worker(self, **environment: str) -> subprocess.Popen[bytes]:
        """A worker of the loop."""
        return self.start(self.command(), **environment)

    def start(self, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        """A process that is killed at the end, if not before."""
        with self._log.open("ab") as log:
            worker = subprocess.Popen(command, stderr=log, env={**os.environ, **environment})
        self._workers.append(worker)
        return worker

    def kill_at(self, aim: str, name: str, victims: int) -> None:
        """So many, one after the other, that kill themselves at a step."""
        for _ in range(victims):
            self._await_death(name, self.start_worker(**{ENV_KILL_AT: aim}))

    def kill_at_random(self, victims: int) -> None:
        """So many at once, each at any moment of its life, the start included."""
        doomed = {time.monotonic() + self._random.uniform(0.0, 3.0): self.start_worker() for _ in range(victims)}
        for moment, victim in sorted(doomed.items(), key=lambda pair: pair[0]):
            self._until(lambda moment=moment: time.monotonic() >= moment, "the moment to kill")  # type: ignore[misc]
            victim.kill()
            self._await_death(RANDOM, victim)

    def cut(self) -> None:
        """Cut the connection of whoever is in the middle of a cycle, while it computes."""
        self.take_time(0.3)
        self._until(lambda: self._at_work() is not None, "a worker at work")
        backend = self._at_work()
        at = datetime.now(UTC)
        self._connection.execute("SELECT pg_terminate_backend(%s, 10000)", (backend,))
        self.take_time(0.0)
        self.kills[CUT] += 1
        self._note_takeover(CUT, at, "nobody")

    def stop_server(self) -> None:
        """Stop the server without warning while a worker computes, and start it again."""
        self.take_time(0.3)
        self._until(lambda: self._at_work() is not None, "a worker at work")
        stop_without_warning(self._server)
        self._connection.close()
        self._server.start()
        at = datetime.now(UTC)
        self._connection = connect(self.url)
        self.take_time(0.0)
        self.kills[STOPPED] += 1
        self._note_takeover(STOPPED, at, "nobody")

    def _at_work(self) -> int | None:
        row = self._connection.execute("SELECT backend FROM sona.workers WHERE run_id IS NOT NULL LIMIT 1").fetchone()
        return None if row is None else int(row[0])

    def _await_death(self, name: str, victim: subprocess.Popen[bytes]) -> None:
        self._until(lambda: victim.poll() is not None, f"death at {name}")
        at = datetime.now(UTC)
        if victim.returncode != -9:
            said = self._log.read_text()[-2000:]
            raise AssertionError(f"a worker to be killed at {name} ended with {victim.returncode}\n{said}")
        self.kills[name] += 1
        self._note_takeover(name, at, f":{victim.pid}")

    def _note_takeover(self, name: str, at: datetime, dead: str) -> None:
        """How long until another has claimed a cycle."""

        def first_claim() -> float | None:
            row = self._connection.execute(
                "SELECT extract(epoch FROM min(claimed_at) - %(at)s)::float8 FROM sona.loop_run"
                " WHERE claimed_at > %(at)s AND worker NOT LIKE '%%' || %(dead)s",
                {"at": at, "dead": dead},
            ).fetchone()
            return None if row is None else row[0]

        self._until(lambda: first_claim() is not None, f"another worker after {name}")
        seconds = first_claim()
        assert seconds is not None
        self.takeovers[name].append(seconds)
        for space_id in self.spaces:
            self.violations += [f"{name}: {wrong}" for wrong in self.wrong_now(space_id)]

    def _until(self, reached: Callable[[], bool], what: str) -> None:
        """The ledgers grow as long as anybody waits for something."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not reached():
            if time.monotonic() > deadline:
                said = self._log.read_text()[-2000:]
                raise AssertionError(f"after {PATIENCE_SECONDS} s, still waiting for {what}\n{said}")
            self.grow()
            time.sleep(0.02)

    def settle(self) -> list[str]:
        """End all, do what is left, and look for what is missing or there twice; gives what is wrong."""
        self.close_workers()
        self.drain()
        for space_id in self.spaces:
            self.violations += [f"the end: {wrong}" for wrong in self.wrong(space_id)]
        return self.violations

    def close_workers(self) -> None:
        """Kill what lives."""
        for worker in self._workers:
            worker.kill()
            worker.wait()

    def close(self) -> None:
        """Kill what lives, and stop the server."""
        self.close_workers()
        self._connection.close()
        self._server.remove()

    def report(self) -> str:
        """A row for every step."""
        lines = [f"{'killed at':40} {'kills':>6} {'takeover median':>16} {'worst':>9}"]
        for name, kills in self.kills.items():
            taken = self.takeovers[name]
            lines.append(f"{name:40} {kills:6} {median(taken) * 1e3:13.0f} ms {max(taken) * 1e3:6.0f} ms")
        every = [seconds for taken in self.takeovers.values() for seconds in taken]
        lines.append(f"{'all':40} {len(every):6} {median(every) * 1e3:13.0f} ms {max(every) * 1e3:6.0f} ms")
        return "\n".join(lines)


@contextmanager
def chaos_in(kind: type[CycleChaos], home: Path, seed: int) -> Iterator[CycleChaos]:
    """A chaos with two workers that survive."""
    chaos = kind(home, seed)
    try:
        chaos.start_worker()
        chaos.start_worker()
        yield chaos
    finally:
        chaos.close()


def run(
    kind: type[CycleChaos],
    home: Path,
    *,
    seed: int,
    at_step: int,
    at_random: int,
    cuts: int,
    stops: int,
    every: int = 1,
) -> tuple[str, list[str], int]:
    """The whole: `at_step` workers at each step of each phase, or at every third, say; `at_random` at random moments.

    Returns
    -------
    report, violations, kills
    """
    with chaos_in(kind, home, seed) as chaos:
        for aim, name in aims_of(kind.loop)[::every]:
            chaos.kill_at(aim, name, at_step)
        chaos.kill_at_random(at_random)
        for _ in range(cuts):
            chaos.cut()
        for _ in range(stops):
            chaos.stop_server()
        wrong = chaos.settle()
        kills = sum(n for name, n in chaos.kills.items() if name not in (CUT, STOPPED))
        return chaos.report(), wrong, kills


def main(kind: type[CycleChaos], *, at_step: int, at_random: int, cuts: int, stops: int) -> None:
    """The full form; ends with 1 on any violation."""
    parser = argparse.ArgumentParser(description=kind.__doc__)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    seed = parser.parse_args().seed
    print(f"chaos of {kind.loop.name} cycles with --seed {seed}, psycopg {psycopg.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report, wrong, kills = run(
            kind, Path(folder), seed=seed, at_step=at_step, at_random=at_random, cuts=cuts, stops=stops
        )
    print(report, f"\n{kills} workers killed", flush=True)
    for violation in wrong:
        print(f"violation: {violation}")
    sys.exit(bool(wrong))
