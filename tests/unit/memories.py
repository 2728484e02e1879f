"""A memory of topics, for the tests of engine and loop."""

from __future__ import annotations

import numpy as np

from sona_pg.config import DreamConfig
from sona_pg.learning.dream_engine import DreamEngine
from sona_pg.learning.memory_graph import MemoryNode

DAY = 86_400.0
DIM = 16


def topical(topics: int = 12, size: int = 10, seed: int = 0, config: DreamConfig | None = None) -> DreamEngine:
    """Nodes near each other belong to a topic, and a part of the pairs of a topic has an edge."""
    random = np.random.default_rng(seed)
    engine = DreamEngine(config)
    centres = random.standard_normal((topics, DIM))
    for id in range(topics * size):
        near = centres[id // size] + 0.6 * random.standard_normal(DIM)
        engine.add_memory_node(
            MemoryNode(id, near, timestamp=0.0, access_count=int(random.integers(0, 9)), created=0.0, kind="item")
        )
    for a in range(topics * size):
        for b in range(a + 1, (a // size + 1) * size):
            if random.random() < 0.3:
                engine.add_edge(a, b, float(random.uniform(0.3, 0.9)), at=0.0)
    return engine
