"""The strategist's tables are what the ledger says: read again, in other batches, it gives the same, bit for bit."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg import SonaEngine
from sona_pg.config import EvidenceConfig, QueryAdapterConfig, StoreConfig, StrategyConfig
from sona_pg.learning.outcome import outcome_of
from sona_pg.loops.evidence import EvidenceLoop
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from sona_pg.store.ledger import ledger_events
from sona_pg.store.spaces import Space
from sona_pg.worker import InstantWorker

from .conftest import DIM

QUESTIONS, EVENTS = 12, 320

EVIDENCE = {
    "strategist": "SELECT ordinal, events, in_force, is_sane, known, strange, unseen, weights, state"
    " FROM sona.strategist WHERE space_id = %s",
    "served_row": "SELECT tier, ordinal, down, up FROM sona.served_row"
    " WHERE space_id = %s AND tier IN ('proven', 'careful') ORDER BY 1, 2",
    "strategy_evidence": "SELECT strategy, events, gain, recent_gain FROM sona.strategy_evidence"
    " WHERE space_id = %s ORDER BY 1",
    # Not the gain: it is shrunk to that of the space at the end of the batch in which the region was last met.
    "strategy_region": "SELECT region, centroid, events, verdict FROM sona.strategy_region"
    " WHERE space_id = %s ORDER BY 1",
    "strategy_turn": "SELECT ordinal, trajectory_id, region, before, after, reason FROM sona.strategy_turn"
    " WHERE space_id = %s ORDER BY turn_id",
    "remembered_query": "SELECT trajectory_id, embedding, ordinal, helped, rewards, unhelpful, is_prototype"
    " FROM sona.remembered_query WHERE space_id = %s ORDER BY ordinal",
    "item_outcome": "SELECT item_id, helped FROM sona.item_outcome WHERE space_id = %s AND helped > 0 ORDER BY 1",
}
"""All that the strategist writes, but times and what is numbered through."""

FORGET = (
    "UPDATE sona.strategist SET ordinal = 0, events = 0, in_force = 'frozen', is_sane = false, known = 0, strange = 0,"
    " unseen = 0, weights = NULL, state = NULL WHERE space_id = %s",
    "DELETE FROM sona.served_row WHERE space_id = %s AND tier IN ('proven', 'careful')",
    "DELETE FROM sona.strategy_evidence WHERE space_id = %s",
    "DELETE FROM sona.strategy_region WHERE space_id = %s",
    "DELETE FROM sona.strategy_turn WHERE space_id = %s",
    "DELETE FROM sona.remembered_query WHERE space_id = %s",
    "DELETE FROM sona.item_outcome WHERE space_id = %s",
)
"""The strategist as it was when the space was made."""


def written(connection: Connection, space: Space) -> dict[str, list[list[object]]]:
    """All that the strategist has written in a space, by table; vectors as their bytes."""
    return {
        table: [
            [value.tobytes() if isinstance(value, np.ndarray) else value for value in row]
            for row in connection.execute(statement, (space.space_id,), binary=True)
        ]
        for table, statement in EVIDENCE.items()
    }


def weigh_again(connection: Connection, url: str, space: Space, batch: int) -> dict[str, list[list[object]]]:
    """Forget the evidence of a space and take its ledger in once more, so many entries at a time."""
    with connection.transaction():
        for statement in FORGET:
            connection.execute(statement, (space.space_id,))
    row = connection.execute(
        "SELECT g.settings, l.settings -> 'adapter', l.ordinal FROM sona.strategist g JOIN sona.learner l"
        " USING (space_id) WHERE space_id = %s",
        (space.space_id,),
    ).fetchone()
    assert row is not None
    store = SpaceStore(space, lambda: connect(url), StoreConfig(), None)
    strategy, adapter = StrategyConfig(**row[0]), QueryAdapterConfig(**row[1])
    again = EvidenceLoop(store, strategy, adapter, EvidenceConfig(batch=batch))
    try:
        assert again.catch_up() == row[2]
    finally:
        again.close()
    return written(connection, space)


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
def weighed(url: str, space_name: str, items: tuple[str, NDArray[np.float32]], connection: Connection) -> Space:
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
    weighed: Space, connection: Connection, url: str, batch: int
) -> None:
    before = written(connection, weighed)
    turns = [(row[3], row[4]) for row in before["strategy_turn"] if row[2] is None]
    assert "fusion" in {after for _, after in turns}, "something was proven, or the comparison says little"
    after = weigh_again(connection, url, weighed, batch)
    for table, rows in before.items():
        assert rows, table
        assert after[table] == rows, table


def test_every_entry_counts_once(weighed: Space, connection: Connection) -> None:
    def rows(statement: str) -> list[Any]:
        return connection.execute(statement, (weighed.space_id,)).fetchall()

    entries = ledger_events(connection, weighed, 0, 10_000)
    there = {item for (item,) in rows("SELECT item_id FROM sona.item_sample WHERE space_id = %s")}
    scored, helped = 0, {}
    for entry in entries:
        assert entry.event is not None
        trajectory = entry.event.trajectory
        if trajectory.has_outcome:
            helped[trajectory.id] = set(outcome_of(trajectory, weighed.config).helped)
            new = {item for item in helped[trajectory.id] if not entry.event.taught.get(item, 0.0) > 0}
            scored += bool(new & there) and trajectory.query_embedding.any()
    assert any(entry.event.revision > 0 for entry in entries if entry.event is not None)
    assert 0 < scored < len(helped) < len(entries)
    assert rows("SELECT ordinal, events FROM sona.strategist WHERE space_id = %s") == [(len(entries), scored)]
    assert rows("SELECT sum(events) FROM sona.strategy_region WHERE space_id = %s") == [(scored,)]
    assert rows("SELECT DISTINCT events FROM sona.strategy_evidence WHERE space_id = %s") == [(scored,)]
    remembered = rows("SELECT trajectory_id, helped FROM sona.remembered_query WHERE space_id = %s")
    assert {id: set(items) for id, items in remembered} == helped
    times = Counter(item for items in helped.values() for item in items)
    assert dict(rows("SELECT item_id, helped FROM sona.item_outcome WHERE space_id = %s AND helped > 0")) == times
