"""Who executes a statement that reads: what is asked, and what its rows mean, is written once for both kinds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from psycopg import sql
from psycopg.rows import TupleRow

from sona_pg.calls import at_once
from sona_pg.store.connection import AsyncConnection, Connection, transaction, translated

P = ParamSpec("P")
T = TypeVar("T")

Statement = str | sql.SQL | sql.Composed
Parameters = Sequence[object] | Mapping[str, object]


class Reader(Protocol):
    """A connection that nobody else uses meanwhile. Its errors are ours."""

    async def rows(
        self,
        statement: Statement,
        parameters: Parameters = (),
        *,
        binary: bool = False,
        prepare: bool | None = None,
    ) -> list[TupleRow]:
        """Rows that a statement gives.

        Parameters
        ----------
        statement, parameters
            What is asked.
        binary
            Whether they come in binary.
        prepare
            Whether the server keeps it; None where that is up to the driver.

        Raises
        ------
        DatabaseError
            If it cannot be asked.
        """

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """What is read in it is of one moment, as far as `now()` goes."""


class SyncReader:
    """Waits: its coroutines never suspend.

    Parameters
    ----------
    connection
        Who is asked.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def rows(
        self,
        statement: Statement,
        parameters: Parameters = (),
        *,
        binary: bool = False,
        prepare: bool | None = None,
    ) -> list[TupleRow]:
        """As of `Reader`."""
        with translated():
            return self._connection.execute(statement, parameters, binary=binary, prepare=prepare).fetchall()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """As of `Reader`."""
        with transaction(self._connection):
            yield


class AsyncReader:
    """Awaits: the event loop goes on meanwhile.

    Parameters
    ----------
    connection
        Who is asked.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def rows(
        self,
        statement: Statement,
        parameters: Parameters = (),
        *,
        binary: bool = False,
        prepare: bool | None = None,
    ) -> list[TupleRow]:
        """As of `Reader`."""
        with translated():
            cursor = await self._connection.execute(statement, parameters, binary=binary, prepare=prepare)
            return await cursor.fetchall()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """As of `Reader`."""
        with translated():
            async with self._connection.transaction():
                yield


def read(
    connection: Connection,
    ask: Callable[Concatenate[Reader, P], Coroutine[Any, Any, T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """What a function that reads finds over a connection."""
    return at_once(ask(SyncReader(connection), *args, **kwargs))
