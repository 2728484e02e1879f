"""A cycle of a slow loop: phases with names, each a function from what it read to what it will write.

The coordinator does what is the same in all of them: it times, commits under the fence, resumes after the last phase
that is committed, and ends the cycle. A phase that reads what an earlier one wrote reads it from the database, so that
a cycle goes on in another process as in the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sona_pg.config import ScheduleConfig, StoreConfig
from sona_pg.errors import SonaError
from sona_pg.store.connection import Connection
from sona_pg.store.runs import Facts, Run
from sona_pg.store.spaces import Space

R = TypeVar("R")
W = TypeVar("W")


class Skipped(SonaError):
    """A cycle found that there is nothing to do: raised by a phase, with the reason. Nothing is consumed."""


class Stopping(SonaError):
    """The worker is to end: raised by a phase that looked at `Cycle.stop`, and is left to the next worker."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """What a phase knows of its cycle.

    Parameters
    ----------
    run
        The claim: the space, the ledger entries when it began, and what the phases before said of what they did.
    config
        How the database is used.
    stop
        Set when the worker is to end. A phase of minutes looks at it now and then.
    url
        Where other processes find the database.
    """

    run: Run
    config: StoreConfig
    stop: threading.Event
    url: str

    @property
    def space(self) -> Space:
        """The space."""
        return self.run.space

    def check_stop(self) -> None:
        """Give up, if the worker is to end.

        Raises
        ------
        Stopping
        """
        if self.stop.is_set():
            raise Stopping("the worker is to end")


@dataclass(frozen=True, slots=True)
class Phase(Generic[R, W]):
    """A step of a cycle that is committed as a whole.

    Parameters
    ----------
    name
        Unique in its loop.
    read
        Takes from the database what is needed. The connection has no transaction: who needs several statements to agree
        begins one, and ends it.
    compute
        Makes of it what is to be written, without a database; raises `Skipped` if there is nothing to do.
    write
        Writes it, in a transaction in which nobody else may write for the loop, and gives the facts about it that are
        worth keeping. Short: others may wait for it.
    """

    name: str
    read: Callable[[Connection, Cycle], R]
    compute: Callable[[R, Cycle], W]
    write: Callable[[Connection, W, Cycle], Facts]


@dataclass(frozen=True, slots=True)
class Loop:
    """A slow loop.

    Parameters
    ----------
    name
        As in `sona worker NAME`.
    schedule
        When it learns in a space whose schedule nobody has set.
    phases
        In order.
    """

    name: str
    schedule: ScheduleConfig
    phases: Sequence[Phase[Any, Any]]
