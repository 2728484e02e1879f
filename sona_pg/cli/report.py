"""``sona lift`` and ``sona report``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from sona_pg.cli.output import print_json, print_table
from sona_pg.cli.spaces import json_option, url_option
from sona_pg.report import check_report, gather, save_report
from sona_pg.store import improvement, spaces
from sona_pg.store.database import open_database
from sona_pg.store.improvement import MIN_ANSWERS, ImprovementMetrics, LiftDay
from sona_pg.store.reader import read


@click.command()
@click.argument("name", metavar="SPACE")
@json_option
@url_option
def lift(name: str, as_json: bool, url: str | None) -> None:
    """Say what answers in SPACE are worth above those of the control arm, day by day, and how many were harmed."""
    with open_database(url).connect() as connection:
        space = spaces.get_space(connection, name)
        days = improvement.lift_days(connection, space)
        metrics = read(connection, improvement.improvement_metrics, space)
    if as_json:
        print_json({"space": space.name, "days": [asdict(d) for d in days], "improvement": asdict(metrics)})
    elif not days:
        click.echo(f"no answer of {space.name} has an outcome yet: record some, and look again")
    else:
        print_table(
            ("day", "learned", "control", "lift", "so far", "lower", "upper", "harmed", "gain"), [_row(d) for d in days]
        )
        click.echo(f"\n{_summary(metrics, sum(day.control_answers for day in days))}")


@click.command()
@click.argument("name", metavar="SPACE")
@click.option(
    "--html",
    "path",
    metavar="FILE",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Page to write; it needs no network, and shows ids and names, no texts.",
)
@url_option
def report(name: str, path: Path, url: str | None) -> None:
    """Write a page that shows what SPACE has learned, and whether it helped."""
    check_report(path)
    with open_database(url).connect() as connection:
        facts = gather(connection, spaces.get_space(connection, name))
    save_report(facts, path)
    click.echo(f"wrote {path}", err=True)


def _row(day: LiftDay) -> tuple[object, ...]:
    return (
        day.day,
        day.learned_answers,
        day.control_answers,
        *(_signed(value) for value in (day.lift, day.lift_so_far, day.lower, day.upper)),
        "" if day.harmed_share is None else f"{day.harmed_share:.1%}",
        _signed(day.gain),
    )


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _summary(metrics: ImprovementMetrics, controls: int) -> str:
    if metrics.lift is None or metrics.lift_lower is None or metrics.lift_upper is None:
        return (
            f"{controls} answers of the control arm are known, too few to tell the lift"
            f" (from {MIN_ANSWERS} on; sona.set_control_share changes how many there are)"
        )
    says = (
        "answers are worth more than the control arm's"
        if metrics.lift_lower > 0
        else "answers are worth less than the control arm's"
        if metrics.lift_upper < 0
        else "that may be nothing"
    )
    return f"lift {metrics.lift:+.3f}, from {metrics.lift_lower:+.3f} to {metrics.lift_upper:+.3f} at 95 %: {says}"
