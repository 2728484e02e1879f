"""The command line, as a person and as a program use it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import psycopg
import pytest

from sona_pg.config import SCHEMA_REVISION
from sona_pg.store.connection import connect

from .command_line import sona


def test_the_demo_learns_from_real_outcomes_and_shows_it(url: str) -> None:
    done = sona("demo", "--json", url=url)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["events"], found["held_out"]) == (1292, 861)
    assert found["frozen"]["ndcg10"] == pytest.approx(0.7068, abs=1e-3)
    assert found["gain_ndcg10"] > 0.025
    assert found["gain_ci95"][0] > 0
    assert found["learned"]["mrr10"] > found["frozen"]["mrr10"]
    assert found["helped"] > found["harmed"]
    assert found["helped"] + found["harmed"] + found["unchanged"] == 861
    assert len(found["queries"]) == 4
    strategies = {row[0]: row[1] for row in found["queries"][2]["rows"]}
    assert strategies["fusion"] is True
    assert strategies["frozen"] is False
    assert all(query["rows"] for query in found["queries"])
    assert found["queries"][0]["rows"][0][:2] == [1292, 1292]


def test_the_demo_prints_a_page_for_people_and_runs_again(url: str) -> None:
    first = sona("demo", "--fast", url=url)
    again = sona("demo", "--fast", url=url)
    assert first.returncode == again.returncode == 0, first.stderr
    for word in ("nDCG@10", "MRR@10", "hit@5", "95 % interval", "helped", "SELECT", "FeedbackQA"):
        assert word in again.stdout
    assert "record and learn" in again.stderr


def test_evaluate_gives_the_same_in_memory_and_through_postgres(url: str, tmp_path: Path) -> None:
    directory = tmp_path / "small"
    directory.mkdir()
    rng = np.random.default_rng(0)
    docs = rng.standard_normal((30, 8))
    np.save(directory / "docs.npy", docs)
    np.save(directory / "queries.npy", docs[np.arange(90) % 30] + rng.standard_normal((90, 8)))
    (directory / "qrels.tsv").write_text("".join(f"{query}\t{query % 30}\t1\n" for query in range(90)))
    memory = sona("evaluate", str(directory), "--splits", "2", "--json")
    postgres = sona("evaluate", str(directory), "--splits", "2", "--through-postgres", "--json", url=url)
    assert memory.returncode == postgres.returncode == 0, postgres.stderr
    in_memory, through = (json.loads(done.stdout)["collections"]["small"] for done in (memory, postgres))
    assert in_memory["frozen"] == pytest.approx(through["frozen"])
    assert {"ndcg10", "mrr10", "recall10"} <= set(in_memory["learned"])
    assert through["events"] == in_memory["events"] == 108
    with psycopg.connect(url) as connection:
        left = connection.execute("SELECT count(*) FROM sona.space WHERE name LIKE 'evaluate-%'").fetchone()
        tables = connection.execute("SELECT to_regclass('public.sona_evaluate') IS NOT NULL").fetchone()
    assert (left, tables) == ((0,), (False,))


def test_spaces_are_created_listed_and_shown(url: str, space_name: str) -> None:
    assert sona("space", "create", space_name, "3", "--embedder", "mini", url=url).returncode == 0
    shown = sona("space", "show", space_name, "--json", url=url)
    assert json.loads(shown.stdout)["dim"] == 3
    listed = json.loads(sona("space", "list", "--json", url=url).stdout)
    assert space_name in [row["space"] for row in listed]
    assert space_name in sona("status", url=url).stdout


def test_what_answers_is_shown_and_set(url: str, space_name: str) -> None:
    made = sona("space", "create", space_name, "3", "--strategy", "boosted", "--examination", "1,0.5", url=url)
    assert made.returncode == 0, made.stderr
    found = json.loads(sona("space", "strategy", space_name, "--json", url=url).stdout)
    assert found == {
        "strategy": "boosted",
        "in_force": "boosted",
        "is_sane": False,
        "strategies": [],
        "turns": [],
    }
    why = ("--reason", "a test")
    assert "frozen answers" in sona("space", "strategy", space_name, "frozen", *why, url=url).stdout
    assert sona("space", "strategy", space_name, *why, url=url).returncode == 2
    with connect(url) as connection:
        audit = "SELECT after, reason FROM sona.deployments WHERE space = %s"
        assert connection.execute(audit, (space_name,)).fetchall() == [("frozen", "a test")]
    assert sona("space", "strategy", space_name, "best", url=url).returncode == 2
    assert sona("space", "strategy", "nowhere", url=url).returncode == 1
    assert sona("space", "create", "another", "3", "--examination", "1,x", url=url).returncode == 2
    assert sona("space", "create", "another", "3", "--examination", "1,2", url=url).returncode == 2


def test_migrate_says_where_the_schema_is(empty_url: str) -> None:
    dry = sona("migrate", "--dry-run", url=empty_url)
    assert f"would be at revision {SCHEMA_REVISION}; it was at none" in dry.stdout
    assert f"is at revision {SCHEMA_REVISION}" in sona("migrate", url=empty_url).stdout
    assert sona("status", url=empty_url).stdout.startswith("no spaces yet")


def test_the_embedded_server_is_started_asked_and_stopped(home: Path) -> None:
    url = sona("db", "start", home=home).stdout.strip()
    assert url.startswith("postgresql://")
    assert sona("db", "url", home=home).stdout.strip() == url
    status = json.loads(sona("db", "status", "--json", home=home).stdout)
    assert (status["running"], status["url"]) == (True, url)
    assert sona("status", home=home).returncode == 0
    assert sona("db", "stop", home=home).returncode == 0
    assert json.loads(sona("db", "status", "--json", home=home).stdout)["running"] is False


@pytest.mark.parametrize(
    ("arguments", "env", "status", "says"),
    [
        (["no-such-command"], {}, 2, "No such command"),
        (["evaluate"], {}, 2, "Missing argument"),
        (["evaluate", "/no/such/directory"], {}, 2, "does not exist"),
        (["space", "create", "x", "many"], {}, 2, "integer"),
        (["status", "--url", "postgresql://127.0.0.1:1/x"], {}, 1, "SONA_DATABASE_URL"),
        (["status", "--url", "no url"], {}, 2, "connection string"),
        (["status"], {"SONA_SIMD": "mmx"}, 2, "SONA_SIMD is 'mmx'"),
        (["status"], {"SONA_LOG": "loud"}, 2, "SONA_LOG is 'LOUD'"),
        (["status"], {"SONA_LOG": "info,xml"}, 2, "SONA_LOG is 'INFO,XML'"),
    ],
)
def test_failures_have_one_line_and_a_status(arguments: list[str], env: dict[str, str], status: int, says: str) -> None:
    done = sona(*arguments, **env)
    assert done.returncode == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_space_that_is_not_there_is_status_1(url: str) -> None:
    done = sona("space", "show", "no such space", url=url)
    assert done.returncode == 1
    assert "sona space list" in done.stderr
