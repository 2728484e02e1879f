"""QueryAdapter: identity when fresh, better than nothing and than noise when trained, and continued bit for bit."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from sona_pg import kernels
from sona_pg.config import QueryAdapterConfig
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, LearningError
from sona_pg.learning.query_adapter import QueryAdapter

from .samples import Floats, axis, bits, floats, unit_rows

DIM = 32
ITEMS, EVENTS, HELD_OUT = 200, 400, 150


@dataclass(frozen=True)
class Task:
    """Queries that are their item, turned by 1.25 in the four planes in which items differ most, with noise.

    What was learned and what is held out have no item in common.
    """

    items: Floats
    queries: Floats
    wanted: np.ndarray
    held_out: Floats
    held_out_wanted: np.ndarray

    def reciprocal_rank(self, adapter: QueryAdapter) -> float:
        """Mean reciprocal rank of the wanted item over the held-out queries."""
        score = unit_rows(adapter.adapt(self.held_out)) @ self.items.T
        own = score[np.arange(HELD_OUT), self.held_out_wanted]
        return float((1 / (score >= own[:, None]).sum(axis=1)).mean())


@pytest.fixture(scope="module")
def task() -> Task:
    random = np.random.default_rng(7)
    items = unit_rows(random.standard_normal((ITEMS, DIM)) * ([3.0] * 8 + [1.0] * (DIM - 8)))
    wanted = random.integers(0, ITEMS // 2, EVENTS)
    held_out_wanted = random.integers(ITEMS // 2, ITEMS, HELD_OUT)

    def asked(rows: np.ndarray) -> Floats:
        queries = items[rows].copy()
        for plane in range(4):
            x, y = items[rows, 2 * plane], items[rows, 2 * plane + 1]
            queries[:, 2 * plane] = math.cos(1.25) * x - math.sin(1.25) * y
            queries[:, 2 * plane + 1] = math.sin(1.25) * x + math.cos(1.25) * y
        return unit_rows(queries + 0.03 * random.standard_normal(queries.shape))

    return Task(items, asked(wanted), wanted, asked(held_out_wanted), held_out_wanted)


def learn(adapter: QueryAdapter, task: Task, wanted: np.ndarray, events: range = range(EVENTS)) -> None:
    for event in events:
        row = int(wanted[event])
        skip = np.array([row])
        adapter.learn(task.queries[event], [task.items[row]], [1.0], pool=task.items, skip=skip, seed=event)


def test_fresh_adapter_gives_the_bits_of_its_input(task: Task) -> None:
    for items in (None, task.items):
        adapter = QueryAdapter(DIM, items=items)
        x = floats([-0.0, 0.0, 1e-40, -1e-40, *range(DIM - 4)])
        assert bits(adapter.adapt(x)) == bits(x)
        assert adapter.adapt(x) is not x
        assert bits(adapter.adapt(np.stack([x, -x]))) == bits(np.stack([x, -x]))
        assert adapter.adapt(np.zeros((0, DIM))).shape == (0, DIM)


def test_learning_lifts_held_out_ranking_over_frozen_and_over_shuffled_outcomes(task: Task) -> None:
    frozen = QueryAdapter(DIM, items=task.items)
    learned, shuffled = QueryAdapter(DIM, items=task.items), QueryAdapter(DIM, items=task.items)
    learn(learned, task, task.wanted)
    learn(shuffled, task, np.random.default_rng(1).permutation(task.wanted))
    before = task.reciprocal_rank(frozen)
    assert task.reciprocal_rank(learned) > 0.6
    assert task.reciprocal_rank(learned) > before + 0.2
    assert task.reciprocal_rank(learned) > task.reciprocal_rank(shuffled) + 0.2
    assert task.reciprocal_rank(shuffled) < before + 0.05


def test_repeated_list_loses_its_loss(task: Task) -> None:
    adapter = QueryAdapter(DIM, items=task.items)
    first = adapter.learn(task.queries[0], [task.items[task.wanted[0]]], [1.0], pool=task.items, seed=1)
    for _ in range(100):
        last = adapter.learn(task.queries[0], [task.items[task.wanted[0]]], [1.0], pool=task.items, seed=1)
    assert 0 < last < 0.5 * first
    assert adapter.steps == 101


def test_both_factors_are_trained_and_the_average_is_served(task: Task) -> None:
    adapter = QueryAdapter(DIM, items=task.items)
    start = adapter.trained.weights.copy()
    learn(adapter, task, task.wanted, range(20))
    rank = adapter.rank
    assert not np.array_equal(adapter.trained.weights[:rank], start[:rank])
    assert adapter.trained.weights[rank:].any()
    assert not np.array_equal(adapter.served.weights, adapter.trained.weights)
    by_hand = task.queries[0] + (task.queries[0] @ adapter.served.weights[:rank].T) @ adapter.served.weights[rank:]
    np.testing.assert_allclose(adapter.adapt(task.queries[0]), by_hand, rtol=1e-4, atol=1e-6)


def test_served_average_is_the_one_of_the_recipe(task: Task) -> None:
    adapter = QueryAdapter(DIM, items=task.items)
    average = adapter.served.weights.astype(np.float64)
    for event in range(30):
        learn(adapter, task, task.wanted, range(event, event + 1))
        t = event + 1
        decay = min(0.99, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * adapter.trained.weights
    np.testing.assert_allclose(adapter.served.weights, average, rtol=1e-4, atol=1e-6)


def test_state_continues_bit_for_bit(task: Task) -> None:
    through, before = QueryAdapter(DIM, items=task.items), QueryAdapter(DIM, items=task.items)
    learn(through, task, task.wanted, range(40))
    learn(before, task, task.wanted, range(20))
    state = {name: value.copy() for name, value in before.state().items()}
    after = QueryAdapter(DIM, seed=99)
    after.load_state(state)
    assert after.steps == 20
    learn(after, task, task.wanted, range(20, 40))
    for name, value in through.state().items():
        assert bits(value) == bits(after.state()[name]), name
    assert bits(through.adapt(task.held_out)) == bits(after.adapt(task.held_out))


def test_state_of_a_fresh_adapter_is_the_identity_again(task: Task) -> None:
    adapter = QueryAdapter(DIM, items=task.items)
    learn(adapter, task, task.wanted, range(5))
    adapter.load_state(QueryAdapter(DIM, items=task.items).state())
    x = floats([-0.0] * DIM)
    assert bits(adapter.adapt(x)) == bits(x)


def test_negatives_depend_on_the_seed_alone(task: Task) -> None:
    def after(seed: int) -> bytes:
        adapter = QueryAdapter(DIM, items=task.items)
        adapter.learn(task.queries[0], [task.items[0]], [1.0], pool=task.items, seed=seed)
        return bits(adapter.trained.weights)

    assert after(1) == after(1)
    assert after(1) != after(2)


def test_adapter_takes_less_than_a_megabyte_at_384_dimensions_and_rank_8() -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        adapter = QueryAdapter(384)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (adapter.dim, adapter.rank, adapter.param_count) == (384, 8, 2 * 8 * 384)
    assert adapter.nbytes == 4 * 4 * adapter.param_count
    assert adapter.nbytes <= after - before < 1 << 20


def test_rank_or_dimension_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank 8 exceeds the dimension 4: choose a rank of at most 4"):
        QueryAdapter(4, QueryAdapterConfig())
    for dim in (0, -3, 16_001):
        for config in (None, QueryAdapterConfig(rank=1)):
            with pytest.raises(ConfigError, match=f"dimension is {dim}, expected a whole number from 1 to 16000"):
                QueryAdapter(dim, config)
    assert QueryAdapter(4).rank == 4
    assert QueryAdapter(4, QueryAdapterConfig(rank=4)).rank == 4


@pytest.mark.parametrize(
    ("query", "items", "targets", "error"),
    [
        (axis(0, DIM + 1), [axis(0, DIM)], [1.0], DimensionMismatch),
        (axis(0, DIM), [axis(0, DIM - 1)], [1.0], DimensionMismatch),
        (axis(0, DIM, np.nan), [axis(0, DIM)], [1.0], InvalidInput),
        (axis(0, DIM), [axis(0, DIM, np.inf)], [1.0], InvalidInput),
        (axis(0, DIM), [axis(0, DIM)], [np.nan], InvalidInput),
        (axis(0, DIM), [axis(0, DIM)], [-1.0], InvalidInput),
        (axis(0, DIM), [axis(0, DIM)], [0.0], InvalidInput),
        (axis(0, DIM), [axis(0, DIM)], [], InvalidInput),
        (axis(0, DIM), [], [], InvalidInput),
        (np.zeros(DIM), [axis(0, DIM)], [1.0], LearningError),
    ],
    ids=[
        *["query dim", "item dim", "query NaN", "item infinite", "target NaN", "target below 0", "targets all 0"],
        *["no target", "no item", "zero query"],
    ],
)
def test_bad_list_is_refused_and_changes_nothing(
    task: Task, query: Floats, items: list[Floats], targets: list[float], error: type[Exception]
) -> None:
    adapter = QueryAdapter(DIM, items=task.items)
    learn(adapter, task, task.wanted, range(3))
    before = {name: bits(value) for name, value in adapter.state().items()}
    with pytest.raises(error):
        adapter.learn(query, items, targets, pool=task.items, seed=1)
    assert {name: bits(value) for name, value in adapter.state().items()} == before


@pytest.fixture(params=kernels.available())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = kernels.active()
    kernels.use(request.param)
    yield request.param
    kernels.use(before)


@pytest.mark.parametrize("trained", [0, 3])
def test_query_so_short_that_its_gradient_overflows_is_refused_and_does_not_stop_learning(
    isa: str, task: Task, trained: int
) -> None:
    adapter = QueryAdapter(DIM, items=task.items)
    learn(adapter, task, task.wanted, range(trained))
    before = {name: bits(value) for name, value in adapter.state().items()}
    for length in (1e-22, 1e-30, 1e-38):
        short = floats(np.float64(length) * task.queries[0])
        assert short.any()
        # A trained map does not lengthen a query enough to make it harmless.
        with pytest.raises(LearningError, match="the loss is not finite, or its gradient out of range"):
            adapter.learn(short, [task.items[task.wanted[0]]], [1.0], pool=task.items, seed=1)
        assert {name: bits(value) for name, value in adapter.state().items()} == before
    learn(adapter, task, task.wanted, range(trained, trained + 3))
    assert adapter.steps == trained + 3
    for name, value in adapter.state().items():
        assert np.isfinite(value).all(), name
    assert bits(adapter.adapt(task.queries[0])) != bits(task.queries[0])


def test_short_query_whose_gradient_can_be_held_teaches_like_any_other(isa: str, task: Task) -> None:
    short, unit = QueryAdapter(DIM, items=task.items), QueryAdapter(DIM, items=task.items)
    losses = [
        adapter.learn(floats(length * task.queries[0]), [task.items[task.wanted[0]]], [1.0], pool=task.items, seed=1)
        for adapter, length in ((short, 1e-12), (unit, 1.0))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    np.testing.assert_allclose(short.trained.weights, unit.trained.weights, rtol=1e-3, atol=1e-6)


def test_pool_of_another_dimension_is_refused(task: Task) -> None:
    with pytest.raises(DimensionMismatch, match=f"pool has {DIM + 1} dimensions, expected {DIM}"):
        QueryAdapter(DIM).learn(axis(0, DIM), [axis(1, DIM)], [1.0], pool=np.zeros((3, DIM + 1), dtype=np.float32))


def test_items_of_another_dimension_are_refused() -> None:
    with pytest.raises(DimensionMismatch):
        QueryAdapter(DIM, items=np.ones((3, DIM + 1)))


def _base(rng: np.random.Generator, scale: float = 1.0) -> kernels.LowRank:
    base = kernels.LowRank(DIM, 4, scale)
    base.load(rng.standard_normal((8, DIM)) * 0.2)
    return base


def test_on_a_base_a_fresh_adapter_answers_as_the_base_does() -> None:
    rng = np.random.default_rng(0)
    adapter, base, query = QueryAdapter(DIM), _base(rng, 0.5), floats(rng.standard_normal(DIM))
    adapter.stand_on(base)
    weights = base.weights.astype(np.float64)
    expected = query + 0.5 * (query @ weights[:4].T) @ weights[4:]
    assert np.abs(adapter.adapt(query) - expected).max() < 1e-5
    assert adapter.map.rank == 4 + adapter.rank


def test_what_is_learned_on_a_base_is_applied_to_what_the_base_gives(task: Task) -> None:
    rng = np.random.default_rng(1)
    base, on_base, alone = _base(rng), QueryAdapter(DIM), QueryAdapter(DIM)
    on_base.stand_on(base)
    for event in range(50):
        query = task.queries[event]
        through = query.copy()
        base.forward(query, through)
        for adapter, given in ((on_base, query), (alone, through)):
            adapter.learn(given, [task.items[task.wanted[event]]], [1.0], pool=task.items, seed=event)
    assert np.array_equal(on_base.trained.weights, alone.trained.weights)
    through = task.held_out.copy()
    base.forward_batch(task.held_out, through)
    assert np.abs(on_base.adapt(task.held_out) - alone.adapt(through)).max() < 1e-5
    assert np.abs(on_base.adapt(task.held_out) - through).max() > 1e-3


def test_a_base_is_part_of_the_state_and_goes_with_it() -> None:
    rng = np.random.default_rng(2)
    adapter, again, query = QueryAdapter(DIM), QueryAdapter(DIM), floats(rng.standard_normal(DIM))
    without = {name: part.copy() for name, part in adapter.state().items()}
    adapter.stand_on(_base(rng, 2.0))
    again.load_state(adapter.state())
    assert bits(again.adapt(query)) == bits(adapter.adapt(query))
    again.load_state(without)
    assert again.base is None
    assert bits(again.adapt(query)) == bits(query)
    adapter.stand_on(kernels.LowRank(DIM, 4))
    assert adapter.base is None


@pytest.mark.parametrize(
    "damaged",
    [
        np.zeros((3, DIM), dtype=np.float32),
        np.zeros((0, DIM), dtype=np.float32),
        np.zeros((2, DIM + 1), dtype=np.float32),
        np.zeros((2, DIM)),
        np.full((2, DIM), np.nan, dtype=np.float32),
        np.zeros(DIM, dtype=np.float32),
    ],
)
def test_a_damaged_base_is_refused_and_nothing_changes(damaged: np.ndarray) -> None:
    adapter = QueryAdapter(DIM)
    adapter.stand_on(_base(np.random.default_rng(3)))
    before = {name: part.copy() for name, part in adapter.state().items()}
    with pytest.raises(LearningError, match="base"):
        adapter.load_state({**adapter.state(), "base": damaged})
    assert all(np.array_equal(part, before[name]) for name, part in adapter.state().items())
    with pytest.raises(DimensionMismatch):
        adapter.stand_on(kernels.LowRank(DIM + 1, 2))
