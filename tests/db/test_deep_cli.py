"""``sona memory``, ``sona cycle run SPACE deep`` and ``sona worker deep``, as an operator uses them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from sona_pg.store.connection import Connection, connect
from sona_pg.store.memory_changes import memory_changes, remember_memory
from sona_pg.store.migrate import migrate
from sona_pg.store.spaces import get_space

Sona = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def cli_url(make_database: Callable[[], str]) -> str:
    made = make_database()
    migrate(made)
    with connect(made) as connection:
        connection.execute("SELECT sona.create_space('desk', 3)")
        for number in range(6):
            for kind in ("episode", "concept"):
                connection.execute(
                    "SELECT sona.add_memory_node('desk', %s, %s, ARRAY[cos(%s::float8), sin(%s::float8), 0.3]::vector)",
                    (kind, str(number), number, number),
                )
            connection.execute(
                "SELECT sona.add_memory_edge('desk', 'episode', %s, 'concept', %s, 0.5)", (str(number), str(number))
            )
    return made


@pytest.fixture
def connection(cli_url: str) -> Iterator[Connection]:
    with connect(cli_url) as opened:
        yield opened


@pytest.fixture
def sona(cli_url: str) -> Sona:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sona_pg", *arguments],
            env=os.environ | {"SONA_DATABASE_URL": cli_url} | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def test_a_dry_run_prints_what_a_cycle_then_does(sona: Sona, connection: Connection) -> None:
    nothing = "SELECT count(*) FROM sona.dreams"
    tried = sona("cycle", "run", "desk", "deep", "--dry-run", "--json")
    assert tried.returncode == 0, tried.stderr
    found = json.loads(tried.stdout)
    assert found["facts"]["dream"]["dreams"] == 6 * 12
    assert {change["entity"] for change in found["changes"]} == {"node"}, "values alone"
    assert connection.execute(nothing).fetchall() == [(0,)]
    shown = sona(
        "cycle", "run", "desk", "deep", "--dry-run", SONA_DEEP_DREAMS_PER_CYCLE="3", SONA_DEEP_DREAMS_PER_NODE="0"
    )
    assert "'dreams': 3" in shown.stdout
    assert "episode 0" in shown.stdout
    asked = sona("cycle", "run", "desk", "deep", "--json")
    assert (asked.returncode, json.loads(asked.stdout)["state"]) == (0, "requested")
    ran = sona("worker", "deep", "--once", "--dreams-per-cycle", "7", "--dreams-per-node", "0")
    assert ran.returncode == 0, ran.stderr
    assert connection.execute(nothing).fetchall() == [(7,)]


def test_a_dry_run_of_another_loop_or_space_is_refused(sona: Sona) -> None:
    other = sona("cycle", "run", "desk", "background", "--dry-run")
    assert (other.returncode, "for the deep loop" in other.stderr) == (2, True)
    waits = sona("cycle", "run", "desk", "deep", "--dry-run", "--wait", "1")
    assert (waits.returncode, "leave --wait out" in waits.stderr) == (2, True)
    unknown = sona("cycle", "run", "nowhere", "deep", "--dry-run")
    assert (unknown.returncode, "nowhere" in unknown.stderr) == (1, True)
    wrong = sona("cycle", "run", "desk", "deep", "--dry-run", SONA_DEEP_DREAMS_PER_CYCLE="many")
    assert (wrong.returncode, "SONA_DEEP_DREAMS_PER_CYCLE is 'many'" in wrong.stderr) == (2, True)
    threshold = sona("worker", "deep", "--once", "--phi-threshold", "1.0")
    assert (threshold.returncode, "phi_threshold is 1.0" in threshold.stderr) == (2, True)


def test_a_change_is_shown_to_the_last_digit(connection: Connection) -> None:
    space = get_space(connection, "desk")
    with connection.transaction(force_rollback=True):
        remember_memory(connection, space)
        connection.execute(
            "WITH node AS (UPDATE sona.memory_node SET title = 'a title', level = 2"
            " WHERE space_id = %(space)s AND kind = 'concept' AND key = '1' RETURNING node_id)"
            " UPDATE sona.memory_node_state t SET importance = 0.1234567890123, quality = 1e-9, access_count = 7"
            " FROM node WHERE t.space_id = %(space)s AND t.node_id = node.node_id",
            {"space": space.space_id},
        )
        connection.execute(
            "UPDATE sona.memory_edge SET weight = weight + 1e-12"
            " WHERE space_id = %s AND kind = 'given' AND source = '2'",
            (space.space_id,),
        )
        node, edge = memory_changes(connection, space)
    facts = "importance 0.1234567890123, accesses 7, quality 1e-09, level 2, title a title"
    assert (node.what, node.change, node.after) == ("concept 1", "changed", facts)
    assert (edge.before, edge.after) == ("weight 0.5", "weight 0.500000000001")


def test_edges_that_look_alike_are_two(connection: Connection) -> None:
    space = get_space(connection, "desk")
    with connection.transaction(force_rollback=True):
        for key in ("a", "b - episode c", "a - episode b", "c"):
            connection.execute("SELECT sona.add_memory_node('desk', 'episode', %s)", (key,))
        for source, target, weight in (("a", "b - episode c", 0.5), ("a - episode b", "c", 0.25)):
            connection.execute(
                "SELECT sona.add_memory_edge('desk', 'episode', %s, 'episode', %s, %s)", (source, target, weight)
            )
        remember_memory(connection, space)
        assert memory_changes(connection, space) == []
        connection.execute("DELETE FROM sona.memory_edge WHERE space_id = %s AND target = 'c'", (space.space_id,))
        (gone,) = memory_changes(connection, space)
    what = "given: episode a - episode b - episode c"
    assert gone == ("edge", "removed", what, "weight 0.25", None, None)


def test_memory_is_shown_restored_and_rid_of_dreams(sona: Sona, connection: Connection) -> None:
    connection.execute(
        "INSERT INTO sona.memory_edge (space_id, kind, source_kind, source, target_kind, target, weight)"
        " SELECT space_id, 'creative', 'episode', '0', 'episode', '3', 0.15 FROM sona.space WHERE name = 'desk'"
    )
    connection.execute(
        "WITH gone AS (DELETE FROM sona.memory_node WHERE key = '5' AND kind = 'concept' RETURNING *),"
        " state AS (DELETE FROM sona.memory_node_state t USING gone WHERE t.node_id = gone.node_id RETURNING t.*)"
        " INSERT INTO sona.memory_archive (space_id, run_id, entity, content, reason) SELECT gone.space_id, 1, 'node',"
        " to_jsonb(gone) || jsonb_build_object('state', to_jsonb(state)), 'a test' FROM gone, state"
    )
    shown = json.loads(sona("memory", "show", "desk", "--json").stdout)
    assert (shown["nodes"], shown["nodes, concept"], shown["edges, creative"], shown["archived"]) == (11, 5, 1, 1)
    assert "dream_reason" in sona("memory", "show", "desk").stdout
    assert sona("memory", "forget-dreams", "desk").stdout == "1 edges are gone\n"
    for unknown in (999_999, 1 << 62, 1 << 63, 10**30):
        refused = sona("memory", "restore", "desk", str(unknown))
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"there is no entry {unknown} in the archive of space 'desk'" in refused.stderr
        assert "archive_id of sona.archive" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert sona("memory", "restore", "desk").stdout == "1 rows are back\n"
    assert json.loads(sona("memory", "show", "desk", "--json").stdout)["nodes"] == 12
    assert sona("memory", "show", "nowhere").returncode == 1
