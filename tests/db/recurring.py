"""Questions that recur in other words, and a space that learns which items answer them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg import SonaEngine, SpaceConfig
from sona_pg.store.connection import Connection, connect

from .vectors import unit

DIM, ITEMS, QUESTIONS = 24, 300, 30
_tables = itertools.count()

Vector = NDArray[np.float32]


class World:
    """Questions that recur in other words; what answers one is near it, but not nearest."""

    def __init__(self, url: str, name: str, seed: int = 0, **space: object) -> None:
        self.url, self.name, self.rng = url, name, np.random.default_rng(seed)
        self.items = unit(self.rng.standard_normal((ITEMS, DIM)))
        self.topics = self.rng.standard_normal((QUESTIONS, DIM))
        near = self.items @ unit(self.topics).T
        self.answers = [int(np.argsort(-near[:, q])[self.rng.integers(2, 15)]) for q in range(QUESTIONS)]
        self.table = f"public.strategist_{next(_tables)}"
        with connect(url) as connection:
            connection.execute(f"CREATE TABLE {self.table} (id integer PRIMARY KEY, embedding vector, lang text)")
            for row, item in enumerate(self.items):
                connection.execute(
                    f"INSERT INTO {self.table} VALUES (%s, %s, %s)", (row, item, "de" if row % 3 else "en")
                )
        self.engine = SonaEngine.connect(
            url,
            space=name,
            dim=DIM,
            background=False,
            space_config=SpaceConfig(implicit_feedback=True, **{"control_share": 0.0, **space}),  # type: ignore[arg-type]
        )
        self.engine.set_items(self.table, "id", "embedding", filter_columns=["lang"])

    def ask(self, question: int) -> Vector:
        return unit(self.topics[question] + 0.3 * self.rng.standard_normal(DIM))

    def teach(self, events: int, helped: Callable[[int], str] | None = None, flush_every: int = 20) -> None:
        for event in range(events):
            question = event % QUESTIONS
            found = self.engine.recall(self.ask(question))
            item = str(self.answers[question]) if helped is None else helped(question)
            self.engine.record(found, rewards={item: 1.0})
            if event % flush_every == flush_every - 1:
                self.engine.flush()
        self.engine.flush()

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        with connect(self.url) as connection:
            return connection.execute(statement, {"space": self.engine.space.space_id, "name": self.name}).fetchall()


@pytest.fixture
def world(url: str, space_name: str) -> Iterator[World]:
    made = World(url, space_name)
    yield made
    made.engine.close()


def _sql_recall(
    connection: Connection, world: World, query: Vector, k: int = 10, filter: str | None = None
) -> list[str]:
    rows = connection.execute(
        "SELECT item_id FROM sona.recall(%s, %s, %s, %s) ORDER BY rank", (world.name, query, k, filter)
    ).fetchall()
    return [row[0] for row in rows]
