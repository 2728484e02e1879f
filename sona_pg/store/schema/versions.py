"""What is learned, served and published."""

from __future__ import annotations

from pgvector.sqlalchemy import Vector
from sqlalchemy import BigInteger, Boolean, Column, Double, Identity, Integer, LargeBinary, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from sona_pg.store.schema.columns import metadata, now, space_id, whole

learner = Table(
    "learner",
    metadata,
    space_id(),
    Column("epoch", BigInteger, nullable=False, server_default=text("0"), comment="grows with every deploy"),
    Column("revision", BigInteger, nullable=False, server_default=text("0"), comment="grows with every flush"),
    Column("version", BigInteger, nullable=False, server_default=text("0"), comment="last published version"),
    Column("events", BigInteger, nullable=False, server_default=text("0"), comment="outcome events learned"),
    Column("ordinal", BigInteger, nullable=False, server_default=text("0"), comment="ledger entries written"),
    Column("state", LargeBinary, comment="weights, moments, averages and baselines; NULL before anything was learned"),
    Column("settings", JSONB, nullable=False, server_default=text("'{}'::jsonb"), comment="settings of the adapter"),
    now("updated_at", "when it was last flushed"),
    Column(
        "restored",
        BigInteger,
        comment="version that was deployed and is the state, until the next flush; NULL once state holds it",
    ),
    comment="The mutable state of a space. Its row lock makes one learner at a time.",
)


served_row = Table(
    "served_row",
    metadata,
    space_id(),
    Column("tier", Text, primary_key=True, comment="adapter, micro: the learner's; proven, careful: the strategist's"),
    Column("ordinal", Integer, primary_key=True, autoincrement=False, comment="index of the rank"),
    Column("down", Vector, nullable=False, comment="column of A"),
    Column("up", Vector, nullable=False, comment="row of B, times the scale"),
    comment="The served map as vectors, for sona.adapt: x + sum of (x . down) up.",
)


adapter_version = Table(
    "adapter_version",
    metadata,
    space_id(),
    Column("version", BigInteger, primary_key=True, autoincrement=False, comment="1 for the first that was published"),
    Column("parent", BigInteger, comment="version that it was learned from"),
    Column("epoch", BigInteger, nullable=False, comment="the learner's epoch when it was published"),
    Column("revision", BigInteger, nullable=False, comment="the learner's revision when it was published"),
    Column("events", BigInteger, nullable=False, comment="outcome events learned by then"),
    Column("cause", Text, nullable=False, comment="why it was published"),
    Column(
        "state",
        LargeBinary,
        nullable=False,
        comment="the learner's state, squeezed; or as in learner.state, if SQL published it",
    ),
    Column("checksum", LargeBinary, nullable=False, comment="SHA-256 of state, evidence, strategy table and rows"),
    now("created_at", "when it was published"),
    Column("ordinal", BigInteger, nullable=False, server_default=text("0"), comment="ledger entries by then"),
    Column(
        "setting",
        Text,
        nullable=False,
        server_default=text("'learned'"),
        comment="what the space was set to; a deploy sets it so again",
    ),
    Column(
        "in_force",
        Text,
        nullable=False,
        server_default=text("'frozen'"),
        comment="strategy that was proven to be best",
    ),
    Column("is_sane", Boolean, nullable=False, server_default=text("false"), comment="as in strategist"),
    Column("known", Double, nullable=False, server_default=text("0"), comment="as in strategist"),
    Column("strange", Double, nullable=False, server_default=text("0"), comment="as in strategist"),
    Column("unseen", Double, nullable=False, server_default=text("0"), comment="as in strategist"),
    Column("weights", ARRAY(Double), comment="as in strategist"),
    Column("verdicts", ARRAY(Integer), comment="of the regions, by number; NULL where all follow the space"),
    Column(
        "gains",
        JSONB,
        nullable=False,
        server_default=text("'{}'::jsonb"),
        comment="the strategy table: events, gain and recent gain of every strategy",
    ),
    Column("evidence", LargeBinary, comment="as in strategist"),
    Column(
        "weighed",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="ledger entries that the strategist had taken in by then",
    ),
    comment="Immutable published states.",
)


version_row = Table(
    "version_row",
    metadata,
    space_id(),
    Column("version", BigInteger, primary_key=True, autoincrement=False, comment="version"),
    Column("tier", Text, primary_key=True, comment="as in served_row; region: a region, where one is an exception"),
    Column("ordinal", Integer, primary_key=True, autoincrement=False, comment="as in served_row"),
    Column("down", Vector, nullable=False, comment="as in served_row; of a region the centroid"),
    Column("up", Vector, comment="as in served_row; NULL of a region"),
    comment="The served maps of published versions.",
)


deployment = Table(
    "deployment",
    metadata,
    space_id(),
    Column("deployment_id", BigInteger, Identity(always=True), primary_key=True, comment="order of the entries"),
    now("created_at", "when it was done"),
    Column("actor", Text, nullable=False, server_default=text("SESSION_USER"), comment="login that did it"),
    Column("action", Text, nullable=False, comment="publish, deploy, freeze, strategy, control, forget or embedder"),
    Column("before", Text, comment="version or setting before"),
    Column("after", Text, comment="version or setting since"),
    Column("reason", Text, comment="why"),
    comment="The audit trail: who changed what answers, when, and why.",
)


base_state = Table(
    "base_state",
    metadata,
    space_id(),
    whole("consumed", "ledger entries whose outcomes were taken in"),
    whole("judged", "ledger entries before which what was withheld has been judged by"),
    whole("learned", "ledger entries before which what was judged by has been learned"),
    whole("generation", "grows when a user is forgotten: what was read before is not written any more"),
    Column("version", BigInteger, comment="version that a cycle has published last; NULL before the first"),
    Column(
        "reservoir",
        ARRAY(Uuid),
        nullable=False,
        server_default=text("'{}'::uuid[]"),
        comment="trajectories that are learned again in every cycle: a sample of all that there were",
    ),
    Column("state", LargeBinary, comment="the task detector; NULL before the first"),
    now("updated_at", "when the last cycle was committed"),
    whole("offered", "judged lists that there were ever to keep in the reservoir, whether they are in it or not"),
    comment="How far the base LoRA of a space has read its ledger: every outcome counts once.",
)


fisher_snapshot = Table(
    "fisher_snapshot",
    metadata,
    space_id(),
    Column("snapshot_id", BigInteger, primary_key=True, autoincrement=False, comment="1 for the first of the space"),
    Column("signature", Vector, nullable=False, comment="mean direction of the task's queries, of unit length"),
    Column("layout", Text, nullable=False, comment="which parameters they are, in which order"),
    Column("kind", Text, nullable=False, comment="how the Fisher information was estimated"),
    Column("fisher", LargeBinary, nullable=False, comment="float32, little endian, in the layout's order"),
    Column("anchor", LargeBinary, nullable=False, comment="the parameters at the end of the task, likewise"),
    Column("lambda", Double, nullable=False, comment="strength of the penalty"),
    Column("samples", BigInteger, nullable=False, comment="outcomes that the Fisher information is a mean of"),
    Column("quality", Double, nullable=False, comment="what its answers were worth, 0 to 1"),
    Column("times_met", BigInteger, nullable=False, server_default=text("1"), comment="how often it has come"),
    now("created_at", "when the task first ended"),
    now("updated_at", "when it last ended"),
    whole("epoch", "the learner's when the task ended last: one that was undone since does not hold"),
    comment="Tasks, stretches of traffic of one kind, and which parameters each needs as they are.",
)
