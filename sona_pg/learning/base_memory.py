"""What cycles of the base leave for each other, where there is no database to keep it."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping, Sequence

from sona_pg.config import QueryAdapterConfig
from sona_pg.kernels import LowRank
from sona_pg.learning.base_cycle import (
    Answered,
    BaseConfig,
    Candidate,
    Hour,
    latest_tasks,
    next_reservoir,
    replayed_share,
)
from sona_pg.learning.base_tasks import BaseTask, Traffic
from sona_pg.learning.item_pool import ItemPool

Answers = Mapping[uuid.UUID, Answered]


class BaseMemory:
    """Answers that are learned again and those that wait to be judged by, tasks and traffic.

    Parameters
    ----------
    dim
        Dimension of queries.
    config
        Settings.
    """

    def __init__(self, dim: int, config: BaseConfig) -> None:
        self._size = config.training.reservoir
        self.traffic = Traffic(dim, config.boundary)
        self.tasks: list[BaseTask] = []
        self.reservoir: dict[uuid.UUID, Answered] = {}
        self.withheld: dict[uuid.UUID, Answered] = {}
        self._judged: dict[uuid.UUID, Answered] = {}
        """What the last cycle has judged by: it is learned in the next one, and then it is there by chance like all."""
        self._learned = 0

    def hour(
        self,
        new: Answers,
        base: LowRank | None,
        tiers: Sequence[LowRank],
        pool: ItemPool,
        recipe: QueryAdapterConfig,
    ) -> Hour:
        """What a cycle begins with, whose answers that were learned are `new`; see `Hour`."""
        earlier = {**self.reservoir, **self._judged}
        return Hour(
            base,
            tiers,
            pool,
            recipe,
            list(new.values()),
            [answer for id, answer in earlier.items() if id not in new],
            list(self.withheld.values()),
            self.tasks,
            self.traffic,
            replayed_share(len(self.reservoir), self._size, self._learned),
        )

    def keep(self, new: Answers, candidate: Candidate) -> None:
        """Remember what a cycle has come to."""
        decision, known = candidate.decision, {**self.reservoir, **new, **self.withheld}
        kept = next_reservoir(self.reservoir, new, self.withheld, decision, self._size)
        self.reservoir = {id: known[id] for id in kept}
        self._judged = {}
        if decision.has_judged:
            self._judged = {} if decision.is_noise else self.withheld
            self.withheld = {}
        self._learned += len(new)
        self.tasks = latest_tasks([*self.tasks, *candidate.ended])

    def copy(self) -> BaseMemory:
        """One that goes on alone."""
        made = copy.copy(self)
        made.traffic = copy.deepcopy(self.traffic)
        made.reservoir, made.withheld = dict(self.reservoir), dict(self.withheld)
        return made
