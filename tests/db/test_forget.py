"""A user is forgotten: what is left is, bit for bit, a space that has never seen them; or nothing has changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from acceptance.audit import inconsistencies, replayed

from sona_pg import ForgetReport, InvalidInput, SonaEngine
from sona_pg.ids import new_trajectory_id
from sona_pg.learning.lift import CONTROL
from sona_pg.store.connection import Connection
from sona_pg.types import TrajectoryBuilder
from sona_pg.worker import InstantWorker

from .conftest import DIM
from .forgetting import Matrix, Stream, _everything, _learned, _some
from .forgetting import open_space as open_space
from .forgetting import worker as worker


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
