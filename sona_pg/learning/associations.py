"""Associations: where activation spreads from the items nearest to a query, for the strategy `related`.

What a query needs may be far from it by cosine, and near to what is near by what was used together. Activation spreads
from the nearest items over the edges of the memory graph (Collins & Loftus 1975); what it reaches is scored by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import StrategyConfig
from sona_pg.errors import LearningError, MemoryGraphError
from sona_pg.learning.edges import Edge
from sona_pg.learning.memory_graph import MemoryGraph
from sona_pg.learning.packing import pack, unpack_any

_FORMAT = 1
_NOTHING = 1e-9
"""Of what was put in: less has not arrived."""


class Associations:
    """A memory graph as of one moment, by the names of its items; nothing that comes later changes it.

    Parameters
    ----------
    items
        Names of the first nodes of the graph. What follows them is passed through and never found: patterns, concepts.
    graph
        The edges. Its embeddings are not looked at.
    merged
        Items that have become part of another, and of which: what starts there starts at that.

    Raises
    ------
    MemoryGraphError
        If there are more names than nodes, or one is given twice; or one was merged into what has no name.

    Examples
    --------
    >>> seen = Associations.of_pairs([(("bolt", "nut"), 0.3), (("nut", "wrench"), 0.3)])
    >>> seen.activation({"bolt": 0.5, "cable": 0.5}, StrategyConfig(related_factor=0.5))
    {'nut': 0.5, 'bolt': 0.125, 'wrench': 0.125}
    """

    def __init__(self, items: Sequence[str], graph: MemoryGraph, merged: Mapping[str, str] | None = None) -> None:
        self.items, self.graph = tuple(items), graph
        self._node = {item: node for node, item in enumerate(self.items)}
        if not len(self._node) == len(self.items) <= len(graph):
            raise MemoryGraphError(
                f"there are {len(self.items)} names of items, {len(self._node)} of them different, for {len(graph)} "
                "nodes: name the first nodes, each by a name of its own"
            )
        self.merged = {} if merged is None else dict(merged)
        for item, into in self.merged.items():
            if item in self._node or into not in self._node:
                raise MemoryGraphError(f"item {item!r} was merged into {into!r}: expected one that is gone, and a name")
        self._node |= {item: self._node[into] for item, into in self.merged.items()}

    @classmethod
    def of_pairs(cls, edges: Iterable[tuple[Edge, float]]) -> Self:
        """Of weighted edges between items, as loop A keeps them."""
        known = list(edges)
        items = sorted({item for edge, _ in known for item in edge})
        node = {item: place for place, item in enumerate(items)}
        ends = np.array([[node[a], node[b]] for (a, b), _ in known], dtype=np.int32).reshape(-1, 2)
        weights = np.array([weight for _, weight in known], dtype=np.float32)
        return cls(items, MemoryGraph.from_edges(len(items), ends[:, 0], ends[:, 1], weights))

    def __len__(self) -> int:
        """Number of edges."""
        return self.graph.edge_count

    def activation(self, starts: Mapping[str, float], config: StrategyConfig) -> dict[str, float]:
        """How much activation reaches items, the most active first.

        Of the most active one it is the share of what starts that the graph knows, of the others less in proportion: a
        graph that knows next to nothing says next to nothing. What starts counts by what comes back to it, not by what
        it was given.

        Parameters
        ----------
        starts
            What is put in, by item; what is not above 0 is nothing.
        config
            ``related_hops``, ``related_factor``, and ``candidates``: so many items are given, at most.

        Returns
        -------
        dict
            By item, above 0 to 1; none where activation leads nowhere.
        """
        given: dict[int, float] = {}
        for item, put in starts.items():
            if put > 0 and (node := self._node.get(item)) is not None and self.graph.degree(node):
                given[node] = given.get(node, 0.0) + put
        if not given:
            return {}
        mass = np.zeros(len(self.graph))
        mass[list(given)] = list(given.values())
        # Taking what was given from the sum may leave a rest of rounding where nothing has come.
        reached = (self.graph.spread(mass, config.related_hops, config.related_factor) - mass)[: len(self.items)]
        active = np.flatnonzero(reached > _NOTHING * mass.sum())
        if not len(active):
            return {}
        known = mass.sum() / sum(put for put in starts.values() if put > 0)
        share = known * reached[active] / reached[active].max()
        if len(active) > config.candidates:
            # First those that may be among them, so that few are put in order.
            kept = share >= np.partition(share, -config.candidates)[-config.candidates]
            active, share = active[kept], share[kept]
        best = sorted((-float(s), self.items[node]) for node, s in zip(active, share, strict=True))
        return {item: -negative for negative, item in best[: config.candidates]}

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads."""
        source, target, weight = self.graph.edges()
        names, ends = _packed(self.items)
        arrays: dict[str, NDArray[Any]] = {"names": names, "ends": ends}
        arrays |= {"source": source, "target": target, "weight": weight}
        if self.merged:
            # Who knows nothing of merged items reads the rest.
            merged, merged_ends = _packed(tuple(self.merged))
            into = np.array([self._node[item] for item in self.merged], dtype=np.int64)
            arrays |= {"merged": merged, "merged_ends": merged_ends, "merged_into": into}
        return pack({"format": _FORMAT, "nodes": len(self.graph)}, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` gave.

        Raises
        ------
        LearningError
            If the data are damaged.
        """
        way_out = "the next cycle of the deep loop makes another"
        try:
            header, arrays = unpack_any(data, "memory snapshot")
            if not isinstance(header, dict) or header["format"] != _FORMAT:
                raise ValueError(f"it is of {header}, expected format {_FORMAT}")
            items = _unpacked(arrays["names"], arrays["ends"])
            graph = MemoryGraph.from_edges(header["nodes"], arrays["source"], arrays["target"], arrays["weight"])
            if "merged" not in arrays:
                return cls(items, graph)
            merged, into = _unpacked(arrays["merged"], arrays["merged_ends"]), arrays["merged_into"].tolist()
            return cls(items, graph, {item: items[node] for item, node in zip(merged, into, strict=True)})
        except LearningError as cause:
            # What that says of a way out is for states that have versions.
            raise LearningError(f"the memory snapshot is damaged: {way_out}") from cause
        except (KeyError, ValueError, IndexError, TypeError, MemoryGraphError) as cause:
            raise LearningError(f"the memory snapshot is damaged ({cause}): {way_out}") from cause


def _packed(names: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Names one after the other, and where each ends."""
    encoded = [name.encode() for name in names]
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), np.cumsum([len(name) for name in encoded], dtype=np.int64)


def _unpacked(names: NDArray[Any], ends: NDArray[Any]) -> list[str]:
    whole, places = names.tobytes(), ends.tolist()
    return [whole[start:end].decode() for start, end in zip([0, *places], places, strict=False)]
