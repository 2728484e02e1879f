"""The strategist under evaluation: every strategy on the same queries, and what is in force by the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sona_pg.config import SHOWN, SpaceConfig
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.feedback import SPACE
from sona_pg.evaluation.metrics import FloatMatrix, Ranking
from sona_pg.evaluation.report import LEARNED
from sona_pg.ids import learning_seed
from sona_pg.kernels import unit
from sona_pg.learning.associations import Associations
from sona_pg.learning.edges import EdgeWeights, edge_updates
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.outcome import OutcomeEvent, outcome_of
from sona_pg.learning.remembered import InMemoryOutcomes, JudgedEvent, PoolIndex, Surroundings, look_around
from sona_pg.learning.strategies import Lesson, Strategy
from sona_pg.learning.strategist import Strategist
from sona_pg.types import FloatVector, QueryTrajectory


class StrategySystem:
    """The strategist in memory, every document in its pool; `learned` is what it holds to be proven.

    Parameters
    ----------
    collection
        Where the documents come from.
    space
        What the traffic is.
    """

    served = LEARNED

    def __init__(self, collection: Collection, *, space: SpaceConfig = SPACE) -> None:
        self._space = space
        pool = ItemPool(collection.doc_ids, collection.docs)
        self._row = {item: row for row, item in enumerate(collection.doc_ids)}
        self._index = PoolIndex(pool)
        self._memory = InMemoryOutcomes(collection.docs.shape[1])
        self._strategist = Strategist(pool)
        self._edges = EdgeWeights()
        self._associations: Associations | None = None
        """The memory graph as the events so far have made it; None until it is asked for anew."""
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
        named = {s.value: s for s in Strategy if s is not Strategy.FROZEN}
        found: dict[str, list[list[int]]] = {name: [] for name in [*named, LEARNED]}
        for query in map(unit, queries):
            around = self._look_around(query)
            scored = self._strategist.answer(query, around)
            for name, strategy in {**named, LEARNED: self._strategist.strategy_for(query)}.items():
                found[name].append([self._row[item] for item in scored.ranking(strategy, SHOWN)])
        return {name: np.array(rows, dtype=np.int64) for name, rows in found.items()}

    def observe(self, trajectory: QueryTrajectory) -> None:
        """Learn, and remember."""
        query, outcome = unit(trajectory.query_embedding), outcome_of(trajectory, self._space)
        if outcome.helped:
            seed = learning_seed(trajectory.id)
            event = JudgedEvent(query, outcome.shown, outcome.helped, outcome.unhelpful, seed)
            latest = self._memory.latest(self._strategist.config.sanity_events)
            lesson = self._strategist.learn(event, self._look_around(query, event), latest)
        else:
            lesson = Lesson(self._strategist.strategy_for(query), {})
        self._lessons.append(lesson)
        self._memory.add(query, outcome.helped, outcome.unhelpful)
        # Only now: an event must not be answered by what it has taught itself.
        if updates := edge_updates(OutcomeEvent(trajectory)):
            self._edges.update(updates)
            self._edges.commit()
            self._associations = None

    def _look_around(self, query: FloatVector, event: JudgedEvent | None = None) -> Surroundings:
        if self._associations is None:
            self._associations = Associations.of_pairs(self._edges.items())
        return look_around(
            query, self._memory, self._index, self._strategist.config, event=event, associations=self._associations
        )

    def close(self) -> None:
        """Nothing is held."""
