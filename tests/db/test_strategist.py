"""What answers is proven in Postgres: from Python and from SQL, once, and never where outcomes are noise."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

from sona_pg import ConfigError, InvalidInput, SpaceConfig
from sona_pg.config import STRATEGIES
from sona_pg.learning.remembered import look_around
from sona_pg.learning.strategies import Strategy
from sona_pg.learning.strategist import Strategist
from sona_pg.store import spaces
from sona_pg.store.connection import Connection
from sona_pg.store.strategist import strategist_transaction
from sona_pg.store.strategy_settings import claim_settings

from .recurring import DIM, ITEMS, QUESTIONS, Vector, World, _sql_recall, _tables
from .recurring import world as world
from .vectors import unit


@pytest.fixture(scope="module")
def taught(url: str) -> Iterator[World]:
    """A space in which the fusion is proven."""
    world = World(url, f"taught_{uuid.uuid4().hex[:8]}")
    world.teach(330)
    yield world
    world.engine.close()


def test_a_fresh_space_answers_as_the_frozen_embedding_does(world: World) -> None:
    query = world.ask(0)
    nearest = np.argsort(-(world.items @ query), kind="stable")[:10]
    found = world.engine.recall(query)
    assert [item.item_id for item in found.items] == [str(row) for row in nearest]
    assert found.answer.strategy == "frozen"
    assert world.engine.adapt(query).tobytes() == query.tobytes()


def test_what_is_proven_answers_and_helps(taught: World) -> None:
    assert taught.rows("SELECT strategy, in_force, unweighed FROM sona.status WHERE space = %(name)s") == [
        ("learned", "fusion", 0)
    ]
    better, frozen = [], []
    for question in range(QUESTIONS):
        query, answer = taught.ask(question), str(taught.answers[question])
        found = [item.item_id for item in taught.engine.recall(query).items]
        better.append(1 / (1 + found.index(answer)) if answer in found else 0.0)
        nearest = np.argsort(-(taught.items @ query), kind="stable")[:10].tolist()
        frozen.append(1 / (1 + nearest.index(int(answer))) if int(answer) in nearest else 0.0)
    assert np.mean(better) > np.mean(frozen) + 0.3


def test_python_and_sql_give_the_same_items_in_the_same_order(taught: World, connection: Connection) -> None:
    strategies = set()
    for number in range(1000):
        query = taught.ask(number % QUESTIONS) if number % 2 else unit(taught.rng.standard_normal(DIM))
        found = taught.engine.recall(query)
        assert [item.item_id for item in found.items] == _sql_recall(connection, taught, query)
        strategies.add(found.answer.strategy)
    assert strategies == {"fusion"}


@pytest.mark.parametrize(
    "strategy", [s for s in Strategy if s not in (Strategy.FROZEN, Strategy.ADAPTED, Strategy.RELATED)]
)
def test_sql_scores_as_the_strategist_that_proved_it(taught: World, connection: Connection, strategy: Strategy) -> None:
    space = taught.engine.space
    pool_ids, pool = spaces.item_sample(connection, space)
    from sona_pg.learning.item_pool import ItemPool
    from sona_pg.learning.remembered import PoolIndex

    strategist = Strategist(ItemPool(pool_ids, pool), claim_settings(connection, space, None))
    with strategist_transaction(connection, space) as transaction:
        assert transaction is not None
        state = transaction.state()
        assert state is not None
        strategist.load_bytes(state)
        index = PoolIndex(ItemPool(pool_ids, pool))

        class Remembered:
            near = staticmethod(transaction.near)
            times_helped = staticmethod(transaction.times_helped)

            @staticmethod
            def latest(n: int) -> Vector:
                return np.zeros((0, DIM), dtype=np.float32)

        for number in range(40):
            query = taught.ask(number % QUESTIONS) if number % 2 else unit(taught.rng.standard_normal(DIM))
            scored = strategist.answer(query, look_around(query, Remembered, index, strategist.config))
            rows = connection.execute(
                "SELECT item_id, score FROM sona._score_items(%s, %s, %s, 20, NULL) ORDER BY rank",
                (space.space_id, strategy.value, query),
            ).fetchall()
            best = np.sort(scored.scores[strategy])[::-1][:20] / 20
            np.testing.assert_allclose([row[1] for row in rows], best, atol=2e-6)
            # Items whose scores differ by less than rounding may change places, and only these.
            scores = zip(scored.rows, scored.scores[strategy], strict=True)
            mine = {scored.around.items[row]: score / 20 for row, score in scores}
            np.testing.assert_allclose([mine[row[0]] for row in rows], best, atol=2e-6)
            assert len({row[0] for row in rows}) == len(rows) == 20


def test_a_filter_and_more_items_than_candidates(taught: World, connection: Connection) -> None:
    query = taught.ask(1)
    english = {str(row) for row in range(0, ITEMS, 3)}
    found = [item.item_id for item in taught.engine.recall(query, 20, filter={"lang": "en"}).items]
    assert len(found) == 20
    assert set(found) <= english
    assert found == _sql_recall(connection, taught, query, 20, '{"lang": "en"}')
    everything = taught.engine.recall(query, ITEMS + 5).items
    assert [item.rank for item in everything] == list(range(1, ITEMS + 1))
    assert len({item.item_id for item in everything}) == ITEMS


def test_adapt_follows_what_is_in_force_in_python_as_in_sql(url: str, space_name: str, connection: Connection) -> None:
    world = World(url, space_name)
    world.teach(200)
    for strategy in STRATEGIES:
        spaces.set_strategy(connection, world.name, strategy)
        world.engine.flush()
        for question in range(8):
            query = 3 * world.ask(question)
            row = connection.execute("SELECT sona.adapt(%s, %s)", (world.name, query), binary=True).fetchone()
            assert row is not None
            np.testing.assert_allclose(row[0], world.engine.adapt(query), atol=2e-6)
            same = row[0].tobytes() == query.tobytes()
            if strategy in ("frozen", "boosted", "related"):
                assert same
            elif strategy in ("adapted", "familiar", "fusion"):
                assert not same
    matrix = np.stack([world.ask(q) for q in range(3)])
    np.testing.assert_allclose(world.engine.adapt(matrix)[1], world.engine.adapt(matrix[1]), atol=1e-6)
    world.engine.close()


def test_a_fixed_strategy_answers_and_can_be_taken_back(url: str, space_name: str, connection: Connection) -> None:
    world = World(url, space_name)
    world.teach(120)
    query = world.ask(0)
    for strategy in ("boosted", "familiar", "adapted", "frozen"):
        connection.execute("SELECT sona.set_strategy(%s, %s)", (world.name, strategy))
        world.engine.flush()
        found = world.engine.recall(query)
        assert found.answer.strategy == strategy
        assert [item.item_id for item in found.items] == _sql_recall(connection, world, query)
    spaces.set_strategy(connection, world.name, "learned", "enough was compared")
    assert world.rows("SELECT before, after, reason FROM sona.deployments WHERE space = %(name)s ORDER BY created_at")[
        -2:
    ] == [("adapted", "frozen", None), ("frozen", "learned", "enough was compared")]
    with pytest.raises(InvalidInput, match="the reason has 1001 characters"):
        spaces.set_strategy(connection, world.name, "frozen", "a" * 1001)
    with pytest.raises(psycopg.errors.Error) as refused:
        connection.execute("SELECT sona.set_strategy(%s, 'best')", (world.name,))
    assert refused.value.sqlstate == "SN003"
    with pytest.raises(psycopg.errors.Error) as unknown:
        connection.execute("SELECT sona.set_strategy('nowhere', 'frozen')")
    assert unknown.value.sqlstate == "SN001"
    with pytest.raises(ConfigError, match="strategy is 'best'"):
        SpaceConfig(strategy="best")
    world.engine.close()


@pytest.mark.parametrize("kind", ["any item", "the answer to another question"])
def test_noise_leaves_the_answers_as_they_are(world: World, kind: str) -> None:
    rng = np.random.default_rng(3)
    world.teach(
        150,
        (lambda question: str(rng.integers(ITEMS)))
        if kind == "any item"
        else (lambda question: str(world.answers[rng.integers(QUESTIONS)])),
    )
    query = world.ask(0)
    assert world.engine.recall(query).answer.strategy == "frozen"
    assert world.engine.adapt(query).tobytes() == query.tobytes()
    assert world.rows("SELECT in_force, events FROM sona.strategist WHERE space_id = %(space)s") == [("frozen", 150)]
    assert world.rows("SELECT count(*) FROM sona.turns WHERE space = %(name)s") == [(0,)]


def test_evidence_is_for_people_to_read(taught: World) -> None:
    turns = taught.rows(
        "SELECT before, after, reason FROM sona.turns WHERE space = %(name)s AND region IS NULL ORDER BY ordinal"
    )
    assert turns[0][0] == "frozen"
    assert [turn[0] for turn in turns[1:]] == [turn[1] for turn in turns[:-1]]
    assert turns[-1][1] == "fusion"
    assert "proven to beat frozen" in str(turns[-1][2])
    rows = taught.rows(
        "SELECT strategy, in_force, events, gain, recent_gain FROM sona.strategies WHERE space = %(name)s"
    )
    found = {row[0]: row[1:] for row in rows}
    assert set(found) == {s.value for s in Strategy}
    assert [name for name, row in found.items() if row[0]] == ["fusion"]
    assert {row[1] for row in found.values()} == {330}
    assert found["frozen"][2:] == (0.0, 0.0)
    assert found["fusion"][3] > found["fusion"][2] > 0
    regions = taught.rows("SELECT events, verdict FROM sona.regions WHERE space = %(name)s")
    assert sum(int(str(row[0])) for row in regions) == 330
    assert {row[1] for row in regions} <= {"better", "worse", "follows the space"}


def test_a_region_may_be_an_exception(url: str, space_name: str, connection: Connection) -> None:
    world = World(url, space_name)
    world.teach(300)
    query = world.ask(0)
    assert world.engine.recall(query).answer.strategy == "fusion"
    connection.execute(
        "UPDATE sona.strategy_region SET verdict = -1 WHERE space_id = %(space)s AND region = (SELECT region"
        " FROM sona.strategy_region WHERE space_id = %(space)s ORDER BY centroid <=> %(query)s LIMIT 1)",
        {"space": world.engine.space.space_id, "query": query},
    )
    for strategy in ("frozen", "learned"):
        spaces.set_strategy(connection, world.name, strategy)
        world.engine.flush()
    answered = set()
    for question in range(QUESTIONS):
        query = world.ask(question)
        found = world.engine.recall(query)
        answered.add(found.answer.strategy)
        assert [item.item_id for item in found.items] == _sql_recall(connection, world, query)
        if found.answer.strategy == "frozen":
            assert world.engine.adapt(query).tobytes() == query.tobytes()
    assert answered == {"fusion", "frozen"}
    world.engine.close()


def test_a_query_that_is_not_valid_is_refused_whatever_answers(taught: World, connection: Connection) -> None:
    with pytest.raises(InvalidInput):
        taught.engine.recall([float("nan")] * DIM)
    with pytest.raises(psycopg.errors.Error) as wrong:
        connection.execute("SELECT * FROM sona.recall(%s, '[1,2]')", (taught.name,))
    assert wrong.value.sqlstate == "SN002"
    zero = np.zeros(DIM, dtype=np.float32)
    assert len(taught.engine.recall(zero).items) == 10


def test_k_items_of_a_table_of_chunks(world: World, connection: Connection) -> None:
    world.teach(60)
    name = f"public.chunks_{next(_tables)}"
    connection.execute(f"CREATE TABLE {name} (id integer, embedding vector)")
    for row in range(30):
        for _ in range(50):
            chunk = unit(world.items[row] + 0.01 * world.rng.standard_normal(DIM))
            connection.execute(f"INSERT INTO {name} VALUES (%s, %s)", (row, chunk))
    world.engine.set_items(name, "id", "embedding")
    for strategy in ("boosted", "fusion", "stake"):
        spaces.set_strategy(connection, world.name, strategy)
        found = _sql_recall(connection, world, world.ask(0), 20)
        assert len(found) == len(set(found)) == 20
