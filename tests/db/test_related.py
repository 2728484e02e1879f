"""The strategy `related` in Postgres: in SQL as in Python, frozen without a graph, by evidence that leaks nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from acceptance.weighing import weigh_again, weighed
from numpy.typing import NDArray

from sona_pg import SonaEngine, SpaceConfig
from sona_pg.config import EvidenceConfig
from sona_pg.learning.associations import Associations
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.remembered import InMemoryOutcomes, PoolIndex, look_around
from sona_pg.learning.strategies import Scored, Strategy
from sona_pg.learning.strategist import Strategist
from sona_pg.loops.deep import DEEP
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, connect
from sona_pg.store.spaces import set_strategy

from .cycles import run_cycle
from .vectors import unit

DIM, ITEMS = 32, 600
_tables = itertools.count()

Vector = NDArray[np.float32]


class World:
    """Questions that seldom recur: each is about an item, and what that goes with is needed, too."""

    def __init__(self, url: str, name: str, *, batch: int = 64) -> None:
        self.url, self.name, self.rng = url, name, np.random.default_rng(0)
        self.items = unit(self.rng.standard_normal((ITEMS, DIM)))
        order = np.argsort(-(self.items @ self.items.T), axis=1)
        self.partner = order[np.arange(ITEMS), self.rng.integers(15, 80, ITEMS)]
        table = f"public.related_{next(_tables)}"
        with connect(url) as connection:
            connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector, even boolean)")
            connection.cursor().executemany(
                f"INSERT INTO {table} VALUES (%s, %s, %s)",
                [(row, item, row % 2 == 0) for row, item in enumerate(self.items)],
            )
        self.engine = SonaEngine.connect(
            url,
            space=name,
            dim=DIM,
            background=False,
            space_config=SpaceConfig(control_share=0.0, implicit_feedback=True),
            evidence=EvidenceConfig(batch=batch),
        )
        self.engine.set_items(table, "id", "embedding", filter_columns=["even"])

    def join(self, connection: Connection) -> None:
        """Give the graph by hand: an edge from every item to what it goes with."""
        key = {"space": self.engine.space.space_id, "n": ITEMS, "partner": self.partner.tolist()}
        connection.execute(
            "INSERT INTO sona.memory_node (space_id, node_id, kind, key)"
            " SELECT %(space)s, i + 1, 'item', i::text FROM generate_series(0, %(n)s - 1) i",
            key,
        )
        connection.execute(
            "INSERT INTO sona.memory_node_state (space_id, node_id, importance)"
            " SELECT %(space)s, i, 0.5 FROM generate_series(1, %(n)s) i",
            key,
        )
        connection.execute("INSERT INTO sona.memory_state (space_id, last_node_id) VALUES (%(space)s, %(n)s)", key)
        connection.execute(
            "INSERT INTO sona.memory_edge (space_id, kind, source, target, weight)"
            " SELECT DISTINCT ON (1, 3, 4) %(space)s, 'given', least(n - 1, p)::text, greatest(n - 1, p)::text, 0.3"
            " FROM unnest(%(partner)s::int[]) WITH ORDINALITY u (p, n)",
            key,
        )

    def ask(self, about: int) -> Vector:
        return unit(self.items[about] + 0.05 * self.rng.standard_normal(DIM))

    def live(self, events: int, flush_every: int = 25) -> None:
        for event in range(events):
            about = int(self.rng.integers(ITEMS))
            found = self.engine.recall(self.ask(about))
            self.engine.record(found, rewards={str(about): 1.0, str(self.partner[about]): 1.0})
            if event % flush_every == flush_every - 1:
                self.engine.flush()
        self.engine.flush()

    def associations(self, connection: Connection) -> Associations:
        """The live graph between items."""
        rows = connection.execute(
            "SELECT source, target, weight FROM sona.memory_edge WHERE space_id = %s", (self.engine.space.space_id,)
        ).fetchall()
        return Associations.of_pairs(((source, target), weight) for source, target, weight in rows)

    def scored(self, query: Vector, associations: Associations) -> Scored:
        """What the strategist says, without a database."""
        pool = ItemPool([str(row) for row in range(ITEMS)], self.items)
        strategist = Strategist(pool)
        config = strategist.config
        around = look_around(query, InMemoryOutcomes(DIM), PoolIndex(pool), config, associations=associations)
        return strategist.answer(query, around)

    def cycle(self) -> dict[str, Any]:
        found = run_cycle(self.url, self.name, DEEP)
        assert found.state == "done", found.reason
        return found.facts


@pytest.fixture
def world(url: str, space_name: str) -> Iterator[World]:
    made = World(url, space_name)
    yield made
    made.engine.close()


def _set(world: World, connection: Connection, strategy: str) -> None:
    set_strategy(connection, world.name, strategy)
    world.engine.flush()


def _recall(
    connection: Connection, world: World, query: Vector, k: int = 10, filter: str | None = None
) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT item_id, rank, score, strategy, propensity, arm FROM sona.recall(%s, %s, %s, %s) ORDER BY rank",
        (world.name, query, k, filter),
    ).fetchall()


def test_without_a_graph_it_is_the_frozen_answer_bit_for_bit(world: World, connection: Connection) -> None:
    nodes = connection.execute(
        "SELECT sona.add_memory_node(%s, 'concept', 'a'), sona.add_memory_node(%s, 'concept', 'b')", (world.name,) * 2
    ).fetchall()
    assert nodes
    for with_edges in (False, True):
        if with_edges:  # none that is near an item
            connection.execute("SELECT sona.add_memory_edge(%s, 'concept', 'a', 'concept', 'b', 1)", (world.name,))
        for k, filter in ((10, None), (1, None), (50, None), (7, '{"even": true}')):
            for about in range(5):
                query = 3 * world.ask(about)
                _set(world, connection, "frozen")
                frozen = _recall(connection, world, query, k, filter)
                _set(world, connection, "related")
                related = _recall(connection, world, query, k, filter)
                assert [row[:3] for row in related] == [row[:3] for row in frozen]
                assert {row[3:] for row in frozen} == {("frozen", 1.0, "learned")}
                assert {row[3:] for row in related} == {("related", 1.0, "learned")}
    assert world.engine.recall(world.ask(0)).answer.strategy == "related"


def test_sql_scores_as_the_strategist_does(world: World, connection: Connection) -> None:
    world.join(connection)
    _set(world, connection, "related")
    associations, found_partner = world.associations(connection), 0
    for about in range(40):
        query = world.ask(about)
        rows = _recall(connection, world, query, 20)
        scored = world.scored(query, associations)
        best = np.sort(scored.scores[Strategy.RELATED])[::-1][:20] / 20
        np.testing.assert_allclose([row[2] for row in rows], best, atol=2e-6)
        mine = dict(zip(scored.reached.tolist(), scored.scores[Strategy.RELATED] / 20, strict=True))
        np.testing.assert_allclose([mine[scored.around.row[row[0]]] for row in rows], best, atol=2e-6)
        assert [row[1] for row in rows] == list(range(1, 21))
        assert [item.item_id for item in world.engine.recall(query, 20).items] == [row[0] for row in rows]
        found_partner += str(world.partner[about]) in {row[0] for row in rows[:10]}
    assert found_partner >= 35


def test_activation_passes_through_patterns_by_both_ends_of_an_edge(world: World, connection: Connection) -> None:
    _set(world, connection, "related")
    for item in ("3", "400"):
        connection.execute("SELECT sona.add_memory_node(%s, 'item', %s)", (world.name, item))
    connection.execute(
        "INSERT INTO sona.memory_node (space_id, node_id, kind, key) VALUES (%s, 1000, 'pattern', '7')",
        (world.engine.space.space_id,),
    )
    for item in ("3", "400"):
        connection.execute("SELECT sona.add_memory_edge(%s, 'pattern', '7', 'item', %s, 0.5)", (world.name, item))
    query = world.items[3]
    scores = {row[0]: row[2] for row in _recall(connection, world, query)}
    cosines = np.sort(world.items @ query)[::-1][:5]
    # A half of what comes to the pattern goes on to each; one of five that start is known.
    expected = world.items[400] @ query + cosines[0] / cosines.sum()
    assert scores["400"] == pytest.approx(float(expected), abs=1e-5)


def test_few_many_and_filtered_items(world: World, connection: Connection) -> None:
    world.join(connection)
    _set(world, connection, "related")
    query = world.ask(0)
    ten = [row[0] for row in _recall(connection, world, query)]
    assert [row[0] for row in _recall(connection, world, query, 2)] == ten[:2]
    everything = _recall(connection, world, query, ITEMS + 10)
    assert [row[0] for row in everything[:10]] == ten
    assert len({row[0] for row in everything}) == len(everything) == ITEMS
    even = _recall(connection, world, query, 30, '{"even": true}')
    assert len(even) == 30
    assert all(int(row[0]) % 2 == 0 for row in even)
    found = world.engine.recall(query, 30, filter={"even": True})
    assert [item.item_id for item in found.items] == [row[0] for row in even]
    zero = _recall(connection, world, np.zeros(DIM, dtype=np.float32))
    assert len(zero) == 10
    assert {row[2] for row in zero} == {0.0}


def test_a_reader_may_ask_and_adapt_gives_the_query(world: World, connection: Connection) -> None:
    world.join(connection)
    _set(world, connection, "related")
    query = 2 * world.ask(1)
    row = connection.execute("SELECT sona.adapt(%s, %s)", (world.name, query), binary=True).fetchone()
    assert row is not None
    assert row[0].tobytes() == query.tobytes()
    world.engine.flush()
    assert world.engine.adapt(query).tobytes() == query.tobytes()


def test_live_edges_are_no_evidence_and_a_snapshot_counts_from_its_entry_on(
    world: World, connection: Connection, url: str
) -> None:
    space = world.engine.space

    def one(statement: str) -> tuple[Any, ...]:
        (row,) = connection.execute(statement, (space.space_id,)).fetchall()
        return row

    # What helps together goes into the graph at once: by that, an event would be answered by itself.
    world.live(30)
    gain = "SELECT gain, events FROM sona.strategy_evidence WHERE space_id = %s AND strategy = 'related'"
    assert one("SELECT count(*) > 20 FROM sona.memory_edge WHERE space_id = %s") == (True,)
    assert one(gain) == (0.0, 30)
    # Recorded and learned, but not weighed: the snapshot knows these, and must not answer them.
    with SonaEngine.connect(url, space=world.name, dim=DIM, background=False) as other:
        for about in range(200, 220):
            other.record(world.ask(about), [str(about), str(world.partner[about])], [1.0, 1.0])
        other.instant.flush_updates()
        world.join(connection)
        facts = world.cycle()
        assert facts["snapshot"]["ledger_entries"] == 50
        assert facts["snapshot"]["edges"] > ITEMS / 2
    assert one("SELECT memory_run FROM sona.strategist WHERE space_id = %s") == (None,)
    world.engine.flush()
    assert one(gain) == (0.0, 50)
    world.live(20)
    assert one("SELECT memory_run IS NOT NULL FROM sona.strategist WHERE space_id = %s") == (True,)
    total, events = one(gain)
    assert events == 70
    assert total > 0
    # The same ledger gives the same, in other batches.
    before = weighed(connection, space)
    for batch in (1, 7, 1000):
        after = weigh_again(connection, lambda: connect(url), space, batch=batch)
        for table, rows in before.items():
            assert after[table] == rows, table
    # Another cycle takes the place of the first.
    world.cycle()
    world.live(5)
    assert one("SELECT count(*) FROM sona.memory_snapshot WHERE space_id = %s") == (1,)


def test_what_was_merged_is_weighed_as_it_answers(world: World, connection: Connection) -> None:
    """Near items 0 and 2 are such as are merged with them, of which one name alone has a node then."""
    world.items[1] = unit(world.items[0] + 1e-3 * world.rng.standard_normal(DIM))
    world.items[3] = unit(world.items[2] + 1e-3 * world.rng.standard_normal(DIM))
    table = f"public.related_{next(_tables)}"
    connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector)")
    connection.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s)", list(enumerate(world.items)))
    world.engine.set_items(table, "id", "embedding")
    world.join(connection)
    assert world.cycle()["consolidate"]["nodes_merged"] >= 2
    (content,) = connection.execute(
        "SELECT content FROM sona.memory_snapshot WHERE space_id = %s", (world.engine.space.space_id,)
    ).fetchall()[0]
    snapshot = Associations.from_bytes(bytes(content))
    assert len({"0", "1", "2", "3"} & set(snapshot.merged)) == 2
    _set(world, connection, "related")
    for about in range(4):
        query = world.ask(about)
        scored = world.scored(query, snapshot)
        rows = _recall(connection, world, query)
        best = np.sort(scored.scores[Strategy.RELATED])[::-1][:10] / 20
        np.testing.assert_allclose([row[2] for row in rows], best, atol=2e-6)
        mine = dict(zip(scored.reached.tolist(), scored.scores[Strategy.RELATED] / 20, strict=True))
        np.testing.assert_allclose([mine[scored.around.row[row[0]]] for row in rows], best, atol=2e-6)


def test_where_the_graph_is_proven_it_answers_and_says_why(world: World, connection: Connection) -> None:
    world.join(connection)
    world.cycle()
    world.live(360)
    status = connection.execute("SELECT in_force FROM sona.status WHERE space = %s", (world.name,)).fetchone()
    assert status == ("related",)
    about = 11
    found = world.engine.recall(world.ask(about))
    assert found.answer.strategy == "related"
    assert str(world.partner[about]) in [item.item_id for item in found.items]
    rows = _recall(connection, world, world.ask(about))
    assert {row[3] for row in rows} == {"related"}
    turn = connection.execute(
        "SELECT reason FROM sona.turns WHERE space = %s AND after = 'related' LIMIT 1", (world.name,)
    ).fetchone()
    assert turn is not None
    assert "memory graph leads to is proven to beat" in turn[0]
    id = world.engine.record(found, rewards={str(world.partner[about]): 1.0})
    world.engine.flush()
    why = connection.execute(
        "SELECT item_id, amount, detail FROM sona.why(%s) WHERE part = 'item' ORDER BY place", (id,)
    ).fetchall()
    moved = {item: (amount, detail["memory"]) for item, amount, detail in why}
    assert moved[str(world.partner[about])][0] > 0.05
    assert all(amount == pytest.approx(memory) for amount, memory in moved.values())


def test_a_damaged_snapshot_is_reported_and_holds_nothing_up(world: World, connection: Connection) -> None:
    space = world.engine.space
    connection.execute(
        "INSERT INTO sona.memory_snapshot (space_id, run_id, ordinal, content) VALUES (%s, 1, 0, 'damaged')",
        (space.space_id,),
    )
    world.live(5)
    found = connection.execute(
        "SELECT events, memory_run FROM sona.strategist WHERE space_id = %s", (space.space_id,)
    ).fetchone()
    assert found == (5, 1)
    (said,) = connection.execute("SELECT message FROM sona.errors WHERE space = %s", (world.name,)).fetchall()
    assert "memory snapshot" in said[0]
    assert "deploy" not in said[0]


def test_a_snapshot_goes_with_a_user_who_is_forgotten(world: World, connection: Connection) -> None:
    about = 5
    query = world.ask(about)
    world.engine.record(query, [str(about), str(world.partner[about])], [1.0, 1.0], user_id="somebody")
    world.live(10)
    world.cycle()
    world.live(5)
    key = (world.engine.space.space_id,)
    assert connection.execute("SELECT count(*) FROM sona.memory_snapshot WHERE space_id = %s", key).fetchone() == (1,)
    world.engine.forget("somebody")
    assert connection.execute("SELECT count(*) FROM sona.memory_snapshot WHERE space_id = %s", key).fetchone() == (0,)
    assert connection.execute("SELECT memory_run FROM sona.strategist WHERE space_id = %s", key).fetchone() == (None,)
    world.engine.flush()
    assert connection.execute("SELECT events FROM sona.strategist WHERE space_id = %s", key).fetchone() == (15,)
    assert spaces.get_space(connection, world.name).space_id == key[0]


def test_what_was_merged_is_found_row_by_row_in_a_graph_that_has_just_grown(
    url: str, connection: Connection, space_name: str
) -> None:
    """Without statistics a join looked at every node for every merged one: minutes, in an answer."""
    nodes, merged = 4000, 100
    with SonaEngine.connect(url, space=space_name, dim=4, background=False) as engine:
        key = {"space": engine.space.space_id, "nodes": nodes, "merged": merged}
    connection.execute(
        "INSERT INTO sona.memory_node (space_id, node_id, kind, key)"
        " SELECT %(space)s, i, 'item', 'item ' || i FROM generate_series(1, %(nodes)s) i",
        key,
    )
    connection.execute(
        "INSERT INTO sona.memory_archive (space_id, run_id, entity, content, into_id, reason)"
        " SELECT %(space)s, 1, 'node', jsonb_build_object('kind', 'item', 'key', 'gone ' || i), i, 'merged'"
        " FROM generate_series(1, %(merged)s) i",
        key,
    )
    ((plan,),) = connection.execute(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM sona._merged_nodes(%(space)s) WHERE kind = 'item'", key
    ).fetchall()
    found = plan[0]["Plan"]
    assert found["Actual Rows"] == merged
    # Some pages for each merged one, by two indexes; all nodes are on more than these.
    assert found["Shared Hit Blocks"] + found["Shared Read Blocks"] < 20 * merged
