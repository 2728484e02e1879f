"""What a space has learned as an adapter in files, and an adapter in files as what a space goes on with."""

from __future__ import annotations

from sona_pg.errors import DimensionMismatch
from sona_pg.exchange.origin import embedder_of
from sona_pg.exchange.peft_files import AdapterCard, AdapterFiles, weights_sha256, write_adapter
from sona_pg.files import FilePath
from sona_pg.kernels import LowRank
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.learner import Learner
from sona_pg.learning.stacking import stacked
from sona_pg.store import spaces
from sona_pg.store.connection import Connection
from sona_pg.store.exchange import export_reader, import_transaction
from sona_pg.store.spaces import Space


def export_adapter(connection: Connection, space: Space, path: FilePath, version: int | None = None) -> AdapterCard:
    """Write what a space adds to a query, by all that it has learned, or had by a version, in the layout of PEFT.

    The base, the adapter on it and the micro-LoRA are one map of the sum of their ranks: ``x + (x A) B`` is what
    `SonaEngine.adapt` gives by the strategy ``adapted``. What the other strategies make of it is not in it.

    Raises
    ------
    UnknownVersion
        If there is no such version.
    IoError
        If something is there already, or it cannot be written; nothing is left then.
    """
    with export_reader(connection, space) as reader:
        learned = reader.learned(version)
    learner = _learner(connection, space, ItemPool.empty(space.dim))
    if learned.state is not None:
        learner.load_bytes(learned.state)
    low_rank = stacked([learner.adapter.map, learner.micro])
    card = AdapterCard(
        space.dim, space.embedder, space.name, space.key, learned.version, learned.events, weights_sha256(low_rank)
    )
    write_adapter(path, low_rank, card)
    return card


def import_adapter(connection: Connection, space: Space, files: AdapterFiles, *, embedder: str | None = None) -> int:
    """Let a space go on with an adapter that was read; the version that is published of it.

    It becomes the base on which the space learns, with moments and averages that begin anew. What was learned until now
    is published before, so that `deploy` leads back to it.

    Parameters
    ----------
    embedder
        Fingerprint of the embedding model of an adapter that says none.

    Raises
    ------
    DimensionMismatch, EmbedderMismatch
        If it is of another dimension, or another embedding model.
    PermissionDenied, DatabaseError
        If this role may not learn in the space, or the database does not take it.
    """
    low_rank, card = files.low_rank, files.card
    if low_rank.dim != space.dim:
        raise DimensionMismatch(space.dim, low_rank.dim, "the exported adapter")
    said = embedder_of(None if card is None else card.embedder, embedder)
    with import_transaction(connection, space, said) as transaction:
        current = _learner(connection, space, ItemPool(*spaces.item_sample(connection, space)))
        state = transaction.state()
        if state is not None:
            current.load_bytes(state)
        transaction.publish_before("before an adapter was imported", current.to_bytes(), current.adapter.map)
        made = current.on_base(low_rank)
        made.withheld_share = current.withheld_share
        served: dict[str, LowRank] = {"adapter": made.adapter.map, "micro": made.micro}
        return transaction.publish(_cause(card), made.to_bytes(), served)


def _cause(card: AdapterCard | None) -> str:
    if card is None:
        return "imported: an adapter of PEFT"
    return f"imported: version {card.version} of space {card.space!r} with {card.events} events"[:500]


def _learner(connection: Connection, space: Space, pool: ItemPool) -> Learner:
    instant, adapter = spaces.claim_settings(connection, space, None, None)
    return Learner(space.dim, pool, adapter=adapter, instant=instant, space=space.config)
