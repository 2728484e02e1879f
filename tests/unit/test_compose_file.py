"""The stack's files, without an engine: what every service has, and that commands, metrics and queries exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from sona_pg.cli.app import app
from sona_pg.telemetry.metrics import HELP
from sona_pg.telemetry.server import PageServer, Reply
from tests.compose.dashboard import dashboard, queries

ROOT = Path(__file__).parents[2]
STACK: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SECRETS: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.secrets.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = STACK["services"]
ONCE = {"migrate", "logins", "demo"}
"""These end: their health is their exit status."""
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "sona-pg"}
LIBRARY = ("process_", "up")
"""Prefixes of metrics that Prometheus and its library bring."""


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_guarded_and_limited(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["cpus"]
    assert service["pids_limit"]
    assert service["logging"]["options"]["max-size"]
    assert service.get("read_only") or name == "grafana"  # it is not known to start like that


@pytest.mark.parametrize("name", SERVICES)
def test_what_stays_is_checked_and_started_again_and_what_ends_is_tried_again(name: str) -> None:
    service = SERVICES[name]
    if name in ONCE:
        assert service["restart"] == ("no" if name == "demo" else "on-failure:5")
        assert "healthcheck" not in service
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"
        assert {"interval", "timeout", "retries"} <= set(service["healthcheck"])


def test_nothing_stands_there_that_one_version_of_compose_does_not_know() -> None:
    assert not {"name", "version", "secrets"} & set(STACK)
    for service in SERVICES.values():
        assert "start_interval" not in service.get("healthcheck", {})
        for condition in service.get("depends_on", {}).values():
            assert set(condition) == {"condition"}
    text = (ROOT / "docker-compose.yml").read_text() + (ROOT / "docker-compose.secrets.yml").read_text()
    assert not re.search(r"\$\{\w+:?\+", text)
    assert not (ROOT / "Dockerfile").read_text().startswith("# syntax=")


def test_every_loop_has_one_worker() -> None:
    worker = app.commands["worker"]
    assert isinstance(worker, click.Group)
    loops = [service["command"][1] for service in OURS.values() if service["command"][0] == "worker"]
    assert sorted(loops) == sorted(set(worker.commands) - {"all"})


@pytest.mark.parametrize("name", OURS)
def test_commands_and_their_options_are_understood(name: str) -> None:
    command: click.Command = app
    words = list(OURS[name]["command"])
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(name, words)


def test_no_service_has_a_password_of_its_own_and_workers_are_no_superusers() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if "PASSWORD" in variable:
                assert re.fullmatch(r"\$\{SONA_(DB|USER)_PASSWORD\?.*\}|\$\{SONA_GRAFANA_PASSWORD:-\}", value), name
    for name in set(OURS) - {"migrate"}:
        assert "//sona_user@" in SERVICES[name]["environment"]["SONA_DATABASE_URL"]


def test_ports_are_those_of_this_machine_alone() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_every_password_of_the_environment_may_come_from_a_file() -> None:
    for name, service in SERVICES.items():
        passwords = {v for v in service.get("environment", {}) if "PASSWORD" in v}
        if passwords:
            other = SECRETS["services"][name]
            assert {v for v, value in other["environment"].items() if value == ""} == passwords
            given = {v.removesuffix("_FILE"): value for v, value in other["environment"].items() if v.endswith("_FILE")}
            assert set(given) == (set() if name == "grafana" else passwords)
            assert {Path(value).name for value in given.values()} <= set(other["secrets"])
            assert set(other["secrets"]) <= set(SECRETS["secrets"])


def test_files_and_volumes_that_are_mounted_exist() -> None:
    for service in SERVICES.values():
        for mounted in service.get("volumes", []):
            source = mounted.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in STACK["volumes"]


def test_prometheus_asks_every_worker_where_it_answers() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (targets,) = job["static_configs"]
    workers = {n: s for n, s in OURS.items() if s["command"][0] == "worker"}
    ports = {name: s["command"][s["command"].index("--metrics-port") + 1] for name, s in workers.items()}
    assert sorted(targets["targets"]) == sorted(f"{name}:{port}" for name, port in ports.items())
    for name, port in ports.items():
        assert f'"127.0.0.1", {port}' in SERVICES[name]["healthcheck"]["test"][-1]


@pytest.mark.parametrize(("answer", "status"), [(200, 0), (503, 1), (None, 1)])
def test_a_health_check_says_what_the_worker_says(answer: int | None, status: int) -> None:
    reply = Reply(answer or 0, "application/json", b"{}")
    server = PageServer("127.0.0.1", 0, {"/healthz": lambda _: reply})
    if answer is not None:
        server.start()
    program, options, script = SERVICES["deep"]["healthcheck"]["test"][1:]
    assert program == "python"
    if answer is None:
        server.server_close()
    command = [sys.executable, options, script.replace("9464", str(server.port))]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    if answer is not None:
        server.shutdown()
        server.server_close()
    assert done.returncode == status


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    known = set(HELP) | {f"{name}_{part}" for name in HELP if "_seconds" in name for part in ("bucket", "sum", "count")}
    asked = set()
    for query in queries():
        if query.kind == "prometheus":
            bare = re.sub(r"\{[^}]*\}|\[\w+\]|by \([^)]*\)", "", query.text)
            asked |= {name for name in re.findall(r"[a-z_]{2,}(?![a-z_]*\()", bare) if "_" in name or name == "up"}
    unknown = {name for name in asked if name not in known and not name.startswith(LIBRARY)}
    assert not unknown
    assert len(asked & known) >= 12


def test_the_dashboard_asks_for_views_that_there_are() -> None:
    text = "".join(path.read_text() for path in sorted((ROOT / "sql").glob("*.sql")))
    views = set(re.findall(r"CREATE OR REPLACE VIEW (sona\.\w+)", text))
    asked = {view for q in queries() if q.kind == "postgres" for view in re.findall(r"FROM (sona\.\w+)", q.text)}
    assert asked
    assert asked <= views


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    board = dashboard()
    assert board["uid"]
    assert board["title"]
    assert board["schemaVersion"] >= 36
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "sona.yml").read_text())["datasources"]
    uids = {source["uid"] for source in sources}
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        assert panel["type"] in {"stat", "timeseries", "table"}
        assert panel["targets"]
        assert {panel["datasource"]["uid"], *(t["datasource"]["uid"] for t in panel["targets"])} <= uids
    provider = yaml.safe_load((folder / "dashboards" / "sona.yml").read_text())["providers"][0]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]
    assert json.dumps(board)
