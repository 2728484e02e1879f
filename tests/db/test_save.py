"""A space that was saved and loaded in another database answers and learns on as the one that it was taken from."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sona_pg import (
    ConfigError,
    DimensionMismatch,
    EmbedderMismatch,
    FunctionEmbedder,
    InvalidInput,
    SonaEngine,
    StoreConfig,
)
from sona_pg.config import STRATEGIES
from sona_pg.store.connection import connect
from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer

from . import saving
from .command_line import sona
from .saving import DIM, NAME, QUERIES


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database of an older server, with the space."""
    server = EmbeddedServer(tmp_path_factory.mktemp("older"), major=16)
    try:
        url = server.start()
        migrate(url)
        saving.make_items(url)
        saving.build(url, NAME)
        yield url
    finally:
        server.remove()


@pytest.fixture(scope="module")
def file(original: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "space.sona"
    with SonaEngine.connect(original, space=NAME, background=False) as engine:
        report = engine.save(path)
    assert report.bytes == path.stat().st_size
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    # A table that the space fills in no way proves nothing.
    assert [table for table, rows in report.rows.items() if not rows] == []
    return path


@pytest.fixture(scope="module")
def migrated(make_database: Callable[[], str]) -> str:
    """A database of the newer server whose own runs and spaces have other numbers."""
    url = make_database()
    migrate(url)
    saving.make_items(url)
    with connect(url) as connection:
        for number in range(3):
            connection.execute("SELECT sona.create_space(%s, 3)", (f"other {number}",))
            connection.execute("SELECT sona.run_cycle(%s, 'deep')", (f"other {number}",))
        connection.execute("DELETE FROM sona.loop_run WHERE space_id IS NOT NULL")
    return url


def loaded(url: str, file: Path, name: str) -> None:
    with SonaEngine.load(file, url, space=name, background=False) as engine:
        assert engine.loaded is not None
        assert (engine.loaded.space, engine.loaded.items_missing) == (name, None)
        assert engine.loaded.items == "public.doc"
        assert engine.space.name == name


@pytest.fixture(scope="module")
def copy(migrated: str, file: Path) -> str:
    loaded(migrated, file, NAME)
    return migrated


def answers(url: str, name: str) -> Iterator[tuple[object, ...]]:
    """By every strategy what `recall` and `adapt` give for 250 queries, from Python and from SQL."""
    with connect(url) as connection:
        (was,) = connection.execute("SELECT strategy FROM sona.space WHERE name = %s", (name,)).fetchone() or ("",)
        for strategy in STRATEGIES:
            connection.execute("UPDATE sona.space SET strategy = %s WHERE name = %s", (strategy, name))
            with SonaEngine.connect(url, space=name, background=False) as engine:
                for query, found in zip(QUERIES, engine.recall_batch(QUERIES, 10), strict=True):
                    rows = connection.execute(
                        "SELECT item_id, rank, score, arm, version, strategy, propensity"
                        " FROM sona.recall(%s, %s, 10) ORDER BY rank",
                        (name, query),
                    ).fetchall()
                    (adapted,) = connection.execute(
                        "SELECT sona.adapt(%s, %s)", (name, query), binary=True
                    ).fetchone() or (np.zeros(0),)
                    yield strategy, found.items, found.answer, engine.adapt(query).tobytes(), rows, adapted.tobytes()
        connection.execute("UPDATE sona.space SET strategy = %s WHERE name = %s", (was, name))


def test_every_row_is_there_as_it_was(original: str, copy: str) -> None:
    before, after = saving.rows_of(original, NAME), saving.rows_of(copy, NAME)
    assert {table for table in before if before[table] != after[table]} == set()


def test_every_strategy_answers_the_same_bits(original: str, copy: str) -> None:
    expected = list(answers(original, NAME))
    assert expected == list(answers(copy, NAME))
    assert len({str(answer[1]) for answer in expected}) > 2 * len(QUERIES), "strategies that answer alike prove nothing"


def test_patterns_parameters_and_reasons_are_the_same(original: str, copy: str) -> None:
    found = []
    for url in (original, copy):
        with SonaEngine.connect(url, space=NAME, background=False) as engine:
            known = [
                part
                for query in QUERIES[:20]
                for part in (*map(repr, engine.find_patterns(query)), engine.optimized_params(query, {"model": "b"}))
            ]
            reasons = [engine.why(uuid.UUID(int=number)) for number in (1, 5, 60, 1001)]
            found.append([*known, *reasons, *engine.versions()])
    assert len(found[0]) > 60
    for before, after in zip(*found, strict=True):
        assert before == after


def test_it_learns_on_as_it_would_have(original: str, migrated: str, file: Path) -> None:
    # Of its own, so that the copies of other tests stay as they are.
    for url in (original, migrated):
        loaded(url, file, "learns")
        with SonaEngine.connect(url, space="learns", background=False) as engine:
            before = engine.metrics
            saving.record(engine, 5000, 60)
            engine.flush()
            assert engine.metrics.flushed - before.flushed >= 60
            assert engine.metrics.refused == 0
        saving.run_cycles(url, "learns")
    first, second = (learned(url, "learns") for url in (original, migrated))
    assert [what for what in first if first[what] != second[what]] == []
    with connect(migrated) as connection:
        states = connection.execute(
            "SELECT loop, state FROM sona.runs WHERE space = 'learns' ORDER BY run_id DESC LIMIT 2"
        ).fetchall()
    assert sorted(states) == [("background", "done"), ("deep", "done")], "what was loaded comes before what is new"


def learned(url: str, name: str) -> dict[str, list[tuple[object, ...]]]:
    """What must not depend on the clock, nor on the machine."""
    with connect(url) as connection:
        return {
            what: connection.execute(statement, (name,)).fetchall()
            for what, statement in {
                "learner": "SELECT l.epoch, l.revision, l.version, l.events, l.ordinal, l.state FROM sona.learner l"
                " JOIN sona.space s USING (space_id) WHERE s.name = %s",
                "strategist": "SELECT g.ordinal, g.events, g.in_force, g.is_sane, g.known, g.strange, g.unseen,"
                " g.weights, g.state, g.evidence FROM sona.strategist g JOIN sona.space s USING (space_id)"
                " WHERE s.name = %s",
                "served": "SELECT w.tier, w.ordinal, w.down::text, w.up::text FROM sona.served_row w"
                " JOIN sona.space s USING (space_id) WHERE s.name = %s ORDER BY 1, 2",
                "patterns": "SELECT p.pattern_id, p.centroid::text, p.cluster_size, p.support, p.avg_quality"
                " FROM sona.pattern p JOIN sona.space s USING (space_id) WHERE s.name = %s ORDER BY 1",
                "base": "SELECT b.consumed, b.judged, b.learned, b.version, b.reservoir, b.state FROM sona.base_state b"
                " JOIN sona.space s USING (space_id) WHERE s.name = %s",
                "edges": "SELECT e.kind, e.source, e.target FROM sona.memory_edge e JOIN sona.space s USING (space_id)"
                " WHERE s.name = %s AND e.kind IN ('co_access', 'pattern', 'hierarchy') ORDER BY 1, 2, 3",
            }.items()
        }


def test_every_version_is_a_way_back(original: str, migrated: str, file: Path) -> None:
    found = []
    for url in (original, migrated):
        loaded(url, file, "goes back")
        with SonaEngine.connect(url, space="goes back", background=False) as engine, connect(url) as connection:
            numbers = [version.version for version in engine.versions()]
            assert len(numbers) >= 2
            maps = []
            for number in [*numbers, "rollback", "frozen", "latest"]:
                engine.deploy(number)
                connection.execute("UPDATE sona.space SET strategy = 'adapted' WHERE name = 'goes back'")
                maps += [
                    connection.execute("SELECT sona.adapt('goes back', %s)::text", (query,)).fetchone()
                    for query in QUERIES[:5]
                ]
            found.append(maps)
    assert len(set(found[0])) > 5
    assert found[0] == found[1]


def test_a_space_that_was_saved_while_others_wrote_is_of_one_moment(
    migrated: str, make_database: Callable[[], str], tmp_path: Path
) -> None:
    stop, failed = threading.Event(), list[BaseException]()
    name, first = "under load", SonaEngine.connect(migrated, space="under load", dim=DIM)
    first.set_items("public.doc", "id", "embedding")

    def write(number: int) -> None:
        try:
            with SonaEngine.connect(migrated, space=name) as engine:
                while not stop.is_set():
                    saving.record(engine, number, 20)
                    number += 20
                    if number % 100 == 0:
                        engine.flush()
                    if number % 400 == 0:
                        engine.deploy("latest")
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(start,)) for start in (100_000, 200_000)]
    for thread in writers:
        thread.start()
    files = []
    for number in range(4):
        if number:
            stop.wait(0.5)
        saving.record(first, 300_000 + 10 * number, 10)
        first.save(tmp_path / f"{number}")
        files.append(tmp_path / f"{number}")
    stop.set()
    for thread in writers:
        thread.join()
    first.close()
    assert failed == []
    url, seen = make_database(), []
    migrate(url)
    for path in files:
        with SonaEngine.load(path, url, space=path.name, background=False) as engine, connect(url) as connection:
            row = connection.execute(
                "SELECT l.ordinal, l.events, (SELECT array_agg(e.ordinal ORDER BY e.ordinal) FROM sona.learning_event e"
                "  WHERE e.space_id = s.space_id AND e.loop = 'instant'),"
                " (SELECT count(*) FROM sona.trajectory t WHERE t.space_id = s.space_id),"
                " (SELECT count(*) FROM sona.trajectory t WHERE t.space_id = s.space_id AND NOT EXISTS (SELECT FROM"
                "   sona.trajectory_step p WHERE p.space_id = s.space_id AND p.trajectory_id = t.trajectory_id)),"
                " (SELECT count(*) FROM sona.learning_event e WHERE e.space_id = s.space_id AND NOT EXISTS (SELECT FROM"
                "   sona.trajectory t WHERE t.space_id = s.space_id AND t.trajectory_id = e.trajectory_id)),"
                " g.ordinal FROM sona.learner l JOIN sona.strategist g USING (space_id) JOIN sona.space s"
                " USING (space_id) WHERE s.name = %s",
                (path.name,),
            ).fetchone()
            assert row is not None
            ordinal, events, entries, trajectories, bare, lost, weighed = row
            assert entries == list(range(ordinal))
            assert (bare, lost) == (0, 0)
            assert events <= ordinal
            assert weighed <= ordinal
            assert trajectories >= 10 * (int(path.name) + 1), "what the saving process had recorded is in it"
            saving.record(engine, 900_000, 10)
            engine.flush()
            assert engine.metrics.refused == 0
            seen.append(trajectories)
    assert seen == sorted(set(seen)), "nobody wrote while it was saved"


def test_a_second_copy_is_a_space_of_its_own(migrated: str, copy: str, file: Path) -> None:
    before = saving.rows_of(copy, NAME)
    loaded(migrated, file, "second")
    with SonaEngine.connect(migrated, space="second", background=False) as engine:
        saving.record(engine, 7000, 30)
        engine.flush()
        engine.deploy("frozen")
    assert saving.rows_of(copy, NAME) == before
    with connect(migrated) as connection:
        keys = connection.execute(
            "SELECT space_key FROM sona.space WHERE name = ANY(%s)", ([NAME, "second"],)
        ).fetchall()
    assert len(set(keys)) == 2, "a spool would be replayed into either"
    with pytest.raises(InvalidInput, match=r"already a space 'second'.*--name"):
        SonaEngine.load(file, migrated, space="second")


def found_in(engine: SonaEngine) -> list[tuple[int, list[float], float]]:
    """Patterns, but for how often they were found."""
    return [(pattern.id, list(pattern.centroid), cosine) for pattern, cosine in engine.find_patterns(QUERIES[0])]


def test_items_that_are_not_there_are_said_and_named_later(
    make_database: Callable[[], str], original: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = make_database()
    migrate(url)
    for name, says in (("nowhere", "no table public.doc"), ("narrow", "another dimension"), ("view", "a view")):
        if name == "narrow":
            saving.make_items(url, dim=DIM + 1)
        elif name == "view":
            saving.make_items(url, "public.articles")
            with connect(url) as connection:
                connection.execute("DROP TABLE public.doc")
                connection.execute("CREATE VIEW public.doc AS SELECT * FROM public.articles")
        with SonaEngine.load(file, url, space=name, background=False) as engine:
            assert engine.loaded is not None
            assert engine.loaded.items is None
            assert says in (engine.loaded.items_missing or "")
            assert says in caplog.text
            with SonaEngine.connect(original, space=NAME, background=False) as other:
                assert engine.adapt(QUERIES).tobytes() == other.adapt(QUERIES).tobytes()
                assert found_in(engine) == found_in(other)
                saving.record(engine, 8000, 10)
                engine.flush()
                assert engine.metrics.refused == 0
                if name == "view":
                    engine.set_items("public.articles", "id", "embedding")
                    assert [i.item_id for i in engine.recall(QUERIES[0], 60).items] != []


def test_what_cannot_be_opened_is_not_loaded(migrated: str, file: Path) -> None:
    with pytest.raises(ConfigError, match="needs an embedder"):
        SonaEngine.load(file, migrated, space="of no text", embedder="a model", text_column="body")
    with connect(migrated) as connection:
        assert connection.execute("SELECT FROM sona.space WHERE name = 'of no text'").fetchone() is None


def test_a_space_of_another_embedder_is_refused(migrated: str, file: Path) -> None:
    with pytest.raises(EmbedderMismatch, match=r"'model 1'.*'model 2'"):
        SonaEngine.load(file, migrated, space="of another", embedder="model 2")
    with connect(migrated) as connection:
        assert connection.execute("SELECT FROM sona.space WHERE name = 'of another'").fetchone() is None
    with SonaEngine.load(file, migrated, space="of this one", embedder="model 1", background=False) as engine:
        assert engine.space.embedder == "model 1"


def test_an_embedder_of_another_dimension_is_refused_before_anything_is_written(migrated: str, file: Path) -> None:
    with pytest.raises(DimensionMismatch, match=f"has {DIM + 1} dimensions, expected {DIM}"):
        SonaEngine.load(
            file, migrated, space="of another", embedder=FunctionEmbedder(len, DIM + 1, fingerprint="model 1")
        )
    with connect(migrated) as connection:
        assert connection.execute("SELECT FROM sona.space WHERE name = 'of another'").fetchone() is None


def test_a_large_space_gets_its_indexes(migrated: str, file: Path) -> None:
    settings = StoreConfig(exact_search_rows=3)
    with SonaEngine.load(file, migrated, space="large", background=False, store=settings) as engine:
        key = engine.space.space_id
    with connect(migrated) as connection:
        made = connection.execute(
            "SELECT sona._queries_index(%(s)s) IS NOT NULL, sona._vectors_index('pattern', %(s)s) IS NOT NULL,"
            " sona._vectors_index('memory_node', %(s)s) IS NOT NULL,"
            " (SELECT bool_and(admitted) FROM sona.remembered_query WHERE space_id = %(s)s)",
            {"s": key},
        ).fetchone()
    assert made == (True, True, True, True)


def test_the_command_line_saves_and_loads(original: str, migrated: str, tmp_path: Path) -> None:
    path = str(tmp_path / "file.sona")
    done = sona("space", "save", NAME, path, "--json", url=original)
    assert done.returncode == 0, done.stderr
    saved = json.loads(done.stdout)
    assert saved["sha256"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    done = sona("space", "load", path, "--name", "by command", "--json", url=migrated)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["space"], report["items"]) == ("by command", "public.doc")
    assert report["rows"] == saved["rows"]
    again = sona("space", "load", path, "--name", "by command", url=migrated)
    assert again.returncode == 1
    assert "already a space 'by command'" in again.stderr
    assert "public.doc" in sona("space", "load", path, "--name", "for people", url=migrated).stdout
    assert path in sona("space", "save", NAME, path, url=original).stdout
