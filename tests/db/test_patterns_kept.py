"""What becomes of patterns: merged, bounded, forgotten, indexed, kept while they are used, and for whom."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import psycopg
import pytest

from sona_pg import InvalidInput, PermissionDenied, SonaEngine, StoreConfig
from sona_pg.config import BackgroundConfig, PatternConfig, WorkerConfig
from sona_pg.loops import background
from sona_pg.loops.background import background_loop
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.store.connection import Connection, connect, translated
from sona_pg.store.database import Database
from sona_pg.store.runs import Run

from .topics import SMALL, TOPICS, Vector, _ask, _cycle, _nearest, _patterns, _topics, _verdicts
from .topics import connection as connection
from .topics import engine as engine
from .topics import open_engine as open_engine
from .topics import topics as topics


def test_near_duplicates_become_one_and_what_is_bad_and_old_goes(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    used = {"parameters": {"model": "a"}}
    _ask(engine, topics, rng, 80, lambda *_: used, lambda topic, _: 0.1 if topic == 3 else 0.9)
    _cycle(module_url, engine)
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
    _, facts, _ = _cycle(module_url, engine)
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
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics, rng, 40)
    _cycle(module_url, engine)
    name = engine.space.name
    connection.execute("SELECT sona.describe_pattern(%s, 1, 'one', description => 'the first')", (name,))
    connection.execute("SELECT sona.describe_pattern(%s, 2, content => 'to be read')", (name,))
    connection.execute(
        "INSERT INTO sona.pattern SELECT space_id, 99, centroid, 10, 10, 0.9, 0.5, 10, best_strategy, 'another',"
        " NULL, 'its own', created_at, updated_at, decayed_at FROM sona.pattern WHERE pattern_id = 1",
    )
    connection.execute("UPDATE sona.pattern_state SET last_id = 99")
    _ask(engine, topics, rng, 40)
    assert _cycle(module_url, engine)[1]["merged"] == 1
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


def test_memory_is_bounded_by_the_newest(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    loop = background_loop(BackgroundConfig(minimum=1, max_trajectories=40))
    _ask(engine, topics, rng, 80)
    _, facts, _ = _cycle(module_url, engine, loop)
    assert (facts["trajectories"], facts["new"]) == (40, 40)
    _ask(engine, topics, rng, 20)
    _, facts, _ = _cycle(module_url, engine, loop)
    assert (facts["trajectories"], facts["new"]) == (40, 20)
    assert _patterns(connection, engine) == [(id, 10, 15) for id in range(1, TOPICS + 1)]


def test_a_space_of_another_dimension(
    module_url: str, connection: Connection, open_engine: Callable[..., SonaEngine], space_name: str
) -> None:
    rng = np.random.default_rng(3)
    small, large = open_engine(f"{space_name}_5", 5), open_engine(f"{space_name}_300", 300)
    for opened in (small, large):
        _ask(opened, _topics(rng, opened.space.dim), rng, 40)
        assert _cycle(module_url, opened)[0] == "done"
    assert len(_patterns(connection, large)) == TOPICS
    assert 1 <= len(_patterns(connection, small)) <= TOPICS
    connection.execute("SELECT sona.drop_space(%s)", (small.space.name,))
    ((left,),) = connection.execute("SELECT count(DISTINCT space_id) FROM sona.pattern").fetchall()
    assert left == 1


def test_retention_takes_nothing_from_patterns(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    used = {"parameters": {"model": "a"}}
    _ask(engine, topics, rng, 80, lambda *_: used)
    _cycle(module_url, engine)
    _ask(engine, topics, rng, 20, lambda *_: used)
    connection.execute(
        "UPDATE sona.trajectory SET created_at = now() - interval '90 days' WHERE trajectory_id IN"
        " (SELECT trajectory_id FROM sona.answer_outcome WHERE ordinal < 60)"
    )
    connection.execute("SELECT sona.set_retention(%s, '30 days')", (engine.space.name,))
    while connection.execute("SELECT sona.apply_retention(%s)", (engine.space.name,)).fetchall()[0][0]:
        pass
    _, facts, _ = _cycle(module_url, engine)
    assert (facts["trajectories"], facts["new"], facts["created"]) == (40, 20, 0)
    assert _patterns(connection, engine) == [(id, 10, 25) for id in range(1, TOPICS + 1)]
    assert sum(_verdicts(connection, engine).values()) == 100


def test_who_is_forgotten_is_in_no_pattern(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics[:1], rng, 20, lambda *_: {"parameters": {"model": "bob's"}}, user="bob")
    _ask(engine, topics[:2], rng, 40, lambda *_: {"parameters": {"model": "ann's"}}, user="ann")
    _cycle(module_url, engine)
    ids = [id for (id,) in _patterns(connection, engine, "pattern_id")]
    report = engine.forget("ann")
    assert report.patterns == len(ids) == 2
    assert _patterns(connection, engine) == []
    assert _verdicts(connection, engine) == {}
    _, facts, _ = _cycle(module_url, engine)
    assert facts["new"] == 20
    assert _patterns(connection, engine) == [(3, 20, 20)], "no id is given twice"
    assert _verdicts(connection, engine) == {(3, "model", "bob's"): 20}
    # One whom no cycle has seen yet leaves the patterns as they are.
    _ask(engine, topics[1:2], rng, 10, user="eve")
    assert engine.forget("eve").patterns == 0
    assert _patterns(connection, engine) == [(3, 20, 20)]


def test_a_cycle_that_read_before_somebody_was_forgotten_writes_nothing(
    module_url: str,
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
            with connect(module_url) as other:
                # As the transaction that forgets does; it needs no lock that the cycle has.
                other.execute("INSERT INTO sona.pattern_state (space_id, generation) VALUES (%s, 1)",
                              (engine.space.space_id,))  # fmt: skip
        before(connection, run, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(background, "write_advance", late)
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (engine.space.name,))
    coordinator = LoopCoordinator(Database(module_url, StoreConfig()), SMALL, WorkerConfig())
    assert coordinator.step() == 0
    assert _patterns(connection, engine) == []
    assert coordinator.step() == 1
    coordinator.close()
    assert _patterns(connection, engine) == [(1, 20, 20), (2, 20, 20)]


def test_roles(
    module_url: str,
    connection: Connection,
    engine: SonaEngine,
    topics: Vector,
    rng: np.random.Generator,
    role: Callable[..., str],
) -> None:
    _ask(engine, topics, rng, 40, lambda *_: {"parameters": {"model": "a"}})
    worker, reader = role("weaver", "sona_worker"), role("onlooker", "sona_reader")
    url = psycopg.conninfo.make_conninfo(module_url, user=worker)
    connection.execute("SELECT sona.grant_space(%s, %s)", (engine.space.name, worker))
    assert _cycle(url, engine)[0] == "done"
    with connect(psycopg.conninfo.make_conninfo(module_url, user=reader)) as onlooker:
        assert _patterns(onlooker, engine) == []
        connection.execute("SELECT sona.grant_space(%s, %s, false)", (engine.space.name, reader))
        assert len(_patterns(onlooker, engine)) == TOPICS
        assert _nearest(onlooker, engine, topics[0])
        rows = onlooker.execute("SELECT value FROM sona.get_verdict(%s, 1)", (engine.space.name,)).fetchall()
        assert rows == [("a",)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            onlooker.execute("DELETE FROM sona.pattern")
    coordinator = LoopCoordinator(
        Database(psycopg.conninfo.make_conninfo(module_url, user=reader), StoreConfig()), SMALL, WorkerConfig()
    )
    with pytest.raises(PermissionDenied):
        coordinator.step()
    coordinator.close()


def test_what_is_bad_and_old_stays_while_it_is_used(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics, rng, 80, quality=lambda *_: 0.1)
    _cycle(module_url, engine)
    long_ago = "now() - interval '60 days'"
    connection.execute(f"UPDATE sona.pattern SET created_at = {long_ago}, updated_at = {long_ago}")
    often, lately, unused, fed = (_nearest(connection, engine, topic) for topic in topics)
    connection.execute("SELECT sona._count_accesses(%s, %s, '{5,1}')", (engine.space.space_id, [often, lately]))
    connection.execute(f"UPDATE sona.pattern_access SET last_accessed = {long_ago} WHERE pattern_id = %s", (often,))
    loop = background_loop(BackgroundConfig(minimum=1, max_trajectories=20))
    _ask(engine, topics[3:], rng, 20, quality=lambda *_: 0.1)
    assert _cycle(module_url, engine, loop)[1]["pruned"] == 1
    assert [id for (id,) in _patterns(connection, engine, "pattern_id")] == sorted({often, lately, fed})
    assert unused not in (often, lately, fed)


def test_levels_and_children_are_kept(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    _ask(engine, topics, rng, 80)
    _cycle(module_url, engine)
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
    assert _cycle(module_url, engine)[1]["merged"] == 1
    assert _patterns(connection, engine, "pattern_id, abstraction_level, children")[-1] == (99, 1, [kept, 2])
    found = {pattern.id: pattern for pattern, _ in engine.find_patterns(topics[0], 5)}
    assert (found[99].abstraction_level, found[99].children) == (1, (kept, 2))


def test_a_cycle_makes_the_index_and_forgetting_drops_it(
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    store = StoreConfig(exact_search_rows=TOPICS - 1)
    has_index = "SELECT sona._vectors_index('pattern', %s) IS NOT NULL"
    for topic, made in ((topics[:3], False), (topics, True), (topics, False)):
        _ask(engine, topic, rng, 40, user="ann")
        assert _cycle(module_url, engine, store=store)[1]["indexed"] is made
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
    module_url: str, connection: Connection, engine: SonaEngine, topics: Vector, rng: np.random.Generator
) -> None:
    loop = background_loop(BackgroundConfig(minimum=1, max_trajectories=40), PatternConfig(half_life_seconds=3600.0))
    _ask(engine, topics, rng, 40)
    _cycle(module_url, engine, loop)
    connection.execute("UPDATE sona.pattern SET decayed_at = decayed_at - interval '1 hour'")
    _ask(engine, topics[:2], rng, 40)  # the others have left the window
    _, facts, _ = _cycle(module_url, engine, loop)
    assert facts["changed"] == 2
    weights = [weight for (weight,) in _patterns(connection, engine, "round(total_weight)")]
    assert sorted(weights) == [10, 10, 25, 25]
