"""What recording costs the caller: a step, and a whole trajectory, learning excluded."""

from __future__ import annotations

import queue

import numpy as np

from benchmarks.harness import Row, compare
from sona_pg.config import InstantLoopConfig
from sona_pg.loops.buffer import TrajectoryBuffer
from sona_pg.loops.instant import InstantLoop
from sona_pg.types import QueryTrajectory, TrajectoryBuilder

DIM, STEPS = 384, 10


def run(*, quick: bool) -> list[Row]:
    """Steps, trajectories and the buffer."""
    rounds = 300 if quick else 3000
    random = np.random.default_rng(0)
    query = random.standard_normal(DIM, dtype=np.float32)
    steps = random.standard_normal((STEPS, DIM), dtype=np.float32)
    attention = np.array([0.5], dtype=np.float32)

    def build() -> QueryTrajectory:
        builder = TrajectoryBuilder(None, query)
        for place, step in enumerate(steps):
            builder.add_step(step, attention, 0.5, item_id="item", position=place + 1)
        return builder.build(0.5)

    builder = TrajectoryBuilder(None, query)
    plain: list[tuple[object, ...]] = []

    def add_step() -> None:
        nonlocal builder
        if builder.step_count == STEPS:
            builder = TrajectoryBuilder(None, query)
        builder.add_step(steps[0], attention, 0.5, item_id="item", position=1)

    def copy_step() -> None:
        if len(plain) == STEPS:
            plain.clear()
        plain.append((steps[0].copy(), attention.copy(), 0.5, "item", 1))

    trajectory = build()
    loop = InstantLoop(DIM, InstantLoopConfig(max_pending_signals=1 << 20))
    bounded: queue.Queue[QueryTrajectory] = queue.Queue(1 << 20)
    ring, locked = TrajectoryBuffer(1000), queue.Queue[QueryTrajectory](1000)

    def through_ring() -> None:
        ring.record(trajectory)
        if len(ring) == ring.capacity:
            ring.drain()

    def through_queue() -> None:
        locked.put_nowait(trajectory)
        if locked.full():
            while not locked.empty():
                locked.get_nowait()

    return [
        compare("add_step", {"d": DIM}, add_step, "tuple of copies", copy_step, rounds=rounds, inner=100),
        compare(
            "on_inference",
            {"d": DIM, "steps": STEPS},
            lambda: loop.on_inference(trajectory),
            "queue.Queue.put",
            lambda: bounded.put_nowait(trajectory),
            rounds=rounds,
            inner=1,
        ),
        compare(
            "build and on_inference",
            {"d": DIM, "steps": STEPS},
            lambda: loop.on_inference(build()),
            "copies of the arrays",
            lambda: [step.copy() for step in steps],
            rounds=rounds,
            inner=1,
        ),
        compare("buffer", {"capacity": 1000}, through_ring, "queue.Queue", through_queue, rounds=200, inner=2000),
    ]
