"""Code that is written once for callers that wait and for callers that await: coroutines that need not suspend."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from sona_pg.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")


class Call(Protocol):
    """Calls a function of the application, which may take long."""

    async def __call__(self, function: Callable[P, T | Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function gives."""


def at_once(steps: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives in which nothing suspends: it runs to its end like a function, without an event loop."""
    try:
        steps.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    steps.close()
    raise RuntimeError(f"{steps!r} suspends: it needs an event loop")


async def call_here(function: Callable[P, T | Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function in this thread, and never suspends.

    Raises
    ------
    ConfigError
        If the function is asynchronous: nobody here can await it.
    """
    found = function(*args, **kwargs)
    if inspect.isawaitable(found):
        if inspect.iscoroutine(found):
            found.close()
        name = getattr(function, "__qualname__", type(function).__name__)
        raise ConfigError(f"{name} is asynchronous: use AsyncSonaEngine, or give a plain function")
    return found


async def call_aside(function: Callable[P, T | Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function in a thread, so that the event loop goes on; an asynchronous one is awaited in the loop."""
    found: object
    if _is_asynchronous(function):
        found = function(*args, **kwargs)
    else:
        found = await asyncio.to_thread(function, *args, **kwargs)
    # A plain function may give an awaitable, too.
    return cast(T, await found if inspect.isawaitable(found) else found)


def _is_asynchronous(function: Callable[..., object]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
