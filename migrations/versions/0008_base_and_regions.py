"""What the base LoRA of a space is made of, the tasks that it remembers, and which patterns the regions are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0008"
down_revision = "0007"
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


def _time(name: str, comment: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False, comment=comment)


def _whole(name: str, comment: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment=comment)


def _number(name: str, comment: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), autoincrement=False, nullable=False, comment=comment)


def upgrade() -> None:
    for table, name, comment in (
        ("pattern_state", "run_id", "cycle that was committed last, in loop_run; NULL before the first"),
        ("strategy_region", "pattern_id", "pattern that it is; NULL while it is none"),
        ("strategist", "patterns_run", "cycle whose patterns the regions were compared with; NULL before the first"),
        ("strategist", "base_version", "version whose base the adapter was put on; NULL before the first"),
    ):
        op.add_column(table, sa.Column(name, sa.BigInteger(), comment=comment), schema="sona")
    op.create_table(
        "base_state",
        _space_id(),
        _whole("consumed", "ledger entries whose outcomes were taken in"),
        _whole("judged", "ledger entries before which what was withheld has been judged by"),
        _whole("learned", "ledger entries before which what was judged by has been learned"),
        _whole("generation", "grows when a user is forgotten: what was read before is not written any more"),
        sa.Column("version", sa.BigInteger(), comment="version that a cycle has published last; NULL before the first"),
        sa.Column(
            "reservoir",
            ARRAY(sa.Uuid()),
            server_default=sa.text("'{}'::uuid[]"),
            nullable=False,
            comment="trajectories that are learned again in every cycle: a sample of all that there were",
        ),
        sa.Column("state", sa.LargeBinary(), comment="the running Fisher and the task detector; NULL before the first"),
        _time("updated_at", "when the last cycle was committed"),
        sa.PrimaryKeyConstraint("space_id", name="base_state_pkey"),
        schema="sona",
        comment="How far the base LoRA of a space has read its ledger: every outcome counts once.",
    )
    op.create_table(
        "fisher_snapshot",
        _space_id(),
        _number("snapshot_id", "1 for the first of the space"),
        sa.Column(
            "signature", Vector(), nullable=False, comment="mean direction of the task's queries, of unit length"
        ),
        sa.Column("layout", sa.Text(), nullable=False, comment="which parameters they are, in which order"),
        sa.Column("kind", sa.Text(), nullable=False, comment="how the Fisher information was estimated"),
        sa.Column("fisher", sa.LargeBinary(), nullable=False, comment="float32, little endian, in the layout's order"),
        sa.Column(
            "anchor", sa.LargeBinary(), nullable=False, comment="the parameters at the end of the task, likewise"
        ),
        sa.Column("lambda", sa.Double(), nullable=False, comment="strength of the penalty"),
        sa.Column(
            "samples", sa.BigInteger(), nullable=False, comment="outcomes that the Fisher information is a mean of"
        ),
        sa.Column("quality", sa.Double(), nullable=False, comment="what its answers were worth, 0 to 1"),
        sa.Column(
            "times_met", sa.BigInteger(), server_default=sa.text("1"), nullable=False, comment="how often it has come"
        ),
        _time("created_at", "when the task first ended"),
        _time("updated_at", "when it last ended"),
        sa.PrimaryKeyConstraint("space_id", "snapshot_id", name="fisher_snapshot_pkey"),
        schema="sona",
        comment="Tasks, stretches of traffic of one kind, and which parameters each needs as they are.",
    )


def downgrade() -> None:
    op.drop_table("fisher_snapshot", schema="sona")
    op.drop_table("base_state", schema="sona")
    for table, name in (
        ("strategist", "base_version"),
        ("strategist", "patterns_run"),
        ("strategy_region", "pattern_id"),
        ("pattern_state", "run_id"),
    ):
        op.drop_column(table, name, schema="sona")
