"""The fusion's features item by item, from dictionaries: slow, plain, and another truth than the arrays of the twin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import StrategyConfig
from sona_pg.learning.fusion import SHARPNESS
from sona_pg.learning.remembered import Remembered

_NEAR = (0.5, 0.7, 0.85)
_MISSED = (0.5, 0.8)


class Neighbourhood:
    """What the events nearest to a query say.

    Parameters
    ----------
    events
        The nearest ones, nearest first.
    config
        Settings.
    """

    def __init__(self, events: Sequence[Remembered], config: StrategyConfig) -> None:
        self.familiarity = max(events[0].similarity, 0.0) if events else 0.0
        low, width = config.familiar_from, config.familiar_width
        self.gate = min(max((self.familiarity - low) / width, 0.0), 1.0)
        """How familiar the ground is, 0 to 1: the adapter is served by so much of it."""
        self.nearest_help: dict[str, float] = {}
        """By item, the largest similarity of an event in which it helped."""
        self.votes: dict[str, float] = {}
        """By item, the kernel-weighted sum of how much it helped."""
        self.nearest_miss: dict[str, float] = {}
        """By item, the largest similarity of an event in which it was shown and did not help."""
        for place, (similarity, helped, unhelpful) in enumerate(events):
            weight = math.exp((similarity - 1.0) / config.vote_kernel)
            for item, reward in helped.items():
                self.nearest_help.setdefault(item, similarity)
                self.votes[item] = self.votes.get(item, 0.0) + weight * reward
            if place < config.misses_near:
                for item in unhelpful:
                    self.nearest_miss.setdefault(item, similarity)


@dataclass(frozen=True, slots=True)
class Cosines:
    """Cosines of candidates to a query as the strategies ask it, float32 (n,) each.

    Parameters
    ----------
    frozen
        To the query itself.
    adapted
        To the adapted query.
    familiar
        To the query adapted by as much as the ground is familiar.
    """

    frozen: NDArray[np.float32]
    adapted: NDArray[np.float32]
    familiar: NDArray[np.float32]


def features(
    items: Sequence[str],
    cosines: Cosines,
    around: Neighbourhood,
    times_helped: Sequence[int] | NDArray[np.int64],
    best: float,
) -> NDArray[np.float64]:
    """What is known of candidates, (n, len(FEATURES)).

    Parameters
    ----------
    items
        The candidates.
    cosines
        As the strategies see them.
    around
        What the nearest events say.
    times_helped
        In how many events each helped.
    best
        The largest cosine of any item to the query.
    """
    frozen = cosines.frozen.astype(np.float64)
    help_near = np.array([around.nearest_help.get(item, 0.0) for item in items])
    missed = np.array([around.nearest_miss.get(item, 0.0) for item in items])
    vote = np.array([around.votes.get(item, 0.0) for item in items])
    counts = np.asarray(times_helped, dtype=np.float64)
    total = sum(around.votes.values())
    near = [np.maximum(help_near - edge, 0.0) for edge in _NEAR]
    ever = (counts > 0).astype(np.float64)
    columns = [
        SHARPNESS * frozen,
        SHARPNESS * (cosines.familiar - frozen),
        SHARPNESS * (cosines.adapted - frozen),
        *near,
        2.0 * np.log1p(vote),
        vote / total if total > 0 else vote,
        *(hinge * (frozen - best) for hinge in near),
        *(np.maximum(missed - edge, 0.0) for edge in _MISSED),
        np.log1p(counts),
        ever,
        *(ever * max(around.familiarity - edge, 0.0) for edge in _NEAR),
    ]
    return np.stack(columns, axis=1)
