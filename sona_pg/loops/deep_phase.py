"""A phase of loop C: it reads the memory graph, computes without a database, writes, and is over when its time is."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sona_pg.loops.cycle import Cycle, Phase
from sona_pg.loops.deep_config import DeepConfig
from sona_pg.store.connection import Connection
from sona_pg.store.memory import MemoryReader, MemoryState, memory_reader
from sona_pg.store.memory_transaction import MemoryTransaction
from sona_pg.store.runs import Facts

R = TypeVar("R")
W = TypeVar("W")
T = TypeVar("T", bound=MemoryTransaction)


class _TimeIsOver(Exception):
    """The deadline of a cycle is past."""


@dataclass(frozen=True, slots=True)
class _Clock:
    """Until when a phase goes on."""

    deadline: float
    cycle: Cycle

    def check(self) -> None:
        """Give up between units of work, if the time is over or the worker is to end.

        Raises
        ------
        _TimeIsOver, Stopping
        """
        self.cycle.check_stop()
        if time.monotonic() >= self.deadline:
            raise _TimeIsOver


@dataclass(frozen=True, slots=True)
class Begun(Generic[R]):
    """What a phase begins with."""

    state: MemoryState
    clock: _Clock
    found: R


class DeepPhase(ABC, Generic[R, W, T]):
    """A phase that begins no work after the deadline of its cycle, and is given up where that comes before its end."""

    name: str
    transaction: type[T]

    def __init__(self, config: DeepConfig) -> None:
        self.config = config

    def read(self, connection: Connection, cycle: Cycle) -> Begun[R] | None:
        with memory_reader(connection, cycle.run, self.config.loop.max_cycle_seconds) as reader:
            clock = _Clock(time.monotonic() + reader.state.seconds_left, cycle)
            try:
                clock.check()
                return Begun(reader.state, clock, self.found(reader, cycle, clock.check))
            except _TimeIsOver:
                return None

    def compute(self, begun: Begun[R] | None, cycle: Cycle) -> tuple[MemoryState, W] | None:
        if begun is None:
            return None
        try:
            return begun.state, self.made(begun.state, begun.found, begun.clock.check)
        except _TimeIsOver:
            return None

    def write(self, connection: Connection, made: tuple[MemoryState, W] | None, cycle: Cycle) -> Facts:
        if made is None:
            return {self.name: f"skipped: {self.config.loop.max_cycle_seconds:g} seconds are over"}
        state, result = made
        transaction = self.transaction(connection, cycle.run, state)
        return {self.name: self.done(transaction, result, connection, cycle)}

    @abstractmethod
    def found(self, reader: MemoryReader, cycle: Cycle, check: Callable[[], None]) -> R:
        """What it begins with; `check` ends it between units of work."""

    @abstractmethod
    def made(self, state: MemoryState, found: R, check: Callable[[], None]) -> W:
        """What it comes to, without a database; `check` ends it between units of work."""

    @abstractmethod
    def done(self, transaction: T, made: W, connection: Connection, cycle: Cycle) -> Facts:
        """Write it, and say what was done."""

    def phase(self) -> Phase[Begun[R] | None, tuple[MemoryState, W] | None]:
        return Phase(self.name, self.read, self.compute, self.write)
