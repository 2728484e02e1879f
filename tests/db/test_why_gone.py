"""Why an answer was what it was, where something is gone, nothing was proven yet, or not all may be seen."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from psycopg import sql

from sona_pg import InvalidInput, UnknownSpace, UnknownTrajectory
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, connect
from sona_pg.store.reader import read
from sona_pg.store.why import why

from .answered import LEARNED, _answered, _publish
from .conftest import World as Tenants
from .recurring import World


def _drop(world: World) -> None:
    """What is broken here must not stay: a worker of another test weighs every space of the database."""
    world.engine.close()
    with connect(world.url) as connection:
        connection.execute("SELECT sona.drop_space(%s)", (world.name,))


@pytest.fixture
def small(url: str, space_name: str) -> Iterator[World]:
    """A space that the boosted frozen ranking answers."""
    made = World(url, space_name, strategy="boosted", control_share=0)
    made.teach(60)
    yield made
    _drop(made)


def test_the_control_arm_and_the_shadow_moved_nothing(url: str, space_name: str, connection: Connection) -> None:
    world = World(url, space_name, strategy="boosted", control_share=0.5)
    world.teach(40)
    arms = {}
    while len(arms) < 2:
        found = world.engine.recall(world.ask(1))
        arms[found.answer.arm] = world.engine.record(found, rewards={str(world.answers[1]): 1.0})
    spaces.set_strategy(connection, world.name, "shadow")
    world.engine.flush()
    _, arms["shadow"] = _answered(world)
    told = {arm: world.engine.why(id) for arm, id in arms.items()}
    assert {arm: answer.arm for arm, answer in told.items()} == {arm: arm for arm in ("learned", "control", "shadow")}
    assert told["learned"].strategy == "boosted"
    assert (told["control"].reason.kind, told["control"].propensity) == ("arm", 0.5)
    assert "control arm" in told["control"].reason.text
    assert (told["shadow"].reason.kind, told["shadow"].setting) == ("setting", "shadow")
    for arm in ("control", "shadow"):
        assert told[arm].strategy == "frozen"
        assert len(told[arm].items) == 10
        for item in told[arm].items:
            assert (item.moved, item.adapter, item.memory, item.cosine) == (0, 0.0, 0.0, item.frozen)
            assert item.rest == pytest.approx(0, abs=1e-6)
        assert told[arm].notes == told[arm].dropped == ()
    world.engine.close()


def test_before_anything_is_proven_frozen_answers_because_of_that(url: str, space_name: str) -> None:
    world = World(url, space_name, control_share=0)
    _, id = _answered(world)
    answer = world.engine.why(id)
    assert (answer.strategy, answer.version, answer.cause, answer.published_at) == ("frozen", 0, None, None)
    assert (answer.reason.kind, answer.reason.text) == ("turn", "nothing was proven to beat frozen")
    assert (answer.reason.since, answer.neighbours, answer.notes) == (None, (), ())
    assert {item.moved for item in answer.items} == {0}
    world.engine.close()


def test_before_any_version_the_present_explains_and_a_note_says_so(small: World, connection: Connection) -> None:
    spaces.set_strategy(connection, small.name, "familiar")
    small.engine.flush()
    _, id = _answered(small)
    answer = small.engine.why(id)
    assert (answer.version, answer.explained_by) == (0, None)
    assert any("no version had been published" in note for note in answer.notes)
    assert any(item.adapter for item in answer.items)
    assert {s.strategy for s in answer.strategies} == {"frozen", *LEARNED}


def test_what_is_nearest_to_what_answered_explains_it(small: World, connection: Connection) -> None:
    spaces.set_strategy(connection, small.name, "familiar")
    version = _publish(small)
    small.teach(60)
    _, id = _answered(small)
    now = small.engine.why(id)
    assert (now.version, now.explained_by) == (version, None)
    assert any(f"by what is learned at present: version {version} is further" in note for note in now.notes)
    assert max(abs(item.rest) for item in now.items if item.rest is not None) < 0.005
    # Once as much was learned after the answer as before it, the version is as near; and what is left over is told.
    small.teach(61)
    then = small.engine.why(id)
    assert (then.version, then.explained_by) == (version, version)
    left = max(abs(item.rest) for item in then.items if item.rest is not None)
    assert left > 0.005
    assert then.notes == (
        f"up to {left:.3f} of a score is not explained: its item has changed, or what answered had learned more or"
        f" less than version {version}",
    )
    # What the next version holds is nearer, and stays so.
    _, id = _answered(small)
    following = _publish(small)
    small.teach(60)
    assert small.engine.why(id).explained_by == following
    # A version that was deployed in between leads nowhere from there.
    small.engine.deploy(version)
    small.teach(30)
    _publish(small)
    assert small.engine.why(id).explained_by == following


def test_what_was_learned_with_an_answer_was_not_known_to_it(small: World) -> None:
    # Ids without a time: what is recorded in one transaction has the time of its entries in the ledger.
    ids = [
        small.engine.record(
            small.ask(0), ["1"], [1.0], trajectory_id=uuid.uuid5(uuid.NAMESPACE_OID, f"{small.name} {n}")
        )
        for n in range(3)
    ]
    small.engine.flush()
    for id in ids:
        assert not set(ids) & {near.trajectory_id for near in small.engine.why(id).neighbours}
    later = small.engine.record(small.ask(0), ["1"], [1.0])
    small.engine.flush()
    assert set(ids) <= {near.trajectory_id for near in small.engine.why(later).neighbours}


def test_a_version_that_is_gone_is_told_and_the_rest_is_given(small: World, connection: Connection) -> None:
    spaces.set_strategy(connection, small.name, "familiar")
    version = _publish(small)
    _, id = _answered(small)
    before = small.engine.why(id)
    assert (before.version, before.explained_by) == (version, version)
    for table in ("version_row", "adapter_version"):
        small.rows(f"DELETE FROM sona.{table} WHERE space_id = %(space)s AND version = {version} RETURNING version")
    answer = small.engine.why(id)
    assert (answer.version, answer.cause, answer.published_at, answer.explained_by) == (version, None, None, None)
    assert f"version {version} is gone" in answer.notes[0]
    assert any(f"at present: version {version} is gone" in note for note in answer.notes)
    assert (answer.neighbours, answer.reason) == (before.neighbours, before.reason)
    assert [item.moved for item in answer.items] == [item.moved for item in before.items]
    assert all(item.adapter is not None for item in answer.items)


def test_a_version_that_does_not_hold_the_strategy_is_told(small: World, connection: Connection) -> None:
    version = _publish(small)
    spaces.set_strategy(connection, small.name, "stake")
    small.engine.flush()
    _, id = _answered(small)
    answer = small.engine.why(id)
    assert (answer.version, answer.explained_by) == (version, None)
    assert any(f"version {version} is further from the answer, or does not hold" in note for note in answer.notes)


def test_what_retention_has_deleted_is_told(small: World, connection: Connection) -> None:
    _, id = _answered(small)
    before = small.engine.why(id)
    connection.execute("SELECT sona.set_retention(%s, steps => '1 microsecond')", (small.name,))
    while connection.execute("SELECT sona.apply_retention(%s)", (small.name,)).fetchall() != [(0,)]:
        pass
    bare = small.engine.why(id)
    assert (bare.items, bare.dropped) == ((), ())
    assert bare.notes == ("what was shown is not known any more: retention has deleted the steps",)
    assert (bare.reason, bare.neighbours, bare.worth) == (before.reason, before.neighbours, before.worth)
    connection.execute("SELECT sona.set_retention(%s, trajectories => '1 microsecond')", (small.name,))
    while connection.execute("SELECT sona.apply_retention(%s)", (small.name,)).fetchall() != [(0,)]:
        pass
    with pytest.raises(UnknownTrajectory, match="it was deleted by retention"):
        small.engine.why(id)
    with pytest.raises(UnknownTrajectory, match="it was deleted by retention"):
        read(connection, why, id)
    with pytest.raises(UnknownTrajectory, match="there is no trajectory"):
        small.engine.why(uuid.uuid4())


def test_an_items_table_that_is_gone_is_told_and_what_was_shown_is_given(small: World, connection: Connection) -> None:
    found, id = _answered(small)
    connection.execute(f"DELETE FROM {small.table} WHERE id = %s", (int(found.items[4].item_id),))
    answer = small.engine.why(id)
    assert answer.notes == (f"not in the items table any more: {found.items[4].item_id}",)
    gone = answer.items[4]
    assert (gone.item_id, gone.frozen, gone.frozen_place, gone.rest) == (found.items[4].item_id, None, None, None)
    assert gone.score == pytest.approx(found.items[4].score, abs=1e-7)
    assert all(item.frozen is not None for item in answer.items if item is not gone)
    connection.execute(f"DROP TABLE {small.table}")
    answer = small.engine.why(id)
    assert [item.item_id for item in answer.items] == [item.item_id for item in found.items]
    assert {(item.frozen, item.frozen_place, item.moved, item.cosine) for item in answer.items} == {(None,) * 4}
    assert answer.items[0].score == pytest.approx(found.items[0].score, abs=1e-7)
    assert answer.notes == ("the items cannot be compared: the items table of the space is gone",)
    assert len(answer.neighbours) == 10


def test_items_that_were_filtered_out_are_not_taken_for_moved_by_learning(small: World) -> None:
    found = small.engine.recall(small.ask(2), filter={"lang": "en"})
    id = small.engine.record(found, rewards={found.items[0].item_id: 1.0})
    small.engine.flush()
    answer = small.engine.why(id)
    assert any("the answer was filtered" in note for note in answer.notes)


def test_what_recall_did_not_answer_is_told(small: World) -> None:
    id = small.engine.record(small.ask(0), ["1", "2"], [1.0, 0.0])
    small.engine.flush()
    answer = small.engine.why(id)
    assert any("recorded without scores" in note for note in answer.notes)
    assert [(item.item_id, item.score, item.rest) for item in answer.items] == [("1", None, None), ("2", None, None)]
    assert answer.strategy == "unknown"
    assert {item.memory for item in answer.items} == {None}


def test_a_strategy_of_somebody_else_has_no_parts(small: World, connection: Connection) -> None:
    row = connection.execute(
        "SELECT sona.record(%s, %s, '{1,2}', '{1,0}', scores => '{0.9,0.8}', strategy => 'own')",
        (small.name, small.ask(0)),
    ).fetchone()
    assert row is not None
    answer = read(connection, why, row[0])
    assert answer.strategy == "own"
    assert {(item.adapter, item.memory, item.cosine, item.rest) for item in answer.items} == {(None,) * 4}
    assert all(item.frozen is not None for item in answer.items)


def test_a_table_of_chunks_is_ranked_as_it_was_answered(url: str, space_name: str, connection: Connection) -> None:
    world = World(url, space_name, strategy="boosted", control_share=0)
    connection.execute(f"ALTER TABLE {world.table} DROP CONSTRAINT {world.table.split('.')[1]}_pkey")
    connection.execute(f"INSERT INTO {world.table} SELECT id, embedding, lang FROM {world.table} WHERE id < 200")
    connection.execute(f"UPDATE {world.table} SET id = id / 2")
    chunks = np.array([row // 2 for row in [*range(300), *range(200)]])
    embeddings = np.concatenate([world.items, world.items[:200]])
    # Nothing is remembered yet, and frozen answers by rows; then boosted does, by items.
    for by_rows in (True, False):
        found, id = _answered(world)
        answer = world.engine.why(id)
        assert answer.strategy == ("frozen" if by_rows else "boosted")
        shown = [item.item_id for item in answer.items]
        assert (len(set(shown)) < len(shown)) == by_rows
        if by_rows:
            assert {item.moved for item in answer.items} == {0}
            assert answer.dropped == ()
        else:
            ranked = list(dict.fromkeys(chunks[np.argsort(-(embeddings @ found.query), kind="stable")].tolist()))
            assert [item.frozen_place for item in answer.items] == [1 + ranked.index(int(item)) for item in shown]
        assert answer.notes == ()
        assert all(item.rest == pytest.approx(0, abs=1e-6) for item in answer.items)
    _drop(world)


def test_an_id_of_several_spaces_asks_for_the_space(small: World, url: str, connection: Connection) -> None:
    _, id = _answered(small)
    other = World(url, f"{small.name}_other")
    other.engine.record(other.ask(0), ["1"], [1.0], trajectory_id=id)
    other.engine.flush()
    with pytest.raises(InvalidInput, match=r"2 spaces have a trajectory .*: name the space, like space => "):
        read(connection, why, id)
    for world in (small, other):
        assert read(connection, why, id, world.name).space == world.name
        assert world.engine.why(id).space == world.name
    with pytest.raises(UnknownSpace, match="there is no space 'nowhere'"):
        read(connection, why, id, "nowhere")
    _drop(other)


def test_a_wrong_id_is_refused(small: World, connection: Connection) -> None:
    with pytest.raises(InvalidInput, match="expected a UUID"):
        small.engine.why("1")  # type: ignore[arg-type]
    for call, state in (("NULL", "SN003"), (f"'{uuid.uuid4()}'", "SN007")):
        with pytest.raises(psycopg.errors.Error) as refused:
            connection.execute(f"SELECT * FROM sona.why({call})")
        assert refused.value.sqlstate == state


@pytest.mark.parametrize("kind", ["reader", "app", "worker"])
def test_a_role_sees_its_own_space_alone(world: Tenants, kind: str) -> None:
    with connect(world.login(f"alpha_{kind}")) as own:
        answer = read(own, why, world.trajectories["alpha"])
        assert (answer.space, len(answer.items)) == ("alpha", 3)
        assert all(item.frozen is not None for item in answer.items)
        with pytest.raises(UnknownTrajectory, match="there is no trajectory"):
            read(own, why, world.trajectories["beta"])
        with pytest.raises(UnknownSpace):
            read(own, why, world.trajectories["beta"], "beta")


def test_a_role_that_may_not_read_the_items_is_told(world: Tenants) -> None:
    login = sql.Identifier(world.logins["alpha_reader"])
    with connect(world.url) as owner, connect(world.login("alpha_reader")) as reader:
        owner.execute(sql.SQL("REVOKE SELECT ON shop.items FROM {}").format(login))
        try:
            answer = read(reader, why, world.trajectories["alpha"])
        finally:
            owner.execute(sql.SQL("GRANT SELECT ON shop.items TO {}").format(login))
    assert any("permission denied for table items" in note for note in answer.notes)
    assert [(item.place, item.frozen) for item in answer.items] == [(1, None), (2, None), (3, None)]
