"""What happened in a space, bounded whatever its size: for a report, or a dashboard."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sona_pg.store.connection import Connection, transaction
from sona_pg.store.spaces import Space, space_gone
from sona_pg.types import FloatVector

CONTROL_ARM = "control arm"
"""Stands for the strategy of answers that were given to compare with."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Successive answers whose outcome is known, as the ledger has them.

    Parameters
    ----------
    strategies
        What answered, and how often.
    answers, controls
        How many there are, and how many of them are the control arm's.
    ordinal, until
        The last ledger entry, and when the latest of them was given.
    gains, gain
        Of how many it is known what answered instead of the frozen embedding brought, and the sum of that, nDCG@10.
    contrasts, contrast, squares
        How many compare the arms; sum and sum of squares of what they say of the lift.
    weight
        Most that one of them counts: the inverse of its arm's probability; 0 where none compares.
    """

    strategies: dict[str, int]
    answers: int
    controls: int
    ordinal: int
    until: datetime
    gains: int
    gain: float
    contrasts: int
    contrast: float
    squares: float
    weight: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What a space is, and what answers in it.

    Parameters
    ----------
    dim, embedder, created_at
        As it was created.
    setting, in_force
        What it is set to, and what answers therefore.
    version
        Version in force; 0 before the first.
    trajectories, events
        What was recorded, and how many outcome events were learned.
    control_share
        Share of answers that the frozen embedding gives, at present.
    """

    dim: int
    embedder: str | None
    created_at: datetime
    setting: str
    in_force: str
    version: int
    trajectories: int
    events: int
    control_share: float


@dataclass(frozen=True, slots=True)
class Deployment:
    """An entry of the audit trail; see `sona.deployments`."""

    created_at: datetime
    actor: str
    action: str
    before: str | None
    after: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class HarmedAnswer:
    """An answer to which the frozen embedding would have been better; see `sona.harmed`."""

    trajectory_id: UUID
    answered_at: datetime
    strategy: str
    version: int
    value: float
    gain: float
    in_force_because: str | None


@dataclass(frozen=True, slots=True)
class RegionRow:
    """A region of the query space; see `sona.regions`. `centroid` is float32 (dim,)."""

    region: int
    events: int
    gain: float
    verdict: str
    centroid: FloatVector


def standing(connection: Connection, space: Space) -> Standing:
    """What a space is, and what answers in it.

    Raises
    ------
    UnknownSpace
        If it is gone.
    """
    with transaction(connection):
        row = connection.execute(
            "SELECT v.dim, v.embedder, s.created_at, v.strategy, v.in_force, v.version, v.trajectories,"
            " v.events_learned, v.control_share"
            " FROM sona.status v JOIN sona.space s ON s.name = v.space WHERE v.space = %s",
            (space.name,),
        ).fetchone()
    if row is None:
        raise space_gone(space.name)
    return Standing(*row)


def stretches(connection: Connection, space: Space, most: int) -> list[Stretch]:
    """The answers whose outcome is known, in ledger order, as at most `most` stretches of about the same length."""
    with transaction(connection):
        rows = connection.execute(
            "WITH answers AS (SELECT a.*, row_number() OVER (ORDER BY a.ordinal, a.trajectory_id) - 1 AS place,"
            "  count(*) OVER () AS total FROM sona.answer_outcome a WHERE a.space_id = %s)"
            " SELECT place * least(total, %s) / total AS stretch,"
            " CASE arm WHEN 'control' THEN %s ELSE strategy END AS answered, count(*),"
            " count(*) FILTER (WHERE arm = 'control'), max(ordinal), max(answered_at), count(gain),"
            " coalesce(sum(gain), 0), count(contrast), coalesce(sum(contrast), 0), coalesce(sum(contrast ^ 2), 0),"
            " coalesce(max(1 / propensity::float8) FILTER (WHERE contrast IS NOT NULL), 0)"
            " FROM answers GROUP BY 1, 2 ORDER BY 1",
            (space.space_id, most, CONTROL_ARM),
        ).fetchall()
    found: dict[int, Stretch] = {}
    for number, strategy, *figures in rows:
        part = Stretch({strategy: figures[0]}, *figures)
        found[number] = _joined(found[number], part) if number in found else part
    return list(found.values())


def _joined(one: Stretch, other: Stretch) -> Stretch:
    return Stretch(
        one.strategies | other.strategies,
        one.answers + other.answers,
        one.controls + other.controls,
        max(one.ordinal, other.ordinal),
        max(one.until, other.until),
        one.gains + other.gains,
        one.gain + other.gain,
        one.contrasts + other.contrasts,
        one.contrast + other.contrast,
        one.squares + other.squares,
        max(one.weight, other.weight),
    )


def deployments(connection: Connection, space: Space, latest: int, *actions: str) -> list[Deployment]:
    """The latest entries of the audit trail, newest first; of these actions alone, if any are named."""
    with transaction(connection):
        rows = connection.execute(
            "SELECT created_at, actor, action, before, after, reason FROM sona.deployment"
            " WHERE space_id = %s AND (%s::text[] = '{}' OR action = ANY(%s)) ORDER BY deployment_id DESC LIMIT %s",
            (space.space_id, list(actions), list(actions), latest),
        ).fetchall()
    return [Deployment(*row) for row in rows]


def harmed_answers(connection: Connection, space: Space, most: int) -> list[HarmedAnswer]:
    """The answers that lost most by what was learned, worst first."""
    with transaction(connection):
        rows = connection.execute(
            "SELECT trajectory_id, answered_at, strategy, version, value, gain, in_force_because FROM sona.harmed"
            " WHERE space = %s ORDER BY gain, answered_at LIMIT %s",
            (space.name, most),
        ).fetchall()
    return [HarmedAnswer(*row) for row in rows]


def regions(connection: Connection, space: Space) -> list[RegionRow]:
    """The regions of the query space, by number."""
    with transaction(connection):
        rows = connection.execute(
            "SELECT v.region, v.events, v.gain, v.verdict, r.centroid FROM sona.regions v"
            " JOIN sona.strategy_region r ON r.space_id = %s AND r.region = v.region"
            " WHERE v.space = %s ORDER BY v.region",
            (space.space_id, space.name),
            binary=True,
        ).fetchall()
    return [RegionRow(*row) for row in rows]


def remembered_sample(connection: Connection, space: Space, most: int) -> list[FloatVector]:
    """At most `most` remembered queries, spread evenly over the ledger, oldest first.

    Found by their place in the ledger, one index look-up each, whatever the size of the space.
    """
    with transaction(connection):
        rows = connection.execute(
            "WITH ends AS (SELECT min(ordinal) AS first, max(ordinal) AS last FROM sona.remembered_query"
            "  WHERE space_id = %(space)s AND ordinal IS NOT NULL),"
            " places AS (SELECT DISTINCT first + n * (last - first + 1) / least(last - first + 1, %(most)s) AS place"
            "  FROM ends, generate_series(0, least(last - first + 1, %(most)s) - 1) n)"
            " SELECT DISTINCT ON (q.ordinal) q.embedding FROM places p CROSS JOIN LATERAL ("
            "  SELECT r.ordinal, r.embedding FROM sona.remembered_query r"
            "  WHERE r.space_id = %(space)s AND r.ordinal >= p.place ORDER BY r.ordinal LIMIT 1) q ORDER BY q.ordinal",
            {"space": space.space_id, "most": most},
            binary=True,
        ).fetchall()
    return [row[0] for row in rows]
