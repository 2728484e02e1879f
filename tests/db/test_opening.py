"""A database is opened as the settings say: how long is waited for a connection, and for what others hold."""

from __future__ import annotations

import functools
import socket
import threading

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sona_pg import ConfigError, DatabaseBusy, DatabaseUnavailable, SonaEngine, StoreConfig
from sona_pg.store import connection as connection_module
from sona_pg.store import database
from sona_pg.store.connection import connect
from sona_pg.store.database import open_database
from sona_pg.store.migrate import migrate

HOUR = 3600


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The time to connect of every connection that is made, in seconds."""
    seen: list[str] = []
    make = psycopg.Connection.connect.__func__  # type: ignore[attr-defined]

    def look_and_connect(cls: type, conninfo: str = "", **given: object) -> object:
        seen.append(str({**conninfo_to_dict(conninfo), **given}["connect_timeout"]))
        return make(cls, conninfo, **given)

    monkeypatch.setattr(psycopg.Connection, "connect", classmethod(look_and_connect))
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    return seen


def test_every_connection_of_an_opening_is_waited_for_as_the_setting_says(url: str, patience: list[str]) -> None:
    SonaEngine.connect(
        url, space="patient", dim=2, background=False, store=StoreConfig(connect_timeout_seconds=7)
    ).close()
    assert set(patience) == {"7"}


def test_what_the_url_says_of_it_comes_first_and_then_the_environment(
    url: str, patience: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = StoreConfig(connect_timeout_seconds=7)
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "8")
    open_database(url, config=config)
    assert set(patience) == {"8"}
    patience.clear()
    open_database(make_conninfo(url, connect_timeout=9), config=config)
    migrate(make_conninfo(url, connect_timeout=9), config=config)
    assert set(patience) == {"9"}


def test_a_migration_waits_for_a_connection_as_the_setting_says(empty_url: str, patience: list[str]) -> None:
    migrate(empty_url, config=StoreConfig(connect_timeout_seconds=7))
    assert set(patience) == {"7"}


def test_the_embedded_server_is_migrated_with_the_settings(
    empty_url: str, patience: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "resolve_url", lambda *_, **__: (empty_url, True))
    open_database(config=StoreConfig(connect_timeout_seconds=7))
    assert set(patience) == {"7"}


def test_a_url_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="no connection string"):
        connect("postgresql://\udcff@localhost/x")


def test_a_time_to_connect_that_is_no_number_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="connect_timeout: 'soon'"):
        open_database(make_conninfo(url, connect_timeout="soon"))


def test_a_server_that_does_not_speak_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the setting is not handed on, an hour of the default is waited."""
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    monkeypatch.setattr(connection_module, "StoreConfig", functools.partial(StoreConfig, connect_timeout_seconds=HOUR))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_url = f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(DatabaseUnavailable, match="timeout"):
            SonaEngine.connect(silent_url, space="x", dim=2, store=StoreConfig(connect_timeout_seconds=1))


def test_an_opening_waits_for_a_migration_as_the_setting_says(empty_url: str) -> None:
    migrate(empty_url)
    found: set[str] = set()
    asked = "SELECT query FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
    refused = threading.Event()
    with connect(empty_url) as other, connect(empty_url) as observer, other.transaction():
        other.execute("LOCK TABLE sona.alembic_version IN ACCESS EXCLUSIVE MODE")
        holder = other.info.backend_pid

        def look() -> None:
            while not refused.is_set():
                found.update(row[0] for row in observer.execute(asked, (holder,)).fetchall())

        observing = threading.Thread(target=look)
        observing.start()
        try:
            with pytest.raises(DatabaseBusy, match="at work in schema sona"):
                SonaEngine.connect(empty_url, space="x", dim=2, store=StoreConfig(lock_timeout_seconds=1))
        finally:
            refused.set()
            observing.join()
    assert found == {"SET LOCAL lock_timeout = '1s'; SELECT version_num FROM sona.alembic_version"}


@pytest.mark.parametrize(
    "holds",
    [
        "SELECT sona.create_space('wanted', 2)",
        "LOCK TABLE sona.space IN ACCESS EXCLUSIVE MODE",
        "LOCK TABLE sona.learner IN ACCESS EXCLUSIVE MODE",
        "LOCK TABLE sona.strategist IN ACCESS EXCLUSIVE MODE",
    ],
)
def test_an_opening_waits_for_no_other_session_without_limit(empty_url: str, holds: str) -> None:
    migrate(empty_url)
    store = StoreConfig(lock_timeout_seconds=1)
    with connect(empty_url, autocommit=False) as other:
        other.execute(holds)
        with pytest.raises(DatabaseBusy, match="lock timeout"):
            SonaEngine.connect(empty_url, space="wanted", dim=2, background=False, store=store)
        other.rollback()
    SonaEngine.connect(empty_url, space="wanted", dim=2, background=False, store=store).close()
