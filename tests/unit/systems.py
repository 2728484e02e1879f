"""Linear systems that are known by their activations."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]


def activations(transition: ArrayLike, steps: int, seed: int = 0) -> Doubles:
    """A series of a linear system with unit noise, once it is stationary."""
    a, random = np.asarray(transition, dtype=np.float64), np.random.default_rng(seed)
    x, found = np.zeros(len(a)), []
    for _ in range(steps + 200):
        x = a @ x + random.standard_normal(len(a))
        found.append(x)
    return np.array(found[200:])


def pair_among(n: int) -> Doubles:
    """Nodes 1 and 3 read each other, all others themselves alone."""
    a = 0.5 * np.eye(n)
    a[1, 3] = a[3, 1] = 0.4
    return a
