"""A consolidation of a large memory graph beside a plain search for near duplicates, its memory, and what it touches.

The rival is what one writes first in NumPy: every cosine of every node with every other one, block by block, and no
plan besides. Memory is that of a process of its own, KiB in the columns of time.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Row, row
from sona_pg.config import ConsolidationConfig, HierarchyConfig
from sona_pg.learning.consolidation import consolidation_plan, node_strengths, node_values
from sona_pg.learning.hierarchy import pattern_hierarchy
from sona_pg.learning.memory_columns import MemoryEdges, MemoryNodes, Origin
from sona_pg.learning.patterns import LearnedPattern

DAY = 86_400.0
NOW = 400 * DAY
DIMS = (64, 384)
PATTERNS = 5000
ALLOWED_KIB = 300 << 10


def run(*, quick: bool) -> list[Row]:
    """The plan, its memory, the hierarchy, and how many edges reach the threshold."""
    nodes, edges, rounds = (10_000, 200_000, 2) if quick else (50_000, 1_000_000, 3)
    found = []
    for dim in DIMS:
        found += [_plan(nodes, edges, dim, rounds), _memory(nodes, edges, dim)]
    return [*found, *_hierarchy(), *_touched(nodes, edges)]


def graph(n: int, m: int, dim: int, seed: int = 0) -> tuple[MemoryNodes, MemoryEdges]:
    """A graph as traffic leaves it: few items are used much, most little; one in twenty is there twice."""
    random = np.random.default_rng(seed)
    # Topics over a spectrum that falls, as embeddings have it.
    spectrum = np.arange(1, dim + 1, dtype=np.float32) ** np.float32(-0.5)
    embeddings = random.standard_normal((n, dim), dtype=np.float32)
    embeddings += random.standard_normal((500, dim), dtype=np.float32)[random.integers(0, 500, n)]
    embeddings *= spectrum
    twice = random.choice(n, n // 20, replace=False)
    embeddings[twice] = embeddings[random.integers(0, n, n // 20)]
    embeddings[twice] += 0.05 * spectrum * random.standard_normal((n // 20, dim), dtype=np.float32)
    popularity = random.permutation(1 / np.arange(1, n + 1))
    accesses = random.poisson(20 * n * popularity / popularity.sum())
    last = NOW - random.exponential(400 / (1 + accesses), n) * DAY
    # What helps often is used often.
    quality = random.beta(2, 2, n)
    quality = np.where(accesses > 0, np.clip(quality + 0.05 * np.log1p(accesses), 0, 1), np.nan)
    share = popularity**0.5
    ends = random.choice(n, (2, m), p=share / share.sum())
    nodes = MemoryNodes(
        ids=np.arange(n),
        kinds=np.zeros(n, dtype=np.int64),
        access_count=accesses.astype(np.int64),
        created=last - random.random(n) * 100 * DAY,
        last_access=last,
        quality=quality,
        importance=random.random(n),
        embeddings=embeddings,
        has_embedding=random.random(n) < 0.98,
    )
    return nodes, MemoryEdges(
        source=ends[0],
        target=ends[1],
        weight=random.beta(1, 4, m),
        decayed_at=np.full(m, NOW - 7 * DAY),
        origin=np.where(random.random(m) < 0.05, Origin.CREATIVE, Origin.CO_ACCESS).astype(np.int64),
    )


def brute_force(nodes: MemoryNodes, threshold: float) -> NDArray[np.int64]:
    """By node the first one with a cosine above the threshold, by all cosines of all nodes, which are of one kind."""
    unit = nodes.embeddings / np.linalg.norm(nodes.embeddings, axis=1, keepdims=True)
    first = np.empty(len(unit), dtype=np.int64)
    for start in range(0, len(unit), 1024):
        block = slice(start, start + 1024)
        first[block] = (unit[block] @ unit.T > threshold).argmax(axis=1)
    return first


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _plan(n: int, m: int, dim: int, rounds: int) -> Row:
    nodes, edges = graph(n, m, dim)
    threshold = ConsolidationConfig().merge_threshold
    times = np.array([
        (
            _seconds(lambda: consolidation_plan(nodes, edges, NOW)),
            _seconds(lambda: brute_force(nodes, threshold)),
        )
        for _ in range(rounds)
    ])  # fmt: skip
    return row(
        "consolidation plan",
        {"nodes": n, "edges": m, "d": dim},
        times[:, 0] * 1e6,
        "NumPy, all cosines, duplicates alone",
        times[:, 1] * 1e6,
    )


_MEASURE = """
import sys
from benchmarks.consolidation import added_kib
print(added_kib(*map(int, sys.argv[1:])))
"""


def added_kib(n: int, m: int, dim: int) -> int:
    """What a plan, itself included, adds to the resident memory of a process with such a graph at most, KiB."""
    consolidation_plan(*graph(500, 1000, dim), NOW)
    nodes, edges = graph(n, m, dim)
    # To make it took more for a while: the peak begins anew.
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = _peak_kib()
    consolidation_plan(nodes, edges, NOW)
    return _peak_kib() - before


def _peak_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def _memory(n: int, m: int, dim: int) -> Row:
    printed = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(n), str(m), str(dim)], check=True, capture_output=True, text=True
    ).stdout
    return row(
        "added by the plan, KiB",
        {"nodes": n, "edges": m, "d": dim},
        np.array([float(printed)]),
        "allowed",
        np.array([float(ALLOWED_KIB)]),
    )


def _hierarchy() -> list[Row]:
    random = np.random.default_rng(0)
    rows = random.standard_normal((PATTERNS, DIMS[-1]), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    patterns = [LearnedPattern(id, vector, 10, 10.0, 0.5, 0.0, 0.0) for id, vector in enumerate(rows, start=1)]
    all_rows = HierarchyConfig(max_rows=PATTERNS)
    times = np.array([
        (
            _seconds(lambda: pattern_hierarchy(patterns, next_id=PATTERNS + 1, now=0.0)),
            _seconds(lambda: pattern_hierarchy(patterns, next_id=PATTERNS + 1, now=0.0, config=all_rows)),
        )
        for _ in range(3)
    ])  # fmt: skip
    return [
        row("hierarchy", {"patterns": PATTERNS, "d": DIMS[-1]}, times[:, 0] * 1e6, "tree over all", times[:, 1] * 1e6)
    ]


def _touched(n: int, m: int) -> list[Row]:
    """Shares, in parts of a million, at the threshold of the reference and at one that is lower."""
    nodes, edges = graph(n, m, 8)
    config = ConsolidationConfig()
    value = node_values(nodes, node_strengths(n, edges), NOW, config)
    found = []
    for threshold in (config.threshold, 0.5):
        valuable = value >= threshold
        both = valuable[edges.source] & valuable[edges.target]
        found.append(
            row(
                "edges strengthened, ppm",
                {"nodes": n, "edges": m, "value": threshold},
                np.array([1e6 * both.mean()]),
                "nodes of that value, ppm",
                np.array([1e6 * valuable.mean()]),
            )
        )
    return found
