"""The ledger, cycles and what went wrong."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from sona_pg.store.schema.columns import metadata, now, space_id, time, whole

learning_cycle = Table(
    "learning_cycle",
    metadata,
    space_id(owned=False),
    Column("cycle_id", BigInteger, primary_key=True, autoincrement=False, comment="the revision that it made"),
    Column("loop", Text, primary_key=True, comment="instant, background or deep"),
    Column("epoch", BigInteger, nullable=False, comment="the learner's epoch"),
    Column("version", BigInteger, nullable=False, comment="version in force when it ended"),
    Column("events", Integer, nullable=False, comment="ledger entries"),
    Column("learned", Integer, nullable=False, comment="entries that changed a weight"),
    Column("replayed", Boolean, nullable=False, comment="whether the events were rebased onto another's state"),
    Column("worker", Text, nullable=False, comment="host and process"),
    Column("started_at", DateTime(timezone=True), nullable=False, comment="when its work began"),
    now("finished_at", "when it was committed"),
    comment="The ledger: one row for every learning transaction.",
)


learning_event = Table(
    "learning_event",
    metadata,
    space_id(owned=False),
    Column("loop", Text, primary_key=True, comment="instant, background or deep"),
    Column("trajectory_id", Uuid, primary_key=True, comment="trajectory that was learned from"),
    Column("revision", Integer, primary_key=True, autoincrement=False, comment="revision of its outcomes"),
    Column("cycle_id", BigInteger, nullable=False, comment="learning_cycle that learned it"),
    Column("ordinal", BigInteger, nullable=False, comment="order in which events were learned"),
    Column("learned", Text, nullable=False, comment="what became of it"),
    Index("learning_event_ordinal_idx", "space_id", "loop", "ordinal"),
    comment="The ledger: what was learned, exactly once for each loop and revision.",
)


loop_schedule = Table(
    "loop_schedule",
    metadata,
    space_id(),
    Column("loop", Text, primary_key=True, comment="background, deep or another that a worker runs"),
    Column("every_seconds", Double, comment="time between two cycles; NULL if none is due by that"),
    Column("cron", Text, comment="when a cycle is due, in five fields; NULL if none is due by that"),
    Column("time_zone", Text, nullable=False, server_default=text("'UTC'"), comment="of cron and windows"),
    Column("amount", BigInteger, comment="new ledger entries that make a cycle due; NULL if none do"),
    Column(
        "windows",
        ARRAY(Text),
        nullable=False,
        server_default=text("'{}'::text[]"),
        comment="times of the day at which a cycle may begin, like 22:00-06:00; empty is any",
    ),
    Column(
        "is_enabled", Boolean, nullable=False, server_default=text("true"), comment="whether a cycle is due by itself"
    ),
    time("next_at", "when a cycle is due by time; NULL until a worker has planned it"),
    time("planned_at", "when next_at was planned: later than now, and the clock went back"),
    whole("consumed", "ledger entries that the last cycle that was done had seen"),
    whole("fence", "grows with every claim: who claimed earlier writes nothing any more"),
    Column(
        "failures", Integer, nullable=False, server_default=text("0"), comment="cycles that failed since one was done"
    ),
    time("retry_at", "no cycle is due by itself before; NULL if none failed"),
    time("set_aside_at", "when too many had failed: none is due by itself; NULL if it was not set aside"),
    comment="When the loops learn in a space.",
)


loop_run = Table(
    "loop_run",
    metadata,
    space_id(),
    Column("run_id", BigInteger, Identity(always=True), primary_key=True, comment="order of the runs"),
    Column("loop", Text, nullable=False, comment="as in loop_schedule"),
    Column("cause", Text, nullable=False, comment="time, amount or manual"),
    Column("state", Text, nullable=False, comment="requested, running, done, skipped or failed"),
    now("requested_at", "when it was asked for, or began"),
    Column("requested_by", Text, comment="login that asked for it; NULL if none did"),
    Column("worker", Text, comment="host and process; NULL while nobody is at it"),
    whole("fence", "token of the claim"),
    Column(
        "attempts",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="claims since its last phase was committed",
    ),
    whole("ordinal", "ledger entries when it began"),
    time("started_at", "when it was claimed first"),
    time("claimed_at", "when it was claimed last"),
    time("finished_at", "when it ended"),
    Column(
        "phases",
        JSONB,
        nullable=False,
        server_default=text("'[]'::jsonb"),
        comment="phases that are committed, in order: name, seconds to read, to compute and to write",
    ),
    Column(
        "facts",
        JSONB,
        nullable=False,
        server_default=text("'{}'::jsonb"),
        comment="what the phases say of what they did: the result",
    ),
    Column("reason", Text, comment="why it was skipped or failed"),
    CheckConstraint("state IN ('requested', 'running', 'done', 'skipped', 'failed')", name="state"),
    Index("loop_run_loop_idx", "space_id", "loop", "run_id"),
    Index("loop_run_requested_idx", "space_id", "loop", unique=True, postgresql_where=text("state = 'requested'")),
    Index("loop_run_running_idx", "space_id", "loop", unique=True, postgresql_where=text("state = 'running'")),
    comment="Cycles of the loops: what is asked for, what is at work, what became of the others.",
)


error_log = Table(
    "error_log",
    metadata,
    space_id(owned=False),
    Column("error_id", BigInteger, Identity(always=True), primary_key=True, comment="order of arrival"),
    now("created_at", "when it happened"),
    Column("source", Text, nullable=False, comment="loop or command that met it"),
    Column("worker", Text, nullable=False, comment="host and process"),
    Column("message", Text, nullable=False, comment="what was found, what was expected, the way out"),
    comment="What went wrong, for people.",
)
