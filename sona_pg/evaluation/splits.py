"""Which queries are learned from, in which order, and which are held out."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sona_pg.errors import InvalidInput
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.metrics import Grades

STREAM_SHARE = 0.6
"""Share of the queries that are learned from."""


class SplitKind(enum.StrEnum):
    """How queries are parted."""

    RANDOM = "random"
    """By chance: what was learned may be about the documents that held-out queries need."""
    DISJOINT = "disjoint"
    """Queries that share a judged document stay on one side: nothing learned is about what held-out queries need."""


@dataclass(frozen=True, slots=True)
class Split:
    """A stream of queries to learn from, and the queries to measure on; all of them have a judged document.

    Parameters
    ----------
    kind, index
        Which split.
    stream
        Rows of queries, in the order in which they are seen.
    held_out
        Rows of queries.
    """

    kind: SplitKind
    index: int
    stream: tuple[int, ...]
    held_out: tuple[int, ...]


def make_split(collection: Collection, kind: SplitKind, index: int) -> Split:
    """Split number `index` of a collection.

    Random: the first ``round(.6 n)`` of ``RandomState(1000 + index).permutation(n)`` are the stream, in that order.
    Disjoint: see `disjoint_parts`. Queries without a judged document take their place in the permutation, so that
    figures compare, and are then left out.

    Raises
    ------
    InvalidInput
        If nothing is left to learn from, or to measure on.
    """
    if kind is SplitKind.RANDOM:
        n = len(collection.relevant)
        order = [int(query) for query in np.random.RandomState(1000 + index).permutation(n)]
        cut = round(STREAM_SHARE * n)
        stream, held_out = order[:cut], order[cut:]
    else:
        stream, held_out = disjoint_parts(collection.relevant, index)
    judged = Split(
        kind,
        index,
        tuple(query for query in stream if collection.relevant[query]),
        tuple(query for query in held_out if collection.relevant[query]),
    )
    if not judged.stream or not judged.held_out:
        raise InvalidInput(
            f"{kind} split {index} of {collection.name} has {len(judged.stream)} queries with a judged document to "
            f"learn from and {len(judged.held_out)} to measure on, expected at least one of each: bring more judged "
            "queries, or use the random split where most queries share documents"
        )
    return judged


def disjoint_parts(relevant: Sequence[Grades], index: int) -> tuple[list[int], list[int]]:
    """Stream and held-out queries without a judged document in common.

    Groups of queries that are linked by shared documents, in the order of their first query, are permuted by
    ``RandomState(500 + index)``. One after the other goes to the stream where that leaves it at no more than
    ``.6 n + 1`` queries, else it is held out. On both sides the groups keep the permuted order, and the queries of a
    group the order of their rows.
    """
    groups = linked_groups(relevant)
    limit = STREAM_SHARE * len(relevant) + 1
    stream: list[int] = []
    held_out: list[int] = []
    for group in np.random.RandomState(500 + index).permutation(len(groups)):
        queries = groups[group]
        side = stream if len(stream) + len(queries) <= limit else held_out
        side.extend(queries)
    return stream, held_out


def linked_groups(relevant: Sequence[Grades]) -> list[list[int]]:
    """Queries linked by shared documents, directly or through others; in the order of their first query.

    Examples
    --------
    >>> linked_groups([{1: 1.0}, {2: 1.0}, {1: 1.0, 3: 1.0}, {3: 2.0}])
    [[0, 2, 3], [1]]
    """
    parent = list(range(len(relevant)))

    def root(query: int) -> int:
        while parent[query] != query:
            parent[query] = parent[parent[query]]
            query = parent[query]
        return query

    first_query: dict[int, int] = {}
    for query, grades in enumerate(relevant):
        for doc in grades:
            parent[root(query)] = root(first_query.setdefault(doc, query))
    groups: dict[int, list[int]] = {}
    for query in range(len(relevant)):
        groups.setdefault(root(query), []).append(query)
    return list(groups.values())
