"""Loop C dies at any step of any phase, and comes to the same; nothing is done twice, and nothing recorded is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, LiteralString, NamedTuple

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sona_pg import SonaEngine, SpaceConfig, StoreConfig
from sona_pg.config import BackgroundConfig, ConsolidationConfig, PatternConfig
from sona_pg.loops import coordinator
from sona_pg.loops.background import background_loop
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.deep import DEEP
from sona_pg.steps import CYCLE, ENV_KILL_AT
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import Database
from sona_pg.store.migrate import migrate

from .cycles import run_cycle
from .vectors import unit

DIM, TOPICS, ITEMS = 16, 8, 24
"""Topics, and items of each; the first three of a topic have near duplicates."""
SPACE, OTHER = "deep", "other"

DAY = 86_400.0

BACKGROUND = background_loop(BackgroundConfig(minimum=1), PatternConfig(k_clusters=TOPICS, min_cluster_size=2))
OF_PHASES = CYCLE[CYCLE.index("cycle.after_read") : CYCLE.index("cycle.after_commit") + 1]

BOOKKEEPING = {
    "memory_node": (),
    "memory_node_state": (),
    "memory_edge": (),
    "dream": (),
    "memory_archive": ("archive_id",),
    "memory_snapshot": ("created_at",),
    "memory_state": ("updated_at",),
}
"""What a cycle writes, and the columns that say when it was written, or how often somebody has tried."""


class Clones(NamedTuple):
    """Copies of a database in which a cycle was asked for, their rows in another order, and what one that nobody
    disturbs comes to in the original."""

    make: Callable[[], str]
    undisturbed: str
    expected: dict[str, list[tuple[Any, ...]]]


def _teach(engine: SonaEngine, random: np.random.Generator, centres: NDArray[Any], events: int, items: int) -> None:
    """Each question is helped by three neighbours in the ring of the first so many items of its topic."""
    for topic in random.integers(0, TOPICS, events):
        first = int(random.integers(0, items))
        helped = [str(topic * ITEMS + (first + offset) % items) for offset in (0, 1, 2)]
        query = unit(centres[topic] + 0.2 * random.standard_normal(DIM))
        other = str((topic * ITEMS + ITEMS // 2) % (TOPICS * ITEMS))
        rewards = [1.0, 1.0, 1.0, 0.0]
        engine.record(query, [*helped, other], rewards if other not in helped else [1.0, 1.0, 1.0, 1.0])
    engine.flush()


def _grow(url: str) -> None:
    """Two spaces that correspond to each other; the first has had a cycle, long ago, and was taught more since."""
    random = np.random.default_rng(3)
    centres = unit(random.standard_normal((TOPICS, DIM)))
    items = np.repeat(centres, ITEMS, axis=0) + 0.4 * random.standard_normal((TOPICS * ITEMS, DIM))
    for first in range(0, len(items), ITEMS):
        items[first + 3 : first + 6] = items[first : first + 3] + 0.01 * random.standard_normal((3, DIM))
        items[first + 20] = items[first] + 0.01 * random.standard_normal(DIM)
    with connect(url) as connection:
        connection.execute("CREATE TABLE public.items (id integer PRIMARY KEY, embedding vector)")
        connection.cursor().executemany("INSERT INTO public.items VALUES (%s, %s)", list(enumerate(unit(items))))
        for name in (OTHER, SPACE):
            with SonaEngine.connect(
                url, space=name, dim=DIM, background=False, embedder="one",
                space_config=SpaceConfig(control_share=0.0),
            ) as engine:  # fmt: skip
                engine.set_items("public.items", "id", "embedding")
                _teach(engine, np.random.default_rng(4), centres, 250, 18)
            assert run_cycle(url, name, BACKGROUND).state == "done"
        connection.execute("UPDATE sona.space SET may_transfer = true")
        assert run_cycle(url, SPACE, DEEP).state == "done"
        connection.execute("SELECT sona.add_memory_node(%s, 'episode', 'of no use')", (SPACE,))
        for table, columns in {
            "memory_edge": ("created_at", "updated_at", "decayed_at"),
            "memory_node": ("created_at",),
            "memory_node_state": ("last_access",),
        }.items():
            earlier = ", ".join(f"{column} = {column} - interval '120 days'" for column in columns)
            connection.execute(f"UPDATE sona.{table} SET {earlier}")
        with SonaEngine.connect(url, space=SPACE, background=False) as engine:
            _teach(engine, random, centres, 120, ITEMS)
        assert run_cycle(url, SPACE, BACKGROUND).state == "done"
        connection.execute("SELECT sona.run_cycle(%s, 'deep')", (SPACE,))


def _state(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """What is stored, as text; the archive in its order."""
    with connect(url) as connection:
        found = {}
        for table, left_out in BOOKKEEPING.items():
            columns = connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
                " ORDER BY attnum",
                (f"sona.{table}",),
            ).fetchall()
            names = [name for (name,) in columns if name not in left_out]
            order = "archive_id" if table == "memory_archive" else ", ".join(map(str, range(1, len(names) + 1)))
            chosen = ", ".join(f"{name}::text" for name in names)
            found[table] = connection.execute(f"SELECT {chosen} FROM sona.{table} ORDER BY {order}").fetchall()
        found["run"] = connection.execute(
            "SELECT run_id, state, facts::text, jsonb_path_query_array(phases, '$.name')::text FROM sona.loop_run"
            " WHERE loop = 'deep' ORDER BY 1"
        ).fetchall()
    return found


def _work(url: str, kill_at: str | None = None) -> None:
    command = [sys.executable, "-m", "sona_pg", "worker", "deep", "--once", "--url", url]
    environment = {**os.environ, **({} if kill_at is None else {ENV_KILL_AT: kill_at})}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == (0 if kill_at is None else -signal.SIGKILL), (kill_at, ended.stderr)


@pytest.fixture(scope="module")
def clones(server_url: str, make_database: Callable[[], str]) -> Clones:
    template = make_database()
    migrate(template)
    _grow(template)
    source = psycopg.conninfo.conninfo_to_dict(template)["dbname"]

    def make() -> str:
        url = make_database()
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(str(name))))
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(str(name)), sql.Identifier(str(source)))
            )
        return make_conninfo(server_url, dbname=str(name))

    def make_in_another_order() -> str:
        url = make()
        with connect(url) as connection:
            # Whatever was updated lies behind the rest.
            for table in ("memory_edge", "memory_node", "memory_node_state", "remembered_query", "pattern"):
                connection.execute(f"UPDATE sona.{table} SET space_id = space_id WHERE hashtext(ctid::text) % 2 = 0")
        return url

    undisturbed = make()
    _work(undisturbed)
    return Clones(make_in_another_order, undisturbed, _state(undisturbed))


def test_the_cycle_that_is_killed_does_all_that_a_cycle_can_do(clones: Clones) -> None:
    facts = json.loads(clones.expected["run"][-1][2])
    print(facts)
    for phase, counts in {
        "grow": ("nodes_created", "pattern_edges", "items_embedded"),
        "consolidate": ("edges_strengthened", "edges_decayed", "edges_pruned", "nodes_merged", "nodes_archived"),
        "hierarchy": ("concepts", "levels"),
        "dream": ("dreams", "integrated", "edges_proposed"),
        "transfer": ("analogies",),
    }.items():
        for count in counts:
            assert facts[phase][count] > 0, f"{phase} has no {count}"
    assert facts["integration"]["phi"] is not None


@pytest.mark.parametrize("phase", range(len(DEEP.phases)), ids=[phase.name for phase in DEEP.phases])
def test_a_cycle_that_dies_at_every_step_of_a_phase_comes_to_the_same(phase: int, clones: Clones) -> None:
    url = clones.make()
    # The first of them comes as far as the phase, and the others begin with it.
    for number, step in enumerate(OF_PHASES):
        _work(url, f"{step}:{1 if number else 1 + phase}")
    _work(url)
    assert _state(url) == clones.expected


def test_edges_by_dreams_that_are_withdrawn_go_once_whenever_the_cycle_dies(clones: Clones) -> None:
    (dream,) = [place for place, phase in enumerate(DEEP.phases, 1) if phase.name == "dream"]
    states = []
    for steps in ((), OF_PHASES):
        url = clones.make()
        _work(url)
        with connect(url) as connection:
            # What dreams were confirmed by is gone.
            connection.execute("UPDATE sona.remembered_query SET helped = '{}'")
            ((standing,),) = connection.execute("SELECT count(*) FROM sona.edges WHERE kind = 'creative'").fetchall()
            connection.execute("SELECT sona.run_cycle(%s, 'deep')", (SPACE,))
            connection.execute(
                "UPDATE sona.loop_run SET requested_at = (SELECT max(requested_at) FROM sona.loop_run"
                " WHERE loop = 'deep' AND state = 'done') WHERE loop = 'deep' AND state = 'requested'"
            )
        for number, step in enumerate(steps):
            _work(url, f"{step}:{1 if number else dream}")
        _work(url)
        states.append(_state(url))
        with connect(url) as connection:
            ((withdrawn,),) = connection.execute(
                "SELECT count(*) FROM sona.archive WHERE reason = 'dreams do not help any more'"
            ).fetchall()
            assert not connection.execute("SELECT FROM sona.edges WHERE kind = 'creative'").fetchall()
        facts = json.loads(states[-1]["run"][-1][2])["dream"]
        assert (facts["confirmed"], facts["edges_withdrawn"]) == (False, withdrawn)
        assert withdrawn == standing > 0
    assert states[0] == states[1]


def test_a_cycle_that_dies_before_its_first_phase_and_after_its_last_comes_to_the_same(clones: Clones) -> None:
    url = clones.make()
    for step in CYCLE:
        if step not in OF_PHASES:
            _work(url, step)
    _work(url)
    assert _state(url) == clones.expected


def _consolidate(url: str, *, days_later: float = 0.0) -> dict[str, Any]:
    """A consolidation alone, so many days after the last cycle was asked for."""
    (phase,) = [phase for phase in DEEP.phases if phase.name == "consolidate"]
    with connect(url) as connection:
        connection.execute("SELECT sona.run_cycle(%s, 'deep')", (SPACE,))
        connection.execute(
            "UPDATE sona.loop_run SET requested_at = (SELECT max(requested_at) FROM sona.loop_run WHERE loop = 'deep'"
            " AND state = 'done') + make_interval(secs => %s) WHERE loop = 'deep' AND state = 'requested'",
            (days_later * DAY,),
        )
        runner = LoopCoordinator(Database(url, StoreConfig()), replace(DEEP, phases=(phase,)))
        assert runner.step() == 1
        runner.close()
        ((state, facts),) = connection.execute("SELECT state, facts FROM sona.runs ORDER BY run_id DESC LIMIT 1")
    assert state == "done"
    return facts["consolidate"]


def test_a_second_consolidation_of_the_same_instant_changes_nothing(clones: Clones) -> None:
    url = clones.make()
    _work(url)
    facts = _consolidate(url, days_later=100.0)
    print(facts)
    assert facts["edges_decayed"] > 0
    assert facts["edges_pruned"] > 0
    before = _state(url)
    facts = _consolidate(url)
    assert not any(facts[name] for name in facts if name not in ("nodes", "edges", "bytes_before", "bytes_after"))
    after = _state(url)
    for table in ("memory_node", "memory_node_state", "memory_edge", "memory_archive", "dream"):
        assert after[table] == before[table], table


def test_a_later_consolidation_halves_in_a_half_life_what_is_not_strengthened(clones: Clones) -> None:
    url, config = clones.make(), ConsolidationConfig()
    half_lives = {"co_access": config.half_life_seconds, "creative": config.creative_half_life_seconds}
    _work(url)
    seen = {"decayed": 0, "strengthened": 0}
    for days in (3.0, 4.0, 30.0):
        before = _weights(url)
        facts = _consolidate(url, days_later=days)
        after = _weights(url)
        step = 1 - (1 - config.strengthening) ** min(days * DAY / config.interval_seconds, 1)
        left, expected = 0, {"decayed": 0, "strengthened": 0}
        for edge, weight in before.items():
            faded = weight * 2 ** (-days * DAY / half_lives[edge[0]]) if edge[0] in half_lives else weight
            if edge not in after:
                assert faded < config.prune_weight
            elif after[edge] > weight:
                assert after[edge] == pytest.approx(weight + step * (1 - weight), rel=1e-12)
                expected["strengthened"] += edge[0] in half_lives
            else:
                assert after[edge] == pytest.approx(faded, rel=1e-12)
                expected["decayed"] += edge[0] in half_lives
            left += edge in after
        assert len(after) == left
        assert {name: facts[f"edges_{name}"] for name in expected} == expected
        seen = {name: count + expected[name] for name, count in seen.items()}
    assert min(seen.values()) > 0


def test_cycles_without_news_remove_nothing_and_leave_no_edge_without_its_nodes(clones: Clones) -> None:
    url = clones.make()
    _work(url)
    states = []
    for _ in range(2):
        with connect(url) as connection:
            connection.execute("SELECT sona.run_cycle(%s, 'deep')", (SPACE,))
            connection.execute(
                "UPDATE sona.loop_run SET requested_at = (SELECT max(requested_at) FROM sona.loop_run"
                " WHERE loop = 'deep' AND state = 'done') WHERE loop = 'deep' AND state = 'requested'"
            )
            _work(url)
            states.append(_state(url))
            lacking = connection.execute(
                "SELECT e.kind, u.* FROM sona.memory_edge e JOIN sona.space s USING (space_id),"
                " LATERAL (VALUES (e.source_kind, e.source), (e.target_kind, e.target)) u (node_kind, key)"
                " WHERE s.name = %s AND e.kind <> 'analogy' AND NOT EXISTS (SELECT FROM sona.memory_node n"
                " WHERE n.space_id = e.space_id AND n.kind = u.node_kind AND n.key = u.key)",
                (SPACE,),
            ).fetchall()
            assert not lacking
    for table in ("memory_node", "memory_archive"):
        assert states[0][table] == states[1][table] == clones.expected[table]
    assert states[0]["memory_node_state"] == states[1]["memory_node_state"]
    assert set(clones.expected["memory_edge"]) <= set(states[0]["memory_edge"]) <= set(states[1]["memory_edge"])


def _weights(url: str) -> dict[tuple[str, ...], float]:
    with connect(url) as connection:
        rows = connection.execute(
            "SELECT kind, source_kind, source, target_kind, target, weight FROM sona.edges WHERE space = %s", (SPACE,)
        ).fetchall()
    return {tuple(edge): weight for *edge, weight in rows if edge[0] != "analogy"}


# ---- outcomes that come meanwhile ------------------------------------------------------------------------------------


def _at(monkeypatch: pytest.MonkeyPatch, step: str, call: Callable[[], None]) -> None:
    """Do something when a cycle in this process is at a step of its consolidation, the third phase."""
    left = [3]

    def reached(name: str) -> None:
        left[0] -= name == step
        if name == step and left[0] == 0:
            call()

    monkeypatch.setattr(coordinator, "reached", reached)


def _cycle_here(url: str) -> None:
    runner = LoopCoordinator(Database(url, StoreConfig()), DEEP)
    assert runner.step() == 1
    runner.close()


def _one(connection: Connection, query: LiteralString) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row


def test_what_changes_while_a_consolidation_computes_is_left_to_the_next(
    clones: Clones, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(clones.undisturbed) as done:
        last = "a.run_id = (SELECT max(run_id) FROM sona.memory_archive)"
        edge = "SELECT a.content ->> 'source', a.content ->> 'target' FROM sona.memory_archive a"
        weak = _one(done, f"{edge} WHERE {last} AND a.reason = 'too weak' AND a.content ->> 'kind' = 'co_access'")
        merged = _one(
            done,
            f"{edge} JOIN sona.memory_archive n ON n.content ->> 'key' = a.content ->> 'source' AND n.run_id = a.run_id"
            f" AND n.reason = 'a near duplicate' WHERE {last} AND a.content ->> 'kind' = 'co_access'",
        )
        fading = _one(
            done,
            "SELECT e.source, e.target FROM sona.memory_edge e JOIN sona.space s USING (space_id)"
            f" WHERE s.name = '{SPACE}' AND e.kind = 'co_access' AND e.decayed_at > e.updated_at ORDER BY 1, 2",
        )
    new = ("0", str(5 * ITEMS + 6))
    url = clones.make()
    before = _weights(url)
    engine = SonaEngine.connect(url, space=SPACE, background=False)

    def use() -> None:
        for pair in (weak, merged, fading, new):
            engine.record(unit(np.ones(DIM)), list(pair), [1.0, 1.0])
        engine.flush()
        with connect(url) as connection:
            connection.execute("SELECT sona.add_memory_edge(%s, 'episode', 'of no use', 'item', '0', 0.5)", (SPACE,))

    _at(monkeypatch, "cycle.after_compute", use)
    _cycle_here(url)
    after = _weights(url)
    for pair in (weak, merged, fading, new):
        weight = before.get(_co_access(pair), 0.0)
        assert after[_co_access(pair)] == pytest.approx(weight + 0.05 * (1 - weight), rel=1e-6), pair
    assert after["given", "item", "0", "episode", "of no use"] == 0.5
    with connect(url) as connection:
        assert connection.execute("SELECT FROM sona.memory WHERE kind = 'episode'").fetchall()
        assert connection.execute("SELECT FROM sona.memory WHERE kind = 'item' AND key = %s", merged[:1]).fetchall()
    engine.close()
    # Nothing of them is taken for consolidated, and the next cycle merges what this one has left.
    _consolidate(url, days_later=0.5)
    later = _weights(url)
    assert _co_access(merged) not in later
    for pair in (new, fading):
        assert later[_co_access(pair)] != after[_co_access(pair)]


def test_an_outcome_waits_for_a_consolidation_that_is_being_written(
    clones: Clones, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(clones.undisturbed) as done:
        fading = _one(
            done,
            "SELECT e.source, e.target FROM sona.memory_edge e JOIN sona.space s USING (space_id)"
            f" WHERE s.name = '{SPACE}' AND e.kind = 'co_access' AND e.decayed_at > e.updated_at ORDER BY 1, 2",
        )
    consolidated = _weights(clones.undisturbed)[_co_access(fading)]
    url = clones.make()
    engine = SonaEngine.connect(url, space=SPACE, background=False)
    engine.record(unit(np.ones(DIM)), list(fading), [1.0, 1.0])
    flush = threading.Thread(target=engine.flush)

    def start() -> None:
        flush.start()
        with connect(url) as connection:
            waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            while not connection.execute(waiting).fetchall():
                assert flush.is_alive(), "the flush has not waited"
                time.sleep(0.01)

    _at(monkeypatch, "cycle.after_write", start)
    _cycle_here(url)
    flush.join()
    engine.close()
    weight = _weights(url)[_co_access(fading)]
    assert weight == pytest.approx(consolidated + 0.05 * (1 - consolidated), rel=1e-6)


def _co_access(pair: tuple[Any, ...]) -> tuple[str, ...]:
    source, target = sorted(pair)
    return "co_access", "item", source, "item", target
