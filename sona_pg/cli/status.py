"""``sona status``."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from sona_pg.cli.output import print_json, print_table
from sona_pg.cli.spaces import json_option, space_rows, url_option
from sona_pg.errors import UnknownSpace
from sona_pg.store import observation
from sona_pg.store.database import Database, open_database

_ERRORS_SHOWN = 5


@click.command()
@click.argument("name", metavar="[SPACE]", required=False)
@json_option
@url_option
def status(name: str | None, as_json: bool, url: str | None) -> None:
    """Say what is learned, pending and failed, one row a space; of one SPACE its last errors, too."""
    database = open_database(url)
    rows = _rows(database, name)
    if name is not None and not rows:
        raise UnknownSpace(f"there is no space {name!r}: see 'sona status'")
    if as_json:
        print_json(rows)
    elif rows:
        head = ("space", "set to", "in force", "learned", "pending", "unweighed", "dropped", "spool", "version",
                "published", "lift", "95 % interval", "errors, 24 h")  # fmt: skip
        print_table(head, [_line(row) for row in rows])
        if name is not None:
            _print_errors(database, name)
    else:
        click.echo("no spaces yet: create one with 'sona space create NAME DIM', or see it work with 'sona demo'")


def _rows(database: Database, name: str | None) -> list[dict[str, object]]:
    rows = space_rows(database, name)
    with database.connect() as connection:
        found = {each.space: each for each in observation.figures(connection, name=name)[0]}
        lifts = observation.lifts(connection)
    for row in rows:
        space = str(row["space"])
        figures, lift = found.get(space), lifts.get(space)
        row["pending_since"] = None if figures is None else figures.pending_since
        row["version_at"] = None if figures is None else figures.version_at
        row["dropped"] = 0 if figures is None else figures.dropped
        row["errors_last_day"] = 0 if figures is None else figures.errors
        row["lift"] = None if lift is None else lift.lift
        row["lift_lower"] = None if lift is None else lift.lower
        row["lift_upper"] = None if lift is None else lift.upper
    return rows


def _line(row: dict[str, object]) -> tuple[object, ...]:
    lower, upper = row["lift_lower"], row["lift_upper"]
    return (
        *(row[name] for name in ("space", "strategy", "in_force", "events_learned", "pending", "unweighed", "dropped")),
        _size(row["spool_bytes"]),
        row["version"],
        _age(row["version_at"]),
        _signed(row["lift"]),
        "" if lower is None else f"{_signed(lower)} … {_signed(upper)}",
        row["errors_last_day"],
    )


def _signed(value: object) -> str:
    return f"{value:+.3f}" if isinstance(value, float) else ""


def _size(n: object) -> str:
    if not isinstance(n, int) or n < 1000:
        return f"{n} B"
    return f"{n / 1e3:.0f} kB" if n < 1e6 else f"{n / 1e6:.0f} MB"


def _age(moment: object) -> str:
    if not isinstance(moment, datetime):
        return ""
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _print_errors(database: Database, name: str) -> None:
    with database.connect() as connection:
        errors = observation.recent_errors(connection, name, _ERRORS_SHOWN)
    for at, source, message in errors:
        click.echo(f"\n{at.isoformat(sep=' ', timespec='seconds')} {source}: {' '.join(message.split())}")
