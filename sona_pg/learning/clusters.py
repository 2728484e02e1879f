"""What clusters of trajectories hold, as sums: those of parts of the trajectories add up to those of all."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from sona_pg import kernels
from sona_pg.learning.arrays import normalized_rows

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]

_BLOCK = 1024
"""Rows whose cosines with all others are kept at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Clusters of trajectories as columns of sums.

    Parameters
    ----------
    sums
        float64 (k, dim): of their unit rows.
    first
        float32 (k, dim): the first row of each, 0 where there is none; the direction of a cluster whose rows cancel
        out.
    sizes, judged
        int64 (k,): trajectories, and those of them that were judged.
    worth
        float64 (k,): sum of the qualities of the judged.
    fresh, fresh_judged
        int64 (k,): trajectories that no extraction has counted yet, and those of them that were judged.
    """

    sums: Doubles
    first: Floats
    sizes: Rows
    judged: Rows
    worth: Doubles
    fresh: Rows
    fresh_judged: Rows

    @classmethod
    def of(cls, rows: Floats, labels: Rows, quality: Doubles, is_fresh: Flags, k: int) -> Tally:
        """Of unit rows (n, dim) by label (n,), with qualities (n,), NaN where a trajectory was not judged."""
        sums, sizes = kernels.cluster_sums(rows, labels, k)
        known = ~np.isnan(quality)
        first = np.zeros((k, rows.shape[1]), dtype=np.float32)
        filled, places = np.unique(labels, return_index=True)
        first[filled] = rows[places]
        return cls(
            sums,
            first,
            sizes,
            np.bincount(labels[known], minlength=k),
            np.bincount(labels[known], quality[known], k).astype(np.float64),
            np.bincount(labels[is_fresh], minlength=k),
            np.bincount(labels[is_fresh & known], minlength=k),
        )

    def __len__(self) -> int:
        return len(self.sizes)

    def __add__(self, other: Tally) -> Tally:
        """Of the trajectories of both, those of this one being the first; the clusters are the same."""
        both = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(Tally)}
        both["first"] = np.where(self.sizes[:, np.newaxis] > 0, self.first, other.first)
        return Tally(**both)

    def folded(self, into: Rows, k: int) -> Tally:
        """Of k clusters, of which each of these is a part: by cluster, which one."""
        parts = {}
        for field in fields(Tally):
            column = getattr(self, field.name)
            parts[field.name] = np.zeros((k, *column.shape[1:]), dtype=column.dtype)
            if field.name == "first":
                for c in np.flatnonzero(self.sizes)[::-1]:
                    parts["first"][into[c]] = self.first[c]
            else:
                np.add.at(parts[field.name], into, column)
        return Tally(**parts)

    @property
    def centroids(self) -> Floats:
        """float32 (k, dim): directions of the means; of a cluster whose rows cancel out that of its first row."""
        cancelled = np.square(self.sums).sum(axis=1) < 1e-10 * self.sizes
        sums = np.where(cancelled[:, np.newaxis], self.first, self.sums)
        lengths = np.sqrt(np.square(sums).sum(axis=1, keepdims=True))
        return (sums / np.where(lengths > 0, lengths, 1)).astype(np.float32)

    @property
    def quality(self) -> Doubles:
        """float64 (k,): mean of the judged, NaN where none was."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.worth / self.judged


def near_duplicates(centroids: Floats, priority: Doubles, threshold: float) -> Rows:
    """By row (n,) the one that it is merged into, itself where there is none.

    In the order of `priority`, highest first, each joins the nearest one that stands so far with a cosine above the
    threshold, and stands itself where there is none: what stands does not chain what lies between. Above 1 there is
    none, also not of equal rows by a rounding.
    """
    into = np.arange(len(centroids))
    if threshold >= 1:
        return into
    unit = normalized_rows(centroids)
    near = np.zeros(len(unit), dtype=bool)
    for start in range(0, len(unit), _BLOCK):
        # One is its own duplicate.
        near[start : start + _BLOCK] = (unit[start : start + _BLOCK] @ unit.T > threshold).sum(axis=1) > 1
    stands = ~near
    places = np.flatnonzero(near)
    for row in places[np.lexsort((places, -priority[places]))]:
        candidates = np.where(stands, unit @ unit[row], -2)
        best = int(np.argmax(candidates))
        if candidates[best] > threshold:
            into[row] = best
        else:
            stands[row] = True
    return into


def without_duplicates(tally: Tally, threshold: float) -> tuple[Tally, Rows]:
    """Clusters of which no two are near duplicates, those that are having become one; by cluster which one it is in."""
    into = np.arange(len(tally))
    while len(tally) > 1:
        merged = near_duplicates(tally.centroids, tally.sizes.astype(np.float64), threshold)
        stands = merged == np.arange(len(merged))
        if stands.all():
            break
        place = (np.cumsum(stands) - 1)[merged]
        tally, into = tally.folded(place, int(stands.sum())), place[into]
    return tally, into
