"""Every query of docs/sql.md prints what stands below it, for the data of examples/support.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sona_pg.store.migrate import migrate

from .sql_page import PAGE, blocks, fill, printed

TEXT = PAGE.read_text()
QUERIES = blocks(TEXT)


@pytest.fixture(scope="module")
def filled_url(make_database: Callable[[], str]) -> str:
    url = make_database()
    migrate(url)
    fill(url)
    return url


def test_every_query_of_the_page_has_its_output() -> None:
    assert len(QUERIES) == TEXT.count("```sql") == TEXT.count("```text") >= 15


@pytest.mark.parametrize(("statement", "output"), QUERIES, ids=range(1, len(QUERIES) + 1))
def test_a_query_prints_what_stands_below_it(filled_url: str, statement: str, output: str) -> None:
    assert printed(filled_url, statement) == output
