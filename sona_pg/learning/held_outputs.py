"""What was answered at remembered queries, held while something else is learned: distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.kernels import LowRank

FloatMatrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutputs:
    """``w Σ mean ½ |(x A) B - then|²`` over domains, each the mean of its remembered queries (Li & Hoiem 2017).

    It holds a function, not its factors; and every domain as much as any other, however few are remembered of it.

    Parameters
    ----------
    queries
        Remembered ones, unit rows (n, dim), at least one, domain after domain.
    outputs
        What was added to each of them then, float32 (n, dim).
    counts
        How many are of each domain; n together.
    weight
        w, against nats of the loss that is learned.
    batch
        So many of them, drawn anew, stand for all at every step: as many of every domain, at least one.
    """

    queries: FloatMatrix
    outputs: FloatMatrix
    counts: Sequence[int]
    weight: float
    batch: int

    def add_gradient(self, at: LowRank, random: np.random.Generator, gradient: FloatMatrix) -> None:
        """Add the gradient at the weights of a map to a block (2 rank, dim)."""
        most, start = max(self.batch // len(self.counts), 1), 0
        rows, weights = [], []
        for count in self.counts:
            drawn = np.arange(count) if count <= most else random.permutation(count)[:most]
            rows.append(start + drawn)
            weights.append(np.full(len(drawn), 1 / len(drawn), dtype=np.float32))
            start += count
        chosen = np.concatenate(rows)
        queries, off = self.queries[chosen], -self.outputs[chosen]
        at.forward_batch(queries, off)
        off *= np.concatenate(weights)[:, np.newaxis]
        at.backward_batch(queries, off, gradient, self.weight)
