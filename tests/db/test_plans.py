"""Hot statements use an index: what the product really executes, on tables large enough for it to matter.

The statements are not repeated here. Those that Python sends are explained as they pass, with their parameters; for
those inside functions, and as the last word for all, the server's own counters say which tables were read as a whole.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sona_pg import SonaEngine
from sona_pg.config import StoreConfig, WorkerConfig
from sona_pg.store import connection as connection_module
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from sona_pg.store.migrate import migrate
from sona_pg.worker import InstantWorker

DIM = 8
PATIENCE_SECONDS = 60
SPACES = (12_000, 3_000, 3_000, 1_000, 1_000, 1_000, 1_000)
"""Trajectories by space; the first is searched through HNSW."""
LARGE = {
    *("trajectory", "trajectory_step", "score", "remembered_query", "memory_edge", "pending_trajectory"),
    *("learning_event", "learning_cycle", "item_outcome", "strategy_turn"),
}

_FILL = (
    "INSERT INTO sona.trajectory (space_id, trajectory_id, created_at, query)"
    " SELECT {space}, {id}, now() - interval '30 days' * n / {count}, {vector} FROM generate_series(1, {count}) n",
    "INSERT INTO sona.trajectory_step (space_id, trajectory_id, ordinal, item_id, position, reward)"
    " SELECT {space}, {id}, o, (n + o)::text, o + 1, CASE o WHEN 0 THEN 1 END"
    " FROM generate_series(1, {count}) n, generate_series(0, 2) o",
    "INSERT INTO sona.score (space_id, score_id, trajectory_id, item_id, value, revision)"
    " SELECT {space}, n::text, {id}, n::text, 1, 1 FROM generate_series(1, {count}) n",
    "INSERT INTO sona.learning_event (space_id, loop, trajectory_id, revision, cycle_id, ordinal, learned)"
    " SELECT {space}, 'instant', {id}, r, n / 10 + 1, 2 * n + r, 'adapter'"
    " FROM generate_series(1, {count}) n, generate_series(0, 1) r",
    "INSERT INTO sona.learning_cycle"
    " (space_id, cycle_id, loop, epoch, version, events, learned, replayed, worker, started_at)"
    " SELECT {space}, n, 'instant', 0, 0, 10, 10, false, 'test', now() FROM generate_series(1, {count} / 10) n",
    "UPDATE sona.learner SET revision = {count} / 10, ordinal = 2 * {count} + 2 WHERE space_id = {space}",
    "UPDATE sona.strategist SET ordinal = 2 * {count} + 2 WHERE space_id = {space}",
    "INSERT INTO sona.strategy_turn (space_id, ordinal, trajectory_id, before, after, reason)"
    " SELECT {space}, 2 * n, {id}, 'frozen', 'fusion', 'proven' FROM generate_series(1, {count}) n",
    "INSERT INTO sona.item_outcome (space_id, item_id, helped)"
    " SELECT {space}, n::text, 2 FROM generate_series(1, {count}) n",
    # Waiting for the worker: as much as was learned, in two of the spaces.
    "WITH made AS (INSERT INTO sona.trajectory (space_id, trajectory_id, query)"
    " SELECT {space}, gen_random_uuid(), {vector} FROM generate_series(1, {waiting}) n"
    " RETURNING space_id, trajectory_id)"
    " INSERT INTO sona.pending_trajectory (space_id, trajectory_id) SELECT space_id, trajectory_id FROM made",
    "INSERT INTO sona.remembered_query"
    " (space_id, trajectory_id, embedding, ordinal, helped, rewards, unhelpful, is_prototype, admitted)"
    " SELECT {space}, {id}, {vector}, 2 * n, ARRAY[n::text, (n + 1)::text], '{{1,1}}', ARRAY[(n + 2)::text],"
    " n <= 500, {space} = 1 AND n > 500 FROM generate_series(1, {count}) n",
    "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight)"
    " SELECT {space}, 'co_access', least(a, b), greatest(a, b), 0.5 FROM (SELECT n::text AS a, (n + o)::text AS b"
    " FROM generate_series(1, {count} / 2) n, generate_series(1, 3) o) e",
)


@dataclass(frozen=True)
class Filled:
    """A database with much in it, and how a superuser and a role under row-level security reach it."""

    superuser: str
    owner: str


@pytest.fixture(scope="module")
def filled(make_database: Callable[[], str], server_url: str) -> Iterator[Filled]:
    url, role = make_database(), f"sona_plans_{uuid.uuid4().hex[:8]}"
    migrate(url)
    with connect(url) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER").format(sql.Identifier(role)))
        connection.execute("CREATE TABLE public.items (id integer PRIMARY KEY, embedding vector)")
        connection.execute(f"INSERT INTO public.items SELECT n, {_vector('n')} FROM generate_series(1, 500) n")
        for number, count in enumerate(SPACES):
            row = connection.execute("SELECT sona.create_space(%s, %s)", (f"space {number}", DIM)).fetchone()
            assert row is not None
            connection.execute("SELECT sona.set_items(%s, 'public.items', 'id', 'embedding')", (f"space {number}",))
            connection.execute("INSERT INTO sona.space_grant VALUES (%s, %s)", (row[0], role))
            values = {
                "space": str(row[0]),
                "count": str(count),
                "waiting": str(count if number in (1, 2) else 0),
                "vector": _vector("n"),
                "id": f"md5('{row[0]}.' || n)::uuid",
            }
            with connection.transaction():
                for statement in _FILL:
                    connection.execute(statement.format_map(values))  # type: ignore[call-overload]
        connection.execute("SELECT sona.admit_queries('space 0', 10000)")
        for schema in ("sona", "public"):
            for what in ("ALL TABLES", "ALL SEQUENCES", "ALL FUNCTIONS"):
                connection.execute(f"GRANT ALL ON {what} IN SCHEMA {schema} TO {role}")
        connection.execute(f"GRANT USAGE ON SCHEMA sona TO {role}")
        connection.execute("VACUUM ANALYZE")
    yield Filled(url, make_conninfo(url, user=role))
    with connect(url) as connection:
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


def _vector(seed: str) -> str:
    """SQL for a vector that is the same for the same seed."""
    return f"ARRAY[{', '.join(f'sin({seed} * {k + 1} * 0.618)' for k in range(DIM))}]::vector"


class Watch:
    """What the connections that were made through it did to the large tables."""

    def __init__(self, superuser: str, url: str) -> None:
        self.url = url
        self.explained: list[str] = []
        self.whole: list[str] = []
        """Statements with what they would read as a whole."""
        self._monitor = psycopg.connect(superuser, autocommit=True)
        self._made: list[psycopg.Connection[Any]] = []
        self._wait_for_others()
        self._before = self._counters()

    def connect(self, conninfo: str, *, autocommit: bool) -> psycopg.Connection[Any]:
        """Stands for that of the class of connections."""
        made = _Watched.connect(conninfo, autocommit=autocommit, cursor_factory=_Explaining)
        made.watch = self
        self._made.append(made)
        return made

    def explain(self, cursor: psycopg.Cursor[Any], query: str | sql.Composable, parameters: object) -> None:
        """Explain a statement that is about to be executed."""
        text = query if isinstance(query, str) else query.as_string(cursor)
        if not text.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
            return
        with psycopg.Cursor(cursor.connection) as other:
            other.execute("EXPLAIN (FORMAT JSON) " + text, parameters)
            plan = other.fetchall()[0][0][0]["Plan"]
        self.explained.append(text)
        nodes = [plan]
        while nodes:
            node = nodes.pop()
            nodes += node.get("Plans", [])
            if node["Node Type"] == "Seq Scan" and node["Relation Name"] in LARGE:
                self.whole.append(f"{node['Relation Name']}: {text}")

    def _wait_for_others(self) -> None:
        """Sessions of the test before may be at their end still, and count what they have read as the last thing."""
        end = time.monotonic() + PATIENCE_SECONDS
        others = (
            "SELECT application_name FROM pg_stat_activity"
            " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        while found := self._monitor.execute(others).fetchall():
            assert time.monotonic() < end, found
            time.sleep(0.01)

    def _counters(self) -> dict[str, tuple[int, int]]:
        for connection in self._made:
            connection.close()
        found = self._monitor.execute(
            "SELECT relname, seq_scan, idx_scan FROM pg_stat_user_tables WHERE schemaname = 'sona'"
        ).fetchall()
        return {table: counts for table, *counts in found if table in LARGE}

    def close(self) -> None:
        """End what was watched, and the watching."""
        for connection in (*self._made, self._monitor):
            connection.close()

    def check(self, *by_index: str) -> None:
        """Nothing large was read as a whole, by whatever statement; and these tables were read by their indexes."""
        after = self._counters()
        assert self.whole == []
        assert {table: after[table][0] - before[0] for table, before in self._before.items()} == dict.fromkeys(LARGE, 0)
        used = {table for table, before in self._before.items() if after[table][1] > before[1]}
        assert used >= set(by_index)


class _Watched(Connection):
    watch: Watch

    def close(self) -> None:
        # The server counts at once, not a second later.
        if not self.closed and self.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            self.pgconn.exec_(b"SELECT pg_stat_force_next_flush()")
        super().close()


class _Explaining(psycopg.Cursor[Any]):
    def execute(self, query, params=None, **options):  # type: ignore[no-untyped-def]
        if watch := getattr(self.connection, "watch", None):
            watch.explain(self, query, params)
        return super().execute(query, params, **options)

    def executemany(self, query, params_seq, **options):  # type: ignore[no-untyped-def]
        rows = list(params_seq)
        if rows:
            self.connection.watch.explain(self, query, rows[0])
        super().executemany(query, rows, **options)


@pytest.fixture(params=["superuser", "owner"])
def watch(request: pytest.FixtureRequest, filled: Filled, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Watches all that the product does in the test, as one or the other role."""
    with contextlib.closing(Watch(filled.superuser, getattr(filled, request.param))) as watch:
        monkeypatch.setattr(connection_module, "Connection", watch)
        yield watch


@pytest.fixture
def query(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.standard_normal(DIM).astype(np.float32)


def test_the_watch_sees_what_reads_a_table_as_a_whole(watch: Watch) -> None:
    with connect(watch.url) as connection:
        connection.execute("SELECT count(*) FROM sona.score WHERE value = 0.5")
    with pytest.raises(AssertionError, match="score: SELECT"):
        watch.check()
    watch.whole.clear()
    with pytest.raises(AssertionError, match="'score'"):
        watch.check()


@pytest.mark.parametrize("space", ["space 0", "space 4"])
def test_flush_with_late_scores_and_a_rebase(watch: Watch, space: str, query: NDArray[np.float32]) -> None:
    with SonaEngine.connect(watch.url, space=space, background=False) as engine:
        with SonaEngine.connect(watch.url, space=space, background=False) as other:
            for _ in range(30):
                id = engine.record(query, ["1", "2", "3"], [1.0, 1.0, None])
                other.record(query, ["1", "2", "3"], [1.0, 1.0, None])
                other.score(id, 1.0, "3")
            unjudged = engine.record(query, ["1", "2"])
            engine.flush()
            other.flush()
            engine.score(id, 0.0, "3")
            engine.score(unjudged, 1.0, "2")
            engine.flush()
            assert other.metrics.replays == 1
        found = engine.recall(query)
        assert len(found.items) == 10
    assert sum("learning_event" in text for text in watch.explained) > 2
    watch.check("trajectory", "trajectory_step", "score", "remembered_query", "memory_edge", "learning_event")


def test_the_worker_claims_and_learns_from_a_long_backlog(watch: Watch) -> None:
    worker = InstantWorker(Database(watch.url, StoreConfig()), WorkerConfig(batch=100))
    try:
        assert worker.step() == 200
        assert worker.failing == []
    finally:
        worker.close()
    assert any("DELETE FROM sona.pending_trajectory" in text for text in watch.explained)
    watch.check("pending_trajectory", "trajectory", "trajectory_step", "score", "learning_event")


@pytest.mark.parametrize("space", ["space 0", "space 4"])
def test_sql_clients_record_score_and_search(watch: Watch, space: str, query: NDArray[np.float32]) -> None:
    with connect(watch.url) as connection:
        # More often than a prepared statement or a function is planned for its parameters.
        for _ in range(12):
            row = connection.execute("SELECT sona.record(%s, %s, '{1,2}')", (space, query)).fetchone()
            assert row is not None
            connection.execute("SELECT sona.record(%s, %s, trajectory_id => %s)", (space, query, row[0]))
            connection.execute("SELECT sona.score(%s, 1, '1')", (row[0],))
            connection.execute("SELECT sona.score(%s, 1, '2', space => %s)", (row[0], space))
            assert len(connection.execute("SELECT * FROM sona.recall(%s, %s)", (space, query)).fetchall()) == 10
            near = connection.execute("SELECT * FROM sona.nearest_queries(%s, %s, 5)", (space, query)).fetchall()
            assert len(near) == 5
    watch.check("trajectory", "learning_event", "remembered_query")


def test_the_large_space_is_searched_through_hnsw(watch: Watch, query: NDArray[np.float32]) -> None:
    def scans() -> int:
        rows = connection.execute("SELECT pg_stat_get_xact_numscans(sona._queries_index(1))").fetchall()
        return int(rows[0][0])

    with connect(watch.url) as connection, connection.transaction():
        before = scans()
        connection.execute("SELECT * FROM sona.nearest_queries('space 0', %s, 5)", (query,))
        assert scans() == before + 1


def test_remembered_events_come_in_order_from_an_index_that_has_lost_rows(
    filled: Filled, rng: np.random.Generator
) -> None:
    # It goes on for more than it found at first, and returns those in an order of their own.
    with connect(filled.superuser) as connection, connection.transaction(force_rollback=True):
        connection.execute("DELETE FROM sona.remembered_query WHERE space_id = 1 AND ordinal % 100 <> 0")
        for query in rng.standard_normal((20, DIM)).astype(np.float32):
            rows = connection.execute("SELECT similarity FROM unnest(sona._near_events(1, %s, %s, 40))", (DIM, query))
            near = [row[0] for row in rows]
            assert near
            assert near == sorted(near, reverse=True)


def test_retention(watch: Watch) -> None:
    with connect(watch.url) as connection, connection.transaction(force_rollback=True):

        def apply(batch: int) -> int:
            row = connection.execute("SELECT sona.apply_retention('space 0', %s)", (batch,)).fetchone()
            assert row is not None
            return int(row[0])

        for trajectories, steps in (("29 days", None), (None, "28 days")):
            connection.execute("SELECT sona.set_retention('space 0', %s::interval, %s)", (trajectories, steps))
            for _ in range(7):
                assert apply(20) == 20
            assert apply(1000) > 100
            while apply(1000):
                pass
            connection.execute("SELECT sona.set_retention('space 0')")
    watch.check("trajectory", "trajectory_step", "score", "remembered_query", "learning_event")
