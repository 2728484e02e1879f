"""Changing the embedding model of a space: by callback, in batches, and with a way back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sona_pg.config import MAX_DIM, StoreConfig
from sona_pg.errors import ConfigError, InvalidInput
from sona_pg.loops.admission import checked_text
from sona_pg.loops.embedder_change import Embed, EmbedderChange, EmbedderReport, EmbedItems
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store import embedder_change
from sona_pg.store.database import open_database
from sona_pg.store.embedder_change import Target


def change_embedder(
    url: str | None,
    space: str,
    embed: Embed,
    *,
    embedder: str,
    dim: int,
    embedding_column: str | None = None,
    items: str | None = None,
    id_column: str | None = None,
    embed_items: EmbedItems | None = None,
    switch: bool = True,
    home: Path | str | None = None,
    store: StoreConfig | None = None,
) -> EmbedderReport:
    """Move a space to another embedding model, while it goes on answering by the one that it has.

    What was recorded is embedded again, in batches; the ledger is learned again; the strategies are weighed again; and
    in one transaction the new model takes the place of the old one. After an error, or a kill at any moment, the same
    call goes on. Called again after the switch, it carries over what came to the model before late. See
    docs/embedder.md.

    Parameters
    ----------
    url
        As in `SonaEngine.connect`.
    space
        Name of the space.
    embed
        Called with a list of `RecordedQuery`, gives a vector (dim,) for each, or None where it cannot: what was
        recorded of that one stays in the ledger and teaches nothing.
    embedder, dim
        Fingerprint of the new model, and components of its vectors.
    embedding_column
        Column of the items that are embedded by it; needed where the space has a table of items.
    items, id_column
        That table and its column of ids, where they are not those of the space. All three stay as they were given when
        the change began, and may be left out when it goes on.
    embed_items
        Called with a list of item ids, gives a vector (dim,) for each, or None: of items whose embeddings were recorded
        as activations. Without, these are taken from the table.
    switch
        Whether the new model is to take the place; otherwise all is made ready for it.
    home, store
        As in `SonaEngine.connect`.

    Raises
    ------
    EmbedderError, DimensionMismatch, InvalidInput
        If the callback fails, or gives too few vectors or what is none; nothing of that batch was written.
    EmbedderMismatch, ConfigError
        If the space is changing to another embedder, or with other items, or belongs to this one already.
    DatabaseError
        If the database does not take it.
    """
    checked_text(space, "the name of the space")
    checked_text(embedder, "embedder")
    if isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= MAX_DIM:
        raise ConfigError(f"dim is {dim!r}, expected a whole number from 1 to {MAX_DIM}")
    for name, column in (("items", items), ("id column", id_column), ("embedding column", embedding_column)):
        if column is not None:
            checked_text(column, name)
    for name, callback in (("embed", embed), ("embed_items", embed_items)):
        if not callable(callback) and not (name == "embed_items" and callback is None):
            raise InvalidInput(f"{name} is {callback!r}, expected a function that embeds a list")
    target = Target(embedder, dim, items, id_column, embedding_column)
    with _opened(url, space, home, store) as opened:
        return EmbedderChange(opened, embed, target, embed_items).run(switch=switch)


def finish_embedder(
    url: str | None,
    space: str,
    *,
    accept_lost: bool = False,
    home: Path | str | None = None,
    store: StoreConfig | None = None,
) -> None:
    """Delete what is kept of the model before: after that there is no way back to it.

    Outcomes that came to it late, of what the new model has too, are taken along.

    Raises
    ------
    IncompleteLedger
        If trajectories came to the model before since the switch, and `accept_lost` does not say that they may be lost.
    ConfigError
        If the space has not changed its embedder.
    DatabaseError
        If the database does not take it.
    """
    with _opened(url, space, home, store) as opened:
        embedder_change.finish(opened.connection(), opened.space, accept_lost=accept_lost)


def abort_embedder(
    url: str | None,
    space: str,
    *,
    accept_lost: bool = False,
    home: Path | str | None = None,
    store: StoreConfig | None = None,
) -> None:
    """Give up a change of the embedder or, after the switch, go back to the model before with all that it had learned.

    Outcomes that came since the switch, of what was recorded before it, are taken along.

    Raises
    ------
    IncompleteLedger
        If trajectories were recorded since the switch, and `accept_lost` does not say that they may be lost.
    ConfigError
        If the space is not changing its embedder.
    DatabaseError
        If the database does not take it.
    """
    with _opened(url, space, home, store) as opened:
        embedder_change.abort(opened.connection(), opened.space, accept_lost=accept_lost)


@contextlib.contextmanager
def _opened(url: str | None, space: str, home: Path | str | None, store: StoreConfig | None) -> Iterator[SpaceStore]:
    database = open_database(url, home=home, config=store)
    with database.connect() as connection:
        found = embedder_change.open_space(connection, checked_text(space, "the name of the space"))
    with contextlib.closing(SpaceStore(found, database.connect, database.config, None)) as opened:
        yield opened
