"""``sona worker``: processes that learn."""

from __future__ import annotations

import signal
import threading

import click

from sona_pg.config import StoreConfig, WorkerConfig
from sona_pg.errors import LearningError
from sona_pg.store.database import open_database
from sona_pg.worker import InstantWorker


@click.group()
def worker() -> None:
    """Worker processes, one for each loop."""


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
@click.option("--url", metavar="URL", help="Database; SONA_DATABASE_URL or the embedded server without.")
def instant(once: bool, poll_interval: float, pooled: bool, exact_search_rows: int, url: str | None) -> None:
    """Learn what SQL clients record, and find out what answers best. SIGTERM ends it after the batch in hand."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
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
