"""The tables of schema `sona`, as SQLAlchemy Core: what the migrations must have built, compared by a test.

`space_id` leads every key, so that the schema can be distributed or partitioned by space without change. The tables on
the recording path have no foreign keys: what belongs together is written in one transaction, and a check for every
copied row would cost a third of the throughput.
"""

from sona_pg.store.schema.columns import SCHEMA, metadata
from sona_pg.store.schema.loops import error_log, learning_cycle, learning_event, loop_run, loop_schedule
from sona_pg.store.schema.memory import (
    dream,
    memory_archive,
    memory_edge,
    memory_node,
    memory_node_state,
    memory_snapshot,
    memory_state,
)
from sona_pg.store.schema.patterns import pattern, pattern_access, pattern_history, pattern_state, verdict
from sona_pg.store.schema.spaces import item_sample, item_source, space, space_grant
from sona_pg.store.schema.strategies import (
    answer_outcome,
    item_outcome,
    remembered_query,
    strategist,
    strategy_evidence,
    strategy_region,
    strategy_turn,
)
from sona_pg.store.schema.trajectories import forgotten_user, pending_trajectory, score, trajectory, trajectory_step
from sona_pg.store.schema.versions import (
    adapter_version,
    base_state,
    deployment,
    fisher_snapshot,
    learner,
    served_row,
    version_row,
)

__all__ = [
    "SCHEMA",
    "adapter_version",
    "answer_outcome",
    "base_state",
    "deployment",
    "dream",
    "error_log",
    "fisher_snapshot",
    "forgotten_user",
    "item_outcome",
    "item_sample",
    "item_source",
    "learner",
    "learning_cycle",
    "learning_event",
    "loop_run",
    "loop_schedule",
    "memory_archive",
    "memory_edge",
    "memory_node",
    "memory_node_state",
    "memory_snapshot",
    "memory_state",
    "metadata",
    "pattern",
    "pattern_access",
    "pattern_history",
    "pattern_state",
    "pending_trajectory",
    "remembered_query",
    "score",
    "served_row",
    "space",
    "space_grant",
    "strategist",
    "strategy_evidence",
    "strategy_region",
    "strategy_turn",
    "trajectory",
    "trajectory_step",
    "verdict",
    "version_row",
]
