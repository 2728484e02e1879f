"""The memory graph, its dreams and its archive."""

from __future__ import annotations

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from sona_pg.store.schema.columns import flag, metadata, now, space_id, time, whole

memory_edge = Table(
    "memory_edge",
    metadata,
    space_id(owned=False),
    Column(
        "kind",
        Text,
        primary_key=True,
        comment="co_access: the items helped together; pattern: an item helped there; hierarchy: the source is made of "
        "the target; creative: a dream's; analogy: with a pattern of another space; given: by hand",
    ),
    Column("source", Text, primary_key=True, comment="key of the node, as in memory_node; of an item its id"),
    Column("target", Text, primary_key=True, comment="likewise"),
    Column("weight", Double, nullable=False, comment="0 to 1"),
    now("updated_at", "when an outcome, a dream or somebody last changed the weight"),
    Column(
        "source_kind",
        Text,
        primary_key=True,
        server_default=text("'item'"),
        comment="kind of the source, as in memory_node",
    ),
    Column("target_kind", Text, primary_key=True, server_default=text("'item'"), comment="kind of the target"),
    Column(
        "origin",
        Text,
        nullable=False,
        server_default=text("'trajectories'"),
        comment="what has made it: trajectories, patterns, a dream, somebody by hand",
    ),
    now("created_at", "when it was made"),
    now("decayed_at", "up to when its weight has decayed"),
    Index("memory_edge_target_idx", "space_id", "kind", "target"),
    comment="Edges of the memory graph; an undirected edge stands once, source before target.",
)


memory_node = Table(
    "memory_node",
    metadata,
    space_id(),
    Column("node_id", BigInteger, primary_key=True, autoincrement=False, comment="1 for the first of the space"),
    Column("kind", Text, nullable=False, comment="item, pattern, concept, episode, procedure or dream"),
    Column(
        "key",
        Text,
        nullable=False,
        comment="what it is called among those of its kind: the id of the item or of the pattern",
    ),
    Column("embedding", Vector, comment="where it lies; NULL where nobody knows"),
    Column("title", Text, comment="as somebody has called it; NULL if nobody did"),
    Column(
        "level",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="of a concept: 1 if it is made of patterns, 2 if of concepts of level 1, and so on",
    ),
    now("created_at", "when it came into the graph"),
    flag("is_distinct", "whether it was merged and restored: it is not merged again"),
    UniqueConstraint("space_id", "kind", "key"),
    comment="Nodes of the memory graph: the deep loop makes them of what was learned.",
)


memory_node_state = Table(
    "memory_node_state",
    metadata,
    space_id(),
    Column("node_id", BigInteger, primary_key=True, autoincrement=False, comment="node"),
    Column("importance", Double, nullable=False, comment="0 to 1, its value at the last consolidation"),
    Column("quality", Double, comment="what answers were worth in which it took part, 0 to 1; NULL unknown"),
    whole("access_count", "how often it took part in an outcome or was found"),
    now("last_access", "when it last did"),
    whole("consolidation_count", "cycles in which it was strengthened"),
    comment="What memory nodes are worth: beside them, so that a cycle that weighs all of them moves no vector.",
)


memory_state = Table(
    "memory_state",
    metadata,
    space_id(),
    whole("last_node_id", "the last node_id that was given"),
    whole("last_dream_id", "the last dream_id that was given"),
    whole("generation", "grows when a user is forgotten: what was read before is not written any more"),
    time("consolidated_at", "up to when memory is consolidated"),
    Column("evidence", JSONB, comment="whether dreams predict edges that were held out; NULL before they are asked"),
    Column("system", JSONB, comment="integration of the patterns as a system; NULL before it was measured"),
    Column("run_id", BigInteger, comment="cycle that was committed last; NULL before the first"),
    now("updated_at", "when it last changed"),
    comment="How far the memory graph of a space is.",
)


dream = Table(
    "dream",
    metadata,
    space_id(),
    Column("dream_id", BigInteger, primary_key=True, autoincrement=False, comment="1 for the first of the space"),
    Column("run_id", BigInteger, nullable=False, comment="cycle in which it was dreamt"),
    Column("nodes", ARRAY(BigInteger), nullable=False, comment="node_id of every step, in order"),
    Column("kinds", ARRAY(Text), nullable=False, comment="how each was reached: start, edge, jump or restart"),
    Column("creative_jumps", BigInteger, nullable=False, comment="how many steps were jumps"),
    Column("novelty", Double, nullable=False, comment="0 to 1"),
    Column("coherence", Double, nullable=False, comment="0 to 1"),
    Column("utility", Double, nullable=False, comment="0 to 1"),
    Column("diversity", Double, nullable=False, comment="0 to 1"),
    Column("quality", Double, nullable=False, comment="of novelty, coherence and utility, weighted"),
    Column("phi", Double, nullable=False, comment="integration of its nodes, 0 to 1"),
    Column("phi_threshold", Double, nullable=False, comment="from which it may be integrated"),
    Column("is_integrated", Boolean, nullable=False, comment="whether it may have made edges"),
    Column("reason", Text, nullable=False, comment="why it was, or was not"),
    now("created_at", "when it was dreamt"),
    Index("dream_run_idx", "space_id", "run_id"),
    comment="Walks over the memory graph, what they are worth, and what became of them.",
)


memory_snapshot = Table(
    "memory_snapshot",
    metadata,
    space_id(),
    Column("run_id", BigInteger, primary_key=True, autoincrement=False, comment="cycle that made it"),
    Column("ordinal", BigInteger, nullable=False, comment="ledger entries that are in it, at most"),
    Column("content", LargeBinary, nullable=False, comment="names of the items, and the edges"),
    now("created_at", "when it was made"),
    comment="The memory graph as cycles left it: what comes after is weighed by it, so that no event knows itself.",
)


memory_archive = Table(
    "memory_archive",
    metadata,
    space_id(),
    Column("archive_id", BigInteger, Identity(always=True), primary_key=True, comment="order of removal"),
    Column("run_id", BigInteger, nullable=False, comment="cycle that removed it"),
    Column(
        "entity",
        Text,
        nullable=False,
        comment="node or edge; or node before, edge before: what stands, as it was before others were merged into it",
    ),
    Column("content", JSONB, nullable=False, comment="the row, all of it; of a node with its state"),
    Column("into_id", BigInteger, comment="node that it became part of; NULL where it went"),
    Column("reason", Text, nullable=False, comment="why it was removed"),
    now("archived_at", "when"),
    flag("is_merge", "whether something became part of another: that comes back with all of its cycle and since"),
    Index("memory_archive_into_idx", "space_id", "into_id", postgresql_where=text("into_id IS NOT NULL")),
    comment="What consolidation has removed from the memory graph: sona.restore_memory brings it back.",
)
