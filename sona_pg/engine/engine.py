"""SonaEngine: record, learn and apply on one space."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Self

from sona_pg.calls import at_once, call_here
from sona_pg.config import (
    SHOWN,
    EmbeddingConfig,
    EvidenceConfig,
    InstantLoopConfig,
    LearningMode,
    QueryAdapterConfig,
    SonaConfig,
    SpaceConfig,
    StoreConfig,
    StrategyConfig,
)
from sona_pg.engine.answering import Answering, Response
from sona_pg.engine.apply import Applying
from sona_pg.engine.cycles import check_loops, run_cycles
from sona_pg.engine.exchange import Exchanging
from sona_pg.engine.learn import Learning
from sona_pg.engine.look import Looking
from sona_pg.engine.opening import open_space
from sona_pg.engine.save import Saving
from sona_pg.errors import ConfigError, DimensionMismatch
from sona_pg.files import FilePath
from sona_pg.loops.archiving import load_space
from sona_pg.store import spaces
from sona_pg.store.database import open_database
from sona_pg.text.embedders import CheckedEmbedder, Embedder, HashingEmbedder
from sona_pg.text.responders import Context, Responder


class SonaEngine(Learning, Applying, Looking, Saving, Exchanging):
    """Records what was answered and what it was worth, learns from it, and adapts queries by it.

    Safe to use from several threads; recording never waits for the database.

    Parameters
    ----------
    config
        Settings; the defaults if None.
    embedder
        The embedding model, which `process` asks; its fingerprint is declared at the first use of the space, and
        checked from then on. It says how many components vectors have where the settings do not. Without one, and
        without a fingerprint in `config`, `process` hashes letters, in a space that has no vectors of another origin.
    responder
        Makes an answer of items; without, the best one answers.

    Raises
    ------
    UnknownSpace
        If there is no such space, and nothing says how large its vectors are.
    DimensionMismatch, EmbedderMismatch
        If the space is of another dimension, or belongs to another embedding model.
    ConfigError
        If a setting cannot be honoured: another process has declared the space with other ones, or the memory budget or
        the target latency cannot be held.
    DatabaseError
        If the database cannot be used; the message says why and what helps.

    Examples
    --------
    >>> with SonaEngine.connect(space="support", dim=384) as sona:  # doctest: +SKIP
    ...     sona.set_items("public.articles", "id", "embedding")
    ...     found = sona.recall(query_embedding)
    ...     sona.record(found, rewards={found.items[0].item_id: 1.0})
    """

    def __init__(
        self, config: SonaConfig | None = None, *, embedder: Embedder | None = None, responder: Responder | None = None
    ) -> None:
        config = SonaConfig() if config is None else config
        if not isinstance(config, SonaConfig):
            raise ConfigError(f"config is a {type(config).__name__}, expected a SonaConfig")
        self._answering: Answering | None = None
        self._cycles: list[threading.Thread] = []
        self._answering_made = threading.Lock()
        if responder is not None and not callable(responder):
            raise ConfigError(f"the responder is a {type(responder).__name__}, expected a function of query and items")
        if embedder is not None:
            checked = CheckedEmbedder(embedder, config.embedding_config)
            if config.embedder not in (None, checked.fingerprint):
                raise ConfigError(f"embedder is {config.embedder!r} in config, and {checked.fingerprint!r} was given")
            self._answering = Answering(checked, responder, config.text_column)
            dim = checked.dim if config.dim is None else config.dim
            if dim != checked.dim:
                raise DimensionMismatch(dim, checked.dim, f"the embedder {checked.fingerprint!r}")
            config = config.replace(embedding_dim=dim, hidden_dim=None, embedder=checked.fingerprint)
        elif config.embedder is not None:
            _refuse_with_fingerprint(responder, config.text_column)
        # Before anything runs: what a cycle would refuse is refused now.
        check_loops(config)
        super().__init__(*open_space(config))
        self._responder = responder
        if embedder is not None and self._config.embedding_config != config.embedding_config:
            # The budget leaves room for a smaller cache.
            checked = CheckedEmbedder(embedder, self._config.embedding_config)
            self._answering = Answering(checked, responder, config.text_column)
        self._cycles = run_cycles(self._database, self._space, config, self._stop)

    def close(self) -> None:
        """Flush and disconnect. What the database does not take stays in the spool, for the next process.

        A cycle of a slow loop that is at it here is not waited for longer than its phase, nor for long: whoever runs it
        next goes on where it was.

        Raises
        ------
        DatabaseError
            If what was recorded could not be made durable, in neither of them; says how much that is.
        """
        super().close()
        for thread in self._cycles:
            thread.join(self._loop.config.patience_seconds)

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

        The same as the constructor, with the settings that most applications need as arguments.

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
            with their texts; and how the embedder is asked. Refused beside a fingerprint alone.
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
        if embedder is None or isinstance(embedder, str):
            model, fingerprint = None, embedder
            if fingerprint is not None:
                _refuse_with_fingerprint(responder, text_column, embedding)
        else:
            model, fingerprint = embedder, None
        config = SonaConfig(
            database_url=url,
            home=home,
            space=space,
            embedding_dim=dim,
            embedder=fingerprint,
            text_column=text_column,
            learning_loops=LearningMode.INSTANT if background else LearningMode.MANUAL,
            instant_config=instant,
            adapter_config=adapter,
            strategy_config=strategy,
            space_config=space_config,
            evidence_config=EvidenceConfig() if evidence is None else evidence,
            store_config=StoreConfig() if store is None else store,
            embedding_config=EmbeddingConfig() if embedding is None else embedding,
        )
        return cls(config, embedder=model, responder=responder)

    @classmethod
    def load(
        cls,
        path: FilePath,
        url: str | None = None,
        *,
        space: str | None = None,
        embedder: str | Embedder | None = None,
        responder: Responder | None = None,
        text_column: str | None = None,
        embedding: EmbeddingConfig | None = None,
        home: Path | str | None = None,
        background: bool = True,
        evidence: EvidenceConfig | None = None,
        store: StoreConfig | None = None,
    ) -> Self:
        """Make a space of a file that `save` has written, and open it: it answers and learns on as the one that was.

        All of the file is checked before anything is written, and all of it is written or nothing. The application's
        items are not in it: where their table is not in this database, or is another one, the engine says so
        (`loaded.items_missing`), and answers once `set_items` has named one. Nor is who may use the space: whoever
        loads it may, and grants it to others.

        Parameters
        ----------
        path
            The file.
        url, home
            The database, as of `connect`.
        space
            What the space is to be called; as it was, if None.
        embedder
            The embedding model or its fingerprint, as of `connect`: that of the file must be the same.
        responder, text_column, embedding, background, evidence, store
            As of `connect`.

        Raises
        ------
        IoError
            If the file cannot be read, or is not what was saved; nothing was written.
        SchemaMismatch
            If it was saved from a schema of another revision.
        EmbedderMismatch
            If it belongs to another embedding model.
        InvalidInput
            If there is a space of that name.
        DatabaseError
            If the database cannot be used, or does not take it.
        """
        if embedder is None or isinstance(embedder, str):
            fingerprint, dim = embedder, None
            if fingerprint is not None:
                _refuse_with_fingerprint(responder, text_column, embedding)
        else:
            checked = CheckedEmbedder(embedder, embedding)
            # What it would be refused for is found before anything is written.
            Answering(checked, responder, text_column)
            fingerprint, dim = checked.fingerprint, checked.dim
        database = open_database(url, home=home, config=store)
        report = load_space(database, path, space, embedder=fingerprint, dim=dim)
        engine = cls.connect(
            database.url,
            space=report.space,
            embedder=embedder,
            responder=responder,
            text_column=text_column,
            embedding=embedding,
            home=home,
            background=background,
            evidence=evidence,
            store=store,
        )
        engine._loaded = report
        return engine

    @classmethod
    def from_pretrained(
        cls,
        path: FilePath,
        url: str | None = None,
        *,
        space: str = "default",
        embedder: str | Embedder | None = None,
        home: Path | str | None = None,
        background: bool = True,
    ) -> Self:
        """Open a space, creating it if it is not there, and let it go on with an adapter in files.

        Parameters
        ----------
        path
            Directory that `save_pretrained` or PEFT has written.
        url, space, embedder, home, background
            As of `connect`. The embedder is that of the adapter, where it says one; otherwise say whose it is.

        Raises
        ------
        IoError, InvalidInput
            If it cannot be read, is damaged, or holds something else; the database was not asked.
        DimensionMismatch, EmbedderMismatch
            If it is of another dimension than the space, or another embedding model; nothing was changed.
        DatabaseError
            If the database cannot be used; the message says why and what helps.
        """
        from sona_pg.exchange.origin import embedder_of
        from sona_pg.exchange.peft_files import read_adapter

        files = read_adapter(path)
        said = None if files.card is None else files.card.embedder
        own = embedder if embedder is None or isinstance(embedder, str) else CheckedEmbedder(embedder).fingerprint
        embedder_of(said, own)
        engine = cls.connect(
            url,
            space=space,
            dim=files.low_rank.dim,
            embedder=said if embedder is None else embedder,
            home=home,
            background=background,
        )
        try:
            engine._go_on_with(files, own)
        except BaseException:
            engine.close()
            raise
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
        self.check_open()
        return at_once(self.answering.answer(self._requests, self.record, call_here, query, context, k))

    def query(self, text: str, k: int = SHOWN) -> Response:
        """`process`, asked by nobody in particular."""
        return self.process(text, k=k)

    @property
    def answering(self) -> Answering:
        """What `process` answers by; the first time it may ask the database."""
        return self._answering or self._answering_by_letters()

    def _answering_by_letters(self) -> Answering:
        """Where no embedder was given: hashes of letters, in a space that has nothing by which they could be wrong."""
        with self._answering_made:
            if self._answering is None:
                embedder = HashingEmbedder(self._space.dim)
                with self._connections.connection() as connection:
                    is_used = self.metrics.recorded > 0  # not all of it is durable yet
                    if is_used or not spaces.is_blank(connection, self._space, embedder.fingerprint):
                        raise ConfigError(
                            "process needs the embedder of the space, which has vectors already: "
                            "SonaEngine(config, embedder=…), or SonaEngine.connect(embedder=…)"
                        )
                    spaces.check_embedder(connection, self._space, embedder.fingerprint)
                checked = CheckedEmbedder(embedder, self._config.embedding_config)
                self._answering = Answering(checked, self._responder, self._config.text_column)
            return self._answering


def _refuse_with_fingerprint(
    responder: Responder | None, text_column: str | None, embedding: EmbeddingConfig | None = None
) -> None:
    """Refuse what only `process` has a use for, where it could embed nothing."""
    if not (responder is None and text_column is None and embedding is None):
        raise ConfigError(
            "responder, text_column and embedding are of process, which needs an embedder, not its fingerprint alone: "
            "give it"
        )
