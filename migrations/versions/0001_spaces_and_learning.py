"""Spaces, trajectories, the learner and its ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "learning_cycle",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column(
            "cycle_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the revision that it made"
        ),
        sa.Column("loop", sa.Text(), nullable=False, comment="instant, background or deep"),
        sa.Column("epoch", sa.BigInteger(), nullable=False, comment="the learner's epoch"),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="version in force when it ended"),
        sa.Column("events", sa.Integer(), nullable=False, comment="ledger entries"),
        sa.Column("learned", sa.Integer(), nullable=False, comment="entries that changed a weight"),
        sa.Column(
            "replayed", sa.Boolean(), nullable=False, comment="whether the events were rebased onto another's state"
        ),
        sa.Column("worker", sa.Text(), nullable=False, comment="host and process"),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, comment="when its work began"),
        sa.Column(
            "finished_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was committed",
        ),
        sa.PrimaryKeyConstraint("space_id", "cycle_id", "loop", name=op.f("learning_cycle_pkey")),
        schema="sona",
        comment="The ledger: one row for every learning transaction.",
    )
    op.create_table(
        "learning_event",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column("loop", sa.Text(), nullable=False, comment="instant, background or deep"),
        sa.Column("trajectory_id", sa.Uuid(), nullable=False, comment="trajectory that was learned from"),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False, comment="revision of its outcomes"),
        sa.Column("cycle_id", sa.BigInteger(), nullable=False, comment="learning_cycle that learned it"),
        sa.Column("ordinal", sa.BigInteger(), nullable=False, comment="order in which events were learned"),
        sa.Column("learned", sa.Text(), nullable=False, comment="what became of it"),
        sa.PrimaryKeyConstraint("space_id", "loop", "trajectory_id", "revision", name=op.f("learning_event_pkey")),
        schema="sona",
        comment="The ledger: what was learned, exactly once for each loop and revision.",
    )
    op.create_table(
        "memory_edge",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column("kind", sa.Text(), nullable=False, comment="co_access: the items helped together"),
        sa.Column("source", sa.Text(), nullable=False, comment="item or node"),
        sa.Column("target", sa.Text(), nullable=False, comment="item or node"),
        sa.Column("weight", sa.Double(), nullable=False, comment="0 to 1"),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when the weight last changed",
        ),
        sa.PrimaryKeyConstraint("space_id", "kind", "source", "target", name=op.f("memory_edge_pkey")),
        schema="sona",
        comment="Edges of the memory graph; an undirected edge stands once, source before target.",
    )
    op.create_index("memory_edge_target_idx", "memory_edge", ["space_id", "kind", "target"], schema="sona")
    op.create_table(
        "remembered_query",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column("trajectory_id", sa.Uuid(), nullable=False, comment="trajectory of the query"),
        sa.Column("embedding", Vector(), nullable=False, comment="the query's embedding"),
        sa.Column(
            "admitted",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="whether the row is in the HNSW index of its dimension; the fresh tail is searched exactly",
        ),
        sa.PrimaryKeyConstraint("space_id", "trajectory_id", name=op.f("remembered_query_pkey")),
        schema="sona",
        comment="Queries whose outcome is known, narrow, for nearest-neighbour search.",
    )
    op.create_index(
        "remembered_query_tail_idx",
        "remembered_query",
        ["space_id"],
        unique=False,
        schema="sona",
        postgresql_where=sa.text("NOT admitted"),
    )
    op.create_table(
        "score",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column(
            "score_id", sa.Text(), nullable=False, comment="given by the application; the same id again is nothing"
        ),
        sa.Column("trajectory_id", sa.Uuid(), nullable=False, comment="trajectory that is scored"),
        sa.Column("item_id", sa.Text(), nullable=True, comment="NULL scores the whole answer"),
        sa.Column(
            "name", sa.Text(), server_default=sa.text("'reward'"), nullable=False, comment="which judgement this is"
        ),
        sa.Column("value", sa.REAL(), nullable=False, comment="what it was worth"),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was given",
        ),
        sa.PrimaryKeyConstraint("space_id", "score_id", name=op.f("score_pkey")),
        schema="sona",
        comment="Outcomes that came after the trajectory, or correct it.",
    )
    op.create_index(
        "score_space_id_trajectory_id_idx", "score", ["space_id", "trajectory_id"], unique=False, schema="sona"
    )
    op.create_table(
        "space",
        sa.Column("space_id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="key of the space"),
        sa.Column("name", sa.Text(), nullable=False, comment="how applications call it"),
        sa.Column("dim", sa.Integer(), nullable=False, comment="components of every vector of the space"),
        sa.Column(
            "embedder",
            sa.Text(),
            nullable=True,
            comment="fingerprint of the embedding model; NULL until it is declared",
        ),
        sa.Column("reward_min", sa.REAL(), nullable=False, comment="rewards and qualities below are refused"),
        sa.Column("reward_max", sa.REAL(), nullable=False, comment="rewards and qualities above are refused"),
        sa.Column(
            "implicit_feedback",
            sa.Boolean(),
            nullable=False,
            comment="whether an item that was shown and not judged counts as unhelpful when another one helped",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was created",
        ),
        sa.CheckConstraint("dim BETWEEN 1 AND 16000", name=op.f("space_dim_check")),
        sa.CheckConstraint("reward_min < reward_max AND reward_max > 0", name=op.f("space_reward_range_check")),
        sa.PrimaryKeyConstraint("space_id", name=op.f("space_pkey")),
        sa.UniqueConstraint("name", name=op.f("space_name_key")),
        schema="sona",
        comment="One embedding model and one purpose: a tenant, a bot, a collection. Nothing learned crosses spaces.",
    )
    op.create_table(
        "trajectory",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column("trajectory_id", sa.Uuid(), nullable=False, comment="given by the client, time-ordered"),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was recorded",
        ),
        sa.Column(
            "query",
            Vector(),
            nullable=False,
            comment="the query's embedding, before any adaptation",
        ),
        sa.Column("quality", sa.REAL(), nullable=True, comment="overall quality; NULL while unknown"),
        sa.Column(
            "latency_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="time of the answer"
        ),
        sa.Column("user_id", sa.Text(), nullable=True, comment="as the application calls the user"),
        sa.Column("session_id", sa.Text(), nullable=True, comment="as the application calls the session"),
        sa.Column(
            "metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
            comment="of the application",
        ),
        sa.Column("arm", sa.Text(), server_default=sa.text("'learned'"), nullable=False, comment="learned or control"),
        sa.Column(
            "version", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="version that answered"
        ),
        sa.Column(
            "strategy", sa.Text(), server_default=sa.text("'adapted'"), nullable=False, comment="strategy that answered"
        ),
        sa.Column(
            "propensity", sa.REAL(), server_default=sa.text("1"), nullable=False, comment="probability of the arm"
        ),
        sa.PrimaryKeyConstraint("space_id", "trajectory_id", name=op.f("trajectory_pkey")),
        schema="sona",
        comment="What was asked, how it was answered and what it was worth; append-only.",
    )
    op.create_table(
        "trajectory_step",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column("trajectory_id", sa.Uuid(), nullable=False, comment="trajectory that the step belongs to"),
        sa.Column(
            "ordinal", sa.Integer(), autoincrement=False, nullable=False, comment="0-based place in the trajectory"
        ),
        sa.Column(
            "item_id",
            sa.Text(),
            nullable=True,
            comment="the item that was shown or judged; NULL for a step of another kind",
        ),
        sa.Column(
            "position",
            sa.Integer(),
            nullable=True,
            comment="1-based place at which the item was shown; NULL if it was not",
        ),
        sa.Column("reward", sa.REAL(), nullable=True, comment="NULL is unjudged, 0 is unhelpful"),
        sa.Column(
            "attention",
            postgresql.ARRAY(sa.REAL()),
            nullable=True,
            comment="attention weights; for retrieval the score",
        ),
        sa.Column(
            "activation",
            Vector(),
            nullable=True,
            comment="NULL where the item is known by its id",
        ),
        sa.PrimaryKeyConstraint("space_id", "trajectory_id", "ordinal", name=op.f("trajectory_step_pkey")),
        schema="sona",
        comment="The steps of a trajectory: for retrieval, the items.",
    )
    op.create_table(
        "adapter_version",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column(
            "version",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="1 for the first that was published",
        ),
        sa.Column("parent", sa.BigInteger(), nullable=True, comment="version that it was learned from"),
        sa.Column("epoch", sa.BigInteger(), nullable=False, comment="the learner's epoch when it was published"),
        sa.Column("revision", sa.BigInteger(), nullable=False, comment="the learner's revision when it was published"),
        sa.Column("events", sa.BigInteger(), nullable=False, comment="outcome events learned by then"),
        sa.Column("cause", sa.Text(), nullable=False, comment="why it was published"),
        sa.Column("state", sa.LargeBinary(), nullable=False, comment="the learner's state, as in learner.state"),
        sa.Column("checksum", sa.LargeBinary(), nullable=False, comment="SHA-256 of state"),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was published",
        ),
        sa.ForeignKeyConstraint(
            ["space_id"], ["sona.space.space_id"], name=op.f("adapter_version_space_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("space_id", "version", name=op.f("adapter_version_pkey")),
        schema="sona",
        comment="Immutable published states.",
    )
    op.create_table(
        "item_sample",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column("ordinal", sa.Integer(), nullable=False, comment="place in the sample, by hash of the id"),
        sa.Column("item_id", sa.Text(), nullable=False, comment="the item, as text"),
        sa.Column(
            "embedding",
            Vector(),
            nullable=False,
            comment="its embedding when the sample was taken",
        ),
        sa.ForeignKeyConstraint(
            ["space_id"], ["sona.space.space_id"], name=op.f("item_sample_space_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("space_id", "ordinal", name=op.f("item_sample_pkey")),
        schema="sona",
        comment="A bounded sample of the items: negatives for learning, and the adapter's initial directions.",
    )
    op.create_table(
        "item_source",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column(
            "items", postgresql.REGCLASS(), nullable=False, comment="the application's own table; recall searches it"
        ),
        sa.Column("id_column", sa.Text(), nullable=False, comment="its column of item ids"),
        sa.Column(
            "id_type", sa.Text(), nullable=False, comment="ids given as text are cast to it, never the column to text"
        ),
        sa.Column("embedding_column", sa.Text(), nullable=False, comment="its column of item embeddings"),
        sa.Column(
            "sampled_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when item_sample was taken from it",
        ),
        sa.ForeignKeyConstraint(
            ["space_id"], ["sona.space.space_id"], name=op.f("item_source_space_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("space_id", name=op.f("item_source_pkey")),
        schema="sona",
        comment="Where the items of a space are.",
    )
    op.create_table(
        "learner",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column(
            "epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="grows with every deploy"
        ),
        sa.Column(
            "revision", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="grows with every flush"
        ),
        sa.Column(
            "version", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="last published version"
        ),
        sa.Column(
            "events", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="outcome events learned"
        ),
        sa.Column(
            "ordinal", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="ledger entries written"
        ),
        sa.Column(
            "state",
            sa.LargeBinary(),
            nullable=True,
            comment="weights, moments, averages and baselines; NULL before anything was learned",
        ),
        sa.Column(
            "settings",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
            comment="settings of the adapter",
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was last flushed",
        ),
        sa.ForeignKeyConstraint(
            ["space_id"], ["sona.space.space_id"], name=op.f("learner_space_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("space_id", name=op.f("learner_pkey")),
        schema="sona",
        comment="The mutable state of a space. Its row lock makes one learner at a time.",
    )
    op.create_table(
        "served_row",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column("tier", sa.Text(), nullable=False, comment="adapter or micro"),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False, comment="index of the rank"),
        sa.Column("down", Vector(), nullable=False, comment="column of A"),
        sa.Column("up", Vector(), nullable=False, comment="row of B, times the scale"),
        sa.ForeignKeyConstraint(
            ["space_id"], ["sona.space.space_id"], name=op.f("served_row_space_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("space_id", "tier", "ordinal", name=op.f("served_row_pkey")),
        schema="sona",
        comment="The served map as vectors, for sona.adapt: x + sum of (x . down) up.",
    )
    op.create_table(
        "space_grant",
        sa.Column(
            "space_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="space that the row belongs to"
        ),
        sa.Column("role_name", sa.Text(), nullable=False, comment="role whose members may use the space"),
        sa.Column("may_write", sa.Boolean(), server_default=sa.text("true"), nullable=False, comment="or only read"),
        sa.Column(
            "granted_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when the grant was made",
        ),
        sa.ForeignKeyConstraint(
            ["space_id"], ["sona.space.space_id"], name=op.f("space_grant_space_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("space_id", "role_name", name=op.f("space_grant_pkey")),
        schema="sona",
        comment="Who may see what: the row-level policies of every table read it.",
    )
    # Rows of the served map hold two vectors: kept beside each other in the page, sona.adapt reads them without TOAST.
    op.execute("ALTER TABLE sona.served_row SET (toast_tuple_target = 8160, fillfactor = 50)")


def downgrade() -> None:
    op.drop_table("space_grant", schema="sona")
    op.drop_table("served_row", schema="sona")
    op.drop_table("learner", schema="sona")
    op.drop_table("item_source", schema="sona")
    op.drop_table("item_sample", schema="sona")
    op.drop_table("adapter_version", schema="sona")
    op.drop_table("trajectory_step", schema="sona")
    op.drop_table("trajectory", schema="sona")
    op.drop_table("space", schema="sona")
    op.drop_index("score_space_id_trajectory_id_idx", table_name="score", schema="sona")
    op.drop_table("score", schema="sona")
    op.drop_index(
        "remembered_query_tail_idx",
        table_name="remembered_query",
        schema="sona",
        postgresql_where=sa.text("NOT admitted"),
    )
    op.drop_table("remembered_query", schema="sona")
    op.drop_index("memory_edge_target_idx", table_name="memory_edge", schema="sona")
    op.drop_table("memory_edge", schema="sona")
    op.drop_table("learning_event", schema="sona")
    op.drop_table("learning_cycle", schema="sona")
