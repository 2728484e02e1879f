"""Regions of the query space, each with evidence of its own: a coarse partition that needs no cycle."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import StrategyConfig
from sona_pg.errors import LearningError
from sona_pg.learning.arrays import check_parts
from sona_pg.learning.evidence import LARGEST, STAKES, late_start
from sona_pg.learning.patterns import match_clusters
from sona_pg.types import FloatVector


class Verdict(enum.IntEnum):
    """What a region's own evidence says of the fusion."""

    WORSE = -1
    """Proven to be worse than frozen there."""
    FOLLOWS = 0
    """Nothing is proven: the region does as the space does."""
    BETTER = 1
    """Proven to be better than frozen there."""


@dataclass(frozen=True, slots=True)
class Region:
    """A region as it stands.

    Parameters
    ----------
    centroid
        float32 (dim,).
    events
        How many fell into it.
    gain
        Mean gain of the fusion over frozen, shrunk to that of the space.
    verdict
        What is proven.
    pattern
        Id of the pattern that it is; None while it is none.
    """

    centroid: FloatVector
    events: int
    gain: float
    verdict: Verdict
    pattern: int | None = None


class Regions:
    """Sequential k-means over queries (MacQueen 1967), and e-processes on the fusion's gain in each of them.

    A region follows the space until it is proven otherwise there: better by a sum of bets that starts early and late,
    worse by an e-detector, as the gate of the space; at a threshold that holds for all regions together.

    It needs no cycle to begin. Once cycles have found patterns, a region becomes the pattern that it is near, and goes
    where that goes; what is known of it stays.

    Parameters
    ----------
    dim
        Dimension of queries.
    config
        Settings.
    threshold
        1/α for all regions together.
    """

    def __init__(self, dim: int, config: StrategyConfig, threshold: float) -> None:
        k = config.regions
        self._config, self._threshold = config, threshold * k
        self._centroids = np.zeros((k, dim), dtype=np.float32)
        self._counts = np.zeros(k, dtype=np.int64)
        self._sums = np.zeros((k + 1, 2))
        """Of weights and of gains, recent ones counting more; the last row is the whole space."""
        self._better = np.full((k, len(STAKES)), 1.0 - config.gate_later)
        self._worse = np.ones((k, len(STAKES)))
        self._started = np.zeros(k, dtype=np.int64)
        self._verdicts = np.zeros(k, dtype=np.int64)
        self._patterns = np.zeros(k, dtype=np.int64)
        """Ids, 0 for none."""

    def __len__(self) -> int:
        return int(np.count_nonzero(self._counts))

    def find(self, query: FloatVector) -> int | None:
        """The region that a unit query (dim,) falls into; None before there is one."""
        n = len(self)
        return int(np.argmax(self._centroids[:n] @ query)) if n else None

    @property
    def has_better(self) -> bool:
        """Whether the fusion is proven to be better in any of them."""
        return bool((self._verdicts == Verdict.BETTER).any())

    def verdict(self, query: FloatVector) -> Verdict:
        """What is proven where a unit query (dim,) falls."""
        place = self.find(query)
        return Verdict.FOLLOWS if place is None else Verdict(int(self._verdicts[place]))

    def add(self, query: FloatVector, gain: float) -> tuple[int, bool]:
        """Take in the fusion's gain over frozen, -1 to 1, on an event; its region, and whether the verdict turned."""
        place = self._assign(query)
        c = self._config
        for sums in (self._sums[place], self._sums[-1]):
            sums *= c.stake_keep
            sums += (1.0, gain)
        before = self._verdicts[place]
        if before != Verdict.BETTER:
            self._started[place] += 1
            starts = late_start(int(self._started[place]), c.gate_later)
            self._better[place] = np.minimum((self._better[place] + starts) * (1.0 + STAKES * gain), LARGEST)
        if before != Verdict.WORSE:
            self._worse[place] = np.minimum(np.maximum(self._worse[place], 1.0) * (1.0 - STAKES * gain), LARGEST)
        if before != Verdict.BETTER and self._better[place].sum() >= len(STAKES) * self._threshold:
            self._verdicts[place], self._worse[place] = Verdict.BETTER, 1.0
        elif before != Verdict.WORSE and self._worse[place].sum() >= len(STAKES) * self._threshold:
            self._verdicts[place], self._better[place], self._started[place] = Verdict.WORSE, 1.0 - c.gate_later, 0
        return place, bool(self._verdicts[place] != before)

    def _assign(self, query: FloatVector) -> int:
        place = self.find(query)
        is_far = place is None or float(self._centroids[place] @ query) < self._config.region_near
        if place is None or (is_far and len(self) < len(self._counts)):
            place = len(self)
        self._counts[place] += 1
        moved = self._centroids[place] + (query - self._centroids[place]) / np.float32(self._counts[place])
        length = math.sqrt(float(moved @ moved))
        # Opposite queries may cancel: the centroid stays where it was then.
        if length > 1e-6:
            self._centroids[place] = moved / np.float32(length)
        return place

    def become(self, ids: Sequence[int], centroids: NDArray[np.float32]) -> None:
        """Let regions be patterns: each the one that it was, if that is still there, else the one that it is near.

        A region that is near none stays where it is, and so does its evidence: nothing that is known is lost.

        Parameters
        ----------
        ids, centroids
            Patterns, ids from 1 and unit centroids (m, dim).
        """
        n = len(self)
        own, place = self._patterns[:n], {id: m for m, id in enumerate(ids)}
        own[~np.isin(own, list(ids))] = 0
        free = np.flatnonzero(own == 0)
        taken = set(own.tolist())
        others = [m for m, id in enumerate(ids) if id not in taken]
        near = match_clusters(self._centroids[free], centroids[others], self._config.region_pattern)
        for region, m in zip(free, near, strict=True):
            if m >= 0:
                own[region] = ids[others[int(m)]]
        for region in np.flatnonzero(own):
            self._centroids[region] = centroids[place[int(own[region])]]

    def describe(self) -> list[Region]:
        """Every region as it stands."""
        weight, total = self._sums[-1]
        space, prior = (total / weight if weight else 0.0), self._config.region_prior
        return [
            Region(
                self._centroids[r].copy(),
                int(self._counts[r]),
                float((self._sums[r, 1] + prior * space) / (self._sums[r, 0] + prior)),
                Verdict(int(self._verdicts[r])),
                int(self._patterns[r]) or None,
            )
            for r in range(len(self))
        ]

    def restore(self, centroids: NDArray[np.float32], verdicts: Sequence[int]) -> None:
        """Go back to verdicts of another time, and to where the regions were then; evidence begins anew.

        Parameters
        ----------
        centroids, verdicts
            (n, dim) and (n,), of no more regions than there are; none where all followed the space.
        """
        k = len(self._counts)
        self._centroids[: len(centroids)] = centroids
        self._verdicts[:] = [*verdicts, *[0] * (k - len(verdicts))]
        self._better[:], self._worse[:], self._started[:] = 1.0 - self._config.gate_later, 1.0, 0
        # Where they were then need not be where the patterns are: the next cycle says which they are.
        self._patterns[:] = 0

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that a continuation needs, as arrays."""
        return {
            "centroids": self._centroids,
            "counts": self._counts,
            "sums": self._sums,
            "better": self._better,
            "worse": self._worse,
            "started": self._started,
            "verdicts": self._verdicts,
            "patterns": self._patterns,
        }

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave; bit for bit."""
        own = self.state()
        # A state from before there were patterns.
        state = {"patterns": np.zeros_like(self._patterns), **state}
        check_parts("regions", state, own, signed=("verdicts",))
        verdicts = np.asarray(state["verdicts"])
        if not np.isin(verdicts, list(Verdict)).all():
            raise LearningError(
                f"verdicts of the regions' state are {verdicts.tolist()}, expected -1, 0 or 1: it is damaged"
            )
        for name, part in own.items():
            part[...] = state[name]
