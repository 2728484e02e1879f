"""Patterns leave a space as files, and come into another one: as they were, and once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from sona_pg import (
    ConfigError,
    DimensionMismatch,
    EmbedderMismatch,
    InvalidInput,
    PermissionDenied,
    SonaEngine,
)
from sona_pg.exchange.rows import rows_sha256
from sona_pg.learning.resumed_bank import Advance, ResumedBank
from sona_pg.store.connection import Connection

from .conftest import DIM
from .exchanged import SMALL, ask, audit, everything, patterns, supports
from .vectors import unit


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_patterns_arrive_as_they_left(
    with_patterns: SonaEngine, open_space: Callable[..., SonaEngine], tmp_path: Path, connection: Connection, kind: str
) -> None:
    path = tmp_path / f"patterns.{kind}"
    assert with_patterns.export_patterns(path) == 4
    other = open_space(" other")
    report = other.import_patterns(path)
    assert (report.read, report.created, report.merged, report.known) == (4, 4, 0, 0)
    assert patterns(connection, other.space.name) == patterns(connection, with_patterns.space.name)
    action, before, after, reason = audit(connection, other.space.name)[-1]
    assert (action, before, after.split()[0]) == ("import", None, str(with_patterns.space.key))
    assert reason.startswith("4 patterns")


def test_the_same_import_again_changes_nothing_in_either_format(
    with_patterns: SonaEngine, open_space: Callable[..., SonaEngine], tmp_path: Path, connection: Connection
) -> None:
    for kind in ("jsonl", "parquet"):
        with_patterns.export_patterns(tmp_path / f"patterns.{kind}")
    other = open_space(" other")
    other.import_patterns(tmp_path / "patterns.jsonl")
    before = everything(connection, other.space.name)
    for kind in ("jsonl", "parquet"):
        report = other.import_patterns(tmp_path / f"patterns.{kind}")
        assert (report.read, report.created, report.merged, report.known) == (4, 0, 0, 4)
    assert everything(connection, other.space.name) == before


def test_near_patterns_become_one_and_bring_their_evidence(
    with_patterns: SonaEngine,
    open_space: Callable[..., SonaEngine],
    tmp_path: Path,
    connection: Connection,
) -> None:
    path = tmp_path / "patterns.jsonl"
    with_patterns.export_patterns(path)
    header, *rows = map(json.loads, path.read_text().splitlines())
    third = tmp_path / "third.jsonl"
    header |= {"space_key": str(uuid.uuid4())}
    header["sha256"] = rows_sha256(header, rows)
    third.write_text("\n".join(map(json.dumps, [header, *rows])) + "\n")
    other = open_space(" other")
    other.import_patterns(path)
    report = other.import_patterns(third)
    assert (report.created, report.merged, report.known) == (0, 4, 0)
    once, twice = patterns(connection, with_patterns.space.name), patterns(connection, other.space.name)
    assert [row[5] for row in twice] == [2 * row[5] for row in once]
    assert [row[13] for row in twice] == [4, None, None, None]
    arms = [[len(verdict["arms"]) for verdict in row[15]] for row in twice]
    assert arms == [[len(verdict["arms"]) for verdict in row[15]] for row in once]


def test_another_export_of_a_space_that_was_imported_is_refused(
    with_patterns: SonaEngine, open_space: Callable[..., SonaEngine], tmp_path: Path, connection: Connection
) -> None:
    with_patterns.export_patterns(tmp_path / "first.jsonl")
    connection.execute("UPDATE sona.pattern SET title = 'new' WHERE space_id = %s", (with_patterns.space.space_id,))
    with_patterns.export_patterns(tmp_path / "second.jsonl")
    other = open_space(" other")
    other.import_patterns(tmp_path / "first.jsonl")
    with pytest.raises(InvalidInput, match="already"):
        other.import_patterns(tmp_path / "second.jsonl")


def test_an_own_export_brings_back_what_is_gone_and_counts_nothing_twice(
    with_patterns: SonaEngine, tmp_path: Path, connection: Connection
) -> None:
    name, path = with_patterns.space.name, tmp_path / "patterns.jsonl"
    with_patterns.export_patterns(path)
    before = everything(connection, name)
    assert with_patterns.import_patterns(path).known == 4
    assert everything(connection, name) == before
    held = patterns(connection, name)
    for table in ("verdict", "pattern_access", "pattern"):
        connection.execute(
            f"DELETE FROM sona.{table} WHERE space_id = %(space)s AND pattern_id = (SELECT min(pattern_id)"
            " FROM sona.pattern WHERE space_id = %(space)s)" if table != "pattern" else
            "DELETE FROM sona.pattern WHERE space_id = %(space)s AND title = 'a topic'",
            {"space": with_patterns.space.space_id},
        )  # fmt: skip
    report = with_patterns.import_patterns(path)
    assert (report.created, report.merged, report.known) == (1, 0, 3)
    assert sorted(patterns(connection, name), key=str) == sorted(held, key=str)


def test_what_was_forgotten_may_be_imported_again(
    with_patterns: SonaEngine, open_space: Callable[..., SonaEngine], tmp_path: Path, connection: Connection
) -> None:
    path = tmp_path / "patterns.jsonl"
    with_patterns.export_patterns(path)
    other = open_space(" other")
    rng = np.random.default_rng(1)
    topic = unit(rng.standard_normal(DIM))
    for _ in range(10):
        other.record(unit(topic + 0.02 * rng.standard_normal(DIM)), quality=0.5, user_id="ann")
    other.flush()
    other.background_learn(SMALL)
    other.import_patterns(path)
    assert len(patterns(connection, other.space.name)) == 5
    assert other.forget("ann").patterns == 5
    assert other.import_patterns(path).created == 4
    assert other.import_patterns(path).known == 4


def test_children_keep_their_parents(
    with_patterns: SonaEngine, open_space: Callable[..., SonaEngine], tmp_path: Path, connection: Connection
) -> None:
    connection.execute(
        "WITH own AS (SELECT array_agg(pattern_id ORDER BY pattern_id) AS ids, max(pattern_id) AS last"
        "  FROM sona.pattern WHERE space_id = %(space)s)"
        " INSERT INTO sona.pattern (space_id, pattern_id, centroid, cluster_size, total_weight, avg_quality,"
        " confidence, support, abstraction_level, children) SELECT %(space)s, own.last + 1, p.centroid, 4, 4, 0.5, 0.5,"
        " 4, 1, own.ids FROM own, sona.pattern p WHERE p.space_id = %(space)s AND p.pattern_id = own.last",
        {"space": with_patterns.space.space_id},
    )
    with_patterns.export_patterns(tmp_path / "patterns.parquet")
    other = open_space(" other")
    other.import_patterns(tmp_path / "patterns.parquet")
    rows = connection.execute(
        "SELECT pattern_id, children FROM sona.pattern WHERE space_id = %s ORDER BY abstraction_level, pattern_id",
        (other.space.space_id,),
    ).fetchall()
    assert rows[-1][1] == [id for id, _ in rows[:-1]]


def test_cycles_go_on_with_what_was_imported(
    with_patterns: SonaEngine, open_space: Callable[..., SonaEngine], tmp_path: Path, connection: Connection
) -> None:
    with_patterns.export_patterns(tmp_path / "patterns.jsonl")
    other = open_space(" other")
    other.import_patterns(tmp_path / "patterns.jsonl")
    ask(other, np.array(json.loads(patterns(connection, other.space.name)[0][0])), 8)
    other.background_learn(SMALL)
    first, *others = supports(connection, with_patterns.space.name)
    assert supports(connection, other.space.name) == [first + 8, *others]


def test_a_cycle_in_flight_begins_anew(
    with_patterns: SonaEngine,
    open_space: Callable[..., SonaEngine],
    tmp_path: Path,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_patterns.export_patterns(tmp_path / "patterns.jsonl")
    other, advance, imported = open_space(" other"), ResumedBank.advance, []

    def interrupted(bank: ResumedBank, *args: Any, **kwargs: Any) -> Advance:  # noqa: ANN401
        if not imported:
            imported.append(other.import_patterns(tmp_path / "patterns.jsonl"))
        return advance(bank, *args, **kwargs)

    monkeypatch.setattr(ResumedBank, "advance", interrupted)
    ask(other, np.array(json.loads(patterns(connection, with_patterns.space.name)[0][0])), 8)
    # What it had begun with, ids without these, is not written: it is computed again, on all of them.
    other.background_learn(SMALL)
    assert len(imported) == 1
    first, *others = supports(connection, with_patterns.space.name)
    assert supports(connection, other.space.name) == [first + 8, *others]


def test_patterns_of_another_embedder_are_refused(
    with_patterns: SonaEngine, open_space: Callable[..., SonaEngine], tmp_path: Path, connection: Connection
) -> None:
    path = tmp_path / "patterns.jsonl"
    with_patterns.export_patterns(path)
    foreign, wider = open_space(" foreign", embedder="another"), open_space(" wider", dim=DIM + 1)
    with pytest.raises(EmbedderMismatch):
        foreign.import_patterns(path)
    with pytest.raises(DimensionMismatch):
        wider.import_patterns(path)
    assert not patterns(connection, foreign.space.name)
    assert not patterns(connection, wider.space.name)


def test_without_pyarrow_it_is_said_what_to_do(
    with_patterns: SonaEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    for act in (with_patterns.export_patterns, with_patterns.import_patterns, with_patterns.export_preferences):
        with pytest.raises(ConfigError, match=r"sona-pg\[export\]"):
            act(tmp_path / "patterns.parquet")
    assert with_patterns.export_patterns(tmp_path / "patterns.jsonl") == 4


def test_who_may_only_read_exports_and_imports_nothing(
    with_patterns: SonaEngine, url: str, role: Callable[..., str], connection: Connection, tmp_path: Path
) -> None:
    name, login = with_patterns.space.name, role("sona_looker", "sona_reader")
    with_patterns.save_pretrained(tmp_path / "adapter")
    connection.execute("SELECT sona.grant_space(%s, %s, false)", (name, login))
    own = psycopg.conninfo.make_conninfo(url, user=login)
    before = everything(connection, name)
    with SonaEngine.connect(own, space=name, background=False) as reader:
        assert reader.export_patterns(tmp_path / "patterns.jsonl") == 4
        with pytest.raises(PermissionDenied):
            reader.import_adapter(tmp_path / "adapter")
        with pytest.raises(PermissionDenied):
            reader.import_patterns(tmp_path / "patterns.jsonl")
    assert everything(connection, name) == before
