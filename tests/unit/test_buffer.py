"""TrajectoryBuffer: bounded, first in first out, countable, safe from several threads, without allocation."""

from __future__ import annotations

import gc
import sys
import threading
import uuid
import weakref
from itertools import chain

import pytest

from sona_pg.config import InstantLoopConfig
from sona_pg.errors import ConfigError
from sona_pg.loops.buffer import TrajectoryBuffer
from sona_pg.types import QueryTrajectory

from .samples import trajectory


def made(count: int) -> list[QueryTrajectory]:
    return [trajectory([1.0], id=number) for number in range(count)]


def test_what_was_recorded_is_drained_in_its_order() -> None:
    buffer, recorded = TrajectoryBuffer(10), made(7)
    assert all(buffer.record(t) for t in recorded)
    assert len(buffer) == 7
    assert not buffer.is_empty
    drained = buffer.drain()
    assert [a is b for a, b in zip(drained, recorded, strict=True)] == [True] * 7
    assert len(buffer) == 0
    assert buffer.is_empty
    assert buffer.drain() == []


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 8, 1000])
def test_what_does_not_fit_is_refused_and_counted(capacity: int) -> None:
    buffer = TrajectoryBuffer(capacity)
    assert buffer.capacity == capacity
    [one] = made(1)
    for turn in range(3):
        assert [buffer.record(one) for _ in range(capacity + 4)] == [True] * capacity + [False] * 4
        assert len(buffer) == capacity
        assert buffer.dropped_count == 4 * (turn + 1)
        assert len(buffer.drain()) == capacity


def test_capacity_is_a_setting_with_a_default() -> None:
    assert TrajectoryBuffer().capacity == InstantLoopConfig().max_pending_signals == 1000
    for bad in (0, -1, 1.5, "10", None, True):
        with pytest.raises(ConfigError, match=r"capacity is .*, expected a whole number"):
            TrajectoryBuffer(bad)  # type: ignore[arg-type]


def test_recording_allocates_nothing_once_it_is_warm() -> None:
    buffer, recorded = TrajectoryBuffer(2000), made(1000)
    counts = []
    gc.disable()
    try:
        for _ in range(3):
            before = sys.getallocatedblocks()
            for t in recorded:
                buffer.record(t)
            counts.append(sys.getallocatedblocks() - before)
            buffer.drain()
    finally:
        gc.enable()
    assert counts[-1] <= 2  # of the measurement itself


def test_buffer_keeps_nothing_alive_that_was_drained_refused_or_thrown_away() -> None:
    class Tracked(QueryTrajectory):
        """One whose end can be seen: the original has no slot for weak references."""

        __slots__ = ("__weakref__",)

    def tracked() -> tuple[Tracked, weakref.ref[Tracked]]:
        one = Tracked(uuid.UUID(int=1), trajectory([1.0]).query_embedding)
        return one, weakref.ref(one)

    buffer = TrajectoryBuffer(1)
    one, seen = tracked()
    refused, seen_refused = tracked()
    assert buffer.record(one)
    assert not buffer.record(refused)
    del one, refused
    assert seen() is not None
    assert seen_refused() is None
    buffer.drain()
    assert seen() is None
    left, seen = tracked()
    buffer.record(left)
    del left, buffer
    assert seen() is None


def test_threads_record_while_another_drains_and_nothing_is_lost_or_doubled() -> None:
    producers, each = 4, 5000
    buffer = TrajectoryBuffer(256)
    batches = [[trajectory([1.0], id=producer * each + n) for n in range(each)] for producer in range(producers)]
    taken: list[list[bool]] = [[] for _ in range(producers)]
    drained: list[QueryTrajectory] = []
    running = threading.Event()
    running.set()

    def produce(producer: int) -> None:
        taken[producer] = [buffer.record(t) for t in batches[producer]]

    def consume() -> None:
        while running.is_set():
            drained.extend(buffer.drain())

    threads = [threading.Thread(target=produce, args=(producer,)) for producer in range(producers)]
    consumer = threading.Thread(target=consume)
    for thread in (consumer, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    running.clear()
    consumer.join()
    drained.extend(buffer.drain())

    given = zip(chain(*batches), chain(*taken), strict=True)
    recorded = [t.id.int for t, was_taken in given if was_taken]
    assert sorted(t.id.int for t in drained) == recorded
    assert buffer.dropped_count == producers * each - len(recorded)
    for producer in range(producers):  # each producer's own are still in order
        own = [t.id.int for t in drained if t.id.int // each == producer]
        assert own == sorted(own)


def test_several_threads_drain_and_everything_is_taken_once() -> None:
    buffer, recorded = TrajectoryBuffer(8000), made(8000)
    for t in recorded:
        buffer.record(t)
    parts: list[list[QueryTrajectory]] = [[] for _ in range(4)]

    def consume(part: list[QueryTrajectory]) -> None:
        while more := buffer.drain():
            part.extend(more)

    threads = [threading.Thread(target=consume, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(t.id.int for part in parts for t in part) == list(range(8000))
