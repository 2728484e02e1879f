"""A user is forgotten: what is left is, bit for bit, a space that has never seen them; or nothing has changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from acceptance.audit import inconsistencies, replayed
from acceptance.weighing import weighed
from numpy.typing import NDArray
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sona_pg import (
    DatabaseBusy,
    ForgetReport,
    IncompleteLedger,
    InvalidInput,
    PermissionDenied,
    SonaEngine,
    SpaceConfig,
    StoreConfig,
    StrategyConfig,
    UnknownVersion,
)
from sona_pg.config import EvidenceConfig
from sona_pg.ids import new_trajectory_id
from sona_pg.learning.lift import CONTROL, LEARNED, LiftTest, is_control
from sona_pg.steps import ENV_KILL_AT, FORGET
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from sona_pg.store.spool import Spool
from sona_pg.types import Answer, QueryTrajectory, Score, TrajectoryBuilder, TrajectoryStep
from sona_pg.worker import InstantWorker

from .conftest import DIM
from .test_cli import sona

QUESTIONS, EVENTS, SHARE = 12, 400, 0.3
USERS = ("ann", "bob", "cid", "dan", "eve")

Matrix = NDArray[np.float32]


class Stream:
    """Events of several users, of every kind, the same whoever is left out."""

    def __init__(self, embeddings: Matrix, events: int = EVENTS) -> None:
        rng = np.random.default_rng(5)
        self._embeddings = embeddings
        self._topics = rng.standard_normal((QUESTIONS, DIM))
        near = embeddings @ self._topics.T
        self._answers = [int(np.argsort(-near[:, q])[rng.integers(1, 8)]) for q in range(QUESTIONS)]
        self.ids = [new_trajectory_id() for _ in range(events)]

    def user(self, event: int) -> str:
        return USERS[event // 3 % len(USERS)]

    def play(self, engine: SonaEngine, worker: InstantWorker, connection: Connection, without: str = "") -> None:
        """Record all events but those of a user, in the same transactions whether they are left out or not."""
        for event in range(len(self.ids)):
            if self.user(event) != without:
                self._record(engine, connection, event)
            if event % 5 == 4:
                for late in range(event - 24, event - 19):
                    if late >= 0 and self.user(late) != without:
                        self._score(engine, connection, late)
                engine.instant.flush_updates()
                while worker.step():
                    pass
            if event % 40 == 39:
                engine.flush()
        engine.flush()

    def _query(self, event: int) -> tuple[Matrix, str, list[str]]:
        question = event % QUESTIONS
        noise = np.random.default_rng(event).standard_normal(DIM)
        query = (self._topics[question] + 0.3 * noise).astype(np.float32)
        shown = [str(item) for item in np.argsort(-self._embeddings @ query)[:5]]
        return query, str(self._answers[question]), shown

    def _record(self, engine: SonaEngine, connection: Connection, event: int) -> None:
        id, user, kind = self.ids[event], self.user(event), event % 10
        query, answer, shown = self._query(event)
        control = is_control(id, SHARE)
        how = Answer(CONTROL if control else LEARNED, 0, "frozen" if control else "fusion", SHARE if control else 0.7)
        if kind == 8:  # steps that are no items teach the micro-LoRA
            builder = TrajectoryBuilder(id, query)
            for reward in (1.0, 0.25, 0.0):
                builder.add_step(np.random.default_rng(1000 + event).standard_normal(DIM), [0.5], reward)
            engine.record(builder, user_id=user)
            return
        rewards: dict[str, float | None] = {answer: 1.0, shown[1]: 0.5 if event % 7 == 0 else None}
        if kind in (3, 6):  # what helped is said later
            rewards = {shown[0]: 0.5 if kind == 3 else None}
        elif kind == 9:
            rewards = dict.fromkeys(shown, 0.0)
        if kind == 1:  # by SQL
            connection.execute(
                "SELECT sona.record(%s, %s, %s, %s, trajectory_id => %s, user_id => %s, arm => %s, propensity => %s)",
                (engine.space.name, query, shown, [rewards.get(item) for item in shown], id, user)
                + (how.arm, how.propensity),
            )
            return
        empty = np.zeros(0, dtype=np.float32)
        steps = [
            TrajectoryStep(empty, empty, rewards.get(item), 0.0, item, place)
            for place, item in enumerate(shown, start=1)
        ]
        steps += [
            TrajectoryStep(empty, empty, reward, 0.0, item, None)
            for item, reward in rewards.items()
            if item not in shown
        ]
        quality = 0.5 if event % 20 == 6 else None
        engine.record(QueryTrajectory(id, query, tuple(steps), quality, 0, user, f"session of {user}", {}, how))
        if kind == 3:
            engine.score(id, 1.0, answer, score_id=f"{event} beside")

    def _score(self, engine: SonaEngine, connection: Connection, event: int) -> None:
        id, kind = self.ids[event], event % 10
        _, answer, shown = self._query(event)
        if kind == 3:
            engine.score(id, 0.0, shown[0], score_id=f"{event} correction")
        elif kind == 6:
            engine.score(id, 0.75, answer, name="thumb", score_id=f"{event} late")
        elif kind == 1:
            connection.execute(
                "SELECT sona.score(%s, 1, %s, 'click', %s, %s)", (id, shown[2], f"{event} click", engine.space.name)
            )


@pytest.fixture
def open_space(url: str, items: tuple[str, Matrix]) -> Iterator[Callable[[str], SonaEngine]]:
    """Opens spaces over the items; the engines are closed at the end."""
    made: list[SonaEngine] = []

    def make(name: str) -> SonaEngine:
        engine = SonaEngine.connect(
            url,
            space=name,
            dim=DIM,
            background=False,
            space_config=SpaceConfig(control_share=SHARE),
            store=StoreConfig(publish_every_events=50, replay_batch=64),
            evidence=EvidenceConfig(batch=7),
        )
        engine.set_items(items[0], "id", "embedding")
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def worker(url: str) -> Iterator[InstantWorker]:
    made = InstantWorker(Database(url, StoreConfig(publish_every_events=50)))
    yield made
    assert made.failing == []
    made.close()


LEARNED_ROWS = {
    "learner": "SELECT events, ordinal, state, restored FROM sona.learner WHERE space_id = %s",
    "served_row": "SELECT tier, ordinal, down, up FROM sona.served_row WHERE space_id = %s ORDER BY 1, 2",
    "memory_edge": "SELECT kind, source, target, weight FROM sona.memory_edge WHERE space_id = %s ORDER BY 1, 2, 3",
    "learning_event": "SELECT ordinal, loop, trajectory_id, revision, learned FROM sona.learning_event"
    " WHERE space_id = %s ORDER BY 1",
    "trajectory": "SELECT trajectory_id, query, quality, user_id, session_id, metadata, arm, version, strategy,"
    " propensity FROM sona.trajectory WHERE space_id = %s ORDER BY 1",
    "trajectory_step": "SELECT trajectory_id, ordinal, item_id, position, reward, attention, activation"
    " FROM sona.trajectory_step WHERE space_id = %s ORDER BY 1, 2",
    "score": "SELECT score_id, trajectory_id, item_id, name, value, revision FROM sona.score WHERE space_id = %s"
    " ORDER BY 1",
    "pending_trajectory": "SELECT trajectory_id FROM sona.pending_trajectory WHERE space_id = %s ORDER BY 1",
    "answer_outcome": "SELECT trajectory_id, ordinal, arm, strategy, version, propensity, value, contrast, gain"
    " FROM sona.answer_outcome WHERE space_id = %s ORDER BY 1",
    "evidence": "SELECT evidence, suspected_share, restored FROM sona.strategist WHERE space_id = %s",
}
"""Beside what the strategist writes, all that a space holds but times and what numbers through."""


def _learned(connection: Connection, engine: SonaEngine) -> dict[str, Any]:
    key = (engine.space.space_id,)
    found: dict[str, Any] = {
        table: [
            [value.tobytes() if isinstance(value, np.ndarray) else value for value in row]
            for row in connection.execute(statement, key, binary=True)  # type: ignore[arg-type]
        ]
        for table, statement in LEARNED_ROWS.items()
    }
    (data,) = connection.execute("SELECT lift FROM sona.strategist WHERE space_id = %s", key).fetchall()[0]
    if data is not None:
        lift = LiftTest(StrategyConfig())
        lift.load_bytes(bytes(data))
        # Its key is the epoch, which says how often something was deployed or forgotten.
        found["lift"] = {name: part.tobytes() for name, part in lift._state().items() if name != "key"}
    return found | weighed(connection, engine.space)


def _answer(engine: SonaEngine, query: Matrix) -> list[str]:
    """What is answered where the control arm is not drawn."""
    found = engine.recall(query)
    while found.answer.arm == CONTROL:
        found = engine.recall(query)
    return [item.item_id for item in found.items]


def test_what_is_left_is_bit_for_bit_a_space_that_has_never_seen_the_user(
    open_space: Callable[[str], SonaEngine],
    worker: InstantWorker,
    connection: Connection,
    space_name: str,
    items: tuple[str, Matrix],
) -> None:
    seen, never = open_space(f"{space_name}_seen"), open_space(f"{space_name}_never")
    stream = Stream(items[1])
    stream.play(seen, worker, connection)
    stream.play(never, worker, connection, without="ann")
    before, expected = _learned(connection, seen), _learned(connection, never)
    assert {row[4] for row in expected["strategy_turn"]} >= {"fusion"}, "something is proven, or it says little"
    assert {row[4] for row in expected["learning_event"]} >= {"adapter", "micro", "no outcome"}
    assert {row[3] for row in expected["learning_event"]} >= {0, 1, 2}
    assert all(before[table] != expected[table] for table in ("learner", "memory_edge", "strategist", "lift"))
    of_ann = [id for event, id in enumerate(stream.ids) if stream.user(event) == "ann"]

    report = seen.forget("ann")

    after = _learned(connection, seen)
    for table, rows in expected.items():
        assert rows or table == "pending_trajectory", table
        assert after[table] == rows, table
    assert inconsistencies(connection, seen.space.space_id) == []
    assert (report.trajectories, report.entries) == (
        len(of_ann),
        len(before["learning_event"]) - len(expected["learning_event"]),
    )
    learner, _ = replayed(connection, seen)
    assert learner.to_bytes() == seen.instant.learner.to_bytes() == never.instant.learner.to_bytes()
    query = np.random.default_rng(9).standard_normal(DIM).astype(np.float32)
    assert _answer(seen, query) == _answer(never, query)
    assert seen.adapt(query).tobytes() == never.adapt(query).tobytes()


def test_what_becomes_of_others_follows_from_what_is_left(
    open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str
) -> None:
    ids = [new_trajectory_id() for _ in range(4)]
    engines = {who: open_space(f"{space_name}_{who}") for who in ("seen", "never")}
    learned = {}
    for who, engine in engines.items():
        # What a single step is worth is measured by the mean of those before: 0.5, before there were any.
        for id, user, reward in zip(ids, ("ann", "bob", "bob", "cid"), (1.0, 0.5, 1.0, 0.25), strict=True):
            if (who, user) != ("never", "ann"):
                builder = TrajectoryBuilder(id, np.ones(DIM))
                builder.add_step(np.random.default_rng(id.int % 997).standard_normal(DIM), None, reward)
                engine.record(builder, user_id=user)
            engine.flush()
        engine.score(ids[1], 0.25, score_id="late")
        engine.flush()
        learned[who] = _learned(connection, engine)
    became = {who: [row[4] for row in found["learning_event"]] for who, found in learned.items()}
    assert became == {
        "seen": ["micro", "micro", "micro", "micro", "no outcome"],
        "never": ["no outcome", "micro", "micro", "micro"],
    }
    report = engines["seen"].forget("ann")
    assert (report.replayed, report.changed) == (4, 2)
    assert _learned(connection, engines["seen"]) == learned["never"]
    assert inconsistencies(connection, engines["seen"].space.space_id) == []


# Nothing is left


def _some(engine: SonaEngine, users: str, rng: np.random.Generator) -> list[uuid.UUID]:
    """An event of every user, with a late score, each in a transaction of its own."""
    ids = []
    for user in users.split():
        query = rng.standard_normal(DIM).astype(np.float32)
        id = engine.record(query, ["1", "2", "3"], [1.0, 0.5, None], user_id=user)
        engine.score(id, 1.0, "3", score_id=f"score of {id}")
        engine.flush()
        ids.append(id)
    return ids


def _everything(connection: Connection, space_id: int) -> dict[str, list[str]]:
    """All rows of a space, of every table, as text."""
    tables = connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'space_id'"
        " WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind IN ('r', 'p') ORDER BY 1"
    ).fetchall()
    statement = sql.SQL("SELECT t::text FROM {} t WHERE space_id = %s ORDER BY 1")
    return {
        table: [
            row
            for (row,) in connection.execute(statement.format(sql.Identifier("sona", table)), (space_id,)).fetchall()
        ]
        for (table,) in tables
    }


def _counts(report: ForgetReport) -> dict[str, object]:
    """What a report counts, but zeros."""
    counts = {name: getattr(report, name) for name in report.__slots__ if not name.endswith("seconds")}
    return {name: value for name, value in counts.items() if value}


def test_no_row_of_any_table_names_the_user_or_what_they_asked(
    open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    engine = open_space(space_name)
    key, user = engine.space.space_id, "ann o'hara"
    kept, *ids = _some(engine, "bob", rng)
    for _ in range(3):
        query, about = rng.standard_normal(DIM).astype(np.float32), {"mail": "ann@example"}
        ids.append(engine.record(query, ["1", "2", "4"], [1.0, 1.0, None], user_id=user, metadata=about))
        engine.flush()
    ((waiting,),) = connection.execute(
        "SELECT sona.record(%s, %s, '{1}', '{1}', user_id => %s)", (space_name, np.ones(DIM, np.float32), user)
    ).fetchall()
    connection.execute("SELECT sona.score(%s, 1, '2', score_id => 'waits', space => %s)", (waiting, space_name))
    for message in (
        f"QueryTrajectory(id=1, user_id={user!r}, session_id=None) was refused",
        f"trajectory {ids[0]} was refused",
        f"trajectory {kept} of user_id='ann' was refused",
    ):
        connection.execute(
            "INSERT INTO sona.error_log (space_id, source, worker, message) VALUES (%s, 'a', 'b', %s)", (key, message)
        )
    connection.execute(
        "INSERT INTO sona.strategy_turn (space_id, ordinal, trajectory_id, before, after, reason)"
        " VALUES (%s, 2, %s, 'frozen', 'fusion', 'a test')",
        (key, ids[0]),
    )
    assert _counts(engine.forget(user)) == {
        "trajectories": 4,
        "steps": 10,
        "scores": 1,
        "pending": 2,
        "entries": 3,
        "remembered": 3,
        "outcomes": 3,
        "turns": 1,
        "errors": 2,
        "replayed": 2,
        "version": 2,
    }
    left = _everything(connection, key)
    traces = [user, "ann@example", *map(str, ids), str(waiting)]
    assert [row for rows in left.values() for row in rows if any(trace in row for trace in traces)] == []
    assert [len(left[table]) for table in ("error_log", "trajectory", "learning_event", "remembered_query")] == [
        *(1, 1, 2, 1)
    ]
    helped = connection.execute(
        "SELECT item_id, helped FROM sona.item_outcome WHERE space_id = %s ORDER BY 1", (key,)
    ).fetchall()
    assert helped == [("1", 1), ("2", 1), ("3", 1)]
    assert inconsistencies(connection, key) == []


def test_the_only_user_leaves_a_space_as_new(
    open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    engine, fresh = open_space(space_name), open_space(f"{space_name}_fresh")
    _some(engine, "ann ann ann", rng)
    report = engine.forget("ann")
    assert (report.trajectories, report.entries, report.replayed, report.edges) == (3, 6, 0, 3)
    assert _learned(connection, engine) == _learned(connection, fresh)
    _some(engine, "bob", rng)
    assert replayed(connection, engine)[0].to_bytes() == engine.instant.learner.to_bytes()


def test_what_waits_for_a_loop_is_as_much_as_before(
    open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    engine = open_space(space_name)
    _some(engine, "ann bob ann bob ann cid", rng)
    connection.execute("SELECT sona.set_schedule(%s, 'deep', amount => 3)", (space_name,))
    connection.execute("SELECT sona.run_cycle(%s, 'deep')", (space_name,))
    # One has seen all that, and another begins.
    for change in ("schedule x SET consumed", "run x SET ordinal"):
        connection.execute(
            f"UPDATE sona.loop_{change} = l.ordinal FROM sona.learner l"  # type: ignore[arg-type]
            " WHERE l.space_id = x.space_id AND l.space_id = %s",
            (engine.space.space_id,),
        )
    _some(engine, "dan dan", rng)
    state = (
        "SELECT x.waiting, r.ordinal FROM sona.schedules x JOIN sona.space s ON s.name = x.space"
        " JOIN sona.loop_run r USING (space_id) WHERE x.space = %s"
    )
    ((waiting, begun),) = connection.execute(state, (space_name,)).fetchall()
    report = engine.forget("ann")
    assert report.entries
    assert connection.execute(state, (space_name,)).fetchall() == [(waiting, begun - report.entries)]


def test_whom_the_space_does_not_know_changes_nothing(
    open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    engine = open_space(space_name)
    _some(engine, "bob bob", rng)
    before = _everything(connection, engine.space.space_id)
    assert _counts(engine.forget("nobody")) == {}
    after = _everything(connection, engine.space.space_id)
    assert before.pop("forgotten_user") == []
    assert len(after.pop("forgotten_user")) == 1, "what a spool holds of them stays out"
    assert after == before


@pytest.mark.parametrize("bad", ["", "a\0b", "a" * 501, None, 7])
def test_what_is_no_user_id_is_refused(engine: SonaEngine, bad: object) -> None:
    with pytest.raises(InvalidInput, match="user id"):
        engine.forget(bad)  # type: ignore[arg-type]


def test_who_has_taught_nothing_yet_takes_nothing_away(
    open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    engine = open_space(space_name)
    _some(engine, "bob", rng)
    learned = _learned(connection, engine)
    connection.execute(
        "SELECT sona.record(%s, %s, '{1}', '{1}', user_id => 'ann')", (space_name, np.ones(DIM, np.float32))
    )
    assert _counts(engine.forget("ann")) == {"trajectories": 1, "steps": 1, "pending": 1}
    assert _learned(connection, engine) == learned
    engine.forget("ann")
    audit = "SELECT before, after, reason FROM sona.deployments WHERE space = %s AND action = 'forget'"
    assert connection.execute(audit, (space_name,)).fetchall() == [(None, None, "forgot a user: 1 trajectories")]


# Versions


@pytest.fixture
def publishing(url: str, open_space: Callable[[str], SonaEngine], space_name: str) -> Iterator[SonaEngine]:
    """An engine that publishes a version with every flush."""
    open_space(space_name)
    store = StoreConfig(publish_every_events=1)
    with SonaEngine.connect(url, space=space_name, background=False, store=store) as made:
        yield made


def test_versions_that_had_learned_from_the_user_are_deleted_and_no_number_is_given_twice(
    publishing: SonaEngine, connection: Connection, rng: np.random.Generator
) -> None:
    key = (publishing.space.space_id,)
    _some(publishing, "bob cid ann dan", rng)
    assert [version.version for version in publishing.versions()] == [1, 2, 3, 4]
    report = publishing.forget("ann")
    assert (report.versions, report.version) == (2, 6)
    assert [(v.version, v.parent, v.cause, v.is_in_force) for v in publishing.versions()] == [
        (1, None, "2 events learned", False),
        (2, 1, "4 events learned", False),
        (5, 2, "forgot a user", False),
        (6, 5, "weighed again after forgetting", True),
    ]
    assert publishing.instant.version == 6
    rows = connection.execute("SELECT DISTINCT version FROM sona.version_row WHERE space_id = %s ORDER BY 1", key)
    assert rows.fetchall() == [(1,), (2,), (5,), (6,)]
    audit = connection.execute(
        "SELECT before, after, reason FROM sona.deployment WHERE space_id = %s AND action = 'forget'", key
    )
    assert audit.fetchall() == [("4", "5", "forgot a user: 1 trajectories")]
    with pytest.raises(UnknownVersion, match="held what was to be forgotten"):
        publishing.deploy(3)
    state = publishing.instant.learner.to_bytes()
    assert [publishing.deploy("rollback") for _ in range(2)] == [5, 2]
    assert publishing.deploy(6) == 6
    assert publishing.instant.learner.to_bytes() == state


def test_the_version_that_is_reported_brings_the_strategies_back(
    open_space: Callable[[str], SonaEngine],
    worker: InstantWorker,
    connection: Connection,
    space_name: str,
    items: tuple[str, Matrix],
    rng: np.random.Generator,
) -> None:
    engine = open_space(space_name)
    Stream(items[1]).play(engine, worker, connection)
    report = engine.forget("ann")
    held = "SELECT s.evidence, s.in_force, s.known, s.strange, s.unseen, s.weights FROM sona.{} s WHERE s.space_id = %s"
    key = engine.space.space_id
    weighed_again = connection.execute(held.format("strategist"), (key,)).fetchall()
    assert weighed_again[0][1] == "fusion", "something is proven, or it says little"
    published = held.format("adapter_version") + " AND s.version = %s AND s.weighed = s.ordinal"
    assert connection.execute(published, (key, report.version)).fetchall() == weighed_again  # type: ignore[arg-type]

    _some(engine, "bob cid dan", rng)
    engine.deploy("frozen")
    assert report.version is not None
    assert engine.deploy(report.version) == report.version
    assert connection.execute(held.format("strategist"), (key,)).fetchall() == weighed_again
    assert engine.evidence.served.strategy == "fusion"


def test_after_a_deploy_the_whole_ledger_is_learned_and_what_the_space_is_set_to_stays(
    publishing: SonaEngine, connection: Connection, rng: np.random.Generator
) -> None:
    key = (publishing.space.space_id,)
    _some(publishing, "bob ann cid", rng)
    publishing.deploy(1)
    _some(publishing, "dan", rng)
    publishing.deploy("frozen")
    publishing.forget("ann")
    learner, _ = replayed(connection, publishing)
    assert learner.events == 6
    assert learner.to_bytes() == publishing.instant.learner.to_bytes()
    rows = connection.execute("SELECT strategy, frozen_from FROM sona.space WHERE space_id = %s", key).fetchall()
    assert rows == [("frozen", "learned")]
    assert inconsistencies(connection, publishing.space.space_id) == []


# Others meanwhile


def test_other_engines_take_over_what_is_left_and_what_they_hold_is_not_lost(
    url: str, open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    engine = open_space(space_name)
    with (
        SonaEngine.connect(url, space=space_name, background=False) as idle,
        SonaEngine.connect(url, space=space_name, background=False) as busy,
    ):
        _some(engine, "bob ann cid ann", rng)
        idle.flush()
        query = rng.standard_normal(DIM).astype(np.float32)
        kept = busy.record(query, ["4", "5"], [1.0, 1.0], user_id="dan")
        gone = busy.record(query, ["4", "5"], [1.0, 1.0], user_id="ann")
        assert busy.learn() == 2
        engine.forget("ann")
        idle.flush()
        assert idle.instant.learner.to_bytes() == engine.instant.learner.to_bytes()
        assert idle.instant.version == engine.instant.version
        busy.flush()
        assert (busy.metrics.refused, busy.metrics.repeated, busy.metrics.learned) == (1, 0, 1)
        learned = connection.execute(
            "SELECT trajectory_id FROM sona.learning_event WHERE space_id = %s", (engine.space.space_id,)
        ).fetchall()
        assert ((kept,) in learned, (gone,) in learned) == (True, False)
        assert replayed(connection, busy)[0].to_bytes() == busy.instant.learner.to_bytes()
        assert inconsistencies(connection, engine.space.space_id) == []


RECORDER = """
import sys, time
import numpy as np
from sona_pg import SonaEngine, SonaError, StoreConfig
url, space = sys.argv[1:]
engine = SonaEngine.connect(url, space=space, background=False, store=StoreConfig(lock_timeout_seconds=1))
rng = np.random.default_rng(1)
for _ in range(40):
    ids = []
    for user in ("bob", "ann", "cid"):
        query = rng.standard_normal(16).astype(np.float32)
        ids.append((engine.record(query, ["1", "2", "3"], [1.0, 0.5, None], user_id=user), user))
    while True:
        try:
            engine.flush()
            break
        except SonaError:
            time.sleep(0.02)
    for id, user in ids:
        print(id, user, flush=True)
"""


def test_a_process_that_records_meanwhile_loses_nothing(
    url: str,
    open_space: Callable[[str], SonaEngine],
    worker: InstantWorker,
    connection: Connection,
    space_name: str,
    rng: np.random.Generator,
) -> None:
    engine = open_space(space_name)
    key = (engine.space.space_id,)
    _some(engine, "bob ann cid", rng)
    sent: list[tuple[uuid.UUID]] = []
    forgotten = []
    process = subprocess.Popen([sys.executable, "-c", RECORDER, url, space_name], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
        reader.start()
        while reader.is_alive():
            sent += connection.execute(
                "SELECT sona.record(%s, %s, '{1,2}', '{1,1}', user_id => 'sql')", (space_name, np.ones(DIM, np.float32))
            ).fetchall()
            forgotten.append(engine.forget("ann", wait=False).trajectories)
            worker.step()
        reader.join()
    assert process.returncode == 0
    while worker.step() + worker.weigh():
        pass
    forgotten.append(engine.forget("ann").trajectories)
    recorded = [line.split() for line in lines]
    assert len(recorded) == 120
    there = connection.execute("SELECT trajectory_id, user_id FROM sona.trajectory WHERE space_id = %s", key).fetchall()
    assert "ann" not in {user for _, user in there}
    assert {id for id, _ in there} >= {uuid.UUID(id) for id, user in recorded if user != "ann"} | {id for (id,) in sent}
    assert sum(count > 0 for count in forgotten) > 1, "they came back, and were forgotten again"
    assert inconsistencies(connection, engine.space.space_id) == []
    assert replayed(connection, engine)[0].to_bytes() == engine.instant.learner.to_bytes()


def _made(seconds_ago: int) -> uuid.UUID:
    """An id as it was given so many seconds ago."""
    return uuid.UUID(int=new_trajectory_id().int - (1000 * seconds_ago << 80))


def _says(connection: Connection, engine: SonaEngine) -> list[str]:
    rows = connection.execute("SELECT message FROM sona.errors WHERE space = %s", (engine.space.name,)).fetchall()
    return [message for (message,) in rows]


def test_what_an_sql_client_commits_after_the_rows_were_looked_for_is_dropped_before_it_is_learned(
    url: str,
    open_space: Callable[[str], SonaEngine],
    worker: InstantWorker,
    connection: Connection,
    space_name: str,
    rng: np.random.Generator,
) -> None:
    engine = open_space(space_name)
    _some(engine, "bob ann", rng)

    def record(client: Connection, user: str, id: uuid.UUID | None) -> uuid.UUID:
        ((given,),) = client.execute(
            "SELECT sona.record(%s, %s, '{1}', '{1}', user_id => %s, trajectory_id => %s)",
            (space_name, np.ones(DIM, np.float32), user, id),
        ).fetchall()
        return uuid.UUID(str(given))

    with connect(url) as late, late.transaction():
        record(late, "ann", None)
        record(late, "ann", uuid.uuid4())
        assert engine.forget("ann").trajectories == 1
    record(connection, "ann", _made(60))
    kept = {record(connection, *one) for one in (("ann", None), ("ann", uuid.uuid4()), ("bob", _made(60)))}
    while worker.step():
        pass
    rows = connection.execute(
        "SELECT trajectory_id FROM sona.learning_event WHERE space_id = %s AND ordinal >= 2", (engine.space.space_id,)
    ).fetchall()
    assert {id for (id,) in rows} == kept
    assert _says(connection, engine) == [
        "3 trajectories were dropped: whoever asked was forgotten after they had been answered"
    ]
    assert inconsistencies(connection, engine.space.space_id) == []


# The spool


def test_what_a_spool_held_of_the_user_is_dropped_and_counted_and_what_they_ask_anew_is_kept(
    open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    engine = open_space(space_name)
    key, empty = engine.space.space_id, np.zeros(0, dtype=np.float32)
    _some(engine, "bob ann", rng)

    def trajectory(id: uuid.UUID, user: str) -> QueryTrajectory:
        steps = (TrajectoryStep(empty, empty, 1.0, 0.0, "1", 1),)
        return QueryTrajectory(id, np.ones(DIM, np.float32), steps, user_id=user)

    old, timeless, others = new_trajectory_id(), uuid.uuid4(), new_trajectory_id()
    away = Spool(Path(os.environ["SONA_HOME"]) / "spool", engine.space.key)
    away.append([trajectory(old, "ann"), trajectory(timeless, "ann"), trajectory(others, "bob")])
    away.append([Score(old, 0.5, "1", "reward", "late")])
    # As long as its process lives, nobody else replays it.
    assert engine.forget("ann").trajectories == 1
    back, anew = uuid.uuid4(), new_trajectory_id()
    engine.record(trajectory(back, "ann"))
    engine.flush()
    away.append([trajectory(back, "ann"), trajectory(anew, "ann")])
    away.close()
    engine.flush()
    left = connection.execute(
        "SELECT trajectory_id FROM sona.trajectory WHERE space_id = %s AND trajectory_id = ANY(%s)",
        (key, [old, timeless, others, back, anew]),
    ).fetchall()
    assert {id for (id,) in left} == {others, back, anew}
    assert (engine.metrics.refused, engine.metrics.repeated) == (2, 1)
    assert _says(connection, engine) == [
        "2 trajectories were dropped: whoever asked was forgotten after they had been answered"
    ]
    assert inconsistencies(connection, key) == []
    assert engine.forget("ann").steps == 2
    assert replayed(connection, engine)[0].to_bytes() == engine.instant.learner.to_bytes()


def test_a_score_whose_trajectory_is_gone_waits_and_harms_nobody(
    open_space: Callable[[str], SonaEngine],
    worker: InstantWorker,
    connection: Connection,
    space_name: str,
    rng: np.random.Generator,
) -> None:
    engine = open_space(space_name)
    _, gone = _some(engine, "bob ann", rng)
    engine.forget("ann")
    learned = _learned(connection, engine)
    engine.score(gone, 1.0, "1", score_id="python")
    connection.execute("SELECT sona.score(%s, 1, '1', score_id => 'sql', space => %s)", (gone, space_name))
    engine.flush()
    worker.step()
    rows = connection.execute(
        "SELECT score_id, revision FROM sona.score WHERE space_id = %s AND trajectory_id = %s ORDER BY 1",
        (engine.space.space_id, gone),
    ).fetchall()
    assert rows == [("python", None), ("sql", None)]
    after = _learned(connection, engine)
    assert {table for table in learned if after[table] != learned[table]} == {"score"}


# Refused, or killed


def test_a_role_that_may_not_learn_is_refused_and_nothing_changes(
    url: str,
    role: Callable[..., str],
    open_space: Callable[[str], SonaEngine],
    connection: Connection,
    space_name: str,
    rng: np.random.Generator,
    items: tuple[str, Matrix],
) -> None:
    engine = open_space(space_name)
    _some(engine, "bob ann", rng)
    logins = {kind: role(f"forget_{kind}", f"sona_{kind}") for kind in ("reader", "app", "worker")}
    for kind, login in logins.items():
        connection.execute("SELECT sona.grant_space(%s, %s, %s)", (space_name, login, kind == "app"))
        connection.execute(f"GRANT SELECT ON {items[0]} TO {login}")
    before = _everything(connection, engine.space.space_id)
    for login in logins.values():
        with (
            SonaEngine.connect(make_conninfo(url, user=login), space=space_name, background=False) as other,
            pytest.raises(PermissionDenied),
        ):
            other.forget("ann")
    assert _everything(connection, engine.space.space_id) == before
    connection.execute("SELECT sona.grant_space(%s, %s)", (space_name, logins["worker"]))
    with SonaEngine.connect(make_conninfo(url, user=logins["worker"]), space=space_name, background=False) as may:
        assert may.forget("ann").trajectories == 1
    assert inconsistencies(connection, engine.space.space_id) == []


def test_a_space_that_is_held_is_refused_after_a_while_and_nothing_changes(
    url: str, open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    engine = open_space(space_name)
    key = engine.space.space_id
    _some(engine, "bob ann", rng)
    before = _everything(connection, key)
    impatient = StoreConfig(lock_timeout_seconds=1)
    with SonaEngine.connect(url, space=space_name, background=False, store=impatient) as other, connect(url) as holder:
        with holder.transaction():
            holder.execute("SELECT FROM sona.strategist WHERE space_id = %s FOR UPDATE", (key,))
            with pytest.raises(DatabaseBusy):
                other.forget("ann")
        assert _everything(connection, key) == before
        assert other.forget("ann").trajectories == 1


@pytest.mark.parametrize("step", FORGET)
def test_killed_at_any_step_it_has_forgotten_all_or_nothing(
    step: str,
    url: str,
    open_space: Callable[[str], SonaEngine],
    worker: InstantWorker,
    connection: Connection,
    space_name: str,
    rng: np.random.Generator,
) -> None:
    engine = open_space(space_name)
    key = engine.space.space_id
    _some(engine, "bob ann cid ann dan", rng)
    before = _everything(connection, key)
    killed = sona("forget", space_name, "ann", "--yes", url=url, **{ENV_KILL_AT: step})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # Its lock goes with its connection, which the server gives up a moment later.
    connection.execute("SELECT sona._lock_learner(%s)", (key,))
    after = _everything(connection, key)
    if step == "forget.after_commit":
        assert [len(after[table]) for table in ("trajectory", "learning_event", "remembered_query")] == [3, 6, 0]
        while worker.weigh():
            pass
        engine.flush()
    else:
        assert after == before
        assert engine.forget("ann").trajectories == 2
    assert inconsistencies(connection, key) == []
    assert connection.execute("SELECT unweighed FROM sona.status WHERE space = %s", (space_name,)).fetchall() == [(0,)]
    assert replayed(connection, engine)[0].to_bytes() == engine.instant.learner.to_bytes()


@pytest.mark.parametrize(
    ("kept", "says", "left"),
    [
        (("90 days", None), "1 trajectories of the ledger .*, and the steps of 0 others", ["cid", "cid"]),
        ((None, "90 days"), "0 trajectories of the ledger .*, and the steps of 1 others", ["bob", "bob", "cid", "cid"]),
    ],
)
def test_what_retention_has_deleted_is_lost_only_if_that_is_accepted(
    kept: tuple[str | None, str | None],
    says: str,
    left: list[str],
    open_space: Callable[[str], SonaEngine],
    connection: Connection,
    space_name: str,
    rng: np.random.Generator,
) -> None:
    engine = open_space(space_name)
    key = engine.space.space_id
    first, *_ = _some(engine, "bob ann cid", rng)
    connection.execute(
        "UPDATE sona.trajectory SET created_at = now() - interval '100 days'"
        " WHERE space_id = %s AND trajectory_id = %s",
        (key, first),
    )
    connection.execute("SELECT sona.set_retention(%s, %s::interval, %s::interval)", (space_name, *kept))
    assert connection.execute("SELECT sona.apply_retention(%s)", (space_name,)).fetchall() == [(1,)]
    before = _everything(connection, key)
    with pytest.raises(IncompleteLedger, match=says):
        engine.forget("ann")
    assert _everything(connection, key) == before
    report = engine.forget("ann", accept_lost=True)
    assert (report.trajectories, report.lost) == (1, 1)
    rows = connection.execute(
        "SELECT user_id FROM sona.learning_event JOIN sona.trajectory USING (space_id, trajectory_id)"
        " WHERE space_id = %s ORDER BY ordinal",
        (key,),
    ).fetchall()
    assert [user for (user,) in rows] == left
    assert inconsistencies(connection, key) == []
    assert replayed(connection, engine)[0].to_bytes() == engine.instant.learner.to_bytes()


def test_steps_that_retention_has_deleted_stay_lost_whatever_it_is_set_to_later(
    open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    engine = open_space(space_name)
    key = engine.space.space_id
    # Nothing came of it: by its ledger entry alone it may as well have been recorded without steps.
    engine.record(rng.standard_normal(DIM).astype(np.float32), ["1", "2"], user_id="bob")
    engine.flush()
    connection.execute(
        "UPDATE sona.trajectory SET created_at = now() - interval '100 days' WHERE space_id = %s", (key,)
    )
    _some(engine, "ann", rng)
    marks = []
    for kept in ("90 days", None, "120 days"):
        connection.execute("SELECT sona.set_retention(%s, steps => %s::interval)", (space_name, kept))
        connection.execute("SELECT sona.apply_retention(%s)", (space_name,))
        marks += connection.execute("SELECT steps_lost_before FROM sona.space WHERE space_id = %s", (key,)).fetchall()
    assert marks[0][0] is not None
    assert marks == [marks[0]] * 3
    with pytest.raises(IncompleteLedger, match="the steps of 1 others"):
        engine.forget("ann")
    assert engine.forget("ann", accept_lost=True).lost == 1


# The command


def test_the_command_asks_first_and_says_what_is_gone(
    url: str, open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    engine = open_space(space_name)
    _some(engine, "bob ann", rng)
    before = _everything(connection, engine.space.space_id)
    asked = sona("forget", space_name, "ann", url=url)
    assert asked.returncode == 1
    assert "for good?" in asked.stderr
    assert _everything(connection, engine.space.space_id) == before
    done = sona("forget", space_name, "ann", "--yes", "--json", url=url)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["trajectories"], found["steps"], found["entries"], found["version"]) == (1, 3, 2, 2)
    again = sona("forget", space_name, "ann", "--yes", url=url)
    assert (again.returncode, again.stdout) == (0, f"space {space_name!r} knows no user 'ann': nothing was changed\n")
    missing = sona("forget", "no such space", "ann", "--yes", url=url)
    assert missing.returncode == 1
    assert "no such space" in missing.stderr
