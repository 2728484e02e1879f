"""What must hold of a database after anything was tried on it."""

from __future__ import annotations

import io

import numpy as np
from psycopg import sql

from sona_pg.config import StoreConfig
from sona_pg.store.connection import Connection
from sona_pg.store.database import Database
from sona_pg.store.spaces import get_space
from sona_pg.store.versions import read_version
from sona_pg.worker import InstantWorker

_NUMBERS = (
    "SELECT c.oid::regclass::text, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
    " WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped"
    " AND format_type(a.atttypid, NULL) ~ '^(real|double precision|numeric|(.*[.])?(vector|halfvec))([[]])*$'"
)


def not_finite(connection: Connection) -> list[str]:
    """Columns of any table that hold NaN or infinity, and states that do."""
    columns = connection.execute(_NUMBERS).fetchall()
    assert {"embedding", "activation", "attention", "reward", "weight", "query"} <= {name for _, name in columns}
    found = []
    for table, column in columns:
        statement = sql.SQL("SELECT count(*) FROM {} WHERE {}::text ~* 'nan|inf'").format(
            sql.SQL(table), sql.Identifier(column)
        )
        if connection.execute(statement).fetchall() != [(0,)]:
            found.append(f"{table}.{column}")
    states = [
        (f"{table} {space_id}", bytes(state))
        for table in ("learner", "strategist")
        for space_id, state in connection.execute(f"SELECT space_id, state FROM sona.{table} WHERE state IS NOT NULL")
    ]
    for space, version in connection.execute(
        "SELECT s.name, v.version FROM sona.adapter_version v JOIN sona.space s USING (space_id)"
    ):
        state = read_version(connection, get_space(connection, space), version)
        states.append((f"version {version} of {space}", state))
    for owner, state in states:
        with np.load(io.BytesIO(state[32:])) as arrays:
            found += [f"{name} of {owner}" for name in arrays.files if not np.isfinite(arrays[name]).all()]
    return found


def learn_all(url: str, connection: Connection) -> list[str]:
    """Let a worker learn whatever waits, and weigh the strategies by it; gives what it could not."""
    worker = InstantWorker(Database(url, StoreConfig()))
    while worker.step() + worker.weigh():
        pass
    failing = [f"space {name} fails" for name in worker.failing]
    worker.close()
    failing += [
        f"{space}: {message}" for space, message in connection.execute("SELECT space, message FROM sona.errors")
    ]
    failing += [
        f"ledger of {space} was not weighed"
        for (space,) in connection.execute("SELECT space FROM sona.status WHERE unweighed <> 0")
    ]
    # A score may wait for a trajectory that never came; a trajectory waits for nothing.
    failing += [
        f"trajectory {id} was not learned"
        for (id,) in connection.execute(
            "SELECT trajectory_id FROM sona.trajectory t WHERE NOT EXISTS (SELECT FROM sona.learning_event e"
            " WHERE e.space_id = t.space_id AND e.trajectory_id = t.trajectory_id AND e.revision = 0) LIMIT 5"
        )
    ]
    return failing
