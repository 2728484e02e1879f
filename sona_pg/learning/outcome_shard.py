"""A part of the outcomes that a cycle makes patterns of: whoever holds it answers for its rows, which stay there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

import numpy as np

from sona_pg import kernels
from sona_pg.config import PatternConfig, VerdictConfig
from sona_pg.errors import InvalidInput
from sona_pg.learning.clusters import Doubles, Floats, Rows, Tally
from sona_pg.learning.patterns import clusters_of, starting_centroids
from sona_pg.learning.recorded import NOTHING, FedBack, Used, fed_back, used_parameters
from sona_pg.types import FloatVector, Json

FIRST_SAMPLE = 20_000
"""Rows that are clustered first where they do not all lie in one place; then four times as many, up to all."""

P = ParamSpec("P")
T = TypeVar("T")


class FreshOutcome(NamedTuple):
    """An outcome that no cycle has counted.

    Parameters
    ----------
    ordinal
        Its ledger entry.
    cluster
        The one it is in.
    quality
        What it was worth; NaN where nobody has judged it.
    used, fed_back
        Parameters by name; precision and recall.
    """

    ordinal: int
    cluster: int
    quality: float
    used: Used
    fed_back: FedBack


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What one step of Lloyd's algorithm needs of a part: sums (k, dim), counts (k,), and the objective before it."""

    sums: Doubles
    counts: Rows
    objective: float

    def __add__(self, other: Step) -> Step:
        return Step(self.sums + other.sums, self.counts + other.counts, self.objective + other.objective)


class OutcomeShard:
    """Outcomes, the oldest first.

    Parameters
    ----------
    dim
        Components of a query.
    room
        Outcomes at most.
    config
        Which parameters are kept.
    """

    def __init__(self, dim: int, room: int, config: VerdictConfig) -> None:
        self._config = config
        self._rows = np.empty((room, dim), dtype=np.float32)
        self._quality = np.empty(room)
        self._is_fresh = np.zeros(room, dtype=bool)
        self._fresh: list[tuple[int, Used, FedBack]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add_counted(self, query: FloatVector, quality: float | None) -> None:
        """An outcome that an earlier cycle has counted: it shapes the clusters, and is no news.

        Raises
        ------
        InvalidInput
            If the query is zero: it has no direction.
        """
        self._add(query, quality, is_fresh=False)

    def add_outcome(
        self,
        ordinal: int,
        query: FloatVector,
        quality: float | None,
        strategy: str,
        parameters: Json,
        precision: Json,
        recall: Json,
    ) -> bool:
        """An outcome that no cycle has counted; whether what it says of parameters could be used.

        Applications write there what they like: what is no parameters, or no precision or recall, is left out.

        Raises
        ------
        InvalidInput
            If the query is zero: it has no direction.
        """
        self._add(query, quality, is_fresh=True)
        is_usable, said = True, NOTHING
        try:
            used, _ = used_parameters(parameters, strategy, self._config)
        except InvalidInput:
            (used, _), is_usable = used_parameters(None, strategy, self._config), False
        try:
            said = fed_back(precision, recall)
        except InvalidInput:
            is_usable = False
        self._fresh.append((ordinal, used, said))
        return is_usable

    def _add(self, query: FloatVector, quality: float | None, *, is_fresh: bool) -> None:
        unit = kernels.unit(query)
        if not unit.any():
            raise InvalidInput("query embedding is zero: it has no direction")
        place, self._size = self._size, self._size + 1
        self._rows[place], self._is_fresh[place] = unit, is_fresh
        self._quality[place] = math.nan if quality is None else quality

    @property
    def rows(self) -> Floats:
        """float32 (n, dim), of unit length."""
        return self._rows[: self._size]

    # ---- what it is asked --------------------------------------------------------------------------------------------

    def nearest_counts(self, centroids: Floats) -> Rows:
        """Of how many rows each centroid (m, dim) is the nearest."""
        return np.bincount(kernels.assign(self.rows, centroids)[0], minlength=len(centroids))

    def sample(self, share: float, seed: int) -> Floats:
        """A part of the rows, the same for the same seed, in their order; a larger part has a smaller one in it."""
        if share >= 1:
            return self.rows
        random = np.random.Generator(np.random.PCG64(seed))
        return self.rows[np.sort(random.permutation(self._size)[: math.ceil(share * self._size)])]

    def kmeans(self, k: int, start: Floats | None, config: PatternConfig) -> Floats:
        """Centroids of the rows, where these are all."""
        return clusters_of(self.rows, k, start, config)[0]

    def step(self, centroids: Floats, share: float, seed: int) -> Step:
        """A step of Lloyd's algorithm from these centroids (k, dim), on a `sample`."""
        rows = self.sample(share, seed)
        labels, cosines = kernels.assign(rows, centroids)
        sums, counts = kernels.cluster_sums(rows, labels, len(centroids))
        return Step(sums, counts, float((1 - cosines.astype(np.float64)).sum()))

    def tally(self, centroids: Floats) -> tuple[Tally, list[FreshOutcome]]:
        """What the clusters of centroids (k, dim) hold, and what of it is fresh, the oldest first."""
        n = self._size
        labels, _ = kernels.assign(self.rows, centroids)
        is_fresh = self._is_fresh[:n]
        tally = Tally.of(self.rows, labels, self._quality[:n], is_fresh, len(centroids))
        places = np.flatnonzero(is_fresh)
        return tally, [
            FreshOutcome(ordinal, cluster, quality, used, said)
            for (ordinal, used, said), cluster, quality in zip(
                self._fresh, labels[places].tolist(), self._quality[places].tolist(), strict=True
            )
        ]


class OutcomeShards(Protocol):
    """Shards of a cycle, wherever they are."""

    @property
    def sizes(self) -> Sequence[int]:
        """Outcomes of each."""

    def map(self, ask: Callable[Concatenate[OutcomeShard, P], T], *args: P.args, **named: P.kwargs) -> list[T]:
        """Ask each; what they say, in their order."""


class HeldShards:
    """Shards of this process.

    Parameters
    ----------
    shards
        In their order.
    check_stop
        Called before each is asked; what it raises ends it.
    """

    def __init__(self, shards: Sequence[OutcomeShard], check_stop: Callable[[], None] = lambda: None) -> None:
        self._shards, self._check_stop = shards, check_stop

    @property
    def sizes(self) -> Sequence[int]:
        """Outcomes of each."""
        return [len(shard) for shard in self._shards]

    def map(self, ask: Callable[Concatenate[OutcomeShard, P], T], *args: P.args, **named: P.kwargs) -> list[T]:
        """Ask each."""
        said = []
        for shard in self._shards:
            self._check_stop()
            said.append(ask(shard, *args, **named))
        return said


def clustered(shards: OutcomeShards, known: Floats, config: PatternConfig) -> Floats:
    """Centroids (up to k, dim) of all rows, the same however many processes hold the shards.

    One shard clusters its rows itself. Of several a sample is clustered in one place, and Lloyd's steps go on from
    there on four times as many rows at a time (nested mini-batches, Newling & Fleuret 2016), shard by shard: a step
    needs the sums of each.

    Parameters
    ----------
    shards
        At least one outcome.
    known
        float32 (m, dim): centroids of the patterns that there are, from which it starts.
    config
        Settings.
    """
    n = sum(shards.sizes)
    k = min(config.k_clusters, max(1, n // config.min_cluster_size))
    start = None
    if len(known):
        counts = np.sum(shards.map(OutcomeShard.nearest_counts, known), axis=0)
        start = starting_centroids(known, counts, k)
    if len(shards.sizes) == 1:
        return shards.map(OutcomeShard.kmeans, k, start, config)[0]
    size = min(FIRST_SAMPLE, n)
    rows = np.concatenate(shards.map(OutcomeShard.sample, size / n, config.seed))
    centroids = clusters_of(rows, k, start, config)[0]
    while size < n:
        size = n if 8 * size >= n else 4 * size
        centroids = _moved(shards, centroids, size / n, config)
    return centroids


def _moved(shards: OutcomeShards, centroids: Floats, share: float, config: PatternConfig) -> Floats:
    """The centroids after Lloyd's steps on a share of the rows; one that has lost all rows stays where it is."""
    last = math.inf
    for _ in range(config.max_iterations):
        first, *others = shards.map(OutcomeShard.step, centroids, share, config.seed)
        step = sum(others, first)
        if last - step.objective <= config.convergence_threshold * last and math.isfinite(last):
            break
        last = step.objective
        lengths = np.sqrt(np.square(step.sums).sum(axis=1))
        moves = np.square(lengths) >= 1e-10 * np.maximum(step.counts, 1)
        centroids = centroids.copy()
        centroids[moves] = step.sums[moves] / lengths[moves, np.newaxis]
    return centroids
