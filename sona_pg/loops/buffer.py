"""The bounded buffer between the application's threads and the one that learns."""

from __future__ import annotations

from collections import deque
from typing import cast

from sona_pg.config import InstantLoopConfig
from sona_pg.errors import InvalidInput
from sona_pg.kernels import Ring
from sona_pg.types import QueryTrajectory, Score


class TrajectoryBuffer:
    """A bounded, lock-free queue of trajectories, first in, first out.

    Recording takes no lock, waits for nobody and allocates nothing; what does not fit is refused and counted.

    Parameters
    ----------
    capacity
        Most trajectories that it holds.

    Examples
    --------
    >>> from sona_pg.types import TrajectoryBuilder
    >>> buffer = TrajectoryBuffer(1)
    >>> trajectory = TrajectoryBuilder(1, [0.1, 0.2]).build(0.5)
    >>> buffer.record(trajectory), buffer.record(trajectory), buffer.dropped_count
    (True, False, 1)
    """

    def __init__(self, capacity: int = InstantLoopConfig().max_pending_signals) -> None:
        self._ring = Ring(capacity)

    def record(self, trajectory: QueryTrajectory) -> bool:
        """Append; False, and counted, if it is full."""
        if trajectory is None:
            raise InvalidInput("the trajectory is None: the buffer could not tell it from nothing")
        return self._ring.push(trajectory)

    def record_from(self, trajectories: list[QueryTrajectory], start: int) -> int:
        """Append those from a place on, as far as there is room; the place of the first that was not taken.

        What was not taken is not counted: it may be offered again.
        """
        if not isinstance(trajectories, list) or any(t is None for t in trajectories):
            raise InvalidInput(
                "the trajectories are no list, or one is None: the buffer could not tell it from nothing"
            )
        if not isinstance(start, int) or not 0 <= start <= len(trajectories):
            raise InvalidInput(f"start is {start!r}, expected a place from 0 to {len(trajectories)}")
        return self._ring.push_from(trajectories, start)

    def refuse(self, count: int = 1) -> bool:
        """Count so many trajectories as refused; False."""
        if not isinstance(count, int) or not 0 <= count < 1 << 32:
            raise InvalidInput(f"count is {count!r}, expected a whole number from 0")
        return self._ring.refuse(count)

    def drain(self) -> list[QueryTrajectory]:
        """Take out everything that is in it, oldest first."""
        drained: list[QueryTrajectory] = []
        self.drain_into(drained)
        return drained

    def drain_into(
        self, target: list[QueryTrajectory] | deque[QueryTrajectory] | deque[QueryTrajectory | Score]
    ) -> None:
        """Move everything that is in it, oldest first; an interrupt finds each trajectory in one of the two."""
        self._ring.drain_into(cast("list[QueryTrajectory] | deque[QueryTrajectory]", target))

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return len(self._ring) == 0

    @property
    def dropped_count(self) -> int:
        """How many were refused."""
        return self._ring.dropped

    @property
    def recorded_count(self) -> int:
        """How many were taken since the beginning."""
        return self._ring.taken

    @property
    def capacity(self) -> int:
        """Most trajectories that it holds."""
        return self._ring.capacity
