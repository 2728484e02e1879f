"""k-means beside scikit-learn's, the bank's extraction, and what its verdicts and recommendations are worth.

Vectors are those of real questions and documents under ``SONA_DATA`` (default ``../shared/data``), with noise. Figures
that are no times stand in the columns of time, as what was lost or wrong, in percent: less is better there, too.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.bank_worlds import embeddings, noisy, trajectory, usefulness
from benchmarks.harness import Row, compare, row
from sona_pg import kernels
from sona_pg.config import PatternConfig, VerdictConfig
from sona_pg.kernels import reference
from sona_pg.learning.reasoning_bank import ReasoningBank
from sona_pg.learning.verdicts import Outcome, Verdict, looked
from sona_pg.types import Json

Floats = NDArray[np.float32]
SIZES = ((1_000, 256, 50, 9), (5_000, 384, 100, 5), (100_000, 384, 50, 3))
"""Rows, dimension, clusters, rounds."""
LEAST = 0.01
"""Percent that stand for none."""

_MEMORY = """
from benchmarks.kmeans import cycle
from benchmarks.bank_worlds import embeddings
def kib(name):
    # The peak that getrusage tells includes that of the process that started this one.
    with open("/proc/self/status") as f:
        return int(next(line for line in f if line.startswith(name)).split()[1])
source = embeddings()
before = kib("VmRSS")
print(cycle(source), kib("VmHWM") - before)
"""


def run(*, quick: bool) -> list[Row]:
    """Kernels, then the bank in memory."""
    source = embeddings()
    rows = [_against_sklearn(source, *size, quick=quick) for size in SIZES]
    rows += [
        _against_numpy(source),
        _assign(source, 50),
        _assign(source, 100),
        _top_k(source),
        _extraction(source),
        *_identity(source),
    ]
    rows += _verdicts(200 if quick else 2000)
    rows.append(_useful(2 if quick else 10))
    return rows if quick else [*rows, *_whole_cycle()]


def inertia(rows: Floats, labels: NDArray[np.int64]) -> float:
    """Sum of squared distances of rows to the mean of their cluster."""
    order = np.argsort(labels, kind="stable")
    parts = np.split(rows[order].astype(np.float64), np.flatnonzero(np.diff(labels[order])) + 1)
    return float(sum(np.square(part - part.mean(axis=0)).sum() for part in parts))


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1e3


def _against_sklearn(source: Floats, n: int, dim: int, k: int, rounds: int, *, quick: bool) -> Row:
    from sklearn.cluster import KMeans

    rows = noisy(source, n, dim, seed=n)
    ours, rival, ratios = [], [], []
    for seed in range(1 if quick and n > 10_000 else rounds):
        found: list[NDArray[np.int64]] = []
        ours.append(_timed(lambda seed=seed, found=found: found.append(kernels.kmeans(rows, k, seed=seed)[1])))  # type: ignore[misc]
        model = KMeans(k, n_init=1, algorithm="lloyd", random_state=seed)
        rival.append(_timed(lambda model=model: model.fit(rows)))  # type: ignore[misc]
        ratios.append(inertia(rows, found[0]) / float(model.inertia_))
    params: dict[str, int | float | str] = {"n": n, "d": dim, "k": k, "inertia": round(float(np.mean(ratios)), 4)}
    params["worst"] = round(max(ratios), 4)
    return row("k-means", params, np.array(ours), "scikit-learn lloyd", np.array(rival))


def _against_numpy(source: Floats) -> Row:
    rows = noisy(source, 5_000, 384, seed=5_000)
    return compare(
        "k-means",
        {"n": 5_000, "d": 384, "k": 100},
        lambda: kernels.kmeans(rows, 100),
        "NumPy, float64",
        lambda: reference.kmeans(rows, 100),
        rounds=3,
        inner=1,
    )


def _assign(source: Floats, k: int) -> Row:
    """The step that Lloyd's iterations are made of, beside the same with BLAS in blocks."""
    rows = noisy(source, 20_000, 384, seed=4)
    centroids = rows[:k].copy()

    def blas() -> object:
        blocks = [rows[start : start + 512] @ centroids.T for start in range(0, len(rows), 512)]
        return [(block.argmax(axis=1), block.max(axis=1)) for block in blocks]

    return compare(
        "assign",
        {"n": 20_000, "d": 384, "k": k},
        lambda: kernels.assign(rows, centroids),
        "NumPy, BLAS",
        blas,
        rounds=15,
        inner=1,
    )


def _top_k(source: Floats) -> Row:
    rows, query = noisy(source, 10_000, 384, seed=1), noisy(source, 1, 384, seed=2)[0]

    def numpy_top_k() -> object:
        cosines = rows @ query
        best = np.argpartition(-cosines, 10)[:10]
        return best[np.argsort(-cosines[best])]

    return compare(
        "top k",
        {"n": 10_000, "d": 384, "k": 10},
        lambda: kernels.top_k(rows, query, 10, is_unit=True),
        "NumPy",
        numpy_top_k,
        rounds=50,
        inner=2,
    )


def _fill(bank: ReasoningBank, rows: Floats, random: np.random.Generator) -> None:
    """A trajectory for each row, with two parameters and a quality."""
    for query in rows:
        parameters: dict[str, Json] = {"tier": "abc"[random.integers(3)], "effort": 20 << int(random.integers(4))}
        bank.add_trajectory(trajectory(query, float(random.random()), parameters))


def _filled(rows: Floats, seed: int) -> ReasoningBank:
    bank = ReasoningBank(PatternConfig(embedding_dim=rows.shape[1], max_trajectories=len(rows)))
    _fill(bank, rows, np.random.default_rng(seed))
    return bank


def _extraction(source: Floats) -> Row:
    from sklearn.cluster import KMeans

    rows = noisy(source, 1_000, 256, seed=3)
    ours, rival = [], []
    for seed in range(9):
        bank = _filled(rows, seed)
        ours.append(_timed(lambda bank=bank: bank.extract_patterns(now=1.0)))  # type: ignore[misc]
        model = KMeans(50, n_init=1, algorithm="lloyd", random_state=seed)
        rival.append(_timed(lambda model=model: model.fit(rows)))  # type: ignore[misc]
    params: dict[str, int | float | str] = {"n": 1_000, "d": 256, "parameters": 2}
    return row(
        "extract_patterns with verdicts", params, np.array(ours), "scikit-learn, clusters alone", np.array(rival)
    )


def _identity(source: Floats) -> list[Row]:
    """Of the patterns before, how many are there, and within a cosine of .95, after nothing and after 10 % were new."""
    same, near = [], []
    for seed in range(10):
        rows = noisy(source, 2_200, 256, seed)
        bank = _filled(rows[:2000], seed)
        first = bank.extract_patterns(now=1.0)
        again = {pattern.id for pattern in bank.extract_patterns(now=2.0)}
        same.append(float(np.mean([pattern.id in again for pattern in first])))
        for query in rows[2000:]:
            bank.add_trajectory(trajectory(query, 0.5))
        after = {pattern.id: pattern for pattern in bank.extract_patterns(now=3.0)}
        near.append(float(np.mean([p.id in after and float(p.centroid @ after[p.id].centroid) >= 0.95 for p in first])))
    params: dict[str, int | float | str] = {"n": 2000, "k": 50}
    return [
        row("ids lost, unchanged, %", params, _lost(same), "allowed", np.array([LEAST])),
        row("ids lost, 10 % turnover, %", params, _lost(near), "allowed", np.array([5.0])),
    ]


def _lost(kept: Sequence[float]) -> NDArray[np.float64]:
    """What is missing to all of it, in percent and in the mean; a ratio to nothing has no number."""
    return np.array([max(100 * (1 - float(np.mean(kept))), LEAST)])


def _verdicts(runs: int) -> list[Row]:
    """How often something is decided where there is nothing, and where there is a better value."""
    config, random = VerdictConfig(), np.random.default_rng(0)
    by_e = by_peeking = 0
    for _ in range(runs):
        verdict, peeked = Verdict("x"), False
        quality, value = np.clip(random.normal(0.6, 0.2, 400), 0, 1), random.integers(0, 2, 400)
        decided = False
        for look in range(20):
            part = slice(20 * look, 20 * look + 20)
            outcomes = [Outcome(int(v), float(q)) for v, q in zip(value[part], quality[part], strict=True)]
            verdict = verdict.updated(outcomes, config)
            evidence = looked([verdict])
            decided = decided or any(e.decision for e in evidence)
            peeked = peeked or any(e.p < 0.05 for e in evidence)
        by_e += decided
        by_peeking += peeked
    found = looks = 0
    for _ in range(runs):
        outcomes = [Outcome(i % 2, float(np.clip(random.normal(0.6 + 0.1 * (i % 2), 0.2), 0, 1))) for i in range(400)]
        better = next(e for e in looked([Verdict("x").updated(outcomes, config)]) if e.value == 1)
        found += better.decision > 0
        looks += better.p_adjusted < 0.05 and better.improvement > 0
    return [
        row(
            "decided though nothing is there, 20 looks, %",
            {"runs": runs},
            _lost([1 - by_e / runs]),
            "peeking t-test",
            np.array([100 * by_peeking / runs]),
        ),
        row(
            "+10 points not found, 200 of each, %",
            {"runs": runs, "sd": 0.2},
            _lost([found / runs]),
            "allowed",
            np.array([10.0]),
        ),
        row(
            "+10 points not found at one look, %",
            {"runs": runs, "sd": 0.2},
            _lost([looks / runs]),
            "allowed",
            np.array([10.0]),
        ),
    ]


def _useful(seeds: int) -> Row:
    """What is missing to the quality of the oracle's parameters, beside a fixed default's."""
    found = [usefulness(seed, spread=0.2) for seed in range(seeds)]
    ours = np.array([100 * (1 - each.recommended / each.oracle) for each in found])
    default = np.array([100 * (1 - each.default / each.oracle) for each in found])
    params: dict[str, int | float | str] = {"events": 2000, "topics": 20, "sd": 0.2}
    return row("quality lost to the oracle, %", params, ours, "fixed default", default)


def cycle(source: Floats, n: int = 100_000) -> float:
    """Seconds that recording, extraction and pruning of n trajectories take, as they come in blocks."""
    random, seconds = np.random.default_rng(0), 0.0
    bank = ReasoningBank(PatternConfig(embedding_dim=384, max_trajectories=n))
    for block in range(n // 1000):
        rows = noisy(source, 1000, 384, seed=block)
        began = time.perf_counter()
        _fill(bank, rows, random)
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    bank.extract_patterns(now=1.0)
    bank.prune_patterns(now=2.0)
    return seconds + time.perf_counter() - began


def _whole_cycle() -> list[Row]:
    printed = subprocess.run([sys.executable, "-c", _MEMORY], check=True, capture_output=True, text=True).stdout.split()
    seconds, kib = (np.array([float(part)]) for part in printed)
    params: dict[str, int | float | str] = {"n": 100_000, "d": 384}
    return [
        row("bank cycle in memory", params, 1e6 * seconds, "30 s", np.array([30e6])),
        row("its memory, MiB", params, kib / 1024, "300 MiB", np.array([300.0])),
    ]
