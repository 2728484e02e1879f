"""A stream in hours: the instant tier learns on top of the base, and every hour ends with a cycle of the base."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sona_pg.config import BaseTrainingConfig, GateConfig
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.feedback import SPACE, Feedback
from sona_pg.evaluation.metrics import QueryScores, rank_documents, score_ranking
from sona_pg.evaluation.protocol import Stream
from sona_pg.evaluation.splits import SplitKind, make_split
from sona_pg.kernels import LowRank
from sona_pg.learning.base_cycle import Answered, BaseConfig, make_candidate
from sona_pg.learning.base_memory import BaseMemory
from sona_pg.learning.gate import Decision
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.learner import Learned, Learner
from sona_pg.learning.outcome import OutcomeEvent, worth_of
from sona_pg.learning.serving import Serving

Answers = dict[uuid.UUID, Answered]
State = tuple[bytes, BaseMemory, int]


@dataclass(frozen=True, slots=True)
class Cycle:
    """nDCG@10 of the held-out queries before a cycle, of the candidate alone, and what the gate said of it.

    `seconds` is what the cycle took, and `hour_seconds` what the instant tier took to answer and learn the hour.
    """

    before: float
    candidate: float
    decision: Decision
    is_gated: bool
    seconds: float
    hour_seconds: float

    @property
    def after(self) -> float:
        """Of what is served then."""
        return self.candidate if self.decision.publishes or not self.is_gated else self.before


class Hours:
    """One split of a collection, cycle by cycle as loop B makes them.

    Parameters
    ----------
    collection, kind, index
        The split.
    gate
        Withholds events, and decides by them; every candidate is published without.
    training
        Settings of the base.
    """

    def __init__(
        self,
        collection: Collection,
        kind: SplitKind,
        index: int,
        *,
        gate: GateConfig | None = None,
        training: BaseTrainingConfig | None = None,
    ) -> None:
        dim = collection.docs.shape[1]
        self.is_gated = gate is not None
        self.config = BaseConfig(training or BaseTrainingConfig.for_dim(dim), gate or GateConfig(withheld=0.0))
        self.collection = collection
        self.split = make_split(collection, kind, index)
        self.stream = Stream(collection, self.split, Feedback.FULL)
        self.pool = ItemPool(collection.doc_ids, collection.docs)
        self.held_out = collection.queries[list(self.split.held_out)]
        self.relevant = [collection.relevant[query] for query in self.split.held_out]
        self.frozen = self.quality([])
        self.learner = Learner(dim, self.pool, space=SPACE)
        self.learner.withheld_share = self.config.gate.withheld
        self.memory = BaseMemory(dim, self.config)
        self.events = 0

    def quality(self, maps: Sequence[LowRank]) -> float:
        """Mean nDCG@10 of the held-out queries, asked through maps that are added up."""
        return float(self.scores(maps).ndcg10.mean())

    def scores(self, maps: Sequence[LowRank]) -> QueryScores:
        """Of each held-out query."""
        adapted = Serving(maps).adapt(self.held_out) if maps else self.held_out
        return score_ranking(rank_documents(adapted, self.collection.unit_docs), self.relevant)

    @property
    def served(self) -> list[LowRank]:
        """What answers."""
        return [self.learner.adapter.map, self.learner.micro]

    def learn(self, events: Sequence[int]) -> Answers:
        """An hour of the instant tier: what it learned; what is withheld goes on waiting."""
        learned: Answers = {}
        withheld: Answers = {}
        for event in events:
            query = self.stream.query(event)
            adapted = self.learner.serving().adapt(query)
            shown = rank_documents(adapted[np.newaxis], self.collection.unit_docs)[0]
            outcome = OutcomeEvent(self.stream.trajectory(event, shown))
            became, judged = self.learner.learn(outcome), self.learner.judged_list(outcome)
            if judged is not None and judged.teaches:
                answered = Answered(self.events, judged, worth_of(outcome.trajectory, SPACE) or 0.0)
                (withheld if became is Learned.WITHHELD else learned)[outcome.trajectory.id] = answered
            self.events += 1
        self.memory.withhold(withheld)
        return learned

    def run(self, hours: int) -> list[Cycle]:
        """All hours, each with its cycle."""
        parts = np.array_split(np.arange(len(self.split.stream)), hours)
        return [self.cycle(events.tolist()) for events in parts]

    def cycle(self, events: Sequence[int]) -> Cycle:
        """An hour, and its cycle: what it leaves behind is the next hour's."""
        began = time.perf_counter()
        new = self.learn(events)
        hour_seconds = time.perf_counter() - began
        adapter = self.learner.adapter
        hour = self.memory.hour(new, adapter.base, self.served, self.pool, adapter.config)
        began = time.perf_counter()
        candidate = make_candidate(hour, self.config, seed=self.events)
        assert candidate is not None
        seconds, decision = time.perf_counter() - began, candidate.decision
        before, after = self.quality(self.served), self.quality([candidate.trained.map])
        cycle = Cycle(before, after, decision, self.is_gated, seconds, hour_seconds)
        self.memory.keep(new, candidate)
        if decision.publishes or not self.is_gated:
            self.learner = self.learner.anew(self.pool)
            self.learner.withheld_share = self.config.gate.withheld
            self.learner.adapter.stand_on(candidate.trained.map)
        return cycle

    def state(self) -> State:
        """What an hour changes, to go back to."""
        return self.learner.to_bytes(), self.memory.copy(), self.events

    def restore(self, state: State) -> None:
        """Go back."""
        learner, self.memory, self.events = state
        self.learner = self.learner.anew(self.pool)
        self.learner.load_bytes(learner)


def synthetic(seed: int, *, dim: int = 64, docs: int = 400, queries: int = 1500) -> Collection:
    """Queries that are their documents, turned in the planes in which documents differ most, and noise."""
    random = np.random.RandomState(seed)
    items = random.randn(docs, dim) * np.where(np.arange(dim) < 8, 3.0, 1.0)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    wanted = random.randint(0, docs, queries)
    asked = items[wanted].copy()
    angle = 1.25
    for plane in range(0, 8, 2):
        x, y = items[wanted, plane], items[wanted, plane + 1]
        asked[:, plane] = np.cos(angle) * x - np.sin(angle) * y
        asked[:, plane + 1] = np.sin(angle) * x + np.cos(angle) * y
    asked += 0.15 * random.randn(queries, dim)
    return Collection(
        f"synthetic {seed}",
        [str(doc) for doc in range(docs)],
        items.astype(np.float32),
        asked.astype(np.float32),
        [{int(doc): 1.0} for doc in wanted],
    )
