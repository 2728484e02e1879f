"""Shards: however the outcomes are cut, and wherever they lie, clusters are the same, and every outcome counts once."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from sona_pg import kernels
from sona_pg.config import PatternConfig, VerdictConfig
from sona_pg.errors import InvalidInput
from sona_pg.learning import outcome_shard
from sona_pg.learning.clusters import Floats, Tally
from sona_pg.learning.outcome_shard import HeldShards, OutcomeShard, clustered
from sona_pg.learning.resumed_bank import Advance, ResumedBank

DIM, TOPICS = 16, 8
CONFIG = PatternConfig(embedding_dim=DIM, k_clusters=TOPICS, min_cluster_size=3)


def rows_of(n: int, seed: int = 0, noise: float = 0.3) -> Floats:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((TOPICS, DIM))
    rows = centres[np.arange(n) % TOPICS] + noise * random.standard_normal((n, DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def cut(rows: Floats, pieces: int, counted: int = 0) -> HeldShards:
    """Shards of the rows in their order, of which the first so many are counted; ordinals are places."""
    shards = []
    for places in np.array_split(np.arange(len(rows)), pieces):
        shard = OutcomeShard(DIM, len(places), VerdictConfig())
        for place in places.tolist():
            if place < counted:
                shard.add_counted(rows[place], 0.5)
            else:
                quality = 0.9 if place % 2 else 0.1
                shard.add_outcome(place, rows[place], quality, "fusion", {"even": not place % 2}, None, None)
        shards.append(shard)
    return HeldShards(shards)


def objective(rows: Floats, centroids: Floats) -> float:
    return float((1 - kernels.assign(rows, centroids)[1].astype(np.float64)).sum())


# ---- clusters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_few_rows_are_clustered_as_if_they_were_in_one_place(pieces: int) -> None:
    rows = rows_of(301)
    expected = kernels.kmeans(rows, TOPICS, seed=CONFIG.seed, tolerance=CONFIG.convergence_threshold)[0]
    found = clustered(cut(rows, pieces), np.empty((0, DIM), np.float32), CONFIG)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("pieces", "known"), [(2, 0), (7, 0), (7, 3)])
def test_many_rows_are_clustered_as_well_by_steps_over_shards(
    pieces: int, known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(3000, noise=0.6)
    start = rows[:known]
    monkeypatch.setattr(outcome_shard, "FIRST_SAMPLE", 100)
    wholes, founds = [], []
    for seed in range(8):
        config = replace(CONFIG, seed=seed)
        wholes.append(kernels.kmeans(rows, TOPICS, seed=seed, start=start if known else None)[2])
        found = clustered(cut(rows, pieces), start, config)
        assert found.shape == (TOPICS, DIM)
        assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
        founds.append(objective(rows, found))
        # The steps over all rows were made: a sample alone does not come so near.
        sample = np.concatenate(cut(rows, pieces).map(OutcomeShard.sample, 100 / 3000, seed))
        alone = kernels.kmeans(sample, TOPICS, seed=seed, start=start if known else None)[0]
        assert founds[-1] < objective(rows, alone)
    assert np.mean(founds) <= 1.03 * np.mean(wholes)


def test_a_step_of_shards_is_that_of_all_rows() -> None:
    rows, centroids = rows_of(500), rows_of(TOPICS, seed=1)
    (whole,) = cut(rows, 1).map(OutcomeShard.step, centroids, 1.0, 0)
    first, *others = cut(rows, 4).map(OutcomeShard.step, centroids, 1.0, 0)
    added = sum(others, first)
    assert added.counts.tolist() == whole.counts.tolist()
    assert added.sums == pytest.approx(whole.sums, abs=1e-9)
    assert added.objective == pytest.approx(whole.objective)


def test_a_cluster_that_loses_all_rows_stays_where_it_is() -> None:
    rows = np.repeat(np.eye(DIM, dtype=np.float32)[:2], 20, axis=0)
    centroids = np.eye(DIM, dtype=np.float32)[:3]
    found = outcome_shard._moved(cut(rows, 3), centroids, 1.0, CONFIG)
    assert np.array_equal(found, centroids)


def test_a_larger_sample_has_the_smaller_one_in_it() -> None:
    (shard,) = cut(rows_of(100), 1)._shards
    small, large = ({tuple(row) for row in shard.sample(share, 3)} for share in (0.1, 0.35))
    assert (len(small), len(large)) == (10, 35)
    assert small < large
    assert shard.sample(1.0, 3) is not None
    assert np.array_equal(shard.sample(0.1, 3), shard.sample(0.1, 3))
    assert not np.array_equal(shard.sample(0.1, 3), shard.sample(0.1, 4))


# ---- patterns --------------------------------------------------------------------------------------------------------


def advanced(shards: HeldShards) -> Advance:
    return ResumedBank({}, {}, 0, CONFIG, VerdictConfig()).advance(shards, 100.0)


def test_patterns_and_verdicts_do_not_depend_on_the_cut() -> None:
    rows = rows_of(403)
    whole, parts = advanced(cut(rows, 1, counted=100)), advanced(cut(rows, 6, counted=100))
    assert len(whole.created) == len(parts.created) == TOPICS
    for one, other in zip(whole.created, parts.created, strict=True):
        assert (one.id, one.support, one.cluster_size) == (other.id, other.support, other.cluster_size)
        assert other.centroid == pytest.approx(one.centroid, abs=1e-6)
        assert other.avg_quality == pytest.approx(one.avg_quality)
    assert sum(pattern.support for pattern in parts.created) == 303
    assert parts.verdicts == whole.verdicts
    assert parts.evidence == whole.evidence
    assert parts.waiting == whole.waiting == ()


def test_what_belongs_to_no_pattern_waits_by_its_ordinal() -> None:
    lone = np.zeros((2, DIM), dtype=np.float32)
    lone[:, 0] = -1
    config = PatternConfig(embedding_dim=DIM, k_clusters=TOPICS + 1, min_cluster_size=3)
    rows = np.concatenate([rows_of(80, noise=0.01), lone])
    advance = ResumedBank({}, {}, 0, config, VerdictConfig()).advance(cut(rows, 3), 1.0)
    assert advance.waiting == (80, 81)
    assert sum(pattern.support for pattern in advance.created) == 80


def test_no_outcome_at_all_changes_nothing() -> None:
    advance = advanced(HeldShards([]))
    assert (advance.created, advance.changed, advance.waiting, advance.last_id) == ((), (), (), 0)


# ---- what is no outcome ----------------------------------------------------------------------------------------------


def test_what_an_application_recorded_wrongly_is_left_out() -> None:
    shard = OutcomeShard(DIM, 5, VerdictConfig())
    row = rows_of(1)[0]
    assert shard.add_outcome(1, row, 0.5, "fusion", {"model": "a"}, 0.5, None)
    assert not shard.add_outcome(2, row, 0.5, "fusion", "no parameters", None, None)
    assert not shard.add_outcome(3, row, 0.5, "fusion", {"model": "a"}, 7, None)
    nowhere = np.zeros(DIM, dtype=np.float32)
    with pytest.raises(InvalidInput):
        shard.add_outcome(4, nowhere, 0.5, "fusion", None, None, None)
    with pytest.raises(InvalidInput):
        shard.add_counted(nowhere, 0.5)
    assert len(shard) == 3
    _, fresh = shard.tally(row[np.newaxis])
    assert [(one.ordinal, dict(one.used), one.fed_back) for one in fresh] == [
        (1, {"strategy": "fusion", "model": "a"}, (0.5, None)),
        (2, {"strategy": "fusion"}, (None, None)),
        (3, {"strategy": "fusion", "model": "a"}, (None, None)),
    ]


def test_what_ends_a_cycle_ends_it_between_shards() -> None:
    class Stopped(Exception):
        pass

    looks = iter([False, False, True])

    def check_stop() -> None:
        if next(looks):
            raise Stopped

    shards = HeldShards(cut(rows_of(50), 4)._shards, check_stop)
    with pytest.raises(Stopped):
        shards.map(OutcomeShard.step, rows_of(3), 1.0, 0)


def test_a_tally_travels_as_it_is() -> None:
    """Between processes."""
    import pickle

    (told,) = cut(rows_of(40), 1).map(OutcomeShard.tally, rows_of(3))
    tally, fresh = pickle.loads(pickle.dumps(told))
    assert fresh == told[1]
    for field in fields(Tally):
        assert np.array_equal(getattr(tally, field.name), getattr(told[0], field.name))
