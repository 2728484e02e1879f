"""SonaEngine: record, learn and apply on one space."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.answering import Answering, Known, Response
from sona_pg.config import (
    MAX_DIM,
    SHOWN,
    BackgroundConfig,
    EmbeddingConfig,
    EvidenceConfig,
    InstantLoopConfig,
    QueryAdapterConfig,
    SpaceConfig,
    StoreConfig,
    StrategyConfig,
)
from sona_pg.errors import (
    ConfigError,
    DatabaseError,
    DimensionMismatch,
    EmbedderMismatch,
    InvalidInput,
    SonaError,
    UnknownSpace,
)
from sona_pg.fitting import FitReport, fit_report
from sona_pg.ids import new_trajectory_id
from sona_pg.kernels import as_vector
from sona_pg.learning.arrays import as_matrix, is_matrix
from sona_pg.learning.lift import CONTROL
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.recommendation import NearPattern, Recommendation, expected_quality, optimized_params
from sona_pg.learning_results import DeepLearningResult, LearningResult
from sona_pg.loops.accesses import AccessCounts
from sona_pg.loops.admission import admitted_score, checked_text, private_json
from sona_pg.loops.evidence import EvidenceLoop
from sona_pg.loops.forget import ForgetReport, forget, forget_beside
from sona_pg.loops.instant import InstantLoop
from sona_pg.loops.last_flush import LOOK_SECONDS, LastFlush
from sona_pg.loops.metrics import InstantLoopMetrics
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store import improvement, pattern_search, spaces, strategist, versions
from sona_pg.store.connection import Connection
from sona_pg.store.database import Database, open_database
from sona_pg.store.improvement import ImprovementMetrics
from sona_pg.store.ledger import what_became
from sona_pg.store.search import Filter, Found, ItemSearch
from sona_pg.store.spaces import Space
from sona_pg.store.versions import Version
from sona_pg.store.why import Why, why
from sona_pg.text.embedders import CheckedEmbedder, Embedder
from sona_pg.text.responders import Context, Responder
from sona_pg.types import (
    EMPTY,
    UNKNOWN_ANSWER,
    Answer,
    FloatVector,
    Json,
    QueryTrajectory,
    Score,
    TrajectoryBuilder,
    TrajectoryStep,
    finite_or_none,
)

if TYPE_CHECKING:
    from sona_pg.loops.cycle import Loop

log = logging.getLogger("sona_pg")


@dataclass(frozen=True, slots=True)
class Recall:
    """What `recall` answered; hand it to `record` with what the items were worth.

    Parameters
    ----------
    trajectory_id
        Id under which the outcome is recorded.
    query
        The query (dim,), before adaptation.
    items
        The items, best first.
    answer
        How the answer came about.
    """

    trajectory_id: uuid.UUID
    query: FloatVector
    items: tuple[Found, ...]
    answer: Answer


class SonaEngine:
    """Records what was answered and what it was worth, learns from it, and adapts queries by it.

    Made by `connect`. Safe to use from several threads; recording never waits for the database.

    Examples
    --------
    >>> with SonaEngine.connect(space="support", dim=384) as sona:  # doctest: +SKIP
    ...     sona.set_items("public.articles", "id", "embedding")
    ...     found = sona.recall(query_embedding)
    ...     sona.record(found, rewards={found.items[0].item_id: 1.0})
    """

    def __init__(
        self, database: Database, space: Space, loop: InstantLoop, evidence: EvidenceLoop, *, background: bool
    ) -> None:
        self._database = database
        self._space = space
        self._loop = loop
        self._evidence = evidence
        self._search = ItemSearch(space, database.connect, database.config)
        self._accesses = AccessCounts(space, self._search.connection, database.config)
        self._answering: Answering | None = None
        self._closed = False
        self._pid = os.getpid()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._crowded = threading.Event()
        self._threads: list[threading.Thread] = []
        if background:
            for work in (self._run, self._spill):
                thread = threading.Thread(target=work, name=f"sona-instant-{space.name}", daemon=True)
                self._threads.append(thread)
                thread.start()
            # Nobody waits for this one: what it has not taken in is in the ledger.
            threading.Thread(target=self._weigh, name=f"sona-evidence-{space.name}", daemon=True).start()
        _open_engines.add(self)
        if "multiprocessing" in sys.modules:
            _close_with_child()

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
        database = open_database(url, home=home, config=store)
        with database.connect() as connection:
            found = _open_or_create(connection, space, dim, embedder, space_config, adapter)
            if dim is not None and dim != found.dim:
                raise DimensionMismatch(found.dim, dim, f"the dimension given for space {space!r}")
            if space_config is not None and space_config != found.config:
                raise ConfigError(
                    f"space {space!r} declares {found.config}, not {space_config}: leave space_config out"
                )
            spaces.check_embedder(connection, found, embedder)
            instant, adapter = spaces.claim_settings(connection, found, instant, adapter)
            strategy = strategist.claim_settings(connection, found, strategy)
        if found.standby_of is not None:
            raise EmbedderMismatch(
                f"space {space!r} is kept beside another one, which changes its embedder: connect to that one"
            )
        loop = InstantLoop(
            found.dim,
            instant,
            adapter=adapter,
            space=found.config,
            store=SpaceStore(found, database.connect, database.config, database.spool_directory),
        )
        weighing = EvidenceLoop(SpaceStore(found, database.connect, database.config, None), strategy, adapter, evidence)
        engine = cls(database, found, loop, weighing, background=background)
        engine._answering = answering
        return engine

    @property
    def space(self) -> Space:
        """The space as it was when the engine was connected."""
        return self._space

    @property
    def url(self) -> str:
        """Connection string of the database."""
        return self._database.url

    @property
    def metrics(self) -> InstantLoopMetrics:
        """What this process recorded, learned and flushed."""
        return self._loop.metrics

    @property
    def instant(self) -> InstantLoop:
        """Loop A."""
        return self._loop

    @property
    def evidence(self) -> EvidenceLoop:
        """The loop that finds the strategy."""
        return self._evidence

    # Apply -----------------------------------------------------------------------------------------------------

    def adapt(self, query: ArrayLike) -> NDArray[np.float32]:
        """The query (dim,), or queries (n, dim), as the strategy in force asks; the same bits while that is frozen.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If it has another dimension, or holds NaN or infinity.
        EmbedderMismatch
            If the space has moved to another embedder.
        """
        if self._loop.has_moved:
            self._check_open()
        if self._evidence.served.strategy == "adapted":
            return self._loop.serving.adapt(query)
        if is_matrix(query):
            rows = as_matrix(query, self._space.dim, "queries")
            return np.stack([self._evidence.served.adapt(row) for row in rows]) if len(rows) else rows.copy()
        vector = as_vector(query, self._space.dim, "query")
        return self._evidence.served.adapt(vector).copy()

    def recall(self, query: ArrayLike, k: int = SHOWN, *, filter: Filter | None = None) -> Recall:
        """The k best items for a query, from the application's own table. Writes nothing.

        Parameters
        ----------
        query
            Vector (dim,) of finite numbers.
        k
            How many items.
        filter
            What the items must be, by declared columns: {"column": value}, {"column": [values]}, or {"column":
            {"gte": value}} with eq, ne, lt, lte, gt, gte and in.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If the query, k or the filter is not valid.
        DatabaseError
            If the table cannot be searched.
        """
        return self.recall_batch([query], k, filter=filter)[0]

    def recall_batch(
        self, queries: Sequence[ArrayLike] | NDArray[np.floating], k: int = SHOWN, *, filter: Filter | None = None
    ) -> list[Recall]:
        """`recall` for several queries (n, dim), over one connection.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If a query, k or the filter is not valid.
        DatabaseError
            If the table cannot be searched.
        """
        self._check_open()
        _check_k(k)
        if filter is not None:
            filter = private_json(filter, "filter")
        if (
            isinstance(queries, str)
            or not isinstance(queries, Sequence | np.ndarray)
            or (isinstance(queries, np.ndarray) and not queries.ndim)
        ):
            raise InvalidInput(f"queries is a {type(queries).__name__}, expected a list of vectors")
        vectors = [as_vector(query, self._space.dim, "query").copy() for query in queries]
        return [self._answer(new_trajectory_id(), vector, k, filter) for vector in vectors]

    def _answer(self, id: uuid.UUID, query: FloatVector, k: int, filter: Filter | None) -> Recall:
        served = self._evidence.served
        arm, propensity = served.arm(id)
        strategy = "frozen" if arm == CONTROL else served.strategy_for(query)
        if strategy in ("frozen", "adapted"):
            # Nothing but the items table is asked: that is planned once.
            asked = self._loop.serving.adapt(query) if strategy == "adapted" else query
            items, version = self._search.nearest(asked, k, filter), self._loop.version
        else:
            items, version, strategy = self._search.answer(query, k, filter)
        return Recall(id, query, tuple(items), Answer(arm, version, strategy, propensity))

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
        _check_k(k)
        if self._answering is None:
            raise ConfigError("process needs an embedder: SonaEngine.connect(embedder=HashingEmbedder(), …)")
        if context is not None and not isinstance(context, Context):
            raise InvalidInput(f"context is a {type(context).__name__}, expected a Context")
        return self._answering.answer(self, query, Context() if context is None else context, k)

    def item_texts(self, ids: Sequence[str], column: str | None) -> dict[str, str | None]:
        """Texts of items by id, from a column of the items table; nothing without a column.

        Raises
        ------
        DatabaseError
            If there is no such column, or it cannot be read.
        """
        self._check_open()
        if isinstance(ids, str) or not isinstance(ids, Sequence):
            raise InvalidInput(f"ids is a {type(ids).__name__}, expected a list of item ids")
        checked = [checked_text(id, "item id") for id in ids]
        return self._search.texts(checked, checked_text(column, "column")) if checked and column is not None else {}

    def set_items(
        self, items: str, id_column: str, embedding_column: str, *, filter_columns: Sequence[str] = ()
    ) -> int:
        """Name the application's own table of items, which `recall` searches.

        Parameters
        ----------
        items
            The table, as SQL would name it.
        id_column, embedding_column
            Its columns of item ids and of embeddings.
        filter_columns
            Columns that `recall` may filter by.

        Returns
        -------
        int
            Size of the sample that learning uses.

        Raises
        ------
        InvalidInput, DimensionMismatch, DatabaseError
            If there is no such table or column, or its vectors have another dimension.
        """
        self._check_open()
        names = (
            checked_text(items, "items table"),
            checked_text(id_column, "id column"),
            checked_text(embedding_column, "embedding column"),
        )
        if isinstance(filter_columns, str) or not isinstance(filter_columns, Sequence):
            raise InvalidInput(f"filter_columns is {filter_columns!r}, expected a list of column names")
        columns = [checked_text(column, "filter column") for column in filter_columns]
        with self._search.connection() as connection:
            size = spaces.set_items(connection, self._space, *names, columns)
        self._search.look_again()
        self._loop.flush_updates()
        return size

    # Record ----------------------------------------------------------------------------------------------------

    def start(self, query: ArrayLike) -> TrajectoryBuilder:
        """Begin a trajectory whose steps are added one by one; hand it to `record`."""
        return TrajectoryBuilder(None, as_vector(query, self._space.dim, "query"))

    def record(
        self,
        answered: Recall | TrajectoryBuilder | QueryTrajectory | ArrayLike,
        item_ids: Sequence[str] | None = None,
        rewards: Sequence[float | None] | Mapping[str, float | None] | None = None,
        quality: float | None = None,
        *,
        latency_us: int = 0,
        user_id: str | None = None,
        session_id: str | None = None,
        metadata: Mapping[str, Json] | None = None,
        trajectory_id: uuid.UUID | None = None,
    ) -> uuid.UUID:
        """Record what was answered and, as far as it is known, what it was worth. Never waits for the database.

        Parameters
        ----------
        answered
            What `recall` gave, a trajectory, or a query (dim,) whose items were found in another way.
        item_ids
            With a query: the items that were shown, best first.
        rewards
            What items were worth: one for each shown item, or by item id. An id that was not shown is an item that
            was judged all the same. None, and an item that is left out, is unjudged; 0 is unhelpful.
        quality
            What the whole answer was worth.
        latency_us
            Time that the answer took, microseconds.
        user_id, session_id, metadata
            Whatever the application wants to find again.
        trajectory_id
            With a query: an id of its own, so that recording it twice is refused.

        Returns
        -------
        uuid.UUID
            Id of the trajectory, for `score`.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If something is not valid; nothing was recorded.
        ConfigError
            If the engine is closed.
        """
        self._check_open()
        if isinstance(answered, QueryTrajectory | TrajectoryBuilder):
            timed = not isinstance(latency_us, int) or latency_us != 0
            if item_ids is not None or rewards is not None or trajectory_id is not None or timed:
                raise InvalidInput(
                    "a trajectory brings its own id, latency and steps: put items and rewards into add_step"
                )
            if isinstance(answered, TrajectoryBuilder):
                answered = answered.build(quality, user_id=user_id, session_id=session_id, metadata=metadata)
            elif quality is not None or user_id is not None or session_id is not None or metadata is not None:
                raise InvalidInput("a trajectory that is built already brings its quality, ids and metadata itself")
            return self._take(answered)
        scores: Sequence[float | None] = ()
        if isinstance(answered, Recall):
            if item_ids is not None or trajectory_id is not None:
                raise InvalidInput("what recall gave brings its own items and id: leave item_ids and trajectory_id out")
            query, trajectory_id, answer = answered.query, answered.trajectory_id, answered.answer
            item_ids = [item.item_id for item in answered.items]
            scores = [item.score for item in answered.items]
        else:
            query, answer = as_vector(answered, self._space.dim, "query").copy(), UNKNOWN_ANSWER
        return self._take(
            QueryTrajectory(
                id=new_trajectory_id() if trajectory_id is None else trajectory_id,
                query_embedding=query,
                steps=_item_steps(() if item_ids is None else item_ids, rewards, scores),
                final_quality=quality,
                latency_us=latency_us,
                user_id=user_id,
                session_id=session_id,
                metadata={} if metadata is None else metadata,
                answer=answer,
            )
        )

    def _take(self, trajectory: QueryTrajectory) -> uuid.UUID:
        taken = self._loop.on_inference(trajectory)
        if not taken:
            log.warning("trajectory %s was dropped: the buffers are full, the database is behind", trajectory.id)
        self._notify()
        return trajectory.id

    def _notify(self) -> None:
        """Wake the threads that have something to do."""
        if not self._wake.is_set():
            self._wake.set()
        if self._loop.is_half_full and not self._crowded.is_set():
            self._crowded.set()

    def score(
        self,
        trajectory_id: uuid.UUID,
        value: float,
        item_id: str | None = None,
        *,
        name: str = "reward",
        score_id: str | None = None,
    ) -> None:
        """Say later what an answer, or one of its items, was worth. Never waits for the database.

        Parameters
        ----------
        trajectory_id
            What `record` gave; it may also come first, and the trajectory later.
        value
            What it was worth.
        item_id
            The item; None for the whole answer.
        name
            Which judgement this is.
        score_id
            An id of its own: the same id again is nothing.
        """
        self._check_open()
        given = str(uuid.uuid4()) if score_id is None else score_id
        score = admitted_score(Score(trajectory_id, value, item_id, name, given), self._space.config)
        if not self._loop.on_score(score):
            log.warning("score %s was dropped: the buffers are full, the database is behind", given)
        self._notify()

    # Fit, as estimators do ----------------------------------------------------------------------------------------

    def predict_one(self, query: ArrayLike, k: int = SHOWN) -> list[str]:
        """Ids of the k best items for a query (dim,), best first. Writes nothing.

        Raises
        ------
        DimensionMismatch, InvalidInput, DatabaseError
            As `recall`.
        """
        return [item.item_id for item in self.recall(query, k).items]

    def learn_one(self, query: ArrayLike, outcome: Mapping[str, float | None]) -> FitReport:
        """Learn at once what items were worth for a query, by their ids; see `partial_fit`.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If something is not valid; nothing was recorded.
        DatabaseError
            If the database does not take it; it is in the spool.
        """
        id = self.record(query, rewards=outcome)
        return self._fitted(1, [id], {})

    def partial_fit(
        self,
        queries: Sequence[ArrayLike] | NDArray[np.floating],
        outcomes: Sequence[Mapping[str, float | None]],
    ) -> FitReport:
        """Learn from rows, one after the other: queries (n, dim), and for each what items were worth, by their ids.

        A row that is not valid is left out and said; the others are recorded and learned, and durable when it returns.

        Raises
        ------
        InvalidInput
            If there are not as many outcomes as queries; nothing was recorded.
        DatabaseError
            If the database does not take it; it is in the spool.
        """
        for name, given in (("queries", queries), ("outcomes", outcomes)):
            is_scalar = isinstance(given, np.ndarray) and not given.ndim
            if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray) or is_scalar:
                raise InvalidInput(f"{name} is a {type(given).__name__}, expected a row for each")
        if len(queries) != len(outcomes):
            raise InvalidInput(f"{len(queries)} queries with {len(outcomes)} outcomes: one for each")
        ids: list[uuid.UUID] = []
        refused: dict[int, str] = {}
        for row, (query, outcome) in enumerate(zip(queries, outcomes, strict=True)):
            try:
                if not isinstance(outcome, Mapping):
                    raise InvalidInput(
                        f"the outcome is a {type(outcome).__name__}, expected what items were worth by id"
                    )
                ids.append(self.record(query, rewards=outcome))
            except (InvalidInput, DimensionMismatch) as error:
                refused[row] = str(error)
        return self._fitted(len(queries), ids, refused)

    def _fitted(self, rows: int, ids: list[uuid.UUID], refused: Mapping[int, str]) -> FitReport:
        self.flush()
        with self._search.connection() as connection:
            return fit_report(rows, ids, what_became(connection, self._space, ids), refused)

    # Look ------------------------------------------------------------------------------------------------------

    def improvement_metrics(self) -> ImprovementMetrics:
        """Whether the space gets better: weekly gain, lift, harm and retention, by what its answers were worth.

        Raises
        ------
        DatabaseError
            If the database cannot be asked.
        """
        self._check_open()
        with self._search.connection() as connection:
            return improvement.improvement_metrics(connection, self._space)

    # Patterns --------------------------------------------------------------------------------------------------

    def find_patterns(self, query: ArrayLike, k: int = 5) -> list[tuple[LearnedPattern, float]]:
        """The k patterns nearest to a query, nearest first, with the cosine, as the background loop has left them.

        Writes nothing: that a pattern was found is counted in this process, and written now and then, by `flush` and by
        `close`.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If the query or k is not valid.
        DatabaseError
            If the database cannot be asked.
        """
        self._check_open()
        _check_k(k)
        vector = as_vector(query, self._space.dim, "query")
        with self._search.connection() as connection:
            found = pattern_search.find_patterns(connection, self._space, vector, k)
        self._accesses.found(pattern.id for pattern, _ in found)
        return found

    def known_of(self, query: ArrayLike, k: int = 5) -> Known:
        """What is known of answers to such queries, by the k patterns nearest to it.

        Raises
        ------
        DimensionMismatch, InvalidInput, DatabaseError
            As `optimized_params`.
        """
        near, width = self._near(query, k)
        return Known(optimized_params(near, width), expected_quality(near, width), len(near))

    def _near(self, query: ArrayLike, k: int) -> tuple[list[NearPattern], float]:
        self._check_open()
        _check_k(k)
        vector = as_vector(query, self._space.dim, "query")
        with self._search.connection() as connection:
            near, width = pattern_search.near_patterns(connection, self._space, vector, k)
        self._accesses.found(pattern.id for pattern in near)
        return near, width

    def optimized_params(
        self, query: ArrayLike, defaults: Mapping[str, Json] | None = None, *, k: int = 5
    ) -> dict[str, Recommendation]:
        """Parameters for a query, from what worked in the k patterns nearest to it.

        Numbers are interpolated, of anything else one value wins; patterns count by how near they are, and by how sure
        it is that what they say is better than what else was used there.

        Parameters
        ----------
        query
            Vector (dim,).
        defaults
            By parameter, what to use where nothing is known; a parameter that was never used is answered by it.
        k
            How many patterns are asked.

        Returns
        -------
        dict
            By parameter the value, the ids of the patterns that it comes from, and how sure it is.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If the query, k or the defaults are not valid.
        DatabaseError
            If the database cannot be asked.
        """
        given = {} if defaults is None else private_json(defaults, "defaults")
        near, width = self._near(query, k)
        return optimized_params(near, width, given)

    # Versions --------------------------------------------------------------------------------------------------

    def versions(self) -> list[Version]:
        """What was published of the space, oldest first.

        Raises
        ------
        DatabaseError
            If the database cannot be asked.
        """
        self._check_open()
        with self._search.connection() as connection:
            return versions.versions(connection, self._space)

    def deploy(self, version: int | str, reason: str | None = None) -> int:
        """Answer, and go on learning, from a version; what was learned since the last one is published first.

        Parameters
        ----------
        version
            Its number; 'rollback' for the one before; 'latest' for what has learned from most events; or 'frozen' for
            the embedding as it is, while learning goes on.
        reason
            For the audit trail, `sona.deployments`.

        Returns
        -------
        int
            The version in force.

        Raises
        ------
        UnknownVersion, DamagedVersion, InvalidInput, PermissionDenied
            If there is no such version, it is not what was published, or the role may not.
        """
        self._check_open()
        if isinstance(version, bool) or not isinstance(version, int | str):
            raise InvalidInput(f"version is {version!r}, expected a number, 'rollback', 'latest' or 'frozen'")
        if reason is not None:
            reason = checked_text(reason, "the reason")
        with self._search.connection() as connection:
            deployed = versions.deploy(connection, self._space, str(version), reason)
        self._loop.flush_updates()
        self._evidence.refresh()
        return deployed

    def why(self, trajectory_id: uuid.UUID) -> Why:
        """Why an answer was what it was: what answered and why, what it remembered, and what moved its items.

        Parameters
        ----------
        trajectory_id
            What `record` gave, once it is flushed.

        Raises
        ------
        UnknownTrajectory
            If it is not there; says whether retention has deleted it.
        DatabaseError
            If the database cannot be asked.
        """
        self._check_open()
        if not isinstance(trajectory_id, uuid.UUID):
            raise InvalidInput(f"trajectory id is {trajectory_id!r}, expected a UUID")
        with self._search.connection() as connection:
            return why(connection, trajectory_id, self._space.name)

    def forget(self, user_id: str, *, accept_lost: bool = False, wait: bool = True) -> ForgetReport:
        """Forget a user: all that was recorded of them, and all that was learned from it.

        What was learned is then, bit for bit, what it were in a space that has never seen them: the ledger is learned
        again without them. Versions that had learned from them are deleted, and a new one is published. See
        docs/forgetting.md.

        Parameters
        ----------
        user_id
            As it was given to `record`. One whom the space does not know changes nothing.
        accept_lost
            Where retention has deleted trajectories or steps, what they taught cannot be learned again: whether it may
            be lost. Otherwise that is refused.
        wait
            Whether to wait until the strategies are weighed again; the space answers as frozen until then.

        Raises
        ------
        IncompleteLedger, EmbedderMismatch, PermissionDenied, InvalidInput, DatabaseError
            If something would be lost, the space has changed its embedder, the role may not learn in the space, the id
            is none, or the database does not take it; nothing was changed.
        """
        self._check_open()
        checked_text(user_id, "user id")
        for name, value in (("accept_lost", accept_lost), ("wait", wait)):
            if not isinstance(value, bool):
                raise InvalidInput(f"{name} is {value!r}, expected True or False")
        store = SpaceStore(self._space, self._database.connect, self._database.config, None)
        try:
            # First where nobody looks: what is refused there must not be half forgotten.
            forget_beside(store, user_id, accept_lost=accept_lost)
            return forget(store, self._loop, self._evidence, user_id, accept_lost=accept_lost, wait=wait)
        finally:
            store.close()

    # Learn -----------------------------------------------------------------------------------------------------

    def learn(self) -> int:
        """Learn what was recorded, at once and in this thread; gives the number of events."""
        self._check_open()
        return self._loop.learn_pending()

    def background_learn(
        self, loop: Loop | None = None, *, minimum: int | None = None, wait_seconds: float = 600.0
    ) -> LearningResult:
        """Flush, and run a background cycle of this space: patterns, verdicts, and a base if it does not lose.

        Parameters
        ----------
        loop
            The loop with other settings, as `background_loop` makes it.
        minimum
            New outcomes without which it is skipped; that of the loop if None.
        wait_seconds
            How long is waited for a worker that is at it.

        Raises
        ------
        LearningError, DatabaseBusy, PermissionDenied, DatabaseError
            If the cycle fails, a worker is at it for longer, the role may not, or the database cannot be asked.
        """
        # Here and not above: most processes never run a cycle, and need not have all of it in memory.
        from sona_pg.loops.background import BACKGROUND, background_loop

        if loop is not None and minimum is not None:
            raise ConfigError("minimum is a setting of the loop that is given: set it there")
        if loop is None:
            loop = BACKGROUND if minimum is None else background_loop(BackgroundConfig(minimum=minimum))
        return LearningResult.of(self._learn_now(loop, wait_seconds))

    def deep_learn(self, loop: Loop | None = None, *, wait_seconds: float = 600.0) -> DeepLearningResult:
        """Flush, and run a deep cycle of this space: consolidation, patterns of patterns, dreams, integration.

        Parameters
        ----------
        loop
            The loop with other settings, as `deep_loop` makes it.
        wait_seconds
            How long is waited for a worker that is at it.

        Raises
        ------
        LearningError, DatabaseBusy, PermissionDenied, DatabaseError
            As `background_learn`.
        """
        from sona_pg.loops.deep import DEEP

        return DeepLearningResult.of(self._learn_now(DEEP if loop is None else loop, wait_seconds))

    def _learn_now(self, loop: Loop, wait_seconds: float) -> Mapping[str, Any]:
        from sona_pg.loops.cycle import Loop
        from sona_pg.loops.on_demand import learn_now

        if not isinstance(loop, Loop):
            raise ConfigError(f"loop is a {type(loop).__name__}, expected one of background_loop or deep_loop")
        if not isinstance(wait_seconds, int | float) or isinstance(wait_seconds, bool) or not 0 <= wait_seconds < 1e9:
            raise ConfigError(f"wait_seconds is {wait_seconds!r}, expected seconds from 0")
        self.flush()
        found = learn_now(self._database, self._space, loop, wait_seconds)
        self._loop.flush_updates()
        self._evidence.refresh()
        return found

    def flush(self) -> None:
        """Learn and make durable everything that was recorded, and weigh the strategies by it; when it returns, it is.

        Raises
        ------
        DatabaseError
            If the database does not take it; nothing is lost, the next flush tries again.
        EmbedderMismatch
            If the embedder of the space was given up; what was not durable is lost, and counted in `sona.errors`.
        """
        self._check_open()
        self._loop.flush_updates()
        self._weigh_now()
        self._accesses.write()

    def _weigh_now(self) -> None:
        """Weigh the strategies by what is durable; that it is does not depend on it."""
        try:
            self._evidence.catch_up()
            self._evidence.refresh()
        except SonaError as error:
            log.warning("the strategies could not be weighed, will be tried again: %s", error)

    def _run(self) -> None:
        interval = self._loop.config.flush_interval_seconds
        due = time.monotonic() + interval
        failure = ""
        while not self._stop.is_set():
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            try:
                self._loop.learn_pending()
                if time.monotonic() >= due:
                    due = time.monotonic() + interval
                    self._loop.flush_updates()
                    failure = ""
            except SonaError as error:
                # Once, not twice a second for as long as the database is away.
                if str(error) != failure:
                    failure = str(error)
                    log.warning("flush failed, will be tried again: %s", error)
            except Exception:
                log.exception("the instant loop failed, will be tried again")

    def _weigh(self) -> None:
        failure = ""
        while not self._stop.wait(self._evidence.config.interval_seconds):
            self._accesses.write_if_due()
            try:
                while not self._stop.is_set() and self._evidence.advance():
                    failure = ""
                self._evidence.refresh()
            except SonaError as error:
                if str(error) != failure and not self._stop.is_set():
                    failure = str(error)
                    log.warning("the strategies could not be weighed, will be tried again: %s", error)
            except Exception:
                log.exception("the evidence loop failed, will be tried again")

    def _spill(self) -> None:
        while not self._stop.is_set():
            self._crowded.wait(LOOK_SECONDS)
            self._crowded.clear()
            try:
                self._loop.spill()
            except Exception:
                log.exception("what is recorded could not be spilled, will be tried again")

    def close(self) -> None:
        """Flush and disconnect. What the database does not take stays in the spool, for the next process.

        Raises
        ------
        DatabaseError
            If what was recorded could not be made durable, in neither of them; says how much that is.
        """
        if self._closed:
            return
        if self._pid != os.getpid():
            # The connections are the parent's: closing them here would break them there.
            self._closed = True
            return
        self._stop.set()
        self._wake.set()
        self._crowded.set()
        last = LastFlush(self._loop, self._threads, self._disconnect)
        if not last.wait():
            log.warning("the database does not answer: what was recorded last is in the spool on this machine")
            self._closed = True
            return
        try:
            last.check()
        except SonaError as error:
            waiting = self._loop.metrics.unflushed + self._loop.metrics.pending
            if isinstance(error, UnknownSpace | EmbedderMismatch):
                self._disconnect()  # nothing can be mended
                if waiting:
                    raise
                return
            if waiting:
                raise DatabaseError(
                    f"{waiting} trajectories and scores are not durable ({error}): "
                    "mend the database and call close again, or they are lost with this process"
                ) from error
            log.warning("what was recorded last is in the spool on this machine: %s", error)
        else:
            self._accesses.write()
        self._disconnect()

    def _disconnect(self) -> None:
        self._closed = True
        _open_engines.discard(self)
        self._loop.close()
        self._evidence.close()
        self._search.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("the engine is closed: connect again")
        if self._pid != os.getpid():
            raise ConfigError("the engine was connected before this process was forked: connect in each process")
        if self._loop.given_up is not None:
            raise EmbedderMismatch(self._loop.given_up)
        if self._loop.has_moved:
            raise EmbedderMismatch(
                f"space {self._space.name!r} has moved to another embedder than {self._space.embedder!r}: embed with "
                "that one and connect again; what was recorded until now is kept, and the next run of the change "
                "carries it over"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_or_create(
    connection: Connection,
    name: str,
    dim: int | None,
    embedder: str | None,
    config: SpaceConfig | None,
    adapter: QueryAdapterConfig | None,
) -> Space:
    checked_text(name, "the name of the space")
    if dim is not None and (not isinstance(dim, int) or not 1 <= dim <= MAX_DIM):
        raise ConfigError(f"dim is {dim!r}, expected a whole number from 1 to {MAX_DIM}")
    if embedder is not None:
        checked_text(embedder, "embedder")
    found = spaces.find_space(connection, name)
    if found is None and dim is not None:
        if adapter is not None and adapter.rank > dim:
            raise ConfigError(f"rank {adapter.rank} exceeds the dimension {dim}: choose a rank of at most {dim}")
        try:
            return spaces.create_space(connection, name, dim, embedder=embedder, config=config)
        except InvalidInput:
            # Another process that starts at the same time may have created it.
            found = spaces.find_space(connection, name)
    return spaces.get_space(connection, name) if found is None else found


def _check_k(k: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= 10_000:
        raise InvalidInput(f"k is {k!r}, expected a whole number from 1 to 10000")


_open_engines: set[SonaEngine] = set()
"""Engines that are not closed: what they hold must not go with the last reference."""


def _close_with_child() -> None:
    """A child of multiprocessing ends without atexit."""
    from multiprocessing import parent_process, util

    if parent_process() is not None:
        util.Finalize(None, _close_at_exit, exitpriority=1)


@atexit.register
def _close_at_exit() -> None:
    """A process that ends without `close` flushes all the same."""
    for engine in list(_open_engines):
        if engine._pid == os.getpid():
            try:
                engine.close()
            except Exception as error:
                log.error("at exit: %s", error)


def _item_steps(
    item_ids: Sequence[str],
    rewards: Sequence[float | None] | Mapping[str, float | None] | None,
    scores: Sequence[float | None],
) -> tuple[TrajectoryStep, ...]:
    if isinstance(item_ids, str) or not isinstance(item_ids, Sequence):
        raise InvalidInput(f"item_ids is a {type(item_ids).__name__}, expected a list of strings")
    if rewards is not None and not isinstance(rewards, Mapping | Sequence | np.ndarray):
        raise InvalidInput(f"rewards is a {type(rewards).__name__}, expected a list of numbers, or a dict by item id")
    if isinstance(rewards, np.ndarray) and rewards.ndim != 1:
        raise InvalidInput(f"rewards have shape {rewards.shape}, expected one for each item")
    marked: list[tuple[str, float | None]] = []
    if isinstance(rewards, Mapping):
        shown = set(item_ids)
        marked = [(item, reward) for item, reward in rewards.items() if item not in shown]
        by_item: Sequence[float | None] = [rewards.get(item) for item in item_ids]
    elif rewards is None:
        by_item = [None] * len(item_ids)
    else:
        by_item = rewards
        if len(by_item) != len(item_ids):
            raise InvalidInput(f"{len(item_ids)} items with {len(by_item)} rewards: one reward, or None, for each item")
    steps = [
        TrajectoryStep(
            EMPTY,
            np.array([scores[place]], dtype=np.float32) if scores else EMPTY,
            finite_or_none(reward, "reward"),
            0.0,
            item,
            place + 1,
        )
        for place, (item, reward) in enumerate(zip(item_ids, by_item, strict=True))
    ]
    steps += [
        TrajectoryStep(EMPTY, EMPTY, finite_or_none(reward, "reward"), 0.0, item, None) for item, reward in marked
    ]
    return tuple(steps)
