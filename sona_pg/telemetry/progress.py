"""What a main loop tells of its progress; without somebody who asks, only logs learn of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cycle:
    """A cycle that is being worked on.

    Parameters
    ----------
    loop, space
        What is done, and where.
    """

    loop: str
    space: str


_cycle: ContextVar[Cycle | None] = ContextVar("sona_cycle", default=None)


def current_cycle() -> Cycle | None:
    """The cycle that this thread is inside of."""
    return _cycle.get()


class NoTelemetry:
    """Takes what a main loop tells, and keeps none of it; log lines know their cycle all the same.

    Examples
    --------
    >>> with NoTelemetry().cycle("instant", "support"):
    ...     current_cycle()
    Cycle(loop='instant', space='support')
    >>> current_cycle()
    """

    def turned(self) -> None:
        """The main loop has looked for work, and done what it found."""

    @contextlib.contextmanager
    def cycle(self, loop: str, space: str) -> Iterator[None]:
        """Around the work of a loop in a space: it failed if it raises, and succeeded otherwise."""
        token = _cycle.set(Cycle(loop, space))
        try:
            yield
        finally:
            _cycle.reset(token)

    def learned(self, space: str, n: int) -> None:
        """So many outcome events of a space were written to the ledger."""

    def refused(self, space: str, n: int) -> None:
        """So many trajectories and scores of a space were refused for what they are."""

    def failed(self, space: str, reason: str) -> None:
        """What was tried last in a space failed; its next cycle of the same loop that ends well takes it back."""

    def close(self) -> None:
        """Nobody will ask any more."""
