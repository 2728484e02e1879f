"""Learn: at once, by rows, and by cycles of the slow loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.engine.cycles import loop_of
from sona_pg.engine.fitting import FitReport, fit_report
from sona_pg.engine.record import Recording, item_steps
from sona_pg.engine.results import DeepLearningResult, LearningResult
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput
from sona_pg.ids import new_trajectory_id
from sona_pg.kernels import as_vector
from sona_pg.loops.admission import admitted, checked_text
from sona_pg.loops.forget import ForgetReport, forget, forget_beside
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store.ledger import what_became
from sona_pg.types import QueryTrajectory

if TYPE_CHECKING:
    from sona_pg.loops.cycle import Loop


class Learning(Recording):
    """Learns what was recorded, and forgets it."""

    def learn(self) -> int:
        """Learn what was recorded, at once and in this thread; gives the number of events."""
        self.check_open()
        return self._loop.learn_pending()

    def learn_one(self, query: ArrayLike, outcome: Mapping[str, float | None]) -> FitReport:
        """Learn at once what items were worth for a query, by their ids; see `partial_fit`.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If something is not valid; nothing was recorded.
        DatabaseError
            If the database does not take it; it is in the spool.
        """
        return self._fitted(1, [self._row(query, outcome)], {})

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
        made: list[QueryTrajectory] = []
        refused: dict[int, str] = {}
        for row, (query, outcome) in enumerate(zip(queries, outcomes, strict=True)):
            try:
                made.append(self._row(query, outcome))
            except (InvalidInput, DimensionMismatch) as error:
                refused[row] = str(error)
        return self._fitted(len(queries), made, refused)

    def _row(self, query: ArrayLike, outcome: Mapping[str, float | None]) -> QueryTrajectory:
        self.check_open()
        if not isinstance(outcome, Mapping):
            raise InvalidInput(f"the outcome is a {type(outcome).__name__}, expected what items were worth by id")
        vector = as_vector(query, self._space.dim, "query").copy()
        made = QueryTrajectory(new_trajectory_id(), vector, item_steps((), outcome, ()))
        return admitted(made, self._space.dim, self._space.config)

    def _fitted(self, rows: int, made: Sequence[QueryTrajectory], refused: Mapping[int, str]) -> FitReport:
        # It waits for room: what is said to be recorded must be.
        self._loop.on_inferences(made, wait=True)
        self.flush()
        ids = [trajectory.id for trajectory in made]
        with self._connections.connection() as connection:
            return fit_report(rows, ids, what_became(connection, self._space, ids), refused)

    def background_learn(
        self, loop: Loop | None = None, *, minimum: int | None = None, wait_seconds: float = 600.0
    ) -> LearningResult:
        """Flush, and run a background cycle of this space: patterns, verdicts, and a base if it does not lose.

        Parameters
        ----------
        loop
            The loop with other settings than the engine's, as `background_loop` makes it.
        minimum
            New outcomes without which it is skipped; that of the loop if None.
        wait_seconds
            How long is waited for a worker that is at it.

        Raises
        ------
        LearningError, DatabaseBusy, PermissionDenied, DatabaseError
            If the cycle fails or the engine is closed meanwhile, a worker is at it for longer, the role may not, or the
            database cannot be asked.
        """
        if loop is not None and minimum is not None:
            raise ConfigError("minimum is a setting of the loop that is given: set it there")
        if loop is None:
            config = self._config
            if minimum is not None:
                config = config.replace(background_config=replace(config.background_config, minimum=minimum))
            loop = loop_of("background", config)
        return LearningResult.of(self._learn_now(loop, wait_seconds))

    def deep_learn(self, loop: Loop | None = None, *, wait_seconds: float = 600.0) -> DeepLearningResult:
        """Flush, and run a deep cycle of this space: consolidation, patterns of patterns, dreams, integration.

        Parameters
        ----------
        loop
            The loop with other settings than the engine's, as `deep_loop` makes it.
        wait_seconds
            How long is waited for a worker that is at it.

        Raises
        ------
        LearningError, DatabaseBusy, PermissionDenied, DatabaseError
            As `background_learn`.
        """
        loop = loop_of("deep", self._config) if loop is None else loop
        return DeepLearningResult.of(self._learn_now(loop, wait_seconds))

    def _learn_now(self, loop: Loop, wait_seconds: float) -> Mapping[str, Any]:
        from sona_pg.loops.cycle import Loop
        from sona_pg.loops.on_demand import learn_now

        if not isinstance(loop, Loop):
            raise ConfigError(f"loop is a {type(loop).__name__}, expected one of background_loop or deep_loop")
        if not isinstance(wait_seconds, int | float) or isinstance(wait_seconds, bool) or not 0 <= wait_seconds < 1e9:
            raise ConfigError(f"wait_seconds is {wait_seconds!r}, expected seconds from 0")
        self.flush()
        found = learn_now(self._database, self._space, loop, wait_seconds, self._stop)
        self._loop.flush_updates()
        self._evidence.refresh()
        return found

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
        self.check_open()
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
