"""Damaged or foreign state: refused with a LearningError, and nothing changed."""

from __future__ import annotations

import io

import numpy as np
import pytest

from sona_pg.errors import LearningError
from sona_pg.learning.learner import Learner

from .learners import DIM, make_events, make_learner


@pytest.fixture(scope="module")
def state() -> bytes:
    learner = make_learner()
    for event in make_events(10):
        learner.learn(event)
    return learner.to_bytes()


@pytest.fixture
def learner() -> Learner:
    """Has learned something else than `state`."""
    learner = make_learner()
    for event in make_events(6, first=50):
        learner.learn(event)
    return learner


def refusal(learner: Learner, data: bytes) -> str | None:
    """The message of the refusal; None if the data were taken. Fails on anything but a LearningError."""
    try:
        learner.load_bytes(data)
    except LearningError as error:
        return str(error)
    return None


def edited(state: bytes, **changes: np.ndarray) -> bytes:
    """The state with some of its arrays replaced, its checksums right."""
    with np.load(io.BytesIO(state)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    buffer = io.BytesIO()
    np.savez(buffer, **{**arrays, **{name.replace("__", "."): value for name, value in changes.items()}})
    return buffer.getvalue()


def test_state_is_taken_by_a_learner_of_the_same_settings(state: bytes, learner: Learner) -> None:
    assert refusal(learner, state) is None
    assert learner.to_bytes() == state
    assert edited(state) == state


def test_empty_state_is_refused(learner: Learner) -> None:
    before = learner.to_bytes()
    assert "damaged" in (refusal(learner, b"") or "")
    assert learner.to_bytes() == before


def test_truncated_state_is_refused(state: bytes, learner: Learner) -> None:
    before = learner.to_bytes()
    for length in [*range(1, len(state), 23), len(state) - 1]:
        assert "damaged" in (refusal(learner, state[:length]) or ""), length
        assert learner.to_bytes() == before


@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_flipped_byte_is_refused_or_is_one_that_says_nothing(state: bytes, learner: Learner, flip: int) -> None:
    before = learner.to_bytes()
    places = range(flip % 3, len(state), 3)
    refused, wrong = 0, []
    for place in places:
        damaged = bytearray(state)
        damaged[place] ^= flip
        try:
            # The archive holds bytes that nobody reads, the dates of its members for one.
            expected = state if refusal(learner, bytes(damaged)) is None else before
            refused += expected is before
            if learner.to_bytes() != expected:
                wrong.append(f"byte {place}: {'refused' if expected is before else 'taken'}, but changed")
        except Exception as error:
            wrong.append(f"byte {place}: {error!r}")
        learner.load_bytes(before)
    assert not wrong, f"{len(wrong)} of {len(places)}"
    assert refused > len(places) / 2


@pytest.mark.parametrize("data", [b"x", b"PK\x03\x04", b"\x93NUMPY", bytes(5000), b"{}" * 1000], ids=repr)
def test_something_else_is_refused(learner: Learner, data: bytes) -> None:
    before = learner.to_bytes()
    assert refusal(learner, data) is not None
    assert learner.to_bytes() == before


def test_array_in_place_of_the_archive_is_refused(learner: Learner) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    assert refusal(learner, buffer.getvalue()) is not None


def test_missing_part_is_refused(state: bytes, learner: Learner) -> None:
    before = learner.to_bytes()
    with np.load(io.BytesIO(state)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for missing in arrays:
        buffer = io.BytesIO()
        np.savez(buffer, **{name: value for name, value in arrays.items() if name != missing})
        assert refusal(learner, buffer.getvalue()) is not None, missing
        assert learner.to_bytes() == before, missing


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter__served": np.full((4, DIM), np.nan, dtype=np.float32)},
        {"adapter__trained": np.zeros((2, DIM), dtype=np.float32)},
        {"adapter__moment1": np.zeros((1, DIM), dtype=np.float32)},
        {"adapter__moment2": np.zeros((3, DIM), dtype=np.float32)},
        {"adapter__moment2": np.full((4, DIM), np.nan, dtype=np.float32)},
        {"adapter__steps": np.zeros(2, dtype=np.int64)},
        {"micro__weights": np.full((2, DIM), np.inf, dtype=np.float32)},
        {"micro__weights": np.zeros((2, DIM + 1), dtype=np.float32)},
        {"means": np.zeros((1, 2))},
        {"means": np.full((2, 2), np.nan)},
        {"events": np.zeros(3, dtype=np.int64)},
        {"header": np.array([1, 2, 3])},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_part_that_cannot_be_is_refused(state: bytes, learner: Learner, changes: dict[str, np.ndarray]) -> None:
    before = learner.to_bytes()
    assert refusal(learner, edited(state, **changes)) is not None
    assert learner.to_bytes() == before


def test_state_of_another_dimension_or_rank_is_refused_with_what_was_found(learner: Learner) -> None:
    before = learner.to_bytes()
    others = {
        f"'dim': {DIM + 1}": make_learner(dim=DIM + 1),
        "'rank': 3": make_learner(rank=3),
        "micro-LoRA's state has rank 2, expected 1": make_learner(micro_rank=2),
    }
    for found, other in others.items():
        message = refusal(learner, other.to_bytes())
        assert message is not None
        assert found in message
        assert "the space was learned with" in message
        assert learner.to_bytes() == before
