"""Edge weights of the memory graph: which items help together."""

from __future__ import annotations

from collections.abc import Container, ItemsView, Iterable, Mapping
from itertools import combinations, product
from typing import NamedTuple

from sona_pg.config import InstantLoopConfig
from sona_pg.errors import InvalidInput
from sona_pg.learning.outcome import OutcomeEvent

Edge = tuple[str, str]

STRENGTHEN_UNITS = 5
WEAKEN_UNITS = 2
PAIRED_ITEMS = 64
"""Of the items that helped, and of those that did not, so many make pairs: pairs grow with the square."""


class EdgeUpdate(NamedTuple):
    """One change of one edge; `used` says whether both its items helped."""

    edge: Edge
    used: bool


def edge_between(a: str, b: str) -> Edge:
    """The key of the undirected edge between two items."""
    return (a, b) if a < b else (b, a)


def helpful_items(event: OutcomeEvent) -> list[str]:
    """Items of an event that helped, once each."""
    steps = event.trajectory.steps
    helped = (s.item_id for s in steps if s.item_id is not None and s.reward is not None and s.reward > 0)
    return list(dict.fromkeys(helped))[:PAIRED_ITEMS]


def edge_updates(event: OutcomeEvent, connected: Container[str] | None = None) -> list[EdgeUpdate]:
    """What an event says of edges: items that helped together, and items shown beside them that did not help.

    Only what is new counts: a pair of which an earlier revision taught both is left out.

    Parameters
    ----------
    connected
        Items that have edges at all, if that is known: the others have none that could be weakened.
    """
    helped = helpful_items(event)
    new = [item for item in helped if not event.taught.get(item, 0.0) > 0]
    if not new:
        return []
    together = [EdgeUpdate(edge_between(a, b), True) for a, b in combinations(helped, 2) if a in new or b in new]
    weakened = new if connected is None else [item for item in new if item in connected]
    if not weakened:
        return together
    steps = event.trajectory.steps
    shown = dict.fromkeys(s.item_id for s in steps if s.item_id is not None and s.position is not None)
    unused = [item for item in shown if item not in helped][:PAIRED_ITEMS]
    beside = [EdgeUpdate(edge_between(a, b), False) for a, b in product(weakened, unused)]
    return together + beside


def apply_updates(weights: Mapping[Edge, float], updates: Iterable[EdgeUpdate], scale: float) -> dict[Edge, float]:
    """New weights of the edges that change, in the order of the updates.

    Used: ``w += 5 scale (1 - w)``. Shown and unused: ``w -= 2 scale w``, and an edge that is not there stays away.
    """
    changed: dict[Edge, float] = {}
    for edge, used in updates:
        weight = changed.get(edge, weights.get(edge))
        if used:
            weight = 0.0 if weight is None else weight
            changed[edge] = weight + STRENGTHEN_UNITS * scale * (1 - weight)
        elif weight is not None:
            changed[edge] = weight - WEAKEN_UNITS * scale * weight
    return changed


class EdgeWeights:
    """Weights from 0 to 1 of the edges between items, changed by what trajectories say.

    Parameters
    ----------
    scale
        Unit of the updates, `InstantLoopConfig.edge_update_scale`.

    Examples
    --------
    >>> edges = EdgeWeights()
    >>> edges.update([EdgeUpdate(("a", "b"), True)])
    >>> edges.commit()
    >>> round(edges.weight("b", "a"), 3)
    0.05
    """

    def __init__(self, scale: float | None = None) -> None:
        settings = InstantLoopConfig() if scale is None else InstantLoopConfig(edge_update_scale=scale)
        self.scale = settings.edge_update_scale
        self._weights: dict[Edge, float] = {}
        self._pending: list[EdgeUpdate] = []

    def update(self, updates: Iterable[EdgeUpdate]) -> None:
        """Queue changes until `commit`.

        Raises
        ------
        InvalidInput
            If one is no change of an edge between two items; nothing was queued.
        """
        try:
            queued = [EdgeUpdate((a, b), used) for (a, b), used in updates]
        except (TypeError, ValueError) as cause:
            raise InvalidInput(f"an edge update is no pair of an edge and a flag ({cause}): pass EdgeUpdate") from cause
        for (a, b), used in queued:
            if not (isinstance(a, str) and isinstance(b, str) and isinstance(used, bool)):
                raise InvalidInput(f"edge update {((a, b), used)!r}: expected two item ids and whether both helped")
        self._pending.extend(queued)

    def commit(self) -> None:
        """Apply what was queued, in order."""
        self._weights.update(apply_updates(self._weights, self._pending, self.scale))
        self._pending.clear()

    def weight(self, a: str, b: str) -> float:
        """Weight of an edge; 0 where there is none."""
        if not (isinstance(a, str) and isinstance(b, str)):
            raise InvalidInput(f"the edge is between {a!r} and {b!r}, expected two item ids")
        return self._weights.get(edge_between(a, b), 0.0)

    def items(self) -> ItemsView[Edge, float]:
        """Edges with their weights."""
        return self._weights.items()

    def __len__(self) -> int:
        return len(self._weights)
