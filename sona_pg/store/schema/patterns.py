"""Patterns and verdicts."""

from __future__ import annotations

from pgvector.sqlalchemy import Vector
from sqlalchemy import BigInteger, CheckConstraint, Column, Double, Integer, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from sona_pg.store.schema.columns import metadata, now, space_id, whole

pattern = Table(
    "pattern",
    metadata,
    space_id(),
    Column("pattern_id", BigInteger, primary_key=True, autoincrement=False, comment="for life"),
    Column("centroid", Vector, nullable=False, comment="its centre, of unit length"),
    Column("cluster_size", BigInteger, nullable=False, comment="trajectories of its cluster when it was last fed"),
    Column(
        "total_weight",
        Double,
        nullable=False,
        comment="trajectories that ever fed it, each counted once, weighted down as they age",
    ),
    Column("avg_quality", Double, nullable=False, comment="what the answers of its cluster were worth, 0 to 1"),
    Column("confidence", Double, nullable=False, comment="0 to 1, how sure the average quality is"),
    Column("support", BigInteger, nullable=False, comment="trajectories with an outcome that ever fed it"),
    Column("best_strategy", Text, comment="strategy whose answers were best; NULL where none was recorded"),
    Column("title", Text, comment="as somebody has called it; NULL if nobody did"),
    Column("description", Text, comment="what somebody has said of it"),
    Column("content", Text, comment="what somebody has put down for such queries"),
    now("created_at", "when a cycle first found it"),
    now("updated_at", "when it was last fed"),
    now("decayed_at", "up to when total_weight is weighted down"),
    Column(
        "abstraction_level",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="0 for a cluster of trajectories, 1 for a pattern of patterns, and so on",
    ),
    Column(
        "children",
        ARRAY(BigInteger),
        nullable=False,
        server_default=text("'{}'::bigint[]"),
        comment="patterns that it is made of",
    ),
    comment="Kinds of queries, one row for life: the background loop finds them, and matches them across cycles.",
)


pattern_access = Table(
    "pattern_access",
    metadata,
    space_id(),
    Column("pattern_id", BigInteger, primary_key=True, autoincrement=False, comment="pattern"),
    Column("access_count", BigInteger, nullable=False, comment="how often it was found"),
    now("last_accessed", "when that was last counted"),
    comment="How often patterns were found: beside them, so that counting moves no vector and waits for no cycle.",
)


verdict = Table(
    "verdict",
    metadata,
    space_id(),
    Column("pattern_id", BigInteger, primary_key=True, autoincrement=False, comment="pattern in which it was used"),
    Column("parameter", Text, primary_key=True, comment="as the application calls it; strategy: what answered"),
    Column("state", JSONB, nullable=False, comment="everything that a continuation needs"),
    Column("evidence", JSONB, nullable=False, comment="by value, what speaks for and against it"),
    Column("best_value", JSONB, comment="value that is recommended; NULL while none can be"),
    Column(
        "best_confidence",
        Double,
        nullable=False,
        server_default=text("0"),
        comment="0 to 1, how sure it is that it is better than the others that were used",
    ),
    comment="Which values of a parameter worked in a pattern.",
)


pattern_history = Table(
    "pattern_history",
    metadata,
    space_id(),
    Column("run_id", BigInteger, primary_key=True, autoincrement=False, comment="the cycle, in loop_run"),
    Column("pattern_id", BigInteger, primary_key=True, autoincrement=False, comment="pattern"),
    Column("event", Text, nullable=False, comment="created, changed, merged or pruned"),
    Column("into_id", BigInteger, comment="pattern that it became part of; NULL if it was not merged"),
    Column("cluster_size", BigInteger, nullable=False, comment="as in pattern, after it; of one that went, before"),
    Column("support", BigInteger, nullable=False, comment="likewise"),
    Column("avg_quality", Double, nullable=False, comment="likewise"),
    now("created_at", "when it was committed"),
    CheckConstraint("event IN ('created', 'changed', 'merged', 'pruned')", name="event"),
    comment="What became of patterns, cycle by cycle, as long as the runs are kept.",
)


pattern_state = Table(
    "pattern_state",
    metadata,
    space_id(),
    whole("consumed", "ledger entries whose outcomes were taken in"),
    whole("last_id", "the last pattern_id that was given"),
    whole("generation", "grows when a user is forgotten: what was read before is not written any more"),
    Column(
        "waiting",
        ARRAY(BigInteger),
        nullable=False,
        server_default=text("'{}'::bigint[]"),
        comment="ledger entries among the consumed that belong to no pattern yet, and have not been counted",
    ),
    now("updated_at", "when the last cycle was committed"),
    Column("settings", JSONB, comment="by which the last cycle recommends, and whoever asks; NULL before the first"),
    Column("run_id", BigInteger, comment="cycle that was committed last, in loop_run; NULL before the first"),
    comment="How far the patterns of a space have read its ledger: every outcome counts once.",
)
