"""A stack that was really started: its containers, what they say, and how it goes down."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .images import ROOT, docker

LIVING = ("db", "instant", "background", "deep")
"""Services that stay, and have a health check."""
PATIENCE_SECONDS = 180


class Stack:
    """The stack of docker-compose.yml under a name of its own.

    Parameters
    ----------
    compose
        ``docker compose`` or ``docker-compose``, as words.
    environment
        What is set besides the environment of this process.
    files
        Compose files.
    """

    def __init__(
        self, compose: Sequence[str], environment: dict[str, str], files: Sequence[str] = ("docker-compose.yml",)
    ) -> None:
        self.project = "sona-test"
        self._command = [*compose, "--project-name", self.project]
        for file in files:
            self._command += ["--file", str(ROOT / file)]
        self.environment = environment

    def run(self, *arguments: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """``docker compose …``; what it says, both streams together."""
        hidden = ("SONA_", "PGPASSWORD")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=ROOT,
            env=kept | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check and done.returncode:
            raise RuntimeError(
                f"{' '.join(self._command)} {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}"
            )
        return done

    def up(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Start what does not run."""
        return self.run("up", "--detach", "--no-build", *arguments, check=check)

    def down(self, *, volumes: bool = True) -> None:
        """Stop and remove everything."""
        profiles = ["--profile", "demo", "--profile", "observability"]
        self.run(*profiles, "down", "--remove-orphans", *(["--volumes"] if volumes else []))

    def container(self, service: str) -> str:
        """Id of the container of a service, running or not."""
        filters = [f"label=com.docker.compose.project={self.project}", f"label=com.docker.compose.service={service}"]
        options = [word for each in filters for word in ("--filter", each)]
        found = docker(
            "ps", "--all", "--quiet", "--no-trunc", *options, "--filter", "label=com.docker.compose.oneoff=False"
        )
        ids = found.split()
        if len(ids) != 1:
            raise RuntimeError(f"service {service} has the containers {ids}, expected one")
        return ids[0]

    def inspected(self, service: str) -> dict[str, Any]:
        """What the engine says of the container of a service."""
        found: list[dict[str, Any]] = json.loads(docker("inspect", self.container(service)))
        return found[0]

    def process(self, service: str) -> int:
        """Id of the first process of a service, on this machine; 0 while it has none."""
        try:
            return int(self.inspected(service)["State"]["Pid"])
        except RuntimeError:
            return 0

    def health(self, service: str) -> str:
        """healthy, unhealthy or starting; where it does not run, its state."""
        state = self.inspected(service)["State"]
        return str(state["Health"]["Status"]) if state["Status"] == "running" else str(state["Status"])

    def await_healthy(self, services: Sequence[str] = LIVING, *, since: float | None = None) -> float:
        """Seconds until all are healthy."""
        began = time.monotonic() if since is None else since
        while True:
            found = {service: self.health(service) for service in services}
            if set(found.values()) == {"healthy"}:
                return time.monotonic() - began
            if time.monotonic() - began > PATIENCE_SECONDS:
                said = "\n".join(self.logs(service)[-1500:] for service in services)
                raise AssertionError(f"after {PATIENCE_SECONDS} s: {found}\n{said}")
            time.sleep(0.1)

    def await_restart(self, service: str, before: str, *, since: float) -> float:
        """Seconds until a container that was started at `before` has been started again and is healthy."""
        while self.inspected(service)["State"]["StartedAt"] == before:
            if time.monotonic() - since > PATIENCE_SECONDS:
                raise AssertionError(f"{service} was not started again:\n{self.logs(service)[-1500:]}")
            time.sleep(0.05)
        return self.await_healthy([service], since=since)

    def logs(self, service: str) -> str:
        """What a service has said, both streams."""
        done = subprocess.run(
            ["docker", "logs", self.container(service)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout

    def volume(self, name: str) -> Path:
        """Folder of a volume on this machine."""
        return Path(docker("volume", "inspect", "--format", "{{.Mountpoint}}", f"{self.project}_{name}"))
