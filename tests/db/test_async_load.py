"""Many requests of the engine for asyncio at once, cancelled, and cut off."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest

from sona_pg import AsyncSonaEngine, DatabaseUnavailable, LearningError, Recall, SonaEngine, StoreConfig
from sona_pg.loops import on_demand
from sona_pg.store.connection import Connection, connect
from sona_pg.store.server import EmbeddedServer

from .awaited import WAIT_SECONDS, Open, Vector, said, sessions, until, waiting
from .awaited import application as application
from .awaited import opened as opened
from .awaited import own_url as own_url
from .conftest import DIM

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
        connection.execute("UPDATE sona.space SET control_share = 0")  # each answer is of the same arm
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
