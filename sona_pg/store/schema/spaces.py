"""Spaces, who may use them, and their items."""

from __future__ import annotations

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Integer,
    Interval,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, REGCLASS

from sona_pg.store.schema.columns import metadata, now, space_id, time

space = Table(
    "space",
    metadata,
    Column("space_id", BigInteger, Identity(always=True), primary_key=True, comment="key of the space"),
    Column("name", Text, nullable=False, unique=True, comment="how applications call it"),
    Column("dim", Integer, nullable=False, comment="components of every vector of the space"),
    Column("embedder", Text, comment="fingerprint of the embedding model; NULL until it is declared"),
    Column("reward_min", REAL, nullable=False, comment="rewards and qualities below are refused"),
    Column("reward_max", REAL, nullable=False, comment="rewards and qualities above are refused"),
    Column(
        "implicit_feedback",
        Boolean,
        nullable=False,
        comment="whether an item that was shown and not judged counts as unhelpful when another one helped",
    ),
    now("created_at", "when it was created"),
    Column(
        "space_key",
        Uuid,
        nullable=False,
        server_default=text("gen_random_uuid()"),
        comment="names the space beyond this database: what a spool holds belongs to it and to no other",
    ),
    Column("trajectory_retention", Interval, comment="trajectories older than this are deleted; NULL keeps them"),
    Column("step_retention", Interval, comment="steps of older trajectories are deleted; NULL keeps them"),
    Column(
        "steps_deleted_before",
        DateTime(timezone=True),
        comment="retention has deleted the steps of what was recorded before",
    ),
    Column(
        "strategy",
        Text,
        nullable=False,
        server_default=text("'learned'"),
        comment="what answers: learned is whatever is proven, anything else is fixed",
    ),
    Column(
        "examination",
        ARRAY(REAL),
        comment="probability that an item is looked at, by position; the last one holds beyond; NULL is unknown",
    ),
    Column(
        "control_share",
        REAL,
        nullable=False,
        server_default=text("0.05"),
        comment="share of answers that the frozen embedding gives, to compare with; 0 has no control arm",
    ),
    Column(
        "frozen_from",
        Text,
        comment="what the space was set to before it was frozen by a deploy or by its lift; NULL if it was not",
    ),
    Column(
        "steps_lost_before",
        DateTime(timezone=True),
        comment="retention has deleted steps of what was recorded before, at any time; NULL if it never did",
    ),
    Column(
        "may_transfer",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="whether its patterns are compared with those of other spaces that allow it too",
    ),
    Column(
        "standby_of",
        BigInteger,
        comment="space beside which it is kept while that changes its embedder; NULL of one that answers",
    ),
    time("replaced_at", "when a space of another embedder took its place; NULL if none did"),
    CheckConstraint(
        "strategy IN ('learned', 'frozen', 'adapted', 'familiar', 'boosted', 'stake', 'fusion', 'related', 'shadow')",
        name="strategy",
    ),
    CheckConstraint("control_share BETWEEN 0 AND 0.5", name="control_share"),
    CheckConstraint("dim BETWEEN 1 AND 16000", name="dim"),
    CheckConstraint("reward_min < reward_max AND reward_max > 0", name="reward_range"),
    comment="One embedding model and one purpose: a tenant, a bot, a collection. Nothing learned crosses spaces.",
)


space_grant = Table(
    "space_grant",
    metadata,
    space_id(),
    Column("role_name", Text, primary_key=True, comment="role whose members may use the space"),
    Column("may_write", Boolean, nullable=False, server_default=text("true"), comment="or only read"),
    now("granted_at", "when the grant was made"),
    comment="Who may see what: the row-level policies of every table read it.",
)


item_source = Table(
    "item_source",
    metadata,
    space_id(),
    Column("items", REGCLASS, nullable=False, comment="the application's own table; recall searches it"),
    Column("id_column", Text, nullable=False, comment="its column of item ids"),
    Column("id_type", Text, nullable=False, comment="ids given as text are cast to it, never the column to text"),
    Column("embedding_column", Text, nullable=False, comment="its column of item embeddings"),
    now("sampled_at", "when item_sample was taken from it"),
    Column(
        "filter_columns",
        ARRAY(Text),
        nullable=False,
        server_default=text("'{}'::text[]"),
        comment="columns of the items table that recall may filter by",
    ),
    comment="Where the items of a space are.",
)


item_sample = Table(
    "item_sample",
    metadata,
    space_id(),
    Column("ordinal", Integer, primary_key=True, comment="place in the sample, by hash of the id"),
    Column("item_id", Text, nullable=False, comment="the item, as text"),
    Column("embedding", Vector, nullable=False, comment="its embedding when the sample was taken"),
    comment="A bounded sample of the items: negatives for learning, and the adapter's initial directions.",
)
