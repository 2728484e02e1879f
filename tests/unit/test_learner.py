"""The learner of a space: what teaches it, what does not, and replays that give the same bytes."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import replace

import numpy as np
import pytest

from sona_pg.config import SpaceConfig
from sona_pg.errors import DimensionMismatch, LearningError
from sona_pg.kernels import LowRank
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.learner import Learned, Learner, is_withheld
from sona_pg.learning.lift import is_control
from sona_pg.learning.outcome import OutcomeEvent
from sona_pg.types import TrajectoryStep

from .learners import DIM, make_events, make_learner
from .samples import acted, axis, bits, floats, shown, trajectory

QUERY = axis(0, DIM)


def an_event(*steps: TrajectoryStep, quality: float | None = None, id: int = 77) -> OutcomeEvent:
    return OutcomeEvent(trajectory(QUERY, steps, quality, id))


def after(learner: Learner, events: list[OutcomeEvent]) -> Learner:
    for event in events:
        learner.learn(event)
    return learner


def test_items_teach_the_query_adapter_and_other_steps_the_micro_lora() -> None:
    learner = make_learner()
    assert learner.learn(an_event(shown("i1", 1.0), shown("i2", 0.0))) is Learned.ADAPTER
    assert (learner.adapter.steps, learner.micro.is_zero, learner.events) == (1, True, 1)
    assert learner.learn(an_event(acted(axis(1, DIM), 1.0), acted(axis(2, DIM), 0.0))) is Learned.MICRO
    assert (learner.adapter.steps, learner.micro.is_zero, learner.events) == (1, False, 2)


@pytest.mark.parametrize("micro_rank", [1, 2])
def test_replay_of_the_same_events_gives_the_same_bytes(micro_rank: int) -> None:
    first = after(make_learner(micro_rank=micro_rank), make_events(40))
    again = after(make_learner(micro_rank=micro_rank), make_events(40))
    assert first.events == 40
    assert first.to_bytes() == again.to_bytes()


@pytest.mark.parametrize("place", [0, 1, 2, 17, 40])
def test_replay_across_a_save_and_a_load_gives_the_same_bytes(place: int) -> None:
    through = after(make_learner(), make_events(40))
    saved = after(make_learner(), make_events(place)).to_bytes()
    continued = after(make_learner(), make_events(5, first=1000))  # whatever it had learned is replaced
    continued.load_bytes(saved)
    assert continued.to_bytes() == saved
    after(continued, make_events(40 - place, first=place))
    assert continued.to_bytes() == through.to_bytes()
    queries = np.random.default_rng(0).standard_normal((5, DIM))
    assert bits(continued.serving().adapt(queries)) == bits(through.serving().adapt(queries))


def test_order_matters_so_that_a_replay_has_to_keep_it() -> None:
    events = make_events(40)
    assert after(make_learner(), events).to_bytes() != after(make_learner(), events[::-1]).to_bytes()


def test_randomness_is_keyed_by_id_and_revision_alone() -> None:
    event = an_event(shown("i1", 1.0), shown("i2", 0.0))

    def learned(given: OutcomeEvent) -> bytes:
        return after(make_learner(), [given]).to_bytes()

    same_id_later = replace(event, trajectory=replace(event.trajectory, latency_us=9, session_id="s", final_quality=1))
    assert learned(same_id_later) == learned(event)
    other_id = replace(event, trajectory=replace(event.trajectory, id=uuid.UUID(int=78)))
    assert learned(other_id) != learned(event)
    assert learned(replace(event, revision=1)) != learned(event)


def test_process_wide_randomness_is_neither_used_nor_touched() -> None:
    np.random.seed(1)
    first = after(make_learner(), make_events(6)).to_bytes()
    position = np.random.get_state()[2]  # type: ignore[index]
    np.random.seed(2)
    assert after(make_learner(), make_events(6)).to_bytes() == first
    assert np.random.get_state()[2] == position  # type: ignore[index]


@pytest.mark.parametrize(
    "event",
    [
        an_event(),
        an_event(shown("i1", None), shown("i2", None)),
        an_event(acted(axis(1, DIM), None)),
        an_event(shown("i1", 0.0), shown("i2", None)),
        an_event(shown("i1", None), quality=1.0),
        replace(an_event(shown("i1", 1.0)), revision=1, taught={"i1": 1.0}),
    ],
    ids=["no step", "unjudged items", "unjudged step", "nothing helped", "whole answer alone", "taught already"],
)
def test_event_without_anything_to_learn_changes_nothing(event: OutcomeEvent) -> None:
    learner = after(make_learner(), make_events(4))
    before = learner.to_bytes()
    assert learner.learn(event) is Learned.NO_OUTCOME
    assert learner.to_bytes() == before


def test_helpful_item_without_an_embedding_changes_nothing() -> None:
    learner = after(make_learner(), make_events(4))
    before = learner.to_bytes()
    for resolve in (None, {}.get):
        assert learner.learn(an_event(shown("unknown", 1.0), shown("i1", 0.0)), resolve) is Learned.NO_EMBEDDING
        assert learner.to_bytes() == before


def test_zero_query_is_refused_and_changes_nothing() -> None:
    learner = after(make_learner(), make_events(4))
    before = learner.to_bytes()
    event = OutcomeEvent(trajectory(np.zeros(DIM), [shown("i1", 1.0)]))
    assert learner.learn(event) is Learned.REFUSED
    assert learner.to_bytes() == before


def test_skipped_events_do_not_disturb_those_after_them() -> None:
    plain, disturbed = make_learner(), make_learner()
    for number, event in enumerate(make_events(20)):
        plain.learn(event)
        disturbed.learn(an_event(shown("i1", None), id=500 + number))
        disturbed.learn(an_event(shown("unknown", 1.0), id=600 + number))
        disturbed.learn(event)
    assert disturbed.to_bytes() == plain.to_bytes()


def test_event_of_another_dimension_is_refused_and_changes_nothing() -> None:
    learner = after(make_learner(), make_events(4))
    before = learner.to_bytes()
    event = OutcomeEvent(trajectory(np.ones(DIM + 1), [shown("i1", 1.0)]))
    with pytest.raises(DimensionMismatch, match=f"query embedding has {DIM + 1} dimensions, expected {DIM}"):
        learner.learn(event)
    assert learner.to_bytes() == before


def test_embedding_comes_from_the_step_the_sample_or_the_resolver() -> None:
    wanted = floats(3 * np.arange(1.0, DIM + 1))
    pool = ItemPool(["known"], wanted[None])

    def learned(item: str, activations: np.ndarray | None, pool: ItemPool, resolve: object = None) -> bytes:
        learner = Learner(DIM, pool, adapter=make_learner().adapter.config)
        learner.pool = pool
        learner.adapter.load_state(make_learner().adapter.state())
        step = shown(item, 1.0) if activations is None else shown(item, 1.0, activations)
        assert learner.learn(an_event(step), resolve) is Learned.ADAPTER  # type: ignore[arg-type]
        return bits(learner.adapter.trained.weights)

    none = ItemPool.empty(DIM)
    from_step = learned("any", wanted, none)
    assert learned("known", None, pool) == from_step
    assert learned("any", None, none, {"any": wanted}.get) == from_step
    assert learned("any", wanted, none, {"any": -wanted}.get) == from_step


def test_judged_items_are_not_drawn_as_negatives() -> None:
    learner = Learner(DIM, ItemPool(["only"], axis(1, DIM)[None]), adapter=make_learner().adapter.config)
    before = bits(learner.adapter.trained.weights)
    assert learner.learn(an_event(shown("only", 1.0))) is Learned.ADAPTER
    # A list of one item has nothing to tell it from: no gradient.
    assert bits(learner.adapter.trained.weights) == before


def test_unjudged_items_beside_a_helpful_one_teach_only_where_feedback_is_implicit() -> None:
    event = an_event(shown("i1", 1.0), shown("i2", None))
    judged = an_event(shown("i1", 1.0), shown("i2", 0.0))
    assert after(make_learner(), [event]).to_bytes() != after(make_learner(), [judged]).to_bytes()
    implicit, explicit = make_learner(implicit=True), make_learner()
    assert after(implicit, [event]).to_bytes() == after(explicit, [judged]).to_bytes()
    assert not SpaceConfig().implicit_feedback


def test_one_step_is_measured_against_the_running_mean_of_the_rewards() -> None:
    direction = axis(1, DIM)

    def output_along(*rewards: float) -> float:
        learner = make_learner()
        for number, reward in enumerate(rewards[:-1]):
            learner.learn(OutcomeEvent(trajectory(np.zeros(DIM), [acted(direction, reward)], id=number + 1)))
        assert learner.micro.weights[1].any() == False  # noqa: E712
        learner.learn(an_event(acted(direction, rewards[-1])))
        return float((learner.serving().adapt(QUERY) - QUERY) @ direction)

    assert output_along(1.0) > 0
    assert output_along(0.0) < 0
    assert output_along(*[1.0] * 20, 0.75) < 0
    assert output_along(*[0.0] * 20, 0.25) > 0


def test_quality_of_the_whole_answer_teaches_where_no_step_was_judged() -> None:
    learner = make_learner()
    assert learner.learn(an_event(acted(axis(1, DIM), None), quality=1.0)) is Learned.MICRO
    assert (learner.serving().adapt(QUERY) - QUERY)[1] > 0


def test_serving_is_a_copy_that_does_not_change_while_learning_goes_on() -> None:
    learner = after(make_learner(), make_events(4))
    serving = learner.serving()
    before = bits(serving.adapt(QUERY))
    after(learner, make_events(4, first=4))
    assert bits(serving.adapt(QUERY)) == before
    assert bits(learner.serving().adapt(QUERY)) != before


def test_fresh_learner_serves_the_identity() -> None:
    x = floats([-0.0, 0.0, 1e-40, *range(DIM - 3)])
    assert bits(make_learner().serving().adapt(x)) == bits(x)


def test_items_of_another_dimension_are_refused() -> None:
    with pytest.raises(DimensionMismatch):
        Learner(DIM, ItemPool(["a"], np.ones((1, DIM + 1))), adapter=make_learner().adapter.config)


def test_a_share_is_withheld_by_the_hash_of_the_id_and_teaches_nothing() -> None:
    events = make_events(4000)  # every other one shows items
    chosen = {e.key for e in events if e.trajectory.shows_items and is_withheld(e.trajectory.id, 0.05)}
    assert 60 <= len(chosen) <= 140  # 100 are expected; beyond is a chance of one in a hundred thousand
    learner, without = make_learner(), make_learner()
    learner.withheld_share = 0.05
    became = {event.key: learner.learn(event) for event in events}
    assert {key for key, learned in became.items() if learned is Learned.WITHHELD} == chosen
    after(without, [event for event in events if event.key not in chosen])
    assert np.array_equal(learner.adapter.trained.weights, without.adapter.trained.weights)
    assert learner.events == len(events) - len(chosen)
    later = replace(next(event for event in events if event.key in chosen), revision=1)
    assert learner.learn(later) is Learned.WITHHELD


def test_what_names_no_item_is_learned_at_once() -> None:
    # The gate could not judge by it, and nobody would ever learn it.
    learner, id = make_learner(), next(n for n in itertools.count() if is_withheld(trajectory(QUERY, (), id=n).id, 0.5))
    learner.withheld_share = 0.5
    assert learner.learn(an_event(acted(axis(1, DIM), 1.0), acted(axis(2, DIM), 0.0), id=id)) is Learned.MICRO
    assert learner.learn(an_event(shown("i1", 1.0), shown("i2", 0.0), id=id)) is Learned.WITHHELD


def test_what_is_withheld_has_nothing_to_do_with_the_control_arm() -> None:
    ids = [uuid.uuid4() for _ in range(20_000)]
    both = sum(is_withheld(id, 0.5) and is_control(id, 0.5) for id in ids)
    assert abs(both / len(ids) - 0.25) < 0.02


def test_the_share_that_is_withheld_is_part_of_the_state() -> None:
    learner, again = make_learner(), make_learner()
    nothing = learner.to_bytes()
    learner.withheld_share = 0.05
    again.load_bytes(learner.to_bytes())
    assert again.withheld_share == 0.05
    again.load_bytes(nothing)
    assert again.withheld_share == 0.0
    learner.withheld_share = 1.5
    with pytest.raises(LearningError, match="withholds"):
        again.load_bytes(learner.to_bytes())


def test_a_base_goes_with_the_learner_and_answers_in_its_serving() -> None:
    learner, again = after(make_learner(), make_events(10)), make_learner()
    base = LowRank(DIM, 2)
    base.load(np.random.default_rng(0).standard_normal((4, DIM)))
    learner.adapter.stand_on(base)
    again.load_bytes(learner.to_bytes())
    assert bits(again.serving().adapt(QUERY)) == bits(learner.serving().adapt(QUERY))
    assert again.to_bytes() == learner.to_bytes()
    assert not np.allclose(again.serving().adapt(QUERY), QUERY)
