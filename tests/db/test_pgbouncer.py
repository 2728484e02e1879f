"""Behind a real PgBouncer in transaction mode: every transaction may meet another server session."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sona_pg import DatabaseError, SonaEngine, StoreConfig
from sona_pg.config import SCHEMA_REVISION
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, connect, current_revision
from sona_pg.store.database import Database
from sona_pg.store.migrate import migrate
from sona_pg.worker import InstantWorker

from .command_line import sona
from .conftest import DIM

POOL = 2
POOLED = StoreConfig(prepare_statements=False)
PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="pgbouncer is not installed: apt-get install pgbouncer (its service need not run)"
)


@dataclass(frozen=True)
class Pooler:
    """A running PgBouncer before a migrated database.

    Parameters
    ----------
    direct, pooled
        URLs of the superuser, past it and through it.
    worker, app
        Logins.
    """

    direct: str
    pooled: str
    worker: str
    app: str

    def through(self, login: str) -> str:
        return make_conninfo(self.pooled, user=login)


def _query(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.standard_normal(DIM).astype(np.float32)


@pytest.fixture(scope="module")
def pooler(make_database: Callable[[], str], role: Callable[..., str]) -> Iterator[Pooler]:
    direct = make_database()
    server = conninfo_to_dict(direct)
    worker, app = role("pooled_worker", "sona_worker"), role("pooled_app", "sona_app")
    host, user = str(server.get("host") or "localhost"), str(server.get("user") or "postgres")
    # PgBouncer refuses to run as root, and the socket of the embedded server is for its own account alone.
    account = os.stat(host) if host.startswith("/") else os.stat("/")
    uid, gid = (account.st_uid, account.st_gid) if account.st_uid else pwd.getpwnam("nobody")[2:4]
    # Not below pytest's own folder, which no other account may enter; and short enough for a socket.
    with tempfile.TemporaryDirectory(prefix="sona-pgb-") as name:
        folder = Path(name)
        password = f" password={server['password']}" if server.get("password") else ""
        (folder / "users").write_text("".join(f'"{login}" ""\n' for login in (user, worker, app)))
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={host} port={server.get('port') or 5432}{password}\n"
            f"[pgbouncer]\nlisten_addr =\nunix_socket_dir = {folder}\nlogfile = {folder}/log\n"
            f"auth_type = trust\nauth_file = {folder}/users\n"
            f"pool_mode = transaction\ndefault_pool_size = {POOL}\nmax_client_conn = 200\n"
        )
        as_other = {}
        if os.geteuid() == 0:
            for path in (folder, *folder.iterdir()):
                os.chown(path, uid, gid)
            as_other = {"user": uid, "group": gid, "extra_groups": []}
        process = subprocess.Popen([str(PROGRAM), "-q", str(folder / "pgbouncer.ini")], **as_other)  # type: ignore[call-overload]
        pooled = make_conninfo(direct, host=str(folder), port=6432, user=user)
        try:
            _wait_for(pooled, process, folder / "log")
            assert migrate(pooled) == SCHEMA_REVISION
            yield Pooler(direct, pooled, worker, app)
        finally:
            process.terminate()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None:
                raise RuntimeError(f"pgbouncer ended: {log.read_text() if log.exists() else 'no log'}") from None
        time.sleep(0.02)


@pytest.fixture
def space(pooler: Pooler, space_name: str) -> str:
    """A space of 60 items that the application may write, all of it made through the pooler."""
    rng = np.random.default_rng(3)
    table = f"public.{space_name}_items"
    with connect(pooler.pooled, config=POOLED) as connection:
        connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector({DIM}))")
        for number in range(60):
            connection.execute(f"INSERT INTO {table} VALUES (%s, %s)", (number, _query(rng)))
        for login in (pooler.worker, pooler.app):
            connection.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(sql.SQL(table), sql.Identifier(login)))
    with SonaEngine.connect(
        pooler.through(pooler.worker), space=space_name, dim=DIM, background=False, store=POOLED
    ) as engine:
        assert engine.set_items(table, "id", "embedding") == 60
    with connect(pooler.through(pooler.worker), config=POOLED) as connection:
        connection.execute("SELECT sona.grant_space(%s, %s)", (space_name, pooler.app))
    return space_name


def _every_session(url: str) -> list[Connection]:
    """As many transactions at once as the pool has sessions: each is on one of its own."""
    held = [connect(url, vectors=False, autocommit=False, config=POOLED) for _ in range(POOL)]
    assert len({connection.execute("SELECT pg_backend_pid()").fetchall()[0] for connection in held}) == POOL
    return held


def _learn(pooler: Pooler) -> None:
    worker = InstantWorker(Database(pooler.through(pooler.worker), POOLED))
    while worker.step() + worker.weigh():
        pass
    assert worker.failing == []
    worker.close()


def test_migrations_go_through_it_again(pooler: Pooler) -> None:
    assert migrate(pooler.pooled) == SCHEMA_REVISION
    assert current_revision(pooler.pooled) == SCHEMA_REVISION
    for connection in _every_session(pooler.pooled):
        assert connection.execute("SELECT statement FROM pg_prepared_statements").fetchall() == []
        connection.close()


def test_many_clients_record_score_recall_and_learn_exactly_once(pooler: Pooler, space: str) -> None:
    events = 20
    failures: list[BaseException] = []
    stop = threading.Event()

    def engine_client(client: int) -> None:
        rng = np.random.default_rng(client)
        with SonaEngine.connect(pooler.through(pooler.worker), space=space, store=POOLED) as own:
            for event in range(events):
                found = own.recall(_query(rng), 5)
                own.record(found)
                own.score(found.trajectory_id, 1.0, found.items[0].item_id)
                if event % 4 == 0:
                    own.flush()

    def sql_client(client: int) -> None:
        rng = np.random.default_rng(100 + client)
        with connect(pooler.through(pooler.app), config=POOLED) as own:
            for _ in range(events):
                query = _query(rng)
                found = own.execute("SELECT item_id FROM sona.recall(%s, %s, 5)", (space, query)).fetchall()
                row = own.execute(
                    "SELECT sona.record(%s, %s, %s)", (space, query, [item for (item,) in found])
                ).fetchone()
                assert row is not None
                own.execute("SELECT sona.score(%s, 1, %s)", (row[0], found[0][0]))

    def work(_: int) -> None:
        worker = InstantWorker(Database(pooler.through(pooler.worker), POOLED))
        while not stop.is_set() or worker.step() + worker.weigh():
            worker.step()
            worker.weigh()
        assert worker.failing == []
        worker.close()

    def guarded(act: Callable[[int], None], number: int) -> None:
        try:
            act(number)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=guarded, args=(work, number)) for number in range(2)]
    clients = [
        threading.Thread(target=guarded, args=(act, number))
        for number in range(4)
        for act in (engine_client, sql_client)
    ]
    for thread in [*workers, *clients]:
        thread.start()
    for thread in clients:
        thread.join()
    stop.set()
    for thread in workers:
        thread.join()
    assert failures == []
    _learn(pooler)
    with connect(pooler.direct) as connection:
        ledger = connection.execute(
            "SELECT trajectory_id, revision, ordinal, learned FROM sona.ledger WHERE space = %s ORDER BY ordinal",
            (space,),
        ).fetchall()
        status = connection.execute("SELECT unweighed FROM sona.status WHERE space = %s", (space,)).fetchall()
    assert status == [(0,)]
    recorded = 8 * events
    assert len({row[:2] for row in ledger}) == len(ledger) == 2 * recorded
    assert [row[2] for row in ledger] == list(range(2 * recorded))
    assert sum(row[3] == "adapter" for row in ledger) == recorded


def test_no_session_is_left_changed(pooler: Pooler, space: str, rng: np.random.Generator) -> None:
    settings = ("search_path", "lock_timeout", "statement_timeout", "hnsw.iterative_scan", "client_encoding", "role")
    wanted = ", ".join(f"current_setting('{name}', true)" for name in settings)
    with connect(make_conninfo(pooler.direct, user=pooler.worker)) as fresh:
        fresh.execute("SELECT '[1]'::vector")  # loads the library, and with it the defaults of its settings
        expected = fresh.execute(f"SELECT {wanted}").fetchall()
    with SonaEngine.connect(pooler.through(pooler.worker), space=space, background=False, store=POOLED) as engine:
        for _ in range(8):
            engine.record(engine.recall(_query(rng), 3), rewards=[1.0, None, 0.0])
            engine.flush()
    with connect(pooler.through(pooler.app), config=POOLED) as app:
        app.execute("SELECT sona.record(%s, %s, '{1}', '{1}')", (space, _query(rng)))
    _learn(pooler)
    for connection in _every_session(pooler.through(pooler.worker)):
        row = connection.execute(
            "SELECT (SELECT count(*) FROM pg_prepared_statements),"
            " (SELECT count(*) FROM pg_cursors WHERE is_holdable), (SELECT count(*) FROM pg_listening_channels()),"
            " (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'),"
            " pg_my_temp_schema() = 0"
        ).fetchall()[0]
        assert row == (0, 0, 0, 0, True)
        connection.execute("SELECT '[1]'::vector")
        assert connection.execute(f"SELECT {wanted}").fetchall() == expected
        connection.close()


def test_a_worker_of_the_command_line_goes_through_it(pooler: Pooler, space: str, rng: np.random.Generator) -> None:
    with connect(pooler.through(pooler.app), config=POOLED) as app:
        for _ in range(12):
            app.execute("SELECT sona.record(%s, %s, '{1}', '{1}')", (space, _query(rng)))
    done = sona("worker", "instant", "--once", "--pooled", url=pooler.through(pooler.worker))
    assert done.returncode == 0, done.stderr
    assert "12 trajectories" in done.stderr


def test_prepared_statements_that_it_mixes_up_are_refused_with_the_way_out(pooler: Pooler, space: str) -> None:
    refused = ""
    with connect(pooler.through(pooler.worker)) as one, connect(pooler.through(pooler.worker)) as other:
        one.prepare_threshold = other.prepare_threshold = 0
        try:
            for number in range(4 * POOL):
                spaces.get_space(one if number % 2 else other, space)
        except DatabaseError as error:
            refused = str(error)
    # Whether they are mixed up is the pooler's business: PgBouncer from 1.21 on can keep them apart.
    assert not refused or "prepare_statements=False" in refused
