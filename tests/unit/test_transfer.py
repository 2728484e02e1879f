"""Analogies between spaces: found where there are some, and not where there are none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg.config import TransferConfig
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.transfer import analogies

Rows = NDArray[np.float64]


def embedded(random: np.random.Generator, n: int, dim: int = 64) -> Rows:
    """As an embedder has it: few directions matter, the same ones everywhere."""
    return np.asarray(random.standard_normal((n, dim)) * np.arange(1, dim + 1) ** -0.8)


def patterns_of(rows: Rows, support: int = 10) -> list[LearnedPattern]:
    return [
        LearnedPattern(id, row.astype(np.float32), 10, 10.0, 0.8, 0.0, 0.0, support=support)
        for id, row in enumerate(rows, start=1)
    ]


def test_analogous_patterns_are_found_wherever_the_space_lies() -> None:
    random = np.random.default_rng(0)
    first, second = embedded(random, 40), embedded(random, 40)
    second[:8] = first[:8] + 0.1 * embedded(random, 8)
    # The other space lies elsewhere: only what a pattern is among the others is alike.
    found = analogies(patterns_of(first), patterns_of(second + 0.25 * embedded(random, 1)))
    pairs = [(a.source, a.target) for a in found]
    assert len(pairs) >= 6
    assert set(pairs) <= {(i, i) for i in range(1, 9)}
    assert [a.similarity for a in found] == sorted((a.similarity for a in found), reverse=True)
    assert all(0.5 <= a.similarity <= 1 and 0 < a.chance <= 0.05 for a in found)


def test_unrelated_spaces_of_one_embedder_rarely_have_any() -> None:
    lenient, wrong = TransferConfig(min_similarity=-1.0, null_draws=99), 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        wrong += bool(analogies(patterns_of(embedded(random, 30)), patterns_of(embedded(random, 40)), lenient))
    # One in twenty; more than twelve of a hundred would have a probability of .001.
    assert wrong <= 12


def test_what_is_told() -> None:
    random = np.random.default_rng(1)
    rows = embedded(random, 30)
    source, target = patterns_of(rows), patterns_of(rows, support=3)
    source[0] = replace(source[0], support=4, avg_quality=0.9, best_strategy="fusion")
    target[1] = replace(target[1], support=10)
    source[2], target[2] = replace(source[2], best_strategy="fusion"), replace(target[2], best_strategy="frozen")
    source[3] = replace(source[3], support=500)
    told = {a.source: a for a in analogies(source, target)}
    assert len(told) == 30
    assert (told[1].quality, told[1].best_strategy) == (0.9, "fusion")
    assert told[1].weight == pytest.approx(4.0)
    # As much is known here; a strategy that is there stays; no source speaks louder than the most.
    assert (told[2].quality, told[2].weight) == (None, 0.0)
    assert told[3].best_strategy is None
    assert told[4].weight == 10.0


def test_each_speaks_for_one_alone_and_meta_patterns_for_none() -> None:
    random = np.random.default_rng(2)
    rows = embedded(random, 30)
    twice = np.vstack([rows, rows[:3] + 0.01 * embedded(random, 3)])
    found = analogies(patterns_of(rows), patterns_of(twice))
    assert len({a.target for a in found}) == len({a.source for a in found}) == len(found) == 30
    raised = [replace(p, abstraction_level=1) for p in patterns_of(rows)]
    assert analogies(raised, patterns_of(rows)) == []


def test_the_same_seed_gives_the_same() -> None:
    random = np.random.default_rng(3)
    first, second = patterns_of(embedded(random, 20)), patterns_of(embedded(random, 25))
    lenient = TransferConfig(min_similarity=-1.0, significance=0.5)
    assert analogies(first, second, lenient) == analogies(first, second, lenient)


def test_too_little_says_nothing() -> None:
    random = np.random.default_rng(4)
    rows = embedded(random, 20)
    assert analogies([], patterns_of(rows)) == []
    assert analogies(patterns_of(rows), patterns_of(rows[:1])) == []
    # In two dimensions everything is like something; and patterns that are all the same are like nothing.
    assert analogies(patterns_of(rows[:, :2]), patterns_of(rows[:, :2])) == []
    assert analogies(patterns_of(np.ones((5, 8))), patterns_of(np.ones((5, 8)))) == []


def test_bad_input_is_refused() -> None:
    random = np.random.default_rng(5)
    with pytest.raises(DimensionMismatch):
        analogies(patterns_of(embedded(random, 5, 8)), patterns_of(embedded(random, 5, 9)))
    with pytest.raises(DimensionMismatch):
        analogies(
            [*patterns_of(embedded(random, 5, 8)), *patterns_of(embedded(random, 5, 9))],
            patterns_of(embedded(random, 5, 8)),
        )
    with pytest.raises(InvalidInput, match="NaN"):
        analogies(patterns_of(np.full((3, 8), np.nan)), patterns_of(embedded(random, 5, 8)))
    with pytest.raises(ConfigError, match="null_draws"):
        TransferConfig(significance=0.01, null_draws=50)
