"""The roles: what a reader, an application and a worker may read, write and call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from psycopg.conninfo import make_conninfo

from sona_pg.store.connection import Connection, connect

from .conftest import World
from .rights import (
    APP_FUNCTIONS,
    APP_INSERTS,
    APP_UPDATES,
    DEFINERS,
    READING_VOLATILES,
    ROLES,
    WORKER_FUNCTIONS,
    WORKER_INSERTS,
    WORKER_REWRITES,
    WORKER_UPDATES,
    _columns,
    _denied,
    _query,
    _tables,
)
from .rights import login as login
from .rights import waiting as waiting


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
