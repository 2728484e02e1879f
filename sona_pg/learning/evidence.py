"""Evidence that decides what answers: do outcomes have to do with queries, and does a strategy beat doing nothing.

Every test here is made to be looked at after each event: it holds its level at any time of stopping (Ville 1939; Ramdas
et al. 2023, "Game-theoretic statistics and safe anytime-valid inference").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sona_pg.learning.arrays import check_parts

Arrays = dict[str, NDArray[np.generic]]

STAKES = np.array([0.05, 0.1, 0.2, 0.5, 0.9])
"""What a gate bets on each difference; nobody knows in advance which is best, so it plays them all."""

_POWERS = np.array([0.1, 0.2, 0.3, 0.5, 0.7])
"""Exponents of the power martingale, likewise."""

_SPREAD = 2.3
"""Makes 1/((t + 10) ln²(t + 10)) sum to less than 1 over t = 1, 2, …"""

LARGEST = 1e30
"""Capital that could grow for ever would overflow."""


def late_start(event: int, later: float) -> float:
    """The part of the capital that starts with an event, counted from 1; all of them together are `later`."""
    t = event + 10
    return later * _SPREAD / (t * math.log(t) ** 2)


class SanityTest:
    """Whether outcomes have to do with queries at all.

    Of every event a p-value, uniform where outcomes are noise, or several of different kinds; a power martingale bets
    that they are small, on each kind alone, and its capital is the mean (Vovk, Nouretdinov & Gammerman 2003).

    Parameters
    ----------
    kinds
        How many p-values an event has.
    window
        Over how many of the last events it looks.
    open_at, close_at
        Capital at which it opens, and below which it closes.
    """

    def __init__(self, kinds: int, window: int, open_at: float, close_at: float) -> None:
        self._open_at, self._close_at = open_at, close_at
        self._logs = np.zeros((window, kinds, len(_POWERS)))
        """Logarithms of the last bets, one row an event, in a circle."""
        self._count = 0
        self.is_open = False

    def add(self, *p_values: float) -> None:
        """Take in the p-values of an event, 0 < p <= 1, one of each kind."""
        logs = np.log(np.maximum(p_values, 1e-9))
        self._logs[self._count % len(self._logs)] = np.log(_POWERS) + (_POWERS - 1.0) * logs[:, np.newaxis]
        self._count += 1
        self.is_open = self.log_capital >= math.log(self._close_at if self.is_open else self._open_at)

    @property
    def log_capital(self) -> float:
        """Logarithm of what the bets have made of 1, in the mean over kinds and exponents."""
        totals = self._logs.sum(axis=0).ravel()
        return float(np.logaddexp.reduce(totals) - math.log(len(totals)))

    def state(self) -> Arrays:
        """Everything that a continuation needs, as arrays."""
        return {"logs": self._logs, "count": np.array([self._count, self.is_open], dtype=np.int64)}

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave; bit for bit."""
        check_parts("sanity test", state, self.state())
        self._logs[:] = state["logs"]
        self._count, self.is_open = int(state["count"][0]), bool(state["count"][1])


class Stake:
    """How much of a strategy to serve where a test could not decide in time: as sure as it is that it helps.

    From bounded differences d the posterior of their mean under a weak prior, (Σd + b)/(n + 5), and its standard
    error; the stake is the probability by which the mean is rather positive than negative, ``max(0, 2Φ(μ/se) − 1)``.

    Parameters
    ----------
    keep
        What is left of the sums after an event: recent traffic counts more.
    prior
        b, the sum that is expected of five events before anything is known.
    """

    def __init__(self, keep: float, prior: float) -> None:
        self._keep, self._prior = keep, prior
        self._sums = np.zeros(3)  # of weights, of differences, of their squares

    def add(self, difference: float, weight: float = 1.0) -> None:
        """Take in a difference, -1 to 1, of an event that counts as `weight`."""
        self._sums = self._keep * self._sums + weight * np.array([1.0, difference, difference * difference])

    @property
    def share(self) -> float:
        """The stake, 0 to 1."""
        n, total, squares = self._sums
        if n == 0:
            return 0.0
        z = ((total + self._prior) / (n + 5)) / math.sqrt((squares + 0.05) / (n + 5) ** 2)
        return max(0.0, math.erf(z / math.sqrt(2)))

    def state(self) -> Arrays:
        """Everything that a continuation needs, as arrays."""
        return {"sums": self._sums}

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave; bit for bit."""
        check_parts("stake", state, self.state())
        self._sums = np.array(state["sums"], dtype=np.float64)


class Gate:
    """Opens once it is proven that a strategy beats frozen, and closes once it is proven that it does no more.

    Differences d, -1 to 1, are bet on: closed ``E ← (E + γ_t) (1 + λ d)``, open when the mean over λ reaches the
    threshold 1/α. A part of the capital starts later, γ_t ∝ 1/((t + 10) ln²(t + 10)), so that a long time without a
    difference does not hold up a late one; in all it is 1, and the gate ever opens without a difference with
    probability α at most. Open: ``C ← max(C, 1) (1 − λ d)``, which starts anew whenever it falls below 1, so that what
    was good for long still closes soon after it turned (Shin, Ramdas & Rinaldo 2022, e-detectors).

    Parameters
    ----------
    threshold
        1/α.
    later
        The part of the capital that starts later.
    """

    def __init__(self, threshold: float, later: float) -> None:
        self._threshold, self._later = threshold, later
        self._events = 0
        self._capital = np.full(len(STAKES), 1.0 - later)
        self.is_open = False

    def add(self, difference: float) -> bool:
        """Take in a difference; whether the gate opened or closed by it."""
        if self.is_open:
            self._capital = np.maximum(self._capital, 1.0) * (1.0 - STAKES * difference)
        else:
            self._events += 1
            starts = late_start(self._events, self._later)
            self._capital = np.minimum((self._capital + starts) * (1.0 + STAKES * difference), LARGEST)
        turned = self.capital >= self._threshold
        if turned:
            self.is_open = not self.is_open
            self._events = 0
            self._capital = np.full(len(STAKES), 1.0 if self.is_open else 1.0 - self._later)
        return turned

    @property
    def capital(self) -> float:
        """Evidence for what the gate would turn to, in the mean over λ."""
        return float(self._capital.sum()) / len(STAKES)

    def state(self) -> Arrays:
        """Everything that a continuation needs, as arrays."""
        return {"capital": self._capital, "events": np.array([self._events, self.is_open], dtype=np.int64)}

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave; bit for bit."""
        check_parts("gate", state, self.state())
        self._capital = np.array(state["capital"], dtype=np.float64)
        self._events, self.is_open = int(state["events"][0]), bool(state["events"][1])


class Comparison:
    """Whether something is proven to beat each of its rivals; by a gate for each.

    Parameters
    ----------
    rivals
        Their names.
    threshold
        1/α of all that is ever proven of it, whichever rival it is about.
    later
        The part of each gate's capital that starts later.
    """

    def __init__(self, rivals: Sequence[str], threshold: float, later: float) -> None:
        self._rivals, self._threshold, self._later = rivals, threshold, later
        self._gates = self._fresh()

    def _fresh(self) -> dict[str, Gate]:
        # Any of the rivals may be the one that counts: the threshold holds for all together (Bonferroni).
        return {rival: Gate(len(self._rivals) * self._threshold, self._later) for rival in self._rivals}

    def add(self, differences: Sequence[float]) -> None:
        """Take in what it has brought on an event above each of its rivals, -1 to 1, in their order."""
        for gate, difference in zip(self._gates.values(), differences, strict=True):
            gate.add(difference)

    def beats(self, rival: str) -> bool:
        """Whether it is proven to beat a rival."""
        return self._gates[rival].is_open

    @property
    def beats_any(self) -> bool:
        """Whether it is proven to beat one of them."""
        return any(gate.is_open for gate in self._gates.values())

    def state(self) -> Arrays:
        """Everything that a continuation needs, as arrays."""
        return {f"{rival} {name}": array for rival, gate in self._gates.items() for name, array in gate.state().items()}

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave; bit for bit. Nothing is a state from before there was a comparison."""
        gates = self._fresh()
        for rival, gate in gates.items() if state else ():
            own = {name[len(rival) + 1 :]: array for name, array in state.items() if name.startswith(f"{rival} ")}
            gate.load_state(own)
        self._gates = gates


class Switch:
    """Goes on at a level and off at zero: what hovers around either does not flicker.

    Parameters
    ----------
    on_at
        The level.
    """

    def __init__(self, on_at: float) -> None:
        self._on_at = on_at
        self.is_on = False

    def set(self, level: float) -> None:
        """Say where the level is."""
        self.is_on = level > 0 if self.is_on else level >= self._on_at

    def state(self) -> Arrays:
        """Everything that a continuation needs, as arrays."""
        return {"on": np.array(self.is_on, dtype=np.int64)}

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave."""
        check_parts("switch", state, self.state())
        self.is_on = bool(state["on"])


class Tally:
    """Means of what was observed of several things at once, over all times and with recent times counting more.

    Parameters
    ----------
    things
        How many.
    keep
        What a time counts of the next one.
    added
        How many of them, the last ones, an earlier version does not know; apart in the state, so that it can read it.
    """

    def __init__(self, things: int, keep: float, added: int = 0) -> None:
        self._keep, self._known = keep, things - added
        self._sums = np.zeros((things, 2))
        self._weight = np.zeros(2)

    def add(self, values: Sequence[float]) -> None:
        """Take in one value of each."""
        keep = np.array([1.0, self._keep])
        self._weight = keep * self._weight + 1.0
        self._sums = keep * self._sums + np.asarray(values, dtype=np.float64)[:, np.newaxis]

    @property
    def count(self) -> int:
        """How many times."""
        return int(self._weight[0])

    def means(self) -> list[tuple[float, float]]:
        """Of each thing the mean over all times, and the one of recent times."""
        means = self._sums / np.maximum(self._weight, 1.0)
        return [(float(whole), float(recent)) for whole, recent in means]

    def state(self) -> Arrays:
        """Everything that a continuation needs, as arrays."""
        return {"sums": self._sums[: self._known], "weight": self._weight, "added": self._sums[self._known :]}

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave; bit for bit."""
        # A state of before has none of what was added since: nothing was observed of that.
        state = {"added": np.zeros_like(self._sums[self._known :]), **state}
        check_parts("tally", state, self.state())
        self._sums = np.concatenate([state["sums"], state["added"]]).astype(np.float64)
        self._weight = np.array(state["weight"], dtype=np.float64)


def log_rank_gain(before: Sequence[int], after: Sequence[int]) -> float:
    """How much higher helpful items stand, -1 to 1: the mean of log((before + 2) / (after + 2)) over their ranks.

    Differences of nDCG say little on a few events: most helpful items are not among the first ten under either.
    """
    gains = [math.log((first + 2) / (second + 2)) for first, second in zip(before, after, strict=True)]
    return min(max(math.fsum(gains) / len(gains), -1.0), 1.0)
