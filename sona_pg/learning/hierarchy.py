"""The hierarchy of patterns: patterns of patterns, by Ward's method, with ids that hold from run to run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sona_pg import kernels
from sona_pg.config import HierarchyConfig, PatternConfig
from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.learning.arrays import as_matrix, normalized_rows
from sona_pg.learning.patterns import LearnedPattern, assignment, confidence_of

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

FIRST_CONCEPT = 1 << 40
"""Patterns of patterns that are kept apart are numbered for themselves: beside patterns, their ids begin here."""


@dataclass(frozen=True, slots=True)
class PatternHierarchy:
    """Meta-patterns, and what became of those that there were.

    Parameters
    ----------
    patterns
        All meta-patterns, level by level: of level 1 with patterns as children, of level 2 with those of level 1, and
        so on.
    created, updated, retired
        Ids of those that are new, that were there before, and that are no more.
    """

    patterns: tuple[LearnedPattern, ...]
    created: tuple[int, ...]
    updated: tuple[int, ...]
    retired: tuple[int, ...]


def pattern_hierarchy(
    patterns: Sequence[LearnedPattern],
    *,
    next_id: int,
    now: float,
    config: HierarchyConfig | None = None,
    pattern_config: PatternConfig | None = None,
) -> PatternHierarchy:
    """Patterns of patterns, up to three levels.

    Ward's tree (Ward 1963) over the centroids, cut where its gaps are widest: near sqrt(n) meta-patterns of level 1,
    n^(1/4) of level 2, n^(1/8) of level 3. A level of fewer than two, or of no fewer than the one below, is left out:
    fewer than four patterns have none. A pattern counts once in the tree, and by its size in centroid and quality.

    The hierarchy of the run before holds, new patterns put where they are nearest, as long as a new tree would not be
    clearly tighter: a tree over data without gaps is another one after every small change. Of a new tree a
    meta-pattern is the one of the run before with which it shares the most patterns: the assignment of the largest sum
    of Jaccard indices (Kuhn 1955), level by level.

    Parameters
    ----------
    patterns
        All patterns of the space, with the meta-patterns of the run before.
    next_id
        Id of the first new meta-pattern; the next ones follow.
    now
        Seconds since the epoch.
    config, pattern_config
        Settings; of the patterns the half-life of weights and the prior of confidence.

    Raises
    ------
    InvalidInput
        If a meta-pattern has itself, directly or not, or anything but patterns of the level below as children, an id
        is there twice, or a centroid is zero or not finite.
    DimensionMismatch
        If centroids differ in dimension.

    Examples
    --------
    >>> rows = normalized_rows(np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [0, 0.9]], dtype=np.float32))
    >>> patterns = [LearnedPattern(i, row, 10, 10.0, 0.5, 0.0, 0.0) for i, row in enumerate(rows, start=1)]
    >>> [meta.children for meta in pattern_hierarchy(patterns, next_id=6, now=0.0).patterns]
    [(1, 2), (3, 4, 5)]
    """
    config = HierarchyConfig() if config is None else config
    pattern_config = PatternConfig() if pattern_config is None else pattern_config
    by_id = {pattern.id: pattern for pattern in patterns}
    if len(by_id) < len(patterns):
        raise InvalidInput("two patterns have the same id: pass every pattern once")
    if by_id and next_id <= max(by_id):
        raise InvalidInput(f"the next id is {next_id}, expected one above {max(by_id)}: ids are given once")
    base = sorted((p for p in patterns if p.abstraction_level == 0), key=lambda p: p.id)
    rows, members = _centroids(base), _members(by_id)
    cuts = _cuts(rows, [p.id for p in base], by_id, members, config)
    below = [p.decayed_to(now, pattern_config.half_life_seconds) for p in base]
    made: list[LearnedPattern] = []
    created: list[int] = []
    labels_below = np.arange(len(base))
    for level, cut in enumerate(cuts, start=1):
        level_made = []
        for children, id in zip(_grouped(labels_below, cut.labels, below), cut.ids, strict=True):
            if id is None:
                id, next_id = next_id, next_id + 1
                created.append(id)
            level_made.append(_meta_pattern(id, level, children, by_id.get(id), now, pattern_config))
        made += level_made
        below, labels_below = level_made, cut.labels
    kept = {p.id for p in made}
    old = [p.id for p in patterns if p.abstraction_level > 0]
    return PatternHierarchy(
        tuple(made), tuple(created), tuple(id for id in old if id in kept), tuple(id for id in old if id not in kept)
    )


def _centroids(patterns: Sequence[LearnedPattern]) -> Floats:
    if not patterns:
        return np.zeros((0, 1), dtype=np.float32)
    dim = patterns[0].centroid.size
    for pattern in patterns:
        if pattern.centroid.size != dim:
            raise DimensionMismatch(dim, pattern.centroid.size, f"centroid of pattern {pattern.id}")
    rows = as_matrix(np.array([p.centroid for p in patterns]), dim, "centroids")
    if not rows.any(axis=1).all():
        raise InvalidInput("a pattern's centroid is zero: it has no direction")
    return normalized_rows(rows)


def _members(by_id: Mapping[int, LearnedPattern]) -> dict[int, frozenset[int]]:
    """By id of a meta-pattern the patterns of level 0 that it is made of, those that are still there."""
    members: dict[int, frozenset[int]] = {p.id: frozenset((p.id,)) for p in by_id.values() if not p.abstraction_level}
    for meta in sorted((p for p in by_id.values() if p.abstraction_level), key=lambda p: p.abstraction_level):
        children = [by_id[child] for child in meta.children if child in by_id]
        wrong = [child.id for child in children if child.abstraction_level != meta.abstraction_level - 1]
        if wrong:
            raise InvalidInput(
                f"pattern {meta.id} of level {meta.abstraction_level} has child {wrong[0]} of level "
                f"{by_id[wrong[0]].abstraction_level}, expected the level below: a hierarchy has no cycles"
            )
        members[meta.id] = frozenset[int]().union(*(members[child.id] for child in children))
    return members


# ---- the tree --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """A level: by row (n,) its cluster, numbered by their first row, and by cluster its id, None for a new one."""

    labels: Rows
    ids: list[int | None]


def _cuts(
    rows: Floats, base: list[int], by_id: Mapping[int, LearnedPattern], members: Mapping[int, frozenset[int]],
    config: HierarchyConfig,
) -> list[_Cut]:  # fmt: skip
    """Levels of the hierarchy; each joins clusters of the one below."""
    n = len(rows)
    if n < 4:
        return []
    # Only here: it is a second of start-up, and most processes never need it.
    from scipy.cluster.hierarchy import linkage

    means, first = rows, np.arange(n)
    if n > config.max_rows:
        means, labels, _, _ = kernels.kmeans(rows, config.max_rows // 4, seed=config.seed)
        filled, first = np.unique(labels, return_inverse=True)
        means, first = means[filled], first.reshape(n)
    tree = linkage(means.astype(np.float64), "ward")

    def cut(k: int) -> Rows:
        return _by_first_row(_clusters(tree, k)[first])

    ranges = [_range(n**0.5**level, config.branching) for level in range(1, config.levels + 1)]
    fresh: list[Rows] = []
    for low, high in ranges:
        fewer_than = int(fresh[-1].max()) + 1 if fresh else len(means) + 1
        k = _widest_gap(tree[:, 2], low, min(high, fewer_than - 1))
        if k is None:
            break
        fresh.append(cut(k))
    before = _continued(rows, base, by_id)[: config.levels]
    if len(before) >= len(fresh) and all(
        low <= len(level.ids) <= min(high, len(means))
        and _scatter(rows, level.labels) <= (1 + config.tolerance) * _scatter(rows, cut(len(level.ids)))
        for level, (low, high) in zip(before, ranges, strict=False)
    ):
        return before
    found = []
    for level, labels in enumerate(fresh, start=1):
        own = [{base[i] for i in np.flatnonzero(labels == c)} for c in range(int(labels.max()) + 1)]
        known = {id: members[id] for id, p in by_id.items() if p.abstraction_level == level}
        found.append(_Cut(labels, _matched(own, known, config.match_overlap)))
    return found


def _clusters(tree: NDArray[np.float64], k: int) -> Rows:
    """By row (n,) its cluster, exactly k of them: SciPy's own cut makes fewer where merges are of one height."""
    n = len(tree) + 1
    root = np.arange(2 * n - 1)
    for merge in range(n - k - 1, -1, -1):
        root[tree[merge, :2].astype(np.int64)] = root[n + merge]
    return root[:n]


def _continued(rows: Floats, base: list[int], by_id: Mapping[int, LearnedPattern]) -> list[_Cut]:
    """Levels of the run before for the patterns that there are now; none where it does not reach all of them."""
    parent = {child: p.id for p in by_id.values() for child in p.children}
    at = [parent.get(id) for id in base]
    alive = sorted({id for id in at if id is not None})
    if not alive:
        return []
    new = [place for place, id in enumerate(at) if id is None]
    if new:
        nearest, _ = kernels.assign(rows[new], np.array([by_id[id].centroid for id in alive], dtype=np.float32))
        for place, c in zip(new, nearest, strict=True):
            at[place] = alive[int(c)]
    found = []
    while all(id is not None for id in at):
        labels = _by_first_row(np.array(at, dtype=np.int64))
        found.append(_Cut(labels, [at[int(row)] for row in np.unique(labels, return_index=True)[1]]))
        at = [parent.get(id) for id in at if id is not None]
    return found


def _scatter(rows: Floats, labels: Rows) -> float:
    """Sum of squared distances of unit rows to the means of their clusters, what Ward's method keeps small."""
    k = int(labels.max()) + 1
    sums = np.zeros((k, rows.shape[1]))
    np.add.at(sums, labels, rows)
    return len(rows) - float((np.square(sums).sum(axis=1) / np.bincount(labels, minlength=k)).sum())


def _range(near: float, branching: float) -> tuple[int, int]:
    """Fewest and most clusters of a level."""
    return max(2, math.ceil(near / branching)), int(near * branching)


def _widest_gap(heights: NDArray[np.float64], low: int, high: int) -> int | None:
    """How many clusters to cut into, of a range: where the next merge is higher by the largest factor."""
    if low > high:
        return None
    counts = np.arange(low, high + 1)
    # k clusters stand after the merge heights[n - 1 - k], until the next one.
    n = len(heights) + 1
    lower = np.where(counts < n, heights[np.maximum(n - 1 - counts, 0)], 0.0)
    factor = heights[n - counts] / np.maximum(lower, 1e-12)
    return int(counts[np.argmax(factor)])


def _by_first_row(labels: NDArray[np.integer]) -> Rows:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[inverse.reshape(len(labels))], dtype=np.int64)


def _grouped(of_below: Rows, labels: Rows, below: Sequence[LearnedPattern]) -> list[list[LearnedPattern]]:
    """What stands below, by cluster of this level."""
    groups: dict[int, list[LearnedPattern]] = defaultdict(list)
    _, first = np.unique(of_below, return_index=True)
    for place, row in enumerate(first):
        groups[int(labels[row])].append(below[place])
    return [groups[c] for c in range(len(groups))]


def _matched(members: Sequence[set[int]], known: Mapping[int, frozenset[int]], least: float) -> list[int | None]:
    """By cluster the id of the meta-pattern that it is, None for a new one."""
    ids = sorted(known)
    if not ids:
        return [None] * len(members)
    jaccard = np.array([[len(own & known[id]) / max(len(own | known[id]), 1) for id in ids] for own in members])
    jaccard[jaccard < least] = 0
    columns = assignment(jaccard)
    return [ids[c] if c >= 0 and jaccard[row, c] > 0 else None for row, c in enumerate(columns)]


def _meta_pattern(
    id: int, level: int, children: Sequence[LearnedPattern], before: LearnedPattern | None, now: float,
    config: PatternConfig,
) -> LearnedPattern:  # fmt: skip
    """One pattern of all of these, as `LearnedPattern.merge` makes one of two; accesses and text are its own."""
    sizes = np.array([child.cluster_size for child in children], dtype=np.float64)
    share = sizes / sizes.sum() if sizes.sum() > 0 else np.full(len(children), 1 / len(children))
    mean = share @ np.array([child.centroid for child in children], dtype=np.float64)
    length = float(np.sqrt(mean @ mean))
    # Opposite directions may cancel.
    centroid = (mean / length).astype(np.float32) if length > 1e-6 else children[0].centroid.copy()
    centroid.setflags(write=False)
    ids, support = tuple(child.id for child in children), sum(child.support for child in children)
    strategies: dict[str, float] = defaultdict(float)
    for child in children:
        if child.best_strategy is not None:
            strategies[child.best_strategy] += child.support
    was = before or LearnedPattern(id, centroid, 0, 0.0, 0.0, now, now, updated_at=now)
    return replace(
        was,
        centroid=centroid,
        cluster_size=int(sizes.sum()),
        total_weight=sum(child.total_weight for child in children),
        avg_quality=float(share @ np.array([child.avg_quality for child in children])),
        confidence=confidence_of(support, config),
        support=support,
        best_strategy=max(sorted(strategies), key=lambda name: strategies[name], default=None),
        abstraction_level=level,
        children=ids,
        updated_at=was.updated_at if was.children == ids else now,
        decayed_at=max(child.decayed_at for child in children),
    )
