"""What an application, a worker, and an owner who migrates get done with their rights."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sona_pg import SonaEngine, StoreConfig
from sona_pg.config import SCHEMA_REVISION
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer
from sona_pg.worker import InstantWorker

from .conftest import DIM, World
from .rights import _query, _tables
from .rights import login as login

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
