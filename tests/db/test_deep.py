"""Loop C in Postgres: the memory graph grows, is consolidated, dreamt over and measured, and nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest

from sona_pg.config import DeepLoopConfig
from sona_pg.learning.judged_dreams import DreamNight, dream_night
from sona_pg.loops import deep
from sona_pg.loops.deep import deep_loop
from sona_pg.loops.deep_config import DeepConfig
from sona_pg.store.connection import Connection

from .deep_worlds import BACKGROUND, DIM, ITEMS, TOPICS, World, _at_one_instant, _memory, _rows, _tables
from .deep_worlds import connection as connection
from .deep_worlds import world as world
from .vectors import unit

# What is there is what was learned ------------------------------------------------------------------------------------


def test_a_cycle_makes_a_graph_of_what_was_learned(world: World, connection: Connection) -> None:
    world.teach(300)
    world.cycle(BACKGROUND)
    facts = world.cycle()
    counts = "SELECT kind, count(*) FROM sona.memory WHERE space = %s GROUP BY 1"
    kinds = dict(_rows(connection, counts, world.name))
    edges = dict(_rows(connection, "SELECT kind, count(*) FROM sona.edges WHERE space = %s GROUP BY 1", world.name))
    assert kinds["pattern"] == TOPICS
    assert kinds["item"] == facts["grow"]["items_embedded"] > 200
    assert kinds["concept"] == facts["hierarchy"]["concepts"] >= 3
    assert edges["pattern"] == facts["grow"]["pattern_edges"] > 100
    assert edges["creative"] == facts["dream"]["edges_proposed"] > 5
    # Items of a pattern are those of its topic; where topics are neighbours, a few of the other one.
    of_topic = _rows(
        connection,
        "SELECT max(n) / sum(n) FROM (SELECT p.source, p.target::int / %s AS topic, sum(p.weight) AS n"
        " FROM sona.edges p WHERE p.space = %s AND p.kind = 'pattern' GROUP BY 1, 2) t GROUP BY source",
        ITEMS,
        world.name,
    )
    assert len(of_topic) == TOPICS
    assert min(share for (share,) in of_topic) > 0.7
    # An item was accessed as often as it helped.
    assert _rows(
        connection,
        "SELECT count(*) FROM sona.memory m JOIN sona.item_outcome o ON o.item_id = m.key AND o.space_id = %s"
        " WHERE m.space = %s AND m.kind = 'item' AND m.access_count <> o.helped",
        world.engine.space.space_id,
        world.name,
    ) == [(0,)]
    embedded = _rows(
        connection, "SELECT key, embedding FROM sona.memory WHERE space = %s AND kind = 'item'", world.name
    )
    assert all((embedding == world.items[int(item)]).all() for item, embedding in embedded)


def test_every_dream_says_what_became_of_it(world: World, connection: Connection) -> None:
    world.teach(300)
    world.cycle(BACKGROUND)
    facts = world.cycle(deep_loop(DeepConfig(DeepLoopConfig(dreams_per_cycle=30, dreams_per_node=0))))["dream"]
    dreams = _rows(
        connection,
        "SELECT dream_id, cardinality(path), path[1] LIKE 'item %%' OR path[1] LIKE 'pattern %%' OR path[1] LIKE"
        " 'concept %%', kinds[1], creative_jumps = cardinality(array_positions(kinds, 'jump')), novelty, coherence,"
        " utility, diversity, quality, phi, phi_threshold, is_integrated, reason FROM sona.dreams WHERE space = %s"
        " ORDER BY 1",
        world.name,
    )
    assert [dream[0] for dream in dreams] == list(range(1, 31))
    for _, length, is_named, first, jumps_fit, novelty, coherence, utility, diversity, quality, phi, *rest in dreams:
        level, is_integrated, reason = rest
        assert (length, is_named, first, jumps_fit) == (15, True, "start", True)
        assert all(0 <= share <= 1 for share in (novelty, coherence, utility, diversity, quality, phi, level))
        assert quality == pytest.approx(0.3 * novelty + 0.4 * coherence + 0.3 * utility)
        assert is_integrated == (phi >= level)
        assert reason == "integrated" if is_integrated else f"integration is {phi:.3f}" in reason
    assert sum(dream[-2] for dream in dreams) == facts["integrated"] > 0
    again = world.cycle(deep_loop(DeepConfig(DeepLoopConfig(dreams_per_cycle=5, dreams_per_node=0))))["dream"]
    assert again["dreams"] == 5
    last = _rows(connection, "SELECT max(dream_id), count(DISTINCT path) FROM sona.dreams WHERE space = %s", world.name)
    assert last == [(35, 35)]


def test_edges_by_dreams_are_weak_marked_new_and_go_in_one_statement(world: World, connection: Connection) -> None:
    world.teach(300)
    world.cycle(BACKGROUND)
    observed = (
        "SELECT source_kind || ' ' || source, target_kind || ' ' || target, weight FROM sona.edges"
        " WHERE space = %s AND kind <> 'creative' ORDER BY 1, 2, 3"
    )
    world.cycle(deep_loop(DeepConfig(DeepLoopConfig(dreams_per_cycle=0))))
    before = _rows(connection, observed, world.name)
    facts = _at_one_instant(world, connection)["dream"]
    assert _rows(connection, observed, world.name) == before
    creative = _rows(
        connection,
        "SELECT weight, origin, source, target FROM sona.edges WHERE space = %s AND kind = 'creative'",
        world.name,
    )
    assert len(creative) == facts["edges_proposed"] > 0
    assert {weight for weight, *_ in creative} == {0.15}
    assert all(origin.startswith("dreams of run ") for _, origin, *_ in creative)
    pairs = {frozenset(ends) for *ends, _ in before}
    assert not pairs & {frozenset(ends) for _, _, *ends in creative}
    assert _rows(connection, "SELECT sona.forget_dreams(%s)", world.name) == [(len(creative),)]
    assert _rows(connection, "SELECT count(*) FROM sona.edges WHERE space = %s AND kind = 'creative'", world.name) == [
        (0,)
    ]


def test_dreams_that_predict_nothing_stay_out(world: World, connection: Connection) -> None:
    """Events at random: each connects its three items, which says nothing of what the next one will connect."""
    for query in world.rng.standard_normal((300, DIM)):
        helped = [str(item) for item in world.rng.choice(TOPICS * ITEMS, 3, replace=False)]
        world.engine.record(unit(query), helped, [1.0, 1.0, 1.0])
    world.engine.flush()
    world.cycle(BACKGROUND)
    done = world.cycle()
    facts, nodes = done["dream"], done["consolidate"]["nodes"]
    assert (facts["confirmed"], facts["integrated"], facts["edges_proposed"]) == (False, 0, 0)
    assert facts["dreams"] == 6 * nodes
    reasons = _rows(
        connection, "SELECT DISTINCT reason FROM sona.dreams WHERE space = %s AND phi >= phi_threshold", world.name
    )
    assert all("have not shown that they help here" in reason for (reason,) in reasons)
    assert _rows(
        connection, "SELECT dreams_help, dream_auc < 0.6 FROM sona.integration WHERE space = %s", world.name
    ) == [(False, True)]


def test_events_are_read_as_the_graph_stands(
    world: World, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item that was merged as the one that stands for it; events of several items alone, the oldest first."""
    seen: list[Any] = []

    def spy(*settings: Any, **others: Any) -> DreamNight:  # noqa: ANN401
        seen.append(others["events"])
        return dream_night(*settings, **others)

    monkeypatch.setattr(deep, "dream_night", spy)
    connection.execute("SELECT sona.add_memory_node(%s, 'episode', 'a', %s)", (world.name, world.items[0]))
    world.cycle()
    assert seen == [None]  # no edge comes from events
    connection.execute(f"UPDATE {world.table} SET embedding = %s WHERE id = 2", (world.items[1],))
    for helped in (["1", "2", "3"], ["7"], ["4", "2"], ["6", "5"]):
        world.engine.record(world.centres[0], helped, [1.0] * len(helped))
    world.engine.flush()
    assert world.cycle()["consolidate"]["nodes_merged"] == 1
    keys = [
        key for (key,) in _rows(connection, "SELECT key FROM sona.memory WHERE space = %s ORDER BY node_id", world.name)
    ]
    (stands,) = {"1", "2"} & set(keys)
    assert [sorted(keys[place] for place in event) for event in seen[1]] == [[stands, "3"], [stands, "4"], ["5", "6"]]


# Consolidation never destroys -----------------------------------------------------------------------------------------


def test_two_cycles_at_one_instant_are_one(world: World, connection: Connection) -> None:
    world.teach(200)
    world.cycle(BACKGROUND)
    quiet = deep_loop(DeepConfig(DeepLoopConfig(dreams_per_cycle=0)))
    world.cycle(quiet)
    before = _memory(connection, world)
    facts = _at_one_instant(world, connection, quiet)["consolidate"]
    assert _memory(connection, world) == before
    assert [facts[name] for name in ("edges_changed", "edges_pruned", "nodes_merged", "nodes_archived")] == [0, 0, 0, 0]


def test_what_goes_is_in_the_archive_and_comes_back_as_it_was(world: World, connection: Connection) -> None:
    world.teach(60)
    world.cycle()
    space_id = world.engine.space.space_id
    # What nobody has used for years.
    connection.execute("SELECT sona.add_memory_node(%s, 'episode', 'old', %s, 0.1, 0.05)", (world.name, world.items[0]))
    connection.execute("SELECT sona.add_memory_node(%s, 'episode', 'new', %s)", (world.name, world.items[5]))
    connection.execute("SELECT sona.add_memory_edge(%s, 'episode', 'old', 'episode', 'new', 0.7)", (world.name,))
    connection.execute(
        "UPDATE sona.memory_node_state t SET last_access = now() - interval '10 years' FROM sona.memory_node n"
        " WHERE t.space_id = %s AND n.space_id = t.space_id AND n.node_id = t.node_id AND n.key = 'old'",
        (space_id,),
    )
    connection.execute(
        "UPDATE sona.memory_node SET created_at = now() - interval '10 years' WHERE space_id = %s AND key = 'old'",
        (space_id,),
    )
    before = _memory(connection, world)
    facts = _at_one_instant(world, connection, later="400 days")["consolidate"]
    assert facts["nodes_archived"] >= 1
    assert facts["edges_pruned"] > 10
    assert _rows(connection, "SELECT count(*) FROM sona.memory WHERE space = %s AND key = 'old'", world.name) == [(0,)]
    reasons = {
        reason for (reason,) in _rows(connection, "SELECT reason FROM sona.archive WHERE space = %s", world.name)
    }
    assert {"too weak", "of little value, unused and old"} <= reasons
    gone = {
        table: [row for row in rows if row not in _memory(connection, world)[table]] for table, rows in before.items()
    }
    ids = _rows(connection, "SELECT array_agg(archive_id) FROM sona.archive WHERE space = %s", world.name)[0][0]
    assert _rows(connection, "SELECT sona.restore_memory(%s, %s)", world.name, ids) == [(len(ids),)]
    after = _memory(connection, world)
    old = [row for row in before["memory_node"] if row[2] == "old"]
    assert [row for row in after["memory_node"] if row[2] == "old"] == old
    lost = [row for row in gone["memory_edge"] if row not in after["memory_edge"]]
    # Those that stayed have another weight; those that went are back, bit for bit.
    still = {row[:5] for row in _memory(connection, world)["memory_edge"]}
    assert all(row[:5] in still for row in lost)
    assert sum(row in after["memory_edge"] for row in gone["memory_edge"]) >= facts["edges_pruned"]
    assert _rows(connection, "SELECT count(*) FROM sona.archive WHERE space = %s", world.name) == [(0,)]


def test_what_goes_may_be_kept_for_as_long_as_can_be_set(world: World, connection: Connection) -> None:
    world.teach(40)
    for_ever = deep_loop(DeepConfig(DeepLoopConfig(dreams_per_cycle=0, keep_archive_seconds=1e11)))
    world.cycle(for_ever)
    assert _at_one_instant(world, connection, for_ever, later="400 days")["consolidate"]["archive_expired"] == 0
    assert _rows(connection, "SELECT count(*) > 0 FROM sona.archive WHERE space = %s", world.name) == [(True,)]


def test_near_duplicates_become_one_and_no_access_is_lost(world: World, connection: Connection) -> None:
    world.teach(60)
    for key, shift in (("a", 0.0), ("b", 1e-3), ("c", 0.5)):
        vector = unit(world.items[7] + shift * world.items[100])
        connection.execute("SELECT sona.add_memory_node(%s, 'episode', %s, %s)", (world.name, key, vector))
    connection.execute("SELECT sona.add_memory_edge(%s, 'episode', 'a', 'episode', 'c', 0.5)", (world.name,))
    connection.execute("SELECT sona.add_memory_edge(%s, 'episode', 'b', 'episode', 'c', 0.5)", (world.name,))
    connection.execute(
        "UPDATE sona.memory_node_state t SET access_count = 10 + t.node_id FROM sona.memory_node n"
        " WHERE t.space_id = %s AND n.space_id = t.space_id AND n.node_id = t.node_id AND n.kind = 'episode'",
        (world.engine.space.space_id,),
    )
    total = "SELECT sum(access_count)::int FROM sona.memory WHERE space = %s AND kind = 'episode'"
    before = _rows(connection, total, world.name)
    assert world.cycle()["consolidate"]["nodes_merged"] == 1
    assert _rows(connection, total, world.name) == before
    (kept,) = [
        key
        for (key,) in _rows(
            connection, "SELECT key FROM sona.memory WHERE space = %s AND key IN ('a', 'b')", world.name
        )
    ]
    assert _rows(
        connection, "SELECT source, target, weight FROM sona.edges WHERE space = %s AND kind = 'given'", world.name
    ) == [(kept, "c", 0.75)]
    facts = _at_one_instant(world, connection)["consolidate"]
    assert (facts["nodes_merged"], facts["edges_changed"]) == (0, 0)


def test_items_that_are_merged_stay_merged_while_outcomes_go_on(world: World, connection: Connection) -> None:
    twins = world.items.copy()
    twins[1::2] = unit(twins[0::2] + 1e-3 * world.rng.standard_normal(twins[0::2].shape))
    table = f"public.deep_{next(_tables)}"
    connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector)")
    connection.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s)", list(enumerate(twins)))
    world.engine.set_items(table, "id", "embedding")
    world.teach(200)
    facts = world.cycle()
    merged = facts["consolidate"]["nodes_merged"]
    assert merged > 50
    accesses = "SELECT sum(access_count)::int, count(*) FROM sona.memory WHERE space = %s AND kind = 'item'"
    helped = "SELECT sum(helped)::int FROM sona.item_outcome WHERE space_id = %s"
    values = "SELECT node_id, importance, quality FROM sona.memory WHERE space = %s ORDER BY 1"
    before = _rows(connection, values, world.name)
    assert _at_one_instant(world, connection)["consolidate"]["nodes_merged"] == 0
    assert _rows(connection, values, world.name) == before
    total, _ = _rows(connection, accesses, world.name)[0]
    assert [(total,)] == _rows(connection, helped, world.engine.space.space_id)
    world.teach(100)
    again = world.cycle()
    assert again["consolidate"]["nodes_merged"] <= 15
    total, _ = _rows(connection, accesses, world.name)[0]
    assert [(total,)] == _rows(connection, helped, world.engine.space.space_id)
