"""How good a ranking is: nDCG@10, MRR@10, Recall@10 and Hit@5, for each query and as means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sona_pg.errors import InvalidInput

FloatMatrix = NDArray[np.float32]
Ranking = NDArray[np.int64]
"""(queries, at most 10): rows of the documents, best first."""

Grades = Mapping[int, float]
"""Grade above 0 by row of the document."""

CUTOFF = 10
"""Where a ranking is cut; part of the definition of the metrics."""

HIT_CUTOFF = 5
RELEVANT_GRADE = 1.0
"""From this grade on MRR, recall and hit count a document as relevant."""

_BLOCK_SCORES = 1 << 22
_DISCOUNT = 1 / np.log2(np.arange(2, CUTOFF + 2))


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over queries.

    Parameters
    ----------
    ndcg10, mrr10, recall10, hit5
        From 0 to 1.
    """

    ndcg10: float
    mrr10: float
    recall10: float
    hit5: float


class QueryScores(NamedTuple):
    """The metrics of each query, float64 (queries,)."""

    ndcg10: NDArray[np.float64]
    mrr10: NDArray[np.float64]
    recall10: NDArray[np.float64]
    hit5: NDArray[np.float64]

    def quality(self) -> Quality:
        """Means over the queries, of which there must be one."""
        return Quality(*(float(metric.mean()) for metric in self))


def score_ranking(ranking: Ranking, relevant: Sequence[Grades]) -> QueryScores:
    """All metrics of a ranking.

    Parameters
    ----------
    ranking
        int64 (queries, at most 10).
    relevant
        The grades above 0 of each of these queries.
    """
    return QueryScores(
        ndcg_at_10(ranking, relevant),
        mrr_at_10(ranking, relevant),
        recall_at_10(ranking, relevant),
        hit_at_5(ranking, relevant),
    )


def ndcg_at_10(ranking: Ranking, relevant: Sequence[Grades]) -> NDArray[np.float64]:
    """Normalised discounted cumulative gain (Järvelin & Kekäläinen 2002), linear gain, log2 discount.

    ``Σ grade(rank) / log2(rank + 1)`` over the first ten, divided by the same sum for the best order of all judged
    documents. 0 for a query without any.

    Examples
    --------
    >>> ndcg_at_10(np.array([[7, 3]]), [{3: 1.0}]).round(4)
    array([0.6309])
    """
    found = _grades(ranking, relevant) @ _DISCOUNT[: ranking.shape[1]]
    ideal = np.zeros(len(relevant))
    for query, grades in enumerate(relevant):
        best = sorted(grades.values(), reverse=True)[:CUTOFF]
        ideal[query] = _DISCOUNT[: len(best)] @ np.array(best)
    return np.asarray(found / np.where(ideal > 0, ideal, 1.0))


def mrr_at_10(ranking: Ranking, relevant: Sequence[Grades]) -> NDArray[np.float64]:
    """Reciprocal rank of the first document of grade 1 or more among the first ten, else 0."""
    helps = _grades(ranking, relevant) >= RELEVANT_GRADE
    return np.asarray(np.where(helps.any(axis=1), 1 / (helps.argmax(axis=1) + 1), 0.0))


def recall_at_10(ranking: Ranking, relevant: Sequence[Grades]) -> NDArray[np.float64]:
    """Share of the documents of grade 1 or more that are among the first ten; 0 for a query without any."""
    found = (_grades(ranking, relevant) >= RELEVANT_GRADE).sum(axis=1)
    known = np.array([sum(grade >= RELEVANT_GRADE for grade in grades.values()) for grades in relevant])
    return np.asarray(found / np.maximum(known, 1), dtype=np.float64)


def hit_at_5(ranking: Ranking, relevant: Sequence[Grades]) -> NDArray[np.float64]:
    """1 where a document of grade 1 or more is among the first five, else 0."""
    helps = _grades(ranking, relevant)[:, :HIT_CUTOFF] >= RELEVANT_GRADE
    return np.asarray(helps.any(axis=1), dtype=np.float64)


def rank_documents(queries: FloatMatrix, docs: FloatMatrix) -> Ranking:
    """The ten best documents of each query by inner product; equal ones in the order of their rows.

    Parameters
    ----------
    queries, docs
        float32 (queries, dim) and unit rows (documents, dim), which makes the order that of the cosine.

    Raises
    ------
    InvalidInput
        If a query holds NaN or infinity.
    """
    if not np.isfinite(queries).all():
        raise InvalidInput("queries hold NaN or infinity: check the system that adapted them")
    return rank_in_blocks(len(queries), len(docs), lambda rows: queries[rows] @ docs.T)


def rank_in_blocks(queries: int, columns: int, score: Callable[[slice], FloatMatrix]) -> Ranking:
    """The ten best documents of each query by what `score` gives for some queries at a time.

    Parameters
    ----------
    queries
        How many.
    columns
        Widest matrix that scoring needs; bounds the memory of a block.
    score
        float32 (rows of the slice, documents).
    """
    size = max(1, _BLOCK_SCORES // columns)
    starts = range(0, max(queries, 1), size)
    return np.concatenate([best_columns(score(slice(start, start + size)), CUTOFF) for start in starts])


def best_columns(scores: FloatMatrix, k: int) -> Ranking:
    """The `k` columns of highest score in each row, best first; equal ones in the order of the columns."""
    rows, columns = scores.shape
    k = min(k, columns)
    best = np.empty((rows, k), dtype=np.int64)
    floors = np.partition(scores, columns - k, axis=1)[:, columns - k]
    for row, floor in enumerate(floors):
        candidates = np.flatnonzero(scores[row] >= floor)
        best[row] = candidates[np.argsort(-scores[row, candidates], kind="stable")[:k]]
    return best


def _grades(ranking: Ranking, relevant: Sequence[Grades]) -> NDArray[np.float64]:
    found = [[grades.get(doc, 0.0) for doc in row] for row, grades in zip(ranking.tolist(), relevant, strict=True)]
    return np.array(found, dtype=np.float64).reshape(ranking.shape)
