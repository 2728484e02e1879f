"""Clients that speak only SQL: what they record and score is learned by the worker, exactly once."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from sona_pg import DimensionMismatch, InvalidInput, SonaEngine, SonaError, UnknownSpace
from sona_pg.config import StoreConfig
from sona_pg.store.connection import Connection, translated
from sona_pg.store.database import Database
from sona_pg.worker import InstantWorker

from .conftest import DIM

Matrix = NDArray[np.float32]


@pytest.fixture
def learn(url: str) -> Callable[[], int]:
    """Runs a worker until nothing is left."""

    def run() -> int:
        worker = InstantWorker(Database(url, StoreConfig()))
        learned = 0
        while batch := worker.step():
            learned += batch
        worker.close()
        return learned

    return run


def _query(rng: np.random.Generator) -> Matrix:
    return rng.standard_normal(DIM).astype(np.float32)


def _record(connection: Connection, space: str, query: Matrix, rest: str = "", *parameters: object) -> uuid.UUID:
    row = connection.execute(
        f"SELECT sona.record(%s, %s{', ' if rest else ''}{rest})", (space, query, *parameters)
    ).fetchone()
    assert row is not None
    return uuid.UUID(str(row[0]))


def _ledger(connection: Connection, space: str) -> list[tuple[int, str]]:
    return connection.execute(
        "SELECT revision, learned FROM sona.ledger WHERE space = %s ORDER BY ordinal", (space,)
    ).fetchall()


def test_what_sql_records_is_learned_as_if_python_had(
    connection: Connection,
    engine: SonaEngine,
    items: tuple[str, Matrix],
    space_name: str,
    url: str,
    learn: Callable[[], int],
) -> None:
    ids = [uuid.UUID(int=7000 + event) for event in range(20)]
    with SonaEngine.connect(url, space=f"{space_name}_python", dim=DIM, background=False) as python:
        python.set_items(items[0], "id", "embedding")
        rng = np.random.default_rng(5)
        for id in ids:
            query = _query(rng)
            python.record(query, ["1", "2", "3"], [1.0, 0.0, None], trajectory_id=id)
            _record(connection, engine.space.name, query, "'{1,2,3}', '{1,0,NULL}', trajectory_id => %s", id)
        python.flush()
        assert learn() == 20
        engine.flush()
        assert engine.instant.learner.to_bytes() == python.instant.learner.to_bytes()
    assert connection.execute("SELECT pending FROM sona.status WHERE space = %s", (engine.space.name,)).fetchall() == [
        (0,)
    ]


def test_the_same_id_again_is_nothing(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, learn: Callable[[], int]
) -> None:
    query, id = _query(rng), uuid.uuid4()
    for _ in range(3):
        assert _record(connection, engine.space.name, query, "'{1}', '{1}', trajectory_id => %s", id) == id
    learn()
    _record(connection, engine.space.name, query, "'{1}', '{1}', trajectory_id => %s", id)
    learn()
    assert _ledger(connection, engine.space.name) == [(0, "adapter")]


def test_scores_come_late_early_twice_and_corrected(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, learn: Callable[[], int]
) -> None:
    space = engine.space.name
    early = uuid.uuid4()
    assert connection.execute("SELECT sona.score(%s, 1, '1', space => %s)", (early, space)).fetchall() == [(True,)]
    learn()
    assert _ledger(connection, space) == []
    _record(connection, space, _query(rng), "'{1,2}', trajectory_id => %s", early)
    learn()
    assert _ledger(connection, space) == [(0, "no outcome"), (1, "adapter")]
    late = _record(connection, space, _query(rng), "'{1,2}'")
    learn()
    for _ in range(2):
        connection.execute("SELECT sona.score(%s, 1, '2', score_id => 'same')", (late,))
        learn()
    assert _ledger(connection, space)[2:] == [(0, "no outcome"), (1, "adapter")]
    # A correction of what was taught as helpful has nothing new that helped.
    connection.execute("SELECT sona.score(%s, 0, '2')", (late,))
    learn()
    assert _ledger(connection, space)[4:] == [(2, "no outcome")]
    revisions = connection.execute(
        "SELECT revision FROM sona.score WHERE space_id = %s ORDER BY sequence", (engine.space.space_id,)
    ).fetchall()
    assert revisions == [(1,), (1,), (2,)]


def test_a_score_that_overtakes_the_worker_teaches_what_it_would_have_taught_later(
    connection: Connection, engine: SonaEngine, space_name: str, rng: np.random.Generator, learn: Callable[[], int]
) -> None:
    id = _record(connection, engine.space.name, _query(rng), "'{1,2,3}', '{1,1,NULL}'")
    connection.execute("SELECT sona.score(%s, 0, '3')", (id,))
    learn()
    assert _ledger(connection, engine.space.name) == [(0, "adapter"), (1, "no outcome")]
    edges = connection.execute(
        "SELECT weight FROM sona.memory_edge WHERE space_id = %s", (engine.space.space_id,)
    ).fetchall()
    assert edges == [(pytest.approx(0.05),)]


def test_feedback_that_goes_up_and_down_is_one_lesson(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, learn: Callable[[], int]
) -> None:
    id = _record(connection, engine.space.name, _query(rng), "'{1,2}'")
    for value in (1, 0, 1, 0, 1):
        connection.execute("SELECT sona.score(%s, %s, '2')", (id, value))
        learn()
    learned = [what for _, what in _ledger(connection, engine.space.name)]
    assert learned == ["no outcome", "adapter", "no outcome", "no outcome", "no outcome", "no outcome"]


def test_activations_teach_where_there_are_no_items(
    connection: Connection, space_name: str, rng: np.random.Generator, learn: Callable[[], int]
) -> None:
    connection.execute("SELECT sona.create_space(%s, %s)", (space_name, DIM))
    vectors = "{" + ",".join('"' + json.dumps(_query(rng).tolist()) + '"' for _ in range(2)) + "}"
    _record(connection, space_name, _query(rng), "'{a,b}', '{1,0}', activations => %s", vectors)
    _record(connection, space_name, _query(rng), "rewards => '{1,0}', activations => %s", vectors)
    learn()
    assert _ledger(connection, space_name) == [(0, "adapter"), (0, "micro")]


def test_batches_are_recorded_and_scored_whole_or_not_at_all(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, learn: Callable[[], int]
) -> None:
    space = engine.space.name
    records = [
        {"query": _query(rng).tolist(), "item_ids": ["1", "2"], "rewards": [1, None], "metadata": {"n": n}}
        for n in range(5)
    ]
    ids = [
        row[0]
        for row in connection.execute(
            "SELECT * FROM sona.record_batch(%s, %s)", (space, json.dumps(records))
        ).fetchall()
    ]
    assert len(set(ids)) == 5
    scores = json.dumps([{"trajectory": str(id), "value": 1, "item_id": "2", "score_id": str(id)} for id in ids])
    for expected in (5, 0):
        assert connection.execute("SELECT sona.score_batch(%s, %s)", (space, scores)).fetchall() == [(expected,)]
    learn()
    assert engine.instant.learner.events == 0
    engine.flush()
    assert engine.instant.learner.events == 10
    with pytest.raises(InvalidInput), translated():
        connection.execute(
            "SELECT * FROM sona.record_batch(%s, %s)",
            (space, json.dumps([records[0], {**records[1], "rewards": [9, 9]}])),
        )
    count = connection.execute("SELECT trajectories FROM sona.status WHERE space = %s", (space,)).fetchall()
    assert count == [(5,)]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ("sona.record('no such space', '[1]')", UnknownSpace, "no such space"),
        ("sona.record({space}, NULL)", InvalidInput, "query is NULL"),
        ("sona.record({space}, '[1,2]')", DimensionMismatch, "expected 16"),
        ("sona.record({space}, {query}, '{1,2}', '{1}')", InvalidInput, "2 items with 1 rewards"),
        ("sona.record({space}, {query}, '{1}', '{2}')", InvalidInput, "a reward is 2, expected 0 to 1"),
        ("sona.record({space}, {query}, '{1}', '{NaN}')", InvalidInput, "a reward is NaN"),
        ("sona.record({space}, {query}, '{NULL}', '{1}')", InvalidInput, "an item id has 0 bytes"),
        ("sona.record({space}, {query}, ARRAY[repeat('x', 501)])", InvalidInput, "501 bytes"),
        ("sona.record({space}, {query}, '{{1,2},{3,4}}')", InvalidInput, "several dimensions"),
        ("sona.record({space}, {query}, quality => -1)", InvalidInput, "the quality is -1"),
        ("sona.record({space}, {query}, metadata => '[1]')", InvalidInput, "no JSON object"),
        ("sona.record({space}, {query}, metadata => 'no json')", InvalidInput, "json"),
        ("sona.record({space}, {query}, latency_us => -1)", InvalidInput, "latency_us is -1"),
        ("sona.record({space}, {query}, propensity => 0)", InvalidInput, "propensity 0"),
        ("sona.record({space}, {query}, array_fill('x'::text, ARRAY[10001]))", InvalidInput, "10001 items"),
        ("sona.record({space}, {query}, activations => ARRAY['[1,2]'::vector])", DimensionMismatch, "expected 16"),
        ("sona.record({space}, {query}, '[0:1]={a,b}', '{1,0}')", InvalidInput, "does not begin at 1"),
        ("sona.record({space}, {query}, '{a}', positions => '{0}')", InvalidInput, "a position is below 1"),
        ("sona.record({space}, {query}, activations => '{NULL}')", InvalidInput, "neither an activation nor an item"),
        ("sona.record_batch({space}, '{}')", InvalidInput, "no JSON array"),
        ("sona.record_batch({space}, '[1]')", SonaError, "an entry is a JSON number"),
        ("sona.score_batch({space}, '{}')", InvalidInput, "no JSON array"),
        ("sona.score(gen_random_uuid(), 1)", InvalidInput, "name the space"),
        ("sona.score(gen_random_uuid(), 1, space => 'no such space')", UnknownSpace, "no such space"),
        ("sona.score(gen_random_uuid(), NULL, space => {space})", InvalidInput, "NULL"),
        ("sona.score(gen_random_uuid(), 3, space => {space})", InvalidInput, "the score is 3"),
        ("sona.score(gen_random_uuid(), 'NaN', space => {space})", InvalidInput, "the score is NaN"),
        ("sona.score(gen_random_uuid(), 1, '', space => {space})", InvalidInput, "the item id has 0 bytes"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_kept(
    connection: Connection, engine: SonaEngine, call: str, error: type[SonaError], says: str
) -> None:
    query = "'[" + ",".join(["1"] * DIM) + "]'"
    statement = call.replace("{space}", f"'{engine.space.name}'").replace("{query}", query)
    with pytest.raises(error, match=says), translated():
        connection.execute(f"SELECT {statement}")
    kept = connection.execute(
        "SELECT trajectories, pending FROM sona.status WHERE space = %s", (engine.space.name,)
    ).fetchall()
    assert kept == [(0, 0)]


def test_a_poisonous_space_is_set_aside_with_the_reason_and_stops_nobody(
    connection: Connection, engine: SonaEngine, space_name: str, rng: np.random.Generator, learn: Callable[[], int]
) -> None:
    sick = f"{space_name}_sick"
    connection.execute("SELECT sona.create_space(%s, %s)", (sick, DIM))
    for space in (sick, engine.space.name):
        _record(connection, space, _query(rng), "'{1}', '{1}'")
    connection.execute(
        "UPDATE sona.learner l SET state = 'rubbish' FROM sona.space s WHERE s.space_id = l.space_id AND s.name = %s",
        (sick,),
    )
    learn()
    assert _ledger(connection, engine.space.name) == [(0, "adapter")]
    errors = connection.execute("SELECT source, message FROM sona.errors WHERE space = %s", (sick,)).fetchall()
    assert [source for source, _ in errors] == ["instant"]
    assert "damaged" in errors[0][1]
    connection.execute("SELECT sona.drop_space(%s)", (sick,))


def test_engines_workers_and_sql_clients_together_count_everything_once(
    connection: Connection, url: str, engine: SonaEngine
) -> None:
    space, stop = engine.space.name, threading.Event()

    def sql_client(client: int) -> None:
        rng = np.random.default_rng(client)
        with psycopg.connect(url, autocommit=True) as own:
            for _ in range(40):
                query = json.dumps(_query(rng).tolist())
                row = own.execute("SELECT sona.record(%s, %s, '{1,2}')", (space, query)).fetchone()
                assert row is not None
                own.execute("SELECT sona.score(%s, 1, '2')", (row[0],))

    def python_client(client: int) -> None:
        rng = np.random.default_rng(100 + client)
        with SonaEngine.connect(url, space=space, background=False) as own:
            for event in range(40):
                id = own.record(_query(rng), ["1", "2"])
                own.score(id, 1.0, "1")
                if event % 7 == 0:
                    own.flush()

    def work() -> None:
        worker = InstantWorker(Database(url, StoreConfig()))
        while not stop.is_set() or worker.step() + worker.weigh():
            worker.step()
            worker.weigh()
        worker.close()

    workers = [threading.Thread(target=work) for _ in range(2)]
    clients = [threading.Thread(target=t, args=(n,)) for n in range(3) for t in (sql_client, python_client)]
    for thread in [*workers, *clients]:
        thread.start()
    for thread in clients:
        thread.join()
    stop.set()
    for thread in workers:
        thread.join()
    engine.flush()
    assert engine.instant.learner.events == 240
    ledger = connection.execute(
        "SELECT trajectory_id, revision, ordinal FROM sona.ledger WHERE space = %s ORDER BY ordinal", (space,)
    ).fetchall()
    assert len({row[:2] for row in ledger}) == len(ledger) == 480
    assert [row[2] for row in ledger] == list(range(480))


def test_a_score_without_its_space_is_refused_where_two_have_the_trajectory(
    connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    id = uuid.uuid4()
    names = [f"{space_name} a", f"{space_name} b"]
    for name in names:
        connection.execute("SELECT sona.create_space(%s, %s)", (name, DIM))
    _record(connection, names[1], _query(rng), "trajectory_id => %s", id)
    assert connection.execute("SELECT sona.score(%s, 1)", (id,)).fetchall() == [(True,)]
    _record(connection, names[0], _query(rng), "trajectory_id => %s", id)
    with pytest.raises(psycopg.Error, match=f"2 spaces have a trajectory {id}") as refused:
        connection.execute("SELECT sona.score(%s, 1)", (id,))
    assert refused.value.sqlstate == "SN003"
    assert refused.value.diag.message_hint == f"name the space, like space => '{names[0]}'"
    assert connection.execute("SELECT sona.score(%s, 1, space => %s)", (id, names[0])).fetchall() == [(True,)]
    assert connection.execute(
        "SELECT space, pending FROM sona.status WHERE space = ANY(%s) ORDER BY 1", (names,)
    ).fetchall() == [(names[0], 2), (names[1], 2)]
