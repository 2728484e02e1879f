"""A space whose queries are about a few topics, and the patterns that loop B makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg import SonaEngine, SpaceConfig, StoreConfig
from sona_pg.config import BackgroundConfig
from sona_pg.loops.background import background_loop
from sona_pg.loops.cycle import Loop
from sona_pg.store.connection import Connection

from .cycles import run_cycle
from .own_spaces import connection as connection

DIM = 16
TOPICS = 4
SMALL = background_loop(BackgroundConfig(minimum=1))

Vector = NDArray[np.float32]


@pytest.fixture
def open_engine(module_url: str, connection: Connection) -> Iterator[Callable[..., SonaEngine]]:
    made: list[SonaEngine] = []

    def make(name: str, dim: int = DIM) -> SonaEngine:
        made.append(
            SonaEngine.connect(
                module_url, space=name, dim=dim, background=False, space_config=SpaceConfig(control_share=0.0)
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
