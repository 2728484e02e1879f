"""The gate of a cycle: shuffled outcomes are refused, true ones are not, and a candidate that loses is kept back."""

from __future__ import annotations

import math
import uuid
from dataclasses import replace

import numpy as np
import pytest

from sona_pg.config import GateConfig
from sona_pg.learning.gate import Difference, Relation, Verdict, compare, decide, relation_of
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList

from .samples import Floats, axis, floats, unit_rows

DIM, ITEMS, SHOWN = 16, 200, 8
GOOD = Relation(100, 10.0, 10.0)


def an_hour(seed: int, events: int = 120) -> list[JudgedList]:
    """What helps is among the first of what is shown, more often than not."""
    random = np.random.default_rng(seed)
    items = unit_rows(random.standard_normal((ITEMS, DIM)))
    lists = []
    for number in range(events):
        query = unit_rows(random.standard_normal(DIM))
        near = np.argsort(-(items @ query))[:SHOWN]
        helped = min(int(random.exponential(2.0)), SHOWN - 1)
        lists.append(
            JudgedList(
                (uuid.UUID(int=(seed + 1) * 1000 + number), 0),
                query,
                tuple(str(row) for row in near),
                tuple(items[row] for row in near),
                tuple(float(place == helped) for place in range(SHOWN)),
                (True,) * SHOWN,
            )
        )
    return lists


def outcomes_shuffled(lists: list[JudgedList], seed: int) -> list[JudgedList]:
    """Every event has what helped in another one."""
    order = np.random.default_rng(seed).permutation(len(lists))
    return [replace(lists[other], key=own.key, query=own.query) for own, other in zip(lists, order, strict=True)]


def rewards_shuffled(lists: list[JudgedList], seed: int) -> list[JudgedList]:
    """Every event has its own items, with the rewards of any."""
    rewards = np.random.default_rng(seed).permutation([target for judged in lists for target in judged.targets])
    parts = np.split(rewards, len(lists))
    return [replace(judged, targets=tuple(part.tolist())) for judged, part in zip(lists, parts, strict=True)]


class TestRelation:
    def passes(self, lists: list[JudgedList]) -> bool:
        return decide(relation_of(lists), [Difference(0.0, 0.0)]).publishes

    def test_true_outcomes_pass(self) -> None:
        assert sum(self.passes(an_hour(seed)) for seed in range(40)) == 40

    def test_shuffled_outcomes_do_not(self) -> None:
        assert sum(self.passes(outcomes_shuffled(an_hour(seed), seed)) for seed in range(40)) <= 2

    def test_shuffled_rewards_do_not(self) -> None:
        # They are of items that were shown because they are near: whose answer they are says nothing here.
        hours = [rewards_shuffled(an_hour(seed), seed) for seed in range(40)]
        assert min(relation_of(hour).whose_z or 0.0 for hour in hours) > 5
        assert sum(self.passes(hour) for hour in hours) <= 2

    def test_scores_of_shuffled_hours_are_standard_normal(self) -> None:
        whose = [relation_of(outcomes_shuffled(an_hour(seed), seed)).whose_z or math.nan for seed in range(100)]
        which = [relation_of(rewards_shuffled(an_hour(seed), seed)).which_z or math.nan for seed in range(100)]
        for scores in (whose, which):
            assert abs(np.mean(scores)) < 0.35
            assert 0.75 < np.std(scores) < 1.25

    def test_an_hour_of_one_question_cannot_tell_whose_answer_something_is(self) -> None:
        hour = an_hour(0)
        same = [replace(hour[0], key=judged.key) for judged in hour]
        marked = [replace(judged, shown=tuple(t == 0 for t in judged.targets)) for judged in same]
        few = [*hour[:5], *marked[5:]]
        assert relation_of(marked) == Relation(len(hour), None, None)
        assert relation_of(few).whose_z is None
        # Nothing is said of it: it is not poisoned.
        assert decide(relation_of(marked), [Difference(0.5, 0.5)]).verdict is Verdict.TOO_FEW

    @pytest.mark.parametrize("is_shuffled", [False, True])
    def test_an_hour_in_which_most_ask_the_same_is_told_by_the_others(self, is_shuffled: bool) -> None:
        passed = 0
        for seed in range(40):
            hour = an_hour(seed)
            hot = [replace(hour[0], key=judged.key) if place >= 30 else judged for place, judged in enumerate(hour)]
            hot = [replace(judged, shown=tuple(t == 0 for t in judged.targets)) for judged in hot]
            passed += self.passes(outcomes_shuffled(hot, seed) if is_shuffled else hot)
        assert passed <= 2 if is_shuffled else passed == 40, passed

    def test_mann_and_whitney_by_hand(self) -> None:
        # Cosines .9 and .5 helped, ten others of .7 did not: one of the two is above all of them.
        helped = [floats([0.9, math.sqrt(1 - 0.81)]), floats([0.5, math.sqrt(0.75)])]
        other = floats([0.7, math.sqrt(0.51)])
        judged = JudgedList(
            (uuid.UUID(int=1), 0),
            axis(0, 2),
            tuple(map(str, range(12))),
            (*helped, *(other,) * 10),
            (1.0, 1.0) + (0.0,) * 10,
            (True,) * 12,
        )
        twice = [judged, replace(judged, key=(uuid.UUID(int=2), 0))]
        assert relation_of(twice).which_z == pytest.approx(0.0)
        better = [replace(each, items=(helped[0], helped[0], *(other,) * 10)) for each in twice]
        assert relation_of(better).which_z == pytest.approx(40 / math.sqrt(4 * 20 * 25 / 12))

    def test_marked_items_are_no_evidence_of_order(self) -> None:
        lists = [replace(judged, shown=tuple(t == 0 for t in judged.targets)) for judged in an_hour(0)]
        assert relation_of(lists).which_z is None

    def test_the_base_makes_near_what_belongs_together(self) -> None:
        hour = an_hour(1)
        turn = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))[0].astype(np.float32)
        turned = [replace(judged, query=judged.query @ turn) for judged in hour]
        assert not self.passes(turned)
        relation = relation_of(turned, lambda queries: queries @ turn.T)
        assert decide(relation, [Difference(0.0, 0.0)]).publishes

    def test_a_candidate_may_know_what_belongs_together_where_the_embedding_does_not(self) -> None:
        hour, unseen = an_hour(1), an_hour(2, 40)
        turn = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))[0].astype(np.float32)
        turned, held = ([replace(one, query=one.query @ turn) for one in part] for part in (hour, unseen))

        def candidate(queries: Floats) -> Floats:
            return queries @ turn.T

        relation = relation_of([*turned, *held], withheld=held, candidate=candidate)
        assert decide(relation, [Difference(0.0, 0.0)]).publishes
        shuffled = outcomes_shuffled(held, 0)
        relation = relation_of([*outcomes_shuffled(turned, 0), *shuffled], withheld=shuffled, candidate=candidate)
        assert decide(relation, [Difference(0.5, 0.5)]).verdict is Verdict.UNRELATED

    def test_a_few_withheld_events_do_not_ask_what_the_hour_does_not(self) -> None:
        lists = [replace(judged, shown=tuple(t == 0 for t in judged.targets)) for judged in an_hour(0)]
        few = an_hour(3, 4)
        assert relation_of([*lists, *few], withheld=few, candidate=lambda queries: queries).which_z is None


class TestDecision:
    def test_nothing_withheld_keeps_what_is_served_and_says_so(self) -> None:
        assert decide(GOOD, []).verdict is Verdict.NOTHING_WITHHELD

    def test_too_few_events(self) -> None:
        assert decide(replace(GOOD, events=9), [Difference(0.5, 0.1)]).verdict is Verdict.TOO_FEW

    @pytest.mark.parametrize("relation", [Relation(100, 1.0, 10.0), Relation(100, 10.0, 1.0), Relation(100, 1.0, None)])
    def test_unrelated(self, relation: Relation) -> None:
        assert decide(relation, [Difference(0.5, 0.1)] * 20).verdict is Verdict.UNRELATED

    def test_a_loss_is_refused_and_a_neutral_candidate_published(self) -> None:
        random = np.random.default_rng(0)
        noise = random.normal(0.0, 0.3, 50)
        assert decide(GOOD, [Difference(float(d) - 0.2, 0.0) for d in noise]).verdict is Verdict.LOSES
        assert decide(GOOD, [Difference(0.0, 0.0)] * 50).publishes
        assert decide(GOOD, [Difference(-1e-4, -1e-4)] * 5).publishes

    def test_figures(self) -> None:
        decision = decide(GOOD, [Difference(0.4, 0.1), Difference(0.2, 0.3)])
        assert decision.withheld == 2
        assert decision.log_rank == pytest.approx(0.3)
        assert decision.log_rank_z == pytest.approx(0.6 / math.sqrt(0.2 + 0.05))
        assert decision.ndcg == pytest.approx(0.2)

    def test_without_tolerance_any_loss_is_refused(self) -> None:
        strict = GateConfig(losing_z=0.0)
        assert decide(GOOD, [Difference(-1e-4, 0.0)], strict).verdict is Verdict.LOSES


class TestCompare:
    ITEMS = np.eye(6, dtype=np.float32)

    def differences(self, judged: JudgedList, move: Floats) -> list[Difference]:
        pool = ItemPool([str(row) for row in range(6)], self.ITEMS)
        return compare([judged], lambda q: q, lambda q: q + move, pool)

    def test_ranks_by_hand(self) -> None:
        # Item 3 is fourth before, and first after.
        query = floats([0.9, 0.8, 0.7, 0.6, 0.1, 0.0])
        judged = JudgedList((uuid.UUID(int=1), 0), query, ("3",), (self.ITEMS[3],), (1.0,), (True,))
        (found,) = self.differences(judged, axis(3, 6, 1.0))
        assert found.log_rank == pytest.approx(math.log(5 / 2))
        assert found.ndcg == pytest.approx(1 - 1 / math.log2(5))

    def test_items_beyond_the_pool_count_among_their_own(self) -> None:
        query = floats([0.9, 0.8, 0.7, 0.6, 0.1, 0.0])
        strange = unit_rows([1.0, 1, 1, 1, 0, 0])
        judged = JudgedList(
            (uuid.UUID(int=1), 0), query, ("strange", "0"), (strange, self.ITEMS[0]), (0.0, 1.0), (True, True)
        )
        (found,) = self.differences(judged, axis(0, 6, 2.0))
        assert found.log_rank == pytest.approx(math.log(3 / 2))

    def test_what_teaches_nothing_says_nothing(self) -> None:
        judged = JudgedList((uuid.UUID(int=1), 0), axis(0, 6), ("0",), (self.ITEMS[0],), (0.0,), (True,))
        assert self.differences(judged, axis(3, 6)) == []
