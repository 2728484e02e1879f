"""How often patterns are found, what they are made of, and what is recommended by each."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def _number(name: str, comment: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), autoincrement=False, nullable=False, comment=comment)


def upgrade() -> None:
    op.add_column(
        "pattern",
        sa.Column(
            "abstraction_level",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="0 for a cluster of trajectories, 1 for a pattern of patterns, and so on",
        ),
        schema="sona",
    )
    op.add_column(
        "pattern",
        sa.Column(
            "children",
            ARRAY(sa.BigInteger()),
            server_default=sa.text("'{}'::bigint[]"),
            nullable=False,
            comment="patterns that it is made of",
        ),
        schema="sona",
    )
    op.create_table(
        "pattern_access",
        sa.Column(
            "space_id",
            sa.BigInteger(),
            sa.ForeignKey("sona.space.space_id", ondelete="CASCADE"),
            autoincrement=False,
            nullable=False,
            comment="space that the row belongs to",
        ),
        _number("pattern_id", "pattern"),
        _number("access_count", "how often it was found"),
        sa.Column(
            "last_accessed",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when that was last counted",
        ),
        sa.PrimaryKeyConstraint("space_id", "pattern_id", name="pattern_access_pkey"),
        schema="sona",
        comment="How often patterns were found: beside them, so that counting moves no vector and waits for no cycle.",
    )
    op.add_column(
        "verdict",
        sa.Column("best_value", JSONB(), comment="value that is recommended; NULL while none can be"),
        schema="sona",
    )
    op.add_column(
        "verdict",
        sa.Column(
            "best_confidence",
            sa.Double(),
            server_default=sa.text("0"),
            nullable=False,
            comment="0 to 1, how sure it is that it is better than the others that were used",
        ),
        schema="sona",
    )
    op.add_column(
        "pattern_state",
        sa.Column(
            "settings", JSONB(), comment="by which the last cycle recommends, and whoever asks; NULL before the first"
        ),
        schema="sona",
    )


def downgrade() -> None:
    # Nobody would drop them with their spaces.
    op.execute(
        """
        DO $$
        DECLARE made regclass;
        BEGIN
            FOR made IN SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind = 'i'
                        AND starts_with(c.relname, 'pattern_hnsw_')
            LOOP EXECUTE format('DROP INDEX %s', made); END LOOP;
        END $$
        """
    )
    op.drop_column("pattern_state", "settings", schema="sona")
    op.drop_column("verdict", "best_confidence", schema="sona")
    op.drop_column("verdict", "best_value", schema="sona")
    op.drop_table("pattern_access", schema="sona")
    op.drop_column("pattern", "children", schema="sona")
    op.drop_column("pattern", "abstraction_level", schema="sona")
