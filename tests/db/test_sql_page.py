"""Every query of docs/sql.md and docs/quickstart-sql.md prints what stands below it, and no function lacks one."""

from __future__ import annotations

import re
from collections.abc import Callable

import psycopg
import pytest

from sona_pg.store.migrate import migrate

from .sql_page import PAGE, START, answers, fill

TEXTS = {page.name: page.read_text() for page in (PAGE, START)}
QUERIES = [(name, number) for name, text in TEXTS.items() for number in range(text.count("```sql"))]


@pytest.fixture(scope="module")
def asked(make_database: Callable[[], str]) -> dict[str, list[tuple[str, str, str]]]:
    """What every page gives: a query may change what a later one sees."""
    found = {}
    for name, text in TEXTS.items():
        url = make_database()
        migrate(url)
        if name == PAGE.name:
            fill(url)
        found[name] = answers(text, url)
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_every_query_of_the_page_has_its_output(name: str) -> None:
    assert TEXTS[name].count("```sql") == TEXTS[name].count("```text") == len(re.findall("```\n\n```text", TEXTS[name]))


@pytest.mark.parametrize(("name", "number"), QUERIES)
def test_a_query_prints_what_stands_below_it(
    asked: dict[str, list[tuple[str, str, str]]], name: str, number: int
) -> None:
    _, stands, printed = asked[name][number]
    assert printed == stands


def test_every_function_and_view_for_applications_has_an_example(url: str) -> None:
    statements = " ".join(re.findall(r"```sql\n(.*?)```", TEXTS[PAGE.name], re.DOTALL))
    with psycopg.connect(url) as connection:
        names = connection.execute(
            "SELECT proname, '\\(' FROM pg_proc WHERE pronamespace = 'sona'::regnamespace AND proname NOT LIKE '\\_%'"
            " UNION SELECT relname, '\\b(?!\\()' FROM pg_class"
            " WHERE relnamespace = 'sona'::regnamespace AND relkind = 'v'"
        ).fetchall()
    assert len(names) > 50
    assert [name for name, end in names if not re.search(rf"sona\.{name}{end}", statements)] == []
