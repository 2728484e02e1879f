"""Tasks of a base: what they need is the same in every frame, they are known again, and learning leaves them alone."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg.config import BaseTrainingConfig, BoundaryConfig, EwcConfig, QueryAdapterConfig
from sona_pg.errors import LearningError
from sona_pg.kernels import LowRank, draw
from sona_pg.learning.base_tasks import (
    BaseTask,
    TaskConstraint,
    Traffic,
    excess_loss,
    learned_task,
    met_again,
    recognised,
    signature_of,
)
from sona_pg.learning.base_trainer import fixed_form, train_base
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList, helpful_items
from sona_pg.learning.task_memory import TaskMemory

from .samples import Floats, axis, unit_rows

DIM, RANK, ITEMS = 24, 4, 120
RECIPE = QueryAdapterConfig(rank=RANK)


def _frame(rng: np.random.Generator, rank: int = RANK) -> NDArray[np.float32]:
    q, _ = np.linalg.qr(rng.standard_normal((DIM, rank)))
    return np.ascontiguousarray(q.T, dtype=np.float32)


def _task(rng: np.random.Generator, id: int = 1, **parts: object) -> BaseTask:
    given: dict[str, object] = {
        "id": id,
        "signature": axis(0, DIM),
        "frame": _frame(rng),
        "anchor": rng.standard_normal((RANK, DIM)).astype(np.float32),
        "fisher": rng.random((RANK, DIM)).astype(np.float32),
        "samples": 10,
        "quality": 0.5,
    }
    return BaseTask(**(given | parts))  # type: ignore[arg-type]


def _penalty(task: BaseTask, frame: NDArray[np.float32], up: NDArray[np.float64]) -> float:
    """½ Σ F (A_kᵀ ΔW - B_k)², of the matrix itself."""
    coordinates = task.frame.astype(np.float64) @ frame.T @ up
    return float(0.5 * np.sum(task.fisher * (coordinates - task.anchor) ** 2))


def test_in_its_own_frame_a_task_is_what_it_was() -> None:
    task = _task(np.random.default_rng(0))
    memory = task.in_frame(task.frame, np.ones((RANK, DIM), dtype=np.float32))
    assert np.abs(memory.fisher - task.fisher.ravel()).max() < 1e-6
    assert np.abs(memory.anchor - task.anchor.ravel()).max() < 1e-4


def test_where_a_frame_is_turned_by_right_angles_the_penalty_is_the_same_one() -> None:
    rng = np.random.default_rng(1)
    task, order = _task(rng), rng.permutation(RANK)
    turned = task.frame[order] * np.float32([[1], [-1], [1], [-1]])
    at = rng.standard_normal((RANK, DIM)).astype(np.float32)
    memory, up = task.in_frame(turned, at), rng.standard_normal((RANK, DIM))
    expected = _penalty(task, turned, up)
    found = 0.5 * np.sum(memory.fisher * (up.ravel() - memory.anchor) ** 2)
    assert found == pytest.approx(expected, rel=1e-5)


def test_in_any_frame_the_penalty_is_majorised_around_where_it_is_taken() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        # Frames that have much in common, and little.
        task, frame = _task(rng), _frame(rng)
        if rng.random() < 0.5:
            mixed, _ = np.linalg.qr(task.frame.T + 0.3 * frame.T)
            frame = np.ascontiguousarray(mixed.T, dtype=np.float32)
        at = rng.standard_normal((RANK, DIM)).astype(np.float32)
        memory = task.in_frame(frame, at)

        def bound(up: NDArray[np.float64], memory: TaskMemory = memory) -> float:
            return float(0.5 * np.sum(memory.fisher * (up.ravel() - memory.anchor) ** 2.0))

        here = _penalty(task, frame, at.astype(np.float64))
        for size in (1e-3, 0.1, 3.0):
            up = at + size * rng.standard_normal((RANK, DIM))
            rises = _penalty(task, frame, up) - here
            assert rises <= bound(up) - bound(at.astype(np.float64)) + 1e-4 * (1 + abs(rises))
        # It touches there: both have one slope.
        step = 1e-4 * rng.standard_normal((RANK, DIM))
        slope = (_penalty(task, frame, at + step) - _penalty(task, frame, at - step)) / 2
        assert slope == pytest.approx((bound(at + step) - bound(at - step)) / 2, rel=1e-2, abs=1e-6)


def test_a_frame_that_has_nothing_in_common_holds_nothing() -> None:
    task = _task(np.random.default_rng(3), frame=np.eye(RANK, DIM, dtype=np.float32))
    memory = task.in_frame(np.eye(RANK, DIM, RANK, dtype=np.float32), np.zeros((RANK, DIM), dtype=np.float32))
    assert not memory.fisher.any()
    assert np.isfinite(memory.anchor).all()


def test_a_task_is_known_again_by_the_direction_of_its_queries() -> None:
    rng = np.random.default_rng(4)
    tasks = [_task(rng, 1), _task(rng, 2, signature=axis(1, DIM))]
    near = signature_of([axis(1, DIM) + 0.2 * axis(5, DIM), 3 * axis(1, DIM)])
    found = recognised(tasks, near, 0.9)
    assert found is not None
    assert found.id == 2
    assert recognised(tasks, axis(7, DIM), 0.9) is None
    assert recognised([], near, 0.9) is None
    assert recognised(tasks, signature_of([axis(1, DIM), -axis(1, DIM)]), -1.0) is None


def test_what_has_come_again_is_one_task_with_the_outcomes_of_both_times() -> None:
    rng = np.random.default_rng(5)
    first, second = _task(rng, 3, samples=30, quality=0.2), _task(rng, 9, samples=10, quality=0.6)
    both = met_again(first, second)
    assert (both.id, both.samples, both.times_met) == (3, 40, 2)
    assert both.quality == pytest.approx(0.3)
    assert np.array_equal(both.anchor, second.anchor)
    same = met_again(first, _task(rng, 9, frame=first.frame, fisher=np.zeros((RANK, DIM), dtype=np.float32)))
    assert np.abs(same.fisher - 0.75 * first.fisher).max() < 1e-6
    # What the first time needed is taken along into the frame of the second.
    turned = np.ascontiguousarray(first.frame[::-1])
    again = met_again(first, _task(rng, 9, frame=turned, fisher=np.zeros((RANK, DIM), dtype=np.float32)))
    assert np.abs(again.fisher - 0.75 * first.fisher[::-1]).max() < 1e-6


class _Domain:
    """Queries about items of their own, turned in planes of their own, of those in which items differ most."""

    def __init__(self, seed: int, planes: tuple[int, ...]) -> None:
        self.rng = np.random.default_rng(seed)
        self.items = unit_rows(self.rng.standard_normal((ITEMS, DIM)) * ([3.0] * 8 + [0.7] * (DIM - 8)))
        self.ids = [f"{seed}-{row}" for row in range(ITEMS)]
        self.planes = planes
        self.seed = seed

    def ask(self, row: int) -> Floats:
        query = self.items[row].copy()
        for plane in self.planes:
            x, y = self.items[row, plane], self.items[row, plane + 1]
            query[plane], query[plane + 1] = -y, x
        return unit_rows((query + 0.02 * self.rng.standard_normal(DIM))[np.newaxis])[0]

    def lists(self, n: int) -> list[JudgedList]:
        made = []
        for number in range(n):
            row = int(self.rng.integers(ITEMS))
            others = self.rng.choice(ITEMS, 4, replace=False)
            rows = [row, *(int(other) for other in others if other != row)]
            made.append(
                JudgedList(
                    (uuid.UUID(int=(self.seed << 64) + number + 1), 0),
                    self.ask(row),
                    tuple(self.ids[r] for r in rows),
                    tuple(self.items[r] for r in rows),
                    (1.0, *(0.0 for _ in rows[1:])),
                    tuple(True for _ in rows),
                )
            )
        return made

    def quality(self, base: LowRank) -> float:
        """Mean reciprocal rank of the item that was asked for."""
        found = []
        for row in range(ITEMS):
            query = self.ask(row)
            out = query.copy()
            base.forward(query, out)
            scores = self.items @ out
            found.append(1 / float((scores >= scores[row]).sum()))
        return float(np.mean(found))


def _learn(start: LowRank, domain: _Domain, constraint: TaskConstraint | None = None) -> LowRank:
    return train_base(
        start,
        domain.lists(400),
        items=domain.items,
        config=BaseTrainingConfig(rank=RANK, learning_rate=3e-3),
        recipe=RECIPE,
        constraint=constraint,
    ).map


def test_what_a_task_needs_is_left_alone_when_another_one_is_learned() -> None:
    # The second one wants back what the first one has turned.
    first, second = _Domain(1, (0, 2)), _Domain(2, (4, 6))
    base = _learn(LowRank(DIM, 1), first)
    learned = first.quality(base)
    assert learned > first.quality(LowRank(DIM, 1)) + 0.1
    lists = first.lists(300)
    task = learned_task(base, lists, 0.5, helpful_items(lists, 1000, DIM), RECIPE, 1)
    assert task is not None
    assert task.samples == 300
    assert task.fisher.max() > 0
    free = _learn(base, second)
    weights = fixed_form(base, RANK, first.items)
    config = EwcConfig(min_lambda=1e-3, max_lambda=1e9, initial_lambda=1e5)
    held = _learn(base, second, TaskConstraint(weights, [task], config, 1e5))
    quality = [learned, first.quality(free), first.quality(held)]
    assert quality[2] > quality[1] + 0.15, quality


def test_the_stronger_the_penalty_the_more_is_held() -> None:
    first, second = _Domain(3, (0, 2)), _Domain(4, (4, 6))
    base, lists = _learn(LowRank(DIM, 1), first), first.lists(100)
    task = learned_task(base, lists, 0.5, helpful_items(lists, 1000, DIM), RECIPE, 1)
    assert task is not None
    weights = fixed_form(base, RANK, first.items)
    config = EwcConfig(min_lambda=1e-6, max_lambda=1e9, initial_lambda=1.0)
    held = [
        first.quality(_learn(base, second, TaskConstraint(weights, [task], config, strength)))
        for strength in (1e-6, 100.0, 1e6)
    ]
    assert held[0] < held[1] < held[2], held


def test_tasks_hold_a_base_as_one_that_was_made_of_all_of_them_would() -> None:
    """A cycle brings tasks of different frames into its own and adds them up: to merge them before saves nothing."""
    rng = np.random.default_rng(8)
    tasks = [_task(rng) for _ in range(5)]
    weights = np.vstack([_frame(rng), rng.standard_normal((RANK, DIM)).astype(np.float32)])
    single, merged = (TaskConstraint(weights, tasks, EwcConfig(), 1000.0) for _ in range(2))
    merged.ewc.consolidate_all_tasks()
    assert (single.ewc.task_count, merged.ewc.task_count) == (5, 1)
    held = [weights + 1, weights + 1]
    for constraint, theta in zip((single, merged), held, strict=True):
        constraint.proximal_step(theta, 1e-3)
    assert np.abs(held[0] - weights - 1).max() > 0.01
    np.testing.assert_allclose(held[0], held[1], rtol=1e-5, atol=1e-5)


def test_the_strength_grows_where_the_tasks_lose() -> None:
    rng = np.random.default_rng(6)
    task = _task(rng)
    weights = np.vstack([task.frame, task.anchor])
    config = EwcConfig(min_lambda=1.0, max_lambda=1e6, initial_lambda=1000.0)
    still, far = TaskConstraint(weights, [task], config, 1000.0), TaskConstraint(weights, [task], config, 1000.0)
    assert still.strength_after(weights) < 1000.0
    assert far.strength_after(np.vstack([task.frame, task.anchor + 10])) > 1000.0


def test_the_strength_is_adapted_to_what_the_tasks_lose_whatever_share_of_it_counts() -> None:
    rng = np.random.default_rng(8)
    task, config = _task(rng), EwcConfig(min_lambda=1e-6, max_lambda=1e9)
    weights = np.vstack([task.frame, task.anchor])
    moved = np.vstack([task.frame, task.anchor + 0.02 * rng.standard_normal((RANK, DIM))]).astype(np.float32)
    loss = _penalty(task, task.frame, moved[RANK:].astype(np.float64))
    expected = 30.0 * np.exp(config.lambda_rate * (loss / config.tolerated_loss - 1))
    for share in (1.0, 0.5, 0.1, 0.02):
        constraint = TaskConstraint(weights, [task], config, 30.0, share)
        assert constraint.strength_after(moved) == pytest.approx(expected, rel=1e-4)


def test_the_tolerated_loss_is_where_the_strength_settles() -> None:
    # A new task ½ |B - B₁|² beside the penalty: B = (B₁ + λ s F B*) / (1 + λ s F).
    rng = np.random.default_rng(9)
    task = _task(rng)
    weights = np.vstack([task.frame, task.anchor])
    wanted = task.anchor + 0.3 * rng.standard_normal((RANK, DIM))
    config = EwcConfig(lambda_rate=0.1, max_lambda=1e6)
    for share in (1.0, 0.1):
        strength = config.initial_lambda
        for _ in range(300):
            held = strength * share * task.fisher.astype(np.float64)
            found = np.vstack([task.frame, (wanted + held * task.anchor) / (1 + held)]).astype(np.float32)
            strength = TaskConstraint(weights, [task], config, strength, share).strength_after(found)
        assert _penalty(task, task.frame, found[RANK:].astype(np.float64)) == pytest.approx(0.01, rel=0.05)


def test_the_loss_on_tasks_is_that_of_the_matrix_in_every_frame() -> None:
    rng = np.random.default_rng(10)
    task = _task(rng)
    turn, _ = np.linalg.qr(rng.standard_normal((RANK, RANK)))
    up = task.anchor + 0.02 * rng.standard_normal((RANK, DIM))
    turned = np.ascontiguousarray(turn.T @ task.frame, dtype=np.float32)
    expected = _penalty(task, task.frame, up)
    # The same ΔW, its A turned; what majorises the penalty there is more.
    for frame, own in ((task.frame, up), (turned, turn.T @ up)):
        weights = np.vstack([frame, own]).astype(np.float32)
        assert excess_loss([task], weights) == pytest.approx(expected, rel=1e-4)
        before = np.vstack([turned, turn.T @ task.anchor]).astype(np.float32)
        strength = TaskConstraint(before, [task], EwcConfig(), 30.0).strength_after(weights)
        assert strength == pytest.approx(30.0 * np.exp(0.5 * (expected / 0.01 - 1)), rel=1e-3)


def test_tasks_that_contradict_each_other_lose_nothing_where_least_is_lost() -> None:
    rng = np.random.default_rng(11)
    first = _task(rng)
    second = _task(rng, 2, frame=first.frame, fisher=3 * first.fisher)
    between = (first.anchor + 3 * second.anchor) / 4
    assert excess_loss([first, second], np.vstack([first.frame, between])) == pytest.approx(0.0, abs=1e-6)
    off = between + 0.1 * rng.standard_normal((RANK, DIM)).astype(np.float32)
    expected = 0.5 * np.sum(4 * first.fisher * (off - between) ** 2)
    assert excess_loss([first, second], np.vstack([first.frame, off])) == pytest.approx(expected, rel=1e-4)
    # What has nothing in common with the frame cannot be lost in it.
    far = np.eye(RANK, DIM, dtype=np.float32), np.eye(RANK, DIM, RANK, dtype=np.float32)
    assert excess_loss([_task(rng, frame=far[0])], np.vstack([far[1], off])) == 0.0


def test_fisher_information_is_the_mean_square_of_the_gradients_of_single_lists() -> None:
    domain = _Domain(5, (0, 2))
    base, lists = _learn(LowRank(DIM, 1), domain), domain.lists(3)
    known = helpful_items(lists, 1000, DIM)
    task = learned_task(base, lists, 0.5, known, RECIPE, 1)
    assert task is not None
    weights, step = base.weights.astype(np.float64), 1e-5
    expected = np.zeros_like(weights[RANK:])
    for judged in lists:
        gradient = np.zeros_like(expected)
        for place in np.ndindex(gradient.shape):
            ends = []
            for sign in (1, -1):
                moved = weights[RANK:].copy()
                moved[place] += sign * step
                ends.append(_loss(judged, weights[:RANK], moved, known))
            gradient[place] = (ends[0] - ends[1]) / (2 * step)
        expected += gradient**2 / len(lists)
    np.testing.assert_allclose(task.fisher, expected, rtol=1e-2, atol=1e-4 * expected.max())


def _loss(judged: JudgedList, down: NDArray[np.floating], up: NDArray[np.floating], known: ItemPool) -> float:
    """Listwise softmax loss, nats, in double precision."""
    drawn = draw(judged.seed, len(known), RECIPE.negatives, known.rows(judged.item_ids))
    candidates = np.vstack([np.stack(judged.items), known.embeddings[drawn]]).astype(np.float64)
    query = judged.query.astype(np.float64)
    adapted = query + (down @ query) @ up
    scores = candidates @ adapted / np.linalg.norm(adapted) / RECIPE.temperature
    targets = np.zeros(len(candidates))
    targets[: len(judged.targets)] = judged.targets
    return float(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - targets @ scores / targets.sum())


def test_what_another_base_needed_counts_for_nothing_when_it_comes_again() -> None:
    rng = np.random.default_rng(12)
    undone, second = _task(rng, 3, samples=30, is_held=False), _task(rng, 9, samples=10)
    both = met_again(undone, second)
    assert (both.id, both.samples, both.times_met, both.is_held) == (3, 10, 2, True)
    assert np.array_equal(both.fisher, second.fisher)


def test_a_base_that_is_zero_has_learned_no_task() -> None:
    lists = _Domain(6, (0, 2)).lists(5)
    assert learned_task(LowRank(DIM, RANK), lists, 0.5, helpful_items(lists, 1000, DIM), RECIPE, 1) is None


def test_nothing_that_teaches_is_no_task() -> None:
    base, pool = LowRank(DIM, RANK), ItemPool.empty(DIM)
    base.load(np.ones((2 * RANK, DIM)))
    silent = JudgedList((uuid.UUID(int=1), 0), axis(0, DIM), ("a",), (axis(1, DIM),), (0.0,), (True,))
    assert learned_task(base, [], 0.5, pool, RECIPE, 1) is None
    assert learned_task(base, [silent], 0.5, pool, RECIPE, 1) is None


def test_traffic_that_changes_is_noticed_and_goes_on_bit_for_bit() -> None:
    rng = np.random.default_rng(7)
    one, two = Traffic(DIM, BoundaryConfig(run_length=1000)), Traffic(DIM, BoundaryConfig(run_length=1000))
    alarms = []
    for ordinal in range(600):
        mean = axis(0, DIM) if ordinal < 300 else axis(3, DIM)
        query = np.asarray(mean + 0.2 * rng.standard_normal(DIM), dtype=np.float32)
        if one.observe(query, ordinal):
            alarms.append(ordinal)
            # What it was taken for is over.
            assert one.here == 0
        elif not alarms:
            one.here = two.here = 5
        two.observe(query, ordinal)
        if ordinal == 310:
            again = Traffic(DIM, BoundaryConfig(run_length=1000))
            again.load_state(two.state())
            two = again
    assert len(alarms) == 1
    assert 300 <= alarms[0] <= 315
    assert one.since == alarms[0]
    assert (one.here, two.here) == (0, 0)
    assert all(np.array_equal(part, two.state()[name]) for name, part in one.state().items())
    with pytest.raises(LearningError):
        Traffic(DIM + 1).load_state(one.state())


def test_traffic_of_other_settings_is_watched_from_where_it_is_and_keeps_its_strength() -> None:
    before = Traffic(DIM)
    before.strength, before.since, before.here = 55.0, 3, 2
    other = Traffic(DIM, BoundaryConfig(window=1024))
    with pytest.raises(LearningError):
        other.load_state(before.state())
    other.begin_anew(400, before.state())
    assert (other.since, other.strength, other.here) == (400, 55.0, 0)
    for damaged in ({}, {"strength": np.array(np.nan)}, {"strength": np.zeros(3)}, {"strength": np.array(7)}):
        again = Traffic(DIM)
        again.begin_anew(400, damaged)
        assert (again.since, again.strength) == (400, 0.0)
    # States of before the task at hand was noted down.
    old = {name: part for name, part in before.state().items() if name != "here"}
    again = Traffic(DIM)
    again.load_state(old)
    assert (again.since, again.here) == (3, 0)
