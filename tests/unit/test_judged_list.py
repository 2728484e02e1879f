"""Judged lists and the reservoir: a uniform sample that depends on what was added alone."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList, helpful_items, judged_list, reservoir_hash, reservoir_sample
from sona_pg.learning.outcome import OutcomeEvent

from .samples import axis, floats, shown, trajectory


def a_list(id: int, *items: tuple[str, float], revision: int = 0) -> JudgedList:
    return JudgedList(
        (uuid.UUID(int=id), revision),
        axis(0, 4),
        tuple(item for item, _ in items),
        tuple(axis(int(item) % 4, 4) for item, _ in items),
        tuple(target for _, target in items),
        (True,) * len(items),
    )


class TestJudgedList:
    POOL = ItemPool(["a", "b"], np.eye(2, 4))

    def test_embeddings_come_from_the_event_the_pool_or_whoever_knows(self) -> None:
        event = OutcomeEvent(
            trajectory(
                axis(0, 4),
                [
                    shown("x", 1.0, floats([0, 0, 2, 0])),
                    shown("a", 0.0),
                    shown("y", 0.5, position=None),
                    shown("unknown", 1.0),
                ],
            )
        )
        made = judged_list(
            event,
            self.POOL,
            implicit_feedback=False,
            max_marked=3,
            resolve=lambda item: floats([0, 0, 0, 3]) if item == "y" else None,
        )
        assert made is not None
        assert made.item_ids == ("x", "a", "y")
        np.testing.assert_allclose(np.stack(made.items), [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
        assert made.targets == (1.0, 0.0, 0.5)
        assert made.shown == (True, True, False)
        assert made.teaches

    def test_none_where_nothing_helped_and_nothing_to_teach_where_it_is_unknown(self) -> None:
        unhelpful = OutcomeEvent(trajectory(axis(0, 4), [shown("a", 0.0)]))
        unknown = OutcomeEvent(trajectory(axis(0, 4), [shown("z", 1.0), shown("a", 0.0)]))
        assert judged_list(unhelpful, self.POOL, implicit_feedback=False, max_marked=3) is None
        made = judged_list(unknown, self.POOL, implicit_feedback=False, max_marked=3)
        assert made is not None
        assert not made.teaches


class TestReservoir:
    IDS = tuple(uuid.UUID(int=id) for id in range(1, 10_001))

    def test_depends_on_the_set_alone(self) -> None:
        order = np.random.default_rng(0).permutation(len(self.IDS))
        straight, mixed = reservoir_sample(self.IDS, 20), reservoir_sample({self.IDS[i] for i in order}, 20)
        assert straight == mixed == sorted(self.IDS, key=reservoir_hash)[:20]

    def test_a_sample_of_samples_is_the_one_of_all(self) -> None:
        parts = [reservoir_sample(self.IDS[start::7], 50) for start in range(7)]
        assert reservoir_sample((id for part in parts for id in part), 50) == reservoir_sample(self.IDS, 50)

    def test_is_uniform(self) -> None:
        kept = [id.int for id in reservoir_sample(self.IDS, 2000)]
        tenths = np.histogram(kept, bins=10, range=(1, 10_001))[0]
        # Of 2,000 in ten parts 200 each, with a standard deviation of 12.
        assert tenths.min() > 140
        assert tenths.max() < 260

    def test_of_few_all_are_kept(self) -> None:
        assert set(reservoir_sample(self.IDS[:3], 10)) == set(self.IDS[:3])
        assert reservoir_sample([], 10) == []


class TestHelpfulItems:
    def test_only_what_helped_somewhere(self) -> None:
        lists = [a_list(1, ("1", 1.0), ("2", 0.0)), a_list(2, ("2", 0.5), ("3", 0.0))]
        assert sorted(helpful_items(lists, 10, 4).ids) == ["1", "2"]

    @pytest.mark.parametrize("most", [0, 3])
    def test_is_bounded_and_independent_of_order(self, most: int) -> None:
        lists = [a_list(id, (str(id), 1.0)) for id in range(1, 30)]
        found, again = helpful_items(lists, most, 4), helpful_items(lists[::-1], most, 4)
        assert len(found) == most
        assert found.ids == again.ids
