"""The engine for asyncio with texts: what awaits, what waits for the loop, what fails, and what does not answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg import (
    AsyncSonaEngine,
    ConfigError,
    Context,
    EmbedderError,
    FunctionEmbedder,
    InvalidInput,
    Item,
    LearningMode,
    ResponderError,
    SonaConfig,
    SonaEngine,
)
from sona_pg.store.connection import Connection

from .awaited import WAIT_SECONDS, Open, Vector
from .awaited import application as application
from .awaited import opened as opened
from .awaited import own_url as own_url
from .conftest import DIM


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
