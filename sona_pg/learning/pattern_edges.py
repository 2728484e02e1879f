"""Which items helped in which pattern."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from sona_pg import kernels
from sona_pg.learning.arrays import normalized_rows
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.types import FloatVector


def pattern_edges(
    patterns: Sequence[LearnedPattern], queries: Sequence[tuple[FloatVector, Sequence[str]]], most: int
) -> list[tuple[int, str, float]]:
    """Edges between patterns and the items that helped there at least twice: pattern, item, weight.

    A query belongs to the pattern whose centroid is nearest. The weight is the share of the pattern's queries in which
    the item helped.

    Parameters
    ----------
    queries
        Queries (dim,), and what helped in each.
    most
        Edges of a pattern; of equal weights those to the items that come first.

    Examples
    --------
    >>> patterns = [LearnedPattern(i, np.eye(2, dtype=np.float32)[i], 2, 2.0, 0.5, 0.0, 0.0) for i in (0, 1)]
    >>> asked = [([1, 0.1], ["a"]), ([1, 0.2], ["a", "b"]), ([0, 1], ["a"])]
    >>> pattern_edges(patterns, [(np.array(q, dtype=np.float32), helped) for q, helped in asked], 5)
    [(0, 'a', 1.0)]
    """
    if not patterns or not queries:
        return []
    centroids = np.array([pattern.centroid for pattern in patterns], dtype=np.float32)
    rows = normalized_rows(np.array([query for query, _ in queries], dtype=np.float32))
    nearest, _ = kernels.assign(rows, centroids)
    helped: dict[int, Counter[str]] = defaultdict(Counter)
    asked: Counter[int] = Counter()
    for place, (_, items) in zip(nearest.tolist(), queries, strict=True):
        asked[place] += 1
        helped[place].update(dict.fromkeys(items, 1))
    edges = []
    for place, counts in sorted(helped.items()):
        often = sorted(((n, item) for item, n in counts.items() if n > 1), key=lambda found: (-found[0], found[1]))
        edges += [(patterns[place].id, item, n / asked[place]) for n, item in often[:most]]
    return edges
