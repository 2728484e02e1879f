"""Retention: what is past it goes in bounded batches; what waits to be learned stays, and nothing is learned twice."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from sona_pg import InvalidInput, SonaEngine, SonaError, UnknownSpace
from sona_pg.config import StoreConfig, WorkerConfig
from sona_pg.store.connection import Connection, connect, translated
from sona_pg.store.database import Database
from sona_pg.worker import InstantWorker

from .command_line import sona
from .conftest import DIM

Matrix = NDArray[np.float32]


@pytest.fixture
def work(url: str) -> Callable[[], None]:
    """Runs a worker until nothing is left to learn and to weigh; its first look also applies retention."""

    def run() -> None:
        worker = InstantWorker(Database(url, StoreConfig()), WorkerConfig(retention_interval_seconds=0))
        while worker.step() + worker.weigh():
            pass
        worker.close()

    return run


def _record(engine: SonaEngine, rng: np.random.Generator, count: int) -> list[uuid.UUID]:
    ids = [
        engine.record(rng.standard_normal(DIM).astype(np.float32), ["1", "2", "3"], [1.0, 0.0, None])
        for _ in range(count)
    ]
    engine.flush()
    return ids


def _age(connection: Connection, space_id: int, ids: list[uuid.UUID], by: str = "100 days") -> None:
    """Let trajectories, each a second apart, and their scores have been recorded in the past."""
    connection.execute(
        "UPDATE sona.trajectory t SET created_at = now() - %s::interval + k.n * interval '1 second'"
        " FROM unnest(%s::uuid[]) WITH ORDINALITY AS k (id, n) WHERE t.space_id = %s AND t.trajectory_id = k.id",
        (by, ids, space_id),
    )
    connection.execute(
        "UPDATE sona.score SET created_at = now() - %s::interval WHERE space_id = %s AND trajectory_id = ANY(%s)",
        (by, space_id, ids),
    )


def _counts(connection: Connection, space_id: int) -> dict[str, int]:
    counts = {}
    for table in ("trajectory", "trajectory_step", "remembered_query", "score", "learning_event"):
        row = connection.execute(f"SELECT count(*) FROM sona.{table} WHERE space_id = %s", (space_id,)).fetchone()
        assert row is not None
        counts[table] = row[0]
    return counts


def _apply(connection: Connection, space: str, batch: int = 1000) -> int:
    row = connection.execute("SELECT sona.apply_retention(%s, %s)", (space, batch)).fetchone()
    assert row is not None
    return int(row[0])


def _retain(connection: Connection, space: str, trajectories: str | None, steps: str | None = None) -> None:
    connection.execute("SELECT sona.set_retention(%s, %s::interval, %s::interval)", (space, trajectories, steps))


def _state(connection: Connection, space_id: int) -> tuple[object, ...]:
    """What was learned: weights, served map, edges and ledger."""
    return tuple(
        connection.execute(
            f"SELECT {columns} FROM sona.{table} WHERE space_id = %s ORDER BY 1, 2", (space_id,)
        ).fetchall()
        for table, columns in (
            ("learner", "events, state"),
            ("served_row", "tier, ordinal, up::text"),
            ("memory_edge", "source, target, weight"),
            ("learning_event", "ordinal, trajectory_id, revision, learned"),
        )
    )


def test_trajectories_go_in_batches_with_all_that_belongs_to_them(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    name, space_id = engine.space.name, engine.space.space_id
    ids = _record(engine, rng, 25)
    for id in ids[:3]:
        engine.score(id, 1.0, "2")
    engine.flush()
    _age(connection, space_id, ids[:20])
    learned = _state(connection, space_id)
    assert _apply(connection, name) == 0
    _retain(connection, name, "90 days")
    assert [_apply(connection, name, 8) for _ in range(4)] == [8, 8, 4, 0]
    assert _counts(connection, space_id) == {
        "trajectory": 5,
        "trajectory_step": 15,
        "remembered_query": 5,
        "score": 0,
        "learning_event": 28,
    }
    assert _state(connection, space_id) == learned
    left = connection.execute("SELECT trajectory_id FROM sona.trajectory WHERE space_id = %s", (space_id,)).fetchall()
    assert {row[0] for row in left} == set(ids[20:])


def test_the_oldest_go_first(connection: Connection, engine: SonaEngine, rng: np.random.Generator) -> None:
    ids = _record(engine, rng, 6)
    _age(connection, engine.space.space_id, ids[::-1])
    _retain(connection, engine.space.name, "90 days")
    assert _apply(connection, engine.space.name, 2) == 2
    left = connection.execute(
        "SELECT trajectory_id FROM sona.trajectory WHERE space_id = %s", (engine.space.space_id,)
    ).fetchall()
    assert {row[0] for row in left} == set(ids[:4])


def test_what_waits_to_be_learned_stays_until_it_is(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, work: Callable[[], None]
) -> None:
    name, space_id = engine.space.name, engine.space.space_id
    ids = _record(engine, rng, 3)
    waiting = uuid.uuid4()
    query = json.dumps(rng.standard_normal(DIM).tolist())
    connection.execute("SELECT sona.record(%s, %s, '{1,2}', '{1,NULL}', trajectory_id => %s)", (name, query, waiting))
    connection.execute("SELECT sona.score(%s, 1, '2')", (ids[0],))
    _age(connection, space_id, [*ids, waiting])
    _retain(connection, name, "90 days", "1 day")
    assert [_apply(connection, name, 1) for _ in range(3)] == [1, 1, 0]
    assert _counts(connection, space_id)["trajectory"] == 2
    assert _counts(connection, space_id)["trajectory_step"] == 5
    work()
    work()
    assert _counts(connection, space_id) == {
        "trajectory": 0,
        "trajectory_step": 0,
        "remembered_query": 0,
        "score": 0,
        "learning_event": 5,
    }


def test_what_is_recorded_again_after_its_deletion_teaches_nothing_and_stays_deleted(
    connection: Connection, url: str, engine: SonaEngine, rng: np.random.Generator, work: Callable[[], None]
) -> None:
    name, space_id = engine.space.name, engine.space.space_id
    queries = rng.standard_normal((4, DIM)).astype(np.float32)
    ids = [uuid.uuid4() for _ in queries]

    def by_sql() -> None:
        for id, query in zip(ids[:2], queries[:2], strict=True):
            statement = "SELECT sona.record(%s, %s, '{1,2}', '{1,NULL}', trajectory_id => %s)"
            assert connection.execute(statement, (name, query, id)).fetchall() == [(id,)]
            connection.execute("SELECT sona.score(%s, 1, '2', score_id => %s, space => %s)", (id, f"of {id}", name))
        work()

    def by_python() -> None:
        # An engine of its own, as after a restart: only the database knows what was recorded.
        with SonaEngine.connect(url, space=name, background=False) as own:
            for id, query in zip(ids[2:], queries[2:], strict=True):
                own.record(query, ["1", "2"], [1.0, None], trajectory_id=id)
                own.score(id, 1.0, "2", score_id=f"of {id}")
            own.flush()

    by_sql()
    by_python()
    _age(connection, space_id, ids)
    _retain(connection, name, "90 days")
    assert _apply(connection, name) == 4
    learned = _state(connection, space_id)
    by_sql()
    by_python()
    assert _state(connection, space_id) == learned
    # The scores that came again wait for nothing: they go when they are older than the retention.
    counts = _counts(connection, space_id)
    assert (counts["trajectory"], counts["trajectory_step"], counts["remembered_query"], counts["score"]) == (
        0,
        0,
        0,
        4,
    )
    assert _apply(connection, name) == 0
    _age(connection, space_id, ids)
    assert [_apply(connection, name, 3), _apply(connection, name, 3), _apply(connection, name, 3)] == [3, 1, 0]
    assert _counts(connection, space_id)["score"] == 0


def test_an_early_score_waits_as_long_as_trajectories_are_kept(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    name, space_id = engine.space.name, engine.space.space_id
    (kept,) = _record(engine, rng, 1)
    early, never = uuid.uuid4(), uuid.uuid4()
    for id in (early, never, kept):
        connection.execute("SELECT sona.score(%s, 1, '2', space => %s)", (id, name))
    connection.execute(
        "UPDATE sona.score SET created_at = now() - interval '1 year' WHERE space_id = %s AND trajectory_id = ANY(%s)",
        (space_id, [never, kept]),
    )
    _retain(connection, name, "90 days")
    assert [_apply(connection, name), _apply(connection, name)] == [1, 0]
    left = connection.execute("SELECT trajectory_id FROM sona.score WHERE space_id = %s", (space_id,)).fetchall()
    assert {row[0] for row in left} == {early, kept}


def test_steps_go_before_their_trajectories_and_are_not_looked_for_again(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, work: Callable[[], None]
) -> None:
    name, space_id = engine.space.name, engine.space.space_id
    ids = _record(engine, rng, 20)
    waiting = uuid.uuid4()
    connection.execute(
        "SELECT sona.record(%s, %s, '{1,2}', trajectory_id => %s)",
        (name, rng.standard_normal(DIM).astype(np.float32), waiting),
    )
    _age(connection, space_id, [*ids[:6], waiting, *ids[6:17]])
    _retain(connection, name, "1 year", "30 days")
    assert [_apply(connection, name, 10) for _ in range(3)] == [10, 7, 0]
    counts = _counts(connection, space_id)
    assert (counts["trajectory"], counts["trajectory_step"], counts["remembered_query"]) == (21, 3 * 3 + 2, 20)

    def looked_at() -> int:
        """Searches in the index of steps by a call that has nothing to do."""
        with connection.transaction():
            before = connection.execute(_STEP_SCANS).fetchone()
            assert _apply(connection, name, 10) == 0
            after = connection.execute(_STEP_SCANS).fetchone()
        assert before is not None
        assert after is not None
        return int(after[0] - before[0])

    work()
    assert _counts(connection, space_id)["trajectory_step"] == 9
    assert _apply(connection, name, 10) == 0
    assert looked_at() == 0


_STEP_SCANS = "SELECT seq_scan + idx_scan FROM pg_stat_xact_user_tables WHERE relid = 'sona.trajectory_step'::regclass"


@pytest.mark.parametrize("rewards", [[1.0, 0.0, None], [0.0, 0.0, 0.0]])
def test_a_score_after_the_steps_are_gone_is_taken_in_and_teaches_nothing_twice(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, rewards: list[float | None]
) -> None:
    name, space_id = engine.space.name, engine.space.space_id
    id = engine.record(rng.standard_normal(DIM).astype(np.float32), ["1", "2", "3"], rewards)
    engine.flush()
    taught = engine.instant.learner.events
    assert taught == (rewards[0] == 1.0)
    _age(connection, space_id, [id])
    _retain(connection, name, None, "30 days")
    assert [_apply(connection, name), _apply(connection, name)] == [1, 0]
    engine.score(id, 1.0, "1")
    engine.flush()
    engine.score(id, 1.0, "1")
    engine.flush()
    # Helpful once: by the steps that are gone, or else by the first of the scores.
    assert engine.instant.learner.events == 1
    assert _counts(connection, space_id) == {
        "trajectory": 1,
        "trajectory_step": 0,
        "remembered_query": 1,
        "score": 2,
        "learning_event": 3,
    }


def test_learning_goes_on_as_if_nothing_had_been_deleted(
    connection: Connection, url: str, engine: SonaEngine, items: tuple[str, Matrix], space_name: str
) -> None:
    ids = [uuid.UUID(int=9000 + event) for event in range(40)]
    with SonaEngine.connect(url, space=f"{space_name}_all", dim=DIM, background=False) as everything:
        everything.set_items(items[0], "id", "embedding")
        with SonaEngine.connect(url, space=engine.space.name, background=False) as other:
            rng = np.random.default_rng(3)
            for event, id in enumerate(ids):
                query = rng.standard_normal(DIM).astype(np.float32)
                writer = (engine, other)[event % 2]  # every flush is rebased onto the other's
                for one in (writer, everything):
                    one.record(query, ["1", "2", "3"], [1.0, 0.0, None], trajectory_id=id)
                    one.flush()
                _age(connection, engine.space.space_id, [id], "40 days" if event % 3 else "100 days")
                _retain(connection, engine.space.name, "90 days", "30 days")  # so that it looks behind its mark
                while _apply(connection, engine.space.name, 2):
                    pass
            engine.flush()
        assert engine.instant.learner.to_bytes() == everything.instant.learner.to_bytes()
    counts = _counts(connection, engine.space.space_id)
    assert counts["trajectory"] == counts["remembered_query"] == 26
    assert (counts["trajectory_step"], counts["learning_event"]) == (0, 40)


def test_flushes_sql_clients_and_retention_at_once_count_everything_once(
    connection: Connection, url: str, engine: SonaEngine
) -> None:
    name, space_id = engine.space.name, engine.space.space_id
    # Everything goes as soon as it is learned, so that deletion meets every flush.
    _retain(connection, name, "1 microsecond")
    stop, failures = threading.Event(), list[BaseException]()

    def guarded(task: Callable[[int], None]) -> Callable[[int], None]:
        def run(number: int) -> None:
            try:
                task(number)
            except BaseException as error:
                failures.append(error)

        return run

    def sql_client(client: int) -> None:
        rng = np.random.default_rng(client)
        with psycopg.connect(url, autocommit=True) as own:
            for event in range(40):
                id, query = uuid.UUID(int=1000 * client + event + 1), json.dumps(rng.standard_normal(DIM).tolist())
                for _ in range(2):  # a client that was not sure records it again
                    own.execute("SELECT sona.record(%s, %s, '{1,2}', '{1,0}', trajectory_id => %s)", (name, query, id))

    def python_client(client: int) -> None:
        rng = np.random.default_rng(client)
        with SonaEngine.connect(url, space=name, background=False) as own:
            for event in range(40):
                id, query = uuid.UUID(int=1000 * client + event + 1), rng.standard_normal(DIM).astype(np.float32)
                own.record(query, ["1", "2"], [1.0, 0.0], trajectory_id=id)
                if event % 5 == 4:
                    own.flush()

    def worker(_: int) -> None:
        own = InstantWorker(Database(url, StoreConfig()), WorkerConfig(retention_interval_seconds=0))
        while not stop.is_set() or own.step() + own.weigh():
            own.step()
            own.weigh()
        assert own.failing == []
        own.close()

    def retention(_: int) -> None:
        with psycopg.connect(url, autocommit=True) as own:
            while not stop.is_set():
                own.execute("SELECT sona.apply_retention(%s, 7)", (name,))

    clients = [(sql_client, 1), (sql_client, 2), (python_client, 3), (python_client, 4)]
    threads = [threading.Thread(target=guarded(task), args=(n,)) for task, n in clients]
    others = [threading.Thread(target=guarded(task), args=(0,)) for task in (worker, worker, retention)]
    for thread in [*threads, *others]:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    for thread in others:
        thread.join()
    assert failures == []
    engine.flush()
    assert engine.instant.learner.events == 160
    ledger = connection.execute(
        "SELECT trajectory_id, revision, ordinal FROM sona.ledger WHERE space = %s ORDER BY ordinal", (name,)
    ).fetchall()
    assert len({row[:2] for row in ledger}) == len(ledger) == 160
    assert [row[2] for row in ledger] == list(range(160))
    while _apply(connection, name):
        pass
    counts = _counts(connection, space_id)
    assert (counts["trajectory"], counts["trajectory_step"], counts["remembered_query"]) == (0, 0, 0)


def test_a_score_that_is_learned_while_retention_waits_is_weighed_before_its_trajectory_goes(
    connection: Connection, url: str, engine: SonaEngine, rng: np.random.Generator, work: Callable[[], None]
) -> None:
    name, space_id = engine.space.name, engine.space.space_id
    (id,) = _record(engine, rng, 1)
    _age(connection, space_id, [id])
    _retain(connection, name, "90 days")
    deleted: list[int] = []

    def apply() -> None:
        with connect(url) as own:
            deleted.append(_apply(own, name))

    with psycopg.connect(url) as flush:
        flush.execute("SELECT FROM sona.learner WHERE space_id = %s FOR UPDATE", (space_id,))
        retention = threading.Thread(target=apply)
        retention.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            " AND query LIKE 'SELECT sona.apply_retention%%'"
        )
        while connection.execute(waiting).fetchall() == [(0,)]:
            assert retention.is_alive()
        flush.execute(
            "INSERT INTO sona.score (space_id, score_id, trajectory_id, item_id, value, revision)"
            " VALUES (%s, 'late', %s, '2', 1, 1)",
            (space_id, id),
        )
        flush.execute(
            "INSERT INTO sona.learning_event (space_id, loop, trajectory_id, revision, cycle_id, ordinal, learned)"
            " VALUES (%s, 'instant', %s, 1, 1, 1, 'adapter')",
            (space_id, id),
        )
        flush.execute("UPDATE sona.learner SET ordinal = 2 WHERE space_id = %s", (space_id,))
    retention.join()
    assert deleted == [0]
    assert _counts(connection, space_id)["trajectory"] == 1
    engine.evidence.catch_up()
    helped = "SELECT helped FROM sona.remembered_query WHERE space_id = %s"
    assert connection.execute(helped, (space_id,)).fetchall() == [(["1", "2"],)]
    assert [_apply(connection, name), _apply(connection, name)] == [1, 0]
    assert _counts(connection, space_id)["remembered_query"] == 0


def test_a_worker_applies_it_where_nothing_waits_to_be_learned(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, work: Callable[[], None]
) -> None:
    ids = _record(engine, rng, 5)
    _age(connection, engine.space.space_id, ids)
    work()
    assert _counts(connection, engine.space.space_id)["trajectory"] == 5
    _retain(connection, engine.space.name, "90 days")
    work()
    assert _counts(connection, engine.space.space_id)["trajectory"] == 0


def test_a_role_that_may_only_read_deletes_nothing(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    ids = _record(engine, rng, 2)
    _age(connection, engine.space.space_id, ids)
    _retain(connection, engine.space.name, "90 days")
    role = f"reader_{uuid.uuid4().hex[:12]}"
    connection.execute(f"CREATE ROLE {role} IN ROLE sona_worker")
    connection.execute("INSERT INTO sona.space_grant VALUES (%s, %s, false)", (engine.space.space_id, role))
    try:
        connection.execute(f"SET ROLE {role}")
        with pytest.raises(SonaError, match="may only read"), translated():
            _apply(connection, engine.space.name)
    finally:
        connection.execute("RESET ROLE")
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")
    assert _counts(connection, engine.space.space_id)["trajectory"] == 2


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ("sona.set_retention('no such space', '1 day')", UnknownSpace, "no such space"),
        ("sona.set_retention({space}, '0')", InvalidInput, "the retention of trajectories is 00:00:00"),
        ("sona.set_retention({space}, '-1 day')", InvalidInput, "expected above 0"),
        ("sona.set_retention({space}, '1 month -29 days')", InvalidInput, "expected above 0"),
        ("sona.set_retention({space}, '2000 years')", InvalidInput, "up to 1000 years"),
        ("sona.set_retention({space}, NULL, '-1 s')", InvalidInput, "the retention of steps"),
        ("sona.set_retention({space}, '30 days', '31 days')", InvalidInput, "a step goes with its trajectory"),
        ("sona.set_retention({space}, 'soon')", InvalidInput, "soon"),
        ("sona.apply_retention('no such space')", UnknownSpace, "no such space"),
        ("sona.apply_retention({space}, 0)", InvalidInput, "batch is 0"),
        ("sona.apply_retention({space}, NULL)", InvalidInput, "batch is NULL"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    connection: Connection, engine: SonaEngine, call: str, error: type[SonaError], says: str
) -> None:
    with pytest.raises(error, match=says), translated():
        connection.execute("SELECT " + call.replace("{space}", f"'{engine.space.name}'"))
    kept = connection.execute(
        "SELECT trajectory_retention, step_retention FROM sona.status WHERE space = %s", (engine.space.name,)
    ).fetchall()
    assert kept == [(None, None)]


def test_the_command_line_sets_shows_and_applies_it(
    connection: Connection, url: str, engine: SonaEngine, rng: np.random.Generator
) -> None:
    name = engine.space.name
    ids = _record(engine, rng, 4)
    _age(connection, engine.space.space_id, ids[:3])
    done = sona("space", "retention", name, "--trajectories", "90 days", "--steps", "30 days", url=url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "trajectories are kept for 90 days\nsteps are kept for 30 days\n"
    done = sona("space", "retention", name, "--steps", "never", "--apply", url=url)
    assert done.stdout.splitlines()[:2] == ["trajectories are kept for 90 days", "steps are kept for ever"]
    assert done.stdout.splitlines()[2].startswith("3 trajectories")
    shown = json.loads(sona("space", "show", name, "--json", url=url).stdout)
    assert (shown["trajectory_retention"], shown["step_retention"], shown["trajectories"]) == ("90 days", None, 1)
    refused = sona("space", "retention", name, "--steps", "1 year", url=url)
    assert refused.returncode != 0
    assert "a step goes with its trajectory" in refused.stderr
