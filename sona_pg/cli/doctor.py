"""``sona doctor``."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from sona_pg.cli.output import print_json
from sona_pg.cli.spaces import json_option, url_option
from sona_pg.doctor import Finding, Verdict, examine


@click.command()
@json_option
@url_option
def doctor(as_json: bool, url: str | None) -> None:
    """Say what is wrong with this installation, and the command that mends it. Exit status 1 if anything is."""
    findings = examine(url)
    counts = {each: sum(finding.verdict is each for finding in findings) for each in Verdict}
    if as_json:
        print_json({str(each): n for each, n in counts.items()} | {"checks": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            _print(finding)
        click.echo(f"\n{counts[Verdict.WRONG]} wrong, {counts[Verdict.WARNING]} warnings, {counts[Verdict.OK]} ok")
    sys.exit(1 if counts[Verdict.WRONG] else 0)


def _print(finding: Finding) -> None:
    click.echo(f"{finding.verdict:<7}  {finding.check:<8}  {' '.join(finding.says.split())}")
    if finding.command is not None:
        click.echo(f"{'':19}{finding.command}")
