"""The sample of the items: loops of a process share one for as long as it is the same, and any of them has it."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg import SonaEngine
from sona_pg.loops.sample import item_pool
from sona_pg.store import spaces
from sona_pg.store.connection import Connection
from sona_pg.store.learning import read_head

from .conftest import DIM


def test_the_loops_of_an_engine_have_one_sample(engine: SonaEngine, rng: np.random.Generator) -> None:
    for row in range(3):
        engine.record(rng.standard_normal(DIM), [str(row), str(row + 1)], [1.0, 0.0])
    engine.flush()
    copy = engine.evidence._copy
    assert copy is not None
    assert copy.pool is engine.instant.learner.pool
    assert len(copy.pool) == 60


def test_another_sample_is_another_one(
    engine: SonaEngine, connection: Connection, items: tuple[str, NDArray[np.float32]]
) -> None:
    first = engine.instant.learner.pool
    at = read_head(connection, engine.space).items_sampled_at
    assert item_pool(connection, engine.space, at) is first
    connection.execute(f"DELETE FROM {items[0]} WHERE id >= 40")
    engine.set_items(items[0], "id", "embedding")
    second = engine.instant.learner.pool
    assert (len(first), len(second)) == (60, 40)
    assert item_pool(connection, engine.space, read_head(connection, engine.space).items_sampled_at) is second
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None


def test_a_space_without_items_has_an_empty_one_of_its_own(url: str, space_name: str) -> None:
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False) as engine:
        assert len(engine.instant.learner.pool) == 0


def test_an_item_that_was_sampled_twice_counts_once(
    engine: SonaEngine, connection: Connection, items: tuple[str, NDArray[np.float32]]
) -> None:
    connection.execute(
        "UPDATE sona.item_sample SET item_id = '7' WHERE space_id = %s AND item_id IN ('3', '9')",
        (engine.space.space_id,),
    )
    ids, embeddings = spaces.item_sample(connection, engine.space)
    assert (len(ids), len(set(ids)), embeddings.shape) == (58, 58, (58, DIM))
    rows = connection.execute(
        "SELECT ordinal, item_id, embedding FROM sona.item_sample WHERE space_id = %s ORDER BY ordinal",
        (engine.space.space_id,),
    ).fetchall()
    first = {}
    for _, item, embedding in rows:
        first.setdefault(item, embedding)
    assert list(first) == ids
    np.testing.assert_array_equal(np.stack(list(first.values())), embeddings)


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 1000])
def test_unit_rows_do_not_depend_on_how_they_are_taken_together(n: int, rng: np.random.Generator) -> None:
    from sona_pg.learning.arrays import normalized_rows

    rows = (rng.standard_normal((n, DIM)) * 10.0 ** rng.integers(-20, 20, (n, 1))).astype(np.float32)
    rows[n // 2 : n // 2 + 1] = 0
    norm = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, np.newaxis]
    expected = np.asarray(rows / np.where(norm > 0, norm, 1), dtype=np.float32)
    assert normalized_rows(rows).tobytes() == expected.tobytes()
