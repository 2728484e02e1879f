"""Worlds for the reasoning bank: vectors of real questions with noise, and topics with a planted best parameter."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import PatternConfig
from sona_pg.learning.arrays import normalized_rows
from sona_pg.learning.reasoning_bank import ReasoningBank
from sona_pg.learning.recommendation import Recommendation
from sona_pg.types import Json, QueryTrajectory

Floats = NDArray[np.float32]

DATA = Path(os.environ.get("SONA_DATA", "../shared/data"))
"""Collections with ``docs.npy`` and ``queries.npy``."""

TIERS = ("small", "medium", "large")
EFFORTS = (20, 40, 80, 160)
DEFAULTS: Mapping[str, Json] = {"tier": TIERS[0], "effort": EFFORTS[1]}

Recommend = Callable[[Floats, Mapping[str, Json]], Mapping[str, Recommendation]]
"""What gives parameters for a query, or defaults."""


def embeddings(data: Path = DATA) -> Floats:
    """Documents and queries of all collections; where there are none, made of 50 topics with 10 themes each."""
    files = sorted(path for name in ("docs.npy", "queries.npy") for path in data.glob(f"*/{name}"))
    if files:
        return np.concatenate([np.load(path).astype(np.float32) for path in files])
    random = np.random.default_rng(1)
    topics = np.repeat(random.standard_normal((50, 384), dtype=np.float32), 10, axis=0)
    centres: Floats = topics + np.float32(0.7) * random.standard_normal((500, 384), dtype=np.float32)
    return centres[random.integers(0, 500, 6000)] + np.float32(0.7) * random.standard_normal(
        (6000, 384), dtype=np.float32
    )


def noisy(source: Floats, n: int, dim: int, seed: int, noise: float = 0.5) -> Floats:
    """Unit rows (n, dim): vectors drawn from `source`, each with noise of that length."""
    random = np.random.default_rng(seed)
    rows = normalized_rows(source[random.integers(0, len(source), n)])
    rows = rows + np.float32(noise / rows.shape[1] ** 0.5) * random.standard_normal(rows.shape, dtype=np.float32)
    return normalized_rows(np.ascontiguousarray(rows[:, :dim]))


def trajectory(query: Floats, quality: float | None, parameters: dict[str, Json] | None = None) -> QueryTrajectory:
    """One that used these parameters."""
    metadata: dict[str, Json] = {} if parameters is None else {"parameters": parameters}
    return QueryTrajectory(uuid.UUID(int=0), query, final_quality=quality, metadata=metadata)


@dataclass(frozen=True)
class Usefulness:
    """Mean expected quality on new queries of the parameters that a bank recommends, and of others.

    Parameters
    ----------
    recommended, oracle, default
        Of the bank, of whoever knows the topics, and of one fixed pair of parameters.
    """

    recommended: float
    oracle: float
    default: float


@dataclass(frozen=True)
class Topics:
    """Topics, each with a tier and an effort that are best for it.

    Parameters
    ----------
    centres
        float32 (t, dim).
    best
        By topic its best tier, and place of its best effort.
    noise
        Length of what is added to a centre to make a query.
    """

    centres: Floats
    best: tuple[tuple[str, int], ...]
    noise: float = 0.6

    @classmethod
    def planted(cls, topics: int, dim: int, random: np.random.Generator, noise: float = 0.6) -> Topics:
        """Topics in random directions with best parameters drawn at random."""
        centres = normalized_rows(random.standard_normal((topics, dim), dtype=np.float32))
        best = tuple((TIERS[random.integers(len(TIERS))], int(random.integers(len(EFFORTS)))) for _ in range(topics))
        return cls(centres, best, noise)

    def query(self, topic: int, random: np.random.Generator) -> Floats:
        """A query of a topic."""
        dim = self.centres.shape[1]
        vector = self.centres[topic] + np.float32(self.noise / dim**0.5) * random.standard_normal(dim, dtype=np.float32)
        unit: Floats = normalized_rows(vector[np.newaxis])[0]
        return unit

    def quality(self, topic: int, tier: Json, effort: Json) -> float:
        """Expected quality: .6, and .2 for the best tier, and up to .1 by how near the effort is on a log scale."""
        best_tier, best_effort = self.best[topic]
        distance = abs(np.log2(max(float(str(effort)), 1.0) / EFFORTS[best_effort]))
        return 0.6 + 0.2 * (tier == best_tier) + 0.1 * max(0.0, 1.0 - float(distance))

    def observed(self, topic: int, tier: Json, effort: Json, random: np.random.Generator, spread: float) -> float:
        """The quality with noise of this spread, 0 to 1."""
        return float(np.clip(self.quality(topic, tier, effort) + spread * random.standard_normal(), 0, 1))

    def usefulness(self, recommend: Recommend, random: np.random.Generator, queries: int = 400) -> Usefulness:
        """What is recommended for new queries is worth."""
        qualities = []
        for _ in range(queries):
            topic = int(random.integers(len(self.best)))
            found = recommend(self.query(topic, random), DEFAULTS)
            best_tier, best_effort = self.best[topic]
            qualities.append(
                (
                    self.quality(topic, found["tier"].value, found["effort"].value),
                    self.quality(topic, best_tier, EFFORTS[best_effort]),
                    self.quality(topic, DEFAULTS["tier"], DEFAULTS["effort"]),
                )
            )
        return Usefulness(*(float(mean) for mean in np.mean(qualities, axis=0)))

    def replay(self, bank: ReasoningBank, events: int, random: np.random.Generator, spread: float = 0.1) -> None:
        """Events with parameters drawn at random, and qualities with noise of this spread."""
        for _ in range(events):
            topic = int(random.integers(len(self.best)))
            tier, effort = TIERS[random.integers(len(TIERS))], EFFORTS[random.integers(len(EFFORTS))]
            quality = self.observed(topic, tier, effort, random, spread)
            bank.add_trajectory(trajectory(self.query(topic, random), quality, {"tier": tier, "effort": effort}))


def usefulness(
    seed: int, *, topics: int = 20, dim: int = 256, events: int = 2000, spread: float = 0.1, noise: float = 0.6
) -> Usefulness:
    """What a bank of default settings recommends after a replay."""
    random = np.random.default_rng(seed)
    world = Topics.planted(topics, dim, random, noise)
    bank = ReasoningBank(PatternConfig(embedding_dim=dim))
    half = events // 2
    world.replay(bank, half, random, spread)
    bank.extract_patterns(now=1.0)
    world.replay(bank, events - half, random, spread)
    bank.extract_patterns(now=2.0)
    return world.usefulness(lambda query, defaults: bank.optimized_params(query, defaults=defaults), random)
