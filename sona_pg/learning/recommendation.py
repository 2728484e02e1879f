"""Parameters for a query, from what worked in the patterns near it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sona_pg.config import VerdictConfig
from sona_pg.learning.significance import Moments
from sona_pg.learning.verdicts import Verdict, canonical, is_number
from sona_pg.types import Json

Best = tuple[Json, float]
"""A value that is recommended, and how sure it is that it is better than the others, 0 to 1."""

_FARTHEST = -500.0
"""Exponent of the least weight: the exponential of less is no number of the database's."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A value for one parameter.

    Parameters
    ----------
    value
        The value; None where nothing is known and there is no default.
    source
        Ids of the patterns that it comes from, most weight first; empty for a default.
    confidence
        0 nothing is known, 1 it is certain that the value is better than the others that were used.
    """

    value: Json
    source: tuple[int, ...] = ()
    confidence: float = 0.0


@dataclass(frozen=True, slots=True)
class NearPattern:
    """A pattern near a query, with what it recommends.

    Parameters
    ----------
    id
        Of the pattern.
    cosine
        Of its centroid to the query.
    best
        By every parameter that was used in it, the best value; None where none can be recommended.
    quality, confidence
        What answers were worth there in the mean, and how sure that is, 0 to 1.
    """

    id: int
    cosine: float
    best: Mapping[str, Best | None] = field(default_factory=dict)
    quality: float = 0.0
    confidence: float = 0.0


def recommending(config: VerdictConfig) -> dict[str, Json]:
    """The settings that a recommendation depends on."""
    return {name: getattr(config, name) for name in ("quality_range", "min_support", "shrinkage", "similarity_width")}


def best_values(verdicts: Mapping[str, Verdict], config: VerdictConfig) -> dict[str, Best | None]:
    """By parameter, what `best_value` says."""
    return {parameter: best_value(verdict, config) for parameter, verdict in verdicts.items()}


def best_value(verdict: Verdict, config: VerdictConfig) -> Best | None:
    """The value with the best mean, drawn to the common mean where there is little of it, and how sure that is.

    The confidence is ``max(0, 2 Φ(z) - 1)``, z the standardised difference to the other values, and at least .95 where
    it is decided that the value is better. None while no value can be compared with another, and where all that
    could be recommended is proven to be worse.
    """
    total = Moments()
    for arm in verdict.arms:
        total = total + arm.quality
    best: tuple[float, int] | None = None
    for place, arm in enumerate(verdict.arms):
        own, rest = arm.quality, verdict.rest(place)
        if own.count < config.min_support or rest.count < config.min_support or arm.capital.decision < 0:
            continue
        mean = (own.count * own.mean + config.shrinkage * total.mean) / (own.count + config.shrinkage)
        if best is None or mean > best[0]:
            best = mean, place
    if best is None:
        return None
    place = best[1]
    arm, rest = verdict.arms[place], verdict.rest(place)
    # One spread for both: few outcomes say little of their own.
    pooled = (arm.quality.squares + rest.squares + 0.01 * config.quality_range**2) / (total.count - 1)
    error = math.sqrt(pooled * (1 / arm.quality.count + 1 / rest.count))
    z = (best[0] - rest.mean) / error
    confidence = max(0.0, math.erf(z / math.sqrt(2)))
    return arm.value, max(confidence, 0.95) if arm.capital.decision > 0 else confidence


def best_strategy(verdict: Verdict | None) -> str | None:
    """The strategy with the best mean quality, None where none was recorded."""
    if verdict is None or not verdict.arms:
        return None
    return str(max(verdict.arms, key=lambda arm: arm.quality.mean).value)


def expected_quality(near: Sequence[NearPattern], similarity_width: float) -> float:
    """What an answer near these patterns is worth for sure, 0 to 1: 0 where nothing is known.

    The mean of ``confidence · quality``, patterns weighted by ``exp((cosine - best cosine) / width)`` and all of it by
    the best cosine, since what is far from every pattern is unknown ground.
    """
    nearest = max((pattern.cosine for pattern in near), default=0.0)
    weights = [math.exp(max((p.cosine - nearest) / similarity_width, _FARTHEST)) for p in near]
    worth = sum(w * p.confidence * p.quality for w, p in zip(weights, near, strict=True))
    return min(max(nearest, 0.0) * worth / sum(weights), 1.0) if near and worth > 0 else 0.0


def optimized_params(
    near: Sequence[NearPattern], similarity_width: float, defaults: Mapping[str, Json] | None = None
) -> dict[str, Recommendation]:
    """A value for every parameter that is known or has a default.

    Every pattern speaks for its best value with weight ``confidence · exp((cosine - best cosine) / width)``. Numbers
    are interpolated, ``Σ w v / Σ w``; where any of the values is something else the one with the most weight wins. The
    confidence is the mean of theirs, weighted by similarity alone: a pattern that knows nothing lowers it.
    `sona.optimized_params` is the same in SQL.

    Parameters
    ----------
    near
        Patterns near the query, in any order.
    similarity_width
        As in `VerdictConfig`.
    defaults
        By parameter, what to use where nothing is known.
    """
    known = dict.fromkeys(defaults or {})
    for pattern in near:
        known.update(dict.fromkeys(pattern.best))
    nearest = max((pattern.cosine for pattern in near), default=0.0)
    found: dict[str, Recommendation] = {}
    for parameter in known:
        votes: list[tuple[float, int, Json]] = []
        similar = sure = 0.0
        for pattern in near:
            if parameter not in pattern.best:
                continue
            similarity = math.exp(max((pattern.cosine - nearest) / similarity_width, _FARTHEST))
            similar += similarity
            best = pattern.best[parameter]
            if best is not None and best[1] > 0:
                votes.append((similarity * best[1], pattern.id, best[0]))
                sure += similarity * best[1]
        found[parameter] = _agreed(votes, sure / similar if similar else 0.0, (defaults or {}).get(parameter))
    return found


def _agreed(votes: list[tuple[float, int, Json]], confidence: float, default: Json) -> Recommendation:
    total = math.fsum(weight for weight, _, _ in votes)
    if not total > 0:
        return Recommendation(default)
    votes.sort(key=lambda vote: (-vote[0], vote[1]))
    if all(is_number(value) for _, _, value in votes):
        values = {float(value) for _, _, value in votes}  # type: ignore[arg-type]
        if len(values) == 1:
            return Recommendation(votes[0][2], tuple(id for _, id, _ in votes), confidence)
        # Σ (w / Σ w) v: no sum on the way is larger than the largest value.
        mean = math.fsum(weight / total * float(value) for weight, _, value in votes)  # type: ignore[arg-type]
        whole = all(isinstance(value, int) for _, _, value in votes)
        return Recommendation(round(mean) if whole else mean, tuple(id for _, id, _ in votes), confidence)
    by_value: dict[str, float] = {}
    for weight, _, value in votes:
        by_value[canonical(value)] = by_value.get(canonical(value), 0.0) + weight
    winner = max(by_value, key=lambda key: by_value[key])
    of_winner = [(id, value) for _, id, value in votes if canonical(value) == winner]
    share = by_value[winner] / total
    return Recommendation(of_winner[0][1], tuple(id for id, _ in of_winner), confidence * share)
