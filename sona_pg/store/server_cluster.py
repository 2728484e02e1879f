"""The files of an embedded server: data, socket, log and settings, and how they are made.

``<home>/pg<major>`` holds ``data`` (the cluster), ``run`` (socket and ``server.log``) and ``sona.conf``
(settings, written anew at each start).
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sona_pg.errors import ServerError
from sona_pg.store.server_account import (
    Account,
    account_of,
    digest,
    make_directory,
    make_place,
    make_private,
    place_of,
    run_as,
    write,
)

DATABASE = "sona"
SUPERUSER = "postgres"
"""Not "sona": the default search path would then put the application's tables into schema sona."""

_SOCKET_FILE = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES = 107

_SETTINGS = """\
# Written at each start of sona_pg; own settings belong after the include in postgresql.conf.
listen_addresses = ''
port = 5432
unix_socket_directories = '{socket}'
unix_socket_permissions = 0700
cluster_name = 'sona'
max_connections = 100
shared_buffers = 128MB
maintenance_work_mem = 256MB
dynamic_shared_memory_type = {shared_memory}
huge_pages = off
fsync = on
full_page_writes = on
synchronous_commit = on
wal_level = replica
max_wal_size = 1GB
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
"""


@dataclass(frozen=True)
class Cluster:
    """The tree of one home and version.

    Parameters
    ----------
    home
        Directory that the server belongs to; the tree stands there, or where `place_of` says.
    major
        Version of Postgres.
    """

    home: Path
    major: int

    @property
    def directory(self) -> Path:
        """Directory of data, socket, log and settings."""
        return place_of(self.home, self.major) / f"pg{self.major}"

    @property
    def data(self) -> Path:
        """Data directory of Postgres."""
        return self.directory / "data"

    @property
    def log_file(self) -> Path:
        """What the server writes."""
        return self.directory / "run" / "server.log"

    @property
    def socket(self) -> Path:
        """Directory of the unix socket."""
        run = self.directory / "run"
        # libpq takes a comma for the end of a host.
        if len(os.fsencode(run / _SOCKET_FILE)) <= _SOCKET_PATH_BYTES and "," not in str(run):
            return run
        # Not TMPDIR: every process must arrive at the same path.
        return Path("/tmp") / f"sona-pg-{digest(run)}"

    def postmaster(self) -> int | None:
        """PID of the live postmaster; the number in a stale file may by now be anybody's."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().partition("\n")[0])
            # Not /proc/<pid>/cwd: in a container, root may lack the capability to read that of another user.
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self.data) in arguments else None

    def prepare(self, binaries: Path, lock: int) -> Account:
        """Make what is missing of the tree, and the settings anew.

        Parameters
        ----------
        binaries
            Directory of the programs of Postgres.
        lock
            Descriptor of the lock that orders starts and stops.

        Returns
        -------
        Account
            The user that is to run the server.
        """
        place, directory, data = place_of(self.home, self.major), self.directory, self.data
        for found in place.glob("pg*/data/PG_VERSION"):
            if (version := found.read_text().strip()) != str(self.major):
                raise ServerError(
                    f"{found.parent} is of Postgres {version}, expected {self.major}: use that version, "
                    "or set SONA_HOME to another directory and move the data by pg_dump"
                )
        if place != self.home:
            make_place(self.home, place)
        make_directory(directory)
        account = account_of(data)
        for private in (directory / "run", self.socket):
            make_private(private, account)
        write(directory / "sona.conf", _settings(self.socket))
        if not (data / "PG_VERSION").exists():
            self._initialise(binaries, account, lock)
        return account

    def _initialise(self, binaries: Path, account: Account, lock: int) -> None:
        data, log = self.data, self.directory / "initdb.log"
        if data.exists() and any(data.iterdir()):
            raise ServerError(f"{data} has no PG_VERSION, expected a cluster or nothing: restore or move it")
        new = data.with_name("data.new")
        for locale in ("C.UTF-8", "C"):
            if new.exists():
                shutil.rmtree(new)
            make_private(new, account)
            options = ["--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", f"--locale={locale}"]
            command = [f"{binaries}/initdb", f"--pgdata={new}", f"--username={SUPERUSER}", *options]
            # An initdb that outlives this process keeps the lock, so nobody removes the directory under it.
            done = run_as(account, command, inherit=(lock,))
            if done.returncode == 0 or "invalid locale" not in done.stdout:
                break
        with suppress(OSError):  # on a full disk, the message below still says so
            write(log, done.stdout)
        if done.returncode != 0:
            raise ServerError(f"initdb failed with status {done.returncode}{end_of(log, done.stdout)}")
        with (new / "postgresql.conf").open("a") as file:
            file.write("\ninclude '../sona.conf'\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(data)
        descriptor = os.open(self.directory, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def disown_stale_files(self) -> None:
        """Keep Postgres from taking a zombie, or a process that got the old PID, for a live postmaster.

        It passes over a lock file of its grandparent, which this process is. The file itself must stay: it
        names the shared memory by which Postgres notices backends that still live.
        """
        (self.socket / f"{_SOCKET_FILE}.lock").unlink(missing_ok=True)
        lock_file = self.data / "postmaster.pid"
        with suppress(FileNotFoundError):
            pid, _, rest = lock_file.read_text().partition("\n")
            if not re.fullmatch(r"-?\d+", pid.strip()):
                lock_file.unlink()  # torn by a crash; Postgres would refuse to start
            elif int(pid) > 0:
                with open(os.open(lock_file, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW), "w") as file:
                    file.write(f"{os.getpid()}\n{rest}")


def _settings(socket: Path) -> str:
    # A parallel index build takes maintenance_work_mem of it; /dev/shm of a container is often 64 MB.
    roomy = os.path.exists("/dev/shm") and shutil.disk_usage("/dev/shm").total >= 1 << 30
    quoted = str(socket).replace("'", "''")
    return _SETTINGS.format(socket=quoted, shared_memory="posix" if roomy else "mmap")


def end_of(log: Path, text: str | None = None) -> str:
    """The last lines of a log, for the end of a message."""
    if text is None:
        with suppress(OSError):
            text = log.read_text(errors="replace")
    return "".join([f"; its log is {log}", *(f"\n  {line}" for line in (text or "").splitlines()[-15:])])
