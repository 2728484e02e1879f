"""The second reader of the ledger: which strategy is best is tested on every event, and then learned from it.

Recording and learning do not wait for it, and it cannot lose or repeat an event: how far it has read is written in the
transaction that writes what it found. Any process may do it; the row lock makes one at a time, in the order of the
ledger, so that the same ledger gives the same evidence.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from datetime import datetime

from sona_pg.config import LEAST_SHARE, EvidenceConfig, QueryAdapterConfig, StrategyConfig
from sona_pg.errors import (
    DatabaseBusy,
    DatabaseUnavailable,
    DimensionMismatch,
    InvalidInput,
    LearningError,
    SonaError,
    UnknownSpace,
)
from sona_pg.ids import learning_seed, time_of
from sona_pg.kernels import unit
from sona_pg.learning.associations import Associations
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.learner import Learned
from sona_pg.learning.lift import CONTROL, LEARNED, SHADOW, LiftTest
from sona_pg.learning.outcome import OutcomeEvent, outcome_of, worth_of
from sona_pg.learning.remembered import JudgedEvent, look_around
from sona_pg.learning.strategies import Lesson, Strategy
from sona_pg.learning.strategist import Strategist
from sona_pg.loops.sample import item_pool
from sona_pg.loops.space_store import SpaceStore
from sona_pg.loops.strategist_copy import StrategistCopy
from sona_pg.steps import reached
from sona_pg.store import errors, served_strategy, spaces, strategist_standing
from sona_pg.store import learning as learning_store
from sona_pg.store.ledger import LedgerEvent, ledger_events
from sona_pg.store.spaces import Space
from sona_pg.store.strategist import AnswerOutcome, StrategistTransaction, strategist_transaction
from sona_pg.store.strategist_standing import Adopted, News, StrategistStanding
from sona_pg.types import FloatVector, QueryTrajectory

log = logging.getLogger("sona_pg")

_MOST_PATTERNS = 1000
"""Patterns that the regions are compared with: those that most outcomes speak for."""

_LEAST, _MOST = 0.99 * LEAST_SHARE, 0.501
"""Of shares that a control arm may have, in single precision."""


_CLOSE_SECONDS = 1.0
"""How long `close` waits for a thread that uses the connection."""


class EvidenceLoop:
    """Takes in the ledger of a space, entry by entry.

    Parameters
    ----------
    store
        The space in the database, and how to connect to it.
    strategy, adapter
        Settings of the space.
    config
        Settings of this process.
    """

    def __init__(
        self,
        store: SpaceStore,
        strategy: StrategyConfig,
        adapter: QueryAdapterConfig,
        config: EvidenceConfig | None = None,
    ) -> None:
        self.config = EvidenceConfig() if config is None else config
        self._store = store
        self._strategy, self._adapter = strategy, adapter
        self._turn = threading.Lock()
        self._is_unwanted = False
        """Whether the connection is to be closed by whoever uses it."""
        self._copy: StrategistCopy | None = None
        self._admit_at = 0.0
        self._fresh = 0
        """How many queries were remembered since `_admit` has looked."""
        self._failure = ""
        self._refused: set[tuple[uuid.UUID, int]] = set()
        """Events that could not be learned from, by their keys: they are remembered, and teach nothing."""
        self._refused_in: int | None = None
        """The epoch in which that was: another strategist may learn from them."""
        # In this order: what changes in between is seen by the next refresh.
        self._refreshed_at = strategist_standing.standing(store.connection(), store.space)
        self.served = served_strategy.read_served(store.connection(), store.space, strategy)
        """What answers; replaced by `refresh`."""

    @property
    def space(self) -> Space:
        """The space, as it was when the loop was made."""
        return self._store.space

    def advance(self) -> int:
        """Take in up to a batch of ledger entries; gives how many.

        0 when there are none, another process is at it, or this role may only read.

        Raises
        ------
        ConfigError
            If the items table is gone: the entries wait until it is named anew.
        DatabaseError
            If the database does not take it; the entries wait for the next call.
        """
        with self._in_turn():
            try:
                taken = self._advance_past_refusals()
            except BaseException as error:
                # What was learned meanwhile is not what the database has: start from there the next time.
                self._copy = None
                self._store.discard()
                self._complain(error)
                raise
            self._failure = ""
            self._admit()
            return taken

    def _complain(self, error: BaseException) -> None:
        """Say in `sona.errors` what keeps the strategies from being weighed; once, not at every look."""
        is_news = isinstance(error, SonaError) and str(error) != self._failure
        if is_news and not isinstance(error, DatabaseUnavailable | DatabaseBusy | UnknownSpace):
            self._failure = str(error)
            self._store.log_errors("evidence", [f"the strategies cannot be weighed: {error}"])

    def refresh(self) -> None:
        """Look whether another strategy came into force, or the same was learned on.

        Raises
        ------
        DatabaseError
            If the database cannot be asked; what was in force goes on answering.
        """
        with self._in_turn():
            connection, space = self._store.connection(), self._store.space
            stands = strategist_standing.standing(connection, space)
            if stands != self._refreshed_at:
                self.served = served_strategy.read_served(connection, space, self._strategy)
                self._refreshed_at = stands

    def catch_up(self) -> int:
        """Take in everything that the ledger holds now; gives how many entries."""
        written, stands = self._standing()
        waiting, total = written - stands.ordinal, 0
        while total < waiting and (taken := self.advance()):
            total += taken
        return total

    def settle(self) -> None:
        """Wait until everything that the ledger holds now is taken in, by this process or by another that is at it.

        Raises
        ------
        DatabaseBusy
            If nobody has taken anything in for `EvidenceConfig.stalled_seconds`.
        DatabaseError
            As `advance`.
        """
        goal, stands = self._standing()
        moved_at = time.monotonic()
        while stands.may_weigh and stands.ordinal < goal:
            before = stands.ordinal
            if not self.catch_up():
                time.sleep(self.config.interval_seconds)
            written, stands = self._standing()
            goal = min(goal, written)  # fewer than there were, if somebody was forgotten meanwhile
            if stands.ordinal != before:
                moved_at = time.monotonic()
            elif stands.ordinal < goal and time.monotonic() - moved_at > self.config.stalled_seconds:
                raise DatabaseBusy(
                    f"the strategies of space {self._store.space.name!r} are weighed up to ledger entry "
                    f"{stands.ordinal} of {goal}, and nobody has gone on for {self.config.stalled_seconds:g} s: "
                    "another session holds the row of the space in sona.strategist; end it (pg_locks has its pid), or "
                    "try again later, workers go on once it is free"
                )

    def _standing(self) -> tuple[int, StrategistStanding]:
        """How many entries the ledger holds, and where the strategist stands."""
        with self._in_turn():
            connection, space = self._store.connection(), self._store.space
            return learning_store.read_head(connection, space).ordinal, strategist_standing.standing(connection, space)

    def _advance_past_refusals(self) -> int:
        """One entry that cannot be learned from must not hold up those behind it."""
        while True:
            try:
                return self._advance()
            except _Refused as refused:
                # What it changed before it failed is not to be trusted: everything anew, without its lesson.
                self._copy = None
                self._refused.add(refused.key)
                message = f"ledger entry {refused.ordinal} teaches the strategist nothing: {refused.__cause__}"
                log.error("space %r: %s", self._store.space.name, message)
                self._store.log_errors("evidence", [message])

    def _advance(self) -> int:
        connection, space = self._store.connection(), self._store.space
        head = learning_store.read_head(connection, space)
        stands = strategist_standing.standing(connection, space)
        if not stands.may_weigh or (stands.ordinal >= head.ordinal and not stands.is_behind):
            return 0
        reached("evidence.before_lock")
        with strategist_transaction(connection, space) as transaction:
            if transaction is None:
                return 0
            reached("evidence.after_lock")
            news, first = transaction.news(), transaction.held.ordinal
            batch = self.config.batch
            for ordinal in news.changed_at(transaction.held.adopted):
                # A base and a snapshot count from their entry on.
                batch = min(batch, ordinal - first) if ordinal > first else batch
            entries = ledger_events(connection, space, first, batch, with_activations=False)
            reached("evidence.after_entries")
            self._take_in(transaction, entries, news, head.items_sampled_at)
            reached("evidence.before_commit")
        reached("evidence.after_commit")
        return len(entries)

    def _adopt(self, transaction: StrategistTransaction, copy: StrategistCopy, news: News) -> bool:
        """Take over what other loops have made since the last time; whether there was anything."""
        held, base_version, memory_run = transaction.held, copy.adopted.base_version, copy.adopted.memory_run
        if news.patterns_run != copy.adopted.patterns_run:
            copy.strategist.adopt_patterns(*transaction.patterns(_MOST_PATTERNS))
        if news.memory_run != memory_run and news.memory_ordinal <= held.ordinal:
            memory_run = news.memory_run
            copy.associations = self._associations(transaction, memory_run)
        if news.base_version != base_version and news.base_ordinal <= held.ordinal:
            base_version = news.base_version
            if base_version is not None:
                copy.strategist.adopt_adapter(transaction.learner(base_version))
        adopted = Adopted(news.patterns_run, base_version, memory_run)
        if adopted == copy.adopted:
            return False
        copy.adopted = adopted
        transaction.adopt(adopted)
        return True

    def _associations(self, transaction: StrategistTransaction, run: int | None) -> Associations | None:
        """The memory graph as a cycle has left it; a damaged one is none: it must not hold up the rest."""
        try:
            return None if run is None else transaction.associations(run)
        except LearningError as error:
            log.error("space %r: %s", self._store.space.name, error)
            self._store.log_errors("evidence", [f"the memory graph cannot be weighed: {error}"])
            return None

    def _take_in(
        self,
        transaction: StrategistTransaction,
        entries: list[LedgerEvent],
        news: News,
        sampled_at: datetime | None,
    ) -> None:
        copy = self._current(transaction, sampled_at)
        has_adopted = self._adopt(transaction, copy, news)
        if not entries and not has_adopted:
            return
        events_before = copy.strategist.events
        outcomes: list[AnswerOutcome] = []
        known = transaction.known_outcomes([entry.trajectory_id for entry in entries])
        for entry in entries:
            if entry.event is not None and entry.event.trajectory.has_outcome:
                lesson = self._study(transaction, copy, entry, entry.event)
                outcomes += self._compare(transaction, copy, entry, entry.event.trajectory, lesson, known)
        reached("evidence.after_events")
        if entries:
            copy.ordinal = entries[-1].ordinal + 1
        copy.extent = transaction.memory_extent()
        if copy.strategist.events == events_before and not has_adopted:
            transaction.skip(copy.ordinal)
        else:
            found, strategist = copy.strategist.describe(), copy.strategist
            transaction.write(copy.ordinal, strategist.to_bytes(), strategist.evidence(), found)
        transaction.write_outcomes(outcomes, copy.lift.to_bytes(), copy.lift.suspected_share)
        self._give_up_what_harms(transaction, copy)
        reached("evidence.after_state")

    def _compare(
        self,
        transaction: StrategistTransaction,
        copy: StrategistCopy,
        entry: LedgerEvent,
        trajectory: QueryTrajectory,
        lesson: Lesson | None,
        known: set[uuid.UUID],
    ) -> Iterator[AnswerOutcome]:
        """What an answer was worth, and what its arm says of the lift: once, by its first outcome."""
        value, answer = worth_of(trajectory, self._store.space.config), trajectory.answer
        if value is None:
            return
        contrast = None
        share = answer.propensity if answer.arm == CONTROL else 1.0 - answer.propensity
        # An application may say anything: a share beyond these would outweigh all that is true.
        if trajectory.id not in known and answer.arm in (CONTROL, LEARNED) and _MOST > share > _LEAST:
            made = time_of(trajectory.id)
            contrast = copy.lift.add(
                value,
                control=answer.arm == CONTROL,
                share=share,
                answers=copy.answers(transaction.held.strategy),
                at=None if made is None else made.timestamp(),
            )
        known.add(trajectory.id)
        asked = lesson.in_force if lesson is not None and answer.arm == SHADOW else answer.strategy
        gain = lesson.gains.get(Strategy(asked)) if lesson is not None and asked in set(Strategy) else None
        yield AnswerOutcome(
            trajectory.id, entry.ordinal, answer, value, contrast, None if answer.arm == CONTROL else gain
        )

    def _give_up_what_harms(self, transaction: StrategistTransaction, copy: StrategistCopy) -> None:
        strategy, space = transaction.held.strategy, self._store.space
        if not copy.lift.is_harmful or strategy in (Strategy.FROZEN, SHADOW):
            return
        reason = (
            f"answers are worth less than those of the control arm, at odds of {self._strategy.harm_threshold:g}: "
            f"{strategy} is given up, and the frozen embedding answers"
        )
        transaction.freeze(reason)
        message = f"{reason}; look at sona.lift and sona.harmed, then deploy a version or set a strategy"
        log.error("space %r: %s", space.name, message)
        errors.log_error(self._store.connection(), space.space_id, "lift", self._store.worker, message)

    def _study(
        self, transaction: StrategistTransaction, copy: StrategistCopy, entry: LedgerEvent, event: OutcomeEvent
    ) -> Lesson | None:
        """Test, then train, then remember; what the event has shown, if it could show anything."""
        trajectory, c = event.trajectory, self._strategy
        query = unit(trajectory.query_embedding)
        outcome = outcome_of(trajectory, self._store.space.config)
        best = sorted(outcome.helped, key=lambda item: (-outcome.helped[item], item))[: c.most_remembered]
        outcome = outcome._replace(helped={item: outcome.helped[item] for item in best})
        new = {item: worth for item, worth in outcome.helped.items() if not event.taught.get(item, 0.0) > 0}
        lesson: Lesson | None = None
        # Without direction there is nothing that could be near.
        if new and copy.has_items and query.any() and event.key not in self._refused:
            seed = learning_seed(trajectory.id, event.revision)
            is_withheld = entry.learned == Learned.WITHHELD
            judged = JudgedEvent(query, outcome.shown, new, outcome.unhelpful, seed, is_withheld)
            items = _Items(self._store, transaction, copy.pool)
            around = look_around(query, transaction, items, c, event=judged, associations=copy.associations)
            try:
                lesson = copy.strategist.learn(judged, around, copy.latest)
            except (LearningError, InvalidInput, DimensionMismatch) as cause:
                raise _Refused(entry.ordinal, event.key) from cause
            for turn in lesson.turns:
                log.info("space %r: %s answers instead of %s: %s", self._store.space.name, turn.after, turn.before,
                         turn.reason)  # fmt: skip
                transaction.log_turn(entry.ordinal, trajectory.id, turn)
                if turn.region is None:
                    # Something else answers. By the time of the answer that brought it about, which a replay knows too.
                    turned_at = time_of(trajectory.id)
                    copy.lift.turn(0.0 if turned_at is None else turned_at.timestamp())
        is_prototype = copy.is_prototype(query)
        is_new = transaction.remember(
            entry.ordinal, trajectory.id, trajectory.query_embedding, outcome, is_prototype=is_prototype
        )
        if is_new:
            copy.remember(query, is_prototype=is_prototype)
            self._fresh += 1
        return lesson

    def _current(self, transaction: StrategistTransaction, sampled_at: datetime | None) -> StrategistCopy:
        """The local copy, if it is what the database has; else one from there."""
        copy, held = self._copy, transaction.held
        if copy is not None and copy.base == (held.ordinal, held.epoch, sampled_at, held.adopted):
            if copy.extent != transaction.memory_extent():
                # Retention has deleted some of what the copy remembers.
                copy.recall(transaction.memory(self._strategy.sanity_events), transaction.memory_extent())
            return copy
        if self._refused_in != held.epoch:
            self._refused.clear()
            self._refused_in = held.epoch
        connection, space = self._store.connection(), self._store.space
        pool = item_pool(connection, space, sampled_at)
        strategist = Strategist(pool, self._strategy, self._adapter)
        state = transaction.state()
        if state is not None:
            strategist.load_bytes(state)
        if held.restored is not None:
            strategist.restore(transaction.restored(held.restored))
        lift = LiftTest(self._strategy)
        if held.lift is not None:
            lift.load_bytes(held.lift)
        if lift.key != held.epoch:
            lift.begin(held.epoch, 0.0 if held.changed_at is None else held.changed_at.timestamp())
        self._copy = StrategistCopy(strategist, lift, pool, held.ordinal, sampled_at, held.adopted)
        self._copy.associations = self._associations(transaction, held.adopted.memory_run)
        self._copy.recall(transaction.memory(self._strategy.sanity_events), transaction.memory_extent())
        return self._copy

    def _admit(self) -> None:
        """Now and then, and after many of them, move the remembered queries of a large space into their index."""
        if time.monotonic() < self._admit_at and self._fresh < self.config.admit_rows:
            return
        self._admit_at, self._fresh = time.monotonic() + self.config.admit_interval_seconds, 0
        try:
            connection, space = self._store.connection(), self._store.space
            if strategist_standing.standing(connection, space).may_weigh:
                spaces.admit_queries(connection, space, self._store.config.exact_search_rows)
        except SonaError as error:
            log.warning("the remembered queries are searched exactly for now: %s", error)

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """One thread at a time uses the connection, and closes it where `close` could not wait for it."""
        with self._turn:
            try:
                yield
            finally:
                if self._is_unwanted:
                    self._disconnect()

    def _disconnect(self) -> None:
        self._store.discard()
        self._is_unwanted = False

    def close(self) -> None:
        """Disconnect; the next call connects again. A thread that is at it for long disconnects when it is done."""
        self._is_unwanted = True
        if self._turn.acquire(timeout=_CLOSE_SECONDS):
            try:
                self._disconnect()
            finally:
                self._turn.release()


class _Items:
    """The application's own table of items, with the sample that is held of it; see `ItemIndex`."""

    def __init__(self, store: SpaceStore, transaction: StrategistTransaction, pool: ItemPool) -> None:
        self._store, self._transaction, self._pool = store, transaction, pool

    def nearest(self, query: FloatVector, k: int) -> list[str]:
        return self._transaction.nearest_items(query, k)

    def embeddings(self, items: Collection[str]) -> dict[str, FloatVector]:
        known = {item: self._pool.embeddings[row] for item in items if (row := self._pool.row(item)) is not None}
        missing = sorted(set(items).difference(known))
        found = spaces.item_embeddings(self._store.connection(), self._store.space, missing)
        return known | {item: unit(vector) for item, vector in found.items()}


class _Refused(SonaError):
    """An entry of the ledger that cannot be learned from."""

    def __init__(self, ordinal: int, key: tuple[uuid.UUID, int]) -> None:
        super().__init__(f"entry {ordinal} cannot be learned from")
        self.ordinal, self.key = ordinal, key
