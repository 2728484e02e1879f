"""What a report is made of; how much that is does not grow with the space."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sona_pg.store import history, strategy_evidence, versions
from sona_pg.store.connection import Connection
from sona_pg.store.history import Deployment, HarmedAnswer, RegionRow, Standing, Stretch
from sona_pg.store.improvement import ImprovementMetrics, improvement_metrics
from sona_pg.store.reader import read
from sona_pg.store.spaces import Space
from sona_pg.store.strategy_evidence import LoggedTurn, StrategyEvidence
from sona_pg.store.versions import Version
from sona_pg.types import FloatVector

MOST_STRETCHES = 400
MOST_TURNS = 200
MOST_CHANGES = 100
MOST_QUERIES = 2_000
AUDITED = 20
HARMED = 10
CHANGES = ("deploy", "freeze", "strategy")
"""Actions of the audit trail that change what answers, by hand or by the lift."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a report of a space shows.

    Parameters
    ----------
    space, made_at
        Name of the space, and when this was gathered, UTC.
    standing, metrics
        What answers, and whether it helps.
    stretches
        The answers whose outcome is known, in ledger order.
    strategies, turns
        What every strategy would have brought, best first; when another one came into force, oldest first.
    versions, changes
        What was published, oldest first; deploys, freezes and settings, newest first.
    audit
        The latest entries of the audit trail, newest first.
    harmed
        The answers that lost most, worst first.
    regions, queries
        The parts of the query space, and a sample of what is remembered, vectors (dim,).
    """

    space: str
    made_at: datetime
    standing: Standing
    metrics: ImprovementMetrics
    stretches: list[Stretch]
    strategies: list[StrategyEvidence]
    turns: list[LoggedTurn]
    versions: list[Version]
    changes: list[Deployment]
    audit: list[Deployment]
    harmed: list[HarmedAnswer]
    regions: list[RegionRow]
    queries: list[FloatVector]


def gather(connection: Connection, space: Space) -> Facts:
    """Read what a report of a space shows."""
    evidence = strategy_evidence.evidence(connection, space, MOST_TURNS)
    return Facts(
        space=space.name,
        made_at=datetime.now(UTC),
        standing=history.standing(connection, space),
        metrics=read(connection, improvement_metrics, space),
        stretches=history.stretches(connection, space, MOST_STRETCHES),
        strategies=evidence.strategies,
        turns=evidence.turns,
        versions=read(connection, versions.versions, space),
        changes=history.deployments(connection, space, MOST_CHANGES, *CHANGES),
        audit=history.deployments(connection, space, AUDITED),
        harmed=history.harmed_answers(connection, space, HARMED),
        regions=history.regions(connection, space),
        queries=history.remembered_sample(connection, space, MOST_QUERIES),
    )
