"""The gate of a cycle: whether a candidate for the base is published, by events that nobody learned from.

Two questions, because the events of an hour are judged by the outcomes of that very hour:

*Have the outcomes to do with the queries?* If rewards were given at random, so were those of the withheld events. A
candidate that learned from them stands better there: it has learned which items are rewarded often, whatever is asked.
So what an hour says about itself is tested against what it would say were it shuffled, on all of its events.

*Does the candidate lose?* What helped in withheld events must not stand lower than it does now. There are few of them,
and log ranks say more than differences of nDCG do (see `sona_pg.learning.evidence.log_rank_gain`).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import SHOWN, GateConfig
from sona_pg.learning.arrays import normalized_rows
from sona_pg.learning.evidence import log_rank_gain
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList, reservoir_hash

FloatMatrix = NDArray[np.float32]

Adapt = Callable[[FloatMatrix], FloatMatrix]
"""Maps queries (n, dim) as they are asked, as `sona_pg.learning.serving.Serving.adapt` does."""

COMPARED_QUERIES = 512
"""Queries among which it is told whose answer an item was."""
FEWEST_UNHELPFUL = 10
"""Items that were shown and did not help, without which they tell nothing."""
LEAST_VARIANCE = 0.1
"""Of ranks among shuffles, in parts of that of uniform ones, without which hardly any query differs from others."""
BLOCK_ROWS = 256

_PRIOR_EVENTS, _PRIOR_SQUARES = 5.0, 0.05
"""As `sona_pg.learning.evidence.Stake` has them: a few equal events are no proof."""


class Verdict(enum.StrEnum):
    """What the gate says, and why."""

    PUBLISH = "does not lose"
    """The candidate is published."""
    NOTHING_WITHHELD = "no withheld event has an outcome"
    """What is served goes on being served."""
    TOO_FEW = "too few events in which something helped"
    """Nothing is said about this hour."""
    UNRELATED = "outcomes have nothing to do with queries"
    """The hour must not be learned again either: it does not belong into the reservoir."""
    LOSES = "stands lower on withheld events"
    """What is served is better."""


@dataclass(frozen=True, slots=True)
class Relation:
    """Whether the outcomes of an hour have to do with its queries.

    Parameters
    ----------
    events
        In which something helped.
    whose_z
        How much nearer what helped is to the query that it helped than to the others, in standard deviations of
        what shuffled outcomes give; None where shuffling changes next to nothing, as where almost all ask the same.
    which_z
        The same of how much nearer to its query what was shown and helped is than what was shown and did not; None
        where most of what helped was not shown, or hardly anything was unhelpful.
    """

    events: int
    whose_z: float | None
    which_z: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """A withheld event under the candidate, against what is served.

    Parameters
    ----------
    log_rank
        How much higher stands what helped, -1 to 1.
    ndcg
        Difference of nDCG@10 on the judged items.
    """

    log_rank: float
    ndcg: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a candidate.

    Parameters
    ----------
    verdict
        What, and why.
    relation
        Of the hour's outcomes to its queries.
    withheld
        How many withheld events decided.
    log_rank, log_rank_z
        Mean gain, and in standard errors.
    ndcg
        Mean difference of nDCG@10.
    """

    verdict: Verdict
    relation: Relation
    withheld: int
    log_rank: float
    log_rank_z: float
    ndcg: float

    @property
    def publishes(self) -> bool:
        """Whether the candidate is published."""
        return self.verdict is Verdict.PUBLISH

    @property
    def has_judged(self) -> bool:
        """Whether something was decided by what is withheld; else it goes on waiting."""
        return self.verdict not in (Verdict.NOTHING_WITHHELD, Verdict.TOO_FEW)

    @property
    def is_noise(self) -> bool:
        """Whether the hour must not be learned again."""
        return self.verdict is Verdict.UNRELATED


def decide(relation: Relation, differences: Sequence[Difference], config: GateConfig | None = None) -> Decision:
    """Publish the candidate, or keep what is served.

    Parameters
    ----------
    relation
        Of all lists of the hour, those that were learned and those that were withheld; see `relation_of`.
    differences
        Of the withheld events, see `compare`.
    """
    config = GateConfig() if config is None else config
    n = len(differences)
    gains = [difference.log_rank for difference in differences]
    mean = math.fsum(gains) / n if n else 0.0
    squares = math.fsum(gain * gain for gain in gains)
    z = math.fsum(gains) / math.sqrt(squares + _PRIOR_SQUARES)
    ndcg = math.fsum(difference.ndcg for difference in differences) / n if n else 0.0
    told = [z for z in (relation.whose_z, relation.which_z) if z is not None]
    if not n:
        verdict = Verdict.NOTHING_WITHHELD
    elif relation.events < config.min_events or not told:
        verdict = Verdict.TOO_FEW
    elif min(told) < config.related_z:
        verdict = Verdict.UNRELATED
    elif z < -config.losing_z:
        verdict = Verdict.LOSES
    else:
        verdict = Verdict.PUBLISH
    return Decision(verdict, relation, n, mean, z, ndcg)


def relation_of(
    lists: Sequence[JudgedList],
    served: Adapt | None = None,
    *,
    withheld: Sequence[JudgedList] = (),
    candidate: Adapt | None = None,
) -> Relation:
    """Whether the outcomes of an hour have to do with its queries.

    Were outcomes shuffled among the events, the query of an event would be any of the hour's, seen from what helped in
    it: its rank by cosine is uniform. Were rewards shuffled among the answers, what was shown and helped would be no
    nearer to its query than what was shown and did not (Mann & Whitney 1947).

    Parameters
    ----------
    lists
        Of the hour.
    served
        The base as it was before the hour, which makes near what belongs together; none for a fresh space.
    withheld, candidate
        Those of them that the candidate was not trained on, and the candidate. Where the embedding does not know what
        belongs together, and this has learned it, only this can tell; what it learned of shuffled outcomes tells
        nothing about those that it has not seen. The larger of both counts.
    """
    first = _relation(lists, served)
    if candidate is None:
        return first
    second = _relation(withheld, candidate)
    return Relation(first.events, _larger(first.whose_z, second.whose_z), _larger(first.which_z, second.which_z))


def _larger(hour: float | None, withheld: float | None) -> float | None:
    """Where the hour does not tell, a few withheld events do not either."""
    return hour if hour is None or withheld is None else max(hour, withheld)


def _relation(lists: Sequence[JudgedList], served: Adapt | None) -> Relation:
    lists = sorted((judged for judged in lists if judged.teaches), key=lambda judged: reservoir_hash(judged.key[0]))
    if len(lists) < 2:
        return Relation(len(lists), None, None)
    queries = np.stack([judged.query for judged in lists])
    queries = normalized_rows(queries if served is None else served(queries))
    return Relation(len(lists), _whose_z(lists, queries), _which_z(lists, queries))


def _whose_z(lists: Sequence[JudgedList], queries: FloatMatrix) -> float | None:
    """Sum of the ranks, centred, over its standard deviation at most: a uniform rank has the variance 1/12."""
    others = queries[:COMPARED_QUERIES]
    total, ranks = 0.0, np.zeros((len(lists), len(others)), dtype=np.float32)
    for judged, query, row in zip(lists, queries, ranks, strict=True):
        helped = np.stack([item for item, target in zip(judged.items, judged.targets, strict=True) if target > 0])
        cosines, own = others @ helped.T, helped @ query
        below = (cosines < own - 1e-6).mean(axis=0) + 0.5 * (np.abs(cosines - own) <= 1e-6).mean(axis=0)
        total += float(below.mean()) - 0.5
        row += np.mean([_middle_ranks(column) for column in cosines.T], axis=0) / len(others) - 0.5
    # What all of them say of a query stays, however they are shuffled (Hoeffding 1951).
    varied = float(np.square(ranks - ranks.mean(axis=0)).mean(dtype=np.float64))
    return total / math.sqrt(len(lists) / 12) if varied > LEAST_VARIANCE / 12 else None


def _which_z(lists: Sequence[JudgedList], queries: FloatMatrix) -> float | None:
    cosines: list[float] = []
    helped: list[bool] = []
    marked = 0
    for judged, query in zip(lists, queries, strict=True):
        for item, target, was_shown in zip(judged.items, judged.targets, judged.shown, strict=True):
            if was_shown:
                cosines.append(float(item @ query))
                helped.append(target > 0)
            else:
                marked += target > 0
    m = sum(helped)
    k = len(helped) - m
    if k < FEWEST_UNHELPFUL or m < max(marked, 1):
        return None
    statistic = float(_middle_ranks(np.array(cosines))[np.array(helped)].sum()) - m * (m + 1) / 2
    return (statistic - m * k / 2) / math.sqrt(m * k * (m + k + 1) / 12)


def _middle_ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, count = np.unique(values.round(6), return_inverse=True, return_counts=True)
    middle: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[place]
    return middle


def compare(lists: Sequence[JudgedList], served: Adapt, candidate: Adapt, items: ItemPool) -> list[Difference]:
    """How withheld events stand under the candidate, against what is served.

    Parameters
    ----------
    lists
        Of the withheld events; those in which nothing helped that is known say nothing and are left out.
    served, candidate
        What is served includes the instant tier.
    items
        Among which what helped is ranked.
    """
    lists = [judged for judged in lists if judged.teaches]
    found: list[Difference] = []
    for start in range(0, len(lists), BLOCK_ROWS):
        block = lists[start : start + BLOCK_ROWS]
        queries = np.stack([judged.query for judged in block])
        asked = [normalized_rows(adapt(queries)) for adapt in (served, candidate)]
        scores = [rows @ items.embeddings.T for rows in asked]
        for row, judged in enumerate(block):
            before, after = (_ranks(judged, a[row], s[row], items) for a, s in zip(asked, scores, strict=True))
            helped = [place for place, target in enumerate(judged.targets) if target > 0]
            gain = log_rank_gain([before[place] for place in helped], [after[place] for place in helped])
            found.append(Difference(gain, _ndcg(judged.targets, after) - _ndcg(judged.targets, before)))
    return found


def _ranks(judged: JudgedList, query: FloatMatrix, scores: FloatMatrix, items: ItemPool) -> list[int]:
    """How many items of the pool stand above each judged one; what the pool does not hold counts among its own."""
    own = np.stack(judged.items) @ query
    strange = own[[items.row(id) is None for id in judged.item_ids]]
    return [int((scores > score).sum() + (strange > score).sum()) for score in own]


def _ndcg(targets: Sequence[float], ranks: Sequence[int]) -> float:
    gain = math.fsum(target / math.log2(rank + 2) for target, rank in zip(targets, ranks, strict=True) if rank < SHOWN)
    best = sorted(targets, reverse=True)[:SHOWN]
    return gain / math.fsum(target / math.log2(place + 2) for place, target in enumerate(best))
