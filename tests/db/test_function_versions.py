"""Versions of sona_pg that work with the same revision, and have other functions: which of them a database has."""

from __future__ import annotations

import hashlib
import logging

import pytest

from sona_pg import SonaEngine
from sona_pg.config import SCHEMA_REVISION, VERSION
from sona_pg.doctor import Finding, Verdict, examine
from sona_pg.store import database, routines
from sona_pg.store import migrate as migrate_module
from sona_pg.store.connection import connect
from sona_pg.store.database import open_database
from sona_pg.store.migrate import migrate
from sona_pg.store.routines import Installed, Standing


@pytest.fixture
def embedded_url(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database that is taken for the embedded server's."""
    monkeypatch.setattr(database, "resolve_url", lambda *_, **__: (empty_url, True))
    open_database()
    return empty_url


def left_by(url: str, version: str | None) -> None:
    """As another version leaves it, which has one function less."""
    other = hashlib.sha256(b"another text").hexdigest()
    noted = "NULL" if version is None else f"'functions of sona-pg {version}, sha256 {other}'"
    with connect(url) as connection:
        found = connection.execute("SELECT oid::regprocedure::text FROM pg_proc WHERE proname = '_edge_flaw'")
        for (name,) in found.fetchall():
            connection.execute(f"DROP FUNCTION {name}")
        connection.execute(f"COMMENT ON TABLE sona.alembic_version IS {noted}")


def has_all(url: str) -> bool:
    with connect(url) as connection:
        return connection.execute("SELECT count(*) FROM pg_proc WHERE proname = '_edge_flaw'").fetchone() == (1,)


def standing(url: str) -> Installed:
    with connect(url, vectors=False) as connection:
        return routines.installed(connection)


def functions(url: str) -> Finding:
    (found,) = (finding for finding in examine(url) if finding.check == "functions")
    return found


OLDER = [None, "0.0.9", VERSION, f"{VERSION}rc1", f"{VERSION}+local", "0"]
NEWER = [f"{VERSION}.1", "99.0.0rc1", "100"]


@pytest.mark.parametrize("version", OLDER)
def test_the_embedded_server_gets_the_functions_of_the_version_that_opens_it(
    embedded_url: str, version: str | None
) -> None:
    left_by(embedded_url, version)
    assert standing(embedded_url) == Installed(Standing.OTHER, version)
    open_database()
    assert has_all(embedded_url)
    assert standing(embedded_url) == Installed(Standing.OWN, VERSION)


@pytest.mark.parametrize("version", NEWER)
def test_functions_of_a_newer_version_stay_unless_the_revision_is_named(
    embedded_url: str, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    left_by(embedded_url, version)
    open_database()
    with caplog.at_level(logging.WARNING):
        assert migrate(embedded_url) == SCHEMA_REVISION
    assert f"of sona-pg {version}, newer than this {VERSION}, and stay" in caplog.text
    assert standing(embedded_url) == Installed(Standing.NEWER, version)
    assert not has_all(embedded_url)
    migrate(embedded_url, revision=SCHEMA_REVISION)
    assert has_all(embedded_url)
    assert standing(embedded_url) == Installed(Standing.OWN, VERSION)


@pytest.mark.parametrize(("own", "other", "found"), [
    ("0.9.0", "0.10", Standing.NEWER), ("0.10", "0.9.9", Standing.OTHER), ("1.0", "1.0.0", Standing.OTHER),
])  # fmt: skip
def test_versions_are_compared_by_their_numbers(
    embedded_url: str, own: str, other: str, found: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by(embedded_url, other)
    monkeypatch.setattr(routines, "VERSION", own)
    assert standing(embedded_url).standing is found


def test_two_versions_at_work_at_once_do_not_migrate_to_and_fro(
    embedded_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    migrate_once = migrate_module._migrate_once

    def count(*given: object) -> str | None:
        begun.append(routines.VERSION)
        return migrate_once(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(migrate_module, "_migrate_once", count)
    for version in (VERSION, "100.0") * 3:
        monkeypatch.setattr(routines, "VERSION", version)
        open_database()
    assert begun == ["100.0"]


def test_a_server_of_somebody_else_is_left_to_them(empty_url: str) -> None:
    migrate(empty_url)
    left_by(empty_url, "0.0.9")
    SonaEngine.connect(empty_url, space="x", dim=2, background=False).close()
    assert standing(empty_url) == Installed(Standing.OTHER, "0.0.9")


def test_functions_that_refer_to_pgvector_where_it_was_are_others(embedded_url: str) -> None:
    with connect(embedded_url) as connection:
        connection.execute("CREATE SCHEMA elsewhere")
        connection.execute("ALTER EXTENSION vector SET SCHEMA elsewhere")
    assert standing(embedded_url).standing is Standing.OTHER
    open_database()
    assert standing(embedded_url).standing is Standing.OWN


def test_where_the_functions_go_so_does_what_is_noted_of_them(empty_url: str) -> None:
    migrate(empty_url)
    migrate(empty_url, revision="base")
    with connect(empty_url) as connection:
        assert connection.execute("SELECT obj_description('sona.alembic_version'::regclass)").fetchone() == (None,)


def test_a_dry_run_notes_nothing_down(empty_url: str) -> None:
    migrate(empty_url)
    left_by(empty_url, None)
    migrate(empty_url, dry_run=True)
    assert standing(empty_url) == Installed(Standing.OTHER, None)


@pytest.mark.parametrize(
    ("version", "says", "command"),
    [
        (None, "of an unknown version", "sona migrate"),
        ("0.0.9", "of sona-pg 0.0.9", "sona migrate"),
        (VERSION, "of another build of that number", "sona migrate"),
        ("99.0", f"of sona-pg 99.0, newer than this {VERSION}", "pip install --upgrade sona-pg"),
    ],
)
def test_the_doctor_finds_functions_of_another_version(
    empty_url: str, version: str | None, says: str, command: str
) -> None:
    migrate(empty_url)
    assert functions(empty_url) == Finding("functions", Verdict.OK, f"those of this sona-pg {VERSION}")
    left_by(empty_url, version)
    found = functions(empty_url)
    assert found.verdict is Verdict.WARNING
    assert says in found.says
    assert found.command is not None
    assert found.command.endswith(command)
