"""An export takes no more memory than some hundred rows do, however many there are."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from sona_pg import SonaEngine
from sona_pg.store.connection import Connection

WIDE, ROWS = 256, 3000
"""As lists of Python these rows take 25 MB."""
LARGEST = 10 << 20


def peak(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_patterns_are_streamed(
    open_space: Callable[..., SonaEngine], connection: Connection, tmp_path: Path, kind: str
) -> None:
    engine = open_space(dim=WIDE)
    engine.export_patterns(tmp_path / f"nothing.{kind}")  # what is imported for it does not count
    connection.execute(
        "INSERT INTO sona.pattern (space_id, pattern_id, centroid, cluster_size, total_weight, avg_quality, confidence,"
        " support) SELECT %(space)s, n, array_fill(1 / sqrt(%(dim)s), ARRAY[%(dim)s])::vector, 1, 1, 0.5, 0.5, 1"
        " FROM generate_series(1, %(rows)s) n",
        {"space": engine.space.space_id, "dim": WIDE, "rows": ROWS},
    )
    path = tmp_path / f"patterns.{kind}"
    assert peak(lambda: engine.export_patterns(path)) < LARGEST
    assert path.stat().st_size > 10_000
    if kind == "parquet":
        # What arrow takes is not Python's.
        import pyarrow

        assert pyarrow.default_memory_pool().max_memory() < LARGEST


def test_preference_pairs_are_streamed(
    open_space: Callable[..., SonaEngine], connection: Connection, tmp_path: Path
) -> None:
    engine = open_space(dim=WIDE)
    key = {"space": engine.space.space_id, "dim": WIDE, "rows": ROWS}
    ids = "FROM generate_series(1, %(rows)s) n, LATERAL (SELECT md5(n::text)::uuid AS id) i"
    for statement in (
        "INSERT INTO sona.trajectory (space_id, trajectory_id, query, latency_us, metadata, arm, version, strategy,"
        " propensity) SELECT %(space)s, id, array_fill(1::float4, ARRAY[%(dim)s])::vector, 0, '{}', 'learned', 0,"
        " 'frozen', 1 " + ids,
        "INSERT INTO sona.trajectory_step (space_id, trajectory_id, ordinal, item_id, position, reward)"
        " SELECT %(space)s, id, p, p::text, p + 1, p " + ids + ", generate_series(0, 1) p",
        "INSERT INTO sona.learning_event (space_id, loop, trajectory_id, revision, cycle_id, ordinal, learned)"
        " SELECT %(space)s, 'instant', id, 0, 1, n, 'adapter' " + ids,
    ):
        connection.execute(statement, key)
    counts: list[int] = []
    assert peak(lambda: counts.append(engine.export_preferences(tmp_path / "pairs.jsonl"))) < LARGEST
    assert counts == [ROWS]
