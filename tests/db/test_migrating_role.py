"""Whoever migrates, or makes the logins of the stack, calls nothing that others have put in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sona_pg.config import SCHEMA_REVISION
from sona_pg.store.migrate import migrate
from sona_pg.store.server_account import binaries_of

LOGINS = Path(__file__).parents[2] / "deploy" / "logins.sql"

TRAP = """
CREATE SEQUENCE {schema}.used;
CREATE FUNCTION {schema}.spring() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- A sequence is not rolled back.
    PERFORM pg_catalog.nextval('{schema}.used');
END $$;
GRANT ALL ON SEQUENCE {schema}.used TO PUBLIC;
"""
BETTER_FITS = {
    "hashtextextended(text, integer)": ("bigint", "pg_catalog.hashtextextended($1, $2::bigint)"),
    "format(text, text)": ("text", "pg_catalog.format($1, VARIADIC ARRAY[$2])"),
    "format(text, name)": ("text", "pg_catalog.format($1, VARIADIC ARRAY[$2])"),
    "format(text, name, text)": ("text", "pg_catalog.format($1, VARIADIC ARRAY[$2, $3])"),
    "format(text, name, regclass)": ("text", "pg_catalog.format($1, VARIADIC ARRAY[$2, $3::text])"),
    "unnest(text[])": ("SETOF text", "pg_catalog.unnest($1)"),
    "array_fill(real, integer[])": ("real[]", "pg_catalog.array_fill($1, $2)"),
    "cardinality(text[])": ("integer", "pg_catalog.cardinality($1)"),
    "has_schema_privilege(name, regnamespace, text)": ("boolean", "pg_catalog.has_schema_privilege($1, $2::oid, $3)"),
}
"""Calls of sql/ and of the logins that these fit better than what the server has, for which they do the work."""


@pytest.fixture
def attacked(empty_url: str, role: Callable[..., str]) -> tuple[str, list[str]]:
    """A migrated database where somebody may create as much as they like; the sequences that tell what was called."""
    migrate(empty_url)
    attacker = role("attacker")
    with psycopg.connect(empty_url, autocommit=True) as connection:
        database, owner = sql.Identifier(connection.info.dbname), connection.info.user
        connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, sql.Identifier(attacker)))
        connection.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(attacker)))
    schemas = ["public", sql.Identifier(owner).as_string()]
    with psycopg.connect(make_conninfo(empty_url, user=attacker), autocommit=True) as own:
        own.execute(f"CREATE SCHEMA {schemas[1]}; GRANT USAGE ON SCHEMA {schemas[1]} TO PUBLIC")  # type: ignore[arg-type]
        for schema in schemas:
            own.execute(TRAP.format(schema=schema))  # type: ignore[arg-type]
            for signature, (result, call) in BETTER_FITS.items():
                query = f"RETURN QUERY SELECT {call}" if "SETOF" in result else f"RETURN {call}"
                own.execute(
                    f"CREATE FUNCTION {schema}.{signature} RETURNS {result} IMMUTABLE LANGUAGE plpgsql AS"  # type: ignore[arg-type]
                    f" $$ BEGIN PERFORM {schema}.spring(); {query}; END $$"
                )
    return empty_url, [f"{schema}.used" for schema in schemas]


def _sprung(url: str, traces: list[str]) -> list[str]:
    with psycopg.connect(url) as connection:
        return [t for t in traces if connection.execute(f"SELECT is_called FROM {t}").fetchone() != (False,)]  # type: ignore[arg-type]


def _bound(url: str, traces: list[str]) -> list[tuple[str, str]]:
    """What of schema sona would call a function of the attacker."""
    with psycopg.connect(url) as connection:
        connection.execute("SET search_path = pg_catalog")
        return connection.execute(
            "SELECT pg_describe_object(d.classid, d.objid, d.objsubid), f.oid::regprocedure::text"
            " FROM pg_depend d JOIN pg_proc f ON d.refclassid = 'pg_proc'::regclass AND f.oid = d.refobjid"
            " JOIN pg_sequence s ON s.seqrelid = ANY (%s::regclass[]) JOIN pg_class c ON c.oid = s.seqrelid"
            " WHERE f.proowner = c.relowner",
            (traces,),
        ).fetchall()


def test_the_trap_works(attacked: tuple[str, list[str]]) -> None:
    url, traces = attacked
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT hashtextextended('sona', 0)")
        assert _sprung(url, traces) == traces[1:]
        connection.execute("SET search_path = public")
        connection.execute("SELECT hashtextextended('sona', 0)")
    assert _sprung(url, traces) == traces


def test_a_migration_calls_and_binds_nothing_of_others(attacked: tuple[str, list[str]]) -> None:
    url, traces = attacked
    assert migrate(url) == SCHEMA_REVISION
    assert (_sprung(url, traces), _bound(url, traces)) == ([], [])
    # The revisions, both ways.
    migrate(url, revision="base")
    assert migrate(url) == SCHEMA_REVISION
    assert (_sprung(url, traces), _bound(url, traces)) == ([], [])


@pytest.fixture
def logins(empty_url: str) -> Iterator[Callable[..., None]]:
    """Runs deploy/logins.sql; what it makes goes at the end."""
    psql = shutil.which("psql", path=f"{binaries_of(18)}:{os.environ['PATH']}")
    names = ("sona_user", "sona_grafana")
    with psycopg.connect(empty_url, autocommit=True) as connection:
        if connection.execute("SELECT FROM pg_roles WHERE rolname = ANY (%s)", (list(names),)).fetchone():
            # Of a stack that somebody runs, on a server that was given: they are not for a test to drop.
            pytest.skip("the server has logins of the stack already")

    def run(grafana: str = "") -> None:
        command = [psql, "--no-psqlrc", "--quiet", "--tuples-only", "--set", "ON_ERROR_STOP=1", "--file", str(LOGINS)]
        environment = os.environ | {"SONA_USER_PASSWORD": "it's", "SONA_GRAFANA_PASSWORD": grafana}
        done = subprocess.run([*command, empty_url], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")

    yield run
    with psycopg.connect(empty_url, autocommit=True) as connection:
        for name in names:
            if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchone():
                connection.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")  # type: ignore[arg-type]


def test_the_logins_of_the_stack_call_nothing_of_others(
    attacked: tuple[str, list[str]], logins: Callable[..., None]
) -> None:
    logins()
    logins(grafana="gr@f'ana")
    assert _sprung(*attacked) == []


def test_what_the_logins_of_the_stack_may(empty_url: str, logins: Callable[..., None]) -> None:
    migrate(empty_url)
    logins(grafana="g")
    with psycopg.connect(make_conninfo(empty_url, user="sona_user"), autocommit=True) as user:
        user.execute("CREATE TABLE items (id integer PRIMARY KEY, embedding vector(3))")
        assert user.execute("SELECT 'sona_user.items'::regclass::oid = 'items'::regclass").fetchone() == (True,)
        user.execute("SELECT sona.create_space('support', 3)")
        user.execute("SELECT sona.set_items('support', 'items', 'id', 'embedding')")
        user.execute("CREATE TABLE sona_demo.documents (); CREATE TEMPORARY TABLE t ()")
        for refused in ("CREATE TABLE public.t ()", "CREATE SCHEMA postgres", "CREATE SCHEMA any_other"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                user.execute(refused)  # type: ignore[arg-type]
    with psycopg.connect(make_conninfo(empty_url, user="sona_grafana"), autocommit=True) as grafana:
        assert grafana.execute("SELECT space FROM sona.status").fetchall() == [("support",)]
        grafana.execute("SET default_transaction_read_only = off")
        for refused in ("CREATE TEMPORARY TABLE u ()", "DELETE FROM sona.space", "SELECT * FROM sona_user.items"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                grafana.execute(refused)  # type: ignore[arg-type]
