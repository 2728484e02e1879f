"""What an evaluation found: per split, per collection, and as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sona_pg.errors import InvalidInput
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.metrics import Quality, QueryScores
from sona_pg.evaluation.trace import Trace
from sona_pg.types import Json

FROZEN = "frozen"
"""The strategy of the embedding as it is."""

ADAPTED = "adapted"
"""The strategy that asks as the adapter does."""

LEARNED = "learned"
"""Whatever is in force by the evidence."""

CHANGED = 1e-9
"""A difference in nDCG above this is a change."""

_NORMAL_95 = 1.959964


@dataclass(frozen=True, eq=False)
class SplitResult:
    """The held-out queries of one split, after its stream was learned.

    Parameters
    ----------
    index
        Number of the split.
    held_out
        Rows of the queries, in the order of the scores.
    events
        How many answers with an outcome were given to the system.
    learning_us
        Time that took, without answering them, microseconds.
    served
        The strategy that answered.
    strategies, baselines
        Scores of each held-out query, by name; `FROZEN` and `served` are strategies.
    trace
        What every event showed before it was learned from, those of the held-out part too if learning went on; None
        if the system does not say.
    """

    index: int
    held_out: tuple[int, ...]
    events: int
    learning_us: float
    served: str
    strategies: Mapping[str, QueryScores]
    baselines: Mapping[str, QueryScores]
    trace: Trace | None = field(default=None, compare=False, repr=False)

    @property
    def frozen(self) -> Quality:
        """Means of the embedding as it is."""
        return self.strategies[FROZEN].quality()

    @property
    def learned(self) -> Quality:
        """Means of the system after the stream."""
        return self.strategies[self.served].quality()

    def differences(self, scores: QueryScores) -> NDArray[np.float64]:
        """nDCG@10 of each held-out query above the frozen one."""
        return scores.ndcg10 - self.strategies[FROZEN].ndcg10


@dataclass(frozen=True, slots=True)
class StrategyReport:
    """One way of answering, over all splits.

    Parameters
    ----------
    quality
        Mean of the splits' means.
    gain_ndcg10, gain_sd
        Mean and standard deviation (n - 1) over splits of the gain over the frozen embedding; 0.038 is 3.8 points.
    gain_ci95
        95 % confidence interval of the gain over held-out queries; None with fewer than two of them.
    helped, harmed, unchanged
        Held-out queries by whether their nDCG@10 rose or fell, summed over splits.
    split_gains
        Gain of each split.
    """

    quality: Quality
    gain_ndcg10: float
    gain_sd: float
    gain_ci95: tuple[float, float] | None
    helped: int
    harmed: int
    unchanged: int
    split_gains: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CollectionReport:
    """One collection, over all splits.

    Parameters
    ----------
    name, queries, docs
        The collection and its size.
    events
        Answers with an outcome, summed over splits.
    us_per_event
        Microseconds to learn one and to serve what was learned.
    served
        The strategy that answered.
    strategies, baselines
        By name; `FROZEN` and `served` are strategies.
    splits
        Every split with the scores of its queries.
    """

    name: str
    queries: int
    docs: int
    events: int
    us_per_event: float = field(compare=False)
    served: str
    strategies: Mapping[str, StrategyReport]
    baselines: Mapping[str, StrategyReport]
    splits: tuple[SplitResult, ...] = field(compare=False, repr=False)

    @property
    def frozen(self) -> StrategyReport:
        """The embedding as it is."""
        return self.strategies[FROZEN]

    @property
    def learned(self) -> StrategyReport:
        """The system after the stream."""
        return self.strategies[self.served]


def summarize(collection: Collection, splits: Sequence[SplitResult]) -> CollectionReport:
    """The splits of one collection, of which there must be one, taken together."""
    first = splits[0]
    events = sum(split.events for split in splits)
    return CollectionReport(
        name=collection.name,
        queries=len(collection.queries),
        docs=len(collection.docs),
        events=events,
        us_per_event=sum(split.learning_us for split in splits) / events,
        served=first.served,
        strategies={name: _strategy(splits, [s.strategies[name] for s in splits]) for name in first.strategies},
        baselines={name: _strategy(splits, [s.baselines[name] for s in splits]) for name in first.baselines},
        splits=tuple(splits),
    )


def _strategy(splits: Sequence[SplitResult], scores: Sequence[QueryScores]) -> StrategyReport:
    by_split = [split.differences(of_split) for split, of_split in zip(splits, scores, strict=True)]
    differences = np.concatenate(by_split)
    gains = [float(of_split.mean()) for of_split in by_split]
    qualities = [of_split.quality() for of_split in scores]
    gain = statistics.fmean(gains)
    return StrategyReport(
        quality=Quality(
            ndcg10=statistics.fmean(q.ndcg10 for q in qualities),
            mrr10=statistics.fmean(q.mrr10 for q in qualities),
            recall10=statistics.fmean(q.recall10 for q in qualities),
            hit5=statistics.fmean(q.hit5 for q in qualities),
        ),
        gain_ndcg10=gain,
        gain_sd=statistics.stdev(gains) if len(gains) > 1 else 0.0,
        gain_ci95=confidence_interval(np.concatenate([s.held_out for s in splits]), differences, gain),
        helped=int((differences > CHANGED).sum()),
        harmed=int((differences < -CHANGED).sum()),
        unchanged=int((np.abs(differences) <= CHANGED).sum()),
        split_gains=tuple(gains),
    )


def confidence_interval(
    queries: NDArray[np.int64], differences: NDArray[np.float64], gain: float
) -> tuple[float, float] | None:
    """95 % interval of a mean paired difference, by the normal approximation; None with fewer than two queries.

    A query is held out by several splits, and its differences there are not independent: the queries are the sample,
    not their appearances (cluster-robust variance of a ratio, Cochran 1977, ch. 6). It says how far other queries of
    this traffic would move the gain; `StrategyReport.gain_sd` says how far another stream would.

    Parameters
    ----------
    queries, differences
        Query and difference of each appearance.
    gain
        Centre of the interval.
    """
    _, cluster = np.unique(queries, return_inverse=True)
    appearances = np.bincount(cluster)
    n = len(appearances)
    if n < 2:
        return None
    residuals = np.bincount(cluster, weights=differences) - appearances * differences.mean()
    error = math.sqrt(n / (n - 1) * float(residuals @ residuals)) / len(differences)
    return gain - _NORMAL_95 * error, gain + _NORMAL_95 * error


def report_json(reports: Sequence[CollectionReport], config: Mapping[str, Json]) -> dict[str, Json]:
    """The document that ``sona evaluate --json`` prints; gains are fractions (0.038).

    Parameters
    ----------
    reports
        At least one; their names must differ.
    config
        Whatever says how the figures came about.

    Raises
    ------
    InvalidInput
        If there is no report, or two have the same name.
    """
    names = [report.name for report in reports]
    if not names or len(set(names)) < len(names):
        raise InvalidInput(
            f"the collections are named {names}, expected at least one and distinct names: rename a directory"
        )
    return {
        "collections": {report.name: _collection_json(report) for report in reports},
        "mean_gain_ndcg10": statistics.fmean(report.learned.gain_ndcg10 for report in reports),
        "config": dict(config),
    }


def _collection_json(report: CollectionReport) -> dict[str, Json]:
    learned = report.learned
    return {
        "queries": report.queries,
        "docs": report.docs,
        "splits": len(report.splits),
        "events": report.events,
        "us_per_event": report.us_per_event,
        "frozen": _quality_json(report.frozen.quality),
        "learned": _quality_json(learned.quality),
        **_gain_json(learned),
        "per_split": [
            {
                "split": split.index,
                "events": split.events,
                "held_out": len(split.held_out),
                "us_per_event": split.learning_us / split.events,
                "frozen": _quality_json(split.frozen),
                "learned": _quality_json(split.learned),
                "gain_ndcg10": gain,
                "turns": _turns_json(split.trace),
            }
            for split, gain in zip(report.splits, learned.split_gains, strict=True)
        ],
        "strategies": {name: _strategy_json(strategy) for name, strategy in report.strategies.items()},
        "baselines": {name: _strategy_json(baseline) for name, baseline in report.baselines.items()},
    }


def _turns_json(trace: Trace | None) -> list[Json]:
    turns = () if trace is None else trace.turns
    return [{"event": e, "from": t.before.value, "to": t.after.value, "reason": t.reason} for e, t in turns]


def _strategy_json(strategy: StrategyReport) -> dict[str, Json]:
    return {**_quality_json(strategy.quality), **_gain_json(strategy)}


def _gain_json(strategy: StrategyReport) -> dict[str, Json]:
    return {
        "gain_ndcg10": strategy.gain_ndcg10,
        "gain_sd": strategy.gain_sd,
        "gain_ci95": None if strategy.gain_ci95 is None else list(strategy.gain_ci95),
        "helped": strategy.helped,
        "harmed": strategy.harmed,
        "unchanged": strategy.unchanged,
    }


def _quality_json(quality: Quality) -> dict[str, Json]:
    return {
        "ndcg10": quality.ndcg10,
        "mrr10": quality.mrr10,
        "recall10": quality.recall10,
        "hit5": quality.hit5,
    }
