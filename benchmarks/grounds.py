"""Where the queries of a closed loop come from: recurring, logged, or with a best strategy that changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from benchmarks.worlds import World
from sona_pg.config import SHOWN
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.feedback import Feedback, judge
from sona_pg.evaluation.metrics import Grades, ndcg_at_10
from sona_pg.kernels import unit
from sona_pg.learning.item_pool import ItemPool
from sona_pg.types import FloatVector

Random = np.random.Generator
Helped = Mapping[str, float]
MOVED = 0.3
"""nDCG@10 that frozen loses where answers are moved. The fusion wins 0.1 and more of it, once it has learned."""


class Asked(NamedTuple):
    """A query with what is relevant to it: grades above 0 by row of the item."""

    query: FloatVector
    relevant: Grades


class Ground(Protocol):
    """Where queries come from."""

    pool: ItemPool

    def ask(self) -> Asked:
        """The next query."""
        ...

    def elsewhere(self, shown: Sequence[int]) -> Helped:
        """What helped on another query, after this was shown."""
        ...


class SyntheticGround:
    """Questions that recur in other words.

    Parameters
    ----------
    random
        Draws the world and every query.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._world = World(
            int(random.integers(1 << 32)),
            dim=round(log_uniform(random, 32, 384)),
            items=round(log_uniform(random, 200, 2000)),
            questions=round(log_uniform(random, 20, 200)),
            words=float(random.uniform(0.3, 1.0)),
        )
        self.pool = self._world.pool

    def ask(self) -> Asked:
        question = int(self._random.integers(len(self._world.answers)))
        return Asked(self._world.ask(question), {self._world.answers[question]: 1.0})

    def elsewhere(self, shown: Sequence[int]) -> Helped:
        return {self.pool.ids[self._random.choice(self._world.answers)]: 1.0}


class LoggedGround:
    """Logged outcomes in an order of their own.

    Parameters
    ----------
    collection
        Where they come from.
    random
        Draws the order, and who gets whose outcome.
    """

    def __init__(self, collection: Collection, pool: ItemPool, random: Random) -> None:
        self.pool = pool
        self._collection, self._random = collection, random
        judged = np.array([query for query, grades in enumerate(collection.relevant) if grades])
        self._order = random.permutation(judged).tolist()
        self._others = random.permutation(judged).tolist()

    def __len__(self) -> int:
        return len(self._order)

    def ask(self) -> Asked:
        query = self._order.pop()
        return Asked(unit(self._collection.queries[query]), self._collection.relevant[query])

    def elsewhere(self, shown: Sequence[int]) -> Helped:
        grades, best = self._collection.relevant[self._others.pop()], self._collection.best_grade
        outcome = judge(grades, shown, Feedback.FULL, best_grade=best, seed=(0, len(self._others)))
        return {self.pool.ids[doc]: reward for doc, reward, _ in outcome if reward}


class ChangingGround:
    """Questions of which some are answered by what is nearest, and some by an item that stands further down.

    Before `change` and after it, what is nearest answers all of them in one half, and not the moved ones in the other.

    Parameters
    ----------
    random
        Draws the world and every query.
    to_moved
        Whether it is after the change that some are moved; else before it.
    to_others
        Whether other questions are asked after the change; else the same ones.
    moved
        nDCG@10 that frozen loses where answers are moved.
    """

    def __init__(self, random: Random, *, to_moved: bool, to_others: bool, moved: float = MOVED) -> None:
        self._random, self._is_moved, self._to_others = random, not to_moved, to_others
        self._world = World(
            int(random.integers(1 << 32)),
            dim=round(log_uniform(random, 32, 384)),
            items=round(log_uniform(random, 200, 2000)),
            questions=2 * int(random.integers(20, 41)),
        )
        self.pool = self._world.pool
        self._asked = range(len(self._world.answers) // 2)
        lost = [np.cumsum([self._lost(question) for question in half]) / len(half) for half in self._halves]
        self._moved = {
            half[place]
            for half, sums in zip(self._halves, lost, strict=True)
            for place in range(np.searchsorted(sums, moved))
        }

    @property
    def _halves(self) -> tuple[range, range]:
        n = len(self._world.answers)
        return range(n // 2), range(n // 2, n)

    def _lost(self, question: int) -> float:
        """nDCG@10 that frozen loses where the question's own answer is the right one."""
        queries = np.stack([self._world.ask(question) for _ in range(5)])
        best = np.argsort(-(queries @ self.pool.embeddings.T), axis=1)[:, :SHOWN]
        return 1.0 - float(ndcg_at_10(best, [{self._world.answers[question]: 1.0}] * len(queries)).mean())

    def change(self) -> None:
        """What is true is another thing from now on."""
        self._is_moved = not self._is_moved
        if self._to_others:
            self._asked = self._halves[1]

    def ask(self) -> Asked:
        question = int(self._random.choice(self._asked))
        query = self._world.ask(question)
        if self._is_moved and question in self._moved:
            return Asked(query, {self._world.answers[question]: 1.0})
        return Asked(query, {int(np.argmax(self.pool.embeddings @ query)): 1.0})

    def elsewhere(self, shown: Sequence[int]) -> Helped:
        return {self.pool.ids[self._random.choice(self._world.answers)]: 1.0}


def log_uniform(random: Random, low: float, high: float) -> float:
    return float(np.exp(random.uniform(np.log(low), np.log(high))))
