"""Loop C in Postgres: the memory graph grows, is consolidated, dreamt over and measured, and nothing is lost."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from sona_pg import SonaEngine, SpaceConfig, StoreConfig
from sona_pg.config import BackgroundConfig, DeepLoopConfig, PatternConfig
from sona_pg.errors import DatabaseBusy, DatabaseUnavailable, PermissionDenied
from sona_pg.learning.judged_dreams import DreamNight, dream_night
from sona_pg.loops import coordinator, deep, deep_phase
from sona_pg.loops.background import background_loop
from sona_pg.loops.cycle import Cycle, Loop
from sona_pg.loops.deep import DEEP, deep_loop
from sona_pg.loops.deep_config import DeepConfig
from sona_pg.loops.rehearsal import rehearse
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from sona_pg.store.migrate import migrate

from .cycles import run_cycle

DIM, TOPICS, ITEMS = 16, 12, 20
"""Topics, and items of each."""

BACKGROUND = background_loop(BackgroundConfig(minimum=1), PatternConfig(k_clusters=TOPICS, min_cluster_size=2))
_tables = itertools.count()

Vector = NDArray[np.float32]


@pytest.fixture(scope="module")
def deep_url(make_database: Callable[[], str]) -> str:
    made = make_database()
    migrate(made)
    return made


@pytest.fixture
def connection(deep_url: str) -> Iterator[Connection]:
    with connect(deep_url) as opened:
        yield opened
        for (name,) in opened.execute("SELECT name FROM sona.space").fetchall():
            opened.execute("SELECT sona.drop_space(%s)", (name,))


class World:
    """Topics; a question of one is helped by some items of it, which neighbours in a ring share more often."""

    def __init__(self, url: str, name: str, seed: int = 0, embedder: str | None = None) -> None:
        self.url, self.rng = url, np.random.default_rng(seed)
        centres = self.rng.standard_normal((TOPICS, DIM))
        self.items = _unit(np.repeat(centres, ITEMS, axis=0) + 0.5 * self.rng.standard_normal((TOPICS * ITEMS, DIM)))
        self.centres = _unit(centres)
        self.table = table = f"public.deep_{next(_tables)}"
        with connect(url) as connection:
            connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector)")
            connection.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s)", list(enumerate(self.items)))
        self.engine = SonaEngine.connect(
            url, space=name, dim=DIM, background=False, embedder=embedder, space_config=SpaceConfig(control_share=0.0)
        )
        self.engine.set_items(table, "id", "embedding")
        self.name, self.space_id = name, self.engine.space.space_id

    def teach(self, events: int, user: str | None = None) -> None:
        for topic in self.rng.integers(0, TOPICS, events):
            first = int(self.rng.integers(0, ITEMS))
            helped = [str(topic * ITEMS + (first + offset) % ITEMS) for offset in (0, 1, 2)]
            query = _unit(self.centres[topic] + 0.2 * self.rng.standard_normal(DIM))
            unhelpful = str(int(self.rng.integers(0, TOPICS * ITEMS)))
            self.engine.record(query, [*helped, unhelpful], [1.0, 1.0, 1.0, 0.0], user_id=user)
        self.engine.flush()

    def cycle(self, loop: Loop = DEEP) -> dict[str, Any]:
        found = run_cycle(self.url, self.name, loop)
        assert found.state == "done", found.reason
        return found.facts


@pytest.fixture
def world(deep_url: str, connection: Connection, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(deep_url, request.node.name[:60])
    yield made
    made.engine.close()


def _unit(vectors: NDArray[Any]) -> Vector:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def _rows(connection: Connection, statement: str, *values: object) -> list[Any]:
    return connection.execute(statement, values).fetchall()


MEMORY = {
    "memory_node": "node_id, kind, key, embedding::text, title, level, created_at",
    "memory_node_state": "node_id, importance, quality, access_count, last_access, consolidation_count",
    "memory_edge": "kind, source_kind, source, target_kind, target, weight, origin, created_at, updated_at, decayed_at",
}


def _memory(connection: Connection, world: World) -> dict[str, list[Any]]:
    return {
        table: _rows(
            connection,
            f"SELECT {columns} FROM sona.{table} WHERE space_id = %s ORDER BY 1, 2, 3, 4, 5",
            world.engine.space.space_id,
        )
        for table, columns in MEMORY.items()
    }


def _at_one_instant(world: World, connection: Connection, loop: Loop = DEEP, later: str = "0") -> dict[str, Any]:
    """Another cycle, as if it were asked for so long after the last one."""
    connection.execute("SELECT sona.run_cycle(%s, 'deep')", (world.name,))
    connection.execute(
        "UPDATE sona.loop_run r SET requested_at = (SELECT max(o.requested_at) FROM sona.loop_run o"
        " WHERE o.space_id = r.space_id AND o.loop = r.loop AND o.state = 'done') + %s::interval"
        " WHERE r.space_id = %s AND r.state = 'requested'",
        (later, world.engine.space.space_id),
    )
    return world.cycle(loop)


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
        world.engine.record(_unit(query), helped, [1.0, 1.0, 1.0])
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
        vector = _unit(world.items[7] + shift * world.items[100])
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
    twins[1::2] = _unit(twins[0::2] + 1e-3 * world.rng.standard_normal(twins[0::2].shape))
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


# Interrupted, refused, forgotten --------------------------------------------------------------------------------------


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


def test_a_deploy_waits_for_a_rehearsal(world: World, deep_url: str) -> None:
    world.teach(60)
    deploying: list[Future[Any]] = []

    def deploy() -> None:
        with connect(deep_url, application="deploying") as connection:
            connection.execute("SELECT sona.deploy(%s, 'frozen')", (world.name,))

    def read(connection: Connection, cycle: Cycle) -> object:
        # Only one that waits for locks is where two could wait for each other.
        deploying.append(pool.submit(deploy))
        waits = "SELECT FROM pg_stat_activity WHERE application_name = 'deploying' AND wait_event_type = 'Lock'"
        with connect(deep_url) as watching:
            while not watching.execute(waits).fetchall():
                assert not deploying[0].done(), "it did not wait"
        return DEEP.phases[0].read(connection, cycle)

    loop = dataclasses.replace(DEEP, phases=(dataclasses.replace(DEEP.phases[0], read=read), *DEEP.phases[1:]))
    with ThreadPoolExecutor(1) as pool:
        found = rehearse(Database(world.url, StoreConfig()), loop, world.name)
    deploying[0].result()
    assert found.facts["consolidate"]["nodes"] > 0


def test_a_worker_needs_the_right_to_make_temporary_tables(
    world: World, deep_url: str, connection: Connection, role: Callable[..., str]
) -> None:
    world.teach(40)
    worker, database = role("deep", "sona_worker"), connection.info.dbname
    ((table,),) = _rows(
        connection, "SELECT items::text FROM sona.item_source WHERE space_id = %s", world.engine.space.space_id
    )
    connection.execute(f"GRANT SELECT ON {table} TO {worker}")
    connection.execute("SELECT sona.grant_space(%s, %s)", (world.name, worker))
    own = Database(psycopg.conninfo.make_conninfo(deep_url, user=worker), StoreConfig())
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
    moved = _unit(world.items[:, ::-1])
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


# Hierarchy, integration, transfer, search -----------------------------------------------------------------------------


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


def test_patterns_cross_spaces_only_where_both_allow_it(deep_url: str, connection: Connection) -> None:
    worlds = [World(deep_url, name, seed=3, embedder="model") for name in ("here", "there", "elsewhere")]
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
    query = _unit(world.centres[0] + 0.1 * world.rng.standard_normal(DIM))
    cosine = np.array([float(_unit(e) @ query) if e is not None else -1.0 for _, e in nodes])
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
    query = _unit(world.centres[3] + 0.1 * world.rng.standard_normal(DIM))
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
