"""The lengths and memory layouts that the kernels are tested with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Array = NDArray[np.generic]
AnyArray = TypeVar("AnyArray", bound=Array)
Layout = Callable[[Floats], ArrayLike]

EPS = float(np.finfo(np.float32).eps)
LENGTHS = (0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 384)


def unaligned(x: AnyArray) -> AnyArray:
    """A copy that begins one byte past where its numbers should."""
    copy = np.empty(x.nbytes + 64, dtype=np.uint8)
    begin = -copy.ctypes.data % 64 + 1
    view = copy[begin : begin + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view  # type: ignore[return-value]


def read_only(x: AnyArray) -> AnyArray:
    copy = x.copy()
    copy.setflags(write=False)
    return copy


def strided(x: Floats) -> Floats:
    copy = np.full(3 * len(x), np.nan, dtype=np.float32)
    copy[1::3] = x
    return copy[1::3]


# What float16 holds exactly is the same number in each of them.
LAYOUTS: dict[str, Layout] = {
    "contiguous": lambda x: x,
    "unaligned": unaligned,
    "read-only": read_only,
    "strided": strided,
    "reversed": lambda x: x[::-1].copy()[::-1],
    "big-endian": lambda x: x.astype(">f4"),
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
    "list": lambda x: x.tolist(),
    "tuple": lambda x: tuple(x.tolist()),
}


def bits(x: Array) -> bytes:
    """To compare more than values: the sign of zero, and NaN."""
    return np.ascontiguousarray(x).tobytes()


def wide_range(rng: np.random.Generator, *shape: int) -> Floats:
    """Numbers of both signs from 1e-3 to 1e3: sums of them cancel."""
    return np.asarray(rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 3, shape), dtype=np.float32)
