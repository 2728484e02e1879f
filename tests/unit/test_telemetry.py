"""Metrics, health and log lines, without a database."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sona_pg.cli.logs import JsonFormatter, configure
from sona_pg.config import StoreConfig, TelemetryConfig
from sona_pg.errors import ConfigError, IoError
from sona_pg.store.database import Database
from sona_pg.telemetry import NoTelemetry, current_cycle
from sona_pg.telemetry.metrics import DATABASE, HELP, PROCESS
from sona_pg.telemetry.served import Telemetry

NOWHERE = "postgresql://127.0.0.1:1/x"
DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def made(tmp_path: Path, **settings: float) -> Telemetry:
    config = TelemetryConfig(**settings)  # type: ignore[arg-type]
    return Telemetry(Database(NOWHERE, StoreConfig(), tmp_path), "here:1", "instant", config)


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(name, labels)


def test_the_documented_metrics_are_those_that_there_are() -> None:
    documented = re.findall(r"^\| `(sona_\w+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert documented == list(HELP)


def test_every_metric_is_collected_whether_the_database_is_there_or_not(tmp_path: Path) -> None:
    telemetry = made(tmp_path)
    families = {family.name: family for family in telemetry.collect()}
    assert {name.removesuffix("_total") for name in HELP} == set(families)
    assert not any(families[name.removesuffix("_total")].samples for name in DATABASE)
    assert value(telemetry, "sona_database_up") == 0
    assert set(PROCESS) & set(DATABASE) == set()


def test_cycles_are_timed_and_failures_last_until_the_same_loop_succeeds(tmp_path: Path) -> None:
    telemetry = made(tmp_path)
    with pytest.raises(RuntimeError), telemetry.cycle("evidence", "a"):
        raise RuntimeError
    telemetry.failed("a", "no items")
    with telemetry.cycle("instant", "a"):
        telemetry.learned("a", 3)
    assert value(telemetry, "sona_learned_total", space="a") == 3
    assert value(telemetry, "sona_failures_total", space="a") == 1
    assert value(telemetry, "sona_failing", space="a") == 1
    assert value(telemetry, "sona_cycle_seconds_count", loop="evidence") == 1
    assert value(telemetry, "sona_cycle_seconds_bucket", loop="instant", le="+Inf") == 1
    assert value(telemetry, "sona_last_success_timestamp_seconds", loop="evidence") is None
    assert [(each.space, each.loop, each.reason) for each in telemetry.health().failing] == [
        ("a", "evidence", "no items")
    ]
    with telemetry.cycle("evidence", "a"):
        pass
    assert value(telemetry, "sona_failing", space="a") is None
    assert telemetry.health().failing == []


def test_spaces_beyond_the_bound_share_a_series(tmp_path: Path) -> None:
    telemetry = made(tmp_path, max_spaces=2)
    for number in range(5):
        telemetry.learned(str(number), 1)
        telemetry.failed(str(number), "x")
    assert value(telemetry, "sona_learned_total", space="1") == 1
    assert value(telemetry, "sona_learned_total", space="") == 3
    assert value(telemetry, "sona_learned_total", space="4") is None
    (family,) = (family for family in telemetry.collect() if family.name == "sona_failing")
    assert len(family.samples) == 3


def test_a_loop_that_stands_still_is_wrong_unless_it_is_inside_a_cycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sona_pg.telemetry.database import DatabaseWatch, Look

    monkeypatch.setattr(DatabaseWatch, "look", lambda self: Look(True, total=0))
    telemetry = made(tmp_path, stall_seconds=0.1)
    assert telemetry.health().status == "ok"
    time.sleep(0.15)
    found = telemetry.health()
    assert found.status == "wrong"
    assert "has not turned for" in str(found.reason)
    with telemetry.cycle("deep", "a"):
        time.sleep(0.15)
        assert telemetry.health().status == "ok"
    telemetry.turned()
    assert telemetry.health().status == "ok"


def test_a_database_that_is_slow_to_give_figures_makes_no_worker_unhealthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sona_pg.telemetry.database import DatabaseWatch, Look

    monkeypatch.setattr(DatabaseWatch, "look", lambda self: Look(True, "it took too long"))
    telemetry = made(tmp_path)
    assert telemetry.health().status == "ok"
    assert value(telemetry, "sona_database_up") == 1


def test_a_space_that_is_gone_fails_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sona_pg.telemetry.database import DatabaseWatch, Look

    telemetry = made(tmp_path)
    telemetry.failed("gone", "x")
    assert len(telemetry.health().failing) == 1
    monkeypatch.setattr(DatabaseWatch, "look", lambda self: Look(True, total=0))
    assert telemetry.health().failing == []


def test_pages_are_answered_and_a_port_in_use_is_refused(tmp_path: Path) -> None:
    telemetry = made(tmp_path)
    port = telemetry.serve(0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        names = {family.name for family in text_string_to_metric_families(answer.read().decode())}
    assert {name.removesuffix("_total") for name in HELP} <= names
    for path, status in (("/healthz", 503), ("/", 404)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}")
        assert refused.value.code == status
        refused.value.close()
    other = made(tmp_path)
    with pytest.raises(IoError, match=rf"port {port} of 127\.0\.0\.1 .*--metrics-port"):
        other.serve(port)
    telemetry.close()
    assert other.serve(port) == port
    other.close()


def test_a_database_that_hangs_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sona_pg.telemetry import database

    monkeypatch.setattr(database, "connect", lambda *_, **__: time.sleep(60))
    telemetry = made(tmp_path, patience_seconds=0.2)
    begin = time.monotonic()
    found = telemetry.health()
    assert "has not answered within 0.2 s" in str(found.reason)
    assert value(telemetry, "sona_database_up") == 0
    assert time.monotonic() - begin < 20


def test_the_library_of_the_metrics_is_imported_by_whoever_wants_them() -> None:
    script = (
        "import sys, sona_pg, logging; from sona_pg import SonaEngine; import sona_pg.worker, sona_pg.cli.app\n"
        "assert 'prometheus_client' not in sys.modules\n"
        "assert not logging.getLogger().handlers and not logging.getLogger('sona_pg').handlers"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def record(**extra: str) -> logging.LogRecord:
    return logging.getLogger("sona_pg").makeRecord(
        "sona_pg", logging.ERROR, __file__, 1, "it is %s", ("ä\n",), None, extra=extra
    )


def test_a_line_of_json_knows_its_cycle() -> None:
    formatter = JsonFormatter()
    line = formatter.format(record())
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("ERROR", "sona_pg", "it is ä\n")
    assert "space" not in found
    with NoTelemetry().cycle("evidence", "support"):
        found = json.loads(formatter.format(record()))
        other = json.loads(formatter.format(record(space="other", worker="w")))
    assert (found["loop"], found["space"]) == ("evidence", "support")
    assert (other["loop"], other["space"], other["worker"]) == ("evidence", "other", "w")
    assert current_cycle() is None


@pytest.mark.parametrize("given", ["loud", "info,xml", "info,debug", "json,text", "info,", ",", "info json"])
def test_an_unknown_way_to_log_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONA_LOG", given)
    with pytest.raises(ConfigError, match="SONA_LOG is"):
        configure()
