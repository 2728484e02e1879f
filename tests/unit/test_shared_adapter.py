"""One adapter for several domains: the listwise step of the kernels, and outputs that are held."""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
import pytest

from sona_pg.config import DistillationConfig, EwcConfig, QueryAdapterConfig
from sona_pg.errors import LearningError
from sona_pg.learning.ewc import EwcPlusPlus
from sona_pg.learning.judged_list import JudgedList
from sona_pg.learning.query_adapter import QueryAdapter
from sona_pg.learning.serving import Serving
from sona_pg.learning.shared_adapter import SharedAdapter

from .samples import Floats, unit_rows

DIM, ITEMS = 24, 60
RECIPE = QueryAdapterConfig(rank=4, negatives=16, learning_rate=3e-3)
NO_ROWS = np.zeros(0, dtype=np.int64)


def a_domain(seed: int, count: int = 150) -> tuple[Floats, list[JudgedList]]:
    """Items, and questions whose answers are turned away from them in a plane of the domain's own."""
    random = np.random.default_rng(seed)
    items = unit_rows(random.standard_normal((ITEMS, DIM)))
    turn = np.linalg.qr(np.eye(DIM) + 0.6 * random.standard_normal((DIM, DIM)) / DIM**0.5)[0]
    lists = []
    for number in range(count):
        answer = int(random.integers(ITEMS))
        query = unit_rows(items[answer] @ turn + 0.1 * random.standard_normal(DIM))
        lists.append(
            JudgedList(
                (uuid.UUID(int=1000 * seed + number + 1), 0), query, (str(answer),), (items[answer],), (1.0,), (True,)
            )
        )
    return items, lists


def learn(adapter: SharedAdapter, domain: tuple[Floats, list[JudgedList]]) -> None:
    items, lists = domain
    for judged in lists:
        adapter.learn(judged, items, np.array([int(judged.item_ids[0])], dtype=np.int64))


def moved(distillation: DistillationConfig | None, ewc: EwcConfig | None) -> float:
    """How far a second domain moves outputs on the first one, in the root mean square."""
    first, second = a_domain(1), a_domain(2)
    adapter = SharedAdapter(DIM, RECIPE, items=first[0], distillation=distillation, ewc=ewc)
    learn(adapter, first)
    skips = [np.array([int(judged.item_ids[0])], dtype=np.int64) for judged in first[1]]
    queries = np.stack([judged.query for judged in first[1]])
    before = Serving([adapter.served]).adapt(queries)
    adapter.end_domain(first[1], first[0], skips)
    learn(adapter, second)
    off = Serving([adapter.served]).adapt(queries) - before
    return float(np.sqrt((off**2).sum(axis=1).mean()))


def test_without_protection_it_is_the_query_adapter() -> None:
    items, lists = a_domain(0)
    shared, own = SharedAdapter(DIM, RECIPE, items=items), QueryAdapter(DIM, RECIPE, items=items)
    for judged in lists:
        skip = np.array([int(judged.item_ids[0])], dtype=np.int64)
        loss = shared.learn(judged, items, skip)
        expected = own.learn(
            judged.query, list(judged.items), list(judged.targets), pool=items, skip=skip, seed=judged.seed
        )
        assert loss == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(shared.served.weights, own.served.weights, atol=2e-3)


@pytest.mark.parametrize(
    ("distillation", "ewc"),
    [(DistillationConfig(queries=100), None), (None, EwcConfig(initial_lambda=1e4))],
    ids=["distillation", "EWC++"],
)
def test_protection_holds_the_outputs_of_an_earlier_domain(
    distillation: DistillationConfig | None, ewc: EwcConfig | None
) -> None:
    assert moved(distillation, ewc) < 0.6 * moved(None, None)


def test_more_weight_holds_more() -> None:
    weak, strong = (moved(DistillationConfig(queries=100, weight=weight), None) for weight in (3.0, 100.0))
    assert strong < weak


def test_a_list_that_teaches_nothing_and_a_zero_query_change_nothing() -> None:
    items, lists = a_domain(0, 2)
    adapter = SharedAdapter(DIM, RECIPE, items=items)
    nothing = JudgedList(lists[0].key, lists[0].query, ("0",), (items[0],), (0.0,), (True,))
    zero = JudgedList(lists[0].key, np.zeros(DIM, dtype=np.float32), ("0",), (items[0],), (1.0,), (True,))
    for judged in (nothing, zero):
        with pytest.raises(LearningError):
            adapter.learn(judged, items, NO_ROWS)
    assert adapter.served.is_zero


def test_every_domain_is_held_as_much_as_any_other() -> None:
    # μ Σ_domains mean ½ |(x A) B - then|², however few queries of a domain are remembered.
    weight, counts = 30.0, (5, 145)
    items, lists = a_domain(3)
    config = DistillationConfig(queries=200, weight=weight, batch=50)
    adapter = SharedAdapter(DIM, RECIPE, items=items, distillation=config)
    parts = [lists[: counts[0]], lists[counts[0] :]]
    for part in parts:
        learn(adapter, (items, lists))
        adapter.end_domain(part, items, [NO_ROWS] * len(part))
    outputs = adapter._held
    assert outputs is not None
    learn(adapter, a_domain(4))
    held = adapter._trained
    expected = np.zeros_like(held.weights)
    start = 0
    for count in counts:
        queries, off = outputs.queries[start : start + count], -outputs.outputs[start : start + count]
        held.forward_batch(queries, off)
        held.backward_batch(queries, off, expected, weight / count)
        start += count
    steps, random = 400, np.random.default_rng(0)
    found = np.zeros_like(expected)
    for _ in range(steps):
        outputs.add_gradient(held, random, found)
    assert np.linalg.norm(found / steps - expected) < 0.03 * np.linalg.norm(expected)
    # Where all of them fit, that is it.
    found.fill(0)
    replace(outputs, batch=400).add_gradient(held, random, found)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ewc", [None, EwcConfig()], ids=["distillation", "both"])
def test_lists_that_teach_nothing_are_left_out_of_a_domain(ewc: EwcConfig | None) -> None:
    items, lists = a_domain(0, 8)
    nothing = JudgedList(lists[0].key, lists[0].query, ("0",), (items[0],), (0.0,), (True,))
    zero = JudgedList(lists[0].key, np.zeros(DIM, dtype=np.float32), ("0",), (items[0],), (1.0,), (True,))
    with_them, without = (
        SharedAdapter(DIM, RECIPE, items=items, distillation=DistillationConfig(), ewc=ewc) for _ in range(2)
    )
    with_them.end_domain([nothing, *lists, zero], items, [NO_ROWS] * 10)
    without.end_domain(lists, items, [NO_ROWS] * 8)
    for adapter in (with_them, without):
        learn(adapter, a_domain(5))
    assert np.array_equal(with_them.served.weights, without.served.weights)
    only_nothing = SharedAdapter(DIM, RECIPE, items=items, distillation=DistillationConfig(), ewc=ewc)
    only_nothing.end_domain([nothing], items, [NO_ROWS])
    learn(only_nothing, (items, lists))


def test_a_domain_that_cannot_be_remembered_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    items, lists = a_domain(0, 50)
    adapter, other = (
        SharedAdapter(DIM, RECIPE, items=items, distillation=DistillationConfig(queries=20), ewc=EwcConfig())
        for _ in range(2)
    )
    for each in (adapter, other):
        learn(each, (items, lists))

    def refuse(*_: object) -> None:
        raise LearningError("the sums leave the range of float32")

    with monkeypatch.context() as patched:
        patched.setattr(EwcPlusPlus, "start_new_task", refuse)
        with pytest.raises(LearningError):
            adapter.end_domain(lists, items, [NO_ROWS] * len(lists))
    for each in (adapter, other):
        each.end_domain(lists, items, [NO_ROWS] * len(lists))
        learn(each, a_domain(6))
    assert np.array_equal(adapter.served.weights, other.served.weights)


def test_fisher_information_is_taken_where_the_domain_is_held() -> None:
    items, lists = a_domain(1, 30)
    adapter = SharedAdapter(DIM, RECIPE, items=items, ewc=EwcConfig(fisher_ema_decay=0.0))
    learn(adapter, (items, lists))
    adapter.end_domain(lists[:1], items, [NO_ROWS])
    assert adapter._ewc is not None
    (task,) = adapter._ewc.tasks
    assert np.array_equal(task.anchor, adapter.served.weights.ravel())
    gradient, _ = adapter._gradient(adapter.served, lists[0], items, NO_ROWS)
    np.testing.assert_allclose(task.fisher, gradient.ravel() ** 2, rtol=1e-4)


def test_a_domain_without_lists_is_not_remembered() -> None:
    items, lists = a_domain(0)
    adapter = SharedAdapter(DIM, RECIPE, items=items, distillation=DistillationConfig())
    adapter.end_domain([], items, [])
    learn(adapter, (items, lists))
    assert not adapter.served.is_zero
