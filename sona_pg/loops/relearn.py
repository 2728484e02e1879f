"""Learning the ledger once more: for whoever forgets a user, and when a space changes its embedder."""

from __future__ import annotations

from sona_pg.learning.forgetting import Replay
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store import spaces
from sona_pg.store.ledger import read_ledger


def relearn(store: SpaceStore, replay: Replay, first: int, *, without: str | None = None) -> int:
    """Learn a batch of entries of the ledger once more, in their order.

    Parameters
    ----------
    first
        Ordinal of the first entry.
    without
        User whose entries are left out. So are those of trajectories that are gone.

    Returns
    -------
    int
        Ordinal after the last entry that was read; `first` if there is none.
    """
    connection, space = store.connection(), store.space
    batch = read_ledger(connection, space, first, store.config.replay_batch)
    pool = replay.learner.pool
    missing = sorted(item for item in batch.items() if pool.row(item) is None)
    embeddings = spaces.item_embeddings(connection, space, missing)
    after = first
    for entry in batch.events(replay.became):
        after = entry.ordinal + 1
        if entry.event is not None and (without is None or entry.event.trajectory.user_id != without):
            replay.learn(entry.event, entry.learned, embeddings)
    return after
