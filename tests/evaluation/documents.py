"""Queries that are documents, turned, and what is relevant to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg.evaluation import Collection

FloatMatrix = NDArray[np.float32]
DIM, DOCS, QUERIES = 32, 100, 300


@pytest.fixture(scope="module")
def rotated() -> Collection:
    """Every query is its document, turned in the four planes in which documents differ most, and noise."""
    random = np.random.RandomState(7)
    docs = random.randn(DOCS, DIM) * np.array([3.0] * 8 + [1.0] * (DIM - 8))
    docs /= np.linalg.norm(docs, axis=1, keepdims=True)
    wanted = random.randint(0, DOCS, QUERIES)
    queries = docs[wanted].copy()
    angle = 1.25
    for plane in range(4):
        x, y = docs[wanted, 2 * plane], docs[wanted, 2 * plane + 1]
        queries[:, 2 * plane] = math.cos(angle) * x - math.sin(angle) * y
        queries[:, 2 * plane + 1] = math.sin(angle) * x + math.cos(angle) * y
    queries += 0.08 * random.randn(QUERIES, DIM)
    return Collection(
        "rotated",
        [f"doc-{row}" for row in range(DOCS)],
        docs.astype(np.float32),
        queries.astype(np.float32),
        [{int(doc): 1.0} for doc in wanted],
    )


def small(relevant: list[dict[int, float]], docs: int = 20) -> Collection:
    random = np.random.RandomState(0)
    return Collection(
        "small",
        [str(row) for row in range(docs)],
        random.randn(docs, 12).astype(np.float32),
        random.randn(len(relevant), 12).astype(np.float32),
        relevant,
    )
