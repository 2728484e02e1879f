"""The tables of schema `sona`, as SQLAlchemy Core: what the migrations must have built, compared by a test.

`space_id` leads every key, so that the schema can be distributed or partitioned by space without change. The tables on
the recording path have no foreign keys: what belongs together is written in one transaction, and a check for every
copied row would cost a third of the throughput.
"""

from __future__ import annotations

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REGCLASS

SCHEMA = "sona"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    },
)


def _space_id(*, owned: bool = True) -> Column[int]:
    """The leading key column; `owned` rows go with their space."""
    if not owned:
        return Column(
            "space_id", BigInteger, primary_key=True, autoincrement=False, comment="space that the row belongs to"
        )
    reference = ForeignKey(f"{SCHEMA}.space.space_id", ondelete="CASCADE")
    return Column(
        "space_id",
        BigInteger,
        reference,
        primary_key=True,
        autoincrement=False,
        comment="space that the row belongs to",
    )


def _now(name: str, comment: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now(), comment=comment)


def _time(name: str, comment: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), comment=comment)


def _flag(name: str, comment: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=text("false"), comment=comment)


def _whole(name: str, comment: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"), comment=comment)


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
    _now("created_at", "when it was created"),
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
    _time("replaced_at", "when a space of another embedder took its place; NULL if none did"),
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
    _space_id(),
    Column("role_name", Text, primary_key=True, comment="role whose members may use the space"),
    Column("may_write", Boolean, nullable=False, server_default=text("true"), comment="or only read"),
    _now("granted_at", "when the grant was made"),
    comment="Who may see what: the row-level policies of every table read it.",
)

item_source = Table(
    "item_source",
    metadata,
    _space_id(),
    Column("items", REGCLASS, nullable=False, comment="the application's own table; recall searches it"),
    Column("id_column", Text, nullable=False, comment="its column of item ids"),
    Column("id_type", Text, nullable=False, comment="ids given as text are cast to it, never the column to text"),
    Column("embedding_column", Text, nullable=False, comment="its column of item embeddings"),
    _now("sampled_at", "when item_sample was taken from it"),
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
    _space_id(),
    Column("ordinal", Integer, primary_key=True, comment="place in the sample, by hash of the id"),
    Column("item_id", Text, nullable=False, comment="the item, as text"),
    Column("embedding", Vector, nullable=False, comment="its embedding when the sample was taken"),
    comment="A bounded sample of the items: negatives for learning, and the adapter's initial directions.",
)

trajectory = Table(
    "trajectory",
    metadata,
    _space_id(owned=False),
    Column("trajectory_id", Uuid, primary_key=True, comment="given by the client, time-ordered"),
    _now("created_at", "when it was recorded"),
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
    _space_id(owned=False),
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
    _space_id(owned=False),
    Column("score_id", Text, primary_key=True, comment="given by the application; the same id again is nothing"),
    Column("trajectory_id", Uuid, nullable=False, comment="trajectory that is scored"),
    Column("item_id", Text, comment="NULL scores the whole answer"),
    Column("name", Text, nullable=False, server_default=text("'reward'"), comment="which judgement this is"),
    Column("value", REAL, nullable=False, comment="what it was worth"),
    _now("created_at", "when it was given"),
    Column("sequence", BigInteger, Identity(always=True), nullable=False, comment="order of arrival"),
    Column("revision", Integer, comment="revision of the outcomes that took it in; NULL until then"),
    Index("score_space_id_trajectory_id_idx", "space_id", "trajectory_id"),
    comment="Outcomes that came after the trajectory, or correct it.",
)

remembered_query = Table(
    "remembered_query",
    metadata,
    _space_id(owned=False),
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
    _space_id(owned=False),
    Column("item_id", Text, primary_key=True, comment="the item"),
    Column(
        "helped", BigInteger, nullable=False, comment="in how many events it helped, of all that were ever remembered"
    ),
    comment="What remembered outcomes say of an item, whatever was asked.",
)

strategist = Table(
    "strategist",
    metadata,
    _space_id(),
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
    _now("updated_at", "when it last took in events"),
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
    _space_id(),
    Column("strategy", Text, primary_key=True, comment="strategy"),
    Column("events", BigInteger, nullable=False, comment="events that it was scored on"),
    Column("gain", Double, nullable=False, comment="mean nDCG@10 above frozen, before an event was learned from"),
    Column("recent_gain", Double, nullable=False, comment="the same, an event counting 1 % less than the next"),
    comment="Every strategy on every event, whether it answered or not.",
)

strategy_region = Table(
    "strategy_region",
    metadata,
    _space_id(),
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
    _space_id(),
    Column("turn_id", BigInteger, Identity(always=True), primary_key=True, comment="order of the turns"),
    _now("created_at", "when it was found"),
    Column("ordinal", BigInteger, nullable=False, comment="ledger entry by which it was found"),
    Column("trajectory_id", Uuid, nullable=False, comment="trajectory of that entry"),
    Column("region", Integer, comment="where; NULL is the whole space"),
    Column("before", Text, nullable=False, comment="strategy that was in force"),
    Column("after", Text, nullable=False, comment="strategy that is in force since"),
    Column("reason", Text, nullable=False, comment="what was proven"),
    comment="When another strategy came into force, and why.",
)

learner = Table(
    "learner",
    metadata,
    _space_id(),
    Column("epoch", BigInteger, nullable=False, server_default=text("0"), comment="grows with every deploy"),
    Column("revision", BigInteger, nullable=False, server_default=text("0"), comment="grows with every flush"),
    Column("version", BigInteger, nullable=False, server_default=text("0"), comment="last published version"),
    Column("events", BigInteger, nullable=False, server_default=text("0"), comment="outcome events learned"),
    Column("ordinal", BigInteger, nullable=False, server_default=text("0"), comment="ledger entries written"),
    Column("state", LargeBinary, comment="weights, moments, averages and baselines; NULL before anything was learned"),
    Column("settings", JSONB, nullable=False, server_default=text("'{}'::jsonb"), comment="settings of the adapter"),
    _now("updated_at", "when it was last flushed"),
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
    _space_id(),
    Column("tier", Text, primary_key=True, comment="adapter, micro: the learner's; proven, careful: the strategist's"),
    Column("ordinal", Integer, primary_key=True, autoincrement=False, comment="index of the rank"),
    Column("down", Vector, nullable=False, comment="column of A"),
    Column("up", Vector, nullable=False, comment="row of B, times the scale"),
    comment="The served map as vectors, for sona.adapt: x + sum of (x . down) up.",
)

adapter_version = Table(
    "adapter_version",
    metadata,
    _space_id(),
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
    _now("created_at", "when it was published"),
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
    _space_id(),
    Column("version", BigInteger, primary_key=True, autoincrement=False, comment="version"),
    Column("tier", Text, primary_key=True, comment="as in served_row; region: a region, where one is an exception"),
    Column("ordinal", Integer, primary_key=True, autoincrement=False, comment="as in served_row"),
    Column("down", Vector, nullable=False, comment="as in served_row; of a region the centroid"),
    Column("up", Vector, comment="as in served_row; NULL of a region"),
    comment="The served maps of published versions.",
)

answer_outcome = Table(
    "answer_outcome",
    metadata,
    _space_id(owned=False),
    Column("trajectory_id", Uuid, primary_key=True, comment="the answer"),
    Column("ordinal", BigInteger, nullable=False, comment="ledger entry that said first what it was worth"),
    _now("answered_at", "when it was recorded"),
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

deployment = Table(
    "deployment",
    metadata,
    _space_id(),
    Column("deployment_id", BigInteger, Identity(always=True), primary_key=True, comment="order of the entries"),
    _now("created_at", "when it was done"),
    Column("actor", Text, nullable=False, server_default=text("SESSION_USER"), comment="login that did it"),
    Column("action", Text, nullable=False, comment="publish, deploy, freeze, strategy, control, forget or embedder"),
    Column("before", Text, comment="version or setting before"),
    Column("after", Text, comment="version or setting since"),
    Column("reason", Text, comment="why"),
    comment="The audit trail: who changed what answers, when, and why.",
)

forgotten_user = Table(
    "forgotten_user",
    metadata,
    _space_id(),
    Column("digest", LargeBinary, primary_key=True, comment="SHA-256 of the space's key and the user's id"),
    _now("forgotten_at", "when; what was answered before stays forgotten"),
    comment="Whose trajectories must not come back from a spool.",
)

learning_cycle = Table(
    "learning_cycle",
    metadata,
    _space_id(owned=False),
    Column("cycle_id", BigInteger, primary_key=True, autoincrement=False, comment="the revision that it made"),
    Column("loop", Text, primary_key=True, comment="instant, background or deep"),
    Column("epoch", BigInteger, nullable=False, comment="the learner's epoch"),
    Column("version", BigInteger, nullable=False, comment="version in force when it ended"),
    Column("events", Integer, nullable=False, comment="ledger entries"),
    Column("learned", Integer, nullable=False, comment="entries that changed a weight"),
    Column("replayed", Boolean, nullable=False, comment="whether the events were rebased onto another's state"),
    Column("worker", Text, nullable=False, comment="host and process"),
    Column("started_at", DateTime(timezone=True), nullable=False, comment="when its work began"),
    _now("finished_at", "when it was committed"),
    comment="The ledger: one row for every learning transaction.",
)

learning_event = Table(
    "learning_event",
    metadata,
    _space_id(owned=False),
    Column("loop", Text, primary_key=True, comment="instant, background or deep"),
    Column("trajectory_id", Uuid, primary_key=True, comment="trajectory that was learned from"),
    Column("revision", Integer, primary_key=True, autoincrement=False, comment="revision of its outcomes"),
    Column("cycle_id", BigInteger, nullable=False, comment="learning_cycle that learned it"),
    Column("ordinal", BigInteger, nullable=False, comment="order in which events were learned"),
    Column("learned", Text, nullable=False, comment="what became of it"),
    Index("learning_event_ordinal_idx", "space_id", "loop", "ordinal"),
    comment="The ledger: what was learned, exactly once for each loop and revision.",
)

loop_schedule = Table(
    "loop_schedule",
    metadata,
    _space_id(),
    Column("loop", Text, primary_key=True, comment="background, deep or another that a worker runs"),
    Column("every_seconds", Double, comment="time between two cycles; NULL if none is due by that"),
    Column("cron", Text, comment="when a cycle is due, in five fields; NULL if none is due by that"),
    Column("time_zone", Text, nullable=False, server_default=text("'UTC'"), comment="of cron and windows"),
    Column("amount", BigInteger, comment="new ledger entries that make a cycle due; NULL if none do"),
    Column(
        "windows",
        ARRAY(Text),
        nullable=False,
        server_default=text("'{}'::text[]"),
        comment="times of the day at which a cycle may begin, like 22:00-06:00; empty is any",
    ),
    Column(
        "is_enabled", Boolean, nullable=False, server_default=text("true"), comment="whether a cycle is due by itself"
    ),
    _time("next_at", "when a cycle is due by time; NULL until a worker has planned it"),
    _time("planned_at", "when next_at was planned: later than now, and the clock went back"),
    _whole("consumed", "ledger entries that the last cycle that was done had seen"),
    _whole("fence", "grows with every claim: who claimed earlier writes nothing any more"),
    Column(
        "failures", Integer, nullable=False, server_default=text("0"), comment="cycles that failed since one was done"
    ),
    _time("retry_at", "no cycle is due by itself before; NULL if none failed"),
    _time("set_aside_at", "when too many had failed: none is due by itself; NULL if it was not set aside"),
    comment="When the loops learn in a space.",
)

loop_run = Table(
    "loop_run",
    metadata,
    _space_id(),
    Column("run_id", BigInteger, Identity(always=True), primary_key=True, comment="order of the runs"),
    Column("loop", Text, nullable=False, comment="as in loop_schedule"),
    Column("cause", Text, nullable=False, comment="time, amount or manual"),
    Column("state", Text, nullable=False, comment="requested, running, done, skipped or failed"),
    _now("requested_at", "when it was asked for, or began"),
    Column("requested_by", Text, comment="login that asked for it; NULL if none did"),
    Column("worker", Text, comment="host and process; NULL while nobody is at it"),
    _whole("fence", "token of the claim"),
    Column(
        "attempts",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="claims since its last phase was committed",
    ),
    _whole("ordinal", "ledger entries when it began"),
    _time("started_at", "when it was claimed first"),
    _time("claimed_at", "when it was claimed last"),
    _time("finished_at", "when it ended"),
    Column(
        "phases",
        JSONB,
        nullable=False,
        server_default=text("'[]'::jsonb"),
        comment="phases that are committed, in order: name, seconds to read, to compute and to write",
    ),
    Column(
        "facts",
        JSONB,
        nullable=False,
        server_default=text("'{}'::jsonb"),
        comment="what the phases say of what they did: the result",
    ),
    Column("reason", Text, comment="why it was skipped or failed"),
    CheckConstraint("state IN ('requested', 'running', 'done', 'skipped', 'failed')", name="state"),
    Index("loop_run_loop_idx", "space_id", "loop", "run_id"),
    Index("loop_run_requested_idx", "space_id", "loop", unique=True, postgresql_where=text("state = 'requested'")),
    Index("loop_run_running_idx", "space_id", "loop", unique=True, postgresql_where=text("state = 'running'")),
    comment="Cycles of the loops: what is asked for, what is at work, what became of the others.",
)

pattern = Table(
    "pattern",
    metadata,
    _space_id(),
    Column("pattern_id", BigInteger, primary_key=True, autoincrement=False, comment="for life"),
    Column("centroid", Vector, nullable=False, comment="its centre, of unit length"),
    Column("cluster_size", BigInteger, nullable=False, comment="trajectories of its cluster when it was last fed"),
    Column(
        "total_weight",
        Double,
        nullable=False,
        comment="trajectories that ever fed it, each counted once, weighted down as they age",
    ),
    Column("avg_quality", Double, nullable=False, comment="what the answers of its cluster were worth, 0 to 1"),
    Column("confidence", Double, nullable=False, comment="0 to 1, how sure the average quality is"),
    Column("support", BigInteger, nullable=False, comment="trajectories with an outcome that ever fed it"),
    Column("best_strategy", Text, comment="strategy whose answers were best; NULL where none was recorded"),
    Column("title", Text, comment="as somebody has called it; NULL if nobody did"),
    Column("description", Text, comment="what somebody has said of it"),
    Column("content", Text, comment="what somebody has put down for such queries"),
    _now("created_at", "when a cycle first found it"),
    _now("updated_at", "when it was last fed"),
    _now("decayed_at", "up to when total_weight is weighted down"),
    Column(
        "abstraction_level",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="0 for a cluster of trajectories, 1 for a pattern of patterns, and so on",
    ),
    Column(
        "children",
        ARRAY(BigInteger),
        nullable=False,
        server_default=text("'{}'::bigint[]"),
        comment="patterns that it is made of",
    ),
    comment="Kinds of queries, one row for life: the background loop finds them, and matches them across cycles.",
)

pattern_access = Table(
    "pattern_access",
    metadata,
    _space_id(),
    Column("pattern_id", BigInteger, primary_key=True, autoincrement=False, comment="pattern"),
    Column("access_count", BigInteger, nullable=False, comment="how often it was found"),
    _now("last_accessed", "when that was last counted"),
    comment="How often patterns were found: beside them, so that counting moves no vector and waits for no cycle.",
)

verdict = Table(
    "verdict",
    metadata,
    _space_id(),
    Column("pattern_id", BigInteger, primary_key=True, autoincrement=False, comment="pattern in which it was used"),
    Column("parameter", Text, primary_key=True, comment="as the application calls it; strategy: what answered"),
    Column("state", JSONB, nullable=False, comment="everything that a continuation needs"),
    Column("evidence", JSONB, nullable=False, comment="by value, what speaks for and against it"),
    Column("best_value", JSONB, comment="value that is recommended; NULL while none can be"),
    Column(
        "best_confidence",
        Double,
        nullable=False,
        server_default=text("0"),
        comment="0 to 1, how sure it is that it is better than the others that were used",
    ),
    comment="Which values of a parameter worked in a pattern.",
)

pattern_history = Table(
    "pattern_history",
    metadata,
    _space_id(),
    Column("run_id", BigInteger, primary_key=True, autoincrement=False, comment="the cycle, in loop_run"),
    Column("pattern_id", BigInteger, primary_key=True, autoincrement=False, comment="pattern"),
    Column("event", Text, nullable=False, comment="created, changed, merged or pruned"),
    Column("into_id", BigInteger, comment="pattern that it became part of; NULL if it was not merged"),
    Column("cluster_size", BigInteger, nullable=False, comment="as in pattern, after it; of one that went, before"),
    Column("support", BigInteger, nullable=False, comment="likewise"),
    Column("avg_quality", Double, nullable=False, comment="likewise"),
    _now("created_at", "when it was committed"),
    CheckConstraint("event IN ('created', 'changed', 'merged', 'pruned')", name="event"),
    comment="What became of patterns, cycle by cycle, as long as the runs are kept.",
)

pattern_state = Table(
    "pattern_state",
    metadata,
    _space_id(),
    _whole("consumed", "ledger entries whose outcomes were taken in"),
    _whole("last_id", "the last pattern_id that was given"),
    _whole("generation", "grows when a user is forgotten: what was read before is not written any more"),
    Column(
        "waiting",
        ARRAY(BigInteger),
        nullable=False,
        server_default=text("'{}'::bigint[]"),
        comment="ledger entries among the consumed that belong to no pattern yet, and have not been counted",
    ),
    _now("updated_at", "when the last cycle was committed"),
    Column("settings", JSONB, comment="by which the last cycle recommends, and whoever asks; NULL before the first"),
    Column("run_id", BigInteger, comment="cycle that was committed last, in loop_run; NULL before the first"),
    comment="How far the patterns of a space have read its ledger: every outcome counts once.",
)

base_state = Table(
    "base_state",
    metadata,
    _space_id(),
    _whole("consumed", "ledger entries whose outcomes were taken in"),
    _whole("judged", "ledger entries before which what was withheld has been judged by"),
    _whole("learned", "ledger entries before which what was judged by has been learned"),
    _whole("generation", "grows when a user is forgotten: what was read before is not written any more"),
    Column("version", BigInteger, comment="version that a cycle has published last; NULL before the first"),
    Column(
        "reservoir",
        ARRAY(Uuid),
        nullable=False,
        server_default=text("'{}'::uuid[]"),
        comment="trajectories that are learned again in every cycle: a sample of all that there were",
    ),
    Column("state", LargeBinary, comment="the task detector; NULL before the first"),
    _now("updated_at", "when the last cycle was committed"),
    _whole("offered", "judged lists that there were ever to keep in the reservoir, whether they are in it or not"),
    comment="How far the base LoRA of a space has read its ledger: every outcome counts once.",
)

fisher_snapshot = Table(
    "fisher_snapshot",
    metadata,
    _space_id(),
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
    _now("created_at", "when the task first ended"),
    _now("updated_at", "when it last ended"),
    _whole("epoch", "the learner's when the task ended last: one that was undone since does not hold"),
    comment="Tasks, stretches of traffic of one kind, and which parameters each needs as they are.",
)

memory_edge = Table(
    "memory_edge",
    metadata,
    _space_id(owned=False),
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
    _now("updated_at", "when an outcome, a dream or somebody last changed the weight"),
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
    _now("created_at", "when it was made"),
    _now("decayed_at", "up to when its weight has decayed"),
    Index("memory_edge_target_idx", "space_id", "kind", "target"),
    comment="Edges of the memory graph; an undirected edge stands once, source before target.",
)

memory_node = Table(
    "memory_node",
    metadata,
    _space_id(),
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
    _now("created_at", "when it came into the graph"),
    _flag("is_distinct", "whether it was merged and restored: it is not merged again"),
    UniqueConstraint("space_id", "kind", "key"),
    comment="Nodes of the memory graph: the deep loop makes them of what was learned.",
)

memory_node_state = Table(
    "memory_node_state",
    metadata,
    _space_id(),
    Column("node_id", BigInteger, primary_key=True, autoincrement=False, comment="node"),
    Column("importance", Double, nullable=False, comment="0 to 1, its value at the last consolidation"),
    Column("quality", Double, comment="what answers were worth in which it took part, 0 to 1; NULL unknown"),
    _whole("access_count", "how often it took part in an outcome or was found"),
    _now("last_access", "when it last did"),
    _whole("consolidation_count", "cycles in which it was strengthened"),
    comment="What memory nodes are worth: beside them, so that a cycle that weighs all of them moves no vector.",
)

memory_state = Table(
    "memory_state",
    metadata,
    _space_id(),
    _whole("last_node_id", "the last node_id that was given"),
    _whole("last_dream_id", "the last dream_id that was given"),
    _whole("generation", "grows when a user is forgotten: what was read before is not written any more"),
    _time("consolidated_at", "up to when memory is consolidated"),
    Column("evidence", JSONB, comment="whether dreams predict edges that were held out; NULL before they are asked"),
    Column("system", JSONB, comment="integration of the patterns as a system; NULL before it was measured"),
    Column("run_id", BigInteger, comment="cycle that was committed last; NULL before the first"),
    _now("updated_at", "when it last changed"),
    comment="How far the memory graph of a space is.",
)

dream = Table(
    "dream",
    metadata,
    _space_id(),
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
    _now("created_at", "when it was dreamt"),
    Index("dream_run_idx", "space_id", "run_id"),
    comment="Walks over the memory graph, what they are worth, and what became of them.",
)

memory_snapshot = Table(
    "memory_snapshot",
    metadata,
    _space_id(),
    Column("run_id", BigInteger, primary_key=True, autoincrement=False, comment="cycle that made it"),
    Column("ordinal", BigInteger, nullable=False, comment="ledger entries that are in it, at most"),
    Column("content", LargeBinary, nullable=False, comment="names of the items, and the edges"),
    _now("created_at", "when it was made"),
    comment="The memory graph as cycles left it: what comes after is weighed by it, so that no event knows itself.",
)

memory_archive = Table(
    "memory_archive",
    metadata,
    _space_id(),
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
    _now("archived_at", "when"),
    _flag("is_merge", "whether something became part of another: that comes back with all of its cycle and since"),
    Index("memory_archive_into_idx", "space_id", "into_id", postgresql_where=text("into_id IS NOT NULL")),
    comment="What consolidation has removed from the memory graph: sona.restore_memory brings it back.",
)

pending_trajectory = Table(
    "pending_trajectory",
    metadata,
    _space_id(owned=False),
    Column("pending_id", BigInteger, Identity(always=True), primary_key=True, comment="order of arrival"),
    Column("trajectory_id", Uuid, nullable=False, comment="trajectory with something new to learn"),
    _now("created_at", "when it was recorded or scored"),
    comment="What SQL clients recorded or scored, and the instant worker has not learned yet.",
)

error_log = Table(
    "error_log",
    metadata,
    _space_id(owned=False),
    Column("error_id", BigInteger, Identity(always=True), primary_key=True, comment="order of arrival"),
    _now("created_at", "when it happened"),
    Column("source", Text, nullable=False, comment="loop or command that met it"),
    Column("worker", Text, nullable=False, comment="host and process"),
    Column("message", Text, nullable=False, comment="what was found, what was expected, the way out"),
    comment="What went wrong, for people.",
)
