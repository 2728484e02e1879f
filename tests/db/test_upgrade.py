"""Databases as earlier versions of the code have left them, brought to the present schema: nothing is lost."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from psycopg.conninfo import make_conninfo

from sona_pg import DatabaseBusy, SchemaMismatch, SonaEngine
from sona_pg.config import SCHEMA_REVISION, BackgroundConfig, PatternConfig, StoreConfig, WorkerConfig
from sona_pg.loops.background import background_loop
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.deep import DEEP
from sona_pg.store import connection as connection_module
from sona_pg.store import migrate as migrate_module
from sona_pg.store.connection import Connection, connect, current_revision, require_schema, writing
from sona_pg.store.database import Database
from sona_pg.store.migrate import _config, migrate
from sona_pg.worker import InstantWorker
from tests.acceptance.audit import inconsistencies
from tests.acceptance.dumps import REVISIONS, restore_revision

from .cycles import run_cycle

EARLIER = sorted(path.name.partition(".")[0] for path in REVISIONS.glob("*.sql.gz"))
BACKGROUND = background_loop(BackgroundConfig(minimum=1), PatternConfig())

KEPT = {
    "trajectory": "trajectory_id, created_at, query::text, quality, latency_us, user_id, session_id, metadata, arm,"
    " version, propensity",
    "trajectory_step": "trajectory_id, ordinal, item_id, position, reward, attention, activation::text",
    "score": "score_id, trajectory_id, item_id, name, value, created_at",
    "learning_cycle": "cycle_id, loop, epoch, version, events, learned, replayed, worker, started_at, finished_at",
    "learning_event": "loop, trajectory_id, revision, cycle_id, ordinal, learned",
    "learner": "epoch, revision, version, events, ordinal, state",
    "served_row": "tier, ordinal, down::text, up::text",
    "memory_edge": "kind, source, target, weight, updated_at",
    "pending_trajectory": "pending_id, trajectory_id",
    "adapter_version": "version, parent, epoch, revision, events, cause, state, checksum, created_at",
    "pattern": "pattern_id, centroid::text, cluster_size, total_weight, avg_quality, confidence, support",
    "loop_run": "run_id, loop, cause, state, requested_at, phases, facts",
    "deployment": "deployment_id, created_at, actor, action, before, after, reason",
}
"""What must be the same after a migration, by table."""


def _rows(connection: Connection, tables: dict[str, str]) -> dict[str, list[tuple[object, ...]]]:
    return {
        table: sorted(connection.execute(f"SELECT {columns} FROM sona.{table}").fetchall(), key=repr)
        for table, columns in tables.items()
    }


def _held(connection: Connection, revision: str) -> dict[str, str]:
    """The tables of KEPT that there were, and that the way up does not make anew."""
    found = {
        row[0] for row in connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'sona'::regnamespace")
    }
    # Revision 0005 deletes what was published before it: a deploy could not bring all of it back.
    gone = {"adapter_version", "served_row"} if revision < "0005" else set()
    kept = {table: columns for table, columns in KEPT.items() if table in found - gone}
    if revision < "0002":
        # Written anew in another form; the weights in it are compared.
        kept["learner"] = kept["learner"].removesuffix(", state")
    return kept


def _weights(state: bytes) -> dict[str, bytes]:
    """Weights and moments of a learner's state, in the form of revision 0001 or behind a checksum."""
    archive = state if state.startswith(b"PK") else state[hashlib.sha256().digest_size :]
    with np.load(io.BytesIO(archive)) as parts:
        return {name: parts[name].tobytes() for name in parts.files if name.startswith("adapter.")} | {
            "micro": parts["micro.weights"].tobytes()
        }


def test_there_is_a_database_of_every_earlier_revision() -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    assert [revision for revision in EARLIER if revision not in known] == []
    assert sorted(known - {SCHEMA_REVISION}) == EARLIER


def test_the_page_on_upgrades_shows_the_present_revision() -> None:
    page = (Path(__file__).parents[2] / "docs" / "upgrade.md").read_text(encoding="utf-8")
    assert f"schema is at revision {SCHEMA_REVISION}; it was at {EARLIER[-1]}" in page
    assert f"revision='{EARLIER[-1]}'" in page


def test_the_way_back_is_as_the_page_says(url: str, empty_url: str) -> None:
    restore_revision(empty_url, EARLIER[-1])
    with connect(empty_url) as connection:
        tables = _held(connection, EARLIER[-1])
        before = _rows(connection, tables)
        migrate(empty_url)
        connection.execute("CREATE VIEW public.mine AS SELECT space FROM sona.status")
        assert migrate(empty_url, revision=EARLIER[-1]) == EARLIER[-1]
        assert _rows(connection, tables) == before
        left = connection.execute(
            "SELECT (SELECT count(*) FROM pg_proc WHERE pronamespace = 'sona'::regnamespace)"
            " + (SELECT count(*) FROM pg_policy), to_regclass('sona.status'), to_regclass('public.mine')"
        ).fetchone()
        assert left == (0, None, None)
        assert migrate(empty_url) == SCHEMA_REVISION
        assert _rows(connection, tables) == before


@pytest.mark.parametrize("revision", EARLIER)
def test_what_earlier_code_has_left_goes_on(url: str, empty_url: str, revision: str) -> None:
    restore_revision(empty_url, revision)
    with connect(empty_url) as connection:
        tables = _held(connection, revision)
        before = _rows(connection, tables)
        assert before["trajectory"]
        assert before["learner"]
        ((state,),) = connection.execute("SELECT state FROM sona.learner").fetchall()
        assert migrate(empty_url) == SCHEMA_REVISION
        assert _rows(connection, tables) == before
        connection.execute("SELECT sona.set_strategy('shop', 'adapted')")
        answers = connection.execute("SELECT query, adapted FROM public.answer").fetchall()
        for query, adapted in answers:
            # What answered may have been another instruction set's kernels: the weights are compared bit for bit.
            (found,) = connection.execute("SELECT sona.adapt('shop', %s)", (np.array(query, np.float32),)).fetchone()
            np.testing.assert_allclose(found, np.array(adapted, np.float32), rtol=1e-5, atol=1e-6)
    events = len(before["learning_event"])
    with SonaEngine.connect(empty_url, space="shop", background=False) as engine:
        assert _weights(engine.instant.learner.to_bytes()) == _weights(state)
        for query, adapted in answers:
            np.testing.assert_allclose(engine.adapt(query), np.array(adapted, np.float32), rtol=1e-5, atol=1e-6)
        recalled = engine.recall(answers[0][0], 3)
        assert len(recalled.items) == 3
        engine.record(recalled, rewards={recalled.items[0].item_id: 1.0})
        engine.score(uuid.UUID(int=1), 1.0, "3", score_id="after")
        engine.flush()
        assert engine.metrics.refused == 0
        space_id = engine.space.space_id
    worker = InstantWorker(Database(empty_url, StoreConfig()))
    while worker.step() + worker.weigh():
        pass
    worker.close()
    assert worker.failing == []
    with connect(empty_url) as connection:
        assert connection.execute("SELECT count(*) FROM sona.learning_event").fetchone() > (events + 1,)
        assert connection.execute("SELECT count(*) FROM sona.pending_trajectory").fetchone() == (0,)
        # What a background cycle settles grows the revision, and is no cycle of the instant loop.
        wrong = set(inconsistencies(connection, space_id))
        assert wrong <= ({"cycles are not one for each revision"} if before.get("loop_run") else set())
    assert run_cycle(empty_url, "shop", BACKGROUND).state == "done"
    assert run_cycle(empty_url, "shop", DEEP).state == "done"


def test_a_migration_that_is_killed_after_any_revision_runs_again(url: str, empty_url: str) -> None:
    """One process, which forks for every kill: what takes long is to begin."""
    script = (
        "import os, sys; from sona_pg import steps; from sona_pg.store.migrate import migrate\n"
        "for aim in sys.argv[2:]:\n"
        "    if (child := os.fork()) == 0:\n"
        "        steps._act = steps._killer(aim)\n"
        "        migrate(sys.argv[1])\n"
        "        os._exit(0)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    restore_revision(empty_url, EARLIER[0])
    with connect(empty_url) as connection:
        tables = _held(connection, EARLIER[0])
        before = _rows(connection, tables)
    aims = [f"migrate.after_revision:{count + 1}" for count in range(len(EARLIER))] + ["migrate.before_commit"]
    done = subprocess.run(
        [sys.executable, "-c", script, empty_url, *aims], env=os.environ, check=True, stdout=subprocess.PIPE
    )
    assert [int(status) for status in done.stdout.split()] == [-signal.SIGKILL] * len(aims)
    assert current_revision(empty_url) == EARLIER[0]
    assert migrate(empty_url) == SCHEMA_REVISION
    with connect(empty_url) as connection:
        assert _rows(connection, tables) == before


# While processes run


def _migrated_meanwhile(url: str, revision: str) -> None:
    """As a version of the code leaves it that makes that revision."""
    with connect(url) as connection:
        connection.execute("UPDATE sona.alembic_version SET version_num = %s", (revision,))


def test_an_engine_keeps_what_it_records_after_a_migration_for_the_next_version(empty_url: str, tmp_path: Path) -> None:
    migrate(empty_url)
    engine = SonaEngine.connect(empty_url, space="shop", dim=4, background=False, home=tmp_path)
    engine.record([1.0, 0.0, 0.0, 0.0], ["1", "2"], [1.0, 0.0], trajectory_id=uuid.UUID(int=1))
    engine.flush()
    _migrated_meanwhile(empty_url, "9999")
    asked = engine.adapt([1.0, 0.0, 0.0, 0.0])
    engine.record([0.0, 1.0, 0.0, 0.0], ["1", "2"], [1.0, 0.0], trajectory_id=uuid.UUID(int=2))
    engine.score(uuid.UUID(int=1), 0.5, "2", score_id="late")
    with pytest.raises(SchemaMismatch, match=r"revision 9999, expected .*version of sona-pg that migrated it"):
        engine.flush()
    assert engine.metrics.spooled == 2
    assert engine.adapt([1.0, 0.0, 0.0, 0.0]).tobytes() == asked.tobytes()
    engine.close()
    with connect(empty_url) as connection:
        learned = "SELECT trajectory_id, revision FROM sona.learning_event ORDER BY ordinal"
        assert connection.execute(learned).fetchall() == [(uuid.UUID(int=1), 0)]
        _migrated_meanwhile(empty_url, SCHEMA_REVISION)
        with SonaEngine.connect(empty_url, space="shop", background=False, home=tmp_path) as successor:
            successor.flush()
        assert sorted(connection.execute(learned).fetchall()) == [
            (uuid.UUID(int=n), r) for n, r in ((1, 0), (1, 1), (2, 0))
        ]


@pytest.mark.parametrize("loop", ["instant", "background"])
def test_a_worker_ends_when_the_schema_is_migrated(empty_url: str, loop: str) -> None:
    migrate(empty_url)
    database = Database(empty_url, StoreConfig())
    worker = InstantWorker(database) if loop == "instant" else LoopCoordinator(database, BACKGROUND)
    with contextlib.closing(worker):
        worker.step()
        _migrated_meanwhile(empty_url, "9999")
        with pytest.raises(SchemaMismatch, match="revision 9999"):
            worker.run(threading.Event())


@pytest.mark.parametrize("loop", ["instant", "background"])
def test_a_worker_waits_until_a_lock_is_given_back(
    empty_url: str, loop: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    migrate(empty_url)
    database, config = (
        Database(empty_url, StoreConfig(lock_timeout_seconds=1)),
        WorkerConfig(poll_interval_seconds=0.05),
    )
    worker = InstantWorker(database, config) if loop == "instant" else LoopCoordinator(database, BACKGROUND, config)

    def times_refused() -> int:
        return sum("lock timeout" in record.getMessage() for record in caplog.records)

    with contextlib.closing(worker), connect(empty_url) as other, ThreadPoolExecutor(1) as pool:
        stop, done, step = threading.Event(), threading.Event(), worker.step

        def step_and_say(*given: threading.Event) -> int:
            found = step(*given)
            done.set()
            return found

        monkeypatch.setattr(worker, "step", step_and_say)
        with other.transaction():
            other.execute("LOCK TABLE sona.alembic_version IN ACCESS EXCLUSIVE MODE")
            running = pool.submit(worker.run, stop)
            while times_refused() < 2:
                assert not running.done()
        assert done.wait(30)
        stop.set()
        running.result()


def test_a_migration_that_others_are_in_the_way_of_is_begun_again(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [DatabaseBusy("deadlock detected")]
    install = migrate_module.install_routines

    def install_or_fail(connection: sa.Connection) -> None:
        if left:
            raise left.pop()
        install(connection)

    monkeypatch.setattr(migrate_module, "install_routines", install_or_fail)
    assert migrate(empty_url) == SCHEMA_REVISION
    assert left == []


@contextlib.contextmanager
def _read_by_a_dump(url: str) -> Iterator[None]:
    """Every table is read, and its lock kept, as pg_dump does."""
    with connect(url, application="pg_dump") as reader, reader.transaction():
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        tables = reader.execute(
            "SELECT oid::regclass::text FROM pg_class"
            " WHERE relnamespace = 'sona'::regnamespace AND relkind IN ('r', 'p')"
        ).fetchall()
        assert ("sona.alembic_version",) in tables
        for (table,) in tables:
            reader.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
        yield


def test_a_migration_with_nothing_to_do_waits_for_no_dump_and_for_nobody_who_learns(
    empty_url: str, tmp_path: Path
) -> None:
    migrate(empty_url)
    with (
        SonaEngine.connect(empty_url, space="shop", dim=4, background=False, home=tmp_path) as engine,
        connect(empty_url) as writer,
        _read_by_a_dump(empty_url),
    ):
        with writing(writer):
            assert migrate(empty_url) == SCHEMA_REVISION
        engine.record([1.0, 0.0, 0.0, 0.0], ["1", "2"], [1.0, 0.0])
        engine.flush()
        assert engine.metrics.spooled == 0
        assert current_revision(empty_url) == SCHEMA_REVISION


def test_a_migration_says_who_is_in_the_way_of_it_and_lets_others_pass(
    url: str, empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore_revision(empty_url, EARLIER[-1])
    monkeypatch.setattr(migrate_module, "_ATTEMPTS", 2)
    with _read_by_a_dump(empty_url), ThreadPoolExecutor(1) as pool:
        migration = pool.submit(migrate, make_conninfo(empty_url, options="-c lock_timeout=500ms"))
        assert current_revision(empty_url) == EARLIER[-1]
        with pytest.raises(DatabaseBusy, match=r"at work in schema sona, the longest first: pg_dump \("):
            migration.result()
    assert migrate(empty_url) == SCHEMA_REVISION


def test_a_migration_keeps_nobody_waiting_for_long(url: str, empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit in the URL it has one of its own."""
    restore_revision(empty_url, EARLIER[-1])
    monkeypatch.setattr(migrate_module, "_LOCK_TIMEOUT_SECONDS", 1)
    monkeypatch.setattr(migrate_module, "_ATTEMPTS", 1)
    with _read_by_a_dump(empty_url), pytest.raises(DatabaseBusy, match="lock timeout"):
        migrate(empty_url)


def test_who_looks_for_the_revision_says_who_keeps_it(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(empty_url)
    monkeypatch.setattr(connection_module, "StoreConfig", partial(StoreConfig, lock_timeout_seconds=1))
    with connect(empty_url, application="some migration") as other, connect(empty_url) as worker, other.transaction():
        other.execute("LOCK TABLE sona.alembic_version IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseBusy, match=r"the longest first: some migration \("):
            current_revision(empty_url)
        with pytest.raises(DatabaseBusy, match=r"the longest first: some migration \("):
            require_schema(worker)
        with pytest.raises(DatabaseBusy, match="lock timeout"), writing(worker):
            pass
        # The bound was of that look alone.
        assert worker.execute("SHOW lock_timeout").fetchone() == ("0",)


def test_a_migration_waits_for_who_writes_and_they_for_it(url: str, empty_url: str) -> None:
    """Neither sees half of the other: what is computed by the old code is written before, or not at all."""
    restore_revision(empty_url, EARLIER[-1])
    with connect(empty_url) as writer, connect(empty_url) as other, ThreadPoolExecutor(1) as pool:
        with writer.transaction():
            # As `writing` of that version does.
            assert writer.execute("SELECT version_num FROM sona.alembic_version").fetchone() == (EARLIER[-1],)
            migration = pool.submit(migrate, empty_url)
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'sona.alembic_version'::regclass"
            while other.execute(waits).fetchone() != (1,):
                assert not migration.done()
        assert migration.result() == SCHEMA_REVISION
