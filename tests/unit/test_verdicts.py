"""Verdicts: what is decided, how often wrongly, what is stored, and what bad input does."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest

from sona_pg.config import VerdictConfig
from sona_pg.errors import InvalidInput
from sona_pg.learning.significance import Moments
from sona_pg.learning.verdicts import BETS, Arm, Capital, Evidence, Outcome, Verdict, canonical, looked
from sona_pg.types import Json

CONFIG = VerdictConfig()


def outcomes(values: list[Json], qualities: list[float]) -> list[Outcome]:
    return [Outcome(value, quality) for value, quality in zip(values, qualities, strict=True)]


def of(verdict: Verdict, value: Json) -> Evidence:
    return next(e for e in looked([verdict]) if e.value == value)


def test_e_is_the_mean_over_bets_of_products() -> None:
    differences = np.array([0.3, -0.1, 0.5, 0.0, 0.2])
    expected = np.mean([np.prod(1 + bet * differences) for bet in (-0.5, -0.25, -0.1, 0.1, 0.25, 0.5)])
    assert Capital().added(differences, 20).e == pytest.approx(expected)
    one_by_one = Capital()
    for difference in differences:
        one_by_one = one_by_one.added(np.array([difference]), 20)
    assert one_by_one.e == pytest.approx(expected)
    assert (one_by_one.pairs, one_by_one.wins) == (5, 3.5)


def test_a_decision_is_made_at_twenty_and_taken_back() -> None:
    up = Capital().added(np.full(30, 0.9), 20)
    assert up.decision == 1
    assert up.most >= 20
    fewest = next(n for n in range(1, 30) if np.mean([(1 + bet * 0.9) ** n for bet in BETS]) >= 20)
    assert Capital().added(np.full(fewest, 0.9), 20).decision == 1
    assert Capital().added(np.full(fewest - 1, 0.9), 20).decision == 0
    assert Capital().added(np.full(30, -0.9), 20).decision == -1
    back = up.added(np.full(8, -0.9), 20)
    assert back.decision == 1
    assert 1 < back.e < 20
    assert up.added(np.full(12, -0.9), 20).decision == 0
    # One call or many: the same.
    random = np.random.default_rng(1)
    path = np.concatenate([random.uniform(-0.2, 1, 100), random.uniform(-1, 0.2, 200), random.uniform(-1, 1, 50)])
    whole, parts = Capital().added(path, 20), Capital()
    for part in np.array_split(path, 31):
        parts = parts.added(part, 20)
    assert np.allclose(whole.logs, parts.logs)
    assert (whole.decision, whole.pairs, whole.wins) == (parts.decision, parts.pairs, parts.wins)


def test_looking_twenty_times_is_rarely_wrong_where_a_t_test_often_is() -> None:
    random, wrong, peeking, runs = np.random.default_rng(0), 0, 0, 400
    for run in range(runs):
        quality = np.clip(random.normal(0.6, 0.2, 400), 0, 1) if run % 2 else (random.random(400) < 0.6).astype(float)
        value, verdict, decided, significant = random.integers(0, 2, 400), Verdict("x"), False, False
        for look in range(20):
            part = slice(20 * look, 20 * look + 20)
            verdict = verdict.updated(outcomes(value[part].tolist(), quality[part].tolist()), CONFIG)
            evidence = looked([verdict])
            decided = decided or any(e.decision for e in evidence)
            significant = significant or any(e.p < 0.05 for e in evidence)
        wrong += decided
        peeking += significant
    assert wrong / runs <= 0.05
    assert peeking / runs > 0.15


def test_many_values_do_not_make_it_wrong_more_often() -> None:
    random, wrong, runs = np.random.default_rng(2), 0, 300
    for _ in range(runs):
        verdict = Verdict("x").updated(
            outcomes(random.integers(0, 8, 600).tolist(), (random.random(600) < 0.5).astype(float).tolist()), CONFIG
        )
        wrong += any(e.decision for e in looked([verdict]))
    assert wrong / runs <= 0.05


def test_a_better_value_is_found() -> None:
    random, found, looks, runs = np.random.default_rng(3), 0, 0, 200
    for _ in range(runs):
        values: list[Json] = [i % 2 for i in range(400)]
        quality = np.clip(random.normal(0.6, 0.15, 400) + 0.1 * (np.arange(400) % 2), 0, 1)
        verdict = Verdict("x").updated(outcomes(values, quality.tolist()), CONFIG)
        better = of(verdict, 1)
        found += better.decision == 1 and of(verdict, 0).decision == -1
        looks += better.p_adjusted < 0.05 and better.improvement > 0
    assert found / runs >= 0.9
    assert looks / runs >= 0.9


def test_evidence_of_the_example() -> None:
    first, second = [0.9, 0.8, 0.85, 0.95, 0.9], [0.5, 0.7, 0.6, 0.65, 0.4, 0.55]
    verdict = Verdict("ef_search").updated(outcomes([80] * 5 + [40] * 6, first + second), CONFIG)
    better, worse = of(verdict, 80), of(verdict, 40)
    assert better.p == pytest.approx(3.014481e-4, abs=1e-9)
    assert better.p_adjusted == pytest.approx(better.p)  # both sides of one comparison
    assert (better.support, worse.support) == (5, 6)
    assert better.improvement == pytest.approx(0.88 - sum(second) / 6)
    assert worse.improvement == pytest.approx(-better.improvement)
    # The 80s had come before the first 40 was seen: it is compared with what was used since.
    assert (better.consistency, worse.consistency) == (1.0, 0.5)
    # In the order of their coming: the n-th of the one with the n-th of the other.
    pairs = np.array(first) - np.array(second[:5])
    assert better.e == pytest.approx(max(np.mean([np.prod(1 + bet * pairs[:n]) for bet in BETS]) for n in range(6)))


def test_p_values_are_adjusted_for_all_that_is_looked_at() -> None:
    random = np.random.default_rng(4)
    verdicts = [
        Verdict(f"p{i}").updated(outcomes([j % 2 for j in range(40)], random.random(40).tolist()), CONFIG)
        for i in range(20)
    ]
    together = looked(verdicts)
    assert all(e.p_adjusted >= e.p for e in together)
    assert min(e.p for e in together) < 0.1 < min(e.p_adjusted for e in together)


def test_updates_do_not_depend_on_the_size_of_batches() -> None:
    random = np.random.default_rng(5)
    stream = [
        Outcome(["a", 1, 2.5, None, True][random.integers(5)], float(random.random()), float(random.random()))
        for _ in range(150)
    ]
    whole, parts = Verdict("x").updated(stream, CONFIG), Verdict("x")
    for start in range(0, 150, 7):
        parts = parts.updated(stream[start : start + 7], CONFIG)
        parts = Verdict.from_json(json.loads(json.dumps(parts.to_json())))
    for one, other in zip(looked([whole]), looked([parts]), strict=True):
        assert canonical(one.value) == canonical(other.value)
        assert (one.support, one.consistency, one.decision) == (other.support, other.consistency, other.decision)
        for name in ("quality", "improvement", "p", "e", "precision"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9)


def test_equal_qualities_prove_nothing() -> None:
    verdict = Verdict("x").updated(outcomes([i % 3 for i in range(300)], [0.8] * 300), CONFIG)
    assert {(e.decision, e.p, e.improvement) for e in looked([verdict])} == {(0, 1.0, 0.0)}


def test_one_value_alone_proves_nothing() -> None:
    verdict = Verdict("x").updated(outcomes(["a"] * 50, [1.0] * 50), CONFIG)
    assert len(verdict.arms[0].own) == 50
    assert of(verdict, "a").decision == 0
    many = verdict.updated(outcomes(["a"] * 50, [1.0] * 50), CONFIG)
    assert len(many.arms[0].own) == CONFIG.max_waiting


def test_precision_and_recall_are_kept() -> None:
    given = [Outcome("a", 0.5, 0.8, 0.2), Outcome("a", 0.5, 0.6), Outcome("b", 0.5)]
    verdict = Verdict("x").updated(given, CONFIG)
    assert of(verdict, "a").precision == pytest.approx(0.7)
    assert of(verdict, "a").recall == pytest.approx(0.2)
    assert of(verdict, "b").precision is None


def test_numbers_beyond_the_bound_are_merged_with_the_nearest() -> None:
    config = VerdictConfig(max_values=4)
    verdict = Verdict("temperature").updated(outcomes([0.1, 0.2, 0.21, 0.5, 0.9], [0.5] * 5), config)
    assert [arm.value for arm in verdict.arms] == [0.1, pytest.approx(0.205), 0.5, 0.9]
    assert sum(arm.quality.count for arm in verdict.arms) == 5
    assert verdict.is_numeric


def test_other_values_beyond_the_bound_drop_the_least_supported() -> None:
    config = VerdictConfig(max_values=3)
    verdict = Verdict("model").updated(outcomes(["a", "a", "b", "c", "c", "d"], [0.5] * 6), config)
    assert [arm.value for arm in verdict.arms] == ["a", "c", "d"]


def test_mixed_types_are_categories() -> None:
    verdict = Verdict("x").updated(outcomes([1, "1", True, 1.0, None, [1], {"a": 1}], [0.5] * 7), CONFIG)
    assert len(verdict.arms) == 6
    assert verdict.arms[0].quality.count == 2
    assert not verdict.is_numeric


def test_merging_adds_up() -> None:
    random = np.random.default_rng(6)
    first, second = (
        Verdict("x").updated(outcomes([i % 2 for i in range(40)], random.random(40).tolist()), CONFIG) for _ in range(2)
    )
    both = first.merged(second, CONFIG)
    for value in (0, 1):
        one, other, sum_ = of(first, value), of(second, value), of(both, value)
        assert sum_.support == one.support + other.support
        assert sum_.quality == pytest.approx((one.quality + other.quality) / 2)
        assert sum_.consistency == pytest.approx((one.consistency + other.consistency) / 2)
    logs = both.arms[0].capital.logs
    assert np.allclose(logs, np.add(first.arms[0].capital.logs, second.arms[0].capital.logs))
    assert Verdict("x").merged(first, CONFIG) == first


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {"a": math.nan}, 10**400, {1, 2}])
def test_what_is_no_json_is_refused(value: Json) -> None:
    with pytest.raises(InvalidInput):
        Verdict("x").updated([Outcome(value, 0.5)], CONFIG)


@pytest.mark.parametrize(
    "given", [Outcome("a", math.nan), Outcome("a", 0.5, math.inf), Outcome("a", 0.5, None, math.nan)]
)
def test_numbers_that_are_not_finite_are_refused(given: Outcome) -> None:
    with pytest.raises(InvalidInput, match="expected a finite number"):
        Verdict("x").updated([given], CONFIG)


@pytest.mark.parametrize(
    "damage",
    [
        {},
        {"parameter": "x", "arms": 3},
        {"parameter": "x", "arms": [{}]},
        {"parameter": "x", "arms": [Verdict("x", (Arm("a"),)).to_json()["arms"][0] | {"quality": [1]}]},  # type: ignore
        {"parameter": "x", "arms": [Verdict("x", (Arm("a"),)).to_json()["arms"][0] | {"quality": [1, math.nan, 0]}]},  # type: ignore
        {"parameter": "x", "arms": [Verdict("x", (Arm("a"),)).to_json()["arms"][0] | {"capital": None}]},  # type: ignore
    ],
)
def test_damaged_verdicts_are_refused(damage: dict[str, Json]) -> None:
    with pytest.raises(InvalidInput, match="no stored verdict"):
        Verdict.from_json(damage)


def test_stored_and_loaded_is_the_same() -> None:
    verdict = Verdict("x").updated([Outcome("a", 0.5, 0.25, 0.125), Outcome([1, "b"], 0.25)] * 9, CONFIG)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    assert verdict.rest(0) == Moments.of([0.25] * 9)
    assert all(a.value != b.value for a, b in pairwise(verdict.arms))
