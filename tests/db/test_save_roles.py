"""Who may save a space, and load one: a worker, and for itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from sona_pg import InvalidInput, PermissionDenied, SonaEngine
from sona_pg.loops.archiving import save_space
from sona_pg.store.connection import connect
from sona_pg.store.migrate import migrate

from . import saving
from .saving import NAME


@pytest.fixture
def origin(saved_space: tuple[str, Path]) -> str:
    return saved_space[0]


@pytest.fixture
def file(saved_space: tuple[str, Path]) -> Path:
    return saved_space[1]


def deployments(url: str, name: str) -> list[tuple[object, ...]]:
    with connect(url) as connection:
        return connection.execute(
            "SELECT d.created_at, d.actor, d.action, d.before, d.after, d.reason FROM sona.deployment d"
            " JOIN sona.space s USING (space_id) WHERE s.name = %s ORDER BY d.deployment_id",
            (name,),
        ).fetchall()


def test_a_worker_loads_saves_and_is_the_only_one_who_sees_it(
    origin: str, make_database: Callable[[], str], role: Callable[..., str], file: Path, tmp_path: Path
) -> None:
    url = make_database()
    migrate(url)
    saving.make_items(url)
    worker, other = role("worker", "sona_worker"), role("other", "sona_worker")
    as_worker, as_other = make_conninfo(url, user=worker), make_conninfo(url, user=other)
    with connect(url) as connection:
        connection.execute(f"GRANT SELECT ON public.doc TO {worker}")
    with SonaEngine.load(file, as_worker, background=False) as engine:
        assert engine.loaded is not None
        assert engine.loaded.items == "public.doc"
        with SonaEngine.connect(origin, space=NAME, background=False) as first:
            for query in saving.QUERIES[:20]:
                assert engine.recall(query).items == first.recall(query).items
        saving.record(engine, 3000, 20)
        engine.flush()
        assert engine.metrics.refused == 0
        assert engine.save(tmp_path / "again").rows["trajectory"] > 0
    with connect(as_other) as connection:
        assert connection.execute("SELECT count(*) FROM sona.trajectory").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM sona.space").fetchone() == (0,)
    with pytest.raises(InvalidInput, match="already a space"):
        SonaEngine.load(file, as_other)
    with connect(url) as connection:
        grants = connection.execute("SELECT role_name, may_write FROM sona.space_grant").fetchall()
    assert grants == [(worker, True)], "who may use it is not for a file to say"

    # A worker cannot make the audit trail say of others what they did: it says that it says so.
    trail, of_file = deployments(url, NAME), deployments(origin, NAME)
    assert len(trail) == len(of_file) + 1
    assert {entry[1] for entry in trail} == {worker}
    assert [entry[2:5] for entry in trail[:-1]] == [entry[2:5] for entry in of_file]
    assert all(f"by {before[1]}" in str(after[5]) for before, after in zip(of_file, trail, strict=False))
    assert trail[-1][2] == "load"


def test_others_neither_save_nor_load(
    make_database: Callable[[], str], role: Callable[..., str], file: Path, tmp_path: Path
) -> None:
    url = make_database()
    migrate(url)
    SonaEngine.load(file, url, background=False).close()
    for kind in ("reader", "app"):
        login = role(kind, f"sona_{kind}")
        with connect(url) as connection:
            connection.execute("SELECT sona.grant_space(%s, %s)", (NAME, login))
        with connect(make_conninfo(url, user=login)) as connection, pytest.raises(PermissionDenied):
            save_space(connection, NAME, tmp_path / "file")
        with pytest.raises(PermissionDenied):
            SonaEngine.load(file, make_conninfo(url, user=login), space="of others")
    with connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM sona.space").fetchone() == (1,)
    assert list(tmp_path.iterdir()) == []


def test_an_owner_who_is_no_superuser_loads_all_of_it(owned_url: str, origin: str, file: Path) -> None:
    migrate(owned_url)
    SonaEngine.load(file, owned_url, background=False).close()
    before, after = deployments(origin, NAME), deployments(owned_url, NAME)
    assert after[:-1] == before
    rows, copied = saving.rows_of(origin, NAME), saving.rows_of(owned_url, NAME)
    # There is no table of items here.
    assert {table for table in rows if rows[table] != copied[table]} == {"item_source"}


def test_a_load_that_ends_midway_leaves_nothing(
    make_database: Callable[[], str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_database()
    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE sona.verdict ADD CHECK (best_confidence < -1)")
    with pytest.raises(OSError, match="save it again"):
        SonaEngine.load(file, url)
    with connect(url) as made:
        assert made.execute("SELECT count(*) FROM sona.space").fetchone() == (0,)
        assert made.execute("SELECT count(*) FROM sona.trajectory").fetchone() == (0,)


@pytest.mark.parametrize("granted", ["USAGE ON SCHEMA private", "SELECT ON private.doc", None])
def test_a_role_that_may_not_read_the_items_loads_without_them(
    make_database: Callable[[], str], role: Callable[..., str], tmp_path: Path, granted: str | None
) -> None:
    worker, urls = role("worker", "sona_worker"), (make_database(), make_database())
    for url in urls:
        migrate(url)
        with connect(url) as connection:
            connection.execute("CREATE SCHEMA private")
        saving.make_items(url, "private.doc")
    with connect(urls[1]) as connection:
        if granted is not None:
            connection.execute(f"GRANT {granted} TO {worker}")
    with SonaEngine.connect(urls[0], space=NAME, dim=saving.DIM, background=False) as engine:
        engine.set_items("private.doc", "id", "embedding")
        saving.record(engine, 0, 20)
        engine.save(tmp_path / "file")
    with SonaEngine.load(tmp_path / "file", make_conninfo(urls[1], user=worker), background=False) as engine:
        assert engine.loaded is not None
        assert engine.loaded.items_missing == "this role may not read private.doc"
        assert engine.adapt(saving.QUERIES[0]).shape == saving.QUERIES[0].shape
