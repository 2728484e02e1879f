"""Coroutines that run without an event loop, and calls of what an application gives."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable

import pytest

from sona_pg.calls import at_once, call_aside, call_here
from sona_pg.errors import ConfigError


async def later(value: int) -> int:
    await asyncio.sleep(0)
    return value


class Asynchronous:
    async def __call__(self, value: int) -> int:
        return await later(value)


def gives_an_awaitable(value: int) -> Awaitable[int]:
    return later(value)


def test_what_does_not_suspend_needs_no_event_loop() -> None:
    async def inner(value: int) -> int:
        return value + 1

    async def outer() -> int:
        return await inner(await inner(1))

    assert at_once(outer()) == 3


def test_errors_pass_as_of_a_function() -> None:
    async def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        at_once(fails())


def test_what_suspends_is_closed_and_said() -> None:
    closed = []

    async def suspends() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            closed.append(True)

    with pytest.raises(RuntimeError, match="suspends: it needs an event loop"):
        at_once(suspends())
    assert closed == [True]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("function", [later, Asynchronous(), gives_an_awaitable, functools.partial(later)])
def test_asynchronous_functions_are_refused_where_nobody_awaits(function: object) -> None:
    with pytest.raises(ConfigError, match="is asynchronous: use AsyncSonaEngine"):
        at_once(call_here(function, 5))  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [later, Asynchronous(), gives_an_awaitable, functools.partial(later)])
def test_asynchronous_functions_are_awaited_in_the_loop(function: object) -> None:
    async def asked() -> int:
        return await call_aside(function, 5)  # type: ignore[arg-type]

    assert asyncio.run(asked()) == 5


def test_plain_functions_are_called_in_a_thread_and_the_loop_goes_on() -> None:
    async def asked() -> int:
        ready = threading.Event()

        def waits(value: int) -> int:
            assert threading.current_thread() is not threading.main_thread()
            assert ready.wait(30)
            return value

        call = asyncio.ensure_future(call_aside(waits, 5))
        await asyncio.sleep(0)
        ready.set()
        return await call

    assert asyncio.run(asked()) == 5
