"""Whose spaces: nothing of another space is seen or changed, and how a space is granted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sona_pg import SonaEngine, UnknownSpace
from sona_pg.store.connection import Connection, connect

from .conftest import DIM, World
from .rights import APP_INSERTS, WORKER_INSERTS, WORKER_READS, _columns, _denied, _query, _tables
from .rights import login as login
from .rights import waiting as waiting


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
