"""What `python -m benchmarks.streams` measures on many streams, on a few: noise, and a change of the best strategy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.closed_loop import HALF, NOISE, Lived, live_change, live_noise
from benchmarks.grounds import ChangingGround, SyntheticGround
from benchmarks.streams import until_fusion, until_left
from sona_pg.learning.strategies import Strategy

STREAMS = 12


def test_noise_ends_at_frozen_and_costs_nothing() -> None:
    losses = []
    for stream in range(STREAMS):
        random = np.random.default_rng([1, stream])
        noise = list(NOISE.values())[stream % len(NOISE)]
        life = live_noise(SyntheticGround(random), noise, int(random.integers(30, 201)), random)
        assert life.ended is Strategy.FROZEN
        losses.append(life.loss)
    assert np.mean(losses) <= 0.1


@pytest.mark.parametrize(("to_moved", "until"), [(True, until_fusion), (False, until_left)])
def test_a_change_of_the_best_strategy_is_followed(to_moved: bool, until: Callable[[Lived], int | None]) -> None:
    random = np.random.default_rng(0)
    life = live_change(ChangingGround(random, to_moved=to_moved, to_others=True, moved=0.6), random)
    events = until(life)
    assert events is not None
    assert 0 < events <= HALF
