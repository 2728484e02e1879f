"""InstantLoop in memory: recorded is learned, counted, and served at once."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from sona_pg.config import InstantLoopConfig, QueryAdapterConfig
from sona_pg.errors import ConfigError
from sona_pg.learning.learner import Learned, Learner, Resolve
from sona_pg.learning.outcome import OutcomeEvent
from sona_pg.loops.instant import InstantLoop
from sona_pg.loops.metrics import InstantLoopMetrics
from sona_pg.types import QueryTrajectory, Score

from .learners import DIM, make_events, make_pool
from .samples import acted, axis, bits, floats, shown, trajectory

ADAPTER = QueryAdapterConfig(rank=2, negatives=8)


def make_loop(**settings: float) -> InstantLoop:
    return InstantLoop(DIM, InstantLoopConfig(**settings), adapter=ADAPTER, pool=make_pool())  # type: ignore[arg-type]


def unjudged(id: int) -> QueryTrajectory:
    return trajectory(axis(0, DIM), [shown("i1", None)], id=id)


def test_fresh_loop_serves_the_identity_and_counts_nothing() -> None:
    loop = make_loop()
    x = floats([-0.0, 0.0, *range(DIM - 2)])
    assert bits(loop.serving.adapt(x)) == bits(x)
    assert loop.metrics == InstantLoopMetrics()
    loop.flush_updates()
    assert loop.metrics == InstantLoopMetrics()
    assert loop.drain_trajectories() == []


def test_recorded_trajectories_wait_until_they_are_learned_and_are_served_then() -> None:
    loop = make_loop()
    before = loop.serving
    for event in make_events(6):
        assert loop.on_inference(event.trajectory) is True
    loop.on_inference(unjudged(900))
    assert loop.metrics == InstantLoopMetrics(recorded=7, pending=7)
    assert loop.serving is before
    loop.flush_updates()
    assert loop.metrics == InstantLoopMetrics(recorded=7, learned=6, skipped=1)
    x = axis(0, DIM)
    assert bits(before.adapt(x)) == bits(x)
    assert bits(loop.serving.adapt(x)) != bits(x)
    assert bits(loop.serving.adapt(x)) == bits(loop.learner.serving().adapt(x))


def test_loop_learns_what_its_learner_learns_alone() -> None:
    together, apart = make_loop(), make_loop()
    for event in make_events(20):
        together.on_inference(event.trajectory)
        apart.on_inference(event.trajectory)
        apart.learn_pending()
    together.flush_updates()
    assert together.learner.to_bytes() == apart.learner.to_bytes()


def test_learn_pending_gives_the_number_of_events() -> None:
    loop = make_loop()
    assert loop.learn_pending() == 0
    loop.on_inference(unjudged(1))
    loop.on_inference(make_events(1, first=3)[0].trajectory)
    assert loop.learn_pending() == 2
    assert loop.learn_pending() == 0


def test_nothing_to_learn_leaves_what_is_served_alone() -> None:
    loop = make_loop()
    before = loop.serving
    loop.on_inference(unjudged(1))
    loop.flush_updates()
    assert loop.serving is before


def test_trajectories_are_drained_once_in_their_order_after_they_were_learned() -> None:
    loop = make_loop()
    events = make_events(5)
    for event in events:
        loop.on_inference(event.trajectory)
    assert loop.drain_trajectories() == []
    loop.flush_updates()
    drained = loop.drain_trajectories()
    assert [t.id for t in drained] == [event.trajectory.id for event in events]
    assert loop.drain_trajectories() == []


@pytest.mark.parametrize("again", [lambda t: t, replace], ids=["the same object", "an equal one"])
def test_trajectory_that_was_given_twice_is_learned_once(again: Callable[[QueryTrajectory], QueryTrajectory]) -> None:
    once, twice = make_loop(), make_loop()
    for event in make_events(4):
        once.on_inference(event.trajectory)
        twice.on_inference(event.trajectory)
        twice.on_inference(again(event.trajectory))
    once.flush_updates()
    twice.flush_updates()
    assert twice.metrics.learned == 4
    assert twice.metrics.repeated == 4
    assert once.learner.to_bytes() == twice.learner.to_bytes()


def test_full_buffer_refuses_and_counts_and_takes_more_after_a_flush() -> None:
    loop = make_loop(max_pending_signals=3)
    assert [loop.on_inference(unjudged(n)) for n in range(5)] == [True] * 3 + [False] * 2
    assert loop.metrics == InstantLoopMetrics(recorded=3, dropped=2, pending=3)
    loop.flush_updates()
    assert loop.on_inference(unjudged(9))
    assert loop.metrics == InstantLoopMetrics(recorded=4, dropped=2, skipped=3, pending=1)


def test_micro_lora_has_the_rank_of_the_settings_and_learns() -> None:
    for rank in (1, 2):
        loop = make_loop(micro_lora_rank=rank)
        assert (loop.micro_lora.rank, loop.micro_lora.hidden_dim) == (rank, DIM)
        loop.on_inference(trajectory(axis(0, DIM), [acted(axis(1, DIM), 1.0), acted(axis(2, DIM), 0.0)]))
        loop.flush_updates()
        moved = loop.serving.adapt(axis(0, DIM)) - axis(0, DIM)
        assert moved[1] > 0 > moved[2]


def test_learning_rate_of_the_settings_is_honoured() -> None:
    def weights(rate: float) -> np.ndarray:
        loop = make_loop(micro_lora_lr=rate)
        loop.on_inference(trajectory(axis(0, DIM), [acted(axis(1, DIM), 1.0), acted(axis(2, DIM), 0.0)]))
        loop.flush_updates()
        return loop.micro_lora.weights[1].copy()

    np.testing.assert_allclose(weights(0.02), 20 * weights(0.001), rtol=1e-5)
    assert not weights(0.0).any()


def test_edges_follow_what_helped_together() -> None:
    loop = make_loop(edge_update_scale=0.02)
    steps = [shown("i1", 1.0), shown("i2", 1.0), shown("i3", 0.0)]
    loop.on_inference(trajectory(axis(0, DIM), steps))
    assert loop.edges.weight("i1", "i2") == 0.0
    loop.flush_updates()
    assert loop.edges.weight("i1", "i2") == pytest.approx(0.1)
    assert loop.edges.weight("i1", "i3") == 0.0


def test_late_score_without_a_database_is_refused_and_not_left_waiting() -> None:
    loop = make_loop()
    loop.on_inference(unjudged(5))
    with pytest.raises(ConfigError, match="late scores need a database: connect with SonaEngine, or give the reward"):
        loop.on_score(Score(uuid.UUID(int=5), 1.0, "i1", "thumb", "s1"))
    loop.flush_updates()
    assert loop.metrics == InstantLoopMetrics(recorded=1, skipped=1)


HUGE = 3e38
LONG = np.full(DIM, HUGE, dtype=np.float32)


@pytest.mark.parametrize(
    ("extreme", "learned"),
    [
        (trajectory(LONG, [acted(axis(1, DIM), 1.0), acted(axis(2, DIM), 0.0)]), Learned.REFUSED),
        (trajectory(LONG, [acted(LONG, 1.0), acted(-LONG, 0.0)]), Learned.REFUSED),
        (trajectory(axis(0, DIM, HUGE), [acted(axis(1, DIM), 1.0)]), Learned.REFUSED),
        (trajectory(axis(0, DIM), [acted(LONG, 1.0), acted(-LONG, 0.0)]), Learned.MICRO),
        (trajectory(LONG, [shown("i1", 1.0), shown("i2", 0.0)]), Learned.REFUSED),
        (trajectory(LONG, [shown("a", 1.0, LONG), shown("b", 0.0, -LONG)]), Learned.REFUSED),
        (trajectory(axis(0, DIM, HUGE), [shown("i1", 1.0)]), Learned.REFUSED),
        (trajectory(axis(0, DIM), [shown("a", 1.0, LONG), shown("b", 0.0, -LONG)]), Learned.ADAPTER),
        (trajectory(axis(0, DIM, 1e-22), [shown("i1", 1.0), shown("i2", 0.0)]), Learned.REFUSED),
    ],
    ids=["query", "query and steps", "axis", "steps", "query of items", "all", "axis of items", "items", "short query"],
)
@pytest.mark.filterwarnings("error")
def test_huge_numbers_are_refused_or_cut_and_the_loop_goes_on(
    monkeypatch: pytest.MonkeyPatch, extreme: QueryTrajectory, learned: Learned
) -> None:
    said: list[Learned] = []
    learn = Learner.learn

    def heard(self: Learner, event: OutcomeEvent, resolve: Resolve | None = None) -> Learned:
        said.append(learn(self, event, resolve))
        return said[-1]

    monkeypatch.setattr(Learner, "learn", heard)
    loop, plain = make_loop(), make_loop()
    before = loop.learner.to_bytes()
    assert loop.on_inference(replace(extreme, id=uuid.UUID(int=999)))
    loop.flush_updates()
    assert said == [learned]
    assert (loop.learner.to_bytes() == before) == (learned is Learned.REFUSED)
    for event in make_events(10):
        assert loop.on_inference(event.trajectory)
        plain.on_inference(event.trajectory)
    loop.flush_updates()
    plain.flush_updates()
    changed = learned is not Learned.REFUSED
    assert loop.metrics == InstantLoopMetrics(recorded=11, learned=10 + changed, skipped=1 - changed)
    assert (loop.learner.to_bytes() == plain.learner.to_bytes()) != changed
    for weights in (loop.learner.adapter.trained.weights, loop.learner.adapter.served.weights, loop.micro_lora.weights):
        assert np.abs(weights).max() < 2
    answers = loop.serving.adapt(np.eye(DIM))
    assert np.isfinite(answers).all()
    assert bits(answers) != bits(np.eye(DIM, dtype=np.float32))


def interrupt_fourth(monkeypatch: pytest.MonkeyPatch, *, after: bool) -> list[int]:
    """The fourth `Learner.learn` is interrupted, before or after it learned; gives the ids of what was learned."""
    learned: list[int] = []
    calls = iter(range(1, 1000))
    learn = Learner.learn

    def interrupted(self: Learner, event: OutcomeEvent, resolve: Resolve | None = None) -> Learned:
        fourth = next(calls) == 4
        if fourth and not after:
            raise KeyboardInterrupt
        result = learn(self, event, resolve)
        learned.append(event.trajectory.id.int)
        if fourth:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Learner, "learn", interrupted)
    return learned


@pytest.mark.parametrize("after", [False, True], ids=["before it learned", "after it learned"])
def test_interrupt_while_learning_makes_nothing_be_learned_twice(monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    undisturbed, loop = make_loop(), make_loop()
    for event in make_events(8):
        undisturbed.on_inference(event.trajectory)
        loop.on_inference(event.trajectory)
    undisturbed.flush_updates()
    learned = interrupt_fourth(monkeypatch, after=after)
    with pytest.raises(KeyboardInterrupt):
        loop.learn_pending()
    assert learned == ([1, 2, 3, 4] if after else [1, 2, 3])
    loop.learn_pending()
    loop.flush_updates()
    assert learned == [1, 2, 3, 4, 5, 6, 7, 8]
    assert loop.learner.to_bytes() == undisturbed.learner.to_bytes()
    assert loop.metrics.pending == 0


def test_what_was_learned_before_an_interrupt_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop()
    for event in make_events(3):
        loop.on_inference(event.trajectory)
    loop.on_inference(unjudged(900))
    interrupt_fourth(monkeypatch, after=False)
    with pytest.raises(KeyboardInterrupt):
        loop.learn_pending()
    loop.flush_updates()
    assert loop.metrics == InstantLoopMetrics(recorded=4, learned=3, skipped=1)
    x = axis(0, DIM)
    assert bits(loop.serving.adapt(x)) == bits(loop.learner.serving().adapt(x))


def test_metrics_are_a_value() -> None:
    with pytest.raises(FrozenInstanceError):
        InstantLoopMetrics().learned = 1  # type: ignore[misc]


@pytest.mark.parametrize("dim", [0, -1, 16_001])
def test_dimension_out_of_range_is_refused(dim: int) -> None:
    with pytest.raises(ConfigError, match=f"dimension is {dim}"):
        InstantLoop(dim, adapter=ADAPTER)


@pytest.mark.parametrize("learns", [False, True])
def test_several_threads_record_batches_that_are_larger_than_the_buffer(learns: bool) -> None:
    loop = make_loop(max_pending_signals=16)
    begin = threading.Barrier(8)
    taken = [0] * 8

    def record(thread: int) -> None:
        batch = [unjudged(thread * 1000 + number) for number in range(300)]
        begin.wait()
        taken[thread] = loop.on_inferences(batch)

    threads = [threading.Thread(target=record, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    while learns and any(thread.is_alive() for thread in threads):
        loop.learn_pending()
    for thread in threads:
        thread.join()
    assert (taken, loop.metrics.dropped) == ([300] * 8, 0)
    loop.flush_updates()
    drained = [trajectory.id.int for trajectory in loop.drain_trajectories()]
    for thread in range(8):
        own = [id for id in drained if id // 1000 == thread]
        assert own == [thread * 1000 + number for number in range(300)]


def test_a_batch_waits_for_who_empties_the_buffer_and_loses_nothing_for_it() -> None:
    loop = make_loop(max_pending_signals=16)
    batch = threading.Thread(target=loop.on_inferences, args=([unjudged(number) for number in range(100)],))
    with loop._backlog._moving:
        batch.start()
        while len(loop._backlog.buffer) < 16:
            time.sleep(0.001)
        batch.join(0.1)
        assert (loop.metrics.recorded, loop.metrics.dropped) == (16, 0)
    batch.join()
    assert (loop.metrics.recorded, loop.metrics.dropped) == (100, 0)


def test_several_threads_record_and_everything_is_learned_or_counted() -> None:
    loop = make_loop(max_pending_signals=200)
    taken = [0] * 4

    def record(thread: int) -> None:
        for number in range(500):
            taken[thread] += loop.on_inference(unjudged(thread * 500 + number))

    threads = [threading.Thread(target=record, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        loop.learn_pending()
    loop.flush_updates()
    metrics = loop.metrics
    assert metrics.recorded == metrics.skipped == sum(taken) == len(loop.drain_trajectories())
    assert metrics.dropped == 2000 - sum(taken)
    assert metrics.pending == 0
