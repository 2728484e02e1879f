"""The learning transaction: trajectories, outcomes, learned state, edges and ledger, together or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from psycopg.types.json import Jsonb

from sona_pg.errors import UnknownSpace
from sona_pg.kernels import LowRank
from sona_pg.learning.edges import Edge
from sona_pg.learning.outcome import OutcomeEvent, with_scores
from sona_pg.store.connection import Connection, transaction, translated
from sona_pg.store.spaces import Space
from sona_pg.types import EMPTY, Answer, QueryTrajectory, Score, TrajectoryStep

LOOP = "instant"


@dataclass(frozen=True, slots=True)
class Head:
    """Where the learner of a space stands.

    Parameters
    ----------
    epoch, revision
        Grow with every deploy, and with every flush.
    version
        Last published version.
    events, ordinal
        Events that changed a weight, and ledger entries, so far.
    items_sampled_at
        When the sample of the items was taken; None without items.
    """

    epoch: int
    revision: int
    version: int
    events: int
    ordinal: int
    items_sampled_at: datetime | None

    @property
    def base(self) -> tuple[int, int, datetime | None]:
        """What a local copy of the state was taken from."""
        return self.epoch, self.revision, self.items_sampled_at


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One event and what became of it."""

    event: OutcomeEvent
    learned: str


_HEAD = (
    "SELECT l.epoch, l.revision, l.version, l.events, l.ordinal, i.sampled_at"
    " FROM sona.learner l LEFT JOIN sona.item_source i USING (space_id) WHERE l.space_id = %s"
)


def read_head(connection: Connection, space: Space) -> Head:
    """Where the learner stands, without a lock."""
    with translated():
        row = connection.execute(_HEAD, (space.space_id,)).fetchone()
    if row is None:
        raise UnknownSpace(f"space {space.name!r} is gone: somebody deleted it")
    return Head(*row)


def read_state(connection: Connection, space: Space) -> bytes | None:
    """The learner's state; None before anything was learned."""
    with translated():
        row = connection.execute("SELECT state FROM sona.learner WHERE space_id = %s", (space.space_id,)).fetchone()
    return None if row is None or row[0] is None else bytes(row[0])


class LearningTransaction:
    """One learning transaction, under the row lock of the space's learner."""

    def __init__(self, connection: Connection, space: Space) -> None:
        self._connection = connection
        self._space = space
        row = connection.execute(_HEAD + " FOR UPDATE OF l", (space.space_id,)).fetchone()
        if row is None:
            raise UnknownSpace(f"space {space.name!r} is gone: somebody deleted it")
        self.head = Head(*row)

    def state(self) -> bytes | None:
        """The learner's state; None before anything was learned."""
        return read_state(self._connection, self._space)

    def recorded(self, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Which of these trajectories are in the database already."""
        rows = self._connection.execute(
            "SELECT trajectory_id FROM sona.trajectory WHERE space_id = %s AND trajectory_id = ANY(%s)",
            (self._space.space_id, list(ids)),
        ).fetchall()
        return {row[0] for row in rows}

    def write_trajectories(self, trajectories: Sequence[QueryTrajectory]) -> None:
        """Append trajectories, their steps and, of those whose outcome is known, the queries to remember."""
        if not trajectories:
            return
        space_id = self._space.space_id
        cursor = self._connection.cursor()
        with cursor.copy(
            "COPY sona.trajectory (space_id, trajectory_id, query, quality, latency_us, user_id, session_id, metadata,"
            " arm, version, strategy, propensity) FROM STDIN (FORMAT BINARY)"
        ) as copy:
            copy.set_types(
                ["int8", "uuid", "vector", "float4", "int8", "text", "text", "jsonb", "text", "int8", "text", "float4"]
            )
            for t in trajectories:
                a = t.answer
                copy.write_row(
                    (space_id, t.id, t.query_embedding, t.final_quality, t.latency_us, t.user_id, t.session_id)
                    + (Jsonb(t.metadata), a.arm, a.version, a.strategy, a.propensity)
                )
        with cursor.copy(
            "COPY sona.trajectory_step (space_id, trajectory_id, ordinal, item_id, position, reward, attention,"
            " activation) FROM STDIN (FORMAT BINARY)"
        ) as copy:
            copy.set_types(["int8", "uuid", "int4", "text", "int4", "float4", "float4[]", "vector"])
            for t in trajectories:
                for ordinal, step in enumerate(t.steps):
                    copy.write_row(
                        (space_id, t.id, ordinal, step.item_id, step.position, step.reward)
                        + (
                            step.attention_weights if step.attention_weights.size else None,
                            step.activations if step.activations.size else None,
                        )
                    )
        self._remember(t for t in trajectories if t.has_outcome)

    def _remember(self, trajectories: Iterable[QueryTrajectory]) -> None:
        with self._connection.cursor().copy(
            "COPY sona.remembered_query (space_id, trajectory_id, embedding) FROM STDIN (FORMAT BINARY)"
        ) as copy:
            copy.set_types(["int8", "uuid", "vector"])
            for t in trajectories:
                copy.write_row((self._space.space_id, t.id, t.query_embedding))

    def write_scores(self, scores: Sequence[Score], recorded_now: Sequence[QueryTrajectory]) -> list[OutcomeEvent]:
        """Append late outcomes, and give the events that they make of trajectories that are there.

        A score id that is known already changes nothing. A score without its trajectory waits for it.
        """
        connection, space_id = self._connection, self._space.space_id
        fresh: set[str] = set()
        for s in scores:
            row = connection.execute(
                "INSERT INTO sona.score (space_id, score_id, trajectory_id, item_id, name, value, created_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, clock_timestamp()) ON CONFLICT DO NOTHING RETURNING score_id",
                (space_id, s.score_id, s.trajectory_id, s.item_id, s.name, s.value),
            ).fetchone()
            if row is not None:
                fresh.add(row[0])
        touched = {s.trajectory_id for s in scores if s.score_id in fresh} | {t.id for t in recorded_now}
        rows = connection.execute(
            "SELECT trajectory_id, score_id, item_id, name, value FROM sona.score"
            " WHERE space_id = %s AND trajectory_id = ANY(%s) ORDER BY created_at, score_id",
            (space_id, list(touched)),
        ).fetchall()
        known = {t.id: t for t in recorded_now}
        by_trajectory: dict[uuid.UUID, list[Score]] = {}
        for trajectory_id, score_id, item_id, name, value in rows:
            by_trajectory.setdefault(trajectory_id, []).append(Score(trajectory_id, value, item_id, name, score_id))
        events = []
        for trajectory_id, all_scores in by_trajectory.items():
            trajectory = known.get(trajectory_id) or self.trajectory(trajectory_id)
            if trajectory is None:
                continue
            earlier = [s for s in all_scores if s.score_id not in fresh and trajectory_id not in known]
            before, after = with_scores(trajectory, earlier), with_scores(trajectory, all_scores)
            if not before.has_outcome and after.has_outcome:
                self._remember([after])
            events.append(
                OutcomeEvent(
                    after,
                    revision=self._next_revision(trajectory_id),
                    taught={s.item_id: s.reward for s in before.steps if s.item_id and s.reward is not None},
                    had_outcome=before.has_outcome,
                )
            )
        return events

    def _next_revision(self, trajectory_id: uuid.UUID) -> int:
        row = self._connection.execute(
            "SELECT coalesce(max(revision), 0) + 1 FROM sona.learning_event"
            " WHERE space_id = %s AND loop = %s AND trajectory_id = %s",
            (self._space.space_id, LOOP, trajectory_id),
        ).fetchone()
        return 1 if row is None else int(row[0])

    def trajectory(self, trajectory_id: uuid.UUID) -> QueryTrajectory | None:
        """A trajectory as it was recorded, if it is there."""
        space_id = self._space.space_id
        row = self._connection.execute(
            "SELECT query, quality, latency_us, user_id, session_id, metadata, arm, version, strategy, propensity"
            " FROM sona.trajectory WHERE space_id = %s AND trajectory_id = %s",
            (space_id, trajectory_id),
            binary=True,
        ).fetchone()
        if row is None:
            return None
        steps = self._connection.execute(
            "SELECT activation, attention, reward, item_id, position FROM sona.trajectory_step"
            " WHERE space_id = %s AND trajectory_id = %s ORDER BY ordinal",
            (space_id, trajectory_id),
            binary=True,
        ).fetchall()
        query, quality, latency_us, user_id, session_id, metadata, *answer = row
        return QueryTrajectory(
            id=trajectory_id,
            query_embedding=query,
            steps=tuple(
                TrajectoryStep(
                    EMPTY if activation is None else activation,
                    EMPTY if attention is None else np.array(attention, dtype=np.float32),
                    reward,
                    0.0,
                    item_id,
                    position,
                )
                for activation, attention, reward, item_id, position in steps
            ),
            final_quality=quality,
            latency_us=latency_us,
            user_id=user_id,
            session_id=session_id,
            metadata=metadata,
            answer=Answer(*answer),
        )

    def edge_weights(self, edges: Sequence[Edge]) -> dict[Edge, float]:
        """Weights of these co-access edges, of those that there are."""
        # Most items that are shown have no edges yet: asking for these items first spares most of the pairs.
        items = list(dict.fromkeys(item for edge in edges for item in edge))
        rows = self._connection.execute(
            "SELECT i FROM unnest(%(items)s::text[]) AS i WHERE EXISTS (SELECT FROM sona.memory_edge e"
            " WHERE e.space_id = %(space)s AND e.kind = 'co_access' AND e.source = i)"
            " OR EXISTS (SELECT FROM sona.memory_edge e"
            " WHERE e.space_id = %(space)s AND e.kind = 'co_access' AND e.target = i)",
            {"items": items, "space": self._space.space_id},
        ).fetchall()
        connected = {row[0] for row in rows}
        wanted = [edge for edge in edges if connected.issuperset(edge)]
        if not wanted:
            return {}
        rows = self._connection.execute(
            "SELECT e.source, e.target, e.weight FROM unnest(%s::text[], %s::text[]) AS k (source, target)"
            " JOIN sona.memory_edge e ON e.space_id = %s AND e.kind = 'co_access'"
            " AND e.source = k.source AND e.target = k.target",
            ([a for a, _ in wanted], [b for _, b in wanted], self._space.space_id),
        ).fetchall()
        return {(a, b): weight for a, b, weight in rows}

    def write_edges(self, weights: dict[Edge, float]) -> None:
        """Set weights of co-access edges."""
        if not weights:
            return
        self._connection.execute(
            "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight)"
            " SELECT %s, 'co_access', k.source, k.target, k.weight"
            " FROM unnest(%s::text[], %s::text[], %s::float8[]) AS k (source, target, weight)"
            " ON CONFLICT (space_id, kind, source, target)"
            " DO UPDATE SET weight = excluded.weight, updated_at = now()",
            (self._space.space_id, [a for a, _ in weights], [b for _, b in weights], list(weights.values())),
        )

    def write_learner(
        self,
        state: bytes,
        served: dict[str, LowRank],
        entries: Sequence[LedgerEntry],
        learned: int,
        *,
        started_at: datetime,
        replayed: bool,
        worker: str,
        publish_every_events: int,
    ) -> Head:
        """Write the state, the served map and the ledger; publish a version when enough was learned since the last."""
        connection, space_id, head = self._connection, self._space.space_id, self.head
        revision, events = head.revision + 1, head.events + learned
        publish = events // publish_every_events > head.events // publish_every_events
        version = head.version + publish
        after = replace(head, revision=revision, version=version, events=events, ordinal=head.ordinal + len(entries))
        connection.execute(
            "UPDATE sona.learner SET revision = %s, version = %s, events = %s, ordinal = %s, state = %s,"
            " updated_at = now() WHERE space_id = %s",
            (revision, version, events, after.ordinal, state, space_id),
        )
        if learned:
            self._write_served(served)
        if publish:
            connection.execute(
                "INSERT INTO sona.adapter_version"
                " (space_id, version, parent, epoch, revision, events, cause, state, checksum)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (space_id, version, head.version or None, head.epoch, revision, events)
                + (f"{events} events learned", state, hashlib.sha256(state).digest()),
            )
        connection.execute(
            "INSERT INTO sona.learning_cycle"
            " (space_id, cycle_id, loop, epoch, version, events, learned, replayed, worker, started_at, finished_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp())",
            (space_id, revision, LOOP, head.epoch, version, len(entries), learned, replayed, worker, started_at),
        )
        with connection.cursor().copy(
            "COPY sona.learning_event (space_id, loop, trajectory_id, revision, cycle_id, ordinal, learned)"
            " FROM STDIN (FORMAT BINARY)"
        ) as copy:
            copy.set_types(["int8", "text", "uuid", "int4", "int8", "int8", "text"])
            for place, entry in enumerate(entries):
                trajectory_id, outcome_revision = entry.event.key
                copy.write_row(
                    (space_id, LOOP, trajectory_id, outcome_revision, revision, head.ordinal + place, entry.learned)
                )
        return after

    def _write_served(self, served: dict[str, LowRank]) -> None:
        rows = []
        for tier, low_rank in served.items():
            if low_rank.is_zero:
                continue
            rank = low_rank.rank
            for k in range(rank):
                up = low_rank.weights[rank + k] * np.float32(low_rank.scale)
                # pgvector's product refuses underflow, so what is too small to matter is written as zero.
                rows.append((tier, k, low_rank.weights[k], np.where(np.abs(up) < 1e-20, np.float32(0), up)))
        self._connection.cursor().executemany(
            "INSERT INTO sona.served_row (space_id, tier, ordinal, down, up) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (space_id, tier, ordinal) DO UPDATE SET down = excluded.down, up = excluded.up",
            [(self._space.space_id, *row) for row in rows],
        )


@contextlib.contextmanager
def learning_transaction(connection: Connection, space: Space) -> Iterator[LearningTransaction]:
    """Begin a learning transaction; commits at the end, rolls back on any error."""
    with transaction(connection):
        yield LearningTransaction(connection, space)
