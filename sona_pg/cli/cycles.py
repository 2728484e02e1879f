"""``sona cycle``: when the slow loops learn, and what became of their cycles."""

from __future__ import annotations

import time
from datetime import datetime

import click

from sona_pg.cli.output import print_json, print_table
from sona_pg.cli.settings import loop_of, of_config
from sona_pg.cli.spaces import json_option, url_option
from sona_pg.config.sources import of_process
from sona_pg.errors import LearningError
from sona_pg.loops.deep import DEEP
from sona_pg.loops.rehearsal import rehearse
from sona_pg.loops.schedule import check_cron
from sona_pg.store import runs, schedules, spaces
from sona_pg.store.connection import Connection
from sona_pg.store.database import open_database
from sona_pg.store.memory_changes import MemoryChange


@click.group()
def cycle() -> None:
    """Cycles of the slow loops: background and deep."""


@cycle.command("run")
@click.argument("name", metavar="SPACE")
@click.argument("loop")
@click.option("--wait", type=click.FloatRange(min=0.0), metavar="SECONDS", help="Wait so long for its result.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Run a cycle of the deep loop here, with the settings of SONA_DEEP_... in the environment, show all that it "
    "changes, undo it.",
)
@json_option
@url_option
def run_cycle(name: str, loop: str, wait: float | None, dry_run: bool, as_json: bool, url: str | None) -> None:
    """Ask for a cycle of LOOP in SPACE now, whatever its schedule says; a worker of the loop runs it."""
    if dry_run and wait is not None:
        raise click.UsageError("--wait is for a cycle that a worker runs, --dry-run runs one here: leave --wait out")
    if dry_run:
        _rehearse(name, loop, as_json, url)
        return
    with open_database(url).connect() as connection:
        run_id = runs.request(connection, name, loop)
        found = _await(connection, name, run_id, 0.0 if wait is None else wait)
    if as_json:
        print_json(found)
    else:
        print_table(("property", "value"), found.items())
    if found["state"] == "failed" or (wait is not None and found["finished_at"] is None):
        raise LearningError(f"run {run_id} is {found['state']}: {found['reason'] or 'see sona.runs and sona.workers'}")


def _rehearse(name: str, loop: str, as_json: bool, url: str | None) -> None:
    if loop != DEEP.name:
        raise click.UsageError(f"--dry-run is for the deep loop, not for {loop!r}")
    config = of_process(None)
    found = rehearse(
        open_database(url, config=config.store_config), loop_of(loop, of_config(loop, config), config), name
    )
    if as_json:
        print_json({"facts": found.facts, "changes": [change._asdict() for change in found.changes]})
        return
    print_table(("phase", "would"), [(phase, str(facts)) for phase, facts in found.facts.items()])
    if found.changes:
        click.echo()
        print_table(MemoryChange._fields, found.changes)
    else:
        click.echo("\nnothing would change")


def _await(connection: Connection, name: str, run_id: int, seconds: float) -> dict[str, object]:
    deadline = time.monotonic() + seconds
    while True:
        (found,) = runs.latest_runs(connection, spaces.get_space(connection, name), run_id=run_id)
        if found["finished_at"] is not None or time.monotonic() >= deadline:
            return found
        time.sleep(min(0.1, max(0.0, deadline - time.monotonic())))


@cycle.command("list")
@click.argument("name", metavar="SPACE")
@click.option("--last", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@json_option
@url_option
def list_cycles(name: str, last: int, as_json: bool, url: str | None) -> None:
    """The last cycles of SPACE, newest first."""
    with open_database(url).connect() as connection:
        found = runs.latest_runs(connection, spaces.get_space(connection, name), last=last)
    if as_json:
        print_json(found)
    elif found:
        print_table(list(found[0]), [list(row.values()) for row in found])
    else:
        click.echo("no cycles yet: 'sona cycle run SPACE LOOP' asks for one")


@cycle.command()
@click.argument("name", metavar="SPACE")
@click.argument("loop", required=False)
@click.option("--every", metavar="INTERVAL", help="A cycle every so often, like '1 hour'.")
@click.option(
    "--cron", metavar="EXPRESSION", help="Or at these times, in five fields: '0 3 * * 0' is Sundays at three."
)
@click.option("--amount", type=click.IntRange(min=1), help="And whenever there are so many new ledger entries.")
@click.option("--window", "windows", multiple=True, metavar="HH:MM-HH:MM", help="Only at this time; repeatable.")
@click.option("--time-zone", default="UTC", show_default=True, help="Of --cron and --window.")
@click.option("--first", type=click.DateTime(), help="When the first is due, UTC.")
@click.option("--off", is_flag=True, help="None is due by itself.")
@json_option
@url_option
def schedule(
    name: str,
    loop: str | None,
    every: str | None,
    cron: str | None,
    amount: int | None,
    windows: tuple[str, ...],
    time_zone: str,
    first: datetime | None,
    off: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Show when the loops learn in SPACE; with an option, set it for LOOP: what is not given is not in force."""
    is_set = off or bool(windows) or any(given is not None for given in (every, cron, amount, first))
    if is_set and loop is None:
        raise click.UsageError("which loop? Give LOOP: background or deep")
    if time_zone != "UTC" and cron is None and not windows:
        raise click.UsageError("--time-zone is that of --cron and --window: give one of them")
    if cron is not None:
        check_cron(cron, time_zone)
    with open_database(url).connect() as connection:
        space = spaces.get_space(connection, name)
        if is_set:
            assert loop is not None
            given = schedules.Schedule(every, cron, amount, windows, time_zone, first, is_enabled=not off)
            schedules.set_schedule(connection, space, loop, given)
        found = [row for row in schedules.schedules(connection, space) if loop in (None, row["loop"])]
    if as_json:
        print_json(found)
    elif found:
        print_table(list(found[0]), [list(row.values()) for row in found])
    else:
        click.echo("no schedule yet: a worker of the loop makes one, or --every, --cron or --amount does")
