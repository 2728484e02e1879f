"""What is remembered of outcomes, and which strategy they prove."""

from __future__ import annotations

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from sona_pg.store.schema.columns import metadata, now, space_id

remembered_query = Table(
    "remembered_query",
    metadata,
    space_id(owned=False),
    Column("trajectory_id", Uuid, primary_key=True, comment="trajectory of the query"),
    Column("embedding", Vector, nullable=False, comment="the query's embedding"),
    Column(
        "admitted",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="whether the row is in the HNSW index of its dimension; the fresh tail is searched exactly",
    ),
    Column("ordinal", BigInteger, comment="ledger entry by which it was remembered; NULL until then"),
    Column("helped", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]"), comment="items that helped"),
    Column(
        "rewards",
        ARRAY(REAL),
        nullable=False,
        server_default=text("'{}'::real[]"),
        comment="how much each of them did; by the space's examination, where it declares one",
    ),
    Column(
        "unhelpful",
        ARRAY(Text),
        nullable=False,
        server_default=text("'{}'::text[]"),
        comment="items that were shown and did not help",
    ),
    Column(
        "is_prototype",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="whether sona.adapt measures by it how familiar a query is",
    ),
    Index("remembered_query_tail_idx", "space_id", "ordinal", postgresql_where=text("NOT admitted")),
    Index("remembered_query_ordinal_idx", "space_id", "ordinal"),
    Index("remembered_query_prototype_idx", "space_id", postgresql_where=text("is_prototype")),
    comment="Queries whose outcome is known, and what it was: narrow, for nearest-neighbour search.",
)


item_outcome = Table(
    "item_outcome",
    metadata,
    space_id(owned=False),
    Column("item_id", Text, primary_key=True, comment="the item"),
    Column(
        "helped", BigInteger, nullable=False, comment="in how many events it helped, of all that were ever remembered"
    ),
    comment="What remembered outcomes say of an item, whatever was asked.",
)


strategist = Table(
    "strategist",
    metadata,
    space_id(),
    Column("ordinal", BigInteger, nullable=False, server_default=text("0"), comment="ledger entries taken in"),
    Column("events", BigInteger, nullable=False, server_default=text("0"), comment="events that were scored"),
    Column(
        "in_force",
        Text,
        nullable=False,
        server_default=text("'frozen'"),
        comment="strategy that is proven to be best; regions may be exceptions",
    ),
    Column(
        "is_sane",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="whether outcomes have to do with queries; nothing but frozen answers without",
    ),
    Column("known", Double, nullable=False, server_default=text("0"), comment="the stake on familiar ground, 0 to 1"),
    Column("strange", Double, nullable=False, server_default=text("0"), comment="the stake elsewhere, 0 to 1"),
    Column("unseen", Double, nullable=False, server_default=text("0"), comment="share of the fusion on strange ground"),
    Column("weights", ARRAY(Double), comment="the fusion's, in the order of its features; NULL before the first event"),
    Column("settings", JSONB, nullable=False, server_default=text("'{}'::jsonb"), comment="settings of the strategist"),
    Column("state", LargeBinary, comment="adapters, weights, evidence; NULL before the first event"),
    now("updated_at", "when it last took in events"),
    Column("epoch", BigInteger, nullable=False, server_default=text("0"), comment="grows with every deploy"),
    Column(
        "restored",
        BigInteger,
        comment="version that was deployed and is to be taken over by state; NULL once it was",
    ),
    Column("evidence", LargeBinary, comment="the small part of state, which a version keeps"),
    Column(
        "suspected_share",
        REAL,
        nullable=False,
        server_default=text("0"),
        comment="share of the control arm while what answers may do harm; 0 while there is no sign of that",
    ),
    Column(
        "changed_at", DateTime(timezone=True), comment="when somebody last changed what answers; NULL if nobody did"
    ),
    Column(
        "remembered_until",
        BigInteger,
        comment="ledger entry from which on prototypes do not count for what was deployed; NULL counts all",
    ),
    Column("lift", LargeBinary, comment="what the arms have shown so far; NULL before the first answer"),
    Column(
        "patterns_run", BigInteger, comment="cycle whose patterns the regions were compared with; NULL before the first"
    ),
    Column("base_version", BigInteger, comment="version whose base the adapter was put on; NULL before the first"),
    Column("memory_run", BigInteger, comment="cycle whose snapshot of the memory graph is used; NULL before the first"),
    comment="The second reader of the ledger: which strategy is proven. Its row lock makes one at a time.",
)


strategy_evidence = Table(
    "strategy_evidence",
    metadata,
    space_id(),
    Column("strategy", Text, primary_key=True, comment="strategy"),
    Column("events", BigInteger, nullable=False, comment="events that it was scored on"),
    Column("gain", Double, nullable=False, comment="mean nDCG@10 above frozen, before an event was learned from"),
    Column("recent_gain", Double, nullable=False, comment="the same, an event counting 1 % less than the next"),
    comment="Every strategy on every event, whether it answered or not.",
)


strategy_region = Table(
    "strategy_region",
    metadata,
    space_id(),
    Column("region", Integer, primary_key=True, autoincrement=False, comment="number of the region"),
    Column("centroid", Vector, nullable=False, comment="its centre; a query belongs to the nearest"),
    Column("events", BigInteger, nullable=False, comment="events that fell into it"),
    Column("gain", Double, nullable=False, comment="the fusion's mean gain there, shrunk to that of the space"),
    Column(
        "verdict",
        Integer,
        nullable=False,
        comment="1: the fusion is proven to be better there, -1: worse, 0: the region follows the space",
    ),
    Column("pattern_id", BigInteger, comment="pattern that it is; NULL while it is none"),
    comment="Parts of the query space with evidence of their own.",
)


strategy_turn = Table(
    "strategy_turn",
    metadata,
    space_id(),
    Column("turn_id", BigInteger, Identity(always=True), primary_key=True, comment="order of the turns"),
    now("created_at", "when it was found"),
    Column("ordinal", BigInteger, nullable=False, comment="ledger entry by which it was found"),
    Column("trajectory_id", Uuid, nullable=False, comment="trajectory of that entry"),
    Column("region", Integer, comment="where; NULL is the whole space"),
    Column("before", Text, nullable=False, comment="strategy that was in force"),
    Column("after", Text, nullable=False, comment="strategy that is in force since"),
    Column("reason", Text, nullable=False, comment="what was proven"),
    comment="When another strategy came into force, and why.",
)


answer_outcome = Table(
    "answer_outcome",
    metadata,
    space_id(owned=False),
    Column("trajectory_id", Uuid, primary_key=True, comment="the answer"),
    Column("ordinal", BigInteger, nullable=False, comment="ledger entry that said first what it was worth"),
    now("answered_at", "when it was recorded"),
    Column("arm", Text, nullable=False, comment="learned, control or shadow"),
    Column("strategy", Text, nullable=False, comment="strategy that answered"),
    Column("version", BigInteger, nullable=False, comment="version that answered"),
    Column("propensity", REAL, nullable=False, comment="probability of the arm"),
    Column("value", Double, nullable=False, comment="what it was worth, 0 to 1"),
    Column(
        "contrast",
        Double,
        comment="unbiased estimate of the lift by this answer; NULL where there was no control arm",
    ),
    Column(
        "gain",
        Double,
        comment="nDCG@10 of what answers above frozen, on the items that were judged; NULL where that is unknown",
    ),
    Index("answer_outcome_answered_at_idx", "space_id", "answered_at"),
    Index("answer_outcome_ordinal_idx", "space_id", "ordinal"),
    comment="What every answer was worth, and what answered: the lift compares the arms.",
)
