"""What an engine may take: the bound of its memory holds, and is not idle; a target latency is measured."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from sona_pg import (
    ConfigError,
    EmbeddingConfig,
    InstantLoopConfig,
    QueryAdapterConfig,
    SonaConfig,
    SonaEngine,
    StoreConfig,
    StrategyConfig,
)
from sona_pg.engine import budget
from sona_pg.engine.budget import check_latency, memory_bound
from sona_pg.learning.serving import Serving
from sona_pg.store.connection import Connection
from sona_pg.text.embedders import FunctionEmbedder

ITEMS = 2000

# What takes the most: trajectories that wait, the samples of items, texts that are remembered, and learned state.
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "waiting": (
        64,
        {
            "instant": InstantLoopConfig(max_pending_signals=1000, max_unflushed=5000),
            "adapter": QueryAdapterConfig(pool_size=100),
            "embedding": EmbeddingConfig(cache_size=10),
        },
    ),
    "samples": (
        384,
        {
            "instant": InstantLoopConfig(max_pending_signals=10, max_unflushed=10),
            "adapter": QueryAdapterConfig(pool_size=ITEMS),
            "embedding": EmbeddingConfig(cache_size=10),
            "strategy": StrategyConfig(sanity_events=16, prototypes=8, neighbours_learning=40),
        },
    ),
    "texts": (
        128,
        {
            "instant": InstantLoopConfig(max_pending_signals=10, max_unflushed=10),
            "adapter": QueryAdapterConfig(pool_size=100),
            "embedding": EmbeddingConfig(cache_size=20_000),
        },
    ),
    "state": (
        512,
        {
            "instant": InstantLoopConfig(max_pending_signals=10, max_unflushed=10),
            "adapter": QueryAdapterConfig(pool_size=100, rank=64),
            "embedding": EmbeddingConfig(cache_size=10),
            "strategy": StrategyConfig(folds=8, sanity_events=16, prototypes=8, neighbours_learning=40),
        },
    ),
}
STORE = StoreConfig(spool_max_bytes=0, idle_connections=1)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def _items(connection: Connection, name: str, dim: int) -> str:
    table = f"public.budget_{name}"
    random = np.random.default_rng(0)
    connection.execute(f"DROP TABLE IF EXISTS {table}")
    connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector({dim}))")
    with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "vector"])
        for item in range(ITEMS):
            copy.write_row((item, random.standard_normal(dim, dtype=np.float32)))
    return table


@pytest.mark.parametrize("name", SETTINGS)
def test_the_bound_holds_and_is_no_more_than_four_times_what_full_buffers_take(
    name: str, url: str, space_name: str, connection: Connection, traced: None
) -> None:
    dim, settings = SETTINGS[name]
    table, random = _items(connection, name, dim), np.random.default_rng(1)
    instant, embedding = settings["instant"], settings["embedding"]

    def embed(texts: Sequence[str]) -> np.ndarray[Any, Any]:
        return random.standard_normal((len(texts), dim), dtype=np.float32)

    tracemalloc.clear_traces()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    with SonaEngine.connect(
        url,
        space=space_name,
        embedder=FunctionEmbedder(embed, dim, "budget"),
        background=False,
        store=STORE,
        **settings,
    ) as engine:
        engine.set_items(table, "id", "embedding")
        rows = random.standard_normal((20, dim), dtype=np.float32)
        shown = [[str(item) for item in random.integers(0, ITEMS, 10)] for _ in rows]
        engine.record_batch(rows, shown, np.eye(20, 10, dtype=np.float32), wait=True)
        engine.flush()
        assert engine._answering is not None
        for start in range(0, embedding.cache_size, 64):
            engine._answering.embedder.embed([f"text {start + place}" for place in range(64)])
        # As much as may wait, learned and not.
        while not engine.metrics.dropped:
            n = instant.max_pending_signals
            shown = [[str(item) for item in row] for row in random.integers(0, ITEMS, (n, 10))]
            engine.record_batch(random.standard_normal((n, dim), dtype=np.float32), shown, [[1.0] + [0.0] * 9] * n)
            if not engine.metrics.dropped:
                engine.learn()
        engine.instant.flush_updates()
        _, peak = tracemalloc.get_traced_memory()
    bound = memory_bound(dim, store=STORE, **settings)
    assert peak - before <= bound, f"{peak - before:,} bytes, bound {bound:,}"
    assert bound <= 4 * (peak - before), f"{peak - before:,} bytes, bound {bound:,}"


@pytest.mark.parametrize(
    "more",
    [
        {"instant": InstantLoopConfig(max_unflushed=40_000)},
        {"instant": InstantLoopConfig(max_pending_signals=5000)},
        {"adapter": QueryAdapterConfig(pool_size=10_000)},
        {"adapter": QueryAdapterConfig(rank=16)},
        {"strategy": StrategyConfig(folds=4)},
        {"strategy": StrategyConfig(prototypes=1000)},
        {"strategy": StrategyConfig(sanity_events=5000)},
        {"embedding": EmbeddingConfig(cache_size=20_000)},
        {"store": StoreConfig(idle_connections=16)},
        {"items": 20},
        {"text_bytes": 1000},
    ],
)
def test_what_may_hold_more_has_a_larger_bound(more: dict[str, Any]) -> None:
    assert memory_bound(64, **more) > memory_bound(64)
    assert memory_bound(65, **more) > memory_bound(64, **more)


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"dim": True}, {"dim": 3.5}, {"items": -1}, {"text_bytes": "5"}])
def test_a_bound_of_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        memory_bound(**{"dim": 8, **wrong})


def test_a_target_is_measured_by_adapting_and_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:  # noqa: ANN401
            done.append(name)
            return call(*arguments)

        return wrapper

    monkeypatch.setattr(Serving, "adapt", noted("adapt", Serving.adapt))
    monkeypatch.setattr(budget, "_record", noted("record", budget._record))
    check_latency(SonaConfig(target_latency_us=1e9), 16, None)
    assert done
    assert done == ["adapt", "record"] * (len(done) // 2)


@pytest.mark.parametrize("part", ["adapt", "record"])
def test_a_part_that_takes_longer_is_seen(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> None:
        time.sleep(0.002)

    monkeypatch.setattr(*((Serving, "adapt") if part == "adapt" else (budget, "_record")), slow)
    with pytest.raises(ConfigError, match=r"adapting and recording take \d+ here"):
        check_latency(SonaConfig(target_latency_us=1000), 16, None)
    check_latency(SonaConfig(), 16, None)


_IMPORTS = """
import json, sys
import numpy as np
import psycopg
before = set(sys.modules)
from sona_pg import SonaEngine
from sona_pg.text.embedders import FunctionEmbedder
embedder = FunctionEmbedder(lambda texts: np.ones((len(texts), 16)), 16, "ones")
with SonaEngine.connect(sys.argv[1], space=sys.argv[2], dim=16, embedder=embedder) as engine:
    engine.set_items(sys.argv[3], "id", "embedding")
    found = engine.process("a text")
    engine.score(found.trajectory_id, 1.0, found.items[0].item_id)
    engine.flush()
    assert engine.metrics.flushed
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""


def test_an_engine_that_answers_imports_nothing_heavy(
    url: str, space_name: str, items: tuple[str, np.ndarray[Any, Any]]
) -> None:
    """Each of these takes more memory than all of the engine; cycles, migrations and the command line import them."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS, url, space_name, items[0]], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert "sona_pg" in loaded
    heavy = {
        *("scipy", "sklearn", "pandas", "pyarrow", "torch", "transformers", "sentence_transformers", "safetensors"),
        *("sqlalchemy", "alembic", "mako", "click", "matplotlib", "distributed", "dask", "prometheus_client"),
        *("http", "ssl", "unittest", "pytest", "multiprocessing"),
    }
    assert loaded & heavy == set()
