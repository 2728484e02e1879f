"""A cycle of loop C that is rehearsed, refused, out of time, short of items, or begun again for who is forgotten."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from sona_pg import StoreConfig
from sona_pg.config import DeepLoopConfig
from sona_pg.errors import DatabaseBusy, DatabaseUnavailable, PermissionDenied
from sona_pg.loops import coordinator, deep_phase
from sona_pg.loops.cycle import Cycle
from sona_pg.loops.deep import DEEP, deep_loop
from sona_pg.loops.deep_config import DeepConfig
from sona_pg.loops.rehearsal import rehearse
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database

from .cycles import run_cycle
from .deep_worlds import BACKGROUND, World, _memory, _rows
from .deep_worlds import connection as connection
from .deep_worlds import world as world
from .vectors import unit


def test_a_rehearsal_says_all_that_changes_and_changes_nothing(world: World, connection: Connection) -> None:
    world.teach(200)
    world.cycle(BACKGROUND)
    before = _memory(connection, world)
    runs = _rows(connection, "SELECT count(*) FROM sona.runs")
    found = rehearse(Database(world.url, StoreConfig()), DEEP, world.name)
    assert _memory(connection, world) == before
    assert _rows(connection, "SELECT count(*) FROM sona.runs") == runs
    created = [change for change in found.changes if (change.entity, change.change) == ("node", "created")]
    assert len(created) == found.facts["grow"]["nodes_created"] + found.facts["hierarchy"]["created"]
    world.cycle()
    after = _memory(connection, world)
    assert len(after["memory_node"]) == len(created)
    assert {change.what for change in created} == {f"{row[1]} {row[2]}" for row in after["memory_node"]}


def test_a_deploy_waits_for_a_rehearsal(world: World, module_url: str) -> None:
    world.teach(60)
    deploying: list[Future[Any]] = []

    def deploy() -> None:
        with connect(module_url, application="deploying") as connection:
            connection.execute("SELECT sona.deploy(%s, 'frozen')", (world.name,))

    def read(connection: Connection, cycle: Cycle) -> object:
        # Only one that waits for locks is where two could wait for each other.
        deploying.append(pool.submit(deploy))
        waits = "SELECT FROM pg_stat_activity WHERE application_name = 'deploying' AND wait_event_type = 'Lock'"
        with connect(module_url) as watching:
            while not watching.execute(waits).fetchall():
                assert not deploying[0].done(), "it did not wait"
        return DEEP.phases[0].read(connection, cycle)

    loop = dataclasses.replace(DEEP, phases=(dataclasses.replace(DEEP.phases[0], read=read), *DEEP.phases[1:]))
    with ThreadPoolExecutor(1) as pool:
        found = rehearse(Database(world.url, StoreConfig()), loop, world.name)
    deploying[0].result()
    assert found.facts["consolidate"]["nodes"] > 0


def test_a_worker_needs_the_right_to_make_temporary_tables(
    world: World, module_url: str, connection: Connection, role: Callable[..., str]
) -> None:
    world.teach(40)
    worker, database = role("deep", "sona_worker"), connection.info.dbname
    ((table,),) = _rows(
        connection, "SELECT items::text FROM sona.item_source WHERE space_id = %s", world.engine.space.space_id
    )
    connection.execute(f"GRANT SELECT ON {table} TO {worker}")
    connection.execute("SELECT sona.grant_space(%s, %s)", (world.name, worker))
    own = Database(psycopg.conninfo.make_conninfo(module_url, user=worker), StoreConfig())
    try:
        connection.execute(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC")
        with pytest.raises(PermissionDenied, match="temporary tables"):
            rehearse(own, DEEP, world.name)
        connection.execute(f"GRANT TEMPORARY ON DATABASE {database} TO sona_worker")
        assert rehearse(own, DEEP, world.name).facts["grow"]["items_embedded"] > 0
    finally:
        connection.execute(f"REVOKE TEMPORARY ON DATABASE {database} FROM sona_worker")
        connection.execute(f"GRANT TEMPORARY ON DATABASE {database} TO PUBLIC")


def test_a_deadline_of_zero_is_a_skip_that_is_said(world: World, connection: Connection) -> None:
    world.teach(60)
    facts = world.cycle(deep_loop(DeepConfig(DeepLoopConfig(max_cycle_seconds=0.0))))
    assert set(facts.values()) == {"skipped: 0 seconds are over"}
    assert len(facts) == len(DEEP.phases)
    assert _rows(connection, "SELECT count(*) FROM sona.memory WHERE space = %s", world.name) == [(0,)]


def test_a_table_of_items_that_cannot_be_read_is_said(world: World, connection: Connection) -> None:
    world.teach(60)
    quiet = deep_loop(DeepConfig(DeepLoopConfig(dreams_per_cycle=0)))
    ((table,),) = _rows(
        connection, "SELECT items::text FROM sona.item_source WHERE space_id = %s", world.engine.space.space_id
    )
    connection.execute(f"ALTER TABLE {table} RENAME COLUMN embedding TO other")
    facts = world.cycle(quiet)["grow"]
    assert facts["items_embedded"] == 0
    assert "embedding" in facts["items_refused"]
    connection.execute(f"ALTER TABLE {table} RENAME COLUMN other TO embedding")
    connection.execute(f"ALTER TABLE {table} ALTER COLUMN embedding TYPE text USING embedding::text")
    facts = world.cycle(quiet)["grow"]
    assert "no column embedding of type vector" in facts["items_refused"]
    connection.execute(f"ALTER TABLE {table} ALTER COLUMN embedding TYPE vector USING embedding::vector")
    facts = world.cycle(quiet)["grow"]
    assert (facts["items_embedded"] > 0, facts["items_refused"]) == (True, None)


WITH_EMBEDDING = "SELECT key FROM sona.memory WHERE space = %s AND kind = 'item' AND embedding IS NOT NULL ORDER BY 1"


def test_an_item_that_is_gone_from_the_table_has_no_embedding_until_it_is_back(
    world: World, connection: Connection
) -> None:
    quiet = deep_loop(DeepConfig(DeepLoopConfig(dreams_per_cycle=0)))
    world.teach(60)
    before = world.cycle(quiet)["grow"]["items_embedded"]
    known = _rows(connection, WITH_EMBEDDING, world.name)
    assert len(known) == before
    gone, emptied = known[0][0], known[1][0]
    connection.execute(f"DELETE FROM {world.table} WHERE id = %s", (int(gone),))
    connection.execute(f"UPDATE {world.table} SET embedding = NULL WHERE id = %s", (int(emptied),))
    facts = world.cycle(quiet)["grow"]
    assert (facts["items_embedded"], facts["items_lost"], facts["items_refused"]) == (0, 2, None)
    assert _rows(connection, WITH_EMBEDDING, world.name) == known[2:]
    near = "SELECT count(*) FROM sona.related(%s, %s, 0, 1000, 100) WHERE key = %s"
    assert _rows(connection, near, world.name, world.items[int(gone)], gone) == [(0,)]
    assert world.cycle(quiet)["grow"]["items_lost"] == 0
    connection.execute(f"INSERT INTO {world.table} VALUES (%s, %s)", (int(gone), world.items[int(gone)]))
    assert world.cycle(quiet)["grow"]["items_embedded"] == 1
    assert _rows(connection, WITH_EMBEDDING, world.name) == [known[0], *known[2:]]


def test_a_table_of_items_that_is_dropped_is_said_and_takes_its_embeddings_with_it(
    world: World, connection: Connection
) -> None:
    quiet = deep_loop(DeepConfig(DeepLoopConfig(dreams_per_cycle=0)))
    world.teach(60)
    items = world.cycle(quiet)["grow"]["items_embedded"]
    connection.execute(f"ALTER TABLE {world.table} RENAME TO {world.table.split('.')[1]}_renamed")
    facts = world.cycle(quiet)["grow"]
    assert (facts["items_lost"], facts["items_refused"]) == (0, None)
    connection.execute(f"DROP TABLE {world.table}_renamed")
    for lost in (items, 0):
        facts = world.cycle()["grow"]
        assert (facts["items_embedded"], facts["items_lost"]) == (0, lost)
        assert "the items table of the space is gone" in facts["items_refused"]
        assert _rows(connection, WITH_EMBEDDING, world.name) == []
    connection.execute(f"CREATE TABLE {world.table} (id integer PRIMARY KEY, embedding vector)")
    connection.cursor().executemany(f"INSERT INTO {world.table} VALUES (%s, %s)", list(enumerate(world.items)))
    world.engine.set_items(world.table, "id", "embedding")
    assert world.cycle(quiet)["grow"]["items_embedded"] == items


def test_embeddings_that_were_given_by_hand_stay_where_there_is_no_table(world: World, connection: Connection) -> None:
    connection.execute("DELETE FROM sona.item_source WHERE space_id = %s", (world.engine.space.space_id,))
    connection.execute("SELECT sona.add_memory_node(%s, 'item', 'x', %s)", (world.name, world.items[0]))
    facts = world.cycle()["grow"]
    assert (facts["items_lost"], facts["items_refused"]) == (0, None)
    assert _rows(connection, WITH_EMBEDDING, world.name) == [("x",)]


def test_items_that_are_embedded_anew_move_once_the_table_is_named_anew(world: World, connection: Connection) -> None:
    world.teach(60)
    quiet = deep_loop(DeepConfig(DeepLoopConfig(dreams_per_cycle=0)))
    items = world.cycle(quiet)["grow"]["items_embedded"]
    ((table,),) = _rows(
        connection, "SELECT items::text FROM sona.item_source WHERE space_id = %s", world.engine.space.space_id
    )
    stale = (
        f"SELECT count(*) FROM sona.memory m JOIN {table} i ON i.id::text = m.key"
        " WHERE m.space = %s AND m.kind = 'item' AND m.embedding <> i.embedding"
    )
    moved = unit(world.items[:, ::-1])
    connection.cursor().executemany(
        f"UPDATE {table} SET embedding = %s WHERE id = %s", [(vector, id) for id, vector in enumerate(moved)]
    )
    assert world.cycle(quiet)["grow"]["items_embedded"] == 0
    assert _rows(connection, stale, world.name) == [(items,)]
    world.engine.set_items(table, "id", "embedding")
    assert world.cycle(quiet)["grow"]["items_embedded"] == items
    assert _rows(connection, stale, world.name) == [(0,)]
    assert world.cycle(quiet)["grow"]["items_embedded"] == 0


@pytest.mark.parametrize("error", [DatabaseBusy, DatabaseUnavailable])
def test_a_table_of_items_that_is_busy_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    world.teach(60)

    def busy(*_: object) -> None:
        raise error("for now")

    monkeypatch.setattr(spaces, "item_embeddings", busy)
    with pytest.raises(error, match="for now"):
        rehearse(Database(world.url, StoreConfig()), DEEP, world.name)


def test_the_deadline_is_looked_at_between_units_of_work(
    world: World, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by ten seconds whenever somebody looks: a phase that is not at its end leaves nothing."""
    other = World(world.url, world.name[:50] + " other", seed=0, embedder="one")
    mine = World(world.url, world.name[:50] + " mine", seed=0, embedder="one")
    for each in (other, mine):
        connection.execute("UPDATE sona.space SET may_transfer = true WHERE name = %s", (each.name,))
        each.teach(200)
        each.cycle(BACKGROUND)
    clock = itertools.count(step=10)
    monkeypatch.setattr(deep_phase, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    facts = mine.cycle()
    over = "skipped: 600 seconds are over"
    assert [name for name, said in facts.items() if said == over] == ["dream", "transfer"]
    count = "SELECT count(*) FROM sona.dreams WHERE space = %s"
    assert _rows(connection, count, mine.name) == [(0,)]
    assert _rows(connection, "SELECT count(*) FROM sona.edges WHERE kind = 'analogy'") == [(0,)]
    monkeypatch.setattr(deep_phase, "time", SimpleNamespace(monotonic=lambda: 0.0))
    facts = mine.cycle()
    assert facts["dream"]["dreams"] > 1000
    assert facts["transfer"]["analogies"] > 0
    for each in (other, mine):
        each.engine.close()


def test_a_space_without_anything_is_skipped(world: World, connection: Connection) -> None:
    found = run_cycle(world.url, world.name, DEEP)
    assert found.state == "skipped"
    assert "nothing helped together" in str(found.reason)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_graph_of_hardly_a_node(world: World, connection: Connection, nodes: int) -> None:
    for number in range(nodes):
        connection.execute("SELECT sona.add_memory_node(%s, 'concept', %s)", (world.name, str(number)))
    facts = world.cycle()
    assert facts["dream"]["integrated"] == 0
    assert facts["integration"]["phi"] is None


def test_who_is_forgotten_is_in_no_graph(world: World, connection: Connection) -> None:
    world.teach(100)
    world.teach(40, user="somebody")
    world.cycle(BACKGROUND)
    world.cycle()
    connection.execute("SELECT sona.add_memory_node(%s, 'procedure', 'by hand')", (world.name,))
    world.engine.forget("somebody")
    assert _rows(connection, "SELECT kind, key FROM sona.memory WHERE space = %s", world.name) == [
        ("procedure", "by hand")
    ]
    assert _rows(connection, "SELECT DISTINCT kind FROM sona.edges WHERE space = %s", world.name) == [("co_access",)]
    assert _rows(connection, "SELECT count(*) FROM sona.dreams WHERE space = %s", world.name) == [(0,)]
    world.cycle(BACKGROUND)
    facts = world.cycle()
    assert facts["grow"]["nodes_created"] > 20


@pytest.mark.parametrize("when", ["cycle.after_read", "cycle.after_commit"])
def test_a_cycle_in_which_somebody_is_forgotten_begins_again(
    world: World, connection: Connection, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    world.teach(60)
    world.teach(40, user="somebody")
    waiting = ["somebody"]

    def forget(step: str) -> None:
        begun = _rows(connection, "SELECT FROM sona.runs WHERE space = %s AND facts ? 'grow'", world.name)
        if step == when and begun and waiting:
            world.engine.forget(waiting.pop())

    connection.execute("SELECT sona.run_cycle(%s, 'deep')", (world.name,))
    with monkeypatch.context() as patched:
        patched.setattr(coordinator, "reached", forget)
        worker = coordinator.LoopCoordinator(Database(world.url, StoreConfig()), DEEP)
        assert worker.step() == 0, "nothing of it is written"
        assert not waiting
        assert worker.step() == 1
        worker.close()
    ((state, facts),) = _rows(connection, "SELECT state, facts FROM sona.runs WHERE space = %s", world.name)
    assert (state, facts["grow"]["nodes_created"] > 20) == ("done", True)
    assert facts["consolidate"]["nodes"] == facts["grow"]["nodes_created"]
    assert _rows(connection, "SELECT count(*) > 20 FROM sona.memory WHERE space = %s", world.name) == [(True,)]


def test_what_was_forgotten_with_somebody_is_made_anew_by_the_next_look(world: World, connection: Connection) -> None:
    world.teach(60)
    world.teach(40, user="somebody")
    world.cycle()
    worker = coordinator.LoopCoordinator(Database(world.url, StoreConfig()), DEEP)
    assert worker.step() == 0, "not for a week"
    world.engine.forget("somebody")
    assert (worker.step(), worker.step()) == (1, 0)
    worker.close()
    assert _rows(connection, "SELECT count(*) > 20 FROM sona.memory WHERE space = %s", world.name) == [(True,)]
