"""In worlds where the reward depends on the direction of the output, outputs move towards what was rewarded."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg.config import InstantLoopConfig
from sona_pg.learning.lora import orthonormal_rows
from sona_pg.loops.instant import InstantLoop

from .samples import Floats
from .worlds import DIM, World, make_world

NEEDED = 0.95
LearnAndAnswer = Callable[[World], Floats]


def instant_loop(rank: int) -> LearnAndAnswer:
    """Record the trajectories of a world, learn them, and answer its held-out queries, with default settings."""

    def answer(world: World) -> Floats:
        loop = InstantLoop(DIM, InstantLoopConfig(micro_lora_rank=rank))
        for trajectory in world.trajectories():
            assert loop.on_inference(trajectory)
        loop.flush_updates()
        return np.stack([loop.serving.adapt(queries) for queries in world.held_out])

    return answer


def naive(rank: int) -> LearnAndAnswer:
    """Sum quality times gradient into every row of B, whatever the input was."""

    def answer(world: World) -> Floats:
        advantage = world.rewards - world.rewards.mean(axis=1, keepdims=True)
        gradients = np.einsum("ns,nsd->nd", advantage, world.activations)
        row = world.rewards.mean(axis=1) @ gradients
        down, up = orthonormal_rows(rank, DIM, seed=0), np.tile(row, (rank, 1))
        return np.asarray(world.held_out + 1e-3 * (world.held_out @ down.T) @ up, dtype=np.float32)

    return answer


class Share(NamedTuple):
    """How often outputs moved towards what was rewarded: in both clusters of a world, and in a cluster alone."""

    of_worlds: float
    of_clusters: float


def shares(learners: dict[str, LearnAndAnswer], worlds: int, trajectories: int, steps: int) -> dict[str, Share]:
    moved: dict[str, list[NDArray[np.float32]]] = {name: [] for name in learners}
    for seed in range(worlds):
        world = make_world(seed, trajectories, steps)
        for name, answer in learners.items():
            moved[name].append(world.movement(answer(world)))
    right = {name: np.stack(rows) > 0 for name, rows in moved.items()}
    return {name: Share(float(r.all(axis=1).mean()), float(r.mean())) for name, r in right.items()}


@pytest.fixture(scope="module")
def many_steps() -> dict[str, Share]:
    learners = {"rank 1": instant_loop(1), "rank 2": instant_loop(2), "naive 1": naive(1), "naive 2": naive(2)}
    return shares(learners, 400, trajectories=48, steps=20)


@pytest.fixture(scope="module")
def one_step() -> dict[str, Share]:
    return shares({"rank 1": instant_loop(1), "rank 2": instant_loop(2)}, 200, trajectories=240, steps=1)


@pytest.mark.parametrize("rank", [1, 2])
def test_outputs_of_both_clusters_move_towards_what_was_rewarded(many_steps: dict[str, Share], rank: int) -> None:
    assert many_steps[f"rank {rank}"].of_worlds > NEEDED


@pytest.mark.parametrize("rank", [1, 2])
def test_running_baseline_gives_the_direction_where_a_trajectory_has_one_step(
    one_step: dict[str, Share], rank: int
) -> None:
    assert one_step[f"rank {rank}"].of_worlds > NEEDED


@pytest.mark.parametrize("rank", [1, 2])
def test_learner_that_ignores_the_input_is_a_coin_toss(many_steps: dict[str, Share], rank: int) -> None:
    assert many_steps[f"naive {rank}"].of_worlds < 0.6
    assert 0.4 < many_steps[f"naive {rank}"].of_clusters < 0.6


def test_learner_that_ignores_the_input_gains_nothing_from_a_second_rank(many_steps: dict[str, Share]) -> None:
    assert abs(many_steps["naive 1"].of_worlds - many_steps["naive 2"].of_worlds) < 0.1


def test_worlds_are_the_same_for_the_same_seed_and_differ_between_seeds() -> None:
    first, again, other = make_world(3, 4, 5), make_world(3, 4, 5), make_world(4, 4, 5)
    assert first.activations.tobytes() == again.activations.tobytes()
    assert first.rewards.tobytes() == again.rewards.tobytes()
    assert first.queries.tobytes() != other.queries.tobytes()


def test_rewards_of_a_world_follow_the_direction_of_its_clusters() -> None:
    world = make_world(0, trajectories=400, steps=1)
    own, other = ([], [])
    for number in range(400):
        activation = world.activations[number, 0]
        own.append(activation @ world.rewarded[number % 2])
        other.append(activation @ world.rewarded[1 - number % 2])
    rewards = world.rewards[:, 0]
    assert rewards.min() >= 0
    assert rewards.max() <= 1
    assert np.corrcoef(own, rewards)[0, 1] > 0.8
    assert abs(np.corrcoef(other, rewards)[0, 1]) < 0.2
