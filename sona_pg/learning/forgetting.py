"""Forgetting a user: whose trajectories they are, which come too late, and what is learned without them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from datetime import datetime

from sona_pg.ids import time_of
from sona_pg.learning.edges import Edge, apply_updates, edge_updates
from sona_pg.learning.learner import Learner
from sona_pg.learning.outcome import OutcomeEvent
from sona_pg.types import FloatVector


def digest_of(space_key: uuid.UUID, user_id: str) -> bytes:
    """What is kept of a user who was forgotten: SHA-256 of the space's key and the id."""
    return hashlib.sha256(space_key.bytes + user_id.encode()).digest()


def is_before(trajectory_id: uuid.UUID, moment: datetime, received_at: datetime | None) -> bool:
    """Whether an answer was made before a moment.

    Its id says when. Where it does not, the time at which it was received does, and without one it is new.
    """
    made_at = time_of(trajectory_id) or received_at
    return made_at is not None and made_at < moment


class Replay:
    """A ledger, learned once more in its order: weights and edges of all of whom it was not asked to leave out.

    Parameters
    ----------
    learner
        One that has learned nothing yet.
    edge_scale
        Unit of the edge updates, `InstantLoopConfig.edge_update_scale`.

    Examples
    --------
    >>> from sona_pg.types import TrajectoryBuilder
    >>> builder = TrajectoryBuilder(1, [1.0, 0.0])
    >>> builder.add_step([0.0, 1.0], reward=1.0, item_id="a")
    >>> builder.add_step([1.0, 1.0], reward=0.5, item_id="b")
    >>> replay = Replay(Learner(2), 0.01)
    >>> replay.learn(OutcomeEvent(builder.build()), "adapter", {})
    >>> replay.learner.events, replay.edges, replay.became
    (1, {('a', 'b'): 0.05}, {})
    """

    def __init__(self, learner: Learner, edge_scale: float) -> None:
        self.learner = learner
        self.edges: dict[Edge, float] = {}
        self.became: dict[tuple[uuid.UUID, int], str] = {}
        """What became of events, where it is something else than at the first time."""
        self.entries = 0
        """How many were learned once more."""
        self._edge_scale = edge_scale

    def learn(self, event: OutcomeEvent, before: str, embeddings: Mapping[str, FloatVector]) -> None:
        """Learn an event of which something became before, with embeddings of items that the learner does not know."""
        learned = self.learner.learn(event, embeddings.get)
        if learned != before:
            self.became[event.key] = learned
        self.edges.update(apply_updates(self.edges, edge_updates(event), self._edge_scale))
        self.entries += 1
