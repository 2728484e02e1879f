"""Search among patterns: through an index by size, what is recommended in SQL as in Python, and what is counted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from sona_pg import SonaEngine, StoreConfig
from sona_pg.doctor import Verdict, examine
from sona_pg.errors import ConfigError
from sona_pg.learning.recommendation import Best, NearPattern, Recommendation, optimized_params
from sona_pg.learning.resumed_bank import Advance
from sona_pg.loops.evidence import EvidenceLoop
from sona_pg.store.connection import Connection, connect, transaction
from sona_pg.store.patterns import PatternState, forget_patterns, write_advance
from sona_pg.store.runs import Run
from sona_pg.store.spaces import Space
from sona_pg.types import Json

DIM = 16

Vector = NDArray[np.float32]


@pytest.fixture
def engine(url: str, space_name: str) -> Iterator[SonaEngine]:
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False) as made:
        yield made


def _add(connection: Connection, engine: SonaEngine, centroids: Vector) -> None:
    """Patterns from 1 on."""
    with connection.cursor().copy(
        "COPY sona.pattern (space_id, pattern_id, centroid, cluster_size, total_weight, avg_quality,"
        " confidence, support) FROM STDIN (FORMAT BINARY)"
    ) as copy:
        copy.set_types(["bigint", "bigint", "vector", "bigint", "float8", "float8", "float8", "bigint"])
        for id, centroid in enumerate(centroids, 1):
            copy.write_row((engine.space.space_id, id, centroid, 5, 5.0, 0.5, 0.5, 5))


def _clustered(rng: np.random.Generator, n: int, dim: int = DIM) -> Vector:
    centres = np.random.default_rng(0).standard_normal((20, dim))
    made = centres[rng.integers(20, size=n)] + 0.4 * rng.standard_normal((n, dim))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def _found(connection: Connection, engine: SonaEngine, query: Vector, k: int) -> list[tuple[int, float]]:
    return connection.execute(
        "SELECT pattern_id, similarity FROM sona.find_patterns(%s, %s, %s)", (engine.space.name, query, k)
    ).fetchall()


def _index(connection: Connection, engine: SonaEngine, keep_exact: int) -> bool:
    ((made,),) = connection.execute("SELECT sona.index_patterns(%s, %s)", (engine.space.name, keep_exact)).fetchall()
    return bool(made)


def _has_index(connection: Connection, space_id: int) -> bool:
    ((found,),) = connection.execute("SELECT sona._vectors_index('pattern', %s) IS NOT NULL", (space_id,)).fetchall()
    return bool(found)


# Index


def test_many_patterns_are_searched_through_an_index(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    centroids = _clustered(rng, 5000)
    _add(connection, engine, centroids)
    assert not _index(connection, engine, 5000)
    assert not _has_index(connection, engine.space.space_id)
    assert _index(connection, engine, 4999)
    assert not _index(connection, engine, 0), "there is one"
    connection.execute("ANALYZE sona.pattern")
    ((statement,),) = connection.execute(
        "SELECT sona._indexed_patterns(%s, %s, 'p.pattern_id')", (engine.space.space_id, DIM)
    ).fetchall()
    query = "'[" + ",".join(map(str, centroids[0])) + "]'"
    plan = connection.execute("EXPLAIN " + statement.replace("$1", query).replace("$2", "10")).fetchall()
    assert any(f"pattern_hnsw_{engine.space.space_id}" in line for (line,) in plan)
    hits = 0
    for asked in _clustered(rng, 40):
        exact = 1 - centroids.astype(np.float64) @ asked
        found = _found(connection, engine, asked, 10)
        assert [cosine for _, cosine in found] == sorted((cosine for _, cosine in found), reverse=True)
        assert [cosine for _, cosine in found] == pytest.approx([1 - exact[id - 1] for id, _ in found], abs=1e-5)
        hits += len({id for id, _ in found} & set((np.argsort(exact)[:10] + 1).tolist()))
        by_engine = engine.find_patterns(asked, 10)
        assert [(pattern.id, cosine) for pattern, cosine in by_engine] == found
        assert np.array_equal(by_engine[0][0].centroid, centroids[found[0][0] - 1])
    assert hits >= 0.95 * 400


@pytest.mark.parametrize("k", [1, 40, 41, 599, 600, 601, 5000])
def test_never_fewer_than_there_are(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator, k: int
) -> None:
    _add(connection, engine, _clustered(rng, 900))
    assert _index(connection, engine, 100)
    # Of so few, reading all of them would be cheaper than the index. What is gone is in it until it is cleaned.
    connection.execute("SET enable_sort = off")
    connection.execute("DELETE FROM sona.pattern WHERE space_id = %s AND pattern_id > 600", (engine.space.space_id,))
    for query in (*_clustered(rng, 3), np.zeros(DIM, np.float32)):
        found = _found(connection, engine, query, k)
        assert len({id for id, _ in found}) == len(found) == min(k, 600)
        assert len(engine.find_patterns(query, k)) == min(k, 600)
    ((ef_search,),) = connection.execute("SELECT current_setting('hnsw.ef_search')").fetchall()
    assert ef_search == "40"


@pytest.mark.parametrize(("dim", "made"), [(2000, True), (2001, True), (4001, False)])
def test_indexes_of_any_dimension(
    url: str, connection: Connection, space_name: str, rng: np.random.Generator, dim: int, made: bool
) -> None:
    with SonaEngine.connect(url, space=space_name, dim=dim, background=False) as engine:
        centroids = _clustered(rng, 30, dim)
        _add(connection, engine, centroids)
        assert _index(connection, engine, 10) == made
        for query in _clustered(rng, 3, dim):
            order = np.argsort(-(centroids @ query), kind="stable")[:5] + 1
            found = _found(connection, engine, query, 5)
            assert {id for id, _ in found} == set(order.tolist())
            assert [cosine for _, cosine in found] == sorted((cosine for _, cosine in found), reverse=True)
            assert [(p.id, cosine) for p, cosine in engine.find_patterns(query, 5)] == found


def test_an_index_goes_with_its_space(connection: Connection, engine: SonaEngine, rng: np.random.Generator) -> None:
    _add(connection, engine, _clustered(rng, 20))
    assert _index(connection, engine, 10)
    connection.execute("SELECT sona.drop_space(%s)", (engine.space.name,))
    assert not _has_index(connection, engine.space.space_id)


def test_an_index_that_is_gone_is_said_and_made_again(
    make_database: Callable[[], str], space_name: str, rng: np.random.Generator
) -> None:
    from sona_pg.store.migrate import migrate

    url = make_database()
    migrate(url)
    with SonaEngine.connect(url, space=space_name, dim=3, background=False) as engine, connect(url) as connection:
        _add(connection, engine, _clustered(rng, 4001, 3))
        says = [f for f in examine(url) if f.verdict == Verdict.WARNING and "many patterns" in f.says]
        assert len(says) == 1
        assert "SELECT sona.index_patterns(" in str(says[0].command)
        assert _index(connection, engine, 4000)
        assert not [f for f in examine(url) if "many patterns" in f.says]


# What is recommended


def _random_best(rng: np.random.Generator, kind: int) -> Best | None:
    numbers: list[Json] = [1, 2, 7, 1.0, 2.5, -0.125, 10**15, 1e-9, 5e-324, -1.5e308]
    others: list[Json] = ["a", "b", True, False, None, [1, 2], {"b": 1, "a": [True]}, "1"]
    values = (numbers[:3], numbers, others, [*numbers, *others], [1, 1.0])[kind]
    confidence = float(rng.choice([0.0, 0.25, 0.5, 0.5, 1.0, rng.random()]))
    return None if rng.random() < 0.2 else (values[int(rng.integers(len(values)))], confidence)


@pytest.mark.parametrize("seed", range(8))
def test_sql_recommends_what_python_does(connection: Connection, engine: SonaEngine, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Few directions: several patterns are equally near.
    centroids = np.eye(DIM, dtype=np.float32)[rng.integers(4, size=12)] + 0.01 * rng.integers(0, 2, (12, DIM))
    _add(connection, engine, centroids.astype(np.float32))
    width = float(rng.choice([0.001, 0.05, 0.5]))
    space_id = engine.space.space_id
    connection.execute(
        "INSERT INTO sona.pattern_state (space_id, settings) VALUES (%s, %s)",
        (space_id, Jsonb({"similarity_width": width})),
    )
    best: dict[int, dict[str, Best | None]] = {id: {} for id in range(1, 13)}
    for id, known in best.items():
        for kind in range(5):
            if rng.random() < 0.8:
                known[f"p{kind}"] = found = _random_best(rng, kind)
                value, confidence = (None, 0.0) if found is None else (Jsonb(found[0]), found[1])
                connection.execute(
                    "INSERT INTO sona.verdict (space_id, pattern_id, parameter, state, evidence, best_value,"
                    " best_confidence) VALUES (%s, %s, %s, '{}', '[]', %s, %s)",
                    (space_id, id, f"p{kind}", value, confidence),
                )
    given: list[dict[str, Json] | None] = [None, {}, {"p0": 3, "p9": "z", "p8": None}]
    for number in range(12):
        query, k = rng.standard_normal(DIM).astype(np.float32), int(rng.integers(1, 13))
        near = [NearPattern(id, cosine, best[id]) for id, cosine in _found(connection, engine, query, k)]
        defaults = given[number % 3]
        expected = optimized_params(near, width, defaults)
        rows = connection.execute(
            "SELECT parameter, value, confidence, source FROM sona.optimized_params(%s, %s, %s, %s)",
            (engine.space.name, query, None if defaults is None else Jsonb(defaults), k),
        ).fetchall()
        assert [row[0] for row in rows] == sorted(expected)
        for parameter, value, confidence, source in rows:
            _is_same(Recommendation(value, tuple(source), confidence), expected[parameter])
        by_engine = engine.optimized_params(query, defaults, k=k)
        assert by_engine.keys() == expected.keys()
        for parameter, found_by_engine in by_engine.items():
            _is_same(found_by_engine, expected[parameter])


def _is_same(found: Recommendation, expected: Recommendation) -> None:
    assert found.source == expected.source
    assert found.confidence == pytest.approx(expected.confidence, abs=1e-9)
    if isinstance(expected.value, float) and not isinstance(found.value, bool):
        assert math.isclose(found.value, expected.value, rel_tol=1e-9, abs_tol=1e-9)  # type: ignore[arg-type]
    else:
        assert (type(found.value), found.value) == (type(expected.value), expected.value)


def test_nothing_is_recommended_before_the_first_cycle(connection: Connection, engine: SonaEngine) -> None:
    query = np.ones(DIM, np.float32)
    rows = connection.execute(
        'SELECT * FROM sona.optimized_params(%s, %s, \'{"a": 1, "b": null}\')', (engine.space.name, query)
    ).fetchall()
    assert rows == [("a", 1, 0.0, []), ("b", None, 0.0, [])]
    for space, asked, defaults, state in (
        ("none", query, "{}", "SN001"),
        (engine.space.name, query[:3], "{}", "SN002"),
        (engine.space.name, None, "{}", "SN003"),
        (engine.space.name, query, "[1]", "SN003"),
    ):
        with pytest.raises(psycopg.Error) as refused:
            connection.execute("SELECT * FROM sona.optimized_params(%s, %s, %s)", (space, asked, defaults))
        assert refused.value.sqlstate == state


# How often it was found


def _accesses(connection: Connection, engine: SonaEngine) -> dict[int, int]:
    rows = connection.execute(
        "SELECT pattern_id, access_count, last_accessed IS NULL FROM sona.patterns WHERE space = %s",
        (engine.space.name,),
    ).fetchall()
    assert all((count == 0) == never for _, count, never in rows)
    return {id: count for id, count, _ in rows}


def test_what_is_found_is_counted_without_a_write(url: str, connection: Connection, engine: SonaEngine) -> None:
    _add(connection, engine, np.eye(DIM, dtype=np.float32)[:4])
    queries = np.eye(DIM, dtype=np.float32)
    for _ in range(3):
        engine.find_patterns(queries[0], 1)
    engine.optimized_params(queries[1], k=1)
    _found(connection, engine, queries[2], 4)
    assert _accesses(connection, engine) == {1: 0, 2: 0, 3: 0, 4: 0}
    engine.flush()
    # No cycle has said by what it recommends, so nobody was asked.
    assert _accesses(connection, engine) == {1: 3, 2: 0, 3: 0, 4: 0}
    engine.flush()
    assert _accesses(connection, engine)[1] == 3, "each counts once"
    with SonaEngine.connect(url, space=engine.space.name, background=False) as other:
        other.find_patterns(queries[0], 2)
        engine.find_patterns(queries[1], 1)
    engine.flush()
    assert _accesses(connection, engine) == {1: 4, 2: 2, 3: 0, 4: 0}
    ((pattern, _),) = engine.find_patterns(queries[0], 1)
    assert pattern.access_count == 4
    assert pattern.last_accessed > pattern.created_at
    connection.execute("DELETE FROM sona.pattern WHERE space_id = %s AND pattern_id = 1", (engine.space.space_id,))
    engine.flush()
    assert 1 not in _accesses(connection, engine), "what is gone is left out"


def test_counts_are_written_now_and_then(url: str, connection: Connection, engine: SonaEngine) -> None:
    _add(connection, engine, np.eye(DIM, dtype=np.float32)[:2])
    store = StoreConfig(access_interval_seconds=0.0)
    with SonaEngine.connect(url, space=engine.space.name, background=False, store=store) as other:
        other.find_patterns(np.eye(DIM)[0], 1)
        other._accesses.write_if_due()
        assert _accesses(connection, engine) == {1: 1, 2: 0}
    engine.find_patterns(np.eye(DIM)[0], 1)
    engine._accesses.write_if_due()
    assert _accesses(connection, engine) == {1: 1, 2: 0}


def test_counts_are_written_where_the_strategies_cannot_be_weighed(
    url: str, connection: Connection, engine: SonaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _add(connection, engine, np.eye(DIM, dtype=np.float32)[:1])

    def refuse(self: EvidenceLoop) -> int:
        raise ConfigError("the items table is gone")

    monkeypatch.setattr(EvidenceLoop, "advance", refuse)
    store = StoreConfig(access_interval_seconds=0.0)
    with SonaEngine.connect(url, space=engine.space.name, store=store) as other:
        other.find_patterns(np.eye(DIM)[0], 1)
        deadline = time.monotonic() + 30
        while _accesses(connection, engine) == {1: 0} and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _accesses(connection, engine) == {1: 1}


def test_counts_wait_where_the_database_does_not_take_them(url: str, connection: Connection, space_name: str) -> None:
    store = StoreConfig(lock_timeout_seconds=1)
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False, store=store) as engine:
        _add(connection, engine, np.eye(DIM, dtype=np.float32)[:1])
        engine.find_patterns(np.eye(DIM)[0], 1)
        engine.flush()
        engine.find_patterns(np.eye(DIM)[0], 1)
        with connect(url) as other, other.transaction():
            other.execute("SELECT FROM sona.pattern_access WHERE space_id = %s FOR UPDATE", (engine.space.space_id,))
            engine.flush()
            assert _accesses(connection, engine) == {1: 1}
        engine.flush()
        assert _accesses(connection, engine) == {1: 2}


def _cycle_writes(connection: Connection, space: Space) -> None:
    """A cycle that merges pattern 3 into 2, and removes 1."""
    advance = Advance((), (), {3: 2}, (1,), {}, {}, {}, last_id=3, waiting=())
    state = PatternState(0, 0, 3, 0, frozenset(), 0.0, is_stale=False, is_judged=True)
    with transaction(connection):
        write_advance(connection, Run(space, "background", 1, 1, 1, 0), state, advance, {})


def _user_is_forgotten(connection: Connection, space: Space) -> None:
    with transaction(connection):
        assert forget_patterns(connection, space, 0) == 3


def _space_is_dropped(connection: Connection, space: Space) -> None:
    connection.execute("SELECT sona.drop_space(%s)", (space.name,))


@pytest.mark.parametrize("write", [_cycle_writes, _user_is_forgotten, _space_is_dropped])
def test_who_counts_and_who_removes_patterns_do_not_wait_for_each_other(
    url: str, connection: Connection, engine: SonaEngine, write: Callable[[Connection, Space], None]
) -> None:
    space = engine.space
    _add(connection, engine, np.eye(DIM, dtype=np.float32)[:3])
    assert _index(connection, engine, 0)
    connection.execute("INSERT INTO sona.pattern_state (space_id, consumed) VALUES (%s, 1)", (space.space_id,))
    count = "SELECT sona._count_accesses(%s, %s, %s)"
    for id in (2, 3, 1):  # as they lie in the table
        connection.execute(count, (space.space_id, [id], [1]))

    def waiting(most: int) -> None:
        waits = "SELECT FROM pg_stat_activity WHERE application_name = 'waiter' AND wait_event_type = 'Lock'"
        while len(connection.execute(waits).fetchall()) < most:
            assert not writes.done(), writes.result()
            time.sleep(0.01)

    with (
        connect(url, application="waiter") as writer,
        connect(url, application="waiter") as counter,
        ThreadPoolExecutor(2) as pool,
    ):
        with connect(url) as other, other.transaction():
            other.execute(
                "SELECT FROM sona.pattern_access WHERE space_id = %s AND pattern_id = 3 FOR UPDATE", (space.space_id,)
            )
            writes = pool.submit(write, writer, space)
            waiting(1)
            counts = pool.submit(counter.execute, count, (space.space_id, [1, 2], [1, 1]))
            waiting(2)
        writes.result(timeout=60)
        counts.result(timeout=60)


def test_an_application_counts_and_a_reader_does_not(
    url: str, connection: Connection, engine: SonaEngine, role: Callable[..., str]
) -> None:
    _add(connection, engine, np.eye(DIM, dtype=np.float32)[:2])
    for name, group, may_write in (("app", "sona_app", True), ("looker", "sona_reader", False),
                                             ("guest", "sona_app", False)):  # fmt: skip
        login = role(name, group)
        connection.execute("SELECT sona.grant_space(%s, %s, %s)", (engine.space.name, login, may_write))
        as_role: dict[str, Any] = {"user": login}
        with SonaEngine.connect(
            psycopg.conninfo.make_conninfo(url, **as_role), space=engine.space.name, background=False
        ) as own:
            assert [p.id for p, _ in own.find_patterns(np.eye(DIM)[0], 1)] == [1]
            own.flush()
            own.find_patterns(np.eye(DIM)[0], 1)
        assert _accesses(connection, engine)[1] == 2
