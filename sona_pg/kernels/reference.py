"""The kernels in NumPy: what they must give, and the rival in the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_MASK = 0xFFFF_FFFF_FFFF_FFFF


def dot_rows(rows: Floats, x: Floats) -> Floats:
    """``rows @ x`` for rows (n, d) and x (d,)."""
    return rows @ x


def add_rows(rows: Floats, weight: Floats, out: Floats) -> None:
    """``out += weight @ rows`` for rows (n, d), weight (n,), out (d,)."""
    out += weight @ rows


def forward(weights: Floats, scale: float, x: Floats, out: Floats) -> None:
    """``out += scale (x A) B`` for weights (2 rank, dim): the columns of A, then the rows of B."""
    rank = len(weights) // 2
    out += np.float32(scale) * (weights[:rank] @ x) @ weights[rank:]


def backward(weights: Floats, scale: float, x: Floats, gradient: Floats) -> Floats:
    """Gradient of the weights (2 rank, dim), given that of the output: ``s (B_k·g) x`` over ``s (x·A_k) g``."""
    rank = len(weights) // 2
    down, up = weights[:rank], weights[rank:]
    return np.float32(scale) * np.vstack([np.outer(up @ gradient, x), np.outer(down @ x, gradient)])


def draw(seed: int, size: int, n: int, skip: NDArray[np.int64]) -> NDArray[np.int64]:
    """Up to n distinct rows of a pool of `size`, none in `skip`, by splitmix64 (Steele et al. 2014)."""
    drawn: list[int] = []
    excluded = {int(row) for row in skip}
    for _ in range(n if size else 0):
        seed = (seed + 0x9E37_79B9_7F4A_7C15) & _MASK
        z = ((seed ^ (seed >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
        z ^= z >> 31
        row = ((z >> 32) * size) >> 32
        if row not in excluded:
            excluded.add(row)
            drawn.append(row)
    return np.array(drawn, dtype=np.int64)


@dataclass
class ListwiseState:
    """Weights of a low-rank map while the listwise step trains it; every block is (2 rank, dim)."""

    weights: Floats
    moment1: Floats
    moment2: Floats
    served: Floats
    steps: int = 0


def listwise_step(
    state: ListwiseState,
    x: Floats,
    candidates: Floats,
    target: Floats,
    *,
    scale: float,
    temperature: float,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    average: float,
) -> float:
    """One Adam step on ``-Σ t log softmax(C û / τ)`` with ``û = u / |u|``, ``u = x + s (x A) B``; returns the loss.

    Parameters
    ----------
    candidates, target
        (n, dim), and (n,) summing to 1.
    """
    u = x.copy()
    forward(state.weights, scale, x, u)
    norm = np.linalg.norm(u)
    u /= norm
    score = candidates @ u / np.float32(temperature)
    score -= score.max()
    p = np.exp(score)
    total = p.sum()
    loss = float(np.log(total) - target @ score)
    g = ((p / total - target) / np.float32(temperature)) @ candidates
    g = (g - (g @ u) * u) / norm
    gradient = backward(state.weights, scale, x, g)
    state.steps += 1
    state.moment1 *= beta1
    state.moment1 += (1 - beta1) * gradient
    state.moment2 *= beta2
    state.moment2 += (1 - beta2) * gradient**2
    step = learning_rate / (1 - beta1**state.steps)
    state.weights -= step * state.moment1 / (np.sqrt(state.moment2 / (1 - beta2**state.steps)) + epsilon)
    state.served += (1 - average) * (state.weights - state.served)
    return loss
