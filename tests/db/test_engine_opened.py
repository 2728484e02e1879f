"""How an engine is opened, forked and closed, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable

import numpy as np
import pytest

from sona_pg import (
    Answer,
    ConfigError,
    DatabaseUnavailable,
    DimensionMismatch,
    EmbedderMismatch,
    InstantLoopConfig,
    InvalidInput,
    QueryAdapterConfig,
    SonaEngine,
    SpaceConfig,
    UnknownSpace,
)
from sona_pg.store.connection import Connection

from .conftest import DIM
from .recorded import _another, _counts, _record_some


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda e: e.adapt(np.ones(3)), DimensionMismatch, "3 dimensions, expected 16"),
        (lambda e: e.adapt(np.ones((2, 3))), DimensionMismatch, "3 dimensions, expected 16"),
        (lambda e: e.adapt(np.full(DIM, np.nan)), InvalidInput, "NaN"),
        (lambda e: e.adapt("text"), InvalidInput, "not a vector"),
        (lambda e: e.recall(np.ones(DIM), 0), InvalidInput, "k is 0"),
        (lambda e: e.recall(np.ones(DIM), 10**9), InvalidInput, "k is 1000000000"),
        (lambda e: e.record(np.ones(3), ["1"], [1.0]), DimensionMismatch, "expected 16"),
        (lambda e: e.record(np.full(DIM, np.inf), ["1"], [1.0]), InvalidInput, "infinity"),
        (lambda e: e.record(np.ones(DIM), ["1"], [2.0]), InvalidInput, r"reward is 2.0, expected 0.0 to 1.0"),
        (lambda e: e.record(np.ones(DIM), ["1"], [float("nan")]), InvalidInput, "finite"),
        (lambda e: e.record(np.ones(DIM), ["1"], ["good"]), InvalidInput, "good"),
        (lambda e: e.record(np.ones(DIM), ["1", "2"], [1.0]), InvalidInput, "2 items with 1 rewards"),
        (lambda e: e.record(np.ones(DIM), "12", [1.0, 1.0]), InvalidInput, "item_ids is a str"),
        (lambda e: e.record(np.ones(DIM), [1], [1.0]), InvalidInput, "item id is 1"),
        (lambda e: e.record(np.ones(DIM), ["a\0b"], [1.0]), InvalidInput, "NUL"),
        (lambda e: e.record(np.ones(DIM), ["\ud800"], [1.0]), InvalidInput, "Unicode"),
        (lambda e: e.record(np.ones(DIM), ["1"], quality=7), InvalidInput, "final quality is 7"),
        (lambda e: e.record(np.ones(DIM), metadata={"x": float("nan")}), InvalidInput, "not JSON"),
        (lambda e: e.record(np.ones(DIM), metadata={"x": object()}), InvalidInput, "not JSON"),
        (lambda e: e.record(np.ones(DIM), metadata={"x": "\0"}), InvalidInput, "NUL"),
        (lambda e: e.record(np.ones(DIM), user_id=""), InvalidInput, "user id"),
        (lambda e: e.record(np.ones(DIM), [str(i) for i in range(10_001)]), InvalidInput, "10001 steps"),
        (lambda e: e.record(np.ones(DIM), trajectory_id="x"), InvalidInput, "trajectory id"),
        (lambda e: e.record(np.ones(DIM), latency_us=-1), InvalidInput, "latency"),
        (lambda e: e.record(np.ones(DIM), ["x" * 501], [1.0]), InvalidInput, "501 bytes, expected at most 500"),
        (lambda e: e.record(np.ones(DIM), metadata={"x": "y" * (1 << 20)}), InvalidInput, "expected at most 1048576"),
        (lambda e: e.record(e.start(np.ones(DIM)).build(answer=Answer(propensity=0.0))), InvalidInput, "propensity"),
        (lambda e: e.record(e.start(np.ones(DIM)).build(answer=Answer(strategy="a\0"))), InvalidInput, "strategy"),
        (lambda e: e.score("x", 1.0), InvalidInput, "UUID"),
        (lambda e: e.score(uuid.uuid4(), 9.0), InvalidInput, "score is 9"),
        (lambda e: e.score(uuid.uuid4(), None), InvalidInput, "score"),
        (lambda e: e.start(np.ones(DIM)).add_step(np.ones(3)), DimensionMismatch, "expected 16"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_kept(
    engine: SonaEngine, act: Callable[[SonaEngine], object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        act(engine)
    assert engine.metrics.recorded == 0
    engine.flush()
    assert engine.metrics.flushed == 0


def test_empty_trajectories_and_other_float_types_are_fine(engine: SonaEngine, connection: Connection) -> None:
    engine.record(np.ones(DIM))
    engine.record(np.ones(DIM, dtype=np.float64)[::-1], ["1"], [1])
    engine.record(list(range(DIM)), ["1"], {"1": True})
    engine.record(np.ones((2, DIM), dtype=np.float16).T[:, 0], [], [])
    engine.flush()
    assert _counts(connection, engine)["trajectory"] == 4
    assert engine.instant.learner.events == 2


def test_a_trajectory_id_that_is_there_already_changes_nothing(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    _record_some(engine, rng, 2)
    engine.flush()
    state = engine.instant.learner.to_bytes()
    _record_some(engine, rng, 2)
    _record_some(engine, rng, 1, prefix=5)
    engine.flush()
    assert _counts(connection, engine)["learning_event"] == 3
    with _another(engine) as again:
        assert again.instant.learner.events == 3
        assert again.instant.learner.to_bytes() == engine.instant.learner.to_bytes() != state


def test_spaces_are_checked_when_they_are_opened(url: str, engine: SonaEngine) -> None:
    name = engine.space.name
    with pytest.raises(UnknownSpace, match="dim="):
        SonaEngine.connect(url, space="no such space")
    with pytest.raises(DimensionMismatch):
        SonaEngine.connect(url, space=name, dim=DIM + 1)
    with pytest.raises(ConfigError, match="declares"):
        SonaEngine.connect(url, space=name, space_config=SpaceConfig(reward_min=-1.0))
    SonaEngine.connect(url, space=name, embedder="model-a", background=False).close()
    SonaEngine.connect(url, space=name, embedder="model-a", background=False).close()
    with pytest.raises(EmbedderMismatch, match=r"model-a.*model-b"):
        SonaEngine.connect(url, space=name, embedder="model-b")


def test_a_space_is_continued_with_the_settings_that_it_was_learned_with(
    engine: SonaEngine, rng: np.random.Generator
) -> None:
    _record_some(engine, rng, 2)
    engine.flush()
    for other in (
        {"adapter": QueryAdapterConfig(rank=4)},
        {"adapter": QueryAdapterConfig(learning_rate=5e-4)},
        {"instant": InstantLoopConfig(micro_lora_rank=2)},
    ):
        with pytest.raises(ConfigError, match="is learned with"):
            _another(engine, **other)
    with _another(engine, instant=InstantLoopConfig(max_pending_signals=7)) as again:
        assert again.instant.learner.events == 2


def test_the_first_settings_of_a_space_are_taken_over_by_the_others(url: str, space_name: str) -> None:
    first = QueryAdapterConfig(rank=2, learning_rate=2e-3)
    with (
        SonaEngine.connect(url, space=space_name, dim=DIM, background=False, adapter=first) as engine,
        _another(engine) as second,
    ):
        assert second.instant.adapter_config == first


def test_addresses_that_lead_nowhere_are_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatabaseUnavailable, match="SONA_DATABASE_URL"):
        SonaEngine.connect("postgresql://127.0.0.1:1/none", space="x", dim=3)
    with pytest.raises(ConfigError, match="connection string"):
        SonaEngine.connect("not a url", space="x", dim=3)


def test_a_forked_process_must_connect_for_itself(engine: SonaEngine) -> None:
    child = os.fork()
    if child == 0:
        try:
            engine.record(np.ones(DIM))
        except ConfigError as error:
            os._exit(7 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_what_was_recorded_is_flushed_when_the_process_ends(
    connection: Connection, engine: SonaEngine, url: str
) -> None:
    script = (
        "import sys, numpy\nfrom sona_pg import SonaEngine\n"
        f"SonaEngine.connect(sys.argv[1], space=sys.argv[2]).record(numpy.ones({DIM}), ['1'], [1.0])"
    )
    subprocess.run([sys.executable, "-c", script, url, engine.space.name], check=True)
    assert _counts(connection, engine)["learning_event"] == 1


def test_a_closed_engine_refuses_what_it_is_asked(engine: SonaEngine) -> None:
    engine.close()
    engine.close()
    for act in (engine.record, engine.start, engine.adapt, engine.recall):
        with pytest.raises(ConfigError, match="closed"):
            act(np.ones(DIM))  # type: ignore[operator]


@pytest.mark.parametrize("query", [[[], [0.0]], [[1.0] * DIM, [1.0]], [["a"] * DIM]])
def test_rows_that_are_no_matrix_are_refused(engine: SonaEngine, query: list[list[object]]) -> None:
    with pytest.raises(InvalidInput):
        engine.adapt(query)  # type: ignore[arg-type]
