"""Filters over columns of every kind of type: exactly the rows that equal the value, by an index where there is one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import psycopg
import pytest

from sona_pg import ConfigError, InvalidInput, SonaEngine
from sona_pg.store.connection import Connection

from .conftest import DIM

LONG = "x" * 63
"""As long as a name can be."""

COMPARISONS = "".join(
    # SET keeps them from being inlined, as they are in C.
    f"CREATE FUNCTION lib.{name}(lib.citext, lib.citext) RETURNS boolean IMMUTABLE SET search_path = pg_catalog"
    f" RETURN lower($1::text) {symbol} lower($2::text);"
    f"CREATE OPERATOR lib.{symbol} (FUNCTION = lib.{name}, LEFTARG = lib.citext, RIGHTARG = lib.citext);"
    for symbol, name in (("<", "lt"), ("<=", "le"), ("=", "eq"), (">=", "ge"), (">", "gt"))
)

SETUP = f"""
CREATE SCHEMA lib;
-- As the extension citext makes it: a text with a btree class of its own, in a schema that is on no search path.
CREATE TYPE lib.citext;
CREATE FUNCTION lib.citext_in(cstring) RETURNS lib.citext LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION lib.citext_out(lib.citext) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE lib.citext (INPUT = lib.citext_in, OUTPUT = lib.citext_out, LIKE = text, COLLATABLE = true, CATEGORY = 'S');
CREATE CAST (lib.citext AS text) WITHOUT FUNCTION AS IMPLICIT;
CREATE FUNCTION lib.cmp(lib.citext, lib.citext) RETURNS integer IMMUTABLE
    RETURN bttextcmp(lower($1::text), lower($2::text));
{COMPARISONS}
CREATE OPERATOR CLASS lib.citext_ops DEFAULT FOR TYPE lib.citext USING btree AS
    OPERATOR 1 lib.<, OPERATOR 2 lib.<=, OPERATOR 3 lib.=, OPERATOR 4 lib.>=, OPERATOR 5 lib.>,
    FUNCTION 1 lib.cmp(lib.citext, lib.citext);
-- One that has no class, but is a text as it stands.
CREATE TYPE lib.code;
CREATE FUNCTION lib.code_in(cstring) RETURNS lib.code LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION lib.code_out(lib.code) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE lib.code (INPUT = lib.code_in, OUTPUT = lib.code_out, LIKE = text);
CREATE CAST (lib.code AS text) WITHOUT FUNCTION AS IMPLICIT;
CREATE TYPE lib.mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE lib.pair AS (a integer, b integer);
CREATE TYPE lib.span AS RANGE (SUBTYPE = integer);
CREATE DOMAIN lib.money AS numeric(5, 2);
CREATE DOMAIN lib.price AS lib.money CHECK (VALUE > 0);
CREATE DOMAIN lib.tiny AS varchar(3);

CREATE TABLE lib.items (
    id integer PRIMARY KEY, embedding vector({DIM}) NOT NULL, ci lib.citext, code lib.code, mood lib.mood,
    pair lib.pair, span lib.span, price lib.price, tiny lib.tiny, short varchar(3), padded char(3), letter "char",
    name name, tags text[], tinies lib.tiny[], prices lib.price[], names name[], moods lib.mood[], ints int4range,
    many int4multirange, key uuid, day date, at timestamptz, doc jsonb, raw json, raws json[], vec vector(2),
    flag boolean, number numeric, bits bit(3), address cidr, whole integer, place point);
INSERT INTO lib.items SELECT n, ARRAY(SELECT sin(n * i) FROM generate_series(1, {DIM}) i)::vector
    FROM generate_series(1, 3) n;
UPDATE lib.items SET ci = 'Anna', code = 'a', mood = 'sad', pair = '(1,)', span = '[1,5)', price = 1.01,
    tiny = 'abc', short = 'abc', padded = 'ab', letter = 'a', name = '{LONG}', tags = '{{a,b}}',
    tinies = '{{abc}}', prices = '{{1.01}}', names = '{{{LONG}}}', moods = '{{sad}}', ints = '[1,5)',
    many = '{{[1,5)}}', key = '{"0" * 31}1', day = '2024-01-01', at = '2024-01-01 12:00+02', doc = '{{"a": 1}}',
    raw = '1', raws = '{{1}}', vec = '[1,0]', flag = true, number = 'NaN', bits = '101', address = '10.0.0.0/8',
    whole = 1, place = '(0,0)' WHERE id = 1;
UPDATE lib.items SET ci = 'bert', code = 'b', mood = 'happy', pair = '(2,2)', span = '[1,6)', price = 2,
    tiny = 'b', short = 'b', padded = 'b', letter = 'b', name = 'b', tags = '{{a}}', tinies = '{{b}}',
    prices = '{{2}}', names = '{{b}}', moods = '{{happy,ok}}', ints = '[1,6)', many = '{{[1,6)}}',
    key = '{"0" * 31}2', day = '2024-01-02', at = '2024-01-01 12:00+00', doc = '5', raw = '2', raws = '{{2}}',
    vec = '[2,0]', flag = false, number = 2, bits = '111', address = '10.1.0.0/16', whole = 2, place = '(1,1)'
    WHERE id = 2;
"""

REFUSED = ["pair", "raw", "raws", "place"]
"""Columns whose type has no default btree class, or one that says nothing of the fields."""


@pytest.fixture(scope="module")
def columns(url: str) -> Iterator[list[str]]:
    """The application's table lib.items; gives its columns that can be filtered by."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SETUP.encode())
        rows = connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('lib.items') AND attnum > 2 ORDER BY attnum"
        ).fetchall()
    yield [row[0] for row in rows if row[0] not in REFUSED]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA lib CASCADE")


@pytest.fixture
def space(connection: Connection, columns: list[str], space_name: str) -> str:
    connection.execute("SELECT sona.create_space(%s, %s)", (space_name, DIM))
    connection.execute(
        "SELECT sona.set_items(%s, 'lib.items', 'id', 'embedding', filter_columns => %s)", (space_name, columns)
    )
    return space_name


def found(connection: Connection, space: str, filter: dict[str, object]) -> list[int]:
    rows = connection.execute(
        "SELECT item_id FROM sona.recall(%s, array_fill(1, ARRAY[%s])::vector, 10, %s::jsonb)",
        (space, DIM, json.dumps(filter)),
    ).fetchall()
    return sorted(int(row[0]) for row in rows)


@pytest.mark.parametrize(
    ("filter", "ids"),
    [
        ({"ci": "ANNA"}, [1]),
        ({"ci": ["anna", "BERT"]}, [1, 2]),
        ({"ci": {"ne": "ANNA"}}, [2]),
        ({"ci": {"gt": "ANNA"}}, [2]),
        ({"code": "a"}, [1]),
        ({"code": {"in": ["b", "A"]}}, [2]),
        ({"mood": "sad"}, [1]),
        ({"mood": ["sad", "ok", "happy"]}, [1, 2]),
        ({"mood": {"gte": "ok"}}, [2]),
        ({"span": "[1,5)"}, [1]),
        ({"span": ["[1,5)", "[1,6)"]}, [1, 2]),
        ({"ints": "[1,4]"}, [1]),
        ({"ints": {"gt": "[1,5)"}}, [2]),
        ({"many": "{[1,5)}"}, [1]),
        ({"price": 1.01}, [1]),
        ({"price": 1.005}, []),
        ({"price": {"gt": 1.005, "lt": 1.015}}, [1]),
        ({"price": {"lt": 100000}}, [1, 2]),
        ({"price": -1}, []),
        ({"prices": "{1.01}"}, [1]),
        ({"prices": "{1.005}"}, []),
        ({"tiny": "abc"}, [1]),
        ({"tiny": "abcd"}, []),
        ({"tiny": {"lt": "abcd"}}, [1]),
        ({"tinies": "{abc}"}, [1]),
        ({"tinies": "{abcd}"}, []),
        ({"short": "abc"}, [1]),
        ({"short": ["abcd", "b"]}, [2]),
        ({"short": {"gte": "abcd"}}, [2]),
        ({"padded": "ab"}, [1]),
        ({"padded": "ab "}, [1]),
        ({"padded": "ab cd"}, []),
        ({"padded": ["b", "abcd"]}, [2]),
        ({"letter": "a"}, [1]),
        ({"letter": "ab"}, []),
        ({"letter": ["ab", "b"]}, [2]),
        ({"name": LONG}, [1]),
        ({"name": LONG + "x"}, []),
        ({"name": [LONG + "x", "b"]}, [2]),
        ({"names": "{" + LONG + "x}"}, []),
        ({"names": "{" + LONG + "}"}, [1]),
        ({"tags": "{a,b}"}, [1]),
        ({"tags": ["{a}", "{a,b}"]}, [1, 2]),
        ({"tags": {"in": ["{b}"]}}, []),
        ({"tags": []}, []),
        ({"tags": {"ne": "{a}"}}, [1]),
        ({"tags": {"gt": "{a}"}, "whole": 1}, [1]),
        ({"tags": ["{a}", "{a,b}"], "whole": 1}, [1]),
        ({"moods": ["{happy,ok}"]}, [2]),
        ({"key": "0" * 31 + "1"}, [1]),
        ({"key": ["0" * 31 + "1", "0" * 31 + "2"]}, [1, 2]),
        ({"day": "2024-01-01"}, [1]),
        ({"day": {"gt": "2024-01-01"}}, [2]),
        ({"at": "2024-01-01 10:00+00"}, [1]),
        ({"at": {"gte": "2024-01-01 11:00+00"}}, [2]),
        ({"doc": '{"a": 1}'}, [1]),
        ({"doc": 5}, [2]),
        ({"doc": ['{"a":1}', 5]}, [1, 2]),
        ({"vec": "[1,0]"}, [1]),
        ({"vec": ["[1,0]", "[2,0]"]}, [1, 2]),
        ({"flag": True}, [1]),
        ({"flag": {"ne": True}}, [2]),
        ({"flag": None}, [3]),
        ({"flag": {"ne": None}}, [1, 2]),
        ({"number": "NaN"}, [1]),
        ({"number": {"gt": 1e300}}, [1]),
        ({"number": ["NaN", 2]}, [1, 2]),
        ({"key": "0" * 31 + "1", "whole": 1, "day": "2024-01-01", "mood": "sad"}, [1]),
        ({"bits": "101"}, [1]),
        ({"bits": "1011"}, []),
        ({"address": "10.0.0.0/8"}, [1]),
        ({"address": {"gt": "10.0.0.0/8"}}, [2]),
    ],
    ids=json.dumps,
)
def test_a_filter_finds_what_equals_its_value(
    connection: Connection, space: str, filter: dict[str, object], ids: list[int]
) -> None:
    assert found(connection, space, filter) == ids


@pytest.mark.parametrize(
    ("filter", "says"),
    [
        ({"mood": "angry"}, "the column is of type lib.mood"),
        ({"price": "cheap"}, "the column is of type numeric"),
        ({"key": ["x"]}, "the column is of type uuid"),
        ({"doc": "no document"}, "the column is of type jsonb"),
        ({"tags": "a"}, r"the column is of type text\[\]"),
        ({"vec": "x"}, "invalid input syntax for type vector"),
        ({"raw": 1}, "expected one of the declared columns"),
    ],
    ids=json.dumps,
)
def test_what_is_no_value_of_the_type_is_refused(
    connection: Connection, space: str, filter: dict[str, object], says: str
) -> None:
    with pytest.raises(psycopg.Error) as refused:
        found(connection, space, filter)
    assert refused.value.sqlstate in ("SN003", "22P02")
    said = f"{refused.value.diag.message_primary}: {refused.value.diag.message_hint}"
    assert re.search(says, said), said


@pytest.mark.parametrize("column", REFUSED)
def test_a_column_that_cannot_be_compared_is_not_declared(connection: Connection, space: str, column: str) -> None:
    with pytest.raises(
        psycopg.Error, match=f"a filter cannot compare {column}: its type .* has no btree order"
    ) as refused:
        connection.execute(
            "SELECT sona.set_items(%s, 'lib.items', 'id', 'embedding', filter_columns => %s)", (space, [column])
        )
    assert refused.value.sqlstate == "SN003"
    assert "GENERATED ALWAYS" in str(refused.value.diag.message_hint)
    assert found(connection, space, {"whole": 1}) == [1], "nothing changed"


def test_a_declared_column_that_can_no_longer_be_compared_is_refused_by_recall(
    connection: Connection, space: str
) -> None:
    connection.execute("ALTER TABLE lib.items ALTER COLUMN whole TYPE json USING to_json(whole)")
    try:
        with pytest.raises(psycopg.Error, match="a filter cannot compare whole: its type json") as refused:
            found(connection, space, {"whole": 1})
        assert refused.value.sqlstate == "SN003"
    finally:
        connection.execute("ALTER TABLE lib.items ALTER COLUMN whole TYPE integer USING whole::text::integer")


def test_an_index_of_the_application_serves_a_filter(connection: Connection, columns: list[str]) -> None:
    indexed = {"label": "text", "short": "varchar(3)", "whole": "integer", "mood": "lib.mood",
               "price": "lib.price", "tiny": "lib.tiny", "padded": "char(3)", "tags": "text[]",
               "ci": "lib.citext", "day": "date"}  # fmt: skip
    values = {"label": "a", "short": "a", "whole": 1, "mood": "sad", "price": 1, "tiny": "a", "padded": "a",
              "tags": "{a}", "ci": "a", "day": "2024-01-01"}  # fmt: skip
    connection.execute(
        f"CREATE TABLE lib.indexed ({', '.join(f'{name} {kind}' for name, kind in indexed.items())});"
        + ";".join(f"CREATE INDEX {name}_index ON lib.indexed ({name})" for name in indexed)  # type: ignore[arg-type]
    )
    connection.execute("SET enable_seqscan = off")
    for name, value in values.items():
        for operand in (value, [value, value], {"gte": value}):
            condition = connection.execute(
                "SELECT sona._condition('lib.indexed', %s, %s::jsonb)", ([name], json.dumps({name: operand}))
            ).fetchall()[0][0]
            plan = connection.execute(f"EXPLAIN SELECT FROM lib.indexed t WHERE {condition}").fetchall()
            assert "Index Cond" in str(plan), (condition, plan)
            assert f"{name}_index" in str(plan), (condition, plan)


@pytest.mark.parametrize("change", ["DROP COLUMN whole", "RENAME COLUMN whole TO other"])
def test_a_filter_column_that_is_gone_is_told(url: str, connection: Connection, space_name: str, change: str) -> None:
    connection.execute(f"CREATE TABLE public.altered (id integer, embedding vector({DIM}), whole integer)")
    try:
        with SonaEngine.connect(url, space=space_name, dim=DIM, background=False) as engine:
            engine.set_items("public.altered", "id", "embedding", filter_columns=["whole"])
            connection.execute(f"ALTER TABLE public.altered {change}")  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match=r"no column whole any more: .* sona\.set_items"):
                engine.recall([1.0] * DIM, filter={"whole": 1})
            with pytest.raises(InvalidInput, match="expected one of the declared columns: whole"):
                engine.recall([1.0] * DIM, filter={"other": 1})
            assert engine.recall([1.0] * DIM).items == ()
    finally:
        connection.execute("DROP TABLE public.altered")
