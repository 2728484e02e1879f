"""The schema: what the migrations build is what the code says, and they can be undone, repeated and interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from sona_pg import PermissionDenied, SchemaMismatch, SonaEngine, UnsupportedServer
from sona_pg.config import SCHEMA_REVISION
from sona_pg.store import connection as connection_module
from sona_pg.store.connection import Connection, connect, current_revision, engine_url
from sona_pg.store.migrate import _config, migrate
from sona_pg.store.schema import SCHEMA, metadata


def _differences(url: str) -> list[object]:
    engine = sa.create_engine(engine_url(url))
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "version_table_schema": SCHEMA,
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, parents: kind != "schema" or name == SCHEMA,
                # Large spaces have indexes of their own, which workers make.
                "include_object": lambda _, name, kind, *rest: (
                    not str(name).startswith(("remembered_query_hnsw_", "pattern_hnsw_", "memory_node_hnsw_"))
                ),
            },
        )
        found = compare_metadata(context, metadata)
    engine.dispose()
    return found


def _objects(url: str) -> list[tuple[str, str]]:
    with connect(url, vectors=False) as connection:
        return connection.execute(
            "SELECT 'relation', c.relname || c.relkind::text FROM pg_class c"
            " WHERE c.relnamespace = 'sona'::regnamespace UNION ALL"
            " SELECT 'routine', p.oid::regprocedure::text FROM pg_proc p"
            " WHERE p.pronamespace = 'sona'::regnamespace"
            " UNION ALL SELECT 'policy', p.polname || p.polrelid::regclass::text FROM pg_policy p"
            " UNION ALL SELECT 'constraint', conname || conrelid::regclass::text FROM pg_constraint"
            " WHERE connamespace = 'sona'::regnamespace ORDER BY 1, 2"
        ).fetchall()


def test_migrated_database_is_what_the_tables_say(url: str) -> None:
    assert _differences(url) == []


def test_a_column_that_differs_is_found(empty_url: str) -> None:
    migrate(empty_url)
    with connect(empty_url) as connection:
        connection.execute("ALTER TABLE sona.space ADD COLUMN stray integer")
    assert _differences(empty_url) != []


def test_code_and_migrations_agree_on_the_newest_revision() -> None:
    assert ScriptDirectory.from_config(_config()).get_current_head() == SCHEMA_REVISION


def test_up_down_up(empty_url: str) -> None:
    assert migrate(empty_url) == SCHEMA_REVISION
    first = _objects(empty_url)
    assert migrate(empty_url, revision="base") is None
    left = [name for kind, name in _objects(empty_url) if not name.startswith("alembic_version")]
    assert left == []
    migrate(empty_url)
    assert _objects(empty_url) == first


def test_migrating_twice_changes_nothing(empty_url: str) -> None:
    migrate(empty_url)
    first = _objects(empty_url)
    migrate(empty_url)
    assert _objects(empty_url) == first


def test_dry_run_leaves_nothing(empty_url: str) -> None:
    assert migrate(empty_url, dry_run=True) == SCHEMA_REVISION
    assert current_revision(empty_url) is None


def test_views_of_the_application_survive_an_upgrade(empty_url: str) -> None:
    migrate(empty_url)
    with connect(empty_url) as connection:
        connection.execute("CREATE VIEW public.mine AS SELECT space FROM sona.status")
    migrate(empty_url)
    with connect(empty_url) as connection:
        assert connection.execute("SELECT * FROM public.mine").fetchall() == []


def test_a_migration_that_is_killed_leaves_the_database_as_it_was(empty_url: str) -> None:
    script = (
        "import os, signal, sys; from sona_pg.store import migrate as m\n"
        "m.install_routines = lambda c: os.kill(os.getpid(), signal.SIGKILL)\n"
        "m.migrate(sys.argv[1])"
    )
    killed = subprocess.run([sys.executable, "-c", script, empty_url], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert current_revision(empty_url) is None
    assert migrate(empty_url) == SCHEMA_REVISION


def test_a_database_that_was_never_migrated_is_refused_with_the_way_out(empty_url: str) -> None:
    with pytest.raises(SchemaMismatch, match=r"revision none.*sona migrate"):
        SonaEngine.connect(empty_url, space="x", dim=3)


def test_a_newer_schema_is_refused(empty_url: str) -> None:
    migrate(empty_url)
    with connect(empty_url) as connection:
        connection.execute("UPDATE sona.alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaMismatch, match="9999"):
        SonaEngine.connect(empty_url, space="x", dim=3)
    with pytest.raises(SchemaMismatch, match="9999"):
        migrate(empty_url)


def test_a_server_or_a_pgvector_that_is_too_old_is_refused(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MIN_PGVECTOR", (99, 0))
    with pytest.raises(UnsupportedServer, match=r"pgvector is .*expected 99\.0"):
        migrate(empty_url)
    monkeypatch.setattr(connection_module, "MIN_POSTGRES", 99)
    with pytest.raises(UnsupportedServer, match="expected 99"):
        migrate(empty_url)


def test_a_database_without_pgvector_is_refused(empty_url: str) -> None:
    with pytest.raises(UnsupportedServer, match="no type 'vector'"):
        connect(empty_url)


def test_a_role_without_rights_is_refused(empty_url: str) -> None:
    migrate(empty_url)
    with connect(empty_url) as connection:
        connection.execute("DROP ROLE IF EXISTS sona_nobody")
        connection.execute("CREATE ROLE sona_nobody LOGIN")
        connection.execute("SET ROLE sona_nobody")
        with pytest.raises(PermissionDenied, match="permission denied"), connection_module.translated():
            connection.execute("SELECT * FROM sona.space")
        connection.execute("RESET ROLE")
        connection.execute("DROP ROLE sona_nobody")


# The catalog


def test_space_id_leads_every_key_and_row_level_security_is_forced(connection: Connection) -> None:
    rows = connection.execute(
        "SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity,"
        " (SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]"
        "  WHERE i.indrelid = c.oid AND i.indisprimary)"
        " FROM pg_class c WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind = 'r'"
        " AND c.relname <> 'alembic_version'"
    ).fetchall()
    assert len(rows) == len(metadata.tables)
    # The grants are seen by the function that decides who may grant; on them it is enabled, not forced.
    assert [row for row in rows if row[1:] != (True, "space_id")] == [("space_grant", False, "space_id")]


def test_migrating_again_does_not_wait_for_those_who_record(empty_url: str) -> None:
    migrate(empty_url)
    with connect(empty_url) as client:
        client.execute("SELECT sona.create_space('support', 3)")
        with client.transaction():
            client.execute("SELECT sona.record('support', '[1,2,3]', '{a}', '{1}')")
            client.execute("SELECT FROM sona.space_grant")
            assert migrate(f"{empty_url} options='-c lock_timeout=2s'") == SCHEMA_REVISION
            client.execute("SELECT sona.record('support', '[3,2,1]', '{b}', '{0}')")


def test_a_policy_that_somebody_has_changed_is_made_right_by_migrating_again(empty_url: str) -> None:
    migrate(empty_url)
    asked = (
        "SELECT p.polname, p.polrelid::regclass::text, pg_get_expr(p.polqual, p.polrelid),"
        " pg_get_expr(p.polwithcheck, p.polrelid), c.relrowsecurity, c.relforcerowsecurity"
        " FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid ORDER BY 1, 2"
    )
    with connect(empty_url) as connection:
        before = connection.execute(asked).fetchall()
        connection.execute("ALTER POLICY reads ON sona.trajectory USING (true)")
        connection.execute("DROP POLICY writes ON sona.score")
        connection.execute("ALTER TABLE sona.learner NO FORCE ROW LEVEL SECURITY")
        connection.execute("ALTER TABLE sona.verdict DISABLE ROW LEVEL SECURITY")
        assert connection.execute(asked).fetchall() != before
        migrate(empty_url)
        assert connection.execute(asked).fetchall() == before
