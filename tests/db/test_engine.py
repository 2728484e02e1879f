"""SonaEngine on a real database: what is recorded is learned, durable, and there again after a restart."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from sona_pg import DatabaseError, DatabaseUnavailable, InstantLoopConfig, SonaEngine, StoreConfig
from sona_pg.store import learning as learning_store
from sona_pg.store.connection import Connection
from sona_pg.store.server import EmbeddedServer

from .conftest import DIM
from .recorded import Matrix, _another, _counts, _query, _record_some

# Record, learn, apply


def test_what_was_recalled_and_judged_is_learned_and_durable(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    query = _query(rng)
    before = engine.adapt(query)
    assert before.tobytes() == query.tobytes()
    found = engine.recall(query, 5)
    assert (found.answer.strategy, found.answer.version) == ("adapted", 0)
    recorded = engine.record(
        found,
        rewards={found.items[2].item_id: 1.0, found.items[0].item_id: 0.0, "59": 0.5},
        quality=0.9,
        user_id="u",
        session_id="s",
        metadata={"model": ["a", {"b": None}]},
        latency_us=1234,
    )
    assert recorded == found.trajectory_id
    assert _counts(connection, engine)["trajectory"] == 0
    engine.flush()
    assert not np.array_equal(engine.adapt(query), query)
    row = connection.execute(
        "SELECT trajectory_id, query, quality, latency_us, user_id, session_id, metadata, strategy"
        " FROM sona.trajectory WHERE space_id = %s",
        (engine.space.space_id,),
        binary=True,
    ).fetchone()
    assert row is not None
    assert np.array_equal(row[1], query)
    assert (row[0], *row[3:]) == (recorded, 1234, "u", "s", {"model": ["a", {"b": None}]}, "adapted")
    steps = connection.execute(
        "SELECT item_id, position, reward, attention FROM sona.trajectory_step WHERE space_id = %s ORDER BY ordinal",
        (engine.space.space_id,),
    ).fetchall()
    assert [step[0] for step in steps] == [item.item_id for item in found.items] + ["59"]
    assert [step[1] for step in steps] == [1, 2, 3, 4, 5, None]
    assert [step[2] for step in steps] == [0.0, None, 1.0, None, None, 0.5]
    assert np.array_equal(np.float32(steps[0][3]), np.float32([found.items[0].score]))
    assert steps[5][3] is None
    assert engine.recall(query).answer.strategy == "adapted"


def test_a_fresh_space_is_frozen_until_outcomes_have_proven_something(
    connection: Connection, url: str, space_name: str, items: tuple[str, Matrix], rng: np.random.Generator
) -> None:
    query = _query(rng)
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False) as engine:
        engine.set_items(items[0], "id", "embedding")
        for _ in range(2):
            found = engine.recall(query, 5)
            assert (found.answer.strategy, found.answer.version) == ("frozen", 0)
            cosines = items[1] @ query / np.linalg.norm(query)
            assert [item.item_id for item in found.items] == [str(row) for row in np.argsort(-cosines)[:5]]
            assert engine.adapt(query).tobytes() == query.tobytes()
            assert engine.adapt(np.stack([query] * 2)).tobytes() == query.tobytes() * 2
            in_sql = connection.execute("SELECT sona.adapt(%s, %s)", (space_name, query)).fetchall()
            assert in_sql[0][0].tobytes() == query.tobytes()
            engine.record(found, rewards={found.items[2].item_id: 1.0, found.items[0].item_id: 0.0})
            engine.flush()
        assert engine.metrics.learned == 2
    status = "SELECT strategy, in_force, unweighed, events_learned FROM sona.status WHERE space = %s"
    assert connection.execute(status, (space_name,)).fetchall() == [("learned", "frozen", 0, 2)]
    assert connection.execute(
        "SELECT DISTINCT strategy FROM sona.trajectory WHERE space_id = %s", (engine.space.space_id,)
    ).fetchall() == [("frozen",)]
    assert connection.execute("SELECT count(*) FROM sona.turns WHERE space = %s", (space_name,)).fetchall() == [(0,)]


def test_learning_moves_queries_towards_what_helped(
    engine: SonaEngine, items: tuple[str, Matrix], rng: np.random.Generator
) -> None:
    """Every question asks past its item in one direction that says nothing: held-out questions profit from learning."""
    embeddings = items[1]
    noise = _query(rng) / 4
    wanted = rng.permutation(60)

    def questions(rows: NDArray[np.int64]) -> Matrix:
        return embeddings[rows] + noise * (3 + rng.standard_normal((len(rows), 1))).astype(np.float32)

    def mean_reciprocal_rank(rows: NDArray[np.int64]) -> float:
        found = [engine.recall(query, 60).items for query in questions(rows)]
        ranks = [next(i.rank for i in f if i.item_id == str(row)) for f, row in zip(found, rows, strict=True)]
        return float(np.mean(1 / np.array(ranks)))

    before = mean_reciprocal_rank(wanted[40:])
    for row in np.tile(wanted[:40], 15):
        engine.record(engine.recall(questions(np.array([row]))[0]), rewards={str(row): 1.0})
        engine.learn()
    engine.flush()
    after = mean_reciprocal_rank(wanted[40:])
    assert engine.metrics.learned == 600
    assert after > before + 0.2
    assert after > 0.6


def test_a_restart_continues_with_the_same_bits(engine: SonaEngine, rng: np.random.Generator) -> None:
    _record_some(engine, rng, 20)
    engine.flush()
    with _another(engine) as again:
        query = _query(rng)
        assert again.adapt(query).tobytes() == engine.adapt(query).tobytes()
        assert again.instant.learner.to_bytes() == engine.instant.learner.to_bytes()


def test_two_engines_that_take_turns_learn_what_one_learns(
    connection: Connection, engine: SonaEngine, items: tuple[str, Matrix], space_name: str, url: str
) -> None:
    events = 30
    with SonaEngine.connect(url, space=f"{space_name}_alone", dim=DIM, background=False) as alone:
        alone.set_items(items[0], "id", "embedding")
        _record_some(alone, np.random.default_rng(1), events)
        alone.flush()
        with _another(engine) as second:
            rng = np.random.default_rng(1)
            for start in range(0, events, 5):
                learner = engine if (start // 5) % 2 == 0 else second
                for event in range(start, start + 5):
                    learner.record(_query(rng), ["1", "2", "3"], [1.0, 0.0, None], trajectory_id=uuid.UUID(int=event))
                    learner.learn()
                learner.flush()
            engine.flush()
            assert second.metrics.replays > 0
            assert engine.instant.learner.to_bytes() == alone.instant.learner.to_bytes()
    assert _counts(connection, engine)["learning_event"] == events


def test_events_learned_side_by_side_are_rebased_and_counted_once(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    with _another(engine) as second:
        for turn in range(4):
            _record_some(engine, rng, 5, prefix=2 * turn)
            _record_some(second, rng, 5, prefix=2 * turn + 1)
            engine.learn()
            second.learn()
            engine.flush()
            second.flush()
        assert second.metrics.replays == 4
        assert _counts(connection, engine)["learning_event"] == 40
        assert second.instant.learner.events == 40
        ordinals = connection.execute(
            "SELECT array_agg(ordinal ORDER BY ordinal) FROM sona.learning_event WHERE space_id = %s",
            (engine.space.space_id,),
        ).fetchall()
        assert ordinals[0][0] == list(range(40))


def test_a_flush_whose_confirmation_was_lost_is_not_counted_twice(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = learning_store.learning_transaction

    class Lost:
        """Commits, then loses the answer."""

        def __init__(self, *arguments: object) -> None:
            self.context = real(*arguments)  # type: ignore[arg-type]

        def __enter__(self) -> object:
            return self.context.__enter__()

        def __exit__(self, *error: object) -> None:
            self.context.__exit__(*error)  # type: ignore[arg-type]
            raise DatabaseUnavailable("the connection went away")

    _record_some(engine, rng, 5)
    with monkeypatch.context() as patch:
        patch.setattr(learning_store, "learning_transaction", Lost)
        with pytest.raises(DatabaseUnavailable):
            engine.flush()
    assert engine.metrics.spooled == 5
    engine.flush()
    assert engine.metrics.unflushed == 0
    assert _counts(connection, engine)["learning_event"] == 5
    with _another(engine) as again:
        assert again.instant.learner.events == 5
        assert again.instant.learner.to_bytes() == engine.instant.learner.to_bytes()


def test_a_flush_that_fails_half_way_leaves_nothing_and_loses_nothing(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise DatabaseError("no")

    _record_some(engine, rng, 5)
    with monkeypatch.context() as patch:
        patch.setattr(learning_store.LearningTransaction, "write_learner", broken)
        with pytest.raises(DatabaseError):
            engine.flush()
    assert _counts(connection, engine)["trajectory"] == 0
    engine.flush()
    assert _counts(connection, engine)["trajectory"] == 5


# Late outcomes


def test_a_late_score_is_a_revision_that_teaches_once(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    trajectory = engine.record(_query(rng), ["1", "2"])
    engine.flush()
    assert engine.instant.learner.events == 0
    engine.score(trajectory, 1.0, "2", score_id="thumb-1")
    engine.flush()
    assert engine.instant.learner.events == 1
    engine.score(trajectory, 1.0, "2", score_id="thumb-1")
    engine.flush()
    assert engine.instant.learner.events == 1
    ledger = connection.execute(
        "SELECT revision, learned FROM sona.ledger WHERE space = %s ORDER BY ordinal", (engine.space.name,)
    ).fetchall()
    assert ledger == [(0, "no outcome"), (1, "adapter")]
    assert _counts(connection, engine)["remembered_query"] == 1


def test_a_score_may_come_before_its_trajectory_and_from_another_process(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    id = uuid.UUID(int=77)
    with _another(engine) as other:
        other.score(id, 1.0, "1")
        other.flush()
    engine.record(_query(rng), ["1", "2"], trajectory_id=id)
    engine.flush()
    assert engine.instant.learner.events == 1


def test_a_score_of_an_item_that_was_not_shown_is_kept_and_not_learned_as_shown(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    trajectory = engine.record(_query(rng), ["1"], [0.0])
    engine.score(trajectory, 1.0, "30")
    engine.flush()
    assert _counts(connection, engine)["score"] == 1
    assert engine.instant.learner.events == 1
    shown = connection.execute(
        "SELECT item_id FROM sona.trajectory_step WHERE space_id = %s", (engine.space.space_id,)
    ).fetchall()
    assert shown == [("1",)]


# Edges, versions, ledger


def test_items_that_help_together_are_tied_and_weaken_when_unused(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    engine.record(_query(rng), ["a", "b", "c"], [1.0, 1.0, 0.0])
    engine.record(_query(rng), ["a", "b"], [1.0, 0.0])
    engine.flush()
    edges = connection.execute(
        "SELECT source, target, weight FROM sona.memory_edge WHERE space_id = %s", (engine.space.space_id,)
    ).fetchall()
    assert edges == [("a", "b", pytest.approx(0.05 * 0.98))]
    engine.record(_query(rng), ["b", "a"], [1.0, 1.0])
    engine.flush()
    (weight,) = connection.execute(
        "SELECT weight FROM sona.memory_edge WHERE space_id = %s", (engine.space.space_id,)
    ).fetchall()[0]
    assert weight == pytest.approx(0.049 + 0.05 * (1 - 0.049))


def test_versions_are_published_by_count_and_never_change(
    connection: Connection, url: str, engine: SonaEngine, rng: np.random.Generator
) -> None:
    with _another(engine, store=StoreConfig(publish_every_events=10)) as publishing:
        for turn in range(3):
            _record_some(publishing, rng, 8, prefix=turn)
            publishing.flush()
        versions = connection.execute(
            "SELECT version, parent, events,"
            " sona._version_checksum(v, sona._version_rows(space_id, version)) = checksum"
            " FROM sona.adapter_version v WHERE space_id = %s ORDER BY version",
            (engine.space.space_id,),
        ).fetchall()
        assert versions == [(1, None, 16, True), (2, 1, 24, True)]
        assert publishing.recall(_query(rng)).answer.version == 2


def test_the_ledger_says_what_every_cycle_did(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    _record_some(engine, rng, 3)
    engine.record(_query(rng), ["1"], [0.0])
    engine.flush()
    cycles = connection.execute(
        "SELECT loop, cycle_id, events, learned, replayed, finished_at >= started_at FROM sona.cycles WHERE space = %s",
        (engine.space.name,),
    ).fetchall()
    assert cycles == [("instant", 1, 4, 3, False, True)]


# The thread


def test_the_thread_learns_and_flushes_by_itself(
    connection: Connection, url: str, engine: SonaEngine, rng: np.random.Generator
) -> None:
    with SonaEngine.connect(
        url, space=engine.space.name, instant=InstantLoopConfig(flush_interval_seconds=0.02)
    ) as background:
        _record_some(background, rng, 5)
        deadline = time.monotonic() + 30
        while _counts(connection, engine)["trajectory"] < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert _counts(connection, engine)["trajectory"] == 5
        # What another process publishes is taken over without recording anything.
        _record_some(engine, rng, 5, prefix=9)
        engine.flush()
        query = _query(rng)
        while background.adapt(query).tobytes() != engine.adapt(query).tobytes() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert background.adapt(query).tobytes() == engine.adapt(query).tobytes()


def test_many_threads_record_on_one_engine(connection: Connection, url: str, engine: SonaEngine) -> None:
    with SonaEngine.connect(
        url,
        space=engine.space.name,
        instant=InstantLoopConfig(flush_interval_seconds=0.01, max_pending_signals=10_000),
    ) as shared:

        def work(thread: int) -> None:
            rng = np.random.default_rng(thread)
            for event in range(100):
                shared.record(_query(rng), ["1", "2"], [1.0, 0.0], trajectory_id=uuid.UUID(int=(thread << 64) + event))
                shared.adapt(_query(rng))
                if event % 25 == 0:
                    shared.recall(_query(rng), 3)

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shared.flush()
        assert shared.metrics.dropped == 0
        assert _counts(connection, engine)["learning_event"] == 800


def test_what_does_not_fit_is_counted(url: str, engine: SonaEngine, rng: np.random.Generator) -> None:
    small = InstantLoopConfig(max_pending_signals=3)
    with SonaEngine.connect(url, space=engine.space.name, background=False, instant=small) as tight:
        _record_some(tight, rng, 5)
        assert tight.metrics.dropped == 2
        tight.flush()
        assert tight.metrics.flushed == 3


# A server that goes away


def test_nothing_is_lost_while_the_server_is_away(home: Path, rng: np.random.Generator) -> None:
    server = EmbeddedServer(home)
    no_spool = StoreConfig(spool_max_bytes=0)
    engine = SonaEngine.connect(home=home, space="away", dim=DIM, background=False, store=no_spool)
    _record_some(engine, rng, 3)
    engine.flush()
    server.stop()
    _record_some(engine, rng, 4, prefix=1)
    with pytest.raises(DatabaseUnavailable):
        engine.flush()
    with pytest.raises(DatabaseUnavailable):
        engine.recall(_query(rng))
    with pytest.raises(DatabaseError, match="4 trajectories"):
        engine.close()
    assert engine.metrics.last_error is not None
    server.start()
    engine.flush()
    assert engine.metrics.last_error is None
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT count(*) FROM sona.learning_event").fetchall() == [(7,)]
    engine.close()
