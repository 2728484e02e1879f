"""What answers in a space, and what has proven it, for people."""

from __future__ import annotations

from dataclasses import dataclass

from sona_pg.store.connection import Connection, transaction
from sona_pg.store.spaces import Space, space_gone


@dataclass(frozen=True, slots=True)
class StrategyEvidence:
    """What a strategy would have brought.

    Parameters
    ----------
    strategy
        Its name.
    events
        On how many events it was scored.
    gain, recent_gain
        Mean nDCG@10 above frozen, over all of them, and with an event counting 1 % less than the next.
    """

    strategy: str
    events: int
    gain: float
    recent_gain: float


@dataclass(frozen=True, slots=True)
class LoggedTurn:
    """When another strategy came into force, or was proven in a region.

    Parameters
    ----------
    ordinal
        Ledger entry by which it was found.
    region
        Where; None is the whole space.
    before, after
        The strategies.
    reason
        What was proven.
    """

    ordinal: int
    region: int | None
    before: str
    after: str
    reason: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What answers in a space, and why, for people.

    Parameters
    ----------
    strategy
        What the space is set to.
    in_force
        What answers.
    is_sane
        Whether it is shown that outcomes have to do with their queries; without, nothing but frozen answers in a space
        that is set to learned.
    strategies
        Every strategy, best first.
    turns
        The last ones, oldest first.
    """

    strategy: str
    in_force: str
    is_sane: bool
    strategies: list[StrategyEvidence]
    turns: list[LoggedTurn]


def evidence(connection: Connection, space: Space, turns: int = 20) -> Evidence:
    """What answers in a space, and why."""
    with transaction(connection):
        row = connection.execute(
            "SELECT x.strategy, x.in_force, coalesce(g.is_sane, false) FROM sona.status x"
            " LEFT JOIN sona.strategist g ON g.space_id = %s WHERE x.space = %s",
            (space.space_id, space.name),
        ).fetchone()
        if row is None:
            raise space_gone(space.name)
        strategies = connection.execute(
            "SELECT strategy, events, gain, recent_gain FROM sona.strategy_evidence WHERE space_id = %s"
            " ORDER BY recent_gain DESC, strategy",
            (space.space_id,),
        ).fetchall()
        logged = connection.execute(
            "SELECT ordinal, region, before, after, reason FROM sona.strategy_turn WHERE space_id = %s"
            " ORDER BY turn_id DESC LIMIT %s",
            (space.space_id, turns),
        ).fetchall()
    strategy, in_force, is_sane = row
    described = [StrategyEvidence(*s) for s in strategies]
    return Evidence(strategy, in_force, is_sane, described, [LoggedTurn(*turn) for turn in logged[::-1]])
