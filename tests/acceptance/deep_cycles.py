"""Chaos for the deep loop: its workers and those of the background loop are killed while outcomes are recorded, learned
and made patterns of, and while somebody adds nodes and edges by hand. No co-access is lost: the edges are what a replay
of the ledger gives. What was removed is in the archive, and nothing is numbered twice.

``python -m tests.acceptance.deep_cycles`` runs the full form and exits with 1 on a violation; the tests a short one.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sona_pg.learning.edges import EdgeWeights, edge_updates
from sona_pg.store import spaces
from sona_pg.store.ledger import ledger_events

from . import background_worker, deep_worker
from .audit import MANY
from .cycle_chaos import main
from .pattern_cycles import DIM, ITEMS, PatternChaos

EPISODES = np.random.default_rng(1).standard_normal((6, DIM))
"""What episodes lie near to: two of one are near duplicates."""

_ALWAYS = {
    "a node is neither there nor in the archive, or in both": (
        "SELECT m.last_node_id = (SELECT count(DISTINCT u.id) FROM ("
        "  SELECT n.node_id AS id FROM sona.memory_node n WHERE n.space_id = m.space_id UNION ALL"
        "  SELECT (a.content ->> 'node_id')::bigint FROM sona.memory_archive a WHERE a.space_id = m.space_id"
        "  AND a.entity = 'node') u) AND m.last_node_id ="
        " (SELECT count(*) FROM sona.memory_node n WHERE n.space_id = m.space_id)"
        " + (SELECT count(*) FROM sona.memory_archive a WHERE a.space_id = m.space_id AND a.entity = 'node')"
        " FROM sona.memory_state m WHERE m.space_id = %(space)s"
    ),
    "a node has no state, or a state no node": (
        "SELECT NOT EXISTS (SELECT FROM (SELECT * FROM sona.memory_node WHERE space_id = %(space)s) n"
        " FULL JOIN (SELECT * FROM sona.memory_node_state WHERE space_id = %(space)s) t USING (node_id)"
        " WHERE n.kind IS NULL OR t.importance IS NULL)"
    ),
    "dreams have gaps or twins, or a cycle has dreamt twice": (
        "SELECT m.last_dream_id = count(d.dream_id) AND m.last_dream_id = coalesce(max(d.dream_id), 0)"
        " AND NOT EXISTS (SELECT FROM sona.dream e WHERE e.space_id = m.space_id GROUP BY e.run_id"
        "  HAVING count(*) <> max(e.dream_id) - min(e.dream_id) + 1 OR count(*) > 10)"
        " FROM sona.memory_state m LEFT JOIN sona.dream d USING (space_id) WHERE m.space_id = %(space)s"
        " GROUP BY m.space_id, m.last_dream_id"
    ),
    "the snapshot of the last cycle is lost, or another one than the cycle has made": (
        "SELECT NOT EXISTS (SELECT FROM (SELECT x.run_id, x.facts -> 'snapshot' AS made FROM sona.loop_run x"
        "  WHERE x.space_id = %(space)s AND x.loop = 'deep' AND x.state = 'done' ORDER BY x.run_id DESC LIMIT 1) r"
        " LEFT JOIN sona.memory_snapshot m ON m.space_id = %(space)s AND m.run_id = r.run_id"
        # Once the next cycle has made one, the strategist needs no earlier one.
        " WHERE NOT EXISTS (SELECT FROM sona.memory_snapshot n WHERE n.space_id = %(space)s AND n.run_id > r.run_id)"
        " AND jsonb_typeof(r.made) = 'object' AND (m.ordinal IS DISTINCT FROM (r.made ->> 'ledger_entries')::bigint"
        "  OR octet_length(m.content) IS DISTINCT FROM (r.made ->> 'bytes')::integer))"
    ),
    "an edge between two nodes stands twice": (
        "SELECT NOT EXISTS (SELECT FROM sona.memory_edge e JOIN sona.memory_edge f ON f.space_id = e.space_id"
        " AND f.kind = e.kind AND (f.source_kind, f.source, f.target_kind, f.target)"
        " = (e.target_kind, e.target, e.source_kind, e.source) WHERE e.space_id = %(space)s)"
    ),
}
"""What must be true in every snapshot of a space, by what is wrong when it is not."""

_WITHOUT_NODE = (
    "SELECT e.kind, e.origin, u.kind, u.key FROM sona.memory_edge e,"
    " LATERAL (VALUES (e.source_kind, e.source), (e.target_kind, e.target)) u (kind, key)"
    # Outcomes come before their items are nodes, and analogies lead to other spaces.
    " WHERE e.space_id = %(space)s AND e.kind NOT IN ('co_access', 'analogy')"
    " AND NOT EXISTS (SELECT FROM sona.memory_node n WHERE n.space_id = e.space_id AND n.kind = u.kind"
    "  AND n.key = u.key)"
)


class DeepChaos(PatternChaos):
    """Workers of the deep loop, and of the background loop, are killed while outcomes are recorded and learned."""

    loop = deep_worker.LOOP
    helpful = 2

    def __init__(self, home: Path, seed: int) -> None:
        super().__init__(home, seed)
        self._started = 0
        self._episodes: dict[int, int] = dict.fromkeys(self.spaces, 0)
        self._given: dict[int, set[str]] = {space_id: set() for space_id in self.spaces}
        self._connection.execute("UPDATE sona.space SET may_transfer = true")
        # Where there is no table of items, somebody may say where they lie.
        for name in self.names.values():
            for item, vector in enumerate(ITEMS):
                self._connection.execute("SELECT sona.add_memory_node(%s, 'item', %s, %s)", (name, str(item), vector))

    def command(self) -> list[str]:
        return [sys.executable, deep_worker.__file__, self.url]

    def start_worker(self, **environment: str) -> subprocess.Popen[bytes]:
        """Of those that are not told where to die, every other one is of the background loop."""
        self._started += not environment
        if environment or self._started % 2:
            return super().start_worker(**environment)
        return self.start([sys.executable, background_worker.__file__, self.url])

    def grow(self) -> None:
        """An outcome, and sometimes an episode: many are near duplicates, and many of their edges are weak."""
        super().grow()
        if self._random.random() < 0.3:
            space_id = self._random.choice(self.spaces)
            with self._connection.transaction():
                self._add_episode(space_id, self.names[space_id])
        if self._random.random() < 0.1:
            name = self._random.choice(list(self.names.values()))
            self._connection.execute("SELECT sona.run_cycle(%s, 'background')", (name,))

    def _add_episode(self, space_id: int, name: str) -> None:
        number = self._episodes[space_id]
        self._episodes[space_id] += 1
        random = np.random.default_rng((space_id, number, 1))
        vector = EPISODES[number % len(EPISODES)] + 0.02 * random.standard_normal(DIM)
        is_useless = number % 3 == 0
        (node,) = self._connection.execute(
            "SELECT sona.add_memory_node(%s, 'episode', %s, %s, quality => %s)",
            (name, str(number), random.standard_normal(DIM) if is_useless else vector, 0.0 if is_useless else 0.8),
        ).fetchall()[0]
        if is_useless:
            old = "now() - interval '200 days'"
            for table, column in (("memory_node", "created_at"), ("memory_node_state", "last_access")):
                self._connection.execute(
                    f"UPDATE sona.{table} SET {column} = {old} WHERE space_id = %s AND node_id = %s", (space_id, node)
                )
            return
        # To one that is there by now: most of them are merged.
        others = self._connection.execute(
            "SELECT key FROM sona.memory_node WHERE space_id = %s AND kind = 'episode' AND key <> %s"
            " ORDER BY node_id DESC LIMIT 3",
            (space_id, str(number)),
        ).fetchall()
        for (other,) in others:
            weight = deep_worker.PRUNE_WEIGHT / 2 if int(other) % 2 else 0.5
            self._connection.execute(
                "SELECT sona.add_memory_edge(%s, 'episode', %s, 'episode', %s, %s)", (name, str(number), other, weight)
            )
            self._given[space_id].add(" ".join(sorted((str(number), other))))

    def drain(self) -> None:
        super().drain()
        self.finish(self.loop.name, deep_worker.run)

    def wrong_now(self, space_id: int) -> Iterator[str]:
        yield from super().wrong_now(space_id)
        with self.snapshot():
            for wrong, check in _ALWAYS.items():
                if self._connection.execute(check, {"space": space_id}).fetchall() not in ([(True,)], []):
                    yield f"space {space_id}: {wrong}"
            for edge in self._connection.execute(_WITHOUT_NODE, {"space": space_id}).fetchall():
                yield f"space {space_id}: an edge leads to a node that is not there: {edge}"

    def wrong(self, space_id: int) -> Iterator[str]:
        yield from super().wrong(space_id)
        yield from (f"space {space_id}: {wrong}" for wrong in self._lost(space_id))

    def _lost(self, space_id: int) -> Iterator[str]:
        with self.snapshot():
            space = spaces.get_space(self._connection, self.names[space_id])
            edges = EdgeWeights()
            for entry in ledger_events(self._connection, space, 0, MANY):
                assert entry.event is not None
                edges.update(edge_updates(entry.event))
                edges.commit()
            rows = self._connection.execute(
                "SELECT source, target, weight FROM sona.memory_edge WHERE space_id = %s AND kind = 'co_access'",
                (space_id,),
            ).fetchall()
            episodes = self._connection.execute(
                "SELECT n.key FROM sona.memory_node n WHERE n.space_id = %(space)s AND n.kind = 'episode' UNION ALL"
                " SELECT a.content ->> 'key' FROM sona.memory_archive a WHERE a.space_id = %(space)s"
                " AND a.entity = 'node' AND a.content ->> 'kind' = 'episode'",
                {"space": space_id},
            ).fetchall()
            given = self._connection.execute(
                "SELECT e.source || ' ' || e.target FROM sona.memory_edge e WHERE e.space_id = %(space)s"
                " AND e.kind = 'given' UNION SELECT (a.content ->> 'source') || ' ' || (a.content ->> 'target')"
                " FROM sona.memory_archive a WHERE a.space_id = %(space)s AND a.entity = 'edge'"
                " AND a.content ->> 'kind' = 'given'",
                {"space": space_id},
            ).fetchall()
        if len(rows) != len(edges):
            yield f"there are {len(rows)} edges of co-access, in a replay {len(edges)}"
        for source, target, weight in rows:
            if not math.isclose(weight, edges.weight(source, target), rel_tol=1e-6):
                yield f"the edge {source} {target} weighs {weight}, in a replay {edges.weight(source, target)}"
        if sorted(int(key) for (key,) in episodes) != list(range(self._episodes[space_id])):
            yield "an episode is lost, or there twice"
        lost = self._given[space_id] - {name for (name,) in given}
        if lost:
            yield f"edges that were given by hand are lost: {sorted(lost)[:5]}"

    def report(self) -> str:
        """With what was counted."""
        counts = self._connection.execute(
            "SELECT (SELECT count(*) FROM sona.memory_node), (SELECT count(*) FROM sona.memory_edge),"
            " (SELECT count(*) FROM sona.memory_edge WHERE kind = 'creative'), (SELECT count(*) FROM sona.dream),"
            " (SELECT count(*) FROM sona.memory_archive WHERE entity = 'node'),"
            " (SELECT count(*) FROM sona.memory_archive WHERE entity = 'edge'),"
            " (SELECT count(*) FROM sona.memory_archive WHERE reason = 'dreams do not help any more'),"
            " (SELECT count(*) FROM sona.loop_run WHERE state = 'done' AND loop = 'deep')"
        ).fetchall()[0]
        said = (
            "{} nodes and {} edges, {} of them creative; {} dreams; {} nodes and {} edges archived,"
            " {} of them withdrawn; {} deep cycles"
        )
        return f"{super().report()}\n{said.format(*counts)}"


if __name__ == "__main__":
    main(DeepChaos, at_step=2, at_random=16, cuts=6, stops=6)
