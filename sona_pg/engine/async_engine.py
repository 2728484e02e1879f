"""AsyncSonaEngine: the engine for asyncio. Requests are awaited, long work runs aside, and recording never waits."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from sona_pg.calls import call_aside
from sona_pg.config import (
    SHOWN,
    EmbeddingConfig,
    EvidenceConfig,
    InstantLoopConfig,
    QueryAdapterConfig,
    SonaConfig,
    SpaceConfig,
    StoreConfig,
    StrategyConfig,
)
from sona_pg.engine.answering import Answering, Response
from sona_pg.engine.engine import SonaEngine
from sona_pg.errors import ConfigError
from sona_pg.loops.archiving import LoadReport
from sona_pg.loops.metrics import InstantLoopMetrics
from sona_pg.store.pool import AsyncConnectionPool
from sona_pg.store.spaces import Space
from sona_pg.text.embedders import AsyncEmbedder, Embedder
from sona_pg.text.responders import AsyncResponder, Context, Responder

P = ParamSpec("P")
T = TypeVar("T")

Method = Callable[Concatenate[SonaEngine, P], T]
AsyncMethod = Callable[Concatenate["AsyncSonaEngine", P], Coroutine[Any, Any, T]]


def _plain(method: Method[P, T]) -> Callable[Concatenate[AsyncSonaEngine, P], T]:
    """As of SonaEngine, and as plain: what never waits."""

    def call(self: AsyncSonaEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self._check_open()
        return method(self.engine, *args, **kwargs)

    return _as(method, call)


def _awaited(method: Method[P, T]) -> AsyncMethod[P, T]:
    """As of SonaEngine, over a connection of this engine's own: what `Requests` answers."""

    async def call(self: AsyncSonaEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return cast(T, await getattr(self._requests, method.__name__)(*args, **kwargs))

    return _as(method, call)


def _aside(method: Method[P, T]) -> AsyncMethod[P, T]:
    """As of SonaEngine, in a thread: what takes long. Once begun it runs to its end, though nobody awaits it."""

    async def call(self: AsyncSonaEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self._check()
        # Threads of its own: those of the event loop may be held by embedders and responders that do not answer.
        work = functools.partial(contextvars.copy_context().run, method, self.engine, *args, **kwargs)
        return await self._event_loop.run_in_executor(self._threads, work)

    return _as(method, call)


def _opening(connect: Callable[P, SonaEngine]) -> Callable[P, Opening]:
    """As of SonaEngine, in a thread: await it, or use it as ``async with``."""

    def call(*args: P.args, **kwargs: P.kwargs) -> Opening:
        return Opening(AsyncSonaEngine, functools.partial(connect, *args, **kwargs))

    return _as(connect, call)


F = TypeVar("F", bound=Callable[..., Any])


def _as(method: Callable[..., Any], call: F) -> F:
    """With the name, the signature and the documentation of a method of SonaEngine."""
    functools.update_wrapper(call, method, assigned=("__name__", "__doc__"))
    call.__qualname__ = f"AsyncSonaEngine.{method.__name__}"
    return call


class AsyncSonaEngine:
    """`SonaEngine` for asyncio: each of its methods, with the same arguments, answers and errors.

    Whatever may touch the database or take long is awaited. `adapt`, `start`, `record` and `score` never wait, and are
    plain methods. Requests share at most `StoreConfig.async_connections` connections; long work runs in threads. It
    belongs to the event loop in which it was connected. See docs/async.md.

    Made by `open` or `connect`.

    Examples
    --------
    >>> async with AsyncSonaEngine.connect(space="support", dim=384) as sona:  # doctest: +SKIP
    ...     found = await sona.recall(query_embedding)
    ...     sona.record(found, rewards={found.items[0].item_id: 1.0})

    Parameters
    ----------
    engine
        An engine that records and learns; `close` closes it.
    """

    def __init__(self, engine: SonaEngine) -> None:
        self._engine = engine
        self._event_loop = asyncio.get_running_loop()
        self._connections = AsyncConnectionPool(engine.database)
        self._requests = engine.requests.over(self._connections, self._check)
        self._answering: Answering | None = None
        self._is_closing = self._is_closed = False
        self._threads = ThreadPoolExecutor(thread_name_prefix="sona-async")
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="sona-async-close")

    @classmethod
    def open(
        cls,
        config: SonaConfig | None = None,
        *,
        embedder: Embedder | AsyncEmbedder | None = None,
        responder: Responder | AsyncResponder | None = None,
    ) -> Opening:
        """As the constructor of SonaEngine: await this, or use it as ``async with``.

        Parameters
        ----------
        config
            Settings; the defaults if None.
        embedder, responder
            As of `connect`.
        """
        return Opening(
            cls,
            functools.partial(
                SonaEngine,
                config,
                embedder=cast("Embedder | None", embedder),
                responder=cast("Responder | None", responder),
            ),
        )

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        *,
        space: str = "default",
        dim: int | None = None,
        embedder: str | Embedder | AsyncEmbedder | None = None,
        responder: Responder | AsyncResponder | None = None,
        text_column: str | None = None,
        embedding: EmbeddingConfig | None = None,
        home: Path | str | None = None,
        background: bool = True,
        instant: InstantLoopConfig | None = None,
        adapter: QueryAdapterConfig | None = None,
        strategy: StrategyConfig | None = None,
        evidence: EvidenceConfig | None = None,
        space_config: SpaceConfig | None = None,
        store: StoreConfig | None = None,
    ) -> Opening:
        """Open a space: await this, or use it as ``async with``. Parameters and errors are those of SonaEngine.

        Parameters
        ----------
        embedder, responder
            Plain ones are called in threads; those whose methods are coroutines are awaited.
        """
        return Opening(
            cls,
            functools.partial(
                SonaEngine.connect,
                url,
                space=space,
                dim=dim,
                embedder=cast("str | Embedder | None", embedder),
                responder=cast("Responder | None", responder),
                text_column=text_column,
                embedding=embedding,
                home=home,
                background=background,
                instant=instant,
                adapter=adapter,
                strategy=strategy,
                evidence=evidence,
                space_config=space_config,
                store=store,
            ),
        )

    @property
    def engine(self) -> SonaEngine:
        """The engine beneath, for what is not here; its methods wait."""
        return self._engine

    @property
    def space(self) -> Space:
        """The space as it was when the engine was connected."""
        return self._engine.space

    @property
    def config(self) -> SonaConfig:
        """The settings that it was opened with."""
        return self._engine.config

    @property
    def loaded(self) -> LoadReport | None:
        """What `load` has brought; None of an engine that was connected."""
        return self._engine.loaded

    @property
    def url(self) -> str:
        """Connection string of the database."""
        return self._engine.url

    @property
    def metrics(self) -> InstantLoopMetrics:
        """What this process recorded, learned and flushed."""
        return self._engine.metrics

    adapt = _plain(SonaEngine.adapt)
    start = _plain(SonaEngine.start)
    record = _plain(SonaEngine.record)
    score = _plain(SonaEngine.score)
    nothing_found = _plain(SonaEngine.nothing_found)

    recall = _awaited(SonaEngine.recall)
    recall_batch = _awaited(SonaEngine.recall_batch)
    predict_one = _awaited(SonaEngine.predict_one)
    item_texts = _awaited(SonaEngine.item_texts)
    find_patterns = _awaited(SonaEngine.find_patterns)
    optimized_params = _awaited(SonaEngine.optimized_params)
    known_of = _awaited(SonaEngine.known_of)
    improvement_metrics = _awaited(SonaEngine.improvement_metrics)
    why = _awaited(SonaEngine.why)
    versions = _awaited(SonaEngine.versions)

    set_items = _aside(SonaEngine.set_items)
    flush = _aside(SonaEngine.flush)
    learn = _aside(SonaEngine.learn)
    learn_one = _aside(SonaEngine.learn_one)
    partial_fit = _aside(SonaEngine.partial_fit)
    background_learn = _aside(SonaEngine.background_learn)
    deep_learn = _aside(SonaEngine.deep_learn)
    forget = _aside(SonaEngine.forget)
    deploy = _aside(SonaEngine.deploy)
    record_batch = _aside(SonaEngine.record_batch)
    save = _aside(SonaEngine.save)
    save_pretrained = _aside(SonaEngine.save_pretrained)
    import_adapter = _aside(SonaEngine.import_adapter)
    export_patterns = _aside(SonaEngine.export_patterns)
    import_patterns = _aside(SonaEngine.import_patterns)
    export_preferences = _aside(SonaEngine.export_preferences)

    load = staticmethod(_opening(SonaEngine.load))
    from_pretrained = staticmethod(_opening(SonaEngine.from_pretrained))

    async def process(self, query: str, context: Context | None = None, *, k: int = SHOWN) -> Response:
        """As of SonaEngine; whoever cancels it was given no answer, and nothing is recorded."""
        self._check()
        if self._answering is None:
            self._answering = await self._event_loop.run_in_executor(self._threads, lambda: self._engine.answering)
        return await self._answering.answer(self._requests, self.record, call_aside, query, context, k)

    async def query(self, text: str, k: int = SHOWN) -> Response:
        """`process`, asked by nobody in particular."""
        return await self.process(text, k=k)

    async def close(self) -> None:
        """Flush and disconnect, as of SonaEngine. From its first moment on the engine takes nothing more.

        A cycle that is under way is left to the next worker.

        Raises
        ------
        DatabaseError
            If what was recorded could not be made durable; says how much that is. Close again.
        ConfigError
            If the engine belongs to another event loop.
        """
        if self._is_closed:
            return
        self._check_event_loop()
        self._is_closing = True
        try:
            await self._event_loop.run_in_executor(self._closer, self._engine.close)
            self._threads.shutdown(wait=False)
            self._closer.shutdown(wait=False)
            self._is_closed = True
        finally:
            await self._connections.close()

    def _check_open(self) -> None:
        if self._is_closing:
            raise ConfigError("the engine is closed: connect again")

    def _check(self) -> None:
        self._check_open()
        self._check_event_loop()
        self._engine.check_open()

    def _check_event_loop(self) -> None:
        if asyncio.get_running_loop() is not self._event_loop:
            raise ConfigError("the engine belongs to another event loop: connect in each of them")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Opening:
    """An engine that is to be opened, as soon as this is awaited or entered.

    Parameters
    ----------
    kind
        What is made.
    connect
        Opens the engine beneath, in a thread.
    """

    def __init__(self, kind: type[AsyncSonaEngine], connect: Callable[[], SonaEngine]) -> None:
        self._kind, self._connect = kind, connect
        self._opened: AsyncSonaEngine | None = None

    def __await__(self) -> Generator[Any, None, AsyncSonaEngine]:
        return self._open().__await__()

    async def _open(self) -> AsyncSonaEngine:
        opening = asyncio.get_running_loop().run_in_executor(None, self._connect)
        try:
            return self._kind(await asyncio.shield(opening))
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise

    async def __aenter__(self) -> AsyncSonaEngine:
        self._opened = await self
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.close()


def _close_unwanted(opening: asyncio.Future[SonaEngine]) -> None:
    """Nobody awaits it any more."""
    if not opening.cancelled() and opening.exception() is None:
        threading.Thread(target=opening.result().close, name="sona-unwanted").start()
