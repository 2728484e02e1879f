"""The memory graph as people write and read it: by hand, concepts, integration, transfer, activation and search."""

from __future__ import annotations

import itertools

import numpy as np
import psycopg
import pytest

from sona_pg import StoreConfig
from sona_pg.loops.deep import DEEP
from sona_pg.store.connection import Connection

from .cycles import run_cycle
from .deep_worlds import BACKGROUND, DIM, TOPICS, World, _rows
from .deep_worlds import connection as connection
from .deep_worlds import world as world
from .vectors import unit


def test_an_edge_by_hand_is_one_whichever_end_is_named_first(world: World, connection: Connection) -> None:
    add = "SELECT sona.add_memory_edge(%s, %s, %s, %s, %s, %s)"
    nodes = (("episode", "a"), ("episode", "B"), ("procedure", "a"), ("item", "10"))
    for kind, key in nodes:
        connection.execute("SELECT sona.add_memory_node(%s, %s, %s)", (world.name, kind, key))
    for one, other in itertools.permutations(nodes, 2):
        connection.execute(add, (world.name, *one, *other, 0.25 if nodes.index(one) < nodes.index(other) else 0.5))
    edges = _rows(
        connection,
        "SELECT source, source_kind, target, target_kind, weight FROM sona.edges WHERE space = %s",
        world.name,
    )
    assert len(edges) == 6
    assert all((source, source_kind) < (target, target_kind) for source, source_kind, target, target_kind, _ in edges)
    assert {weight for *_, weight in edges} == {0.5}, "the weight that was given last"


def test_edges_have_numbers_of_their_own_whatever_their_keys_hold(connection: Connection) -> None:
    parts = ("", "a", "b", "\x1f", "a\x1f", "\x1fa", "a\x1fb")
    numbers = _rows(
        connection,
        "SELECT count(*), count(DISTINCT sona._edge_key('given', a, b, c, d))"
        " FROM unnest(%s::text[]) a, unnest(%s::text[]) b, unnest(%s::text[]) c, unnest(%s::text[]) d",
        *[list(parts)] * 4,
    )
    assert numbers == [(len(parts) ** 4, len(parts) ** 4)]


def test_what_is_not_named_of_a_node_stays(world: World, connection: Connection) -> None:
    found = "SELECT importance, quality, title FROM sona.memory WHERE space = %s AND key = 'x'"
    connection.execute("SELECT sona.add_memory_node(%s, 'episode', 'x')", (world.name,))
    assert _rows(connection, found, world.name) == [(0.5, None, None)]
    connection.execute(
        "SELECT sona.add_memory_node(%s, 'episode', 'x', importance => 0.9, quality => 0.8, title => 't')",
        (world.name,),
    )
    connection.execute("SELECT sona.add_memory_node(%s, 'episode', 'x', title => 'u')", (world.name,))
    assert _rows(connection, found, world.name) == [(0.9, 0.8, "u")]


def test_what_is_no_weight_or_has_no_node_is_left_out(world: World, connection: Connection) -> None:
    world.teach(60)
    space_id = world.engine.space.space_id
    connection.cursor().executemany(
        "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight, source_kind)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        [
            (space_id, "given", "nobody", "1", 0.5, "concept"),
            (space_id, "given", "1", "2", float("nan"), "item"),
            (space_id, "given", "1", "3", -1.0, "item"),
            (space_id, "given", "1", "1", 0.5, "item"),
            (space_id, "sideways", "1", "2", 0.5, "item"),
        ],
    )
    facts = world.cycle()
    assert facts["consolidate"]["nodes"] > 0
    assert facts["dream"]["dreams"] == max(50, 6 * facts["consolidate"]["nodes"])


def test_concepts_keep_their_names(world: World, connection: Connection) -> None:
    world.teach(300)
    world.cycle(BACKGROUND)
    first = world.cycle()["hierarchy"]
    concepts = "SELECT concept, level, children FROM sona.concepts WHERE space = %s ORDER BY 1"
    before = _rows(connection, concepts, world.name)
    assert {level for _, level, _ in before} == set(range(1, first["levels"] + 1))
    below = sorted(child for _, level, children in before if level == 1 for child in children)
    assert below == sorted(
        f"pattern {id}"
        for (id,) in _rows(connection, "SELECT pattern_id FROM sona.patterns WHERE space = %s", world.name)
    )
    again = world.cycle()["hierarchy"]
    assert (again["created"], again["retired"], again["kept"]) == (0, 0, first["concepts"])
    assert _rows(connection, concepts, world.name) == before


def test_a_concept_by_hand_is_none_of_the_hierarchy(world: World, connection: Connection) -> None:
    world.teach(300)
    world.cycle(BACKGROUND)
    for key in range(60):
        connection.execute(
            "SELECT sona.add_memory_node(%s, 'concept', %s, NULL, 1.0, 0.9, 'mine')", (world.name, str(key))
        )
    mine = (
        "SELECT count(*) FROM sona.memory WHERE space = %s AND kind = 'concept' AND title = 'mine'"
        " AND level = 0 AND embedding IS NULL AND quality = 0.9 AND access_count = 0"
    )
    assert world.cycle()["hierarchy"]["created"] >= 3
    assert _rows(connection, mine, world.name) == [(60,)]
    # Patterns are gone, and the hierarchy with them.
    connection.execute("DELETE FROM sona.pattern WHERE space_id = %s", (world.engine.space.space_id,))
    assert world.cycle()["hierarchy"]["retired"] >= 3
    assert _rows(connection, mine, world.name) == [(60,)]
    assert _rows(connection, "SELECT count(*) FROM sona.concepts WHERE space = %s", world.name) == [(0,)]
    with pytest.raises(psycopg.Error, match="choose another one") as refused:
        connection.execute("SELECT sona.add_memory_node(%s, 'concept', 'learned 7')", (world.name,))
    assert refused.value.sqlstate == "SN003"
    connection.execute("SELECT sona.add_memory_node(%s, 'concept', 'learned by heart')", (world.name,))
    connection.execute("SELECT sona.add_memory_node(%s, 'episode', 'learned 7')", (world.name,))


def test_integration_is_that_of_the_patterns_as_a_system(world: World, connection: Connection) -> None:
    world.teach(300)
    world.cycle(BACKGROUND)
    facts = world.cycle()["integration"]
    assert 0 <= facts["phi"] < 0.1, "topics follow each other by chance"
    assert _rows(
        connection,
        "SELECT phi, chance, jsonb_array_length(patterns) FROM sona.integration WHERE space = %s",
        world.name,
    ) == [(facts["phi"], facts["chance"], len(facts["patterns"]))]


def test_patterns_cross_spaces_only_where_both_allow_it(module_url: str, connection: Connection) -> None:
    worlds = [World(module_url, name, seed=3, embedder="model") for name in ("here", "there", "elsewhere")]
    for each in worlds:
        each.teach(300)
        each.cycle(BACKGROUND)
    found = "SELECT space, origin, count(*) FROM sona.edges WHERE kind = 'analogy' GROUP BY 1, 2 ORDER BY 1, 2"
    worlds[0].cycle()
    connection.execute("SELECT sona.set_transfer('here', true)")
    worlds[0].cycle()
    assert _rows(connection, found) == []
    connection.execute("SELECT sona.set_transfer('there', true)")
    facts = worlds[0].cycle()["transfer"]
    assert facts["spaces"] == 1
    assert _rows(connection, found) == [("here", "space there", facts["analogies"])]
    assert facts["analogies"] >= TOPICS - 2
    connection.execute("SELECT sona.set_transfer('here', false)")
    worlds[0].cycle()
    assert _rows(connection, found) == []
    for each in worlds:
        each.engine.close()


def test_activation_spreads_from_a_query_as_in_memory(world: World, connection: Connection) -> None:
    world.teach(300)
    world.cycle(BACKGROUND)
    world.cycle()
    nodes = _rows(
        connection,
        "SELECT kind || ' ' || key, embedding FROM sona.memory WHERE space = %s ORDER BY node_id",
        world.name,
    )
    place = {name: row for row, (name, _) in enumerate(nodes)}
    edges = _rows(
        connection,
        "SELECT source_kind || ' ' || source, target_kind || ' ' || target, weight FROM sona.edges WHERE space = %s",
        world.name,
    )
    transition = np.zeros((len(nodes), len(nodes)))
    for a, b, weight in edges:
        transition[place[a], place[b]] += weight
        transition[place[b], place[a]] += weight
    transition /= np.maximum(transition.sum(axis=1, keepdims=True), 1e-300)
    query = unit(world.centres[0] + 0.1 * world.rng.standard_normal(DIM))
    cosine = np.array([float(unit(e) @ query) if e is not None else -1.0 for _, e in nodes])
    start = np.argsort(-cosine)[:5]
    wave = np.zeros(len(nodes))
    wave[start] = cosine[start]
    total = np.zeros(len(nodes))
    for _ in range(2):
        wave = 0.7 * wave @ transition
        total += wave
    total[start] = -1
    found = _rows(
        connection, "SELECT kind || ' ' || key, activation FROM sona.related(%s, %s, 2, 20)", world.name, query
    )
    expected = np.argsort(-total)[:20]
    assert [activation for _, activation in found] == pytest.approx([total[row] for row in expected], rel=1e-5)
    assert len({name for name, _ in found} & {nodes[row][0] for row in expected}) >= 19


def test_activation_finds_what_was_merged_where_it_became_part(world: World, connection: Connection) -> None:
    space_id = world.engine.space.space_id
    for item in ("1", "2", "3"):
        connection.execute(
            "SELECT sona.add_memory_node(%s, 'item', %s, %s)", (world.name, item, world.items[int(item)])
        )
    connection.execute(
        "INSERT INTO sona.memory_archive (space_id, run_id, entity, content, into_id, reason)"
        " SELECT n.space_id, 1, 'node', jsonb_build_object('kind', 'item', 'key', k.gone), n.node_id, 'a duplicate'"
        " FROM sona.memory_node n JOIN (VALUES ('1', 'was 1'), ('2', 'was 2'), ('2', '3')) k (stands, gone)"
        " ON k.stands = n.key WHERE n.space_id = %s",
        (space_id,),
    )
    connection.cursor().executemany(
        "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight) VALUES (%s, 'co_access', %s, %s, %s)",
        [(space_id, "1", "was 2", 0.6), (space_id, "3", "was 1", 0.2), (space_id, "1", "was 1", 0.9)],
    )
    found = _rows(connection, "SELECT key, activation FROM sona.related(%s, %s, 1, 9, 1)", world.name, world.items[1])
    # 3 has its name again.
    assert found == [("2", pytest.approx(0.7 * 0.75)), ("3", pytest.approx(0.7 * 0.25))]
    back = _rows(connection, "SELECT key, activation FROM sona.related(%s, %s, 1, 9, 1)", world.name, world.items[2])
    assert back == [("1", pytest.approx(0.7))]


def test_activation_passes_no_edge_without_a_weight(world: World, connection: Connection) -> None:
    connection.execute("SELECT sona.add_memory_node(%s, 'item', '1', %s)", (world.name, world.items[1]))
    weights = {"2": 0.5, "3": float("nan"), "4": -1.0, "5": 0.0, "6": 7.0, "7": float("inf")}
    connection.cursor().executemany(
        "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight) VALUES (%s, 'given', %s, %s, %s)",
        [
            (world.engine.space.space_id, *ends, weight)
            for item, weight in weights.items()
            for ends in (("1", item), (item + "0", "1"))
        ],
    )
    found = _rows(connection, "SELECT key, activation FROM sona.related(%s, %s, 1, 20)", world.name, world.items[1])
    assert found == [("2", pytest.approx(0.35)), ("20", pytest.approx(0.35))]


def test_many_nodes_are_searched_through_an_index(world: World, connection: Connection) -> None:
    world.teach(200)
    world.cycle(BACKGROUND)
    small = StoreConfig(exact_search_rows=50)
    assert run_cycle(world.url, world.name, DEEP, small).facts["transfer"]["nodes_indexed"]
    query = unit(world.centres[3] + 0.1 * world.rng.standard_normal(DIM))
    through = _rows(connection, "SELECT kind, key FROM sona.related(%s, %s, 0, 5)", world.name, query)
    exact = _rows(
        connection,
        "SELECT kind, key FROM sona.memory WHERE space = %s AND embedding IS NOT NULL"
        " ORDER BY embedding <=> %s LIMIT 5",
        world.name,
        query,
    )
    assert sorted(through) == sorted(exact)
    connection.execute("SELECT sona.drop_space(%s)", (world.name,))
    assert _rows(connection, "SELECT count(*) FROM pg_class WHERE relname LIKE 'memory_node_hnsw%%'") == [(0,)]
