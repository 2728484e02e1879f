"""The gate for dreams: calibrated on random paths of the same space."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from sona_pg.config import PhiConfig
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput
from sona_pg.learning.dream_gate import PhiEvaluator
from sona_pg.learning.integration import dream_integration, dream_integrations

Doubles = NDArray[np.float64]
CONFIG = PhiConfig()


@dataclass
class Walked:
    nodes: tuple[int, ...]


@pytest.fixture
def embeddings() -> Doubles:
    return np.random.default_rng(0).standard_normal((40, 24))


def space(kind: str, random: np.random.Generator, n: int = 600) -> Doubles:
    """Embeddings as spaces have them."""
    dim = 64 if kind.endswith("64") else 384
    x = random.standard_normal((n, dim))
    if kind.startswith("clustered"):
        x += random.standard_normal((15, dim))[random.integers(15, size=n)]
    if kind.startswith("anisotropic"):
        x += 4 * random.standard_normal(dim)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def walks(x: Doubles, count: int, jump: float, random: np.random.Generator) -> list[list[int]]:
    """Walks of 15 steps over the ten nearest neighbours, with jumps anywhere."""
    z = x - x.mean(axis=0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    cosines = z @ z.T
    np.fill_diagonal(cosines, -2)
    near = np.argsort(-cosines, axis=1)[:, :10]
    found = []
    for _ in range(count):
        path = [int(random.integers(len(x)))]
        while len(path) < 15:
            is_jump = random.random() < jump
            path.append(int(random.integers(len(x)) if is_jump else random.choice(near[path[-1]])))
        found.append(path)
    return found


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_a_path_is_its_distinct_nodes(embeddings: Doubles) -> None:
    evaluator = PhiEvaluator()
    expected = dream_integration(embeddings[[7, 3, 20]], embeddings.mean(axis=0), ridge=0.01)
    found = evaluator.evaluate([7, 3, 7, 20, 3], embeddings)
    assert found.value == expected.value
    assert found.part == tuple([7, 3, 20][place] for place in expected.part)
    assert evaluator.evaluate(np.array([7, 3, 20]), embeddings, embeddings.mean(axis=0)) == found  # type: ignore[arg-type]


def test_dreams_and_paths_are_the_same(embeddings: Doubles) -> None:
    evaluator = PhiEvaluator()
    expected = evaluator.evaluate((1, 2, 3, 1), embeddings)
    assert evaluator.evaluate_dream(Walked((1, 2, 3, 1)), embeddings) == expected
    assert evaluator.evaluate_dream((1, 2, 3, 1), embeddings) == expected


def test_settings_and_centre_are_used(embeddings: Doubles) -> None:
    path = [0, 1, 2, 3]
    plain = PhiEvaluator(PhiConfig(ridge=0.0)).evaluate(path, embeddings).value
    assert plain > PhiEvaluator(PhiConfig(ridge=0.5)).evaluate(path, embeddings).value
    away = PhiEvaluator().evaluate(path, embeddings, np.full(24, 100.0)).value
    assert away > 0.9  # seen from afar all lie in one direction


def test_paths_without_a_pair_have_none(embeddings: Doubles) -> None:
    evaluator = PhiEvaluator()
    for path in ([], [5], [5, 5, 5]):
        assert evaluator.evaluate(path, embeddings).value == 0.0
    assert evaluator.evaluate([], np.empty((0, 3))).value == 0.0


@pytest.mark.parametrize("path", [[40], [-1], [1.0, 2.0], ["a"], [None], [True, False], 5, None, [math.nan]])
def test_paths_that_leave_the_space_are_refused(path: object, embeddings: Doubles) -> None:
    with pytest.raises(InvalidInput):
        PhiEvaluator().evaluate(path, embeddings)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [[1.0, 2.0], [[1.0], [1.0, 2.0]], [["a"]], None, np.ones((2, 2, 2))])
def test_what_is_no_matrix_is_refused(bad: ArrayLike) -> None:
    with pytest.raises(InvalidInput):
        PhiEvaluator().evaluate([0, 1], bad)
    with pytest.raises(InvalidInput):
        PhiEvaluator().random_path_values(bad, 1)


def test_bad_numbers_are_refused(embeddings: Doubles) -> None:
    evaluator = PhiEvaluator()
    center = embeddings.mean(axis=0)
    embeddings[3, 3] = math.nan
    with pytest.raises(InvalidInput):
        evaluator.evaluate([0, 1], embeddings)  # the mean is NaN
    with pytest.raises(InvalidInput):
        evaluator.evaluate([0, 3], embeddings, center)
    assert evaluator.evaluate([0, 1], embeddings, center).value > 0
    with pytest.raises(DimensionMismatch):
        evaluator.evaluate([0, 1], embeddings, center[:3])


# ---- calibration -----------------------------------------------------------------------------------------------------


def test_random_paths_are_reproducible_and_follow_the_settings(embeddings: Doubles) -> None:
    config = PhiConfig(random_paths=30)
    values = PhiEvaluator(config).random_path_values(embeddings, 5)
    assert values.shape == (30,)
    assert (PhiEvaluator(config).random_path_values(embeddings, 5) == values).all()
    assert (PhiEvaluator(replace(config, seed=1)).random_path_values(embeddings, 5) != values).any()
    assert PhiEvaluator(config).random_path_values(embeddings, 1).tolist() == [0.0] * 30


@pytest.mark.parametrize("dim", [3, 200])
def test_sets_of_few_rows_are_measured_by_the_products_of_all(dim: int) -> None:
    """The same to rounding as one by one, with equal rows and one that is the centre."""
    random = np.random.default_rng(5)
    rows = random.standard_normal((40, dim)).astype(np.float32)
    rows[7], rows[9] = rows[3], 0
    center = np.zeros(dim)
    sets = [random.choice(40, size, replace=False) for size in range(1, 18) for _ in range(5)]
    sets += [np.array([3, 7]), np.array([3, 7, 9]), np.array([3, 7, 12])]
    one_by_one = [dream_integration(rows[chosen], center, ridge=0.01).value for chosen in sets]
    found = dream_integrations(rows, center, sets, ridge=0.01)
    assert found == pytest.approx(one_by_one, abs=1e-6)
    assert found[-3:-1].tolist() == [0.0, 0.0]
    assert found[-1] > 0
    evaluator = PhiEvaluator(PhiConfig(random_paths=30))
    draw = np.random.default_rng((evaluator.config.seed, 10))
    drawn = [draw.choice(40, 10, replace=False) for _ in range(30)]
    assert evaluator.random_path_values(rows, 10, center) == pytest.approx(
        [evaluator.evaluate(path.tolist(), rows, center).value for path in drawn], abs=1e-6
    )


@pytest.mark.parametrize("nodes", [-1, 41, 2.0, True, None])
def test_random_paths_of_nodes_that_there_are_not_are_refused(nodes: int, embeddings: Doubles) -> None:
    with pytest.raises(InvalidInput, match="expected 0 to 40"):
        PhiEvaluator().random_path_values(embeddings, nodes)


def test_the_default_threshold_is_the_quantile_of_random_paths() -> None:
    values = np.linspace(0.0, 0.5, 101)
    for quantile in (0.5, 0.95, 0.99):
        config = PhiConfig(quantile=quantile)
        assert PhiEvaluator(config).calibrate(values) == pytest.approx(np.quantile(values, quantile), abs=2e-6)


def test_where_random_paths_reach_the_reference_the_level_is_the_threshold() -> None:
    for threshold in (0.1, 0.3, 0.5, 0.9):
        level = PhiEvaluator(PhiConfig(threshold=threshold)).calibrate([0.3])
        assert level == pytest.approx(threshold, abs=2e-6)


def test_levels_grow_with_the_threshold_and_with_chance() -> None:
    chances = np.linspace(0.01, 0.99, 50)
    previous = np.zeros(50)
    for threshold in (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 0.99):
        evaluator = PhiEvaluator(PhiConfig(threshold=threshold))
        levels = np.array([evaluator.calibrate([chance]) for chance in chances])
        assert (np.diff(levels) >= 0).all()
        assert (levels >= previous).all()
        assert (levels <= 1).all()
        previous = levels
    assert PhiEvaluator(PhiConfig(threshold=0.0)).calibrate(chances) == 0.0
    assert PhiEvaluator().calibrate([1.0]) == 1.0


def test_a_dream_like_all_random_paths_does_not_pass() -> None:
    x = np.eye(50)
    evaluator = PhiEvaluator()
    for path in ([1, 2, 3], [4], [4, 4]):
        level = evaluator.calibrate(evaluator.random_path_values(x, len(set(path))))
        assert evaluator.evaluate(path, x).value < level


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [1.1], [-0.1], [[0.5]], ["a"], 0.5, None])
def test_values_that_are_no_phi_are_refused(values: ArrayLike) -> None:
    with pytest.raises(InvalidInput):
        PhiEvaluator().calibrate(values)


@pytest.mark.parametrize("threshold", [1.0, -0.1, 1.5, math.nan])
def test_thresholds_that_are_no_phi_are_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        PhiConfig(threshold=threshold)


@pytest.mark.parametrize("kind", ["isotropic 64", "isotropic 384", "clustered 64", "clustered 384", "anisotropic 384"])
def test_the_gate_is_neither_open_nor_shut_in_any_space(kind: str) -> None:
    random = np.random.default_rng(6)
    x = space(kind, random)
    evaluator = PhiEvaluator()
    center = x.mean(axis=0)
    levels: dict[int, float] = {}

    def passing(paths: list[list[int]]) -> float:
        passed = 0
        for path in paths:
            nodes = len(set(path))
            if nodes not in levels:
                levels[nodes] = evaluator.calibrate(evaluator.random_path_values(x, nodes, center))
            passed += evaluator.evaluate(path, x, center).value >= levels[nodes]
        return passed / len(paths)

    by_chance = passing([random.choice(600, 12, replace=False).tolist() for _ in range(200)])
    creative, regular = (passing(walks(x, 60, jump, random)) for jump in (0.3, 0.0))
    assert by_chance <= 0.12
    assert 0.12 <= creative <= 0.95
    assert creative >= 1.5 * by_chance
    assert regular >= 0.8
