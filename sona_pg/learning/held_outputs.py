"""What was answered at remembered queries, held while something else is learned: distillation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.kernels import LowRank

FloatMatrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutputs:
    """``w mean ½ |(x A) B - then|²`` over remembered queries (Li & Hoiem 2017): it holds a function, not its factors.

    Parameters
    ----------
    queries
        Remembered ones, unit rows (n, dim), at least one.
    outputs
        What was added to each of them then, float32 (n, dim).
    weight
        w, against nats of the loss that is learned.
    batch
        So many of them, drawn anew, stand for all at every step.
    """

    queries: FloatMatrix
    outputs: FloatMatrix
    weight: float
    batch: int

    def add_gradient(self, at: LowRank, random: np.random.Generator, gradient: FloatMatrix) -> None:
        """Add the gradient at the weights of a map to a block (2 rank, dim)."""
        chosen = random.integers(0, len(self.queries), self.batch)
        queries = self.queries[chosen]
        off = -self.outputs[chosen]
        at.forward_batch(queries, off)
        at.backward_batch(queries, off, gradient, self.weight / self.batch)
