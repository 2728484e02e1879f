"""``sona space``."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from typing import cast

import click

from sona_pg.cli.output import print_json, print_table
from sona_pg.config import MAX_DIM, STRATEGIES, SpaceConfig, WorkerConfig
from sona_pg.errors import UnknownSpace
from sona_pg.store import spaces, strategy_evidence
from sona_pg.store.connection import transaction
from sona_pg.store.database import Database, open_database
from sona_pg.store.spool_usage import SpoolUsage, usage

url_option = click.option("--url", metavar="URL", help="Database; SONA_DATABASE_URL or the embedded server without.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group()
def space() -> None:
    """Spaces: one embedding model and one purpose each."""


@space.command()
@click.argument("name")
@click.argument("dim", type=click.IntRange(1, MAX_DIM))
@click.option("--embedder", help="Fingerprint of the embedding model; vectors of another are refused from then on.")
@click.option("--reward-min", type=float, default=SpaceConfig().reward_min, show_default=True)
@click.option("--reward-max", type=float, default=SpaceConfig().reward_max, show_default=True)
@click.option("--implicit-feedback", is_flag=True, help="Shown and unjudged counts as unhelpful when another helped.")
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default=SpaceConfig().strategy,
    show_default=True,
    help="What answers: learned is whatever outcomes have proven to be best, any other one is fixed.",
)
@click.option(
    "--examination",
    metavar="P,P,…",
    help="How likely an item is looked at, by position, like 1,0.7,0.5; the last one holds beyond.",
)
@click.option(
    "--control-share",
    type=float,
    default=SpaceConfig().control_share,
    show_default=True,
    help="Share of answers that the frozen embedding gives, to measure the lift by; 0 has no control arm.",
)
@click.option("--items", metavar="TABLE", help="The application's own table of items, which recall searches.")
@click.option("--id-column", default="id", show_default=True)
@click.option("--embedding-column", default="embedding", show_default=True)
@click.option("--filter-column", "filter_columns", multiple=True, help="Column that recall may filter by; repeatable.")
@url_option
def create(
    name: str,
    dim: int,
    embedder: str | None,
    reward_min: float,
    reward_max: float,
    implicit_feedback: bool,
    strategy: str,
    examination: str | None,
    control_share: float,
    items: str | None,
    id_column: str,
    embedding_column: str,
    filter_columns: tuple[str, ...],
    url: str | None,
) -> None:
    """Create the space NAME for vectors of DIM components."""
    probabilities = _probabilities(examination)
    config = SpaceConfig(reward_min, reward_max, implicit_feedback, strategy, probabilities, control_share)
    with open_database(url).connect() as connection, transaction(connection):
        made = spaces.create_space(connection, name, dim, embedder=embedder, config=config)
        if items is not None:
            sampled = spaces.set_items(connection, made, items, id_column, embedding_column, filter_columns)
            click.echo(f"sampled {sampled} items of {items}", err=True)
    click.echo(f"created space {name!r} for {dim} dimensions")


def _probabilities(option: str | None) -> tuple[float, ...] | None:
    if option is None:
        return None
    try:
        return tuple(float(part) for part in option.split(","))
    except ValueError as cause:
        raise click.BadParameter(f"{option!r} is no list of numbers like 1,0.7,0.5") from cause


@space.command("list")
@json_option
@url_option
def list_spaces(as_json: bool, url: str | None) -> None:
    """List the spaces."""
    rows = space_rows(open_database(url))
    if as_json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        click.echo("no spaces yet: create one with 'sona space create NAME DIM', or see it work with 'sona demo'")


@space.command()
@click.argument("name")
@json_option
@url_option
def show(name: str, as_json: bool, url: str | None) -> None:
    """Show what the space NAME has recorded and learned."""
    rows = space_rows(open_database(url), name)
    if not rows:
        raise UnknownSpace(f"there is no space {name!r}: see 'sona space list'")
    if as_json:
        print_json(rows[0])
    else:
        print_table(("property", "value"), rows[0].items())


@space.command()
@click.argument("name")
@click.argument("chosen", metavar="[STRATEGY]", required=False, type=click.Choice(STRATEGIES))
@click.option("--reason", help="For the audit trail, sona.deployments.")
@json_option
@url_option
def strategy(name: str, chosen: str | None, reason: str | None, as_json: bool, url: str | None) -> None:
    """Show what every strategy would have brought in the space NAME and what answers, or set what does.

    learned answers by whatever is proven; frozen leaves the answers alone while learning goes on, and shadow reports
    besides what learned would have brought.
    """
    if reason is not None and chosen is None:
        raise click.UsageError("--reason says why a strategy is set: name one, or leave the reason out")
    with open_database(url).connect() as connection:
        found = spaces.get_space(connection, name)
        if chosen is not None:
            spaces.set_strategy(connection, name, chosen, reason)
        evidence = strategy_evidence.evidence(connection, spaces.get_space(connection, found.name))
    if as_json:
        print_json(asdict(evidence))
        return
    click.echo(f"{evidence.in_force} answers; the space is set to {evidence.strategy}")
    if evidence.strategies:
        click.echo(f"\nnDCG@10 above frozen, before each of {evidence.strategies[0].events} events was learned from:")
        rows = [(s.strategy, f"{s.gain:+.4f}", f"{s.recent_gain:+.4f}") for s in evidence.strategies]
        print_table(("strategy", "gain", "recently"), rows)
        if not evidence.is_sane:
            click.echo(
                "\nIt is not shown that outcomes have to do with what was asked: until it is, whatever the gain, "
                "nothing but frozen answers in a space that is set to learned"
            )
    for turn in evidence.turns:
        where = "" if turn.region is None else f" in region {turn.region}"
        change = f"{turn.after} still" if turn.after == turn.before else f"{turn.after} instead of {turn.before}"
        click.echo(f"entry {turn.ordinal}: {change}{where}: {turn.reason}")


@space.command()
@click.argument("name")
@click.argument("share", type=float)
@url_option
def control(name: str, share: float, url: str | None) -> None:
    """Set the SHARE of answers in the space NAME, 0 to 0.5, that the frozen embedding gives, to measure the lift by."""
    with open_database(url).connect() as connection:
        spaces.set_control_share(connection, name, share)
    click.echo(f"{share:g} of the answers in {name!r} are the control arm")


@space.command()
@click.argument("name")
@click.option("--trajectories", metavar="INTERVAL", help="Delete older trajectories: '90 days'; 'never' keeps them.")
@click.option("--steps", metavar="INTERVAL", help="Delete the steps of older trajectories; 'never' keeps them.")
@click.option("--apply", "at_once", is_flag=True, help="Delete what is past it now; the instant worker does otherwise.")
@url_option
def retention(name: str, trajectories: str | None, steps: str | None, at_once: bool, url: str | None) -> None:
    """Say how long the space NAME keeps what was recorded. What was learned from it stays, and so does the ledger.

    What is not given stays as it is. What waits to be learned is kept.
    """
    with open_database(url).connect() as connection:
        chosen = spaces.get_space(connection, name)
        kept = spaces.retention(connection, chosen)
        if trajectories is not None or steps is not None:
            asked = [_interval(option, now) for option, now in zip((trajectories, steps), kept, strict=True)]
            spaces.set_retention(connection, chosen, *asked)
            kept = spaces.retention(connection, chosen)
        for what, interval in zip(("trajectories", "steps"), kept, strict=True):
            click.echo(f"{what} are kept {'for ever' if interval is None else f'for {interval}'}")
        if at_once:
            treated = 0
            while batch := spaces.apply_retention(connection, name, WorkerConfig().retention_batch):
                treated += batch
            click.echo(f"{treated} trajectories were past it and are deleted, or their steps")


def _interval(option: str | None, now: str | None) -> str | None:
    if option is None:
        return now
    return None if option == "never" else option


def space_rows(database: Database, name: str | None = None) -> list[dict[str, object]]:
    """What the database says of the spaces, or of one, and what waits for it in the spool of this machine."""
    with database.connect() as connection:
        rows = spaces.status(connection, name)
    for row in rows:
        key, directory = row.pop("space_key"), database.spool_directory
        held = SpoolUsage(0, None) if directory is None else usage(directory, cast(uuid.UUID, key))
        row["spool_bytes"] = held.bytes
        row["spool_age_seconds"] = (
            None if held.oldest is None else max(0, round((datetime.now(UTC) - held.oldest).total_seconds()))
        )
    return rows
