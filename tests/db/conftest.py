"""A real Postgres with pgvector for every test: SONA_TEST_DATABASE_URL, or an embedded server of its own."""

from __future__ import annotations

import itertools
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sona_pg import SonaEngine, SpaceConfig, StoreConfig, TrajectoryBuilder
from sona_pg.learning.associations import Associations
from sona_pg.store.connection import Connection, connect
from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer

from .exchanged import SMALL
from .statements import Watch, watched
from .vectors import unit

DIM = 16
_counter = itertools.count()


@dataclass(frozen=True)
class World:
    """A database with two tenants, each with everything recorded and learned that there is."""

    url: str
    logins: dict[str, str]
    ids: dict[str, int]
    trajectories: dict[str, uuid.UUID]

    def login(self, name: str) -> str:
        return make_conninfo(self.url, user=self.logins[name])


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on which databases may be created."""
    given = os.environ.get("SONA_TEST_DATABASE_URL")
    if given:
        yield given
        return
    server = EmbeddedServer(tmp_path_factory.mktemp("server"))
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture(scope="session", autouse=True)
def print_versions(server_url: str, record_testsuite_property: Callable[[str, object], None]) -> None:
    with psycopg.connect(server_url) as connection:
        row = connection.execute(
            "SELECT version(), (SELECT default_version FROM pg_available_extensions WHERE name = 'vector')"
        ).fetchone()
    assert row is not None
    record_testsuite_property("postgres", row[0])
    record_testsuite_property("pgvector", row[1])


@pytest.fixture(scope="session")
def make_database(server_url: str) -> Iterator[Callable[[], str]]:
    """Gives URLs of new, empty databases, which go at the end."""
    made: list[str] = []

    def make() -> str:
        name = f"sona_test_{os.getpid()}_{next(_counter)}"
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        made.append(name)
        return make_conninfo(server_url, dbname=name)

    yield make
    with psycopg.connect(server_url, autocommit=True) as connection:
        for name in made:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is spooled while a test has no database stays with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SONA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session", autouse=True)
def statement_watch() -> Iterator[Watch]:
    """What the product sends to the database, in all of these tests."""
    with watched() as made:
        yield made


@pytest.fixture(autouse=True)
def every_statement_names_its_space(statement_watch: Watch) -> Iterator[None]:
    """Tables are distributed by space: a statement that does not say which would go to every node (docs/scaling.md)."""
    yield
    wrong, statement_watch.wrong = statement_watch.wrong, []
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def empty_url(make_database: Callable[[], str]) -> str:
    return make_database()


@pytest.fixture(scope="session")
def url(make_database: Callable[[], str]) -> str:
    """A migrated database that the tests share; each uses spaces of its own."""
    made = make_database()
    migrate(made)
    return made


@pytest.fixture(scope="module")
def module_url(make_database: Callable[[], str]) -> str:
    """A migrated database of a module's own: loops run in every space that there is."""
    made = make_database()
    migrate(made)
    return made


@pytest.fixture(scope="module")
def role(server_url: str, url: str) -> Iterator[Callable[..., str]]:
    """Makes login roles, members of those that are named, which go at the end; gives their names."""
    made: list[str] = []

    def make(name: str, *member_of: str) -> str:
        unique = f"{name}_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER").format(sql.Identifier(unique)))
            made.append(unique)
            for group in member_of:
                connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(unique)))
        return unique

    yield make
    with psycopg.connect(server_url, autocommit=True) as connection:
        databases = [row[0] for row in connection.execute("SELECT datname FROM pg_database WHERE datallowconn")]
    for database in databases:
        with psycopg.connect(make_conninfo(server_url, dbname=database), autocommit=True) as connection:
            for name in made:
                connection.execute(sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(sql.Identifier(name)))
                connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
    with psycopg.connect(server_url, autocommit=True) as connection:
        for name in made:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture
def owned_url(empty_url: str, role: Callable[..., str]) -> str:
    """A database whose owner is no superuser, with pgvector created beforehand by one."""
    owner = role("sona_owner")
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        name = connection.info.dbname
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(name), sql.Identifier(owner)))
    return make_conninfo(empty_url, user=owner)


@pytest.fixture(scope="session")
def saved_space(make_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A database with a space that has everything in it, and the file that it was saved to."""
    from . import saving

    made, path = make_database(), tmp_path_factory.mktemp("saved") / "space.sona"
    migrate(made)
    saving.make_items(made)
    saving.build(made, saving.NAME)
    with SonaEngine.connect(made, space=saving.NAME, background=False) as engine:
        engine.save(path)
    return made, path


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    with connect(url) as made:
        yield made


@pytest.fixture
def space_name(request: pytest.FixtureRequest) -> str:
    return f"{re.sub(r'[^a-z0-9_]', '_', request.node.name.lower())}_{next(_counter)}"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def items(connection: Connection, space_name: str, rng: np.random.Generator) -> tuple[str, NDArray[np.float32]]:
    """An application's table of 60 items, and their unit embeddings."""
    embeddings = rng.standard_normal((60, DIM)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    table = f"public.items_{next(_counter)}"
    connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector({DIM}))")
    for row, embedding in enumerate(embeddings):
        connection.execute(f"INSERT INTO {table} VALUES (%s, %s)", (row, embedding))
    return table, embeddings


@pytest.fixture
def engine(url: str, space_name: str, items: tuple[str, NDArray[np.float32]]) -> Iterator[SonaEngine]:
    """An engine on a fresh space with items, answered as the adapter does, which learns when it is told to."""
    made = SonaEngine.connect(
        url,
        space=space_name,
        dim=DIM,
        background=False,
        space_config=SpaceConfig(strategy="adapted", control_share=0.0),
    )
    made.set_items(items[0], "id", "embedding")
    yield made
    made.close()


@pytest.fixture
def open_space(url: str, space_name: str) -> Iterator[Callable[..., SonaEngine]]:
    """Engines on spaces of their own, answered as the adapter does."""
    made: list[SonaEngine] = []

    def make(name: str = "", dim: int = DIM, embedder: str | None = "a model") -> SonaEngine:
        config = SpaceConfig(strategy="adapted", control_share=0.0)
        made.append(
            SonaEngine.connect(
                url, space=space_name + name, dim=dim, embedder=embedder, background=False, space_config=config
            )
        )
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def taught(
    open_space: Callable[..., SonaEngine], items: tuple[str, NDArray[np.float32]], rng: np.random.Generator
) -> tuple[SonaEngine, Callable[[int], None]]:
    """A space that has learned 40 events, and how to teach it more."""
    engine = open_space()
    engine.set_items(items[0], "id", "embedding")

    def teach(events: int) -> None:
        for item in rng.integers(0, len(items[1]), events):
            query = unit(np.roll(items[1][item], 1) + 0.1 * rng.standard_normal(DIM))
            engine.record(query, [str(item), str((item + 1) % 60), str((item + 2) % 60)], [1.0, 0.0, 0.5])
            signal = TrajectoryBuilder(1, query)
            signal.add_step(items[1][item], reward=1.0)
            signal.add_step(-items[1][item], reward=0.0)
            engine.record(signal.build(float(rng.uniform())))
        engine.flush()

    teach(40)
    return engine, teach


@pytest.fixture
def queries(rng: np.random.Generator) -> NDArray[np.float32]:
    return unit(rng.standard_normal((50, DIM)))


@pytest.fixture
def with_patterns(
    open_space: Callable[..., SonaEngine], rng: np.random.Generator, connection: Connection
) -> SonaEngine:
    """A space with four patterns, one of which has a text, was found twice, and has verdicts on a parameter."""
    engine = open_space()
    topics = unit(rng.standard_normal((4, DIM)))
    for topic in range(4):
        for event in range(12):
            query = unit(topics[topic] + 0.02 * rng.standard_normal(DIM))
            engine.record(query, quality=0.2 + 0.2 * topic, metadata={"parameters": {"k": event % 2}})
    engine.flush()
    engine.background_learn(SMALL)
    key = {"space": engine.space.space_id}
    first = "(SELECT min(pattern_id) FROM sona.pattern WHERE space_id = %(space)s)"
    connection.execute(
        f"UPDATE sona.pattern SET title = 'a topic', content = 'what to say' WHERE space_id = %(space)s"
        f" AND pattern_id = {first}",
        key,
    )
    connection.execute(
        "INSERT INTO sona.pattern_access (space_id, pattern_id, access_count, last_accessed)"
        f" SELECT %(space)s, {first}, 2, '2026-01-01'",
        key,
    )
    return engine


@pytest.fixture
def judged(open_space: Callable[..., SonaEngine], connection: Connection, rng: np.random.Generator) -> SonaEngine:
    """Three answers: one with two judged items and a late score, one that was never judged, one with texts."""
    engine = open_space()
    table = f"public.texts_{uuid.uuid4().hex[:8]}"
    connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector({DIM}), body text)")
    for item in range(5):
        body = None if item == 4 else f"text {item}"
        connection.execute(f"INSERT INTO {table} VALUES (%s, %s, %s)", (item, unit(rng.standard_normal(DIM)), body))
    engine.set_items(table, "id", "embedding")
    first = engine.record(np.ones(DIM), ["0", "1", "2"], [1.0, None, 0.25], metadata={"question": "why?"})
    engine.record(-np.ones(DIM), ["0", "1"], [None, None], metadata={"question": "never judged"})
    engine.record(np.eye(DIM)[0], ["3", "4"], [0.0, 1.0])
    engine.score(first, 0.0, item_id="3")
    engine.flush()
    return engine


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder for an embedded server of its own, which goes at the end."""
    yield tmp_path
    EmbeddedServer(tmp_path).remove()


def _vector(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.standard_normal(DIM).astype(np.float32)


@pytest.fixture(scope="module")
def world(make_database: Callable[[], str], role: Callable[..., str]) -> World:
    url = make_database()
    migrate(url)
    logins = {f"{tenant}_{kind}": role(f"{tenant}_{kind}", f"sona_{kind}") for tenant in ("alpha", "beta")
              for kind in ("reader", "app", "worker")}  # fmt: skip
    rng = np.random.default_rng(11)
    with connect(url) as connection:
        connection.execute("CREATE SCHEMA shop")
        connection.execute(f"CREATE TABLE shop.items (id integer PRIMARY KEY, embedding public.vector({DIM}))")
        for number in range(20):
            connection.execute("INSERT INTO shop.items VALUES (%s, %s)", (number, _vector(rng)))
        for login in logins.values():
            connection.execute(sql.SQL("GRANT USAGE ON SCHEMA shop TO {}").format(sql.Identifier(login)))
            connection.execute(sql.SQL("GRANT SELECT ON shop.items TO {}").format(sql.Identifier(login)))
    world = World(url, logins, {}, {})
    for tenant in ("alpha", "beta"):
        with SonaEngine.connect(
            world.login(f"{tenant}_worker"),
            space=tenant,
            dim=DIM,
            background=False,
            space_config=SpaceConfig(strategy="adapted", control_share=0.0),
            store=StoreConfig(publish_every_events=1),
        ) as engine:
            engine.set_items("shop.items", "id", "embedding", filter_columns=["id"])
            for event in range(6):
                id = engine.record(_vector(rng), ["1", "2", "3"], [1.0, 1.0, 0.0])
                engine.score(id, 1.0, "3", score_id=f"{event}")
            engine.flush()
            world.ids[tenant], world.trajectories[tenant] = engine.space.space_id, id
        with connect(world.login(f"{tenant}_worker")) as worker:
            worker.execute("SELECT sona.grant_space(%s, %s, false)", (tenant, logins[f"{tenant}_reader"]))
            worker.execute("SELECT sona.grant_space(%s, %s)", (tenant, logins[f"{tenant}_app"]))
            worker.execute(
                "INSERT INTO sona.error_log (space_id, source, worker, message) VALUES (%s, 'test', 'here', 'none')",
                (world.ids[tenant],),
            )
            worker.execute(
                "INSERT INTO sona.forgotten_user (space_id, digest) VALUES (%s, 'none')", (world.ids[tenant],)
            )
            worker.execute(
                "UPDATE sona.answer_outcome SET gain = -1 WHERE space_id = %s AND trajectory_id = %s",
                (world.ids[tenant], world.trajectories[tenant]),
            )
            worker.execute("SELECT sona.run_cycle(%s, 'background')", (tenant,))
            worker.execute("SELECT sona.set_schedule(%s, 'background', every => '1 hour')", (tenant,))
            worker.execute(
                "INSERT INTO sona.loop_run (space_id, loop, cause, state, finished_at, facts)"
                " VALUES (%s, 'background', 'manual', 'done', now(), '{\"base\": \"kept\"}')",
                (world.ids[tenant],),
            )
            # Of so few events no patterns are made.
            worker.execute(
                "INSERT INTO sona.pattern (space_id, pattern_id, centroid, cluster_size, total_weight, avg_quality,"
                " confidence, support) VALUES (%s, 1, %s, 5, 5, 0.5, 0.3, 5)",
                (world.ids[tenant], _vector(rng)),
            )
            worker.execute(
                "INSERT INTO sona.verdict (space_id, pattern_id, parameter, state, evidence, best_value,"
                " best_confidence)"
                " VALUES (%s, 1, 'model', '{}', '[{\"value\": \"a\", \"decision\": 0}]', '\"a\"', 0.5)",
                (world.ids[tenant],),
            )
            worker.execute("SELECT sona._count_accesses(%s, '{1}', '{1}')", (world.ids[tenant],))
            worker.execute(
                "INSERT INTO sona.pattern_history (space_id, run_id, pattern_id, event, cluster_size, support,"
                " avg_quality) VALUES (%s, 1, 1, 'created', 5, 5, 0.5)",
                (world.ids[tenant],),
            )
            worker.execute(
                "INSERT INTO sona.pattern_state (space_id, settings) VALUES (%s, '{\"similarity_width\": 0.05}')",
                (world.ids[tenant],),
            )
            worker.execute("INSERT INTO sona.base_state (space_id) VALUES (%s)", (world.ids[tenant],))
            worker.execute(
                "INSERT INTO sona.fisher_snapshot (space_id, snapshot_id, signature, layout, kind, fisher, anchor,"
                " lambda, samples, quality) VALUES (%s, 1, %s, 'test', 'test', '', '', 1, 1, 0.5)",
                (world.ids[tenant], _vector(rng)),
            )
            for kind, key in (("item", "1"), ("item", "2"), ("concept", "1")):
                worker.execute("SELECT sona.add_memory_node(%s, %s, %s, %s)", (tenant, kind, key, _vector(rng)))
            worker.execute(
                "UPDATE sona.memory_node SET level = 1 WHERE space_id = %s AND kind = 'concept'", (world.ids[tenant],)
            )
            worker.execute(
                "INSERT INTO sona.memory_edge (space_id, kind, source_kind, source, target, weight)"
                " VALUES (%s, 'hierarchy', 'concept', '1', '1', 1)",
                (world.ids[tenant],),
            )
            worker.execute(
                "INSERT INTO sona.memory_archive (space_id, run_id, entity, content, reason)"
                " SELECT space_id, 1, 'node',"
                ' to_jsonb(n) || \'{"node_id": 9, "key": "9"}\', \'a test\' FROM sona.memory_node n'
                " WHERE space_id = %s AND node_id = 1",
                (world.ids[tenant],),
            )
            worker.execute(
                "INSERT INTO sona.memory_snapshot (space_id, run_id, ordinal, content) VALUES (%s, 1, 0, %s)",
                (world.ids[tenant], Associations.of_pairs([(("1", "2"), 0.5)]).to_bytes()),
            )
            worker.execute(
                "INSERT INTO sona.dream (space_id, dream_id, run_id, nodes, kinds, creative_jumps, novelty, coherence,"
                " utility, diversity, quality, phi, phi_threshold, is_integrated, reason)"
                " VALUES (%s, 1, 1, '{1,2}', '{start,jump}', 1, 0, 0, 0, 0, 0, 0, 0.3, false, 'a test')",
                (world.ids[tenant],),
            )
            # So few events prove nothing.
            worker.execute(
                "INSERT INTO sona.strategy_turn (space_id, ordinal, trajectory_id, before, after, reason)"
                " VALUES (%s, 0, %s, 'frozen', 'fusion', 'a test')",
                (world.ids[tenant], world.trajectories[tenant]),
            )
        with connect(world.login(f"{tenant}_app")) as app:
            app.execute("SELECT sona.record(%s, %s, '{1}', '{1}')", (tenant, _vector(rng)))
    return world
