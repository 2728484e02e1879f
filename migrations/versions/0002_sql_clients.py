"""Outcomes recorded by SQL clients wait to be learned; scores say by which revision they were."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


_TOUCHED = ("learner", "learning_event", "learning_cycle", "score")


def _force(is_forced: bool) -> None:
    """The policies would hide rows from an owner who has no grant."""
    for table in _TOUCHED:
        op.execute(f"ALTER TABLE sona.{table} {'' if is_forced else 'NO '}FORCE ROW LEVEL SECURITY")


_TAKEN_IN = (
    "UPDATE sona.score s SET revision = (SELECT e.revision FROM sona.learning_event e"
    " JOIN sona.learning_cycle c USING (space_id, loop, cycle_id)"
    " WHERE e.space_id = s.space_id AND e.trajectory_id = s.trajectory_id AND e.revision > 0"
    " ORDER BY c.finished_at <= s.created_at DESC,"
    " CASE WHEN c.finished_at <= s.created_at THEN -e.revision ELSE e.revision END LIMIT 1)"
)
"""Which revision took a score in: that of the last transaction that had begun when it was written.

Scores without one would be learned again with the next of their trajectory.
"""


def _in_new_form(state: bytes) -> bytes:
    """The same state, bit for bit, as it is written from this revision on: a checksum, and baselines by name."""
    with np.load(io.BytesIO(state), allow_pickle=False) as parts:
        arrays = {name: parts[name] for name in parts.files}
    header = json.loads(arrays.pop("header").astype(np.uint8).tobytes())
    reward, baseline = arrays.pop("means")
    arrays |= {
        "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
        "reward": reward,
        "micro.baseline": baseline,
        # What was accumulated was applied at once.
        "micro.query_sum": np.zeros(header["dim"], dtype=np.float32),
        "micro.signals": np.array(0, dtype=np.int64),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    data = buffer.getvalue()
    return hashlib.sha256(data).digest() + data


def _renew_states() -> None:
    connection = op.get_bind()
    states = connection.execute(sa.text("SELECT space_id, state FROM sona.learner WHERE state IS NOT NULL")).all()
    for space_id, state in states:
        connection.execute(
            sa.text("UPDATE sona.learner SET state = :state WHERE space_id = :space_id"),
            {"state": _in_new_form(bytes(state)), "space_id": space_id},
        )


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
    # The policies are forced again when the functions are installed.
    _force(False)
    op.execute(_TAKEN_IN)
    _renew_states()


def downgrade() -> None:
    op.drop_column("score", "revision", schema="sona")
    op.drop_column("score", "sequence", schema="sona")
    op.drop_table("error_log", schema="sona")
    op.drop_table("pending_trajectory", schema="sona")
