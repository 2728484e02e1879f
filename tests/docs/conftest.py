"""A database for every page, as examples/support.py leaves it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from db.conftest import make_database, server_url
from db.sql_page import fill
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sona_pg.store.migrate import migrate

__all__ = ["make_database", "server_url"]

_counter = itertools.count()


@pytest.fixture(scope="module")
def filled_url(make_database: Callable[[], str]) -> str:
    """Four hundred answers of a help desk, learned from, with cycles of both slow loops."""
    url = make_database()
    migrate(url)
    fill(url)
    return url


@pytest.fixture
def page_url(server_url: str, filled_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A copy of that for one page, which is the database of the environment, in a folder of its own."""
    template = conninfo_to_dict(filled_url)["dbname"]
    name = f"{template}_page_{next(_counter)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(str(template))))
    url = make_conninfo(server_url, dbname=name)
    monkeypatch.setenv("SONA_DATABASE_URL", url)
    monkeypatch.setenv("SONA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    yield url
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
