"""What loop C removes is in the archive, and comes back as it was: into its own space, once, and without a copy."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from sona_pg.store.connection import Connection, connect

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
from .deep_worlds import BACKGROUND, DIM, World, _at_one_instant, _rows
from .deep_worlds import connection as connection
from .deep_worlds import world as world
from .vectors import unit


def _make_old(connection: Connection, world: World, key: str) -> None:
    """Nobody has used the episode for years, and it is worth little."""
    connection.execute(
        "UPDATE sona.memory_node_state t SET last_access = now() - interval '10 years', importance = 0.1,"
        " quality = 0.05 FROM sona.memory_node n WHERE t.space_id = %s AND n.space_id = t.space_id"
        " AND n.node_id = t.node_id AND n.key = %s",
        (world.engine.space.space_id, key),
    )
    connection.execute(
        "UPDATE sona.memory_node SET created_at = now() - interval '10 years' WHERE space_id = %s AND key = %s",
        (world.engine.space.space_id, key),
    )


def test_nothing_is_restored_into_another_space(world: World, connection: Connection, module_url: str) -> None:
    victim = World(module_url, "victim", seed=5)
    key = {"own": world.engine.space.space_id, "other": victim.engine.space.space_id}
    _add(connection, world, "x")
    forged = "jsonb_build_object('space_id', %(other)s::bigint, 'node_id', 77, 'key', 'planted')"
    archive = "INSERT INTO sona.memory_archive (space_id, run_id, entity, content, reason) SELECT %(own)s, 1,"
    connection.execute(
        f"{archive} 'node', to_jsonb(n) || {forged} || jsonb_build_object('state', to_jsonb(t) || {forged}), 'a test'"
        " FROM sona.memory_node n JOIN sona.memory_node_state t USING (space_id, node_id) WHERE n.space_id = %(own)s",
        key,
    )
    connection.execute(
        f"{archive} 'edge', jsonb_build_object('space_id', %(other)s::bigint, 'kind', 'given',"
        " 'source_kind', 'episode', 'source', 'x', 'target_kind', 'episode', 'target', 'planted', 'weight', 0.5,"
        " 'origin', 'a test',"
        " 'created_at', now(), 'updated_at', now(), 'decayed_at', now()), 'a test'",
        key,
    )
    assert _restore(connection, world) == 2
    assert _rows(connection, "SELECT space FROM sona.memory WHERE key = 'planted'") == [(world.name,)]
    assert _rows(connection, "SELECT space FROM sona.edges WHERE target = 'planted'") == [(world.name,)]
    victim.engine.close()


def test_what_is_not_restored_stays_in_the_archive(world: World, connection: Connection) -> None:
    world.teach(40)
    connection.execute(
        "SELECT sona.add_memory_node(%s, 'episode', 'old', %s, title => 'precious')", (world.name, world.items[0])
    )
    _make_old(connection, world, "old")
    assert world.cycle(QUIET)["consolidate"]["nodes_archived"] >= 1
    _add(connection, world, "old")
    _restore(connection, world)
    assert _rows(connection, "SELECT title FROM sona.memory WHERE space = %s AND key = 'old'", world.name) == [(None,)]
    assert _rows(
        connection, "SELECT content ->> 'title' FROM sona.archive WHERE space = %s AND entity = 'node'", world.name
    ) == [("precious",)]


def test_a_node_that_has_lost_its_state_goes_to_the_archive_and_comes_back(
    world: World, connection: Connection
) -> None:
    world.teach(40)
    world.cycle(BACKGROUND)
    world.cycle(QUIET)
    key = {"space": world.engine.space.space_id}
    ((node,),) = connection.execute(
        "SELECT key FROM sona.memory_node WHERE space_id = %(space)s AND kind = 'pattern' ORDER BY node_id LIMIT 1", key
    ).fetchall()
    connection.execute(
        "DELETE FROM sona.memory_node_state t USING sona.memory_node n WHERE n.space_id = %(space)s"
        " AND n.key = %(node)s AND n.kind = 'pattern' AND t.space_id = n.space_id AND t.node_id = n.node_id",
        key | {"node": node},
    )
    connection.execute(
        "DELETE FROM sona.pattern WHERE space_id = %(space)s AND pattern_id = %(node)s::bigint", key | {"node": node}
    )
    assert world.cycle(QUIET)["grow"]["nodes_gone"] == 1
    _restore(connection, world)
    assert connection.execute(
        "SELECT count(*) FROM sona.memory_node WHERE space_id = %(space)s AND kind = 'pattern' AND key = %(node)s",
        key | {"node": node},
    ).fetchall() == [(1,)]


def test_who_is_forgotten_takes_nothing_that_was_given_by_hand(world: World, connection: Connection) -> None:
    world.teach(60)
    world.teach(20, user="somebody")
    world.cycle(QUIET)
    for key in ("old", "older"):
        _add(connection, world, key)
        _make_old(connection, world, key)
    connection.execute("SELECT sona.add_memory_edge(%s, 'episode', 'old', 'episode', 'older', 0.5)", (world.name,))
    _at_one_instant(world, connection, QUIET, later="400 days")
    kinds = "SELECT DISTINCT entity, content ->> 'kind' FROM sona.archive WHERE space = %s ORDER BY 1, 2"
    assert ("edge", "co_access") in _rows(connection, kinds, world.name)
    world.engine.forget("somebody")
    assert _rows(connection, kinds, world.name) == [("edge", "given"), ("node", "episode")]
    assert _restore(connection, world) == 3


def test_dreams_that_are_forgotten_do_not_come_back(world: World, connection: Connection) -> None:
    world.teach(60)
    world.cycle(QUIET)
    connection.execute(
        "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight, origin)"
        " SELECT space_id, 'creative', min(key), max(key), 0.15, 'dreams of run 1' FROM sona.memory_node"
        " WHERE space_id = %s AND kind = 'item' GROUP BY 1",
        (world.engine.space.space_id,),
    )
    _at_one_instant(world, connection, QUIET, later="400 days")
    faded = "SELECT count(*) FROM sona.archive WHERE space = %s AND content ->> 'kind' = 'creative'"
    assert _rows(connection, faded, world.name) == [(1,)]
    assert _rows(connection, "SELECT sona.forget_dreams(%s)", world.name) == [(1,)]
    _restore(connection, world)
    creative = "SELECT count(*) FROM sona.edges WHERE space = %s AND kind = 'creative'"
    assert _rows(connection, creative, world.name) == [(0,)]


def test_an_edge_by_dreams_is_counted_once_whatever_became_of_it(world: World, connection: Connection) -> None:
    """One is moved to another node, one becomes part of another, and one fades and is dreamt again."""
    _near_duplicates(world, connection, "a", "b")
    for key, place in (("near", 90), ("off", 130)):
        _add(connection, world, key, unit(world.items[place]))
    dream = (
        "INSERT INTO sona.memory_edge (space_id, kind, source_kind, source, target_kind, target, weight, origin,"
        " decayed_at) SELECT space_id, 'creative', 'episode', %s, 'episode', %s, 0.15, 'dreams', now() - %s::interval"
        " FROM sona.space WHERE name = %s"
    )
    for source, target in (("a", "off"), ("b", "off"), ("b", "near"), ("a", "near")):
        connection.execute(dream, (source, target, "0", world.name))
    connection.execute(dream, ("near", "off", "400 days", world.name))
    graph, archive = "SELECT count(*) FROM sona.edges", "SELECT count(*) FROM sona.archive"
    assert world.cycle(_without_dreaming())["consolidate"]["nodes_merged"] == 1
    assert _rows(connection, f"{graph} WHERE space = %s AND kind = 'creative'", world.name) == [(2,)]
    assert _rows(connection, f"{archive} WHERE space = %s AND content ->> 'kind' = 'creative'", world.name)[0][0] >= 3
    connection.execute(dream, ("near", "off", "0", world.name))
    assert _rows(connection, "SELECT sona.forget_dreams(%s)", world.name) == [(3,)]
    assert _rows(connection, "SELECT sona.forget_dreams(%s)", world.name) == [(0,)]


def test_what_is_observed_takes_the_place_of_an_edge_by_dreams_with_the_next_cycle(
    world: World, connection: Connection
) -> None:
    _help(world, "0", "7")
    _help(world, "5", "9")
    world.cycle(QUIET)
    connection.execute(
        "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight, origin)"
        " VALUES (%s, 'creative', '0', '5', 0.15, 'dreams of run 1')",
        (world.space_id,),
    )
    _help(world, "0", "5")
    between = "SELECT kind, weight FROM sona.edges WHERE space = %s AND source = '0' AND target = '5' ORDER BY 1"
    observed, dreamt = _rows(connection, between, world.name)
    assert (observed[0], dreamt) == ("co_access", ("creative", 0.15))
    world.cycle(_without_dreaming())
    ((kind, weight),) = _rows(connection, between, world.name)
    assert (kind, weight) == ("co_access", pytest.approx(observed[1], abs=1e-4))


def test_edges_by_dreams_go_when_dreams_do_not_help_any_more_and_wait_for_new_evidence(
    world: World, connection: Connection
) -> None:
    creative = "SELECT count(*) FROM sona.edges WHERE space = %s AND kind = 'creative'"
    archived = "SELECT archive_id FROM sona.archive WHERE space = %s AND content ->> 'kind' = 'creative' ORDER BY 1"
    world.teach(300)
    facts = world.cycle()["dream"]
    assert (facts["confirmed"], facts["edges_withdrawn"]) == (True, 0)
    ((edges,),) = _rows(connection, creative, world.name)
    assert edges == facts["edges_proposed"] > 0
    # What they were confirmed by is gone.
    queries = "FROM sona.remembered_query WHERE space_id = (SELECT space_id FROM sona.space WHERE name = %s)"
    kept = _rows(connection, f"SELECT ordinal, helped {queries}", world.name)
    connection.execute("UPDATE sona.remembered_query SET helped = '{}' WHERE space_id = %s", (world.space_id,))
    facts = world.cycle()["dream"]
    assert (facts["confirmed"], facts["edges_withdrawn"], facts["edges_proposed"]) == (False, edges, 0)
    assert _rows(connection, creative, world.name) == [(0,)]
    ids = [id for (id,) in _rows(connection, archived, world.name)]
    assert len(ids) == edges
    facts = world.cycle()["dream"]
    assert facts["edges_withdrawn"] == 0
    with pytest.raises(psycopg.DatabaseError, match="dreams do not help in this space"):
        _restore(connection, world, ids[:1])
    _restore(connection, world)
    assert _rows(connection, creative, world.name) == [(0,)]
    assert [id for (id,) in _rows(connection, archived, world.name)] == ids
    for ordinal, helped in kept:
        connection.execute(
            "UPDATE sona.remembered_query SET helped = %s WHERE space_id = %s AND ordinal = %s",
            (helped, world.space_id, ordinal),
        )
    assert world.cycle()["dream"]["confirmed"]
    _restore(connection, world)
    assert _rows(connection, creative, world.name)[0][0] >= edges


def test_entries_that_are_not_in_the_archive_are_refused(world: World, connection: Connection) -> None:
    _near_duplicates(world, connection, "a", "b")
    world.cycle(QUIET)
    known = [id for (id,) in _rows(connection, "SELECT archive_id FROM sona.archive WHERE space = %s", world.name)]
    for ids, named in (([*known, max(known) + 1], str(max(known) + 1)), ([-1], "-1"), ([None], "NULL")):
        with pytest.raises(psycopg.errors.DatabaseError, match=f"no entry {named} in the archive") as refused:
            connection.execute("SELECT sona.restore_memory(%s, %s::bigint[])", (world.name, ids))
        assert refused.value.sqlstate == "SN003"
    assert _restore(connection, world, known) == len(known)
    with pytest.raises(psycopg.errors.DatabaseError, match=f"no entry {known[0]} in the archive"):
        _restore(connection, world, known)


NODE: dict[str, object] = {"node_id": 5_000, "kind": "episode", "key": "e", "level": 0, "created_at": "2026-01-01"}
STATE: dict[str, object] = {"importance": 0.5, "access_count": 3, "last_access": "2026-01-01", "consolidation_count": 0}
NODE |= {"embedding": str([0.5] * DIM), "state": STATE}
EDGE: dict[str, object] = {"kind": "co_access", "source_kind": "item", "source": "0", "target_kind": "item"}
EDGE |= {"target": "5", "weight": 0.5, "origin": "trajectories", "created_at": "2026-01-01"}
EDGE |= {"updated_at": "2026-01-01", "decayed_at": "2026-01-01"}
EDGE_BEFORE = EDGE | {"after": 0.6}
NODE_BEFORE = NODE | STATE | {"node_id": 1, "after": STATE | {"created_at": "2026-01-01"}}
ENTRIES = {"node": NODE, "edge": EDGE, "edge before": EDGE_BEFORE, "node before": NODE_BEFORE}


def _forge(connection: Connection, world: World, entity: str, content: object) -> int:
    ((made,),) = connection.execute(
        "INSERT INTO sona.memory_archive (space_id, run_id, entity, content, reason)"
        " VALUES (%s, 1, %s, %s, 'a test') RETURNING archive_id",
        (world.space_id, entity, Jsonb(content)),
    ).fetchall()
    return int(made)


@pytest.mark.parametrize(
    ("entity", "change", "says"),
    [
        ("edge", {"weight": "NaN"}, "weight NaN"),
        ("edge", {"weight": -5}, "weight -5"),
        ("edge", {"weight": 1e300}, "weight 1e"),
        ("edge", {"weight": None}, "weight NULL"),
        ("edge", {"weight": "abc"}, "abc"),
        ("edge", {"kind": "zzz"}, "kind 'zzz'"),
        ("edge", {"source_kind": "zzz"}, "kind 'zzz'"),
        ("edge", {"target_kind": "elsewhere"}, "kind 'elsewhere'"),
        ("edge", {"target": "0"}, "to itself"),
        ("edge", {"target": ""}, "no key"),
        ("edge", {"origin": None}, "origin"),
        ("edge", {"decayed_at": "infinity"}, "time"),
        ("edge before", {"weight": "Infinity"}, "weight Infinity"),
        ("edge before", {"after": "x"}, "x"),
        ("edge before", {"after": "NaN"}, "NaN"),
        ("edge before", {"after": None}, "NULL"),
        ("node", {"node_id": "x"}, "x"),
        ("node", {"node_id": 1e30}, "out of range"),
        ("node", {"node_id": 2**62}, "the id"),
        ("node", {"kind": "zzz"}, "kind 'zzz'"),
        ("node", {"key": "k" * 501}, "501 bytes"),
        ("node", {"level": -1}, "level -1"),
        ("node", {"is_distinct": "maybe"}, "maybe"),
        ("node", {"embedding": "[1,2]"}, "2 dimensions"),
        ("node", {"embedding": "[NaN,2]"}, "NaN"),
        ("node", {"state": 7}, "state"),
        ("node", {"state": STATE | {"quality": "NaN"}}, "quality NaN"),
        ("node", {"state": STATE | {"importance": 2}}, "importance 2"),
        ("node", {"state": STATE | {"access_count": -5}}, "-5 accesses"),
        ("node", {"into_id": "x"}, "x"),
        ("node before", {"access_count": -(2**62)}, "accesses"),
        ("node before", {"after": 7}, "what it became"),
        ("node before", {"after": STATE | {"access_count": 2**63}}, "out of range"),
        ("node before", {"after": STATE | {"created_at": "when"}}, "when"),
    ],
)
def test_what_no_graph_holds_is_not_restored(
    world: World, connection: Connection, entity: str, change: dict[str, object], says: str
) -> None:
    _refused(connection, world, entity, ENTRIES[entity] | change, says)
    assert _rows(connection, "SELECT FROM sona.edges WHERE space = %s", world.name) == []
    assert _rows(connection, "SELECT FROM sona.memory WHERE space = %s", world.name) == []


@pytest.mark.parametrize("entity", [*ENTRIES, "zzz"])
@pytest.mark.parametrize("content", [{}, [1], 5, "x", None])
def test_what_is_no_row_is_not_restored(world: World, connection: Connection, entity: str, content: object) -> None:
    _refused(connection, world, entity, content, "")


def _refused(connection: Connection, world: World, entity: str, content: object, says: str) -> None:
    forged = _forge(connection, world, entity, content)
    for ids in (None, [forged]):
        with pytest.raises(psycopg.errors.DatabaseError, match=f"entry {forged} of the archive.*{says}") as refused:
            _restore(connection, world, ids)
        assert refused.value.sqlstate == "SN003"


def test_rows_such_as_a_cycle_archives_come_back(world: World, connection: Connection) -> None:
    """Those that the others differ from in one value; and the next node has another id."""
    for entity in ("edge before", "node before", "edge", "node"):
        _forge(connection, world, entity, ENTRIES[entity] | ({"node_id": 5_000} if "node" in entity else {}))
    assert _restore(connection, world) == 4
    assert connection.execute("SELECT sona.add_memory_node(%s, 'episode', 'f')", (world.name,)).fetchall() == [(5_001,)]


def test_tiny_weights_are_taken_out_of_each_other(world: World, connection: Connection) -> None:
    _forge(connection, world, "edge before", EDGE | {"weight": 1e-300, "after": 1.0})
    _forge(connection, world, "edge", EDGE | {"weight": 1e-300})
    assert _restore(connection, world) == 2
    assert _rows(connection, "SELECT weight FROM sona.edges WHERE space = %s", world.name) == []


def test_what_was_dreamt_and_is_observed_by_now_leaves_that_alone(world: World, connection: Connection) -> None:
    """Also where restored: the edge that was observed has taken nothing in."""
    _help(world, "0", "7")
    _help(world, "5", "9")
    world.cycle(QUIET)
    connection.execute(
        "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight, origin)"
        " VALUES (%s, 'creative', '0', '5', 0.15, 'dreams of run 1')",
        (world.space_id,),
    )
    _help(world, "0", "5")
    _at_one_instant(world, connection, _without_dreaming(), later="2 days")
    archived = "SELECT entity, content ->> 'kind', reason, is_merge FROM sona.memory_archive WHERE space_id = %s"
    assert _rows(connection, archived, world.space_id) == [("edge", "creative", "observed by now", False)]
    observed = (
        "SELECT kind, source, target, weight, decayed_at FROM sona.edges WHERE space = %s AND kind = 'co_access'"
        " ORDER BY source, target"
    )
    before = _rows(connection, observed, world.name)
    evidence = "UPDATE sona.memory_state SET evidence = %s WHERE space_id = %s"
    connection.execute(evidence, (Jsonb({"confirmed": False}), world.space_id))
    assert _restore(connection, world) == 0
    connection.execute(evidence, (None, world.space_id))
    assert _restore(connection, world) == 1
    assert _rows(connection, observed, world.name) == before


def test_a_node_of_a_pattern_is_not_added_by_hand(world: World, connection: Connection) -> None:
    with pytest.raises(psycopg.errors.DatabaseError, match="kind 'pattern'") as refused:
        connection.execute("SELECT sona.add_memory_node(%s, 'pattern', '1')", (world.name,))
    assert (refused.value.sqlstate, "choose another kind" in str(refused.value.diag.message_hint)) == ("SN003", True)


def test_what_every_cycle_makes_anew_fills_no_archive(world: World, connection: Connection) -> None:
    _twins(world, connection)
    _help(world, "0", "5", times=6)
    _help(world, "1", "5", times=12)
    world.teach(200)
    world.cycle(BACKGROUND)
    merged = world.cycle(QUIET)["consolidate"]["nodes_merged"]
    _at_one_instant(world, connection, QUIET, later="250 days")
    kinds = "SELECT DISTINCT content ->> 'kind' FROM sona.archive WHERE space = %s AND entity LIKE 'edge%%'"
    assert merged >= 1
    assert _rows(connection, kinds, world.name) == [("co_access",)]


def test_concepts_come_back_with_what_they_are_made_of(world: World, connection: Connection) -> None:
    world.teach(300)
    world.cycle(BACKGROUND)
    world.cycle(QUIET)
    concepts = "SELECT concept, level, children FROM sona.concepts WHERE space = %s ORDER BY 1"
    before = _rows(connection, concepts, world.name)
    connection.execute(
        "DELETE FROM sona.pattern WHERE space_id = %(space)s AND pattern_id IN (SELECT pattern_id FROM sona.pattern"
        " WHERE space_id = %(space)s ORDER BY pattern_id LIMIT 8)",
        {"space": world.engine.space.space_id},
    )
    world.cycle(QUIET)
    gone = "SELECT content ->> 'key' FROM sona.archive WHERE space = %s AND entity = 'node' AND content ->> 'kind' = %s"
    retired = [key for (key,) in _rows(connection, gone, world.name, "concept")]
    assert retired
    _restore(connection, world)
    after = _rows(connection, concepts, world.name)
    assert [row for row in after if row[0] in retired] == [row for row in before if row[0] in retired]


def test_what_somebody_changes_meanwhile_stays(world: World, connection: Connection) -> None:
    world.teach(40)
    for key in ("old", "mate"):
        _add(connection, world, key)
    connection.execute("SELECT sona.add_memory_edge(%s, 'episode', 'mate', 'episode', 'old', 0.5)", (world.name,))
    for key in ("old", "mate"):
        _make_old(connection, world, key)

    def change() -> None:
        connection.execute("SELECT sona.add_memory_node(%s, 'episode', 'old', NULL, 0.99, 0.99)", (world.name,))

    world.cycle(_meanwhile(change))
    assert _rows(connection, EPISODES.replace(", last_access, created_at", ""), world.name) == [
        ("mate", 0, 0.05),
        ("old", 0, 0.99),
    ]
    assert _rows(connection, GIVEN, world.name) == [("mate", "old", 0.5)]


def test_nobody_changes_the_graph_while_it_is_restored(world: World, connection: Connection, module_url: str) -> None:
    _help(world, "0", "5")
    world.cycle(QUIET)
    with connect(module_url) as other, other.transaction(force_rollback=True):
        other.execute("SELECT sona.restore_memory(%s)", (world.name,))
        for table in ("loop_schedule", "learner", "strategist", "memory_state"):
            waits = sql.SQL("SELECT FROM sona.{} WHERE space_id = %s FOR NO KEY UPDATE NOWAIT")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                connection.execute(waits.format(sql.Identifier(table)), (world.engine.space.space_id,))
