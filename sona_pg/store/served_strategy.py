"""What answers in a space, read from the rows that the strategist has written: strategy, maps and regions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sona_pg.config import StrategyConfig
from sona_pg.kernels import LowRank, unit
from sona_pg.learning.lift import SHADOW
from sona_pg.learning.remembered import FloatMatrix
from sona_pg.learning.serving import ServedStrategy, Serving
from sona_pg.store.connection import Connection, transaction
from sona_pg.store.served_rows import served_map
from sona_pg.store.spaces import Space, space_gone
from sona_pg.types import FloatVector

PROVEN = "proven"
CAREFUL = "careful"
"""Tiers of the served map: the adapters with which the fusion and the stake were proven."""


def read_served(connection: Connection, space: Space, config: StrategyConfig) -> ServedStrategy:
    """What answers in a space, as far as a vector can say it.

    Raises
    ------
    UnknownSpace
        If the space is gone.
    """
    key = (space.space_id,)
    with transaction(connection):
        row = connection.execute(
            "SELECT s.strategy, g.in_force, g.is_sane, g.known, g.strange, g.weights IS NOT NULL,"
            " CASE WHEN s.control_share > 0 THEN greatest(s.control_share, g.suspected_share) ELSE 0 END"
            " FROM sona.space s"
            " JOIN sona.strategist g USING (space_id) WHERE s.space_id = %s",
            key,
        ).fetchone()
        if row is None:
            raise space_gone(space.name)
        strategy, in_force, is_sane, known, strange, has_learned, control_share = row
        is_learned, is_shadow = strategy == "learned", strategy == SHADOW
        if is_learned:
            strategy = in_force
        elif is_shadow or (strategy not in ("adapted", "related") and not has_learned):
            strategy = "frozen"
        regions: list[tuple[FloatVector, int]] = []
        if is_learned and is_sane:
            regions = connection.execute(
                "SELECT centroid, verdict FROM sona.strategy_region WHERE space_id = %s ORDER BY region",
                key,
                binary=True,
            ).fetchall()
        # Frozen needs none of them.
        tiers: dict[str, list[tuple[FloatVector, FloatVector]]] = {PROVEN: [], CAREFUL: []}
        prototypes: list[tuple[FloatVector]] = []
        if strategy != "frozen" or any(verdict for _, verdict in regions):
            for tier, down, up in connection.execute(
                "SELECT tier, down, up FROM sona.served_row WHERE space_id = %s AND tier = ANY(%s)"
                " ORDER BY tier, ordinal",
                (space.space_id, list(tiers)),
                binary=True,
            ):
                tiers[tier].append((down, up))
            prototypes = connection.execute(
                "SELECT r.embedding FROM sona.remembered_query r JOIN sona.strategist g USING (space_id)"
                " WHERE r.space_id = %s AND r.is_prototype"
                " AND (g.remembered_until IS NULL OR r.ordinal < g.remembered_until)",
                key,
                binary=True,
            ).fetchall()
    exceptions = {1: "fusion", -1: "frozen", 0: None}
    return ServedStrategy(
        strategy,
        known,
        strange,
        config,
        _serving(tiers[PROVEN], space.dim),
        _serving(tiers[CAREFUL], space.dim),
        unit_rows([vector for (vector,) in prototypes], space.dim),
        unit_rows([centroid for centroid, _ in regions], space.dim),
        tuple(exceptions[verdict] for _, verdict in regions),
        control_share,
        is_shadow,
    )


def _serving(rows: Sequence[tuple[FloatVector, FloatVector]], dim: int) -> Serving:
    low_rank, weights = LowRank(dim, max(len(rows), 1)), served_map(rows)
    if weights is not None:
        low_rank.load(weights)
    return Serving([low_rank])


def unit_rows(vectors: Sequence[FloatVector], dim: int) -> FloatMatrix:
    """Vectors (dim,) as rows (n, dim) of length 1."""
    rows = np.zeros((len(vectors), dim), dtype=np.float32)
    for place, vector in enumerate(vectors):
        rows[place] = unit(vector)
    return rows
