"""The engine for asyncio: the answers of SonaEngine bit for bit, what it refuses, and how it closes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from sona_pg import (
    AsyncSonaEngine,
    ConfigError,
    DimensionMismatch,
    HashingEmbedder,
    InvalidInput,
    SonaEngine,
    SpaceConfig,
    StoreConfig,
)
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, connect
from sona_pg.store.migrate import migrate

from .awaited import Open, said, sessions, until, waiting
from .awaited import application as application
from .awaited import opened as opened
from .awaited import own_url as own_url
from .conftest import DIM
from .recurring import QUESTIONS, World

STRATEGIES = ("frozen", "adapted", "familiar", "boosted", "stake", "fusion", "related", "shadow", "learned")


@pytest.fixture(scope="module")
def taught(url: str) -> Iterator[World]:
    """A space in which something is proven, with patterns."""
    world = World(url, f"async_{uuid.uuid4().hex[:8]}")
    world.teach(330)
    world.engine.background_learn(minimum=1)
    yield world
    world.engine.close()


# ---- the same answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_are_those_of_the_engine_bit_for_bit(taught: World, connection: Connection, strategy: str) -> None:
    spaces.set_strategy(connection, taught.name, strategy)
    queries = [taught.ask(question % QUESTIONS) for question in range(2 * QUESTIONS)]
    filters = (None, {"lang": "en"}, {"lang": {"ne": "en"}})

    async def answered() -> list[tuple[object, ...]]:
        async with AsyncSonaEngine.connect(taught.url, space=taught.name, background=False) as sona:
            return [said(await sona.recall(query, 7, filter=filters[i % 3])) for i, query in enumerate(queries)]

    with SonaEngine.connect(taught.url, space=taught.name, background=False) as engine:
        expected = [said(engine.recall(query, 7, filter=filters[i % 3])) for i, query in enumerate(queries)]
    assert asyncio.run(answered()) == expected
    spaces.set_strategy(connection, taught.name, "learned")


def test_whatever_else_is_asked_is_answered_the_same(taught: World, connection: Connection) -> None:
    query = taught.ask(1)
    engine = taught.engine
    found = engine.recall(query)
    id = engine.record(found, rewards={found.items[0].item_id: 1.0})
    engine.flush()
    ids = engine.predict_one(query)

    def bits(patterns: Sequence[tuple[Any, float]]) -> list[tuple[object, ...]]:
        return [(pattern.id, pattern.centroid.tobytes(), cosine) for pattern, cosine in patterns]

    async def asked() -> None:
        sona = AsyncSonaEngine(engine)
        assert [said(r) for r in await sona.recall_batch([query, -query], 3)] == [
            said(r) for r in engine.recall_batch([query, -query], 3)
        ]
        assert await sona.recall_batch([]) == []
        assert await sona.predict_one(query) == ids
        assert bits(await sona.find_patterns(query, 3)) == bits(engine.find_patterns(query, 3)) != []
        assert await sona.optimized_params(query, {"model": "a"}) == engine.optimized_params(query, {"model": "a"})
        assert await sona.known_of(query) == engine.known_of(query)
        assert (await sona.known_of(query)).patterns > 0
        assert await sona.item_texts(ids, "lang") == engine.item_texts(ids, "lang") != {}
        assert await sona.item_texts(ids, None) == {}
        assert await sona.improvement_metrics() == engine.improvement_metrics()
        assert await sona.why(id) == engine.why(id)
        assert await sona.versions() == engine.versions()
        assert np.array_equal(sona.adapt(query), engine.adapt(query))
        assert (sona.space, sona.url, sona.metrics) == (engine.space, engine.url, engine.metrics)
        await sona._connections.close()

    asyncio.run(asked())


def test_what_is_recorded_is_learned_once(opened: Open, connection: Connection, rng: np.random.Generator) -> None:
    async def taught() -> list[uuid.UUID]:
        async with opened() as sona:
            found = await sona.recall(rng.standard_normal(DIM))
            first = sona.record(found)
            sona.score(first, 1.0, found.items[2].item_id)
            built = sona.start(rng.standard_normal(DIM))
            built.add_step(rng.standard_normal(DIM), [0.5], 1.0, item_id=found.items[0].item_id, position=1)
            second = sona.record(built)
            await sona.flush()
            assert sona.metrics.learned == 2
            report = await sona.partial_fit(rng.standard_normal((3, DIM)), [{"1": 1.0}] * 3)
            one = await sona.learn_one(rng.standard_normal(DIM), {"2": 1.0})
            assert (report.used, report.updates, one.updates) == (3, 3, 1)
            assert sona.metrics.learned == 6
            third = sona.record(rng.standard_normal(DIM), ["1"], [1.0], user_id="ann")
        return [first, second, third]

    ids = asyncio.run(taught())
    rows = connection.execute("SELECT trajectory_id FROM sona.ledger WHERE trajectory_id = ANY(%s)", (ids,)).fetchall()
    assert {row[0] for row in rows} == set(ids)


def test_versions_and_users_go_the_same_way(opened: Open, rng: np.random.Generator) -> None:
    async def used() -> None:
        async with opened(store=StoreConfig(publish_every_events=1)) as sona:
            assert await sona.learn() == 0
            for _ in range(3):
                sona.record(rng.standard_normal(DIM), ["1"], [1.0], user_id="ann")
                await sona.flush()
            made = await sona.versions()
            assert len(made) == 3
            assert await sona.deploy(made[0].version) == made[0].version
            assert (await sona.forget("ann")).trajectories == 3
            assert (await sona.improvement_metrics()).answers_7d == 0

    asyncio.run(used())


# ---- refused ---------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_as_by_the_engine(opened: Open) -> None:
    async def refused() -> None:
        async with opened() as sona:
            for query, error in (([1.0], DimensionMismatch), ([np.nan] * DIM, InvalidInput), ("x", InvalidInput)):
                with pytest.raises(error):
                    await sona.recall(query)
                with pytest.raises(error):
                    await sona.find_patterns(query)
                with pytest.raises(error):
                    sona.record(query)
            with pytest.raises(InvalidInput, match="k is 0"):
                await sona.recall(np.ones(DIM), 0)
            with pytest.raises(InvalidInput, match="declared"):
                await sona.recall(np.ones(DIM), filter={"price": 1})
            with pytest.raises(InvalidInput, match="UUID"):
                await sona.why("x")
            assert len((await sona.recall(np.ones(DIM))).items) == 10

    asyncio.run(refused())


def test_a_closed_engine_takes_nothing_and_closes_once_more(opened: Open) -> None:
    async def refused() -> None:
        sona = await opened()
        await sona.close()
        await sona.close()
        asked: list[Callable[[], Awaitable[object]]] = [
            lambda: sona.recall(np.ones(DIM)),
            sona.versions,
            sona.flush,
            sona.deep_learn,
            lambda: sona.process("a text"),
        ]
        for ask in asked:
            with pytest.raises(ConfigError, match="closed"):
                await ask()
        for act in (sona.record, sona.adapt, sona.start):
            with pytest.raises(ConfigError, match="closed"):
                act(np.ones(DIM))

    asyncio.run(refused())


def test_while_it_closes_nothing_is_taken_that_would_be_lost(
    opened: Open,
    engine: SonaEngine,
    url: str,
    application: str,
    rng: np.random.Generator,
) -> None:
    async def refused() -> None:
        sona = await opened()
        sona.record(rng.standard_normal(DIM), ["1"], [1.0])
        with connect(url) as blocker, connect(url) as observer:
            with blocker.transaction():
                blocker.execute("SELECT FROM sona.learner WHERE space_id = %s FOR UPDATE", (engine.space.space_id,))
                closing = asyncio.ensure_future(sona.close())
                await until(lambda: waiting(observer, application) == 1)
                with pytest.raises(ConfigError, match="closed"):
                    sona.record(rng.standard_normal(DIM), ["1"], [1.0])
            await closing

    asyncio.run(refused())


def test_another_event_loop_is_refused(opened: Open, rng: np.random.Generator) -> None:
    query = rng.standard_normal(DIM)
    with asyncio.Runner() as first, asyncio.Runner() as second:

        async def open_() -> AsyncSonaEngine:
            return await opened()

        def here(steps: Coroutine[Any, Any, object]) -> object:
            return second.run(steps)

        sona = first.run(open_())
        for ask in (sona.recall(query), sona.flush(), sona.versions(), sona.close()):
            with pytest.raises(ConfigError, match="another event loop"):
                here(ask)
        sona.record(query, ["1"], [1.0])
        assert len(first.run(sona.recall(query)).items) == 10
        first.run(sona.close())


def test_a_forked_process_must_connect_for_itself(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused() -> None:
        async with opened() as sona:
            with monkeypatch.context() as patch:
                patch.setattr("os.getpid", lambda: -1)
                with pytest.raises(ConfigError, match="forked"):
                    await sona.recall(np.ones(DIM))
                with pytest.raises(ConfigError, match="forked"):
                    sona.record(np.ones(DIM))

    asyncio.run(refused())


def test_it_opens_as_the_engine_does(own_url: str, space_name: str, application: str) -> None:
    async def opened() -> None:
        with pytest.raises(DimensionMismatch):
            async with AsyncSonaEngine.connect(own_url, space=space_name, dim=DIM + 1):
                pass
        with pytest.raises(ConfigError):
            await AsyncSonaEngine.connect(own_url, space=space_name, space_config=SpaceConfig(reward_max=5))

    with SonaEngine.connect(own_url, space=space_name, dim=DIM, background=False):
        asyncio.run(opened())
        with psycopg.connect(own_url) as connection:
            asyncio.run(until(lambda: len(sessions(connection, application)) <= 3))


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_program_of_the_page_runs(empty_url: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "async.md").read_text(encoding="utf-8")
    program: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], program)
    migrate(empty_url)
    texts = {"parcel": "A parcel takes two days.", "password": "Reset your password by the link in the mail."}
    with connect(empty_url) as connection:
        connection.execute("CREATE TABLE public.articles (id text PRIMARY KEY, body text, embedding vector(256))")
        for (id, text), row in zip(texts.items(), HashingEmbedder(256).embed(list(texts.values())), strict=True):
            connection.execute("INSERT INTO public.articles VALUES (%s, %s, %s)", (id, text, row))

    async def used() -> None:
        app = program["App"]()
        await app.start(empty_url)
        try:
            ann, bob = await asyncio.gather(app.ask("ann", "my password"), app.ask("bob", "a parcel"))
            assert ann["answer"] == f"ann, see password: {texts['password']}"
            assert bob["items"][0] == "parcel"
            await app.thumb(ann["id"], "password", True)
        finally:
            await app.stop()

    asyncio.run(used())
    with connect(empty_url) as connection:
        assert connection.execute(
            "SELECT count(*) FROM sona.trajectory JOIN sona.space USING (space_id) WHERE name = 'support'"
        ).fetchall() == [(2,)]
