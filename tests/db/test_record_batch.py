"""`record_batch`: what `record` does row by row, at once; all rows or none, and nothing lost where it waits."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sona_pg import (
    ConfigError,
    DatabaseError,
    DimensionMismatch,
    InstantLoopConfig,
    InvalidInput,
    QueryTrajectory,
    SonaEngine,
    StoreConfig,
)
from sona_pg.store.connection import Connection

from .conftest import DIM

_REWARDS = st.one_of(st.none(), st.floats(0, 1), st.sampled_from((0, 1, True, -1.5, 2.0, math.nan, math.inf, "1")))
_ITEMS = st.one_of(st.sampled_from(("a", "b", "ä", "x" * 200)), st.sampled_from(("", "\0", "x" * 501, None, 5)))


@st.composite
def _row(draw: st.DrawFn) -> dict[str, Any]:
    """What one row gives, with a flaw now and then."""
    is_flawed = draw(st.integers(0, 7)) == 0
    good = st.sampled_from(("a", "b", "ä", "x" * 200))
    items = draw(st.lists(_ITEMS if is_flawed else good, max_size=3))
    worth: st.SearchStrategy[Any] = _REWARDS if is_flawed else st.one_of(st.none(), st.floats(0, 1), st.just(1))
    size = len(items) + (is_flawed and draw(st.booleans()))
    rewards: st.SearchStrategy[Any] = st.one_of(
        st.none(),
        st.lists(worth, min_size=size, max_size=size),
        st.lists(worth, min_size=size, max_size=size).map(tuple),
        st.dictionaries(good, worth, max_size=3),
    )
    return {
        "item_ids": items,
        "rewards": draw(rewards),
        "quality": draw(worth),
        "latency_us": draw(st.sampled_from((0, 7, -1, 1.5)) if is_flawed else st.integers(0, 9)),
        "user_id": draw(st.sampled_from((None, "ann", "", 5)) if is_flawed else st.sampled_from((None, "ann"))),
        "session_id": draw(st.sampled_from((None, "s1"))),
        "metadata": draw(st.sampled_from((None, {}, {"a": [1]}, [], {"a": {5}}) if is_flawed else (None, {"a": [1]}))),
        "trajectory_id": draw(st.uuids()),
    }


_PLURAL = {
    "item_ids": "item_ids",
    "rewards": "rewards",
    "quality": "qualities",
    "latency_us": "latencies_us",
    "user_id": "user_ids",
    "session_id": "session_ids",
    "metadata": "metadata",
    "trajectory_id": "trajectory_ids",
}


def _taken(engine: SonaEngine) -> list[dict[str, object]]:
    """What waits in the buffer, in a form that can be compared bit for bit; taken out of it."""

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            assert not value.flags.writeable
            assert value.base is None
            return value.dtype, value.tobytes()
        return [plain(part) for part in value] if isinstance(value, tuple) else value

    return [
        {f.name: plain(getattr(t, f.name)) for f in fields(QueryTrajectory)}
        for t in engine.instant._backlog.buffer.drain()
    ]


@settings(deadline=None, database=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(_row(), max_size=4), seed=st.integers(0, 99), flaw=st.sampled_from(("", "", "", "nan", "dim")))
def test_is_what_record_does_row_by_row(engine: SonaEngine, rows: list[dict[str, Any]], seed: int, flaw: str) -> None:
    random = np.random.default_rng(seed)
    queries = random.standard_normal((len(rows), DIM + (flaw == "dim"))).astype(np.float64 if seed % 2 else np.float32)
    if flaw == "nan" and rows:
        queries[-1, seed % DIM] = math.nan
    refused: list[tuple[int, Exception]] = []
    for number, (query, row) in enumerate(zip(queries, rows, strict=True)):
        try:
            assert engine.record(query, **row) == row["trajectory_id"]
        except (InvalidInput, DimensionMismatch) as error:
            refused.append((number, error))
    expected = _taken(engine)
    given_: dict[str, Any] = {many: [row[one] for row in rows] for one, many in _PLURAL.items()}
    before = engine.metrics
    if refused or flaw == "dim":
        with pytest.raises((InvalidInput, DimensionMismatch)) as raised:
            engine.record_batch(queries, **given_)
        if not flaw:
            number, first = refused[0]
            assert str(raised.value) == f"row {number}: {first}; nothing was recorded"
        assert engine.metrics == before
        assert _taken(engine) == []
    else:
        assert engine.record_batch(queries, **given_) == given_["trajectory_ids"]
        assert _taken(engine) == expected


def test_a_matrix_of_rewards_is_one_for_each_item(engine: SonaEngine, rng: np.random.Generator) -> None:
    queries = rng.standard_normal((3, DIM))
    items = np.array([["1", "2"], ["3", "4"], ["5", "6"]])
    ids = engine.record_batch(queries, items, np.array([[1, 0], [0.5, 0], [0, 1]], dtype=np.float32), [None, 0.25, 1])
    assert len(set(ids)) == 3
    assert all(id.version == 7 and id.variant == uuid.RFC_4122 for id in ids)
    taken = engine.instant._backlog.buffer.drain()
    assert [t.id for t in taken] == ids
    assert [[(s.item_id, s.position, s.reward) for s in t.steps] for t in taken] == [
        [("1", 1, 1.0), ("2", 2, 0.0)],
        [("3", 1, 0.5), ("4", 2, 0.0)],
        [("5", 1, 0.0), ("6", 2, 1.0)],
    ]
    assert [t.final_quality for t in taken] == [None, 0.25, 1.0]
    # What is recorded is a copy.
    kept = taken[0].query_embedding.copy()
    queries[:] = 0
    assert taken[0].query_embedding.tobytes() == kept.tobytes()


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"item_ids": [["1"]]}, "2 queries with 1 item_ids"),
        ({"rewards": [[1.0]] * 3}, "2 queries with 3 rewards"),
        ({"qualities": 0.5}, "qualities is a float"),
        ({"qualities": np.float32(0.5)}, "qualities is a float32"),
        ({"qualities": np.array(0.5)}, "qualities is a ndarray"),
        ({"user_ids": "ab"}, "user_ids is a str"),
        ({"trajectory_ids": [1, 2]}, "row 0: trajectory id is 1"),
        ({"item_ids": ["1", "2"]}, "row 0: item_ids is a str"),
        ({"item_ids": [["1"], [["2"]]], "rewards": [{}, {}]}, "row 1: an item id is no string"),
        ({"wait": 1}, "wait is 1"),
    ],
)
def test_what_does_not_fit_is_said(engine: SonaEngine, given_: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        engine.record_batch(np.ones((2, DIM)), **given_)
    assert engine.metrics.recorded == 0


@pytest.mark.parametrize("queries", [np.ones(DIM), [], "text", None, [[1.0], [1.0, 2.0]], np.ones((2, DIM), complex)])
def test_queries_are_a_matrix(engine: SonaEngine, queries: Any) -> None:  # noqa: ANN401
    with pytest.raises(InvalidInput, match="queries"):
        engine.record_batch(queries)
    assert engine.record_batch(np.ones((0, DIM))) == []


# ---- Full buffers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(url: str, space_name: str, tmp_path: Path) -> Iterator[SonaEngine]:
    """An engine whose buffers hold ten, and that may keep thirty for the database."""
    made = SonaEngine.connect(
        url,
        space=space_name,
        dim=DIM,
        home=None,
        background=False,
        instant=InstantLoopConfig(max_pending_signals=10, max_unflushed=30),
        store=StoreConfig(spool_max_bytes=0),
    )
    yield made
    made.close()


def _batch(n: int) -> tuple[NDArray[np.float32], Sequence[Sequence[str]], list[list[float]]]:
    queries = np.random.default_rng(n).standard_normal((n, DIM), dtype=np.float32)
    return queries, [[str(row)] for row in range(n)], [[1.0]] * n


def test_without_waiting_what_does_not_fit_is_dropped_and_counted(
    narrow: SonaEngine, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    ids = narrow.record_batch(*_batch(45))
    assert len(ids) == 45
    assert (narrow.metrics.recorded, narrow.metrics.dropped) == (30, 15)
    assert "15 trajectories were dropped" in caplog.text
    narrow.flush()
    assert _durable(connection, narrow) == set(ids[:30])


def test_what_may_wait_is_taken_though_it_is_more_than_the_buffer_holds(
    narrow: SonaEngine, connection: Connection
) -> None:
    ids = [id for n in (7, 9, 13) for id in narrow.record_batch(*_batch(n))]
    ids.append(narrow.record(np.ones(DIM), ["1"], [1.0]))
    assert (narrow.metrics.recorded, narrow.metrics.dropped, narrow.metrics.pending) == (30, 0, 30)
    narrow.flush()
    assert [row[0] for row in connection.execute(
        "SELECT trajectory_id FROM sona.learning_event WHERE space_id = %s ORDER BY ordinal", (narrow.space.space_id,)
    )] == ids  # fmt: skip


def test_who_waits_loses_nothing(narrow: SonaEngine, connection: Connection) -> None:
    ids = narrow.record_batch(*_batch(137), wait=True)
    assert (narrow.metrics.recorded, narrow.metrics.dropped) == (137, 0)
    narrow.flush()
    assert _durable(connection, narrow) == set(ids)
    assert [row[0] for row in connection.execute(
        "SELECT trajectory_id FROM sona.learning_event WHERE space_id = %s ORDER BY ordinal", (narrow.space.space_id,)
    )] == ids  # fmt: skip


def test_who_waits_for_a_database_that_is_gone_is_told(
    narrow: SonaEngine, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise DatabaseError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(narrow.instant, "_synchronize", gone)
        ids = [uuid.UUID(int=row + 1) for row in range(45)]
        with pytest.raises(DatabaseError, match=r"30 of 45 rows were recorded, the others dropped: .* server is gone"):
            narrow.record_batch(*_batch(45), trajectory_ids=ids, wait=True)
    assert (narrow.metrics.recorded, narrow.metrics.dropped) == (30, 15)
    narrow.flush()
    assert _durable(connection, narrow) == set(ids[:30])


def test_threads_of_the_engine_take_a_batch(url: str, space_name: str, connection: Connection) -> None:
    with SonaEngine.connect(url, space=space_name, dim=DIM) as engine:
        ids = [id for n in (700, 900, 1100) for id in engine.record_batch(*_batch(n), wait=True)]
        engine.flush()
        assert engine.metrics.dropped == 0
        assert _durable(connection, engine) == set(ids)
    with pytest.raises(ConfigError, match="closed"):
        engine.record_batch(np.ones((1, DIM)))


def _durable(connection: Connection, engine: SonaEngine) -> set[uuid.UUID]:
    return {
        row[0]
        for row in connection.execute(
            "SELECT trajectory_id FROM sona.trajectory WHERE space_id = %s", (engine.space.space_id,)
        )
    }
