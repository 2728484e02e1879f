"""A space moves to another embedding model, beside its work: embed again, learn again, weigh again, switch.

A successor is filled beside the space, in batches that are each one transaction: what a killed process has committed
is not done again, and what it had not is done as if it had never begun. The space answers and learns by its model until
the switch, which catches up with what came meanwhile, under the locks of both.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from sona_pg.errors import DimensionMismatch, EmbedderError, InvalidInput, SonaError
from sona_pg.kernels import as_vector
from sona_pg.learning.forgetting import Replay
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.learner import Learner
from sona_pg.loops.evidence import EvidenceLoop
from sona_pg.loops.relearn import relearn
from sona_pg.loops.space_store import SpaceStore
from sona_pg.steps import reached
from sona_pg.store import recorded_queries, spaces, strategy_settings
from sona_pg.store.embedder_change import Target, count_bare_items, prepare
from sona_pg.store.learning import read_head, read_state
from sona_pg.store.recorded_queries import RecordedQuery
from sona_pg.store.successor import SuccessorTransaction, successor_transaction
from sona_pg.types import FloatVector

log = logging.getLogger("sona_pg")

CAUSE = "changed the embedder"

_MOST_KNOWN_ITEMS = 10_000
"""Items, those asked last, whose new embeddings are kept to be used again."""

_Asked = TypeVar("_Asked")

Embed = Callable[[Sequence[RecordedQuery]], Sequence[ArrayLike | None]]
"""Gives the new embedding (dim,) of each query, None where it cannot."""
EmbedItems = Callable[[Sequence[str]], Sequence[ArrayLike | None]]
"""Gives the new embedding (dim,) of each item, by its id; None where it cannot."""


@dataclass(frozen=True, slots=True)
class EmbedderReport:
    """What a run of a change of embedder has done.

    Parameters
    ----------
    embedder
        Fingerprint of the new model.
    embedded, declined
        Recorded queries that this run has embedded, and those for which it was told that they cannot be: these
        trajectories stay in the ledger and teach nothing.
    dropped_steps
        Steps that are of no item and hold an activation of the model before, which nobody can embed.
    bare_items
        Items that have an embedding by the model before in the same table, and none by the new one: `recall` would not
        find them.
    relearned, changed
        Ledger entries that this run has learned once more, and of how many of these something else became.
    missing
        Ledger entries whose trajectories were deleted or declined: what they had taught is not in what answers now.
    carried, carried_scores
        Trajectories and late outcomes that came to the model before after the switch, and were carried over.
    is_switched
        Whether the new model answers.
    version
        The version that was published at the switch; None if that was not in this run, or nothing was learned.
    locked_seconds, seconds
        How long nobody could learn in the space, and everything.
    """

    embedder: str
    embedded: int = 0
    declined: int = 0
    dropped_steps: int = 0
    bare_items: int = 0
    relearned: int = 0
    changed: int = 0
    missing: int = 0
    carried: int = 0
    carried_scores: int = 0
    is_switched: bool = False
    version: int | None = None
    locked_seconds: float = 0.0
    seconds: float = 0.0


class EmbedderChange:
    """A change of the embedder of a space; `run` goes on where an earlier one has ended.

    Parameters
    ----------
    store
        The space, over a connection of its own.
    embed, embed_items
        Embed what was recorded by the new model.
    target
        The new model.
    """

    def __init__(self, store: SpaceStore, embed: Embed, target: Target, embed_items: EmbedItems | None = None) -> None:
        self._store, self._embed, self._embed_items, self._target = store, embed, embed_items, target
        self._report = EmbedderReport(target.embedder)
        self._declined: set[uuid.UUID] = set()
        self._known_items: dict[str, FloatVector | None] = {}
        self._replay: Replay | None = None
        self._next = 0
        """Ordinal of the next entry that the replay reads."""

    def run(self, *, switch: bool) -> EmbedderReport:
        """Make the successor, fill it and, if that is asked for, let it take the place of the space.

        After the switch: carry over what came to the model before.

        Raises
        ------
        EmbedderError, DimensionMismatch, InvalidInput
            If the callback fails, or gives what is no embedding: what was written before stays, and is not asked again.
        EmbedderMismatch, ConfigError
            If the space is changing to another embedder, or belongs to this one already.
        DatabaseError
            If the database does not take it; run it again.
        """
        began = time.monotonic()
        connection, space = self._store.connection(), self._store.space
        standby = prepare(connection, space, self._target)
        reached("embedder.after_prepare")
        is_switched = standby.replaced_at is not None
        older, newer = (standby.space, space) if is_switched else (space, standby.space)
        self._add(bare_items=count_bare_items(connection, older, newer))
        if is_switched:
            self._carry(standby.space)
            self._add(is_switched=True)
        else:
            self._fill(standby.space)
            self._weigh(standby.space)
            # What came while that was weighed is learned in a moment, and weighed after the switch.
            while switch and not self._switch(standby.space):
                self._fill(standby.space)
        return replace(self._report, declined=len(self._declined), seconds=time.monotonic() - began)

    def _add(self, **more: int) -> None:
        self._report = replace(self._report, **{name: getattr(self._report, name) + by for name, by in more.items()})

    # Embed again -----------------------------------------------------------------------------------------------

    def _fill(self, successor: spaces.Space) -> None:
        """Bring the successor as far as the space is, but for what came in the last moments."""
        connection, space, config = self._store.connection(), self._store.space, self._store.config
        goal = -1
        # Entries of the ledger are learned once their trajectories are there: first where it ends, then what is there.
        while (end := read_head(connection, space).ordinal) - goal > config.replay_batch or goal < 0:
            goal = end
            self._embed_all(successor)
            reached("embedder.after_embedding")
            while self._relearn_batch(successor, goal):
                reached("embedder.after_entries")
            reached("embedder.after_relearning")

    def _embed_all(self, successor: spaces.Space) -> None:
        connection, space, config = self._store.connection(), self._store.space, self._store.config
        after: uuid.UUID | None = None
        while queries := recorded_queries.unembedded(connection, space, successor, after, config.embed_batch):
            after = queries[-1].trajectory_id
            vectors, activations = self._embedded(queries, successor.dim)
            with successor_transaction(connection, space, successor) as transaction:
                self._write(transaction, vectors, activations)
            reached("embedder.after_queries")

    def _write(
        self,
        transaction: SuccessorTransaction,
        vectors: Mapping[uuid.UUID, FloatVector],
        activations: Mapping[str, FloatVector],
    ) -> None:
        written, dropped = transaction.write_queries(vectors, activations)
        self._add(embedded=written, dropped_steps=dropped)

    def _embedded(
        self, queries: Sequence[RecordedQuery], dim: int
    ) -> tuple[dict[uuid.UUID, FloatVector], dict[str, FloatVector]]:
        """New embeddings by trajectory, and of the items whose old ones were recorded with them by item."""
        asked = [query for query in queries if query.trajectory_id not in self._declined]
        found = _answers(self._embed, asked, dim, "query of trajectory", [str(q.trajectory_id) for q in asked])
        vectors = {
            query.trajectory_id: vector for query, vector in zip(asked, found, strict=True) if vector is not None
        }
        self._declined.update(query.trajectory_id for query in asked if query.trajectory_id not in vectors)
        if self._embed_items is None:
            return vectors, {}
        items = recorded_queries.activated_items(self._store.connection(), self._store.space, list(vectors))
        new = [item for item in items if item not in self._known_items]
        self._known_items.update(zip(new, _answers(self._embed_items, new, dim, "item", new), strict=True))
        known = {item: self._known_items[item] for item in items}
        for item in list(self._known_items)[: max(len(self._known_items) - _MOST_KNOWN_ITEMS, 0)]:
            del self._known_items[item]
        return vectors, {item: vector for item, vector in known.items() if vector is not None}

    # Learn and weigh again -------------------------------------------------------------------------------------

    def _relearn_batch(self, successor: spaces.Space, goal: int) -> bool:
        """Learn the next entries of the ledger before `goal`; whether there were any."""
        connection, space = self._store.connection(), self._store.space
        with successor_transaction(connection, space, successor) as transaction:
            return self._relearn(transaction, successor, goal)

    def _relearn(self, transaction: SuccessorTransaction, successor: spaces.Space, goal: int) -> bool:
        head = transaction.head()
        if head.epoch != read_head(self._store.connection(), self._store.space).epoch:
            transaction.begin_learning()  # somebody was forgotten meanwhile, or another version deployed
            head = transaction.head()
        replay = self._resumed(successor, head.ordinal)
        # A user may have been forgotten since it was read where the ledger ends.
        last = min(goal, head.ordinal + self._store.config.replay_batch)
        if head.ordinal >= last:
            return False
        transaction.copy_ledger(head.ordinal, last)
        before = replay.entries
        self._next = relearn(self._within(successor), replay, head.ordinal)
        if self._next == head.ordinal:
            return False
        transaction.write_learner(replay.learner.to_bytes(), replay.learner.events, self._next, replay.became)
        read, learned = self._next - head.ordinal, replay.entries - before
        self._add(relearned=learned, missing=read - learned, changed=len(replay.became))
        replay.became.clear()  # they are in the ledger by now
        return True

    def _within(self, successor: spaces.Space) -> SpaceStore:
        """The successor, over the connection of the transaction."""
        return SpaceStore(successor, self._store.connection, self._store.config, None)

    def _resumed(self, successor: spaces.Space, ordinal: int) -> Replay:
        """The replay, as far as the successor is; another process may have gone on, or an earlier one ended."""
        if self._replay is not None and self._next == ordinal:
            return self._replay
        connection = self._store.connection()
        instant, adapter = spaces.claim_settings(connection, successor, None, None)
        pool = ItemPool(*spaces.item_sample(connection, successor))
        learner = Learner(successor.dim, pool, adapter=adapter, instant=instant, space=successor.config)
        state = read_state(connection, successor)
        if state is not None:
            learner.load_bytes(state)
        self._replay, self._next = Replay(learner, instant.edge_update_scale), ordinal
        return self._replay

    def _weigh(self, successor: spaces.Space) -> None:
        """Weigh the strategies by the new model, so that it answers by what is proven from the first moment on."""
        connection = self._store.connection()
        _, adapter = spaces.claim_settings(connection, successor, None, None)
        settings = strategy_settings.claim_settings(connection, successor, None)
        loop = EvidenceLoop(self._within(successor), settings, adapter)
        loop.settle()

    # The switch ------------------------------------------------------------------------------------------------

    def _switch(self, successor: spaces.Space) -> bool:
        """Let the successor take the place of the space; false if too much has come for the locks to be held on."""
        connection, space, config = self._store.connection(), self._store.space, self._store.config
        with successor_transaction(connection, space, successor, both=True) as transaction:
            began = time.monotonic()
            reached("embedder.after_lock")
            after: uuid.UUID | None = None
            while queries := recorded_queries.unembedded(connection, space, successor, after, config.embed_batch):
                after = queries[-1].trajectory_id
                self._write(transaction, *self._embedded(queries, successor.dim))
            head, stands = read_head(connection, space), transaction.head()
            if head.epoch != stands.epoch or head.ordinal - stands.ordinal > config.replay_batch:
                return False
            self._relearn(transaction, successor, head.ordinal)
            learner = self._resumed(successor, head.ordinal).learner
            transaction.drop_deleted()
            served = {"adapter": learner.adapter.map, "micro": learner.micro} if learner.events else {}
            transaction.take_over(served)
            reached("embedder.after_copy")
            version = transaction.switch(CAUSE, learner.to_bytes() if head.ordinal else None, learner.adapter.map)
            reached("embedder.before_commit")
        reached("embedder.after_commit")
        self._report = replace(self._report, is_switched=True, version=version, locked_seconds=time.monotonic() - began)
        return True

    def _carry(self, predecessor: spaces.Space) -> None:
        """Carry over what came to the predecessor late: of processes that had not seen the switch, and of spools."""
        connection, space, config = self._store.connection(), self._store.space, self._store.config
        late = EmbedderChange(
            SpaceStore(predecessor, self._store.connection, config, None), self._embed, self._target, self._embed_items
        )
        after: uuid.UUID | None = None
        while queries := recorded_queries.unembedded(
            connection, predecessor, space, after, config.embed_batch, unlearned=True
        ):
            after = queries[-1].trajectory_id
            vectors, activations = late._embedded(queries, space.dim)
            self._add(carried=recorded_queries.carry(connection, predecessor, space, vectors, activations))
        self._declined |= late._declined
        self._add(carried_scores=recorded_queries.carry_scores(connection, predecessor, space))


def _answers(
    embed: Callable[[Sequence[_Asked]], Sequence[ArrayLike | None]],
    asked: Sequence[_Asked],
    dim: int,
    what: str,
    names: list[str],
) -> list[FloatVector | None]:
    """What a callback gives for each of what it is asked, checked.

    Raises
    ------
    EmbedderError
        If it fails, or does not answer for each.
    DimensionMismatch, InvalidInput
        If an answer has another dimension, or is not finite.
    """
    if not asked:
        return []
    again = "nothing of this batch was written; mend it and run the change again, which goes on from here"
    try:
        found = list(embed(asked))
    except SonaError:
        raise
    except Exception as cause:
        raise EmbedderError(f"the embedder failed with {type(cause).__name__}: {cause}: {again}") from cause
    if len(found) != len(asked):
        raise EmbedderError(
            f"the embedder was asked for {len(asked)} embeddings and gave {len(found)}, expected one for each, or None "
            f"where it cannot: {again}"
        )
    vectors: list[FloatVector | None] = []
    for answer, name in zip(found, names, strict=True):
        try:
            vectors.append(None if answer is None else np.array(as_vector(answer, dim, f"{what} {name}")))
        except (DimensionMismatch, InvalidInput) as cause:
            log.error("%s: %s", cause, again)
            raise
    return vectors
