"""Making durable what was recorded and learned: one learning transaction at a time, what is in the spool first.

A flush takes the row lock of the space's learner: if nobody published since the local copy was taken, it writes its
state; otherwise it loads the published state, replays its own events on it in order, and writes that. Adding up
differences of weights would destroy what an adaptive optimiser depends on.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain

from sona_pg.config import InstantLoopConfig
from sona_pg.errors import DatabaseBusy, SonaError
from sona_pg.learning.edges import apply_updates, edge_updates, helpful_items
from sona_pg.learning.outcome import OutcomeEvent
from sona_pg.loops.admission import REFUSALS, admitted, admitted_score
from sona_pg.loops.backlog import Backlog
from sona_pg.loops.complaints import Complaints
from sona_pg.loops.local_copy import LocalCopy, learned
from sona_pg.loops.metrics import InstantLoopCounts, learned_count
from sona_pg.loops.space_store import SpaceStore
from sona_pg.steps import reached
from sona_pg.store import learning as learning_store
from sona_pg.store.connection import Connection
from sona_pg.store.learning import LearningTransaction, LedgerEntry
from sona_pg.store.spool import Spool
from sona_pg.store.spool_record import Event
from sona_pg.types import QueryTrajectory, Score


class Flusher:
    """Makes durable what a backlog and the spool hold, and what SQL clients recorded; for whoever holds the turn.

    Parameters
    ----------
    store
        The space in the database.
    config
        Settings.
    backlog
        What waits.
    copy
        The learner, as this process has it.
    counts, complaints
        Of the loop.
    """

    def __init__(
        self,
        store: SpaceStore,
        config: InstantLoopConfig,
        backlog: Backlog,
        copy: LocalCopy,
        counts: InstantLoopCounts,
        complaints: Complaints,
    ) -> None:
        self.store, self._config, self._backlog, self._copy = store, config, backlog, copy
        self._counts, self._complaints = counts, complaints
        self._spool_batch = store.config.spool_batch

    def flush(self, connection: Connection, claim: int) -> int:
        """Flush everything, with up to `claim` trajectories of SQL clients; gives how many those were.

        Where the database refuses the data, one by one, so that what is valid goes through.

        Raises
        ------
        DatabaseError
            If the database does not take it.
        """
        entries, scores = self._backlog.unflushed, self._backlog.unflushed_scores
        try:
            return self._commit(connection, entries, scores, claim)
        except REFUSALS as error:
            self._copy.base = None
            if entries or scores:
                self._flush_singly(connection, entries, scores)
            elif claim == 1:
                trajectory_id = learning_store.drop_oldest_pending(connection, self.store.space)
                self._complaints.add(f"trajectory {trajectory_id}, which an SQL client wrote, was refused: {error}")
                self._counts.add(refused=1)
                return 1
        return self.flush(connection, 1) if claim else 0

    def _flush_singly(
        self,
        connection: Connection,
        entries: Sequence[LedgerEntry],
        scores: Sequence[Score],
        *,
        is_learned: bool = True,
        spooled_since: datetime | None = None,
    ) -> None:
        singles: list[tuple[list[LedgerEntry], list[Score]]] = [([entry], []) for entry in entries]
        for one, of_it in [*singles, *(([], [score]) for score in scores)]:
            self._copy.base = None
            try:
                self._commit(connection, one, of_it, claim=0, is_learned=is_learned, spooled_since=spooled_since)
            except REFUSALS as error:
                self._complaints.add(f"{', '.join(_named(one, of_it))} was refused: {error}")
                self._counts.add(refused=1)
                self._backlog.forget(one, of_it)

    def replay(self, connection: Connection, spool: Spool) -> None:
        """Make durable what an outage left on disk, of this process and of dead ones, before anything newer.

        Raises
        ------
        DatabaseError
            If the database does not take it: the rest is replayed the next time.
        """
        backlog, copy = self._backlog, self._copy
        while True:
            if backlog.holds_any and spool.holds_own:
                backlog.spill_memory(spool)
            batch = spool.take(self._spool_batch, up_to_front=backlog.holds_any)
            if batch is None and backlog.holds_any and spool.holds_own:
                # The spool has no room for what is older than the rest of it: that goes first.
                copy.base = None
                copy.learn_waiting()
                self.flush(connection, claim=0)
                continue
            if batch is None:
                return
            if backlog.holds_any:
                copy.base = None  # the copy may have learned what is not durable yet
            events, refusals = self._readmitted(batch.events)
            scores = [event for event in events if isinstance(event, Score)]
            entries = [LedgerEntry(OutcomeEvent(event), "") for event in events if isinstance(event, QueryTrajectory)]
            try:
                self._commit(connection, entries, scores, claim=0, is_learned=False, spooled_since=batch.since)
            except REFUSALS:
                self._flush_singly(connection, entries, scores, is_learned=False, spooled_since=batch.since)
            except DatabaseBusy:
                # A smaller transaction may pass where this one took too long.
                self._spool_batch = max(1, self._spool_batch // 4)
                raise
            spool.confirm(batch)
            self._counts.add(refused=len(refusals))
            for refusal in [*batch.problems, *refusals]:
                self._complaints.add(refusal)
            self._spool_batch = min(2 * self._spool_batch, self.store.config.spool_batch)
            if backlog.is_half_full:
                backlog.spill_buffers(spool)
            if backlog.holds_any:
                copy.base = None

    def _readmitted(self, read: Sequence[Event]) -> tuple[list[Event], list[str]]:
        """What was read from disk and passed the door again; and why the rest did not."""
        space = self.store.space
        events: list[Event] = []
        refusals: list[str] = []
        for event in read:
            try:
                if isinstance(event, Score):
                    events.append(admitted_score(event, space.config))
                else:
                    events.append(admitted(event, space.dim, space.config))
            except SonaError as error:
                refusals.append(f"an event in the spool was refused: {error}")
        return events, refusals

    def _commit(
        self,
        connection: Connection,
        waiting: Sequence[LedgerEntry],
        scores: Sequence[Score],
        claim: int,
        *,
        is_learned: bool = True,
        spooled_since: datetime | None = None,
    ) -> int:
        """One learning transaction, with up to `claim` trajectories of SQL clients; gives how many those were.

        What is not learned yet (`is_learned`) is learned here, as is what must be learned anew on another's state. Of
        what comes from the spool it is known when its file was begun (`spooled_since`).
        """
        started_at = datetime.now(UTC)
        store, copy = self.store, self._copy
        # An interrupt may have entered one twice, or written it to the spool again; the first counts, where it stands.
        distinct: dict[uuid.UUID, LedgerEntry] = {}
        for entry in waiting:
            distinct.setdefault(entry.event.trajectory.id, entry)
        entries, learner, replayed = list(distinct.values()), copy.learner, False
        reached("flush.before_lock")
        with learning_store.learning_transaction(connection, store.space) as transaction:
            reached("flush.after_lock")
            # A flush whose commit was not confirmed may have been taken all the same; and ids may be given twice.
            known = transaction.recorded([entry.event.trajectory.id for entry in entries])
            # What is there already has passed this door.
            unknown = [entry.event.trajectory for entry in entries if entry.event.trajectory.id not in known]
            dropped = transaction.forgotten(unknown, spooled_since)
            refused = len(dropped)
            if known or dropped or transaction.head.base != copy.base:
                learner = copy.published(store, connection, transaction.head, transaction.state())
                replayed = True
            if replayed or not is_learned:
                gone = known | dropped
                events = [entry.event for entry in entries if entry.event.trajectory.id not in gone]
                entries = learned(learner, events, copy.embeddings_of(events, learner.pool))
            reached("flush.after_state")
            transaction.write_trajectories([entry.event.trajectory for entry in entries])
            reached("flush.after_trajectories")
            fresh_scores = transaction.write_scores(scores)
            reached("flush.after_scores")
            recorded = {entry.event.trajectory.id: entry.event.trajectory for entry in entries}
            claimed = transaction.claim_pending(claim) if claim else []
            reached("flush.after_pending")
            dropped |= transaction.forgotten_claims(claimed)
            transaction.delete(dropped)
            touched = [*recorded, *(score.trajectory_id for score in scores), *claimed]
            late = transaction.unlearned_events(list(dict.fromkeys(touched)), recorded)
            late_entries = learned(learner, late, copy.embeddings_of(late, learner.pool))
            ledger = entries + late_entries
            self._write_edges(transaction, [entry.event for entry in ledger])
            reached("flush.after_edges")
            head = transaction.head
            if ledger:
                head = transaction.write_learner(
                    learner.to_bytes(),
                    {"adapter": learner.adapter.map, "micro": learner.micro},
                    ledger,
                    learned_count(ledger),
                    started_at=started_at,
                    replayed=replayed,
                    worker=store.worker,
                    config=store.config,
                )
            reached("flush.before_commit")
        reached("flush.after_commit")
        copy.become(learner, head)
        self._backlog.forget(waiting, scores)
        if is_learned:
            self._counts.add_learned(waiting, sign=-1)  # counted when they were learned; what was committed counts
        self._counts.add_learned(ledger)
        self._counts.add(
            repeated=len(waiting) - len(recorded) - refused + len(scores) - fresh_scores,
            refused=len(dropped),
            flushed=len(ledger),
            flushes=1,
            replays=int(replayed),
        )
        if dropped:
            # Without a name: that is what is to be forgotten.
            self._complaints.add(
                f"{len(dropped)} trajectories were dropped: whoever asked was forgotten after they had been answered"
            )
        return len(claimed)

    def _write_edges(self, transaction: LearningTransaction, events: Sequence[OutcomeEvent]) -> None:
        helped = [helpful_items(event) for event in events]
        # Most items have no edges, and then nothing that was shown beside them can be weakened.
        connected = transaction.connected_items(list(dict.fromkeys(chain.from_iterable(helped))))
        connected.update(item for items in helped if len(items) > 1 for item in items)
        updates = [update for event in events for update in edge_updates(event, connected)]
        before = transaction.edge_weights(list(dict.fromkeys(update.edge for update in updates)))
        transaction.write_edges(apply_updates(before, updates, self._config.edge_update_scale))


def _named(entries: Sequence[LedgerEntry], scores: Sequence[Score]) -> Iterator[str]:
    """How a complaint names what was refused: not by what it holds, so that a user who is forgotten is found in it."""
    for entry in entries:
        trajectory = entry.event.trajectory
        yield f"trajectory {trajectory.id} of user_id={trajectory.user_id!r}"
    for score in scores:
        yield f"score {score.score_id!r} of trajectory {score.trajectory_id}"
