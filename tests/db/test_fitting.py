"""Learning from rows: what was used, what changed a weight, and why the others did not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sona_pg import InstantLoopConfig, SonaEngine, SpaceConfig
from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.store.connection import Connection

DIM = 8
ITEMS = np.eye(DIM, dtype=np.float32)


@pytest.fixture
def engine(url: str, connection: Connection, space_name: str) -> Iterator[SonaEngine]:
    table = f"fitted_{abs(hash(space_name)) % 10**9}"
    connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector({DIM}))")
    connection.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s)", list(enumerate(ITEMS)))
    config = SpaceConfig(control_share=0.0)
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False, space_config=config) as made:
        made.set_items(table, "id", "embedding")
        yield made
    connection.execute(f"DROP TABLE {table}")


def test_every_row_is_accounted_for(engine: SonaEngine) -> None:
    queries = [ITEMS[0], ITEMS[1], ITEMS[2], ITEMS[3, :3], np.full(DIM, np.nan), ITEMS[4], ITEMS[5]]
    outcomes = [{"7": 1.0}, {"7": 0.0}, {"unknown": 1.0}, {"7": 1.0}, {"7": 1.0}, ["7"], {"7": "good"}]
    report = engine.partial_fit(queries, outcomes)  # type: ignore[arg-type]
    assert (report.rows, report.used, report.updates) == (7, 3, 1)
    assert [reason.partition(":")[0] for reason in report.skipped] == [
        "no helpful item has a known embedding",
        "nothing was judged helpful",
    ]
    assert set(report.refused) == {3, 4, 5, 6}
    assert "3 dimensions, expected 8" in report.refused[3]
    assert "expected what items were worth" in report.refused[5]
    assert report.rows == report.updates + sum(report.skipped.values()) + len(report.refused)
    assert len(set(report.trajectory_ids)) == 3
    assert engine.why(report.trajectory_ids[0]) is not None


def test_what_is_learned_one_by_one_is_predicted(engine: SonaEngine) -> None:
    query = ITEMS[0] + 0.1 * ITEMS[1]
    assert engine.predict_one(query, 1) == ["0"]
    for i in range(60):
        report = engine.learn_one(query + 0.02 * ITEMS[2 + i % 3], {"5": 1.0, "0": 0.0})
        assert (report.rows, report.used, report.updates, report.refused) == (1, 1, 1, {})
    assert float(engine.instant.serving.adapt(query) @ ITEMS[5]) > 0.1


def test_what_is_no_row_is_refused_as_a_whole(engine: SonaEngine) -> None:
    with pytest.raises(InvalidInput, match="1 queries with 2 outcomes"):
        engine.partial_fit([ITEMS[0]], [{}, {}])
    for queries in ("ab", 5, np.float32(3), {"a": 1}):
        with pytest.raises(InvalidInput, match="queries is a"):
            engine.partial_fit(queries, [{}])  # type: ignore[arg-type]
    with pytest.raises(DimensionMismatch):
        engine.learn_one(ITEMS[0, :3], {"1": 1.0})
    assert engine.metrics.recorded == 0
    empty = engine.partial_fit([], [])
    assert (empty.rows, empty.used, empty.updates, empty.skipped, empty.refused) == (0, 0, 0, {}, {})


@pytest.mark.parametrize("background", [True, False])
def test_more_rows_than_the_buffers_hold_all_teach(url: str, space_name: str, background: bool) -> None:
    instant = InstantLoopConfig(max_pending_signals=20, max_unflushed=50)
    with SonaEngine.connect(url, space=space_name, dim=8, instant=instant, background=background) as engine:
        rows = np.random.default_rng(0).standard_normal((400, 8))
        report = engine.partial_fit(rows, [{"a": 1.0}] * 400)
        assert (report.used, engine.metrics.dropped, engine.metrics.flushed) == (400, 0, 400)
        assert "not learned yet: flush again" not in report.skipped
        # Rows of a log are no answers: nothing was shown, and nothing is worth 0 by them.
        metrics = engine.improvement_metrics()
        assert (metrics.answers_7d, metrics.quality_7d, metrics.overall) == (0, None, None)
        with pytest.raises(InvalidInput, match="the outcome is a NoneType"):
            engine.learn_one(rows[0], None)  # type: ignore[arg-type]
