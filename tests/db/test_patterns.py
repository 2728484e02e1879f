"""Loop B: outcomes become patterns that keep their identity, and every outcome counts once, whoever dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from psycopg.types.json import Jsonb

from sona_pg import DimensionMismatch, InvalidInput, SonaEngine
from sona_pg.config import PatternConfig, VerdictConfig
from sona_pg.loops import background
from sona_pg.loops.background import BACKGROUND, background_loop
from sona_pg.steps import CYCLE, ENV_KILL_AT
from sona_pg.store.connection import Connection, connect
from sona_pg.store.runs import Run
from sona_pg.types import Json

from .topics import TOPICS, Vector, _ask, _cycle, _nearest, _patterns, _verdicts
from .topics import connection as connection
from .topics import engine as engine
from .topics import open_engine as open_engine
from .topics import topics as topics


def test_outcomes_become_patterns(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics, rng, 80)
    state, facts, _ = _cycle(module_url, engine)
    assert state == "done"
    assert (facts["trajectories"], facts["new"], facts["patterns"], facts["created"]) == (80, 80, TOPICS, TOPICS)
    assert _patterns(connection, engine) == [(id, 20, 20) for id in range(1, TOPICS + 1)]
    for topic, centre in enumerate(topics):
        ((similarity, size, quality, confidence, strategy),) = connection.execute(
            "SELECT similarity, cluster_size, avg_quality, confidence, best_strategy"
            " FROM sona.find_patterns(%s, %s, 1)",
            (engine.space.name, centre),
        ).fetchall()
        assert similarity > 0.99
        assert (size, strategy) == (20, None)
        assert quality == pytest.approx(0.5 + topic / 10, abs=1e-6)
        assert confidence == pytest.approx(20 / 30)


def test_patterns_keep_their_identity(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics, rng, 80)
    _cycle(module_url, engine)
    were = {topic: _nearest(connection, engine, centre) for topic, centre in enumerate(topics)}
    assert sorted(were.values()) == list(range(1, TOPICS + 1))
    for more in range(1, 4):
        _ask(engine, topics, rng, 40)
        _, facts, _ = _cycle(module_url, engine)
        assert (facts["new"], facts["created"], facts["changed"]) == (40, 0, TOPICS)
        assert {topic: _nearest(connection, engine, centre) for topic, centre in enumerate(topics)} == were
        assert _patterns(connection, engine) == [(id, 20 + 10 * more, 20 + 10 * more) for id in sorted(were.values())]
    events = connection.execute(
        "SELECT event, count(*), max(support) FROM sona.pattern_events WHERE space = %s GROUP BY 1 ORDER BY 1",
        (engine.space.name,),
    ).fetchall()
    assert events == [("changed", 3 * TOPICS, 50), ("created", TOPICS, 20)]


def test_a_parameter_that_works_is_proven(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    def metadata(topic: int, i: int) -> dict[str, Json]:
        return {"parameters": {"model": "ab"[i // TOPICS % 2]}, "precision": 0.25, "recall": 0.75}

    def quality(topic: int, i: int) -> float:
        return 0.8 if i // TOPICS % 2 == topic % 2 else 0.4  # a for even topics, b for odd ones

    for _ in range(2):
        _ask(engine, topics, rng, 240, metadata, quality)
        _cycle(module_url, engine)
    for topic, centre in enumerate(topics):
        rows = connection.execute(
            "SELECT parameter, value, support, improvement, decision, mean_precision, mean_recall"
            " FROM sona.get_verdict(%s, %s)",
            (engine.space.name, _nearest(connection, engine, centre)),
        ).fetchall()
        good, bad = ("a", "b") if topic % 2 == 0 else ("b", "a")
        assert [row[:3] for row in rows] == [("model", good, 60), ("model", bad, 60)]
        assert [row[4] for row in rows] == [1, -1]
        assert rows[0][3] == pytest.approx(0.4, abs=1e-6)
        assert rows[0][5:] == (0.25, 0.75)


def test_an_engine_recommends_what_worked(
    module_url: str, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    def metadata(topic: int, i: int) -> dict[str, Json]:
        return {"parameters": {"ef_search": 40 + 40 * (i // TOPICS % 2), "model": "ab"[i // TOPICS % 2]}}

    def quality(topic: int, i: int) -> float:
        return 0.8 if i // TOPICS % 2 == topic % 2 else 0.4

    defaults: dict[str, Json] = {"model": "c", "temperature": 0.5}
    unknown = engine.optimized_params(topics[0], defaults)
    assert {name: (r.value, r.source, r.confidence) for name, r in unknown.items()} == {
        "model": ("c", (), 0.0),
        "temperature": (0.5, (), 0.0),
    }
    assert engine.find_patterns(topics[0]) == []
    _ask(engine, topics, rng, 240, metadata, quality)
    _cycle(module_url, engine)
    for topic, centre in enumerate(topics):
        (nearest, cosine), *others = engine.find_patterns(centre, 3)
        assert len(others) == 2
        assert cosine > 0.99 > others[0][1]
        assert (nearest.cluster_size, nearest.support) == (60, 60)
        assert nearest.centroid @ centre == pytest.approx(cosine, abs=1e-6)
        found = engine.optimized_params(centre, defaults)
        best = ("a", 40) if topic % 2 == 0 else ("b", 80)
        assert (found["model"].value, found["ef_search"].value) == best
        assert found["model"].source[0] == nearest.id
        assert found["model"].confidence > 0.9
        assert found["temperature"].value == 0.5
    with pytest.raises(DimensionMismatch):
        engine.find_patterns(topics[0][:3])
    with pytest.raises(InvalidInput):
        engine.optimized_params(topics[0], ["a"])  # type: ignore[arg-type]


def test_too_little_is_skipped_and_consumes_nothing(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics, rng, 37)
    assert _cycle(module_url, engine, BACKGROUND)[::2] == ("skipped", "37 of 100 new trajectories with an outcome")
    assert _patterns(connection, engine) == []
    _ask(engine, topics, rng, 63)
    state, facts, _ = _cycle(module_url, engine, BACKGROUND)
    assert (state, facts["new"]) == ("done", 100)
    assert _cycle(module_url, engine, BACKGROUND)[::2] == ("skipped", "0 of 100 new trajectories with an outcome")


def test_before_anything_is_judged_queries_alone_make_patterns_of_which_nothing_is_known(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    ids = [engine.record(topics[i % TOPICS], ["1"], metadata={"parameters": {"model": "a"}}) for i in range(80)]
    engine.flush()
    _, _, reason = _cycle(module_url, engine, BACKGROUND)
    assert reason == "80 of 100 new trajectories, none of them judged"
    ids += [engine.record(topics[i % TOPICS], ["1"], metadata={"parameters": {"model": "a"}}) for i in range(20)]
    engine.flush()
    assert _cycle(module_url, engine, BACKGROUND)[1]["created"] == TOPICS
    unknown = PatternConfig().prior_quality
    assert (
        _patterns(connection, engine, "cluster_size, support, avg_quality, confidence")
        == [(25, 0, unknown, 0.0)] * TOPICS
    )
    assert engine.optimized_params(topics[0], {"model": "b"})["model"].value == "b"
    assert _cycle(module_url, engine)[0] == "skipped"
    # The first outcomes are of the same patterns, and all that is known of them.
    for id in ids[:40]:
        engine.score(id, 1.0)
    engine.flush()
    _, facts, _ = _cycle(module_url, engine)
    assert (facts["new"], facts["created"], facts["patterns"]) == (40, 0, TOPICS)
    assert _patterns(connection, engine, "support, avg_quality") == [(10, 1.0)] * TOPICS


def test_what_has_no_outcome_is_no_news_until_it_has(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector
) -> None:
    _ask(engine, topics[1:2], np.random.default_rng(0), 5)
    assert _cycle(module_url, engine)[1]["new"] == 5
    ids = [engine.record(topics[0], ["1"]) for _ in range(10)]
    engine.flush()
    assert _cycle(module_url, engine)[0] == "skipped"
    for id in ids:
        engine.score(id, 0.25)
    engine.flush()
    assert _cycle(module_url, engine)[1]["new"] == 10
    assert _patterns(connection, engine, "support, avg_quality") == [(5, 0.5), (10, 0.25)]
    # A correction changes what the pattern is worth, and counts no second time.
    for id in ids:
        engine.score(id, 0.75)
    engine.record(topics[0], ["1"], quality=0.75)
    engine.flush()
    assert _cycle(module_url, engine)[1]["new"] == 1
    assert _patterns(connection, engine, "support, avg_quality") == [(5, 0.5), (11, 0.75)]


def test_what_belongs_to_no_pattern_waits_and_counts_once(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    used = {"parameters": {"model": "a"}}
    _ask(engine, topics[:1], rng, 40, lambda *_: used)
    _ask(engine, topics[1:2], rng, 3, lambda *_: used)
    _, facts, _ = _cycle(module_url, engine)
    assert (facts["waiting"], facts["patterns"]) == (3, 1)
    _ask(engine, topics[1:2], rng, 3, lambda *_: used)
    _, facts, _ = _cycle(module_url, engine)
    assert (facts["new"], facts["waiting"], facts["created"]) == (3, 0, 1)
    assert _verdicts(connection, engine) == {(1, "model", "a"): 40, (2, "model", "a"): 6}


@pytest.mark.parametrize(
    "metadata",
    [
        {"parameters": "a text"},
        {"parameters": ["a"]},
        {"parameters": {"long": "x" * 70_000}},
        {"parameters": {"model": "a"}, "precision": "high"},
        {"parameters": {"model": "a"}, "recall": 7},
        {"parameters": {"model": "a"}, "recall": {"a": 1}},
    ],
)
def test_what_is_no_parameter_is_left_out_and_stated(
    metadata: dict[str, Json],
    module_url: str,
    connection: Connection,
    engine: SonaEngine,
    topics: Vector,
    rng: np.random.Generator,
) -> None:
    _ask(engine, topics[:1], rng, 10, lambda *_: metadata)
    state, facts, _ = _cycle(module_url, engine)
    assert (state, facts["unusable_parameters"], facts["patterns"]) == ("done", 10, 1)
    assert _patterns(connection, engine, "support") == [(10,)]


@pytest.mark.parametrize("step", CYCLE)
def test_nothing_is_lost_and_nothing_counts_twice_whoever_dies(
    step: str,
    module_url: str,
    connection: Connection,
    engine: SonaEngine,
    topics: Vector,
    rng: np.random.Generator,
) -> None:
    used = {"parameters": {"model": "a"}}
    _ask(engine, topics, rng, 80, lambda *_: used)
    _cycle(module_url, engine)
    _ask(engine, topics, rng, 120, lambda *_: used)
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (engine.space.name,))
    worker = [sys.executable, "-m", "sona_pg", "worker", "background", "--once", "--url", module_url]
    killed = subprocess.run(worker, env={**os.environ, ENV_KILL_AT: step}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = subprocess.run(worker, capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr
    states = connection.execute("SELECT state FROM sona.runs WHERE space = %s", (engine.space.name,)).fetchall()
    assert states == [("done",)] * 2
    assert _patterns(connection, engine) == [(id, 50, 50) for id in range(1, TOPICS + 1)]
    assert set(_verdicts(connection, engine).values()) == {50}


def test_a_cycle_adds_up_what_was_counted_and_keeps_what_was_counted_meanwhile(
    module_url: str,
    connection: Connection,
    engine: SonaEngine,
    topics: Vector,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _ask(engine, topics, rng, 80)
    _cycle(module_url, engine)
    space_id, kept = engine.space.space_id, _nearest(connection, engine, topics[0])
    connection.execute(
        "INSERT INTO sona.pattern (space_id, pattern_id, centroid, cluster_size, total_weight, avg_quality, confidence,"
        " support) SELECT space_id, 99, centroid, 10, 10, 0.9, 0.5, 10 FROM sona.pattern WHERE pattern_id = %s",
        (kept,),
    )
    connection.execute("UPDATE sona.pattern_state SET last_id = 99")
    count = "SELECT sona._count_accesses(%s, %s, %s)"
    connection.execute(count, (space_id, [kept, 99], [2, 3]))
    before = background.write_advance

    def late(connection: Connection, run: Run, *rest: object) -> None:
        with connect(module_url) as other:
            other.execute(count, (space_id, [kept, 99], [10, 20]))
        before(connection, run, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(background, "write_advance", late)
    _ask(engine, topics, rng, 40)
    assert _cycle(module_url, engine)[1]["merged"] == 1
    counts = dict(_patterns(connection, engine, "pattern_id, access_count"))
    assert counts == {id: 35 if id == kept else 0 for id in (1, 2, 3, 4)}
    left = connection.execute("SELECT pattern_id FROM sona.pattern_access WHERE space_id = %s", (space_id,)).fetchall()
    assert left == [(kept,)], "what is gone leaves no count"


def test_other_settings_recommend_anew_without_news(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    def metadata(topic: int, i: int) -> dict[str, Json]:
        return {"parameters": {"model": "ab"[i // TOPICS % 2]}}

    _ask(engine, topics, rng, 240, metadata, lambda topic, i: 0.8 if i // TOPICS % 2 == topic % 2 else 0.4)
    _cycle(module_url, engine)
    in_sql = "SELECT value, source[1] FROM sona.optimized_params(%s, %s) WHERE parameter = 'model'"
    for topic, centre in enumerate(topics):
        rows = connection.execute(in_sql, (engine.space.name, centre)).fetchall()
        assert rows == [("ab"[topic % 2], _nearest(connection, engine, centre))]
    assert _cycle(module_url, engine, BACKGROUND)[0] == "skipped"
    careful = background_loop(verdicts=VerdictConfig(min_support=1000))
    state, facts, _ = _cycle(module_url, engine, careful)
    assert (state, facts["new"]) == ("done", 0)
    assert connection.execute(in_sql, (engine.space.name, topics[0])).fetchall() == [(None, None)]
    assert engine.optimized_params(topics[0])["model"].source == ()
    assert _cycle(module_url, engine, careful)[0] == "skipped"


def test_evidence_of_many_kinds_of_values(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    values = [1, 1.5, True, None, "x", [1, 2], {"a": 1}]
    _ask(engine, topics[:1], rng, 70, lambda _, i: {"parameters": {"é": values[i % 7]}})
    _cycle(module_url, engine)
    rows = connection.execute("SELECT value, support FROM sona.get_verdict(%s, 1)", (engine.space.name,)).fetchall()
    assert len(rows) == 7
    assert {support for _, support in rows} == {10}
    found = connection.execute(
        "SELECT count(*) FROM sona.verdicts WHERE space = %s AND value = %s", (engine.space.name, Jsonb({"a": 1}))
    ).fetchall()
    assert found == [(1,)]


def test_the_queries_of_the_page_run(
    module_url: str,
    connection: Connection,
    open_engine: Callable[..., SonaEngine],
    rng: np.random.Generator,
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "patterns.md").read_text()
    (block,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    engine = open_engine("support", 3)
    topics = np.eye(3, dtype=np.float32)

    def model(i: int) -> str:
        return "ab"[i // 3 % 2]

    _ask(
        engine,
        topics,
        rng,
        180,
        lambda _, i: {"parameters": {"model": model(i)}},
        lambda topic, i: 0.9 if model(i) == "abb"[topic] else 0.2,
    )
    _cycle(module_url, engine)
    asked = block.replace("$1", "'[0.1, 0.9, 0.2]'")
    statements = [statement for statement in asked.split(";") if statement.strip()]
    assert len(statements) == 11
    for statement in statements:
        assert connection.execute(statement).fetchall(), statement  # type: ignore[arg-type]
