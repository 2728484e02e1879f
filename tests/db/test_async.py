"""The engine for asyncio: the answers of SonaEngine bit for bit, many at once, cancelled, cut off, and closed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg.conninfo import make_conninfo

from sona_pg import (
    AsyncSonaEngine,
    ConfigError,
    Context,
    DatabaseUnavailable,
    DimensionMismatch,
    EmbedderError,
    FunctionEmbedder,
    HashingEmbedder,
    InvalidInput,
    Item,
    LearningError,
    LearningMode,
    Recall,
    ResponderError,
    SonaConfig,
    SonaEngine,
    SpaceConfig,
    StoreConfig,
)
from sona_pg.engine.async_engine import Opening
from sona_pg.loops import on_demand
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, connect
from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer

from .conftest import DIM
from .recurring import QUESTIONS, World

STRATEGIES = ("frozen", "adapted", "familiar", "boosted", "stake", "fusion", "related", "shadow", "learned")
WAIT_SECONDS = 30

Vector = NDArray[np.float32]
Open = Callable[..., Opening]


@pytest.fixture(scope="module")
def taught(url: str) -> Iterator[World]:
    """A space in which something is proven, with patterns."""
    world = World(url, f"async_{uuid.uuid4().hex[:8]}")
    world.teach(330)
    world.engine.background_learn(minimum=1)
    yield world
    world.engine.close()


@pytest.fixture
def application() -> str:
    """What the connections of this test are called."""
    return f"async {uuid.uuid4()}"


@pytest.fixture
def own_url(url: str, application: str) -> str:
    """The same database, under that name."""
    return make_conninfo(url, application_name=application)


@pytest.fixture
def opened(own_url: str, space_name: str, engine: SonaEngine) -> Open:
    """Opens an engine for asyncio on the space of `engine`."""

    def open_(**settings: Any) -> Opening:  # noqa: ANN401
        return AsyncSonaEngine.connect(own_url, space=space_name, background=False, **settings)

    return open_


def said(found: Recall) -> tuple[object, ...]:
    """All of an answer but its id."""
    return found.query.tobytes(), found.items, found.answer


async def until(holds: Callable[[], bool]) -> None:
    """Waits in the event loop."""
    for _ in range(WAIT_SECONDS * 100):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about")


def waiting(connection: Connection, application: str) -> int:
    """How many sessions wait for a lock."""
    ((found,),) = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'", (application,)
    ).fetchall()
    return int(found)


def sessions(connection: Connection, application: str) -> list[int]:
    """Processes of the server."""
    return [
        row[0]
        for row in connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s", (application,)
        ).fetchall()
    ]


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


# ---- many at once ----------------------------------------------------------------------------------------------------


def test_a_hundred_recalls_at_once_share_few_connections(
    opened: Open,
    engine: SonaEngine,
    connection: Connection,
    application: str,
    rng: np.random.Generator,
) -> None:
    queries = rng.standard_normal((100, DIM)).astype(np.float32)
    expected = [said(found) for found in engine.recall_batch(queries)]

    async def answered() -> tuple[list[Recall], int]:
        async with opened(store=StoreConfig(async_connections=3)) as sona:
            before = len(sessions(connection, application))
            found = await asyncio.gather(*(sona.recall(query) for query in queries))
            return found, len(sessions(connection, application)) - before

    found, made = asyncio.run(answered())
    assert [said(one) for one in found] == expected
    assert len({one.trajectory_id for one in found}) == 100
    assert made == 3
    # Those of the loops go with the rest, when they have seen that nobody is there any more.
    asyncio.run(until(lambda: not sessions(connection, application)))


def test_the_loop_goes_on_while_the_database_does_not_answer(
    opened: Open,
    items: tuple[str, Vector],
    url: str,
    application: str,
    rng: np.random.Generator,
) -> None:
    query = rng.standard_normal(DIM)

    async def answered() -> None:
        async with opened() as sona:
            with connect(url) as blocker, connect(url) as observer:
                with blocker.transaction():
                    blocker.execute(f"LOCK TABLE {items[0]} IN ACCESS EXCLUSIVE MODE")
                    asking = [asyncio.ensure_future(sona.recall(query)) for _ in range(3)]
                    # The same thread holds the lock: were it blocked, nobody would ever let go.
                    await until(lambda: waiting(observer, application) == 3)
                    sona.record(query, ["1"], [1.0])
                assert len({said(found) for found in await asyncio.gather(*asking)}) == 1

    asyncio.run(answered())


@pytest.mark.parametrize("work", ["deep_learn", "background_learn", "flush", "partial_fit"])
def test_a_heartbeat_goes_on_while_it_learns(work: str, opened: Open, rng: np.random.Generator) -> None:
    async def beaten() -> int:
        beats = 0
        async with opened() as sona:
            for i in range(120):
                sona.record(rng.standard_normal(DIM), [str(i % 20 + 1)], [1.0])
            arguments = (rng.standard_normal((20, DIM)), [{"1": 1.0}] * 20) if work == "partial_fit" else ()
            learning = asyncio.ensure_future(getattr(sona, work)(*arguments))
            while not learning.done():
                await asyncio.sleep(0.001)
                beats += 1
            await learning
        return beats

    # Were it done in the loop, one beat would see all of it.
    assert asyncio.run(beaten()) > 3


# ---- cancelled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["recall", "recall_batch", "predict_one"])
def test_a_cancelled_request_ends_on_the_server_and_leaves_the_connection_sound(
    asked: str,
    opened: Open,
    items: tuple[str, Vector],
    url: str,
    application: str,
    rng: np.random.Generator,
) -> None:
    query = rng.standard_normal(DIM)

    async def cancelled() -> None:
        async with opened(store=StoreConfig(async_connections=1)) as sona:
            expected = said(await sona.recall(query))
            with connect(url) as blocker, connect(url) as observer:
                before = set(sessions(observer, application))
                with blocker.transaction():
                    blocker.execute(f"LOCK TABLE {items[0]} IN ACCESS EXCLUSIVE MODE")
                    asking = asyncio.ensure_future(getattr(sona, asked)([query] if asked == "recall_batch" else query))
                    queued = asyncio.ensure_future(sona.recall(query))
                    await until(lambda: waiting(observer, application) == 1)
                    for task in (queued, asking):
                        task.cancel()
                        with pytest.raises(asyncio.CancelledError):
                            await task
                    assert waiting(observer, application) == 0
                assert said(await asyncio.wait_for(sona.recall(query), WAIT_SECONDS)) == expected
                assert set(sessions(observer, application)) == before

    asyncio.run(cancelled())


def test_a_transaction_that_is_cancelled_is_over(opened: Open, url: str, application: str) -> None:
    async def cancelled() -> None:
        async with opened(store=StoreConfig(async_connections=1)) as sona:
            expected = await sona.improvement_metrics()
            with connect(url) as blocker, connect(url) as observer:
                with blocker.transaction():
                    blocker.execute("LOCK TABLE sona.memory_state IN ACCESS EXCLUSIVE MODE")
                    asking = asyncio.ensure_future(sona.improvement_metrics())
                    await until(lambda: waiting(observer, application) == 1)
                    asking.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await asking
                states = observer.execute(
                    "SELECT state FROM pg_stat_activity WHERE application_name = %s", (application,)
                ).fetchall()
                assert {state for (state,) in states} == {"idle"}
            assert await sona.improvement_metrics() == expected

    asyncio.run(cancelled())


def test_a_cancelled_flush_loses_nothing(
    opened: Open,
    engine: SonaEngine,
    url: str,
    application: str,
    connection: Connection,
    rng: np.random.Generator,
) -> None:
    async def cancelled() -> uuid.UUID:
        async with opened() as sona:
            id = sona.record(rng.standard_normal(DIM), ["1"], [1.0])
            with connect(url) as blocker, connect(url) as observer, blocker.transaction():
                blocker.execute("SELECT FROM sona.learner WHERE space_id = %s FOR UPDATE", (engine.space.space_id,))
                flushing = asyncio.ensure_future(sona.flush())
                await until(lambda: waiting(observer, application) == 1)
                flushing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await flushing
        return id

    id = asyncio.run(cancelled())
    rows = connection.execute("SELECT revision FROM sona.ledger WHERE trajectory_id = %s", (id,)).fetchall()
    assert len(rows) == 1


def test_a_cycle_that_is_under_way_is_left_when_the_engine_closes(
    opened: Open,
    connection: Connection,
    space_name: str,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A closed engine would otherwise go on for minutes, and write what nobody awaits."""
    begun = threading.Event()

    class Slow(on_demand.LoopCoordinator):
        def step(self, stop: threading.Event | None = None) -> int:
            assert stop is not None
            begun.set()
            assert stop.wait(WAIT_SECONDS)
            return super().step(stop)

    monkeypatch.setattr(on_demand, "LoopCoordinator", Slow)

    async def closed() -> None:
        async with opened() as sona:
            sona.record(rng.standard_normal(DIM), ["1"], [1.0])
            learning = asyncio.ensure_future(sona.deep_learn())
            assert await asyncio.to_thread(begun.wait, WAIT_SECONDS)
        with pytest.raises(LearningError, match="closed during the deep cycle"):
            await learning

    asyncio.run(closed())
    runs = connection.execute("SELECT state FROM sona.runs WHERE space = %s", (space_name,)).fetchall()
    assert runs == [("requested",)]


# ---- cut off ---------------------------------------------------------------------------------------------------------


def test_connections_that_were_ended_are_made_anew(
    opened: Open,
    engine: SonaEngine,
    own_url: str,
    connection: Connection,
    application: str,
    rng: np.random.Generator,
) -> None:
    query = rng.standard_normal(DIM)

    def end() -> None:
        ended = sessions(connection, application)
        assert len(ended) >= 3
        for pid in ended:
            connection.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))

    async def answered() -> list[Recall]:
        async with opened() as sona:
            await asyncio.gather(*(sona.recall(query) for _ in range(5)))
            end()
            return await asyncio.gather(*(sona.recall(query) for _ in range(5)))

    expected = said(engine.recall(query))
    assert {said(found) for found in asyncio.run(answered())} == {expected}
    with SonaEngine.connect(own_url, space=engine.space.name, background=False) as other:
        other.recall(query)
        end()
        assert said(other.recall(query)) == expected


def test_requests_fail_while_the_server_is_away_and_go_on_when_it_is_back(home: Path, rng: np.random.Generator) -> None:
    server = EmbeddedServer(home)
    url = server.start()
    with connect(SonaEngine.connect(home=home, space="outage", dim=DIM, background=False).url) as connection:
        connection.execute(f"CREATE TABLE public.things (id integer PRIMARY KEY, embedding vector({DIM}))")
        for row in range(20):
            connection.execute("INSERT INTO public.things VALUES (%s, %s)", (row, rng.standard_normal(DIM).tolist()))
    query = rng.standard_normal(DIM)

    async def answered() -> None:
        async with AsyncSonaEngine.connect(url, home=home, space="outage", background=False) as sona:
            await sona.set_items("public.things", "id", "embedding")
            before = said(await sona.recall(query))
            await asyncio.to_thread(server.stop)
            for found in await asyncio.gather(*(sona.recall(query) for _ in range(5)), return_exceptions=True):
                assert isinstance(found, DatabaseUnavailable)
            id = sona.record(query, ["1"], [1.0])
            await asyncio.to_thread(server.start)
            assert said(await sona.recall(query)) == before
            with contextlib.suppress(DatabaseUnavailable):
                await sona.flush()  # the connection of the loops finds out by this
            await sona.flush()
            assert (await sona.why(id)).trajectory_id == id

    asyncio.run(answered())


# ---- texts -----------------------------------------------------------------------------------------------------------


class Letters:
    """An embedder that awaits."""

    dim, fingerprint = DIM, "letters"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failure: Exception | None = None

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.asked += texts
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return [[text.count(chr(97 + i)) + 0.5 for i in range(DIM)] for text in texts]


async def respond(query: str, items: Sequence[Item], context: Context, parameters: object) -> str:
    await asyncio.sleep(0)
    return f"{query}: {items[0].item_id} for {context.user_id}"


def test_texts_are_answered_by_what_awaits(
    opened: Open,
    engine: SonaEngine,
    connection: Connection,
) -> None:
    letters = Letters()

    async def answered() -> None:
        async with opened(embedder=letters, responder=respond) as sona:
            texts = [f"text {chr(97 + i % 26)}{i}" for i in range(50)]
            found = await asyncio.gather(*(sona.process(text, Context("ann"), k=2) for text in texts))
            for text, one in zip(texts, found, strict=True):
                (vector,) = await letters.embed([text])
                assert [item.item_id for item in one.items] == engine.predict_one(vector, 2)
                assert one.text == f"{text}: {one.items[0].item_id} for ann"
            sona.score(found[0].trajectory_id, 1.0, found[0].items[0].item_id)
            await sona.flush()
            assert sona.metrics.learned == 1
            asked = len(letters.asked)
            await sona.process(texts[0])
            assert len(letters.asked) == asked
            letters.failure = RuntimeError("no such model")
            with pytest.raises(EmbedderError, match="RuntimeError: no such model"):
                await sona.process("something new")
            for text in ("", 5):
                with pytest.raises(InvalidInput, match="text"):
                    await sona.process(text)
            # Nobody can await in the engine beneath.
            with pytest.raises(ConfigError, match=r"Letters\.embed is asynchronous: use AsyncSonaEngine"):
                sona.engine.process("something else")

    asyncio.run(answered())
    assert connection.execute(
        "SELECT count(*) FROM sona.trajectory WHERE space_id = %s", (engine.space.space_id,)
    ).fetchall() == [(51,)]


def test_what_waits_for_the_loop_is_called_beside_it(opened: Open) -> None:
    """A plain embedder and a plain responder that need the loop to go on: in the loop they would wait forever."""
    turns = [threading.Event(), threading.Event()]

    class Waits:
        dim, fingerprint = DIM, "waits"

        def embed(self, texts: Sequence[str]) -> Vector:
            assert turns[0].wait(WAIT_SECONDS)
            return np.ones((len(texts), DIM), dtype=np.float32)

    def responds(*_: object) -> str:
        assert turns[1].wait(WAIT_SECONDS)
        return "an answer"

    async def answered() -> None:
        async with opened(embedder=Waits(), responder=responds) as sona:
            asking = asyncio.ensure_future(sona.process("a text"))
            for turn in turns:
                await asyncio.sleep(0.01)
                turn.set()
            assert (await asking).text == "an answer"

    asyncio.run(answered())


def test_what_an_awaited_responder_fails_at_is_kept(
    opened: Open,
    connection: Connection,
    engine: SonaEngine,
) -> None:
    async def fails(*_: object) -> str:
        await asyncio.sleep(0)
        raise RuntimeError("out of tokens")

    async def answered() -> None:
        async with opened(embedder=Letters(), responder=fails) as sona:
            with pytest.raises(ResponderError, match="out of tokens"):
                await sona.process("a parcel")

    asyncio.run(answered())
    ((metadata,),) = connection.execute(
        "SELECT metadata FROM sona.trajectory WHERE space_id = %s", (engine.space.space_id,)
    ).fetchall()
    assert "out of tokens" in metadata["failure"]


def test_an_answer_that_is_cancelled_is_not_recorded(opened: Open) -> None:
    async def answered() -> int:
        begun = asyncio.Event()

        async def never(*_: object) -> str:
            begun.set()
            await asyncio.Event().wait()
            return ""

        async with opened(embedder=Letters(), responder=never) as sona:
            asking = asyncio.ensure_future(sona.process("a parcel"))
            await asyncio.wait_for(begun.wait(), WAIT_SECONDS)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            return sona.metrics.recorded

    assert asyncio.run(answered()) == 0


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
        for ask in (sona.recall(query), sona.flush(), sona.versions()):
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
            await AsyncSonaEngine.connect(own_url, space=space_name, space_config=SpaceConfig(control_share=0.5))

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


def test_embedders_that_do_not_answer_hold_up_neither_flush_nor_close(url: str, space_name: str) -> None:
    answer = threading.Event()

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        answer.wait(60)
        return np.ones((len(texts), 16), dtype=np.float32)

    async def main() -> int:
        config = SonaConfig(database_url=url, space=space_name, embedding_dim=16, learning_loops=LearningMode.MANUAL)
        sona = await AsyncSonaEngine.open(config, embedder=FunctionEmbedder(embed, 16, "a model"))
        sona.record(np.ones(16), ["a"], [1.0])
        asked = [asyncio.create_task(sona.process(f"text {i}")) for i in range(80)]
        await asyncio.sleep(0.1)
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await sona.flush()
        await sona.close()
        await sona.close()
        flushed = sona.metrics.flushed
        answer.set()
        return flushed

    assert asyncio.run(main()) == 1
