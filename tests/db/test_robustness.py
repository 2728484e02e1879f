"""What must not stop a space: interrupts, poison, races of threads, odd arguments, and a defect in another space."""

from __future__ import annotations

import os
import threading
import uuid

import numpy as np
import psycopg
import pytest

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
from sona_pg.store.connection import Connection, translated
from sona_pg.store.database import Database
from sona_pg.store.learning import LearningTransaction
from sona_pg.store.ledger import trajectories
from sona_pg.types import Score
from sona_pg.worker import InstantWorker

from .conftest import DIM
from .recorded import Matrix, _count, _query

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
