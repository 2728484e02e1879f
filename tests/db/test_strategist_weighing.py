"""Outcomes are weighed once and by one process, however late or odd they are, and whatever has gone meanwhile."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping

import numpy as np
import psycopg
import pytest
from psycopg import sql

from sona_pg import ConfigError, DatabaseBusy, SonaEngine, SpaceConfig, StoreConfig, StrategyConfig
from sona_pg.config import EvidenceConfig
from sona_pg.errors import LearningError
from sona_pg.learning.outcome import Outcome
from sona_pg.learning.remembered import JudgedEvent
from sona_pg.learning.strategies import Lesson
from sona_pg.learning.strategist import Strategist
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from sona_pg.store.strategist import strategist_transaction
from sona_pg.store.strategy_settings import claim_settings
from sona_pg.worker import InstantWorker

from .recurring import DIM, ITEMS, QUESTIONS, World, _sql_recall, _tables
from .recurring import world as world


def test_late_and_corrected_outcomes_change_what_is_remembered(world: World) -> None:
    def remembered() -> list[tuple[object, ...]]:
        return world.rows("SELECT helped, rewards, unhelpful FROM sona.remembered_query WHERE space_id = %(space)s")

    def counts() -> Mapping[object, object]:
        return dict(world.rows("SELECT item_id, helped FROM sona.item_outcome WHERE space_id = %(space)s"))  # type: ignore[arg-type]

    engine = world.engine
    id = engine.record(world.ask(0), ["1", "2", "3"])
    engine.flush()
    assert remembered() == []
    engine.score(id, 1.0, "2", score_id="a")
    engine.flush()
    assert remembered() == [(["2"], [1.0], ["1", "3"])]
    assert counts() == {"2": 1}
    engine.score(id, 0.0, "2", score_id="b")
    engine.score(id, 0.5, "3", score_id="c")
    engine.score(id, 0.5, "3", score_id="c")
    engine.flush()
    assert remembered() == [(["3"], [0.5], ["1", "2"])]
    assert counts() == {"2": 0, "3": 1}
    assert world.rows("SELECT ordinal, events FROM sona.strategist WHERE space_id = %(space)s") == [(3, 2)]


def test_positions_that_are_seldom_looked_at_count_more(url: str, space_name: str) -> None:
    world = World(url, space_name, examination=(1.0, 0.5, 0.05), reward_max=2.0)
    world.engine.record(world.ask(0), ["1", "2", "3", "4"], [1.0, 1.0, 2.0, None])
    world.engine.record(world.ask(0), ["1", "2"], {"9": 2.0})
    world.engine.flush()
    rows = world.rows(
        "SELECT helped, rewards, unhelpful FROM sona.remembered_query WHERE space_id = %(space)s ORDER BY ordinal"
    )
    assert rows == [(["3", "2", "1"], [10.0, 1.0, 0.5], ["4"]), (["9"], [1.0], ["1", "2"])]
    world.engine.close()
    with SonaEngine.connect(url, space=world.name, background=False) as again:
        assert again.space.config.examination == pytest.approx((1.0, 0.5, 0.05))
    with pytest.raises(ConfigError, match="examination"):
        SpaceConfig(examination=(1.0, 0.0))
    with connect(url) as connection, pytest.raises(psycopg.errors.Error) as refused:
        connection.execute("SELECT sona.create_space('positions', 3, examination => '{1,NULL}')")
    assert refused.value.sqlstate == "SN003"


def test_what_sql_clients_record_is_weighed_by_the_worker(url: str, space_name: str, connection: Connection) -> None:
    world = World(url, space_name)
    for event in range(330):
        question = event % QUESTIONS
        query = world.ask(question)
        shown = _sql_recall(connection, world, query)
        answer = str(world.answers[question])
        items = [*shown, *([] if answer in shown else [answer])]
        rewards = [1.0 if item == answer else None for item in items]
        positions = [place + 1 if place < len(shown) else None for place in range(len(items))]
        connection.execute(
            "SELECT sona.record(%s, %s, %s, %s::float8[], positions => %s)",
            (world.name, query, items, rewards, positions),
        )
        if event % 30 == 29:
            worker = InstantWorker(Database(url, StoreConfig()))
            while worker.step() + worker.weigh():
                pass
            worker.close()
    assert world.rows("SELECT in_force, unweighed FROM sona.status WHERE space = %(name)s") == [("fusion", 0)]
    world.engine.flush()
    assert world.engine.recall(world.ask(0)).answer.strategy == "fusion"
    world.engine.close()


def test_only_one_process_weighs_at_a_time(world: World, url: str) -> None:
    world.engine.record(world.ask(0), ["1"], [1.0])
    world.engine.instant.flush_updates()
    with connect(url) as other, strategist_transaction(other, world.engine.space) as held:
        assert held is not None
        assert world.engine.evidence.advance() == 0
    assert world.engine.evidence.advance() == 1
    assert world.engine.evidence.advance() == 0


def test_a_second_process_goes_on_where_the_first_one_was(world: World, url: str) -> None:
    other = SonaEngine.connect(url, space=world.name, background=False)
    for event in range(60):
        question = event % QUESTIONS
        engine = (world.engine, other)[event % 2]
        engine.record(world.ask(question), ["1", "2"], {str(world.answers[question]): 1.0})
        engine.flush()
    assert world.rows("SELECT ordinal, events FROM sona.strategist WHERE space_id = %(space)s") == [(60, 60)]
    other.close()


def test_items_that_are_gone_keep_nothing_from_being_durable(world: World, connection: Connection) -> None:
    world.engine.record(world.ask(0), ["1"], [1.0])
    connection.execute(sql.SQL("DROP TABLE {}").format(sql.SQL(world.table)))
    world.engine.flush()
    world.engine.record(world.ask(1), ["2"], [1.0])
    world.engine.flush()
    assert world.rows("SELECT trajectories, unweighed FROM sona.status WHERE space = %(name)s") == [(2, 2)]
    errors = world.rows("SELECT message FROM sona.errors WHERE space = %(name)s AND source = 'evidence'")
    assert len(errors) == 1
    assert "sona.set_items" in str(errors[0][0])
    connection.execute(f"CREATE TABLE {world.table} (id integer PRIMARY KEY, embedding vector)")
    for row in (1, 2, 3):
        connection.execute(f"INSERT INTO {world.table} VALUES (%s, %s)", (row, world.items[row]))
    world.engine.set_items(world.table, "id", "embedding")
    world.engine.flush()
    assert world.rows("SELECT trajectories, unweighed FROM sona.status WHERE space = %(name)s") == [(2, 0)]
    assert world.rows("SELECT count(*) FROM sona.remembered_query WHERE space_id = %(space)s") == [(2,)]


def test_odd_outcomes_are_taken_in(world: World) -> None:
    engine, many = world.engine, [str(row) for row in range(ITEMS)]
    engine.record(world.ask(0), ["nowhere", "-1", "1"], [1.0, 1.0, 1.0])
    engine.record(world.ask(1), ["5", "5", "5"], [1.0, None, 0.0])
    engine.record(world.ask(2), many[:10], [1.0] * 10)
    engine.record(world.ask(3), many[:10], [0.0] * 10)
    engine.record(world.ask(4), [], quality=0.5)
    engine.record(world.ask(5), many, [1.0 - row / 1000 for row in range(ITEMS)])
    engine.record(world.ask(6), ["1"], {f"gone {row}": 1.0 for row in range(9999)})
    engine.record(np.zeros(DIM, dtype=np.float32), ["1"], [1.0])
    for _ in range(40):
        engine.record(world.items[7], ["8", "7"], [1.0, 0.0])
    engine.flush()
    assert world.rows("SELECT trajectories, unweighed FROM sona.status WHERE space = %(name)s") == [(48, 0)]
    (row,) = world.rows("SELECT events, in_force, weights FROM sona.strategist WHERE space_id = %(space)s")
    assert row[1] == "frozen"
    assert np.isfinite(np.array(row[2], dtype=np.float64)).all()
    most = world.rows("SELECT max(cardinality(helped)) FROM sona.remembered_query WHERE space_id = %(space)s")
    assert most == [(StrategyConfig().most_remembered,)]
    assert world.rows("SELECT count(*) FROM sona.errors WHERE space = %(name)s") == [(0,)]
    assert len(engine.recall(world.items[7]).items) == 10


def test_an_items_table_without_an_index_is_warned_of_and_works(
    world: World, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    notices: list[str] = []
    connection.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    name = f"public.unindexed_{next(_tables)}"
    connection.execute(f"CREATE TABLE {name} (id integer PRIMARY KEY, embedding vector({DIM}))")
    connection.execute(
        f"INSERT INTO {name} SELECT n, ARRAY(SELECT sin(n * k) FROM generate_series(1, {DIM}) k)::vector"
        " FROM generate_series(1, 11000) n"
    )
    connection.execute(f"ANALYZE {name}")
    statement = "SELECT sona.set_items(%s, %s::regclass, 'id', 'embedding')"
    connection.execute(statement, (world.name, name))
    assert any("no vector index" in notice for notice in notices)
    assert len(_sql_recall(connection, world, world.ask(0))) == 10
    notices.clear()
    connection.execute(f"CREATE INDEX ON {name} USING hnsw (embedding vector_cosine_ops)")
    connection.execute(statement, (world.name, name))
    assert notices == []


def test_settings_are_the_spaces_and_others_are_refused(url: str, space_name: str) -> None:
    given = StrategyConfig(candidates=30, neighbours=20)
    SonaEngine.connect(url, space=space_name, dim=DIM, background=False, strategy=given).close()
    with SonaEngine.connect(url, space=space_name, background=False) as engine, connect(url) as connection:
        assert claim_settings(connection, engine.space, None) == given
    with pytest.raises(ConfigError, match="candidates = 30, not 40"):
        SonaEngine.connect(url, space=space_name, background=False, strategy=StrategyConfig())


def test_an_outcome_that_is_next_to_nothing_stops_nothing(url: str, space_name: str) -> None:
    world = World(url, space_name, reward_max=5.0)
    world.engine.record(world.ask(0), ["1", "2"], [1e-45, 0.0])
    world.engine.record(world.ask(1), ["3"], [5.0])
    world.engine.flush()
    assert world.rows("SELECT unweighed FROM sona.status WHERE space = %(name)s") == [(0,)]
    world.engine.close()


def test_an_entry_that_cannot_be_learned_from_holds_up_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = Strategist.learn

    def refusing(self: Strategist, event: JudgedEvent, *rest: object) -> Lesson:
        lesson = learn(self, event, *rest)  # type: ignore[arg-type]
        if "7" in event.helped:
            raise LearningError("no finite loss: nothing can be learned from it")
        return lesson

    monkeypatch.setattr(Strategist, "learn", refusing)
    for item in ("5", "6", "7", "8"):
        world.engine.record(world.ask(0), ["1"], {item: 1.0})
    world.engine.flush()
    assert world.rows("SELECT ordinal, events FROM sona.strategist WHERE space_id = %(space)s") == [(4, 3)]
    assert world.rows("SELECT count(*) FROM sona.remembered_query WHERE space_id = %(space)s") == [(4,)]
    (message,) = world.rows("SELECT message FROM sona.errors WHERE space = %(name)s")
    assert "ledger entry 2" in str(message[0])
    assert "no finite loss" in str(message[0])


def test_what_was_refused_is_learned_from_once_the_strategist_begins_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*given: object) -> Lesson:
        raise LearningError("no finite loss: nothing can be learned from it")

    with monkeypatch.context() as patched:
        patched.setattr(Strategist, "learn", refusing)
        for user in ("ann", "bob"):
            world.engine.record(world.ask(0), ["1"], {"5": 1.0}, user_id=user)
            world.engine.flush()
    events = "SELECT ordinal, events FROM sona.strategist WHERE space_id = %(space)s"
    assert world.rows(events) == [(2, 0)]
    world.engine.forget("ann")
    assert world.rows(events) == [(1, 1)]


def test_who_waits_for_a_strategist_that_is_held_gives_up_after_a_while(world: World, url: str) -> None:
    config = EvidenceConfig(interval_seconds=0.01, stalled_seconds=0.2)
    with SonaEngine.connect(url, space=world.name, background=False, evidence=config) as engine:
        engine.record(engine.recall(world.ask(0)), rewards={"1": 1.0})
        engine.instant.flush_updates()
        with connect(url) as other, strategist_transaction(other, world.engine.space) as held:
            assert held is not None
            with pytest.raises(DatabaseBusy, match=r"entry 0 of 1, .* sona\.strategist; end it"):
                engine.evidence.settle()
        engine.evidence.settle()
    assert world.rows("SELECT ordinal FROM sona.strategist WHERE space_id = %(space)s") == [(1,)]


def test_what_retention_deletes_is_forgotten_by_a_process(world: World, connection: Connection) -> None:
    world.teach(120)
    connection.execute(
        "UPDATE sona.trajectory SET created_at = now() - interval '9 days' WHERE space_id = %s",
        (world.engine.space.space_id,),
    )
    connection.execute("SELECT sona.set_retention(%s, '7 days')", (world.name,))
    while connection.execute("SELECT sona.apply_retention(%s)", (world.name,)).fetchone() != (0,):
        pass
    assert world.rows("SELECT count(*) FROM sona.remembered_query WHERE space_id = %(space)s") == [(0,)]
    world.teach(60)
    prototypes = "SELECT count(*) FROM sona.remembered_query WHERE space_id = %(space)s AND is_prototype"
    (found,) = world.rows(prototypes)
    assert int(str(found[0])) > 10


def test_remembered_queries_are_indexed_after_many_of_them_too(world: World, url: str) -> None:
    config, store = (
        EvidenceConfig(batch=8, admit_interval_seconds=86_400.0, admit_rows=20),
        StoreConfig(exact_search_rows=10),
    )
    with SonaEngine.connect(url, space=world.name, background=False, evidence=config, store=store) as engine:
        for event in range(30):
            engine.record(world.ask(event), rewards={"1": 1.0})
        engine.instant.flush_updates()
        counts = (
            "SELECT count(*) FILTER (WHERE admitted), count(*) FROM sona.remembered_query WHERE space_id = %(space)s"
        )
        seen = []
        while engine.evidence.advance():
            seen += world.rows(counts)
    # The first look finds too few; the day until the next one is not waited for.
    assert seen == [(0, 8), (0, 16), (0, 24), (30, 30)]


def test_a_space_is_dropped_while_its_strategies_are_weighed(world: World, url: str) -> None:
    world.teach(20)
    dropped: list[str] = []

    def drop() -> None:
        with connect(url) as own:
            own.execute("SELECT sona.drop_space(%s)", (world.name,))
            dropped.append(world.name)

    with connect(url) as other, strategist_transaction(other, world.engine.space) as held:
        assert held is not None
        thread = threading.Thread(target=drop)
        thread.start()
        time.sleep(0.3)
        outcome = Outcome(("1",), {"1": 1.0}, ())
        held.remember(99, uuid.uuid4(), world.ask(0), outcome, is_prototype=False)
        assert dropped == []
    thread.join()
    assert dropped == [world.name]
    for table in ("remembered_query", "item_outcome", "strategist", "strategy_region"):
        assert world.rows(f"SELECT count(*) FROM sona.{table} WHERE space_id = %(space)s") == [(0,)]
