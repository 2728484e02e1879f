"""Loop B's base: what the instant tier learned becomes part of it, and only what does not lose is published."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from heapq import nsmallest
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest

from sona_pg import SonaEngine, StoreConfig
from sona_pg.config import BackgroundConfig, BaseTrainingConfig, GateConfig, WorkerConfig
from sona_pg.doctor import Verdict, examine
from sona_pg.learning import base_cycle
from sona_pg.learning.base_cycle import BaseConfig
from sona_pg.learning.judged_list import reservoir_sample
from sona_pg.learning.learner import is_withheld
from sona_pg.loops.background import background_loop
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.store import base as base_store
from sona_pg.store.base import base_reader
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from sona_pg.store.health import left_withheld
from sona_pg.store.migrate import migrate

from .base_worlds import DIM, LOOP, RANK, World, _meanwhile, _tables
from .base_worlds import connection as connection
from .command_line import sona


@pytest.fixture
def world(module_url: str, connection: Connection, space_name: str) -> Iterator[World]:
    made = World(module_url, space_name)
    yield made
    made.engine.close()


def test_the_first_cycle_only_begins_to_withhold(world: World, connection: Connection) -> None:
    world.teach(100)
    query = world.ask(0)
    before = world.engine.adapt(query).tobytes()
    facts = world.cycle()
    assert (facts["base"], facts["base_reason"]) == ("kept", "no withheld event has an outcome")
    world.engine.flush()
    assert world.engine.adapt(query).tobytes() == before
    world.teach(100)
    learned = dict(
        connection.execute(
            "SELECT trajectory_id, learned FROM sona.learning_event e JOIN sona.space s USING (space_id)"
            " WHERE s.name = %s AND e.ordinal >= 100",
            (world.engine.space.name,),
        ).fetchall()
    )
    assert {id for id, became in learned.items() if became == "withheld"} == {
        id for id in learned if is_withheld(id, 0.2)
    }
    assert 5 <= sum(became == "withheld" for became in learned.values()) <= 40


def test_what_was_learned_becomes_part_of_the_base_and_is_published(world: World, connection: Connection) -> None:
    frozen = world.quality()
    world.teach(100)
    world.cycle()
    world.teach(200)
    learned = world.quality()
    facts = world.cycle()
    assert (facts["base"], facts["base_reason"]) == ("published", "does not lose")
    assert facts["withheld"] >= 20
    world.engine.flush()
    published = world.quality()
    assert published > frozen + 0.1, (frozen, learned, published)
    assert published > learned - 0.03, (frozen, learned, published)
    learner = world.learner()
    assert learner.adapter.base is not None
    assert learner.adapter.base.rank == RANK
    assert learner.adapter.steps == 0
    assert learner.micro.is_zero
    rows = connection.execute(
        "SELECT version, cause FROM sona.versions(%s) ORDER BY version DESC LIMIT 1", (world.engine.space.name,)
    ).fetchall()
    assert rows[0][0] == facts["base_version"]
    assert rows[0][1].startswith("base: ")
    # SQL answers by it as Python does.
    query = world.ask(3)
    found = connection.execute("SELECT sona.adapt(%s, %s)", (world.engine.space.name, query)).fetchall()[0][0]
    assert np.abs(found - world.engine.adapt(query)).max() < 1e-5
    # And learning goes on, on top of it.
    world.teach(60)
    assert world.learner().adapter.steps > 0
    assert world.learner().adapter.base is not None
    assert world.quality() > published - 0.05


def test_what_comes_during_a_cycle_is_learned_on_the_new_base(
    world: World, module_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.teach(100)
    world.cycle()
    world.teach(200)
    _meanwhile(monkeypatch, lambda: world.teach(30))
    facts = world.cycle()
    assert facts["base"] == "published"
    after = world.learner()
    assert 15 <= after.adapter.steps <= 30
    # As if it had come afterwards, bit for bit.
    monkeypatch.undo()
    assert after.adapter.base is not None
    again = after.anew(after.pool)
    again.adapter.stand_on(after.adapter.base)
    again.withheld_share = 0.2
    with connect(module_url) as connection:
        from sona_pg.store.ledger import ledger_events

        for entry in ledger_events(connection, world.engine.space, 300, 1000):
            assert entry.event is not None
            again.learn(entry.event)
    assert np.array_equal(again.adapter.trained.weights, after.adapter.trained.weights)


def test_a_poisoned_hour_is_refused_and_stays_out_of_the_reservoir(world: World, connection: Connection) -> None:
    world.teach(200)
    world.cycle()
    world.teach(200)
    assert world.cycle()["base"] == "published"
    before = world.learner().adapter.base
    world.teach(200, shuffled=True)
    facts = world.cycle()
    assert (facts["base"], facts["base_reason"]) == ("kept", "outcomes have nothing to do with queries")
    after = world.learner().adapter.base
    assert before is not None
    assert after is not None
    assert np.array_equal(before.weights, after.weights)
    ((held,),) = connection.execute(
        "SELECT count(*) FROM sona.base_state b JOIN sona.learning_event e ON e.space_id = b.space_id"
        " AND e.trajectory_id = ANY(b.reservoir) JOIN sona.space s ON s.space_id = b.space_id"
        " WHERE s.name = %s AND e.ordinal >= 400",
        (world.engine.space.name,),
    ).fetchall()
    assert held == 0


def test_a_deploy_during_a_cycle_wins(world: World, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    world.teach(100)
    world.cycle()
    world.teach(200)
    version = world.engine.instant.publish("by hand")
    _meanwhile(monkeypatch, lambda: world.engine.deploy(str(version)))
    connection.execute("SELECT sona.run_cycle(%s, 'background')", (world.engine.space.name,))
    coordinator = LoopCoordinator(Database(world.url, StoreConfig()), LOOP, WorkerConfig())
    assert coordinator.step() == 0
    monkeypatch.undo()
    assert world.learner().adapter.base is None
    # What was read before belongs to what is gone; the next worker reads anew.
    assert coordinator.step() == 1
    coordinator.close()


def test_a_version_from_before_the_base_brings_back_what_answered_then(world: World) -> None:
    world.teach(100)
    world.cycle()
    world.teach(100)
    query = world.ask(1)
    before = world.engine.adapt(query)
    version = world.engine.instant.publish("before the base")
    world.teach(100)
    facts = world.cycle()
    assert facts["base"] == "published"
    world.engine.flush()
    with_base = world.engine.adapt(query)
    assert not np.array_equal(with_base, before)
    world.engine.deploy(str(version))
    world.engine.flush()
    assert world.engine.adapt(query).tobytes() == before.tobytes()
    world.engine.deploy(str(facts["base_version"]))
    world.engine.flush()
    assert world.engine.adapt(query).tobytes() == with_base.tobytes()


def test_who_is_forgotten_takes_the_base_along_until_it_is_learned_anew(world: World, connection: Connection) -> None:
    world.teach(100)
    world.cycle()
    world.teach(200)
    world.teach(10, user="u")
    assert world.cycle()["base"] == "published"
    world.engine.forget("u")
    assert world.learner().adapter.base is None
    rows = connection.execute(
        "SELECT b.consumed, b.judged, b.version, b.reservoir, g.base_version FROM sona.base_state b"
        " JOIN sona.strategist g USING (space_id) JOIN sona.space s USING (space_id) WHERE s.name = %s",
        (world.engine.space.name,),
    ).fetchall()
    assert rows == [(0, 0, None, [], None)]
    assert world.learner().events == 300
    world.cycle()
    world.teach(100)
    facts = world.cycle()
    assert facts["base"] == "published", repr(dict(facts))
    world.engine.flush()
    assert world.quality() > 0.15


def test_the_strategist_goes_on_with_the_base(world: World, connection: Connection) -> None:
    world.teach(100)
    world.cycle()
    world.teach(200)
    facts = world.cycle()
    ((adopted,),) = connection.execute(
        "SELECT base_version FROM sona.strategist g JOIN sona.space s USING (space_id) WHERE s.name = %s",
        (world.engine.space.name,),
    ).fetchall()
    assert adopted is None
    world.engine.evidence.advance()
    rows = connection.execute(
        "SELECT g.base_version, count(w.ordinal) FROM sona.strategist g JOIN sona.space s USING (space_id)"
        " JOIN sona.served_row w ON w.space_id = s.space_id AND w.tier = 'proven' WHERE s.name = %s GROUP BY 1",
        (world.engine.space.name,),
    ).fetchall()
    assert rows == [(facts["base_version"], RANK + world.engine.instant.adapter_config.rank)]
    world.teach(20)
    own, learner = world.engine.evidence.served.proven, world.learner()
    query = world.ask(2)
    world.engine.evidence.refresh()
    own = world.engine.evidence.served.proven
    assert np.abs(own.adapt(query) - learner.serving().adapt(query)).max() < 1e-5


def test_a_space_that_teaches_no_items_has_no_base(module_url: str, connection: Connection, space_name: str) -> None:
    with SonaEngine.connect(module_url, space=space_name, dim=4, background=False) as engine:
        for _ in range(20):
            engine.record(np.ones(4), ["a"], quality=0.5)
        engine.flush()
        connection.execute("SELECT sona.run_cycle(%s, 'background')", (space_name,))
        coordinator = LoopCoordinator(Database(module_url, StoreConfig()), LOOP, WorkerConfig())
        assert coordinator.step() == 1
        coordinator.close()
        ((state, facts),) = connection.execute(
            "SELECT state, facts FROM sona.runs WHERE space = %s", (space_name,)
        ).fetchall()
        assert state == "done"
        assert facts["base"] == "kept"


def test_a_table_of_items_that_is_gone_stops_no_cycle(world: World, connection: Connection) -> None:
    world.teach(60)
    connection.execute(psycopg.sql.SQL("DROP TABLE {}").format(psycopg.sql.SQL(f"public.base_{next(_tables) - 1}")))
    assert world.cycle()["base"] == "kept"


def _snapshots(connection: Connection, world: World) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT snapshot_id, times_met, samples, kind, quality FROM sona.fisher_snapshot f"
        " JOIN sona.space s USING (space_id) WHERE s.name = %s ORDER BY 1",
        (world.engine.space.name,),
    ).fetchall()


def test_a_task_that_ends_is_remembered_and_known_again_when_it_comes_back(
    world: World, connection: Connection
) -> None:
    # What is replayed need not be held.
    small = background_loop(
        BackgroundConfig(minimum=1),
        base=BaseConfig(training=BaseTrainingConfig(rank=RANK, reservoir=100), gate=GateConfig(0.2, losing_z=4.0)),
    )
    here, there = 1.5 * np.eye(DIM)[20], -1.5 * np.eye(DIM)[21]
    world.moved = here
    world.teach(150)
    assert world.cycle(small)["tasks_ended"] == 0
    world.teach(100)
    world.cycle(small)
    world.moved = there
    world.teach(150)
    facts = world.cycle(small)
    assert (facts["tasks_ended"], facts["tasks_held"]) == (1, 1)
    ((id, times_met, samples, kind, quality),) = _snapshots(connection, world)
    # As people see it.
    seen = connection.execute(
        "SELECT decision, reason, withheld, tasks_ended, tasks_held, ewc_lambda > 0 FROM sona.forgetting"
        " WHERE space = %s ORDER BY run_id DESC LIMIT 1",
        (world.engine.space.name,),
    ).fetchall()
    assert seen == [(facts["base"], facts["base_reason"], facts["withheld"], 1, 1, True)]
    ((nearest, size),) = connection.execute(
        "SELECT task, bytes FROM sona.tasks WHERE space = %s ORDER BY signature <=> %s LIMIT 1",
        (world.engine.space.name, world.ask(0)),
    ).fetchall()
    assert (nearest, size) == (1, 3 * 4 * RANK * DIM)
    assert (id, times_met, kind) == (1, 1, "empirical")
    assert 20 <= samples <= 260
    assert 0 < quality <= 1
    world.moved = here
    world.teach(150)
    facts = world.cycle(small)
    # The other one has ended by now, and what is at hand is no stranger: it is not held against itself.
    assert (facts["tasks_ended"], facts["tasks_held"]) == (1, 1)
    assert [row[:2] for row in _snapshots(connection, world)] == [(1, 1), (2, 1)]
    world.moved = there
    world.teach(150)
    world.cycle(small)
    assert [row[:2] for row in _snapshots(connection, world)] == [(1, 2), (2, 1)]


def test_a_snapshot_of_another_layout_is_left_aside_and_stated(world: World, connection: Connection) -> None:
    world.teach(100)
    world.cycle()
    connection.execute(
        "INSERT INTO sona.fisher_snapshot (space_id, snapshot_id, signature, layout, kind, fisher, anchor, lambda,"
        " samples, quality) VALUES (%s, 7, %s, 'something else', 'empirical', 'ab', 'abcd', 1, 1, 0.5)",
        (world.engine.space.space_id, world.ask(0)),
    )
    world.teach(100)
    facts = world.cycle()
    (refused,) = facts["tasks_refused"]
    assert "snapshot 7" in refused
    assert "something else" in refused
    assert facts["base"] == "published"


def test_what_was_withheld_is_learned_by_the_cycle_after_the_one_that_judged_by_it(
    world: World, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[set[object]] = []
    train = base_cycle.train_base

    def watched(start: object, lists: list[Any], **others: object) -> object:
        learned.append({one.key[0] for one in lists})
        return train(start, lists, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(base_cycle, "train_base", watched)
    small = background_loop(
        BackgroundConfig(minimum=1),
        base=BaseConfig(
            training=BaseTrainingConfig(rank=RANK, reservoir=20), gate=GateConfig(0.2, related_z=0.0, losing_z=10.0)
        ),
    )
    world.teach(60)
    world.cycle(small)
    world.teach(60)
    rows = connection.execute(
        "SELECT trajectory_id FROM sona.learning_event e JOIN sona.space s USING (space_id)"
        " WHERE s.name = %s AND e.learned = 'withheld'",
        (world.engine.space.name,),
    ).fetchall()
    withheld = {id for (id,) in rows}
    assert world.cycle(small)["withheld"] == len(withheld)
    world.teach(60)
    world.cycle(small)
    world.teach(60)
    world.cycle(small)
    assert not withheld & learned[1]
    assert withheld <= learned[2]
    # Once: then it is there by chance, like everything.
    assert not withheld <= learned[3]


def _ledger(world: World, connection: Connection) -> list[UUID]:
    """Trajectories in the order in which they were learned."""
    rows = connection.execute(
        "SELECT trajectory_id FROM sona.ledger WHERE space = %s ORDER BY ordinal", (world.engine.space.name,)
    )
    return [id for (id,) in rows]


def _withheld(world: World, connection: Connection) -> int:
    row = connection.execute("SELECT withheld FROM sona.status WHERE space = %s", (world.engine.space.name,))
    return int(row.fetchall()[0][0])


def test_what_is_withheld_is_in_the_status_and_the_doctor_says_when_nobody_takes_it_up(
    world: World, connection: Connection
) -> None:
    world.teach(60)
    assert _withheld(world, connection) == 0
    world.cycle()
    world.teach(60)
    waiting = sum(is_withheld(id, 0.2) for id in _ledger(world, connection)[60:])
    assert _withheld(world, connection) == waiting > 0
    assert left_withheld(connection, 3600.0) == []
    connection.execute("UPDATE sona.base_state SET updated_at = updated_at - interval '2 hours'")
    (left,) = left_withheld(connection, 3600.0)
    assert (left.space, left.outcomes) == (world.engine.space.name, waiting)
    assert 7200 <= left.seconds < 7300
    connection.execute("UPDATE sona.base_state SET updated_at = updated_at - interval '1 day'")
    (finding,) = (each for each in examine(world.url) if each.check == "loops")
    assert finding.verdict is Verdict.WARNING
    assert f"{waiting} outcomes" in finding.says
    world.cycle()  # judged by
    world.teach(60)
    world.cycle()  # learned
    assert _withheld(world, connection) == sum(is_withheld(id, 0.2) for id in _ledger(world, connection)[120:])


def test_the_last_cycle_before_the_loop_ends_is_asked_for_and_run_as_operations_say(empty_url: str) -> None:
    migrate(empty_url)  # of its own: a worker runs what is due anywhere
    world = World(empty_url, "ends")
    with contextlib.closing(world.engine), connect(empty_url) as connection:
        for _ in range(2):
            world.teach(60)
            world.cycle()
        world.teach(60)
        assert _withheld(world, connection) > 0
        connection.execute("SELECT sona.set_schedule('ends', 'background', every => '1 hour')")
        last = ("worker", "background", "--once", "--withheld", "0")
        done = sona(*last, url=empty_url)
        assert (done.returncode, done.stderr) == (0, "0 cycles\n")
        assert _withheld(world, connection) > 0
        asked = sona("cycle", "run", "ends", "background", url=empty_url)
        assert asked.returncode == 0, asked.stderr
        done = sona(*last, url=empty_url)
        assert (done.returncode, done.stderr) == (0, "1 cycles\n")
        assert _withheld(world, connection) == 0
        assert world.learner().withheld_share == 0
        world.teach(20)
        assert _withheld(world, connection) == 0


def test_who_withholds_nothing_any_more_learns_everything_again(world: World) -> None:
    world.teach(60)
    world.cycle()
    assert world.learner().withheld_share == 0.2
    nothing = background_loop(BackgroundConfig(minimum=1), base=BaseConfig(gate=GateConfig(withheld=0.0)))
    world.teach(60)
    world.cycle(nothing)
    assert world.learner().withheld_share == 0.0
    before = world.learner().events
    world.teach(60)
    assert world.learner().events == before + 60


def test_a_cycle_reads_no_more_than_a_sample_of_a_long_ledger(
    world: World, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.teach(150)
    held: list[int] = []
    with base_reader(connection, world.engine.space) as reader:
        state = reader.state()
        every = reader.trajectories(0, state.head.ordinal, "adapter", 1000).ordinals
        monkeypatch.setattr(base_store, "nsmallest", lambda n, rows, key: held.append(n) or nsmallest(n, rows, key=key))
        few = reader.trajectories(0, state.head.ordinal, "adapter", 20).ordinals
    assert held == [20]
    assert list(every.values()) == sorted(every.values())
    assert set(few) == set(reservoir_sample(every, 20))
    assert list(few.items()) == [(id, at) for id, at in every.items() if id in few]


def test_what_has_judged_is_not_judged_by_again(world: World, connection: Connection) -> None:
    world.teach(60)
    world.cycle()
    world.teach(100)
    with base_reader(connection, world.engine.space) as reader:
        waiting = reader.unjudged(reader.state(), 1000).ordinals
    assert len(waiting) > 5
    assert world.cycle()["withheld"] == len(waiting)
    # Somebody says something more about all of them, and about some that were learned before anything was withheld.
    learned = connection.execute(
        "SELECT trajectory_id FROM sona.learning_event e JOIN sona.space s USING (space_id) WHERE s.name = %s"
        " AND e.ordinal < 60",
        (world.engine.space.name,),
    ).fetchall()
    for id in [*waiting, *(id for (id,) in learned)]:
        world.engine.score(id, 1.0, "150")
    world.engine.flush()
    with base_reader(connection, world.engine.space) as reader:
        assert reader.unjudged(reader.state(), 1000) == ({}, 0)
