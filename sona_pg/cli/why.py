"""``sona why``."""

from __future__ import annotations

import textwrap
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import click

from sona_pg.cli.output import print_json, print_table
from sona_pg.cli.spaces import json_option, url_option
from sona_pg.store.database import open_database
from sona_pg.store.reader import read
from sona_pg.store.why import MovedItem, Why
from sona_pg.store.why import why as ask_why

_WIDTH = 100


@click.command()
@click.argument("trajectory", type=click.UUID)
@click.option("--space", metavar="SPACE", help="Its space; needed only where several have a trajectory of that id.")
@json_option
@url_option
def why(trajectory: uuid.UUID, space: str | None, as_json: bool, url: str | None) -> None:
    """Say why the answer recorded as TRAJECTORY was what it was.

    What answered and on which evidence, what moved its items, and what it remembered.
    """
    with open_database(url).connect() as connection:
        found = read(connection, ask_why, trajectory, space)
    if as_json:
        print_json(asdict(found))
        return
    click.echo(textwrap.fill(_summary(found), _WIDTH))
    if found.items:
        click.echo("\nWhat was shown:")
        _print_items(found, found.items)
    if found.dropped:
        click.echo("\nWhat the frozen embedding would have shown instead:")
        _print_items(found, found.dropped)
    if found.neighbours:
        click.echo("\nWhat was remembered near the query:")
        rows = [
            (n, f"{near.similarity:.3f}", near.trajectory_id, _list(near.helped), _list(near.unhelpful))
            for n, near in enumerate(found.neighbours, 1)
        ]
        print_table(("#", "cosine", "trajectory", "helped", "did not help"), rows)
    for note in found.notes:
        click.echo("\n" + textwrap.fill(f"Note: {note}.", _WIDTH))


def _summary(found: Why) -> str:
    reason, since = found.reason, found.reason.since
    version = "before any version was published"
    if found.version:
        version = f"from version {found.version}"
    if found.published_at is not None:
        version += f" ({found.cause}, {found.published_at:%Y-%m-%d %H:%M})"
    said = [
        f"{found.strategy.capitalize()} answered in space {found.space!r} on {found.answered_at:%Y-%m-%d %H:%M:%S %Z}, "
        f"{version}, "
        f"in the {found.arm} arm (probability {found.propensity:.2f}).",
        "Why"
        + ("" if since is None else f", since {since:%Y-%m-%d %H:%M}")
        + ("" if reason.region is None else f", in region {reason.region}")
        + f": {reason.text}"
        + ("" if reason.actor is None else f" by {reason.actor}")
        + ("." if reason.given is None else f" ({reason.given})."),
    ]
    proven = next((s for s in found.strategies if s.strategy == found.strategy and s.gain), None)
    if proven is not None:
        when = "by then" if found.published_at is not None else "until now"
        said.append(f"It brought {proven.gain:+.3f} nDCG@10 above frozen on {proven.events} events {when}.")
    if found.worth is not None:
        gained = "" if found.gain is None else f", {found.gain:+.3f} nDCG@10 above frozen"
        said.append(f"This answer was worth {found.worth:.2f}{gained}.")
    return " ".join(said)


def _print_items(found: Why, items: Sequence[MovedItem]) -> None:
    number = {near.trajectory_id: str(n) for n, near in enumerate(found.neighbours, 1)}

    def events(ids: tuple[uuid.UUID, ...]) -> str:
        near = [number[id] for id in ids if id in number]
        return ", ".join(near if len(near) == len(ids) else [*near, "…"])

    columns: list[tuple[str, list[object]]] = [
        ("place", [item.place for item in items]),
        ("item", [item.item_id for item in items]),
        ("frozen", [_frozen_place(item) for item in items]),
        ("moved", [None if item.moved is None else f"{item.moved:+d}" if item.moved else "0" for item in items]),
        ("score", [_figure(item.score, sign="") for item in items]),
        ("= cosine", [_figure(item.cosine, sign="") for item in items]),
        ("+ adapter", [_figure(item.adapter) for item in items]),
        ("+ memory", [_figure(item.memory) for item in items]),
        ("+ rest", [_figure(item.rest) for item in items]),
        ("helped in #", [events(item.helped_in) for item in items]),
        ("missed in #", [events(item.missed_in) for item in items]),
    ]
    # What is nothing for every item would only be in the way.
    kept = [(head, cells) for head, cells in columns if any(cell not in (None, "", "0", "0.000") for cell in cells)]
    print_table([head for head, _ in kept], zip(*(cells for _, cells in kept), strict=True))


def _frozen_place(item: MovedItem) -> str | None:
    if item.frozen_place is None:
        return None if item.frozen is None else ">100"
    return str(item.frozen_place)


def _figure(value: float | None, sign: str = "+") -> str | None:
    if value is None:
        return None
    return "0.000" if abs(value) < 5e-4 else f"{value:{sign}.3f}"


def _list(items: Iterable[str], most: int = 5) -> str:
    named = list(items)
    return ", ".join(named[:most]) + (f", … {len(named)} in all" if len(named) > most else "")
