"""The switch to another embedder: what it refuses and waits for, the way back, the end, and who is forgotten."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from acceptance.audit import inconsistencies
from click.testing import CliRunner
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sona_pg import (
    ConfigError,
    DatabaseBusy,
    DimensionMismatch,
    EmbedderMismatch,
    IncompleteLedger,
    InvalidInput,
    SonaEngine,
    UnknownVersion,
    abort_embedder,
    change_embedder,
    finish_embedder,
)
from sona_pg.cli.app import app
from sona_pg.loops.forget import forget_beside
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store.connection import Connection, connect, translated
from sona_pg.store.embedder_change import exchange
from sona_pg.store.spaces import get_space, lock_space

from .two_models import (
    DIM,
    EVENTS,
    MODEL,
    NEW,
    OLD,
    ROTATION,
    SPACE,
    _fails,
    change,
    embedded,
    everything,
    learn_all,
    open_engine,
    query_of,
    record,
    space_id,
    worker_of,
)
from .two_models import connection as connection
from .two_models import copied as copied
from .two_models import filled as filled
from .two_models import url as url


def test_there_is_a_way_back_with_everything_that_was_learned(url: str, connection: Connection) -> None:
    before = everything(connection)
    change(url, switch=False)
    abort_embedder(url, SPACE)
    assert everything(connection) == before
    report = change(url)
    assert report.version is not None
    with open_engine(url, embedder=MODEL) as engine:
        with pytest.raises(UnknownVersion, match=r"version \d+ is of the embedder before: sona space re-embed"):
            engine.deploy("rollback")
        kept = engine.record(query_of(700) @ ROTATION, ["1"], [1.0], metadata={"n": 700})
        earlier = connection.execute(
            "SELECT trajectory_id FROM sona.trajectory WHERE space_id = %s ORDER BY 1 LIMIT 1", (space_id(connection),)
        ).fetchall()[0][0]
        # Outcomes say what an answer was worth whatever embeds it; and one space is meant, though two have it.
        assert connection.execute("SELECT sona.score(%s, 0.5, '7', score_id => 'since')", (earlier,)).fetchall() == [
            (True,)
        ]
        engine.flush()
        assert engine.why(kept).trajectory_id == kept
        assert connection.execute("SELECT count(*) FROM sona.why(%s)", (earlier,)).fetchall() != [(0,)]
    with pytest.raises(IncompleteLedger, match="1 trajectories were recorded with the embedder 'model b'"):
        abort_embedder(url, SPACE)
    abort_embedder(url, SPACE, accept_lost=True)
    after = everything(connection)
    for table in set(before) - {"score", "pending_trajectory"}:
        assert after[table] == before[table], table
    worker = worker_of(url)
    learn_all(worker)
    worker.close()
    assert inconsistencies(connection, space_id(connection)) == []
    assert connection.execute("SELECT revision FROM sona.score WHERE score_id = 'since'").fetchall() != [(None,)]
    with open_engine(url, embedder=OLD) as engine:
        record(engine, 800)
        engine.flush()
    trail = connection.execute(
        "SELECT before, after, reason FROM sona.deployment WHERE action = 'embedder' ORDER BY deployment_id"
    ).fetchall()
    assert trail == [
        (MODEL, OLD, "the change of embedder was given up"),
        (MODEL, OLD, "went back to the embedder before"),
    ]


def test_the_end_takes_along_outcomes_that_came_late(url: str, connection: Connection) -> None:
    with open_engine(url) as engine:
        earlier, nowhere = record(engine, 700), uuid.uuid4()
        engine.flush()
        change(url)
        # By a process that has not seen the switch; and one whose trajectory has not come yet.
        engine.score(earlier, 1.0, "9", score_id="late")
        engine.score(nowhere, 1.0, score_id="waits")
        engine.flush()
    finish_embedder(url, SPACE)
    worker = worker_of(url)
    learn_all(worker)
    worker.close()
    here = "SELECT score_id, revision FROM sona.score WHERE score_id IN ('late', 'waits') ORDER BY 1"
    assert connection.execute(here).fetchall() == [("late", 1), ("waits", None)]
    assert inconsistencies(connection, space_id(connection)) == []


@pytest.mark.parametrize("end", [finish_embedder, abort_embedder])
def test_the_end_waits_for_who_records_and_counts_again(
    url: str, connection: Connection, end: Callable[..., None]
) -> None:
    ends_old = end is finish_embedder
    query = query_of(5) if ends_old else query_of(5) @ ROTATION
    if not ends_old:
        change(url)
    with psycopg.connect(url) as client, ThreadPoolExecutor(1) as pool:
        ((made,),) = client.execute(
            "SELECT sona.record(%s, %s::real[]::vector, '{3}', '{1}', metadata => %s)",
            (SPACE, query.tolist(), '{"n": 5}'),
        ).fetchall()
        if ends_old:
            change(url)
        ending = pool.submit(end, url, SPACE)
        waiting = (
            "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE d.datname = current_database()"
            " AND locktype = 'advisory' AND NOT granted"
        )
        while connection.execute(waiting).fetchall() == [(0,)] and not ending.done():
            time.sleep(0.01)
        client.commit()
        with pytest.raises(IncompleteLedger, match="1 trajectories"):
            ending.result()
    found = connection.execute(
        "SELECT s.name FROM sona.trajectory t JOIN sona.space s USING (space_id) WHERE t.trajectory_id = %s", (made,)
    ).fetchall()
    assert found == [(f"{SPACE}/previous" if ends_old else SPACE,)]
    with psycopg.connect(url) as client, ThreadPoolExecutor(1) as pool:
        client.execute("SELECT sona.score(%s, 1, space => %s)", (made, SPACE))
        dropping = pool.submit(lambda: connection.execute("SELECT sona.drop_space(%s)", (SPACE,)))
        with pytest.raises(TimeoutError):
            dropping.result(0.3)
        with psycopg.connect(url) as other, ThreadPoolExecutor(1) as late:
            coming = late.submit(other.execute, "SELECT sona.score(%s, 1, space => %s)", (made, SPACE))
            with pytest.raises(TimeoutError):
                coming.result(0.3)
            client.commit()
            dropping.result()
            with pytest.raises(psycopg.Error, match="there is no space 'support'"):
                coming.result()
    assert connection.execute("SELECT count(*) FROM sona.score").fetchall() == [(0,)]


def test_who_records_by_a_model_that_is_given_up_is_told_and_what_is_lost_is_counted(
    url: str, connection: Connection
) -> None:
    change(url)
    engines = [open_engine(url, embedder=MODEL) for _ in range(3)]
    flushes, closes, idle = engines
    for engine in (flushes, closes):
        made = engine.record(query_of(5) @ ROTATION, ["3"], [1.0], metadata={"n": 5})
        engine.score(made, 0.5)
    abort_embedder(url, SPACE)
    says = "is another one by now, of the embedder 'model a'.* 2 trajectories and scores .* connect again"
    for _ in range(2):
        with pytest.raises(EmbedderMismatch, match=says):
            flushes.flush()
    with pytest.raises(EmbedderMismatch, match=says):
        flushes.record(query_of(6) @ ROTATION, ["3"], [1.0])
    for engine in (flushes, closes):
        with pytest.raises(EmbedderMismatch, match=says):
            engine.close()
        engine.close()
    idle.close()
    told = "SELECT source, split_part(message, ':', 1) FROM sona.errors WHERE space = %s"
    assert connection.execute(told, (SPACE,)).fetchall() == [("dropped", "2 trajectories and scores were dropped")] * 2


def test_names_that_the_switch_and_the_way_back_need_are_looked_at_first(url: str, connection: Connection) -> None:
    for role in ("next", "previous", "given up"):
        connection.execute("SELECT sona.create_space(%s, 4)", (f"{SPACE}/{role}",))
        with pytest.raises(InvalidInput, match=f"already a space 'support/{role}'"):
            change(url, _fails)
        connection.execute("SELECT sona.drop_space(%s)", (f"{SPACE}/{role}",))
    change(url, switch=False)
    connection.execute("SELECT sona.create_space(%s, 4)", (f"{SPACE}/previous",))
    with pytest.raises(InvalidInput, match="already a space 'support/previous'"):
        change(url, _fails)
    longest = "é" * 245
    for name, refused in ((longest, None), (longest + "é", "too long for what would be kept beside it")):
        connection.execute("SELECT sona.create_space(%s, 4)", (name,))
        with contextlib.nullcontext() if refused is None else pytest.raises(InvalidInput, match=refused):
            change_embedder(url, name, _fails, embedder=MODEL, dim=5)
            abort_embedder(url, name)
    assert connection.execute("SELECT count(*) FROM sona.space WHERE octet_length(name) > 480").fetchall() == [(2,)]


def test_what_retention_deletes_in_the_middle_leaves_nothing(url: str, connection: Connection) -> None:
    change(url, switch=False)
    connection.execute(
        "UPDATE sona.trajectory SET created_at = '2000-01-01' WHERE space_id = %s", (space_id(connection),)
    )
    connection.execute("SELECT sona.set_retention(%s, '1 year')", (SPACE,))
    worker = worker_of(url)
    learn_all(worker)
    while connection.execute("SELECT sona.apply_retention(%s)", (SPACE,)).fetchall() != [(0,)]:
        pass
    assert change(url).is_switched
    learn_all(worker)
    worker.close()
    here = space_id(connection)
    for table in ("trajectory", "trajectory_step", "score", "remembered_query"):
        assert connection.execute(f"SELECT count(*) FROM sona.{table} WHERE space_id = %s", (here,)).fetchall() == [
            (0,)
        ], table


def test_a_user_is_forgotten_on_both_sides_of_a_change(url: str, connection: Connection) -> None:
    theirs = "SELECT count(*) FROM sona.trajectory WHERE user_id = %s"
    change(url, switch=False)
    with open_engine(url) as engine:
        assert engine.forget("user 2").trajectories == len(range(2, EVENTS, 5))
    assert connection.execute(theirs, ("user 2",)).fetchall() == [(0,)]
    assert change(url).is_switched
    assert inconsistencies(connection, space_id(connection)) == []
    with open_engine(url) as engine:
        assert engine.forget("user 3").trajectories == len(range(3, EVENTS, 5))
    assert connection.execute(theirs, ("user 3",)).fetchall() == [(0,)]
    assert inconsistencies(connection, space_id(connection)) == []
    assert inconsistencies(connection, space_id(connection, f"{SPACE}/previous")) == []


def test_whoever_has_not_seen_the_switch_forgets_nobody(
    url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = (
        "SELECT s.name, count(*) FROM sona.trajectory t JOIN sona.space s USING (space_id) WHERE user_id = %s"
        " GROUP BY 1 ORDER BY 1"
    )
    theirs, old = len(range(3, EVENTS, 5)), open_engine(url)
    change(url, switch=False)

    def beside(store: SpaceStore, user_id: str, *, accept_lost: bool) -> None:
        forget_beside(store, user_id, accept_lost=accept_lost)
        assert change(url).is_switched  # between the two steps of forgetting

    monkeypatch.setattr("sona_pg.engine.learn.forget_beside", beside)
    with open_engine(url) as engine, pytest.raises(EmbedderMismatch, match="connect again, and forget"):
        engine.forget("user 3")
    monkeypatch.undo()
    with pytest.raises(EmbedderMismatch, match="connect again, and forget"):
        old.forget("user 3")
    old.close()
    assert connection.execute(where, ("user 3",)).fetchall() == [(SPACE, theirs), (f"{SPACE}/previous", theirs)]
    for name in (SPACE, f"{SPACE}/previous"):
        assert inconsistencies(connection, space_id(connection, name)) == []
    with open_engine(url) as engine:
        assert engine.forget("user 3").trajectories == theirs
    assert connection.execute(where, ("user 3",)).fetchall() == []


def test_what_makes_no_sense_is_refused_with_the_way_out(url: str, connection: Connection) -> None:
    with pytest.raises(ConfigError, match="belongs to the embedder 'model a' already"):
        change(url, embedder=OLD, dim=DIM, embedding_column="embedding")
    with pytest.raises(InvalidInput, match="embed them with the new model in another column"):
        change(url, embedding_column=None)
    with pytest.raises(InvalidInput, match="in another column, or there is no way back"):
        change(url, dim=DIM, embedding_column="embedding")
    with pytest.raises(DimensionMismatch, match="24 dimensions, expected 20"):
        change(url, dim=20)
    with pytest.raises(ConfigError, match="rank 8, the new embedder 4"):
        change(url, dim=4)
    with pytest.raises(ConfigError, match="expected a whole number"):
        change(url, dim=0)
    with pytest.raises(InvalidInput, match="expected a function"):
        change(url, None)
    assert connection.execute("SELECT name FROM sona.space").fetchall() == [(SPACE,)]
    for end in (finish_embedder, abort_embedder):
        with pytest.raises(ConfigError, match="is not changing its embedder"):
            end(url, SPACE)
    change(url, switch=False)
    with pytest.raises(EmbedderMismatch, match="is changing to the embedder 'model b' of 24 dimensions, not to"):
        change(url, embedder="model c")
    with pytest.raises(ConfigError, match="has not changed its embedder yet"):
        finish_embedder(url, SPACE)
    with pytest.raises(EmbedderMismatch, match="kept beside another"):
        SonaEngine.connect(url, space=f"{SPACE}/next", background=False)
    with pytest.raises(ConfigError, match="kept beside another"):
        change_embedder(url, f"{SPACE}/next", embedded, embedder="x", dim=3)
    other_items = ({"embedding_column": "wrong"}, {"items": "public.elsewhere"}, {"id_column": "number"})
    for other in other_items:
        with pytest.raises(EmbedderMismatch, match=r"would mix two models: .*re-embed support --abort"):
            change(url, **other)
    assert change(url, embedding_column=None, switch=False).embedded == 0
    change(url, items="public.items", id_column="id")
    for other in other_items:
        with pytest.raises(EmbedderMismatch, match="would mix two models"):
            change(url, **other)
    assert change(url, embedding_column=None).is_switched
    with pytest.raises(EmbedderMismatch, match="has changed to the embedder 'model b'"):
        change(url, embedder="model c")
    with pytest.raises(EmbedderMismatch, match="belongs to the embedder 'model b', not to 'model a'"):
        open_engine(url, embedder=OLD)


def test_a_space_is_deleted_in_the_order_in_which_a_switch_locks(url: str, connection: Connection) -> None:
    change(url, switch=False)
    space, successor = get_space(connection, SPACE), get_space(connection, f"{SPACE}/next")
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE d.datname = current_database()"
        " AND locktype IN ('tuple', 'advisory') AND pid <> pg_backend_pid()"
    )

    def drop() -> None:
        with connect(url) as other, translated():
            other.execute("SELECT sona.drop_space(%s)", (SPACE,))

    with connect(url) as switching, ThreadPoolExecutor(1) as pool:
        with switching.transaction():
            lock_space(switching, space)
            dropping = pool.submit(drop)
            while connection.execute(waiting).fetchall() == [(0,)]:
                time.sleep(0.01)
            time.sleep(0.2)
            lock_space(switching, successor)
            exchange(switching, space, successor)
        with pytest.raises(DatabaseBusy, match="changed the embedder of space 'support' meanwhile: delete it again"):
            dropping.result()
    drop()
    assert connection.execute("SELECT name FROM sona.space").fetchall() == []


def test_whoever_may_learn_in_the_space_may_change_it_and_its_grants_stay(
    url: str, server_url: str, connection: Connection
) -> None:
    login = f"sona_mover_{uuid.uuid4().hex[:8]}"
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE sona_worker").format(sql.Identifier(login)))
    try:
        connection.execute("SELECT sona.grant_space(%s, 'sona_worker')", (SPACE,))
        connection.execute("SELECT sona.grant_space(%s, 'sona_reader', false)", (SPACE,))
        connection.execute(sql.SQL("GRANT SELECT ON public.items TO {}").format(sql.Identifier(login)))
        grants = "SELECT role_name, may_write FROM sona.space_grant WHERE space_id = %s ORDER BY 1"
        before = connection.execute(grants, (space_id(connection),)).fetchall()
        theirs = make_conninfo(url, user=login)
        report = change(theirs)
        assert (report.is_switched, report.changed, report.missing) == (True, 0, 0)
        assert connection.execute(grants, (space_id(connection),)).fetchall() == before
        abort_embedder(theirs, SPACE)
        assert connection.execute(grants, (space_id(connection),)).fetchall() == before
        assert change(theirs).is_switched
        finish_embedder(theirs, SPACE)
        assert connection.execute("SELECT name, embedder FROM sona.space").fetchall() == [(SPACE, MODEL)]
    finally:
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(login)))
            owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(login)))


def test_the_command_line_changes_goes_back_and_ends(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*options: str) -> str:
        return CliRunner().invoke(app, ["space", "re-embed", SPACE, *options], catch_exceptions=False).output

    (tmp_path / "mine.py").write_text("from db.two_models import embedded\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SONA_DATABASE_URL", url)
    asked = ("--embedder", MODEL, "--dim", str(NEW), "--embedding-column", "new", "--with")
    assert "'model b' answers in 'support'" in run(*asked, "mine:embedded", "--batch", "50")
    assert "'support' is with the old model" in run("--abort")
    assert json.loads(run(*asked, "mine:embedded", "--no-switch", "--json"))["embedded"] == EVENTS + 1
    assert json.loads(run(*asked, "mine:embedded", "--json"))["is_switched"]
    assert "the old model of 'support' is given up" in run("--finish")
    (tmp_path / "keyless.py").write_text("import os\nKEY = os.environ['NO_SUCH_KEY']\n")
    (tmp_path / "ends.py").write_text("raise SystemExit('no model')\n")
    for name, says in (
        ("nowhere:embed", "cannot be imported"),
        ("mine", "no function"),
        ("keyless:embed", r"cannot be imported \(KeyError: 'NO_SUCH_KEY'\)"),
        ("ends:embed", "cannot be imported .*no model"),
    ):
        with pytest.raises(ConfigError, match=says):
            run(*asked, name)
    for end in ("--finish", "--abort"):
        for options in (("--embedding-column", "x"), ("--batch", "256"), ("--no-switch",), ("--json",), ("--dim", "3")):
            says = f"--finish and --abort end a change, each of them alone, without {options[0]}"
            assert says in " ".join(run(end, *options).split())
    assert "each of them alone" in run("--finish", "--abort")
    assert "--accept-lost goes with --finish or --abort" in run(*asked, "mine:embedded", "--accept-lost")
    assert "a change needs --embedder" in run("--dim", "3")
