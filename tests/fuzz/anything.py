"""Anything at all: numbers, texts, arrays, ids and JSON; and objects of sona_pg made from hostile parts."""

from __future__ import annotations

import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import sona_pg
from sona_pg.store.search import Found
from sona_pg.types import EMPTY, Answer, LearningSignal, QueryTrajectory, SignalMetadata, TrajectoryStep

Any_ = st.SearchStrategy[Any]
DIM = 4


def _read_only() -> NDArray[np.float32]:
    array = np.ones(DIM, dtype=np.float32)
    array.setflags(write=False)
    return array


texts = st.one_of(
    st.sampled_from(
        ("", " ", "\0", "a\0b", "\ud800", "\U0010ffff", "e\u0301" * 300, "x" * 500, "x" * 501, "é" * 251, "'\"\\;--")
    ),
    st.text(max_size=20),
)
numbers = st.one_of(
    st.sampled_from(
        (
            0,
            1,
            -1,
            2,
            0.5,
            1e-46,
            3.5e38,
            -3.5e38,
            float("nan"),
            float("inf"),
            float("-inf"),
            2**31,
            2**63,
            2**64,
            -(2**63),
            10**400,
            True,
            1j,
            Fraction(1, 3),
            np.float16(1),
            np.float64("nan"),
            np.int64(-1),
            np.bool_(True),
            np.uint64(2**64 - 1),
        )
    ),
    st.integers(),
    st.floats(),
)
small_floats = st.floats(-2, 2, width=32)
vectors = st.lists(small_floats, min_size=DIM, max_size=DIM).map(lambda v: np.array(v, dtype=np.float32))
arrays = st.one_of(
    st.lists(numbers, max_size=6),
    st.lists(st.lists(small_floats, max_size=5), max_size=4),
    st.sampled_from((0, 1, DIM - 1, DIM, DIM + 1, 100_000)).map(lambda n: np.ones(n, dtype=np.float32)),
    st.sampled_from(
        ("float16", "float64", "int8", "uint64", "bool", "complex64", "object", "U3", "M8[s]", "V4", ">f4")
    ).map(lambda kind: np.zeros(DIM, dtype=kind)),
    st.sampled_from(((0,), (), (1, DIM), (DIM, 1), (3, DIM), (0, DIM), (2, 2, DIM), (1, 2), (2, DIM), (DIM, DIM))).map(
        lambda shape: np.full(shape, 0.5, dtype=np.float32)
    ),
    st.sampled_from((np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 1e300)).map(lambda x: np.full(DIM, x)),
    st.just(np.arange(2 * DIM, dtype=np.float32)[::2]),
    st.just(np.arange(DIM, dtype=np.float32)[::-1]),
    st.builds(_read_only),
    st.just(np.ma.masked_array([1.0] * DIM, mask=[True] * DIM)),
    st.just(memoryview(b"1234")),
    vectors,
    vectors.map(list),
    vectors.map(tuple),
    vectors.map(iter),
)
ids = st.one_of(st.integers(0, 300).map(lambda n: uuid.UUID(int=n)), st.uuids(), st.uuids().map(str), numbers)
_loop: dict[str, Any] = {}
_loop["self"] = _loop
json_values = st.one_of(
    st.recursive(
        st.one_of(st.none(), numbers, texts),
        lambda part: st.one_of(
            st.lists(part, max_size=3), st.dictionaries(st.one_of(texts, numbers, st.none()), part, max_size=3)
        ),
        max_leaves=6,
    ),
    st.sampled_from(
        (_loop, {"k": "x" * 1_100_000}, {1: 2}, {("a",): 1}, {"a": {1, 2}}, [["a", 1]], {"\ud800": 1}, {"a": b"x"})
    ),
)
anything = st.one_of(
    st.none(),
    numbers,
    texts,
    st.binary(max_size=5),
    arrays,
    ids,
    json_values,
    st.sampled_from((object(), int, print, Path("x"), {1, 2}, range(3), iter(()), ..., slice(2), Exception("x"))),
)

# Objects of sona_pg made from hostile parts.
typed_arrays = st.one_of(
    vectors,
    st.just(EMPTY),
    st.sampled_from((np.nan, np.inf, 3.4e38, -3.4e38, 1e-45)).map(lambda x: np.full(DIM, x, dtype=np.float32)),
    st.sampled_from((1, DIM + 1)).map(lambda n: np.ones(n, dtype=np.float32)),
)
item_ids = st.sampled_from(("1", "2", "3", "40", "unknown"))
rewards = st.one_of(st.none(), st.sampled_from((0.0, 0.5, 1.0)))
good_steps = st.builds(
    TrajectoryStep, vectors, vectors, rewards, st.just(0.0), st.one_of(st.none(), item_ids), st.integers(1, 9)
)
good_trajectories = st.builds(
    QueryTrajectory, st.uuids(), vectors, st.lists(good_steps, max_size=3).map(tuple), rewards
)
typed_steps = st.builds(
    TrajectoryStep,
    typed_arrays,
    typed_arrays,
    st.one_of(st.none(), st.floats()),
    st.floats(),
    st.one_of(st.none(), texts),
    st.one_of(st.none(), st.integers()),
)
typed_trajectories = st.builds(
    QueryTrajectory,
    st.uuids(),
    typed_arrays,
    st.lists(typed_steps, max_size=3).map(tuple),
    st.one_of(st.none(), st.floats()),
)
hostile_answers = st.builds(
    Answer, *[st.one_of(anything, good) for good in (st.just("learned"), st.just(1), st.just("adapted"), st.just(1.0))]
)
hostile_steps = st.one_of(
    good_steps,
    typed_steps,
    st.builds(TrajectoryStep, anything, anything, anything, anything, anything, anything),
    anything,
)
hostile_trajectories = st.builds(
    QueryTrajectory,
    st.one_of(st.uuids(), anything),
    st.one_of(vectors, anything),
    st.one_of(st.lists(hostile_steps, max_size=2).map(tuple), st.lists(good_steps, max_size=2).map(tuple)),
    st.one_of(rewards, anything),
    st.one_of(st.just(1), anything),
    st.one_of(st.none(), anything),
    st.one_of(st.none(), anything),
    st.one_of(st.builds(dict), anything),
    st.one_of(st.just(Answer()), hostile_answers),
)
good_signals = st.builds(LearningSignal, vectors, vectors, st.floats(-1, 1), st.just(0.0), st.just(SignalMetadata()))
hostile_signals = st.builds(
    LearningSignal,
    typed_arrays,
    typed_arrays,
    st.one_of(numbers, st.none()),
    st.floats(),
    st.builds(SignalMetadata, st.none(), st.just(1), st.booleans()),
)
good_recalls = st.builds(
    sona_pg.Recall,
    st.uuids(),
    vectors,
    st.lists(st.builds(Found, item_ids, st.just(1), st.floats(-1, 1)), max_size=2).map(tuple),
    st.just(Answer()),
)
hostile_recalls = st.builds(
    sona_pg.Recall,
    st.one_of(st.uuids(), anything),
    st.one_of(vectors, arrays),
    st.lists(st.builds(Found, texts, st.integers(), st.floats()), max_size=2).map(tuple),
    st.one_of(st.just(Answer()), hostile_answers),
)
