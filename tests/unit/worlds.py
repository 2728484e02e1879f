"""Synthetic worlds in which the reward of an output depends on its direction.

A world has two clusters of queries. Each has its centre, a random unit vector, and its own rewarded direction, another
random unit vector. A trajectory is a query near one of the centres and some steps with random unit activations: what
the system did, without knowing what is wanted. The reward of a step says how well its activation aligns with the
rewarded direction of the query's cluster: .5 for an activation across it, .2 more or less for each standard deviation
of the alignment of random directions, with noise of standard deviation .1, cut to 0 … 1.

Nothing tells the learner which cluster a query belongs to, where the centres are, or which directions are rewarded.
Learning has worked in a world if, at queries of both clusters that were held out, the output moved towards what is
rewarded there. A learner that ignores the input cannot: it moves all outputs alike, whichever cluster they are of, up
to a random sign.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.types import EMPTY, QueryTrajectory, TrajectoryStep

from .samples import Floats, unit_rows

DIM = 256
CLUSTERS = 2
SPREAD = 0.2
"""Length of the random vector that is added to a centre, which has length 1."""
HELD_OUT = 20
"""Held-out queries of each cluster."""
STEEPNESS, NOISE = 0.2, 0.1


@dataclass(frozen=True)
class World:
    """One world and what was recorded in it.

    Parameters
    ----------
    rewarded
        (2, dim): what is rewarded in each cluster.
    queries, activations, rewards
        (n, dim), (n, steps, dim) and (n, steps): the trajectories.
    held_out
        (2, 20, dim): queries of each cluster that were not recorded.
    """

    rewarded: Floats
    queries: Floats
    activations: Floats
    rewards: NDArray[np.float64]
    held_out: Floats

    def trajectories(self) -> Iterator[QueryTrajectory]:
        """What was recorded, in order."""
        for number, (query, activations, rewards) in enumerate(
            zip(self.queries, self.activations, self.rewards.tolist(), strict=True)
        ):
            steps = (TrajectoryStep(a, EMPTY, r, 0.0) for a, r in zip(activations, rewards, strict=True))
            yield QueryTrajectory(uuid.UUID(int=number), query, tuple(steps))

    def movement(self, outputs: Floats) -> NDArray[np.float32]:
        """(2,): how far the held-out outputs (2, 20, dim) of each cluster moved towards what is rewarded there."""
        moved = outputs - self.held_out
        return np.einsum("cqd,cd->c", moved, self.rewarded) / HELD_OUT


def make_world(seed: int, trajectories: int, steps: int) -> World:
    """The world of this seed."""
    random = np.random.default_rng(seed)

    def directions(*shape: int) -> Floats:
        return unit_rows(random.standard_normal((*shape, DIM), dtype=np.float32))

    centres, rewarded = directions(CLUSTERS), directions(CLUSTERS)
    cluster = np.arange(trajectories) % CLUSTERS
    queries = unit_rows(centres[cluster] + SPREAD * directions(trajectories))
    held_out = unit_rows(centres[:, None] + SPREAD * directions(CLUSTERS, HELD_OUT))
    activations = directions(trajectories, steps)
    alignment = np.einsum("nsd,nd->ns", activations, rewarded[cluster]) * np.sqrt(DIM)
    noise = NOISE * random.standard_normal(alignment.shape)
    rewards = np.clip(0.5 + STEEPNESS * alignment + noise, 0, 1).astype(np.float64)
    return World(rewarded, queries, activations, rewards, held_out)
