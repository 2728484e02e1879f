"""Damaged or foreign state: refused with a LearningError, and nothing changed.

A state is its SHA-256 and an npz archive; what is damaged before the checksum was made is refused as well.
"""

from __future__ import annotations

import hashlib
import io
import json

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


def with_checksum(archive: bytes) -> bytes:
    return hashlib.sha256(archive).digest() + archive


def parts_of(state: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(state[32:])) as archive:
        return {name: archive[name] for name in archive.files}


def packed(parts: dict[str, np.ndarray]) -> bytes:
    """A state of these parts, its checksums right."""
    buffer = io.BytesIO()
    np.savez(buffer, **parts)  # type: ignore[arg-type]
    return with_checksum(buffer.getvalue())


def test_state_is_taken_by_a_learner_of_the_same_settings(state: bytes, learner: Learner) -> None:
    assert refusal(learner, state) is None
    assert learner.to_bytes() == state
    assert packed(parts_of(state)) == state


def test_state_is_made_of_these_parts(state: bytes) -> None:
    parts = {name: (str(part.dtype), part.shape) for name, part in parts_of(state).items()}
    header = parts.pop("header")
    assert parts == {
        "events": ("int64", ()),
        "reward": ("float64", (2,)),
        "adapter.trained": ("float32", (4, DIM)),
        "adapter.served": ("float32", (4, DIM)),
        "adapter.moment1": ("float32", (4, DIM)),
        "adapter.moment2": ("float32", (4, DIM)),
        "adapter.steps": ("int64", ()),
        "micro.weights": ("float32", (2, DIM)),
        "micro.query_sum": ("float32", (DIM,)),
        "micro.signals": ("int64", ()),
        "micro.baseline": ("float64", (2,)),
    }
    assert header[0] == "uint8"
    assert json.loads(parts_of(state)["header"].tobytes()) == {"format": 1, "dim": DIM, "rank": 2}
    counts = {name: int(parts_of(state)[name]) for name in ("events", "adapter.steps", "micro.signals")}
    assert counts == {"events": 10, "adapter.steps": 5, "micro.signals": 5}


def test_empty_state_is_refused(learner: Learner) -> None:
    before = learner.to_bytes()
    assert "damaged" in (refusal(learner, b"") or "")
    assert learner.to_bytes() == before


def test_truncated_state_is_refused(state: bytes, learner: Learner) -> None:
    before = learner.to_bytes()
    for length in [*range(1, len(state), 23), len(state) - 1]:
        assert "damaged" in (refusal(learner, state[:length]) or ""), length
        assert learner.to_bytes() == before


def test_archive_without_its_checksum_is_refused(state: bytes, learner: Learner) -> None:
    before = learner.to_bytes()
    assert "its checksum differs" in (refusal(learner, state[32:]) or "")
    assert learner.to_bytes() == before


@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_flipped_byte_is_refused_wherever_it_is(state: bytes, learner: Learner, flip: int) -> None:
    before = learner.to_bytes()
    for place in range(flip % 3, len(state), 3):
        damaged = bytearray(state)
        damaged[place] ^= flip
        assert "damaged (its checksum differs)" in (refusal(learner, bytes(damaged)) or ""), place
    assert learner.to_bytes() == before


@pytest.mark.parametrize("data", [b"x", b"PK\x03\x04", b"\x93NUMPY", bytes(5000), b"{}" * 1000], ids=repr)
@pytest.mark.parametrize("checksum", [False, True], ids=["as it is", "with a checksum"])
def test_something_else_is_refused(learner: Learner, data: bytes, checksum: bool) -> None:
    before = learner.to_bytes()
    message = refusal(learner, with_checksum(data) if checksum else data)
    assert message is not None
    assert ("lacks a part" if checksum else "its checksum differs") in message
    assert learner.to_bytes() == before


def test_array_in_place_of_the_archive_is_refused(learner: Learner) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    assert "lacks a part" in (refusal(learner, with_checksum(buffer.getvalue())) or "")


def test_missing_part_is_refused_with_its_name(state: bytes, learner: Learner) -> None:
    before = learner.to_bytes()
    parts = parts_of(state)
    for missing in parts:
        message = refusal(learner, packed({name: part for name, part in parts.items() if name != missing}))
        assert message is not None, missing
        assert missing.split(".")[-1] in message
        assert learner.to_bytes() == before, missing


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("adapter.served", np.full((4, DIM), np.nan, dtype=np.float32), "served of the adapter's state is not finite"),
        (
            "adapter.trained",
            np.zeros((2, DIM), dtype=np.float32),
            "trained of the adapter's state is float32 (2, 8), expected float32 (4, 8)",
        ),
        (
            "adapter.moment1",
            np.zeros((1, DIM), dtype=np.float32),
            "moment1 of the adapter's state is float32 (1, 8), expected float32 (4, 8)",
        ),
        (
            "adapter.moment2",
            np.zeros((3, DIM), dtype=np.float32),
            "moment2 of the adapter's state is float32 (3, 8), expected float32 (4, 8)",
        ),
        (
            "adapter.moment2",
            np.full((4, DIM), np.nan, dtype=np.float32),
            "moment2 of the adapter's state is not finite",
        ),
        ("adapter.steps", np.zeros(2, dtype=np.int64), "steps of the adapter's state is int64 (2,), expected int64 ()"),
        ("adapter.steps", np.array(-1), "steps of the adapter's state is not finite, or negative"),
        (
            "micro.weights",
            np.full((2, DIM), np.inf, dtype=np.float32),
            "weights of the micro-LoRA's state is not finite",
        ),
        (
            "micro.weights",
            np.zeros((2, DIM + 1), dtype=np.float32),
            "weights of the micro-LoRA's state is float32 (2, 9), expected float32 (2, 8)",
        ),
        (
            "micro.query_sum",
            np.full(DIM, np.nan, dtype=np.float32),
            "query_sum of the micro-LoRA's state is not finite",
        ),
        (
            "micro.query_sum",
            np.zeros((1, DIM), dtype=np.float32),
            "query_sum of the micro-LoRA's state is float32 (1, 8), expected float32 (8,)",
        ),
        (
            "micro.signals",
            np.zeros(1, dtype=np.int64),
            "signals of the micro-LoRA's state is int64 (1,), expected int64 ()",
        ),
        (
            "micro.baseline",
            np.zeros((1, 2)),
            "baseline of the micro-LoRA's state is float64 (1, 2), expected float64 (2,)",
        ),
        ("micro.baseline", np.full(2, np.nan), "baseline of the micro-LoRA's state is not finite"),
        ("reward", np.zeros(3), "reward of the learner's state is float64 (3,), expected float64 (2,)"),
        ("reward", np.array(1.0), "reward of the learner's state is float64 (), expected float64 (2,)"),
        ("reward", np.array([np.nan, 1.0]), "reward of the learner's state is not finite"),
        ("reward", np.array([0.5, np.inf]), "reward of the learner's state is not finite"),
        ("events", np.zeros(3, dtype=np.int64), "events of the learner's state is int64 (3,), expected int64 ()"),
        ("events", np.array(-1), "events of the learner's state is not finite, or negative"),
        ("header", np.array([1, 2, 3]), "the learner's state lacks a part"),
        ("header", np.frombuffer(b"\xff{}", dtype=np.uint8), "the learner's state lacks a part"),
        ("header", np.frombuffer(b"[]", dtype=np.uint8), "is of [], expected {'format': 1, 'dim': 8, 'rank': 2}"),
        (
            "header",
            np.frombuffer(b'{"format": 0, "dim": 8, "rank": 2}', dtype=np.uint8),
            "is of {'format': 0, 'dim': 8, 'rank': 2}, expected {'format': 1, 'dim': 8, 'rank': 2}",
        ),
    ],
)
def test_part_that_cannot_be_is_refused(
    state: bytes, learner: Learner, part: str, value: np.ndarray, message: str
) -> None:
    before = learner.to_bytes()
    assert message in (refusal(learner, packed({**parts_of(state), part: value})) or "")
    assert learner.to_bytes() == before


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("adapter.served", np.full((4, DIM), "a"), "served of the adapter's state is <U1 (4, 8), expected float32"),
        (
            "adapter.served",
            np.full((4, DIM), 1e300),
            "served of the adapter's state is float64 (4, 8), expected float32",
        ),
        (
            "adapter.served",
            np.zeros((4, DIM), complex),
            "served of the adapter's state is complex128 (4, 8), expected ",
        ),
        ("adapter.steps", np.array(1.5), "steps of the adapter's state is float64 (), expected int64 ()"),
        ("adapter.steps", np.array("a"), "steps of the adapter's state is <U1 (), expected int64 ()"),
        ("micro.weights", np.full((2, DIM), "a"), "weights of the micro-LoRA's state is <U1 (2, 8), expected float32"),
        (
            "micro.query_sum",
            np.full(DIM, 1e300),
            "query_sum of the micro-LoRA's state is float64 (8,), expected float32",
        ),
        ("micro.signals", np.array(-5), "signals of the micro-LoRA's state is not finite, or negative"),
        ("reward", np.array(["a", "b"]), "reward of the learner's state is <U1 (2,), expected float64 (2,)"),
        ("events", np.array(np.inf), "events of the learner's state is float64 (), expected int64 ()"),
    ],
)
def test_part_of_another_type_or_out_of_range_is_refused(
    state: bytes, learner: Learner, part: str, value: np.ndarray, message: str
) -> None:
    before = learner.to_bytes()
    assert message in (refusal(learner, packed({**parts_of(state), part: value})) or "")
    assert learner.to_bytes() == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            make_learner(dim=DIM + 1),
            "is of {'format': 1, 'dim': 9, 'rank': 2}, expected {'format': 1, 'dim': 8, 'rank': 2}: "
            "use the settings that the space was learned with",
        ),
        (
            make_learner(rank=3),
            "is of {'format': 1, 'dim': 8, 'rank': 3}, expected {'format': 1, 'dim': 8, 'rank': 2}: "
            "use the settings that the space was learned with",
        ),
    ],
    ids=["dimension", "rank"],
)
def test_state_of_another_dimension_or_rank_is_refused_with_what_was_found(
    learner: Learner, other: Learner, message: str
) -> None:
    before = learner.to_bytes()
    assert message in (refusal(learner, other.to_bytes()) or "")
    assert learner.to_bytes() == before


def test_state_of_another_micro_rank_is_refused_with_what_was_found(learner: Learner) -> None:
    before = learner.to_bytes()
    message = refusal(learner, make_learner(micro_rank=2).to_bytes()) or ""
    assert "weights of the micro-LoRA's state is float32 (4, 8), expected float32 (2, 8): " in message
    assert "learned with other settings" in message
    assert learner.to_bytes() == before
