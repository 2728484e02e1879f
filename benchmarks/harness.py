"""Timing: ours and a rival, call for call in turn, so that both see the same machine."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """One figure. `ratio` is rival / ours: higher is better."""

    name: str
    params: dict[str, int | float | str]
    median_us: float
    p99_us: float
    rival: str
    rival_median_us: float
    ratio: float

    def as_dict(self) -> dict[str, object]:
        """The row as JSON has it."""
        return asdict(self)


def compare(
    name: str,
    params: dict[str, int | float | str],
    ours: Callable[[], object],
    rival_name: str,
    rival: Callable[[], object],
    *,
    rounds: int = 200,
    inner: int = 100,
) -> Row:
    """Time `inner` calls of each in turn, `rounds` times; median and 99th percentile of the time of one call."""
    for call in (ours, rival):
        for _ in range(max(3, inner // 10)):
            call()
    taken: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for call, times in zip((ours, rival), taken, strict=True):
                began = time.perf_counter_ns()
                for _ in range(inner):
                    call()
                times.append((time.perf_counter_ns() - began) / inner / 1e3)
    finally:
        gc.enable()
    return row(name, params, np.array(taken[0]), rival_name, np.array(taken[1]))


def row(
    name: str,
    params: dict[str, int | float | str],
    ours_us: np.typing.NDArray[np.float64],
    rival_name: str,
    rival_us: np.typing.NDArray[np.float64],
) -> Row:
    """A row from times of single calls, microseconds."""
    median, rival_median = float(np.median(ours_us)), float(np.median(rival_us))
    return Row(
        name=name,
        params=params,
        median_us=round(median, 3),
        p99_us=round(float(np.percentile(ours_us, 99)), 3),
        rival=rival_name,
        rival_median_us=round(rival_median, 3),
        ratio=round(rival_median / median, 3),
    )


def aligned(lines: Sequence[Sequence[object]]) -> str:
    """Lines of cells as columns for a terminal."""
    cells = [[str(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in cells)
