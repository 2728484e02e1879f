"""What a worker says of itself, and what the doctor finds: real processes in front of a real Postgres."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg.conninfo import make_conninfo

from sona_pg import DatabaseUnavailable, InstantLoopConfig, SonaEngine, StoreConfig
from sona_pg.config import SCHEMA_REVISION
from sona_pg.doctor import Finding, Verdict, examine
from sona_pg.store.connection import connect
from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer
from sona_pg.telemetry.metrics import HELP

from .command_line import sona

PATIENCE_SECONDS = 60
Samples = dict[tuple[str, str], float]


class Worker:
    """A worker process that is asked over HTTP."""

    def __init__(self, *arguments: str, log: Path, **environment: str) -> None:
        self.log = log
        kept = {name: found for name, found in os.environ.items() if not name.startswith("SONA_")}
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sona_pg", "worker", "instant", "--metrics-port", "0", *arguments],
                stderr=stderr,
                env=kept | environment,
            )
        self.until(lambda: "metrics on" in self.said)
        port = re.search(r"metrics on http://127\.0\.0\.1:(\d+)/metrics", self.said)
        assert port is not None, self.said
        self.port = int(port[1])

    @property
    def said(self) -> str:
        return self.log.read_text()

    def line(self, part: str) -> dict[str, str]:
        """The first line of its log, in JSON, that says something."""
        found: dict[str, str] = json.loads(next(line for line in self.said.splitlines() if part in line))
        return found

    def until(self, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.1)

    def metrics(self) -> Samples:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = answer.read().decode()
        return {
            (sample.name, sample.labels.get("space", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def health(self) -> tuple[int, dict[str, object]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz") as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.loads(refused.read())

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    with contextlib.ExitStack() as ends:

        def make(*arguments: str, **environment: str) -> Worker:
            worker = Worker(*arguments, log=tmp_path / f"{uuid.uuid4().hex}.log", **environment)
            ends.callback(worker.end)
            return worker

        yield make


def record(url: str, space: str, n: int) -> None:
    with psycopg.connect(url, autocommit=True) as client:
        for number in range(n):
            client.execute("SELECT sona.record(%s, %s, '{a,b}', '{1,0}')", (space, f"[1,{number},0]"))


@pytest.fixture
def fresh_url(empty_url: str) -> str:
    migrate(empty_url)
    with psycopg.connect(empty_url, autocommit=True) as client:
        client.execute("SELECT sona.create_space('one', 3), sona.create_space('two', 3)")
    return empty_url


def test_what_sql_records_is_pending_then_learned(fresh_url: str, start: Callable[..., Worker]) -> None:
    record(fresh_url, "one", 7)
    with psycopg.connect(fresh_url) as blocker:
        # The worker waits for the learner's row: what was recorded is pending meanwhile.
        blocker.execute("SELECT FROM sona.learner FOR UPDATE")
        worker = start(SONA_DATABASE_URL=fresh_url)
        worker.until(lambda: worker.metrics().get(("sona_pending", "one")) == 7)
        found = worker.metrics()
        assert ("sona_learned_total", "one") not in found
        assert found["sona_pending_since_timestamp_seconds", "one"] == pytest.approx(time.time(), abs=PATIENCE_SECONDS)
        assert worker.health()[0] == 200, "it is inside a cycle"
    worker.until(lambda: worker.metrics().get(("sona_pending", "one")) == 0)
    found = worker.metrics()
    assert found["sona_learned_total", "one"] == 7
    assert found["sona_pending", "two"] == 0
    assert (found["sona_database_up", ""], found["sona_spaces", ""]) == (1, 2)
    assert ("sona_pending_since_timestamp_seconds", "one") not in found
    status, health = worker.health()
    assert (status, health["status"], health["loop"], health["failing"]) == (200, "ok", "instant", [])


def test_names_of_the_metrics_are_those_of_the_docs(fresh_url: str, start: Callable[..., Worker]) -> None:
    worker = start(SONA_DATABASE_URL=fresh_url)
    with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}/metrics") as answer:
        types = re.findall(r"^# TYPE (sona_\w+) ", answer.read().decode(), re.MULTILINE)
    assert sorted(types) == sorted(HELP)


def test_many_who_ask_do_not_load_the_database(fresh_url: str, start: Callable[..., Worker]) -> None:
    worker = start("--poll-interval", "3600", SONA_DATABASE_URL=fresh_url)
    worker.until(lambda: worker.metrics()["sona_database_up", ""] == 1)

    def statements() -> int:
        with psycopg.connect(fresh_url) as client:
            row = client.execute(
                "SELECT pg_stat_get_db_xact_commit(oid) FROM pg_database WHERE datname = current_database()"
            ).fetchone()
        assert row is not None
        return int(row[0])

    before = statements()
    for _ in range(200):
        worker.metrics()
    assert statements() - before < 60


def test_a_database_that_is_away_makes_a_worker_unhealthy_and_the_metrics_stay(
    home: Path, start: Callable[..., Worker]
) -> None:
    server = EmbeddedServer(home)
    url = server.start()
    migrate(url)
    with psycopg.connect(url, autocommit=True) as client:
        client.execute("SELECT sona.create_space('one', 3)")
    record(url, "one", 3)
    worker = start(SONA_HOME=str(home), SONA_LOG="warning,json")
    worker.until(lambda: worker.metrics().get(("sona_learned_total", "one")) == 3)
    server.stop()
    worker.until(lambda: worker.health()[0] == 503)
    assert "check that the server runs" in str(worker.health()[1]["reason"])
    found = worker.metrics()
    assert (found["sona_database_up", ""], found["sona_learned_total", "one"]) == (0, 3)
    assert ("sona_pending", "one") not in found
    worker.until(lambda: "database is away" in worker.said)
    line = worker.line("database is away")
    assert (line["level"], line["logger"], line["loop"]) == ("WARNING", "sona_pg", "instant")
    assert line["worker"].endswith(f":{worker.process.pid}")
    server.start()
    worker.until(lambda: worker.health()[0] == 200)
    worker.until(lambda: worker.metrics().get(("sona_pending", "one")) == 0)


def test_a_space_that_fails_is_named_and_does_not_make_the_worker_unhealthy(
    fresh_url: str, start: Callable[..., Worker]
) -> None:
    with psycopg.connect(fresh_url, autocommit=True) as client:
        client.execute("UPDATE sona.learner SET state = 'no state' WHERE space_id ="
                       " (SELECT space_id FROM sona.space WHERE name = 'two')")  # fmt: skip
    record(fresh_url, "two", 1)
    worker = start(SONA_DATABASE_URL=fresh_url, SONA_LOG="json")
    worker.until(lambda: worker.metrics().get(("sona_failing", "two")) == 1)
    assert worker.metrics()["sona_failures_total", "two"] >= 1
    status, health = worker.health()
    assert status == 200
    assert [(each["space"], each["loop"]) for each in health["failing"]] == [("two", "instant")]  # type: ignore[attr-defined]
    line = worker.line("failed, will be tried again")
    assert (line["level"], line["loop"], line["space"]) == ("ERROR", "instant", "two")
    record(fresh_url, "one", 2)
    worker.until(lambda: worker.metrics().get(("sona_learned_total", "one")) == 2)


def test_a_port_in_use_ends_the_worker(fresh_url: str, start: Callable[..., Worker]) -> None:
    first = start(SONA_DATABASE_URL=fresh_url)
    second = sona("worker", "instant", "--metrics-port", str(first.port), url=fresh_url)
    assert second.returncode == 1
    assert f"port {first.port} of 127.0.0.1 cannot be listened on" in second.stderr
    assert sona("worker", "instant", "--metrics-port", "70000", url=fresh_url).returncode == 2


def test_what_was_dropped_is_counted_where_everybody_sees_it(home: Path) -> None:
    server = EmbeddedServer(home)
    store, instant = StoreConfig(spool_max_bytes=1000), InstantLoopConfig(max_unflushed=5)
    engine = SonaEngine.connect(home=home, space="full", dim=16, background=False, instant=instant, store=store)
    server.stop()
    rng = np.random.default_rng(3)
    for _ in range(40):
        engine.record(rng.standard_normal(16), ["1"], [1.0])
        with pytest.raises(DatabaseUnavailable):
            engine.flush()
    server.start()
    engine.flush()
    dropped = engine.metrics.dropped
    engine.close()
    assert dropped > 0
    shown = sona("status", "full", "--json", home=home)
    (row,) = json.loads(shown.stdout)
    assert (row["dropped"], row["errors_last_day"]) == (dropped, 1)
    assert f"{dropped} trajectories and scores were dropped" in sona("status", "full", home=home).stdout


# The doctor ---------------------------------------------------------------------------------------------------


def found(url: str, check: str) -> list[Finding]:
    return [finding for finding in examine(url) if finding.check == check]


def wrong(url: str) -> list[Finding]:
    return [finding for finding in examine(url) if finding.verdict is Verdict.WRONG]


def run_statement(url: str, finding: Finding) -> None:
    """Run what a finding says mends it, through a stand-in for psql."""
    assert finding.command is not None
    _, _, flag, statement = shlex.split(finding.command)
    assert flag == "-c"
    with psycopg.connect(url, autocommit=True) as client:
        client.execute(statement)  # type: ignore[call-overload]


def test_the_doctor_has_nothing_to_say_of_what_is_well(fresh_url: str) -> None:
    done = sona("doctor", url=fresh_url)
    assert done.returncode == 0, done.stdout
    assert "\n0 wrong, " in done.stdout
    document = json.loads(sona("doctor", "--json", url=fresh_url).stdout)
    assert document["wrong"] == 0
    checks = {each["check"] for each in document["checks"]}
    assert {
        "kernels",
        "database",
        "pgvector",
        "clock",
        "schema",
        "rights",
        "indexes",
        "worker",
        "spool",
        "harm",
    } <= checks


def test_loops_that_are_held_up_are_found(fresh_url: str) -> None:
    with connect(fresh_url) as connection:
        connection.execute("SELECT sona.create_space('held up', 2)")
        connection.execute("SELECT sona.run_cycle('held up', 'deep')")
        connection.execute("SELECT sona.set_schedule('held up', 'background', every => '1 hour')")
        connection.execute("UPDATE sona.loop_schedule SET set_aside_at = now() WHERE loop = 'background'")
    done = sona("doctor", "--json", url=fresh_url)
    assert done.returncode == 1
    found = [each for each in json.loads(done.stdout)["checks"] if each["check"] == "loops"]
    assert [(each["verdict"], each["command"]) for each in found] == [
        ("wrong", "sona cycle run 'held up' background"),
        ("wrong", "sona worker deep"),
    ]
    assert "is set aside" in found[0]["says"]
    assert "no worker of the loop is connected" in found[1]["says"]
    # A worker of the loop is there.
    with connect(fresh_url, application="sona worker deep here:1") as connection:
        connection.execute("SELECT sona.set_schedule('held up', 'background', every => '1 hour')")
        found = [each for each in json.loads(sona("doctor", "--json", url=fresh_url).stdout)["checks"]
                 if each["check"] == "loops"]  # fmt: skip
    assert [each["verdict"] for each in found] == ["ok"]


@pytest.mark.parametrize(("revision", "says", "command"), [
    ("0001", f"older than this version of sona-pg, which works with {SCHEMA_REVISION}", "sona migrate"),
    ("9999", "newer", "pip install --upgrade sona-pg"),
])  # fmt: skip
def test_another_schema_is_found(fresh_url: str, revision: str, says: str, command: str) -> None:
    with psycopg.connect(fresh_url, autocommit=True) as client:
        client.execute("UPDATE sona.alembic_version SET version_num = %s", (revision,))
    done = sona("doctor", url=fresh_url)
    assert done.returncode == 1
    assert re.search(rf"^wrong +schema +revision {revision} is .*{says}.*\n +.*{command}$", done.stdout, re.MULTILINE)


def test_a_database_without_a_schema_is_found(empty_url: str) -> None:
    assert {(each.check, each.command) for each in wrong(empty_url)} == {
        ("pgvector", "sona migrate"),
        ("schema", "sona migrate"),
    }


def test_what_waits_without_a_worker_is_found(fresh_url: str, start: Callable[..., Worker]) -> None:
    record(fresh_url, "two", 2)
    (finding,) = wrong(fresh_url)
    assert (finding.check, finding.command) == ("worker", "sona worker instant")
    assert finding.says.startswith("2 trajectories of space 'two' wait")
    assert sona("doctor", url=fresh_url).returncode == 1
    worker = start(SONA_DATABASE_URL=fresh_url)
    worker.until(lambda: worker.metrics().get(("sona_pending", "two")) == 0)
    assert wrong(fresh_url) == []
    (finding,) = found(fresh_url, "worker")
    assert re.fullmatch(r"instant workers hold \d+ connections", finding.says)


def test_indexes_that_are_gone_or_invalid_are_found_and_mended(fresh_url: str) -> None:
    with psycopg.connect(fresh_url, autocommit=True) as client:
        client.execute("DROP INDEX sona.learning_event_ordinal_idx")
        client.execute("ALTER TABLE sona.pending_trajectory DROP CONSTRAINT pending_trajectory_pkey")
        client.execute("UPDATE pg_index SET indisvalid = false"
                       " WHERE indexrelid = 'sona.memory_edge_target_idx'::regclass")  # fmt: skip
    findings = wrong(fresh_url)
    assert {each.check for each in findings} == {"indexes"}
    assert [each.says for each in findings] == [
        "learning_event_ordinal_idx is missing",
        "pending_trajectory_pkey is missing",
        "sona.memory_edge_target_idx is invalid, and not used",
    ]
    assert sona("doctor", url=fresh_url).returncode == 1
    for finding in findings:
        run_statement(fresh_url, finding)
    assert wrong(fresh_url) == []


def test_an_hnsw_index_that_is_gone_is_found_and_mended(fresh_url: str) -> None:
    with connect(fresh_url) as connection:
        for name in ("it's", "two"):
            if name != "two":
                connection.execute("SELECT sona.create_space(%s, 3)", (name,))
            with SonaEngine.connect(fresh_url, space=name, background=False) as engine:
                engine.record([1.0, 0.0, 0.0], ["a", "b"], [1.0, 0.0])
                engine.flush()
                engine._evidence.catch_up()
            connection.execute("SELECT sona.admit_queries(%s, 0)", (name,))
        assert wrong(fresh_url) == []
        row = connection.execute("SELECT sona._queries_index(space_id)::text FROM sona.space WHERE name = 'it''s'")
        connection.execute(f"DROP INDEX {row.fetchone()[0]}")  # type: ignore[index]
    (finding,) = wrong(fresh_url)
    assert finding.says.startswith('the HNSW index of space "it\'s" is gone')
    run_statement(fresh_url, finding)
    assert wrong(fresh_url) == []


def test_a_space_frozen_by_harm_is_found_and_one_frozen_by_hand_is_not(fresh_url: str) -> None:
    with psycopg.connect(fresh_url, autocommit=True) as client:
        client.execute("SELECT sona.deploy('two', 'frozen')")
        with client.transaction():  # as the evidence loop does
            client.execute("SELECT sona._freeze(space_id, 'harm') FROM sona.space WHERE name = 'one'")
            client.execute("INSERT INTO sona.error_log (space_id, source, worker, message)"
                           " SELECT space_id, 'lift', 'w', 'harm' FROM sona.space WHERE name = 'one'")  # fmt: skip
    (finding,) = wrong(fresh_url)
    assert (finding.check, finding.command) == ("harm", "sona deploy one rollback")
    assert "set to learned" in finding.says
    (warning,) = found(fresh_url, "errors")
    assert (warning.verdict, warning.command) == (Verdict.WARNING, "sona status one")
    assert sona("space", "strategy", "one", "frozen", url=fresh_url).returncode == 0
    assert wrong(fresh_url) == []


def test_a_spool_that_nobody_takes_is_found_and_mended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = EmbeddedServer(home)
    engine = SonaEngine.connect(home=home, space="one", dim=3, background=False)
    server.stop()
    done = sona("doctor", home=home)
    assert done.returncode == 1
    assert re.search(r"^wrong +server .*does not run.*\n +sona db start$", done.stdout, re.MULTILINE)
    engine.record([1.0, 0.0, 0.0], ["a"], [1.0])
    engine.close()
    server.start()
    done = sona("doctor", "--json", home=home)
    assert done.returncode == 1
    (finding,) = (each for each in json.loads(done.stdout)["checks"] if each["verdict"] == "wrong")
    assert (finding["check"], finding["command"]) == ("spool", "sona worker instant --once")
    assert sona(*finding["command"].split()[1:], home=home).returncode == 0
    done = sona("doctor", home=home)
    assert done.returncode == 0, done.stdout
    # How much room there is is the machine's affair.
    assert re.search(r"^(ok|warning|wrong) +disk ", done.stdout, re.MULTILINE)


def test_a_login_without_rights_is_told_which(url: str, role: Callable[..., str]) -> None:
    for groups, verdict in (((), Verdict.WRONG), (("sona_reader",), Verdict.WARNING), (("sona_worker",), Verdict.OK)):
        login = role("doctor", *groups)
        (finding,) = found(make_conninfo(url, user=login), "rights")
        assert finding.verdict is verdict, finding
        if verdict is not Verdict.OK:
            assert f'GRANT sona_worker TO "{login}"' in str(finding.command)


def test_a_database_that_is_away_is_wrong() -> None:
    done = sona("doctor", url="postgresql://127.0.0.1:1/x")
    assert done.returncode == 1
    assert re.search(r"^wrong +database ", done.stdout, re.MULTILINE)
    assert sona("doctor", url="no url").returncode == 2


def test_status_has_one_line_a_space(fresh_url: str) -> None:
    record(fresh_url, "one", 2)
    shown = sona("status", url=fresh_url).stdout.splitlines()
    assert shown[0].split()[:4] == ["space", "set", "to", "in"]
    assert [line.split()[:5] for line in shown[2:]] == [
        ["one", "learned", "frozen", "0", "2"],
        ["two", "learned", "frozen", "0", "0"],
    ]
    (row,) = json.loads(sona("status", "one", "--json", url=fresh_url).stdout)
    assert (row["pending"], row["dropped"], row["lift"], row["version_at"]) == (2, 0, None, None)
    missing = sona("status", "nowhere", url=fresh_url)
    assert (missing.returncode, missing.stdout) == (1, "")
