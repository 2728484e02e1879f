"""Learned state as bytes, and squeezed without a bit lost."""

from __future__ import annotations

import numpy as np
import pytest

from sona_pg import LearningError
from sona_pg.learning.packing import expand, pack, squeeze, unpack


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


HEADER = {"format": 1, "dim": 8}


def _state(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "served": rng.standard_normal((4, 64)).astype(np.float32),
        "moment": np.square(rng.standard_normal((4, 64)).astype(np.float32)) * 1e-6,
        "counts": np.arange(5, dtype=np.int64),
        "steps": np.array(3, dtype=np.int64),
        "none": np.zeros((0, 8), dtype=np.float32),
        "special": np.array([-0.0, 1e-45, -1e-45, 3e38], dtype=np.float32),
    }


@pytest.mark.parametrize("known", [True, False])
def test_what_is_squeezed_comes_back_bit_for_bit(rng: np.random.Generator, known: bool) -> None:
    state = _state(rng)
    data = pack(HEADER, state)
    given = {"served": state["served"].copy()} if known else {}
    squeezed = squeeze(data, given)
    assert expand(squeezed, given) == data
    assert len(squeezed) < len(data) - known * state["served"].nbytes
    assert set(unpack(expand(squeezed, given), HEADER, "state")) == set(state)


def test_a_part_that_is_another_is_kept(rng: np.random.Generator) -> None:
    state = _state(rng)
    other = state["served"].copy()
    other[0, 0] = np.nextafter(other[0, 0], np.float32(9))
    data = pack(HEADER, state)
    assert expand(squeeze(data, {"served": other}), {}) == data


def test_what_was_never_squeezed_is_given_back(rng: np.random.Generator) -> None:
    data = pack(HEADER, _state(rng))
    assert expand(data, {}) == data


def test_what_is_damaged_or_lacks_a_part_is_refused(rng: np.random.Generator) -> None:
    state = _state(rng)
    data = pack(HEADER, state)
    squeezed = squeeze(data, {"served": state["served"]})
    with pytest.raises(LearningError, match="deploy another version"):
        expand(squeezed, {})
    for damaged in (squeezed[:-9], squeezed[:40] + b"\0\0\0" + squeezed[43:], squeezed[:16]):
        with pytest.raises(LearningError, match="deploy another version"):
            expand(damaged, {"served": state["served"]})
