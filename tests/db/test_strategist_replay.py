"""The strategist's tables are what the ledger says: read again, in other batches, it gives the same, bit for bit."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from acceptance.weighing import weigh_again, weighed
from numpy.typing import NDArray

from sona_pg import SonaEngine
from sona_pg.config import EvidenceConfig, StoreConfig
from sona_pg.learning.outcome import outcome_of
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from sona_pg.store.ledger import ledger_events
from sona_pg.store.spaces import Space
from sona_pg.worker import InstantWorker

from .conftest import DIM

QUESTIONS, EVENTS = 12, 320


class Stream:
    """Questions that recur in other words; what answers one is not what is nearest to it. And other kinds of event."""

    def __init__(self, embeddings: NDArray[np.float32]) -> None:
        self._rng = np.random.default_rng(5)
        self._embeddings = embeddings
        self._topics = self._rng.standard_normal((QUESTIONS, DIM))
        near = embeddings @ self._topics.T
        self._answers = [int(np.argsort(-near[:, q])[self._rng.integers(1, 8)]) for q in range(QUESTIONS)]

    def record(self, engine: SonaEngine, event: int) -> None:
        """Record an event, with what was shown and whether it helped."""
        question = event % QUESTIONS
        query = (self._topics[question] + 0.3 * self._rng.standard_normal(DIM)).astype(np.float32)
        answer = str(self._answers[question])
        shown = [str(item) for item in np.argsort(-self._embeddings @ query)[:5]]
        kind = event % 10
        if kind == 3:  # what helped is said later, and taken back partly
            id = engine.record(query, shown, [0.5, None, None, None, None])
            engine.score(id, 1.0, answer)
            if event % 20 == 3:
                engine.flush()
                engine.score(id, 0.0, shown[0])
        elif kind == 6:  # nobody says anything, or only of the whole
            engine.record(query, shown, quality=None if event % 20 == 6 else 0.5)
        elif kind == 8:
            engine.record(query, shown, [0.0] * 5)
        elif event == 101:
            engine.record(np.zeros(DIM, np.float32), shown, [1.0, 0.0, 0.0, 0.0, 0.0])
        elif event == 102:  # an item that is gone, or never was
            engine.record(query, ["no item"], [1.0])
        else:
            engine.record(query, shown, {answer: 1.0, **({shown[1]: 0.5} if event % 7 == 0 else {})})


@pytest.fixture
def space(url: str, space_name: str, items: tuple[str, NDArray[np.float32]], connection: Connection) -> Space:
    """A space whose ledger was taken in by two engines and a worker in turns."""
    make = [
        lambda batch=batch: SonaEngine.connect(
            url, space=space_name, dim=DIM, background=False, evidence=EvidenceConfig(batch=batch)
        )
        for batch in (1, 16)
    ]
    stream = Stream(items[1])
    with make[0]() as first, make[1]() as second:
        first.set_items(items[0], "id", "embedding")
        worker = InstantWorker(Database(url, StoreConfig()), evidence=EvidenceConfig(batch=3))
        taken_by: list[Callable[[], object]] = [first.flush, second.flush, first.instant.flush_updates]
        for event, take in zip(range(EVENTS), itertools.cycle(taken_by), strict=False):
            stream.record((first, second)[event // 5 % 2], event)
            if event % 5 == 4:
                first.instant.flush_updates()
                second.instant.flush_updates()
                take()
                while worker.weigh():
                    pass
        first.flush()
        second.flush()
        assert worker.failing == []
        worker.close()
        return first.space


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_ledger_read_once_more_gives_the_same_bit_for_bit(
    space: Space, connection: Connection, url: str, batch: int
) -> None:
    before = weighed(connection, space)
    turns = [(row[3], row[4]) for row in before["strategy_turn"] if row[2] is None]
    assert "fusion" in {after for _, after in turns}, "something was proven, or the comparison says little"
    after = weigh_again(connection, lambda: connect(url), space, batch=batch)
    for table, rows in before.items():
        assert rows, table
        assert after[table] == rows, table


def test_every_entry_counts_once(space: Space, connection: Connection) -> None:
    def rows(statement: str) -> list[Any]:
        return connection.execute(statement, (space.space_id,)).fetchall()

    entries = ledger_events(connection, space, 0, 10_000)
    there = {item for (item,) in rows("SELECT item_id FROM sona.item_sample WHERE space_id = %s")}
    scored, helped = 0, {}
    for entry in entries:
        assert entry.event is not None
        trajectory = entry.event.trajectory
        if trajectory.has_outcome:
            helped[trajectory.id] = set(outcome_of(trajectory, space.config).helped)
            new = {item for item in helped[trajectory.id] if not entry.event.taught.get(item, 0.0) > 0}
            scored += bool(new & there) and bool(trajectory.query_embedding.any())
    assert any(entry.event.revision > 0 for entry in entries if entry.event is not None)
    assert 0 < scored < len(helped) < len(entries)
    assert rows("SELECT ordinal, events FROM sona.strategist WHERE space_id = %s") == [(len(entries), scored)]
    assert rows("SELECT sum(events) FROM sona.strategy_region WHERE space_id = %s") == [(scored,)]
    assert rows("SELECT DISTINCT events FROM sona.strategy_evidence WHERE space_id = %s") == [(scored,)]
    remembered = rows("SELECT trajectory_id, helped FROM sona.remembered_query WHERE space_id = %s")
    assert {id: set(items) for id, items in remembered} == helped
    times = Counter(item for items in helped.values() for item in items)
    assert dict(rows("SELECT item_id, helped FROM sona.item_outcome WHERE space_id = %s AND helped > 0")) == times
