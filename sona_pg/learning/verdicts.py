"""Verdicts: of the parameters that an application used, which worked.

Every value of a parameter is compared with all others that were used in the same pattern. `looked` is a test of one
look (Welch; Benjamini and Hochberg over all that is looked at); a standing decision is made by an e-process, which may
be looked at after every outcome (Ramdas et al. 2023).
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import VerdictConfig
from sona_pg.errors import InvalidInput
from sona_pg.learning.significance import Moments, benjamini_hochberg, welch
from sona_pg.types import Json

BETS = (-0.5, -0.25, -0.1, 0.1, 0.25, 0.5)
"""λ: what is bet on each difference. Nobody knows in advance which is best, so all are played."""

_ENCODER = json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(",", ":"))
_BETS = np.array(BETS)
_PLAYED = {
    0: np.full(len(BETS), 1 / len(BETS)),
    1: np.where(_BETS < 0, 2 / len(BETS), 0.0),
    -1: np.where(_BETS > 0, 2 / len(BETS), 0.0),
}
"""By decision, the part of each bet: once something is decided, only what bets against it."""
_LARGEST = 460.0
"""Logarithm of capital that is enough; it could grow for ever."""


class Outcome(NamedTuple):
    """What came of one use of a value.

    Parameters
    ----------
    value
        The value; JSON.
    quality
        Of the trajectory.
    precision, recall
        0 to 1, where they were fed back.
    """

    value: Json
    quality: float
    precision: float | None = None
    recall: float | None = None


@dataclass(frozen=True, slots=True)
class Capital:
    """An e-process for paired outcomes: ``E_n = mean_λ Π (1 + λ d_i)``, a standing decision once E reaches a level.

    Under "no difference" E ever reaches 1/α with probability α at most (Ville 1939), however often one looks. What is
    decided is taken back when the bets against it, which start anew whenever they have lost, reach the level too
    (Shin, Ramdas & Rinaldo 2022).

    Parameters
    ----------
    logs
        Logarithm of each bet's capital.
    pairs, wins
        How many differences there were, and how many were positive; a tie is half a win.
    decision
        1 better, -1 worse, 0 nothing yet.
    most
        The largest E so far, since nothing was decided.
    """

    logs: tuple[float, ...] = (0.0,) * len(BETS)
    pairs: int = 0
    wins: float = 0.0
    decision: int = 0
    most: float = 1.0

    @property
    def e(self) -> float:
        """E as it is now: against the decision where there is one."""
        return float(np.exp(np.array(self.logs)) @ _PLAYED[self.decision])

    def added(self, differences: NDArray[np.float64], decide_at: float) -> Capital:
        """With more differences (n,), each -1 to 1, in their order."""
        now, left = self, differences
        while len(left):
            now, used = now._until_turned(left, decide_at)
            left = left[used:]
        wins = int(np.count_nonzero(differences > 0)) + 0.5 * int(np.count_nonzero(differences == 0))
        return Capital(now.logs, self.pairs + len(differences), self.wins + wins, now.decision, now.most)

    def _until_turned(self, differences: NDArray[np.float64], decide_at: float) -> tuple[Capital, int]:
        """Up to the first decision, or change of one, and how many differences that took; pairs and wins left alone."""
        sums = np.log1p(differences[:, np.newaxis] * _BETS).cumsum(axis=0)
        sums += self.logs
        if self.decision:
            # c ← max(c, 1)(1 + λ d), as logarithms: a sum that starts anew below every least of it before.
            before = np.vstack([self.logs, sums[:-1]])
            sums -= np.minimum(np.minimum.accumulate(before, axis=0), 0.0)
        path = np.exp(np.minimum(sums, _LARGEST)) @ _PLAYED[self.decision]
        turned = np.flatnonzero(path >= decide_at)
        used = int(turned[0]) + 1 if len(turned) else len(differences)
        if len(turned) and self.decision:
            return Capital(), used
        most = self.most if self.decision else max(self.most, float(path[:used].max()))
        logs = sums[used - 1]
        if len(turned):
            decision = 1 if logs[_BETS > 0].max() > logs[_BETS < 0].max() else -1
            return Capital(decision=decision, most=most), used
        return Capital(tuple(np.minimum(logs, _LARGEST).tolist()), decision=self.decision, most=most), used

    def __add__(self, other: Capital) -> Capital:
        """Of two patterns that became one: bets on one sequence, then on the other; the better supported decision."""
        better = self if self.pairs >= other.pairs else other
        chosen = better if better.decision else self if self.decision else other
        logs = tuple(min(a + b, _LARGEST) for a, b in zip(self.logs, other.logs, strict=True))
        if chosen.decision:
            logs = chosen.logs
        return Capital(
            logs, self.pairs + other.pairs, self.wins + other.wins, chosen.decision, max(self.most, other.most)
        )


@dataclass(frozen=True, slots=True)
class Arm:
    """One value of a parameter, and what came of it.

    Which outcomes are paired is decided by their order alone, never by what they are.

    Parameters
    ----------
    value
        The value; JSON.
    quality, precision, recall
        Of its outcomes.
    capital
        Its e-process against the other values.
    own, others
        Outcomes of this value, and of others, that wait to be paired; one of the two is empty.
    """

    value: Json
    quality: Moments = field(default_factory=Moments)
    precision: Moments = field(default_factory=Moments)
    recall: Moments = field(default_factory=Moments)
    capital: Capital = field(default_factory=Capital)
    own: tuple[float, ...] = ()
    others: tuple[float, ...] = ()

    def with_outcomes(
        self, outcomes: Sequence[Outcome], is_own: Sequence[bool], config: VerdictConfig, decide_at: float
    ) -> Arm:
        """With outcomes of this value and of others, each paired with the first that waits of the other kind."""
        mine, theirs = deque(self.own, config.max_waiting), deque(self.others, config.max_waiting)
        differences = []
        for outcome, own in zip(outcomes, is_own, strict=True):
            if own and theirs:
                differences.append(outcome.quality - theirs.popleft())
            elif own:
                mine.append(outcome.quality)
            elif mine:
                differences.append(mine.popleft() - outcome.quality)
            else:
                theirs.append(outcome.quality)
        capital = self.capital
        if differences:
            scaled = np.array(differences) / config.quality_range
            capital = capital.added(np.minimum(np.maximum(scaled, -1.0), 1.0), decide_at)
        own_outcomes = [outcome for outcome, own in zip(outcomes, is_own, strict=True) if own]
        return Arm(
            self.value,
            self.quality + Moments.of([o.quality for o in own_outcomes]),
            self.precision + Moments.of([o.precision for o in own_outcomes if o.precision is not None]),
            self.recall + Moments.of([o.recall for o in own_outcomes if o.recall is not None]),
            capital,
            tuple(mine),
            tuple(theirs),
        )

    def __add__(self, other: Arm) -> Arm:
        """Both as one, with the value of the better supported; numbers meet at their weighted mean."""
        value: Json = self.value if self.quality.count >= other.quality.count else other.value
        if is_number(self.value) and is_number(other.value) and self.value != other.value:
            n, m = max(self.quality.count, 1), max(other.quality.count, 1)
            value = (float(self.value) * n + float(other.value) * m) / (n + m)  # type: ignore[arg-type]
        return Arm(
            value,
            self.quality + other.quality,
            self.precision + other.precision,
            self.recall + other.recall,
            self.capital + other.capital,
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for or against one value of a parameter.

    Parameters
    ----------
    parameter, value
        Which.
    support
        Outcomes of this value.
    quality, improvement
        Their mean quality, and by how much it is above that of all other values.
    p, p_adjusted
        Of one look: two-sided by Welch, and adjusted for everything that was looked at.
    e
        Largest E up to the standing decision, which is made at `VerdictConfig.decide_at`.
    consistency
        Share of paired outcomes that this value won, 0 to 1; one half where there were none.
    decision
        1 proven to be better, -1 to be worse, 0 nothing is proven.
    precision, recall
        Means of what was fed back, None where nothing was.
    """

    parameter: str
    value: Json
    support: int
    quality: float
    improvement: float
    p: float
    p_adjusted: float
    e: float
    consistency: float
    decision: int
    precision: float | None = None
    recall: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One parameter in one pattern: its values and their evidence, updated outcome by outcome.

    Parameters
    ----------
    parameter
        Name.
    arms
        Values in the order in which they came.

    Examples
    --------
    >>> outcomes = [Outcome(40, 0.5), Outcome(80, 0.9)] * 30
    >>> verdict = Verdict("ef_search").updated(outcomes, VerdictConfig())
    >>> evidence = {e.value: e for e in looked([verdict])}
    >>> evidence[80].decision, round(evidence[80].improvement, 6)
    (1, 0.4)
    """

    parameter: str
    arms: tuple[Arm, ...] = ()

    @property
    def is_numeric(self) -> bool:
        """Whether all values are numbers, so that they may be interpolated; of mixed types they are categories."""
        return all(is_number(arm.value) for arm in self.arms)

    def updated(self, outcomes: Sequence[Outcome], config: VerdictConfig) -> Verdict:
        """With more outcomes, in their order.

        Raises
        ------
        InvalidInput
            If a value is not JSON, or a number is not finite.
        """
        keys = [canonical(outcome.value) for outcome in outcomes]
        for outcome in outcomes:
            for name, number in zip(Outcome._fields[1:], outcome[1:], strict=True):
                if number is not None and not math.isfinite(number):
                    raise InvalidInput(f"{name} is {number!r}, expected a finite number")
        arms = {canonical(arm.value): arm for arm in self.arms}
        seen = dict.fromkeys(arms, 0)
        for place, (key, outcome) in enumerate(zip(keys, outcomes, strict=True)):
            if key not in arms:
                # What was used before it is not compared with it.
                arms[key], seen[key] = Arm(outcome.value), place
        # Of two values the one is better where the other is worse: one comparison less than there are values.
        decide_at = config.decide_at * max(len(arms) - 1, 1)
        grown = []
        for key, arm in arms.items():
            start = seen[key]
            is_own = [other == key for other in keys[start:]]
            grown.append(arm.with_outcomes(outcomes[start:], is_own, config, decide_at))
        return Verdict(self.parameter, _within_bounds(tuple(grown), config))

    def rest(self, place: int) -> Moments:
        """Quality of all values but one."""
        total = Moments()
        for i, arm in enumerate(self.arms):
            if i != place:
                total = total + arm.quality
        return total

    def merged(self, other: Verdict, config: VerdictConfig) -> Verdict:
        """Of two patterns that became one."""
        arms = {canonical(arm.value): arm for arm in self.arms}
        for arm in other.arms:
            key = canonical(arm.value)
            arms[key] = arms[key] + arm if key in arms else arm
        return Verdict(self.parameter, _within_bounds(tuple(arms.values()), config))

    def to_json(self) -> dict[str, Json]:
        """Everything that a continuation needs, as JSON."""
        return {"parameter": self.parameter, "arms": [_arm_to_json(arm) for arm in self.arms]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Json]) -> Verdict:
        """What `to_json` gave.

        Raises
        ------
        InvalidInput
            If it is something else.
        """
        try:
            verdict = cls(str(stored["parameter"]), tuple(_arm_from_json(arm) for arm in stored["arms"]))  # type: ignore
        except InvalidInput:
            raise
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as cause:
            raise InvalidInput(f"this is no stored verdict ({cause!r})") from cause
        return verdict


def _within_bounds(arms: tuple[Arm, ...], config: VerdictConfig) -> tuple[Arm, ...]:
    """At most so many values: the two nearest numbers become one; else the least supported of the older ones goes."""
    while len(arms) > config.max_values:
        if all(is_number(arm.value) for arm in arms):
            order = sorted(range(len(arms)), key=lambda i: float(arms[i].value))  # type: ignore[arg-type]
            gaps = [
                (float(arms[b].value) - float(arms[a].value), a, b)  # type: ignore[arg-type]
                for a, b in pairwise(order)
            ]
            _, a, b = min(gaps)
            merged = arms[a] + arms[b]
            arms = tuple(merged if i == min(a, b) else arm for i, arm in enumerate(arms) if i != max(a, b))
        else:
            least = min(range(len(arms) - 1), key=lambda i: arms[i].quality.count)
            arms = arms[:least] + arms[least + 1 :]
    return arms


def looked(verdicts: Iterable[Verdict]) -> list[Evidence]:
    """The evidence of every value of these verdicts, its p-values adjusted for all of them together.

    Values that cannot be compared yet (fewer than two outcomes on a side) have p 1 and adjust nothing.
    """
    found: list[Evidence] = []
    for verdict in verdicts:
        for place, arm in enumerate(verdict.arms):
            rest = verdict.rest(place)
            capital = arm.capital
            found.append(
                Evidence(
                    parameter=verdict.parameter,
                    value=arm.value,
                    support=arm.quality.count,
                    quality=arm.quality.mean,
                    improvement=arm.quality.mean - rest.mean if arm.quality.count and rest.count else 0.0,
                    p=welch(arm.quality, rest).p,
                    p_adjusted=1.0,
                    e=capital.most,
                    consistency=capital.wins / capital.pairs if capital.pairs else 0.5,
                    decision=capital.decision,
                    precision=arm.precision.mean if arm.precision.count else None,
                    recall=arm.recall.mean if arm.recall.count else None,
                )
            )
    tested = [i for i, e in enumerate(found) if e.p < 1]
    for i, adjusted in zip(tested, benjamini_hochberg([found[i].p for i in tested]), strict=True):
        found[i] = replace(found[i], p_adjusted=adjusted)
    return found


def is_number(value: Json) -> bool:
    """Whether a value may be interpolated."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def canonical(value: Json) -> str:
    """A value as JSON, the same for equal ones: 1 and 1.0 are one value, 1 and true are two.

    Raises
    ------
    InvalidInput
        If it is no JSON, or a number in it is not finite.
    """
    if is_number(value):
        try:
            number = float(value)  # type: ignore[arg-type]
        except OverflowError as cause:
            raise InvalidInput("a parameter's value is too large a number") from cause
        if not math.isfinite(number):
            raise InvalidInput(f"a parameter's value is {number}, expected a finite number")
        return repr(number + 0.0)
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as cause:
        raise InvalidInput(f"a parameter's value is no JSON: {cause}") from cause


def _moments_to_json(moments: Moments) -> list[Json]:
    return [moments.count, moments.mean, moments.squares]


def _moments_from_json(stored: Sequence[float]) -> Moments:
    count, mean, squares = stored
    moments = Moments(int(count), float(mean), float(squares))
    if moments.count < 0 or not (math.isfinite(moments.mean) and math.isfinite(moments.squares)):
        raise ValueError("count, mean or squares out of range")
    return moments


def _arm_to_json(arm: Arm) -> dict[str, Json]:
    c = arm.capital
    return {
        "value": arm.value,
        "quality": _moments_to_json(arm.quality),
        "precision": _moments_to_json(arm.precision),
        "recall": _moments_to_json(arm.recall),
        "capital": {"logs": list(c.logs), "pairs": c.pairs, "wins": c.wins, "decision": c.decision, "most": c.most},
        "own": list(arm.own),
        "others": list(arm.others),
    }


def _arm_from_json(stored) -> Arm:  # type: ignore[no-untyped-def]
    c = stored["capital"]
    capital = Capital(
        tuple(float(log) for log in c["logs"]), int(c["pairs"]), float(c["wins"]), int(c["decision"]), float(c["most"])
    )
    if len(capital.logs) != len(BETS) or not all(math.isfinite(log) for log in capital.logs):
        raise ValueError("capital of other bets")
    if capital.decision not in (-1, 0, 1) or not 0 <= capital.wins <= capital.pairs:
        raise ValueError("decision or wins out of range")
    canonical(stored["value"])
    return Arm(
        stored["value"],
        _moments_from_json(stored["quality"]),
        _moments_from_json(stored["precision"]),
        _moments_from_json(stored["recall"]),
        capital,
        tuple(float(outcome) for outcome in stored["own"]),
        tuple(float(outcome) for outcome in stored["others"]),
    )
