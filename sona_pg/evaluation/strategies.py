"""The strategist under evaluation: every strategy on the same queries, and what is in force by the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.metrics import FloatMatrix, Ranking
from sona_pg.evaluation.report import LEARNED
from sona_pg.ids import learning_seed
from sona_pg.kernels import unit
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.remembered import InMemoryOutcomes, JudgedEvent
from sona_pg.learning.strategist import SHOWN, Lesson, PoolIndex, Strategist, Strategy
from sona_pg.types import QueryTrajectory


class StrategySystem:
    """The strategist in memory, every document in its pool; `learned` is what it holds to be proven.

    Parameters
    ----------
    collection
        Where the documents come from.
    """

    served = LEARNED

    def __init__(self, collection: Collection) -> None:
        pool = ItemPool(collection.doc_ids, collection.docs)
        self._row = {item: row for row, item in enumerate(collection.doc_ids)}
        self._index = PoolIndex(pool)
        self._memory = InMemoryOutcomes(collection.docs.shape[1])
        self._strategist = Strategist(pool)
        self._lessons: list[Lesson] = []

    @property
    def lessons(self) -> Sequence[Lesson]:
        """One for each trajectory; without gains where nothing was known to have helped."""
        return self._lessons

    @property
    def in_force(self) -> Strategy:
        """The strategy that answers now."""
        return self._strategist.in_force

    def answer(self, queries: FloatMatrix) -> Mapping[str, Ranking]:
        """The ranking of every strategy but frozen, and of the one in force."""
        wanted = {s.value: s for s in Strategy if s is not Strategy.FROZEN} | {LEARNED: self.in_force}
        found: dict[str, list[list[int]]] = {name: [] for name in wanted}
        for query in queries:
            scored = self._strategist.answer(unit(query), self._memory, self._index)
            for name, strategy in wanted.items():
                found[name].append([self._row[item] for item in scored.ranking(strategy, SHOWN)])
        return {name: np.array(rows, dtype=np.int64) for name, rows in found.items()}

    def observe(self, trajectory: QueryTrajectory) -> None:
        """Learn, and remember."""
        query = unit(trajectory.query_embedding)
        judged = [(step.item_id, step.reward, step.position) for step in trajectory.steps if step.item_id is not None]
        shown = [item for item, _, position in judged if position is not None]
        helped = {item: reward for item, reward, _ in judged if reward is not None and reward > 0}
        # As traffic that declares implicit feedback: what was shown beside what helped did not help.
        unhelpful = [item for item in shown if item not in helped] if helped else []
        if helped:
            event = JudgedEvent(query, shown, helped, unhelpful, learning_seed(trajectory.id))
            self._lessons.append(self._strategist.learn(event, self._memory, self._index))
        else:
            self._lessons.append(Lesson(self.in_force, {}, None))
        self._memory.add(query, helped, unhelpful)

    def close(self) -> None:
        """Nothing is held."""
