"""Remembered outcomes: what is around a query, and what the events near it say about items."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import StrategyConfig
from sona_pg.kernels import OutcomeNeighbours
from sona_pg.learning.associations import Associations
from sona_pg.learning.item_pool import ItemPool
from sona_pg.types import FloatVector

FloatMatrix = NDArray[np.float32]


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
    is_withheld
        Whether the learner has not learned from it, since a cycle is to judge by it.
    """

    query: FloatVector
    shown: Sequence[str]
    helped: Mapping[str, float]
    unhelpful: Collection[str]
    seed: int
    is_withheld: bool = False


class Surroundings:
    """What is around a query. It depends on what was remembered alone, never on what was learned from it.

    Parameters
    ----------
    nearest
        The items nearest to the query.
    events
        The remembered events nearest to it, nearest first.
    embeddings
        Unit embeddings (dim,) by item: of `nearest`, of what helped in the events, of what helped in the event that is
        learned. An item that is not there is left out of every list.
    times_helped
        In how many events items helped.
    activation
        By item, how much activation has come to it from the nearest items, above 0 to 1; see `Associations`. An item
        that is not in `embeddings` is left out. None where there is no memory graph.
    """

    def __init__(
        self,
        nearest: Collection[str],
        events: Sequence[Remembered],
        embeddings: Mapping[str, FloatVector],
        times_helped: Mapping[str, int],
        activation: Mapping[str, float] | None = None,
    ) -> None:
        self.items = sorted(embeddings)
        """By id, so that equally good ones are in that order."""
        self.row = {item: row for row, item in enumerate(self.items)}
        self.embeddings: FloatMatrix = (
            np.stack([embeddings[item] for item in self.items]) if self.items else np.zeros((0, 0), dtype=np.float32)
        )
        self.times_helped = np.array([times_helped.get(item, 0) for item in self.items], dtype=np.int64)
        self.near = _neighbours(events, self.row)
        """The events, with rows for items; -1 for one that is not there."""
        self.has_graph = activation is not None
        """Whether there is a memory graph, whether or not activation spreads in it."""
        self.activation = np.zeros(len(self.items))
        """float64 (items,), 0 to 1."""
        for item, share in ({} if activation is None else activation).items():
            if (row := self.row.get(item)) is not None:
                self.activation[row] = share
        self._is_near = np.zeros(len(self.items), dtype=np.uint8)
        self._is_near[self.rows(nearest)] = 1

    def rows(self, items: Iterable[str]) -> NDArray[np.int64]:
        """Rows of those of the items that are there."""
        found = [row for item in items if (row := self.row.get(item)) is not None]
        return np.array(found, dtype=np.int64)

    def candidates(self, neighbours: int, also: NDArray[np.uint8] | None = None) -> NDArray[np.int64]:
        """Rows (n,) of the nearest items and of what helped in the nearest events, in the order of their ids.

        Parameters
        ----------
        neighbours
            In how many events.
        also
            uint8 (items,): items that are candidates all the same, as if they had never helped before: the events in
            which they did do not count.
        """
        chosen = self._is_near | self.near.helped(self.near.visible(also, neighbours), len(self.items))
        return np.flatnonzero(chosen if also is None else chosen | also)


def _neighbours(events: Sequence[Remembered], row: Mapping[str, int]) -> OutcomeNeighbours:
    helped = [row.get(item, -1) for event in events for item in event.helped]
    missed = [row.get(item, -1) for event in events for item in event.unhelpful]
    return OutcomeNeighbours(
        np.array([event.similarity for event in events], dtype=np.float64),
        np.cumsum([len(event.helped) for event in events], dtype=np.int64),
        np.array(helped, dtype=np.int64),
        np.array([reward for event in events for reward in event.helped.values()], dtype=np.float64),
        np.cumsum([len(event.unhelpful) for event in events], dtype=np.int64),
        np.array(missed, dtype=np.int64),
    )


class OutcomeMemory(Protocol):
    """Where outcomes are remembered."""

    def near(self, query: FloatVector, k: int) -> Sequence[Remembered]:
        """The k events nearest to a unit query (dim,), nearest first."""
        ...

    def times_helped(self, items: Sequence[str]) -> Mapping[str, int]:
        """In how many events items helped; those that never did may be left out."""
        ...


class ItemIndex(Protocol):
    """Where items are found."""

    def nearest(self, query: FloatVector, k: int) -> Sequence[str]:
        """The k items nearest to a unit query (dim,) by cosine."""
        ...

    def embeddings(self, items: Collection[str]) -> Mapping[str, FloatVector]:
        """Unit embeddings (dim,) of those of the items that there are."""
        ...


def look_around(
    query: FloatVector,
    memory: OutcomeMemory,
    index: ItemIndex,
    config: StrategyConfig,
    *,
    event: JudgedEvent | None = None,
    associations: Associations | None = None,
) -> Surroundings:
    """What is around a unit query (dim,): enough to answer it and, with its event, to learn from it.

    Parameters
    ----------
    query
        Unit query (dim,).
    memory, index
        Where outcomes are remembered, and where items are found.
    config
        How far to look.
    event
        Its outcome; None to answer.
    associations
        Over which activation spreads: as they were before the event, or it would know its own answer. None has none.
    """
    nearest = index.nearest(query, config.candidates)
    events = memory.near(query, config.neighbours if event is None else config.neighbours_learning)
    wanted = set(nearest).union(*(e.helped for e in events))
    if event is not None:
        wanted.update(event.helped, event.unhelpful)
    embeddings = dict(index.embeddings(wanted))
    activation: Mapping[str, float] | None = None
    if associations is not None and len(associations):
        cosines = {item: float(embeddings[item] @ query) for item in nearest if item in embeddings}
        starts = sorted(cosines, key=lambda item: (-cosines[item], item))[: config.related_starts]
        activation = associations.activation({item: cosines[item] for item in starts}, config)
        if reached := set(activation).difference(embeddings):
            embeddings |= index.embeddings(reached)
    return Surroundings(nearest, events, embeddings, memory.times_helped(sorted(embeddings)), activation)


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
        self._times_helped: dict[str, int] = {}

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
            self._times_helped[item] = self._times_helped.get(item, 0) + 1

    def near(self, query: FloatVector, k: int) -> list[Remembered]:
        """As `OutcomeMemory.near`; of equally near ones the older first."""
        n = len(self)
        similarities = self._queries[:n] @ query
        order = np.argsort(-similarities, kind="stable")[:k]
        return [Remembered(float(similarities[e]), self._helped[e], self._unhelpful[e]) for e in order]

    def times_helped(self, items: Sequence[str]) -> dict[str, int]:
        """As `OutcomeMemory.times_helped`."""
        return {item: count for item in items if (count := self._times_helped.get(item, 0))}

    def latest(self, n: int) -> FloatMatrix:
        """Unit queries (at most n, dim) of the events that were remembered last, oldest first."""
        return self._queries[max(0, len(self) - n) : len(self)]


class PoolIndex:
    """The items of a pool, searched exactly.

    Parameters
    ----------
    pool
        The items.
    """

    def __init__(self, pool: ItemPool) -> None:
        self._pool = pool

    def nearest(self, query: FloatVector, k: int) -> list[str]:
        """As `ItemIndex.nearest`."""
        few = min(k, len(self._pool))
        if few == 0:
            return []
        cosines = self._pool.embeddings @ query
        return [self._pool.ids[row] for row in np.argpartition(-cosines, few - 1)[:few]]

    def embeddings(self, items: Collection[str]) -> dict[str, FloatVector]:
        """As `ItemIndex.embeddings`."""
        return {item: self._pool.embeddings[row] for item in items if (row := self._pool.row(item)) is not None}
