"""The application's table of items: ids that repeat, and tables and columns that went after they were named."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from sona_pg import ConfigError, SonaEngine, SpaceConfig, StoreConfig
from sona_pg.store import spaces
from sona_pg.store.connection import Connection

from .conftest import DIM

DOCUMENTS, PARTS = 40, 3
ADAPTED = SpaceConfig(strategy="adapted")


@pytest.fixture
def chunks(connection: Connection, rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Embeddings (document, part, dim) of a table with a row for every part of a document, and the document's id."""
    embeddings = rng.standard_normal((DOCUMENTS, PARTS, DIM)).astype(np.float32)
    connection.execute(f"CREATE TABLE public.chunks (document text, part integer, body text, embedding vector({DIM}))")
    for document in range(DOCUMENTS):
        for part in range(PARTS):
            connection.execute(
                "INSERT INTO public.chunks VALUES (%s, %s, 'text', %s)",
                (f"d{document}", part, embeddings[document, part]),
            )
    yield embeddings
    connection.execute("DROP TABLE public.chunks")


def _learns(engine: SonaEngine, connection: Connection, rng: np.random.Generator) -> None:
    """Recalls, records, flushes, and learns from every item that was recalled."""
    before = engine.adapt(np.ones(DIM))
    for _ in range(3):
        found = engine.recall(rng.standard_normal(DIM).astype(np.float32), 10)
        assert len(found.items) == 10
        engine.record(found, rewards={found.items[0].item_id: 1.0, found.items[-1].item_id: 0.0})
    engine.flush()
    learned = connection.execute("SELECT learned FROM sona.ledger WHERE space = %s", (engine.space.name,)).fetchall()
    assert learned[-3:] == [("adapter",)] * 3
    assert engine.metrics.last_error is None
    assert not np.array_equal(engine.adapt(np.ones(DIM)), before)


def test_a_table_of_chunks_is_learned_from(
    url: str, connection: Connection, space_name: str, chunks: NDArray[np.float32], rng: np.random.Generator
) -> None:
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False, space_config=ADAPTED) as engine:
        assert engine.set_items("public.chunks", "document", "embedding") == DOCUMENTS
        held = dict(
            connection.execute(
                "SELECT item_id, embedding FROM sona.item_sample WHERE space_id = %s", (engine.space.space_id,)
            ).fetchall()
        )
        assert set(held) == {f"d{number}" for number in range(DOCUMENTS)}
        for number in range(DOCUMENTS):
            assert held[f"d{number}"].tolist() == min(chunks[number].tolist()), "always the same row"
        _learns(engine, connection, rng)


def test_items_beyond_the_sample_are_those_that_it_would_hold(
    url: str, connection: Connection, space_name: str, chunks: NDArray[np.float32], rng: np.random.Generator
) -> None:
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False, space_config=ADAPTED) as engine:
        taken = connection.execute(
            "SELECT sona.set_items(%s, 'public.chunks', 'document', 'embedding', 4)", (space_name,)
        ).fetchall()
        assert taken == [(4,)]
        known = spaces.item_embeddings(connection, engine.space, ["d0", "d1", "d2", "missing"])
        assert {item: known[item].tolist() for item in known} == {
            f"d{number}": min(chunks[number].tolist()) for number in range(3)
        }
    with SonaEngine.connect(url, space=space_name, background=False) as engine:
        _learns(engine, connection, rng)


@pytest.mark.usefixtures("chunks")
def test_a_sample_that_an_earlier_version_took_from_chunks_is_learned_with(
    url: str, connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False, space_config=ADAPTED) as engine:
        engine.set_items("public.chunks", "document", "embedding")
        space = engine.space
    connection.execute("DELETE FROM sona.item_sample WHERE space_id = %s", (space.space_id,))
    connection.execute(
        "INSERT INTO sona.item_sample SELECT %s, row_number() OVER (ORDER BY document, part) - 1, document, embedding"
        " FROM public.chunks",
        (space.space_id,),
    )
    ids, embeddings = spaces.item_sample(connection, space)
    first = connection.execute("SELECT document, embedding FROM public.chunks WHERE part = 0 ORDER BY 1").fetchall()
    assert ids == [row[0] for row in first]
    assert embeddings.tolist() == [row[1].tolist() for row in first]
    with SonaEngine.connect(url, space=space_name, background=False) as engine:
        _learns(engine, connection, rng)


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("DROP TABLE public.going", "the items table of the space is gone"),
        ("ALTER TABLE public.going DROP COLUMN number", "has no column number any more"),
        ("ALTER TABLE public.going RENAME COLUMN number TO other", "has no column number any more"),
        ("ALTER TABLE public.going DROP COLUMN e", "has no column e of type vector any more"),
        ("ALTER TABLE public.going RENAME COLUMN e TO other", "has no column e of type vector any more"),
        ("ALTER TABLE public.going ALTER COLUMN e TYPE text USING 'x'", "has no column e of type vector any more"),
    ],
)
def test_items_that_are_gone_are_told(
    url: str, connection: Connection, space_name: str, prepared: bool, change: str, says: str
) -> None:
    connection.execute("DROP TABLE IF EXISTS public.going")
    connection.execute(f"CREATE TABLE public.going (number integer, e vector({DIM}), n integer)")
    connection.execute(
        "INSERT INTO public.going SELECT i, array_fill(i, ARRAY[%s])::vector, i FROM generate_series(1, 3) i", (DIM,)
    )
    store = StoreConfig(prepare_statements=prepared)
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False, store=store) as engine:
        engine.set_items("public.going", "number", "e", filter_columns=["n"])
        assert len(engine.recall(np.ones(DIM), 3).items) == 3
        connection.execute(change)  # type: ignore[arg-type]
        for filter in (None, {"n": 1}):
            with pytest.raises(ConfigError, match=rf"{says}: .* with sona\.set_items"):
                engine.recall(np.ones(DIM), 3, filter=filter)
        with pytest.raises(psycopg.Error) as refused:
            connection.execute("SELECT sona.recall(%s, array_fill(1, ARRAY[%s])::vector)", (space_name, DIM))
        assert refused.value.sqlstate == "SN004"
        with pytest.raises(ConfigError, match=says):
            spaces.item_embeddings(connection, engine.space, ["1"])
        # What is recorded becomes durable all the same, with the reason beside it.
        engine.record(np.ones(DIM), ["beyond the sample"], [1.0])
        engine.flush()
        assert says in str(
            connection.execute("SELECT message FROM sona.errors WHERE space = %s", (space_name,)).fetchall()
        )
    # Its ledger would wait to be weighed as long as the space is there.
    connection.execute("SELECT sona.drop_space(%s)", (space_name,))
    connection.execute("DROP TABLE IF EXISTS public.going")
