"""``python -m benchmarks.top_k``: what updating only the largest entries of a step costs, and what it is worth.

A layer learns one task and then another, whose queries lie in another subspace that overlaps the first. Steps are
taken until the loss of the second task is a tenth of what it was; forgetting is what the first has lost by then,
relative to its loss before anything was learned.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import aligned
from sona_pg.learning.base_lora import LoRALayer

Floats = NDArray[np.float32]

DIM, RANK, OVERLAP, OWN, BATCH, MOST_STEPS = 128, 16, 6, 10, 32, 20_000
RATE = 1.0
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)
SEEDS = range(4)


def largest(step: Floats, count: int) -> Floats:
    """`step` with all but its `count` entries of largest magnitude set to zero."""
    kept = np.argpartition(np.abs(step), step.size - count)[step.size - count :]
    sparse = np.zeros_like(step)
    sparse[kept] = step[kept]
    return sparse


class Task:
    """Queries of a subspace, and where they should be moved."""

    def __init__(self, random: np.random.Generator, span: Floats) -> None:
        self.random, self.span = random, span
        self.move = (random.standard_normal((DIM, DIM)) / np.sqrt(DIM)).astype(np.float32)
        self.held_out = self.queries(200)

    def queries(self, n: int) -> Floats:
        """n unit queries."""
        rows = self.random.standard_normal((n, len(self.span))) @ self.span
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)

    def off(self, layer: LoRALayer, x: Floats) -> Floats:
        """Gradient of the loss at the output."""
        out = np.zeros_like(x)
        layer.forward_batch(x, out)
        return np.asarray(out - x @ self.move, dtype=np.float32)

    def loss(self, layer: LoRALayer) -> float:
        """Mean square on held-out queries."""
        return float((self.off(layer, self.held_out) ** 2).sum(axis=1).mean())


def learn(layer: LoRALayer, task: Task, share: float, until: float, rate: float) -> int:
    """Steps on one task until its loss is `until`; how many were taken."""
    count = max(1, round(share * layer.parameters.size))
    taken = 0
    while taken < MOST_STEPS and task.loss(layer) > until:
        x = task.queries(BATCH)
        gradient = layer.gradient(x, task.off(layer, x))
        layer.step(gradient if share == 1.0 else largest(gradient, count), rate)
        taken += 1
    return taken


def world(seed: int, share: float, rate: float) -> tuple[int, float]:
    """Steps for the second task, and what of the first was forgotten."""
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.standard_normal((DIM, OVERLAP + 2 * OWN)))[0].T.astype(np.float32)
    spans = basis[: OVERLAP + OWN], basis[[*range(OVERLAP), *range(OVERLAP + OWN, OVERLAP + 2 * OWN)]]
    first, second = (Task(random, span) for span in spans)
    layer = LoRALayer(DIM, RANK, items=np.vstack([first.held_out, second.held_out]))
    fresh = first.loss(layer)
    reachable = [_best(layer, task) for task in (first, second)]
    learn(layer, first, 1.0, reachable[0] + 0.1 * (fresh - reachable[0]), rate)
    before, start = first.loss(layer), second.loss(layer)
    steps = learn(layer, second, share, reachable[1] + 0.1 * (start - reachable[1]), rate)
    return steps, (first.loss(layer) - before) / (fresh - reachable[0])


def _best(layer: LoRALayer, task: Task) -> float:
    """The least loss that any B has."""
    x = task.held_out
    seen = x @ layer.weights[: layer.rank].T
    goal = x @ task.move
    up = np.linalg.lstsq(seen, goal, rcond=None)[0]
    return float(((seen @ up - goal) ** 2).sum(axis=1).mean())


def seconds_of_a_step(share: float, dim: int, rank: int) -> float:
    """Least of many, microseconds."""
    layer = LoRALayer(dim, rank)
    gradient = np.random.default_rng(0).standard_normal(rank * dim).astype(np.float32)
    count, best = max(1, round(share * gradient.size)), np.inf
    for _ in range(300):
        began = time.perf_counter()
        layer.step(gradient if share == 1.0 else largest(gradient, count), 1e-9)
        best = min(best, time.perf_counter() - began)
    return 1e6 * best


def main() -> int:
    """Print both tables."""
    lines: list[tuple[object, ...]] = [("share", "steps", "forgotten", "sd", "µs d=384 r=8", "µs d=1536 r=16")]
    for share in SHARES:
        found = np.array([world(seed, share, RATE) for seed in SEEDS])
        times = [seconds_of_a_step(share, dim, rank) for dim, rank in ((384, 8), (1536, 16))]
        lines.append(
            (
                f"{share:.0%}",
                f"{np.median(found[:, 0]):.0f}",
                f"{found[:, 1].mean():.3f}",
                f"{found[:, 1].std():.3f}",
                *(f"{t:.1f}" for t in times),
            )
        )
    print(aligned(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
