"""AsyncSonaEngine is SonaEngine: the same methods, with the same parameters and defaults."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sona_pg import AsyncSonaEngine, SonaEngine
from sona_pg.engine.requests import Requests

PLAIN = {"adapt", "nothing_found", "record", "score", "start"}
OPENING = {"connect", "from_pretrained", "load"}
INSIDE = {"check_open"}
"""Not of the application."""


def methods(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))} - INSIDE


def parameters(method: Callable[..., Any]) -> list[tuple[str, object, object]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values() if p.name != "self"]


def test_every_method_is_there() -> None:
    assert methods(AsyncSonaEngine) == methods(SonaEngine) | {"open"}


def test_it_opens_by_settings_as_the_constructor_does() -> None:
    made = [p for p in parameters(AsyncSonaEngine.open) if p[0] != "cls"]
    assert made == parameters(SonaEngine.__init__)


@pytest.mark.parametrize("name", sorted(methods(SonaEngine)))
def test_parameters_and_defaults_are_the_same(name: str) -> None:
    assert parameters(getattr(AsyncSonaEngine, name)) == parameters(getattr(SonaEngine, name))
    if hasattr(Requests, name):
        assert parameters(getattr(Requests, name)) == parameters(getattr(SonaEngine, name))


@pytest.mark.parametrize("name", sorted(methods(SonaEngine) - OPENING))
def test_what_may_wait_is_awaited(name: str) -> None:
    method = getattr(AsyncSonaEngine, name)
    assert inspect.iscoroutinefunction(method) == (name not in PLAIN)
    assert method.__qualname__ == f"AsyncSonaEngine.{name}"
    assert method.__doc__


def test_an_engine_whose_connect_was_cancelled_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end, closed = threading.Event(), threading.Event(), threading.Event()

    class Engine:
        def close(self) -> None:
            closed.set()

    def connect(*_: object, **__: object) -> Engine:
        begun.set()
        assert may_end.wait(30)
        return Engine()

    monkeypatch.setattr(SonaEngine, "connect", connect)

    async def cancelled() -> None:
        opening = asyncio.ensure_future(AsyncSonaEngine.connect())
        assert await asyncio.to_thread(begun.wait, 30)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        may_end.set()
        assert await asyncio.to_thread(closed.wait, 30)

    asyncio.run(cancelled())
