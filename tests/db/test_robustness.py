"""What must not stop a space: roles without privileges, troubled item tables, interrupts, races, poison."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg.conninfo import make_conninfo

from sona_pg import (
    ConfigError,
    DatabaseError,
    InstantLoopConfig,
    InvalidInput,
    QueryAdapterConfig,
    SonaEngine,
    StoreConfig,
)
from sona_pg.learning.learner import Learner
from sona_pg.learning.outcome import OutcomeEvent, with_scores
from sona_pg.loops.instant import InstantLoop
from sona_pg.store.connection import Connection, connect, translated
from sona_pg.store.database import Database
from sona_pg.store.learning import LearningTransaction
from sona_pg.store.ledger import trajectories
from sona_pg.store.migrate import migrate
from sona_pg.types import Score
from sona_pg.worker import InstantWorker

from .conftest import DIM

Matrix = NDArray[np.float32]


def _query(rng: np.random.Generator) -> Matrix:
    return rng.standard_normal(DIM).astype(np.float32)


def _count(connection: Connection, table: str, space_id: int) -> int:
    return connection.execute(f"SELECT count(*) FROM sona.{table} WHERE space_id = %s", (space_id,)).fetchall()[0][0]


# Roles


def test_an_owner_without_superuser_rights_migrates_records_and_learns(
    owned_url: str, rng: np.random.Generator
) -> None:
    migrate(owned_url)
    with SonaEngine.connect(owned_url, space="own", dim=DIM, background=False) as engine:
        for _ in range(5):
            builder = engine.start(_query(rng))
            builder.add_step(_query(rng), [0.5, 0.25], 1.0, item_id="a", position=1)
            builder.add_step(_query(rng), None, 0.0, item_id="b", position=2)
            engine.record(builder)
        engine.score(engine.record(_query(rng), ["a"]), 1.0, "a")
        engine.flush()
        assert engine.metrics.flushed == 7
        state = engine.instant.learner.to_bytes()
    with SonaEngine.connect(owned_url, space="own", background=False) as again:
        assert again.instant.learner.to_bytes() == state
    with connect(owned_url) as connection:
        assert connection.execute(
            "SELECT attention FROM sona.trajectory_step WHERE item_id = 'a' LIMIT 1"
        ).fetchall() == [([0.5, 0.25],)]


def test_what_row_level_security_forbids_is_forbidden(
    owned_url: str, role: Callable[..., str], rng: np.random.Generator
) -> None:
    migrate(owned_url)
    mine, theirs = role("sona_mine", "sona_worker"), role("sona_theirs", "sona_worker")
    for name in (mine, theirs):
        with SonaEngine.connect(make_conninfo(owned_url, user=name), space=name, dim=DIM, background=False) as engine:
            engine.record(_query(rng), ["a"], [1.0])
            engine.flush()
    with connect(make_conninfo(owned_url, user=theirs)) as connection:
        assert connection.execute("SELECT name FROM sona.space").fetchall() == [(theirs,)]
        assert connection.execute("SELECT count(*) FROM sona.trajectory").fetchall() == [(1,)]
        for statement in (
            "INSERT INTO sona.space_grant (space_id, role_name) VALUES (1, current_user)",
            "INSERT INTO sona.trajectory (space_id, trajectory_id, query) VALUES (1, gen_random_uuid(), '[1]')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
        assert connection.execute("UPDATE sona.space_grant SET may_write = true").rowcount == 1
        assert connection.execute("DELETE FROM sona.space WHERE name <> current_user").rowcount == 0


def test_a_space_whose_grants_were_taken_away_cannot_be_seized(owned_url: str, role: Callable[..., str]) -> None:
    migrate(owned_url)
    thief = role("sona_thief", "sona_worker")
    with connect(owned_url) as connection:
        connection.execute("SELECT sona.create_space('locked', 2)")
        space_id = connection.execute("SELECT space_id FROM sona.space").fetchall()[0][0]
        connection.execute("DELETE FROM sona.space_grant")
    with connect(make_conninfo(owned_url, user=thief)) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(
                "INSERT INTO sona.space_grant (space_id, role_name) VALUES (%s, current_user)", (space_id,)
            )


# The application's table


@pytest.mark.parametrize(
    "trouble",
    [
        "DROP TABLE {}",
        "ALTER TABLE {} RENAME COLUMN embedding TO vectors",
        "ALTER TABLE {} RENAME COLUMN id TO key",
        "ALTER TABLE {} ALTER COLUMN embedding TYPE vector USING embedding",
    ],
)
def test_trouble_with_the_items_table_does_not_keep_outcomes_from_being_durable(
    connection: Connection, engine: SonaEngine, items: tuple[str, Matrix], rng: np.random.Generator, trouble: str
) -> None:
    connection.execute(f"INSERT INTO {items[0]} VALUES (1000, %s)", (_query(rng),))  # not in the sample
    connection.execute(trouble.format(items[0]))
    for item in ("1000", "1001", "1"):
        engine.record(_query(rng), [item], [1.0])
    engine.flush()
    assert _count(connection, "trajectory", engine.space.space_id) == 3
    learned = connection.execute(
        "SELECT learned FROM sona.ledger WHERE space = %s ORDER BY ordinal", (engine.space.name,)
    ).fetchall()
    assert learned[2] == ("adapter",)
    assert learned[1] == ("no embedding",)
    # The strategies cannot be weighed without items; that is told, and made good when the table is named anew.
    is_gone = "TYPE vector" not in trouble
    status = "SELECT unweighed FROM sona.status WHERE space = %s"
    told = "SELECT count(*) FROM sona.errors WHERE space = %s AND source = 'evidence'"
    assert connection.execute(status, (engine.space.name,)).fetchall() == [(3 * is_gone,)]
    assert connection.execute(told, (engine.space.name,)).fetchall() == [(int(is_gone),)]
    connection.execute(f"CREATE TABLE {items[0]}_anew (id integer PRIMARY KEY, embedding vector({DIM}))")
    connection.execute(f"INSERT INTO {items[0]}_anew VALUES (1, %s)", (_query(rng),))
    engine.set_items(f"{items[0]}_anew", "id", "embedding")
    engine.flush()
    assert connection.execute(status, (engine.space.name,)).fetchall() == [(0,)]
    assert _count(connection, "remembered_query", engine.space.space_id) == 3


def test_items_without_an_embedding_teach_once_they_have_one(
    connection: Connection, engine: SonaEngine, items: tuple[str, Matrix], rng: np.random.Generator
) -> None:
    trajectory = engine.record(_query(rng), ["2000"], [1.0])
    engine.flush()
    connection.execute(f"INSERT INTO {items[0]} VALUES (2000, %s)", (_query(rng),))
    engine.score(trajectory, 1.0, "2000")
    engine.flush()
    ledger = connection.execute(
        "SELECT learned FROM sona.ledger WHERE space = %s ORDER BY ordinal", (engine.space.name,)
    ).fetchall()
    assert ledger == [("no embedding",), ("adapter",)]


def test_recall_gives_as_many_items_as_were_asked_for_with_an_index(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    connection.execute("DROP TABLE IF EXISTS public.indexed_items")
    connection.execute(f"CREATE TABLE public.indexed_items (id integer PRIMARY KEY, embedding vector({DIM}))")
    with connection.cursor().copy("COPY public.indexed_items FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "vector"])
        for row in range(3000):
            copy.write_row((row, _query(rng)))
    connection.execute("CREATE INDEX ON public.indexed_items USING hnsw (embedding vector_cosine_ops)")
    connection.execute("ANALYZE public.indexed_items")
    engine.set_items("public.indexed_items", "id", "embedding")
    assert len(engine.recall(_query(rng), 100).items) == 100


def test_sets_of_items_that_are_named_at_once_do_not_collide(
    connection: Connection, url: str, engine: SonaEngine, items: tuple[str, Matrix]
) -> None:
    failures: list[Exception] = []

    def name_items() -> None:
        try:
            with psycopg.connect(url, autocommit=True) as own:
                own.execute("SELECT sona.set_items(%s, %s::regclass, 'id', 'embedding')", (engine.space.name, items[0]))
        except psycopg.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=name_items) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert _count(connection, "item_sample", engine.space.space_id) == 60


# Connections that end


def test_connections_that_the_server_ended_are_made_anew(
    url: str, connection: Connection, engine: SonaEngine, items: tuple[str, Matrix], rng: np.random.Generator
) -> None:
    connection.execute(f"INSERT INTO {items[0]} VALUES (3000, %s)", (_query(rng),))
    others = make_conninfo(url, application_name="ended")
    with SonaEngine.connect(others, space=engine.space.name, background=False) as used:
        for learn in (used.flush, lambda: used.learn_one(_query(rng), {"3000": 1.0}), used.background_learn):
            used.record(_query(rng), ["3000"], [1.0])
            ended = connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'ended'"
            ).fetchall()
            assert ended
            learn()
            assert used.metrics.last_error is None
        assert used.instant.learner.events == 4
    assert _count(connection, "learning_event", engine.space.space_id) == 4


def test_a_flush_does_not_wait_forever_for_the_learner(url: str, engine: SonaEngine, rng: np.random.Generator) -> None:
    with SonaEngine.connect(
        url, space=engine.space.name, background=False, store=StoreConfig(lock_timeout_seconds=1)
    ) as hurried:
        hurried.record(_query(rng), ["1"], [1.0])
        with psycopg.connect(url) as blocker:
            blocker.execute("SELECT FROM sona.learner WHERE space_id = %s FOR UPDATE", (engine.space.space_id,))
            with pytest.raises(DatabaseError, match="another session holds"):
                hurried.flush()
        hurried.flush()
        assert hurried.metrics.flushed == 1


def test_servers_that_start_at_the_same_time_open_one_space(url: str, space_name: str) -> None:
    failures: list[Exception] = []

    def start() -> None:
        try:
            SonaEngine.connect(url, space=space_name, dim=DIM, background=False).close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# Interrupts and poison


def test_an_interrupt_while_learning_teaches_nothing_twice(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(6):
        engine.record(_query(rng), ["1", "2"], [1.0, 0.0])
    real, calls = Learner.learn, iter(range(100))

    def interrupted(self: Learner, *arguments: object) -> object:
        result = real(self, *arguments)  # type: ignore[arg-type]
        if next(calls) == 3:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.learn()
    engine.flush()
    assert _count(connection, "learning_event", engine.space.space_id) == 6
    assert engine.instant.learner.adapter.steps == engine.instant.learner.events == 6


def test_an_interrupt_while_flushing_teaches_nothing_twice(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.score(engine.record(_query(rng), ["1"]), 1.0, "1")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LearningTransaction, "write_learner", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.flush()
    engine.flush()
    assert engine.instant.learner.adapter.steps == engine.instant.learner.events == 1
    assert _count(connection, "score", engine.space.space_id) == 1


def test_what_the_database_refuses_is_set_aside_and_the_rest_goes_through(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = uuid.UUID(int=13)
    real = LearningTransaction.write_trajectories

    def refusing(self: LearningTransaction, trajectories: list[object]) -> None:
        real(self, trajectories)  # type: ignore[arg-type]
        if any(t.id == poison for t in trajectories):  # type: ignore[attr-defined]
            with translated():
                self._connection.execute("SELECT 'x'::integer")

    for number in range(9):
        engine.record(_query(rng), ["1"], [1.0], trajectory_id=uuid.UUID(int=10 + number))
        engine.score(uuid.UUID(int=10 + number), 0.5, "2", score_id=f"{engine.space.name}-{number}")
    with monkeypatch.context() as patch:
        patch.setattr(LearningTransaction, "write_trajectories", refusing)
        engine.flush()
    assert engine.metrics.refused == 1
    assert engine.metrics.unflushed == 0
    recorded = connection.execute(
        "SELECT trajectory_id FROM sona.trajectory WHERE space_id = %s ORDER BY 1", (engine.space.space_id,)
    ).fetchall()
    assert [row[0].int for row in recorded] == [10, 11, 12, 14, 15, 16, 17, 18]
    assert _count(connection, "score", engine.space.space_id) == 9
    assert len(connection.execute("SELECT FROM sona.errors WHERE space = %s", (engine.space.name,)).fetchall()) == 1
    ledger = connection.execute(
        "SELECT trajectory_id, revision FROM sona.ledger WHERE space = %s", (engine.space.name,)
    ).fetchall()
    assert len(set(ledger)) == len(ledger) == 16


def test_extreme_numbers_do_not_stop_a_space(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    for scale in (3e38, 1e30, 1e-22, 1e-38, 0.0):
        query = (np.sign(_query(rng)) * np.float64(scale)).astype(np.float32)
        engine.record(query, ["1"], [1.0])
        builder = engine.start(query)
        builder.add_step(query, reward=1.0)
        builder.add_step(-query, reward=0.0)
        engine.record(builder)
    engine.record(_query(rng), ["1"], [1.0])
    engine.flush()
    assert _count(connection, "trajectory", engine.space.space_id) == 11
    assert np.isfinite(engine.adapt(_query(rng))).all()
    assert engine.instant.learner.events >= 1


def test_what_the_caller_changes_afterwards_changes_nothing(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    metadata: dict[str, float] = {"a": 1.0}
    query = _query(rng)
    engine.record(query, ["1"], [1.0], metadata=metadata)
    expected = query.copy()
    metadata["a"] = float("nan")
    query[:] = np.nan
    engine.flush()
    rows = connection.execute(
        "SELECT metadata, query FROM sona.trajectory WHERE space_id = %s", (engine.space.space_id,), binary=True
    ).fetchall()
    assert rows[0][0] == {"a": 1.0}
    assert np.array_equal(rows[0][1], expected)


# Counts


def test_refusals_are_counted_to_the_last_one_by_many_threads(url: str, engine: SonaEngine) -> None:
    config = InstantLoopConfig(max_pending_signals=64, flush_interval_seconds=0.005)
    with SonaEngine.connect(url, space=engine.space.name, instant=config) as busy:
        taken = [0] * 8

        def work(thread: int) -> None:
            rng = np.random.default_rng(thread)
            for _ in range(400):
                trajectory = busy.start(_query(rng)).build(0.5)
                taken[thread] += busy.instant.on_inference(trajectory)

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        busy.flush()
        assert busy.metrics.recorded == sum(taken)
        assert busy.metrics.dropped == 3200 - sum(taken)
        assert busy.metrics.flushed == sum(taken)


def test_scores_are_bounded_while_the_database_is_away(url: str, engine: SonaEngine, rng: np.random.Generator) -> None:
    config = InstantLoopConfig(max_unflushed=10)
    store = StoreConfig(lock_timeout_seconds=1, spool_max_bytes=0)
    with SonaEngine.connect(url, space=engine.space.name, background=False, instant=config, store=store) as tight:
        with psycopg.connect(url) as blocker:
            blocker.execute("SELECT FROM sona.learner WHERE space_id = %s FOR UPDATE", (engine.space.space_id,))
            for _ in range(15):
                tight.score(uuid.uuid4(), 1.0)
            with pytest.raises(DatabaseError):
                tight.flush()
            for _ in range(5):
                tight.score(uuid.uuid4(), 1.0)
        assert (tight.metrics.scored, tight.metrics.dropped) == (15, 5)


def test_an_id_that_another_process_recorded_is_counted_as_repeated(
    url: str, engine: SonaEngine, rng: np.random.Generator
) -> None:
    id = uuid.uuid4()
    engine.record(_query(rng), ["1"], [1.0], trajectory_id=id)
    engine.flush()
    with SonaEngine.connect(url, space=engine.space.name, background=False) as other:
        other.record(_query(rng), ["1"], [1.0], trajectory_id=id)
        other.score(id, 1.0, score_id=f"{id}")
        other.flush()
        other.score(id, 1.0, score_id=f"{id}")
        other.flush()
        assert (other.metrics.recorded, other.metrics.repeated, other.metrics.learned) == (1, 2, 0)


# Opening and closing


def test_small_dimensions_are_opened_with_a_rank_that_they_can_have(url: str, space_name: str) -> None:
    with pytest.raises(ConfigError, match="rank 8 exceeds the dimension 4"):
        SonaEngine.connect(url, space=space_name, dim=4, adapter=QueryAdapterConfig())
    with SonaEngine.connect(url, space=space_name, dim=4, background=False) as engine:
        assert engine.instant.learner.adapter.rank == 4


def test_a_closed_or_forked_engine_touches_no_connection(engine: SonaEngine, rng: np.random.Generator) -> None:
    child = os.fork()
    if child == 0:
        failed = 0
        for act in (engine.flush, engine.learn, lambda: engine.recall(np.ones(DIM))):
            try:
                act()
            except ConfigError:
                failed += 1
        engine.close()
        os._exit(failed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert engine.recall(_query(rng)).items
    engine.close()
    for act in (engine.flush, lambda: engine.recall(np.ones(DIM))):
        with pytest.raises(ConfigError, match="closed"):
            act()


def test_arguments_that_would_be_ignored_are_refused(engine: SonaEngine, rng: np.random.Generator) -> None:
    built = engine.start(_query(rng)).build(0.5)
    for extra in ({"quality": 0.1}, {"user_id": "u"}, {"metadata": {}}, {"latency_us": 5}):
        with pytest.raises(InvalidInput, match="trajectory"):
            engine.record(built, **extra)  # type: ignore[arg-type]


# Replay


def test_a_replay_of_the_tables_gives_the_stored_weights_bit_for_bit(
    connection: Connection, url: str, engine: SonaEngine, space_name: str, items: tuple[str, Matrix]
) -> None:
    rng = np.random.default_rng(3)
    for event in range(40):
        if event % 3:
            id = engine.record(_query(rng), ["1", "2", "3"], [0.37, None, 0.0])
            if event % 5 == 0:
                engine.score(id, 0.91, "2")
        else:
            builder = engine.start(_query(rng))
            for reward in (0.13, 0.77, None):
                builder.add_step(_query(rng), reward=reward)
            engine.record(builder)
        if event % 7 == 0:
            engine.flush()
    engine.flush()
    with SonaEngine.connect(url, space=f"{space_name}_replay", dim=DIM, background=False) as replay:
        replay.set_items(items[0], "id", "embedding")
        with connection.transaction():
            ledger = connection.execute(
                "SELECT trajectory_id, revision FROM sona.ledger WHERE space = %s ORDER BY ordinal",
                (engine.space.name,),
            ).fetchall()
            recorded = trajectories(connection, engine.space, [row[0] for row in ledger])
            scores = connection.execute(
                "SELECT trajectory_id, value, item_id, name, score_id FROM sona.score"
                " WHERE space_id = %s ORDER BY sequence",
                (engine.space.space_id,),
            ).fetchall()
        learner = replay.instant.learner
        for id, revision in ledger:
            trajectory = recorded[id]
            if revision == 0:
                learner.learn(OutcomeEvent(trajectory))
                continue
            taught = {s.item_id: s.reward for s in trajectory.steps if s.item_id and s.reward is not None}
            after = with_scores(trajectory, [Score(*row) for row in scores if row[0] == id])
            learner.learn(OutcomeEvent(after, revision, taught, had_outcome=True))
        assert learner.to_bytes() == engine.instant.learner.to_bytes()


def test_a_worker_indexes_the_remembered_queries_of_a_large_space(
    connection: Connection, url: str, engine: SonaEngine, rng: np.random.Generator
) -> None:
    for _ in range(30):
        connection.execute("SELECT sona.record(%s, %s, '{1}', '{1}')", (engine.space.name, _query(rng)))
    worker = InstantWorker(Database(url, StoreConfig(exact_search_rows=10)))
    while worker.step() + worker.weigh():
        pass
    worker.close()
    admitted = connection.execute(
        "SELECT count(*) FILTER (WHERE admitted) FROM sona.remembered_query WHERE space_id = %s",
        (engine.space.space_id,),
    ).fetchall()
    assert admitted == [(30,)]


def test_a_defect_in_one_space_stops_the_worker_in_no_other(
    url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"defect {uuid.uuid4().hex[:8]}", f"sound {uuid.uuid4().hex[:8]}"]
    for name in names:
        connection.execute("SELECT sona.create_space(%s, %s)", (name, DIM))
        connection.execute("SELECT sona.record(%s, %s, '{1}', '{1}')", (name, np.ones(DIM, dtype=np.float32)))
    learn = InstantLoop.learn_recorded

    def broken(loop: InstantLoop, limit: int) -> int:
        if loop._store is not None and loop._store.space.name == names[0]:
            raise RecursionError("deeper than it should be")
        return learn(loop, limit)

    monkeypatch.setattr(InstantLoop, "learn_recorded", broken)
    worker = InstantWorker(Database(url, StoreConfig()))
    assert worker.step() == 1
    assert worker.failing == [names[0]]
    worker.close()
    rows = connection.execute(
        "SELECT source, message FROM sona.errors WHERE space = ANY(%s) ORDER BY created_at", (names,)
    ).fetchall()
    assert rows == [("instant", "RecursionError: deeper than it should be")]
    # Others look for work in this database, too.
    for name in names:
        connection.execute("SELECT sona.drop_space(%s)", (name,))
