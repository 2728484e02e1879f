"""The strategist: what is proven answers, and noise leaves the answers as they are."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.worlds import DIM, ITEMS, QUESTIONS, World
from sona_pg.errors import LearningError
from sona_pg.kernels import LowRank
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.learner import Learner
from sona_pg.learning.remembered import JudgedEvent
from sona_pg.learning.strategies import Strategy
from sona_pg.learning.strategist import Strategist


def test_a_fresh_strategist_answers_as_the_frozen_embedding_does() -> None:
    world = World()
    query = world.ask(0)
    scored = world.answer(query)
    assert world.strategist.in_force is Strategy.FROZEN
    nearest = np.argsort(-(world.pool.embeddings @ query), kind="stable")[:10]
    for strategy in Strategy:
        assert scored.ranking(strategy) == [f"i{row}" for row in nearest]


def test_what_was_proven_to_help_answers_and_helps() -> None:
    world = World()
    for event in range(400):
        question = event % QUESTIONS
        world.learn(world.ask(question), {f"i{world.answers[question]}": 1.0}, event)
    assert world.strategist.in_force is Strategy.FUSION
    assert np.mean(world.reciprocal_ranks()) > np.mean(world.reciprocal_ranks(Strategy.FROZEN)) + 0.3


@pytest.mark.parametrize("kind", ["any items", "what answers another question", "clicks on what was shown"])
def test_noise_leaves_the_answers_as_they_are(kind: str) -> None:
    world = World(1)
    rng = np.random.default_rng(2)
    for event in range(300):
        question = event % QUESTIONS
        query = world.ask(question)
        shown = world.answer(query).ranking(world.strategist.in_force)
        helped = {
            "any items": [f"i{rng.integers(ITEMS)}"],
            "what answers another question": [f"i{world.answers[rng.integers(QUESTIONS)]}"],
            "clicks on what was shown": [item for item in shown if rng.uniform() < 0.3],
        }[kind]
        assert world.learn(query, dict.fromkeys(helped, 1.0), event) is Strategy.FROZEN
    assert world.strategist.in_force is Strategy.FROZEN


def test_when_outcomes_become_noise_the_answers_return_to_frozen() -> None:
    world = World(3)
    rng = np.random.default_rng(4)
    for event in range(300):
        question = event % QUESTIONS
        world.learn(world.ask(question), {f"i{world.answers[question]}": 1.0}, event)
    assert world.strategist.in_force is Strategy.FUSION
    for event in range(300, 420):
        world.learn(world.ask(event % QUESTIONS), {f"i{rng.integers(ITEMS)}": 1.0}, event)
    assert world.strategist.in_force is Strategy.FROZEN


def test_strategies_are_scored_before_they_learn_the_event() -> None:
    world = World(5)
    query = world.ask(0)
    helped = {"i250": 1.0}
    lesson = world.study(JudgedEvent(query, [], helped, [], 7))
    assert lesson.in_force is Strategy.FROZEN
    assert set(lesson.gains) == set(Strategy)
    assert not any(lesson.gains.values()), "nothing was learned yet: every strategy answers as frozen"


def test_a_turn_says_why() -> None:
    world = World()
    turns, regional = [], 0
    for event in range(300):
        question = event % QUESTIONS
        query = world.ask(question)
        shown = world.answer(query).ranking(world.strategist.in_force)
        helped = {f"i{world.answers[question]}": 1.0}
        judged = JudgedEvent(query, shown, helped, [item for item in shown if item not in helped], event)
        before, there = world.strategist.in_force, world.strategist.strategy_for(query)
        found = world.study(judged).turns
        for turn in found:
            if turn.region is not None:
                assert (turn.before, turn.after) == (there, world.strategist.strategy_for(query))
                regional += 1
        of_space = [turn for turn in found if turn.region is None]
        assert bool(of_space) == (world.strategist.in_force is not before)
        turns += of_space
    assert [turn.before for turn in turns[1:]] == [turn.after for turn in turns[:-1]]
    assert turns[-1].after is Strategy.FUSION
    assert "proven to beat frozen" in turns[-1].reason
    assert regional


@pytest.mark.parametrize(
    ("helped", "shown"),
    [
        ({"nowhere": 1.0}, ["i1"]),
        ({f"i{row}": 1.0 for row in range(10)}, [f"i{row}" for row in range(10)]),
        ({f"i{row}": 0.5 for row in range(ITEMS)}, ["i1", "i1", "nowhere"]),
        ({"i1": 1.0}, []),
    ],
)
def test_odd_events_are_learned_or_left_out(helped: dict[str, float], shown: list[str]) -> None:
    world = World(6)
    query = world.ask(0)
    for event in range(30):
        world.study(JudgedEvent(query, shown, helped, [], event))
    for scores in world.answer(query).scores.values():
        assert np.isfinite(scores).all()


def test_the_same_events_give_the_same_strategist() -> None:
    ranks = []
    for _ in range(2):
        world = World(8)
        for event in range(60):
            world.learn(world.ask(event % QUESTIONS), {f"i{world.answers[event % QUESTIONS]}": 1.0}, event)
        scored = world.answer(world.ask(0))
        ranks.append([scored.scores[strategy].tobytes() for strategy in Strategy])
    assert ranks[0] == ranks[1]


def test_a_continuation_goes_on_bit_for_bit() -> None:
    one, two = World(9), World(9)
    for event in range(120):
        helped = {f"i{one.answers[event % QUESTIONS]}": 1.0}
        one.learn(one.ask(event % QUESTIONS), helped, event)
        two.learn(two.ask(event % QUESTIONS), helped, event)
        if event == 60:
            continued = Strategist(two.pool)
            continued.load_bytes(two.strategist.to_bytes())
            two.strategist = continued
    assert one.strategist.to_bytes() == two.strategist.to_bytes()


def test_a_state_that_is_damaged_or_anothers_is_refused() -> None:
    world = World()
    data = bytearray(world.strategist.to_bytes())
    data[-1] ^= 1
    with pytest.raises(LearningError, match="checksum"):
        world.strategist.load_bytes(bytes(data))
    other = Strategist(ItemPool(["a"], np.ones((1, DIM + 1))))
    with pytest.raises(LearningError, match="expected"):
        other.load_bytes(world.strategist.to_bytes())


def test_an_event_that_is_withheld_teaches_everything_but_the_adapter_of_the_learner() -> None:
    one, two = World(11), World(11)
    for event in range(40):
        query, helped = one.ask(event % QUESTIONS), {f"i{one.answers[event % QUESTIONS]}": 1.0}
        shown = list(one.answer(query).ranking(Strategy.FROZEN))
        unhelpful = [item for item in shown if item not in helped]
        one.study(JudgedEvent(query, shown, helped, unhelpful, event))
        two.study(JudgedEvent(query, shown, helped, unhelpful, event, is_withheld=True))
    learned, withheld = one.strategist.describe(), two.strategist.describe()
    assert not learned.proven.is_zero
    assert withheld.proven.is_zero
    assert np.array_equal(learned.careful.weights, withheld.careful.weights)
    assert withheld.events == learned.events


def test_the_adapter_of_a_learner_is_taken_over_with_its_base() -> None:
    world = World(12)
    learner = Learner(world.pool.embeddings.shape[1], world.pool)
    base = LowRank(learner.dim, 2)
    base.load(np.random.default_rng(0).standard_normal((4, learner.dim)))
    learner.adapter.stand_on(base)
    world.strategist.adopt_adapter(learner.to_bytes())
    assert world.strategist.describe().proven.rank == 2 + learner.adapter.rank
    again = Strategist(world.pool)
    again.load_bytes(world.strategist.to_bytes())
    assert np.array_equal(again.describe().proven.weights, learner.adapter.map.weights)
    with pytest.raises(LearningError):
        again.adopt_adapter(b"nothing")


def test_regions_become_patterns_and_say_so() -> None:
    world = World(13)
    query = world.ask(0)
    world.learn(query, {f"i{world.answers[0]}": 1.0}, 0)
    world.strategist.adopt_patterns([5], query[np.newaxis])
    assert [region.pattern for region in world.strategist.describe().regions] == [5]
