"""The candidate for the base: merged without a change, trained to more, and the same from the same."""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import ArrayLike

from sona_pg.config import BaseTrainingConfig, QueryAdapterConfig
from sona_pg.errors import ConfigError, DimensionMismatch
from sona_pg.kernels import LowRank
from sona_pg.learning.base_trainer import fixed_form, train_base
from sona_pg.learning.held_outputs import HeldOutputs
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList
from sona_pg.learning.query_adapter import QueryAdapter
from sona_pg.learning.serving import Serving
from sona_pg.types import FloatVector

from .samples import Floats, bits, unit_rows

DIM, ITEMS = 32, 120
CONFIG = BaseTrainingConfig(rank=6, epochs=6)


class World:
    """Questions that are their answers, turned in one plane in which items differ most."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.items = unit_rows(random.standard_normal((ITEMS, DIM)) * np.where(np.arange(DIM) < 2, 4.0, 1.0))
        self.pool = ItemPool([f"i{row}" for row in range(ITEMS)], self.items)
        self._random = random

    def ask(self) -> tuple[Floats, int]:
        answer = int(self._random.integers(ITEMS))
        query = self.items[answer].copy()
        query[0], query[1] = -query[1], query[0]
        return unit_rows(query + 0.05 * self._random.standard_normal(DIM)), answer

    def lists(self, count: int, first: int = 0) -> list[JudgedList]:
        made = []
        for number in range(first, first + count):
            query, answer = self.ask()
            near = np.argsort(-(self.items @ query))[:5]
            rows = [answer, *(int(row) for row in near if row != answer)]
            made.append(
                JudgedList(
                    (uuid.UUID(int=number + 1), 0),
                    query,
                    tuple(f"i{row}" for row in rows),
                    tuple(self.items[row] for row in rows),
                    (1.0, *(0.0 for _ in rows[1:])),
                    (answer in near, *(True for _ in rows[1:])),
                )
            )
        return made

    def found(self, low_rank: LowRank, questions: int = 200) -> float:
        """Share of questions of which the answer is nearest."""
        asked = [self.ask() for _ in range(questions)]
        adapted = Serving([low_rank]).adapt(np.stack([query for query, _ in asked]))
        return float(np.mean((adapted @ self.items.T).argmax(axis=1) == [answer for _, answer in asked]))


def a_map(rank: int, seed: int, size: float = 0.3) -> LowRank:
    low_rank = LowRank(DIM, rank, 0.7)
    low_rank.load(size * np.random.default_rng(seed).standard_normal((2 * rank, DIM)))
    return low_rank


class TestFixedForm:
    @pytest.mark.parametrize("rank", [1, 4, DIM])
    def test_is_the_same_function_with_orthonormal_columns(self, rank: int) -> None:
        items = np.random.default_rng(5).standard_normal((40, DIM))
        source = a_map(min(rank, 3), 4)
        weights = fixed_form(source, rank, items).astype(np.float64)
        np.testing.assert_allclose(weights[:rank] @ weights[:rank].T, np.eye(rank), atol=1e-5)
        down, up = source.weights[: source.rank].astype(np.float64), source.weights[source.rank :].astype(np.float64)
        np.testing.assert_allclose(weights[:rank].T @ weights[rank:], source.scale * down.T @ up, atol=1e-5)

    def test_other_factors_of_the_same_function_give_the_same(self) -> None:
        source, other = a_map(2, 6), LowRank(DIM, 2, 0.7)
        mix = np.array([[10.0, 1.0], [0.0, 0.1]])
        other.load(np.vstack([mix.T @ source.weights[:2], np.linalg.inv(mix) @ source.weights[2:]]))
        items = np.random.default_rng(5).standard_normal((40, DIM))
        np.testing.assert_allclose(fixed_form(source, 4, items), fixed_form(other, 4, items), atol=1e-4)

    def test_a_fresh_base_starts_where_the_items_lie(self) -> None:
        weights = fixed_form(LowRank(DIM, 1), 4, np.zeros((0, DIM)))
        np.testing.assert_allclose(weights[:4] @ weights[:4].T, np.eye(4), atol=1e-5)
        assert not weights[4:].any()

    def test_a_rank_above_the_dimension_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="at most 32"):
            fixed_form(LowRank(DIM, 1), DIM + 1, np.zeros((0, DIM)))


class TestTraining:
    def test_learns_more_from_an_hour_than_the_instant_tier(self) -> None:
        world = World(0)
        lists = world.lists(150)
        adapter = QueryAdapter(DIM, QueryAdapterConfig(rank=4), items=world.items)
        for judged in lists:
            adapter.learn(
                judged.query,
                list(judged.items),
                list(judged.targets),
                pool=world.items,
                skip=world.pool.rows(judged.item_ids),
                seed=judged.seed,
            )
        frozen = world.found(LowRank(DIM, 1), 1000)
        online = world.found(adapter.served, 1000)
        trained = train_base(adapter.served, lists, items=world.items, config=CONFIG)
        assert world.found(trained.map, 1000) > max(online, frozen) + 0.05
        assert trained.last_loss < trained.first_loss
        assert (trained.lists, trained.steps, trained.refused) == (150, 900, 0)

    def test_the_same_gives_the_same_bits_and_leaves_the_start_alone(self) -> None:
        world = World(1)
        lists, start = world.lists(40), a_map(3, 7, 0.1)
        before = bits(start.weights)
        first, again = (train_base(start, lists, items=world.items, config=CONFIG, seed=3) for _ in range(2))
        other = train_base(start, lists, items=world.items, config=CONFIG, seed=4)
        assert bits(first.map.weights) == bits(again.map.weights) != bits(other.map.weights)
        assert bits(start.weights) == before

    def test_without_lists_the_function_stays(self) -> None:
        start = a_map(3, 8)
        trained = train_base(start, [], items=np.zeros((0, DIM)), config=CONFIG)
        queries = np.random.default_rng(0).standard_normal((5, DIM)).astype(np.float32)
        np.testing.assert_allclose(Serving([trained.map]).adapt(queries), Serving([start]).adapt(queries), atol=1e-4)
        assert trained.steps == 0
        assert train_base(LowRank(DIM, 1), [], items=np.zeros((0, DIM)), config=CONFIG).map.is_zero

    def test_what_never_helped_is_not_pushed_away(self) -> None:
        world = World(2)
        lists = world.lists(60)
        # The last item is shown with every list and helps nobody: only as an answer elsewhere would it be a negative.
        strange: FloatVector = unit_rows(np.random.default_rng(1).standard_normal(DIM))
        with_strange = [
            replace(
                judged,
                item_ids=(*judged.item_ids, "strange"),
                items=(*judged.items, strange),
                targets=(*judged.targets, 0.0),
                shown=(*judged.shown, True),
            )
            for judged in lists
        ]
        start = LowRank(DIM, 1)
        without, beside = (train_base(start, each, items=world.items, config=CONFIG) for each in (lists, with_strange))
        assert bits(without.map.weights) == bits(beside.map.weights)

    def test_decay_draws_towards_the_frozen_embedding(self) -> None:
        world = World(3)
        lists, start = world.lists(40), a_map(3, 9, 0.2)
        kept, drawn = (
            train_base(start, lists, items=world.items, config=replace(CONFIG, decay=decay)).map for decay in (0.0, 100)
        )
        assert np.linalg.norm(drawn.weights[drawn.rank :]) < 0.5 * np.linalg.norm(kept.weights[kept.rank :])

    def test_a_constraint_follows_every_step_with_adams_step_sizes(self) -> None:
        world = World(4)
        lists = world.lists(20)
        seen: list[Floats] = []

        class Pinned:
            def proximal_step(self, theta: FloatVector, step: float | ArrayLike) -> None:
                seen.append(np.array(step, dtype=np.float32))
                theta[...] = pinned

        pinned = fixed_form(a_map(3, 10), CONFIG.rank, world.items)
        trained = train_base(a_map(3, 10), lists, items=world.items, config=CONFIG, constraint=Pinned())
        assert len(seen) == trained.steps
        assert all(np.isfinite(step).all() and (step >= 0).all() for step in seen)
        queries = np.random.default_rng(0).standard_normal((5, DIM)).astype(np.float32)
        expected = Serving([a_map(3, 10)]).adapt(queries)
        # Decay takes a little before every step, and the average has it for as long.
        np.testing.assert_allclose(Serving([trained.map]).adapt(queries), expected, atol=0.01)

    def test_outputs_that_are_held_move_less(self) -> None:
        world, start = World(7), a_map(3, 11)
        lists = world.lists(100)
        queries = unit_rows(np.random.default_rng(1).standard_normal((30, DIM)))
        then = Serving([start]).adapt(queries) - queries
        moved, left = {}, {}
        for weight in (0.0, 1.0, 100.0):
            held = HeldOutputs(queries, then, [len(queries)], weight, 8)
            trained, again = (
                train_base(start, lists, items=world.items, config=replace(CONFIG, decay=0.0), held=held)
                for _ in range(2)
            )
            assert bits(trained.map.weights) == bits(again.map.weights)
            moved[weight] = float(np.square(Serving([trained.map]).adapt(queries) - queries - then).sum())
            left[weight] = trained.last_loss / trained.first_loss
        assert moved[100.0] < moved[1.0] < moved[0.0]
        assert moved[100.0] < 0.4 * moved[0.0]
        # Held loosely, it learns as much as free.
        assert left[0.0] < left[100.0]
        assert left[1.0] < 0.5 * (left[0.0] + left[100.0])

    def test_the_average_is_one_of_what_is_held(self) -> None:
        world = World(4)
        pinned = fixed_form(a_map(3, 10), CONFIG.rank, world.items)

        class Pinned:
            def proximal_step(self, theta: FloatVector, step: float | ArrayLike) -> None:
                theta[...] = pinned

        config = replace(CONFIG, decay=0.0, learning_rate=0.1)
        trained = train_base(a_map(3, 10), world.lists(20), items=world.items, config=config, constraint=Pinned())
        queries = np.random.default_rng(0).standard_normal((5, DIM)).astype(np.float32)
        found, expected = (Serving([each]).adapt(queries) for each in (trained.map, a_map(3, 10)))
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def test_whoever_waits_is_told_and_may_stop_it(self) -> None:
        world = World(5)

        def stop(taken: int, total: int) -> None:
            assert (taken, total) == (256, 600)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_base(LowRank(DIM, 1), world.lists(100), items=world.items, config=CONFIG, on_progress=stop)

    def test_a_zero_query_is_counted_and_another_dimension_refused(self) -> None:
        world = World(6)
        lists = world.lists(30)
        lists[3] = replace(lists[3], query=np.zeros(DIM, dtype=np.float32))
        assert train_base(LowRank(DIM, 1), lists, items=world.items, config=CONFIG).refused == CONFIG.epochs
        lists[4] = replace(lists[4], query=np.zeros(DIM + 1, dtype=np.float32))
        with pytest.raises(DimensionMismatch):
            train_base(LowRank(DIM, 1), lists, items=world.items, config=CONFIG)
