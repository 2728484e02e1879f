"""What a cycle of the base takes in: each event once, what nobody learned to judge by, and what there still is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sona_pg.config import BackgroundConfig, BaseTrainingConfig, GateConfig
from sona_pg.learning.base_cycle import BaseConfig
from sona_pg.loops.background import background_loop
from sona_pg.loops.cycle import Loop
from sona_pg.store.connection import Connection

from .base_worlds import RANK, World, _became, _hours, _meanwhile
from .base_worlds import connection as connection


@pytest.fixture
def world(module_url: str, connection: Connection, space_name: str) -> Iterator[World]:
    made = World(module_url, space_name)
    yield made
    made.engine.close()


def _loop(reservoir: int = 400, rank: int = RANK, withheld: float = 0.2) -> Loop:
    return background_loop(
        BackgroundConfig(minimum=1),
        base=BaseConfig(
            training=BaseTrainingConfig(rank=rank, reservoir=reservoir),
            gate=GateConfig(withheld=withheld, losing_z=10.0),
        ),
    )


def test_what_comes_during_a_cycle_counts_once(
    world: World, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.teach(100)
    world.cycle()
    world.teach(100)
    _meanwhile(monkeypatch, lambda: world.teach(30))
    assert world.cycle()["base"] == "published"
    taught = len(_became(connection, world, "adapter"))
    ((events,),) = connection.execute(
        "SELECT l.events FROM sona.learner l JOIN sona.space s USING (space_id) WHERE s.name = %s",
        (world.engine.space.name,),
    ).fetchall()
    assert (world.learner().events, events) == (taught, taught)


def test_what_the_base_has_learned_does_not_judge_it(
    world: World, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.teach(100)
    world.cycle()
    world.teach(100)
    assert world.cycle()["base_reason"] not in ("no withheld event has an outcome",)
    learned = set(_became(connection, world, "withheld"))
    assert learned
    # An outcome comes late, when the base has learned it from the reservoir.
    for id in learned:
        world.engine.score(id, 1.0, item_id="7")
    world.engine.flush()
    world.teach(100)
    hours = _hours(monkeypatch)
    world.cycle()
    (hour,) = hours
    judging = {answered.judged.key[0] for answered in hour.withheld}
    assert judging
    assert not judging & learned
    assert learned <= {answered.judged.key[0] for answered in hour.earlier}


def test_the_reservoir_holds_what_is_there(world: World, connection: Connection) -> None:
    loop = _loop(reservoir=40)
    world.teach(100)
    world.cycle(loop)
    key = (world.engine.space.space_id,)
    # As retention does.
    for table in ("trajectory", "trajectory_step"):
        connection.execute(f"DELETE FROM sona.{table} WHERE space_id = %s", key)
    world.teach(100)
    world.cycle(loop)
    world.teach(20)
    world.cycle(loop)
    ((size, there),) = connection.execute(
        "SELECT cardinality(b.reservoir), (SELECT count(*) FROM sona.trajectory t WHERE t.space_id = b.space_id"
        " AND t.trajectory_id = ANY(b.reservoir)) FROM sona.base_state b WHERE b.space_id = %s",
        key,
    ).fetchall()
    # A sample of all, and what has judged and is yet to be learned.
    assert 40 <= size == there < 80


def test_what_was_withheld_for_long_is_judged_by_in_bounded_memory(world: World, connection: Connection) -> None:
    world.teach(60)
    world.cycle(_loop(withheld=0.5))
    world.teach(100)
    assert len(_became(connection, world, "withheld")) > 30
    assert world.cycle(_loop(reservoir=20, withheld=0.5))["withheld"] == 20


def test_a_base_that_is_yet_to_be_taken_over_is_not_pruned(world: World, connection: Connection) -> None:
    world.teach(60)
    world.cycle()
    world.teach(100)
    version = world.cycle()["base_version"]
    assert version is not None
    for place in range(4):
        world.engine.instant.publish(f"by hand {place}")
    connection.execute("DELETE FROM sona.trajectory WHERE space_id = %s", (world.engine.space.space_id,))
    connection.execute("SELECT sona.prune_versions(%s, 1)", (world.engine.space.name,))
    versions = [
        row[0] for row in connection.execute("SELECT version FROM sona.versions(%s)", (world.engine.space.name,))
    ]
    assert version in versions


def test_a_smaller_base_leaves_nothing_of_a_larger_one(world: World, connection: Connection) -> None:
    world.teach(60)
    world.cycle()
    world.teach(100)
    assert world.cycle()["base"] == "published"
    world.engine.evidence.advance()
    world.teach(100)
    assert world.cycle(_loop(rank=2))["base"] == "published"
    while world.engine.evidence.advance():
        pass
    rows = dict(
        connection.execute(
            "SELECT tier, count(*) FROM sona.served_row WHERE space_id = %s GROUP BY tier",
            (world.engine.space.space_id,),
        ).fetchall()
    )
    own = world.engine.instant.adapter_config.rank
    assert (rows["adapter"], rows["proven"]) == (2 + own, 2 + own)


def test_a_rollback_brings_back_what_answered_before_the_base(world: World) -> None:
    world.teach(60)
    world.cycle()
    world.teach(100)
    query = world.ask(1)
    before = world.engine.adapt(query).tobytes()
    assert world.cycle()["base"] == "published"
    world.engine.flush()
    assert world.engine.adapt(query).tobytes() != before
    world.engine.deploy("rollback")
    world.engine.flush()
    assert world.engine.adapt(query).tobytes() == before
