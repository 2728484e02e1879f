"""A small learner, and events that teach it everything that it can learn."""

from __future__ import annotations

import numpy as np

from sona_pg.config import InstantLoopConfig, QueryAdapterConfig, SpaceConfig
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.learner import Learner
from sona_pg.learning.outcome import OutcomeEvent

from .samples import acted, shown, trajectory, unit_rows

DIM = 8
ITEMS = 60


def make_pool() -> ItemPool:
    return ItemPool([f"i{n}" for n in range(ITEMS)], np.random.default_rng(2).standard_normal((ITEMS, DIM)) + 0.5)


def make_learner(*, rank: int = 2, micro_rank: int = 1, dim: int = DIM, implicit: bool = False) -> Learner:
    return Learner(
        dim,
        make_pool() if dim == DIM else None,
        adapter=QueryAdapterConfig(rank=rank, negatives=8),
        instant=InstantLoopConfig(micro_lora_rank=micro_rank, micro_lora_lr=0.1),
        space=SpaceConfig(implicit_feedback=implicit),
    )


def make_events(count: int, first: int = 0) -> list[OutcomeEvent]:
    """Answers of items and steps that are no items, in turns; event n is the same in every list."""
    events = []
    for number in range(first, first + count):
        random = np.random.default_rng([9, number])
        query, *activations = unit_rows(random.standard_normal((4, DIM)))
        if number % 2:
            steps = [acted(a, float(r)) for a, r in zip(activations, random.random(3), strict=True)]
        else:
            items = random.choice(ITEMS, 3, replace=False)
            steps = [shown(f"i{item}", float(place == 1), position=place + 1) for place, item in enumerate(items)]
        events.append(OutcomeEvent(trajectory(query, steps, id=number + 1)))
    return events
