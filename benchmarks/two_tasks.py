"""Two collections in sequence, as one space sees them whose traffic changes: what is left of the first by the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.hours import Hours
from sona_pg.config import BaseTrainingConfig
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.feedback import Feedback
from sona_pg.evaluation.metrics import rank_documents, score_ranking
from sona_pg.evaluation.protocol import Stream
from sona_pg.evaluation.splits import SplitKind, make_split
from sona_pg.learning.serving import Serving

HOURS = 4
"""Of each collection."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Gains over frozen, nDCG@10 points: of the first when it ended, and of both in the end."""

    first: float
    first_kept: float
    second: float
    tasks: int


def two_tasks(
    first: Collection, second: Collection, index: int, *, reservoir: int, penalises: bool = True, distils: bool = True
) -> Kept:
    """A split of both, the second stream after the first.

    What the first needs is held by its Fisher information where the second `penalises`, and what it was answered where
    it `distils`.
    """
    both = _joined(first, second)
    config = replace(BaseTrainingConfig.for_dim(both.docs.shape[1]), reservoir=reservoir)
    if not distils:
        config = replace(config, distillation=0.0)
    hours = Hours(both, SplitKind.RANDOM, index, training=config)
    offset = len(first.queries)
    splits = [make_split(collection, SplitKind.RANDOM, index) for collection in (first, second)]
    streams = [list(splits[0].stream), [offset + query for query in splits[1].stream]]
    held_out = [list(splits[0].held_out), [offset + query for query in splits[1].held_out]]
    hours.split = replace(hours.split, stream=(*streams[0], *streams[1]), held_out=(*held_out[0], *held_out[1]))
    hours.stream = Stream(both, hours.split, Feedback.FULL)

    def quality(of: int, *, frozen: bool = False) -> float:
        queries = both.queries[held_out[of]]
        adapted = queries if frozen else Serving(hours.served).adapt(queries)
        relevant = [both.relevant[query] for query in held_out[of]]
        return 100 * float(score_ranking(rank_documents(adapted, both.unit_docs), relevant).ndcg10.mean())

    def learn(events: Sequence[int]) -> None:
        for part in np.array_split(np.asarray(events), HOURS):
            if not penalises:
                hours.memory.tasks = []
            hours.cycle(part.tolist())

    ended = len(streams[0])
    learn(range(ended))
    at_first = quality(0) - quality(0, frozen=True)
    learn(range(ended, ended + len(streams[1])))
    return Kept(
        at_first,
        quality(0) - quality(0, frozen=True),
        quality(1) - quality(1, frozen=True),
        len(hours.memory.tasks),
    )


def _joined(first: Collection, second: Collection) -> Collection:
    """One space with the documents and queries of both."""
    n = len(first.docs)
    return Collection(
        f"{first.name}, {second.name}",
        [*(f"0 {id}" for id in first.doc_ids), *(f"1 {id}" for id in second.doc_ids)],
        np.concatenate([first.docs, second.docs]),
        np.concatenate([first.queries, second.queries]),
        [*first.relevant, *({n + doc: grade for doc, grade in of.items()} for of in second.relevant)],
    )
