"""``python -m tests.compose``: the stack really started, used from outside, killed piece by piece, and audited.

It takes a Docker engine, and makes the images that cannot be pulled. Exit status 1 on any violation.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import socket
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg

from sona_pg.store.connection import connect

from . import images
from .dashboard import queries
from .load import Load
from .stack import LIVING, Stack

DB_PASSWORD, USER_PASSWORD, GRAFANA_PASSWORD = "it's $ecret", "u'ser: p@ss %w", "gr@f'ana"
UP_SECONDS, HEALTHY_SECONDS, IMAGE_MEGABYTES = 60.0, 15.0, 350.0


class Trial:
    """What was found wrong, and what is measured.

    Parameters
    ----------
    compose
        The command, as words.
    kills
        How often each container is killed in each way.
    """

    def __init__(self, compose: list[str], kills: int) -> None:
        self.wrong: list[str] = []
        self._compose, self._kills = compose, kills
        self._port, self._prometheus = free_port(), free_port()
        self._environment = {
            "SONA_DB_PASSWORD": DB_PASSWORD,
            "SONA_USER_PASSWORD": USER_PASSWORD,
            "SONA_GRAFANA_PASSWORD": GRAFANA_PASSWORD,
            "SONA_DB_PORT": str(self._port),
            "SONA_PROMETHEUS_PORT": str(self._prometheus),
            "SONA_DB_CPUS": str(min(2, os.cpu_count() or 1)),
        }
        self.stack = Stack(compose, self._environment)

    def expect(self, right: bool, what: str) -> None:
        """Note down what is wrong unless it is right."""
        if not right:
            self.wrong.append(what)
            print(f"  VIOLATION: {what}", flush=True)

    def url(self, user: str = "sona_user", password: str = USER_PASSWORD) -> str:
        """Of the database, from outside."""
        return f"postgresql://{user}:{urllib.parse.quote(password, safe='')}@127.0.0.1:{self._port}/sona"

    # What is tried --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """From nothing to all healthy."""
        began = time.monotonic()
        self.stack.up()
        seconds = self.stack.await_healthy(since=began)
        print(f"up to all healthy: {seconds:.1f} s (at most {UP_SECONDS:.0f})", flush=True)
        self.expect(seconds <= UP_SECONDS, f"the stack took {seconds:.1f} s to be healthy")
        for service in LIVING:
            found = self.stack.inspected(service)
            host, config = found["HostConfig"], found["Config"]
            self.expect(config["User"].split(":")[0] not in ("", "0", "root"), f"{service} runs as root")
            self.expect(host["ReadonlyRootfs"], f"{service} may write its root file system")
            self.expect(host["CapDrop"] == ["ALL"], f"{service} has capabilities: {host['CapDrop']}")
            self.expect("no-new-privileges:true" in host["SecurityOpt"], f"{service} may gain privileges")
            self.expect(host["Memory"] > 0 and host["NanoCpus"] > 0, f"{service} has no limits")
            self.expect(host["RestartPolicy"]["Name"] == "unless-stopped", f"{service} is not restarted")
        with connect(self.url()) as connection:
            row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
            self.expect(row == (False,), "sona_user is a superuser")

    def kill_each(self) -> None:
        """Every container in turn, under load, in two ways; then the audit."""
        with tempfile.TemporaryDirectory() as home, closing(Load(self.url(), Path(home))) as load:
            load.start()
            time.sleep(5)
            for _ in range(self._kills):
                for service in LIVING:
                    self._kill(service, "kill -9 of its process", self._kill_process, load)
                for service in LIVING:
                    self._kill(service, "docker kill, then start", self._kill_container, load)
            found, counted = load.settle()
            for each in (*found.losses, *found.doubles):
                self.expect(False, each)
            self.expect(counted["dropped"] == 0, f"{counted['dropped']} were dropped")
            self.expect(counted["spooled"] > 0, "nothing was spooled: the kills of the database prove nothing")
            print(
                f"recorded from outside: {len(load.sent)} by SQL, {int(counted['events'])} by SonaEngine with"
                f" {int(counted['scored'])} late scores, {int(counted['spooled'])} of them by the spool; slowest record"
                f" {1e3 * counted['slowest_seconds']:.1f} ms; SQL waited {load.away_seconds:.1f} s at most\n"
                f"lost {len(found.losses)}, doubled {len(found.doubles)}",
                flush=True,
            )

    def _kill(self, service: str, how: str, kill: Callable[[str], None], load: Load) -> None:
        before = self.stack.inspected(service)["State"]["StartedAt"]
        began = time.monotonic()
        kill(service)
        seconds = self.stack.await_restart(service, before, since=began)
        seconds = max(seconds, self.stack.await_healthy(since=began))
        print(f"{how:26} {service:11} healthy again after {seconds:4.1f} s", flush=True)
        self.expect(seconds <= HEALTHY_SECONDS, f"{service} took {seconds:.1f} s to be healthy after {how}")
        found = load.check()
        for each in (*found.losses, *found.doubles):
            self.expect(False, f"after {how} of {service}: {each}")

    def _kill_process(self, service: str) -> None:
        os.kill(self.stack.inspected(service)["State"]["Pid"], signal.SIGKILL)

    def _kill_container(self, service: str) -> None:
        images.docker("kill", self.stack.container(service))
        self.stack.run("start", service)

    def interrupt_migration(self) -> None:
        """The first migration is killed in the middle: it is run again, by its restart policy or by the next `up`."""
        self.stack.down()
        with ThreadPoolExecutor(1) as pool:
            began = time.monotonic()
            coming = pool.submit(self.stack.up, check=False)
            while not (process := self.stack.process("migrate")):
                if coming.done():
                    raise AssertionError(f"no migration was started: {coming.result().stdout}")
                time.sleep(0.02)
            while not coming.done() and not self._is_migrating():
                time.sleep(0.02)
            os.kill(process, signal.SIGKILL)
            status = coming.result().returncode
        again = "by itself" if status == 0 else "by up -d again"
        self.stack.up()
        seconds = self.stack.await_healthy(since=began)
        print(f"first migration killed with -9: run again {again}; healthy after {seconds:.1f} s", flush=True)

    def _is_migrating(self) -> bool:
        """Whether a migration has a transaction open that has written something."""
        with psycopg.connect(self.url("postgres", DB_PASSWORD)) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
            ).fetchone()
        return row is not None and row[0] > 0

    def docker_kill_alone(self) -> None:
        """What the engine does after `docker kill`, by itself: nothing, for it takes that for the operator's will."""
        images.docker("kill", self.stack.container("deep"))
        time.sleep(10)
        print(f"10 s after docker kill, without up -d: the container is {self.stack.health('deep')}", flush=True)
        began = time.monotonic()
        self.stack.up()
        print(f"  and healthy {self.stack.await_healthy(since=began):.1f} s after up -d", flush=True)

    def observe(self) -> None:
        """Prometheus really started; every query of the dashboard answered by it, or by the database."""
        self.stack.run("--profile", "observability", "up", "--detach", "--no-build", "prometheus")
        self.stack.await_healthy(["prometheus"])
        deadline = time.monotonic() + 60
        while True:
            targets = self._ask("targets")["activeTargets"]
            up = [target["labels"]["instance"] for target in targets if target["health"] == "up"]
            if len(up) == 3 or time.monotonic() > deadline:
                break
            time.sleep(1)
        self.expect(sorted(up) == ["background:9464", "deep:9464", "instant:9464"], f"targets that are up: {up}")
        time.sleep(35)  # so that rates have two points
        empty = []
        with psycopg.connect(self.url("sona_grafana", GRAFANA_PASSWORD), autocommit=True) as connection:
            for query in queries():
                if query.kind == "prometheus":
                    rows = self._ask("query", query=query.text)["result"]
                else:
                    rows = connection.execute(query.text).fetchall()  # type: ignore[arg-type]
                if not rows:
                    empty.append(query.title)
            try:
                connection.execute("DELETE FROM sona.space")
                self.expect(False, "sona_grafana may write")
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):
                pass
        print(f"observability: {len(up)} targets up, {len(queries())} queries answered; no rows: {sorted(set(empty))}")
        needed = {"Workers", "Database, as workers see it", "Outcomes learned a second", "Cycles, 95th percentile"}
        needed |= {"Memory of workers", "Spaces", "What each strategy would have brought"}
        self.expect(not needed & set(empty), f"panels that should show something are empty: {needed & set(empty)}")

    def _ask(self, page: str, **parameters: str) -> dict[str, list[dict[str, dict[str, str]]]]:
        address = f"http://127.0.0.1:{self._prometheus}/api/v1/{page}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        data: dict[str, list[dict[str, dict[str, str]]]] = found["data"]
        return data

    def demonstrate(self) -> None:
        """The demo profile, over the stack's own database."""
        said = self.stack.run("--profile", "demo", "run", "--rm", "-T", "demo", "demo", "--fast", "--json").stdout
        result = json.loads(said[said.index("{\n") : said.rindex("}") + 1])
        print(f"demo: nDCG@10 {100 * result['gain_ndcg10']:+.1f} points after {result['events']} events", flush=True)
        self.expect(result["gain_ndcg10"] > 0, "the demo gained nothing")

    def refuse(self) -> None:
        """Bad input: a clear message, and nothing lost."""
        none = Stack(self._compose, {"SONA_DB_PORT": str(self._port)}).up(check=False)
        self._expect_refusal("no secret set", none.returncode, none.stdout, "a password of your own")
        with closing(socket.create_server(("127.0.0.1", 0))) as taken:
            port = taken.getsockname()[1]
            self.stack.run("stop")
            other = Stack(self._compose, self._environment | {"SONA_DB_PORT": str(port)})
            refused = other.up(check=False)
        self._expect_refusal("port taken", refused.returncode, refused.stdout, "address already in use")
        self.stack.up()
        self.stack.await_healthy()
        self._expect_data("a port that was taken")

        self.stack.down(volumes=False)
        version = self.stack.volume("sona-data") / "PG_VERSION"
        version.write_text("16\n")
        files = sorted(str(path) for path in version.parent.rglob("*") if path.is_file())
        began = time.monotonic()
        refused = self.stack.up(check=False)
        took = time.monotonic() - began
        self._expect_refusal(
            "volume of Postgres 16", refused.returncode, self.stack.logs("db"), "incompatible with server"
        )
        print(f"  compose gave up after {took:.0f} s: {refused.stdout.strip().splitlines()[-1]}")
        self.stack.down(volumes=False)
        self.expect(
            files == sorted(str(p) for p in version.parent.rglob("*") if p.is_file()), "its files are others now"
        )
        version.write_text("17\n")
        self.stack.up()
        self.stack.await_healthy()
        self._expect_data("a volume of another version")

    def _expect_refusal(self, what: str, status: int, said: str, expected: str) -> None:
        lines = [line for line in said.splitlines() if expected in line]
        self.expect(status != 0 and bool(lines), f"{what}: status {status}, and it said: {said[-800:]}")
        print(f"{what}: refused: {lines[0].strip()[:200] if lines else '?'}", flush=True)

    def _expect_data(self, after: str) -> None:
        with connect(self.url()) as connection:
            row = connection.execute("SELECT sum(trajectories) FROM sona.status").fetchone()
        self.expect(row is not None and row[0] > 0, f"after {after} nothing is there any more")

    def files(self, compose: list[str]) -> None:
        """Another stack, with its passwords in files, by another version of Compose."""
        with tempfile.TemporaryDirectory() as folder:
            given = {"SONA_DB_PORT": str(self._port), "SONA_DB_CPUS": self._environment["SONA_DB_CPUS"]}
            for name, password in (("DB", DB_PASSWORD), ("USER", USER_PASSWORD), ("GRAFANA", GRAFANA_PASSWORD)):
                path = Path(folder) / name.lower()
                path.write_text(f"{password}\n")
                path.chmod(0o444)
                given |= {f"SONA_{name}_PASSWORD": "", f"SONA_{name}_PASSWORD_FILE": str(path)}
            stack = Stack(compose, given, ("docker-compose.yml", "docker-compose.secrets.yml"))
            try:
                began = time.monotonic()
                stack.up()
                seconds = stack.await_healthy(since=began)
                print(f"with passwords in files, by {' '.join(compose)}: healthy after {seconds:.1f} s", flush=True)
                self.expect(seconds <= UP_SECONDS, f"with files the stack took {seconds:.1f} s")
                for service in LIVING:
                    shown = json.dumps(stack.inspected(service)["Config"]["Env"])
                    self.expect(
                        not any(p in shown for p in (DB_PASSWORD, USER_PASSWORD)), f"{service} shows a password"
                    )
                with connect(self.url()) as connection:
                    connection.execute("SELECT FROM sona.status")
            finally:
                stack.down()


def free_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        port: int = found.getsockname()[1]
        return port


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compose", default="docker compose", help="The command of Compose.")
    parser.add_argument("--other-compose", default="docker-compose", help="Another version, for passwords in files.")
    parser.add_argument("--kills", type=int, default=1, help="How often each container is killed in each way.")
    parser.add_argument("--no-build", action="store_true", help="Take the image sona-pg that is there.")
    arguments = parser.parse_args()
    standins = images.ensure_images()
    print(f"stand-ins: {', '.join(standins) or 'none'}")
    if not arguments.no_build:
        began = time.monotonic()
        images.build()
        print(f"image built in {time.monotonic() - began:.0f} s")
    trial = Trial(shlex.split(arguments.compose), arguments.kills)
    size, base = images.megabytes(images.SONA), images.megabytes(images.PYTHON)
    print(f"image: {size:.0f} MB (at most {IMAGE_MEGABYTES:.0f}), {base:.0f} of them {images.PYTHON}", flush=True)
    trial.expect(size <= IMAGE_MEGABYTES, f"the image has {size:.0f} MB")
    trial.stack.down()
    try:
        trial.interrupt_migration()
        trial.stack.down()
        trial.start()
        trial.kill_each()
        trial.docker_kill_alone()
        trial.demonstrate()
        trial.observe()
        trial.refuse()
        trial.stack.down()
        trial.files(shlex.split(arguments.other_compose))
    finally:
        trial.stack.down()
    print(f"{len(trial.wrong)} violations")
    sys.exit(bool(trial.wrong))


if __name__ == "__main__":
    main()
