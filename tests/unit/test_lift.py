"""The lift test: unbiased contrasts, harm that is found, and what harms nobody left alone."""

from __future__ import annotations

import hashlib
import uuid

import numpy as np
import pytest

from sona_pg import LearningError
from sona_pg.config import StrategyConfig
from sona_pg.learning.lift import LiftTest, is_control

CONFIG = StrategyConfig()


def _stream(
    seed: int, lift: float, answers: int, *, base: float = 0.05, sd: float = 0.3
) -> tuple[LiftTest, int | None]:
    """Answers of values around 0.6, with the control arm that the test asks for; when harm was proven."""
    rng, test = np.random.default_rng(seed), LiftTest(CONFIG)
    for answer in range(answers):
        share = max(base, test.suspected_share)
        control = bool(rng.random() < share)
        value = float(np.clip(rng.normal(0.6 + (0.0 if control else lift), sd), 0.0, 1.0))
        test.add(value, control=control, share=share, answers=True)
        if test.is_harmful:
            return test, answer + 1
    return test, None


def test_the_arm_is_a_hash_of_the_id_and_the_share_is_kept() -> None:
    ids = [uuid.UUID(int=n) for n in range(20_000)]
    for share in (0.0, 0.05, 0.5):
        found = sum(is_control(id, share) for id in ids) / len(ids)
        assert abs(found - share) <= 4 * np.sqrt(share * (1 - share) / len(ids))
    digest = hashlib.md5(f"control {ids[3]}".encode(), usedforsecurity=False).hexdigest()
    at = int(digest[:8], 16) / 2**32
    assert is_control(ids[3], at + 1e-9)
    assert not is_control(ids[3], at)
    # Whoever is a control at a small share is one at a larger.
    assert all(is_control(id, 0.5) for id in ids if is_control(id, 0.05))


def test_contrasts_are_unbiased_whatever_the_share() -> None:
    rng = np.random.default_rng(0)
    for share in (0.05, 0.3, 0.5):
        test, contrasts = LiftTest(CONFIG), []
        for _ in range(40_000):
            control = bool(rng.random() < share)
            value = float(np.clip(rng.normal(0.5 if control else 0.6, 0.2), 0.0, 1.0))
            contrasts.append(test.add(value, control=control, share=share, answers=True))
        error = np.std(contrasts) / np.sqrt(len(contrasts))
        assert abs(np.mean(contrasts) - 0.1) < 4 * error


def test_harm_of_ten_points_is_proven() -> None:
    found = [_stream(seed, -0.1, 1500)[1] for seed in range(20)]
    assert sum(answer is not None for answer in found) >= 17


@pytest.mark.parametrize("lift", [0.0, 0.05])
def test_what_harms_nobody_is_not_given_up(lift: float) -> None:
    assert [_stream(seed, lift, 1500)[1] for seed in range(40)] == [None] * 40


def test_a_harmful_answer_enlarges_the_control_arm_and_a_helpful_one_does_not() -> None:
    harmful, helpful = [], []
    for seed in range(20):
        harmful.append(_stream(seed, -0.2, 400)[0].suspected_share)
        helpful.append(_stream(seed, 0.2, 400)[0].suspected_share)
    assert np.mean(harmful) > 0.4
    assert np.mean(helpful) < 0.1


def test_while_the_frozen_embedding_answers_nothing_is_proven_against_it() -> None:
    test = LiftTest(CONFIG)
    for answer in range(2000):
        test.add(float(answer % 20 == 0), control=answer % 20 == 0, share=0.05, answers=False)
    assert not test.is_harmful
    assert test.suspected_share == 0


def test_it_goes_on_from_its_bytes_bit_for_bit_and_begins_anew_when_told() -> None:
    test = _stream(1, -0.05, 300)[0]
    again = LiftTest(CONFIG)
    again.load_bytes(test.to_bytes())
    for copy in (test, again):
        copy.add(0.3, control=True, share=0.05, answers=True)
    assert again.to_bytes() == test.to_bytes()
    again.begin(7, 0.0)
    assert again.key == 7
    assert again.suspected_share == 0
    with pytest.raises(LearningError, match="damaged"):
        again.load_bytes(b"\0" + test.to_bytes()[1:])


def test_a_turn_does_not_go_back_before_what_was_changed_by_hand() -> None:
    test = LiftTest(CONFIG)
    test.begin(1, 100.0)
    test.turn(50.0)
    for answer in range(400):
        test.add(float(answer % 2), control=answer % 2 == 1, share=0.5, answers=True, at=99.9)
    assert not test.is_harmful
    assert test.key == 1


def test_what_was_answered_before_it_began_says_nothing() -> None:
    test = LiftTest(CONFIG)
    test.begin(1, 100.0)
    for answer in range(400):
        test.add(float(answer % 2), control=answer % 2 == 1, share=0.5, answers=True, at=99.9)
    assert not test.is_harmful
    for answer in range(400):
        test.add(float(answer % 2), control=answer % 2 == 1, share=0.5, answers=True, at=100.1)
    assert test.is_harmful
