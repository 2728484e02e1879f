"""Small trajectories, vectors and comparisons that the unit tests share."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.types import EMPTY, QueryTrajectory, TrajectoryStep

Floats = NDArray[np.float32]


def floats(values: ArrayLike) -> Floats:
    return np.ascontiguousarray(values, dtype=np.float32)


def axis(place: int, dim: int, length: float = 1.0) -> Floats:
    """The unit vector along one axis."""
    vector = np.zeros(dim, dtype=np.float32)
    vector[place] = length
    return vector


def unit_rows(rows: ArrayLike) -> Floats:
    block = floats(rows)
    return block / np.sqrt(np.einsum("...d,...d->...", block, block))[..., None]


def bits(array: NDArray[np.generic]) -> bytes:
    """To compare more than values: the sign of zero, and NaN."""
    return np.ascontiguousarray(array).tobytes()


def shown(item: str, reward: float | None, activations: Floats = EMPTY, position: int | None = 1) -> TrajectoryStep:
    """A step that showed an item; `position=None` for an item that was judged without having been shown."""
    return TrajectoryStep(activations, EMPTY, reward, 0.0, item, position)


def acted(activations: ArrayLike, reward: float | None) -> TrajectoryStep:
    """A step that did something that is no item."""
    return TrajectoryStep(floats(activations), EMPTY, reward, 0.0)


def trajectory(
    query: ArrayLike, steps: Sequence[TrajectoryStep] = (), quality: float | None = None, id: int = 1
) -> QueryTrajectory:
    return QueryTrajectory(uuid.UUID(int=id), floats(query), tuple(steps), quality)
