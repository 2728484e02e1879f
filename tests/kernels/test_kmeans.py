"""Clusters, assignment and exact search on every instruction set, against NumPy in double precision."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sona_pg import kernels
from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.kernels import reference

from .layouts import EPS, Floats, bits, read_only, unaligned, wide_range

DIMS = (1, 7, 8, 9, 15, 16, 17, 31, 33, 384)


def directions(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def clustered(rng: np.random.Generator, n: int, dim: int, k: int, noise: float = 0.5) -> Floats:
    """Unit rows around k directions."""
    centres = directions(rng.standard_normal((k, dim), dtype=np.float32))
    rows = centres[rng.integers(0, k, n)] + noise / np.sqrt(dim) * rng.standard_normal((n, dim))
    return directions(rows.astype(np.float32))


# ---- sums of clusters ------------------------------------------------------------------------------------------------


def test_sums_of_clusters_are_those_of_numpy(rng: np.random.Generator) -> None:
    for n, dim, k in ((0, 3, 2), (1, 1, 1), (200, 37, 5), (500, 64, 600)):
        rows = rng.standard_normal((n, dim), dtype=np.float32)
        labels = rng.integers(0, k, n)
        sums, counts = kernels.cluster_sums(rows, labels, k)
        expected, sizes = reference.cluster_sums(rows, labels, k)
        assert counts.tolist() == sizes.tolist()
        assert sums == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "k"),
    [([0, 3], 3), ([0, -1], 3), ([0], 3), ([0.0, 1.0], 3), ([[0], [1]], 3), ([0, 0], 0), (None, 3), ("ab", 3)],
)
def test_sums_of_what_are_no_clusters_are_refused(labels: object, k: int, rng: np.random.Generator) -> None:
    with pytest.raises(InvalidInput):
        kernels.cluster_sums(rng.standard_normal((2, 4), dtype=np.float32), np.array(labels), k)


# ---- assignment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 15, 16, 17, 50, 64, 81, 100])
def test_assign_gives_the_nearest_centroid(isa: str, k: int, rng: np.random.Generator) -> None:
    for dim in DIMS:
        for n in (0, 1, 2, 3, 5, 6, 7, 23, 24, 25, 50):
            rows = directions(rng.standard_normal((n, dim), dtype=np.float32))
            centroids = directions(rng.standard_normal((k, dim), dtype=np.float32))
            labels, cosines = kernels.assign(rows, centroids)
            exact = rows.astype(np.float64) @ centroids.T.astype(np.float64)
            assert labels.dtype == np.int64
            assert cosines.dtype == np.float32
            bound = 2 * (dim + 16) * EPS
            if n:
                assert (exact[np.arange(n), labels] >= exact.max(axis=1) - bound).all()
                assert np.abs(cosines - exact[np.arange(n), labels]).max() <= bound


def test_assign_has_the_same_bits_on_every_instruction_set(rng: np.random.Generator) -> None:
    before = kernels.active()
    rows, found = clustered(rng, 500, 33, 5), set()
    # Near ties: centroids that differ in the last bits.
    centroids = np.repeat(directions(rng.standard_normal((9, 33), dtype=np.float32)), 4, axis=0)
    centroids += EPS * rng.standard_normal(centroids.shape).astype(np.float32)
    for name in kernels.available():
        kernels.use(name)
        labels, cosines = kernels.assign(rows, centroids)
        found.add(bits(labels) + bits(cosines))
    kernels.use(before)
    assert len(found) == 1


def test_first_of_equal_centroids(isa: str) -> None:
    rows = directions(np.ones((40, 20), dtype=np.float32))
    assert set(kernels.assign(rows, np.repeat(rows[:1], 33, axis=0))[0]) == {0}


def test_any_length_and_layout(isa: str, rng: np.random.Generator) -> None:
    rows = wide_range(rng, 30, 17)
    centroids = wide_range(rng, 5, 17)
    expected = reference.assign(rows, centroids)[0]
    for layout in (unaligned, read_only, np.asfortranarray, lambda x: x[::-1].copy()[::-1]):
        kept = rows.copy()
        assert np.array_equal(kernels.assign(layout(rows), layout(centroids))[0], expected)  # type: ignore[operator]
        assert bits(rows) == bits(kept)
    huge = rows * np.float32(1e30)
    assert np.array_equal(kernels.assign(huge, centroids)[0], expected)
    tiny = rows * np.float32(1e-30)
    assert np.array_equal(kernels.assign(tiny, centroids)[0], expected)


# ---- top k -----------------------------------------------------------------------------------------------------------


def test_top_k_is_exact(isa: str, rng: np.random.Generator) -> None:
    for dim in DIMS:
        rows = wide_range(rng, 40, dim)
        query = wide_range(rng, dim)
        for k in (0, 1, 7, 40, 41):
            places, cosines = kernels.top_k(rows, query, k)
            expected, exact = reference.top_k(rows, query, k)
            assert len(places) == min(k, 40)
            assert np.abs(cosines - exact).max(initial=0) <= 2 * (dim + 16) * EPS
            if dim > 1:
                assert np.array_equal(places, expected)


def test_top_k_keeps_the_order_of_equal_rows(isa: str) -> None:
    places, cosines = kernels.top_k(np.ones((9, 4), dtype=np.float32), np.ones(4, dtype=np.float32), 5)
    assert places.tolist() == [0, 1, 2, 3, 4]
    assert np.allclose(cosines, 1)
    assert kernels.top_k(np.ones((0, 4), dtype=np.float32), np.ones(4, dtype=np.float32), 5)[0].size == 0


# ---- k-means ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "dim", "k"), [(40, 3, 4), (200, 17, 10), (300, 64, 33), (500, 128, 50)])
@pytest.mark.parametrize("seed", range(3))
def test_kmeans_is_that_of_numpy(isa: str, n: int, dim: int, k: int, seed: int, rng: np.random.Generator) -> None:
    rows = clustered(rng, n, dim, k)
    centroids, labels, objective, steps = kernels.kmeans(rows, k, seed=seed)
    expected = reference.kmeans(rows, k, seed=seed)
    assert np.array_equal(labels, expected[1])
    assert np.abs(centroids - expected[0]).max() <= 1e-5
    assert objective == pytest.approx(expected[2], rel=1e-4)
    assert steps == expected[3]


def test_batches_are_those_of_numpy(isa: str, rng: np.random.Generator) -> None:
    rows = clustered(rng, 700, 20, 8)
    _, labels, objective, _ = kernels.kmeans(rows, 8, seed=3, batch_rows=64)
    expected = reference.kmeans(rows, 8, seed=3, batch_rows=64)
    assert np.array_equal(labels, expected[1])
    assert objective == pytest.approx(expected[2], rel=1e-4)


def test_batches_cost_little(rng: np.random.Generator) -> None:
    rows = clustered(rng, 3000, 48, 60, noise=2)
    batches = np.mean([kernels.kmeans(rows, 20, seed=seed, batch_rows=500)[2] for seed in range(10)])
    assert batches <= 1.02 * np.mean([kernels.kmeans(rows, 20, seed=seed)[2] for seed in range(10)])


def test_kmeans_has_the_same_bits_on_every_instruction_set(rng: np.random.Generator) -> None:
    before = kernels.active()
    rows = clustered(rng, 3000, 96, 40, noise=1.5)
    found = set()
    for name in kernels.available():
        kernels.use(name)
        centroids, labels, objective, steps = kernels.kmeans(rows, 50, seed=7, tolerance=0)
        found.add((bits(centroids), bits(labels), objective, steps))
    kernels.use(before)
    assert len(found) == 1


def test_objective_never_rises_and_labels_are_the_nearest(isa: str, rng: np.random.Generator) -> None:
    rows = clustered(rng, 400, 24, 30, noise=2)
    objectives = []
    for steps in range(12):
        centroids, labels, objective, taken = kernels.kmeans(rows, 20, seed=1, max_iterations=steps, tolerance=0)
        assert taken <= steps
        assert np.array_equal(labels, kernels.assign(rows, centroids)[0])
        assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
        objectives.append(objective)
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(objectives))


def test_greedy_seeds_beat_random_ones(rng: np.random.Generator) -> None:
    rows = clustered(rng, 1000, 32, 25, noise=0.3)
    greedy = np.mean([kernels.kmeans(rows, 25, seed=seed)[2] for seed in range(5)])
    random = np.mean([kernels.kmeans(rows, 25, start=rows[rng.permutation(1000)[:25]])[2] for _ in range(5)])
    assert greedy < 0.8 * random


def test_one_cluster_is_the_direction_of_the_mean(isa: str, rng: np.random.Generator) -> None:
    rows = directions(rng.standard_normal((50, 9), dtype=np.float32) + 1)
    centroids, labels, _, _ = kernels.kmeans(rows, 1)
    mean = rows.astype(np.float64).mean(axis=0)
    assert np.abs(centroids[0] - mean / np.linalg.norm(mean)).max() < 1e-6
    assert set(labels) == {0}


def test_fewer_rows_than_clusters(isa: str, rng: np.random.Generator) -> None:
    rows = directions(rng.standard_normal((3, 9), dtype=np.float32))
    centroids, labels, objective, _ = kernels.kmeans(rows, 10)
    assert sorted(labels) == [0, 1, 2]
    assert np.abs(centroids[labels] - rows).max() < 1e-6
    assert objective < 1e-5


def test_nothing(isa: str) -> None:
    centroids, labels, objective, steps = kernels.kmeans(np.empty((0, 5), dtype=np.float32), 3)
    assert (centroids.shape, labels.shape, objective, steps) == ((0, 5), (0,), 0.0, 0)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_same_rows_are_one_cluster(isa: str, k: int, rng: np.random.Generator) -> None:
    rows = np.repeat(directions(rng.standard_normal((1, 384), dtype=np.float32)), 20, axis=0)
    centroids, labels, _, _ = kernels.kmeans(rows, k)
    assert len(centroids) == 1
    assert set(labels) == {0}
    pairs = np.repeat(directions(rng.standard_normal((2, 384), dtype=np.float32)), 10, axis=0)
    centroids, labels, _, _ = kernels.kmeans(pairs, k)
    assert len(centroids) == min(k, 2)


def test_rows_that_cancel_leave_no_zero_centroid(isa: str) -> None:
    rows = np.array([[1, 0], [-1, 0], [1, 0], [-1, 0]], dtype=np.float32)
    centroids, _, _, _ = kernels.kmeans(rows, 1)
    assert np.linalg.norm(centroids[0]) == pytest.approx(1)


def test_warm_start_on_the_same_rows_changes_no_label(isa: str, rng: np.random.Generator) -> None:
    rows = clustered(rng, 600, 30, 12)
    centroids, labels, objective, _ = kernels.kmeans(rows, 12, tolerance=0)
    again, after, same, steps = kernels.kmeans(rows, 12, start=centroids, tolerance=0)
    assert np.array_equal(after, labels)
    assert steps <= 1
    assert same <= objective + 1e-9
    assert np.abs(again - centroids).max() < 1e-6


def test_start_with_fewer_is_completed_and_with_empty_ones_is_filled(isa: str, rng: np.random.Generator) -> None:
    rows = clustered(rng, 300, 16, 6)
    whole = kernels.kmeans(rows, 6)[2]
    _, _, completed, _ = kernels.kmeans(rows, 6, start=rows[:2])
    assert completed <= 1.5 * whole
    far = np.repeat(-rows.mean(axis=0, keepdims=True), 6, axis=0).astype(np.float32)
    centroids, labels, filled, _ = kernels.kmeans(rows, 6, start=far)
    assert len(centroids) == 6
    assert np.bincount(labels, minlength=6).min() > 0
    assert filled <= 3 * whole


@pytest.mark.parametrize(
    ("rows", "error", "match"),
    [
        (np.ones((3, 4)), InvalidInput, "float64, expected an array of float32"),
        (np.ones(3, dtype=np.float32), InvalidInput, "expected \\(n, dim\\)"),
        (np.ones((3, 0), dtype=np.float32), InvalidInput, "no components"),
        (np.zeros((3, 4), dtype=np.float32), InvalidInput, "row 0 of rows is zero"),
        (np.full((3, 4), np.nan, dtype=np.float32), InvalidInput, "NaN or infinity"),
        (np.full((3, 4), np.inf, dtype=np.float32), InvalidInput, "NaN or infinity"),
        ([[1.0, 2.0]], InvalidInput, "list, expected an array"),
    ],
)
def test_bad_rows_are_refused(rows: Floats, error: type[Exception], match: str) -> None:
    good = np.ones((1, 4), dtype=np.float32)
    for call in (
        lambda: kernels.kmeans(rows, 2),
        lambda: kernels.assign(rows, good),
        lambda: kernels.top_k(rows, good[0], 1),
    ):
        with pytest.raises(error, match=match):
            call()


def test_bad_numbers_are_refused(rng: np.random.Generator) -> None:
    rows = directions(rng.standard_normal((5, 4), dtype=np.float32))
    with pytest.raises(InvalidInput, match="expected at least"):
        kernels.kmeans(rows, 0)
    with pytest.raises(InvalidInput, match="expected at least"):
        kernels.kmeans(rows, 2, max_iterations=-1)
    with pytest.raises(InvalidInput, match="tolerance"):
        kernels.kmeans(rows, 2, tolerance=float("nan"))
    with pytest.raises(InvalidInput, match="2 at most"):
        kernels.kmeans(rows, 2, start=rows[:3])
    with pytest.raises(DimensionMismatch):
        kernels.kmeans(rows, 2, start=rows[:2, :3])
    with pytest.raises(DimensionMismatch):
        kernels.assign(rows, rows[:, :3])
    with pytest.raises(DimensionMismatch):
        kernels.top_k(rows, rows[0, :3], 2)
    with pytest.raises(InvalidInput, match="there is no centroid"):
        kernels.assign(rows, rows[:0])
    with pytest.raises(InvalidInput, match="k is -1"):
        kernels.top_k(rows, rows[0], -1)
