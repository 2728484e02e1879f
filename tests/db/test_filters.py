"""recall with filters: every row that passes counts, through an index too, from SQL and Python alike."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from sona_pg import DimensionMismatch, InvalidInput, SonaEngine, StoreConfig
from sona_pg.store.connection import Connection

from .conftest import DIM

ITEMS = 3000
COLUMNS = ["lang", "year", "rare", "tag", "price", "short"]


@pytest.fixture(scope="module")
def articles(url: str) -> Iterator[NDArray[np.float32]]:
    """Embeddings of an application's table with an HNSW index that gives up early."""
    rng = np.random.default_rng(11)
    embeddings = rng.standard_normal((ITEMS, DIM)).astype(np.float32)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"CREATE TABLE public.articles (id text PRIMARY KEY, embedding vector({DIM}), lang text, year integer,"
            ' rare boolean, tag text, price numeric, "short" varchar(3), secret text)'
        )
        for row, embedding in enumerate(embeddings):
            lang = ("en", "de", None)[row % 3]
            connection.execute(
                "INSERT INTO public.articles VALUES (%s, %s::vector, %s, %s, %s, 'x''y', %s, 'abc', 'hidden')",
                (f"a{row:04d}", str(embedding.tolist()), lang, 1000 + row, row % 1000 == 5, row / 100),
            )
        connection.execute("CREATE INDEX ON public.articles USING hnsw (embedding vector_cosine_ops)")
        connection.execute("ANALYZE public.articles")
    yield embeddings
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE public.articles")


@pytest.fixture
def searching(url: str, space_name: str, articles: NDArray[np.float32]) -> Iterator[SonaEngine]:
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False) as made:
        made.set_items("public.articles", "id", "embedding", filter_columns=COLUMNS)
        yield made


def _query(seed: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)


def _nearest(embeddings: NDArray[np.float32], rows: list[int], query: NDArray[np.float32], k: int) -> list[str]:
    block = embeddings[rows].astype(np.float64)
    cosine = block @ query / np.linalg.norm(block, axis=1)
    return [f"a{rows[place]:04d}" for place in np.argsort(-cosine)[:k]]


@pytest.mark.parametrize(
    ("filter", "passes"),
    [
        ({"lang": "en"}, lambda row: row % 3 == 0),
        ({"lang": None}, lambda row: row % 3 == 2),
        ({"lang": {"ne": None}}, lambda row: row % 3 != 2),
        ({"lang": ["en", "de"]}, lambda row: row % 3 != 2),
        ({"lang": "en", "year": {"gte": 1100, "lt": 1400}}, lambda row: row % 3 == 0 and 100 <= row < 400),
        ({"year": {"in": [1001, 1002, 1500]}}, lambda row: row in (1, 2, 500)),
        ({"year": 1007}, lambda row: row == 7),
        ({"rare": True}, lambda row: row % 1000 == 5),
        ({"tag": "x'y", "year": {"lte": 1004}}, lambda row: row <= 4),
        ({"price": {"gt": 29.985}}, lambda row: row == 2999),
        ({"lang": []}, lambda row: False),
        ({"short": "abcd"}, lambda row: False),
        ({"lang": {}}, lambda row: True),
        ({}, lambda row: True),
    ],
)
def test_the_items_are_the_nearest_of_those_that_pass(
    searching: SonaEngine,
    connection: Connection,
    articles: NDArray[np.float32],
    filter: dict[str, object],
    passes: object,
) -> None:
    rows = [row for row in range(ITEMS) if passes(row)]  # type: ignore[operator]
    query = _query()
    found = searching.recall(query, 10, filter=filter)  # type: ignore[arg-type]
    assert len(found.items) == min(10, len(rows)), "never fewer than there are"
    expected = _nearest(articles, rows, query, 10)
    if len(rows) <= 500:
        assert [item.item_id for item in found.items] == expected
    else:
        assert len({item.item_id for item in found.items} & set(expected)) >= 9
    in_sql = connection.execute(
        "SELECT item_id, rank, score FROM sona.recall(%s, %s, 10, %s::jsonb) ORDER BY rank",
        (searching.space.name, query, json.dumps(filter)),
        binary=True,
    ).fetchall()
    assert [tuple(row) for row in in_sql] == [tuple(item) for item in found.items]


@pytest.mark.parametrize("k", [1, 10, 100, ITEMS, ITEMS + 5])
def test_as_many_items_as_were_asked_for_come_back(searching: SonaEngine, connection: Connection, k: int) -> None:
    found = searching.recall(_query(), k)
    assert [item.rank for item in found.items] == list(range(1, min(k, ITEMS) + 1))
    scores = [item.score for item in found.items]
    assert scores == sorted(scores, reverse=True)
    in_sql = connection.execute("SELECT item_id FROM sona.recall(%s, %s, %s)", (searching.space.name, _query(), k))
    ids = [row[0] for row in in_sql]
    assert len(ids) == len(found.items)
    assert len(set(ids) ^ {item.item_id for item in found.items}) <= 0.02 * len(ids)


def test_an_index_that_gives_up_early_hides_nothing(searching: SonaEngine, url: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" SET hnsw.max_scan_tuples = 1')
        connection.execute(f'ALTER DATABASE "{name}" SET hnsw.ef_search = 5')
    try:
        with SonaEngine.connect(url, space=searching.space.name, background=False) as limited:
            assert len(limited.recall(_query(), 50).items) == 50
            assert len(limited.recall(_query(), 50, filter={"lang": "en"}).items) == 50
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" RESET ALL')


@pytest.mark.parametrize(
    ("filter", "says"),
    [
        ({"secret": "hidden"}, "expected one of the declared columns: lang"),
        ({"nothing": 1}, "expected one of the declared columns"),
        ({"id": "a1"}, "expected one of the declared columns"),
        ({"year": "x"}, "the column is of type integer"),
        ({"year": 1.5}, "the column is of type integer"),
        ({"year": [1, None]}, "the column is of type integer"),
        ({"year": {"gte": [1]}}, "the column is of type integer"),
        ({"year": {"like": 1}}, "use eq, ne, lt"),
        ({"year": {"in": 1}}, "give a list"),
        ({"year": {"lt": None}}, "the column is of type integer"),
        ({"lang": "a\0b"}, "NUL"),
        ({"lang": {1, 2}}, "not JSON"),
        (["lang"], "expected a dict"),
        ("lang", "expected a dict"),
        ({"lang'; DROP TABLE articles; --": 1}, "expected one of the declared columns"),
    ],
)
def test_what_cannot_be_a_filter_is_refused(searching: SonaEngine, filter: object, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        searching.recall(_query(), filter=filter)  # type: ignore[arg-type]
    assert len(searching.recall(_query()).items) == 10


def test_only_columns_that_exist_can_be_declared(searching: SonaEngine) -> None:
    with pytest.raises(InvalidInput, match="no column nothing to filter by"):
        searching.set_items("public.articles", "id", "embedding", filter_columns=["nothing"])
    assert len(searching.recall(_query(), filter={"lang": "en"}).items) == 10, "nothing changed"


def test_many_queries_at_once_are_as_one_after_the_other(searching: SonaEngine, connection: Connection) -> None:
    queries = np.stack([_query(seed) for seed in range(5)])
    together = searching.recall_batch(queries, 7, filter={"lang": "de"})
    single = [searching.recall(query, 7, filter={"lang": "de"}) for query in queries]
    assert [recall.items for recall in together] == [recall.items for recall in single]
    assert len({recall.trajectory_id for recall in together}) == 5
    in_sql = connection.execute(
        'SELECT query, trajectory_id, item_id FROM sona.recall_batch(%s, %s::vector[], 7, \'{"lang": "de"}\')',
        (searching.space.name, [str(query.tolist()) for query in queries]),
    ).fetchall()
    assert [row[2] for row in in_sql] == [item.item_id for recall in single for item in recall.items]
    assert [row[0] for row in in_sql] == [place for place in range(1, 6) for _ in range(7)]
    assert len({row[1] for row in in_sql}) == 5
    assert searching.recall_batch([]) == []
    with pytest.raises(DimensionMismatch):
        searching.recall_batch([queries[0], [1.0]])


@pytest.mark.parametrize("queries", [None, "{}"])
def test_no_queries_are_asked_of_a_space_that_there_is(
    searching: SonaEngine, connection: Connection, queries: str | None
) -> None:
    asked = "SELECT * FROM sona.recall_batch(%s, %s::vector[])"
    assert connection.execute(asked, (searching.space.name, queries)).fetchall() == []
    for unknown in ("nowhere", None):
        with pytest.raises(psycopg.DatabaseError, match="there is no space") as refused:
            connection.execute(asked, (unknown, queries))
        assert refused.value.sqlstate == "SN001"


def test_without_prepared_statements_the_answers_are_the_same(searching: SonaEngine, url: str) -> None:
    pooled = StoreConfig(prepare_statements=False)
    with SonaEngine.connect(url, space=searching.space.name, background=False, store=pooled) as other:
        for seed in range(5):
            assert other.recall(_query(seed)).items == searching.recall(_query(seed)).items


def test_a_table_that_is_named_anew_is_searched(searching: SonaEngine, connection: Connection) -> None:
    searching.recall(_query())
    connection.execute("DROP TABLE IF EXISTS public.other_articles")
    connection.execute("CREATE TABLE public.other_articles AS SELECT 7 AS number, embedding AS e FROM articles LIMIT 1")
    searching.set_items("public.other_articles", "number", "e")
    assert [item.item_id for item in searching.recall(_query()).items] == ["7"]
    connection.execute("DROP TABLE public.other_articles")
    searching.set_items("public.articles", "id", "embedding")
