"""The strategist: what answers is learned, from remembered outcomes and evidence of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_OWNED = ("strategist", "strategy_evidence", "strategy_region", "strategy_turn")


_DROP_HNSW = """
DO $$
DECLARE part regclass;
BEGIN
    FOR part IN SELECT c.oid FROM pg_class c
                WHERE c.relnamespace = 'sona'::regnamespace AND starts_with(c.relname, 'remembered_query_hnsw_')
    LOOP EXECUTE format('DROP INDEX %s', part); END LOOP;
END $$
"""


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


def upgrade() -> None:
    op.add_column(
        "space",
        sa.Column(
            "strategy",
            sa.Text(),
            server_default=sa.text("'learned'"),
            nullable=False,
            comment="what answers: learned is whatever is proven, anything else is fixed",
        ),
        schema="sona",
    )
    op.add_column(
        "space",
        sa.Column(
            "examination",
            sa.ARRAY(sa.REAL()),
            comment="probability that an item is looked at, by position; the last one holds beyond; NULL is unknown",
        ),
        schema="sona",
    )
    op.create_check_constraint(
        op.f("space_strategy_check"),
        "space",
        "strategy IN ('learned', 'frozen', 'adapted', 'familiar', 'boosted', 'stake', 'fusion')",
        schema="sona",
    )
    for column in (
        sa.Column("ordinal", sa.BigInteger(), comment="ledger entry by which it was remembered; NULL until then"),
        sa.Column(
            "helped",
            sa.ARRAY(sa.Text()),
            server_default=sa.text("'{}'::text[]"),
            nullable=False,
            comment="items that helped",
        ),
        sa.Column(
            "rewards",
            sa.ARRAY(sa.REAL()),
            server_default=sa.text("'{}'::real[]"),
            nullable=False,
            comment="how much each of them did; by the space's examination, where it declares one",
        ),
        sa.Column(
            "unhelpful",
            sa.ARRAY(sa.Text()),
            server_default=sa.text("'{}'::text[]"),
            nullable=False,
            comment="items that were shown and did not help",
        ),
        sa.Column(
            "is_prototype",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="whether sona.adapt measures by it how familiar a query is",
        ),
    ):
        op.add_column("remembered_query", column, schema="sona")
    op.create_table_comment(
        "remembered_query",
        "Queries whose outcome is known, and what it was: narrow, for nearest-neighbour search.",
        schema="sona",
    )
    op.drop_index("remembered_query_tail_idx", table_name="remembered_query", schema="sona")
    op.create_index(
        "remembered_query_tail_idx",
        "remembered_query",
        ["space_id", "ordinal"],
        schema="sona",
        postgresql_where=sa.text("NOT admitted"),
    )
    op.create_index("learning_event_ordinal_idx", "learning_event", ["space_id", "loop", "ordinal"], schema="sona")
    op.create_index("remembered_query_ordinal_idx", "remembered_query", ["space_id", "ordinal"], schema="sona")
    op.create_index(
        "remembered_query_prototype_idx",
        "remembered_query",
        ["space_id"],
        schema="sona",
        postgresql_where=sa.text("is_prototype"),
    )
    op.alter_column(
        "served_row",
        "tier",
        comment="adapter, micro: the learner's; proven, careful: the strategist's",
        schema="sona",
    )
    op.create_table(
        "item_outcome",
        _space_id(owned=False),
        sa.Column("item_id", sa.Text(), nullable=False, comment="the item"),
        sa.Column(
            "helped",
            sa.BigInteger(),
            nullable=False,
            comment="in how many events it helped, of all that were ever remembered",
        ),
        sa.PrimaryKeyConstraint("space_id", "item_id", name="item_outcome_pkey"),
        schema="sona",
        comment="What remembered outcomes say of an item, whatever was asked.",
    )
    op.create_table(
        "strategist",
        _space_id(owned=True),
        sa.Column(
            "ordinal", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="ledger entries taken in"
        ),
        sa.Column(
            "events", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="events that were scored"
        ),
        sa.Column(
            "in_force",
            sa.Text(),
            server_default=sa.text("'frozen'"),
            nullable=False,
            comment="strategy that is proven to be best; regions may be exceptions",
        ),
        sa.Column(
            "is_sane",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="whether outcomes have to do with queries; nothing but frozen answers without",
        ),
        sa.Column(
            "known",
            sa.Double(),
            server_default=sa.text("0"),
            nullable=False,
            comment="the stake on familiar ground, 0 to 1",
        ),
        sa.Column(
            "strange", sa.Double(), server_default=sa.text("0"), nullable=False, comment="the stake elsewhere, 0 to 1"
        ),
        sa.Column(
            "unseen",
            sa.Double(),
            server_default=sa.text("0"),
            nullable=False,
            comment="share of the fusion on strange ground",
        ),
        sa.Column(
            "weights",
            sa.ARRAY(sa.Double()),
            comment="the fusion's, in the order of its features; NULL before the first event",
        ),
        sa.Column(
            "settings",
            sa.dialects.postgresql.JSONB(),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
            comment="settings of the strategist",
        ),
        sa.Column("state", sa.LargeBinary(), comment="adapters, weights, evidence; NULL before the first event"),
        _now("updated_at", "when it last took in events"),
        sa.PrimaryKeyConstraint("space_id", name="strategist_pkey"),
        schema="sona",
        comment="The second reader of the ledger: which strategy is proven. Its row lock makes one at a time.",
    )
    op.create_table(
        "strategy_evidence",
        _space_id(owned=True),
        sa.Column("strategy", sa.Text(), nullable=False, comment="strategy"),
        sa.Column("events", sa.BigInteger(), nullable=False, comment="events that it was scored on"),
        sa.Column(
            "gain", sa.Double(), nullable=False, comment="mean nDCG@10 above frozen, before an event was learned from"
        ),
        sa.Column(
            "recent_gain", sa.Double(), nullable=False, comment="the same, an event counting 1 % less than the next"
        ),
        sa.PrimaryKeyConstraint("space_id", "strategy", name="strategy_evidence_pkey"),
        schema="sona",
        comment="Every strategy on every event, whether it answered or not.",
    )
    op.create_table(
        "strategy_region",
        _space_id(owned=True),
        sa.Column("region", sa.Integer(), autoincrement=False, nullable=False, comment="number of the region"),
        sa.Column("centroid", Vector(), nullable=False, comment="its centre; a query belongs to the nearest"),
        sa.Column("events", sa.BigInteger(), nullable=False, comment="events that fell into it"),
        sa.Column(
            "gain",
            sa.Double(),
            nullable=False,
            comment="the fusion's mean gain there, shrunk to that of the space",
        ),
        sa.Column(
            "verdict",
            sa.Integer(),
            nullable=False,
            comment="1: the fusion is proven to be better there, -1: worse, 0: the region follows the space",
        ),
        sa.PrimaryKeyConstraint("space_id", "region", name="strategy_region_pkey"),
        schema="sona",
        comment="Parts of the query space with evidence of their own.",
    )
    op.create_table(
        "strategy_turn",
        _space_id(owned=True),
        sa.Column("turn_id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="order of the turns"),
        _now("created_at", "when it was found"),
        sa.Column("ordinal", sa.BigInteger(), nullable=False, comment="ledger entry by which it was found"),
        sa.Column("trajectory_id", sa.Uuid(), nullable=False, comment="trajectory of that entry"),
        sa.Column("region", sa.Integer(), comment="where; NULL is the whole space"),
        sa.Column("before", sa.Text(), nullable=False, comment="strategy that was in force"),
        sa.Column("after", sa.Text(), nullable=False, comment="strategy that is in force since"),
        sa.Column("reason", sa.Text(), nullable=False, comment="what was proven"),
        sa.PrimaryKeyConstraint("space_id", "turn_id", name="strategy_turn_pkey"),
        schema="sona",
        comment="When another strategy came into force, and why.",
    )
    op.execute(
        "CREATE TYPE sona.neighbour AS (similarity double precision, helped text[], rewards real[], unhelpful text[])"
    )
    op.execute("COMMENT ON TYPE sona.neighbour IS 'A remembered event near a query.'")
    # Spaces that are there already: their ledger is read anew, and their memory made from it. The policies
    # would hide spaces from an owner who has no grant; they are forced again when the functions are installed.
    for table in ("space", "remembered_query"):
        op.execute(f"ALTER TABLE sona.{table} NO FORCE ROW LEVEL SECURITY")
    op.execute("INSERT INTO sona.strategist (space_id) SELECT space_id FROM sona.space")
    op.execute("DELETE FROM sona.remembered_query")
    # A large space has an index of its own from now on.
    op.execute(_DROP_HNSW)


def downgrade() -> None:
    op.execute("DROP TYPE sona.neighbour")
    op.execute(_DROP_HNSW)
    op.execute("ALTER TABLE sona.remembered_query NO FORCE ROW LEVEL SECURITY")
    op.execute("UPDATE sona.remembered_query SET admitted = false")
    op.execute("ALTER TABLE sona.remembered_query FORCE ROW LEVEL SECURITY")
    for table in (*reversed(_OWNED), "item_outcome"):
        op.drop_table(table, schema="sona")
    op.alter_column("served_row", "tier", comment="adapter or micro", schema="sona")
    op.execute("ALTER TABLE sona.served_row NO FORCE ROW LEVEL SECURITY")
    op.execute("DELETE FROM sona.served_row WHERE tier IN ('proven', 'careful')")
    op.execute("ALTER TABLE sona.served_row FORCE ROW LEVEL SECURITY")
    op.drop_index("remembered_query_prototype_idx", table_name="remembered_query", schema="sona")
    op.drop_index("learning_event_ordinal_idx", table_name="learning_event", schema="sona")
    op.drop_index("remembered_query_ordinal_idx", table_name="remembered_query", schema="sona")
    op.create_table_comment(
        "remembered_query",
        "Queries whose outcome is known, narrow, for nearest-neighbour search.",
        schema="sona",
    )
    op.drop_index("remembered_query_tail_idx", table_name="remembered_query", schema="sona")
    op.create_index(
        "remembered_query_tail_idx",
        "remembered_query",
        ["space_id"],
        schema="sona",
        postgresql_where=sa.text("NOT admitted"),
    )
    for name in ("is_prototype", "unhelpful", "rewards", "helped", "ordinal"):
        op.drop_column("remembered_query", name, schema="sona")
    op.drop_constraint(op.f("space_strategy_check"), "space", schema="sona")
    op.drop_column("space", "examination", schema="sona")
    op.drop_column("space", "strategy", schema="sona")
