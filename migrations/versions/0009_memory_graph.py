"""The memory graph: nodes beside the edges between items, dreams over them, and an archive of what is removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


_STRATEGIES = "'learned', 'frozen', 'adapted', 'familiar', 'boosted', 'stake', 'fusion', 'shadow'"


def _force(is_forced: bool) -> None:
    """The policies would hide rows from an owner who has no grant."""
    for table in ("space", "strategist", "learner", "base_state", "fisher_snapshot"):
        op.execute(f"ALTER TABLE sona.{table} {'' if is_forced else 'NO '}FORCE ROW LEVEL SECURITY")


def _replace_strategies(strategies: str) -> None:
    op.drop_constraint(op.f("space_strategy_check"), "space", schema="sona")
    op.create_check_constraint(op.f("space_strategy_check"), "space", f"strategy IN ({strategies})", schema="sona")


def _space_id() -> sa.Column[int]:
    return sa.Column(
        "space_id",
        sa.BigInteger(),
        sa.ForeignKey("sona.space.space_id", ondelete="CASCADE"),
        autoincrement=False,
        nullable=False,
        comment="space that the row belongs to",
    )


def _now(name: str, comment: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False, comment=comment)


def _whole(name: str, comment: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment=comment)


def _number(name: str, comment: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), autoincrement=False, nullable=False, comment=comment)


def _no(name: str, comment: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), server_default=sa.text("false"), nullable=False, comment=comment)


def _text(name: str, comment: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False, comment=comment)


def _share(name: str, comment: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), nullable=False, comment=comment)


def upgrade() -> None:
    for name, default, comment in (
        ("source_kind", "item", "kind of the source, as in memory_node"),
        ("target_kind", "item", "kind of the target"),
        ("origin", "trajectories", "what has made it: trajectories, patterns, a dream, somebody by hand"),
    ):
        op.add_column(
            "memory_edge",
            sa.Column(name, sa.Text(), server_default=sa.text(f"'{default}'"), nullable=False, comment=comment),
            schema="sona",
        )
    op.add_column("memory_edge", _now("created_at", "when it was made"), schema="sona")
    op.add_column("memory_edge", _now("decayed_at", "up to when its weight has decayed"), schema="sona")
    # Items and patterns may have the same name.
    op.drop_constraint("memory_edge_pkey", "memory_edge", schema="sona")
    op.create_primary_key(
        "memory_edge_pkey",
        "memory_edge",
        ["space_id", "kind", "source", "target", "source_kind", "target_kind"],
        schema="sona",
    )
    op.alter_column(
        "memory_edge",
        "kind",
        existing_type=sa.Text(),
        existing_nullable=False,
        comment="co_access: the items helped together; pattern: an item helped there; hierarchy: the source is made of "
        "the target; creative: a dream's; analogy: with a pattern of another space; given: by hand",
        existing_comment="co_access: the items helped together",
        schema="sona",
    )
    op.alter_column(
        "memory_edge",
        "source",
        existing_type=sa.Text(),
        existing_nullable=False,
        comment="key of the node, as in memory_node; of an item its id",
        existing_comment="item or node",
        schema="sona",
    )
    op.alter_column(
        "memory_edge",
        "target",
        existing_type=sa.Text(),
        existing_nullable=False,
        comment="likewise",
        existing_comment="item or node",
        schema="sona",
    )
    op.alter_column(
        "memory_edge",
        "updated_at",
        existing_type=sa.DateTime(timezone=True),
        existing_nullable=False,
        existing_server_default=sa.text("now()"),
        comment="when an outcome, a dream or somebody last changed the weight",
        existing_comment="when the weight last changed",
        schema="sona",
    )
    # A cycle changes the weights of all edges: where there is room for them in their pages, no index is touched.
    op.execute("ALTER TABLE sona.memory_edge SET (fillfactor = 50)")
    op.create_table(
        "memory_node",
        _space_id(),
        _number("node_id", "1 for the first of the space"),
        _text("kind", "item, pattern, concept, episode, procedure or dream"),
        _text("key", "what it is called among those of its kind: the id of the item or of the pattern"),
        sa.Column("embedding", Vector(), comment="where it lies; NULL where nobody knows"),
        sa.Column("title", sa.Text(), comment="as somebody has called it; NULL if nobody did"),
        sa.Column(
            "level",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="of a concept: 1 if it is made of patterns, 2 if of concepts of level 1, and so on",
        ),
        _now("created_at", "when it came into the graph"),
        _no("is_distinct", "whether it was merged and restored: it is not merged again"),
        sa.PrimaryKeyConstraint("space_id", "node_id", name="memory_node_pkey"),
        sa.UniqueConstraint("space_id", "kind", "key", name="memory_node_space_id_kind_key_key"),
        schema="sona",
        comment="Nodes of the memory graph: the deep loop makes them of what was learned.",
    )
    op.create_table(
        "memory_node_state",
        _space_id(),
        _number("node_id", "node"),
        _share("importance", "0 to 1, its value at the last consolidation"),
        sa.Column(
            "quality", sa.Double(), comment="what answers were worth in which it took part, 0 to 1; NULL unknown"
        ),
        _whole("access_count", "how often it took part in an outcome or was found"),
        _now("last_access", "when it last did"),
        _whole("consolidation_count", "cycles in which it was strengthened"),
        sa.PrimaryKeyConstraint("space_id", "node_id", name="memory_node_state_pkey"),
        schema="sona",
        comment="What memory nodes are worth: beside them, so that a cycle that weighs all of them moves no vector.",
    )
    op.create_table(
        "memory_state",
        _space_id(),
        _whole("last_node_id", "the last node_id that was given"),
        _whole("last_dream_id", "the last dream_id that was given"),
        _whole("generation", "grows when a user is forgotten: what was read before is not written any more"),
        sa.Column("consolidated_at", sa.DateTime(timezone=True), comment="up to when memory is consolidated"),
        sa.Column(
            "evidence", JSONB(), comment="whether dreams predict edges that were held out; NULL before they are asked"
        ),
        sa.Column("system", JSONB(), comment="integration of the patterns as a system; NULL before it was measured"),
        sa.Column("run_id", sa.BigInteger(), comment="cycle that was committed last; NULL before the first"),
        _now("updated_at", "when it last changed"),
        sa.PrimaryKeyConstraint("space_id", name="memory_state_pkey"),
        schema="sona",
        comment="How far the memory graph of a space is.",
    )
    op.create_table(
        "dream",
        _space_id(),
        _number("dream_id", "1 for the first of the space"),
        _number("run_id", "cycle in which it was dreamt"),
        sa.Column("nodes", ARRAY(sa.BigInteger()), nullable=False, comment="node_id of every step, in order"),
        sa.Column(
            "kinds", ARRAY(sa.Text()), nullable=False, comment="how each was reached: start, edge, jump or restart"
        ),
        _number("creative_jumps", "how many steps were jumps"),
        _share("novelty", "0 to 1"),
        _share("coherence", "0 to 1"),
        _share("utility", "0 to 1"),
        _share("diversity", "0 to 1"),
        _share("quality", "of novelty, coherence and utility, weighted"),
        _share("phi", "integration of its nodes, 0 to 1"),
        _share("phi_threshold", "from which it may be integrated"),
        sa.Column("is_integrated", sa.Boolean(), nullable=False, comment="whether it may have made edges"),
        _text("reason", "why it was, or was not"),
        _now("created_at", "when it was dreamt"),
        sa.PrimaryKeyConstraint("space_id", "dream_id", name="dream_pkey"),
        schema="sona",
        comment="Walks over the memory graph, what they are worth, and what became of them.",
    )
    op.create_index("dream_run_idx", "dream", ["space_id", "run_id"], schema="sona")
    op.create_table(
        "memory_snapshot",
        _space_id(),
        _number("run_id", "cycle that made it"),
        sa.Column(
            "ordinal",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="ledger entries that are in it, at most",
        ),
        sa.Column("content", sa.LargeBinary(), nullable=False, comment="names of the items, and the edges"),
        _now("created_at", "when it was made"),
        sa.PrimaryKeyConstraint("space_id", "run_id", name="memory_snapshot_pkey"),
        schema="sona",
        comment="The memory graph as cycles left it: what comes after is weighed by it, so that no event knows itself.",
    )
    op.add_column(
        "strategist",
        sa.Column(
            "memory_run",
            sa.BigInteger(),
            comment="cycle whose snapshot of the memory graph is used; NULL before the first",
        ),
        schema="sona",
    )
    _replace_strategies(f"{_STRATEGIES}, 'related'")
    _force(False)
    # Settings that were claimed before there were these.
    op.execute(
        'UPDATE sona.strategist SET settings = settings || \'{"related_starts": 5, "related_hops": 2,'
        ' "related_factor": 0.7, "related_weight": 1.0}\' WHERE settings <> \'{}\''
    )
    _force(True)
    op.create_table(
        "memory_archive",
        _space_id(),
        sa.Column("archive_id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="order of removal"),
        _number("run_id", "cycle that removed it"),
        _text(
            "entity",
            "node or edge; or node before, edge before: what stands, as it was before others were merged into it",
        ),
        sa.Column("content", JSONB(), nullable=False, comment="the row, all of it; of a node with its state"),
        sa.Column("into_id", sa.BigInteger(), comment="node that it became part of; NULL where it went"),
        _text("reason", "why it was removed"),
        _now("archived_at", "when"),
        _no("is_merge", "whether something became part of another: that comes back with all of its cycle and since"),
        sa.PrimaryKeyConstraint("space_id", "archive_id", name="memory_archive_pkey"),
        schema="sona",
        comment="What consolidation has removed from the memory graph: sona.restore_memory brings it back.",
    )
    op.create_index(
        "memory_archive_into_idx",
        "memory_archive",
        ["space_id", "into_id"],
        schema="sona",
        postgresql_where=sa.text("into_id IS NOT NULL"),
    )
    op.add_column(
        "base_state",
        _whole("offered", "judged lists that there were ever to keep in the reservoir, whether they are in it or not"),
        schema="sona",
    )
    _force(False)
    # Not known of what was before: at least those that were kept, and all that was learned from.
    op.execute(
        "UPDATE sona.base_state b SET offered = greatest(cardinality(b.reservoir), l.events) FROM sona.learner l"
        " WHERE l.space_id = b.space_id"
    )
    op.add_column(
        "fisher_snapshot",
        _whole("epoch", "the learner's when the task ended last: one that was undone since does not hold"),
        schema="sona",
    )
    op.execute("UPDATE sona.fisher_snapshot f SET epoch = l.epoch FROM sona.learner l WHERE l.space_id = f.space_id")
    _force(True)
    op.alter_column(
        "base_state",
        "state",
        existing_type=sa.LargeBinary(),
        comment="the task detector; NULL before the first",
        existing_comment="the running Fisher and the task detector; NULL before the first",
        schema="sona",
    )
    op.add_column(
        "space",
        sa.Column(
            "may_transfer",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="whether its patterns are compared with those of other spaces that allow it too",
        ),
        schema="sona",
    )


def downgrade() -> None:
    _force(False)
    # Where it was proven, the next event that is weighed says what answers instead.
    op.execute("UPDATE sona.space SET strategy = 'frozen' WHERE strategy = 'related'")
    op.execute("UPDATE sona.space SET frozen_from = 'frozen' WHERE frozen_from = 'related'")
    op.execute("UPDATE sona.strategist SET in_force = 'frozen' WHERE in_force = 'related'")
    op.execute("DELETE FROM sona.strategy_evidence WHERE strategy = 'related'")
    _force(True)
    _replace_strategies(_STRATEGIES)
    op.drop_column("strategist", "memory_run", schema="sona")
    op.drop_column("space", "may_transfer", schema="sona")
    op.alter_column(
        "base_state",
        "state",
        existing_type=sa.LargeBinary(),
        comment="the running Fisher and the task detector; NULL before the first",
        schema="sona",
    )
    op.drop_column("fisher_snapshot", "epoch", schema="sona")
    op.drop_column("base_state", "offered", schema="sona")
    for table in ("memory_archive", "memory_snapshot", "dream", "memory_state", "memory_node_state", "memory_node"):
        op.drop_table(table, schema="sona")
    op.execute("ALTER TABLE sona.memory_edge RESET (fillfactor)")
    op.execute("DELETE FROM sona.memory_edge WHERE kind <> 'co_access'")
    op.drop_constraint("memory_edge_pkey", "memory_edge", schema="sona")
    op.create_primary_key("memory_edge_pkey", "memory_edge", ["space_id", "kind", "source", "target"], schema="sona")
    for name, comment in (
        ("kind", "co_access: the items helped together"),
        ("source", "item or node"),
        ("target", "item or node"),
    ):
        op.alter_column(
            "memory_edge", name, existing_type=sa.Text(), existing_nullable=False, comment=comment, schema="sona"
        )
    for name in ("decayed_at", "created_at", "origin", "target_kind", "source_kind"):
        op.drop_column("memory_edge", name, schema="sona")
