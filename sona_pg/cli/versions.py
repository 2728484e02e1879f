"""``sona versions`` and ``sona deploy``: what was published, and the way back to it."""

from __future__ import annotations

import shlex
from dataclasses import asdict

import click

from sona_pg.cli.output import print_json, print_table
from sona_pg.cli.spaces import json_option, url_option
from sona_pg.store import spaces
from sona_pg.store import versions as store
from sona_pg.store.database import open_database
from sona_pg.store.reader import read


@click.command()
@click.argument("space")
@json_option
@url_option
def versions(space: str, as_json: bool, url: str | None) -> None:
    """List what was published of SPACE, oldest first."""
    with open_database(url).connect() as connection:
        found = read(connection, store.versions, spaces.get_space(connection, space))
    if as_json:
        print_json([asdict(version) for version in found])
    elif found:
        print_table(
            ("version", "parent", "published", "events", "answers by", "KB", "", "cause"),
            [
                (v.version, v.parent, v.created_at, v.events, v.answers_by, round(v.nbytes / 1000))
                + ("in force" if v.is_in_force else "", v.cause)
                for v in found
            ],
        )
    else:
        click.echo("nothing was published yet: a version is, every few hundred learned events and every hour")


@click.command()
@click.argument("space")
@click.argument("version")
@click.option("--reason", help="For the audit trail, sona.deployments.")
@json_option
@url_option
def deploy(space: str, version: str, reason: str | None, as_json: bool, url: str | None) -> None:
    """Answer, and go on learning, from a VERSION of SPACE: a number, rollback, latest or frozen.

    rollback is the version before the one in force; frozen answers by the embedding as it is, while learning goes on.
    What was learned since the last version is published first.
    """
    with open_database(url).connect() as connection:
        found = spaces.get_space(connection, space)
        deployed = store.deploy(connection, found, version, reason)
    if as_json:
        print_json({"space": space, "version": deployed, "frozen": version == "frozen"})
    elif version == "frozen":
        click.echo(f"the frozen embedding answers in {space!r}; to undo that: sona deploy {shlex.quote(space)} latest")
    else:
        click.echo(f"version {deployed} is in force in {space!r}")
