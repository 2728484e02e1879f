"""Synthetic traffic for the strategist: questions that recur in other words, on items in memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sona_pg.learning.arrays import normalized_rows
from sona_pg.learning.associations import Associations
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.remembered import InMemoryOutcomes, JudgedEvent, PoolIndex, Surroundings, look_around
from sona_pg.learning.strategies import Lesson, Scored, Strategy
from sona_pg.learning.strategist import Strategist
from sona_pg.types import FloatVector

DIM, ITEMS, QUESTIONS = 32, 300, 40


class Space:
    """A strategist with its memory and its items, as a space in Postgres has them.

    Parameters
    ----------
    pool
        The items.
    """

    def __init__(self, pool: ItemPool) -> None:
        self.pool = pool
        self.strategist = Strategist(pool)
        self.memory = InMemoryOutcomes(pool.embeddings.shape[1])
        self.index = PoolIndex(pool)
        self.associations: Associations | None = None
        """The memory graph; none at first."""

    def look(self, query: FloatVector, event: JudgedEvent | None = None) -> Surroundings:
        """What is around a unit query (dim,)."""
        config, associations = self.strategist.config, self.associations
        return look_around(query, self.memory, self.index, config, event=event, associations=associations)

    def answer(self, query: FloatVector) -> Scored:
        """Candidates for a unit query (dim,) under every strategy."""
        return self.strategist.answer(query, self.look(query))

    def study(self, event: JudgedEvent) -> Lesson:
        """Test, train, and remember."""
        others = self.memory.latest(self.strategist.config.sanity_events)
        lesson = self.strategist.learn(event, self.look(event.query, event), others)
        self.memory.add(event.query, event.helped, event.unhelpful)
        return lesson

    def learn(self, query: FloatVector, helped: Mapping[str, float], seed: int) -> Strategy:
        """Answer by what is in force and learn what helped; what else was shown did not. What was in force."""
        served = self.strategist.strategy_for(query)
        shown = self.answer(query).ranking(served)
        self.study(JudgedEvent(query, shown, helped, [item for item in shown if item not in helped], seed))
        return served


class World(Space):
    """Questions that recur in other words; what answers one is not what is nearest to it.

    Parameters
    ----------
    seed
        Of everything in it.
    dim, items, questions
        How large it is.
    words
        Length of what other words add to a question, a question itself being 1.
    """

    def __init__(
        self, seed: int = 0, *, dim: int = DIM, items: int = ITEMS, questions: int = QUESTIONS, words: float = 0.3
    ) -> None:
        self.rng = np.random.default_rng(seed)
        super().__init__(ItemPool([f"i{row}" for row in range(items)], self.rng.standard_normal((items, dim))))
        self._words = words
        self.topics = self.rng.standard_normal((questions, dim))
        near = self.pool.embeddings @ normalized_rows(self.topics.astype(np.float32)).T
        # The answer to each question is among its twenty nearest items, somewhere.
        self.answers = [int(np.argsort(-near[:, q])[self.rng.integers(2, 15)]) for q in range(questions)]

    def ask(self, question: int) -> FloatVector:
        """The question as a unit query (dim,), in words of its own."""
        words = self.topics[question] + self._words * self.rng.standard_normal(self.topics.shape[1])
        query: FloatVector = normalized_rows(words[np.newaxis].astype(np.float32))[0]
        return query

    def reciprocal_ranks(self, strategy: Strategy | None = None) -> list[float]:
        """Of the answer to each question, asked anew; by what is in force if no strategy is named."""
        found = []
        for question, answer in enumerate(self.answers):
            query = self.ask(question)
            ranking = self.answer(query).ranking(strategy or self.strategist.strategy_for(query))
            found.append(1 / (1 + ranking.index(f"i{answer}")) if f"i{answer}" in ranking else 0.0)
        return found
