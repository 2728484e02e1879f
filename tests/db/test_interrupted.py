"""An exception in the middle of a statement, as handlers of signals raise: what was interrupted is whole afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np
import psycopg
import pytest

from sona_pg import SonaEngine, StoreConfig
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store.connection import Connection, connect, transaction
from sona_pg.store.database import Database
from sona_pg.store.pool import ConnectionPool

from .recorded import Matrix, _count, _query


class TooLate(Exception):
    """What a soft time limit raises."""


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """SIGUSR1 raises in the main thread, which waits for the database."""

    def raise_it(*_: object) -> None:
        raise TooLate

    before = signal.signal(signal.SIGUSR1, raise_it)
    yield
    signal.signal(signal.SIGUSR1, before)


@contextlib.contextmanager
def locked(url: str, statement: str) -> Iterator[Connection]:
    """Another session holds something, until the end or until it rolls back."""
    with connect(url, autocommit=False) as holder:
        holder.execute(statement)
        yield holder
        holder.rollback()


def _waiting(url: str, holder: Connection) -> list[int]:
    """The sessions that wait for what another one holds."""
    with connect(url) as observer:
        rows = observer.execute(
            "SELECT pid FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))", (holder.info.backend_pid,)
        ).fetchall()
    return [row[0] for row in rows]


def interrupted(url: str, holder: Connection, work: Callable[[], object]) -> None:
    """Do something that waits for `holder`, and interrupt it in there."""

    over = threading.Event()

    def interrupt() -> None:
        while not over.is_set():
            if _waiting(url, holder):
                os.kill(os.getpid(), signal.SIGUSR1)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(TooLate):
            work()
    finally:
        over.set()
        thread.join()


def test_a_search_that_is_interrupted_spoils_no_other(
    url: str, engine: SonaEngine, items: tuple[str, Matrix], rng: np.random.Generator
) -> None:
    query = _query(rng)
    before = [item.item_id for item in engine.recall(query).items]
    with locked(url, f"LOCK TABLE {items[0]} IN ACCESS EXCLUSIVE MODE") as holder:
        interrupted(url, holder, lambda: engine.recall(query))
        # Nor does the server go on with it.
        assert _waiting(url, holder) == []
    for _ in range(3):
        assert [item.item_id for item in engine.recall(query).items] == before


def test_a_flush_that_is_interrupted_is_made_good_by_the_next(
    url: str, connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    engine.record(_query(rng), ["1"], [1.0])
    engine.flush()
    space_id = engine.space.space_id
    engine.record(_query(rng), ["2"], [1.0])
    held = f"SELECT FROM sona.learner WHERE space_id = {space_id} FOR UPDATE"
    with locked(url, held) as holder:
        interrupted(url, holder, engine.flush)
        assert _waiting(url, holder) == []
    engine.flush()
    assert engine.metrics.unflushed == 0
    assert _count(connection, "trajectory", space_id) == _count(connection, "learning_event", space_id) == 2


def test_a_statement_that_the_database_refuses_leaves_the_connection_open(url: str) -> None:
    with connect(url) as made:
        with pytest.raises(psycopg.errors.DivisionByZero):
            made.execute("SELECT 1 / 0")
        assert made.execute("SELECT 1").fetchone() == (1,)


def test_what_comes_back_in_a_transaction_is_not_lent_again(url: str) -> None:
    pool = ConnectionPool(Database(url, StoreConfig()))
    with contextlib.closing(pool):
        with pool.connection() as left:
            left.execute("BEGIN")
        assert left.closed
        with pool.connection() as lent:
            assert lent is not left
        with pool.connection() as again:
            assert again is lent


def test_a_transaction_that_is_interrupted_as_it_begins_takes_no_other_with_it(
    url: str, engine: SonaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one would be a savepoint of it, and never be committed."""
    enter = psycopg.Transaction.__enter__

    def enter_and_interrupt(self: psycopg.Transaction) -> psycopg.Transaction:
        enter(self)
        raise TooLate

    store = SpaceStore(engine.space, lambda: connect(url))
    with contextlib.closing(store):
        with monkeypatch.context() as patch:
            patch.setattr(psycopg.Transaction, "__enter__", enter_and_interrupt)
            with pytest.raises(TooLate), transaction(store.connection()):
                pass
        with transaction(store.connection()) as begun:
            begun.execute("CREATE TABLE public.kept_after_all (a int)")
        with connect(url) as other:
            other.execute("DROP TABLE public.kept_after_all")
