"""A key that names a space beyond its database, columns that recall may filter by, and how long rows are kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "space",
        sa.Column(
            "space_key",
            sa.Uuid(),
            server_default=sa.text("gen_random_uuid()"),
            nullable=False,
            comment="names the space beyond this database: what a spool holds belongs to it and to no other",
        ),
        schema="sona",
    )
    op.add_column(
        "space",
        sa.Column(
            "trajectory_retention", sa.Interval(), comment="trajectories older than this are deleted; NULL keeps them"
        ),
        schema="sona",
    )
    op.add_column(
        "space",
        sa.Column("step_retention", sa.Interval(), comment="steps of older trajectories are deleted; NULL keeps them"),
        schema="sona",
    )
    op.add_column(
        "space",
        sa.Column(
            "steps_deleted_before",
            sa.DateTime(timezone=True),
            comment="retention has deleted the steps of what was recorded before",
        ),
        schema="sona",
    )
    op.add_column(
        "item_source",
        sa.Column(
            "filter_columns",
            sa.ARRAY(sa.Text()),
            server_default=sa.text("'{}'::text[]"),
            nullable=False,
            comment="columns of the items table that recall may filter by",
        ),
        schema="sona",
    )
    op.create_index("trajectory_space_id_created_at_idx", "trajectory", ["space_id", "created_at"], schema="sona")


def downgrade() -> None:
    op.drop_index("trajectory_space_id_created_at_idx", table_name="trajectory", schema="sona")
    op.drop_column("item_source", "filter_columns", schema="sona")
    op.drop_column("space", "steps_deleted_before", schema="sona")
    op.drop_column("space", "step_retention", schema="sona")
    op.drop_column("space", "trajectory_retention", schema="sona")
    op.drop_column("space", "space_key", schema="sona")
