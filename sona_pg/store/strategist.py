"""The strategist's transaction: entries taken in, what they showed and what is remembered, together or not at all."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np

from sona_pg.errors import UnknownVersion
from sona_pg.learning.associations import Associations
from sona_pg.learning.outcome import Outcome
from sona_pg.learning.remembered import FloatMatrix, Remembered
from sona_pg.learning.strategies import InForce, Restored, Strategy, Turn
from sona_pg.store.connection import Connection, translated, writing
from sona_pg.store.learning import read_state
from sona_pg.store.served_rows import served_map, write_served
from sona_pg.store.served_strategy import CAREFUL, PROVEN, unit_rows
from sona_pg.store.spaces import Space
from sona_pg.store.strategist_standing import Adopted, News, read_news
from sona_pg.store.versions import read_version
from sona_pg.types import Answer, FloatVector


class Memory(NamedTuple):
    """What a reader of the ledger keeps of what is remembered.

    Parameters
    ----------
    latest
        Unit queries (n, dim) that were remembered last, oldest first.
    prototypes
        Unit queries (m, dim) by which familiar ground is told.
    """

    latest: FloatMatrix
    prototypes: FloatMatrix


class MemoryExtent(NamedTuple):
    """How many prototypes there are, and by which ledger entry the oldest event is remembered."""

    prototypes: int
    oldest: int | None


class _Held(NamedTuple):
    """What the row of the strategist holds.

    Parameters
    ----------
    ordinal
        Ledger entries taken in so far.
    epoch
        Grows whenever somebody changes what answers.
    restored
        Version that was deployed, and is not in the state yet.
    strategy
        What the space is set to.
    lift
        State of the lift test; None before the first answer.
    changed_at
        When somebody last changed what answers; None if nobody did.
    adopted
        What was taken over from the other loops.
    """

    ordinal: int
    epoch: int
    restored: int | None
    strategy: str
    lift: bytes | None
    changed_at: datetime | None
    adopted: Adopted


class StrategistTransaction:
    """One transaction of the strategist, under its row lock."""

    def __init__(self, connection: Connection, space: Space, standing: _Held) -> None:
        self._connection = connection
        self._space = space
        self.held = standing
        """What the row holds."""

    def state(self) -> bytes | None:
        """The strategist's state; None before the first event."""
        row = self._connection.execute(
            "SELECT state FROM sona.strategist WHERE space_id = %s", (self._space.space_id,)
        ).fetchone()
        return None if row is None or row[0] is None else bytes(row[0])

    def restored(self, version: int) -> Restored:
        """What the version that was deployed brings back to the strategist.

        Raises
        ------
        UnknownVersion, LearningError
            If it is gone, or damaged.
        """
        connection, space = self._connection, self._space
        key = (space.space_id,)
        maps: dict[str, list[tuple[FloatVector, FloatVector]]] = {PROVEN: [], CAREFUL: []}
        for tier, down, up in connection.execute(
            "SELECT tier, down, up FROM sona.version_row WHERE space_id = %s AND version = %s AND tier = ANY(%s)"
            " ORDER BY tier, ordinal",
            (space.space_id, version, list(maps)),
            binary=True,
        ):
            maps[tier].append((down, up))
        row = connection.execute("SELECT evidence FROM sona.strategist WHERE space_id = %s", key).fetchone()
        regions = connection.execute(
            "SELECT centroid, verdict FROM sona.strategy_region WHERE space_id = %s ORDER BY region", key, binary=True
        ).fetchall()
        centroids = np.stack([c for c, _ in regions]) if regions else np.zeros((0, space.dim), dtype=np.float32)
        return Restored(
            None if row is None or row[0] is None else bytes(row[0]),
            read_version(connection, space, version),
            served_map(maps[PROVEN]),
            served_map(maps[CAREFUL]),
            centroids,
            tuple(verdict for _, verdict in regions),
        )

    def news(self) -> News:
        """What the other loops have made by now."""
        return read_news(self._connection, self._space)

    def associations(self, run: int) -> Associations | None:
        """The memory graph as a cycle has left it; None if that is not kept any more.

        Raises
        ------
        LearningError
            If it is damaged.
        """
        row = self._connection.execute(
            "SELECT content FROM sona.memory_snapshot WHERE space_id = %s AND run_id = %s", (self._space.space_id, run)
        ).fetchone()
        return None if row is None else Associations.from_bytes(bytes(row[0]))

    def patterns(self, most: int) -> tuple[list[int], FloatMatrix]:
        """Ids and unit centroids (n, dim) of the patterns that most outcomes speak for, at most so many."""
        rows = self._connection.execute(
            "SELECT pattern_id, centroid FROM sona.pattern WHERE space_id = %s AND abstraction_level = 0"
            " ORDER BY support DESC, pattern_id LIMIT %s",
            (self._space.space_id, most),
            binary=True,
        ).fetchall()
        return [id for id, _ in rows], unit_rows([centroid for _, centroid in rows], self._space.dim)

    def learner(self, version: int) -> bytes:
        """The state of the learner that a version has; the one that it has now, if the version is gone."""
        try:
            return read_version(self._connection, self._space, version)
        except UnknownVersion:
            state = read_state(self._connection, self._space)
            if state is None:
                raise
            return state

    def adopt(self, adopted: Adopted) -> None:
        """Note down what was taken over; to be followed by `write`."""
        # Another base may be of a smaller rank.
        self._connection.execute(
            "DELETE FROM sona.served_row WHERE space_id = %s AND tier = %s", (self._space.space_id, PROVEN)
        )
        self._connection.execute(
            "UPDATE sona.strategist SET patterns_run = %s, base_version = %s, memory_run = %s WHERE space_id = %s",
            (*adopted, self._space.space_id),
        )
        # What was asked before is not asked again.
        self._connection.execute(
            "DELETE FROM sona.memory_snapshot WHERE space_id = %s AND run_id < %s",
            (self._space.space_id, adopted.memory_run),
        )

    def freeze(self, reason: str) -> None:
        """Answer by the frozen embedding from now on, whatever is proven."""
        self._connection.execute("SELECT sona._freeze(%s, %s)", (self._space.space_id, reason))

    def memory(self, latest: int) -> Memory:
        """The last queries that were remembered, and the prototypes."""
        newest = self._connection.execute(
            "SELECT embedding FROM sona.remembered_query WHERE space_id = %s AND ordinal IS NOT NULL"
            " ORDER BY ordinal DESC LIMIT %s",
            (self._space.space_id, latest),
            binary=True,
        ).fetchall()
        prototypes = self._connection.execute(
            "SELECT embedding FROM sona.remembered_query WHERE space_id = %s AND is_prototype ORDER BY ordinal",
            (self._space.space_id,),
            binary=True,
        ).fetchall()
        dim = self._space.dim
        return Memory(unit_rows([v for (v,) in newest[::-1]], dim), unit_rows([v for (v,) in prototypes], dim))

    def memory_extent(self) -> MemoryExtent:
        """How far the memory reaches: it differs once something was deleted."""
        row = self._connection.execute(
            "SELECT (SELECT count(*) FROM sona.remembered_query WHERE space_id = %(space)s AND is_prototype),"
            " (SELECT ordinal FROM sona.remembered_query WHERE space_id = %(space)s ORDER BY ordinal LIMIT 1)",
            {"space": self._space.space_id},
        ).fetchone()
        return MemoryExtent(0, None) if row is None else MemoryExtent(*row)

    def near(self, query: FloatVector, k: int) -> list[Remembered]:
        """The k remembered events nearest to a query (dim,), nearest first."""
        rows = self._connection.execute(
            "SELECT similarity, helped, rewards, unhelpful FROM unnest(sona._near_events(%s, %s, %s, %s))",
            (self._space.space_id, self._space.dim, query, k),
            binary=True,
        )
        return [
            Remembered(similarity, dict(zip(helped, rewards, strict=True)), tuple(unhelpful))
            for similarity, helped, rewards, unhelpful in rows
        ]

    def nearest_items(self, query: FloatVector, k: int) -> list[str]:
        """The k items nearest to a query (dim,).

        Raises
        ------
        ConfigError
            If the space has no items table, or it or a column of it is gone.
        """
        rows = self._connection.execute(
            "SELECT item_id FROM sona._search_items(%s, %s, %s)", (self._space.space_id, query, k)
        ).fetchall()
        return [row[0] for row in rows]

    def times_helped(self, items: Collection[str]) -> dict[str, int]:
        """In how many remembered events items helped, of those that ever did."""
        rows = self._connection.execute(
            "SELECT item_id, helped FROM sona.item_outcome WHERE space_id = %s AND item_id = ANY(%s)",
            (self._space.space_id, list(items)),
        ).fetchall()
        return dict(rows)

    def remember(
        self, ordinal: int, trajectory_id: uuid.UUID, query: FloatVector, outcome: Outcome, *, is_prototype: bool
    ) -> bool:
        """Remember an event by its query and what it was worth; whether it is new.

        A later outcome takes the place of an earlier one.
        """
        row = self._connection.execute(
            "WITH before AS (SELECT helped FROM sona.remembered_query"
            " WHERE space_id = %(space)s AND trajectory_id = %(id)s),"
            " change AS (SELECT item, sum(one) AS by FROM ("
            "  SELECT unnest(%(helped)s::text[]) AS item, 1 AS one UNION ALL SELECT unnest(helped), -1 FROM before) c"
            "  GROUP BY item HAVING sum(one) <> 0),"
            " counted AS (INSERT INTO sona.item_outcome AS o (space_id, item_id, helped)"
            "  SELECT %(space)s, item, greatest(by, 0) FROM change ON CONFLICT (space_id, item_id) DO UPDATE"
            "  SET helped = greatest(o.helped + (SELECT by FROM change WHERE item = excluded.item_id), 0)),"
            " remembered AS (INSERT INTO sona.remembered_query"
            "  (space_id, trajectory_id, embedding, ordinal, helped, rewards, unhelpful, is_prototype)"
            "  VALUES (%(space)s, %(id)s, %(query)s, %(ordinal)s, %(helped)s, %(rewards)s, %(unhelpful)s,"
            "  %(is_prototype)s)"
            "  ON CONFLICT (space_id, trajectory_id) DO UPDATE"
            "  SET helped = excluded.helped, rewards = excluded.rewards, unhelpful = excluded.unhelpful)"
            " SELECT NOT EXISTS (SELECT FROM before)",
            {
                "space": self._space.space_id,
                "id": trajectory_id,
                "query": query,
                "ordinal": ordinal,
                "helped": list(outcome.helped),
                "rewards": list(outcome.helped.values()),
                "unhelpful": list(outcome.unhelpful),
                "is_prototype": is_prototype,
            },
        ).fetchone()
        return row is not None and bool(row[0])

    def log_turn(self, ordinal: int, trajectory_id: uuid.UUID, turn: Turn) -> None:
        """Note down that another strategy came into force."""
        self._connection.execute(
            "INSERT INTO sona.strategy_turn (space_id, ordinal, trajectory_id, region, before, after, reason)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (self._space.space_id, ordinal, trajectory_id, turn.region, turn.before, turn.after, turn.reason),
        )

    def known_outcomes(self, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Of which of these answers it is known already what they were worth."""
        rows = self._connection.execute(
            "SELECT trajectory_id FROM sona.answer_outcome WHERE space_id = %s AND trajectory_id = ANY(%s)",
            (self._space.space_id, list(ids)),
        ).fetchall()
        return {row[0] for row in rows}

    def write_outcomes(self, outcomes: Sequence[AnswerOutcome], lift: bytes, suspected_share: float) -> None:
        """Write what answers were worth, and what the arms have shown by it. A later outcome corrects the value."""
        if not outcomes:
            return
        space_id = self._space.space_id
        self._connection.cursor().executemany(
            "INSERT INTO sona.answer_outcome AS o"
            " (space_id, trajectory_id, ordinal, answered_at, arm, strategy, version, propensity, value, contrast,"
            " gain)"
            " SELECT %s, t.trajectory_id, %s, t.created_at, %s, %s, %s, %s, %s, %s, %s FROM sona.trajectory t"
            " WHERE t.space_id = %s AND t.trajectory_id = %s"
            " ON CONFLICT (space_id, trajectory_id) DO UPDATE SET value = excluded.value,"
            " gain = coalesce(o.gain, excluded.gain)",
            [
                (space_id, o.ordinal, o.answer.arm, o.answer.strategy, o.answer.version, o.answer.propensity, o.value)
                + (o.contrast, o.gain, space_id, o.trajectory_id)
                for o in outcomes
            ],
        )
        self._connection.execute(
            "UPDATE sona.strategist SET lift = %s, suspected_share = %s WHERE space_id = %s",
            (lift, suspected_share, space_id),
        )

    def skip(self, ordinal: int) -> None:
        """Note down that entries before `ordinal` were taken in, and that nothing came of them."""
        self._connection.execute(
            "UPDATE sona.strategist SET ordinal = %s, remembered_until = NULL, updated_at = now() WHERE space_id = %s",
            (ordinal, self._space.space_id),
        )

    def write(self, ordinal: int, state: bytes, evidence: bytes, found: InForce) -> None:
        """Write the state, its small part, what is in force, and the evidence."""
        space_id = self._space.space_id
        self._connection.execute(
            "UPDATE sona.strategist SET ordinal = %s, events = %s, in_force = %s, is_sane = %s, known = %s,"
            " strange = %s, unseen = %s, weights = %s, state = %s, evidence = %s, restored = NULL,"
            " remembered_until = NULL, updated_at = now()"
            " WHERE space_id = %s",
            (ordinal, found.events, found.strategy, found.is_sane, found.known, found.strange, found.unseen)
            + (found.weights.tolist(), state, evidence, space_id),
        )
        write_served(self._connection, space_id, {PROVEN: found.proven, CAREFUL: found.careful})
        cursor = self._connection.cursor()
        cursor.executemany(
            "INSERT INTO sona.strategy_evidence (space_id, strategy, events, gain, recent_gain)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (space_id, strategy)"
            " DO UPDATE SET events = excluded.events, gain = excluded.gain, recent_gain = excluded.recent_gain",
            [(space_id, strategy, found.events, *gains) for strategy, gains in found.gains.items()],
        )
        cursor.executemany(
            "INSERT INTO sona.strategy_region (space_id, region, centroid, events, gain, verdict, pattern_id)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (space_id, region)"
            " DO UPDATE SET centroid = excluded.centroid, events = excluded.events, gain = excluded.gain,"
            " verdict = excluded.verdict, pattern_id = excluded.pattern_id",
            [
                (space_id, place, region.centroid, region.events, region.gain, int(region.verdict), region.pattern)
                for place, region in enumerate(found.regions)
            ],
        )


class AnswerOutcome(NamedTuple):
    """What an answer was worth.

    Parameters
    ----------
    trajectory_id
        The answer.
    ordinal
        Ledger entry that said so.
    answer
        How it came about.
    value
        What it was worth, 0 to 1.
    contrast
        Estimate of the lift by it; None where there was no control arm, or an earlier entry gave it.
    gain
        nDCG@10 of what answers above frozen, on the items that were judged.
    """

    trajectory_id: uuid.UUID
    ordinal: int
    answer: Answer
    value: float
    contrast: float | None
    gain: float | None


def read_states(connection: Connection, space: Space) -> tuple[bytes | None, bytes | None]:
    """The strategist's state, and that of the lift; None before the first event, and the first answer."""
    with translated():
        row = connection.execute(
            "SELECT state, lift FROM sona.strategist WHERE space_id = %s", (space.space_id,)
        ).fetchone()
    state, lift = (None, None) if row is None else row
    return None if state is None else bytes(state), None if lift is None else bytes(lift)


@contextlib.contextmanager
def strategist_transaction(connection: Connection, space: Space) -> Iterator[StrategistTransaction | None]:
    """Begin a transaction of the strategist; None if another process is at it, or the space is gone.

    Commits at the end, rolls back on any error.
    """
    with writing(connection):
        row = connection.execute(
            "SELECT ordinal, epoch, restored, patterns_run, base_version, memory_run FROM sona.strategist"
            " WHERE space_id = %s"
            " FOR UPDATE SKIP LOCKED",
            (space.space_id,),
        ).fetchone()
        if row is None:
            yield None
            return
        # Read behind the lock: a deploy has changed both, or neither.
        setting = connection.execute(
            "SELECT s.strategy, g.lift, g.changed_at FROM sona.space s JOIN sona.strategist g USING (space_id)"
            " WHERE space_id = %s",
            (space.space_id,),
        ).fetchone()
        strategy, lift, changed_at = (Strategy.FROZEN, None, None) if setting is None else setting
        ordinal, epoch, restored, *adopted = row
        held = _Held(
            ordinal, epoch, restored, strategy, None if lift is None else bytes(lift), changed_at, Adopted(*adopted)
        )
        yield StrategistTransaction(connection, space, held)
