"""An application that uses the parameters recommended to it and records what came of them, through Postgres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.bank_worlds import DEFAULTS, EFFORTS, TIERS, Floats, Topics, Usefulness
from sona_pg.config import PatternConfig, StoreConfig
from sona_pg.engine import SonaEngine
from sona_pg.loops.background import BACKGROUND
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.store.connection import connect
from sona_pg.store.database import Database
from sona_pg.types import Json

LEAST_EXPLORED = 0.1
"""A value is drawn at random with the probability that the recommended one is not the best, and never more rarely."""


@dataclass(frozen=True)
class Replayed:
    """What a replay has come to.

    Parameters
    ----------
    usefulness
        Of what is recommended at the end.
    good_quality
        Mean quality of the patterns above the threshold.
    patterns
        How many there are.
    """

    usefulness: Usefulness
    good_quality: float
    patterns: int


def replay(
    engine: SonaEngine, seed: int, *, topics: int = 20, events: int = 2000, every: int = 200, spread: float = 0.2
) -> Replayed:
    """Events about topics with planted parameters, a cycle of the default loop after every so many.

    Parameters
    ----------
    engine
        On a fresh space, which learns when it is told to.
    seed
        Of the topics and the noise.
    topics, events, spread
        How many, and the standard deviation of what is observed about its mean.
    every
        Events between two cycles.
    """
    random = np.random.default_rng(seed)
    world = Topics.planted(topics, engine.space.dim, random)
    coordinator = LoopCoordinator(Database(engine.url, StoreConfig()), BACKGROUND)
    with connect(engine.url) as connection:
        for event in range(events):
            topic = int(random.integers(topics))
            query = world.query(topic, random)
            used = _chosen(engine, query, random)
            quality = world.observed(topic, used["tier"], used["effort"], random, spread)
            engine.record(query, ["answer"], quality=quality, metadata={"parameters": used})
            if (event + 1) % every == 0:
                engine.flush()
                connection.execute("SELECT sona.run_cycle(%s, 'background')", (engine.space.name,))
                if coordinator.step() < 1 or coordinator.failing:
                    raise RuntimeError(f"the cycle after {event + 1} events did not run: see sona.runs")
        coordinator.close()
        ((good, patterns),) = connection.execute(
            "SELECT coalesce(avg(avg_quality) FILTER (WHERE avg_quality >= %s), 0), count(*) FROM sona.patterns"
            " WHERE space = %s",
            (PatternConfig().quality_threshold, engine.space.name),
        ).fetchall()
    return Replayed(world.usefulness(engine.optimized_params, random), good, patterns)


def _chosen(engine: SonaEngine, query: Floats, random: np.random.Generator) -> dict[str, Json]:
    """What is recommended, as far as it is sure, and something else at random."""
    drawn: dict[str, Json] = {
        "tier": TIERS[random.integers(len(TIERS))],
        "effort": EFFORTS[random.integers(len(EFFORTS))],
    }
    found = engine.optimized_params(query, DEFAULTS)
    explored = {name for name in drawn if random.random() < max(LEAST_EXPLORED, 1 - found[name].confidence)}
    return {name: drawn[name] if name in explored else found[name].value for name in drawn}
