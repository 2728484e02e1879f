"""A user is forgotten while versions, other engines, other processes and spools still hold what they taught."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from acceptance.audit import inconsistencies, replayed

from sona_pg import SonaEngine, StoreConfig, UnknownVersion
from sona_pg.ids import new_trajectory_id
from sona_pg.store.connection import Connection, connect
from sona_pg.store.spool import Spool
from sona_pg.types import QueryTrajectory, Score, TrajectoryStep
from sona_pg.worker import InstantWorker

from .conftest import DIM
from .forgetting import Matrix, Stream, _learned, _some
from .forgetting import open_space as open_space
from .forgetting import worker as worker

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
