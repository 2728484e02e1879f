"""The kernels of EWC++ beside NumPy, and beside a plain copy of as many bytes.

Arrays begin on a cache line. GB/s counts every array once for each time that it must be read or written; the copy is
`numpy.copyto` between arrays of float32 that moves the same number of bytes, in the same rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Row, compare
from sona_pg import kernels
from sona_pg.config import EwcConfig
from sona_pg.learning.ewc import EwcPlusPlus

Floats = NDArray[np.float32]
PARAMETERS, BATCH, RATE = 100_000, 32, 0.1


def run(*, quick: bool) -> list[Row]:
    """Kernels, then the class that checks what it is given."""
    rounds = 60 if quick else 300
    return [_fisher(rounds), _fisher_batch(rounds), _constrain(rounds), _proximal(rounds), *_class(rounds)]


def _aligned(values: NDArray[np.float64]) -> Floats:
    raw = np.empty(len(values) + 16, dtype=np.float32)
    skip = (-raw.ctypes.data % 64) // 4
    block = raw[skip : skip + len(values)]
    block[...] = values
    return block


def _normal(seed: int) -> Floats:
    return _aligned(np.random.default_rng(seed).standard_normal(PARAMETERS))


def _sums() -> tuple[Floats, Floats]:
    """S and T of a task."""
    stiffness = 30 * np.square(_normal(1).astype(np.float64))
    return _aligned(stiffness), _aligned(stiffness * _normal(2))


def _beside(
    name: str, arrays: float, ours: Callable[[], object], rival_name: str, rival: Callable[[], object], rounds: int
) -> Row:
    """Against NumPy; with GB/s of both ours and a copy of as many bytes, each the best of its rounds."""
    moved = int(4 * arrays * PARAMETERS)
    source = _aligned(np.ones(moved // 8))
    target = np.empty_like(source)
    best = [np.inf, np.inf]

    def copy() -> None:
        np.copyto(target, source)

    for _ in range(rounds):
        for slot, call in enumerate((ours, copy)):
            began = time.perf_counter_ns()
            for _ in range(20):
                call()
            best[slot] = min(best[slot], (time.perf_counter_ns() - began) / 20)
    found = compare(name, {"p": PARAMETERS}, ours, rival_name, rival, rounds=rounds, inner=20)
    speed, of_copy = (moved / each for each in best)
    params = {**found.params, "GB/s": round(speed, 1), "copy": round(of_copy, 1), "of it": f"{speed / of_copy:.0%}"}
    return replace(found, params=params)


def _fisher(rounds: int) -> Row:
    fisher, gradient = _aligned(np.square(_normal(0))), _normal(3)
    other, work = fisher.copy(), np.empty_like(fisher)
    rows, weight = gradient[np.newaxis], np.float32(0.001)

    def numpy_update() -> None:
        np.multiply(gradient, gradient, out=work)
        np.subtract(work, other, out=work)
        np.multiply(work, weight, out=work)
        np.add(other, work, out=other)

    return _beside(
        "Fisher update", 3, lambda: kernels.fisher_average(fisher, rows, 0.001), "NumPy", numpy_update, rounds
    )


def _fisher_batch(rounds: int) -> Row:
    fisher = _aligned(np.square(_normal(0)))
    rows = np.random.default_rng(4).standard_normal((BATCH, PARAMETERS), dtype=np.float32)
    other, mean = fisher.copy(), np.empty_like(fisher)
    weight = np.float32(0.03)

    def numpy_update() -> None:
        np.einsum("np,np->p", rows, rows, out=mean)
        np.divide(mean, np.float32(BATCH), out=mean)
        np.subtract(mean, other, out=mean)
        np.multiply(mean, weight, out=mean)
        np.add(other, mean, out=other)

    return _beside(
        f"Fisher update, {BATCH} samples", BATCH + 2, lambda: kernels.fisher_average(fisher, rows, 0.03),
        "NumPy, einsum", numpy_update, rounds // 10,
    )  # fmt: skip


def _constrain(rounds: int) -> Row:
    """In place of the gradient, which nobody needs any more."""
    gradient, theta, (stiffness, pull) = _normal(3), _normal(4), _sums()
    other, work = _normal(3), np.empty_like(theta)
    rate, one = np.float32(RATE), np.float32(1)

    def numpy_constrain() -> None:
        np.multiply(stiffness, theta, out=work)
        np.subtract(work, pull, out=work)
        np.add(other, work, out=other)
        np.multiply(stiffness, rate, out=work)
        np.add(work, one, out=work)
        np.divide(other, work, out=other)

    return _beside(
        "constraint", 5, lambda: kernels.constrain(gradient, theta, stiffness, pull, RATE, gradient), "NumPy",
        numpy_constrain, rounds,
    )  # fmt: skip


def _proximal(rounds: int) -> Row:
    theta, (stiffness, pull) = _normal(4), _sums()
    steps = _aligned(RATE * np.abs(_normal(5)))
    other, work = theta.copy(), np.empty_like(theta)
    one = np.float32(1)

    def numpy_proximal() -> None:
        np.multiply(steps, pull, out=work)
        np.add(other, work, out=other)
        np.multiply(steps, stiffness, out=work)
        np.add(work, one, out=work)
        np.divide(other, work, out=other)

    return _beside(
        "proximal step, a step size for each", 5,
        lambda: kernels.proximal(theta, stiffness, pull, 0.0, steps, theta), "NumPy", numpy_proximal, rounds,
    )  # fmt: skip


def _class(rounds: int) -> list[Row]:
    """`EwcPlusPlus`, whose rivals check as little as they did above."""
    ewc = EwcPlusPlus(EwcConfig(param_count=PARAMETERS))
    gradient, theta, rate = _normal(3), _normal(4), np.float32(RATE)
    ewc.update_fisher(gradient)
    ewc.start_new_task(_normal(2))
    stiffness, pull = ewc.stiffness.astype(np.float32), ewc.pull.astype(np.float32)
    fisher, work = np.square(gradient), np.empty_like(gradient)

    def numpy_update() -> None:
        np.multiply(gradient, gradient, out=work)
        np.subtract(work, fisher, out=work)
        np.multiply(work, np.float32(0.001), out=work)
        np.add(fisher, work, out=fisher)

    def numpy_constrain() -> Floats:
        out = stiffness * theta
        np.add(out, gradient, out=out)
        np.subtract(out, pull, out=out)
        np.multiply(stiffness, rate, out=work)
        np.add(work, np.float32(1), out=work)
        np.divide(out, work, out=out)
        return out

    params: dict[str, int | float | str] = {"p": PARAMETERS}
    return [
        compare("EwcPlusPlus.update_fisher", params, lambda: ewc.update_fisher(gradient), "NumPy, unchecked",
                numpy_update, rounds=rounds, inner=20),
        compare("EwcPlusPlus.apply_constraints", params, lambda: ewc.apply_constraints(gradient, theta, RATE),
                "NumPy, unchecked", numpy_constrain, rounds=rounds, inner=20),
    ]  # fmt: skip
