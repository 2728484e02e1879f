"""SonaEngine: record, learn and apply on one space."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from sona_pg.config import (
    SHOWN,
    EmbeddingConfig,
    EvidenceConfig,
    InstantLoopConfig,
    QueryAdapterConfig,
    SpaceConfig,
    StoreConfig,
    StrategyConfig,
)
from sona_pg.engine.answering import Answering, Response
from sona_pg.engine.apply import Applying, check_k
from sona_pg.engine.learn import Learning
from sona_pg.engine.look import Looking
from sona_pg.engine.opening import open_space
from sona_pg.errors import ConfigError, InvalidInput
from sona_pg.text.embedders import CheckedEmbedder, Embedder
from sona_pg.text.responders import Context, Responder


class SonaEngine(Learning, Applying, Looking):
    """Records what was answered and what it was worth, learns from it, and adapts queries by it.

    Made by `connect`. Safe to use from several threads; recording never waits for the database.

    Examples
    --------
    >>> with SonaEngine.connect(space="support", dim=384) as sona:  # doctest: +SKIP
    ...     sona.set_items("public.articles", "id", "embedding")
    ...     found = sona.recall(query_embedding)
    ...     sona.record(found, rewards={found.items[0].item_id: 1.0})
    """

    _answering: Answering | None = None

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        *,
        space: str = "default",
        dim: int | None = None,
        embedder: str | Embedder | None = None,
        responder: Responder | None = None,
        text_column: str | None = None,
        embedding: EmbeddingConfig | None = None,
        home: Path | str | None = None,
        background: bool = True,
        instant: InstantLoopConfig | None = None,
        adapter: QueryAdapterConfig | None = None,
        strategy: StrategyConfig | None = None,
        evidence: EvidenceConfig | None = None,
        space_config: SpaceConfig | None = None,
        store: StoreConfig | None = None,
    ) -> Self:
        """Open a space, creating it if it is not there and `dim` says how large its vectors are.

        Parameters
        ----------
        url
            libpq connection string; without it SONA_DATABASE_URL, and without that the embedded server.
        space
            Name of the space.
        dim
            Components of its vectors; must agree with the space where it exists.
        embedder
            The embedding model, which `process` asks, or its fingerprint alone; declared at the first use, and checked
            from then on. A model says `dim` where that is not given.
        responder, text_column, embedding
            Of `process`: makes an answer of the items (without, the best one answers); the column of the items table
            with their texts; and how the embedder is asked.
        home
            Folder of the embedded server.
        background
            Learn, flush and find the strategy in threads of their own. Without, that happens when `learn` and `flush`
            are called.
        instant, adapter, strategy
            Settings of learning. The first process that opens a space declares them; later ones take them over, and
            are refused if they ask for others.
        evidence, store
            Settings of this process: how it finds the strategy, and how it uses the database.
        space_config
            What a new space declares about its rewards.

        Raises
        ------
        UnknownSpace
            If there is no such space, and `dim` was not given.
        DimensionMismatch, EmbedderMismatch
            If the space is of another dimension, or belongs to another embedding model.
        DatabaseError
            If the database cannot be used; the message says why and what helps.
        """
        answering: Answering | None = None
        if embedder is not None and not isinstance(embedder, str):
            checked = CheckedEmbedder(embedder, embedding)
            answering = Answering(checked, responder, text_column)
            dim, embedder = checked.dim if dim is None else dim, checked.fingerprint
        elif not (responder is None and text_column is None and embedding is None):
            raise ConfigError("responder, text_column and embedding are of process, which needs an embedder: give one")
        opened = open_space(
            url,
            space,
            dim,
            embedder,
            home=home,
            instant=instant,
            adapter=adapter,
            strategy=strategy,
            evidence=evidence,
            space_config=space_config,
            store=store,
        )
        engine = cls(*opened, background=background)
        engine._answering = answering
        return engine

    def process(self, query: str, context: Context | None = None, *, k: int = SHOWN) -> Response:
        """Answer a text: embed it, recall items, ask what has proven good for such queries, respond, and record it.

        The answer teaches nothing before somebody says what it was worth: `score` it.

        Parameters
        ----------
        query
            The text.
        context
            Who asks; nobody in particular if None.
        k
            How many items the responder is given.

        Raises
        ------
        ConfigError
            If the engine was connected without an embedder.
        InvalidInput
            If the query is empty or too long; nothing was recorded.
        EmbedderError, DimensionMismatch
            If the embedder fails; nothing was recorded.
        ResponderError
            If the responder fails: the trajectory is kept, with the failure in its metadata.
        DatabaseError
            If the database cannot be asked.
        """
        self._check_open()
        check_k(k)
        if self._answering is None:
            raise ConfigError("process needs an embedder: SonaEngine.connect(embedder=HashingEmbedder(), …)")
        if context is not None and not isinstance(context, Context):
            raise InvalidInput(f"context is a {type(context).__name__}, expected a Context")
        return self._answering.answer(self, query, Context() if context is None else context, k)
