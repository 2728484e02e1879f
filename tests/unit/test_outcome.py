"""What an outcome says of the items of an answer, and what late outcomes add."""

from __future__ import annotations

import uuid

import pytest

from sona_pg.config import SignalConfig
from sona_pg.learning.outcome import OutcomeEvent, judged_items, with_scores
from sona_pg.learning.running_mean import RunningMean
from sona_pg.types import EMPTY, Score, TrajectoryStep

from .samples import acted, axis, shown, trajectory

QUERY = [1.0, 0.0]


def event(*steps: TrajectoryStep, taught: dict[str, float] | None = None) -> OutcomeEvent:
    return OutcomeEvent(trajectory(QUERY, steps), taught={} if taught is None else taught)


def targets(given: OutcomeEvent, *, implicit: bool = False, max_marked: int = 3) -> dict[str, float]:
    items = judged_items(given, implicit_feedback=implicit, max_marked=max_marked)
    return {item.item_id: item.target for item in items}


def score(value: float, item: str | None, name: str = "thumb") -> Score:
    return Score(uuid.UUID(int=1), value, item, name, f"{item}-{value}-{name}")


def test_target_of_an_item_is_its_reward() -> None:
    given = event(shown("a", 0.5), shown("b", 1.0), shown("c", 0.0))
    assert targets(given) == {"a": 0.5, "b": 1.0, "c": 0.0}


def test_negative_reward_is_not_helpful() -> None:
    assert targets(event(shown("a", 1.0), shown("b", -1.0))) == {"a": 1.0, "b": 0.0}


def test_unjudged_item_is_left_out_unless_feedback_is_implicit() -> None:
    given = event(shown("a", 1.0), shown("b", None), shown("c", None, position=None))
    assert targets(given) == {"a": 1.0}
    assert targets(given, implicit=True) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("implicit", [False, True])
def test_list_in_which_nothing_helped_is_empty(implicit: bool) -> None:
    assert targets(event(), implicit=implicit) == {}
    assert targets(event(shown("a", 0.0), shown("b", None)), implicit=implicit) == {}
    assert targets(event(acted(QUERY, 1.0)), implicit=implicit) == {}


def test_items_keep_their_order_and_count_once() -> None:
    given = event(shown("c", 1.0), shown("a", 0.0), shown("c", 0.25), shown("b", 0.5))
    assert list(targets(given).items()) == [("c", 1.0), ("a", 0.0), ("b", 0.5)]


def test_helpful_items_that_were_not_shown_count_up_to_the_limit() -> None:
    steps = [shown("s", 1.0), *(shown(f"m{n}", 1.0, position=None) for n in range(5))]
    assert list(targets(event(*steps))) == ["s", "m0", "m1", "m2"]
    assert list(targets(event(*steps), max_marked=0)) == ["s"]
    assert list(targets(event(*steps[1:]), max_marked=1)) == ["m0"]


def test_unhelpful_items_that_were_not_shown_do_not_use_up_the_limit() -> None:
    steps = [shown("n", 0.0, position=None), shown("m", 1.0, position=None)]
    assert targets(event(*steps), max_marked=1) == {"n": 0.0, "m": 1.0}


def test_only_what_is_new_of_a_later_revision_teaches() -> None:
    steps = [shown("old", 1.0), shown("new", 1.0), shown("bad", 0.0)]
    assert targets(event(*steps, taught={"old": 1.0, "bad": 0.0})) == {"new": 1.0, "bad": 0.0}
    assert targets(event(*steps, taught={"old": 1.0, "new": 0.5})) == {}
    corrected = event(shown("a", 1.0), taught={"a": 0.0})
    assert targets(corrected) == {"a": 1.0}


def test_activations_go_along() -> None:
    [item] = judged_items(event(shown("a", 1.0, axis(1, 2))), implicit_feedback=False, max_marked=3)
    assert item.activations.tolist() == [0.0, 1.0]


def test_key_of_an_event_is_its_trajectory_and_revision() -> None:
    given = trajectory(QUERY, id=5)
    assert OutcomeEvent(given, 2).key == (uuid.UUID(int=5), 2)


def test_late_score_sets_the_reward_of_its_item_and_nothing_else() -> None:
    given = trajectory(QUERY, [shown("a", None), shown("b", 0.25)], quality=0.5)
    after = with_scores(given, [score(1.0, "a")])
    assert [step.reward for step in after.steps] == [1.0, 0.25]
    assert after.final_quality == 0.5
    assert [step.reward for step in given.steps] == [None, 0.25]
    assert after.id == given.id


def test_last_score_of_an_item_or_of_the_answer_holds() -> None:
    given = trajectory(QUERY, [shown("a", None)])
    scores = [score(1.0, "a"), score(0.2, None), score(0.0, "a"), score(0.9, None)]
    after = with_scores(given, scores)
    assert after.steps[0].reward == 0.0
    assert after.final_quality == 0.9
    assert with_scores(given, []) == given


def test_score_of_an_item_that_was_shown_twice_holds_for_both() -> None:
    after = with_scores(trajectory(QUERY, [shown("a", None), shown("a", 0.5, position=2)]), [score(1.0, "a")])
    assert [step.reward for step in after.steps] == [1.0, 1.0]


def test_scored_item_that_was_not_shown_becomes_a_step_without_a_position() -> None:
    after = with_scores(trajectory(QUERY, [shown("a", None)]), [score(0.5, "b"), score(1.0, "b")])
    assert len(after.steps) == 2
    added = after.steps[1]
    assert (added.item_id, added.reward, added.position) == ("b", 1.0, None)
    assert added.activations is EMPTY
    assert targets(OutcomeEvent(after)) == {"b": 1.0}


def test_running_mean_starts_from_its_prior() -> None:
    mean = RunningMean.from_config(SignalConfig(prior_reward=0.5, prior_weight=2.0))
    assert mean.value == 0.5
    for observation in (1.0, 1.0):
        mean.add(observation)
    assert mean.value == pytest.approx((0.5 * 2 + 2) / 4)
    assert mean.weight == 4.0


def test_running_mean_without_a_prior_is_the_mean() -> None:
    mean = RunningMean.from_config(SignalConfig(prior_weight=0.0))
    for observation in (0.25, 0.5, 1.0):
        mean.add(observation)
    assert mean.value == pytest.approx(1.75 / 3)
