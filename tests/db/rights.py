"""What each role may read, write and call, and logins of two tenants to try it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from sona_pg.store.connection import Connection, connect

from .conftest import DIM, World

Vector = NDArray[np.float32]

ROLES = ("sona_reader", "sona_app", "sona_worker")

APP_INSERTS = {
    "trajectory": {
        "space_id", "trajectory_id", "query", "quality", "latency_us", "user_id", "session_id", "metadata", "arm",
        "version", "strategy", "propensity",
    },
    "trajectory_step": {
        "space_id", "trajectory_id", "ordinal", "item_id", "position", "reward", "attention", "activation",
    },
    "score": {"space_id", "score_id", "trajectory_id", "item_id", "name", "value"},
    "pending_trajectory": {"space_id", "trajectory_id"},
    "pattern_access": {"space_id", "pattern_id", "access_count", "last_accessed"},
}  # fmt: skip
"""Everything that an application may add."""

APP_UPDATES = {"pattern_access": {"access_count", "last_accessed"}}
"""Columns that it may rewrite."""

WORKER_UPDATES = {
    "space": {
        "strategy",
        "frozen_from",
        "control_share",
        "embedder",
        "trajectory_retention",
        "step_retention",
        "steps_deleted_before",
        "steps_lost_before",
        "may_transfer",
        "name",
        "standby_of",
        "replaced_at",
    },
    "space_grant": {"may_write"},
    "score": {"revision"},
    "memory_archive": {"into_id"},
    "remembered_query": {"admitted", "helped", "rewards", "unhelpful"},
    "pending_trajectory": {"created_at"},
    "learning_event": {"ordinal", "learned"},
    "learning_cycle": {"events", "learned"},
    "forgotten_user": {"forgotten_at"},
}
"""Columns that a worker may rewrite, of the tables that it may not rewrite as a whole."""

WORKER_INSERTS = {"deployment": {"space_id", "action", "before", "after", "reason"}}
"""Columns that a worker may say, of the tables to which it may add rows and from which it may delete none."""

WORKER_READS = {"forgotten_user"}
"""Tables that lesser roles do not see."""

WORKER_REWRITES = {
    "learner", "served_row", "memory_edge", "item_source", "strategist", "strategy_evidence", "strategy_region",
    "item_outcome", "answer_outcome", "loop_schedule", "loop_run",
    "pattern", "pattern_access", "pattern_state", "verdict", "base_state", "fisher_snapshot", "memory_node",
    "memory_node_state", "memory_state",
}  # fmt: skip

READING_VOLATILES = {
    "new_trajectory_id", "_widen_search", "_nearest_items", "_search_items", "_near_events", "_score_items",
    "_related_items", "_answer",
}  # fmt: skip
"""Functions that are volatile and write nothing all the same."""

APP_FUNCTIONS = {"record", "record_batch", "score", "score_batch", "_count_accesses"}

WORKER_FUNCTIONS = {
    "create_space", "drop_space", "set_items", "admit_queries", "_index_queries", "_drop_queries_index", "grant_space",
    "revoke_space", "set_strategy", "set_retention", "apply_retention", "_lock_learner", "_delete_trajectories",
    "_delete_orphan_scores", "_delete_steps", "_changeable_space", "_log_deployment", "_publish", "_freeze", "deploy",
    "set_control_share", "prune_versions", "set_schedule", "run_cycle",
    "describe_pattern", "index_patterns", "index_nodes", "_index_by_size", "_index_vectors", "_drop_vectors_index",
    "set_transfer", "add_memory_node", "add_memory_edge", "forget_dreams", "restore_memory",
    "_restore_node", "_restore_edge", "_restore_node_before", "_restore_edge_before",
}  # fmt: skip

DEFINERS = {
    "_grantable_spaces": "the policies of the grants cannot read the grants under themselves",
    "_may_grant": "the same; and whether a space has any grants shows only to the owner",
    "_index_queries": "only the owner of a table can make its indexes",
    "_drop_queries_index": "or drop them",
    "_index_vectors": "the same of patterns and memory nodes",
    "_drop_vectors_index": "and their end",
}
"""SECURITY DEFINER functions, and why."""


def _query(rng: np.random.Generator) -> Vector:
    return rng.standard_normal(DIM).astype(np.float32)


def _tables(connection: Connection, kinds: str = "rp") -> list[str]:
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'sona'::regnamespace AND relkind::text = ANY(%s) ORDER BY 1",
        (list(kinds),),
    ).fetchall()
    return [row[0] for row in rows]


def _columns(connection: Connection, table: str) -> list[str]:
    rows = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
        " ORDER BY attnum",
        (f"sona.{table}",),
    ).fetchall()
    return [row[0] for row in rows]


def _denied(connection: Connection, statement: str, *parameters: object, says: str = "permission denied") -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match=says):
        connection.execute(statement, parameters)  # type: ignore[arg-type]


@pytest.fixture
def waiting(world: World) -> None:
    """Something waits in both spaces: a worker may have learned what did."""
    for tenant in world.ids:
        with connect(world.login(f"{tenant}_app")) as app:
            app.execute("SELECT sona.record(%s, %s, '{1}', '{1}')", (tenant, np.ones(DIM, np.float32)))


@pytest.fixture
def login(world: World) -> Iterator[Callable[[str], Connection]]:
    """Connects as a login; all are closed at the end."""
    made: list[Connection] = []

    def open_as(name: str) -> Connection:
        made.append(connect(world.login(name)))
        return made[-1]

    yield open_as
    for connection in made:
        connection.close()
