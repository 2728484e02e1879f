"""A space that has learned by one model, copies of it, and another model to change to."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psycopg
import pytest
from acceptance.weighing import weighed
from numpy.typing import NDArray
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sona_pg import EmbedderReport, RecordedQuery, SonaEngine, SpaceConfig, StoreConfig, StrategyConfig, change_embedder
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from sona_pg.store.migrate import migrate
from sona_pg.store.spaces import get_space
from sona_pg.worker import InstantWorker

DIM, NEW = 16, 24
ITEMS, TOPICS, EVENTS = 60, 8, 90
SPACE, OLD, MODEL = "support", "model a", "model b"
BATCHES = StoreConfig(embed_batch=20, replay_batch=30)

Matrix = NDArray[np.float32]


def _unit(rows: Matrix) -> Matrix:
    unit: Matrix = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return unit


_RNG = np.random.default_rng(3)
EMBEDDINGS = _unit(_RNG.standard_normal((ITEMS, DIM)).astype(np.float32))
CENTRES = _RNG.standard_normal((TOPICS, DIM))
ANSWERS = _RNG.integers(0, ITEMS, TOPICS)
PLACES, SIGNS = _RNG.permutation(NEW)[:DIM], _RNG.choice([-1, 1], DIM)
ROTATION = np.linalg.qr(_RNG.standard_normal((NEW, NEW)))[0][:DIM].astype(np.float32)
"""Any map (dim, new dim) that keeps all cosines."""
RELABELLING = np.zeros((DIM, NEW), dtype=np.float32)
"""One that names the components anew, turns some round and adds empty ones: to Adam they are the same numbers."""
RELABELLING[np.arange(DIM), PLACES] = SIGNS


def query_of(event: int) -> Matrix:
    noise = np.random.default_rng(event).standard_normal(DIM)
    return _unit(CENTRES[event % TOPICS] + 0.4 * noise).astype(np.float32)


def embedded(queries: Sequence[RecordedQuery]) -> list[Matrix | None]:
    """Embed by what the application has recorded with a query, as it does that keeps its texts."""
    assert all(query.metadata is not None for query in queries)
    return [query_of(query.metadata["n"]) @ ROTATION for query in queries]  # type: ignore[operator, index]


def record(engine: SonaEngine, event: int, **how: object) -> uuid.UUID:
    query = query_of(event)
    shown = [str(item) for item in np.argsort(-EMBEDDINGS @ query)[:5]]
    answer = str(ANSWERS[event % TOPICS])
    rewards = {shown[0]: 0.0, answer: 1.0} if event % 6 else {shown[1]: 0.25}
    id = engine.record(query, shown, rewards, metadata={"n": event}, user_id=f"user {event % 5}", **how)  # type: ignore[arg-type]
    if event % 6 == 0:
        engine.score(id, 1.0, answer, score_id=f"late {event}")
    return id


def by_sql(connection: Connection, event: int) -> None:
    connection.execute(
        "SELECT sona.record(%s, %s, %s, '{1}', metadata => %s)",
        (SPACE, query_of(event), [str(ANSWERS[event % TOPICS])], f'{{"n": {event}}}'),
    )


def open_engine(url: str, **options: object) -> SonaEngine:
    return SonaEngine.connect(url, space=SPACE, background=False, **options)  # type: ignore[arg-type]


def change(url: str, embed: object = embedded, **options: object) -> EmbedderReport:
    given = {"embedder": MODEL, "dim": NEW, "embedding_column": "new", "store": BATCHES}
    return change_embedder(url, SPACE, embed, **(given | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def filled(make_database: Callable[[], str]) -> str:
    """A database with a space that has learned, to be copied."""
    url = make_database()
    migrate(url)
    with connect(url) as connection:
        connection.execute(
            f"CREATE TABLE public.items (id integer PRIMARY KEY, embedding vector({DIM}), new vector({NEW}))"
        )
        for number, vector in enumerate(EMBEDDINGS):
            connection.execute("INSERT INTO public.items VALUES (%s, %s, %s)", (number, vector, vector @ ROTATION))
        engine = open_engine(
            url,
            dim=DIM,
            embedder=OLD,
            space_config=SpaceConfig(control_share=0.0),
            strategy=StrategyConfig(sanity_events=20),
            store=StoreConfig(publish_every_events=40),
        )
        with engine:
            engine.set_items("public.items", "id", "embedding", filter_columns=["id"])
            for event in range(EVENTS):
                record(engine, event)
                if event % 10 == 9:
                    engine.flush()
            by_sql(connection, EVENTS)
            engine.instant.learn_recorded(10)
            engine.flush()
            connection.execute("SELECT sona.add_memory_node(%s, 'item', '1', %s)", (SPACE, EMBEDDINGS[1]))
    return url


@pytest.fixture
def copied(filled: str, server_url: str) -> Iterator[Callable[[], str]]:
    """Makes copies of that database, the same to the last id."""
    made: list[sql.Identifier] = []
    template = str(conninfo_to_dict(filled)["dbname"])

    def copy() -> str:
        name = f"{template}_{uuid.uuid4().hex[:8]}"
        made.append(sql.Identifier(name))
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(made[-1], sql.Identifier(template))
            )
        return make_conninfo(server_url, dbname=name)

    yield copy
    with psycopg.connect(server_url, autocommit=True) as connection:
        for name in made:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
def url(copied: Callable[[], str]) -> str:
    return copied()


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    with connect(url) as made:
        yield made


def worker_of(url: str) -> InstantWorker:
    return InstantWorker(Database(url, StoreConfig(), Path(os.environ["SONA_HOME"])))


def learn_all(worker: InstantWorker) -> None:
    while worker.step() + worker.weigh():
        pass


_TABLES = {
    "space": "name, dim, embedder, strategy, standby_of, replaced_at IS NULL",
    "item_sample": "ordinal, item_id, embedding",
    "trajectory": "trajectory_id, created_at, query, quality, user_id, metadata, arm, version, strategy",
    "trajectory_step": "trajectory_id, ordinal, item_id, position, reward, attention, activation",
    "score": "score_id, trajectory_id, item_id, name, value, revision",
    "learner": "version, events, ordinal, state, settings",
    "served_row": "tier, ordinal, down, up",
    "learning_event": "trajectory_id, revision, cycle_id, ordinal, learned",
    "learning_cycle": "cycle_id, events, learned, version",
    "adapter_version": "version, parent, events, ordinal, cause, state, evidence, weighed",
    "pending_trajectory": "trajectory_id",
    "memory_edge": "kind, source, target, weight",
    "memory_node": "node_id, kind, key, embedding",
}


def everything(connection: Connection, name: str = SPACE) -> dict[str, object]:
    """All of a space but times and what is numbered through."""
    ((space_id,),) = connection.execute("SELECT space_id FROM sona.space WHERE name = %s", (name,)).fetchall()
    rows = {
        table: sorted(
            repr([value.tobytes() if isinstance(value, np.ndarray) else value for value in row])
            for row in connection.execute(
                f"SELECT {columns} FROM sona.{table} WHERE space_id = %s", (space_id,), binary=True
            )
        )
        for table, columns in _TABLES.items()
    }
    return rows | weighed(connection, get_space(connection, name))


def space_id(connection: Connection, name: str = SPACE) -> int:
    ((found,),) = connection.execute("SELECT space_id FROM sona.space WHERE name = %s", (name,)).fetchall()
    return int(found)


def _fails(queries: Sequence[RecordedQuery]) -> list[Matrix]:
    raise OSError("the model does not answer")
