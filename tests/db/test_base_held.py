"""What of earlier tasks a cycle learns again and what it holds, and that nothing is lost that was withheld."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sona_pg.config import BackgroundConfig, BaseTrainingConfig, BoundaryConfig, GateConfig
from sona_pg.learning import base_cycle
from sona_pg.learning.base_cycle import BaseConfig, Hour
from sona_pg.learning.base_tasks import BaseTask
from sona_pg.learning.learner import is_withheld
from sona_pg.loops.background import background_loop
from sona_pg.loops.cycle import Loop
from sona_pg.store.base import BaseTransaction, base_reader
from sona_pg.store.connection import Connection
from tests.db.cycles import run_cycle

from .base_worlds import DIM, RANK, World, _became, _hours
from .base_worlds import connection as connection

HERE, THERE, ELSEWHERE = 1.5 * np.eye(DIM)[20], -1.5 * np.eye(DIM)[21], 1.5 * np.eye(DIM)[22]


def _loop(reservoir: int, *, withheld: float = 0.2, window: int = 2048, decides: bool = True) -> Loop:
    # Everything is published, if there is but something to judge by; or nothing, and nothing passes for noise.
    return background_loop(
        BackgroundConfig(minimum=1),
        base=BaseConfig(
            training=BaseTrainingConfig(rank=RANK, reservoir=reservoir),
            gate=GateConfig(withheld, related_z=0.0, losing_z=10.0, min_events=2 if decides else 1_000_000),
            boundary=BoundaryConfig(window=window),
        ),
    )


@pytest.fixture
def world(module_url: str, connection: Connection, space_name: str) -> Iterator[World]:
    made = World(module_url, space_name)
    yield made
    made.engine.close()


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> list[Hour]:
    """What cycles begin with."""
    return _hours(monkeypatch)


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[set[uuid.UUID]]:
    """What candidates are trained on."""
    found: list[set[uuid.UUID]] = []
    train = base_cycle.train_base

    def watched(start: object, lists: list[Any], **others: object) -> object:
        found.append({one.key[0] for one in lists})
        return train(start, lists, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(base_cycle, "train_base", watched)
    return found


def _two_tasks(world: World, loop: Loop) -> dict[str, Any]:
    """One that has ended, and another one at hand."""
    for moved, events in ((HERE, 200), (THERE, 100), (THERE, 60)):
        world.moved = moved
        world.teach(events)
        facts = world.cycle(loop)
    return facts


def _state(connection: Connection, world: World, *columns: str) -> tuple[Any, ...]:
    rows = connection.execute(
        f"SELECT {', '.join(columns)} FROM sona.base_state WHERE space_id = %s",  # type: ignore[arg-type]
        (world.engine.space.space_id,),
    )
    return rows.fetchall()[0]


def _offered(connection: Connection, world: World) -> int:
    return int(_state(connection, world, "offered")[0])


def test_what_retention_has_deleted_is_held_for_it_is_not_replayed(
    world: World, connection: Connection, hours: list[Hour]
) -> None:
    loop = _loop(100, decides=False)
    facts = _two_tasks(world, loop)
    assert facts["tasks_held"] == 1
    before = hours[-1].replayed
    offered = _offered(connection, world)
    assert offered == len(_became(connection, world, "adapter"))
    gone = [id for (id,) in connection.execute(
        "SELECT trajectory_id FROM sona.learning_event WHERE space_id = %s AND ordinal < 200",
        (world.engine.space.space_id,),
    )]  # fmt: skip
    for table in ("trajectory", "trajectory_step"):
        connection.execute(
            f"DELETE FROM sona.{table} WHERE space_id = %s AND trajectory_id = ANY(%s)",  # type: ignore[arg-type]
            (world.engine.space.space_id, gone),
        )
    for _ in range(2):
        world.teach(20)
        assert world.cycle(loop)["tasks_held"] == 1
        assert hours[-1].replayed < before
        assert hours[-1].replayed == len(hours[-1].earlier) / offered
        offered = _offered(connection, world)


def test_a_larger_reservoir_replays_no_more_than_it_has(world: World, hours: list[Hour]) -> None:
    _two_tasks(world, _loop(60, decides=False))
    world.teach(30)
    assert world.cycle(_loop(4096, decides=False))["tasks_held"] == 1
    assert hours[-1].replayed < 0.5


def test_late_outcomes_are_not_counted_as_lists(world: World, connection: Connection, hours: list[Hour]) -> None:
    loop = _loop(200)
    world.teach(100)
    world.cycle(loop)
    for item in ("150", "151"):
        for id in _became(connection, world, "adapter")[:100]:
            world.engine.score(id, 1.0, item)
        world.engine.flush()
    seen: list[int] = []
    for _ in range(2):
        world.teach(1)
        world.cycle(loop)
        seen.append(_offered(connection, world))
    assert hours[-2].replayed == hours[-1].replayed == 1.0
    # What is withheld is offered once it judges.
    assert 100 <= seen[0] <= 101
    assert seen[0] <= seen[1] <= 102


def test_a_late_outcome_of_an_earlier_task_is_no_query_of_the_task_at_hand(
    world: World, connection: Connection, hours: list[Hour]
) -> None:
    loop = _loop(400, decides=False)
    world.moved = HERE
    world.teach(150)
    world.cycle(loop)
    early = _became(connection, world, "adapter")
    world.moved = THERE
    world.teach(150)
    world.cycle(loop)
    since = hours[-1].traffic.since
    assert since >= 150
    for id in early:
        world.engine.score(id, 1.0, "150")
    world.engine.flush()
    world.teach(1)
    facts = world.cycle(loop)
    late = [one.ordinal for one in hours[-1].new if one.judged.key[0] in early]
    assert len(late) == sum(not is_withheld(id, 0.2) for id in early)
    assert set(late) <= set(range(150))
    assert (facts["tasks_ended"], hours[-1].traffic.since) == (0, since)


def test_what_a_base_needed_that_was_undone_is_known_again_and_not_held(world: World, connection: Connection) -> None:
    loop = _loop(200, decides=False)
    world.moved = HERE
    world.teach(20)
    version = world.engine.instant.publish("before")
    assert _two_tasks(world, loop)["tasks_held"] == 1
    offered = _offered(connection, world)
    world.engine.deploy(str(version))
    world.engine.flush()
    world.teach(30)
    assert world.cycle(loop)["tasks_held"] == 0
    # A deploy forgets nothing of what was offered.
    assert _offered(connection, world) > offered
    world.moved = HERE
    world.teach(150)
    facts = world.cycle(loop)
    assert facts["tasks_ended"] == 1
    # The one that has ended under the base at hand is held.
    assert facts["tasks_held"] == 1
    epochs = dict(
        connection.execute(
            "SELECT snapshot_id, f.epoch = l.epoch FROM sona.fisher_snapshot f JOIN sona.learner l USING (space_id)"
            " WHERE space_id = %s",
            (world.engine.space.space_id,),
        ).fetchall()
    )
    assert sorted(epochs.values()) == [False, True]
    world.moved = THERE
    world.teach(150)
    world.cycle(loop)
    with base_reader(connection, world.engine.space) as reader:
        tasks, _ = reader.tasks(reader.state().head.epoch)
    found = [(task.id, task.times_met, task.is_held) for task in tasks]
    assert found == [(2, 1, True), (1, 2, True)]


def _task(id: int) -> BaseTask:
    frame = np.eye(2, DIM, dtype=np.float32)
    return BaseTask(id, np.eye(DIM, dtype=np.float32)[id], frame, frame, frame, 3, 0.5)


def test_tasks_are_in_the_order_in_which_they_ended(
    world: World, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.teach(20)
    world.cycle()

    def ended(tasks: list[BaseTask], most: int = 100) -> list[int]:
        """In one transaction; the tasks that are remembered then."""

        class Ends:
            def __init__(self, transaction: BaseTransaction) -> None:
                write(transaction, tasks, 1.0, most)

        with monkeypatch.context() as patched:
            write = BaseTransaction.write_tasks
            patched.setattr(BaseTransaction, "write_tasks", lambda own, *_: Ends(own))
            world.teach(5)
            world.cycle()
        with base_reader(connection, world.engine.space) as reader:
            return [task.id for task in reader.tasks(0)[0]]

    assert ended([_task(1)]) == [1]
    assert ended([_task(1), _task(2)]) == [1, 2]
    assert ended([_task(1), _task(3)], most=2) == [1, 3]


def test_the_id_of_a_snapshot_that_cannot_be_read_is_not_given_again(world: World, connection: Connection) -> None:
    loop = _loop(400, decides=False)
    world.moved = HERE
    world.teach(150)
    world.cycle(loop)
    connection.execute(
        "INSERT INTO sona.fisher_snapshot (space_id, snapshot_id, signature, layout, kind, fisher, anchor, lambda,"
        " samples, quality) VALUES (%s, 7, %s, 'something else', 'empirical', 'ab', 'abcd', 1, 1, 0.5)",
        (world.engine.space.space_id, world.ask(0)),
    )
    world.moved = THERE
    world.teach(150)
    assert world.cycle(loop)["tasks_ended"] == 1
    rows = connection.execute(
        "SELECT snapshot_id, layout = 'something else' FROM sona.fisher_snapshot WHERE space_id = %s ORDER BY 1",
        (world.engine.space.space_id,),
    ).fetchall()
    assert rows == [(7, True), (8, False)]


@pytest.mark.parametrize("cause", ["settings", "damage"])
def test_traffic_that_is_watched_anew_begins_where_it_is(
    world: World, connection: Connection, hours: list[Hour], cause: str
) -> None:
    loop = _loop(400, decides=False)
    world.moved = HERE
    world.teach(150)
    world.cycle(loop)
    if cause == "settings":
        loop = _loop(400, window=1024, decides=False)
    else:
        connection.execute("UPDATE sona.base_state SET state = 'damaged'")
    # Of the task that was there before nothing is known any more: this one is none of it.
    world.moved = THERE
    world.teach(150)
    assert world.cycle(loop)["tasks_ended"] == 0
    assert hours[-1].traffic.since == 150
    world.moved = ELSEWHERE
    world.teach(150)
    assert world.cycle(loop)["tasks_ended"] == 1
    ((signature, samples),) = connection.execute(
        "SELECT signature, samples FROM sona.fisher_snapshot WHERE space_id = %s", (world.engine.space.space_id,)
    ).fetchall()
    assert abs(signature[20]) < 0.2 < -signature[21]
    assert samples <= 170


def test_what_has_judged_is_learned_until_it_is_published(
    world: World, connection: Connection, taught: list[set[uuid.UUID]]
) -> None:
    loop = _loop(20)
    world.teach(60)
    world.cycle(loop)
    world.teach(60)
    withheld = set(_became(connection, world, "withheld"))
    assert world.cycle(loop)["withheld"] == len(withheld)
    # Cycles that publish nothing, since there is nothing to judge by.
    for _ in range(2):
        world.teach(20)
        connection.execute(
            "UPDATE sona.learning_event SET learned = 'no outcome' WHERE space_id = %s AND learned = 'withheld'"
            " AND ordinal >= 120",
            (world.engine.space.space_id,),
        )
        assert world.cycle(loop)["base"] == "kept"
        assert withheld <= taught[-1]
    world.teach(60)
    assert world.cycle(loop)["base"] == "published"
    assert withheld <= taught[-1]
    world.teach(60)
    world.cycle(loop)
    assert not withheld <= taught[-1]


def test_of_noise_nothing_is_learned_and_what_has_judged_before_is(
    world: World, connection: Connection, taught: list[set[uuid.UUID]]
) -> None:
    noisy = background_loop(
        BackgroundConfig(minimum=1),
        base=BaseConfig(
            training=BaseTrainingConfig(rank=RANK, reservoir=200), gate=GateConfig(withheld=0.2, losing_z=10.0)
        ),
    )
    world.teach(200)
    world.cycle(noisy)
    world.teach(200)
    assert world.cycle(noisy)["base"] == "published"
    good = set(_became(connection, world, "withheld"))
    world.teach(200, shuffled=True)
    assert world.cycle(noisy)["base_reason"] == "outcomes have nothing to do with queries"
    noise = set(_became(connection, world, "withheld")) - good
    # As people see it: of noise nothing waits.
    rows = connection.execute("SELECT withheld FROM sona.status WHERE space = %s", (world.engine.space.name,))
    assert rows.fetchall() == [(len(good),)]
    world.teach(200)
    assert world.cycle(noisy)["base"] == "published"
    assert good <= taught[-1]
    assert not noise & taught[-1]


@pytest.mark.parametrize("judged", [False, True], ids=["waits to judge", "has judged"])
def test_who_withholds_nothing_any_more_has_learned_all_that_was_withheld(
    world: World, connection: Connection, judged: bool
) -> None:
    world.teach(60)
    world.cycle(_loop(100))
    world.teach(60)
    if judged:
        assert world.cycle(_loop(100))["base"] == "published"
    withheld = _became(connection, world, "withheld")
    assert len(withheld) > 3
    before, base = world.learner(), world.learner().adapter.base
    facts = world.cycle(_loop(100, withheld=0.0))
    # No base is published that nothing has judged.
    assert (facts["base"], facts["taught"]) == ("kept", len(withheld))
    after = world.learner()
    assert after.events == before.events + len(withheld)
    assert after.adapter.steps == before.adapter.steps + len(withheld)
    assert (after.adapter.base is None) == (base is None)
    assert base is None or np.array_equal(base.weights, after.adapter.base.weights)  # type: ignore[union-attr]
    ((events, waiting),) = connection.execute(
        "SELECT events_learned, withheld FROM sona.status WHERE space = %s", (world.engine.space.name,)
    ).fetchall()
    assert (events, waiting) == (after.events, 0)
    # The strategist goes on with it, and nothing is learned twice.
    while world.engine.evidence.advance():
        pass
    query = world.ask(2)
    world.engine.evidence.refresh()
    own = world.engine.evidence.served.proven
    assert np.abs(own.adapt(query) - after.serving().adapt(query)).max() < 1e-5
    world.teach(10)
    assert world.cycle(_loop(100, withheld=0.0))["taught"] == 0
    assert world.learner().events == after.events + 10


@pytest.mark.parametrize("is_there", [True, False], ids=["there", "deleted"])
def test_who_withholds_nothing_any_more_does_so_though_nothing_is_new(
    world: World, connection: Connection, is_there: bool
) -> None:
    world.teach(60)
    world.cycle(_loop(100))
    if not is_there:
        # What waits is gone, too.
        world.teach(30)
        connection.execute("DELETE FROM sona.trajectory WHERE space_id = %s", (world.engine.space.space_id,))
    assert world.learner().withheld_share == 0.2
    world.cycle(_loop(100, withheld=0.0))
    assert world.learner().withheld_share == 0.0
    found = run_cycle(world.url, world.engine.space.name, _loop(100, withheld=0.0))
    assert found.state == "skipped"


def test_who_is_forgotten_was_never_offered(world: World, connection: Connection) -> None:
    world.teach(60)
    world.teach(5, user="u")
    world.cycle(_loop(100))
    assert _offered(connection, world) == 65
    world.engine.forget("u")
    assert _offered(connection, world) == 0
    world.cycle(_loop(100))
    assert _offered(connection, world) == 60
