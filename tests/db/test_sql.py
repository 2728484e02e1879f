"""The functions of schema sona, as a client of any language calls them."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from sona_pg import DimensionMismatch, InvalidInput, SonaEngine, SonaError, UnknownSpace
from sona_pg.errors import ConfigError
from sona_pg.store.connection import Connection, translated

from .conftest import DIM


def _one(connection: Connection, statement: str, *parameters: object) -> object:
    row = connection.execute(statement, parameters, binary=True).fetchone()
    return None if row is None else row[0]


def _vector(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.standard_normal(DIM).astype(np.float32)


def _teach(engine: SonaEngine, rng: np.random.Generator, events: int = 30) -> None:
    for event in range(events):
        engine.record(_vector(rng), [str(event % 60), str((event + 1) % 60)], [1.0, 0.0])
    engine.flush()


def test_a_fresh_space_returns_the_bits_of_the_query(connection: Connection, engine: SonaEngine) -> None:
    query = np.array([-0.0, 0.0, 1e-42, -1.5] * (DIM // 4), dtype=np.float32)
    adapted = _one(connection, "SELECT sona.adapt(%s, %s)", engine.space.name, query)
    assert isinstance(adapted, np.ndarray)
    assert adapted.tobytes() == query.tobytes()


def test_adapt_in_sql_is_adapt_in_python(connection: Connection, engine: SonaEngine, rng: np.random.Generator) -> None:
    _teach(engine, rng)
    for _ in range(20):
        query = _vector(rng)
        adapted = _one(connection, "SELECT sona.adapt(%s, %s)", engine.space.name, query)
        expected = engine.adapt(query)
        assert not np.array_equal(expected, query)
        np.testing.assert_allclose(adapted, expected, rtol=0, atol=1e-6)


def test_adapt_serves_both_tiers(connection: Connection, engine: SonaEngine, rng: np.random.Generator) -> None:
    for _ in range(5):
        builder = engine.start(_vector(rng))
        for place in range(3):
            builder.add_step(_vector(rng), reward=place / 2)
        engine.record(builder, quality=0.5)
    engine.flush()
    tiers = connection.execute(
        "SELECT DISTINCT tier FROM sona.served_row WHERE space_id = %s", (engine.space.space_id,)
    ).fetchall()
    assert tiers == [("micro",)]
    query = _vector(rng)
    adapted = _one(connection, "SELECT sona.adapt(%s, %s)", engine.space.name, query)
    np.testing.assert_allclose(adapted, engine.adapt(query), rtol=0, atol=1e-6)


def test_adapt_is_evaluated_once_in_order_by(connection: Connection, engine: SonaEngine) -> None:
    plan = connection.execute(
        "EXPLAIN (COSTS OFF) SELECT 1 FROM sona.item_sample ORDER BY embedding <=> (SELECT sona.adapt(%s, %s)) LIMIT 1",
        (engine.space.name, np.ones(DIM, dtype=np.float32)),
    ).fetchall()
    assert any("InitPlan" in row[0] for row in plan)


@pytest.mark.parametrize(
    ("statement", "error", "says"),
    [
        ("SELECT sona.adapt('no such space', '[1,2,3]')", UnknownSpace, "sona.create_space"),
        ("SELECT sona.adapt({space}, '[1,2,3]')", DimensionMismatch, "3 dimensions, expected 16"),
        ("SELECT sona.adapt({space}, '[1,NaN,3]')", InvalidInput, "NaN"),
        ("SELECT * FROM sona.recall('no such space', '[1,2,3]', 5)", UnknownSpace, "no such space"),
        ("SELECT * FROM sona.recall({space}, NULL, 5)", InvalidInput, "NULL"),
        ("SELECT * FROM sona.recall({space}, '[1,2,3]', 0)", InvalidInput, "k is 0, expected 1 to 10000"),
        ("SELECT * FROM sona.recall({space}, '[1,2,3]', 5)", DimensionMismatch, "expected 16"),
        ("SELECT sona.create_space({space}, 16)", InvalidInput, "already a space"),
        ("SELECT sona.create_space('', 16)", InvalidInput, "empty"),
        ("SELECT sona.create_space('x', 0)", InvalidInput, "dimension is 0, expected 1 to 16000"),
        ("SELECT sona.create_space('x', NULL)", InvalidInput, "dimension is NULL"),
        ("SELECT sona.create_space('x', 16, reward_min => 2, reward_max => 1)", InvalidInput, "range of rewards"),
        ("SELECT sona.create_space('x', 16, reward_max => 'NaN')", InvalidInput, "range of rewards"),
        ("SELECT sona.set_items('no such space', 'pg_class', 'oid', 'x')", UnknownSpace, "no such space"),
        ("SELECT sona.set_items({space}, 'pg_class', 'nope', 'x')", InvalidInput, "no column nope"),
        ("SELECT sona.set_items({space}, 'pg_class', 'oid', 'relname')", InvalidInput, "of type vector"),
        ("SELECT sona.set_items({space}, 'no_such_table', 'id', 'x')", SonaError, "no_such_table"),
        ("SELECT sona.nearest_queries('no such space', '[1]', 1)", UnknownSpace, "no such space"),
        ("SELECT sona.drop_space('no such space')", UnknownSpace, "no such space"),
    ],
)
def test_bad_input_is_refused_with_a_typed_error(
    connection: Connection, engine: SonaEngine, statement: str, error: type[SonaError], says: str
) -> None:
    with pytest.raises(error, match=says), translated():
        connection.execute(statement.replace("{space}", f"'{engine.space.name}'"))


def test_items_of_another_dimension_are_refused_and_nothing_changes(
    connection: Connection, engine: SonaEngine, items: tuple[str, NDArray[np.float32]]
) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS public.short_items (id text, e vector(3))")
    connection.execute("INSERT INTO public.short_items VALUES ('a', '[1,2,3]')")
    with pytest.raises(DimensionMismatch), translated():
        connection.execute("SELECT sona.set_items(%s, 'public.short_items', 'id', 'e')", (engine.space.name,))
    assert _one(connection, "SELECT items_table FROM sona.status WHERE space = %s", engine.space.name) in (
        items[0],
        items[0].removeprefix("public."),
    )


def test_recall_gives_the_nearest_items_of_the_adapted_query(
    connection: Connection, engine: SonaEngine, items: tuple[str, NDArray[np.float32]], rng: np.random.Generator
) -> None:
    _teach(engine, rng)
    query = _vector(rng)
    found = connection.execute("SELECT * FROM sona.recall(%s, %s, 7)", (engine.space.name, query)).fetchall()
    adapted = engine.adapt(query)
    cosines = items[1] @ adapted / np.linalg.norm(adapted)
    expected = np.argsort(-cosines)[:7]
    assert [row[1] for row in found] == [str(item) for item in expected]
    assert [row[2] for row in found] == list(range(1, 8))
    np.testing.assert_allclose([row[3] for row in found], cosines[expected], atol=1e-6)
    assert len({row[0] for row in found}) == 1
    assert {row[4:] for row in found} == {("learned", 0, "adapted", 1.0)}


def test_recall_writes_nothing(connection: Connection, engine: SonaEngine, rng: np.random.Generator) -> None:
    with connection.transaction():
        connection.execute("SET TRANSACTION READ ONLY")
        assert connection.execute("SELECT * FROM sona.recall(%s, %s)", (engine.space.name, _vector(rng))).fetchall()


def test_recall_without_items_says_what_to_do(connection: Connection, space_name: str) -> None:
    connection.execute("SELECT sona.create_space(%s, 3)", (space_name,))
    with pytest.raises(ConfigError, match=r"sona\.set_items"), translated():
        connection.execute("SELECT * FROM sona.recall(%s, '[1,2,3]')", (space_name,))


def test_recall_quotes_names_of_the_application(connection: Connection, space_name: str) -> None:
    connection.execute('CREATE SCHEMA IF NOT EXISTS "odd schema"')
    connection.execute('DROP TABLE IF EXISTS "odd schema"."odd; table"')
    connection.execute('CREATE TABLE "odd schema"."odd; table" ("the id" uuid PRIMARY KEY, "em""b" vector(2))')
    connection.execute("""INSERT INTO "odd schema"."odd; table" VALUES (gen_random_uuid(), '[1,0]')""")
    connection.execute("SELECT sona.create_space(%s, 2)", (space_name,))
    connection.execute("""SELECT sona.set_items(%s, '"odd schema"."odd; table"', 'the id', 'em"b')""", (space_name,))
    assert len(connection.execute("SELECT * FROM sona.recall(%s, '[1,1]')", (space_name,)).fetchall()) == 1


def test_spaces_of_different_dimension_stand_side_by_side(connection: Connection, space_name: str) -> None:
    for dim in (1, 3, 2000, 16000):
        connection.execute("SELECT sona.create_space(%s, %s)", (f"{space_name}{dim}", dim))
        query = np.ones(dim, dtype=np.float32)
        assert np.array_equal(_one(connection, "SELECT sona.adapt(%s, %s)", f"{space_name}{dim}", query), query)


def test_drop_space_leaves_nothing_behind(connection: Connection, engine: SonaEngine, rng: np.random.Generator) -> None:
    _teach(engine, rng)
    connection.execute("SELECT sona.drop_space(%s)", (engine.space.name,))
    tables = connection.execute(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind = 'r'"
        " AND c.relname <> 'alembic_version'"
    ).fetchall()
    left = {
        table: _one(connection, f"SELECT count(*) FROM sona.{table} WHERE space_id = %s", engine.space.space_id)
        for (table,) in tables
    }
    assert set(left.values()) == {0}


def test_trajectory_ids_are_version_7_and_ordered(connection: Connection) -> None:
    ids = []
    for _ in range(3):
        ids.append(_one(connection, "SELECT sona.new_trajectory_id()"))
        connection.execute("SELECT pg_sleep(0.002)")
    assert [i.version for i in ids] == [7, 7, 7]  # type: ignore[attr-defined]
    assert [i.variant for i in ids] == ["specified in RFC 4122"] * 3  # type: ignore[attr-defined]
    assert ids == sorted(ids)  # type: ignore[type-var]


# Remembered queries


def _remember(connection: Connection, space_id: int, vectors: NDArray[np.float32]) -> None:
    with connection.cursor().copy(
        "COPY sona.remembered_query (space_id, trajectory_id, embedding) FROM STDIN (FORMAT BINARY)"
    ) as copy:
        copy.set_types(["int8", "uuid", "vector"])
        for vector in vectors:
            copy.write_row((space_id, _one_id(), vector))


def _one_id() -> object:
    from sona_pg.ids import new_trajectory_id

    return new_trajectory_id()


def test_remembered_queries_are_found_exactly_while_few_and_by_index_when_many(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    name, space_id = engine.space.name, engine.space.space_id
    centres = rng.standard_normal((40, DIM)).astype(np.float32)
    vectors = (centres[rng.integers(0, 40, 3000)] + 0.3 * rng.standard_normal((3000, DIM))).astype(np.float32)
    _remember(connection, space_id, vectors)
    assert _one(connection, "SELECT sona.admit_queries(%s, 5000)", name) == 0

    def recall_at_10() -> float:
        hits = 0
        for query in vectors[:20] + np.float32(0.1):
            exact = {
                row[0]
                for row in connection.execute(
                    "SELECT trajectory_id FROM sona.remembered_query WHERE space_id = %s"
                    " ORDER BY embedding <=> %s LIMIT 10",
                    (space_id, query),
                )
            }
            found = connection.execute("SELECT * FROM sona.nearest_queries(%s, %s, 10)", (name, query)).fetchall()
            assert [row[1] for row in found] == sorted((row[1] for row in found), reverse=True)
            hits += len(exact & {row[0] for row in found})
        return hits / 200

    assert recall_at_10() == 1.0
    assert _one(connection, "SELECT sona.admit_queries(%s, 1000)", name) == 3000
    connection.execute("ANALYZE sona.remembered_query")
    assert recall_at_10() >= 0.95
    _remember(connection, space_id, vectors[:50] + np.float32(0.01))  # a fresh tail is found as well
    assert recall_at_10() >= 0.95
    plan = connection.execute(
        "EXPLAIN SELECT trajectory_id FROM sona.remembered_query WHERE space_id = %s AND admitted"
        f" ORDER BY (embedding::vector({DIM})) <=> %s::vector({DIM}) LIMIT 10",
        (space_id, vectors[0]),
    ).fetchall()
    assert any(f"remembered_query_hnsw_{space_id}" in row[0] for row in plan)
    connection.execute("SELECT sona.drop_space(%s)", (name,))
    assert connection.execute("SELECT sona._queries_index(%s)", (space_id,)).fetchall() == [(None,)]


# Policies


def test_a_role_sees_only_the_spaces_that_were_granted(connection: Connection, space_name: str) -> None:
    mine, other = f"{space_name}_mine", f"{space_name}_other"
    for name in (mine, other):
        connection.execute("SELECT sona.create_space(%s, 2)", (name,))
    connection.execute("DROP ROLE IF EXISTS sona_tenant")
    connection.execute("CREATE ROLE sona_tenant")
    try:
        connection.execute("GRANT sona_worker TO sona_tenant")
        connection.execute(
            "INSERT INTO sona.space_grant (space_id, role_name, may_write)"
            " SELECT space_id, 'sona_tenant', false FROM sona.space WHERE name = %s",
            (mine,),
        )
        connection.execute("SET ROLE sona_tenant")
        assert connection.execute("SELECT name FROM sona.space").fetchall() == [(mine,)]
        assert connection.execute("SELECT space FROM sona.status").fetchall() == [(mine,)]
        assert _one(connection, "SELECT sona.adapt(%s, '[1,2]')", mine) is not None
        with pytest.raises(UnknownSpace), translated():
            connection.execute("SELECT sona.adapt(%s, '[1,2]')", (other,))
        changed = connection.execute("UPDATE sona.space SET embedder = 'another'")
        assert changed.rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(
                "INSERT INTO sona.served_row SELECT space_id, 'adapter', 0, '[1,2]', '[1,2]' FROM sona.space"
            )
    finally:
        connection.execute("RESET ROLE")
        connection.execute("DROP OWNED BY sona_tenant")
        connection.execute("DROP ROLE sona_tenant")
