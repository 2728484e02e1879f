"""Loop B in memory: bank, base, tasks and gate together, on trajectories alone."""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg import BackgroundLoop, BackgroundLoopConfig, PatternConfig, SpaceConfig
from sona_pg.config import BaseTrainingConfig, EwcConfig, GateConfig
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput
from sona_pg.learning.base_cycle import BaseConfig
from sona_pg.learning.item_pool import ItemPool
from sona_pg.types import QueryTrajectory, TrajectoryBuilder

from .samples import Floats, acted, axis, shown, trajectory, unit_rows

DIM, ITEMS = 24, 200
CONFIG = BackgroundLoopConfig(min_trajectories=50)
BASE = BaseConfig(training=BaseTrainingConfig(rank=6, learning_rate=2e-3), gate=GateConfig(withheld=0.2, losing_z=3.0))


class _World:
    """What answers a query is the item it comes from, turned in the planes in which items differ most."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.items = unit_rows(self.rng.standard_normal((ITEMS, DIM)) * ([3.0] * 8 + [1.0] * (DIM - 8)))
        self.pool = ItemPool([f"i{row}" for row in range(ITEMS)], self.items)
        self.moved: NDArray[np.float64] = np.zeros(DIM)
        self.asked = 0

    def ask(self, row: int) -> Floats:
        query, x, y = self.items[row].copy(), self.items[row, 0:8:2], self.items[row, 1:8:2]
        query[0:8:2], query[1:8:2] = 0.4 * x - 0.9 * y, 0.9 * x + 0.4 * y
        return unit_rows((query + 0.05 * self.rng.standard_normal(DIM) + self.moved)[np.newaxis])[0]

    def trajectories(self, n: int, *, shuffled: bool = False, items: bool = True) -> list[QueryTrajectory]:
        rows = self.rng.integers(0, ITEMS // 2, n)
        helped = self.rng.permutation(rows) if shuffled else rows
        made = []
        for row, answer in zip(rows, helped, strict=True):
            self.asked += 1
            query = self.ask(int(row))
            near = [int(i) for i in np.argsort(-(self.items @ query))[:5] if i != answer]
            if items:
                steps = [shown(f"i{answer}", 1.0, position=1)]
                steps += [shown(f"i{i}", 0.0, position=place + 2) for place, i in enumerate(near)]
            else:
                steps = [acted(self.items[answer], 1.0), *(acted(self.items[i], 0.0) for i in near)]
            made.append(trajectory(query, steps, 0.8, self.asked))
        return made

    def quality(self, loop: BackgroundLoop) -> float:
        """Mean reciprocal rank over items that nobody asked for."""
        queries = np.stack([self.ask(row) for row in range(ITEMS // 2, ITEMS)])
        out = queries.copy()
        loop.base_lora().layers[0].forward_batch(queries, out)
        scores = unit_rows(out) @ self.items.T
        own = scores[np.arange(len(queries)), np.arange(ITEMS // 2, ITEMS)]
        return float((1 / (scores >= own[:, np.newaxis]).sum(axis=1)).mean())


@pytest.mark.parametrize("items", [True, False])
def test_what_helped_is_learned_and_helps_what_nobody_asked_for(items: bool) -> None:
    world = _World()
    loop = BackgroundLoop(CONFIG, DIM, items=world.pool if items else None, base=BASE)
    frozen = world.quality(loop)
    first = loop.run_cycle(world.trajectories(200, items=items))
    assert first.trajectories_processed == 200
    assert first.patterns_extracted == len(loop.reasoning_bank().patterns) > 0
    # By what was withheld from the very first on it is judged at once.
    assert first.withheld > 20
    assert first.status == "published"
    assert world.quality(loop) > frozen + 0.1
    again = loop.run_cycle(world.trajectories(200, items=items))
    assert again.lists > first.lists
    assert world.quality(loop) > frozen + 0.15


def test_below_the_minimum_nothing_is_consumed() -> None:
    world = _World(1)
    loop = BackgroundLoop(CONFIG, DIM, items=world.pool, base=BASE)
    few = world.trajectories(49)
    result = loop.run_cycle(few)
    assert result.status == "skipped: 49 of 50 trajectories"
    assert (result.trajectories_processed, loop.reasoning_bank().trajectory_count) == (0, 0)
    result = loop.run_cycle([*few, *world.trajectories(1)])
    assert result.trajectories_processed == 50


def test_a_shuffled_hour_is_refused_and_leaves_nothing() -> None:
    world = _World(2)
    loop = BackgroundLoop(CONFIG, DIM, items=world.pool, base=BASE)
    assert loop.run_cycle(world.trajectories(200)).is_published
    before = loop.base_lora().layers[0].weights.copy()
    result = loop.run_cycle(world.trajectories(200, shuffled=True))
    assert result.status == "kept: outcomes have nothing to do with queries"
    assert np.array_equal(loop.base_lora().layers[0].weights, before)
    # What was learned before goes on being learned, and nothing of the shuffled hour.
    assert loop.run_cycle(world.trajectories(200)).lists < 400


def test_a_task_that_ended_is_held_by_the_ewc() -> None:
    world = _World(3)
    loop = BackgroundLoop(CONFIG, DIM, items=world.pool, base=BASE)
    assert loop.ewc().task_count == 0
    world.moved = 1.5 * axis(20, DIM)
    loop.run_cycle(world.trajectories(200))
    world.moved = -1.5 * axis(21, DIM)
    result = loop.run_cycle(world.trajectories(200))
    assert result.tasks_ended == 1
    ewc = loop.ewc()
    assert ewc.task_count == 1
    assert ewc.stiffness.max() > 0
    assert ewc.param_count == loop.base_lora().layers[0].parameters.size


def test_the_same_trajectories_give_the_same_base() -> None:
    bases = []
    for _ in range(2):
        world = _World(4)
        loop = BackgroundLoop(CONFIG, DIM, items=world.pool, base=BASE)
        for _ in range(2):
            loop.run_cycle(world.trajectories(100), now=1.0)
        bases.append(loop.base_lora().layers[0].weights.copy())
    assert np.array_equal(*bases)


def test_a_cycle_is_due_by_time_and_amount() -> None:
    world = _World(5)
    loop = BackgroundLoop(BackgroundLoopConfig(60.0, 50), DIM, items=world.pool, base=BASE)
    assert loop.is_due(50, 0.0)
    assert not loop.is_due(49, 0.0)
    loop.run_cycle(world.trajectories(50), now=100.0)
    assert not loop.is_due(50, 159.0)
    assert loop.is_due(50, 160.0)


def test_what_cannot_be_taken_in_is_refused_before_anything_is() -> None:
    world = _World(6)
    loop = BackgroundLoop(CONFIG, DIM, items=world.pool, base=BASE)
    good = world.trajectories(60)
    with pytest.raises(DimensionMismatch):
        loop.run_cycle([*good, trajectory(axis(0, DIM + 1), [], 0.5, 9999)])
    with pytest.raises(InvalidInput):
        loop.run_cycle([*good, "no trajectory"])  # type: ignore[list-item]
    with pytest.raises(InvalidInput):
        loop.run_cycle([*good, trajectory(np.zeros(DIM, dtype=np.float32), [], 0.5, 9999)])
    assert loop.reasoning_bank().trajectory_count == 0
    with pytest.raises(ConfigError):
        BackgroundLoop(CONFIG, 0)


def test_trajectories_without_outcomes_make_patterns_and_no_base() -> None:
    loop = BackgroundLoop(CONFIG, DIM, patterns=PatternConfig(k_clusters=2), space=SpaceConfig())
    queries = [TrajectoryBuilder(n, axis(n % 2, DIM)).build(0.5) for n in range(60)]
    result = loop.run_cycle(queries)
    assert result.patterns_extracted == 2
    assert result.status == "kept: nothing was judged from which something could be learned"
    assert loop.base_lora().layers[0].is_zero


def test_what_is_set_holds_and_what_is_set_twice_must_be_the_same() -> None:
    base = BaseConfig(training=BaseTrainingConfig(rank=4, learning_rate=0.01), ewc=EwcConfig(initial_lambda=500.0))
    for config in (None, BackgroundLoopConfig(), BackgroundLoopConfig(base_lora_lr=0.01, ewc_lambda=500.0)):
        loop = BackgroundLoop(config, DIM, base=base)
        assert (loop.ewc().lambda_, loop.base_lora().rank) == (500.0, 4)
        assert loop._cycle.training.learning_rate == 0.01
    # Beyond the usual range, too.
    loop = BackgroundLoop(BackgroundLoopConfig(base_lora_lr=0.02, ewc_lambda=0.5), DIM)
    assert (loop.ewc().lambda_, loop._cycle.training.learning_rate) == (0.5, 0.02)
    for config in (BackgroundLoopConfig(base_lora_lr=0.02), BackgroundLoopConfig(ewc_lambda=30.0)):
        with pytest.raises(ConfigError, match="one of the two"):
            BackgroundLoop(config, DIM, base=base)
    with pytest.raises(ConfigError, match="rank is 32"):
        BackgroundLoop(None, 64, base=BaseConfig(training=BaseTrainingConfig(rank=32)))
    assert BackgroundLoop(None, 8, base=BaseConfig(training=BaseTrainingConfig(rank=32))).base_lora().rank == 8
    with pytest.raises(ConfigError, match="embedding_dim"):
        BackgroundLoop(None, DIM, patterns=PatternConfig(embedding_dim=DIM + 1))


def test_no_more_of_an_hour_is_learned_than_the_reservoir_holds() -> None:
    world = _World(7)
    base = replace(BASE, training=replace(BASE.training, reservoir=40))
    loop = BackgroundLoop(CONFIG, DIM, items=world.pool, base=base)
    result = loop.run_cycle(world.trajectories(400))
    assert (result.lists, result.withheld) == (40, 40)
    # And as many of before; and what has judged.
    learned_again = {*loop._memory.reservoir, *loop._memory.owed}
    assert 40 < len(learned_again) <= 80
    assert loop.run_cycle(world.trajectories(400)).lists == 40 + len(learned_again)


def test_what_has_judged_does_not_judge_again() -> None:
    world = _World(2)
    loop = BackgroundLoop(CONFIG, DIM, items=world.pool, base=BASE)
    first = world.trajectories(200)
    assert loop.run_cycle(first).withheld > 20
    assert loop.run_cycle(world.trajectories(200)).withheld > 20
    assert loop.run_cycle(first).withheld == 0


def test_what_has_judged_is_learned_though_the_next_hour_is_noise() -> None:
    world = _World(7)
    base = replace(BASE, training=replace(BASE.training, reservoir=200))
    loop = BackgroundLoop(CONFIG, DIM, items=world.pool, base=base)
    assert loop.run_cycle(world.trajectories(200)).is_published
    owed = set(loop._memory.owed)
    assert len(owed) > 20
    assert not loop.run_cycle(world.trajectories(200, shuffled=True)).is_published
    assert set(loop._memory.owed) == owed
    assert loop.run_cycle(world.trajectories(200)).is_published
    assert not set(loop._memory.owed) & owed


def test_a_task_that_ends_in_the_first_cycle_is_held_afterwards() -> None:
    world = _World(3)
    loop = BackgroundLoop(CONFIG, DIM, items=world.pool, base=BASE)
    world.moved = 1.5 * axis(20, DIM)
    first = world.trajectories(200)
    world.moved = -1.5 * axis(21, DIM)
    result = loop.run_cycle([*first, *world.trajectories(200)])
    assert (result.status, result.tasks_ended) == ("published", 1)
    (task,) = loop._memory.tasks
    assert task.fisher.any()
    assert np.allclose(task.frame @ task.frame.T, np.eye(len(task.frame)), atol=1e-5)
    assert loop.ewc().stiffness.max() > 0


def test_the_ewc_has_the_strength_that_was_adapted() -> None:
    world = _World(3)
    # So small a reservoir replays but a part.
    base = replace(BASE, training=replace(BASE.training, reservoir=150))
    loop = BackgroundLoop(CONFIG, DIM, items=world.pool, base=base)
    for moved in (1.5 * axis(20, DIM), -1.5 * axis(21, DIM), -1.5 * axis(21, DIM)):
        world.moved = moved
        result = loop.run_cycle(world.trajectories(300))
    assert result.is_published
    strength = loop.ewc().lambda_
    assert strength == loop._memory.traffic.strength
    assert strength != base.ewc.initial_lambda


def test_items_of_steps_are_a_sample_of_all() -> None:
    world = _World(1)
    loop = BackgroundLoop(CONFIG, DIM, base=BASE)
    loop._recipe = replace(loop._recipe, pool_size=300)
    trajectories = world.trajectories(1000, items=False)
    answers = [loop._answered(one, place) for place, one in enumerate(trajectories)]
    pool = loop._judged_items([answer for answer in answers if answer is not None])
    numbers = [uuid.UUID(id.split("/")[0]).int for id in pool.ids]
    assert len(pool) == 300
    # Old and new ones alike.
    assert 0.2 < np.mean([number > 700 for number in numbers]) < 0.4


@pytest.mark.parametrize("size", [7, DIM + 1])
def test_an_item_of_another_dimension_is_refused_before_anything_is_taken_in(size: int) -> None:
    world = _World(1)
    for pool in (world.pool, None):
        loop = BackgroundLoop(CONFIG, DIM, items=pool, base=BASE)
        built = trajectory(world.ask(3), [shown("z1", 1.0, np.ones(size, dtype=np.float32)), shown("i3", 0.0)], 0.8, 99)
        with pytest.raises(DimensionMismatch, match="z1"):
            loop.run_cycle([*world.trajectories(60), built])
        assert (loop.reasoning_bank().trajectory_count, loop._seen) == (0, 0)
