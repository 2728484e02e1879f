"""Integration of 15 nodes, every cut looked at, beside NumPy's batched determinants; and the gate in several spaces.

The rows of the gate have in their params which share passes: dreams with jumps (`creative`) and without (`regular`),
and uniformly drawn nodes (`random`); `absolute` is the share of creative dreams with φ of 0.3 and more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Row, compare
from sona_pg import kernels
from sona_pg.kernels import reference
from sona_pg.learning.dream_gate import REFERENCE, PhiEvaluator
from sona_pg.learning.integration import causal_integration, dream_integration, subset_sizes

Doubles = NDArray[np.float64]
NODES, DIM, RIDGE = 15, 384, 0.01
SPACES = ("isotropic 64", "isotropic 384", "clustered 64", "clustered 384", "anisotropic 64", "anisotropic 384")


def run(*, quick: bool) -> list[Row]:
    """The kernel, the two measures, then the gate."""
    rounds = 5 if quick else 30
    kernel = [_kernel(block, rounds) for block in (1, 2)]
    return [*kernel, _dream(rounds), _system(rounds), *(_gate(kind, quick) for kind in SPACES)]


def _kernel(block: int, rounds: int) -> Row:
    x = np.random.default_rng(0).standard_normal((NODES * block, 2 * NODES * block))
    matrix = x @ x.T
    return compare(
        "all log-determinants", {"blocks": NODES, "block": block},
        lambda: kernels.subset_log_determinants(matrix, block),
        "NumPy, a batch for each size", lambda: reference.subset_log_determinants(matrix, block),
        rounds=rounds, inner=2,
    )  # fmt: skip


def _numpy_dream(rows: Doubles, center: Doubles) -> float:
    z = rows - center
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    found = reference.subset_log_determinants((1 - RIDGE) * z @ z.T + RIDGE * np.eye(len(z)))
    sizes = subset_sizes(len(z))
    information = (found + found[::-1] - found[-1])[1:-1] / np.minimum(sizes, len(z) - sizes)[1:-1]
    return float(np.sqrt(-np.expm1(-information.min())))


def _dream(rounds: int) -> Row:
    rows, center = np.random.default_rng(1).standard_normal((NODES, DIM)), np.zeros(DIM)
    return compare(
        "φ of a dream", {"nodes": NODES, "dim": DIM}, lambda: dream_integration(rows, center, ridge=RIDGE),
        "NumPy, a batch for each size", lambda: _numpy_dream(rows, center), rounds=rounds, inner=2,
    )  # fmt: skip


def _numpy_system(a: Doubles) -> float:
    from scipy.linalg import solve_discrete_lyapunov

    n = len(a)
    sigma = solve_discrete_lyapunov(a, np.eye(n))
    order = np.arange(2 * n).reshape(2, n).T.ravel()
    joint = np.block([[sigma, sigma @ a.T], [a @ sigma, sigma]])[np.ix_(order, order)]
    given_own = reference.subset_log_determinants(joint, 2) - reference.subset_log_determinants(sigma)
    # The noise is the identity: the logarithms of its determinants are 0.
    return float(0.5 * given_own[1:-1].min())


def _system(rounds: int) -> Row:
    a = np.random.default_rng(2).standard_normal((NODES, NODES))
    a *= 0.9 / np.abs(np.linalg.eigvals(a)).max()
    return compare(
        "Φ_TE of a system", {"nodes": NODES}, lambda: causal_integration(a),
        "NumPy, a batch for each size", lambda: _numpy_system(a), rounds=rounds, inner=1,
    )  # fmt: skip


def _space(kind: str, random: np.random.Generator, count: int = 2000) -> Doubles:
    """Unit vectors: normal ones, around 40 centres as far apart as they are wide, or around one far from the origin."""
    shape, dim = kind.split()
    x = random.standard_normal((count, int(dim)))
    if shape == "clustered":
        x += random.standard_normal((40, int(dim)))[random.integers(40, size=count)]
    if shape == "anisotropic":
        x += 4 * random.standard_normal(int(dim))
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def _walks(x: Doubles, count: int, jump: float, random: np.random.Generator) -> list[list[int]]:
    """Dreams of 15 steps over the ten nearest neighbours: restart .1, and jumps."""
    z = x - x.mean(axis=0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    cosines = z @ z.T
    np.fill_diagonal(cosines, -2)
    near = np.argpartition(-cosines, 10, axis=1)[:, :10]
    found = []
    for _ in range(count):
        path = [int(random.integers(len(x)))]
        while len(path) < NODES:
            u = random.random()
            if u < 0.1:
                path.append(path[0])
            elif u < 0.1 + jump:
                path.append(int(random.integers(len(x))))
            else:
                path.append(int(random.choice(near[path[-1]])))
        found.append(path)
    return found


def _gate(kind: str, quick: bool) -> Row:
    random = np.random.default_rng(3)
    x = _space(kind, random)
    center, evaluator = x.mean(axis=0), PhiEvaluator()
    count = 50 if quick else 400
    sets = {
        "creative": _walks(x, count, 0.3, random),
        "regular": _walks(x, count, 0.0, random),
        "random": [random.choice(len(x), 13, replace=False).tolist() for _ in range(count)],
    }
    levels: dict[int, float] = {}
    shares: dict[str, int | float | str] = {}
    for name, paths in sets.items():
        sizes = [len(set(path)) for path in paths]
        for size in set(sizes) - set(levels):
            levels[size] = evaluator.calibrate(evaluator.random_path_values(x, size, center))
        values = np.array([evaluator.evaluate(path, x, center).value for path in paths])
        shares[name] = round(float(np.mean(values >= [levels[size] for size in sizes])), 2)
        if name == "creative":
            absolute = round(float(np.mean(values >= REFERENCE)), 2)
    path = sets["random"][0]
    rows = x[path]
    return compare(
        f"gate, {kind}", {**shares, "absolute": absolute}, lambda: evaluator.evaluate(path, x, center),
        "NumPy, a batch for each size", lambda: _numpy_dream(rows, center), rounds=3, inner=2,
    )  # fmt: skip
