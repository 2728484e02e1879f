"""The bounded queue: order, capacity, references, memory, and many threads at once."""

from __future__ import annotations

import collections
import gc
import itertools
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_pg.errors import ConfigError
from sona_pg.kernels import Ring

CAPACITIES = (1, 2, 3, 4, 5, 7, 8, 100, 1000, 1024)


class Thing:
    """Something whose end can be seen."""


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_first_in_first_out_up_to_the_capacity(capacity: int) -> None:
    ring = Ring(capacity)
    assert (len(ring), ring.capacity, ring.dropped, ring.pop()) == (0, capacity, 0, None)
    for round_of in range(3):
        things = [Thing() for _ in range(capacity)]
        for count, thing in enumerate(things, 1):
            assert ring.push(thing) is True
            assert len(ring) == count
        for refused in range(1, 4):
            assert ring.push(Thing()) is False
            assert len(ring) == capacity
            assert ring.dropped == 3 * round_of + refused
        for count, thing in enumerate(things, 1):
            assert ring.pop() is thing
            assert len(ring) == capacity - count
        assert ring.pop() is None


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_order_is_kept_while_it_goes_round(capacity: int) -> None:
    ring, expected = Ring(capacity), itertools.count()
    for value in range(5 * capacity + 17):
        if len(ring) == capacity:
            assert ring.pop() == next(expected)
        assert ring.push(value)
    assert [ring.pop() for _ in range(capacity)] == [next(expected) for _ in range(capacity)]


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_several_are_appended_as_far_as_there_is_room(capacity: int) -> None:
    ring, things = Ring(capacity), [Thing() for _ in range(capacity + 5)]
    counts = [sys.getrefcount(thing) for thing in things]
    assert ring.push_from(things, 0) == capacity
    assert ring.push_from(things, capacity) == capacity
    # What was not taken may be offered again: it is counted by whoever gives up.
    assert (len(ring), ring.dropped, ring.taken) == (capacity, 0, capacity)
    assert ring.refuse(5) is False
    assert ring.dropped == 5
    assert [ring.pop() for _ in range(capacity)] == things[:capacity]
    assert ring.push_from(things, len(things)) == len(things)
    assert ring.push_from([], 0) == len(ring) == 0
    del ring
    assert [sys.getrefcount(thing) for thing in things] == counts


def test_a_place_that_is_none_is_refused() -> None:
    ring = Ring(4)
    for values, start in (([1], 2), ([1], -1)):
        with pytest.raises(ConfigError, match="start"):
            ring.push_from(values, start)
    with pytest.raises(TypeError):
        ring.push_from([None], 0)
    assert len(ring) == 0


@settings(deadline=None, database=None, max_examples=150)
@given(capacity=st.integers(1, 9), pushes=st.lists(st.booleans(), max_size=120))
def test_behaves_as_a_bounded_deque(capacity: int, pushes: list[bool]) -> None:
    ring, model, dropped = Ring(capacity), collections.deque[int](), 0
    for value, push in enumerate(pushes):
        if push:
            fits = len(model) < capacity
            assert ring.push(value) is fits
            if fits:
                model.append(value)
            else:
                dropped += 1
        else:
            assert ring.pop() == (model.popleft() if model else None)
        assert (len(ring), ring.dropped) == (len(model), dropped)


@pytest.mark.parametrize("capacity", [0, -1, 2**32 + 1, 2**200, 1.5, "3", None])
def test_capacity_is_checked(capacity: object) -> None:
    with pytest.raises(ConfigError, match="expected a whole number from 1 to"):
        Ring(capacity)  # type: ignore[arg-type]


def test_none_is_refused() -> None:
    ring = Ring(1)
    with pytest.raises(TypeError):
        ring.push(None)
    assert (len(ring), ring.dropped) == (0, 0)


def test_references_are_held_and_given_back() -> None:
    ring, thing = Ring(5), Thing()
    free = sys.getrefcount(thing)
    for held in range(1, 6):
        ring.push(thing)
        assert sys.getrefcount(thing) == free + held
    for _ in range(100):
        assert not ring.push(thing)  # refused, and not held
    assert sys.getrefcount(thing) == free + 5
    for held in range(4, -1, -1):
        ring.pop()
        assert sys.getrefcount(thing) == free + held
    for _ in range(1000):
        ring.push(thing)
        ring.pop()
        ring.pop()
    assert sys.getrefcount(thing) == free


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_content_ends_with_the_ring(capacity: int) -> None:
    ring, things = Ring(capacity), [Thing() for _ in range(capacity)]
    for _ in range(capacity // 2 + 1):  # begin in the middle
        ring.push(Thing())
        ring.pop()
    ends = [weakref.ref(thing) for thing in things]
    free = [sys.getrefcount(thing) for thing in things]
    assert all(map(ring.push, things))
    assert [sys.getrefcount(thing) for thing in things] != free
    del ring
    assert [sys.getrefcount(thing) for thing in things] == free
    things.clear()
    assert not any(end() for end in ends)


def test_content_that_nobody_else_holds_ends_with_the_ring() -> None:
    ring, ended = Ring(3), []

    class Noisy:
        def __init__(self, name: int) -> None:
            self.name = name

        def __del__(self) -> None:
            ended.append(self.name)

    for name in range(4):  # the last one is refused, and ends at once
        ring.push(Noisy(name))
    assert ended == [3]
    ring.pop()
    assert ended == [3, 0]
    del ring
    assert ended == [3, 0, 1, 2]


def allocated_by(action: Callable[[object], object], values: list[object]) -> tuple[int, int]:
    """Blocks that stay allocated, and the most bytes allocated at once, by `action` on every value.

    The least of some runs, as other threads of this process may allocate meanwhile.
    """
    runs = [allocated_by_one_run(action, values) for _ in range(5)]
    return min(blocks for blocks, _ in runs), min(most for _, most in runs)


def allocated_by_one_run(action: Callable[[object], object], values: list[object]) -> tuple[int, int]:
    def run(iterator: Iterator[object]) -> None:
        for value in iterator:
            action(value)

    run(iter(values))  # warms the interpreter
    iterator = iter(values)
    blocks = sys.getallocatedblocks()
    run(iterator)
    blocks = sys.getallocatedblocks() - blocks
    iterator = iter(values)
    tracemalloc.start()
    try:
        run(iter([]))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        run(iterator)
        most = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    return blocks, most


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What the collector frees meanwhile would hide what is allocated."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
def test_push_allocates_nothing() -> None:
    values: list[object] = [Thing() for _ in range(1000)]
    accepting, refusing = Ring(100_000), Ring(3)
    nothing = allocated_by(accepting.push, [])  # by the measurement itself
    assert allocated_by(accepting.push, values) == nothing
    assert allocated_by(refusing.push, values) == nothing
    assert (len(accepting), len(refusing)) == (15_000, 3)
    # What does allocate is seen, even if it is freed at once.
    assert allocated_by(lambda value: [value] * 100, values)[1] >= nothing[1] + 800
    kept: list[object] = []
    assert allocated_by(lambda value: kept.append([value]), values)[0] >= 1000


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("capacity", [1, 3, 64, 1000])
@pytest.mark.usefixtures("frequent_switches")
def test_threads_lose_nothing_and_double_nothing(capacity: int) -> None:
    producers, consumers, each = 4, 3, 2000
    ring, barrier = Ring(capacity), threading.Barrier(producers + consumers)
    things = [[(producer, number) for number in range(each)] for producer in range(producers)]
    free = sys.getrefcount(things[0][0])
    refused, popped = [0] * producers, [list[tuple[int, int]]() for _ in range(consumers)]
    left = threading.Semaphore(producers * each)

    def produce(own: int) -> None:
        barrier.wait()
        for thing in things[own]:
            while not ring.push(thing):
                refused[own] += 1
                time.sleep(0)

    def consume(own: int) -> None:
        barrier.wait()
        while left.acquire(blocking=False):
            while (thing := ring.pop()) is None:
                time.sleep(0)
            assert isinstance(thing, tuple)
            popped[own].append(thing)

    threads = [threading.Thread(target=produce, args=[own], daemon=True) for own in range(producers)]
    threads += [threading.Thread(target=consume, args=[own], daemon=True) for own in range(consumers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert len(ring) == 0
    assert ring.pop() is None
    assert ring.dropped == sum(refused)
    assert sorted(itertools.chain(*popped)) == sorted(itertools.chain(*things))
    for seen in popped:
        for producer in range(producers):
            numbers = [number for by, number in seen if by == producer]
            assert numbers == sorted(numbers)
    popped.clear()
    del seen
    held = sys.getrefcount(things[0][0])
    assert held == free


@pytest.mark.usefixtures("frequent_switches")
def test_threads_that_find_it_full_are_all_counted() -> None:
    ring, threads, each = Ring(100), 6, 3000
    kept = [0] * threads
    barrier = threading.Barrier(threads)

    def push(own: int) -> None:
        barrier.wait()
        kept[own] = sum(ring.push((own, number)) for number in range(each))

    running = [threading.Thread(target=push, args=[own], daemon=True) for own in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(30)
    assert sum(kept) == len(ring) == 100
    assert ring.dropped == threads * each - 100
    found = [ring.pop() for _ in range(100)]
    assert len(set(found)) == 100
