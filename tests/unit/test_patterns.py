"""Patterns: merging, decay, pruning, and the assignment that keeps their identity."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pytest

from sona_pg.config import PatternConfig
from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.learning.arrays import normalized_rows
from sona_pg.learning.clusters import Tally, near_duplicates, without_duplicates
from sona_pg.learning.patterns import (
    LearnedPattern,
    assignment,
    changed,
    is_prunable,
    match_clusters,
    merge_plan,
    merged_patterns,
    moved_centroid,
)

CONFIG = PatternConfig(embedding_dim=2)
DAY = 86_400.0


def pattern(id: int, centroid: list[float], size: int = 10, quality: float = 0.8, **others: object) -> LearnedPattern:
    vector = np.array(centroid, dtype=np.float32)
    return replace(LearnedPattern(id, vector, size, 5.0, quality, 100.0, 200.0, 5), **others)  # type: ignore[arg-type]


def test_merge_of_the_reference() -> None:
    first = LearnedPattern(1, np.array([1, 0], np.float32), 10, 5.0, 0.8, 100, 200, 5)
    second = LearnedPattern(2, np.array([0, 1], np.float32), 10, 5.0, 0.9, 150, 250, 3)
    merged = first.merge(second)
    assert merged.id == 1
    assert merged.cluster_size == 20
    assert merged.total_weight == 10
    assert merged.avg_quality == pytest.approx(0.85)
    assert merged.centroid.tolist() == [0.5, 0.5]
    assert (merged.created_at, merged.last_accessed, merged.access_count) == (100, 250, 8)


def test_merge_keeps_text_children_and_support() -> None:
    first = pattern(1, [1, 0], 30, children=(4, 5), title="a", support=3)
    merged = first.merge(pattern(2, [0, 1], 10, children=(5, 6), title="b", content="c", support=4))
    assert merged.children == (4, 5, 6)
    assert (merged.title, merged.content, merged.support) == ("a", "c", 7)
    assert merged.centroid.tolist() == [0.75, 0.25]
    empty = pattern(1, [1, 0], 0).merge(pattern(2, [0, 1], 0, 0.4))
    assert empty.avg_quality == pytest.approx(0.6)
    with pytest.raises(DimensionMismatch):
        first.merge(pattern(3, [1, 0, 0]))


def test_decay_composes() -> None:
    start = pattern(1, [1, 0], decayed_at=0.0)
    once = start.decayed_to(3 * DAY, DAY)
    assert once.total_weight == pytest.approx(5 / 8)
    assert start.decayed_to(DAY, DAY).decayed_to(3 * DAY, DAY).total_weight == pytest.approx(once.total_weight)
    assert once.decayed_to(3 * DAY, DAY) is once
    assert once.decayed_to(DAY, DAY) is once
    assert start.decay(0.5).total_weight == 2.5
    for factor in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidInput):
            start.decay(factor)


def test_pruned_only_if_poor_and_unused_and_old() -> None:
    poor = pattern(1, [1, 0], quality=0.1, access_count=0, support=9)
    assert poor.should_prune(0.3, 5)
    late = 200 + CONFIG.prune_age_seconds + 1
    assert is_prunable(poor, late, CONFIG)
    assert not is_prunable(poor, late - 2, CONFIG)
    for kept in (
        replace(poor, avg_quality=0.3),
        replace(poor, access_count=5),
        replace(poor, last_accessed=late - 5),
        replace(poor, created_at=late - 5),
        replace(poor, updated_at=late - 5),
        replace(poor, support=0),
    ):
        assert not is_prunable(kept, late, CONFIG)


def test_assignment_is_the_best_of_all() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        n, m = random.integers(1, 6, 2)
        worth = random.random((n, m)) * (random.random((n, m)) < 0.7)
        found = assignment(worth)
        assert len({column for column in found if column >= 0}) == min(n, m)
        total = sum(worth[row, column] for row, column in enumerate(found) if column >= 0)
        wide = worth if n <= m else worth.T
        best = max(
            sum(wide[row, column] for row, column in enumerate(order))
            for order in permutations(range(wide.shape[1]), len(wide))
        )
        assert total == pytest.approx(best)


def test_matching_is_optimal_and_not_greedy() -> None:
    angle = np.radians
    directions = lambda *degrees: np.array([[np.cos(angle(a)), np.sin(angle(a))] for a in degrees], np.float32)  # noqa: E731
    # The nearest pair, 0 and 5, would leave 20 without the one it could have.
    assert match_clusters(directions(0, 20), directions(5, -25), 0.9).tolist() == [1, 0]
    assert match_clusters(directions(0, 90), directions(180), 0.9).tolist() == [-1, -1]
    assert match_clusters(directions(0, 90), np.empty((0, 2), np.float32), 0.9).tolist() == [-1, -1]
    assert match_clusters(np.empty((0, 2), np.float32), directions(0), 0.9).tolist() == []


def test_matching_undoes_a_permutation() -> None:
    random = np.random.default_rng(1)
    old = normalized_rows(random.standard_normal((80, 32), dtype=np.float32))
    order = random.permutation(80)[:60]
    new = normalized_rows(old[order] + np.float32(0.05) * random.standard_normal((60, 32), dtype=np.float32))
    assert match_clusters(new, old, 0.8).tolist() == order.tolist()
    # Everything near everything: one component.
    crowd = normalized_rows(1 + np.float32(0.3) * old)
    found = match_clusters(normalized_rows(1 + np.float32(0.3) * new), crowd, 0.5)
    assert (found == order).mean() > 0.95
    assert len(set(found)) == 60


def test_near_duplicates_do_not_chain() -> None:
    degrees = np.radians([0, 10, 20, 30, 90])
    rows = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
    into = near_duplicates(rows, np.array([5.0, 4, 3, 2, 1]), 0.97)  # up to 14 degrees
    assert into.tolist() == [0, 0, 2, 2, 4]
    assert near_duplicates(rows[:0], np.empty(0), 0.95).tolist() == []
    assert near_duplicates(np.ones((3, 2), np.float32), np.zeros(3), 0.95).tolist() == [0, 0, 0]


def test_clusters_are_summed_up() -> None:
    rows = normalized_rows(np.array([[1, 0], [1, 0.1], [0, 1], [1, 0], [-1, 0]], np.float32))
    fresh = np.array([True, False, True, True, False])
    clusters = Tally.of(rows, np.array([0, 0, 1, 2, 2]), np.array([0.2, np.nan, np.nan, 1.0, 0.5]), fresh, 4)
    assert clusters.fresh.tolist() == [1, 1, 1, 0]
    assert clusters.fresh_judged.tolist() == [1, 0, 1, 0]
    assert clusters.sizes.tolist() == [2, 1, 2, 0]
    assert clusters.judged.tolist() == [1, 0, 2, 0]
    assert clusters.quality[[0, 2]].tolist() == [0.2, 0.75]
    assert np.isnan(clusters.quality[[1, 3]]).all()
    assert np.allclose(clusters.centroids[2], [1, 0])  # they cancel
    alone = Tally.of(rows[:4], np.arange(4), np.full(4, 0.5), fresh[:4], 4)
    merged, into = without_duplicates(alone, 0.95)
    assert sorted(merged.sizes.tolist()) == [1, 3]
    assert into[0] == into[1] == into[3] != into[2]
    whole = Tally.of(rows[:4], into, np.full(4, 0.5), fresh[:4], 2)
    assert columns(merged) == columns(whole)


def columns(tally: Tally) -> list[object]:
    return [np.round(getattr(tally, field.name), 6).tolist() for field in fields(Tally)]


def test_tallies_of_parts_add_up_to_that_of_all() -> None:
    random = np.random.default_rng(0)
    rows = normalized_rows(random.standard_normal((60, 5), dtype=np.float32))
    rows[59] = -rows[58]  # they cancel, in a cluster of their own that the first part does not have
    labels = np.append(random.integers(0, 6, 58), [7, 7])
    quality = np.where(random.random(60) < 0.3, np.nan, random.random(60))
    fresh = random.random(60) < 0.5
    whole = Tally.of(rows, labels, quality, fresh, 8)
    first, *others = (Tally.of(rows[p], labels[p], quality[p], fresh[p], 8) for p in np.split(np.arange(60), [17, 41]))
    added = sum(others, first)
    assert columns(added) == columns(whole)
    assert np.array_equal(added.centroids[7], rows[58])
    assert np.isnan(added.quality[6])
    assert not added.centroids[6].any()


def test_clusters_become_the_patterns_they_were() -> None:
    config = PatternConfig(embedding_dim=2, min_cluster_size=2, half_life_seconds=100)
    rows = normalized_rows(np.array([[1, 0.1], [1, 0], [0, 1], [-1, 0], [-1, 0.1]], np.float32))
    fresh = np.array([True, False, True, True, True])
    clusters = Tally.of(rows, np.array([0, 0, 1, 2, 2]), np.array([0.5, 0.7, 0.1, 0.3, np.nan]), fresh, 3)
    old = pattern(7, [1, 0], total_weight=8.0, support=4, decayed_at=0.0)
    other = pattern(3, [0, -1], decayed_at=0.0)
    change = changed([old, other], clusters, 100.0, 20, config)
    assert change.members.tolist() == [7, -1, 20]
    assert (change.created, change.updated) == ((20,), (7,))
    assert set(change.patterns) == {3, 7, 20}
    fed = change.patterns[7]
    assert (fed.cluster_size, fed.support) == (2, 5)
    assert fed.total_weight == pytest.approx(8 / 2 + 1)
    assert fed.avg_quality == pytest.approx(0.6)
    assert fed.confidence == pytest.approx(5 / 15)
    assert change.patterns[20].created_at == 100.0
    assert change.patterns[20].avg_quality == pytest.approx(0.3)
    assert change.patterns[3].total_weight == pytest.approx(2.5)
    assert not fed.centroid.flags.writeable
    # One that exists may shrink.
    small = Tally.of(rows[2:3], np.array([0]), np.array([np.nan]), np.array([True]), 1)
    assert changed([pattern(1, [0, 1])], small, 0, 2, config).members.tolist() == [1]


def test_merged_patterns_keep_the_lower_id_and_unit_centroids() -> None:
    first, second, third = pattern(1, [1, 0]), pattern(2, [0.99, 0.1]), pattern(3, [0, 1])
    parent = pattern(4, [1, 0], abstraction_level=1, children=(2, 3, 1))
    every = [third, second, first, parent]
    plan = merge_plan(every, 0.95)
    assert plan == {2: 1}
    kept = {p.id: p for p in merged_patterns(every, plan, 300.0, CONFIG)}
    assert set(kept) == {1, 3, 4}
    assert kept[1].cluster_size == 20
    assert np.linalg.norm(kept[1].centroid) == pytest.approx(1)
    assert kept[4].children == (1, 3)
    assert merge_plan(list(kept.values()), 0.95) == {}


def test_a_centroid_follows_what_comes_between_extractions() -> None:
    random = np.random.default_rng(3)
    rows = normalized_rows(np.float32(0.3) * random.standard_normal((200, 16), dtype=np.float32) + 1)
    centroid = rows[0]
    for size, row in enumerate(rows[1:], 1):
        centroid = moved_centroid(centroid, size, row)
    whole = Tally.of(rows, np.zeros(200, np.int64), np.zeros(200), np.zeros(200, bool), 1)
    assert float(centroid @ whole.centroids[0]) > 0.999
    assert np.linalg.norm(centroid) == pytest.approx(1, abs=1e-5)
    assert moved_centroid(rows[0], 1, -rows[0]) is rows[0] or np.array_equal(
        moved_centroid(rows[0], 1, -rows[0]), rows[0]
    )
