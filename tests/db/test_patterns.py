"""Loop B: outcomes become patterns that keep their identity, and every outcome counts once, whoever dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from sona_pg import DimensionMismatch, InvalidInput, PermissionDenied, SonaEngine, SpaceConfig, StoreConfig
from sona_pg.config import BackgroundConfig, PatternConfig, VerdictConfig, WorkerConfig
from sona_pg.loops import background
from sona_pg.loops.background import BACKGROUND, background_loop
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.cycle import Loop
from sona_pg.steps import CYCLE, ENV_KILL_AT
from sona_pg.store.connection import Connection, connect, translated
from sona_pg.store.database import Database
from sona_pg.store.runs import Run
from sona_pg.types import Json

from .cycles import run_cycle

DIM = 16
TOPICS = 4
SMALL = background_loop(BackgroundConfig(minimum=1))

Vector = NDArray[np.float32]


@pytest.fixture(scope="module")
def patterns_url(make_database: Callable[[], str]) -> str:
    from sona_pg.store.migrate import migrate

    made = make_database()
    migrate(made)
    return made


@pytest.fixture
def connection(patterns_url: str) -> Iterator[Connection]:
    with connect(patterns_url) as opened:
        yield opened
        # A loop runs in every space: what a test leaves is not the next one's.
        for (name,) in opened.execute("SELECT name FROM sona.space").fetchall():
            opened.execute("SELECT sona.drop_space(%s)", (name,))


@pytest.fixture
def open_engine(patterns_url: str, connection: Connection) -> Iterator[Callable[..., SonaEngine]]:
    made: list[SonaEngine] = []

    def make(name: str, dim: int = DIM) -> SonaEngine:
        made.append(
            SonaEngine.connect(
                patterns_url, space=name, dim=dim, background=False, space_config=SpaceConfig(control_share=0.0)
            )
        )
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def engine(open_engine: Callable[..., SonaEngine], space_name: str) -> SonaEngine:
    return open_engine(space_name)


@pytest.fixture
def topics(rng: np.random.Generator) -> Vector:
    return _topics(rng, DIM)


def _topics(rng: np.random.Generator, dim: int) -> Vector:
    made, _ = np.linalg.qr(rng.standard_normal((dim, TOPICS)))
    return np.ascontiguousarray(made.T, dtype=np.float32)


def _ask(
    engine: SonaEngine,
    topics: Vector,
    rng: np.random.Generator,
    n: int,
    metadata: Callable[[int, int], Any] = lambda topic, i: {},
    quality: Callable[[int, int], float] = lambda topic, i: 0.5 + topic / 10,
    user: str | None = None,
) -> list[Any]:
    """Queries about the topics in turn, judged."""
    ids = []
    for i in range(n):
        topic = i % len(topics)
        query = topics[topic] + 0.02 * rng.standard_normal(topics.shape[1]).astype(np.float32)
        ids.append(engine.record(query, ["1"], quality=quality(topic, i), metadata=metadata(topic, i), user_id=user))
    engine.flush()
    return ids


def _cycle(
    url: str, engine: SonaEngine, loop: Loop = SMALL, store: StoreConfig | None = None
) -> tuple[str, dict[str, Any], str | None]:
    return run_cycle(url, engine.space.name, loop, store)


def _patterns(
    connection: Connection, engine: SonaEngine, columns: str = "pattern_id, cluster_size, support"
) -> list[tuple[Any, ...]]:
    return connection.execute(
        f"SELECT {columns} FROM sona.patterns WHERE space = %s ORDER BY pattern_id", (engine.space.name,)
    ).fetchall()


def _verdicts(connection: Connection, engine: SonaEngine) -> dict[tuple[int, str, Any], int]:
    rows = connection.execute(
        "SELECT pattern_id, parameter, value, support FROM sona.verdicts WHERE space = %s", (engine.space.name,)
    ).fetchall()
    return {(id, parameter, value): support for id, parameter, value, support in rows}


def _nearest(connection: Connection, engine: SonaEngine, query: Vector) -> int:
    row = connection.execute("SELECT pattern_id FROM sona.find_patterns(%s, %s, 1)", (engine.space.name, query))
    return int(row.fetchall()[0][0])


def test_outcomes_become_patterns(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics, rng, 80)
    state, facts, _ = _cycle(patterns_url, engine)
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
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics, rng, 80)
    _cycle(patterns_url, engine)
    were = {topic: _nearest(connection, engine, centre) for topic, centre in enumerate(topics)}
    assert sorted(were.values()) == list(range(1, TOPICS + 1))
    for more in range(1, 4):
        _ask(engine, topics, rng, 40)
        _, facts, _ = _cycle(patterns_url, engine)
        assert (facts["new"], facts["created"], facts["changed"]) == (40, 0, TOPICS)
        assert {topic: _nearest(connection, engine, centre) for topic, centre in enumerate(topics)} == were
        assert _patterns(connection, engine) == [(id, 20 + 10 * more, 20 + 10 * more) for id in sorted(were.values())]
    events = connection.execute(
        "SELECT event, count(*), max(support) FROM sona.pattern_events WHERE space = %s GROUP BY 1 ORDER BY 1",
        (engine.space.name,),
    ).fetchall()
    assert events == [("changed", 3 * TOPICS, 50), ("created", TOPICS, 20)]


def test_a_parameter_that_works_is_proven(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    def metadata(topic: int, i: int) -> dict[str, Json]:
        return {"parameters": {"model": "ab"[i // TOPICS % 2]}, "precision": 0.25, "recall": 0.75}

    def quality(topic: int, i: int) -> float:
        return 0.8 if i // TOPICS % 2 == topic % 2 else 0.4  # a for even topics, b for odd ones

    for _ in range(2):
        _ask(engine, topics, rng, 240, metadata, quality)
        _cycle(patterns_url, engine)
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
    patterns_url: str, engine: SonaEngine, topics: Vector, rng: np.random.Generator
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
    _cycle(patterns_url, engine)
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
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics, rng, 37)
    assert _cycle(patterns_url, engine, BACKGROUND)[::2] == ("skipped", "37 of 100 new trajectories with an outcome")
    assert _patterns(connection, engine) == []
    _ask(engine, topics, rng, 63)
    state, facts, _ = _cycle(patterns_url, engine, BACKGROUND)
    assert (state, facts["new"]) == ("done", 100)
    assert _cycle(patterns_url, engine, BACKGROUND)[::2] == ("skipped", "0 of 100 new trajectories with an outcome")


def test_before_anything_is_judged_queries_alone_make_patterns_of_which_nothing_is_known(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    ids = [engine.record(topics[i % TOPICS], ["1"], metadata={"parameters": {"model": "a"}}) for i in range(80)]
    engine.flush()
    _, _, reason = _cycle(patterns_url, engine, BACKGROUND)
    assert reason == "80 of 100 new trajectories, none of them judged"
    ids += [engine.record(topics[i % TOPICS], ["1"], metadata={"parameters": {"model": "a"}}) for i in range(20)]
    engine.flush()
    assert _cycle(patterns_url, engine, BACKGROUND)[1]["created"] == TOPICS
    unknown = PatternConfig().prior_quality
    assert (
        _patterns(connection, engine, "cluster_size, support, avg_quality, confidence")
        == [(25, 0, unknown, 0.0)] * TOPICS
    )
    assert engine.optimized_params(topics[0], {"model": "b"})["model"].value == "b"
    assert _cycle(patterns_url, engine)[0] == "skipped"
    # The first outcomes are of the same patterns, and all that is known of them.
    for id in ids[:40]:
        engine.score(id, 1.0)
    engine.flush()
    _, facts, _ = _cycle(patterns_url, engine)
    assert (facts["new"], facts["created"], facts["patterns"]) == (40, 0, TOPICS)
    assert _patterns(connection, engine, "support, avg_quality") == [(10, 1.0)] * TOPICS


def test_what_has_no_outcome_is_no_news_until_it_has(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector
) -> None:
    _ask(engine, topics[1:2], np.random.default_rng(0), 5)
    assert _cycle(patterns_url, engine)[1]["new"] == 5
    ids = [engine.record(topics[0], ["1"]) for _ in range(10)]
    engine.flush()
    assert _cycle(patterns_url, engine)[0] == "skipped"
    for id in ids:
        engine.score(id, 0.25)
    engine.flush()
    assert _cycle(patterns_url, engine)[1]["new"] == 10
    assert _patterns(connection, engine, "support, avg_quality") == [(5, 0.5), (10, 0.25)]
    # A correction changes what the pattern is worth, and counts no second time.
    for id in ids:
        engine.score(id, 0.75)
    engine.record(topics[0], ["1"], quality=0.75)
    engine.flush()
    assert _cycle(patterns_url, engine)[1]["new"] == 1
    assert _patterns(connection, engine, "support, avg_quality") == [(5, 0.5), (11, 0.75)]


def test_what_belongs_to_no_pattern_waits_and_counts_once(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    used = {"parameters": {"model": "a"}}
    _ask(engine, topics[:1], rng, 40, lambda *_: used)
    _ask(engine, topics[1:2], rng, 3, lambda *_: used)
    _, facts, _ = _cycle(patterns_url, engine)
    assert (facts["waiting"], facts["patterns"]) == (3, 1)
    _ask(engine, topics[1:2], rng, 3, lambda *_: used)
    _, facts, _ = _cycle(patterns_url, engine)
    assert (facts["new"], facts["waiting"], facts["created"]) == (3, 0, 1)
    assert _verdicts(connection, engine) == {(1, "model", "a"): 40, (2, "model", "a"): 6}


def test_near_duplicates_become_one_and_what_is_bad_and_old_goes(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    used = {"parameters": {"model": "a"}}
    _ask(engine, topics, rng, 80, lambda *_: used, lambda topic, _: 0.1 if topic == 3 else 0.9)
    _cycle(patterns_url, engine)
    bad, kept = _nearest(connection, engine, topics[3]), _nearest(connection, engine, topics[0])
    # A second one of the same kind, as if it had come from elsewhere; and the bad one is from long ago.
    connection.execute(
        "INSERT INTO sona.pattern SELECT space_id, 99, centroid, 10, 10, 0.9, 0.5, 10, best_strategy, title,"
        " description, content, created_at, updated_at, decayed_at FROM sona.pattern WHERE pattern_id = %s",
        (kept,),
    )
    connection.execute(
        "INSERT INTO sona.verdict SELECT space_id, 99, parameter, state, evidence FROM sona.verdict"
        " WHERE pattern_id = %s",
        (kept,),
    )
    connection.execute("UPDATE sona.pattern_state SET last_id = 99")
    connection.execute(
        "UPDATE sona.pattern SET created_at = now() - interval '60 days', updated_at = now() - interval '60 days'"
        " WHERE pattern_id = %s",
        (bad,),
    )
    _ask(engine, topics[:3], rng, 30, lambda *_: used)
    _, facts, _ = _cycle(patterns_url, engine)
    assert (facts["merged"], facts["pruned"]) == (1, 1)
    left = [id for (id,) in _patterns(connection, engine, "pattern_id")]
    assert left == sorted({1, 2, 3, 4} - {bad})
    assert _verdicts(connection, engine)[kept, "model", "a"] == 20 + 20 + 10
    events = connection.execute(
        "SELECT pattern_id, event, into_id FROM sona.pattern_events WHERE space = %s AND event IN ('merged', 'pruned')"
        " ORDER BY event",
        (engine.space.name,),
    ).fetchall()
    assert events == [(99, "merged", kept), (bad, "pruned", None)]
    assert {id for id, _, _ in _verdicts(connection, engine)} == set(left)


def test_text_is_kept_by_cycles_and_taken_over_by_what_it_is_merged_into(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics, rng, 40)
    _cycle(patterns_url, engine)
    name = engine.space.name
    connection.execute("SELECT sona.describe_pattern(%s, 1, 'one', description => 'the first')", (name,))
    connection.execute("SELECT sona.describe_pattern(%s, 2, content => 'to be read')", (name,))
    connection.execute(
        "INSERT INTO sona.pattern SELECT space_id, 99, centroid, 10, 10, 0.9, 0.5, 10, best_strategy, 'another',"
        " NULL, 'its own', created_at, updated_at, decayed_at FROM sona.pattern WHERE pattern_id = 1",
    )
    connection.execute("UPDATE sona.pattern_state SET last_id = 99")
    _ask(engine, topics, rng, 40)
    assert _cycle(patterns_url, engine)[1]["merged"] == 1
    texts = "title, description, content"
    assert _patterns(connection, engine, texts)[:3] == [
        ("one", "the first", "its own"),
        (None, None, "to be read"),
        (None, None, None),
    ]
    connection.execute("SELECT sona.describe_pattern(%s, 1, '', 'changed')", (name,))
    ((centre,),) = connection.execute("SELECT centroid FROM sona.pattern WHERE pattern_id = 1").fetchall()
    ((nearest, _),) = engine.find_patterns(centre, 1)
    assert (nearest.id, nearest.title, nearest.description, nearest.content) == (1, None, "changed", "its own")
    with pytest.raises(InvalidInput, match="no pattern 99"), translated():
        connection.execute("SELECT sona.describe_pattern(%s, 99, 'gone')", (name,))
    with pytest.raises(InvalidInput, match="too long"), translated():
        connection.execute("SELECT sona.describe_pattern(%s, 1, repeat('x', 1001))", (name,))


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
    patterns_url: str,
    connection: Connection,
    engine: SonaEngine,
    topics: Vector,
    rng: np.random.Generator,
) -> None:
    _ask(engine, topics[:1], rng, 10, lambda *_: metadata)
    state, facts, _ = _cycle(patterns_url, engine)
    assert (state, facts["unusable_parameters"], facts["patterns"]) == ("done", 10, 1)
    assert _patterns(connection, engine, "support") == [(10,)]


def test_memory_is_bounded_by_the_newest(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    loop = background_loop(BackgroundConfig(minimum=1, max_trajectories=40))
    _ask(engine, topics, rng, 80)
    _, facts, _ = _cycle(patterns_url, engine, loop)
    assert (facts["trajectories"], facts["new"]) == (40, 40)
    _ask(engine, topics, rng, 20)
    _, facts, _ = _cycle(patterns_url, engine, loop)
    assert (facts["trajectories"], facts["new"]) == (40, 20)
    assert _patterns(connection, engine) == [(id, 10, 15) for id in range(1, TOPICS + 1)]


def test_a_space_of_another_dimension(
    patterns_url: str, connection: Connection, open_engine: Callable[..., SonaEngine], space_name: str
) -> None:
    rng = np.random.default_rng(3)
    small, large = open_engine(f"{space_name}_5", 5), open_engine(f"{space_name}_300", 300)
    for engine in (small, large):
        _ask(engine, _topics(rng, engine.space.dim), rng, 40)
        assert _cycle(patterns_url, engine)[0] == "done"
    assert len(_patterns(connection, large)) == TOPICS
    assert 1 <= len(_patterns(connection, small)) <= TOPICS
    connection.execute("SELECT sona.drop_space(%s)", (small.space.name,))
    ((left,),) = connection.execute("SELECT count(DISTINCT space_id) FROM sona.pattern").fetchall()
    assert left == 1


def test_retention_takes_nothing_from_patterns(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    used = {"parameters": {"model": "a"}}
    _ask(engine, topics, rng, 80, lambda *_: used)
    _cycle(patterns_url, engine)
    _ask(engine, topics, rng, 20, lambda *_: used)
    connection.execute(
        "UPDATE sona.trajectory SET created_at = now() - interval '90 days' WHERE trajectory_id IN"
        " (SELECT trajectory_id FROM sona.answer_outcome WHERE ordinal < 60)"
    )
    connection.execute("SELECT sona.set_retention(%s, '30 days')", (engine.space.name,))
    while connection.execute("SELECT sona.apply_retention(%s)", (engine.space.name,)).fetchall()[0][0]:
        pass
    _, facts, _ = _cycle(patterns_url, engine)
    assert (facts["trajectories"], facts["new"], facts["created"]) == (40, 20, 0)
    assert _patterns(connection, engine) == [(id, 10, 25) for id in range(1, TOPICS + 1)]
    assert sum(_verdicts(connection, engine).values()) == 100


def test_who_is_forgotten_is_in_no_pattern(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics[:1], rng, 20, lambda *_: {"parameters": {"model": "bob's"}}, user="bob")
    _ask(engine, topics[:2], rng, 40, lambda *_: {"parameters": {"model": "ann's"}}, user="ann")
    _cycle(patterns_url, engine)
    ids = [id for (id,) in _patterns(connection, engine, "pattern_id")]
    report = engine.forget("ann")
    assert report.patterns == len(ids) == 2
    assert _patterns(connection, engine) == []
    assert _verdicts(connection, engine) == {}
    _, facts, _ = _cycle(patterns_url, engine)
    assert facts["new"] == 20
    assert _patterns(connection, engine) == [(3, 20, 20)], "no id is given twice"
    assert _verdicts(connection, engine) == {(3, "model", "bob's"): 20}
    # One whom no cycle has seen yet leaves the patterns as they are.
    _ask(engine, topics[1:2], rng, 10, user="eve")
    assert engine.forget("eve").patterns == 0
    assert _patterns(connection, engine) == [(3, 20, 20)]


def test_a_cycle_that_read_before_somebody_was_forgotten_writes_nothing(
    patterns_url: str,
    connection: Connection,
    engine: SonaEngine,
    topics: Vector,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _ask(engine, topics[:1], rng, 20, user="bob")
    _ask(engine, topics[1:2], rng, 20, user="ann")
    before = background.write_advance
    calls: list[int] = []

    def late(connection: Connection, run: Run, *rest: object) -> None:
        if not calls:
            calls.append(1)
            with connect(patterns_url) as other:
                # As the transaction that forgets does; it needs no lock that the cycle has.
                other.execute("INSERT INTO sona.pattern_state (space_id, generation) VALUES (%s, 1)",
                              (engine.space.space_id,))  # fmt: skip
        before(connection, run, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(background, "write_advance", late)
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (engine.space.name,))
    coordinator = LoopCoordinator(Database(patterns_url, StoreConfig()), SMALL, WorkerConfig())
    assert coordinator.step() == 0
    assert _patterns(connection, engine) == []
    assert coordinator.step() == 1
    coordinator.close()
    assert _patterns(connection, engine) == [(1, 20, 20), (2, 20, 20)]


def test_roles(
    patterns_url: str,
    connection: Connection,
    engine: SonaEngine,
    topics: Vector,
    rng: np.random.Generator,
    role: Callable[..., str],
) -> None:
    _ask(engine, topics, rng, 40, lambda *_: {"parameters": {"model": "a"}})
    worker, reader = role("weaver", "sona_worker"), role("onlooker", "sona_reader")
    url = psycopg.conninfo.make_conninfo(patterns_url, user=worker)
    connection.execute("SELECT sona.grant_space(%s, %s)", (engine.space.name, worker))
    assert _cycle(url, engine)[0] == "done"
    with connect(psycopg.conninfo.make_conninfo(patterns_url, user=reader)) as onlooker:
        assert _patterns(onlooker, engine) == []
        connection.execute("SELECT sona.grant_space(%s, %s, false)", (engine.space.name, reader))
        assert len(_patterns(onlooker, engine)) == TOPICS
        assert _nearest(onlooker, engine, topics[0])
        rows = onlooker.execute("SELECT value FROM sona.get_verdict(%s, 1)", (engine.space.name,)).fetchall()
        assert rows == [("a",)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            onlooker.execute("DELETE FROM sona.pattern")
    coordinator = LoopCoordinator(
        Database(psycopg.conninfo.make_conninfo(patterns_url, user=reader), StoreConfig()), SMALL, WorkerConfig()
    )
    with pytest.raises(PermissionDenied):
        coordinator.step()
    coordinator.close()


@pytest.mark.parametrize("step", CYCLE)
def test_nothing_is_lost_and_nothing_counts_twice_whoever_dies(
    step: str,
    patterns_url: str,
    connection: Connection,
    engine: SonaEngine,
    topics: Vector,
    rng: np.random.Generator,
) -> None:
    used = {"parameters": {"model": "a"}}
    _ask(engine, topics, rng, 80, lambda *_: used)
    _cycle(patterns_url, engine)
    _ask(engine, topics, rng, 120, lambda *_: used)
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (engine.space.name,))
    worker = [sys.executable, "-m", "sona_pg", "worker", "background", "--once", "--url", patterns_url]
    killed = subprocess.run(worker, env={**os.environ, ENV_KILL_AT: step}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = subprocess.run(worker, capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr
    states = connection.execute("SELECT state FROM sona.runs WHERE space = %s", (engine.space.name,)).fetchall()
    assert states == [("done",)] * 2
    assert _patterns(connection, engine) == [(id, 50, 50) for id in range(1, TOPICS + 1)]
    assert set(_verdicts(connection, engine).values()) == {50}


def test_a_cycle_adds_up_what_was_counted_and_keeps_what_was_counted_meanwhile(
    patterns_url: str,
    connection: Connection,
    engine: SonaEngine,
    topics: Vector,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _ask(engine, topics, rng, 80)
    _cycle(patterns_url, engine)
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
        with connect(patterns_url) as other:
            other.execute(count, (space_id, [kept, 99], [10, 20]))
        before(connection, run, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(background, "write_advance", late)
    _ask(engine, topics, rng, 40)
    assert _cycle(patterns_url, engine)[1]["merged"] == 1
    counts = dict(_patterns(connection, engine, "pattern_id, access_count"))
    assert counts == {id: 35 if id == kept else 0 for id in (1, 2, 3, 4)}
    left = connection.execute("SELECT pattern_id FROM sona.pattern_access WHERE space_id = %s", (space_id,)).fetchall()
    assert left == [(kept,)], "what is gone leaves no count"


def test_what_is_bad_and_old_stays_while_it_is_used(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics, rng, 80, quality=lambda *_: 0.1)
    _cycle(patterns_url, engine)
    long_ago = "now() - interval '60 days'"
    connection.execute(f"UPDATE sona.pattern SET created_at = {long_ago}, updated_at = {long_ago}")
    often, lately, unused, fed = (_nearest(connection, engine, topic) for topic in topics)
    connection.execute("SELECT sona._count_accesses(%s, %s, '{5,1}')", (engine.space.space_id, [often, lately]))
    connection.execute(f"UPDATE sona.pattern_access SET last_accessed = {long_ago} WHERE pattern_id = %s", (often,))
    loop = background_loop(BackgroundConfig(minimum=1, max_trajectories=20))
    _ask(engine, topics[3:], rng, 20, quality=lambda *_: 0.1)
    assert _cycle(patterns_url, engine, loop)[1]["pruned"] == 1
    assert [id for (id,) in _patterns(connection, engine, "pattern_id")] == sorted({often, lately, fed})
    assert unused not in (often, lately, fed)


def test_other_settings_recommend_anew_without_news(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    def metadata(topic: int, i: int) -> dict[str, Json]:
        return {"parameters": {"model": "ab"[i // TOPICS % 2]}}

    _ask(engine, topics, rng, 240, metadata, lambda topic, i: 0.8 if i // TOPICS % 2 == topic % 2 else 0.4)
    _cycle(patterns_url, engine)
    in_sql = "SELECT value, source[1] FROM sona.optimized_params(%s, %s) WHERE parameter = 'model'"
    for topic, centre in enumerate(topics):
        rows = connection.execute(in_sql, (engine.space.name, centre)).fetchall()
        assert rows == [("ab"[topic % 2], _nearest(connection, engine, centre))]
    assert _cycle(patterns_url, engine, BACKGROUND)[0] == "skipped"
    careful = background_loop(verdicts=VerdictConfig(min_support=1000))
    state, facts, _ = _cycle(patterns_url, engine, careful)
    assert (state, facts["new"]) == ("done", 0)
    assert connection.execute(in_sql, (engine.space.name, topics[0])).fetchall() == [(None, None)]
    assert engine.optimized_params(topics[0])["model"].source == ()
    assert _cycle(patterns_url, engine, careful)[0] == "skipped"


def test_levels_and_children_are_kept(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics, rng, 80)
    _cycle(patterns_url, engine)
    assert _patterns(connection, engine, "abstraction_level, children") == [(0, [])] * TOPICS
    kept = _nearest(connection, engine, topics[0])
    # A pattern of patterns, and a second one of the first topic that will be merged into it.
    connection.execute(
        "INSERT INTO sona.pattern (space_id, pattern_id, centroid, cluster_size, total_weight, avg_quality, confidence,"
        " support, abstraction_level, children) SELECT space_id, g.id, CASE g.level WHEN 0 THEN centroid ELSE"
        " l2_normalize(centroid + %s) END, 10, 10, 0.9, 0.5, 10, g.level, g.children FROM sona.pattern,"
        " (VALUES (98, 0, '{}'::bigint[]), (99, 1, ARRAY[98, 2])) g (id, level, children) WHERE pattern_id = %s",
        (topics[1], kept),
    )
    connection.execute("UPDATE sona.pattern_state SET last_id = 99")
    _ask(engine, topics, rng, 40)
    assert _cycle(patterns_url, engine)[1]["merged"] == 1
    assert _patterns(connection, engine, "pattern_id, abstraction_level, children")[-1] == (99, 1, [kept, 2])
    found = {pattern.id: pattern for pattern, _ in engine.find_patterns(topics[0], 5)}
    assert (found[99].abstraction_level, found[99].children) == (1, (kept, 2))


def test_a_cycle_makes_the_index_and_forgetting_drops_it(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    store = StoreConfig(exact_search_rows=TOPICS - 1)
    has_index = "SELECT sona._vectors_index('pattern', %s) IS NOT NULL"
    for topic, made in ((topics[:3], False), (topics, True), (topics, False)):
        _ask(engine, topic, rng, 40, user="ann")
        assert _cycle(patterns_url, engine, store=store)[1]["indexed"] is made
    assert connection.execute(has_index, (engine.space.space_id,)).fetchall() == [(True,)]
    _ask(engine, topics[:1], rng, 5, user="eve")
    assert engine.forget("eve").patterns == 0
    assert connection.execute(has_index, (engine.space.space_id,)).fetchall() == [(True,)]
    assert engine.forget("ann").patterns == TOPICS
    assert connection.execute(has_index, (engine.space.space_id,)).fetchall() == [(False,)]
    counted = connection.execute(
        "SELECT count(*) FROM sona.pattern_access WHERE space_id = %s", (engine.space.space_id,)
    )
    assert counted.fetchall() == [(0,)]


def test_decayed_weight_is_not_written_for_nothing(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    loop = background_loop(BackgroundConfig(minimum=1, max_trajectories=40), PatternConfig(half_life_seconds=3600.0))
    _ask(engine, topics, rng, 40)
    _cycle(patterns_url, engine, loop)
    connection.execute("UPDATE sona.pattern SET decayed_at = decayed_at - interval '1 hour'")
    _ask(engine, topics[:2], rng, 40)  # the others have left the window
    _, facts, _ = _cycle(patterns_url, engine, loop)
    assert facts["changed"] == 2
    weights = [weight for (weight,) in _patterns(connection, engine, "round(total_weight)")]
    assert sorted(weights) == [10, 10, 25, 25]


def test_evidence_of_many_kinds_of_values(
    patterns_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    values = [1, 1.5, True, None, "x", [1, 2], {"a": 1}]
    _ask(engine, topics[:1], rng, 70, lambda _, i: {"parameters": {"é": values[i % 7]}})
    _cycle(patterns_url, engine)
    rows = connection.execute("SELECT value, support FROM sona.get_verdict(%s, 1)", (engine.space.name,)).fetchall()
    assert len(rows) == 7
    assert {support for _, support in rows} == {10}
    found = connection.execute(
        "SELECT count(*) FROM sona.verdicts WHERE space = %s AND value = %s", (engine.space.name, Jsonb({"a": 1}))
    ).fetchall()
    assert found == [(1,)]


def test_the_queries_of_the_page_run(
    patterns_url: str,
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
    _cycle(patterns_url, engine)
    asked = block.replace("$1", "'[0.1, 0.9, 0.2]'")
    statements = [statement for statement in asked.split(";") if statement.strip()]
    assert len(statements) == 11
    for statement in statements:
        assert connection.execute(statement).fetchall(), statement  # type: ignore[arg-type]
