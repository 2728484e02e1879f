"""A space that changes its embedder: the one that is filled beside it, and the one that is kept for the way back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_ACTIONS = "publish, deploy, freeze, strategy, control or forget"


def _comment_actions(comment: str, before: str) -> None:
    op.alter_column(
        "deployment",
        "action",
        existing_type=sa.Text(),
        existing_nullable=False,
        comment=comment,
        existing_comment=before,
        schema="sona",
    )


def upgrade() -> None:
    op.add_column(
        "space",
        sa.Column(
            "standby_of",
            sa.BigInteger(),
            comment="space beside which it is kept while that changes its embedder; NULL of one that answers",
        ),
        schema="sona",
    )
    op.add_column(
        "space",
        sa.Column(
            "replaced_at",
            sa.DateTime(timezone=True),
            comment="when a space of another embedder took its place; NULL if none did",
        ),
        schema="sona",
    )
    _comment_actions(_ACTIONS.replace(" or forget", ", forget or embedder"), _ACTIONS)


def downgrade() -> None:
    # What is kept beside a space would be taken for one of its own.
    op.execute("ALTER TABLE sona.space NO FORCE ROW LEVEL SECURITY")
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM sona.space WHERE standby_of IS NOT NULL) THEN"
        " RAISE EXCEPTION 'a space is changing its embedder'"
        " USING HINT = 'end it before: sona space re-embed SPACE --finish, or --abort'; END IF; END $$"
    )
    op.execute("ALTER TABLE sona.space FORCE ROW LEVEL SECURITY")
    _comment_actions(_ACTIONS, _ACTIONS.replace(" or forget", ", forget or embedder"))
    op.drop_column("space", "replaced_at", schema="sona")
    op.drop_column("space", "standby_of", schema="sona")
