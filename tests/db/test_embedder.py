"""A space changes its embedder: what it has learned comes along, nothing is lost, and there is a way back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psycopg
import pytest
from acceptance.audit import inconsistencies
from acceptance.weighing import weighed
from click.testing import CliRunner
from numpy.typing import NDArray
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sona_pg import (
    ConfigError,
    DatabaseBusy,
    DimensionMismatch,
    EmbedderError,
    EmbedderMismatch,
    EmbedderReport,
    IncompleteLedger,
    InvalidInput,
    LockLost,
    RecordedQuery,
    SchemaMismatch,
    SonaEngine,
    SonaError,
    SpaceConfig,
    StoreConfig,
    StrategyConfig,
    UnknownVersion,
    abort_embedder,
    change_embedder,
    finish_embedder,
    steps,
)
from sona_pg.cli.app import app
from sona_pg.config import SCHEMA_REVISION
from sona_pg.loops.forget import forget_beside
from sona_pg.loops.space_store import SpaceStore
from sona_pg.steps import EMBEDDER
from sona_pg.store import database
from sona_pg.store.connection import Connection, connect, translated
from sona_pg.store.database import Database
from sona_pg.store.embedder_change import exchange
from sona_pg.store.migrate import migrate
from sona_pg.store.spaces import get_space, lock_space
from sona_pg.types import TrajectoryBuilder
from sona_pg.worker import InstantWorker

DIM, NEW = 16, 24
ITEMS, TOPICS, EVENTS = 60, 8, 90
SPACE, OLD, MODEL = "support", "model a", "model b"
BATCHES = StoreConfig(embed_batch=20, replay_batch=30)

Matrix = NDArray[np.float32]


def _unit(rows: Matrix) -> Matrix:
    unit: Matrix = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return unit


_RNG = np.random.default_rng(3)
EMBEDDINGS = _unit(_RNG.standard_normal((ITEMS, DIM)).astype(np.float32))
CENTRES = _RNG.standard_normal((TOPICS, DIM))
ANSWERS = _RNG.integers(0, ITEMS, TOPICS)
PLACES, SIGNS = _RNG.permutation(NEW)[:DIM], _RNG.choice([-1, 1], DIM)
ROTATION = np.linalg.qr(_RNG.standard_normal((NEW, NEW)))[0][:DIM].astype(np.float32)
"""Any map (dim, new dim) that keeps all cosines."""
RELABELLING = np.zeros((DIM, NEW), dtype=np.float32)
"""One that names the components anew, turns some round and adds empty ones: to Adam they are the same numbers."""
RELABELLING[np.arange(DIM), PLACES] = SIGNS


def query_of(event: int) -> Matrix:
    noise = np.random.default_rng(event).standard_normal(DIM)
    return _unit(CENTRES[event % TOPICS] + 0.4 * noise).astype(np.float32)


def embedded(queries: Sequence[RecordedQuery]) -> list[Matrix | None]:
    """Embed by what the application has recorded with a query, as it does that keeps its texts."""
    assert all(query.metadata is not None for query in queries)
    return [query_of(query.metadata["n"]) @ ROTATION for query in queries]  # type: ignore[operator, index]


def record(engine: SonaEngine, event: int, **how: object) -> uuid.UUID:
    query = query_of(event)
    shown = [str(item) for item in np.argsort(-EMBEDDINGS @ query)[:5]]
    answer = str(ANSWERS[event % TOPICS])
    rewards = {shown[0]: 0.0, answer: 1.0} if event % 6 else {shown[1]: 0.25}
    id = engine.record(query, shown, rewards, metadata={"n": event}, user_id=f"user {event % 5}", **how)  # type: ignore[arg-type]
    if event % 6 == 0:
        engine.score(id, 1.0, answer, score_id=f"late {event}")
    return id


def by_sql(connection: Connection, event: int) -> None:
    connection.execute(
        "SELECT sona.record(%s, %s, %s, '{1}', metadata => %s)",
        (SPACE, query_of(event), [str(ANSWERS[event % TOPICS])], f'{{"n": {event}}}'),
    )


def open_engine(url: str, **options: object) -> SonaEngine:
    return SonaEngine.connect(url, space=SPACE, background=False, **options)  # type: ignore[arg-type]


def change(url: str, embed: object = embedded, **options: object) -> EmbedderReport:
    given = {"embedder": MODEL, "dim": NEW, "embedding_column": "new", "store": BATCHES}
    return change_embedder(url, SPACE, embed, **(given | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def filled(make_database: Callable[[], str]) -> str:
    """A database with a space that has learned, to be copied."""
    url = make_database()
    migrate(url)
    with connect(url) as connection:
        connection.execute(
            f"CREATE TABLE public.items (id integer PRIMARY KEY, embedding vector({DIM}), new vector({NEW}))"
        )
        for number, vector in enumerate(EMBEDDINGS):
            connection.execute("INSERT INTO public.items VALUES (%s, %s, %s)", (number, vector, vector @ ROTATION))
        engine = open_engine(
            url,
            dim=DIM,
            embedder=OLD,
            space_config=SpaceConfig(control_share=0.0),
            strategy=StrategyConfig(sanity_events=20),
            store=StoreConfig(publish_every_events=40),
        )
        with engine:
            engine.set_items("public.items", "id", "embedding", filter_columns=["id"])
            for event in range(EVENTS):
                record(engine, event)
                if event % 10 == 9:
                    engine.flush()
            by_sql(connection, EVENTS)
            engine.instant.learn_recorded(10)
            engine.flush()
            connection.execute("SELECT sona.add_memory_node(%s, 'item', '1', %s)", (SPACE, EMBEDDINGS[1]))
    return url


@pytest.fixture
def copied(filled: str, server_url: str) -> Iterator[Callable[[], str]]:
    """Makes copies of that database, the same to the last id."""
    made: list[sql.Identifier] = []
    template = str(conninfo_to_dict(filled)["dbname"])

    def copy() -> str:
        name = f"{template}_{uuid.uuid4().hex[:8]}"
        made.append(sql.Identifier(name))
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(made[-1], sql.Identifier(template))
            )
        return make_conninfo(server_url, dbname=name)

    yield copy
    with psycopg.connect(server_url, autocommit=True) as connection:
        for name in made:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
def url(copied: Callable[[], str]) -> str:
    return copied()


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    with connect(url) as made:
        yield made


def worker_of(url: str) -> InstantWorker:
    return InstantWorker(Database(url, StoreConfig(), Path(os.environ["SONA_HOME"])))


def learn_all(worker: InstantWorker) -> None:
    while worker.step() + worker.weigh():
        pass


_TABLES = {
    "space": "name, dim, embedder, strategy, standby_of, replaced_at IS NULL",
    "item_sample": "ordinal, item_id, embedding",
    "trajectory": "trajectory_id, created_at, query, quality, user_id, metadata, arm, version, strategy",
    "trajectory_step": "trajectory_id, ordinal, item_id, position, reward, attention, activation",
    "score": "score_id, trajectory_id, item_id, name, value, revision",
    "learner": "version, events, ordinal, state, settings",
    "served_row": "tier, ordinal, down, up",
    "learning_event": "trajectory_id, revision, cycle_id, ordinal, learned",
    "learning_cycle": "cycle_id, events, learned, version",
    "adapter_version": "version, parent, events, ordinal, cause, state, evidence, weighed",
    "pending_trajectory": "trajectory_id",
    "memory_edge": "kind, source, target, weight",
    "memory_node": "node_id, kind, key, embedding",
}


def everything(connection: Connection, name: str = SPACE) -> dict[str, object]:
    """All of a space but times and what is numbered through."""
    ((space_id,),) = connection.execute("SELECT space_id FROM sona.space WHERE name = %s", (name,)).fetchall()
    rows = {
        table: sorted(
            repr([value.tobytes() if isinstance(value, np.ndarray) else value for value in row])
            for row in connection.execute(
                f"SELECT {columns} FROM sona.{table} WHERE space_id = %s", (space_id,), binary=True
            )
        )
        for table, columns in _TABLES.items()
    }
    return rows | weighed(connection, get_space(connection, name))


def gains(connection: Connection) -> dict[str, float]:
    rows = connection.execute(
        "SELECT e.strategy, e.gain FROM sona.strategy_evidence e JOIN sona.space s USING (space_id) WHERE s.name = %s",
        (SPACE,),
    ).fetchall()
    return dict(rows)


def test_what_was_learned_comes_along_to_another_dimension(url: str, connection: Connection) -> None:
    connection.execute("UPDATE public.items SET new = NULL")
    for number, vector in enumerate(EMBEDDINGS):
        connection.execute("UPDATE public.items SET new = %s WHERE id = %s", (vector @ RELABELLING, number))
    asked = np.stack([query_of(event) for event in range(1000, 1040)])
    with open_engine(url) as engine:
        before, learned = engine.instant.serving.adapt(asked), engine.instant.learner.events
    evidence, version = (
        gains(connection),
        connection.execute("SELECT max(version) FROM sona.adapter_version").fetchall(),
    )

    def relabelled(queries: Sequence[RecordedQuery]) -> list[Matrix]:
        return [query.query @ RELABELLING for query in queries]

    report = change(url, relabelled)
    assert (report.is_switched, report.embedded, report.declined, report.missing) == (True, EVENTS + 1, 0, 0)
    assert (report.changed, report.version) == (0, version[0][0] + 1)
    with open_engine(url, embedder=MODEL, dim=NEW) as engine:
        assert engine.space.embedder == MODEL
        assert engine.instant.learner.events == learned > 50
        after = engine.instant.serving.adapt(asked @ RELABELLING)
        assert np.abs(before - asked).max() > 0.05  # there is something to take along
        np.testing.assert_allclose(after, before @ RELABELLING, atol=1e-4)
        found = [item.item_id for item in engine.recall(asked[0] @ RELABELLING).items]
        assert len(found) == 10
        assert engine.versions()[0].cause == "changed the embedder"
    assert evidence == pytest.approx(gains(connection), abs=1e-6)
    assert max(evidence.values()) > 0.02
    assert inconsistencies(connection, space_id(connection)) == []


def space_id(connection: Connection, name: str = SPACE) -> int:
    ((found,),) = connection.execute("SELECT space_id FROM sona.space WHERE name = %s", (name,)).fetchall()
    return int(found)


def test_a_rotation_changes_the_lift_no_more_than_the_optimiser_s_axes_do(url: str, connection: Connection) -> None:
    before = gains(connection)
    assert change(url).is_switched
    after = gains(connection)
    assert set(after) == set(before)
    for strategy, gain in before.items():
        assert after[strategy] == pytest.approx(gain, abs=0.05), strategy


def _killed_at(aim: str, url: str) -> None:
    steps._act = steps._killer(aim)
    change(url)


def test_killed_at_every_step_it_goes_on_to_the_same_end(
    url: str, copied: Callable[[], str], connection: Connection
) -> None:
    straight = copied()
    change(straight)
    with connect(straight) as other:
        expected = everything(other)
    prepared, queries, embedding, entries, relearning, *switching = EMBEDDER
    # Five batches are to be embedded, four to be learned again.
    for aim in (prepared, queries, f"{queries}:3", embedding, entries, f"{entries}:2", relearning, *switching):
        child = get_context("fork").Process(target=_killed_at, args=(aim, url))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL, aim
        moved = aim == "embedder.after_commit"
        assert connection.execute("SELECT embedder FROM sona.space WHERE name = %s", (SPACE,)).fetchall() == [
            (MODEL if moved else OLD,)
        ]
    assert everything(connection) == expected
    assert change(url).carried == 0
    assert everything(connection) == expected


def test_a_schema_that_is_migrated_meanwhile_is_refused_in_every_phase(
    url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the code of one revision has computed is not written into another; afterwards it goes on."""

    def migrated(revision: str) -> None:
        connection.execute("UPDATE sona.alembic_version SET version_num = %s", (revision,))

    def refused_after(aim: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(steps, "_act", lambda name: migrated("9999") if name == aim else None)
            with pytest.raises(SchemaMismatch, match="revision 9999"):
                change(url)

    def everything_is_refused() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(database, "current_revision", lambda _: SCHEMA_REVISION)  # they have looked before
            for begun in (change, lambda url: abort_embedder(url, SPACE), lambda url: finish_embedder(url, SPACE)):
                with pytest.raises(SchemaMismatch, match="revision 9999"):
                    begun(url)
        migrated(SCHEMA_REVISION)

    prepared, *filling = EMBEDDER[: EMBEDDER.index("embedder.after_lock")]
    for aim in (prepared, *filling):
        refused_after(aim)
        everything_is_refused()
    assert change(url).is_switched
    refused_after(prepared)  # there it carries over what came late
    everything_is_refused()
    assert change(url).carried == 0


def test_what_is_recorded_meanwhile_and_late_is_neither_lost_nor_doubled(url: str, connection: Connection) -> None:
    worker = worker_of(url)
    engine, asked = open_engine(url), 0
    by_sql(connection, 300)
    learn_all(worker)  # its loops are open

    def busy(queries: Sequence[RecordedQuery]) -> list[Matrix | None]:
        nonlocal asked
        asked += 1
        if asked < 5:
            record(engine, 200 + asked)
            engine.flush()
            by_sql(connection, 400 + asked)
            if asked == 3:
                learn_all(worker)
        return embedded(queries)

    assert change(url, busy).is_switched
    total = EVENTS + 2 + 4 + 4
    here = "SELECT count(*) FROM sona.trajectory t JOIN sona.space s USING (space_id) WHERE s.name = %s"
    assert connection.execute(here, (SPACE,)).fetchall() == [(total,)]
    learn_all(worker)
    waits = "SELECT pending, unweighed FROM sona.status WHERE space = %s"
    assert connection.execute(waits, (SPACE,)).fetchall() == [(0, 0)]
    assert inconsistencies(connection, space_id(connection)) == []
    # A process that has not seen the switch: what it records is kept, and then it is told.
    late = record(engine, 500)
    engine.flush()
    for refused in (lambda: record(engine, 501), lambda: engine.recall(query_of(1)), lambda: engine.adapt(query_of(1))):
        with pytest.raises(EmbedderMismatch, match="embed with that one and connect again"):
            refused()
    engine.close()
    with pytest.raises(IncompleteLedger, match="1 trajectories were recorded with the embedder before"):
        finish_embedder(url, SPACE)
    connection.execute(
        "SELECT sona.score(%s, 1, '3', score_id => 'of the old', space => %s)", (late, f"{SPACE}/previous")
    )
    learn_all(worker)
    report = change(url)
    assert (report.is_switched, report.carried, report.carried_scores) == (True, 1, 1)
    learn_all(worker)
    assert connection.execute(waits, (SPACE,)).fetchall() == [(0, 0)]
    assert connection.execute(here, (SPACE,)).fetchall() == [(total + 1,)]
    assert inconsistencies(connection, space_id(connection)) == []
    assert (change(url).carried, change(url).carried_scores) == (0, 0)
    finish_embedder(url, SPACE)
    assert connection.execute("SELECT name FROM sona.space").fetchall() == [(SPACE,)]
    with open_engine(url, embedder=MODEL) as engine:
        engine.record(query_of(600) @ ROTATION, ["1"], [1.0])
        engine.flush()
    worker.close()


def _fails(queries: Sequence[RecordedQuery]) -> list[Matrix]:
    raise OSError("the model does not answer")


FAILURES: list[tuple[Callable[[Sequence[RecordedQuery]], object], type[Exception], str]] = [
    (_fails, EmbedderError, "failed with OSError: the model does not answer: nothing of this batch"),
    (lambda queries: [np.full(NEW, np.nan)] * len(queries), InvalidInput, "query of trajectory .*(NaN|finite)"),
    (lambda queries: [query.query for query in queries], DimensionMismatch, "16 dimensions, expected 24"),
    (lambda queries: embedded(queries)[1:], EmbedderError, "asked for 20 embeddings and gave 19"),
    (lambda _: None, EmbedderError, "failed with TypeError"),
    (lambda queries: ["no vector"] * len(queries), InvalidInput, "query of trajectory"),
]


def test_a_callback_that_fails_changes_nothing_and_the_next_run_goes_on(url: str, connection: Connection) -> None:
    before = everything(connection)
    for embed, error, says in FAILURES:
        asked: list[uuid.UUID] = []

        def fails(queries: Sequence[RecordedQuery], embed: object = embed, asked: list[uuid.UUID] = asked) -> object:
            asked += [query.trajectory_id for query in queries]
            return embed(queries) if len(asked) > 20 else embedded(queries)  # type: ignore[operator]

        with pytest.raises(error, match=says):
            change(url, fails)
        assert everything(connection) == before
        assert change(url, switch=False).embedded == EVENTS + 1 - BATCHES.embed_batch
        assert everything(connection) == before
        abort_embedder(url, SPACE)
    assert everything(connection) == before


def test_what_cannot_be_embedded_stays_in_the_ledger_and_teaches_nothing(
    url: str, copied: Callable[[], str], connection: Connection
) -> None:
    def forgetful(queries: Sequence[RecordedQuery]) -> list[Matrix | None]:
        return [vector if q.user_id != "user 1" else None for q, vector in zip(queries, embedded(queries), strict=True)]

    report = change(url, forgetful, switch=False)
    mine = len(range(1, EVENTS, 5))
    assert (report.declined, report.embedded, report.is_switched) == (mine, EVENTS + 1 - mine, False)
    assert report.missing >= mine
    # What can be embedded after all is learned in its place in the order.
    assert change(url, switch=False).embedded == mine
    report = change(url)
    assert (report.embedded, report.missing, report.is_switched) == (0, 0, True)
    straight = copied()
    change(straight)
    with connect(straight) as other:
        assert everything(connection) == everything(other)
    abort_embedder(url, SPACE)
    report = change(url, forgetful)
    assert (report.declined, report.is_switched) == (mine, True)
    ledger = connection.execute(
        "SELECT count(*) FROM sona.learning_event e WHERE e.space_id = %s AND e.revision = 0 AND NOT EXISTS ("
        "SELECT FROM sona.trajectory t WHERE t.space_id = e.space_id AND t.trajectory_id = e.trajectory_id)",
        (space_id(connection),),
    ).fetchall()
    assert ledger == [(mine,)]
    finish_embedder(url, SPACE)


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


def test_the_smallest_id_is_embedded_like_any_other(url: str, connection: Connection) -> None:
    nil = uuid.UUID(int=0)
    connection.execute(
        "SELECT sona.record(%s, %s, '{3}', '{1}', trajectory_id => %s, metadata => '{\"n\": 5}')",
        (SPACE, query_of(5), nil),
    )
    report = change(url, switch=False)
    assert (report.embedded, report.missing) == (EVENTS + 2, 0)
    assert change(url).embedded == 0
    finish_embedder(url, SPACE)
    assert connection.execute("SELECT space_id FROM sona.trajectory WHERE trajectory_id = %s", (nil,)).fetchall() == [
        (space_id(connection),)
    ]


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


def test_items_that_no_table_has_are_embedded_by_a_callback(url: str, connection: Connection) -> None:
    name = "without a table"
    with SonaEngine.connect(url, space=name, dim=DIM, background=False) as engine:
        for event in range(20):
            builder = TrajectoryBuilder(None, query_of(event))
            builder.add_step(EMBEDDINGS[event], reward=1.0, item_id=str(event))
            builder.add_step(EMBEDDINGS[event + 1], reward=0.0, item_id=str(event + 1))
            builder.add_step(EMBEDDINGS[event + 2], reward=0.5)
            engine.record(builder, metadata={"n": event})
        engine.flush()
        learned = engine.instant.learner.events
    given = {"embedder": MODEL, "dim": NEW, "store": BATCHES}
    bare = change_embedder(url, name, embedded, switch=False, **given)  # type: ignore[arg-type]
    assert (bare.dropped_steps, bare.changed) == (20, 20)
    abort_embedder(url, name)
    report = change_embedder(
        url,
        name,
        embedded,
        embed_items=lambda ids: [EMBEDDINGS[int(id)] @ ROTATION for id in ids],
        **given,  # type: ignore[arg-type]
    )
    assert (report.is_switched, report.changed) == (True, 0)
    with SonaEngine.connect(url, space=name, background=False) as engine:
        assert engine.instant.learner.events == learned == 20


def test_two_at_once_come_to_the_end_that_one_comes_to(
    url: str, copied: Callable[[], str], connection: Connection
) -> None:
    straight = copied()
    change(straight)
    begin = threading.Barrier(2, timeout=60)

    def together(queries: Sequence[RecordedQuery]) -> list[Matrix | None]:
        with contextlib.suppress(threading.BrokenBarrierError):
            begin.wait(0.2)
        return embedded(queries)

    def run(_: int) -> EmbedderReport | LockLost:
        try:
            return change(url, together)
        except LockLost as lost:
            return lost

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(run, range(2)))
    assert [end.is_switched for end in ends if isinstance(end, EmbedderReport)][:1] == [True], ends
    with connect(straight) as other:
        assert everything(connection) == everything(other)


def test_items_without_a_new_embedding_are_counted_and_a_dropped_space_leaves_nothing(
    url: str, connection: Connection
) -> None:
    connection.execute("UPDATE public.items SET new = NULL WHERE id < 7")
    assert change(url, switch=False).bare_items == 7
    with pytest.raises(SonaError, match=r"is changing its embedder.*--finish"):
        migrate(url, revision="0009")
    connection.execute("SELECT sona.drop_space(%s)", (SPACE,))
    assert connection.execute("SELECT name FROM sona.space").fetchall() == []
    assert migrate(url, revision="0009") == "0009"


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
            lock_space(switching, space, 10)
            dropping = pool.submit(drop)
            while connection.execute(waiting).fetchall() == [(0,)]:
                time.sleep(0.01)
            time.sleep(0.2)
            lock_space(switching, successor, 10)
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

    (tmp_path / "mine.py").write_text("from db.test_embedder import embedded\n")
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
