"""``sona space save`` and ``sona space load``: a space moves to another database by a file."""

from __future__ import annotations

from dataclasses import asdict

import click

from sona_pg.cli.output import print_json
from sona_pg.cli.spaces import json_option, url_option
from sona_pg.loops.archiving import load_space, save_space
from sona_pg.store.database import open_database


@click.command()
@click.argument("name", metavar="SPACE")
@click.argument("path", type=click.Path(dir_okay=False))
@json_option
@url_option
def save(name: str, path: str, as_json: bool, url: str | None) -> None:
    """Save all that SPACE has recorded and learned to the file PATH, as it is at one moment, while others work.

    What an application has recorded and not flushed is not in it, nor are the application's own items.
    """
    with open_database(url).connect() as connection:
        report = save_space(connection, name, path)
    if as_json:
        print_json({"path": path, **asdict(report)})
    else:
        click.echo(f"saved space {report.space!r}: {sum(report.rows.values())} rows, {report.bytes} bytes")
        click.echo(f"{report.sha256}  {path}")


@click.command()
@click.argument("path", type=click.Path(dir_okay=False))
@click.option("--name", help="What the space is to be called; as it was, without.")
@click.option("--embedder", help="Fingerprint of the embedding model: a space of another one is refused.")
@json_option
@url_option
def load(path: str, name: str | None, embedder: str | None, as_json: bool, url: str | None) -> None:
    """Make a space of the file PATH, which was saved from this or another database: all of it, or nothing."""
    report = load_space(open_database(url), path, name, embedder=embedder)
    if as_json:
        print_json({"path": path, **asdict(report)})
        return
    click.echo(f"loaded space {report.space!r}: {sum(report.rows.values())} rows")
    if report.items is not None:
        click.echo(f"its items are in {report.items}")
    elif report.items_missing is not None:
        click.echo(f"it has no items here: {report.items_missing}; name their table with sona.set_items")
