"""Connections for reading that are kept open between requests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

from psycopg.pq import TransactionStatus

from sona_pg.errors import DatabaseUnavailable
from sona_pg.store.connection import AsyncConnection, Connection, is_over, translated
from sona_pg.store.database import Database
from sona_pg.store.reader import AsyncReader, Reader, SyncReader

_WHOLE_SEARCHES = ("SET hnsw.iterative_scan = relaxed_order", "SET ivfflat.iterative_scan = relaxed_order")
"""Without these an index gives at most hnsw.ef_search items, silently."""


class Readers(Protocol):
    """Has readers to lend."""

    def reader(self) -> AbstractAsyncContextManager[Reader]:
        """One that nobody else uses meanwhile."""


class ConnectionPool:
    """Lends connections; makes as many as are needed at once, and keeps some. Safe to use from several threads.

    Parameters
    ----------
    database
        Where they go.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._idle: list[Connection] = []
        self._mutex = threading.Lock()
        self._is_closed = False

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection that nobody else uses meanwhile."""
        connection = self.take()
        try:
            yield connection
        except BaseException as error:
            self.give_back(connection, error)
            raise
        else:
            self.give_back(connection, None)

    def reader(self) -> AbstractAsyncContextManager[Reader]:
        """A reader that waits, over such a connection."""
        return _LentReader(self)

    def take(self) -> Connection:
        """A connection that is to be given back."""
        return self._taken() or self._made()

    def give_back(self, connection: Connection, error: BaseException | None) -> None:
        """Take back a connection, and what went wrong with it; one with a statement or a transaction open is closed."""
        is_idle = connection.info.transaction_status == TransactionStatus.IDLE
        if is_idle and not isinstance(error, DatabaseUnavailable):
            with self._mutex:
                has_room = not self._is_closed and len(self._idle) < self._database.config.idle_connections
                if has_room:
                    self._idle.append(connection)
                    return
        connection.close()

    def _taken(self) -> Connection | None:
        while True:
            with self._mutex:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if not is_over(connection):
                return connection
            connection.close()

    def _made(self) -> Connection:
        connection = self._database.connect()
        if self._database.config.prepare_statements:
            with translated():
                for statement in _WHOLE_SEARCHES:
                    connection.execute(statement)
        return connection

    def close(self) -> None:
        """Close the idle connections; one that is lent is closed when it is given back."""
        with self._mutex:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class _LentReader(AbstractAsyncContextManager[Reader]):
    """What `contextlib.asynccontextmanager` would make, without the microseconds that it costs every request."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    async def __aenter__(self) -> Reader:
        self._connection = self._pool.take()
        return SyncReader(self._connection)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.give_back(self._connection, error)


class AsyncConnectionPool:
    """Lends connections to the tasks of one event loop: at most `StoreConfig.async_connections`, which stay open.

    Parameters
    ----------
    database
        Where they go.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._idle: list[AsyncConnection] = []
        self._free = asyncio.Semaphore(database.config.async_connections)
        self._is_closed = False

    @contextlib.asynccontextmanager
    async def reader(self) -> AsyncIterator[Reader]:
        """A reader that awaits; where all are lent, it is waited for."""
        async with self._free:
            connection = await self._taken() or await self._made()
            try:
                yield AsyncReader(connection)
            except DatabaseUnavailable:
                await connection.close()
                raise
            finally:
                # A task that was cancelled has cancelled its statement; what that did not end is not lent again.
                is_idle = not connection.closed and connection.info.transaction_status == TransactionStatus.IDLE
                if is_idle and not self._is_closed:
                    self._idle.append(connection)
                else:
                    await connection.close()

    async def _taken(self) -> AsyncConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not is_over(connection):
                return connection
            await connection.close()
        return None

    async def _made(self) -> AsyncConnection:
        connection = await self._database.connect_async()
        try:
            if self._database.config.prepare_statements:
                with translated():
                    for statement in _WHOLE_SEARCHES:
                        await connection.execute(statement)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def close(self) -> None:
        """Close the idle connections, and those that are lent when they come back."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()
