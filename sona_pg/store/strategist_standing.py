"""How far the strategist of a space has read, and what the other loops have made for it meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sona_pg.store.connection import Connection, translated
from sona_pg.store.spaces import Space, space_gone


class Adopted(NamedTuple):
    """What the strategist has taken over from the other loops.

    Parameters
    ----------
    patterns_run
        Cycle whose patterns the regions were compared with; None before the first.
    base_version
        Version whose base its adapter was put on; None before the first.
    memory_run
        Cycle whose snapshot of the memory graph it asks; None before the first.
    """

    patterns_run: int | None
    base_version: int | None
    memory_run: int | None


class News(NamedTuple):
    """What the background loop and the deep loop have made by now.

    Parameters
    ----------
    patterns_run, base_version, memory_run
        As in `Adopted`.
    base_ordinal, memory_ordinal
        Ledger entry before which the base and the snapshot count for nothing; 0 without one.
    """

    patterns_run: int | None
    base_version: int | None
    memory_run: int | None
    base_ordinal: int
    memory_ordinal: int

    def changed_at(self, adopted: Adopted) -> list[int]:
        """Ledger entries from which on there is something to take over that has its time."""
        return [
            ordinal
            for made, held, ordinal in (
                (self.base_version, adopted.base_version, self.base_ordinal),
                (self.memory_run, adopted.memory_run, self.memory_ordinal),
            )
            if made != held
        ]


@dataclass(frozen=True, slots=True)
class StrategistStanding:
    """Where the strategist of a space stands.

    Parameters
    ----------
    ordinal
        Ledger entries that it took in.
    strategy
        What the space is set to.
    may_weigh
        Whether this role may take entries in.
    epoch
        Grows whenever somebody changes what answers.
    control_share
        What the space declares.
    adopted
        What it has taken over from the other loops.
    is_behind
        Whether there is more to take over.
    """

    ordinal: int
    strategy: str
    may_weigh: bool
    epoch: int
    control_share: float
    adopted: Adopted
    is_behind: bool


_MADE = (
    "LEFT JOIN sona.pattern_state p ON p.space_id = g.space_id LEFT JOIN sona.base_state b ON b.space_id = g.space_id"
    " LEFT JOIN sona.adapter_version v ON v.space_id = g.space_id AND v.version = b.version"
    " LEFT JOIN LATERAL (SELECT x.run_id, x.ordinal FROM sona.memory_snapshot x WHERE x.space_id = g.space_id"
    "  ORDER BY x.run_id DESC LIMIT 1) m ON true"
)
_IS_BEHIND = (
    "(p.run_id IS DISTINCT FROM g.patterns_run OR b.version IS DISTINCT FROM g.base_version"
    " AND coalesce(v.ordinal, 0) <= g.ordinal OR m.run_id IS DISTINCT FROM g.memory_run"
    " AND coalesce(m.ordinal, 0) <= g.ordinal)"
)
_NEWS = (
    "SELECT p.run_id, b.version, m.run_id, coalesce(v.ordinal, 0), coalesce(m.ordinal, 0)"
    f" FROM sona.strategist g {_MADE} WHERE g.space_id = %s"
)
"""Of patterns, at once; of a base and a snapshot, once the strategist is as far in the ledger as it is."""


def read_news(connection: Connection, space: Space) -> News:
    """What the background loop and the deep loop have made by now; in a transaction that the caller began."""
    row = connection.execute(_NEWS, (space.space_id,)).fetchone()
    return News(None, None, None, 0, 0) if row is None else News(*row)


def standing(connection: Connection, space: Space) -> StrategistStanding:
    """Where the strategist of a space stands, without a lock."""
    with translated():
        row = connection.execute(
            "SELECT g.ordinal, s.strategy, has_table_privilege('sona.strategist', 'UPDATE'), g.epoch, s.control_share,"
            f" g.patterns_run, g.base_version, g.memory_run, {_IS_BEHIND}"
            f" FROM sona.strategist g JOIN sona.space s USING (space_id) {_MADE} WHERE g.space_id = %s",
            (space.space_id,),
        ).fetchone()
    if row is None:
        raise space_gone(space.name)
    ordinal, strategy, may_weigh, epoch, control_share, *adopted, is_behind = row
    return StrategistStanding(ordinal, strategy, may_weigh, epoch, control_share, Adopted(*adopted), is_behind)


def spaces_unweighed(connection: Connection) -> list[str]:
    """Names of the spaces whose ledger has entries that the strategist has not taken in."""
    with translated():
        rows = connection.execute(
            "SELECT s.name FROM sona.space s JOIN sona.learner l USING (space_id)"
            f" JOIN sona.strategist g USING (space_id) {_MADE} WHERE g.ordinal < l.ordinal OR {_IS_BEHIND}"
            " ORDER BY s.space_id"
        ).fetchall()
    return [row[0] for row in rows]
