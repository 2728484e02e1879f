"""Patterns and verdicts: what the background loop has made of the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from sona_pg.errors import LockLost
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.resumed_bank import Advance
from sona_pg.learning.verdicts import Evidence, Verdict
from sona_pg.store.connection import Connection, translated
from sona_pg.store.runs import Run
from sona_pg.store.spaces import Space
from sona_pg.types import Json

_MOST_ACCESSES = 1 << 61
"""What is added up: an application may have written any count, and the sum of two would be no bigint."""


FORGOTTEN_PATTERNS = "patterns"
"""What the audit trail says that somebody has forgotten, where it was all patterns, and with them what was imported."""


@dataclass(frozen=True, slots=True)
class PatternState:
    """How far the patterns of a space have read its ledger.

    Parameters
    ----------
    consumed
        Entries whose outcomes were taken in.
    horizon
        Entries whose outcomes are known.
    last_id
        The last id of a pattern that was given.
    generation
        Grows when a user is forgotten.
    waiting
        Entries among the consumed that belonged to no pattern, and have not been counted.
    now
        The time of the database, in seconds since the epoch.
    is_stale
        Whether there are verdicts from which a cycle of other settings has recommended.
    is_judged
        Whether any outcome is known. Before, patterns are made of the queries alone: there are kinds of them, of which
        nothing is known.
    """

    consumed: int
    horizon: int
    last_id: int
    generation: int
    waiting: frozenset[int]
    now: float
    is_stale: bool
    is_judged: bool


_COLUMNS = (
    "p.pattern_id, p.centroid, p.cluster_size, p.total_weight, p.avg_quality, p.confidence, p.support, p.best_strategy,"
    " p.abstraction_level, p.children, coalesce(a.access_count, 0),"
    " extract(epoch FROM coalesce(a.last_accessed, p.created_at))::float8, extract(epoch FROM p.created_at)::float8,"
    " extract(epoch FROM p.updated_at)::float8, extract(epoch FROM p.decayed_at)::float8"
)

PATTERN_COLUMNS = f"{_COLUMNS}, p.title, p.description, p.content"
"""What `pattern_of` makes a pattern of: of a pattern p, and of its pattern_access a."""


def read_patterns(connection: Connection, space_id: int, ids: Sequence[int] | None = None) -> dict[int, LearnedPattern]:
    """Patterns by id, all of them if no ids are given; without their text."""
    with translated():
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM sona.pattern p LEFT JOIN sona.pattern_access a USING (space_id, pattern_id)"
            " WHERE p.space_id = %(space)s AND (%(all)s OR p.pattern_id = ANY(%(ids)s)) ORDER BY p.pattern_id",
            {"space": space_id, "all": ids is None, "ids": list(ids or [])},
            binary=True,
        ).fetchall()
    return {row[0]: pattern_of(row) for row in rows}


def pattern_of(row: Sequence[Any]) -> LearnedPattern:
    """A pattern from its columns, with or without text."""
    id, centroid, size, weight, quality, confidence, support, strategy, level, children, *rest = row
    accesses, accessed, created, updated, decayed, *text = rest
    title, description, content = text or (None, None, None)
    return LearnedPattern(
        id=id,
        centroid=centroid,
        cluster_size=size,
        total_weight=weight,
        avg_quality=quality,
        confidence=confidence,
        support=support,
        best_strategy=strategy,
        abstraction_level=level,
        children=tuple(children),
        title=title,
        description=description,
        content=content,
        created_at=created,
        last_accessed=accessed,
        access_count=accesses,
        updated_at=updated,
        decayed_at=decayed,
    )


def read_verdicts(connection: Connection, space: Space) -> dict[int, dict[str, Verdict]]:
    """All verdicts, by pattern and parameter."""
    with translated():
        rows = connection.execute(
            "SELECT pattern_id, parameter, state FROM sona.verdict WHERE space_id = %s ORDER BY pattern_id, parameter",
            (space.space_id,),
        ).fetchall()
    found: dict[int, dict[str, Verdict]] = {}
    for id, parameter, state in rows:
        found.setdefault(id, {})[parameter] = Verdict.from_json(state)
    return found


def write_advance(
    connection: Connection,
    run: Run,
    state: PatternState,
    advance: Advance,
    settings: Mapping[str, Json],
) -> None:
    """Write what a cycle has made of patterns, and how far it has read; in a transaction that the caller began.

    Raises
    ------
    LockLost
        If a user was forgotten since it was read: it may hold what they have left. Or if patterns were imported.
    """
    space_id = run.space.space_id
    connection.execute("INSERT INTO sona.pattern_state (space_id) VALUES (%s) ON CONFLICT DO NOTHING", (space_id,))
    row = connection.execute(
        "UPDATE sona.pattern_state SET consumed = %s, last_id = %s, waiting = %s, settings = %s, run_id = %s,"
        " updated_at = now() WHERE space_id = %s AND generation = %s RETURNING generation",
        (
            state.horizon,
            advance.last_id,
            list(advance.waiting),
            Jsonb(dict(settings)),
            run.run_id,
            space_id,
            state.generation,
        ),
    ).fetchone()
    if row is None:
        raise LockLost(
            f"a user of space {run.space.name!r} was forgotten, or patterns imported, meanwhile: the patterns are "
            "computed again"
        )
    before = read_patterns(connection, space_id, [*advance.merged, *advance.pruned])
    gone = list(before)
    cursor = connection.cursor()
    # Texts are the application's: somebody may have attached one since they were read.
    cursor.executemany(
        "UPDATE sona.pattern p SET title = coalesce(p.title, g.title), description = coalesce(p.description,"
        " g.description), content = coalesce(p.content, g.content) FROM sona.pattern g WHERE p.space_id = %s"
        " AND p.pattern_id = %s AND g.space_id = p.space_id AND g.pattern_id = %s"
        " AND (g.title, g.description, g.content) IS DISTINCT FROM (NULL, NULL, NULL)",
        [(space_id, into, id) for id, into in advance.merged.items()],
    )
    _lock_accesses(connection, space_id, [*advance.merged, *advance.merged.values(), *advance.pruned])
    _merge_accesses(connection, space_id, advance.merged)
    for table in ("verdict", "pattern"):
        connection.execute(f"DELETE FROM sona.{table} WHERE space_id = %s AND pattern_id = ANY(%s)", (space_id, gone))
    # Of those that are gone, and what was counted of one in the moment in which it went.
    connection.execute(
        "DELETE FROM sona.pattern_access a WHERE a.space_id = %s AND NOT EXISTS (SELECT FROM sona.pattern p"
        " WHERE p.space_id = a.space_id AND p.pattern_id = a.pattern_id)",
        (space_id,),
    )
    write_patterns(connection, space_id, advance)
    created = {p.id for p in advance.created}
    events: list[tuple[LearnedPattern, str, int | None]] = [
        *((p, "created" if p.id in created else "changed", None) for p in (*advance.created, *advance.changed)),
        *((before[id], "merged", into) for id, into in advance.merged.items() if id in before),
        *((before[id], "pruned", None) for id in advance.pruned if id in before),
    ]
    cursor.executemany(
        "INSERT INTO sona.pattern_history (space_id, run_id, pattern_id, event, into_id, cluster_size, support,"
        " avg_quality) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [
            (space_id, run.run_id, p.id, event, into, p.cluster_size, p.support, p.avg_quality)
            for p, event, into in events
        ],
    )
    connection.execute(
        "DELETE FROM sona.pattern_history WHERE space_id = %(space)s AND run_id <"
        " (SELECT min(run_id) FROM sona.loop_run WHERE space_id = %(space)s AND loop = %(loop)s)",
        {"space": space_id, "loop": run.loop},
    )


def write_patterns(connection: Connection, space_id: int, advance: Advance) -> None:
    """Write patterns that are new or not as they were, with their verdicts; in the caller's transaction."""
    kept = (*advance.created, *advance.changed)
    connection.cursor().executemany(
        "INSERT INTO sona.pattern AS p (space_id, pattern_id, centroid, cluster_size, total_weight, avg_quality,"
        " confidence, support, best_strategy, abstraction_level, children, created_at, updated_at, decayed_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, to_timestamp(%s), to_timestamp(%s), to_timestamp(%s))"
        " ON CONFLICT (space_id, pattern_id) DO UPDATE SET centroid = excluded.centroid,"
        " cluster_size = excluded.cluster_size, total_weight = excluded.total_weight,"
        " avg_quality = excluded.avg_quality, confidence = excluded.confidence, support = excluded.support,"
        " best_strategy = excluded.best_strategy, abstraction_level = excluded.abstraction_level,"
        " children = excluded.children, created_at = excluded.created_at, updated_at = excluded.updated_at,"
        " decayed_at = excluded.decayed_at",
        [
            (space_id, p.id, p.centroid, p.cluster_size, p.total_weight, p.avg_quality, p.confidence, p.support)
            + (p.best_strategy, p.abstraction_level, list(p.children), p.created_at, p.updated_at, p.decayed_at)
            for p in kept
        ],
    )
    _write_verdicts(connection, space_id, advance)


def add_accesses(connection: Connection, space_id: int, counted: Sequence[tuple[int, int, float]]) -> None:
    """Count for patterns, by id, that they were found so often, and when last, in seconds since the epoch."""
    _lock_accesses(connection, space_id, [id for id, _, _ in counted])
    connection.cursor().executemany(
        "INSERT INTO sona.pattern_access AS a (space_id, pattern_id, access_count, last_accessed)"
        f" VALUES (%s, %s, least(%s, {_MOST_ACCESSES}), to_timestamp(%s)) ON CONFLICT (space_id, pattern_id) DO UPDATE"
        f" SET access_count = least(a.access_count, {_MOST_ACCESSES}) + excluded.access_count,"
        " last_accessed = greatest(a.last_accessed, excluded.last_accessed)",
        [(space_id, *one) for one in sorted(counted)],
    )


def _lock_accesses(connection: Connection, space_id: int, ids: Iterable[int] | None = None) -> None:
    """Lock counts of patterns before they change, all of the space if no ids are given."""
    # In the order in which they are counted: in another one each might wait for the other.
    connection.execute(
        "SELECT FROM sona.pattern_access WHERE space_id = %(space)s AND (%(all)s OR pattern_id = ANY(%(ids)s))"
        " ORDER BY pattern_id FOR UPDATE",
        {"space": space_id, "all": ids is None, "ids": list(ids or [])},
    )


def _merge_accesses(connection: Connection, space_id: int, merged: Mapping[int, int]) -> None:
    """Count what was found of patterns that are merged, as it is now, for what they are merged into."""
    if not merged:
        return
    key = {"space": space_id, "ids": list(merged), "into": list(merged.values())}
    connection.execute(
        "INSERT INTO sona.pattern_access AS a (space_id, pattern_id, access_count, last_accessed)"
        f" SELECT g.space_id, m.into_id, least(sum(g.access_count), {_MOST_ACCESSES}), max(g.last_accessed)"
        " FROM unnest(%(ids)s::bigint[], %(into)s::bigint[]) m (id, into_id)"
        " JOIN sona.pattern_access g ON g.space_id = %(space)s AND g.pattern_id = m.id GROUP BY 1, 2"
        " ON CONFLICT (space_id, pattern_id) DO UPDATE"
        f" SET access_count = least(a.access_count, {_MOST_ACCESSES}) + excluded.access_count,"
        " last_accessed = greatest(a.last_accessed, excluded.last_accessed)",
        key,
    )


def _columns(evidence: Evidence) -> dict[str, Json]:
    # Not asdict: it copies values, and a list in a list hundreds of times is one.
    return {name: getattr(evidence, name) for name in Evidence.__slots__}


def _write_verdicts(connection: Connection, space_id: int, advance: Advance) -> None:
    # The p-values of a pattern are adjusted for all that was used in it: its evidence is written as a whole.
    by_parameter: dict[tuple[int, str], list[Mapping[str, object]]] = {}
    for id, found in advance.evidence.items():
        for evidence in found:
            by_parameter.setdefault((id, evidence.parameter), []).append(_columns(evidence))
    cursor = connection.cursor()
    cursor.executemany(
        "INSERT INTO sona.verdict AS v (space_id, pattern_id, parameter, state, evidence) VALUES (%s, %s, %s, %s, '[]')"
        " ON CONFLICT (space_id, pattern_id, parameter) DO UPDATE SET state = excluded.state",
        [
            (space_id, id, name, Jsonb(verdict.to_json()))
            for id, known in advance.verdicts.items()
            for name, verdict in known.items()
        ],
    )
    cursor.executemany(
        "UPDATE sona.verdict SET evidence = %s WHERE space_id = %s AND pattern_id = %s AND parameter = %s",
        [(Jsonb(rows), space_id, id, name) for (id, name), rows in by_parameter.items()],
    )
    cursor.executemany(
        "UPDATE sona.verdict SET best_value = %s, best_confidence = %s"
        " WHERE space_id = %s AND pattern_id = %s AND parameter = %s",
        [
            (*((None, 0.0) if best is None else (Jsonb(best[0]), best[1])), space_id, id, name)
            for id, known in advance.best.items()
            for name, best in known.items()
        ],
    )


def forget_patterns(connection: Connection, space: Space, first: int) -> int:
    """Forget what the ledger entry `first` and those after it have left; how many patterns went.

    What was learned from an entry cannot be taken out again: if it was taken in, all patterns and verdicts go, and
    cycles make them anew of what is kept. In a transaction that the caller began.
    """
    key = {"space": space.space_id, "first": first}
    row = connection.execute(
        "INSERT INTO sona.pattern_state AS p (space_id, generation) VALUES (%(space)s, 1) ON CONFLICT (space_id)"
        " DO UPDATE SET generation = p.generation + 1 RETURNING p.consumed > %(first)s",
        key,
    ).fetchone()
    if row is None or not row[0]:
        return 0
    _lock_accesses(connection, space.space_id)
    for table in ("verdict", "pattern_history", "pattern_access"):
        connection.execute(f"DELETE FROM sona.{table} WHERE space_id = %(space)s", key)
    gone = connection.execute("DELETE FROM sona.pattern WHERE space_id = %(space)s", key).rowcount
    connection.execute(
        "SELECT sona._log_deployment(%s, 'forget', NULL, %s, 'a user was forgotten, and with them all patterns')",
        (space.space_id, FORGOTTEN_PATTERNS),
    )
    connection.execute(
        "UPDATE sona.pattern_state SET consumed = 0, waiting = '{}', run_id = NULL, updated_at = now()"
        " WHERE space_id = %(space)s",
        key,
    )
    return gone
