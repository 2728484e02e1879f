"""What commands print: tables for people, one JSON document for programs."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Sequence

import click


def _jsonable(value: object) -> object:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return str(value)


def print_json(document: object) -> None:
    """Print the one JSON document of a command."""
    click.echo(json.dumps(document, indent=2, default=_jsonable, allow_nan=False))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return str(value)


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; numbers to the right."""
    body = [[_cell(value) for value in row] for row in rows]
    numeric = [all(_is_number(line[i]) for line in body) and bool(body) for i in range(len(head))]
    widths = [max(len(line[i]) for line in [list(head), *body]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    click.echo(line(head))
    click.echo(line(["─" * width for width in widths]))
    for cells in body:
        click.echo(line(cells))


def _is_number(cell: str) -> bool:
    return not cell or cell.lstrip("+-").replace(".", "", 1).replace(",", "").rstrip("%").isdigit()
