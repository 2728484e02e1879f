"""One adapter for several domains: the listwise step of the kernels, and outputs that are held."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from sona_pg.config import DistillationConfig, EwcConfig, QueryAdapterConfig
from sona_pg.errors import LearningError
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


def test_a_domain_without_lists_is_not_remembered() -> None:
    items, lists = a_domain(0)
    adapter = SharedAdapter(DIM, RECIPE, items=items, distillation=DistillationConfig())
    adapter.end_domain([], items, [])
    learn(adapter, (items, lists))
    assert not adapter.served.is_zero
