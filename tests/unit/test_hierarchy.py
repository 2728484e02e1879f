"""The hierarchy of patterns: levels, what a meta-pattern says, and ids that hold from run to run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sona_pg.config import HierarchyConfig, PatternConfig
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput
from sona_pg.learning.arrays import normalized_rows
from sona_pg.learning.hierarchy import PatternHierarchy, pattern_hierarchy
from sona_pg.learning.patterns import LearnedPattern

Floats = NDArray[np.float32]


def patterns_of(rows: Floats, first: int = 1) -> list[LearnedPattern]:
    unit = normalized_rows(np.asarray(rows, dtype=np.float32))
    return [LearnedPattern(id, row, 10, 10.0, 0.5, 0.0, 0.0, support=3) for id, row in enumerate(unit, start=first)]


def topics(random: np.random.Generator, n: int, dim: int = 32, of: int = 20) -> tuple[Floats, NDArray[np.int64]]:
    """Rows around topics, the topics around five themes; the topics are the same for every generator."""
    fixed = np.random.default_rng(7)
    themes = fixed.standard_normal((5, dim))
    centres = themes[np.arange(of) % 5] + 0.5 * fixed.standard_normal((of, dim))
    which = random.integers(0, of, n)
    return (centres[which] + 0.25 * random.standard_normal((n, dim))).astype(np.float32), which


def isotropic(random: np.random.Generator, n: int, dim: int = 32) -> Floats:
    return random.standard_normal((n, dim), dtype=np.float32)


def run(patterns: list[LearnedPattern], before: PatternHierarchy | None = None, now: float = 0.0) -> PatternHierarchy:
    whole = patterns + list(before.patterns if before else ())
    return pattern_hierarchy(whole, next_id=max((p.id for p in whole), default=0) + 1, now=now)


def level(hierarchy: PatternHierarchy, number: int) -> list[LearnedPattern]:
    return [p for p in hierarchy.patterns if p.abstraction_level == number]


def test_topics_and_themes_are_found() -> None:
    rows, which = topics(np.random.default_rng(0), 200)
    hierarchy = run(patterns_of(rows))
    first, second = level(hierarchy, 1), level(hierarchy, 2)
    assert [len(first), len(second)] == [20, 5]
    topic_of = {p.id: {int(which[child - 1]) for child in p.children} for p in first}
    assert sorted(topic_of.values(), key=min) == [{t} for t in range(20)]
    themes = sorted(({min(topic_of[c]) % 5 for c in p.children} for p in second), key=min)
    assert themes == [{t} for t in range(5)]


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 80), seed=st.integers(0, 1 << 32), dim=st.sampled_from([1, 2, 16]), spread=st.booleans())
def test_every_level_covers_the_one_below_once(n: int, seed: int, dim: int, spread: bool) -> None:
    random = np.random.default_rng(seed)
    # Without spread most patterns are the same.
    rows = isotropic(random, n, dim) if spread else np.ones((n, dim), dtype=np.float32)
    patterns = patterns_of(rows)
    hierarchy = run(patterns)
    below = [p.id for p in patterns]
    for number in (1, 2, 3):
        own = level(hierarchy, number)
        if not own:
            assert not level(hierarchy, number + 1)
            break
        assert sorted(child for p in own for child in p.children) == sorted(below)
        assert 2 <= len(own) < len(below)
        assert sum(p.cluster_size for p in own) == 10 * n
        assert sum(p.support for p in own) == 3 * n
        assert all(np.linalg.norm(p.centroid) == pytest.approx(1, abs=1e-5) for p in own)
        below = [p.id for p in own]
    assert bool(hierarchy.patterns) == (n >= 4)
    assert hierarchy.created == tuple(p.id for p in hierarchy.patterns)
    assert [p.id for p in run(patterns).patterns] == [p.id for p in hierarchy.patterns]


def test_few_patterns_have_few_levels() -> None:
    random = np.random.default_rng(0)
    counts = {n: [len(level(run(patterns_of(isotropic(random, n))), k)) for k in (1, 2, 3)] for n in (0, 1, 3, 4, 7)}
    assert counts[0] == counts[1] == counts[3] == [0, 0, 0]
    assert counts[4][0] in (2, 3)
    assert counts[4][2] == 0
    deep = run(patterns_of(isotropic(random, 1000)))
    assert all(level(deep, k) for k in (1, 2, 3))


def test_what_a_meta_pattern_says() -> None:
    rows = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    a, b, c, d = patterns_of(rows)
    a = replace(a, cluster_size=30, avg_quality=0.9, support=10, best_strategy="fusion", total_weight=8.0)
    b = replace(b, cluster_size=10, avg_quality=0.5, support=2, best_strategy="frozen", total_weight=4.0)
    config = PatternConfig(half_life_seconds=100.0)
    hierarchy = pattern_hierarchy([a, b, c, d], next_id=9, now=100.0, pattern_config=config)
    meta = hierarchy.patterns[0]
    assert (meta.id, meta.children, meta.abstraction_level) == (9, (1, 2), 1)
    assert (meta.cluster_size, meta.support, meta.best_strategy) == (40, 12, "fusion")
    assert meta.avg_quality == pytest.approx(0.75 * 0.9 + 0.25 * 0.5)
    assert meta.total_weight == pytest.approx(6.0)
    assert meta.confidence == pytest.approx(12 / 22)
    assert meta.centroid.tolist() == [1.0, 0.0]
    assert not meta.centroid.flags.writeable


def test_opposite_children_have_a_direction() -> None:
    rows = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1]], dtype=np.float32)
    for p in run(patterns_of(rows)).patterns:
        assert np.linalg.norm(p.centroid) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("n", [60, 300])
@pytest.mark.parametrize("is_structured", [True, False])
def test_unchanged_patterns_keep_all_ids(n: int, is_structured: bool) -> None:
    random = np.random.default_rng(1)
    patterns = patterns_of(topics(random, n)[0] if is_structured else isotropic(random, n))
    first = run(patterns)
    # Somebody has given a name.
    named = replace(first.patterns[0], title="refunds", access_count=7)
    again = run(patterns, replace(first, patterns=(named, *first.patterns[1:])), now=5.0)
    assert [p.id for p in again.patterns] == [p.id for p in first.patterns]
    assert [p.children for p in again.patterns] == [p.children for p in first.patterns]
    assert (again.created, again.retired) == ((), ())
    assert (again.patterns[0].title, again.patterns[0].access_count) == ("refunds", 7)
    assert all(p.updated_at == 0 for p in again.patterns)


@pytest.mark.parametrize("is_structured", [True, False])
def test_a_tenth_of_turnover_keeps_ids(is_structured: bool) -> None:
    kept = there = 0
    for seed in range(4):
        random = np.random.default_rng(seed)
        draw = (lambda n, r=random: topics(r, n)[0]) if is_structured else (lambda n, r=random: isotropic(r, n))
        patterns = patterns_of(draw(300))
        hierarchy = run(patterns)
        for now in range(1, 6):
            gone = {patterns[i].id for i in random.choice(len(patterns), 30, replace=False)}
            first = max(p.id for p in hierarchy.patterns + tuple(patterns)) + 1
            patterns = [p for p in patterns if p.id not in gone] + patterns_of(draw(30), first)
            following = run(patterns, hierarchy, now=float(now))
            ids = {p.id for p in hierarchy.patterns}
            kept += len(ids & {p.id for p in following.patterns})
            there += len(ids)
            assert set(following.retired) == ids - {p.id for p in following.patterns}
            hierarchy = following
    assert kept / there >= 0.95


def test_a_clearly_better_tree_replaces_the_old_one_and_keeps_what_is_the_same() -> None:
    random = np.random.default_rng(3)
    rows, which = topics(random, 200)
    patterns = patterns_of(rows)
    good = run(patterns)
    # Half of the topics thrown together at random, the others left as they are.
    first = level(good, 1)
    mixed = [p for p in first if which[p.children[0] - 1] >= 10]
    children = random.permutation([c for p in mixed for c in p.children])
    cut = np.cumsum([len(p.children) for p in mixed])[:-1]
    bad = {
        p.id: replace(p, children=tuple(part.tolist())) for p, part in zip(mixed, np.split(children, cut), strict=True)
    }
    before = replace(good, patterns=tuple(bad.get(p.id, p) for p in good.patterns))
    after = run(patterns, before)
    assert {p.children for p in level(after, 1)} == {p.children for p in first}
    left = {p.id: p.children for p in first if p.id not in bad}
    assert left.items() <= {p.id: p.children for p in level(after, 1)}.items()


def test_more_patterns_than_the_tree_takes() -> None:
    rows, which = topics(np.random.default_rng(0), 400)
    patterns = patterns_of(rows)
    config = HierarchyConfig(max_rows=128)
    hierarchy = pattern_hierarchy(patterns, next_id=1000, now=0.0, config=config)
    first = level(hierarchy, 1)
    assert sorted(child for p in first for child in p.children) == [p.id for p in patterns]
    assert all(len({int(which[c - 1]) for c in p.children}) <= 2 for p in first)
    again = pattern_hierarchy([*patterns, *hierarchy.patterns], next_id=2000, now=1.0, config=config)
    assert [p.id for p in again.patterns] == [p.id for p in hierarchy.patterns]


def test_bad_input_is_refused() -> None:
    patterns = patterns_of(isotropic(np.random.default_rng(0), 20))
    first = run(patterns)
    top = first.patterns[-1]
    cycle = replace(first, patterns=(*first.patterns[:-1], replace(top, children=(top.id,))))
    with pytest.raises(InvalidInput, match="no cycles"):
        run(patterns, cycle)
    upward = replace(first.patterns[0], children=(top.id,))
    with pytest.raises(InvalidInput, match="no cycles"):
        run(patterns, replace(first, patterns=(upward, *first.patterns[1:])))
    with pytest.raises(InvalidInput, match="same id"):
        run([*patterns, patterns[0]])
    with pytest.raises(InvalidInput, match="next id"):
        pattern_hierarchy(patterns, next_id=20, now=0.0)
    with pytest.raises(InvalidInput, match="zero"):
        run([*patterns, replace(patterns[0], id=99, centroid=np.zeros(32, dtype=np.float32))])
    with pytest.raises(InvalidInput, match="NaN"):
        run([*patterns, replace(patterns[0], id=99, centroid=np.full(32, np.nan, dtype=np.float32))])
    with pytest.raises(DimensionMismatch):
        run([*patterns, replace(patterns[0], id=99, centroid=np.ones(31, dtype=np.float32))])
    with pytest.raises(ConfigError):
        HierarchyConfig(levels=4)


def test_children_that_are_no_more_are_left_out() -> None:
    patterns = patterns_of(topics(np.random.default_rng(0), 60)[0])
    first = run(patterns)
    gone = first.patterns[0]
    left = [p for p in patterns if p.id not in gone.children]
    after = run(left, first)
    assert gone.id in after.retired
    assert sorted(c for p in level(after, 1) for c in p.children) == [p.id for p in left]
