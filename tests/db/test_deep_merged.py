"""What loop C merges counts once whatever happens meanwhile, and is parted from the last merge back."""

from __future__ import annotations

import pytest

from sona_pg.store.connection import Connection

from .archived import (
    EPISODES,
    GIVEN,
    QUIET,
    _add,
    _help,
    _meanwhile,
    _near_duplicates,
    _restore,
    _twins,
    _without_dreaming,
)
from .deep_worlds import World, _rows
from .deep_worlds import connection as connection
from .deep_worlds import world as world
from .vectors import unit

CO_ACCESS = "SELECT source, target, weight FROM sona.edges WHERE space = %s AND kind = 'co_access' ORDER BY 1, 2"


@pytest.mark.parametrize("meanwhile", [("1", "5"), ("0", "5")])
def test_what_helped_while_a_cycle_weighs_edges_counts(
    world: World, connection: Connection, meanwhile: tuple[str, str]
) -> None:
    """Of the edges 0 - 5 and 1 - 5 one is to become part of the other, and one changes meanwhile."""
    _twins(world, connection)
    _help(world, "0", "5", times=6)
    _help(world, "1", "5", times=12)
    _help(world, "6", "7", times=3)
    world.cycle(_meanwhile(lambda: _help(world, *meanwhile)))
    world.cycle(QUIET)
    ((_, _, together), _) = _rows(connection, CO_ACCESS, world.name)
    assert together == pytest.approx(1 - 0.95**19, abs=1e-3), "as if all 19 had come to one edge"


def test_what_first_helped_while_its_twin_is_moved_counts(world: World, connection: Connection) -> None:
    """The edge 1 - 5 is to be moved to 0 - 5, which an outcome makes meanwhile."""
    _twins(world, connection)
    _help(world, "0", "9", times=40)
    _help(world, "1", "5", times=6)
    world.cycle(_meanwhile(lambda: _help(world, "0", "5")))
    world.cycle(QUIET)
    weights = {ends[:2]: ends[2] for ends in _rows(connection, CO_ACCESS, world.name)}
    assert weights.keys() == {("0", "5"), ("0", "9")}
    assert weights["0", "5"] == pytest.approx(1 - 0.95**7, abs=1e-3)


@pytest.mark.parametrize("which", ["all", "an edge", "the node"])
def test_what_was_merged_comes_back_and_stays(world: World, connection: Connection, which: str) -> None:
    world.teach(40)
    _near_duplicates(world, connection, "a", "b")
    before = _rows(connection, EPISODES, world.name), _rows(connection, GIVEN, world.name)
    assert world.cycle(QUIET)["consolidate"]["nodes_merged"] == 1
    entry = "SELECT min(archive_id) FROM sona.archive WHERE space = %s AND content ->> 'kind' = %s AND entity = %s"
    chosen = {"all": None, "an edge": ("given", "edge"), "the node": ("episode", "node")}[which]
    ids = None if chosen is None else [_rows(connection, entry, world.name, *chosen)[0][0]]
    _restore(connection, world, ids)
    assert (_rows(connection, EPISODES, world.name), _rows(connection, GIVEN, world.name)) == before
    for _ in range(2):
        assert world.cycle(QUIET)["consolidate"]["nodes_merged"] == 0
        _restore(connection, world)
        assert (_rows(connection, EPISODES, world.name), _rows(connection, GIVEN, world.name)) == before


@pytest.mark.parametrize("weight", [0.001, 0.2, 0.3, 0.7, 0.9])
def test_an_edge_that_was_only_moved_leaves_nothing_there(world: World, connection: Connection, weight: float) -> None:
    """0.001 and 1 - (1 - 0.001) differ by a rounding: an edge of that weight would stay, for ever if given by hand."""
    for key, place, shift in (("a", 7, 0.0), ("b", 7, 1e-3), ("far", 50, 0.0), ("near", 90, 0.0)):
        _add(connection, world, key, unit(world.items[place] + shift * world.items[100]))
    for ends in (("a", "near", 0.9), ("b", "far", weight)):
        connection.execute("SELECT sona.add_memory_edge(%s, 'episode', %s, 'episode', %s, %s)", (world.name, *ends))
    before = _rows(connection, GIVEN, world.name)
    assert world.cycle(QUIET)["consolidate"]["nodes_merged"] == 1
    assert _rows(connection, GIVEN, world.name) != before
    _restore(connection, world)
    assert _rows(connection, GIVEN, world.name) == before


def test_merges_are_undone_from_the_last_one_back(world: World, connection: Connection) -> None:
    """b is merged into a, and a into c later; c alone takes a back, and then b is again part of a."""
    world.teach(40)
    _near_duplicates(world, connection, "a", "b")
    world.cycle(QUIET)
    ((kept,),) = _rows(connection, "SELECT key FROM sona.memory WHERE space = %s AND key IN ('a', 'b')", world.name)
    middle = _rows(connection, EPISODES, world.name), _rows(connection, GIVEN, world.name)
    _add(connection, world, "c", unit(world.items[7] + 2e-3 * world.items[100]))
    connection.execute(
        "UPDATE sona.memory_node_state t SET access_count = 100, quality = 1 FROM sona.memory_node n"
        " WHERE t.space_id = %s AND n.space_id = t.space_id AND n.node_id = t.node_id AND n.key = 'c'",
        (world.engine.space.space_id,),
    )
    connection.execute("SELECT sona.add_memory_edge(%s, 'episode', 'c', 'episode', 'far', 0.9)", (world.name,))
    assert world.cycle(QUIET)["consolidate"]["nodes_merged"] == 1
    stands = "SELECT m.key FROM sona.archive a JOIN sona.memory m ON m.space = a.space AND m.node_id = a.into_id"
    stands += " WHERE a.space = %s AND a.entity = 'node' AND a.content ->> 'kind' = 'episode' ORDER BY a.archive_id"
    assert _rows(connection, stands, world.name) == [("c",), ("c",)]
    last = (
        "SELECT max(archive_id) FROM sona.archive WHERE space = %s AND entity = 'node' AND reason = 'a near duplicate'"
    )
    _restore(connection, world, [_rows(connection, last, world.name)[0][0]])
    episodes, given = _rows(connection, EPISODES, world.name), _rows(connection, GIVEN, world.name)
    assert [row for row in episodes if row[0] != "c"] == middle[0]
    assert [row for row in given if row[0] != "c"] == middle[1]
    assert _rows(connection, stands, world.name) == [(kept,)]
    _restore(connection, world)
    assert {row[0]: row[1] for row in _rows(connection, EPISODES, world.name)} == {
        "a": 10,
        "b": 10,
        "c": 100,
        "far": 10,
    }
    assert [weight for *_, weight in _rows(connection, GIVEN, world.name)] == [0.5, 0.5, 0.9]


def test_what_helped_since_a_merge_is_kept_where_it_is_undone(world: World, connection: Connection) -> None:
    _twins(world, connection)
    _help(world, "0", "5", times=6)
    _help(world, "1", "5", times=12)
    world.cycle(QUIET)
    _help(world, "0", "5", times=3)
    _help(world, "1", "5", times=2)
    world.cycle(QUIET)
    _restore(connection, world)
    weights = [weight for _, _, weight in _rows(connection, CO_ACCESS, world.name)]
    assert weights == pytest.approx([1 - 0.95**9, 1 - 0.95**14], abs=1e-2)
    world.cycle(QUIET)
    assert [w for *_, w in _rows(connection, CO_ACCESS, world.name)] == pytest.approx(weights, abs=1e-3)


def test_a_dream_beside_which_an_observed_edge_is_moved_comes_back_with_the_merge(
    world: World, connection: Connection
) -> None:
    _twins(world, connection)
    _help(world, "0", "9", times=40)
    _help(world, "1", "5", times=6)
    connection.execute(
        "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight, origin)"
        " VALUES (%s, 'creative', '0', '5', 0.15, 'dreams of run 1')",
        (world.space_id,),
    )
    every = "SELECT kind, source, target, round(weight::numeric, 6) FROM sona.edges WHERE space = %s ORDER BY 1, 2, 3"
    before = _rows(connection, every, world.name)
    world.cycle(_without_dreaming())
    assert _rows(connection, every.replace("ORDER", "AND kind = 'creative' ORDER"), world.name) == []
    gone = "SELECT archive_id FROM sona.archive WHERE space = %s AND entity = 'node'"
    _restore(connection, world, [_rows(connection, gone, world.name)[0][0]])
    assert [row[:3] for row in _rows(connection, every, world.name)] == [row[:3] for row in before]


@pytest.mark.parametrize(("edge", "weight"), [("far", 0.9), ("far", 0.75), ("near", 0.2), ("near", 0.5)])
def test_a_weight_that_was_set_since_a_merge_stays(
    world: World, connection: Connection, edge: str, weight: float
) -> None:
    """0.75 is what the edges to `far` become, and 0.5 what the one to `near` has where it is moved."""
    _near_duplicates(world, connection, "a", "b")
    _add(connection, world, "near", unit(world.items[90]))
    merged_away = "SELECT content ->> 'key' FROM sona.archive WHERE space = %s AND entity = 'node'"
    add = "SELECT sona.add_memory_edge(%s, 'episode', %s, 'episode', %s, %s)"
    for key in ("a", "b"):
        connection.execute(add, (world.name, key, "near", 0.5 if key == "b" else 1e-9))
    connection.execute("DELETE FROM sona.memory_edge WHERE space_id = %s AND weight = 1e-9", (world.space_id,))
    before = _rows(connection, GIVEN, world.name)
    assert world.cycle(_without_dreaming())["consolidate"]["nodes_merged"] == 1
    ((gone,),) = _rows(connection, merged_away, world.name)
    kept = "a" if gone == "b" else "b"
    connection.execute(add, (world.name, kept, edge, weight))
    _restore(connection, world)
    after = {row[:2]: row[2] for row in _rows(connection, GIVEN, world.name)}
    assert after.pop((kept, edge)) == weight
    assert after == {row[:2]: row[2] for row in before if row[:2] != (kept, edge)}


def test_an_item_that_is_merged_twice_counts_once(world: World, connection: Connection) -> None:
    _twins(world, connection)
    _help(world, "0", "5", times=6)
    _help(world, "1", "5", times=12)
    world.cycle(QUIET)
    gone = "SELECT a.content ->> 'key' FROM sona.archive a WHERE a.space = %s AND a.entity = 'node'"
    ((item,),) = _rows(connection, gone, world.name)
    connection.execute("SELECT sona.add_memory_node(%s, 'item', %s, %s)", (world.name, item, world.items[0]))
    world.cycle(QUIET)
    assert _rows(connection, gone, world.name) == [(item,), (item,)]
    world.cycle(QUIET)
    accesses = "SELECT sum(access_count)::int FROM sona.memory WHERE space = %s AND kind = 'item'"
    assert _rows(connection, accesses, world.name) == [(2 * 18,)]


def test_an_edge_by_hand_stays_what_it_is_beside_one_by_outcomes(world: World, connection: Connection) -> None:
    world.teach(60)
    world.cycle()
    ((source, target),) = _rows(
        connection,
        "SELECT source, target FROM sona.edges WHERE space = %s AND kind = 'co_access'"
        " ORDER BY weight DESC, 1, 2 LIMIT 1",
        world.name,
    )
    connection.execute("SELECT sona.add_memory_edge(%s, 'item', %s, 'item', %s, 0.3)", (world.name, source, target))
    world.cycle()
    world.teach(30)
    world.cycle()
    between = "SELECT kind, weight FROM sona.edges WHERE space = %s AND source = %s AND target = %s ORDER BY 1"
    observed, given = _rows(connection, between, world.name, source, target)
    assert (observed[0], given) == ("co_access", ("given", 0.3))
