"""The embedded Postgres: a private server on a unix socket, shared by every process that names the same home.

``<home>/lock`` orders starts and stops. The files stand in `server_cluster`; which user runs Postgres, and what
that means for root, in `server_account`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import platformdirs
import psycopg
from psycopg import pq

from sona_pg.errors import ConfigError, IoError, ServerError, SonaError
from sona_pg.store.server_account import (
    INSTALLATIONS,
    OTHERWISE,
    START_SECONDS,
    Account,
    binaries_of,
    locked,
    make_directory,
    require_simd,
    run_as,
)
from sona_pg.store.server_cluster import DATABASE, SUPERUSER, Cluster, end_of

_log = logging.getLogger("sona_pg")

_SILENCE_SECONDS = 30
_LOG_BYTES = 10 << 20


@dataclass(frozen=True)
class ServerStatus:
    """What is known of an embedded server; ``reason`` says why it does not answer."""

    running: bool
    pid: int | None
    home: Path
    url: str | None
    version: str | None
    reason: str | None


def default_home() -> Path:
    """Directory of the embedded server: ``SONA_HOME``, else one in the user's data directory.

    Returns
    -------
    Path
        It may not exist yet.
    """
    home = os.environ.get("SONA_HOME")
    return Path(home).expanduser() if home else Path(platformdirs.user_data_dir("sona-pg"))


def as_home(home: Path | str) -> Path:
    """The folder that is named, with ``~`` as somebody's own.

    Raises
    ------
    ConfigError
        If it is no path.
    """
    # An empty one would be the folder in which the process happens to run.
    if not isinstance(home, str | Path) or not str(home) or "\0" in str(home):
        raise ConfigError(f"home is {home!r}, expected the path of a folder")
    try:
        return Path(home).expanduser()
    except RuntimeError as cause:
        raise ConfigError(f"home is {str(home)!r}, and there is no such user: {cause}") from cause


class EmbeddedServer:
    """A Postgres with pgvector that belongs to one home directory.

    It listens on no TCP port, and outlives the process that started it.

    Parameters
    ----------
    home
        Directory of its data.
    major
        Version of Postgres: 18 or 16.

    Raises
    ------
    ConfigError
        Unknown version, what is no path, or a character in it that the tools of Postgres cannot take.

    Examples
    --------
    >>> server = EmbeddedServer(default_home())
    >>> with psycopg.connect(server.start()) as connection:  # doctest: +SKIP
    ...     connection.execute("create extension if not exists vector")
    """

    def __init__(self, home: Path | str, *, major: int = 18) -> None:
        if major not in INSTALLATIONS:
            raise ConfigError(f"there is no embedded Postgres {major}: use one of {sorted(INSTALLATIONS)}")
        self.home = as_home(home).resolve()
        self.major = major
        # pg_ctl hands the path to a shell, between double quotes.
        if re.search(r'["$`\\\x00-\x1f]', str(self.home)):
            raise ConfigError(
                f"the path {str(self.home)!r} holds a double quote, $, backquote, backslash or control "
                "character: set SONA_HOME to one without"
            )

    @property
    def directory(self) -> Path:
        """Directory of data, socket, log and settings."""
        return self._cluster.directory

    @property
    def url(self) -> str:
        """Connection string of the database, whether the server runs or not."""
        return self._url(DATABASE)

    def start(self) -> str:
        """Start the server unless it runs, and create its database when absent.

        Returns
        -------
        str
            Connection string of the database, as superuser.

        Raises
        ------
        UnsupportedServer
            The CPU cannot run this build of pgvector.
        ServerError
            The server is not installed, did not start or does not answer; the message ends with its log.
        IoError
            A file could not be read or written.
        """
        with _os_errors_of("start", self.home):
            if self._failure(DATABASE) is None:
                return self.url
            for directory in reversed((self.home, *self.home.parents)):
                if not directory.exists():
                    make_directory(directory)
            with locked(self.home / "lock") as lock:
                if self._failure("postgres") is not None:
                    require_simd()
                    binaries = binaries_of(self.major)
                    account = self._cluster.prepare(binaries, lock)
                    self._launch(binaries, account)
                self._create_database()
            return self.url

    def remove(self) -> None:
        """Stop the server and delete its data for good, wherever they are.

        Raises
        ------
        ServerError, IoError
            As `stop`, or if something cannot be deleted.
        """
        self.stop()
        with _os_errors_of("remove", self.home):
            place = self.directory.parent
            for directory in (self.directory,) if place == self.home else (place,):
                if directory.exists():
                    shutil.rmtree(directory)

    def stop(self, timeout_seconds: float = 30) -> None:
        """Stop the server and end its connections; do nothing when it does not run.

        Parameters
        ----------
        timeout_seconds
            How long to wait for its end.

        Raises
        ------
        ServerError
            It did not end in time, or runs where its process cannot be seen (another container).
        IoError
            A file could not be read, or the process belongs to another user.
        """
        if not os.path.exists(self.home):
            return
        with _os_errors_of("stop", self.home), locked(self.home / "lock"):
            pid = self._cluster.postmaster()
            if pid is None:
                if self._failure("postgres") is None:
                    raise ServerError(f"{self.url} answers, but its process is not here: stop it there")
                return
            os.kill(pid, signal.SIGINT)
            deadline = time.monotonic() + timeout_seconds
            while self._cluster.postmaster() is not None:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"the server (process {pid}) did not end within {timeout_seconds:g} s: give it "
                        f"longer, or `kill -QUIT {pid}`: committed data are safe{end_of(self._log_file())}"
                    )
                time.sleep(0.02)
            _log.info("Postgres %d of %s stopped (process %d)", self.major, self.home, pid)

    def status(self) -> ServerStatus:
        """Ask the server over a real connection; starts nothing and does not raise.

        Returns
        -------
        ServerStatus
        """
        pid = None
        try:
            if not self._cluster.data.exists():
                raise ServerError(f"never started: there is no {self._cluster.data}")
            pid = self._cluster.postmaster()
            with psycopg.connect(self.url, connect_timeout=5) as connection:
                version = connection.info.parameter_status("server_version")
            return ServerStatus(True, pid, self.home, self.url, version, None)
        except (psycopg.Error, SonaError, OSError) as error:
            return ServerStatus(False, pid, self.home, None, None, str(error).strip())

    @property
    def _cluster(self) -> Cluster:
        return Cluster(self.home, self.major)

    def _log_file(self) -> Path:
        return self._cluster.log_file

    def _socket(self) -> Path:
        return self._cluster.socket

    def _url(self, database: str) -> str:
        # With the port: PGPORT in the environment would lead elsewhere.
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self._socket()), safe='')}&port=5432"

    def _failure(self, database: str) -> str | None:
        """Why no connection can be made; None when one can."""
        try:
            psycopg.connect(self._url(database), connect_timeout=5).close()
        except psycopg.OperationalError as error:
            return str(error).strip()
        return None

    def _launch(self, binaries: Path, account: Account) -> None:
        begin = time.monotonic()
        while (failure := self._failure("postgres")) is not None:
            answer = pq.PGconn.ping(self._url("postgres").encode())
            patience = START_SECONDS if answer == pq.Ping.REJECT else _SILENCE_SECONDS  # it recovers
            if time.monotonic() - begin > patience:
                raise ServerError(
                    f"the server of {self._cluster.data} (process {self._cluster.postmaster()}) takes no connection: "
                    f"{failure}; end other connections, or stop and start it{end_of(self._log_file())}"
                )
            absent = answer == pq.Ping.NO_RESPONSE and self._cluster.postmaster() is None
            if not (absent and self._start_once(binaries, account)):
                time.sleep(0.1)
        _log.info("Postgres %d runs in %s (process %s)", self.major, self.directory, self._cluster.postmaster())

    def _start_once(self, binaries: Path, account: Account) -> bool:
        """Whether it started; not while backends of a killed server still hold its shared memory."""
        self._cluster.disown_stale_files()
        log = self._log_file()
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        before = log.stat().st_size if log.exists() else 0
        command = [f"{binaries}/pg_ctl", "start", "-w", "-t", str(START_SECONDS)]
        done = run_as(account, [*command, "-D", str(self._cluster.data), "-l", str(log)])
        if done.returncode == 0:
            return True
        written = log.read_bytes()[before:].decode(errors="replace") if log.exists() else ""
        if "pre-existing shared memory block" in written:
            return False
        raise ServerError(f"Postgres {self.major} did not start{end_of(log, done.stdout + written)}")

    def _create_database(self) -> None:
        try:
            with psycopg.connect(self._url("postgres"), autocommit=True, connect_timeout=5) as connection:
                query = "select from pg_catalog.pg_database where datname = %s"
                if connection.execute(query, [DATABASE]).fetchone() is None:
                    connection.execute(f"create database {DATABASE}")
        except psycopg.Error as error:
            raise ServerError(f"cannot create the database: {error}{end_of(self._log_file())}") from error


@contextmanager
def _os_errors_of(action: str, home: Path) -> Iterator[None]:
    try:
        yield
    except SonaError:
        raise
    except OSError as error:
        raise IoError(
            f"cannot {action} the embedded server of {home}: {error}; give this user the right or the room, "
            f"set SONA_HOME to another directory, {OTHERWISE}"
        ) from error
