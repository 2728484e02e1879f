"""How far a command is, on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import click

from sona_pg.evaluation.protocol import Progress


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """Shows how many of how many are done."""
    with click.progressbar(length=100, label=label, file=sys.stderr) as bar:

        def advance(done: int, total: int) -> None:
            bar.update(100 * done // total - bar.pos)

        yield advance
