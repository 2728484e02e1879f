"""The strategist of a space as the database has it, held by the process that weighs, with what goes with it."""

from __future__ import annotations

from datetime import datetime

import numpy as np

from sona_pg.learning.associations import Associations
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.lift import SHADOW, LiftTest
from sona_pg.learning.remembered import FloatMatrix
from sona_pg.learning.strategies import Strategy
from sona_pg.learning.strategist import Strategist
from sona_pg.store.strategist import Memory, MemoryExtent
from sona_pg.store.strategist_standing import Adopted
from sona_pg.types import FloatVector


class StrategistCopy:
    """The strategist as the database has it, and what goes with it."""

    def __init__(
        self,
        strategist: Strategist,
        lift: LiftTest,
        pool: ItemPool,
        ordinal: int,
        sampled_at: datetime | None,
        adopted: Adopted,
    ) -> None:
        self.strategist, self.lift, self.pool = strategist, lift, pool
        self.ordinal, self.sampled_at, self.adopted = ordinal, sampled_at, adopted
        self.associations: Associations | None = None
        """The memory graph as the adopted cycle has left it: nothing of what is weighed from then on is in it."""
        self.extent: MemoryExtent | None = None
        """What the database remembers, as far as the copy knows."""

    def recall(self, memory: Memory, extent: MemoryExtent) -> None:
        """Take the memory from the database."""
        latest, self._prototypes, self.extent = memory.latest, memory.prototypes, extent
        self._queries = np.zeros((2 * self.strategist.config.sanity_events, latest.shape[1]), dtype=np.float32)
        self._queries[: len(latest)] = latest
        self._count = len(latest)

    @property
    def base(self) -> tuple[int, int, datetime | None, Adopted]:
        """What it was taken from."""
        return self.ordinal, self.lift.key, self.sampled_at, self.adopted

    @property
    def has_items(self) -> bool:
        """Whether the space has items: without, there is nothing to rank."""
        return self.sampled_at is not None

    def answers(self, setting: str) -> bool:
        """Whether anything but the frozen embedding answers in a space that is set so."""
        return self.strategist.answers if setting == "learned" else setting not in (Strategy.FROZEN, SHADOW)

    @property
    def latest(self) -> FloatMatrix:
        """The last queries (n, dim) that were remembered, oldest first; at most `sanity_events`."""
        return self._queries[max(0, self._count - self.strategist.config.sanity_events) : self._count]

    def is_prototype(self, query: FloatVector) -> bool:
        """Whether a query is far from all prototypes, and there is room for another."""
        c = self.strategist.config
        near = float((self._prototypes @ query).max(initial=-1.0))
        return len(self._prototypes) < c.prototypes and near < c.prototype_near and bool(query.any())

    def remember(self, query: FloatVector, *, is_prototype: bool) -> None:
        """Take a query in."""
        if self._count == len(self._queries):
            latest = self.latest.copy()
            self._queries[: len(latest)] = latest
            self._count = len(latest)
        self._queries[self._count] = query
        self._count += 1
        if is_prototype:
            self._prototypes = np.concatenate([self._prototypes, query[np.newaxis]])
