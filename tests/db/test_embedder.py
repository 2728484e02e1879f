"""A space changes its embedder: what it has learned comes along, and nothing is lost or doubled on the way."""

from __future__ import annotations

import contextlib
import signal
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from acceptance.audit import inconsistencies

from sona_pg import (
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
    abort_embedder,
    change_embedder,
    finish_embedder,
    steps,
)
from sona_pg.config import SCHEMA_REVISION
from sona_pg.steps import EMBEDDER
from sona_pg.store import database
from sona_pg.store.connection import Connection, connect
from sona_pg.store.migrate import migrate
from sona_pg.types import TrajectoryBuilder

from .two_models import (
    BATCHES,
    DIM,
    EMBEDDINGS,
    EVENTS,
    MODEL,
    NEW,
    OLD,
    RELABELLING,
    ROTATION,
    SPACE,
    Matrix,
    _fails,
    by_sql,
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
            patch.setattr(database, "current_revision", lambda *_: SCHEMA_REVISION)  # they have looked before
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
