"""A stream in hours: the instant tier learns on the output of the base, and every hour ends with a cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sona_pg.config import BaseTrainingConfig
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.feedback import SPACE, Feedback
from sona_pg.evaluation.metrics import FloatMatrix, QueryScores, rank_documents, score_ranking
from sona_pg.evaluation.protocol import Stream
from sona_pg.evaluation.splits import SplitKind, make_split
from sona_pg.kernels import LowRank
from sona_pg.learning.base_trainer import MergedBase, merged_base, train_base
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList, Reservoir
from sona_pg.learning.learner import Learner
from sona_pg.learning.outcome import OutcomeEvent
from sona_pg.learning.serving import Serving


@dataclass(frozen=True, slots=True)
class Cycle:
    """nDCG@10 of the held-out queries: before a cycle, merged alone, and of the candidate."""

    before: float
    merged: float
    after: float


class Hours:
    """One split of a collection.

    Parameters
    ----------
    collection, kind, index
        The split.
    """

    def __init__(self, collection: Collection, kind: SplitKind, index: int) -> None:
        self.collection = collection
        self.split = make_split(collection, kind, index)
        self.stream = Stream(collection, self.split, Feedback.FULL)
        self.pool = ItemPool(collection.doc_ids, collection.docs)
        self.held_out = collection.queries[list(self.split.held_out)]
        self.relevant = [collection.relevant[query] for query in self.split.held_out]
        self.frozen = self.quality([])

    def quality(self, maps: Sequence[LowRank], then: Serving | None = None) -> float:
        """Mean nDCG@10 of the held-out queries."""
        return float(self.scores(maps, then).ndcg10.mean())

    def scores(self, maps: Sequence[LowRank], then: Serving | None = None) -> QueryScores:
        """Of each held-out query, asked through `maps` and then the instant tier."""
        adapted = Serving(maps).adapt(self.held_out) if maps else self.held_out
        if then is not None:
            adapted = then.adapt(adapted)
        return score_ranking(rank_documents(adapted, self.collection.unit_docs), self.relevant)

    def learn(self, events: Sequence[int], base: LowRank | None) -> tuple[Learner, list[JudgedList]]:
        """An hour of the instant tier, and its judged lists as they were asked."""
        dim = self.collection.docs.shape[1]
        learner, lists = Learner(dim, self.pool, space=SPACE), []
        for event in events:
            query = self.stream.query(event)
            asked = query if base is None else Serving([base]).adapt(query)
            shown = rank_documents(learner.serving().adapt(asked)[np.newaxis], self.collection.unit_docs)[0]
            trajectory = self.stream.trajectory(event, shown)
            if (judged := learner.judged_list(OutcomeEvent(trajectory))) is not None:
                lists.append(judged)
            learner.learn(OutcomeEvent(replace(trajectory, query_embedding=asked)))
        return learner, lists

    def run(
        self,
        hours: int,
        config: BaseTrainingConfig,
    ) -> list[Cycle]:
        """All hours, each with its cycle."""
        base: LowRank | None = None
        reservoir = Reservoir(config.reservoir)
        cycles = []
        for hour, events in enumerate(np.array_split(np.arange(len(self.split.stream)), hours)):
            learner, new = self.learn(events.tolist(), base)
            merged = self.merge(base, learner, new, config)
            trained = train_base(
                merged.map,
                [*reservoir, *new],
                items=self.pool.embeddings,
                config=config,
                recipe=learner.adapter.config,
                seed=hour,
            )
            before = self.quality([] if base is None else [base], learner.serving())
            cycle = Cycle(before, self.quality([merged.map]), self.quality([trained.map]))
            base = trained.map
            for judged in new:
                reservoir.add(judged)
            cycles.append(cycle)
        return cycles

    def merge(
        self, base: LowRank | None, learner: Learner, new: Sequence[JudgedList], config: BaseTrainingConfig
    ) -> MergedBase:
        """The instant tier of an hour in the base."""
        sample: FloatMatrix = np.stack([judged.query for judged in new]) if new else self.held_out[:0]
        return merged_base(base, [learner.adapter.served, learner.micro], config.rank, queries=sample)
