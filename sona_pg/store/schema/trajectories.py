"""What was recorded."""

from __future__ import annotations

from pgvector.sqlalchemy import Vector
from sqlalchemy import REAL, BigInteger, Column, Identity, Index, Integer, LargeBinary, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from sona_pg.store.schema.columns import metadata, now, space_id

trajectory = Table(
    "trajectory",
    metadata,
    space_id(owned=False),
    Column("trajectory_id", Uuid, primary_key=True, comment="given by the client, time-ordered"),
    now("created_at", "when it was recorded"),
    Column("query", Vector, nullable=False, comment="the query's embedding, before any adaptation"),
    Column("quality", REAL, comment="overall quality; NULL while unknown"),
    Column("latency_us", BigInteger, nullable=False, server_default=text("0"), comment="time of the answer"),
    Column("user_id", Text, comment="as the application calls the user"),
    Column("session_id", Text, comment="as the application calls the session"),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'::jsonb"), comment="of the application"),
    Column("arm", Text, nullable=False, server_default=text("'learned'"), comment="learned or control"),
    Column("version", BigInteger, nullable=False, server_default=text("0"), comment="version that answered"),
    Column(
        "strategy",
        Text,
        nullable=False,
        server_default=text("'unknown'"),
        comment="strategy that answered; unknown if recall did not",
    ),
    Column("propensity", REAL, nullable=False, server_default=text("1"), comment="probability of the arm"),
    Index("trajectory_space_id_created_at_idx", "space_id", "created_at"),
    comment="What was asked, how it was answered and what it was worth; append-only.",
)


trajectory_step = Table(
    "trajectory_step",
    metadata,
    space_id(owned=False),
    Column("trajectory_id", Uuid, primary_key=True, comment="trajectory that the step belongs to"),
    Column("ordinal", Integer, primary_key=True, autoincrement=False, comment="0-based place in the trajectory"),
    Column("item_id", Text, comment="the item that was shown or judged; NULL for a step of another kind"),
    Column("position", Integer, comment="1-based place at which the item was shown; NULL if it was not"),
    Column("reward", REAL, comment="NULL is unjudged, 0 is unhelpful"),
    Column("attention", ARRAY(REAL), comment="attention weights; for retrieval the score"),
    Column("activation", Vector, comment="NULL where the item is known by its id"),
    comment="The steps of a trajectory: for retrieval, the items.",
)


score = Table(
    "score",
    metadata,
    space_id(owned=False),
    Column("score_id", Text, primary_key=True, comment="given by the application; the same id again is nothing"),
    Column("trajectory_id", Uuid, nullable=False, comment="trajectory that is scored"),
    Column("item_id", Text, comment="NULL scores the whole answer"),
    Column("name", Text, nullable=False, server_default=text("'reward'"), comment="which judgement this is"),
    Column("value", REAL, nullable=False, comment="what it was worth"),
    now("created_at", "when it was given"),
    Column("sequence", BigInteger, Identity(always=True), nullable=False, comment="order of arrival"),
    Column("revision", Integer, comment="revision of the outcomes that took it in; NULL until then"),
    Index("score_space_id_trajectory_id_idx", "space_id", "trajectory_id"),
    comment="Outcomes that came after the trajectory, or correct it.",
)


forgotten_user = Table(
    "forgotten_user",
    metadata,
    space_id(),
    Column("digest", LargeBinary, primary_key=True, comment="SHA-256 of the space's key and the user's id"),
    now("forgotten_at", "when; what was answered before stays forgotten"),
    comment="Whose trajectories must not come back from a spool.",
)


pending_trajectory = Table(
    "pending_trajectory",
    metadata,
    space_id(owned=False),
    Column("pending_id", BigInteger, Identity(always=True), primary_key=True, comment="order of arrival"),
    Column("trajectory_id", Uuid, nullable=False, comment="trajectory with something new to learn"),
    now("created_at", "when it was recorded or scored"),
    comment="What SQL clients recorded or scored, and the instant worker has not learned yet.",
)
