"""The commands of ``sona``, and those that concern the database itself."""

from __future__ import annotations

import click

from sona_pg import __version__
from sona_pg.cli import logs
from sona_pg.cli.archive import load, save
from sona_pg.cli.cycles import cycle
from sona_pg.cli.demo import demo
from sona_pg.cli.doctor import doctor
from sona_pg.cli.embedder import re_embed
from sona_pg.cli.evaluate import evaluate
from sona_pg.cli.exchange import export_space, import_space
from sona_pg.cli.forget import forget
from sona_pg.cli.memory import memory
from sona_pg.cli.output import print_json
from sona_pg.cli.report import lift, report
from sona_pg.cli.spaces import space
from sona_pg.cli.status import status
from sona_pg.cli.versions import deploy, versions
from sona_pg.cli.why import why
from sona_pg.cli.worker import worker
from sona_pg.store.connection import current_revision
from sona_pg.store.database import open_database, resolve_url
from sona_pg.store.server import EmbeddedServer, default_home


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sona")
def app() -> None:
    """The learning layer for Postgres: record outcomes, learn from them, apply what was learned.

    The database is --url, or SONA_DATABASE_URL, or the embedded server under SONA_HOME.
    """
    logs.configure()


@app.group()
def db() -> None:
    """The embedded server: Postgres with pgvector, under SONA_HOME."""


@db.command()
def start() -> None:
    """Start it, unless it runs, with the current schema; print its URL."""
    click.echo(open_database(home=default_home()).url)


@db.command()
def stop() -> None:
    """Stop it, unless it is stopped."""
    EmbeddedServer(default_home()).stop()


@db.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def server_status(as_json: bool) -> None:
    """Say whether it runs, and where."""
    found = EmbeddedServer(default_home()).status()
    if as_json:
        print_json(
            {
                "running": found.running,
                "pid": found.pid,
                "home": str(found.home),
                "url": found.url,
                "version": found.version,
                "reason": found.reason,
            }
        )
    elif found.running:
        click.echo(f"running: Postgres {found.version}, process {found.pid}, {found.url}")
    else:
        click.echo(f"stopped: {found.reason or 'not started'} (home {found.home})")


@db.command()
def url() -> None:
    """Print its URL, starting it if need be: psql "$(sona db url)"."""
    click.echo(open_database(home=default_home()).url)


@app.command()
@click.option("--url", "given", metavar="URL", help="Database to migrate.")
@click.option("--dry-run", is_flag=True, help="Do everything, then roll back.")
def migrate(given: str | None, dry_run: bool) -> None:
    """Bring a Postgres with pgvector to the current schema, functions and views included."""
    from sona_pg.store.migrate import migrate as migrate_database

    resolved, _ = resolve_url(given)
    before = current_revision(resolved)
    reached = migrate_database(resolved, dry_run=dry_run)
    verb = "would be" if dry_run else "is"
    click.echo(f"schema {verb} at revision {reached}; it was at {before or 'none'}")


for command in (re_embed, save, load):
    space.add_command(command)
app.add_command(space)
app.add_command(status)
app.add_command(doctor)
app.add_command(why)
app.add_command(demo)
app.add_command(evaluate)
app.add_command(forget)
app.add_command(worker)
app.add_command(cycle)
app.add_command(memory)
app.add_command(versions)
app.add_command(deploy)
app.add_command(export_space)
app.add_command(import_space)
app.add_command(lift)
app.add_command(report)
