"""``sona forget``."""

from __future__ import annotations

from dataclasses import asdict

import click

from sona_pg.cli.output import print_json, print_table
from sona_pg.cli.spaces import json_option, url_option
from sona_pg.engine import SonaEngine


@click.command()
@click.argument("space")
@click.argument("user")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--accept-lost",
    is_flag=True,
    help="Lose what others taught, where retention has deleted what it was learned from.",
)
@json_option
@url_option
def forget(space: str, user: str, yes: bool, accept_lost: bool, as_json: bool, url: str | None) -> None:
    """Forget USER in SPACE: what was recorded of them, and what was learned from it.

    The ledger is learned again without them; versions that had learned from them are deleted.
    """
    if not yes:
        question = f"Delete all of user {user!r} in space {space!r}, and the versions that learned from it, for good?"
        click.confirm(question, abort=True, err=True)
    with SonaEngine.connect(url, space=space, background=False) as engine:
        report = asdict(engine.forget(user, accept_lost=accept_lost))
    if as_json:
        print_json(report)
    elif report["trajectories"] or report["errors"]:
        print_table(("forgotten", "value"), report.items())
    else:
        click.echo(f"space {space!r} knows no user {user!r}: nothing was changed")
        if report["lost"]:
            click.echo(
                f"retention had deleted {report['lost']} trajectories; whose they were nobody knows, and what was "
                "learned from them stays: --accept-lost does not reach it, creating the space anew does"
            )
