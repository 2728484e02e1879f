"""The arithmetic from unit costs to many spaces."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scaling_model import Assumptions, Units, extrapolate, sizes
from sona_pg.config import BackgroundConfig, StoreConfig

UNITS = Units(
    measured=10_000,
    rows={"trajectory": 1.0, "memory_edge": 2.0},
    bytes={"trajectory": 2000.0, "memory_edge": 400.0},
    index_bytes=1000.0,
    version_bytes=50_000.0,
    space_bytes=1e6,
    record_seconds=0.01,
    admit_seconds=0.001,
    background=(2.0, 0.001, 0.0001),
    deep=(3.0, 0.0001),
    graph_rows=2.0,
)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 1.5])
def test_sizes_add_up_and_fall_as_zipf_says(exponent: float) -> None:
    found = sizes(Assumptions(trajectories=1e6, spaces=1000, exponent=exponent))
    assert found.sum() == pytest.approx(1e6)
    assert found[0] / found[9] == pytest.approx(10.0**exponent)


def test_one_space_by_hand() -> None:
    """1,000 trajectories in a week: too few for an index, and for a cycle every hour."""
    totals = extrapolate(UNITS, Assumptions(trajectories=1000, spaces=1, days=7.0), BackgroundConfig(minimum=100))
    assert {name: values.item() for name, values in totals.cycles.items()} == {"B": 10.0, "C": 1.0}
    seconds = {name[0]: values.item() for name, values in totals.seconds.items()}
    assert seconds == pytest.approx({
        "A": 10.0,
        "i": 0.0,
        "B": 10 * (2.0 + 500 * 0.0001) + 1000 * 0.001,
        "C": 3.0 + 1000 * 0.0001,
    })  # fmt: skip
    assert totals.rows["trajectory"].item() == 1000.0
    assert totals.bytes["HNSW of remembered_query"].item() == 0.0
    assert totals.bytes["adapter_version"].item() == 1000 / StoreConfig().publish_every_events * 50_000.0


def test_what_is_bounded_stays_so() -> None:
    one, ten = (extrapolate(UNITS, Assumptions(trajectories=n, spaces=1, graph_rows_most=10_000.0)) for n in (1e8, 1e9))
    assert ten.rows["memory_edge"] == one.rows["memory_edge"] == 10_000.0
    assert ten.cycles == one.cycles
    assert ten.seconds["C: weekly cycles"] == one.seconds["C: weekly cycles"]
    # Cycles read at most so many trajectories; what is new is read by somebody all the same.
    grown = ten.seconds["B: hourly cycles"] - one.seconds["B: hourly cycles"]
    assert grown == pytest.approx(9e8 * 0.001)
    assert ten.seconds["A: record, learn, weigh"] == pytest.approx(10 * one.seconds["A: record, learn, weigh"])


def test_admission_grows_with_the_logarithm() -> None:
    small, large = (extrapolate(UNITS, Assumptions(trajectories=n, spaces=1)) for n in (1e4, 1e8))
    assert small.seconds["index admission"].item() == pytest.approx(10.0)
    assert large.seconds["index admission"].item() == pytest.approx(2 * 1e5)


def test_totals_are_sums_over_spaces() -> None:
    totals = extrapolate(UNITS, Assumptions(trajectories=1e9, spaces=100_000))
    assert totals.rows["trajectory"].sum() == pytest.approx(1e9)
    assert np.all(np.diff(totals.sizes) < 0)
    assert totals.bytes["once for each space"].sum() == pytest.approx(1e11)
