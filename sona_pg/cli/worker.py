"""``sona worker``: processes that learn."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import replace

import click

from sona_pg.cli import logs
from sona_pg.cli.settings import (
    ProcessSettings,
    Value,
    as_options,
    config_option,
    loop_of,
    of_config,
    settings_options,
)
from sona_pg.cli.spaces import url_option
from sona_pg.config import SonaConfig, StoreConfig, TelemetryConfig, WorkerConfig
from sona_pg.errors import LearningError
from sona_pg.loops.catalog import LOOPS
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.space_store import SpaceStore
from sona_pg.signals import stop_at_signals
from sona_pg.store.database import ENV_URL, Database, open_database
from sona_pg.supervisor import Supervisor
from sona_pg.telemetry import NoTelemetry
from sona_pg.worker import InstantWorker

once_option = click.option("--once", is_flag=True, help="Learn what is there, then end.")
poll_option = click.option(
    "--poll-interval",
    type=click.FloatRange(min=0.01),
    default=WorkerConfig().poll_interval_seconds,
    show_default=True,
    help="Seconds between two looks while there is nothing to do.",
)
drain_option = click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0.0),
    default=WorkerConfig().drain_seconds,
    show_default=True,
    help="What is in hand at SIGTERM is finished, or abandoned after so long; the next worker begins it again.",
)
metrics_port_option = click.option(
    "--metrics-port",
    type=click.IntRange(0, 65_535),
    metavar="PORT",
    help="Answer /metrics and /healthz on this port, 0 for any that is free; not at all without.",
)
metrics_host_option = click.option(
    "--metrics-host",
    default=TelemetryConfig().host,
    show_default=True,
    metavar="HOST",
    help="Address on which they are answered; they name spaces, and say what failed.",
)


@click.group()
def worker() -> None:
    """Worker processes, one for each loop."""


def _of_store(config: SonaConfig) -> dict[str, Value]:
    store = config.store_config
    return {"pooled": not store.prepare_statements, "exact_search_rows": store.exact_search_rows}


@worker.command()
@once_option
@config_option(_of_store)
@poll_option
@drain_option
@click.option("--pooled", is_flag=True, help="The database is behind a pooler in transaction mode.")
@click.option(
    "--exact-search-rows",
    type=click.IntRange(0, 1 << 31),
    default=StoreConfig().exact_search_rows,
    show_default=True,
    help="Give spaces with more remembered queries than this an HNSW index, which is fast and approximate.",
)
@metrics_port_option
@metrics_host_option
@url_option
def instant(
    once: bool,
    poll_interval: float,
    drain_seconds: float,
    pooled: bool,
    exact_search_rows: int,
    metrics_port: int | None,
    metrics_host: str,
    url: str | None,
    config: ProcessSettings,
) -> None:
    """Learn what SQL clients record, and find out what answers best. SIGTERM ends it after the batch in hand."""
    stop = stop_at_signals(drain_seconds)
    own = config.config
    store = replace(own.store_config, prepare_statements=not pooled, exact_search_rows=exact_search_rows)
    database = _open("instant", url, own.replace(store_config=store))
    with contextlib.closing(_telemetry(database, "instant", metrics_port, metrics_host, poll_interval)) as telemetry:
        pace = WorkerConfig(poll_interval_seconds=poll_interval)
        _run_instant(InstantWorker(database, pace, own.evidence_config, telemetry), once, stop)


def _run_instant(runner: InstantWorker, once: bool, stop: threading.Event) -> None:
    try:
        if not once:
            runner.run(stop)
            return
        learned = 0
        while not stop.is_set() and (batch := runner.step()):
            learned += batch
        weighed = 0
        while not stop.is_set() and (batch := runner.weigh()):
            weighed += batch
        click.echo(f"{learned} trajectories learned, strategies weighed by {weighed} ledger entries", err=True)
        if runner.failing:
            raise LearningError(f"could not learn in {', '.join(runner.failing)}: see sona.errors")
    finally:
        runner.close()


def _cycles_command(name: str, does: str) -> None:
    """``sona worker NAME`` for a loop that has cycles."""

    @worker.command(name, help=does)
    @once_option
    @settings_options(name)
    @poll_option
    @drain_option
    @metrics_port_option
    @metrics_host_option
    @url_option
    def run(
        once: bool,
        poll_interval: float,
        drain_seconds: float,
        metrics_port: int | None,
        metrics_host: str,
        url: str | None,
        config: ProcessSettings,
        **settings: Value,
    ) -> None:
        loop = loop_of(name, settings, config.config)
        stop = stop_at_signals(drain_seconds)
        database = _open(name, url, config.config)
        with contextlib.ExitStack() as stack:
            telemetry = stack.enter_context(
                contextlib.closing(_telemetry(database, name, metrics_port, metrics_host, poll_interval))
            )
            runner = LoopCoordinator(database, loop, WorkerConfig(poll_interval_seconds=poll_interval), telemetry)
            stack.callback(runner.close)
            if not once:
                runner.run(stop)
                return
            ended = runner.step(stop)
            click.echo(f"{ended} cycles", err=True)
            if runner.failing:
                raise LearningError(f"cycles failed in {', '.join(runner.failing)}: see sona.errors")


_cycles_command("background", "Loop B, hourly: patterns and verdicts of what happened.")
_cycles_command("deep", "Loop C, weekly: what was learned is restructured.")


@worker.command("all")
@settings_options("background")
@poll_option
@drain_option
@url_option
def run_all(
    poll_interval: float, drain_seconds: float, url: str | None, config: ProcessSettings, **settings: Value
) -> None:
    """All loops, a process for each; one that dies is started again. SIGTERM ends them all.

    The options are those of the background loop; the others take theirs from the file and the environment, see 'deep
    --help' and 'instant --help'.
    """
    own = config.config
    given = {loop: settings if loop == "background" else of_config(loop, own) for loop in LOOPS}
    for loop, options in given.items():
        loop_of(loop, options, own)  # what is out of range is refused before anything is started
    stop = stop_at_signals(None)
    database = _database(url, own)  # what is wrong with it is said once
    common = ["--poll-interval", str(poll_interval), "--drain-seconds", str(drain_seconds)]
    if config.path is not None:
        common.append(f"--config={config.path}")
    workers = {loop: [*common, *as_options(loop, options)] for loop, options in given.items()}
    workers["instant"] = common
    Supervisor(workers, drain_seconds, {ENV_URL: database.url}).run(stop)


def _open(loop: str, url: str | None, config: SonaConfig) -> Database:
    logs.identify(SpaceStore.worker_name(), loop)
    return _database(url, config, f"sona worker {loop}")


def _database(url: str | None, config: SonaConfig, application: str = "sona") -> Database:
    home = None if config.home is None else os.fspath(config.home)
    return open_database(url or config.database_url, home=home, config=config.store_config, application=application)


def _telemetry(database: Database, loop: str, port: int | None, host: str, poll_interval_seconds: float) -> NoTelemetry:
    """What a worker tells its progress: pages on a port, or nothing without one.

    Raises
    ------
    IoError
        If the port cannot be listened on.
    """
    if port is None:
        return NoTelemetry()
    # Prometheus' library stays out of the memory of workers that nobody asks.
    from sona_pg.telemetry.served import Telemetry

    stall = max(TelemetryConfig().stall_seconds, 3 * poll_interval_seconds)
    telemetry = Telemetry(database, SpaceStore.worker_name(), loop, TelemetryConfig(host=host, stall_seconds=stall))
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"metrics on http://{shown}:{telemetry.serve(port)}/metrics, health on /healthz", err=True)
    return telemetry
