"""``sona space re-embed``: a space moves to another embedding model."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict

import click
from click.core import ParameterSource

from sona_pg.cli.output import print_json, print_table
from sona_pg.cli.spaces import json_option, url_option
from sona_pg.config import MAX_DIM, StoreConfig
from sona_pg.embedder_change import abort_embedder, change_embedder, finish_embedder
from sona_pg.errors import ConfigError


@click.command("re-embed")
@click.argument("name")
@click.option("--embedder", help="Fingerprint of the new embedding model.")
@click.option("--dim", type=click.IntRange(1, MAX_DIM), help="Components of its vectors.")
@click.option("--with", "embed", metavar="MODULE:FUNCTION", help="Embeds a list of recorded queries.")
@click.option("--embed-items", metavar="MODULE:FUNCTION", help="Embeds a list of item ids; the table is asked without.")
@click.option("--embedding-column", help="Column of the items that are embedded by the new model.")
@click.option("--items", metavar="TABLE", help="Table of those items, where it is another one.")
@click.option("--id-column", help="Its column of ids, where it is another one.")
@click.option(
    "--batch",
    type=click.IntRange(1, 100_000),
    default=StoreConfig().embed_batch,
    show_default=True,
    help="Queries that are embedded at once.",
)
@click.option("--no-switch", is_flag=True, help="Make all ready for the new model, and let the old one answer.")
@click.option("--finish", is_flag=True, help="Delete what is kept of the old model.")
@click.option("--abort", is_flag=True, help="Give the change up or, after the switch, go back to the old model.")
@click.option("--accept-lost", is_flag=True, help="With these: lose what only the other model has recorded.")
@json_option
@url_option
def re_embed(
    name: str,
    embedder: str | None,
    dim: int | None,
    embed: str | None,
    embed_items: str | None,
    embedding_column: str | None,
    items: str | None,
    id_column: str | None,
    batch: int,
    no_switch: bool,
    finish: bool,
    abort: bool,
    accept_lost: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Move the space NAME to another embedding model, while it goes on answering by the one that it has.

    The same command goes on where an earlier run has ended, and after the switch carries over what came late.
    """
    if finish or abort:
        ends = ("name", "--url", "--accept-lost", "--finish" if finish else "--abort")
        if given := [option for option in _given() if option not in ends]:
            raise click.UsageError("--finish and --abort end a change, each of them alone, without " + ", ".join(given))
        end = finish_embedder if finish else abort_embedder
        end(url, name, accept_lost=accept_lost)
        click.echo(f"the old model of {name!r} is given up" if finish else f"{name!r} is with the old model")
        return
    if embedder is None or dim is None or embed is None:
        raise click.UsageError("a change needs --embedder, --dim and --with; --finish and --abort end one")
    if accept_lost:
        raise click.UsageError("--accept-lost goes with --finish or --abort: a change loses nothing")
    report = change_embedder(
        url,
        name,
        _function(embed),
        embedder=embedder,
        dim=dim,
        embedding_column=embedding_column,
        items=items,
        id_column=id_column,
        embed_items=None if embed_items is None else _function(embed_items),
        switch=not no_switch,
        store=StoreConfig(embed_batch=batch),
    )
    if as_json:
        print_json(asdict(report))
        return
    print_table(("change of embedder", "value"), asdict(report).items())
    if report.is_switched:
        click.echo(
            f"{embedder!r} answers in {name!r}; --finish ends it, and this goes back: "
            f"sona space re-embed {shlex.quote(name)} --abort"
        )


def _given() -> list[str]:
    """Parameters that the command line gives."""
    context = click.get_current_context()
    return [
        part.opts[0]
        for part in context.command.params
        if part.name is not None and context.get_parameter_source(part.name) is ParameterSource.COMMANDLINE
    ]


def _function(name: str) -> Callable[..., list[list[float] | None]]:
    """The function MODULE:FUNCTION, from the working directory too."""
    module, _, function = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: object = getattr(importlib.import_module(module), function) if function else None
    except (Exception, SystemExit) as cause:  # whatever the module does when it is imported
        raise ConfigError(
            f"{name!r} cannot be imported ({type(cause).__name__}: {cause}): give a module and a function, "
            "like mine:embed"
        ) from cause
    if not callable(found):
        raise ConfigError(f"{name!r} is no function: give a module and a function, like mine:embed")
    return found
