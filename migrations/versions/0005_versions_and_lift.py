"""Versions that can be deployed, a control arm, and what every answer was worth."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_STRATEGIES = "'learned', 'frozen', 'adapted', 'familiar', 'boosted', 'stake', 'fusion'"


def _added() -> dict[str, tuple[sa.Column[Any], ...]]:
    return {
        "space": (
            sa.Column(
                "control_share",
                sa.REAL(),
                server_default=sa.text("0.05"),
                nullable=False,
                comment="share of answers that the frozen embedding gives, to compare with; 0 has no control arm",
            ),
            sa.Column(
                "frozen_from",
                sa.Text(),
                comment="what the space was set to before it was frozen by a deploy or by its lift; NULL if it was not",
            ),
            sa.Column(
                "steps_lost_before",
                sa.DateTime(timezone=True),
                comment="retention has deleted steps of what was recorded before, at any time; NULL if it never did",
            ),
        ),
        "learner": (
            sa.Column(
                "restored",
                sa.BigInteger(),
                comment="version that was deployed and is the state, until the next flush; NULL once state holds it",
            ),
        ),
        "strategist": (
            sa.Column(
                "epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="grows with every deploy"
            ),
            sa.Column(
                "restored",
                sa.BigInteger(),
                comment="version that was deployed and is to be taken over by state; NULL once it was",
            ),
            sa.Column("evidence", sa.LargeBinary(), comment="the small part of state, which a version keeps"),
            sa.Column(
                "suspected_share",
                sa.REAL(),
                server_default=sa.text("0"),
                nullable=False,
                comment="share of the control arm while what answers may do harm; 0 while there is no sign of that",
            ),
            sa.Column(
                "changed_at",
                sa.DateTime(timezone=True),
                comment="when somebody last changed what answers; NULL if nobody did",
            ),
            sa.Column(
                "remembered_until",
                sa.BigInteger(),
                comment="ledger entry from which on prototypes do not count for what was deployed; NULL counts all",
            ),
            sa.Column(
                "lift", sa.LargeBinary(), comment="what the arms have shown so far; NULL before the first answer"
            ),
        ),
        "adapter_version": (
            sa.Column(
                "ordinal",
                sa.BigInteger(),
                server_default=sa.text("0"),
                nullable=False,
                comment="ledger entries by then",
            ),
            sa.Column(
                "setting",
                sa.Text(),
                server_default=sa.text("'learned'"),
                nullable=False,
                comment="what the space was set to; a deploy sets it so again",
            ),
            sa.Column(
                "in_force",
                sa.Text(),
                server_default=sa.text("'frozen'"),
                nullable=False,
                comment="strategy that was proven to be best",
            ),
            sa.Column(
                "is_sane",
                sa.Boolean(),
                server_default=sa.text("false"),
                nullable=False,
                comment="as in strategist",
            ),
            sa.Column("known", sa.Double(), server_default=sa.text("0"), nullable=False, comment="as in strategist"),
            sa.Column("strange", sa.Double(), server_default=sa.text("0"), nullable=False, comment="as in strategist"),
            sa.Column("unseen", sa.Double(), server_default=sa.text("0"), nullable=False, comment="as in strategist"),
            sa.Column("weights", sa.ARRAY(sa.Double()), comment="as in strategist"),
            sa.Column(
                "verdicts",
                sa.ARRAY(sa.Integer()),
                comment="of the regions, by number; NULL where all follow the space",
            ),
            sa.Column(
                "gains",
                sa.dialects.postgresql.JSONB(),
                server_default=sa.text("'{}'::jsonb"),
                nullable=False,
                comment="the strategy table: events, gain and recent gain of every strategy",
            ),
            sa.Column("evidence", sa.LargeBinary(), comment="as in strategist"),
            sa.Column(
                "weighed",
                sa.BigInteger(),
                server_default=sa.text("0"),
                nullable=False,
                comment="ledger entries that the strategist had taken in by then",
            ),
        ),
    }


def _space_id(*, owned: bool) -> sa.Column[int]:
    arguments = [sa.ForeignKey("sona.space.space_id", ondelete="CASCADE")] if owned else []
    return sa.Column(
        "space_id",
        sa.BigInteger(),
        *arguments,
        autoincrement=False,
        nullable=False,
        comment="space that the row belongs to",
    )


def _now(name: str, comment: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False, comment=comment)


_RESET = (
    "UPDATE sona.strategist SET ordinal = 0, events = 0, in_force = 'frozen', is_sane = false, known = 0,"
    " strange = 0, unseen = 0, weights = NULL, state = NULL",
    "DELETE FROM sona.served_row WHERE tier IN ('proven', 'careful')",
    "DELETE FROM sona.strategy_evidence",
    "DELETE FROM sona.strategy_region",
    "DELETE FROM sona.strategy_turn",
    "DELETE FROM sona.remembered_query",
    "DELETE FROM sona.item_outcome",
)
"""The strategist as it is in a new space: it reads the ledger anew, and its memory is made from that."""

_TOUCHED = (
    "space", "learner", "adapter_version", "strategist", "served_row", "strategy_evidence", "strategy_region",
    "strategy_turn", "remembered_query", "item_outcome",
)  # fmt: skip


def _force(is_forced: bool) -> None:
    """The policies would hide rows from an owner who has no grant."""
    for table in _TOUCHED:
        op.execute(f"ALTER TABLE sona.{table} {'' if is_forced else 'NO '}FORCE ROW LEVEL SECURITY")


def _replace_strategies(strategies: str) -> None:
    op.drop_constraint(op.f("space_strategy_check"), "space", schema="sona")
    op.create_check_constraint(op.f("space_strategy_check"), "space", f"strategy IN ({strategies})", schema="sona")


def upgrade() -> None:
    for table, columns in _added().items():
        for column in columns:
            op.add_column(table, column, schema="sona")
    _replace_strategies(f"{_STRATEGIES}, 'shadow'")
    op.create_check_constraint(
        op.f("space_control_share_check"), "space", "control_share BETWEEN 0 AND 0.5", schema="sona"
    )
    op.alter_column(
        "adapter_version",
        "state",
        comment="the learner's state, squeezed; or as in learner.state, if SQL published it",
        schema="sona",
    )
    op.alter_column(
        "adapter_version",
        "checksum",
        comment="SHA-256 of state, evidence, strategy table and rows",
        schema="sona",
    )
    op.create_table(
        "version_row",
        _space_id(owned=True),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False, comment="version"),
        sa.Column(
            "tier", sa.Text(), nullable=False, comment="as in served_row; region: a region, where one is an exception"
        ),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False, comment="as in served_row"),
        sa.Column("down", Vector(), nullable=False, comment="as in served_row; of a region the centroid"),
        sa.Column("up", Vector(), comment="as in served_row; NULL of a region"),
        sa.PrimaryKeyConstraint("space_id", "version", "tier", "ordinal", name="version_row_pkey"),
        schema="sona",
        comment="The served maps of published versions.",
    )
    op.create_table(
        "answer_outcome",
        _space_id(owned=False),
        sa.Column("trajectory_id", sa.Uuid(), nullable=False, comment="the answer"),
        sa.Column("ordinal", sa.BigInteger(), nullable=False, comment="ledger entry that said first what it was worth"),
        _now("answered_at", "when it was recorded"),
        sa.Column("arm", sa.Text(), nullable=False, comment="learned, control or shadow"),
        sa.Column("strategy", sa.Text(), nullable=False, comment="strategy that answered"),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="version that answered"),
        sa.Column("propensity", sa.REAL(), nullable=False, comment="probability of the arm"),
        sa.Column("value", sa.Double(), nullable=False, comment="what it was worth, 0 to 1"),
        sa.Column(
            "contrast",
            sa.Double(),
            comment="unbiased estimate of the lift by this answer; NULL where there was no control arm",
        ),
        sa.Column(
            "gain",
            sa.Double(),
            comment="nDCG@10 of what answers above frozen, on the items that were judged; NULL where that is unknown",
        ),
        sa.PrimaryKeyConstraint("space_id", "trajectory_id", name="answer_outcome_pkey"),
        schema="sona",
        comment="What every answer was worth, and what answered: the lift compares the arms.",
    )
    op.create_index("answer_outcome_answered_at_idx", "answer_outcome", ["space_id", "answered_at"], schema="sona")
    op.create_table(
        "deployment",
        _space_id(owned=True),
        sa.Column(
            "deployment_id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="order of the entries"
        ),
        _now("created_at", "when it was done"),
        sa.Column(
            "actor", sa.Text(), server_default=sa.text("SESSION_USER"), nullable=False, comment="login that did it"
        ),
        sa.Column("action", sa.Text(), nullable=False, comment="publish, deploy, freeze, strategy, control or forget"),
        sa.Column("before", sa.Text(), comment="version or setting before"),
        sa.Column("after", sa.Text(), comment="version or setting since"),
        sa.Column("reason", sa.Text(), comment="why"),
        sa.PrimaryKeyConstraint("space_id", "deployment_id", name="deployment_pkey"),
        schema="sona",
        comment="The audit trail: who changed what answers, when, and why.",
    )
    op.create_table(
        "forgotten_user",
        _space_id(owned=True),
        sa.Column("digest", sa.LargeBinary(), nullable=False, comment="SHA-256 of the space's key and the user's id"),
        _now("forgotten_at", "when; what was answered before stays forgotten"),
        sa.PrimaryKeyConstraint("space_id", "digest", name="forgotten_user_pkey"),
        schema="sona",
        comment="Whose trajectories must not come back from a spool.",
    )
    op.alter_column(
        "trajectory",
        "strategy",
        server_default=sa.text("'unknown'"),
        comment="strategy that answered; unknown if recall did not",
        schema="sona",
    )
    # The strategist's state has another form. The policies are forced again when the functions are installed.
    _force(False)
    for statement in _RESET:
        op.execute(statement)
    # Who has set the retention anew since has lost the mark of what it had deleted before.
    op.execute("UPDATE sona.space SET steps_lost_before = steps_deleted_before")
    # What was published so far holds less than a deploy brings back. Its numbers are not given again.
    op.execute("DELETE FROM sona.adapter_version")


def downgrade() -> None:
    for table in ("forgotten_user", "deployment", "answer_outcome", "version_row"):
        op.drop_table(table, schema="sona")
    op.alter_column(
        "trajectory",
        "strategy",
        server_default=sa.text("'adapted'"),
        comment="strategy that answered",
        schema="sona",
    )
    op.alter_column("adapter_version", "state", comment="the learner's state, as in learner.state", schema="sona")
    op.alter_column("adapter_version", "checksum", comment="SHA-256 of state", schema="sona")
    _force(False)
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM sona.learner WHERE restored IS NOT NULL) THEN"
        " RAISE EXCEPTION 'a version was deployed and nothing was learned since: record an outcome and flush first';"
        " END IF; END $$"
    )
    # What shadows answers as frozen does; a squeezed state is none that the earlier version can read.
    op.execute("UPDATE sona.space SET strategy = 'frozen' WHERE strategy = 'shadow'")
    op.execute("DELETE FROM sona.adapter_version")
    for statement in _RESET:
        op.execute(statement)
    _force(True)
    op.drop_constraint(op.f("space_control_share_check"), "space", schema="sona")
    _replace_strategies(_STRATEGIES)
    for table, columns in _added().items():
        for column in reversed(columns):
            op.drop_column(table, column.name, schema="sona")
