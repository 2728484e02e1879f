"""What tests of the fusion's kernels share: settings, sizes, and layouts of what goes in."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg.config import StrategyConfig

from .layouts import AnyArray, read_only, unaligned

Doubles = NDArray[np.float64]

SIZES = (0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 100)
CONFIG = StrategyConfig(neighbours=12, misses_near=5)
BAD = (np.nan, np.inf, -np.inf)
COMPILED_AND_TWIN = pytest.mark.parametrize("kernel", ["compiled", "twin"])


def strided(x: AnyArray) -> AnyArray:
    return np.repeat(x, 2, axis=0)[::2]


def swapped(x: AnyArray) -> AnyArray:
    return x.astype(x.dtype.newbyteorder())


INPUT_LAYOUTS = {"read-only": read_only, "unaligned": unaligned, "strided": strided, "swapped": swapped}
