"""What each preset costs and brings beside the defaults, on the outcomes that ship with the package.

`gain` is nDCG@10 on held-out questions over the frozen embedding, by evidence: what is not proven does not answer.
`bound_mib` is the upper bound of what an engine takes; `waiting` is how many events may wait in memory; `weighed_per_s`
is how fast a file of outcomes is learned, durable and weighed. The time of the row is that of a `recall` in a space
that has learned them, by one strategy for all.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, row
from sona_pg.config import EmbeddingConfig, LearningMode, SonaConfig, SpaceConfig
from sona_pg.config.presets import PRESETS
from sona_pg.data import load_demo
from sona_pg.engine import SonaEngine
from sona_pg.engine.budget import CODE_BYTES, memory_bound
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.postgres import PostgresSystem
from sona_pg.evaluation.protocol import evaluate_collection
from sona_pg.evaluation.report import LEARNED
from sona_pg.store.connection import connect
from sona_pg.store.database import ENV_URL, open_database
from sona_pg.store.server import EmbeddedServer

STRATEGY = "fusion"
"""It looks at candidates and neighbours, of which presets have more and fewer."""


def run(*, quick: bool) -> list[Row]:
    """The defaults, and every preset."""
    collection, events = load_demo(), 200 if quick else None
    configs = {"default": SonaConfig(), **{name: SonaConfig.preset(name) for name in PRESETS}}
    with _database() as url:
        engines = {name: _learned(collection, config, url, 200 if quick else 1000) for name, config in configs.items()}
        try:
            times = _recalls(engines, collection, 100 if quick else 1000)
            rates = {name: _durable(engine, collection, 300 if quick else 1_000) for name, engine in engines.items()}
        finally:
            for engine in engines.values():
                engine.close()
        rows = []
        for name, config in configs.items():
            report = evaluate_collection(
                collection,
                splits=1 if quick else 3,
                events=events,
                system_factory=lambda given, config=config: PostgresSystem(given, url, config),  # type: ignore[misc]
            )
            instant = engines[name].instant.config
            params: dict[str, int | float | str] = {
                "preset": name,
                "gain": round(report.strategies[LEARNED].gain_ndcg10, 4),
                "bound_mib": round(_bound(engines[name], config) / (1 << 20)),
                "waiting": instant.max_unflushed + instant.max_pending_signals,
                "weighed_per_s": round(rates[name]),
            }
            rows.append(row("preset", params, times[name], "default", times["default"]))
    return rows


@contextlib.contextmanager
def _database() -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        home = None
        if not os.environ.get(ENV_URL):
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sona-benchmark-")))
            stack.callback(EmbeddedServer(home).remove)
        url = open_database(home=home).url
        yield url
        with connect(url) as connection:
            connection.execute("SELECT sona.drop_space(name) FROM sona.space WHERE name LIKE 'preset-%'")
            connection.execute("DROP TABLE IF EXISTS preset_items")


def _learned(collection: Collection, config: SonaConfig, url: str, events: int) -> SonaEngine:
    """An engine on a space that has learned the first outcomes, and answers by one strategy."""
    dim = collection.docs.shape[1]
    engine = SonaEngine(
        config.replace(
            database_url=url,
            space=f"preset-{uuid.uuid4().hex}",
            embedding_dim=dim,
            space_config=SpaceConfig(strategy=STRATEGY, control_share=0),
            learning_loops=LearningMode.MANUAL,
        )
    )
    with connect(url) as connection:
        connection.execute(f"CREATE TABLE IF NOT EXISTS preset_items (id text PRIMARY KEY, embedding vector({dim}))")
        for item, embedding in zip(collection.doc_ids, collection.docs, strict=True):
            connection.execute("INSERT INTO preset_items VALUES (%s, %s) ON CONFLICT DO NOTHING", (item, embedding))
    engine.set_items("preset_items", "id", "embedding")
    for query in range(events):
        helped = {collection.doc_ids[doc]: 1.0 for doc in collection.relevant[query]}
        engine.record(collection.queries[query], rewards=helped)
        if query % 100 == 99:
            engine.flush()
    engine.flush()
    return engine


def _recalls(engines: dict[str, SonaEngine], collection: Collection, rounds: int) -> dict[str, np.ndarray]:
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for query in collection.queries[-rounds:]:
        for name, engine in engines.items():
            began = time.perf_counter_ns()
            engine.recall(query)
            taken[name].append((time.perf_counter_ns() - began) / 1e3)
    return {name: np.array(times) for name, times in taken.items()}


def _durable(engine: SonaEngine, collection: Collection, rows: int) -> float:
    """Outcomes of a file that are learned, durable and weighed in a second."""
    queries = collection.queries[np.arange(rows) % len(collection.queries)]
    items = [[collection.doc_ids[row % len(collection.doc_ids)]] for row in range(rows)]
    began = time.perf_counter()
    engine.record_batch(queries, items, np.ones((rows, 1), dtype=np.float32), wait=True)
    engine.flush()
    assert engine.metrics.dropped == 0
    return rows / (time.perf_counter() - began)


def _bound(engine: SonaEngine, config: SonaConfig) -> int:
    return CODE_BYTES + memory_bound(
        engine.space.dim,
        engine.instant.config,
        engine.instant.adapter_config,
        config.strategy_config,
        config.evidence_config,
        config.embedding_config or EmbeddingConfig(),
        config.store_config,
    )
