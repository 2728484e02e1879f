"""``sona space`` and ``sona status``."""

from __future__ import annotations

import click

from sona_pg.cli.output import print_json, print_table
from sona_pg.config import SpaceConfig
from sona_pg.errors import UnknownSpace
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, translated
from sona_pg.store.database import open_database

url_option = click.option("--url", metavar="URL", help="Database; SONA_DATABASE_URL or the embedded server without.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group()
def space() -> None:
    """Spaces: one embedding model and one purpose each."""


@space.command()
@click.argument("name")
@click.argument("dim", type=int)
@click.option("--embedder", help="Fingerprint of the embedding model; vectors of another are refused from then on.")
@click.option("--reward-min", type=float, default=SpaceConfig().reward_min, show_default=True)
@click.option("--reward-max", type=float, default=SpaceConfig().reward_max, show_default=True)
@click.option("--implicit-feedback", is_flag=True, help="Shown and unjudged counts as unhelpful when another helped.")
@click.option("--items", metavar="TABLE", help="The application's own table of items, which recall searches.")
@click.option("--id-column", default="id", show_default=True)
@click.option("--embedding-column", default="embedding", show_default=True)
@url_option
def create(
    name: str,
    dim: int,
    embedder: str | None,
    reward_min: float,
    reward_max: float,
    implicit_feedback: bool,
    items: str | None,
    id_column: str,
    embedding_column: str,
    url: str | None,
) -> None:
    """Create the space NAME for vectors of DIM components."""
    config = SpaceConfig(reward_min, reward_max, implicit_feedback)
    with open_database(url).connect() as connection, translated(), connection.transaction():
        made = spaces.create_space(connection, name, dim, embedder=embedder, config=config)
        if items is not None:
            sampled = spaces.set_items(connection, made, items, id_column, embedding_column)
            click.echo(f"sampled {sampled} items of {items}", err=True)
    click.echo(f"created space {name!r} for {dim} dimensions")


def _status(connection: Connection, name: str | None = None) -> tuple[list[str], list[tuple[object, ...]]]:
    with translated():
        cursor = connection.execute(
            "SELECT * FROM sona.status WHERE space = coalesce(%s, space) ORDER BY space", (name,)
        )
        head = [column.name for column in cursor.description or ()]
        return head, cursor.fetchall()


@space.command("list")
@json_option
@url_option
def list_spaces(as_json: bool, url: str | None) -> None:
    """List the spaces."""
    _print_status(as_json, url)


@space.command()
@click.argument("name")
@json_option
@url_option
def show(name: str, as_json: bool, url: str | None) -> None:
    """Show what the space NAME has recorded and learned."""
    with open_database(url).connect() as connection:
        head, rows = _status(connection, name)
    if not rows:
        raise UnknownSpace(f"there is no space {name!r}: see 'sona space list'")
    values = dict(zip(head, rows[0], strict=True))
    if as_json:
        print_json(values)
    else:
        print_table(("property", "value"), values.items())


@click.command()
@json_option
@url_option
def status(as_json: bool, url: str | None) -> None:
    """Say what is recorded and learned, one row a space."""
    _print_status(as_json, url)


def _print_status(as_json: bool, url: str | None) -> None:
    with open_database(url).connect() as connection:
        head, rows = _status(connection)
    if as_json:
        print_json([dict(zip(head, row, strict=True)) for row in rows])
    elif rows:
        print_table(head, rows)
    else:
        click.echo("no spaces yet: create one with 'sona space create NAME DIM', or see it work with 'sona demo'")
