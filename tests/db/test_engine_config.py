"""Engines by a `SonaConfig`: what is set is honoured, in the space, in the cycles and in the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sona_pg import (
    ConfigError,
    Context,
    DeepLoopConfig,
    DimensionMismatch,
    EmbedderMismatch,
    EmbeddingConfig,
    EvidenceConfig,
    EwcConfig,
    HashingEmbedder,
    InstantLoopConfig,
    InvalidInput,
    LearningError,
    LearningMode,
    PatternConfig,
    PermissionDenied,
    QueryAdapterConfig,
    SonaConfig,
    SonaEngine,
    SpaceConfig,
    StoreConfig,
    UnknownSpace,
)
from sona_pg.config import BackgroundConfig
from sona_pg.engine import cycles
from sona_pg.engine.budget import CODE_BYTES, memory_bound
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database


@pytest.fixture
def opened(url: str, space_name: str) -> Iterator[Callable[..., SonaEngine]]:
    made: list[SonaEngine] = []

    def make(**settings: Any) -> SonaEngine:  # noqa: ANN401
        given = {"database_url": url, "space": space_name, "learning_loops": LearningMode.MANUAL, **settings}
        made.append(SonaEngine(SonaConfig(**given)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def test_the_examples_of_the_reference(opened: Callable[..., SonaEngine]) -> None:
    """Nobody has judged anything: there are kinds of queries, and nothing is known of them."""
    sona = opened(hidden_dim=256, embedding_dim=256, num_heads=8, num_layers=12)
    for i in range(100):
        response = sona.process(f"Query {i}", Context())
        assert (response.text, response.confidence) == ("", 0.0)
    learned = sona.background_learn()
    assert learned.patterns_learned > 0
    assert sona.query("Query 1").patterns_used > 0
    metrics = sona.improvement_metrics()
    assert (metrics.weekly_gain, metrics.phi) == (None, None)
    assert sona.deep_learn().dreams_generated > 0


def test_phi_is_that_of_the_last_deep_cycle(opened: Callable[..., SonaEngine]) -> None:
    sona = opened(embedding_dim=16, background_config=BackgroundConfig(minimum=1))
    random = np.random.default_rng(0)
    topics = random.standard_normal((6, 16))
    for i in range(240):
        sona.record(topics[i % 6] + 0.1 * random.standard_normal(16), [str(i % 6)], [1.0])
    assert sona.background_learn().patterns == 6
    deep = sona.deep_learn()
    assert deep.phi is not None
    metrics = sona.improvement_metrics()
    assert (metrics.phi, metrics.phi_by_chance) == (deep.phi, deep.phi_by_chance)


def test_settings_reach_the_cycles(opened: Callable[..., SonaEngine], connection: Connection) -> None:
    sona = opened(
        embedding_dim=16,
        background_config=BackgroundConfig(minimum=20),
        pattern_config=PatternConfig(k_clusters=2),
        deep_config=DeepLoopConfig(dreams_per_cycle=7, dreams_per_node=0),
    )
    random = np.random.default_rng(0)
    topics = np.eye(16)[:8]
    for i in range(80):
        sona.record(topics[i % 8] + 0.01 * random.standard_normal(16), [str(i % 8)], [1.0])
    assert sona.background_learn().patterns == 2
    assert sona.background_learn(minimum=3).reason == "0 of 3 new trajectories with an outcome"
    assert sona.deep_learn().dreams_generated == 7


def test_what_a_cycle_would_refuse_is_refused_at_once(opened: Callable[..., SonaEngine]) -> None:
    with pytest.raises(ConfigError, match="fisher_kind"):
        opened(embedding_dim=8, ewc_config=EwcConfig(fisher_kind="exact"))
    with pytest.raises(UnknownSpace):
        opened()
    with pytest.raises(ConfigError, match="config is a dict"):
        SonaEngine({})  # type: ignore[arg-type]


def test_a_space_keeps_what_it_has_declared(opened: Callable[..., SonaEngine]) -> None:
    first = opened(
        embedding_dim=8, adapter_config=QueryAdapterConfig(rank=2), space_config=SpaceConfig(control_share=0)
    )
    assert opened().instant.adapter_config == first.instant.adapter_config == QueryAdapterConfig(rank=2)
    with pytest.raises(ConfigError, match="rank"):
        opened(adapter_config=QueryAdapterConfig(rank=3))
    with pytest.raises(ConfigError, match="leave space_config out"):
        opened(space_config=SpaceConfig(control_share=0, implicit_feedback=True))
    with pytest.raises(DimensionMismatch):
        opened(hidden_dim=9)
    opened(embedder="a model")
    with pytest.raises(EmbedderMismatch):
        opened(embedder="another one")


def test_who_restarts_goes_by_what_answers_now(
    opened: Callable[..., SonaEngine], connection: Connection, space_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = SpaceConfig(reward_max=5, strategy="adapted")
    opened(embedding_dim=8, space_config=asked)
    opened(space_config=asked)
    assert not caplog.records
    # An operator, or the space itself: proven harm is ended in the same way.
    connection.execute("SELECT sona.deploy(%s, 'frozen')", (space_name,))
    connection.execute("SELECT sona.set_control_share(%s, 0.25)", (space_name,))
    sona = opened(space_config=asked)
    assert sona.space.config == replace(asked, strategy="frozen", control_share=0.25)
    assert f"space {space_name!r} was given strategy 'frozen' and control share 0.25" in caplog.text


def test_a_budget_leaves_what_a_space_has_declared(opened: Callable[..., SonaEngine]) -> None:
    declared = InstantLoopConfig(micro_lora_rank=2, micro_lora_lr=0.01)
    opened(embedding_dim=8, instant_config=declared)
    held = opened(memory_budget_mb=40).config.instant_config
    assert held is not None
    assert (held.micro_lora_rank, held.micro_lora_lr) == (2, 0.01)
    assert held.max_unflushed < declared.max_unflushed
    with pytest.raises(ConfigError, match="micro_lora_rank = 2, not 1: give the same"):
        opened(memory_budget_mb=40, instant_config=InstantLoopConfig(flush_interval_seconds=2.0))


def test_an_embedder_of_another_dimension_makes_no_space(url: str, space_name: str, connection: Connection) -> None:
    with pytest.raises(DimensionMismatch, match="32 dimensions, expected 16"):
        SonaEngine.connect(url, space=space_name, dim=16, embedder=HashingEmbedder(32), background=False)
    assert connection.execute("SELECT FROM sona.space WHERE name = %s", (space_name,)).fetchone() is None


def test_an_embedder_says_what_the_settings_do_not(url: str, space_name: str) -> None:
    config = SonaConfig(database_url=url, space=space_name, learning_loops=LearningMode.MANUAL)
    with SonaEngine(config, embedder=HashingEmbedder(64)) as sona:
        assert (sona.space.dim, sona.config.embedder) == (64, HashingEmbedder(64).fingerprint)
    with pytest.raises(DimensionMismatch):
        SonaEngine(config.replace(embedding_dim=32), embedder=HashingEmbedder(64))
    with pytest.raises(ConfigError, match="embedder is 'another' in config"):
        SonaEngine(config.replace(embedder="another"), embedder=HashingEmbedder(64))


def test_a_preset_opens_a_small_space(url: str, space_name: str) -> None:
    config = SonaConfig.preset("max_quality", 8).replace(
        database_url=url, space=space_name, learning_loops=LearningMode.MANUAL
    )
    with SonaEngine(config) as sona:
        assert sona.instant.adapter_config.rank == 8


def test_steps_of_another_model_are_refused(opened: Callable[..., SonaEngine]) -> None:
    sona = opened(embedding_dim=8, num_heads=4, num_layers=2)

    def steps(*weights: int) -> object:
        builder = sona.start(np.ones(8))
        for count in weights:
            builder.add_step(np.ones(8), np.ones(count), 0.5)
        return sona.record(builder, quality=0.5)

    assert steps(4, 8)
    assert steps(4, 0)
    with pytest.raises(InvalidInput, match="6 attention weights, expected rows of num_heads, 4"):
        steps(4, 6)
    with pytest.raises(InvalidInput, match="3 steps of a model with 2 layers"):
        steps(4, 4, 4)
    # What was shown is no layer.
    assert sona.record(np.ones(8), ["1", "2", "3"], [1.0, 0.0, None])


def last_run(connection: Connection, sona: SonaEngine, loop: str) -> str | None:
    rows = connection.execute(
        "SELECT state FROM sona.runs WHERE space = %s AND loop = %s ORDER BY run_id DESC LIMIT 1",
        (sona.space.name, loop),
    ).fetchall()
    return rows[0][0] if rows else None


def test_an_engine_runs_the_slow_loops_that_it_is_told(
    opened: Callable[..., SonaEngine], connection: Connection
) -> None:
    sona = opened(
        embedding_dim=8,
        learning_loops=LearningMode.ALL_THREE_TIERS,
        background_config=BackgroundConfig(minimum=10),
    )
    for i in range(30):
        sona.record(np.eye(8)[i % 2] + 0.01, ["1"], [1.0])
    sona.flush()
    for loop in ("background", "deep"):
        # Nobody waits for the hour.
        connection.execute("SELECT sona.run_cycle(%s, %s)", (sona.space.name, loop))
        until = time.monotonic() + 120
        while (state := last_run(connection, sona, loop)) not in ("done", "skipped", "failed"):
            assert time.monotonic() < until, state
            time.sleep(0.1)
        assert state == "done"
    sona.close()
    assert not [thread for thread in sona._cycles if thread.is_alive()]


def test_a_budget_is_held_by_smaller_buffers_cache_and_sample(opened: Callable[..., SonaEngine]) -> None:
    """The quick start of the reference asks for 50 MB."""
    sona = opened(embedding_dim=256, memory_budget_mb=50)
    instant, adapter = sona.config.instant_config, sona.config.adapter_config
    assert instant is not None
    assert adapter is not None
    assert instant.max_unflushed < InstantLoopConfig().max_unflushed
    assert sona.config.embedding_config.cache_size < EmbeddingConfig().cache_size
    assert adapter.pool_size == sona.instant.adapter_config.pool_size < QueryAdapterConfig().pool_size
    held = CODE_BYTES + memory_bound(
        256, instant, adapter, None, None, sona.config.embedding_config, sona.config.store_config
    )
    assert held <= 50 << 20
    # A large budget changes nothing, and the space has declared its sample by now.
    again = opened(memory_budget_mb=500)
    assert again.instant.config == InstantLoopConfig()
    assert again.instant.adapter_config == adapter


@pytest.mark.parametrize(
    "settings",
    [
        {"memory_budget_mb": 20},
        {"memory_budget_mb": 50, "instant_config": InstantLoopConfig(max_unflushed=100_000)},
        {"memory_budget_mb": 50, "adapter_config": QueryAdapterConfig(pool_size=50_000)},
    ],
)
def test_a_budget_that_cannot_be_held_is_refused(opened: Callable[..., SonaEngine], settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"these settings take up to \d+ in a space of 256 dimensions"):
        opened(embedding_dim=256, **settings)


def test_what_is_not_set_of_a_part_may_be_made_smaller(opened: Callable[..., SonaEngine]) -> None:
    given = InstantLoopConfig(micro_lora_rank=2, flush_interval_seconds=1.0)
    instant = opened(embedding_dim=256, memory_budget_mb=50, instant_config=given).config.instant_config
    assert instant is not None
    assert (instant.micro_lora_rank, instant.flush_interval_seconds) == (2, 1.0)
    assert instant.max_unflushed < given.max_unflushed


@pytest.mark.parametrize("refused", [{"memory_budget_mb": 1}, {"target_latency_us": 1}])
def test_an_open_that_is_refused_leaves_nothing_behind(
    opened: Callable[..., SonaEngine], connection: Connection, space_name: str, refused: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        opened(embedding_dim=512, adapter_config=QueryAdapterConfig(rank=64), **refused)
    assert connection.execute("SELECT FROM sona.space WHERE name = %s", (space_name,)).fetchone() is None
    # Nor does it declare anything of a space that is there.
    connection.execute("SELECT sona.create_space(%s, 512)", (space_name,))
    with pytest.raises(ConfigError):
        opened(adapter_config=QueryAdapterConfig(rank=64), **refused)
    assert opened(adapter_config=QueryAdapterConfig(rank=2)).instant.adapter_config.rank == 2


def test_vectors_of_an_application_are_not_mixed_with_hashes_of_letters(opened: Callable[..., SonaEngine]) -> None:
    sona = opened(embedding_dim=16)
    sona.record(np.ones(16), ["1"])
    # Not yet durable.
    with pytest.raises(ConfigError, match="needs the embedder of the space"):
        sona.process("a text")


def test_a_responder_that_is_none_is_refused_at_once(url: str, space_name: str) -> None:
    with pytest.raises(ConfigError, match="the responder is a int"):
        SonaEngine(SonaConfig(database_url=url, space=space_name, embedding_dim=8), responder=42)  # type: ignore[arg-type]


def test_what_a_closed_engine_is_at_keeps_its_connection_until_it_is_done(
    opened: Callable[..., SonaEngine], connection: Connection, url: str
) -> None:
    """A connection that is closed while another thread reads from it is memory that was freed."""
    sona = opened(
        embedding_dim=8,
        learning_loops=LearningMode.INSTANT,
        evidence_config=EvidenceConfig(interval_seconds=0.02),
        store_config=StoreConfig(lock_timeout_seconds=60),
    )
    sona.record(np.ones(8), ["1"], [1.0])
    sona.instant.flush_updates()
    (thread,) = [each for each in threading.enumerate() if each.name == f"sona-evidence-{sona.space.name}"]
    with connect(url) as other:
        other.execute("BEGIN; LOCK sona.strategist IN ACCESS EXCLUSIVE MODE")
        waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'sona.strategist'::regclass AND NOT granted"
        until = time.monotonic() + 30
        while connection.execute(waiting).fetchone() == (0,):
            assert time.monotonic() < until
            time.sleep(0.01)
        sona.close()
        held = sona.evidence._store._connection
        assert held is not None
        assert not held.closed
        assert thread.is_alive()
        other.execute("ROLLBACK")
    thread.join(30)
    assert not thread.is_alive()
    assert held.closed


def test_a_target_latency_is_measured(opened: Callable[..., SonaEngine]) -> None:
    assert opened(embedding_dim=16, target_latency_us=1e6).recall is not None
    with pytest.raises(ConfigError, match=r"adapting and recording take \d+ here"):
        opened(embedding_dim=16, target_latency_us=1)


def test_a_loop_that_fails_says_so_once_and_one_that_may_not_run_ends(
    url: str, space_name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [
        (0.0, LearningError("it fails")),
        (0.0, LearningError("it fails")),
        (0.3, LearningError("it fails")),
        (0.0, PermissionDenied("it may not")),
    ]

    def run(own: LoopCoordinator, stop: threading.Event) -> None:
        seconds, failure = failures.pop(0)
        stop.wait(seconds)
        raise failure

    monkeypatch.setattr(LoopCoordinator, "run", run)
    monkeypatch.setattr(cycles, "_AGAIN_SECONDS", 0.1)
    with SonaEngine.connect(url, space=space_name, dim=8, background=False) as opened:
        cycles._run("deep", Database(url, StoreConfig()), opened.space, SonaConfig(), threading.Event())
    assert failures == []
    said = [record.getMessage().split(": ")[-1] for record in caplog.records if record.levelname == "WARNING"]
    assert said == ["it fails", "it fails", "it may not"]
