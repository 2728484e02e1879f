"""What must not stop a space around it: roles without privileges, troubled item tables, connections that end."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Sequence

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sona_pg import DatabaseBusy, DatabaseError, DatabaseUnavailable, SonaEngine, StoreConfig, UnknownSpace
from sona_pg.loops import forget
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store.connection import Connection, connect, transaction
from sona_pg.store.forget import ForgetTransaction
from sona_pg.store.migrate import migrate

from .conftest import DIM
from .recorded import Matrix, _count, _query

# Roles


def test_an_owner_without_superuser_rights_migrates_records_and_learns(
    owned_url: str, rng: np.random.Generator
) -> None:
    migrate(owned_url)
    with SonaEngine.connect(owned_url, space="own", dim=DIM, background=False) as engine:
        for _ in range(5):
            builder = engine.start(_query(rng))
            builder.add_step(_query(rng), [0.5, 0.25], 1.0, item_id="a", position=1)
            builder.add_step(_query(rng), None, 0.0, item_id="b", position=2)
            engine.record(builder)
        engine.score(engine.record(_query(rng), ["a"]), 1.0, "a")
        engine.flush()
        assert engine.metrics.flushed == 7
        state = engine.instant.learner.to_bytes()
    with SonaEngine.connect(owned_url, space="own", background=False) as again:
        assert again.instant.learner.to_bytes() == state
    with connect(owned_url) as connection:
        assert connection.execute(
            "SELECT attention FROM sona.trajectory_step WHERE item_id = 'a' LIMIT 1"
        ).fetchall() == [([0.5, 0.25],)]


def test_what_row_level_security_forbids_is_forbidden(
    owned_url: str, role: Callable[..., str], rng: np.random.Generator
) -> None:
    migrate(owned_url)
    mine, theirs = role("sona_mine", "sona_worker"), role("sona_theirs", "sona_worker")
    for name in (mine, theirs):
        with SonaEngine.connect(make_conninfo(owned_url, user=name), space=name, dim=DIM, background=False) as engine:
            engine.record(_query(rng), ["a"], [1.0])
            engine.flush()
    with connect(make_conninfo(owned_url, user=theirs)) as connection:
        assert connection.execute("SELECT name FROM sona.space").fetchall() == [(theirs,)]
        assert connection.execute("SELECT count(*) FROM sona.trajectory").fetchall() == [(1,)]
        for statement in (
            "INSERT INTO sona.space_grant (space_id, role_name) VALUES (1, current_user)",
            "INSERT INTO sona.trajectory (space_id, trajectory_id, query) VALUES (1, gen_random_uuid(), '[1]')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
        assert connection.execute("UPDATE sona.space_grant SET may_write = true").rowcount == 1
        assert connection.execute("DELETE FROM sona.space WHERE name <> current_user").rowcount == 0


def test_a_space_whose_grants_were_taken_away_cannot_be_seized(owned_url: str, role: Callable[..., str]) -> None:
    migrate(owned_url)
    thief = role("sona_thief", "sona_worker")
    with connect(owned_url) as connection:
        connection.execute("SELECT sona.create_space('locked', 2)")
        space_id = connection.execute("SELECT space_id FROM sona.space").fetchall()[0][0]
        connection.execute("DELETE FROM sona.space_grant")
    with connect(make_conninfo(owned_url, user=thief)) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(
                "INSERT INTO sona.space_grant (space_id, role_name) VALUES (%s, current_user)", (space_id,)
            )


# The application's table


@pytest.mark.parametrize(
    "trouble",
    [
        "DROP TABLE {}",
        "ALTER TABLE {} RENAME COLUMN embedding TO vectors",
        "ALTER TABLE {} RENAME COLUMN id TO key",
        "ALTER TABLE {} ALTER COLUMN embedding TYPE vector USING embedding",
    ],
)
def test_trouble_with_the_items_table_does_not_keep_outcomes_from_being_durable(
    connection: Connection, engine: SonaEngine, items: tuple[str, Matrix], rng: np.random.Generator, trouble: str
) -> None:
    connection.execute(f"INSERT INTO {items[0]} VALUES (1000, %s)", (_query(rng),))  # not in the sample
    connection.execute(trouble.format(items[0]))
    for item in ("1000", "1001", "1"):
        engine.record(_query(rng), [item], [1.0])
    engine.flush()
    assert _count(connection, "trajectory", engine.space.space_id) == 3
    learned = connection.execute(
        "SELECT learned FROM sona.ledger WHERE space = %s ORDER BY ordinal", (engine.space.name,)
    ).fetchall()
    assert learned[2] == ("adapter",)
    assert learned[1] == ("no embedding",)
    # The strategies cannot be weighed without items; that is told, and made good when the table is named anew.
    is_gone = "TYPE vector" not in trouble
    status = "SELECT unweighed FROM sona.status WHERE space = %s"
    told = "SELECT count(*) FROM sona.errors WHERE space = %s AND source = 'evidence'"
    assert connection.execute(status, (engine.space.name,)).fetchall() == [(3 * is_gone,)]
    assert connection.execute(told, (engine.space.name,)).fetchall() == [(int(is_gone),)]
    connection.execute(f"CREATE TABLE {items[0]}_anew (id integer PRIMARY KEY, embedding vector({DIM}))")
    connection.execute(f"INSERT INTO {items[0]}_anew VALUES (1, %s)", (_query(rng),))
    engine.set_items(f"{items[0]}_anew", "id", "embedding")
    engine.flush()
    assert connection.execute(status, (engine.space.name,)).fetchall() == [(0,)]
    assert _count(connection, "remembered_query", engine.space.space_id) == 3


def test_items_without_an_embedding_teach_once_they_have_one(
    connection: Connection, engine: SonaEngine, items: tuple[str, Matrix], rng: np.random.Generator
) -> None:
    trajectory = engine.record(_query(rng), ["2000"], [1.0])
    engine.flush()
    connection.execute(f"INSERT INTO {items[0]} VALUES (2000, %s)", (_query(rng),))
    engine.score(trajectory, 1.0, "2000")
    engine.flush()
    ledger = connection.execute(
        "SELECT learned FROM sona.ledger WHERE space = %s ORDER BY ordinal", (engine.space.name,)
    ).fetchall()
    assert ledger == [("no embedding",), ("adapter",)]


def test_recall_gives_as_many_items_as_were_asked_for_with_an_index(
    connection: Connection, engine: SonaEngine, rng: np.random.Generator
) -> None:
    connection.execute("DROP TABLE IF EXISTS public.indexed_items")
    connection.execute(f"CREATE TABLE public.indexed_items (id integer PRIMARY KEY, embedding vector({DIM}))")
    with connection.cursor().copy("COPY public.indexed_items FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "vector"])
        for row in range(3000):
            copy.write_row((row, _query(rng)))
    connection.execute("CREATE INDEX ON public.indexed_items USING hnsw (embedding vector_cosine_ops)")
    connection.execute("ANALYZE public.indexed_items")
    engine.set_items("public.indexed_items", "id", "embedding")
    assert len(engine.recall(_query(rng), 100).items) == 100


def test_sets_of_items_that_are_named_at_once_do_not_collide(
    connection: Connection, url: str, engine: SonaEngine, items: tuple[str, Matrix]
) -> None:
    failures: list[Exception] = []

    def name_items() -> None:
        try:
            with psycopg.connect(url, autocommit=True) as own:
                own.execute("SELECT sona.set_items(%s, %s::regclass, 'id', 'embedding')", (engine.space.name, items[0]))
        except psycopg.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=name_items) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert _count(connection, "item_sample", engine.space.space_id) == 60


# Connections that end


def test_connections_that_the_server_ended_are_made_anew(
    url: str, connection: Connection, engine: SonaEngine, items: tuple[str, Matrix], rng: np.random.Generator
) -> None:
    connection.execute(f"INSERT INTO {items[0]} VALUES (3000, %s)", (_query(rng),))
    others = make_conninfo(url, application_name="ended")
    with SonaEngine.connect(others, space=engine.space.name, background=False) as used:
        for learn in (used.flush, lambda: used.learn_one(_query(rng), {"3000": 1.0}), used.background_learn):
            used.record(_query(rng), ["3000"], [1.0])
            ended = connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'ended'"
            ).fetchall()
            assert ended
            learn()
            assert used.metrics.last_error is None
        assert used.instant.learner.events == 4
    assert _count(connection, "learning_event", engine.space.space_id) == 4


def test_a_flush_does_not_wait_forever_for_the_learner(url: str, engine: SonaEngine, rng: np.random.Generator) -> None:
    with SonaEngine.connect(
        url, space=engine.space.name, background=False, store=StoreConfig(lock_timeout_seconds=1)
    ) as hurried:
        hurried.record(_query(rng), ["1"], [1.0])
        with psycopg.connect(url) as blocker:
            blocker.execute("SELECT FROM sona.learner WHERE space_id = %s FOR UPDATE", (engine.space.space_id,))
            with pytest.raises(DatabaseError, match="another session holds"):
                hurried.flush()
        hurried.flush()
        assert hurried.metrics.flushed == 1


def test_a_transaction_whose_connection_ends_is_not_said_to_be_committed(
    url: str, connection: Connection, engine: SonaEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a store asks within a transaction goes over the connection of the transaction, also where that has ended."""
    space = engine.space.name
    for _ in range(3):
        connection.execute("SELECT sona.record(%s, %s, ARRAY['1'], '{1}', user_id => 'ann')", (space, _query(rng)))
    delete_alone = forget._Forgetting._delete_alone

    def then_ends(
        own: forget._Forgetting, transaction: ForgetTransaction, ids: Sequence[uuid.UUID]
    ) -> forget.ForgetReport:
        found = delete_alone(own, transaction, ids)
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'ended'"
        )
        return found

    with SonaEngine.connect(make_conninfo(url, application_name="ended"), space=space, background=False) as forgetful:
        with monkeypatch.context() as patch:
            patch.setattr(forget._Forgetting, "_delete_alone", then_ends)
            with pytest.raises(DatabaseUnavailable):
                forgetful.forget("ann")
        assert _count(connection, "trajectory", engine.space.space_id) == 3
        assert forgetful.forget("ann").trajectories == 3
    assert _count(connection, "trajectory", engine.space.space_id) == 0


def test_what_is_done_in_a_transaction_is_never_done_over_another_connection(url: str, engine: SonaEngine) -> None:
    def end_first() -> None:
        with transaction(first), connect(url) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", (first.info.backend_pid,))
            assert store.connection() is first

    with contextlib.closing(SpaceStore(engine.space, lambda: connect(url))) as store:
        first = store.connection()
        with pytest.raises(DatabaseUnavailable):
            end_first()
        assert store.connection() is not first


def test_a_transaction_in_which_the_end_of_its_connection_was_ignored_is_refused(url: str) -> None:
    with connect(url) as lost:
        with pytest.raises(DatabaseUnavailable, match="nothing is committed"), transaction(lost):
            with contextlib.suppress(psycopg.Error):
                lost.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.mark.parametrize("blocked", ["space", "strategist", "learner"])
def test_nothing_waits_forever_for_what_another_session_holds(
    blocked: str, url: str, engine: SonaEngine, items: tuple[str, Matrix], rng: np.random.Generator
) -> None:
    store = StoreConfig(lock_timeout_seconds=1)
    with SonaEngine.connect(url, space=engine.space.name, background=False, store=store) as hurried:
        hurried.record(_query(rng), ["1"], [1.0])
        hurried.flush()
        calls: list[Callable[[], object]] = [lambda: hurried.deploy("latest")]
        if blocked != "learner":
            calls.append(lambda: hurried.background_learn(wait_seconds=1))
        if blocked == "space":
            calls.append(lambda: hurried.set_items(items[0], "id", "embedding"))
        with psycopg.connect(url) as blocker:
            blocker.execute(
                sql.SQL("SELECT FROM sona.{} WHERE space_id = %s FOR UPDATE").format(sql.Identifier(blocked)),
                (engine.space.space_id,),
            )
            for call in calls:
                with pytest.raises(DatabaseBusy, match="another session holds"):
                    call()
        for call in calls:
            call()


def test_what_a_deleted_space_was_worth_is_not_told_as_zero(url: str, connection: Connection, space_name: str) -> None:
    with SonaEngine.connect(url, space=space_name, dim=DIM, background=False) as opened:
        connection.execute("SELECT sona.drop_space(%s)", (space_name,))
        with pytest.raises(UnknownSpace, match="is gone"):
            opened.improvement_metrics()


def test_servers_that_start_at_the_same_time_open_one_space(url: str, space_name: str) -> None:
    failures: list[Exception] = []

    def start() -> None:
        try:
            SonaEngine.connect(url, space=space_name, dim=DIM, background=False).close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
