"""Every instruction set, length and layout as a fixture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sona_pg import kernels

from .layouts import LAYOUTS, LENGTHS, Layout


@pytest.fixture(params=kernels.available())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with this instruction set."""
    before = kernels.active()
    kernels.use(request.param)
    yield request.param
    kernels.use(before)


@pytest.fixture(params=LENGTHS)
def n(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=LENGTHS[1:])
def dim(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=list(LAYOUTS.values()), ids=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> Layout:
    chosen: Layout = request.param
    return chosen


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)
