"""Analogies between the patterns of two spaces, and what the one may tell the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import TransferConfig
from sona_pg.errors import DimensionMismatch
from sona_pg.learning.arrays import as_matrix, normalized_rows
from sona_pg.learning.patterns import LearnedPattern

Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Analogy:
    """A pattern of another space that is to it what one of this space is to this one.

    What it says is a prior, for a pattern of which less is known than of the other; it replaces nothing.

    Parameters
    ----------
    source, target
        Ids of the pattern in the other space, and of the one in this space.
    similarity
        Cosine, each space seen from its own mean.
    chance
        Probability of a pair as similar as this, or more, anywhere between two spaces without anything in common.
    quality
        Average quality of the source; None where nothing of it was judged, or less than of the target.
    weight
        Trajectories that this quality counts for beside the target's own: the source's support times the similarity,
        and no more than `TransferConfig.max_weight`; 0 without a quality.
    best_strategy
        The source's, where the target has none of its own; None if there is nothing to tell.
    """

    source: int
    target: int
    similarity: float
    chance: float
    quality: float | None
    weight: float
    best_strategy: str | None


def analogies(
    source: Sequence[LearnedPattern],
    target: Sequence[LearnedPattern],
    config: TransferConfig | None = None,
    *,
    check_stop: Callable[[], None] = lambda: None,
) -> list[Analogy]:
    """Pairs of patterns of two spaces of one embedder, the most similar first. Whether they may is for whoever asks.

    Centroids are seen from the mean of their own space: what a pattern is *among* the others. Two patterns are
    proposed if each is the other's nearest, with a cosine of at least `min_similarity`, and more than chance has to
    offer. Chance is the largest cosine of such a pair after one of the spaces was mirrored along random principal axes
    of both together: an orthogonal map which leaves every distance inside of a space, and how far both reach along
    each axis, as it was. (Against any rotation, spaces of one embedder would always look alike: it has few directions
    that matter.) The maximum over pairs holds for all of them together (Westfall & Young 1993).

    Only patterns of level 0 are compared. Spaces with fewer than two patterns have no analogies: one pattern is its
    own mean.

    Parameters
    ----------
    check_stop
        Called between draws; what it raises ends the search.

    Raises
    ------
    DimensionMismatch
        If the spaces differ in dimension.
    InvalidInput
        If a centroid is not finite.
    """
    config = TransferConfig() if config is None else config
    source = [p for p in source if p.abstraction_level == 0]
    target = [p for p in target if p.abstraction_level == 0]
    if len(source) < 2 or len(target) < 2:
        return []
    first, second = _centred(source), _centred(target)
    if first.shape[1] != second.shape[1]:
        raise DimensionMismatch(second.shape[1], first.shape[1], "the other space")
    # The principal axes of both together; in these coordinates a mirror is a change of signs.
    axes = np.linalg.svd(np.vstack([first, second]), full_matrices=False)[2].T
    first, second = first @ axes, second @ axes
    rows, columns, similarity = _mutually_nearest(first @ second.T)
    random = np.random.default_rng(config.seed)
    largest = np.empty(config.null_draws)
    for draw in range(config.null_draws):
        check_stop()
        mirrored = first * random.choice([-1.0, 1.0], first.shape[1])
        largest[draw] = _mutually_nearest(mirrored @ second.T)[2].max(initial=-1)
    largest.sort()
    found = []
    for row, column, cosine in zip(rows.tolist(), columns.tolist(), similarity.tolist(), strict=True):
        at_least = config.null_draws - int(np.searchsorted(largest, cosine - 1e-9))
        chance = (1 + at_least) / (1 + config.null_draws)
        if cosine >= config.min_similarity and chance <= config.significance:
            found.append(_analogy(source[row], target[column], cosine, chance, config))
    return sorted(found, key=lambda a: (-a.similarity, a.source))


def _centred(patterns: Sequence[LearnedPattern]) -> Doubles:
    """Unit rows (n, dim) from the mean of the space; one that is the mean has no direction, and stays zero."""
    dim = patterns[0].centroid.size
    for pattern in patterns:
        if pattern.centroid.size != dim:
            raise DimensionMismatch(dim, pattern.centroid.size, f"centroid of pattern {pattern.id}")
    rows = normalized_rows(as_matrix(np.array([p.centroid for p in patterns]), dim, "centroids")).astype(np.float64)
    rows -= rows.mean(axis=0)
    length = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    return np.asarray(np.where(length > 1e-6, rows / np.maximum(length, 1e-6), 0.0))


def _mutually_nearest(cosines: Doubles) -> tuple[Rows, Rows, Doubles]:
    """Rows and columns (k,) of the pairs of which each is the other's nearest, with their cosines."""
    columns = cosines.argmax(axis=1)
    rows = np.flatnonzero(cosines.argmax(axis=0)[columns] == np.arange(len(cosines)))
    return rows, columns[rows], cosines[rows, columns[rows]]


def _analogy(
    source: LearnedPattern, target: LearnedPattern, similarity: float, chance: float, config: TransferConfig
) -> Analogy:
    tells = source.support > target.support
    return Analogy(
        source=source.id,
        target=target.id,
        similarity=similarity,
        chance=chance,
        quality=source.avg_quality if tells else None,
        weight=min(source.support * max(similarity, 0.0), config.max_weight) if tells else 0.0,
        best_strategy=source.best_strategy if target.best_strategy is None else None,
    )
