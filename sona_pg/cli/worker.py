"""``sona worker``: processes that learn."""

from __future__ import annotations

import contextlib
import signal
import threading

import click

from sona_pg.cli import logs
from sona_pg.config import StoreConfig, TelemetryConfig, WorkerConfig
from sona_pg.errors import LearningError
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store.database import Database, open_database
from sona_pg.telemetry import NoTelemetry
from sona_pg.worker import InstantWorker


@click.group()
def worker() -> None:
    """Worker processes, one for each loop."""


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


def start_telemetry(
    database: Database, loop: str, port: int | None, host: str, poll_interval_seconds: float
) -> NoTelemetry:
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


@worker.command()
@click.option("--once", is_flag=True, help="Learn what is there, then end.")
@click.option(
    "--poll-interval",
    type=click.FloatRange(min=0.01),
    default=WorkerConfig().poll_interval_seconds,
    show_default=True,
    help="Seconds between two looks while there is nothing to do.",
)
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
@click.option("--url", metavar="URL", help="Database; SONA_DATABASE_URL or the embedded server without.")
def instant(
    once: bool,
    poll_interval: float,
    pooled: bool,
    exact_search_rows: int,
    metrics_port: int | None,
    metrics_host: str,
    url: str | None,
) -> None:
    """Learn what SQL clients record, and find out what answers best. SIGTERM ends it after the batch in hand."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    store = StoreConfig(prepare_statements=not pooled, exact_search_rows=exact_search_rows)
    logs.identify(SpaceStore.worker_name(), "instant")
    database = open_database(url, config=store, application="sona worker instant")
    with contextlib.closing(
        start_telemetry(database, "instant", metrics_port, metrics_host, poll_interval)
    ) as telemetry:
        _run_instant(
            InstantWorker(database, WorkerConfig(poll_interval_seconds=poll_interval), None, telemetry), once, stop
        )


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
