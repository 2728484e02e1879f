"""Remembered outcomes: what events near a query say about items."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import StrategyConfig
from sona_pg.types import FloatVector


class Remembered(NamedTuple):
    """An event as it is remembered.

    Parameters
    ----------
    similarity
        Cosine of its query to the one that asks.
    helped
        Items that helped, with how much, above 0.
    unhelpful
        Items that were shown and did not help.
    """

    similarity: float
    helped: Mapping[str, float]
    unhelpful: Collection[str]


class OutcomeMemory(Protocol):
    """Where outcomes are remembered."""

    def near(self, query: FloatVector, k: int, *, without: Collection[str] = ()) -> Sequence[Remembered]:
        """The k events nearest to a unit query (dim,), nearest first; not those in which one of `without` helped."""
        ...

    def times_helped(self, items: Sequence[str]) -> Sequence[int]:
        """In how many events each item helped."""
        ...

    def latest(self, n: int) -> NDArray[np.float32]:
        """Unit queries (at most n, dim) of the events that were remembered last, oldest first."""
        ...


class InMemoryOutcomes:
    """Outcomes in memory, searched exactly.

    Parameters
    ----------
    dim
        Dimension of queries.
    """

    def __init__(self, dim: int) -> None:
        self._queries = np.zeros((64, dim), dtype=np.float32)
        self._helped: list[Mapping[str, float]] = []
        self._unhelpful: list[Collection[str]] = []
        self._events_of: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self._helped)

    def add(self, query: FloatVector, helped: Mapping[str, float], unhelpful: Collection[str]) -> None:
        """Remember an event by its unit query (dim,)."""
        n = len(self)
        if n == len(self._queries):
            self._queries = np.concatenate([self._queries, np.zeros_like(self._queries)])
        self._queries[n] = query
        self._helped.append(dict(helped))
        self._unhelpful.append(tuple(unhelpful))
        for item in helped:
            self._events_of.setdefault(item, []).append(n)

    def near(self, query: FloatVector, k: int, *, without: Collection[str] = ()) -> list[Remembered]:
        """As `OutcomeMemory.near`; of equally near ones the older first."""
        n = len(self)
        if n == 0:
            return []
        similarities = self._queries[:n] @ query
        hidden = [event for item in without for event in self._events_of.get(item, ())]
        similarities[hidden] = -np.inf
        order = np.argsort(-similarities, kind="stable")[:k]
        return [
            Remembered(float(similarities[event]), self._helped[event], self._unhelpful[event])
            for event in order
            if similarities[event] > -np.inf
        ]

    def times_helped(self, items: Sequence[str]) -> list[int]:
        """As `OutcomeMemory.times_helped`."""
        return [len(self._events_of.get(item, ())) for item in items]

    def latest(self, n: int) -> NDArray[np.float32]:
        """As `OutcomeMemory.latest`."""
        return self._queries[max(0, len(self) - n) : len(self)]


class Neighbourhood:
    """What the events nearest to a query say.

    Parameters
    ----------
    events
        The nearest ones, nearest first.
    config
        Settings.
    """

    def __init__(self, events: Sequence[Remembered], config: StrategyConfig) -> None:
        self.familiarity = max(events[0].similarity, 0.0) if events else 0.0
        low, width = config.familiar_from, config.familiar_width
        self.gate = min(max((self.familiarity - low) / width, 0.0), 1.0)
        """How familiar the ground is, 0 to 1: the adapter is served by so much of it."""
        self.nearest_help: dict[str, float] = {}
        """By item, the largest similarity of an event in which it helped."""
        self.votes: dict[str, float] = {}
        """By item, the kernel-weighted sum of how much it helped."""
        self.nearest_miss: dict[str, float] = {}
        """By item, the largest similarity of an event in which it was shown and did not help."""
        for place, (similarity, helped, unhelpful) in enumerate(events):
            weight = math.exp((similarity - 1.0) / config.vote_kernel)
            for item, reward in helped.items():
                self.nearest_help.setdefault(item, similarity)
                self.votes[item] = self.votes.get(item, 0.0) + weight * reward
            if place < config.misses_near:
                for item in unhelpful:
                    self.nearest_miss.setdefault(item, similarity)


@dataclass(frozen=True, slots=True)
class JudgedEvent:
    """The outcome of an answer, as strategies learn from it.

    Parameters
    ----------
    query
        Unit query (dim,).
    shown
        Items that were shown, best first.
    helped
        Items that helped, with how much, above 0; shown or not.
    unhelpful
        Items that were shown and did not help.
    seed
        Keys the randomness.
    """

    query: FloatVector
    shown: Sequence[str]
    helped: Mapping[str, float]
    unhelpful: Collection[str]
    seed: int
