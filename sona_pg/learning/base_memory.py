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
    next_offered,
    next_owed,
    next_reservoir,
    replayed_share,
)
from sona_pg.learning.base_tasks import MOST_TASKS, BaseTask, Traffic
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import reservoir_sample

Answers = Mapping[uuid.UUID, Answered]

MOST_KNOWN = 1 << 16
"""Latest trajectories that are known to have judged, or to have been offered to the reservoir."""


class BaseMemory:
    """Answers that are learned again and those that wait to be judged by, tasks and traffic; all of it bounded.

    Of each kind of answers there are `BaseTrainingConfig.lists_of` at most.

    Parameters
    ----------
    dim
        Dimension of queries.
    config
        Settings.
    """

    def __init__(self, dim: int, config: BaseConfig) -> None:
        self._size = config.training.lists_of(dim)
        self.traffic = Traffic(dim, config.boundary)
        self.tasks: list[BaseTask] = []
        self.reservoir: dict[uuid.UUID, Answered] = {}
        self.withheld: dict[uuid.UUID, Answered] = {}
        """What waits to be judged by."""
        self.owed: dict[uuid.UUID, Answered] = {}
        """What has judged, and is learned in every cycle until one is published; see `next_owed`."""
        self._offered = 0
        self._known: dict[uuid.UUID, int] = {}
        """Ordinals at first of what has judged or was offered."""
        self._watched = 0

    def withhold(self, answers: Answers) -> None:
        """Keep answers to judge by. What has judged does not judge again: more that is said of it is learned."""
        for id, answer in answers.items():
            if id not in self._known:
                self.withheld[id] = answer
            for held in (self.owed, self.reservoir):
                if id in held:
                    held[id] = self._as_at_first(id, answer)
        self.withheld = _few(self.withheld, self._size)

    def hour(
        self,
        new: Answers,
        base: LowRank | None,
        tiers: Sequence[LowRank],
        pool: ItemPool,
        recipe: QueryAdapterConfig,
    ) -> Hour:
        """What a cycle begins with, whose answers that were learned are `new`; see `Hour`."""
        earlier = {**self.reservoir, **self.owed}
        few = {id: self._as_at_first(id, answer) for id, answer in _few(new, self._size).items()}
        return Hour(
            base,
            tiers,
            pool,
            recipe,
            sorted(few.values(), key=lambda answer: answer.ordinal),
            [answer for id, answer in earlier.items() if id not in few],
            list(self.withheld.values()),
            self.tasks,
            self.traffic,
            replayed_share(len(earlier), self._offered),
            self._watched,
        )

    def keep(self, new: Answers, candidate: Candidate) -> None:
        """Remember what a cycle has come to."""
        decision, withheld = candidate.decision, self.withheld
        known = {**self.reservoir, **self.owed, **new, **withheld}
        fresh = sum(id not in self._known for id in new)
        self._offered = next_offered(self._offered, fresh, len(withheld), decision)
        kept = next_reservoir(self.reservoir, new, withheld, decision, self._size)
        owed = next_owed(self.owed, withheld, decision, self._size)
        self.reservoir, self.owed = ({id: self._as_at_first(id, known[id]) for id in ids} for ids in (kept, owed))
        if not decision.is_noise:
            self._know(new)
        if decision.has_judged:
            # Of noise nothing is learned, but it has judged.
            self._know(withheld)
            self.withheld = {}
        self._watched = max(self._watched, *(answer.ordinal + 1 for answer in new.values()), 0)
        self.tasks = latest_tasks([*self.tasks, *candidate.ended])[-MOST_TASKS:]

    def _as_at_first(self, id: uuid.UUID, answer: Answered) -> Answered:
        return answer._replace(ordinal=self._known.get(id, answer.ordinal))

    def _know(self, answers: Answers) -> None:
        for id, answer in answers.items():
            self._known.setdefault(id, answer.ordinal)
        for id in list(self._known)[: max(len(self._known) - MOST_KNOWN, 0)]:
            del self._known[id]

    def copy(self) -> BaseMemory:
        """One that goes on alone."""
        made = copy.copy(self)
        made.traffic = copy.deepcopy(self.traffic)
        made.reservoir, made.withheld, made.owed = dict(self.reservoir), dict(self.withheld), dict(self.owed)
        made._known = dict(self._known)
        return made


def _few(answers: Answers, size: int) -> dict[uuid.UUID, Answered]:
    """A sample of answers, in the order in which they are given."""
    kept = set(reservoir_sample(answers, size))
    return {id: answer for id, answer in answers.items() if id in kept}
