"""Nodes and edges as consolidation takes them, row by row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from sona_pg.config import ConsolidationConfig
from sona_pg.learning.memory_columns import MemoryEdges, MemoryNodes, Origin

DAY = 86_400.0
CONFIG = ConsolidationConfig()


def nodes_of(n: int, **columns: object) -> MemoryNodes:
    """Nodes that differ in all of their embeddings, but for what is given."""
    whole: dict[str, NDArray[np.generic]] = {
        "ids": np.arange(1, n + 1),
        "kinds": np.zeros(n, dtype=np.int64),
        "access_count": np.full(n, 10),
        "created": np.zeros(n),
        "last_access": np.zeros(n),
        "quality": np.full(n, 0.5),
        "importance": np.zeros(n),
        "embeddings": np.eye(n, dtype=np.float32),
        "has_embedding": np.ones(n, dtype=bool),
    }
    for name, given_column in columns.items():
        whole[name] = np.asarray(given_column, dtype=whole[name].dtype)
    return MemoryNodes(**whole)  # type: ignore[arg-type]


def edges_of(*edges: tuple[int, int, float], at: float = 0.0, origin: Origin = Origin.CO_ACCESS) -> MemoryEdges:
    source, target, weight = np.array(edges, dtype=np.float64).reshape(-1, 3).T
    m = len(source)
    return MemoryEdges(
        source.astype(np.int64), target.astype(np.int64), weight, np.full(m, at), np.full(m, int(origin))
    )


def with_origins(edges: MemoryEdges, *origins: Origin) -> MemoryEdges:
    return replace(edges, origin=np.array(origins, dtype=np.int64))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[MemoryNodes, MemoryEdges, float]:
    """Small graphs of few directions, with loops, edges twice, dreams, clocks that are late, and old nodes."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    n, m, dim = draw(st.integers(0, 25)), draw(st.integers(0, 60)), draw(st.sampled_from([2, 3, 120]))
    m = m if n else 0
    centres = random.standard_normal((4, dim))
    embeddings = centres[random.integers(0, 4, n)] + draw(st.sampled_from([0.0, 0.1, 0.2])) * random.standard_normal(
        (n, dim)
    )
    quality = random.random(n) ** 2
    quality[random.random(n) < 0.3] = np.nan
    nodes = nodes_of(
        n, ids=random.permutation(n), kinds=random.integers(0, 2, n), quality=quality, importance=random.random(n),
        access_count=random.integers(0, draw(st.sampled_from([2, 5, 100])), n), created=random.random(n) * 200 * DAY,
        last_access=random.random(n) * 200 * DAY, embeddings=embeddings, has_embedding=random.random(n) < 0.9,
    )  # fmt: skip
    edges = MemoryEdges(
        random.integers(0, max(n, 1), m),
        random.integers(0, max(n, 1), m),
        random.choice([0.0, 1.0, 0.01, 0.5], m) if draw(st.booleans()) else random.random(m),
        random.random(m) * 250 * DAY,
        random.integers(0, len(Origin), m),
    )
    return nodes, edges, draw(st.sampled_from([0.0, 150.0, 200.0, 400.0])) * DAY
