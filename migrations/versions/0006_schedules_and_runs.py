"""When the loops learn in a space, what became of each of their cycles, and the patterns that they find."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def _space_id() -> sa.Column[int]:
    return sa.Column(
        "space_id",
        sa.BigInteger(),
        sa.ForeignKey("sona.space.space_id", ondelete="CASCADE"),
        autoincrement=False,
        nullable=False,
        comment="space that the row belongs to",
    )


def _time(name: str, comment: str, *, is_now: bool = False) -> sa.Column[object]:
    default = sa.text("now()") if is_now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not is_now, comment=comment)


def _whole(name: str, comment: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment=comment)


def _number(name: str, comment: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), autoincrement=False, nullable=False, comment=comment)


def _double(name: str, comment: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), nullable=False, comment=comment)


def upgrade() -> None:
    op.create_table(
        "loop_schedule",
        _space_id(),
        sa.Column("loop", sa.Text(), nullable=False, comment="background, deep or another that a worker runs"),
        sa.Column("every_seconds", sa.Double(), comment="time between two cycles; NULL if none is due by that"),
        sa.Column("cron", sa.Text(), comment="when a cycle is due, in five fields; NULL if none is due by that"),
        sa.Column(
            "time_zone", sa.Text(), server_default=sa.text("'UTC'"), nullable=False, comment="of cron and windows"
        ),
        sa.Column("amount", sa.BigInteger(), comment="new ledger entries that make a cycle due; NULL if none do"),
        sa.Column(
            "windows",
            ARRAY(sa.Text()),
            server_default=sa.text("'{}'::text[]"),
            nullable=False,
            comment="times of the day at which a cycle may begin, like 22:00-06:00; empty is any",
        ),
        sa.Column(
            "is_enabled",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="whether a cycle is due by itself",
        ),
        _time("next_at", "when a cycle is due by time; NULL until a worker has planned it"),
        _time("planned_at", "when next_at was planned: later than now, and the clock went back"),
        _whole("consumed", "ledger entries that the last cycle that was done had seen"),
        _whole("fence", "grows with every claim: who claimed earlier writes nothing any more"),
        sa.Column(
            "failures",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="cycles that failed since one was done",
        ),
        _time("retry_at", "no cycle is due by itself before; NULL if none failed"),
        _time("set_aside_at", "when too many had failed: none is due by itself; NULL if it was not set aside"),
        sa.PrimaryKeyConstraint("space_id", "loop", name="loop_schedule_pkey"),
        schema="sona",
        comment="When the loops learn in a space.",
    )
    op.create_table(
        "loop_run",
        _space_id(),
        sa.Column("run_id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="order of the runs"),
        sa.Column("loop", sa.Text(), nullable=False, comment="as in loop_schedule"),
        sa.Column("cause", sa.Text(), nullable=False, comment="time, amount or manual"),
        sa.Column("state", sa.Text(), nullable=False, comment="requested, running, done, skipped or failed"),
        _time("requested_at", "when it was asked for, or began", is_now=True),
        sa.Column("requested_by", sa.Text(), comment="login that asked for it; NULL if none did"),
        sa.Column("worker", sa.Text(), comment="host and process; NULL while nobody is at it"),
        _whole("fence", "token of the claim"),
        sa.Column(
            "attempts",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="claims since its last phase was committed",
        ),
        _whole("ordinal", "ledger entries when it began"),
        _time("started_at", "when it was claimed first"),
        _time("claimed_at", "when it was claimed last"),
        _time("finished_at", "when it ended"),
        sa.Column(
            "phases",
            JSONB(),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
            comment="phases that are committed, in order: name, seconds to read, to compute and to write",
        ),
        sa.Column(
            "facts",
            JSONB(),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
            comment="what the phases say of what they did: the result",
        ),
        sa.Column("reason", sa.Text(), comment="why it was skipped or failed"),
        sa.PrimaryKeyConstraint("space_id", "run_id", name="loop_run_pkey"),
        sa.CheckConstraint(
            "state IN ('requested', 'running', 'done', 'skipped', 'failed')", name=op.f("loop_run_state_check")
        ),
        schema="sona",
        comment="Cycles of the loops: what is asked for, what is at work, what became of the others.",
    )
    op.create_index("loop_run_loop_idx", "loop_run", ["space_id", "loop", "run_id"], schema="sona")
    # At most one is open: what is asked for while one waits is that one.
    for state in ("requested", "running"):
        op.create_index(
            f"loop_run_{state}_idx",
            "loop_run",
            ["space_id", "loop"],
            unique=True,
            postgresql_where=sa.text(f"state = '{state}'"),
            schema="sona",
        )
    _create_patterns()


def _create_patterns() -> None:
    op.create_index("answer_outcome_ordinal_idx", "answer_outcome", ["space_id", "ordinal"], schema="sona")
    op.create_table(
        "pattern",
        _space_id(),
        _number("pattern_id", "for life"),
        sa.Column("centroid", Vector(), nullable=False, comment="its centre, of unit length"),
        _number("cluster_size", "trajectories of its cluster when it was last fed"),
        _double("total_weight", "trajectories that ever fed it, each counted once, weighted down as they age"),
        _double("avg_quality", "what the answers of its cluster were worth, 0 to 1"),
        _double("confidence", "0 to 1, how sure the average quality is"),
        _number("support", "trajectories with an outcome that ever fed it"),
        sa.Column("best_strategy", sa.Text(), comment="strategy whose answers were best; NULL where none was recorded"),
        sa.Column("title", sa.Text(), comment="as somebody has called it; NULL if nobody did"),
        sa.Column("description", sa.Text(), comment="what somebody has said of it"),
        sa.Column("content", sa.Text(), comment="what somebody has put down for such queries"),
        _time("created_at", "when a cycle first found it", is_now=True),
        _time("updated_at", "when it was last fed", is_now=True),
        _time("decayed_at", "up to when total_weight is weighted down", is_now=True),
        sa.PrimaryKeyConstraint("space_id", "pattern_id", name="pattern_pkey"),
        schema="sona",
        comment="Kinds of queries, one row for life: the background loop finds them, and matches them across cycles.",
    )
    op.create_table(
        "verdict",
        _space_id(),
        _number("pattern_id", "pattern in which it was used"),
        sa.Column(
            "parameter",
            sa.Text(),
            nullable=False,
            comment="as the application calls it; strategy: what answered",
        ),
        sa.Column("state", JSONB(), nullable=False, comment="everything that a continuation needs"),
        sa.Column("evidence", JSONB(), nullable=False, comment="by value, what speaks for and against it"),
        sa.PrimaryKeyConstraint("space_id", "pattern_id", "parameter", name="verdict_pkey"),
        schema="sona",
        comment="Which values of a parameter worked in a pattern.",
    )
    op.create_table(
        "pattern_history",
        _space_id(),
        _number("run_id", "the cycle, in loop_run"),
        _number("pattern_id", "pattern"),
        sa.Column("event", sa.Text(), nullable=False, comment="created, changed, merged or pruned"),
        sa.Column("into_id", sa.BigInteger(), comment="pattern that it became part of; NULL if it was not merged"),
        _number("cluster_size", "as in pattern, after it; of one that went, before"),
        _number("support", "likewise"),
        _double("avg_quality", "likewise"),
        _time("created_at", "when it was committed", is_now=True),
        sa.PrimaryKeyConstraint("space_id", "run_id", "pattern_id", name="pattern_history_pkey"),
        sa.CheckConstraint(
            "event IN ('created', 'changed', 'merged', 'pruned')", name=op.f("pattern_history_event_check")
        ),
        schema="sona",
        comment="What became of patterns, cycle by cycle, as long as the runs are kept.",
    )
    op.create_table(
        "pattern_state",
        _space_id(),
        _whole("consumed", "ledger entries whose outcomes were taken in"),
        _whole("last_id", "the last pattern_id that was given"),
        _whole("generation", "grows when a user is forgotten: what was read before is not written any more"),
        sa.Column(
            "waiting",
            ARRAY(sa.BigInteger()),
            server_default=sa.text("'{}'::bigint[]"),
            nullable=False,
            comment="ledger entries among the consumed that belong to no pattern yet, and have not been counted",
        ),
        _time("updated_at", "when the last cycle was committed", is_now=True),
        sa.PrimaryKeyConstraint("space_id", name="pattern_state_pkey"),
        schema="sona",
        comment="How far the patterns of a space have read its ledger: every outcome counts once.",
    )


def downgrade() -> None:
    op.drop_index("answer_outcome_ordinal_idx", table_name="answer_outcome", schema="sona")
    for table in ("pattern_state", "pattern_history", "verdict", "pattern", "loop_run", "loop_schedule"):
        op.drop_table(table, schema="sona")
