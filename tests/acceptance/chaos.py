"""Chaos for the loops: recorders and workers are killed at every named step of the flush, and at random moments, while
others go on; the server is stopped without warning in the middle of a flush.

``python -m tests.acceptance.chaos`` runs the full form and exits with 1 on any violation; the tests run a short one.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from uuid import UUID

import numpy as np

from sona_pg import DatabaseUnavailable, SonaEngine, StoreConfig
from sona_pg.config import SCHEMA_REVISION
from sona_pg.steps import ENV_KILL_AT, EVIDENCE, FLUSH
from sona_pg.store.connection import Connection, connect, translated
from sona_pg.store.database import Database
from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer
from sona_pg.worker import InstantWorker

from . import recorder
from .audit import Audit, Confirmed, audit, replayed
from .servers import stop_without_warning
from .weighing import weigh_again, weighed

SPACE, DIM = "chaos", 16
PATIENCE_SECONDS = 120
"""After so long without what is waited for, the run is given up: something hangs."""
RANDOM = "a random moment"
STOPPED = "server stopped"


@dataclass(slots=True)
class Tally:
    """What happened to the processes that were killed at one step."""

    recorders: int = 0
    workers: int = 0
    servers: int = 0
    audit: Audit = field(default_factory=Audit)
    killed_at: list[tuple[datetime, str]] = field(default_factory=list)


@dataclass(slots=True)
class Run:
    """A recorder, from its start to its end."""

    first: int
    process: subprocess.Popen[str]
    confirmed: Path

    def lines(self) -> list[str]:
        """What it has written, in whole lines."""
        text = self.confirmed.read_text() if self.confirmed.exists() else ""
        return text[: text.rfind("\n") + 1].split()

    @property
    def last(self) -> int:
        """Number of the last event that a flush confirmed; -1 before the first."""
        numbers = [int(line) for line in self.lines() if line.isdecimal()]
        return numbers[-1] if numbers else -1


class Chaos:
    """One space, what lives in it, and what was killed.

    Parameters
    ----------
    home
        Folder of an embedded server of its own, and of what recorders confirm.
    seed
        Of the random moments.
    """

    def __init__(self, home: Path, seed: int) -> None:
        self._home = home
        self._random = random.Random(seed)
        self.server = EmbeddedServer(home)
        self.url = self.server.start()
        migrate(self.url)
        self.tallies: dict[str, Tally] = {}
        self._runs: list[Run] = []
        self._workers: list[subprocess.Popen[str]] = []
        self._sent: set[int] = set()
        self._connection: Connection = connect(self.url)
        rows = np.random.default_rng(0).standard_normal((40, DIM)).astype(np.float32)
        self._connection.execute(f"CREATE TABLE public.items (id integer PRIMARY KEY, embedding vector({DIM}))")
        for id, row in enumerate(rows):
            self._connection.execute("INSERT INTO public.items VALUES (%s, %s)", (id, row))
        with SonaEngine.connect(self.url, space=SPACE, dim=DIM, background=False) as engine:
            engine.set_items("public.items", "id", "embedding")
            self._space = engine.space

    # What lives -----------------------------------------------------------------------------------------------

    def start_recorder(self, **environment: str) -> Run:
        """A recorder of its own run of events."""
        number = len(self._runs) + 1  # the SQL client's is 0
        confirmed = self._home / f"confirmed-{number}"
        command = [sys.executable, recorder.__file__, self.url, SPACE, str(number), str(confirmed)]
        started = Run(number * recorder.EVENTS_OF_A_RUN, self._start(command, environment), confirmed)
        self._runs.append(started)
        return started

    def start_worker(self, **environment: str) -> subprocess.Popen[str]:
        """A `sona worker instant` that looks for work all the time."""
        command = [sys.executable, "-m", "sona_pg", "worker", "instant", "--poll-interval", "0.01", "--url", self.url]
        command += ["--exact-search-rows", str(recorder.EXACT_SEARCH_ROWS)]
        self._workers.append(self._start(command, environment))
        return self._workers[-1]

    def _start(self, command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        # Workers and recorders complain while the server is away, as they should.
        log = (self._home / "processes.log").open("a")
        with log:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "SONA_HOME": str(self._home), **environment},
            )

    def _until(self, reached: Callable[[], bool], what: str) -> None:
        """Go on recording by SQL until something is so: workers have work while anybody waits for them."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not reached():
            if time.monotonic() > deadline:
                log = (self._home / "processes.log").read_text()[-2000:]
                raise AssertionError(f"after {PATIENCE_SECONDS} s, still waiting for {what}\n{log}")
            self._send()
            time.sleep(0.03)

    def _send(self) -> None:
        """As an SQL client: a trajectory, and a late score of an earlier one."""
        id = len(self._sent)
        rng = np.random.default_rng(id)
        query = rng.standard_normal(DIM).astype(np.float32)
        shown = [str(item) for item in rng.choice(40, 3, replace=False)]
        try:
            if self._connection.closed:
                self._connection = connect(self.url)
            with translated(), self._connection.transaction():
                self._connection.execute(
                    "SELECT sona.record(%s, %s, %s, %s, trajectory_id => %s)",
                    (SPACE, query, shown, [1.0, 0.0, None] if id % 3 else None, UUID(int=id)),
                )
                if id - recorder.SCORE_DELAY in self._sent:
                    self._connection.execute(
                        "SELECT sona.score(%s, %s, %s)", (UUID(int=id - recorder.SCORE_DELAY), (id % 5) / 4, shown[0])
                    )
        except DatabaseUnavailable:
            self._connection.close()
            return
        self._sent.add(id)

    # What is killed -------------------------------------------------------------------------------------------

    def kill_at(self, step: str, recorders: int, workers: int) -> None:
        """So many at once that kill themselves when they reach a step for the first, second or third time."""

        def aim() -> dict[str, str]:
            return {ENV_KILL_AT: f"{step}:{self._random.randint(1, 3)}"}

        victims = [self.start_recorder(**aim()).process for _ in range(recorders)]
        victims += [self.start_worker(**aim()) for _ in range(workers)]
        self._await_death(step, victims)
        self._take_stock(step, recorders=recorders, workers=workers)

    def kill_at_random(self, recorders: int, workers: int) -> None:
        """So many at once that are killed at any moment of their lives, the start included."""
        victims = [self.start_recorder().process for _ in range(recorders)]
        victims += [self.start_worker() for _ in range(workers)]
        doomed = {time.monotonic() + self._random.uniform(0.0, 2.0): victim for victim in victims}
        for moment, victim in sorted(doomed.items(), key=lambda pair: pair[0]):
            self._until(lambda moment=moment: time.monotonic() >= moment, "the moment to kill")  # type: ignore[misc]
            victim.kill()
        self._await_death(RANDOM, victims)
        self._take_stock(RANDOM, recorders=recorders, workers=workers)

    def _await_death(self, step: str, victims: Sequence[subprocess.Popen[str]]) -> None:
        tally = self.tallies.setdefault(step, Tally())
        living = list(victims)

        def all_dead() -> bool:
            for victim in [v for v in living if v.poll() is not None]:
                living.remove(victim)
                tally.killed_at.append((datetime.now(UTC), f":{victim.pid}"))
            return not living

        self._until(all_dead, f"death at {step}")
        wrong = [victim.returncode for victim in victims if victim.returncode != -9]
        if wrong:
            raise AssertionError(f"processes that should have been killed at {step} ended with {wrong}")

    def stop_server_at(self, step: str) -> None:
        """Stop the server without warning while a recorder is at a step; it must go on by itself afterwards."""
        run = self.start_recorder(CHAOS_PAUSE_AT=step)
        self._until(lambda: "paused" in run.lines(), f"the recorder at {step}")
        stop_without_warning(self.server)
        self._connection.close()
        at = datetime.now(UTC)
        self.server.start()
        before = run.last
        assert run.process.stdin is not None
        print(file=run.process.stdin, flush=True)
        self._until(lambda: run.last > before, f"the recorder to go on after the server was stopped at {step}")
        run.process.kill()
        run.process.wait()
        # The flush that the recorder had begun is the first that anybody may make, so any process counts.
        self.tallies.setdefault(STOPPED, Tally()).killed_at.append((at, "nobody"))
        self._take_stock(STOPPED, servers=1)

    # What is checked ------------------------------------------------------------------------------------------

    def _take_stock(self, step: str, *, recorders: int = 0, workers: int = 0, servers: int = 0) -> None:
        tally = self.tallies.setdefault(step, Tally())
        tally.recorders += recorders
        tally.workers += workers
        tally.servers += servers
        sent, flushed = set(self._sent), self._flushed()
        firsts = {0} | {run.first for run in self._runs}
        with connect(self.url) as connection:
            found = audit(connection, self._space.space_id, flushed, sent, firsts)
        tally.audit.losses += found.losses
        tally.audit.doubles += found.doubles

    def _flushed(self) -> Confirmed:
        found = Confirmed(set(), set())
        for run in self._runs:
            events = range(run.first, run.first + run.last + 1)
            found.trajectories.update(events)
            for id in events[: max(0, len(events) - recorder.SCORE_DELAY)]:
                found.scores.update(recorder.scores_of(id))
        return found

    def takeover_seconds(self, step: str) -> list[float]:
        """For every kill: how long until another process had flushed."""
        taken: list[float] = []
        with connect(self.url) as connection:
            for at, process in self.tallies[step].killed_at:
                row = connection.execute(
                    "SELECT extract(epoch FROM min(finished_at) - %(at)s)::float8 FROM sona.learning_cycle"
                    " WHERE space_id = %(space)s AND finished_at > %(at)s AND worker NOT LIKE '%%' || %(process)s",
                    {"at": at, "space": self._space.space_id, "process": process},
                ).fetchone()
                if row is not None and row[0] is not None:
                    taken.append(row[0])
        return taken

    def settle(self) -> list[str]:
        """End everything, learn what is left, and compare the stored states with replays; gives what is wrong."""
        self.close_processes()
        worker = InstantWorker(Database(self.url, StoreConfig(exact_search_rows=recorder.EXACT_SEARCH_ROWS)))
        while worker.step() + worker.weigh():
            pass
        wrong = [f"the worker could not learn or weigh {name}" for name in worker.failing]
        worker.close()
        self._take_stock("the end")
        with connect(self.url) as connection, closing(SonaEngine.connect(self.url, space=SPACE, background=False)) as e:
            wrong += self._differences(connection, e)
        return wrong

    def _differences(self, connection: Connection, engine: SonaEngine) -> Iterator[str]:
        key = (self._space.space_id,)
        waiting = connection.execute("SELECT count(*) FROM sona.pending_trajectory WHERE space_id = %s", key).fetchall()
        if waiting != [(0,)]:
            yield f"{waiting[0][0]} trajectories still wait"
        (late,) = connection.execute("SELECT count(*) FROM sona.learning_event WHERE revision > 0").fetchall()
        if not late[0]:
            yield "no late score was learned: the run proves nothing about them"
        learner, edges = replayed(connection, engine)
        stored = connection.execute("SELECT state FROM sona.learner WHERE space_id = %s", key).fetchall()[0][0]
        if learner.to_bytes() != bytes(stored):
            yield "a replay of the ledger gives other weights than those that are stored"
        rows = connection.execute("SELECT source, target, weight FROM sona.memory_edge WHERE space_id = %s", key)
        weights = {(source, target): weight for source, target, weight in rows}
        if len(weights) != len(edges) or any(edges.weight(*edge) != weight for edge, weight in weights.items()):
            yield "a replay of the ledger gives other edges than those that are stored"
        (unweighed,) = connection.execute("SELECT unweighed FROM sona.status WHERE space = %s", (SPACE,)).fetchall()
        if unweighed != (0,):
            yield f"{unweighed[0]} entries of the ledger were not weighed"
        before = weighed(connection, engine.space)
        after = weigh_again(connection, lambda: connect(self.url), engine.space, batch=100)
        for table, written in before.items():
            if not written and table != "strategy_turn":
                yield f"nothing was written to {table}: the run proves nothing about it"
            if after[table] != written:
                yield f"a replay of the ledger gives other rows of {table} than those that are stored"

    def close_processes(self) -> None:
        """Kill what lives."""
        for process in [run.process for run in self._runs] + self._workers:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def close(self) -> None:
        """Kill what lives, and stop the server."""
        self.close_processes()
        self._connection.close()
        self.server.remove()

    def report(self) -> str:
        """A row for every step."""
        lines = [f"{'killed at':30} {'recorders':>9} {'workers':>8} {'servers':>8} {'losses':>7} {'doubles':>8}"]
        lines[0] += f" {'takeover median':>16} {'worst':>9}"
        for step, tally in self.tallies.items():
            taken = self.takeover_seconds(step)
            times = f"{median(taken) * 1e3:13.0f} ms {max(taken) * 1e3:6.0f} ms" if taken else f"{'–':>16} {'–':>9}"
            found = tally.audit
            lines.append(
                f"{step:30} {tally.recorders:9} {tally.workers:8} {tally.servers:8} {len(found.losses):7}"
                f" {len(found.doubles):8} {times}"
            )
        return "\n".join(lines)

    def violations(self) -> list[str]:
        """Everything that was wrong, with the step after which it was seen first."""
        return [f"{step}: {wrong}" for step, t in self.tallies.items() for wrong in t.audit.losses + t.audit.doubles]


@contextmanager
def chaos_in(home: Path, seed: int) -> Iterator[Chaos]:
    """A chaos with a recorder and a worker that survive."""
    chaos = Chaos(home, seed)
    try:
        chaos.start_recorder()
        chaos.start_worker()
        yield chaos
    finally:
        chaos.close()


def run(
    home: Path, *, seed: int, at_step: int, at_random: int, together: int, stops: Sequence[str]
) -> tuple[str, list[str], int]:
    """The whole: `at_step` recorders and as many workers at each step, `at_random` of each kind, servers at `stops`.

    Of those killed at random moments, `together` of each kind live at a time.

    Returns
    -------
    report, violations, kills
    """
    with chaos_in(home, seed) as chaos:
        for step in (*FLUSH, *EVIDENCE):
            chaos.kill_at(step, at_step, at_step)
        for _ in range(0, at_random, together):
            chaos.kill_at_random(together, together)
        for step in stops:
            chaos.stop_server_at(step)
        wrong = chaos.settle()
        kills = sum(tally.recorders + tally.workers for tally in chaos.tallies.values())
        return chaos.report(), chaos.violations() + wrong, kills


def main() -> None:
    """The full form: more than 100 kills, 16 processes at once, and a stopped server at every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    seed = parser.parse_args().seed
    print(f"chaos with --seed {seed}, schema {SCHEMA_REVISION}", flush=True)
    every = [*FLUSH, *EVIDENCE]
    with tempfile.TemporaryDirectory() as folder:
        report, wrong, kills = run(Path(folder), seed=seed, at_step=3, at_random=24, together=8, stops=every)
    print(report, f"\n{kills} processes killed, {len(every)} times the server", flush=True)
    for violation in wrong:
        print(f"violation: {violation}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
