"""Integration of dreams and of linear systems: known values, symmetries, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from sona_pg.errors import DimensionMismatch, InvalidInput, LearningError
from sona_pg.learning.integration import EXHAUSTIVE_NODES, causal_integration, dream_integration
from sona_pg.learning.minimum_cuts import mutual_information, pendant_cuts, search_normalised_cut

Doubles = NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)


def with_cosines(cosines: ArrayLike) -> Doubles:
    """Rows whose cosines are these."""
    return np.asarray(np.linalg.cholesky(np.asarray(cosines, dtype=np.float64)))


def equicorrelated(n: int, cosine: float = 0.5) -> Doubles:
    return with_cosines(np.full((n, n), cosine) + (1 - cosine) * np.eye(n))


def phi(embeddings: ArrayLike, ridge: float = 0.01, center: ArrayLike | None = None) -> float:
    middle = np.zeros(np.shape(embeddings)[1]) if center is None else center
    return dream_integration(embeddings, middle, ridge=ridge).value


def cuts(n: int) -> Doubles:
    """One side of every cut of n nodes, bool (2^(n-1) - 1, n)."""
    return (np.arange(1, 1 << (n - 1))[:, np.newaxis] >> np.arange(n) & 1).astype(bool)


def correlation(random: np.random.Generator, n: int, dim: int) -> Doubles:
    x = random.standard_normal((n, dim))
    x += random.choice([0.0, 2.0]) * random.standard_normal((3, dim))[random.integers(3, size=n)]
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(0.99 * z @ z.T + 0.01 * np.eye(n))


# ---- dreams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cosine", [-0.9, -0.5, 0.0, 0.1, 0.5, 0.99])
def test_a_pair_without_ridge_has_the_size_of_its_cosine(cosine: float) -> None:
    assert phi(equicorrelated(2, cosine), ridge=0.0) == pytest.approx(abs(cosine), abs=1e-6)
    assert phi(equicorrelated(2, cosine), ridge=0.01) == pytest.approx(0.99 * abs(cosine), abs=1e-6)


def test_a_pair_with_ridge() -> None:
    assert phi([[1.0, 0.0], [0.5, math.sqrt(0.75)]]) == pytest.approx(0.495, abs=1e-6)


@pytest.mark.parametrize(("n", "expected"), [(3, 0.577350), (4, 0.504623), (15, 0.439718)])
def test_equicorrelated_nodes(n: int, expected: float) -> None:
    found = dream_integration(equicorrelated(n), np.zeros(n), ridge=0.0)
    assert found.value == pytest.approx(expected, abs=1e-6)
    assert found.is_exact
    assert len(found.part) == {3: 1, 4: 2, 15: 7}[n]


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 8), st.sampled_from([2, 5, 40]))
def test_it_is_the_least_of_all_cuts(seed: int, n: int, dim: int) -> None:
    x = np.random.default_rng(seed).standard_normal((n, dim))
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    k = 0.99 * z @ z.T + 0.01 * np.eye(n)
    per_node = [mutual_information(k, side) / min(side.sum(), n - side.sum()) for side in cuts(n)]
    found = dream_integration(x, np.zeros(dim), ridge=0.01)
    assert found.value == pytest.approx(math.sqrt(1 - math.exp(-2 * min(per_node))), abs=1e-6)
    side = np.isin(np.arange(n), found.part)
    assert 1 <= side.sum() <= n // 2
    assert mutual_information(k, side) / side.sum() == pytest.approx(min(per_node), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(3, 20))
def test_it_knows_no_order_no_axes_no_lengths_and_no_origin(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    x, center = random.standard_normal((n, 12)), random.standard_normal(12)
    expected = phi(x, center=center)
    order = random.permutation(n)
    rotation = np.linalg.qr(random.standard_normal((12, 12)))[0]
    origin = 3 * random.standard_normal(12)
    if n <= EXHAUSTIVE_NODES:  # a search that is not exact may end elsewhere
        assert phi(x[order], center=center) == pytest.approx(expected, abs=1e-6)
    assert phi(x @ rotation, center=center @ rotation) == pytest.approx(expected, abs=1e-6)
    assert phi(x + origin, center=center + origin) == pytest.approx(expected, abs=1e-6)
    longer = center + (x - center) * 10 ** random.uniform(-2, 2, (n, 1))
    assert phi(longer, center=center) == pytest.approx(expected, abs=1e-6)


def test_two_groups_without_relation_are_cut_between() -> None:
    x = np.zeros((7, 7))
    x[:3, :3], x[3:, 3:] = equicorrelated(3, 0.8), equicorrelated(4, 0.8)
    found = dream_integration(x, np.zeros(7), ridge=0.01)
    assert found.value == pytest.approx(0.0, abs=1e-6)
    assert found.part == (0, 1, 2)


def test_fewer_than_two_nodes_have_none() -> None:
    for x in (np.empty((0, 3)), np.ones((1, 3)), np.ones((4, 3))):
        found = dream_integration(x, np.zeros(3), ridge=0.0)
        assert (found.value, found.part, found.is_exact) == (0.0, (), True)


def test_equal_rows_are_one_node() -> None:
    x = np.array([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.0, 0.2, 1.0], [1.0, -0.0, 0.0], [0.0, 0.2, 1.0]])
    for ridge in (0.0, 0.01):
        assert phi(x, ridge) == phi(x[:3], ridge)
    assert dream_integration(x, np.zeros(3), ridge=0.01).part == (2, 4)


def test_a_node_at_the_centre_depends_on_nothing() -> None:
    center = np.array([1e3, -7.0, 0.3])
    x = center + np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    for rows in (x, x.astype(np.float32)):
        assert dream_integration(rows, center, ridge=0.01).part == (1,)
        assert phi(rows, center=center) == 0.0


def test_opposite_and_parallel_directions_are_defined() -> None:
    for x in ([[1.0, 0.0], [-1.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]]):
        assert phi(x) == pytest.approx(0.99, abs=1e-6)
        with pytest.raises(LearningError, match="ridge"):
            phi(x, ridge=0.0)
    assert phi([[1.0], [2.0]], ridge=1.0) == 0.0


def test_more_nodes_than_dimensions_need_a_ridge() -> None:
    for n in (6, 18):
        x = np.random.default_rng(0).standard_normal((n, 3))
        assert 0 < phi(x) < 1
        with pytest.raises(LearningError, match="ridge"):
            phi(x, ridge=0.0)


def test_beyond_fifteen_nodes_it_is_an_upper_bound() -> None:
    random = np.random.default_rng(3)
    for n in (16, 30):
        x = random.standard_normal((n, 64))
        found = dream_integration(x, np.zeros(64), ridge=0.01)
        assert not found.is_exact
        z = x / np.linalg.norm(x, axis=1, keepdims=True)
        k = 0.99 * z @ z.T + 0.01 * np.eye(n)
        side = np.isin(np.arange(n), found.part)
        per_node = mutual_information(k, side) / min(side.sum(), n - side.sum())
        assert found.value == pytest.approx(math.sqrt(1 - math.exp(-2 * per_node)), abs=1e-6)
        alone = min(mutual_information(k, node) for node in np.eye(n, dtype=bool))
        assert per_node <= alone


def test_a_planted_cut_is_found_beyond_fifteen_nodes() -> None:
    x = np.zeros((24, 24))
    x[:11, :11], x[11:, 11:] = equicorrelated(11, 0.6), equicorrelated(13, 0.6)
    order = np.random.default_rng(4).permutation(24)
    found = dream_integration(x[order], np.zeros(24), ridge=0.01)
    assert found.value == pytest.approx(0.0, abs=1e-6)
    assert sorted(order[list(found.part)]) == list(range(11))


@pytest.mark.parametrize(
    ("embeddings", "center", "error"),
    [
        ([[1.0, math.nan], [0.0, 1.0]], [0.0, 0.0], InvalidInput),
        ([[1.0, 0.0], [0.0, math.inf]], [0.0, 0.0], InvalidInput),
        ([[1.0, 0.0], [0.0, 1.0]], [0.0, math.nan], InvalidInput),
        ([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0, 0.0], DimensionMismatch),
        ([[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0]], InvalidInput),
        ([1.0, 0.0], [0.0, 0.0], InvalidInput),
        ([[1.0, 0.0], [0.0]], [0.0, 0.0], InvalidInput),
        ([["a", "b"]], [0.0, 0.0], InvalidInput),
        (None, [0.0, 0.0], InvalidInput),
    ],
)
def test_dreams_refuse_what_is_no_embedding(embeddings: ArrayLike, center: ArrayLike, error: type[Exception]) -> None:
    with pytest.raises(error):
        dream_integration(embeddings, center, ridge=0.01)


@pytest.mark.parametrize("ridge", [-0.1, 1.1, math.nan])
def test_dreams_refuse_a_ridge_that_is_no_share(ridge: float) -> None:
    with pytest.raises(InvalidInput, match="ridge"):
        phi(np.eye(2), ridge=ridge)


# ---- cuts ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(2, 10), st.sampled_from([3, 20, 200]))
def test_queyranne_finds_the_least_mutual_information(seed: int, n: int, dim: int) -> None:
    k = correlation(np.random.default_rng(seed), n, dim)
    found = pendant_cuts(k)
    assert found.shape == (n - 1, n)
    assert all(0 < side.sum() < n for side in found)
    least = min(mutual_information(k, side) for side in cuts(n))
    assert min(mutual_information(k, side) for side in found) == pytest.approx(least, abs=1e-9)


def test_the_search_for_normalised_cuts_is_seldom_far_above_the_least() -> None:
    random = np.random.default_rng(5)
    above = []
    for _ in range(60):
        n = int(random.integers(2, 11))
        k = correlation(random, n, int(random.choice([5, 20, 200])))
        least = min(mutual_information(k, side) / min(side.sum(), n - side.sum()) for side in cuts(n))
        value, side = search_normalised_cut(k)
        assert value == pytest.approx(mutual_information(k, side) / min(side.sum(), n - side.sum()), abs=1e-9)
        above.append(math.sqrt(1 - math.exp(-2 * value)) - math.sqrt(1 - math.exp(-2 * least)))
    assert min(above) > -1e-6
    assert np.mean(np.array(above) < 1e-6) >= 0.9
    assert max(above) < 0.05


def test_cuts_of_one_and_no_variable() -> None:
    assert pendant_cuts(np.eye(1)).shape == (0, 1)
    assert pendant_cuts(np.empty((0, 0))).shape == (0, 0)


# ---- systems ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transition", "expected"),
    [
        ([[0.5, 0.0], [0.0, 0.5]], 0.0),
        ([[0.5, 0.0], [0.4, 0.5]], 0.0),
        ([[0.4, 0.4], [0.4, 0.4]], 0.105655),
        ([[0.3, 0.6], [0.6, 0.3]], 0.251763),
        ([[0.0, 0.9], [0.9, 0.0]], 0.830366),
    ],
)
def test_known_systems(transition: ArrayLike, expected: float) -> None:
    assert causal_integration(transition).value == pytest.approx(expected, abs=1e-6)
    assert causal_integration(transition).is_exact


def brute_force(transition: Doubles, noise: Doubles) -> float:
    """The formula, set by set; the stationary covariance by adding up."""
    n = len(transition)
    sigma, power = np.zeros((n, n)), np.eye(n)
    for _ in range(2000):
        sigma, power = sigma + power @ noise @ power.T, transition @ power
    lagged = transition @ sigma
    found = []
    for mask in range(1, (1 << n) - 1):
        s = np.ix_(*2 * [[i for i in range(n) if mask >> i & 1]])
        conditional = sigma[s] - lagged[s] @ np.linalg.solve(sigma[s], lagged[s].T)
        found.append(0.5 * (np.linalg.slogdet(conditional)[1] - np.linalg.slogdet(noise[s])[1]))
    return min(found)


def stable(random: np.random.Generator, n: int) -> Doubles:
    a = random.standard_normal((n, n))
    return np.asarray(0.9 * a / np.abs(np.linalg.eigvals(a)).max())


def spread(random: np.random.Generator, n: int) -> Doubles:
    x = random.standard_normal((n, 2 * n))
    return np.asarray(x @ x.T / n)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 6))
def test_systems_agree_with_the_formula(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    a, noise = stable(random, n), spread(random, n)
    expected = brute_force(a, noise)
    assert causal_integration(a, noise).value == pytest.approx(max(expected, 0.0), abs=1e-7)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 9))
def test_systems_know_no_order_and_no_units(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    a, noise = stable(random, n), spread(random, n)
    found = causal_integration(a, noise)
    order = random.permutation(n)
    renumbered = causal_integration(a[np.ix_(order, order)], noise[np.ix_(order, order)])
    assert renumbered.value == pytest.approx(found.value, abs=1e-9)
    units = 10.0 ** random.uniform(-2, 2, n)
    scaled = causal_integration(units[:, None] * a / units, units[:, None] * noise * units)
    assert scaled.value == pytest.approx(found.value, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 12))
def test_disconnected_and_feed_forward_systems_have_none(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    a = random.standard_normal((n, n))
    order = random.permutation(n)
    cut = int(random.integers(1, n))
    forward = a.copy()
    forward[:cut, cut:] = 0  # the first read nothing of the others
    disconnected = forward.copy()
    disconnected[cut:, :cut] = 0
    for given_ in (forward, disconnected):
        matrix = 0.9 * given_ / np.abs(np.linalg.eigvals(given_)).max()
        found = causal_integration(matrix[np.ix_(order, order)])
        assert 0 <= found.value < 1e-10


def test_feed_forward_systems_are_cut_where_nothing_comes_back() -> None:
    a = np.zeros((4, 4))
    a[:2, :2], a[2:, 2:], a[2:, :2] = [[0.0, 0.6], [0.6, 0.0]], [[0.1, 0.7], [0.7, 0.1]], 0.3
    assert causal_integration(a).part == (0, 1)


def test_fifteen_nodes_are_looked_at_and_sixteen_are_refused() -> None:
    a = 0.3 * np.eye(15) + 0.5 * np.roll(np.eye(15), 1, axis=1)
    assert causal_integration(a).value > 0.05
    with pytest.raises(InvalidInput, match="16 nodes, expected 15 at most"):
        causal_integration(np.zeros((16, 16)))


def test_noise_is_a_matrix_or_a_diagonal() -> None:
    a = [[0.3, 0.6], [0.6, 0.3]]
    assert causal_integration(a, [1.0, 1.0]) == causal_integration(a, np.eye(2)) == causal_integration(a)
    assert causal_integration(a, [1.0, 4.0]) == causal_integration(a, np.diag([1.0, 4.0]))


def test_systems_without_a_pair_have_none() -> None:
    assert causal_integration(np.empty((0, 0))).value == 0.0
    assert causal_integration([[0.5]]).value == 0.0


@pytest.mark.parametrize("a", [[[1.0, 0.0], [0.0, 0.5]], [[0.0, 2.0], [2.0, 0.0]], [[0.0, -1.0], [1.0, 0.0]]])
def test_systems_without_a_stationary_state_are_refused(a: ArrayLike) -> None:
    with pytest.raises(LearningError, match="spectral radius"):
        causal_integration(a)


@pytest.mark.parametrize(
    ("transition", "noise", "error"),
    [
        ([[0.5, 0.0]], None, InvalidInput),
        ([0.5], None, InvalidInput),
        ([[math.nan]], None, InvalidInput),
        ([[0.5, 0.0], [0.0, math.inf]], None, InvalidInput),
        ([["a"]], None, InvalidInput),
        (np.zeros((2, 2)), [1.0], InvalidInput),
        (np.zeros((2, 2)), np.eye(3), InvalidInput),
        (np.zeros((2, 2)), 1.0, InvalidInput),
        (np.zeros((2, 2)), [[1.0, 0.5], [0.0, 1.0]], InvalidInput),
        (np.zeros((2, 2)), [1.0, math.nan], InvalidInput),
        (np.zeros((2, 2)), [1.0, 0.0], LearningError),
        (np.zeros((2, 2)), [1.0, -1.0], LearningError),
    ],
)
def test_systems_refuse_what_is_none(transition: ArrayLike, noise: ArrayLike, error: type[Exception]) -> None:
    with pytest.raises(error):
        causal_integration(transition, noise)
