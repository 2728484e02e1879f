"""What the background loop reads of the ledger: outcomes that no cycle has taken in, and how far the patterns are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

from psycopg.sql import SQL, Literal
from psycopg.types.json import Jsonb

from sona_pg.errors import LockLost
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.verdicts import Verdict
from sona_pg.store.connection import Connection, snapshot_transaction
from sona_pg.store.patterns import PatternState, read_patterns, read_verdicts
from sona_pg.store.spaces import Space, space_gone
from sona_pg.types import FloatVector, Json

MAX_PARAMETERS_BYTES = 64 << 10
"""Longest parameters of a trajectory, as JSON in UTF-8: more of them than any bank keeps."""

_READ_AT_ONCE = 500
"""Outcomes that the driver holds."""


class KnownOutcome(NamedTuple):
    """A trajectory whose outcome is known.

    Parameters
    ----------
    ordinal
        Ledger entry that said first what it was worth.
    query
        The query (dim,).
    quality
        What it was worth, 0 to 1, late scores included; None where nobody has judged anything.
    strategy
        What answered.
    parameters, precision, recall
        As the application has recorded them; None where they are not asked for.
    """

    ordinal: int
    query: FloatVector
    quality: float | None
    strategy: str
    parameters: Json
    precision: Json
    recall: Json


class Part(NamedTuple):
    """Outcomes of a range of ledger entries.

    Parameters
    ----------
    first, last
        Ledger entries.
    size
        Outcomes that they said.
    """

    first: int
    last: int
    size: int


@contextlib.contextmanager
def pattern_reader(connection: Connection, space: Space, snapshot: str | None = None) -> Iterator[PatternReader]:
    """Reads what a cycle begins with, all of it as of one moment: that of a snapshot of another reader, if given."""
    with snapshot_transaction(connection):
        if snapshot is not None:
            connection.execute(SQL("SET TRANSACTION SNAPSHOT {}").format(Literal(snapshot)))
        yield PatternReader(connection, space)


class PatternReader:
    """Reads, in one transaction, what a cycle begins with."""

    def __init__(self, connection: Connection, space: Space) -> None:
        self._connection = connection
        self._space = space

    def state(self, ordinal: int, settings: Mapping[str, Json]) -> PatternState:
        """How far the patterns are, and how far they may read: to ledger entry `ordinal`, and what was weighed.

        Parameters
        ----------
        ordinal
            Ledger entries when the cycle began.
        settings
            What it recommends by.
        """
        row = self._connection.execute(
            "SELECT coalesce(p.consumed, 0), greatest(least(%(ordinal)s, g.ordinal), coalesce(p.consumed, 0)),"
            " coalesce(p.last_id, 0), coalesce(p.generation, 0), coalesce(p.waiting, '{}'),"
            " extract(epoch FROM clock_timestamp())::float8, p.settings IS DISTINCT FROM %(settings)s"
            "  AND EXISTS (SELECT FROM sona.verdict v WHERE v.space_id = g.space_id),"
            " EXISTS (SELECT FROM sona.answer_outcome o WHERE o.space_id = g.space_id)"
            " FROM sona.strategist g LEFT JOIN sona.pattern_state p USING (space_id) WHERE g.space_id = %(space)s",
            {"space": self._space.space_id, "ordinal": ordinal, "settings": Jsonb(dict(settings))},
        ).fetchone()
        if row is None:
            raise space_gone(self._space.name, LockLost)
        consumed, horizon, last_id, generation, waiting, *rest = row
        return PatternState(consumed, horizon, last_id, generation, frozenset(waiting), *rest)

    def new_outcomes(self, state: PatternState, most: int) -> int:
        """How many outcomes no cycle has taken in, up to `most`."""
        row = self._connection.execute(
            f"SELECT count(*) FROM (SELECT FROM ({_source(state)}) o"
            " JOIN sona.trajectory t ON t.space_id = %(space)s AND t.trajectory_id = o.trajectory_id"
            " WHERE o.ordinal >= %(consumed)s AND o.ordinal < %(horizon)s LIMIT %(most)s) n",
            {
                "space": self._space.space_id,
                "consumed": state.consumed,
                "horizon": state.horizon,
                "most": most,
            },
        ).fetchone()
        assert row is not None
        return int(row[0])

    def snapshot(self) -> str:
        """A name by which other readers see what this one sees, as long as it is open."""
        row = self._connection.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        return str(row[0])

    def parts(self, state: PatternState, most: int, rows: int) -> list[Part]:
        """The newest outcomes, up to `most`, as parts of equal size, none of more than `rows`, the oldest first."""
        found = self._connection.execute(
            "SELECT min(ordinal), max(ordinal), count(*) FROM ("
            "  SELECT ordinal, (row_number() OVER (ORDER BY ordinal) - 1)"
            "   / ceil(n::float8 / ceil(n::float8 / %(rows)s))::bigint AS part"
            f"  FROM (SELECT ordinal, count(*) OVER () AS n FROM (SELECT ordinal FROM ({_source(state)}) o"
            "   WHERE ordinal < %(horizon)s ORDER BY ordinal DESC LIMIT %(most)s) newest"
            "  ) counted) cut GROUP BY part ORDER BY part",
            {"space": self._space.space_id, "horizon": state.horizon, "most": most, "rows": rows},
        ).fetchall()
        return [Part(*row) for row in found]

    def outcomes(self, state: PatternState, part: Part) -> Iterator[KnownOutcome]:
        """The outcomes of a part, the oldest first; with parameters where none has counted them."""
        # A cursor, so that no more is in memory than is asked for.
        with self._connection.cursor(name="sona_outcomes") as cursor:
            cursor.itersize = _READ_AT_ONCE
            cursor.execute(
                "SELECT o.ordinal, t.query, o.value, o.strategy,"
                " CASE WHEN m.is_new AND octet_length((t.metadata -> 'parameters')::text) <= %(bytes)s"
                "  THEN (t.metadata -> 'parameters')::text"
                "  WHEN m.is_new AND t.metadata ? 'parameters' THEN '\"too long\"' END,"
                f" {_number_if_new('precision')}, {_number_if_new('recall')}"
                f" FROM (SELECT * FROM ({_source(state)}) s WHERE ordinal BETWEEN %(first)s AND %(last)s) o"
                " JOIN sona.trajectory t ON t.space_id = %(space)s AND t.trajectory_id = o.trajectory_id,"
                " LATERAL (SELECT o.ordinal >= %(consumed)s OR o.ordinal = ANY(%(waiting)s::bigint[])) m (is_new)"
                " ORDER BY o.ordinal",
                {
                    "space": self._space.space_id,
                    "first": part.first,
                    "last": part.last,
                    "consumed": state.consumed,
                    "waiting": sorted(state.waiting),
                    "bytes": MAX_PARAMETERS_BYTES,
                },
                binary=True,
            )
            for ordinal, query, quality, strategy, *recorded in cursor:
                parameters, precision, recall = map(_json, recorded)
                yield KnownOutcome(ordinal, query, quality, strategy, parameters, precision, recall)

    def patterns(self) -> dict[int, LearnedPattern]:
        """All patterns, by id, without their text: that is the application's, and may be long."""
        return read_patterns(self._connection, self._space.space_id)

    def verdicts(self) -> dict[int, dict[str, Verdict]]:
        """All verdicts, by pattern and parameter."""
        return read_verdicts(self._connection, self._space)


def _source(state: PatternState) -> str:
    """What patterns are made of: outcomes; all that was answered, as long as nobody has judged any of it."""
    if state.is_judged:
        return "SELECT ordinal, trajectory_id, value, strategy FROM sona.answer_outcome WHERE space_id = %(space)s"
    return (
        "SELECT ordinal, trajectory_id, NULL::float8 AS value, 'unknown' AS strategy FROM sona.learning_event"
        " WHERE space_id = %(space)s AND loop = 'instant' AND revision = 0"
    )


def _number_if_new(key: str) -> str:
    """A number in the metadata of what was not counted; where it is none, a text that says so and is not long."""
    return (
        f"CASE WHEN NOT m.is_new OR NOT t.metadata ? '{key}' THEN NULL"
        f" WHEN jsonb_typeof(t.metadata -> '{key}') IN ('number', 'null') THEN (t.metadata -> '{key}')::text"
        " ELSE '\"no number\"' END"
    )


def _json(text: str | None) -> Json:
    """JSON that an application has recorded; a text that says so where Python cannot read it, as it may be any."""
    try:
        return None if text is None else cast(Json, json.loads(text))
    except (ValueError, RecursionError):
        # A number of more than 4,300 digits, a list in a list a thousand times.
        return "unreadable"
