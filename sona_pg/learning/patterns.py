"""Patterns, and the decisions on them as pure functions: which cluster is which pattern, which are one, which go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sona_pg import kernels
from sona_pg.config import PatternConfig
from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.learning.arrays import normalized_rows
from sona_pg.learning.clusters import Tally, near_duplicates
from sona_pg.types import FloatVector

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class LearnedPattern:
    """A kind of query, and what is known of it.

    Parameters
    ----------
    id
        For life.
    centroid
        float32 (dim,).
    cluster_size
        Trajectories of its cluster when it was last fed.
    total_weight
        Trajectories that ever fed it, each counted once, weighted down as they age.
    avg_quality
        Mean quality of those that were judged, when it was last fed; the prior where none was.
    created_at, last_accessed
        Seconds since the epoch.
    access_count
        How often it was found.
    confidence
        0 to 1, how sure the average quality is.
    support
        Judged trajectories that ever fed it.
    best_strategy
        Strategy whose answers were best, where they were recorded.
    abstraction_level
        0 for a cluster of trajectories, 1 for a pattern of patterns, and so on.
    children
        Ids of the patterns that it is made of.
    title, description, content
        Text that an application attached.
    updated_at
        When it was last fed, seconds since the epoch.
    decayed_at
        Up to when its weight is weighted down.

    Examples
    --------
    >>> first = LearnedPattern(1, np.array([1, 0], np.float32), 10, 5.0, 0.8, 100, 200, 5)
    >>> second = LearnedPattern(2, np.array([0, 1], np.float32), 10, 5.0, 0.9, 150, 250, 3)
    >>> merged = first.merge(second)
    >>> merged.id, merged.cluster_size, merged.centroid.tolist(), round(merged.avg_quality, 6)
    (1, 20, [0.5, 0.5], 0.85)
    """

    id: int
    centroid: FloatVector
    cluster_size: int
    total_weight: float
    avg_quality: float
    created_at: float
    last_accessed: float
    access_count: int = 0
    confidence: float = 0.0
    support: int = 0
    best_strategy: str | None = None
    abstraction_level: int = 0
    children: tuple[int, ...] = ()
    title: str | None = None
    description: str | None = None
    content: str | None = None
    updated_at: float = 0.0
    decayed_at: float = 0.0

    def merge(self, other: LearnedPattern) -> LearnedPattern:
        """Both as one, with this one's id and, where it has none, the other's text.

        Centroid, quality and confidence are weighted by size (alike where both are empty); sizes, weights, support
        and accesses are summed; the earliest creation and the latest access hold.

        Raises
        ------
        DimensionMismatch
            If their centroids differ in dimension.
        """
        if self.centroid.shape != other.centroid.shape:
            raise DimensionMismatch(self.centroid.size, other.centroid.size, "centroid")
        total = self.cluster_size + other.cluster_size
        first = self.cluster_size / total if total else 0.5
        second = 1 - first
        # Weights are brought to the same time before they are added: by whoever knows the half-life.
        return replace(
            self,
            centroid=(np.float32(first) * self.centroid + np.float32(second) * other.centroid),
            cluster_size=total,
            total_weight=self.total_weight + other.total_weight,
            avg_quality=first * self.avg_quality + second * other.avg_quality,
            created_at=min(self.created_at, other.created_at),
            last_accessed=max(self.last_accessed, other.last_accessed),
            access_count=self.access_count + other.access_count,
            confidence=first * self.confidence + second * other.confidence,
            support=self.support + other.support,
            best_strategy=self.best_strategy or other.best_strategy,
            children=tuple(dict.fromkeys((*self.children, *other.children))),
            title=self.title or other.title,
            description=self.description or other.description,
            content=self.content or other.content,
            updated_at=max(self.updated_at, other.updated_at),
            decayed_at=max(self.decayed_at, other.decayed_at),
        )

    def decay(self, factor: float) -> LearnedPattern:
        """With its weight times a factor, 0 to 1.

        Raises
        ------
        InvalidInput
            If the factor is not from 0 to 1.
        """
        if not 0 <= factor <= 1:
            raise InvalidInput(f"decay factor is {factor!r}, expected 0 to 1")
        return replace(self, total_weight=self.total_weight * factor)

    def decayed_to(self, now: float, half_life_seconds: float) -> LearnedPattern:
        """With its weight as old as it is now: ``2^(-Δt / half-life)`` of it; at the same time once more is nothing."""
        if now <= self.decayed_at:
            return self
        return replace(self.decay(2.0 ** (-(now - self.decayed_at) / half_life_seconds)), decayed_at=now)

    def should_prune(self, min_quality: float, min_accesses: int) -> bool:
        """Whether it is both of low quality and little used; whether it is old is for whoever knows the time."""
        return self.avg_quality < min_quality and self.access_count < min_accesses


def confidence_of(support: int, config: PatternConfig) -> float:
    """``n / (n + prior)`` for n judged trajectories."""
    return support / (support + config.confidence_prior) if support else 0.0


def is_prunable(pattern: LearnedPattern, now: float, config: PatternConfig) -> bool:
    """Whether a pattern is of low quality AND unused AND old; one of which nothing was judged is not of low quality.

    A pattern of patterns is none: it comes and goes with the hierarchy.
    """
    touched = max(pattern.created_at, pattern.last_accessed, pattern.updated_at)
    return (
        pattern.abstraction_level == 0
        and pattern.support > 0
        and pattern.should_prune(config.quality_threshold, config.prune_accesses)
        and now - touched > config.prune_age_seconds
    )


# ---- clusters --------------------------------------------------------------------------------------------------------


def match_clusters(clusters: Floats, patterns: Floats, threshold: float) -> Rows:
    """By cluster (k,) the pattern (m,) that it is, -1 where it is a new one: the assignment with the most cosine.

    Pairs below the threshold are none. The rest falls into components that share neither clusters nor patterns; each
    is solved exactly (Kuhn 1955).

    Parameters
    ----------
    clusters, patterns
        float32 (k, dim) and (m, dim), not zero.
    threshold
        Least cosine of a cluster to the pattern that it is.
    """
    matched = np.full(len(clusters), -1, dtype=np.int64)
    if not len(clusters) or not len(patterns):
        return matched
    cosines = (normalized_rows(clusters) @ normalized_rows(patterns).T).astype(np.float64)
    # What a pair is worth: more than nothing, so that as many as can be are matched.
    worth = np.where(cosines >= threshold, cosines + 1 + 1e-9, 0.0)
    left = set(np.flatnonzero(worth.any(axis=1)).tolist())
    while left:
        rows, columns = {left.pop()}, set[int]()
        while True:
            reached = set(np.flatnonzero(worth[list(rows)].any(axis=0)).tolist())
            back = set(np.flatnonzero(worth[:, list(reached)].any(axis=1)).tolist())
            if reached == columns and back == rows:
                break
            rows, columns = back, reached
        left -= rows
        own, other = sorted(rows), sorted(columns)
        for row, column in zip(own, assignment(worth[np.ix_(own, other)]), strict=True):
            if column >= 0 and worth[row, other[column]] > 0:
                matched[row] = other[column]
    return matched


def assignment(worth: Doubles) -> list[int]:
    """By row the column, -1 for none, of the assignment with the most worth (n, m) >= 0 (Jonker & Volgenant 1987)."""
    n, m = worth.shape
    if n == 1:
        return [int(np.argmax(worth[0]))]
    if n > m:
        by_column = assignment(worth.T)
        found = [-1] * n
        for column, row in enumerate(by_column):
            found[row] = column
        return found
    cost = -worth
    u, v = np.zeros(n + 1), np.zeros(m + 1)
    owner = np.zeros(m + 1, dtype=np.int64)  # the row of a column, counted from 1; column 0 is the one to be placed
    for row in range(1, n + 1):
        owner[0], column = row, 0
        least, from_column = np.full(m + 1, np.inf), np.zeros(m + 1, dtype=np.int64)
        used = np.zeros(m + 1, dtype=bool)
        while owner[column]:
            used[column] = True
            reduced = cost[owner[column] - 1] - u[owner[column]] - v[1:]
            better = ~used[1:] & (reduced < least[1:])
            least[1:][better] = reduced[better]
            from_column[1:][better] = column
            following = int(np.argmin(np.where(used, np.inf, least)[1:])) + 1
            delta = least[following]
            u[owner[used]] += delta
            v[used] -= delta
            least[~used] -= delta
            column = following
        while column:
            owner[column] = owner[from_column[column]]
            column = int(from_column[column])
    found = [-1] * n
    for column in range(1, m + 1):
        if owner[column]:
            found[owner[column] - 1] = column - 1
    return found


def level_centroids(patterns: Sequence[LearnedPattern], dim: int, level: int = 0) -> Floats:
    """Centroids float32 (m, dim) of the patterns of a level, in their order."""
    own = [pattern.centroid for pattern in patterns if pattern.abstraction_level == level]
    return np.array(own, dtype=np.float32).reshape(len(own), dim)


def starting_centroids(centroids: Floats, counts: Rows, k: int) -> Floats:
    """Centroids (up to k, dim) of those that rows are nearest to, by how many (m,), most rows first."""
    order = np.argsort(-counts, kind="stable")
    return centroids[order[: min(k, int((counts > 0).sum()))]]


def clusters_of(rows: Floats, k: int, start: Floats | None, config: PatternConfig) -> tuple[Floats, Rows]:
    """Up to k centroids of rows (n, dim), and by row its cluster; see `kernels.kmeans`."""
    centroids, labels, _, _ = kernels.kmeans(
        rows,
        k,
        seed=config.seed,
        max_iterations=config.max_iterations,
        tolerance=config.convergence_threshold,
        start=start,
    )
    return centroids, labels


def moved_centroid(centroid: FloatVector, size: int, row: FloatVector) -> FloatVector:
    """The centroid (dim,) of a cluster of `size` rows after one more unit row, between extractions.

    ``c + (x - c) / n``, n the size with it, at unit length (MacQueen 1967); the centroid itself where they cancel out.
    """
    moved = centroid + (row - centroid) / np.float32(size + 1)
    return kernels.unit(moved) if np.square(moved).sum() > 1e-10 else centroid


# ---- patterns over time ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """What an extraction does to patterns.

    Parameters
    ----------
    patterns
        All of them as they are now, by id.
    members
        By cluster the id of its pattern, -1 where it is too small for one.
    created, updated
        Ids.
    """

    patterns: dict[int, LearnedPattern]
    members: Rows
    created: tuple[int, ...]
    updated: tuple[int, ...]


def changed(
    patterns: Sequence[LearnedPattern],
    clusters: Tally,
    now: float,
    next_id: int,
    config: PatternConfig,
) -> Change:
    """Patterns after an extraction: clusters are matched to those there were, what is left begins new ones.

    Parameters
    ----------
    patterns
        As they were. Clusters are patterns of level 0: patterns of patterns merely age.
    clusters
        Of the trajectories that are there now.
    now
        Seconds since the epoch.
    next_id
        Id of the first new pattern; the next ones follow.
    """
    kept = {pattern.id: pattern.decayed_to(now, config.half_life_seconds) for pattern in patterns}
    ids = [id for id, pattern in kept.items() if pattern.abstraction_level == 0]
    centroids, qualities = clusters.centroids, clusters.quality
    old = level_centroids(list(kept.values()), centroids.shape[1])
    matched = match_clusters(centroids, old, config.match_threshold)
    members = np.full(len(clusters), -1, dtype=np.int64)
    created, updated = [], []
    for c in range(len(clusters)):
        size, centroid = int(clusters.sizes[c]), centroids[c].copy()
        centroid.setflags(write=False)
        if matched[c] < 0 and size < config.min_cluster_size:
            continue
        if matched[c] >= 0:
            was = kept[ids[int(matched[c])]]
            updated.append(was.id)
        else:
            was = LearnedPattern(next_id, centroid, 0, 0.0, config.prior_quality, now, now, decayed_at=now)
            created.append(next_id)
            next_id += 1
        fresh = int(clusters.fresh[c])
        support = was.support + int(clusters.fresh_judged[c])
        quality = float(qualities[c])
        members[c] = was.id
        kept[was.id] = replace(
            was,
            centroid=centroid,
            cluster_size=size,
            total_weight=was.total_weight + fresh,
            avg_quality=was.avg_quality if math.isnan(quality) else quality,
            support=support,
            confidence=confidence_of(support, config),
            updated_at=now if fresh else was.updated_at,
        )
    return Change(kept, members, tuple(created), tuple(updated))


def merge_plan(patterns: Sequence[LearnedPattern], threshold: float) -> dict[int, int]:
    """By id of a pattern that is a near duplicate, the lower id of the one that it becomes part of.

    Only patterns of one abstraction level are compared.
    """
    plan: dict[int, int] = {}
    for level in sorted({pattern.abstraction_level for pattern in patterns}):
        # Ids are given in order. The older stands: what is known by an id stays known by it.
        own = sorted((p for p in patterns if p.abstraction_level == level), key=lambda p: p.id)
        into = near_duplicates(
            np.array([p.centroid for p in own], dtype=np.float32), -np.arange(len(own), dtype=np.float64), threshold
        )
        plan |= {own[i].id: own[int(j)].id for i, j in enumerate(into) if i != j}
    return plan


def merged_patterns(
    patterns: Sequence[LearnedPattern], plan: dict[int, int], now: float, config: PatternConfig
) -> list[LearnedPattern]:
    """The patterns after a plan of `merge_plan`; those that were merged keep unit centroids, and rename children."""
    kept = {pattern.id: pattern for pattern in patterns}
    for id, into in plan.items():
        merged = (
            kept[into]
            .decayed_to(now, config.half_life_seconds)
            .merge(kept.pop(id).decayed_to(now, config.half_life_seconds))
        )
        centroid = normalized_rows(merged.centroid[np.newaxis])[0]
        centroid.setflags(write=False)
        kept[into] = replace(merged, centroid=centroid, confidence=confidence_of(merged.support, config))
    if not plan:
        return list(kept.values())
    return [replace(p, children=tuple(dict.fromkeys(plan.get(c, c) for c in p.children))) for p in kept.values()]
