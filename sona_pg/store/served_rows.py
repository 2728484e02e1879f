"""Low-rank maps as rows: SQL adapts a query by them, and a version keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sona_pg.kernels import LowRank
from sona_pg.learning.remembered import FloatMatrix
from sona_pg.store.connection import Connection
from sona_pg.types import FloatVector


def served_rows(low_rank: LowRank) -> FloatMatrix:
    """The map (2 rank, dim) as SQL serves it: columns of A, then rows of B times the scale."""
    rows: FloatMatrix = low_rank.weights.copy()
    up = rows[low_rank.rank :]
    up *= np.float32(low_rank.scale)
    # pgvector's product refuses underflow, so what is too small to matter is written as zero.
    up[np.abs(up) < 1e-20] = 0
    return rows


def served_map(rows: Sequence[tuple[FloatVector, FloatVector]]) -> FloatMatrix | None:
    """The map (2 rank, dim) of served rows; None where there are none."""
    return np.stack([*(down for down, _ in rows), *(up for _, up in rows)]) if rows else None


def write_served(connection: Connection, space_id: int, served: Mapping[str, LowRank]) -> None:
    """Set the rows by which SQL adapts a query, of the tiers that are given."""
    rows = []
    for tier, low_rank in served.items():
        if low_rank.is_zero:
            continue
        weights, rank = served_rows(low_rank), low_rank.rank
        rows += [(tier, k, weights[k], weights[rank + k]) for k in range(rank)]
    connection.cursor().executemany(
        "INSERT INTO sona.served_row (space_id, tier, ordinal, down, up) VALUES (%s, %s, %s, %s, %s)"
        " ON CONFLICT (space_id, tier, ordinal) DO UPDATE SET down = excluded.down, up = excluded.up",
        [(space_id, *row) for row in rows],
    )
