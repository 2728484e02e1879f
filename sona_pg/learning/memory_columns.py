"""Nodes and edges of the memory graph as columns: what a consolidation reads, and what it leaves."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from sona_pg.errors import InvalidInput
from sona_pg.learning.arrays import rows_at

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Origin(enum.IntEnum):
    """What has made an edge."""

    CO_ACCESS = 0
    """Both ends helped together."""
    PATTERN = 1
    """An item and its pattern."""
    CREATIVE = 2
    """A dream: nothing has confirmed it yet."""
    ANALOGY = 3
    """Analogous patterns."""
    HIERARCHY = 4
    """A pattern and the pattern that it is part of."""
    GIVEN = 5
    """Somebody, by hand."""


@dataclass(frozen=True, slots=True, eq=False)
class MemoryNodes:
    """Nodes as columns.

    Parameters
    ----------
    ids
        int64 (n,), each once; the lower, the older.
    kinds
        int64 (n,), any codes: only nodes of one kind are compared with each other.
    access_count
        int64 (n,).
    created, last_access
        float64 (n,), seconds since the epoch; the creation counts as an access.
    quality
        float64 (n,), 0 to 1, NaN where nothing was judged.
    importance
        float64 (n,), 0 to 1.
    embeddings
        float32 (n, dim), or (k, dim) with `places`.
    has_embedding
        bool (n,); of the other nodes no embedding is looked at.
    places
        int64 (n,), the row of `embeddings` that is a node's, 0 to k - 1: where few nodes have one in memory. Its own
        row if None.
    judged
        int64 (n, 2): how often each was judged, and how often it had helped, where the quality is
        ``(helped + 1) / (judged + 2)``; zeros where it is something else. Zeros if None.

    Raises
    ------
    InvalidInput
        If a column has another type or length, or holds what it must not.
    """

    ids: Rows
    kinds: Rows
    access_count: Rows
    created: Doubles
    last_access: Doubles
    quality: Doubles
    importance: Doubles
    embeddings: Floats
    has_embedding: Flags
    places: Rows | None = None
    judged: Rows | None = None

    def __post_init__(self) -> None:
        n = _length("ids", self.ids)
        for name in ("ids", "kinds", "access_count"):
            _check_column(name, getattr(self, name), "int64", n)
        for name in ("created", "last_access", "quality", "importance"):
            _check_column(name, getattr(self, name), "float64", n)
        _check_column("has_embedding", self.has_embedding, "bool", n)
        if not isinstance(self.embeddings, np.ndarray):
            raise InvalidInput(
                f"embeddings of the nodes are {type(self.embeddings).__name__}, expected float32 (n, dim)"
            )
        is_matrix = self.embeddings.dtype == np.float32 and self.embeddings.ndim == 2
        rows = len(self.embeddings) if is_matrix else 0
        if not is_matrix or (self.places is None and rows != n):
            found = f"{self.embeddings.dtype} {self.embeddings.shape}"
            raise InvalidInput(f"embeddings of the nodes are {found}, expected float32 ({n}, dim)")
        if self.places is not None:
            _check_column("places", self.places, "int64", n)
            if n and not (self.places.min() >= 0 and self.places.max() < rows):
                raise InvalidInput(
                    f"places of embeddings are {self.places.min()} to {self.places.max()}, expected 0 below {rows}"
                )
        if self.judged is not None:
            _check_judged(self.judged, n)
        if len(np.unique(self.ids)) != n:
            raise InvalidInput("two nodes have the same id: pass every node once")
        if (self.access_count < 0).any():
            raise InvalidInput("access counts are negative: expected 0 or more")
        _check_finite("times of creation or access", self.created, self.last_access)
        known = self.quality[~np.isnan(self.quality)]
        _check_share("qualities", known)
        _check_share("importances", self.importance)
        # In blocks: a copy of all of them would be as large again.
        having = np.flatnonzero(self.has_embedding)
        if not all(
            np.isfinite(rows_at(self.embeddings, self.places, having[s : s + 1024])).all()
            for s in range(0, len(having), 1024)
        ):
            raise InvalidInput("embeddings of nodes hold NaN or infinity: check what the embedding model returned")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class MemoryEdges:
    """Undirected edges as columns.

    Parameters
    ----------
    source, target
        int64 (m,): rows of the nodes that it is between, not their ids.
    weight
        float64 (m,), 0 to 1.
    decayed_at
        float64 (m,), seconds since the epoch: up to when the weight is strengthened or decayed.
    origin
        int64 (m,), of `Origin`.

    Raises
    ------
    InvalidInput
        If a column has another type or length, or holds what it must not.
    """

    source: Rows
    target: Rows
    weight: Doubles
    decayed_at: Doubles
    origin: Rows

    def __post_init__(self) -> None:
        m = _length("source", self.source)
        for name in ("source", "target", "origin"):
            _check_column(name, getattr(self, name), "int64", m)
        for name in ("weight", "decayed_at"):
            _check_column(name, getattr(self, name), "float64", m)
        _check_share("weights of edges", self.weight)
        _check_finite("times up to which edges are decayed", self.decayed_at)
        if self.origin.min(initial=0) < 0 or self.origin.max(initial=0) >= len(Origin):
            raise InvalidInput(f"an edge has an unknown origin: expected one of {[int(o) for o in Origin]}")

    def __len__(self) -> int:
        return len(self.source)

    def where(self, chosen: Flags) -> MemoryEdges:
        """Those of them that are chosen, bool (m,).

        Raises
        ------
        InvalidInput
            If that is something else.
        """
        _check_column("chosen", chosen, "bool", len(self))
        return MemoryEdges(*(getattr(self, field.name)[chosen] for field in fields(MemoryEdges)))

    def check(self, nodes: int) -> None:
        """Refuse an edge to a node that is not among so many.

        Raises
        ------
        InvalidInput
        """
        if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 0:
            raise InvalidInput(f"nodes is {nodes!r}, expected how many there are")
        low = min(self.source.min(initial=0), self.target.min(initial=0))
        high = max(self.source.max(initial=-1), self.target.max(initial=-1))
        if low < 0 or high >= nodes:
            raise InvalidInput(f"an edge leads to node {low if low < 0 else high}, expected rows from 0 to {nodes - 1}")


def _check_judged(judged: Rows, n: int) -> None:
    if not isinstance(judged, np.ndarray) or judged.dtype != np.int64 or judged.shape != (n, 2):
        found = f"{judged.dtype} {judged.shape}" if isinstance(judged, np.ndarray) else type(judged).__name__
        raise InvalidInput(f"judged is {found}, expected int64 ({n}, 2)")
    if ((judged[:, 1] < 0) | (judged[:, 1] > judged[:, 0])).any():
        raise InvalidInput("a node has helped less than never, or more often than it was judged")


def _length(name: str, column: NDArray[np.generic]) -> int:
    if not isinstance(column, np.ndarray) or column.ndim != 1:
        raise InvalidInput(f"column {name} is {type(column).__name__}, expected an array of one dimension")
    return len(column)


def _check_column(name: str, column: NDArray[np.generic], dtype: str, length: int) -> None:
    if not isinstance(column, np.ndarray) or column.dtype != dtype or column.shape != (length,):
        found = f"{column.dtype} {column.shape}" if isinstance(column, np.ndarray) else type(column).__name__
        raise InvalidInput(f"column {name} is {found}, expected {dtype} ({length},)")


def _check_share(what: str, values: Doubles) -> None:
    # Negated, so that NaN is refused, too.
    wrong = values[~((values >= 0) & (values <= 1))]
    if len(wrong):
        raise InvalidInput(f"{what} are from 0 to 1, found {wrong[0]}")


def _check_finite(what: str, *columns: Doubles) -> None:
    if not all(np.isfinite(column).all() for column in columns):
        raise InvalidInput(f"{what} hold NaN or infinity: expected seconds since the epoch")
