"""A stream in hours: the instant tier learns on the output of the base, and every hour ends with a cycle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sona_pg.config import BaseTrainingConfig, GateConfig
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.feedback import SPACE, Feedback
from sona_pg.evaluation.metrics import FloatMatrix, QueryScores, rank_documents, score_ranking
from sona_pg.evaluation.protocol import Stream
from sona_pg.evaluation.splits import SplitKind, make_split
from sona_pg.kernels import LowRank
from sona_pg.learning.base_trainer import MergedBase, merged_base, train_base
from sona_pg.learning.gate import Decision, compare, decide, relation_of
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList, Reservoir, reservoir_hash
from sona_pg.learning.learner import Learner
from sona_pg.learning.outcome import OutcomeEvent
from sona_pg.learning.serving import Serving

Lists = list[JudgedList]
State = tuple[LowRank | None, bytes, tuple[JudgedList, ...], int]


@dataclass(frozen=True, slots=True)
class Cycle:
    """nDCG@10 of the held-out queries: before a cycle, merged alone, and of the candidate; and what the gate said."""

    before: float
    merged: float
    candidate: float
    decision: Decision
    is_gated: bool
    merge_seconds: float
    training_seconds: float
    gate_seconds: float

    @property
    def after(self) -> float:
        """Of what is served then."""
        return self.candidate if self.decision.publishes or not self.is_gated else self.before


class Hours:
    """One split of a collection.

    Parameters
    ----------
    collection, kind, index
        The split.
    gate
        Withholds events, and decides by them; every candidate is published without.
    reservoir
        Earlier lists that are kept.
    """

    def __init__(
        self,
        collection: Collection,
        kind: SplitKind,
        index: int,
        *,
        gate: GateConfig | None = None,
        reservoir: int = 4096,
    ) -> None:
        self.is_gated, self.gate = gate is not None, gate or GateConfig()
        self.collection = collection
        self.split = make_split(collection, kind, index)
        self.stream = Stream(collection, self.split, Feedback.FULL)
        self.pool = ItemPool(collection.doc_ids, collection.docs)
        self.held_out = collection.queries[list(self.split.held_out)]
        self.relevant = [collection.relevant[query] for query in self.split.held_out]
        self.frozen = self.quality([])
        self.base: LowRank | None = None
        self.reservoir = Reservoir(reservoir)
        self.learner = self.fresh()
        self.hour = 0

    def quality(self, maps: Sequence[LowRank], then: Serving | None = None) -> float:
        """Mean nDCG@10 of the held-out queries."""
        return float(self.scores(maps, then).ndcg10.mean())

    def scores(self, maps: Sequence[LowRank], then: Serving | None = None) -> QueryScores:
        """Of each held-out query, asked through `maps` and then the instant tier."""
        adapted = Serving(maps).adapt(self.held_out) if maps else self.held_out
        if then is not None:
            adapted = then.adapt(adapted)
        return score_ranking(rank_documents(adapted, self.collection.unit_docs), self.relevant)

    def learn(self, events: Sequence[int], base: LowRank | None, learner: Learner) -> tuple[Lists, Lists]:
        """An hour of the instant tier: its judged lists as they were asked, those learned and those withheld."""
        learned: Lists = []
        withheld: Lists = []
        for event in events:
            query = self.stream.query(event)
            asked = query if base is None else Serving([base]).adapt(query)
            shown = rank_documents(learner.serving().adapt(asked)[np.newaxis], self.collection.unit_docs)[0]
            trajectory = self.stream.trajectory(event, shown)
            judged = learner.judged_list(OutcomeEvent(trajectory))
            is_withheld = self.is_gated and reservoir_hash(trajectory.id) < self.gate.withheld * 2**64
            if judged is not None:
                (withheld if is_withheld else learned).append(judged)
            if not is_withheld:
                learner.learn(OutcomeEvent(replace(trajectory, query_embedding=asked)))
        return learned, withheld

    def run(self, hours: int, config: BaseTrainingConfig) -> list[Cycle]:
        """All hours, each with its cycle."""
        parts = np.array_split(np.arange(len(self.split.stream)), hours)
        return [self.cycle(events.tolist(), config) for events in parts]

    def cycle(self, events: Sequence[int], config: BaseTrainingConfig) -> Cycle:
        """An hour, and its cycle: what it leaves behind is the next hour's."""
        new, withheld = self.learn(events, self.base, self.learner)
        base = None if self.base is None else Serving([self.base])
        began = time.perf_counter()
        merged = self.merge(new, config)
        merged_at = time.perf_counter()
        trained = train_base(
            merged.map,
            [*self.reservoir, *new],
            items=self.pool.embeddings,
            config=config,
            recipe=self.learner.adapter.config,
            seed=self.hour,
        )
        trained_at = time.perf_counter()
        self.hour += 1
        instant = self.learner.serving()

        def served(queries: FloatMatrix) -> FloatMatrix:
            return instant.adapt(queries if base is None else base.adapt(queries))

        candidate = Serving([trained.map]).adapt
        decision = decide(
            relation_of(
                [*new, *withheld], None if base is None else base.adapt, withheld=withheld, candidate=candidate
            ),
            compare(withheld, served, candidate, self.pool),
            self.gate,
        )
        decided_at = time.perf_counter()
        cycle = Cycle(
            self.quality([] if self.base is None else [self.base], instant),
            self.quality([merged.map]),
            self.quality([trained.map]),
            decision,
            self.is_gated,
            merged_at - began,
            trained_at - merged_at,
            decided_at - trained_at,
        )
        if decision.publishes or not self.is_gated:
            self.base, self.learner = trained.map, self.fresh()
            for judged in [*new, *withheld]:
                self.reservoir.add(judged)
        return cycle

    def state(self) -> State:
        """What an hour changes, to go back to."""
        return self.base, self.learner.to_bytes(), tuple(self.reservoir), self.hour

    def restore(self, state: State) -> None:
        """Go back."""
        self.base, learner, lists, self.hour = state
        self.learner, self.reservoir = self.fresh(), Reservoir(self.reservoir.capacity, lists)
        self.learner.load_bytes(learner)

    def fresh(self) -> Learner:
        """An instant tier that has learned nothing."""
        return Learner(self.collection.docs.shape[1], self.pool, space=SPACE)

    def merge(self, new: Lists, config: BaseTrainingConfig) -> MergedBase:
        """The instant tier in the base."""
        learner = self.learner
        sample: FloatMatrix = np.stack([judged.query for judged in new]) if new else self.held_out[:0]
        return merged_base(self.base, [learner.adapter.served, learner.micro], config.rank, queries=sample)


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
