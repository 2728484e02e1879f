"""Rivals on the same splits: what was remembered as helpful, and a linear adapter trained offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.feedback import Feedback, judge
from sona_pg.evaluation.metrics import FloatMatrix, Ranking, best_columns, rank_documents, rank_in_blocks
from sona_pg.evaluation.splits import Split
from sona_pg.learning.arrays import normalized_rows

Helped = Sequence[dict[int, float]]
"""For each query of the stream, reward above 0 by row of the document that helped."""

Baseline = Callable[[Collection, Split, Helped], Ranking]
"""Ranks documents for the held-out queries of a split."""

# One setting for every collection, of those tried the best mean over fbqa_cdc, stackfaq and cystic_fibrosis, held out:
# a choice in the rivals' favour.
NEIGHBOURS = 50
KERNEL_WIDTH = 0.1
VOTE_WEIGHT = 0.5

EPOCHS = 30
BATCH = 64
NEGATIVES = 256
TEMPERATURE = 0.05
LEARNING_RATE = 3e-4
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def frozen_outcomes(collection: Collection, split: Split, feedback: Feedback) -> list[dict[int, float]]:
    """What the feedback on the answers of the frozen embedding says helped, for each query of the stream."""
    shown = rank_documents(collection.queries[list(split.stream)], collection.unit_docs).tolist()
    helped: list[dict[int, float]] = []
    for event, query in enumerate(split.stream):
        outcome = judge(
            collection.relevant[query],
            shown[event],
            feedback,
            best_grade=collection.best_grade,
            seed=(split.index, event),
        )
        helped.append({judged.doc: judged.reward for judged in outcome if judged.reward})
    return helped


def remembered(collection: Collection, split: Split, helped: Helped) -> Ranking:
    """Frozen cosine, plus the votes of the nearest remembered queries for what helped in them.

    The 50 nearest queries of the stream vote for each document that helped in them with ``reward · exp((cos - 1) /
    .1)``; a document's score is its cosine plus half the sum of its votes. One setting for all collections.
    """
    held_out = collection.queries[list(split.held_out)]
    unit_held_out = normalized_rows(held_out)
    stream = normalized_rows(collection.queries[list(split.stream)])

    def score(rows: slice) -> FloatMatrix:
        scores = unit_held_out[rows] @ collection.unit_docs.T
        cosines = unit_held_out[rows] @ stream.T
        for row, near in enumerate(best_columns(cosines, NEIGHBOURS)):
            votes = np.exp((cosines[row, near] - 1) / KERNEL_WIDTH)
            for neighbour, vote in zip(near.tolist(), votes.tolist(), strict=True):
                for doc, reward in helped[neighbour].items():
                    scores[row, doc] += VOTE_WEIGHT * vote * reward
        return np.asarray(scores, dtype=np.float32)

    return rank_in_blocks(len(held_out), max(len(collection.docs), len(stream)), score)


def offline_linear(collection: Collection, split: Split, helped: Helped) -> Ranking:
    """Cosine after a full-rank linear map of queries, trained offline with the hindsight of 30 epochs.

    InfoNCE (van den Oord et al. 2018) over the pairs of query and helpful document of the whole stream; the negatives
    of a batch are its other documents and 256 random ones, except what helped the same query. The map starts at the
    identity; Adam, seeded by the split. It needs every outcome at once and sees each 30 times; the online learner sees
    each once, as it comes.
    """
    weights = _train_linear(collection, split, helped)
    adapted = collection.queries[list(split.held_out)] @ weights
    return rank_documents(np.asarray(adapted, dtype=np.float32), collection.unit_docs)


BASELINES: dict[str, Baseline] = {"remembered": remembered, "offline_linear": offline_linear}


def _train_linear(collection: Collection, split: Split, helped: Helped) -> FloatMatrix:
    queries = normalized_rows(collection.queries[list(split.stream)])
    docs = collection.unit_docs
    pairs = np.array([(event, doc) for event, found in enumerate(helped) for doc in found], dtype=np.int64)
    weights = np.eye(docs.shape[1], dtype=np.float32)
    moment1, moment2 = np.zeros_like(weights), np.zeros_like(weights)
    random = np.random.RandomState(split.index)
    step = 0
    for _ in range(EPOCHS if len(pairs) else 0):
        order = random.permutation(len(pairs))
        for start in range(0, len(order), BATCH):
            events, positives = pairs[order[start : start + BATCH]].T
            candidates = np.unique(np.concatenate([positives, random.randint(0, len(docs), NEGATIVES)]))
            gradient = _info_nce_gradient(
                weights, queries[events], docs[candidates], _targets(events, positives, candidates, helped)
            )
            step += 1
            moment1 += (1 - BETA1) * (gradient - moment1)
            moment2 += (1 - BETA2) * (gradient * gradient - moment2)
            size = LEARNING_RATE * np.sqrt(1 - BETA2**step) / (1 - BETA1**step)
            weights -= np.float32(size) * moment1 / (np.sqrt(moment2) + np.float32(EPSILON))
    return weights


def _targets(
    events: NDArray[np.int64], positives: NDArray[np.int64], candidates: NDArray[np.int64], helped: Helped
) -> FloatMatrix:
    """1 at the pair's document, NaN at others that helped the same query, 0 elsewhere."""
    columns = {doc: column for column, doc in enumerate(candidates.tolist())}
    targets = np.zeros((len(events), len(candidates)), dtype=np.float32)
    for row, (event, positive) in enumerate(zip(events.tolist(), positives.tolist(), strict=True)):
        targets[row, [columns[doc] for doc in helped[event] if doc in columns]] = np.nan
        targets[row, columns[positive]] = 1
    return targets


def _info_nce_gradient(
    weights: FloatMatrix, queries: FloatMatrix, docs: FloatMatrix, targets: FloatMatrix
) -> FloatMatrix:
    """Gradient by the map of the mean of ``-log softmax(cos / τ)`` at the pairs, through the normalisation."""
    adapted = queries @ weights
    norms = np.maximum(np.linalg.norm(adapted, axis=1, keepdims=True), np.float32(1e-12))
    adapted /= norms
    logits = np.where(np.isnan(targets), -np.inf, adapted @ docs.T / np.float32(TEMPERATURE))
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    likely /= likely.sum(axis=1, keepdims=True)
    by_adapted = (likely - np.nan_to_num(targets)) @ docs / np.float32(TEMPERATURE * len(queries))
    by_adapted -= (by_adapted * adapted).sum(axis=1, keepdims=True) * adapted
    return np.asarray(queries.T @ (by_adapted / norms), dtype=np.float32)
