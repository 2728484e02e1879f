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

from sona_pg import EmbedderMismatch, InvalidInput, SonaEngine, StoreConfig
from sona_pg.config import STRATEGIES
from sona_pg.store.connection import connect
from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer

from . import saving
from .saving import DIM, QUERIES
from .test_cli import sona

NAME = "saved"


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


def test_it_learns_on_as_it_would_have(original: str, copy: str, migrated: str, file: Path) -> None:
    # Of its own, so that the copies of other tests stay as they are.
    loaded(migrated, file, "learns")
    with SonaEngine.load(file, original, space="learns", background=False):
        pass
    for url in (original, migrated):
        with SonaEngine.connect(url, space="learns", background=False) as engine:
            saving.record(engine, 5000, 60)
            engine.flush()
            assert engine.metrics.refused == 0
    first, second = saving.rows_of(original, "learns"), saving.rows_of(migrated, "learns")
    for table in ("learner", "strategist"):
        drop_times(first, second, table)
    learned = ("learner", "strategist", "served_row", "strategy_evidence", "strategy_region", "item_outcome", "verdict")
    assert {table for table in learned if first[table] != second[table]} == set()
    with connect(original) as connection:
        (ordinal, before) = connection.execute(
            "SELECT a.ordinal, b.ordinal FROM sona.learner a JOIN sona.space s USING (space_id), sona.learner b"
            " JOIN sona.space o ON o.space_id = b.space_id WHERE s.name = 'learns' AND o.name = %s",
            (NAME,),
        ).fetchone() or (0, 0)
    assert ordinal >= before + 60


def drop_times(
    first: dict[str, list[tuple[object, ...]]], second: dict[str, list[tuple[object, ...]]], of: str
) -> None:
    """The clocks of two machines are two."""
    for rows in (first, second):
        rows[of] = [tuple(v for v in row if not (isinstance(v, str) and v.startswith("2026-"))) for row in rows[of]]
