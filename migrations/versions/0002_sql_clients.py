"""Outcomes recorded by SQL clients wait to be learned; scores say by which revision they were."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pending_trajectory",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column("pending_id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="order of arrival"),
        sa.Column("trajectory_id", sa.Uuid(), nullable=False, comment="trajectory with something new to learn"),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was recorded or scored",
        ),
        sa.PrimaryKeyConstraint("space_id", "pending_id", name=op.f("pending_trajectory_pkey")),
        schema="sona",
        comment="What SQL clients recorded or scored, and the instant worker has not learned yet.",
    )
    op.create_table(
        "error_log",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column("error_id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="order of arrival"),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it happened",
        ),
        sa.Column("source", sa.Text(), nullable=False, comment="loop or command that met it"),
        sa.Column("worker", sa.Text(), nullable=False, comment="host and process"),
        sa.Column("message", sa.Text(), nullable=False, comment="what was found, what was expected, the way out"),
        sa.PrimaryKeyConstraint("space_id", "error_id", name=op.f("error_log_pkey")),
        schema="sona",
        comment="What went wrong, for people.",
    )
    op.add_column(
        "score",
        sa.Column("sequence", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="order of arrival"),
        schema="sona",
    )
    op.add_column(
        "score",
        sa.Column("revision", sa.Integer(), comment="revision of the outcomes that took it in; NULL until then"),
        schema="sona",
    )


def downgrade() -> None:
    op.drop_column("score", "revision", schema="sona")
    op.drop_column("score", "sequence", schema="sona")
    op.drop_table("error_log", schema="sona")
    op.drop_table("pending_trajectory", schema="sona")
