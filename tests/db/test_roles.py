"""The roles: what a reader, an application and a worker may do, in their own spaces and in those of others."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sona_pg import SonaEngine, StoreConfig, UnknownSpace
from sona_pg.config import SCHEMA_REVISION
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer
from sona_pg.worker import InstantWorker

from .conftest import DIM, World

Vector = NDArray[np.float32]

ROLES = ("sona_reader", "sona_app", "sona_worker")

APP_INSERTS = {
    "trajectory": {
        "space_id", "trajectory_id", "query", "quality", "latency_us", "user_id", "session_id", "metadata", "arm",
        "version", "strategy", "propensity",
    },
    "trajectory_step": {
        "space_id", "trajectory_id", "ordinal", "item_id", "position", "reward", "attention", "activation",
    },
    "score": {"space_id", "score_id", "trajectory_id", "item_id", "name", "value"},
    "pending_trajectory": {"space_id", "trajectory_id"},
    "pattern_access": {"space_id", "pattern_id", "access_count", "last_accessed"},
}  # fmt: skip
"""Everything that an application may add."""

APP_UPDATES = {"pattern_access": {"access_count", "last_accessed"}}
"""Columns that it may rewrite."""

WORKER_UPDATES = {
    "space": {
        "strategy",
        "frozen_from",
        "control_share",
        "embedder",
        "trajectory_retention",
        "step_retention",
        "steps_deleted_before",
        "steps_lost_before",
        "may_transfer",
        "name",
        "standby_of",
        "replaced_at",
    },
    "space_grant": {"may_write"},
    "score": {"revision"},
    "memory_archive": {"into_id"},
    "remembered_query": {"admitted", "helped", "rewards", "unhelpful"},
    "pending_trajectory": {"created_at"},
    "learning_event": {"ordinal", "learned"},
    "learning_cycle": {"events", "learned"},
    "forgotten_user": {"forgotten_at"},
}
"""Columns that a worker may rewrite, of the tables that it may not rewrite as a whole."""

WORKER_INSERTS = {"deployment": {"space_id", "action", "before", "after", "reason"}}
"""Columns that a worker may say, of the tables to which it may add rows and from which it may delete none."""

WORKER_READS = {"forgotten_user"}
"""Tables that lesser roles do not see."""

WORKER_REWRITES = {
    "learner", "served_row", "memory_edge", "item_source", "strategist", "strategy_evidence", "strategy_region",
    "item_outcome", "answer_outcome", "loop_schedule", "loop_run",
    "pattern", "pattern_access", "pattern_state", "verdict", "base_state", "fisher_snapshot", "memory_node",
    "memory_node_state", "memory_state",
}  # fmt: skip

READING_VOLATILES = {
    "new_trajectory_id", "_widen_search", "_nearest_items", "_search_items", "_near_events", "_score_items",
    "_related_items", "_answer",
}  # fmt: skip
"""Functions that are volatile and write nothing all the same."""

APP_FUNCTIONS = {"record", "record_batch", "score", "score_batch", "_count_accesses"}

WORKER_FUNCTIONS = {
    "create_space", "drop_space", "set_items", "admit_queries", "_index_queries", "_drop_queries_index", "grant_space",
    "revoke_space", "set_strategy", "set_retention", "apply_retention", "_lock_learner", "_delete_trajectories",
    "_delete_orphan_scores", "_delete_steps", "_changeable_space", "_log_deployment", "_publish", "_freeze", "deploy",
    "set_control_share", "prune_versions", "set_schedule", "run_cycle",
    "describe_pattern", "index_patterns", "index_nodes", "_index_by_size", "_index_vectors", "_drop_vectors_index",
    "set_transfer", "add_memory_node", "add_memory_edge", "forget_dreams", "restore_memory",
    "_restore_node", "_restore_edge", "_restore_node_before", "_restore_edge_before",
}  # fmt: skip

DEFINERS = {
    "_grantable_spaces": "the policies of the grants cannot read the grants under themselves",
    "_may_grant": "the same; and whether a space has any grants shows only to the owner",
    "_index_queries": "only the owner of a table can make its indexes",
    "_drop_queries_index": "or drop them",
    "_index_vectors": "the same of patterns and memory nodes",
    "_drop_vectors_index": "and their end",
}
"""SECURITY DEFINER functions, and why."""


def _query(rng: np.random.Generator) -> Vector:
    return rng.standard_normal(DIM).astype(np.float32)


def _tables(connection: Connection, kinds: str = "rp") -> list[str]:
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'sona'::regnamespace AND relkind::text = ANY(%s) ORDER BY 1",
        (list(kinds),),
    ).fetchall()
    return [row[0] for row in rows]


def _columns(connection: Connection, table: str) -> list[str]:
    rows = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
        " ORDER BY attnum",
        (f"sona.{table}",),
    ).fetchall()
    return [row[0] for row in rows]


def _denied(connection: Connection, statement: str, *parameters: object, says: str = "permission denied") -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match=says):
        connection.execute(statement, parameters)  # type: ignore[arg-type]


@pytest.fixture
def waiting(world: World) -> None:
    """Something waits in both spaces: a worker may have learned what did."""
    for tenant in world.ids:
        with connect(world.login(f"{tenant}_app")) as app:
            app.execute("SELECT sona.record(%s, %s, '{1}', '{1}')", (tenant, np.ones(DIM, np.float32)))


@pytest.fixture
def login(world: World) -> Iterator[Callable[[str], Connection]]:
    """Connects as a login; all are closed at the end."""
    made: list[Connection] = []

    def open_as(name: str) -> Connection:
        made.append(connect(world.login(name)))
        return made[-1]

    yield open_as
    for connection in made:
        connection.close()


# What each may write


@pytest.mark.usefixtures("waiting")
def test_every_space_has_a_row_of_everything(world: World) -> None:
    with connect(world.url) as connection:
        for table in _tables(connection):
            if table != "alembic_version":
                found = connection.execute(f"SELECT DISTINCT space_id FROM sona.{table}").fetchall()
                assert {row[0] for row in found} >= set(world.ids.values()), table


@pytest.mark.parametrize("kind", ["reader", "app", "worker"])
def test_no_table_takes_what_is_not_for_the_role_to_write(
    world: World, login: Callable[[str], Connection], kind: str
) -> None:
    own = login(f"alpha_{kind}")
    for table in _tables(own):
        _denied(own, f"TRUNCATE sona.{table}")
        worker_writes = kind == "worker" and table != "alembic_version"
        if not worker_writes or table in WORKER_INSERTS:
            _denied(own, f"DELETE FROM sona.{table}")
        for column in _columns(own, table):
            insertable = (worker_writes and column in WORKER_INSERTS.get(table, {column})) or (
                kind == "app" and column in APP_INSERTS.get(table, set())
            )
            if not insertable:
                _denied(own, f"INSERT INTO sona.{table} ({column}) VALUES (DEFAULT)")
            updatable = (
                worker_writes and (table in WORKER_REWRITES or column in WORKER_UPDATES.get(table, set()))
            ) or (kind == "app" and column in APP_UPDATES.get(table, set()))
            if not updatable:
                _denied(own, f"UPDATE sona.{table} SET {column} = DEFAULT")


@pytest.mark.parametrize("kind", ["reader", "app", "worker"])
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE sona.mine (a integer)",
        "CREATE FUNCTION sona.mine() RETURNS integer LANGUAGE sql RETURN 1",
        "ALTER TABLE sona.learner DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE sona.learner NO FORCE ROW LEVEL SECURITY",
        "CREATE POLICY mine ON sona.learner USING (true)",
        "DROP POLICY reads ON sona.learner",
        "DROP TABLE sona.learner",
        "CREATE INDEX ON sona.trajectory (arm)",
        "SELECT setval(pg_get_serial_sequence('sona.space', 'space_id'), 1)",
    ],
)
def test_no_role_changes_the_schema(login: Callable[[str], Connection], kind: str, statement: str) -> None:
    _denied(login(f"alpha_{kind}"), statement, says=r"permission denied|must be owner")


def test_functions_are_for_whom_they_are(world: World) -> None:
    with connect(world.url) as connection:
        rows = connection.execute(
            "SELECT p.proname, p.provolatile <> 'v', ARRAY(SELECT r FROM unnest(%s::text[]) r"
            "  WHERE has_function_privilege(r, p.oid, 'EXECUTE')),"
            " p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0)"
            " FROM pg_proc p WHERE p.pronamespace = 'sona'::regnamespace",
            (list(ROLES),),
        ).fetchall()
    for name, reads, may, public in rows:
        assert not public, name
        if name in WORKER_FUNCTIONS:
            assert may == ["sona_worker"], name
        elif name in APP_FUNCTIONS:
            assert may == ["sona_app", "sona_worker"], name
        else:
            assert may == list(ROLES), name
            assert reads or name in READING_VOLATILES


def test_definers_are_these_and_no_others(connection: Connection) -> None:
    rows = connection.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'sona'::regnamespace AND prosecdef"
    ).fetchall()
    assert {row[0] for row in rows} == set(DEFINERS)


def test_a_reader_cannot_record_score_nor_create(world: World, login: Callable[[str], Connection]) -> None:
    reader, id = login("alpha_reader"), world.trajectories["alpha"]
    for statement in (
        "SELECT sona.record('alpha', '[1]')",
        "SELECT sona.record_batch('alpha', '[]')",
        f"SELECT sona.score('{id}', 1)",
        "SELECT sona.score_batch('alpha', '[]')",
        "SELECT sona.create_space('mine', 2)",
        "SELECT sona.drop_space('alpha')",
        "SELECT sona.set_items('alpha', 'shop.items', 'id', 'embedding')",
        "SELECT sona.admit_queries('alpha')",
        "SELECT sona.index_patterns('alpha')",
        "SELECT sona.index_nodes('alpha')",
        "SELECT sona.add_memory_node('alpha', 'concept', 'a')",
        "SELECT sona.add_memory_edge('alpha', 'concept', 'a', 'concept', 'b', 0.5)",
        "SELECT sona.forget_dreams('alpha')",
        "SELECT sona.restore_memory('alpha')",
        "SELECT sona._count_accesses(1, '{1}', '{1}')",
        "SELECT sona.set_strategy('alpha', 'frozen')",
        "SELECT sona.set_control_share('alpha', 0)",
        "SELECT sona.set_transfer('alpha', true)",
        "SELECT sona.deploy('alpha', 'frozen')",
        "SELECT sona.deploy('alpha', 1)",
        "SELECT sona.grant_space('alpha', current_user)",
    ):
        _denied(reader, statement)


def test_who_may_only_read_a_space_writes_nothing_there_whatever_the_role(
    world: World, login: Callable[[str], Connection], role: Callable[..., str], rng: np.random.Generator
) -> None:
    name = role("guest", "sona_worker")
    login("alpha_worker").execute("SELECT sona.grant_space('alpha', %s, false)", (name,))
    with connect(make_conninfo(world.url, user=name)) as guest:
        assert guest.execute("SELECT space FROM sona.status").fetchall() == [("alpha",)]
        _denied(guest, "SELECT sona.record('alpha', %s)", _query(rng), says="row-level security")
        _denied(guest, "SELECT sona.score(%s, 1)", world.trajectories["alpha"], says="row-level security")
        _denied(guest, "SELECT sona.grant_space('alpha', current_user)", says="row-level security")
        _denied(guest, "SELECT sona.revoke_space('alpha', current_user)", says="permission denied for space")
        _denied(guest, "SELECT sona.set_strategy('alpha', 'frozen')", says="permission denied for space")
        _denied(guest, "SELECT sona.drop_space('alpha')", says="this role may only read it")
        for table in _tables(guest):
            if table in WORKER_INSERTS:
                _denied(guest, f"DELETE FROM sona.{table}")
            elif table != "alembic_version":
                assert guest.execute(f"DELETE FROM sona.{table}").rowcount == 0
        assert guest.execute("UPDATE sona.space_grant SET may_write = true").rowcount == 0
        assert guest.execute("UPDATE sona.strategist SET in_force = 'fusion'").rowcount == 0
    login("alpha_worker").execute("SELECT sona.revoke_space('alpha', %s)", (name,))


# What an application does


def test_an_application_records_scores_adapts_and_recalls(
    login: Callable[[str], Connection], rng: np.random.Generator
) -> None:
    app, query = login("alpha_app"), _query(rng)
    # The first statement of a session: pgvector's library, whose settings recall makes, is not loaded yet.
    found = app.execute("SELECT item_id FROM sona.recall('alpha', %s, 5)", (query,)).fetchall()
    assert len(found) == 5
    assert not np.array_equal(app.execute("SELECT sona.adapt('alpha', %s)", (query,)).fetchall()[0][0], query)
    id = app.execute("SELECT sona.record('alpha', %s, %s)", (query, [row[0] for row in found])).fetchall()[0][0]
    assert app.execute("SELECT sona.record('alpha', %s, trajectory_id => %s)", (query, id)).fetchall() == [(id,)]
    for expected in (True, False):
        scored = app.execute("SELECT sona.score(%s, 1, %s, score_id => %s)", (id, found[0][0], str(id)))
        assert scored.fetchall() == [(expected,)]
    assert app.execute("SELECT sona.score(%s, 1, space => 'alpha')", (uuid.uuid4(),)).fetchall() == [(True,)]
    batch = app.execute(
        "SELECT sona.record_batch('alpha', jsonb_build_array(jsonb_build_object('query', to_json(%s::float4[]),"
        " 'item_ids', '[\"1\"]'::jsonb, 'rewards', '[1]'::jsonb)))",
        (query.tolist(),),
    ).fetchall()
    scores = app.execute(
        "SELECT sona.score_batch('alpha', jsonb_build_array(jsonb_build_object('trajectory', %s::uuid, 'value', 1)))",
        batch[0],
    )
    assert scores.fetchall() == [(1,)]
    assert app.execute("SELECT count(*) FROM sona.nearest_queries('alpha', %s, 3)", (query,)).fetchall() == [(3,)]


def test_the_engine_of_a_reader_recalls_and_declares_nothing(world: World, login: Callable[[str], Connection]) -> None:
    login("alpha_worker").execute("SELECT sona.create_space('alpha_fresh', %s)", (DIM,))
    login("alpha_worker").execute("SELECT sona.grant_space('alpha_fresh', %s, false)", (world.logins["alpha_reader"],))
    with SonaEngine.connect(world.login("alpha_reader"), space="alpha_fresh", background=False) as fresh:
        fresh.flush()
    with SonaEngine.connect(world.login("alpha_reader"), space="alpha", background=False) as engine:
        assert len(engine.recall(np.ones(DIM), 5).items) == 5
        assert not np.array_equal(engine.adapt(np.ones(DIM)), np.ones(DIM, np.float32))
        engine.flush()


def test_the_engine_of_a_reader_leaves_the_weighing_to_those_who_may_write(
    world: World, login: Callable[[str], Connection], rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    with SonaEngine.connect(world.login("alpha_reader"), space="alpha", background=False) as reader:
        with SonaEngine.connect(world.login("alpha_worker"), space="alpha", background=False) as writer:
            writer.record(_query(rng), ["1"], [1.0])
            writer.instant.flush_updates()
        unweighed = "SELECT unweighed > 0 FROM sona.status WHERE space = 'alpha'"
        assert login("alpha_app").execute(unweighed).fetchall() == [(True,)]
        login("alpha_worker").execute("SELECT sona.set_strategy('alpha', 'frozen')")
        try:
            reader.flush()
            # What answers is followed all the same.
            assert reader.recall(np.ones(DIM), 5).answer.strategy == "frozen"
            assert np.array_equal(reader.adapt(np.ones(DIM)), np.ones(DIM, np.float32))
        finally:
            login("alpha_worker").execute("SELECT sona.set_strategy('alpha', 'adapted')")
        assert login("alpha_app").execute(unweighed).fetchall() == [(True,)]
    assert caplog.text == ""


# What a worker does


def test_a_worker_learns_what_an_application_recorded(
    world: World, login: Callable[[str], Connection], rng: np.random.Generator
) -> None:
    app = login("alpha_app")
    for _ in range(3):
        row = app.execute("SELECT sona.record('alpha', %s, '{1,2}')", (_query(rng),)).fetchall()[0]
        app.execute("SELECT sona.score(%s, 1, '2')", row)
    worker = InstantWorker(Database(world.login("alpha_worker"), StoreConfig(exact_search_rows=1)))
    while worker.step() + worker.weigh():
        pass
    assert worker.failing == []
    worker.close()
    assert app.execute("SELECT pending FROM sona.status WHERE space = 'alpha'").fetchall() == [(0,)]
    assert app.execute(
        "SELECT learned FROM sona.ledger WHERE trajectory_id = %s ORDER BY revision", row
    ).fetchall() == [("no outcome",), ("adapter",)]
    # More than one remembered query: the worker has made the index that belongs to the owner of the table.
    assert app.execute("SELECT bool_and(admitted) FROM sona.remembered_query").fetchall() == [(True,)]
    assert app.execute("SELECT sona._queries_index(%s) IS NOT NULL", (world.ids["alpha"],)).fetchall() == [(True,)]
    foreign = world.ids["beta"]
    worker_login = connect(world.login("alpha_worker"))
    for statement in (
        "SELECT sona._index_queries(%s, 3, %s)",
        "SELECT sona._drop_queries_index(%s, %s)",
        "SELECT sona._index_vectors('pattern', %s, 3, %s)",
        "SELECT sona._drop_vectors_index('memory_node', %s, %s)",
    ):
        for caller in (world.logins["alpha_worker"], world.logins["beta_worker"], "postgres"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                worker_login.execute(statement, (foreign, caller))  # type: ignore[arg-type]
    worker_login.close()


def test_workers_that_need_an_index_at_once_make_one(world: World, login: Callable[[str], Connection]) -> None:
    failures: list[Exception] = []
    for number in range(4):
        login("alpha_worker").execute("SELECT sona.create_space(%s, 3)", (f"index_{number}",))
        login("alpha_worker").execute(
            "INSERT INTO sona.remembered_query (space_id, trajectory_id, embedding)"
            " SELECT space_id, gen_random_uuid(), '[1,2,3]' FROM sona.space WHERE name = %s", (f"index_{number}",)
        )  # fmt: skip

    def admit(number: int) -> None:
        try:
            with connect(world.login("alpha_worker")) as own:
                own.execute("SELECT sona.admit_queries(%s, 0)", (f"index_{number}",))
        except psycopg.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=admit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []

    def drop(number: int) -> None:
        try:
            with connect(world.login("alpha_worker")) as own:
                own.execute("SELECT sona.drop_space(%s)", (f"index_{number}",))
        except psycopg.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=drop, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_worker_drops_its_space_whole(world: World, login: Callable[[str], Connection]) -> None:
    with SonaEngine.connect(world.login("alpha_worker"), space="gone", dim=DIM, background=False) as engine:
        engine.set_items("shop.items", "id", "embedding")
        engine.record(np.ones(DIM), ["1"], [1.0])
        engine.flush()
        space_id = engine.space.space_id
    login("alpha_worker").execute("SELECT sona.drop_space('gone')")
    with connect(world.url) as connection:
        for table in _tables(connection):
            if table != "alembic_version":
                left = connection.execute(f"SELECT count(*) FROM sona.{table} WHERE space_id = %s", (space_id,))
                assert left.fetchall() == [(0,)], table


# Whose spaces


@pytest.mark.parametrize("kind", ["reader", "app", "worker"])
@pytest.mark.usefixtures("waiting")
def test_nothing_of_another_space_is_seen(world: World, login: Callable[[str], Connection], kind: str) -> None:
    own = login(f"alpha_{kind}")
    for table in _tables(own):
        if table in WORKER_READS and kind != "worker":
            _denied(own, f"SELECT FROM sona.{table}")
        elif table != "alembic_version":
            assert own.execute(
                f"SELECT count(*) FILTER (WHERE space_id = %s), count(*) FILTER (WHERE space_id = %s) > 0"
                f" FROM sona.{table}",
                (world.ids["beta"], world.ids["alpha"]),
            ).fetchall() == [(0, True)], table
    for view in _tables(own, "v"):
        if view == "workers":  # one that is at work in a space is looked at in test_loops_workers.py
            continue
        assert own.execute(
            f"SELECT count(*) FILTER (WHERE space = 'beta'), count(*) FILTER (WHERE space = 'alpha') > 0"
            f" FROM sona.{view}"
        ).fetchall() == [(0, True)], view


@pytest.mark.parametrize("kind", ["app", "worker"])
@pytest.mark.usefixtures("waiting")
def test_no_row_is_forged_moved_or_deleted_in_another_space(
    world: World, login: Callable[[str], Connection], kind: str
) -> None:
    own, theirs = login(f"alpha_{kind}"), world.ids["beta"]
    with connect(world.url, vectors=False) as connection:
        before = {table: connection.execute(f"SELECT * FROM sona.{table} ORDER BY 1, 2").fetchall()
                  for table in _tables(connection) if table not in ("alembic_version", "space")}  # fmt: skip
    for table in before:
        columns = sorted((APP_INSERTS if kind == "app" else WORKER_INSERTS).get(table, ()))
        if kind == "worker" and table not in WORKER_INSERTS:
            columns = _columns(own, table)
        columns = [
            c
            for c in columns
            if c
            not in (
                "space_id",
                "pending_id",
                "error_id",
                "sequence",
                "turn_id",
                "deployment_id",
                "run_id",
                "archive_id",
            )
        ]
        if not columns:
            continue
        listed = ", ".join(columns)
        _denied(
            own,
            f"INSERT INTO sona.{table} (space_id, {listed}) SELECT {theirs}, {listed} FROM sona.{table}"
            f" WHERE space_id = {world.ids['alpha']} LIMIT 1 ON CONFLICT DO NOTHING",
            says="row-level security",
        )
        if kind == "worker" and table not in WORKER_INSERTS:
            assert own.execute(f"DELETE FROM sona.{table} WHERE space_id = {theirs}").rowcount == 0
            _denied(own, f"UPDATE sona.{table} SET space_id = {theirs}", says="row-level security|permission denied")
    with connect(world.url, vectors=False) as connection:
        for table, rows in before.items():
            assert connection.execute(f"SELECT * FROM sona.{table} ORDER BY 1, 2").fetchall() == rows, table


def test_the_audit_trail_names_the_login_whoever_writes_it(world: World, login: Callable[[str], Connection]) -> None:
    own, key = login("alpha_worker"), world.ids["alpha"]
    with own.transaction(force_rollback=True):
        own.execute("INSERT INTO sona.deployment (space_id, action, reason) VALUES (%s, 'deploy', 'by hand')", (key,))
        rows = own.execute(
            "SELECT actor = session_user, created_at = now() FROM sona.deployment WHERE reason = 'by hand'"
        ).fetchall()
        assert rows == [(True, True)]


def test_no_number_of_a_coming_space_is_taken_in_advance(world: World, login: Callable[[str], Connection]) -> None:
    _denied(
        login("alpha_worker"),
        "INSERT INTO sona.space (space_id, name, dim, reward_min, reward_max, implicit_feedback)"
        " OVERRIDING SYSTEM VALUE VALUES (100000, 'squatted', 2, 0, 1, false)",
        says="row-level security",
    )


def test_a_space_is_granted_by_those_who_may_write_it_and_by_nobody_else(
    world: World, login: Callable[[str], Connection]
) -> None:
    worker, theirs = login("alpha_worker"), world.ids["beta"]
    for name in (world.logins["alpha_worker"], "sona_worker"):
        with pytest.raises(psycopg.Error, match="there is no space 'beta'") as refused:
            worker.execute("SELECT sona.grant_space('beta', %s)", (name,))
        assert refused.value.sqlstate == "SN001"
        _denied(
            worker,
            "INSERT INTO sona.space_grant (space_id, role_name) VALUES (%s, %s)",
            theirs,
            name,
            says="row-level security",
        )
    with pytest.raises(psycopg.Error, match="there is no space 'beta'"):
        worker.execute("SELECT sona.revoke_space('beta', %s)", (world.logins["beta_worker"],))
    with pytest.raises(psycopg.Error, match="there is no role 'nobody at all'"):
        worker.execute("SELECT sona.grant_space('alpha', 'nobody at all')")
    # Who may grant it sees, changes and takes back what others were granted.
    reader = world.logins["alpha_reader"]
    held = "SELECT may_write FROM sona.space_grant WHERE role_name = %s AND space_id = %s"
    for may_write in (True, False):
        worker.execute("SELECT sona.grant_space('alpha', %s, %s)", (reader, may_write))
        assert worker.execute(held, (reader, world.ids["alpha"])).fetchall() == [(may_write,)]
    for expected in (True, False):
        assert worker.execute("SELECT sona.revoke_space('alpha', %s)", (reader,)).fetchall() == [(expected,)]
        assert login("alpha_reader").execute("SELECT FROM sona.trajectory").fetchall() == []
    worker.execute("SELECT sona.grant_space('alpha', %s, false)", (reader,))


def test_a_space_that_is_granted_to_a_role_is_granted_to_its_members(
    world: World, login: Callable[[str], Connection], role: Callable[..., str], rng: np.random.Generator
) -> None:
    worker = login("alpha_worker")
    with connect(make_conninfo(world.url, user=role("late", "sona_app"))) as late:
        assert late.execute("SELECT space FROM sona.status").fetchall() == []
        worker.execute("SELECT sona.grant_space('alpha', 'sona_app')")
        assert late.execute("SELECT space FROM sona.status").fetchall() == [("alpha",)]
        late.execute("SELECT sona.record('alpha', %s)", (_query(rng),))
        worker.execute("SELECT sona.revoke_space('alpha', 'sona_app')")
        assert late.execute("SELECT space FROM sona.status").fetchall() == []


@pytest.mark.parametrize("kind", ["reader", "app", "worker"])
def test_which_spaces_another_role_has_is_not_told(world: World, login: Callable[[str], Connection], kind: str) -> None:
    own = login(f"alpha_{kind}")
    for other in ("beta_reader", "beta_app", "beta_worker"):
        name = world.logins[other]
        assert own.execute("SELECT sona._grantable_spaces(%s)", (name,)).fetchall() == [([],)]
        for space_id in world.ids.values():
            assert own.execute("SELECT sona._may_grant(%s, %s)", (space_id, name)).fetchall() == [(False,)]
    owner = psycopg.conninfo.conninfo_to_dict(world.url)["user"]
    assert own.execute("SELECT sona._grantable_spaces(%s)", (owner,)).fetchall() == [([],)]
    writes = [world.ids["alpha"]] if kind != "reader" else []
    held = own.execute("SELECT sona._grantable_spaces(current_user)").fetchall()[0][0]
    assert [id for id in held if id in world.ids.values()] == writes


def test_a_login_that_acts_as_its_role_grants_for_it(world: World, role: Callable[..., str]) -> None:
    team = role("team", "sona_worker")
    member = role("member", team)
    with connect(make_conninfo(world.url, user=member)) as own:
        own.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(team)))
        own.execute("SELECT sona.create_space('of the team', 3)")
        own.execute("SELECT sona.grant_space('of the team', %s, false)", (world.logins["alpha_reader"],))
        assert own.execute("SELECT count(*) FROM sona.space_grant").fetchall() == [(2,)]
        own.execute("RESET ROLE")
        assert own.execute("SELECT count(*) FROM sona.space_grant").fetchall() == [(2,)]
        assert own.execute(
            "SELECT sona.revoke_space('of the team', %s)", (world.logins["alpha_reader"],)
        ).fetchall() == [(True,)]
        own.execute("SELECT sona.drop_space('of the team')")


def test_a_function_of_an_application_acts_with_its_owners_grants(
    world: World, role: Callable[..., str], rng: np.random.Generator
) -> None:
    owner, caller = role("owner", "sona_worker"), role("caller")
    with connect(make_conninfo(world.url)) as superuser:
        superuser.execute(sql.SQL("CREATE SCHEMA desk AUTHORIZATION {}").format(sql.Identifier(owner)))
    with connect(make_conninfo(world.url, user=owner)) as own:
        own.execute("SELECT sona.create_space('desk', %s)", (DIM,))
        for name, call in (
            ("ask", "SELECT sona.record('desk', $1, quality => 1)::text"),
            ("spaces", "SELECT string_agg(space, ',') FROM sona.status"),
            ("open", "SELECT sona.create_space('another desk', 3)::text"),
            ("close", "SELECT sona.drop_space('another desk')::text"),
            ("give", "SELECT sona.grant_space('desk', 'sona_app')::text"),
        ):
            own.execute(
                f"CREATE FUNCTION desk.{name}(public.vector DEFAULT NULL) RETURNS text LANGUAGE sql SECURITY DEFINER"
                f" SET search_path = pg_catalog AS $${call}$$"  # type: ignore[arg-type]
            )
        own.execute(sql.SQL("GRANT USAGE ON SCHEMA desk TO {}").format(sql.Identifier(caller)))
    with connect(make_conninfo(world.url, user=caller)) as other:
        other.execute("SELECT desk.ask(%s)", (_query(rng),))
        assert other.execute("SELECT desk.spaces()").fetchall() == [("desk",)]
        other.execute("SELECT desk.open()")
        other.execute("SELECT desk.close()")
        # Who owns the function is no role that its caller may act as.
        _denied(other, "SELECT desk.give()", says="row-level security")
    with connect(world.url) as superuser:
        superuser.execute("DROP SCHEMA desk CASCADE")
        superuser.execute("SELECT sona.drop_space('desk')")


def test_the_engine_of_another_tenant_finds_no_space(world: World) -> None:
    with pytest.raises(UnknownSpace):
        SonaEngine.connect(world.login("alpha_worker"), space="beta")


# Who migrates


def test_an_owner_who_may_not_create_roles_is_told_the_way_out(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = EmbeddedServer(home).start()
    with psycopg.connect(root, autocommit=True) as connection:
        connection.execute("CREATE ROLE landlord LOGIN NOSUPERUSER NOCREATEROLE")
        connection.execute("CREATE DATABASE estate OWNER landlord")
    with psycopg.connect(make_conninfo(root, dbname="estate"), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
    url = make_conninfo(root, dbname="estate", user="landlord")
    with caplog.at_level(logging.WARNING, logger="sona_pg"):
        assert migrate(url) == SCHEMA_REVISION
    warned = [record.getMessage() for record in caplog.records if "there is no role" in record.getMessage()]
    assert len(warned) == 3
    with SonaEngine.connect(url, space="owned", dim=DIM, background=False) as engine:
        engine.record(np.ones(DIM), ["1"], [1.0])
        engine.flush()
        engine.instant.flush_updates()
    remedy = re.findall(r"CREATE ROLE [^;]+;", warned[0])
    assert len(remedy) == 3
    with psycopg.connect(root, autocommit=True) as connection:
        for statement in remedy:
            connection.execute(statement)
        connection.execute("CREATE ROLE tenant LOGIN IN ROLE sona_app")
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="sona_pg"):
        migrate(url)
    assert caplog.records == []
    with connect(url) as connection:
        connection.execute("SELECT sona.grant_space('owned', 'tenant')")
    with connect(make_conninfo(url, user="tenant")) as tenant:
        tenant.execute("SELECT sona.record('owned', %s)", (np.ones(DIM, np.float32),))
        assert tenant.execute("SELECT trajectories FROM sona.status").fetchall() == [(2,)]
    assert migrate(url, revision="base") is None
    assert migrate(url) == SCHEMA_REVISION


def test_databases_of_one_server_are_migrated_at_once(home: Path) -> None:
    root = EmbeddedServer(home).start()
    names = [f"at_once_{number}" for number in range(4)]
    with psycopg.connect(root, autocommit=True) as connection:
        for name in names:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    # Processes, not threads: Alembic keeps its context in a global.
    command = [sys.executable, "-m", "sona_pg", "migrate", "--url"]
    runs = [
        subprocess.Popen([*command, make_conninfo(root, dbname=name)], stderr=subprocess.PIPE, text=True)
        for name in names
    ]
    said = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs), said
    for name in names:
        with psycopg.connect(make_conninfo(root, dbname=name)) as connection:
            granted = connection.execute(
                "SELECT has_table_privilege('sona_reader', 'sona.learner', 'SELECT'),"
                " pg_has_role('sona_worker', 'sona_reader', 'USAGE')"
            ).fetchall()
            assert granted == [(True, True)]
