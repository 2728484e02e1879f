"""Dreams over a memory graph that grows, and the weak edges that they have made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sona_pg.config import DreamConfig, DreamEvidenceConfig, PhiConfig
from sona_pg.errors import InvalidInput, MemoryGraphError
from sona_pg.learning.dreams import Dream, dreamt_edges, generate_dreams
from sona_pg.learning.growing_graph import GrowingGraph, Pair, time_or_none
from sona_pg.learning.judged_dreams import DreamNight, dream_night
from sona_pg.learning.memory_archive import WITHDRAWN, ArchivedEdge
from sona_pg.learning.memory_graph import MemoryNode
from sona_pg.types import is_whole


class CreativeEdge(NamedTuple):
    """A weak edge that a dream has made, between two ids."""

    a: int
    b: int
    weight: float


def as_events(events: Iterable[Iterable[int]]) -> list[list[int]]:
    """Events, each the ids of the nodes that were used together.

    Raises
    ------
    InvalidInput
        If they are something else.
    """
    try:
        found = [list(event) for event in events]
    except TypeError as cause:
        raise InvalidInput(f"events are no sequences of ids of nodes ({cause})") from cause
    for number, event in enumerate(found):
        for id in event:
            if not is_whole(id):
                raise InvalidInput(f"event {number} has {id!r}, expected ids of nodes, whole numbers")
    return [[int(id) for id in event] for event in found]


class DreamEngine(GrowingGraph):
    """A memory graph that grows node by node, dreams over it, and the weak edges that dreams have made.

    Dreams walk over observed edges alone: what dreams have made never makes dreams. Nothing goes but by
    `remove_creative_edges`, and by `consolidate`, which gives what it takes out.

    Parameters
    ----------
    config
        Defaults if None.

    Examples
    --------
    >>> engine = DreamEngine(DreamConfig(creative_jump_prob=0.0, restart_prob=0.0, path_length=6))
    >>> for id in (10, 20, 30):
    ...     engine.add_memory_node(MemoryNode(id))
    >>> engine.add_edge(10, 20, 0.8)
    >>> engine.add_edge(20, 30, 0.8)
    >>> dream = engine.generate_dream()
    >>> len(dream.path), dream.creative_jumps
    (6, 0)
    >>> [(edge.a, edge.b, edge.weight) for edge in engine.integrate_dream(dream)]
    [(10, 30, 0.15)]
    """

    def __init__(self, config: DreamConfig | None = None) -> None:
        super().__init__()
        self.config = config or DreamConfig()
        self._dreamt = 0

    def generate_dream(self, *, creative: bool = True) -> Dream:
        """One dream; without creative jumps if they are not wanted.

        Raises
        ------
        MemoryGraphError
            If there is no node.
        """
        return self.generate_dreams(1, creative=creative)[0]

    def generate_dreams(self, count: int, *, creative: bool = True) -> list[Dream]:
        """The next dreams: every call goes on where the last one ended.

        Raises
        ------
        InvalidInput
            If `count` is no whole number from 0 to a million.
        MemoryGraphError
            If there is no node.
        """
        if not isinstance(creative, bool):
            raise InvalidInput(f"creative is {creative!r}, expected True or False")
        dreams = generate_dreams(self.graph, count, self.config, creative=creative, first=self._dreamt)
        self._dreamt += len(dreams)
        return self._with_paths(dreams)

    def judged_dreams(
        self,
        count: int,
        evidence: DreamEvidenceConfig | None = None,
        phi: PhiConfig | None = None,
        *,
        events: Iterable[Iterable[int]] | None = None,
        check_stop: Callable[[], None] = lambda: None,
    ) -> DreamNight:
        """The next dreams, judged as `dream_night` does; nothing is integrated.

        Parameters
        ----------
        count
            How many.
        evidence, phi
            Settings; the defaults if None.
        events
            Where the edges come from events: for each, the ids of the nodes that were used together, as `dreams_help`
            asks for them. An id that is no node is left out.
        check_stop
            Called between units of work; what it raises ends the night.

        Raises
        ------
        InvalidInput
            If `count` is no whole number from 0 to a million, or an event has something else than ids.
        MemoryGraphError
            If dreams are to start at anchors and no node has an embedding.
        """
        place = {node.id: at for at, node in enumerate(self.nodes)}
        together = None if events is None else [
            [place[id] for id in event if id in place] for event in as_events(events)
        ]  # fmt: skip
        night = dream_night(
            self.graph, count, self.config, evidence or DreamEvidenceConfig(), phi or PhiConfig(),
            events=together, first=self._dreamt, check_stop=check_stop,
        )  # fmt: skip
        self._dreamt += len(night.dreams)
        paths = self._with_paths([judged.dream for judged in night.dreams])
        return replace(
            night, dreams=tuple(replace(one, dream=dream) for one, dream in zip(night.dreams, paths, strict=True))
        )

    def _with_paths(self, dreams: Sequence[Dream]) -> list[Dream]:
        nodes = self.nodes
        return [replace(dream, path=tuple(nodes[place] for place in dream.nodes)) for dream in dreams]

    def integrate_dream(self, dream: Dream) -> list[CreativeEdge]:
        """Make weak edges of what a dream has brought together, as `creative_edges` says; those that were made.

        Observed edges stay as they are, and no more than `DreamConfig.max_edges` ever stand.

        Raises
        ------
        InvalidInput
            If it is no dream.
        MemoryGraphError
            If the dream goes over nodes that are not here.
        """
        return self.integrate_dreams([dream])

    def integrate_dreams(self, dreams: Sequence[Dream], *, at: float | None = None) -> list[CreativeEdge]:
        """Make weak edges of what dreams have brought together, best first, as `integrate_dream` does of one.

        Parameters
        ----------
        at
            When, seconds since the epoch; None: they fade from the first consolidation on.

        Raises
        ------
        InvalidInput, MemoryGraphError
            As `integrate_dream`; nothing was made.
        """
        if isinstance(dreams, str) or not isinstance(dreams, Sequence):
            raise InvalidInput(f"dreams are a {type(dreams).__name__}, expected a list of them")
        since = time_or_none(at)
        placed = [self._placed(dream) for dream in dreams]
        ends = self._places(self._creative)
        made = dreamt_edges(self.graph, placed, self.config, standing=(ends[:, 0], ends[:, 1]))
        numbers = list(self._nodes)
        pairs = [(numbers[a], numbers[b]) for a, b in zip(made.source.tolist(), made.target.tolist(), strict=True)]
        self._creative |= {pair: self._weight(self.config.edge_weight, since) for pair in pairs}
        return [self._as_edge(pair) for pair in pairs]

    def _placed(self, dream: Dream) -> Dream:
        """With the places that its nodes have now: a consolidation moves them."""
        if not isinstance(dream, Dream):
            raise InvalidInput(f"the dream is {type(dream).__name__}, expected a Dream")
        if not dream.path:
            return dream
        known = [self._number.get(node.id) for node in dream.path if isinstance(node, MemoryNode)]
        numbers = [number for number in known if number is not None]
        if len(numbers) < len(dream.path):
            raise MemoryGraphError(
                f"dream {dream.id} goes over nodes that are not here: they went, or it is of another graph"
            )
        places = np.searchsorted(self._numbers(), numbers)
        return replace(dream, nodes=tuple(places.tolist()))

    @property
    def creative_edges(self) -> list[CreativeEdge]:
        """The edges by dreams that stand, the oldest first."""
        return [self._as_edge(pair) for pair in self._creative]

    def remove_creative_edges(self) -> int:
        """Remove all edges by dreams; how many there were."""
        removed = len(self._creative)
        self._creative.clear()
        return removed

    def withdraw_creative_edges(self) -> tuple[ArchivedEdge, ...]:
        """Remove all edges by dreams, as these do not help any more; as they were."""
        gone = tuple(
            ArchivedEdge(edge.a, edge.b, weight.value, weight.decayed_at, True, WITHDRAWN, version=weight.version)
            for edge, weight in zip(self.creative_edges, self._creative.values(), strict=True)
        )
        self._creative.clear()
        return gone

    def _as_edge(self, pair: Pair) -> CreativeEdge:
        return CreativeEdge(self._nodes[pair[0]].id, self._nodes[pair[1]].id, self._creative[pair].value)
