"""``sona export`` and ``sona import``: what was learned as files, and back."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import click

from sona_pg.cli.output import print_json
from sona_pg.cli.spaces import json_option, url_option
from sona_pg.store import spaces
from sona_pg.store.database import Database, open_database
from sona_pg.store.exchange import has_prompts
from sona_pg.store.pool import ConnectionPool
from sona_pg.store.reader import read
from sona_pg.store.search import ItemSearch
from sona_pg.store.spaces import Space

WHAT = ("adapter", "patterns", "preferences")


@click.command("export")
@click.argument("space")
@click.argument("path", type=click.Path())
@click.option("--what", type=click.Choice(WHAT), default=WHAT[0], show_default=True, help="What is exported.")
@click.option("--version", type=click.IntRange(min=1), help="Of the adapter: one that was published.")
@click.option("--text-column", help="Of preferences: column of the items table with their texts.")
@click.option("--prompt-key", help="Of preferences: key of the metadata that holds the query's text.")
@json_option
@url_option
def export_space(
    space: str,
    path: str,
    what: str,
    version: int | None,
    text_column: str | None,
    prompt_key: str | None,
    as_json: bool,
    url: str | None,
) -> None:
    """Write what SPACE has learned to PATH, which is not there yet.

    An adapter is a directory in the layout of PEFT; patterns and preferences are a file, *.jsonl or *.parquet.
    """
    if version is not None and what != "adapter":
        raise click.UsageError("--version goes with --what adapter")
    if (text_column is not None or prompt_key is not None) and what != "preferences":
        raise click.UsageError("--text-column and --prompt-key go with --what preferences")
    if what == "adapter" and path.endswith((".jsonl", ".parquet")):
        raise click.UsageError(f"{path} is the name of a file: add --what patterns or --what preferences")
    database = open_database(url)
    with database.connect() as connection:
        found = spaces.get_space(connection, space)
        if what == "adapter":
            from sona_pg.exchange.adapters import export_adapter

            card = export_adapter(connection, found, path, version)
            written: Mapping[str, object] = card.to_json()
            said = f"the adapter of {space!r} ({card.events} events learned, version {card.version})"
        elif what == "patterns":
            from sona_pg.exchange.patterns import export_patterns

            rows = export_patterns(connection, found, path)
            written, said = {"rows": rows}, f"{rows} patterns of {space!r}"
        else:
            from sona_pg.exchange.preferences import export_preferences

            texts = None if text_column is None else _Texts(database, found, text_column)
            rows = export_preferences(connection, found, path, texts=texts, prompt_key=prompt_key)
            written, said = {"rows": rows}, f"{rows} preference pairs of {space!r}"
            if prompt_key is not None and not has_prompts(connection, found, prompt_key):
                click.echo(f"sona: no trajectory of {space!r} has a text under the key {prompt_key!r}", err=True)
    if as_json:
        print_json({"space": space, "what": what, "path": path, **written})
    else:
        click.echo(f"{said}: {path}")


class _Texts:
    """Texts of the items of a space, from a column of its table."""

    def __init__(self, database: Database, space: Space, column: str) -> None:
        self._search, self._column = ItemSearch(space, database.config), column
        self._connections = ConnectionPool(database)

    def __call__(self, ids: Sequence[str]) -> Mapping[str, str | None]:
        if not ids:
            return {}
        with self._connections.connection() as connection:
            return read(connection, self._search.texts, ids, self._column)


@click.command("import")
@click.argument("path", type=click.Path())
@click.option("--space", help="Where to; the space that the file names without.")
@click.option("--embedder", help="Fingerprint of the embedding model, where the file says none.")
@json_option
@url_option
def import_space(path: str, space: str | None, embedder: str | None, as_json: bool, url: str | None) -> None:
    """Let a space go on with the adapter in PATH, a directory, or take over the patterns in it, a file.

    All of it is checked before anything is written. What answered before an adapter is published first:
    'sona deploy SPACE rollback' goes back to it.
    """
    if os.path.isdir(path):
        from sona_pg.exchange.adapters import import_adapter
        from sona_pg.exchange.peft_files import read_adapter

        files = read_adapter(path)
        name = _name(space, None if files.card is None else files.card.space)
        database = open_database(url)
        with database.connect() as connection:
            found = spaces.get_space(connection, name)
            version = import_adapter(connection, found, files, embedder=embedder)
        done: Mapping[str, object] = {"what": "adapter", "version": version}
        said = f"version {version} is in force in {name!r}; to go back: sona deploy {shlex.quote(name)} rollback"
    else:
        from sona_pg.exchange.patterns import import_patterns, read_patterns

        file = read_patterns(path)
        name = _name(space, file.space)
        database = open_database(url)
        with database.connect() as connection:
            found = spaces.get_space(connection, name)
            report = import_patterns(connection, found, file, embedder=embedder)
        done = {"what": "patterns", **asdict(report)}
        said = (
            f"{report.read} patterns read: {report.created} are new in {name!r}, {report.merged} became part of others,"
            f" {report.known} were known"
        )
    if as_json:
        print_json({"space": name, **done})
    else:
        click.echo(said)


def _name(given: str | None, said: str | None) -> str:
    name = said if given is None else given
    if name is None:
        raise click.UsageError("the adapter does not say of which space it is: give --space")
    return name
