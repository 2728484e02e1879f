"""``sona worker``: processes that learn."""

from __future__ import annotations

import click

from sona_pg.config import StoreConfig, WorkerConfig
from sona_pg.errors import ConfigError, LearningError
from sona_pg.loops.catalog import LOOPS
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.signals import stop_at_signals
from sona_pg.store.database import open_database
from sona_pg.supervisor import Supervisor
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
url_option = click.option("--url", metavar="URL", help="Database; SONA_DATABASE_URL or the embedded server without.")


@click.group()
def worker() -> None:
    """Worker processes, one for each loop."""


@worker.command()
@once_option
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
@url_option
def instant(
    once: bool, poll_interval: float, drain_seconds: float, pooled: bool, exact_search_rows: int, url: str | None
) -> None:
    """Learn what SQL clients record, and find out what answers best. SIGTERM ends it after the batch in hand."""
    stop = stop_at_signals(drain_seconds)
    store = StoreConfig(prepare_statements=not pooled, exact_search_rows=exact_search_rows)
    database = open_database(url, config=store)
    runner = InstantWorker(database, WorkerConfig(poll_interval_seconds=poll_interval))
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


@worker.command()
@once_option
@poll_option
@drain_option
@url_option
def background(once: bool, poll_interval: float, drain_seconds: float, url: str | None) -> None:
    """Loop B, hourly: patterns and verdicts of what happened."""
    _run_cycles("background", once, poll_interval, drain_seconds, url)


@worker.command()
@once_option
@poll_option
@drain_option
@url_option
def deep(once: bool, poll_interval: float, drain_seconds: float, url: str | None) -> None:
    """Loop C, weekly: what was learned is restructured."""
    _run_cycles("deep", once, poll_interval, drain_seconds, url)


@worker.command("all")
@poll_option
@drain_option
@url_option
def run_all(poll_interval: float, drain_seconds: float, url: str | None) -> None:
    """All loops, a process for each; one that dies is started again. SIGTERM ends them all."""
    stop = stop_at_signals(None)
    database = open_database(url)  # what is wrong with it is said once
    options = ["--poll-interval", str(poll_interval), "--drain-seconds", str(drain_seconds), "--url", database.url]
    Supervisor(["instant", *LOOPS], options, drain_seconds).run(stop)


def _run_cycles(name: str, once: bool, poll_interval: float, drain_seconds: float, url: str | None) -> None:
    loop = LOOPS.get(name)
    if loop is None:
        raise ConfigError(f"this version of sona-pg has no loop {name!r}, expected {' or '.join(['instant', *LOOPS])}")
    stop = stop_at_signals(drain_seconds)
    runner = LoopCoordinator(open_database(url), loop, WorkerConfig(poll_interval_seconds=poll_interval))
    try:
        if not once:
            runner.run(stop)
            return
        ended = runner.step(stop)
        click.echo(f"{ended} cycles", err=True)
        if runner.failing:
            raise LearningError(f"cycles failed in {', '.join(runner.failing)}: see sona.errors")
    finally:
        runner.close()
