"""What goes on while containers are killed: an application in Python and one in SQL, on the host, and their audit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import UUID

import numpy as np

from sona_pg import DatabaseUnavailable, SonaEngine, SonaError
from sona_pg.store.connection import Connection, connect, translated
from tests.acceptance.audit import Audit, Confirmed, audit
from tests.acceptance.recorder import EVENTS_OF_A_RUN, SCORE_DELAY, scores_of

from . import client
from .images import ROOT

SPACE, DIM = "shop", 16
SQL_PAUSE_SECONDS = 0.05


class Load:
    """Two applications that record, from outside, through the published port.

    Parameters
    ----------
    url
        Of the stack's database; the password is in it.
    home
        Folder for the spool and for what is confirmed.
    """

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        self._home = home
        with connect(url) as connection:
            connection.execute(f"CREATE TABLE public.items (id integer PRIMARY KEY, embedding vector({DIM}))")
            for id, row in enumerate(np.random.default_rng(0).standard_normal((40, DIM)).astype(np.float32)):
                connection.execute("INSERT INTO public.items VALUES (%s, %s)", (id, row))
        with SonaEngine.connect(url, space=SPACE, dim=DIM, background=False) as engine:
            engine.set_items("public.items", "id", "embedding")
            self.space_id = engine.space.space_id
        self.sent: set[int] = set()
        """Ids of trajectories that a statement has confirmed."""
        self.away_seconds = 0.0
        """Longest time for which no statement was confirmed."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        self._engine: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start both."""
        environment = os.environ | {
            "SONA_DATABASE_URL": self.url,
            "SONA_HOME": str(self._home),
            "PYTHONPATH": str(ROOT),
        }
        with (self._home / "client.log").open("w") as log:
            self._engine = subprocess.Popen(
                [sys.executable, client.__file__, SPACE, str(self._home / "confirmed")], env=environment, stderr=log
            )
        self._thread.start()

    def _send_all(self) -> None:
        connection: Connection | None = None
        last = time.monotonic()
        while not self._stop.wait(SQL_PAUSE_SECONDS):
            try:
                if connection is None or connection.closed:
                    connection = connect(self.url)
                self._send(connection, len(self.sent))
            except SonaError as error:
                # Whether it was committed is not known: the same id again is nothing.
                if connection is not None and isinstance(error, DatabaseUnavailable):
                    connection.close()
                continue
            self.away_seconds = max(self.away_seconds, time.monotonic() - last)
            last = time.monotonic()
        if connection is not None:
            connection.close()

    def _send(self, connection: Connection, id: int) -> None:
        rng = np.random.default_rng(id)
        query = rng.standard_normal(DIM).astype(np.float32)
        shown = [str(item) for item in rng.choice(40, 3, replace=False)]
        with translated():
            connection.execute(
                "SELECT sona.record(%s, %s, %s, %s, trajectory_id => %s)",
                (SPACE, query, shown, [1.0, 0.0, None], UUID(int=id)),
            )
        self.sent.add(id)

    def check(self) -> Audit:
        """What of that which statements have confirmed is missing, and what is there twice, while both go on."""
        sent = set(self.sent)
        with connect(self.url) as connection:
            return audit(connection, self.space_id, Confirmed(set(), set()), sent, self._firsts())

    def settle(self, timeout_seconds: float = 120) -> tuple[Audit, dict[str, float]]:
        """End both, wait until all is learned and weighed, and look; also what the Python application counted."""
        self._stop.set()
        self._thread.join()
        assert self._engine is not None
        self._engine.terminate()
        if self._engine.wait(60):
            raise AssertionError((self._home / "client.log").read_text())
        counted: dict[str, float] = json.loads((self._home / "confirmed").read_text())
        first = client.RUN * EVENTS_OF_A_RUN
        events = range(first, first + int(counted["events"]))
        flushed = Confirmed(
            set(events) | self.sent, {score for id in events[: -SCORE_DELAY or None] for score in scores_of(id)}
        )
        with connect(self.url) as connection:
            deadline = time.monotonic() + timeout_seconds
            while connection.execute(
                "SELECT pending, unweighed FROM sona.status WHERE space = %s", (SPACE,)
            ).fetchone() != (0, 0):
                if time.monotonic() > deadline:
                    raise AssertionError(f"not all is learned and weighed after {timeout_seconds} s")
                time.sleep(0.2)
            return audit(connection, self.space_id, flushed, self.sent, self._firsts()), counted

    def close(self) -> None:
        """End both, whatever they are at."""
        self._stop.set()
        if self._engine is not None and self._engine.poll() is None:
            self._engine.kill()
            self._engine.wait()

    @staticmethod
    def _firsts() -> set[int]:
        return {0, client.RUN * EVENTS_OF_A_RUN}
