"""Loop B on what there is too little of, what is all the same, and what has no direction or no outcome."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg import SonaEngine, SpaceConfig, StoreConfig
from sona_pg.config import BackgroundConfig, PatternConfig
from sona_pg.loops.background import background_loop
from sona_pg.store.connection import connect
from sona_pg.store.database import Database
from sona_pg.store.migrate import migrate
from sona_pg.worker import InstantWorker

from .cycles import run_cycle

DIM = 8
LOOP = background_loop(BackgroundConfig(minimum=1))
LEAST = PatternConfig().min_cluster_size

Vector = NDArray[np.float32]


@pytest.fixture
def engine(empty_url: str) -> Iterator[SonaEngine]:
    migrate(empty_url)
    settings = SpaceConfig(control_share=0.0)
    with SonaEngine.connect(empty_url, space="inputs", dim=DIM, background=False, space_config=settings) as made:
        yield made


def _cycle(engine: SonaEngine) -> tuple[str, dict[str, int]]:
    """A cycle of all that was recorded: its state and facts."""
    engine.flush()
    found = run_cycle(engine.url, "inputs", LOOP)
    return found.state, found.facts


def _patterns(engine: SonaEngine) -> list[tuple[Any, ...]]:
    with connect(engine.url) as connection:
        return connection.execute(
            "SELECT pattern_id, cluster_size, support, avg_quality FROM sona.patterns ORDER BY pattern_id"
        ).fetchall()


def _axis(place: int) -> Vector:
    return np.eye(DIM, dtype=np.float32)[place]


def _record_in_sql(engine: SonaEngine, metadata: list[str], qualities: list[float]) -> None:
    """Answers to one query, with metadata as JSON and qualities in turn, which a worker learns."""
    with connect(engine.url) as connection:
        for i, recorded in enumerate(metadata):
            connection.execute(
                "SELECT sona.record('inputs', %s, ARRAY['1'], quality => %s, metadata => %s::jsonb)",
                (_axis(1), qualities[i % len(qualities)], recorded),
            )
    worker = InstantWorker(Database(engine.url, StoreConfig()))
    assert worker.step() == len(metadata)
    worker.weigh()
    worker.close()


def test_of_none_one_and_many(engine: SonaEngine) -> None:
    assert _cycle(engine)[0] == "skipped"
    engine.record(_axis(0), ["1"], quality=0.75)
    state, facts = _cycle(engine)
    assert (state, facts["new"], facts["waiting"], facts["patterns"]) == ("done", 1, 1, 0)
    # It has not been lost: with enough of its kind it is counted, once.
    for _ in range(LEAST - 1):
        engine.record(_axis(0), ["1"], quality=0.75)
    assert _cycle(engine)[1]["waiting"] == 0
    assert _patterns(engine) == [(1, LEAST, LEAST, 0.75)]
    for place in range(1, DIM):
        for _ in range(2 * LEAST):
            engine.record(3 * _axis(place), ["1"], quality=0.5)
    assert _cycle(engine)[1]["created"] == DIM - 1
    assert [row[1:] for row in _patterns(engine)] == [
        (LEAST, LEAST, 0.75),
        *[(2 * LEAST, 2 * LEAST, 0.5)] * (DIM - 1),
    ]


def test_fewer_outcomes_than_clusters(engine: SonaEngine, rng: np.random.Generator) -> None:
    n = 2 * LEAST + 1
    for _ in range(n):
        engine.record(rng.standard_normal(DIM).astype(np.float32), ["1"], quality=0.5)
    state, facts = _cycle(engine)
    assert state == "done"
    assert facts["patterns"] <= 2
    assert sum(support for _, _, support, _ in _patterns(engine)) + facts["waiting"] == n


def test_what_is_all_the_same_is_one_pattern_and_proves_nothing(engine: SonaEngine) -> None:
    for i in range(60):
        engine.record(_axis(2), ["1"], quality=0.5, metadata={"parameters": {"model": "ab"[i % 2], "depth": i % 3}})
    state, facts = _cycle(engine)
    assert (state, facts["patterns"]) == ("done", 1)
    assert _patterns(engine) == [(1, 60, 60, 0.5)]
    with connect(engine.url) as connection:
        found = connection.execute(
            "SELECT DISTINCT improvement, p, p_adjusted, decision FROM sona.get_verdict('inputs', 1)"
            " WHERE parameter <> 'strategy'"
        ).fetchall()
    assert found == [(0.0, 1.0, 1.0, 0)]
    advised = engine.optimized_params(_axis(2), {"model": "c"})
    assert (advised["model"].value, advised["model"].confidence) == ("c", 0.0)


def test_a_query_without_direction_is_stated_and_belongs_to_no_pattern(engine: SonaEngine) -> None:
    for i in range(2 * LEAST):
        engine.record(_axis(1) * (i % 2), ["1"], quality=0.5)
    state, facts = _cycle(engine)
    assert (state, facts["new"], facts["without_direction"], facts["waiting"]) == ("done", 2 * LEAST, LEAST, 0)
    assert _patterns(engine) == [(1, LEAST, LEAST, 0.5)]
    engine.record(_axis(1), ["1"], quality=0.5)
    assert _cycle(engine)[1]["without_direction"] == 0


@pytest.mark.parametrize(
    "metadata",
    [
        '{"parameters": {"x": 1e5000}}',
        '{"parameters": {"x": ' + "[" * 3000 + "]" * 3000 + "}}",
        '{"parameters": {"x": 1}, "precision": 1e5000}',
        '{"parameters": {"x": 1}, "recall": -1e5000}',
    ],
    ids=["number", "depth", "precision", "recall"],
)
def test_json_that_python_does_not_read_is_stated_and_stops_no_worker(engine: SonaEngine, metadata: str) -> None:
    _record_in_sql(engine, [metadata] * (2 * LEAST), [0.5])
    state, facts = _cycle(engine)
    assert (state, facts["new"], facts["unusable_parameters"]) == ("done", 2 * LEAST, 2 * LEAST)
    assert _patterns(engine) == [(1, 2 * LEAST, 2 * LEAST, 0.5)]


def test_a_value_that_is_a_list_in_a_list_hundreds_of_times_is_a_value(engine: SonaEngine) -> None:
    deep = "[" * 490 + "]" * 490
    _record_in_sql(
        engine, ['{"parameters": {"x": "flat"}}', f'{{"parameters": {{"x": {deep}}}}}'] * (2 * LEAST), [0, 1]
    )
    assert _cycle(engine)[0] == "done"
    assert engine.optimized_params(_axis(1))["x"].value == json.loads(deep)


def test_counts_that_an_application_has_written_itself_stop_no_cycle(engine: SonaEngine) -> None:
    for i in range(4 * LEAST):
        engine.record(_axis(i % 2), ["1"], quality=0.5)
    assert _cycle(engine)[1]["patterns"] == 2
    with connect(engine.url) as connection:
        connection.execute(
            "INSERT INTO sona.pattern_access SELECT space_id, pattern_id, 9223372036854775807, 'infinity'"
            " FROM sona.pattern"
        )
        connection.execute("UPDATE sona.pattern SET centroid = %s", (_axis(0),))
        engine.find_patterns(_axis(0))
        engine.record(_axis(0), ["1"], quality=0.5)
        state, facts = _cycle(engine)
        assert (state, facts["merged"]) == ("done", 1)
        ((count,),) = connection.execute("SELECT access_count FROM sona.patterns WHERE pattern_id = 1").fetchall()
        assert count >= 1 << 61


def test_rewards_that_are_missing_are_no_bad_ones(engine: SonaEngine) -> None:
    for i in range(4 * LEAST):
        # Of every second answer nobody has said anything; of the others, nothing of one of its items.
        engine.record(_axis(3), ["1", "2", "3"], [1.0, None, 0.0] if i % 2 else [None] * 3)
    state, facts = _cycle(engine)
    assert (state, facts["new"], facts["trajectories"]) == ("done", 2 * LEAST, 2 * LEAST)
    assert _patterns(engine) == [(1, 2 * LEAST, 2 * LEAST, 1.0)]
