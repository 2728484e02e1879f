"""What a cycle has dreamt and measured, and what it leaves to the strategist."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sona_pg.learning.dreams import Dream
from sona_pg.store.memory_transaction import TO_TIME, MemoryTransaction

Rows = NDArray[np.int64]

_STEP_KINDS = ("start", "edge", "jump", "restart")
"""How a node of a dream was reached, by the kernel's codes."""


class DreamTransaction(MemoryTransaction):
    """Writes dreams and the weak edges that they have made; analogies; and the graph as it is then."""

    def write_dreams(
        self, dreams: Iterable[tuple[Dream, float, float, str]], ids: Rows, *, dreamt: int, keep_runs: int
    ) -> None:
        """Note down dreams of this cycle, each with φ, the level to reach, and why it was integrated or not.

        Parameters
        ----------
        ids
            The nodes that they go over, by place.
        dreamt
            How many there were; their ids go on from the last one of the space.
        keep_runs
            Cycles whose dreams are kept.
        """
        made = [
            (self._space.space_id, self._run.run_id, [int(id) for id in ids[list(dream.nodes)]])
            + ([_STEP_KINDS[kind] for kind in dream.kinds], dream.creative_jumps, dream.quality.novelty)
            + (dream.quality.coherence, dream.quality.utility, dream.quality.diversity, dream.quality.overall)
            + (phi, level, not reason, reason or "integrated", self._state.now, 1 + dream.id)
            for dream, phi, level, reason in dreams
        ]
        self._connection.cursor().executemany(
            "INSERT INTO sona.dream (space_id, run_id, nodes, kinds, creative_jumps, novelty, coherence, utility,"
            " diversity, quality, phi, phi_threshold, is_integrated, reason, created_at, dream_id)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, to_timestamp(%s), %s)",
            made,
        )
        self._connection.execute(
            "UPDATE sona.memory_state SET last_dream_id = %(last)s WHERE space_id = %(space)s",
            self._key | {"last": self._state.last_dream_id + dreamt},
        )
        self._connection.execute(
            "DELETE FROM sona.dream WHERE space_id = %(space)s AND run_id NOT IN"
            " (SELECT DISTINCT run_id FROM sona.dream WHERE space_id = %(space)s ORDER BY run_id DESC LIMIT %(keep)s)",
            self._key | {"keep": keep_runs},
        )

    def write_creative(self, source: Rows, target: Rows, weight: float) -> int:
        """Connect nodes that dreams have brought together, weakly; how many edges are new."""
        rows = self._connection.execute(
            "SELECT u.at, n.kind, n.key FROM unnest(%(ids)s::bigint[]) WITH ORDINALITY u (id, at)"
            " JOIN sona.memory_node n ON n.space_id = %(space)s AND n.node_id = u.id",
            self._key | {"ids": [int(id) for pair in zip(source, target, strict=True) for id in pair]},
        ).fetchall()
        names = {at - 1: (kind, key) for at, kind, key in rows}
        edges = []
        for pair in range(len(source)):
            if 2 * pair in names and 2 * pair + 1 in names:
                # An undirected edge stands once, source before target.
                first, second = sorted((names[2 * pair], names[2 * pair + 1]), key=lambda name: (name[1], name[0]))
                edges.append((*first, *second, weight))
        return self._insert_edges("creative", f"dreams of run {self._run.run_id}", edges, replaces=False)

    def withdraw_creative(self) -> int:
        """Move all edges by dreams to the archive, as dreams do not help any more; how many."""
        return self._connection.execute(
            "WITH gone AS (DELETE FROM sona.memory_edge WHERE space_id = %(space)s AND kind = 'creative' RETURNING *)"
            " INSERT INTO sona.memory_archive (space_id, run_id, entity, content, reason, archived_at)"
            f" SELECT space_id, %(run)s, 'edge', to_jsonb(gone), 'dreams do not help any more', {TO_TIME} FROM gone"
            " ORDER BY source, target, source_kind, target_kind",
            self._key,
        ).rowcount

    def write_analogies(self, found: Sequence[tuple[int, str, int, float]]) -> None:
        """Let these be all analogies: own pattern, other space, its pattern, similarity 0 to 1."""
        self._connection.execute(
            "DELETE FROM sona.memory_edge WHERE space_id = %(space)s AND kind = 'analogy'", self._key
        )
        for other in sorted({space for _, space, _, _ in found}):
            edges = [
                ("pattern", str(own), "elsewhere", f"{other} {theirs}", similarity)
                for own, space, theirs, similarity in found
                if space == other
            ]
            self._insert_edges("analogy", f"space {other}", edges)

    def write_snapshot(self, ordinal: int, content: bytes) -> None:
        """Keep the graph as it is, for whoever is to weigh the events that come after so many of the ledger."""
        self._connection.execute(
            "INSERT INTO sona.memory_snapshot (space_id, run_id, ordinal, content)"
            " VALUES (%(space)s, %(run)s, %(ordinal)s, %(content)s) ON CONFLICT (space_id, run_id) DO NOTHING",
            self._key | {"ordinal": ordinal, "content": content},
        )
