"""What is wrong with an installation, and the command that mends it. Looks only: nothing is started or changed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from sona_pg import kernels
from sona_pg.config import SCHEMA_REVISION, VERSION, StoreConfig
from sona_pg.errors import ConfigError, PermissionDenied, SonaError
from sona_pg.store import health, routines, spaces
from sona_pg.store.connection import MIN_PGVECTOR, MIN_POSTGRES, Connection, connect, current_revision
from sona_pg.store.database import ENV_URL
from sona_pg.store.observation import SpaceFigures, figures, recent_errors
from sona_pg.store.server import EmbeddedServer, default_home
from sona_pg.store.spool_usage import SpoolState, spool_states

WORKER = "sona worker instant"
"""What the instant worker's connections are called, and the command that starts it."""

_CLOCK_WARNING_SECONDS, _CLOCK_WRONG_SECONDS = 1.0, 60.0
_DISK_WARNING, _DISK_WRONG = 0.10, 0.02
_LATE_SECONDS = 300.0
"""A worker that runs begins with what waits long before."""
_NO_CYCLE_SECONDS = 24 * 3600.0
_ADOPTED_SECONDS = 60.0
"""A worker on this machine takes over what a dead process left long before."""
_ITEMS = 10_000
"""Fewer items are searched without an index in a few milliseconds."""
_MESSAGE_LENGTH = 160
_UPGRADE = f"{shlex.quote(sys.executable)} -m pip install --upgrade sona-pg"


class Verdict(StrEnum):
    """What a check has found."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check says.

    Parameters
    ----------
    check
        What was looked at.
    verdict
        Whether that is as it should be.
    says
        What was found.
    command
        What mends it; None where there is nothing to mend, or no command could.
    """

    check: str
    verdict: Verdict
    says: str
    command: str | None = None


def examine(url: str | None = None) -> list[Finding]:
    """Look at this machine, and at the database: `url`, or SONA_DATABASE_URL, or the embedded server.

    Raises
    ------
    ConfigError
        If the URL is no connection string.
    """
    findings = [_kernels()]
    given = url or os.environ.get(ENV_URL)
    if not given:
        server = EmbeddedServer(default_home())
        status = server.status()
        if not status.running or status.url is None:
            found = f"the embedded server of {status.home} does not run: {status.reason or 'not started'}"
            return [*findings, Finding("server", Verdict.WRONG, found, "sona db start")]
        says = f"embedded Postgres {status.version} runs, process {status.pid}, in {server.directory}"
        findings += [Finding("server", Verdict.OK, says), _disk(server.directory)]
        given = status.url
    try:
        with connect(given, vectors=False, application="sona doctor") as connection:
            findings += _of_database(given, connection)
    except ConfigError:
        raise
    except SonaError as error:
        findings.append(Finding("database", Verdict.WRONG, str(error), f'pg_isready --dbname="${ENV_URL}"'))
    return findings


def _of_database(url: str, connection: Connection) -> Iterator[Finding]:
    info = connection.info
    found, wanted = health.server_versions(connection)[0], f"{MIN_POSTGRES} or newer"
    where = f"{info.dbname!r} on {info.host or 'this machine'}, Postgres {found}"
    if info.server_version < 10_000 * MIN_POSTGRES:
        upgrade = "pg_upgrade"
        yield Finding("database", Verdict.WRONG, f"{where} answers; expected Postgres {wanted}", upgrade)
    else:
        yield Finding("database", Verdict.OK, f"{where} answers")
    yield _pgvector(connection)
    yield from _attempt("clock", lambda: [_clock(connection)])
    try:
        schema = _schema(current_revision(url))
    except PermissionDenied:
        schema = None  # the next check says what is missing
    if schema is not None:
        yield schema
        if schema.verdict is Verdict.OK:
            yield from _attempt("functions", lambda: [_functions(connection)])
    rights = health.rights(connection)
    yield from _rights(rights)
    if schema is None or schema.verdict is Verdict.WRONG or not rights.may_read:
        says = "not looked at, before the schema and the rights are as they should be"
        yield Finding("spaces", Verdict.WARNING, says)
        return
    try:
        workers = health.connected_workers(connection, WORKER)
        seen, _ = figures(connection)
    except SonaError as error:
        yield Finding("spaces", Verdict.WRONG, f"they cannot be read: {error}", "sona migrate")
        return
    yield from _attempt("indexes", lambda: _indexes(connection))
    yield from _attempt("worker", lambda: _worker(seen, workers))
    yield from _attempt("loops", lambda: _loops(connection))
    yield from _attempt("spool", lambda: _spools(connection, seen, workers))
    yield from _attempt("harm", lambda: _harm(connection))
    yield from _attempt("errors", lambda: _errors(connection, seen))


def _attempt(check: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """A check that cannot be made must not hide the others."""
    try:
        return list(look())
    except SonaError as error:
        return [Finding(check, Verdict.WARNING, f"cannot be told: {error}")]


def _kernels() -> Finding:
    active, available = kernels.active(), kernels.available()
    if active != available[0]:
        says = f"{active} code runs, since SONA_SIMD asks for it; this CPU runs {', '.join(available)}"
        return Finding("kernels", Verdict.WARNING, says, "unset SONA_SIMD")
    return Finding("kernels", Verdict.OK, f"{active} code runs, the best that this CPU does")


def _disk(directory: Path) -> Finding:
    usage = shutil.disk_usage(directory)
    share = usage.free / usage.total
    says = f"{usage.free / 2**30:.1f} GiB, {share:.0%}, of the disk under {directory} are free"
    if share >= _DISK_WARNING:
        return Finding("disk", Verdict.OK, says)
    keep = "sona space retention SPACE --trajectories '90 days' --apply"
    return Finding("disk", Verdict.WRONG if share < _DISK_WRONG else Verdict.WARNING, says, keep)


def _pgvector(connection: Connection) -> Finding:
    version = health.server_versions(connection)[1]
    needed = ".".join(map(str, MIN_PGVECTOR))
    if version is None:
        return Finding(
            "pgvector", Verdict.WRONG, f"it is not in this database; expected {needed} or newer", "sona migrate"
        )
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MIN_PGVECTOR:
        update = _psql(health.UPDATE_PGVECTOR)
        return Finding("pgvector", Verdict.WRONG, f"it is {version}, expected {needed} or newer", update)
    return Finding("pgvector", Verdict.OK, version)


def _clock(connection: Connection) -> Finding:
    ahead, uncertain = health.clock_ahead_seconds(connection)
    apart = max(0.0, abs(ahead) - uncertain)
    says = f"the database's is {abs(ahead):.2f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    if apart < _CLOCK_WARNING_SECONDS:
        return Finding("clock", Verdict.OK, says)
    says += "; ids of trajectories carry the time of this machine, retention and versions that of the database"
    verdict = Verdict.WRONG if apart >= _CLOCK_WRONG_SECONDS else Verdict.WARNING
    return Finding("clock", verdict, says, "timedatectl set-ntp true")


def _schema(found: str | None) -> Finding:
    if found == SCHEMA_REVISION:
        return Finding("schema", Verdict.OK, f"revision {found}")
    if found is None:
        return Finding("schema", Verdict.WRONG, f"there is none; expected revision {SCHEMA_REVISION}", "sona migrate")
    if found < SCHEMA_REVISION:
        says = f"revision {found} is older than this version of sona-pg, which works with {SCHEMA_REVISION}"
        return Finding("schema", Verdict.WRONG, says, "sona migrate")
    says = f"revision {found} is newer than this version of sona-pg, which works with {SCHEMA_REVISION}"
    return Finding("schema", Verdict.WRONG, says, _UPGRADE)


def _functions(connection: Connection) -> Finding:
    found = routines.installed(connection)
    if found.standing is routines.Standing.OWN:
        return Finding("functions", Verdict.OK, f"those of this sona-pg {VERSION}")
    if found.standing is routines.Standing.NEWER:
        says = f"they are of sona-pg {found.version}, newer than this {VERSION}"
        return Finding("functions", Verdict.WARNING, says, _UPGRADE)
    if found.version == VERSION:
        of = "another build of that number"
    else:
        of = "an unknown version" if found.version is None else f"sona-pg {found.version}"
    says = f"they are not those of this sona-pg {VERSION}, but of {of}: calls may fail, or do what those do"
    return Finding("functions", Verdict.WARNING, says, "sona migrate")


def _rights(found: health.Rights) -> Iterator[Finding]:
    grant = _psql(found.grant)
    if found.missing_roles:
        says = f"there is no role {', '.join(found.missing_roles)}: only the owner can use schema sona"
        yield Finding("roles", Verdict.WARNING, says, f"{_psql(found.make_roles)} && sona migrate")
    if not found.may_read:
        says = f"{found.login} may not read schema sona"
        yield Finding("rights", Verdict.WRONG, says, grant)
    elif not found.may_learn:
        says = f"{found.login} may read, and not learn: no worker can run under it"
        yield Finding("rights", Verdict.WARNING, says, grant)
    else:
        yield Finding("rights", Verdict.OK, f"{found.login} may read and learn")


def _indexes(connection: Connection) -> Iterator[Finding]:
    is_fine = True
    for index in health.missing_indexes(connection):
        is_fine = False
        yield Finding("indexes", Verdict.WRONG, f"{index.name} is missing", _psql(index.statement))
    for index in health.invalid_indexes(connection):
        is_fine = False
        yield Finding("indexes", Verdict.WRONG, f"{index.name} is invalid, and not used", _psql(index.statement))
    for index in health.spaces_without_index(connection):
        is_fine = False
        says = f"the HNSW index of space {index.name!r} is gone: every answer reads all that it remembers"
        yield Finding("indexes", Verdict.WRONG, says, _psql(index.statement))
    for index in health.patterns_without_index(connection, StoreConfig().exact_search_rows):
        is_fine = False
        says = f"space {index.name!r} has many patterns and no HNSW index of them: every search reads them all"
        yield Finding("indexes", Verdict.WARNING, says, _psql(index.statement))
    for index in health.items_without_index(connection, _ITEMS):
        is_fine = False
        says = f"{index.name} has no vector index: every answer reads all of its rows"
        yield Finding("indexes", Verdict.WARNING, says, _psql(index.statement))
    if is_fine:
        yield Finding("indexes", Verdict.OK, "all are there and valid")


def _worker(seen: list[SpaceFigures], workers: int) -> Iterator[Finding]:
    waiting = [each for each in seen if each.pending]
    there = f"instant workers hold {workers} connections" if workers else "none is connected"
    if workers or not waiting:
        yield Finding("worker", Verdict.OK, there)
    for each in waiting:
        age = _age_seconds(each.pending_since)
        says = f"{each.pending} trajectories of space {each.space!r} wait to be learned, the first for {age:.0f} s"
        if not workers:
            # By the name of its connections: a pooler, or a URL with a name of its own, would hide it.
            says += f", and no connection is called {WORKER!r}"
            yield Finding("worker", Verdict.WRONG, says, WORKER)
        elif age > _LATE_SECONDS:
            yield Finding("worker", Verdict.WARNING, says, f"sona status {shlex.quote(each.space)}")


def _loops(connection: Connection) -> Iterator[Finding]:
    """Loops that were set aside in a space, and cycles that nobody is there to run."""
    held_up = health.held_up_loops(connection)
    for each in held_up:
        where = f"the {each.loop} loop in space {each.space!r}"
        if each.reason is not None:
            says = f"{where} is set aside: {each.reason[:_MESSAGE_LENGTH]}"
            command = f"sona cycle run {shlex.quote(each.space)} {shlex.quote(each.loop)}"
        else:
            says = f"a cycle of {where} waits for {each.seconds:.0f} s, and no worker of the loop is connected"
            command = f"sona worker {shlex.quote(each.loop)}"
        yield Finding("loops", Verdict.WRONG, says, command)
    left = health.left_withheld(connection, _NO_CYCLE_SECONDS)
    for waiting in left:
        says = (
            f"{waiting.outcomes} outcomes of space {waiting.space!r} are withheld to judge a base, and no cycle of the "
            f"background loop has taken any up for {waiting.seconds / 3600:.0f} h; where the loop is off for good, run "
            "what is asked for by 'sona worker background --once --withheld 0'"
        )
        yield Finding("loops", Verdict.WARNING, says, f"sona cycle run {shlex.quote(waiting.space)} background")
    if not held_up and not left:
        yield Finding("loops", Verdict.OK, "none is set aside, and no cycle waits for a worker")


def _spools(connection: Connection, seen: list[SpaceFigures], workers: int) -> Iterator[Finding]:
    directory = default_home().expanduser() / "spool"
    states = spool_states(directory)
    names = spaces.spaces_of_keys(connection, list(states)) if states else {}
    for key, state in states.items():
        yield from _spool(names.get(key), directory / str(key), state, workers)
    if not states:
        yield Finding("spool", Verdict.OK, f"nothing waits in {directory}")


def _spool(name: str | None, folder: Path, state: SpoolState, workers: int) -> Iterator[Finding]:
    size, age = f"{state.usage.bytes / 1000:,.0f} kB", _age_seconds(state.usage.oldest)
    if state.damaged:
        says = f"{len(state.damaged)} files in {folder} are damaged, and kept to be looked at: sona.errors has more"
        yield Finding("spool", Verdict.WARNING, says, f"rm {shlex.quote(str(folder))}/damaged-*")
    if name is None:
        says = f"{folder} holds {size} of a space that this database does not have: another one's, or one that is gone"
        yield Finding("spool", Verdict.WARNING, says)
    elif state.is_left_behind and (not workers or age > _ADOPTED_SECONDS):
        says = f"{size} of space {name!r} wait since {age:.0f} s, and the process that wrote them is dead"
        yield Finding("spool", Verdict.WRONG, says, f"{WORKER} --once")
    elif age > _LATE_SECONDS and not state.damaged:
        says = f"{size} of space {name!r} wait since {age:.0f} s; the process that wrote them lives: its log says why"
        yield Finding("spool", Verdict.WARNING, says)
    else:
        yield Finding("spool", Verdict.OK, f"{size} of space {name!r} wait for its process, since {age:.0f} s")


def _harm(connection: Connection) -> Iterator[Finding]:
    frozen = health.frozen_by_harm(connection)
    for each in frozen:
        name = shlex.quote(each.space)
        says = (
            f"space {each.space!r}, which was set to {each.strategy}, answers as the frozen embedding since "
            f"{each.since:%Y-%m-%d %H:%M}: its answers were worth less than the control arm's. Look at "
            f"'sona lift {name}' and sona.harmed; 'sona space strategy {name} frozen' leaves it so"
        )
        yield Finding("harm", Verdict.WRONG, says, f"sona deploy {name} rollback")
    if not frozen:
        yield Finding("harm", Verdict.OK, "no space was given up")


def _errors(connection: Connection, seen: list[SpaceFigures]) -> Iterator[Finding]:
    failed = [each for each in seen if each.errors]
    for each in failed:
        at, source, message = recent_errors(connection, each.space, 1)[0]
        says = (
            f"{each.errors} in space {each.space!r} in the last day; {at:%H:%M} {source}: {message[:_MESSAGE_LENGTH]}"
        )
        yield Finding("errors", Verdict.WARNING, says, f"sona status {shlex.quote(each.space)}")
    if not failed:
        yield Finding("errors", Verdict.OK, "none in the last day")


def _age_seconds(since: datetime | None) -> float:
    return 0.0 if since is None else max(0.0, (datetime.now(UTC) - since).total_seconds())


def _psql(statement: str) -> str:
    """A statement as a command."""
    joined = " ".join(statement.split())
    return f'psql "${{{ENV_URL}:-$(sona db url)}}" -c {shlex.quote(joined)}'
