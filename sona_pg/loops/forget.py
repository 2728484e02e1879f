"""A user's right to be forgotten: every row goes, and what was learned is learned again without them.

Weights, edges and evidence cannot be taken out of what was learned from them later, so the ledger is learned again from
its beginning. That is done before the space is locked; the lock is held for what came meanwhile, and to write. All of
it is one transaction. The strategies are weighed again by whoever reads the ledger for them, and the space answers as
frozen until they are proven anew.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sona_pg.errors import IncompleteLedger, SonaError
from sona_pg.learning.forgetting import Replay, digest_of
from sona_pg.learning.item_pool import ItemPool
from sona_pg.loops.evidence import EvidenceLoop
from sona_pg.loops.instant import InstantLoop
from sona_pg.loops.relearn import relearn
from sona_pg.loops.space_store import SpaceStore
from sona_pg.steps import reached
from sona_pg.store import spaces, strategy_settings
from sona_pg.store.embedder_change import find_standby
from sona_pg.store.forget import (
    ForgetTransaction,
    Lost,
    drop_queries_index,
    drop_vectors_index,
    find_lost,
    forget_transaction,
)
from sona_pg.store.learning import read_head
from sona_pg.store.successor import SuccessorTransaction

log = logging.getLogger("sona_pg")

CAUSE = "forgot a user"
WEIGHED = "weighed again after forgetting"


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """What was forgotten of a user; nothing but zeros if the space did not know them.

    Parameters
    ----------
    trajectories, steps, scores, pending
        What was recorded, and what of it waited to be learned: rows deleted.
    entries
        Ledger entries: what they had taught.
    remembered, outcomes, turns
        Remembered queries, outcomes of answers, and turns of the strategy that they brought about.
    edges
        Edges of the memory graph that nobody else has made.
    errors
        Entries of `sona.errors` that quoted them.
    versions
        Published versions that had learned from them.
    patterns
        Patterns of the space, if they had become part of any: all of them, since nothing can be taken out of one. The
        background loop makes them anew, of what is kept.
    replayed, changed
        Ledger entries of others that were learned again, and of how many of these something else became.
    lost
        Trajectories of others that retention has deleted, or their steps: what they had taught is lost. Of a user whom
        nothing was learned from: how many trajectories retention has deleted, whose they were nobody knows; what these
        have taught stays.
    version
        The version that was published last; None if nothing had been learned. Once the strategies are weighed again,
        one is published that has their evidence.
    locked_seconds, weighing_seconds, seconds
        How long nobody could learn in the space, how long it took to weigh the strategies again, and everything. The
        second is None if that was not waited for, or failed and is tried again.
    """

    trajectories: int = 0
    steps: int = 0
    scores: int = 0
    pending: int = 0
    entries: int = 0
    remembered: int = 0
    outcomes: int = 0
    turns: int = 0
    edges: int = 0
    errors: int = 0
    versions: int = 0
    patterns: int = 0
    replayed: int = 0
    changed: int = 0
    lost: int = 0
    version: int | None = None
    locked_seconds: float = 0.0
    weighing_seconds: float | None = None
    seconds: float = 0.0


def forget(
    store: SpaceStore, instant: InstantLoop, evidence: EvidenceLoop, user_id: str, *, accept_lost: bool, wait: bool
) -> ForgetReport:
    """Forget a user of a space.

    Parameters
    ----------
    store
        The space, over a connection of its own.
    instant, evidence
        The loops of this process: what they hold is flushed before, and taken over afterwards.
    user_id
        As the application calls the user.
    accept_lost
        Whether what others taught may be lost where retention has deleted what it was learned from.
    wait
        Whether to wait until the strategies are weighed again.

    Raises
    ------
    IncompleteLedger
        If that would be lost and is not accepted; nothing was changed.
    EmbedderMismatch
        If another embedder has taken the place of this one meanwhile; nothing was changed.
    PermissionDenied
        If this role may not learn in the space; nothing was changed.
    DatabaseError
        If the database does not take it; nothing was changed.
    """
    began = time.monotonic()
    instant.flush_updates()
    report = _Forgetting(store, instant, user_id, accept_lost).run()
    if report.version is not None:
        try:
            instant.flush_updates()
            if wait:
                weighing = time.monotonic()
                evidence.settle()
                report = replace(report, weighing_seconds=time.monotonic() - weighing)
                if report.replayed:
                    # The version that is published under the lock knows nothing of the strategies yet.
                    report = replace(report, version=instant.publish(WEIGHED) or report.version)
            evidence.refresh()
        except SonaError as error:
            # It is forgotten all the same, and the next look takes it over.
            log.warning("forgotten; the strategies could not be weighed again, will be tried again: %s", error)
    return replace(report, seconds=time.monotonic() - began)


def forget_beside(store: SpaceStore, user_id: str, *, accept_lost: bool) -> None:
    """Forget a user in what is kept of the embedder before of a space; in a successor they are forgotten with it.

    Raises
    ------
    IncompleteLedger, EmbedderMismatch, PermissionDenied, DatabaseError
        As `forget`.
    """
    connection = store.connection()
    standby = find_standby(connection, store.space)
    if standby is None or standby.replaced_at is None:
        return
    kept = SpaceStore(standby.space, store.connection, store.config, None)
    instant, adapter = spaces.claim_settings(connection, standby.space, None, None)
    loop = InstantLoop(standby.space.dim, instant, adapter=adapter, space=standby.space.config, store=kept)
    weighing = EvidenceLoop(kept, strategy_settings.claim_settings(connection, standby.space, None), adapter)
    forget(kept, loop, weighing, user_id, accept_lost=accept_lost, wait=True)


class _Forgetting:
    """One user, who is being forgotten."""

    def __init__(self, store: SpaceStore, instant: InstantLoop, user_id: str, accept_lost: bool) -> None:
        self._store, self._instant = store, instant
        self._user_id, self._accept_lost = user_id, accept_lost
        self._replay: Replay | None = None
        self._base: tuple[int, datetime | None] | None = None
        """What the replay began with: the epoch, and the sample of the items."""
        self._next = 0
        """Ordinal of the next entry that the replay reads."""
        self._lost: Lost | None = None
        """What there was nothing to read of when it began."""

    def run(self) -> ForgetReport:
        """Forget: all of it is done, or nothing."""
        store = self._store
        # First a look: what is refused, or needs no replay, is said at once.
        with forget_transaction(store.connection(), store.space) as transaction:
            began = time.monotonic()
            ids = transaction.trajectories_of(self._user_id)
            if not transaction.entries(ids):
                report = self._delete_alone(transaction, ids)
                # Whose those were nobody knows: they may have been this user's, and what they taught stays.
                unknown = len(find_lost(store.connection(), store.space, self._user_id).trajectories)
                return replace(report, lost=unknown, locked_seconds=time.monotonic() - began)
        self._lost = self._check_lost()
        self._catch_up()
        reached("forget.after_replay")
        with forget_transaction(store.connection(), store.space) as transaction:
            began = time.monotonic()
            reached("forget.after_lock")
            report = self._rebuild(transaction)
            reached("forget.before_commit")
        reached("forget.after_commit")
        report = replace(report, locked_seconds=time.monotonic() - began)
        try:
            drop_queries_index(store.connection(), store.space)
            if report.patterns:
                drop_vectors_index(store.connection(), store.space, "pattern")
            drop_vectors_index(store.connection(), store.space, "memory_node")
        except SonaError as error:
            log.warning("an index of what is forgotten could not be dropped, a VACUUM cleans it: %s", error)
        return report

    def _delete_alone(self, transaction: ForgetTransaction, ids: Sequence[uuid.UUID]) -> ForgetReport:
        """Delete the rows of a user whom nothing was learned from: no version comes of it."""
        report = self._delete(transaction, ids)
        if report != ForgetReport():
            version = transaction.head().version
            transaction.log(version, version, _reason(report))
        return report

    def _delete(self, transaction: ForgetTransaction, ids: Sequence[uuid.UUID]) -> ForgetReport:
        """Delete the rows of the user, and let none come back."""
        store = self._store
        # Under the lock of the space, which a switch takes first: it comes before this, or finds nothing of them.
        standby = find_standby(store.connection(), store.space)
        if standby is not None and standby.replaced_at is None:
            SuccessorTransaction(store.connection(), store.space, standby.space).forget(self._user_id)
        transaction.shut_out(self._digest)
        gone = transaction.delete(ids, self._user_id)
        return ForgetReport(
            trajectories=gone["trajectory"],
            steps=gone["trajectory_step"],
            scores=gone["score"],
            pending=gone["pending_trajectory"],
            entries=gone["learning_event"],
            remembered=gone["remembered_query"],
            outcomes=gone["answer_outcome"],
            turns=gone["strategy_turn"],
            errors=gone["error_log"],
        )

    @property
    def _digest(self) -> bytes:
        return digest_of(self._store.space.key, self._user_id)

    def _check_lost(self) -> Lost:
        lost = find_lost(self._store.connection(), self._store.space, self._user_id)
        if lost and not self._accept_lost:
            raise IncompleteLedger(
                f"to forget a user, what was learned is learned again without them; but retention has deleted "
                f"{len(lost.trajectories)} trajectories of the ledger of space {self._store.space.name!r}, whose "
                f"nobody knows any more, and the steps of {lost.steps} others: expected all of them, or your consent "
                "that what these taught is lost (accept_lost=True, sona forget --accept-lost)"
            )
        return lost

    def _catch_up(self) -> Replay:
        """Learn what the ledger holds now and the replay has not read; from the beginning, where that has changed."""
        connection, store = self._store.connection(), self._store
        head = read_head(connection, store.space)
        replay = self._replay
        if replay is None or self._base != (head.epoch, head.items_sampled_at):
            pool = ItemPool(*spaces.item_sample(connection, store.space))
            replay = Replay(self._instant.learner.anew(pool), self._instant.config.edge_update_scale)
            self._replay, self._base, self._next = replay, (head.epoch, head.items_sampled_at), 0
        while self._next < head.ordinal and self._learn_batch(replay):
            pass
        return replay

    def _learn_batch(self, replay: Replay) -> int:
        """Learn the next entries once more; gives how many there were."""
        # What is lost was accepted to be, or is found once the lock is held.
        after = relearn(self._store, replay, self._next, without=self._user_id)
        learned, self._next = after - self._next, after
        return learned

    def _rebuild(self, transaction: ForgetTransaction) -> ForgetReport:
        before = transaction.head()
        ids = transaction.trajectories_of(self._user_id)
        if not transaction.entries(ids):
            return self._delete_alone(transaction, ids)  # somebody else has forgotten them meanwhile
        lost = self._check_lost()
        if lost != self._lost:
            self._replay = None  # it may hold what retention has deleted since
        replay = self._catch_up()
        learner = replay.learner
        entries = transaction.entries([*ids, *lost.trajectories])
        report = self._delete(transaction, ids)
        reached("forget.after_rows")
        patterns = transaction.forget_patterns(entries[0].ordinal)
        transaction.forget_base()
        transaction.forget_memory()
        transaction.delete_entries(lost.trajectories)
        transaction.close_ranks(entries, replay.became)
        reached("forget.after_ledger")
        edges = transaction.write_edges(replay.edges)
        state, adapter = learner.to_bytes(), learner.adapter.map
        served = {"adapter": adapter, "micro": learner.micro} if learner.events else {}
        transaction.write_learner(state if replay.entries else None, served, learner.events)
        transaction.reset_strategist()
        version, deleted = transaction.publish(entries[0].ordinal, CAUSE, state, adapter)
        reached("forget.after_learner")
        transaction.log(before.version, version, _reason(report))
        return replace(
            report,
            edges=edges,
            versions=deleted,
            patterns=patterns,
            replayed=replay.entries,
            changed=len(replay.became),
            lost=len(lost.trajectories) + lost.steps,
            version=version,
        )


def _reason(report: ForgetReport) -> str:
    """What the audit trail says; not who it was."""
    return f"{CAUSE}: {report.trajectories} trajectories"
