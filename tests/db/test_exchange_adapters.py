"""What a space has learned leaves it as an adapter, and comes back, or into another space."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
import pytest

from sona_pg import (
    DatabaseUnavailable,
    DimensionMismatch,
    EmbedderMismatch,
    InvalidInput,
    IoError,
    SonaEngine,
    UnknownVersion,
)
from sona_pg.exchange.peft_files import CONFIG, WEIGHTS, read_adapter
from sona_pg.store.connection import Connection

from .conftest import DIM
from .exchanged import SMALL, Vectors, audit, everything, peft_forward, plain


def test_the_exported_adapter_computes_what_adapt_does(
    taught: tuple[SonaEngine, Callable[[int], None]], queries: Vectors, tmp_path: Path, connection: Connection
) -> None:
    engine, _ = taught
    assert not engine.instant.learner.micro.is_zero
    engine.save_pretrained(tmp_path / "adapter")
    adapted = engine.adapt(queries)
    assert not np.array_equal(adapted, queries)
    np.testing.assert_allclose(peft_forward(tmp_path / "adapter", queries), adapted, atol=1e-6)
    by_sql = connection.execute("SELECT sona.adapt(%s, %s)", (engine.space.name, queries[0]), binary=True).fetchone()
    assert by_sql is not None
    np.testing.assert_allclose(peft_forward(tmp_path / "adapter", queries)[0], by_sql[0], atol=1e-6)
    card = read_adapter(tmp_path / "adapter").card
    assert card is not None
    assert (card.dim, card.embedder, card.space, card.space_key) == (
        DIM,
        "a model",
        engine.space.name,
        engine.space.key,
    )
    assert card.events > 40


def test_a_space_that_has_learned_nothing_exports_the_identity(
    open_space: Callable[..., SonaEngine], queries: Vectors, tmp_path: Path
) -> None:
    open_space().save_pretrained(tmp_path / "adapter")
    np.testing.assert_array_equal(peft_forward(tmp_path / "adapter", queries), queries)
    assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["r"] == 1


def test_a_version_is_exported_as_it_was(
    taught: tuple[SonaEngine, Callable[[int], None]], queries: Vectors, tmp_path: Path
) -> None:
    engine, teach = taught
    version = engine.instant.publish("a test")
    then = engine.adapt(queries)
    teach(10)
    engine.save_pretrained(tmp_path / "then", version=version)
    np.testing.assert_allclose(peft_forward(tmp_path / "then", queries), then, atol=1e-6)
    assert not np.allclose(engine.adapt(queries), then, atol=1e-5)
    with pytest.raises(UnknownVersion):
        engine.save_pretrained(tmp_path / "never", version=99)
    assert os.listdir(tmp_path) == ["then"]


def test_another_space_goes_on_with_the_adapter(
    taught: tuple[SonaEngine, Callable[[int], None]],
    open_space: Callable[..., SonaEngine],
    queries: Vectors,
    tmp_path: Path,
    connection: Connection,
) -> None:
    engine, _ = taught
    engine.save_pretrained(tmp_path / "adapter")
    other = open_space(" other")
    version = other.import_adapter(tmp_path / "adapter")
    np.testing.assert_allclose(other.adapt(queries), engine.adapt(queries), atol=1e-6)
    found = connection.execute("SELECT sona.adapt(%s, %s)", (other.space.name, queries[0]), binary=True).fetchone()
    assert found is not None
    np.testing.assert_allclose(found[0], engine.adapt(queries[0]), atol=1e-6)
    before, made = other.versions()
    assert (made.version, made.parent, made.is_in_force) == (version, before.version, True)
    assert made.cause.startswith(f"imported: version 0 of space {engine.space.name!r}")
    assert audit(connection, other.space.name)[-1][::3] == ("publish", made.cause)
    # The optimiser begins anew.
    assert other.instant.learner.adapter.steps == 0
    assert not other.instant.learner.adapter.state()["moment1"].any()
    # And there is a way back.
    other.deploy("rollback")
    np.testing.assert_array_equal(other.adapt(queries), queries)
    other.deploy(version)
    np.testing.assert_allclose(other.adapt(queries), engine.adapt(queries), atol=1e-6)


def test_what_was_learned_is_published_before_and_learning_goes_on(
    taught: tuple[SonaEngine, Callable[[int], None]], queries: Vectors, tmp_path: Path, url: str, connection: Connection
) -> None:
    engine, teach = taught
    engine.save_pretrained(tmp_path / "adapter")
    imported = engine.adapt(queries)
    teach(20)
    learned, events = engine.adapt(queries), engine.instant.learner.events
    with SonaEngine.connect(url, space=engine.space.name, background=False) as beside:
        beside.record(queries[0], ["1", "2"], [1.0, 0.0])  # learned there, and not durable yet
        beside.learn()
        version = engine.import_adapter(tmp_path / "adapter")
        np.testing.assert_allclose(engine.adapt(queries), imported, atol=1e-6)
        assert engine.instant.learner.events == events
        beside.flush()
        assert beside.instant.learner.events == events + 1
        engine.flush()
        np.testing.assert_array_equal(beside.adapt(queries), engine.adapt(queries))
    assert not np.allclose(engine.adapt(queries), imported, atol=1e-6)
    np.testing.assert_allclose(engine.adapt(queries), imported, atol=0.2)
    teach(5)
    assert engine.deploy("latest") > version
    engine.deploy(version)
    engine.deploy("rollback")
    np.testing.assert_array_equal(engine.adapt(queries), learned)


def test_the_strategist_goes_on_with_what_was_imported(
    taught: tuple[SonaEngine, Callable[[int], None]],
    open_space: Callable[..., SonaEngine],
    items: tuple[str, Vectors],
    tmp_path: Path,
    connection: Connection,
) -> None:
    engine, _ = taught
    engine.save_pretrained(tmp_path / "adapter")
    other = open_space(" other")
    other.set_items(items[0], "id", "embedding")
    version = other.import_adapter(tmp_path / "adapter")
    other.record(items[1][0], ["1", "2"], [1.0, 0.0])
    other.flush()
    state = connection.execute(
        "SELECT ordinal, events, base_version FROM sona.strategist WHERE space_id = %s", (other.space.space_id,)
    ).fetchone()
    assert state == (1, 1, version)


def test_a_cycle_makes_a_base_of_what_was_imported(
    taught: tuple[SonaEngine, Callable[[int], None]],
    open_space: Callable[..., SonaEngine],
    items: tuple[str, Vectors],
    queries: Vectors,
    tmp_path: Path,
) -> None:
    engine, teach = taught
    engine.save_pretrained(tmp_path / "adapter")
    engine.import_adapter(tmp_path / "adapter")
    imported = engine.adapt(queries)
    teach(20)
    found = engine.background_learn(SMALL)
    assert found.state == "done", found.reason
    assert found.facts["base"] in ("kept", "published")
    moved = np.abs(engine.adapt(queries) - imported).max()
    assert 0 < moved < np.abs(imported - queries).max()


def test_a_second_trip_adds_no_error_and_no_rank(
    taught: tuple[SonaEngine, Callable[[int], None]],
    open_space: Callable[..., SonaEngine],
    queries: Vectors,
    tmp_path: Path,
) -> None:
    engine, _ = taught
    engine.save_pretrained(tmp_path / "first")
    other = open_space(" other")
    other.import_adapter(tmp_path / "first")
    other.save_pretrained(tmp_path / "second")
    first, second = read_adapter(tmp_path / "first").low_rank, read_adapter(tmp_path / "second").low_rank
    assert first.rank == second.rank
    np.testing.assert_allclose(first.weights[: first.rank].T @ first.weights[first.rank :],
                               second.weights[: first.rank].T @ second.weights[first.rank :], atol=1e-7)  # fmt: skip


def test_a_user_is_forgotten_after_an_import_too(
    open_space: Callable[..., SonaEngine],
    taught: tuple[SonaEngine, Callable[[int], None]],
    items: tuple[str, Vectors],
    queries: Vectors,
    tmp_path: Path,
) -> None:
    taught[0].save_pretrained(tmp_path / "adapter")
    other = open_space(" other")
    other.set_items(items[0], "id", "embedding")
    other.record(queries[0], ["1", "2"], [1.0, 0.0], user_id="ann")
    other.record(queries[1], ["3", "4"], [1.0, 0.0], user_id="bob")
    other.flush()
    other.import_adapter(tmp_path / "adapter")
    report = other.forget("ann")
    assert (report.trajectories, report.replayed) == (1, 1)
    # What is learned anew of the ledger knows nothing of files: they are imported again.
    other.import_adapter(tmp_path / "adapter")
    np.testing.assert_allclose(other.adapt(queries), taught[0].adapt(queries), atol=1e-6)


def test_from_pretrained_makes_the_space(
    taught: tuple[SonaEngine, Callable[[int], None]], queries: Vectors, tmp_path: Path, url: str, space_name: str
) -> None:
    engine, _ = taught
    engine.save_pretrained(tmp_path / "adapter")
    with SonaEngine.from_pretrained(tmp_path / "adapter", url, space=space_name + " new", background=False) as made:
        assert (made.space.dim, made.space.embedder) == (DIM, "a model")
        np.testing.assert_allclose(made.instant.serving.adapt(queries), engine.adapt(queries), atol=1e-6)
        assert made.versions()[0].cause == "before an adapter was imported"
    with pytest.raises(EmbedderMismatch):
        SonaEngine.from_pretrained(tmp_path / "adapter", url, space=space_name + " newer", embedder="another")


def test_an_adapter_that_says_nothing_of_its_embedder_needs_somebody_who_does(
    taught: tuple[SonaEngine, Callable[[int], None]],
    open_space: Callable[..., SonaEngine],
    queries: Vectors,
    tmp_path: Path,
    connection: Connection,
) -> None:
    engine, _ = taught
    engine.save_pretrained(tmp_path / "adapter")
    engine.save_pretrained(tmp_path / "whole")
    path = plain(tmp_path / "adapter")
    other, undeclared = open_space(" other"), open_space(" undeclared", embedder=None)
    before = everything(connection, other.space.name)
    with pytest.raises(EmbedderMismatch, match="does not say"):
        other.import_adapter(path)
    with pytest.raises(EmbedderMismatch, match="another model"):
        other.import_adapter(path, embedder="another model")
    with pytest.raises(EmbedderMismatch, match="belongs to"):
        other.import_adapter(tmp_path / "whole", embedder="another model")
    assert everything(connection, other.space.name) == before
    other.import_adapter(path, embedder="a model")
    undeclared.import_adapter(path)
    for made in (other, undeclared):
        np.testing.assert_allclose(made.adapt(queries), engine.adapt(queries), atol=1e-6)
        assert made.versions()[-1].cause == "imported: an adapter of PEFT"


def test_an_embedder_is_declared_by_an_import(
    taught: tuple[SonaEngine, Callable[[int], None]],
    open_space: Callable[..., SonaEngine],
    tmp_path: Path,
    connection: Connection,
) -> None:
    taught[0].save_pretrained(tmp_path / "adapter")
    undeclared = open_space(" undeclared", embedder=None)
    undeclared.import_adapter(tmp_path / "adapter")
    row = connection.execute("SELECT embedder FROM sona.space WHERE name = %s", (undeclared.space.name,)).fetchone()
    assert row == ("a model",)


def test_what_does_not_belong_there_is_refused_before_anything_is_written(
    taught: tuple[SonaEngine, Callable[[int], None]],
    open_space: Callable[..., SonaEngine],
    tmp_path: Path,
    connection: Connection,
) -> None:
    engine, _ = taught
    engine.save_pretrained(tmp_path / "adapter")
    wider, foreign = open_space(" wider", dim=DIM + 1), open_space(" foreign", embedder="another")
    before = {made: everything(connection, made.space.name) for made in (wider, foreign, engine)}
    with pytest.raises(DimensionMismatch):
        wider.import_adapter(tmp_path / "adapter")
    with pytest.raises(EmbedderMismatch):
        foreign.import_adapter(tmp_path / "adapter")
    data = (tmp_path / "adapter" / WEIGHTS).read_bytes()
    for bad in (b"", data[:-1], (1 << 63).to_bytes(8, "little") + data[8:]):
        (tmp_path / "adapter" / WEIGHTS).write_bytes(bad)
        with pytest.raises(InvalidInput):
            engine.import_adapter(tmp_path / "adapter")
    with pytest.raises(IoError):
        engine.import_adapter(tmp_path / "nowhere")
    assert {made: everything(connection, made.space.name) for made in before} == before


def test_an_import_that_breaks_off_leaves_nothing(
    taught: tuple[SonaEngine, Callable[[int], None]],
    tmp_path: Path,
    connection: Connection,
    queries: Vectors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, teach = taught
    engine.save_pretrained(tmp_path / "adapter")
    teach(3)
    before, answers = everything(connection, engine.space.name), engine.adapt(queries)

    def fail(*_: object) -> None:
        raise psycopg.OperationalError("the cable was pulled")

    monkeypatch.setattr("sona_pg.store.exchange.write_served", fail)
    with pytest.raises(DatabaseUnavailable):
        engine.import_adapter(tmp_path / "adapter")
    monkeypatch.undo()
    assert everything(connection, engine.space.name) == before
    np.testing.assert_array_equal(engine.adapt(queries), answers)
