"""``sona memory``: what is in the memory graph of a space, and the way back of what was removed."""

from __future__ import annotations

import click

from sona_pg.cli.output import print_json, print_table
from sona_pg.cli.spaces import json_option, url_option
from sona_pg.store import memory_facts
from sona_pg.store.database import open_database


@click.group()
def memory() -> None:
    """The memory graph: what the deep loop keeps of what was learned."""


@memory.command()
@click.argument("name", metavar="SPACE")
@json_option
@url_option
def show(name: str, as_json: bool, url: str | None) -> None:
    """How large the graph of SPACE is, whether its dreams help, and what its patterns are as a system."""
    with open_database(url).connect() as connection:
        found = memory_facts.memory_facts(connection, name)
    if as_json:
        print_json(found)
    else:
        print_table(("property", "value"), [(name, "" if value is None else value) for name, value in found.items()])


@memory.command()
@click.argument("name", metavar="SPACE")
@click.argument("archive_ids", metavar="[ID]…", type=int, nargs=-1)
@url_option
def restore(name: str, archive_ids: tuple[int, ...], url: str | None) -> None:
    """Bring back what cycles have removed from the graph of SPACE: entries of sona.archive by ID, or all."""
    with open_database(url).connect() as connection:
        restored = memory_facts.restore_memory(connection, name, archive_ids)
    click.echo(f"{restored} rows are back")


@memory.command("forget-dreams")
@click.argument("name", metavar="SPACE")
@url_option
def forget_dreams(name: str, url: str | None) -> None:
    """Delete all edges that dreams have made in SPACE."""
    with open_database(url).connect() as connection:
        gone = memory_facts.forget_dreams(connection, name)
    click.echo(f"{gone} edges are gone")
