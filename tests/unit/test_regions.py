"""Regions: they follow the space until their own evidence is enough for all of them together."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg.config import StrategyConfig
from sona_pg.errors import LearningError
from sona_pg.learning.regions import Regions, Verdict

from .samples import axis

CONFIG = StrategyConfig(regions=4)
TWO = StrategyConfig(regions=2, region_near=0.5)
DIM = 8


def _near(place: int, rng: np.random.Generator) -> NDArray[np.float32]:
    query = axis(place, DIM) + 0.1 * rng.standard_normal(DIM).astype(np.float32)
    return np.asarray(query / np.linalg.norm(query), dtype=np.float32)


def test_a_partition_forms_from_the_queries_alone() -> None:
    rng, regions = np.random.default_rng(0), Regions(DIM, CONFIG, 20)
    assert regions.find(axis(0, DIM)) is None
    assert regions.verdict(axis(0, DIM)) is Verdict.FOLLOWS
    for event in range(200):
        regions.add(_near(event % 3, rng), 0.0)
    found = {regions.find(axis(place, DIM)) for place in range(3)}
    assert len(found) == 3
    assert sum(region.events for region in regions.describe()) == 200
    for region in regions.describe():
        assert np.linalg.norm(region.centroid) == pytest.approx(1.0, abs=1e-5)


def test_where_the_fusion_harms_it_is_proven_worse_and_elsewhere_nothing_changes() -> None:
    rng, regions = np.random.default_rng(1), Regions(DIM, CONFIG, 20)
    turns = []
    for event in range(400):
        place = event % 3
        region, turned = regions.add(_near(place, rng), -0.3 if place == 1 else 0.3 * float(rng.choice([-1, 1])))
        if turned:
            turns.append((place, region))
    assert [place for place, _ in turns] == [1]
    assert regions.verdict(axis(1, DIM)) is Verdict.WORSE
    assert regions.verdict(axis(0, DIM)) is Verdict.FOLLOWS


def test_a_verdict_turns_when_the_evidence_does() -> None:
    rng, regions = np.random.default_rng(2), Regions(DIM, CONFIG, 20)
    for gain, verdict in ((0.3, Verdict.BETTER), (-0.3, Verdict.WORSE), (0.3, Verdict.BETTER)):
        for _ in range(100):
            regions.add(_near(0, rng), gain)
        assert regions.verdict(axis(0, DIM)) is verdict


def test_without_a_difference_a_region_rarely_becomes_an_exception() -> None:
    turned = 0
    for seed in range(200):
        rng, regions = np.random.default_rng(seed), Regions(DIM, CONFIG, 20)
        turned += any(regions.add(_near(e % 4, rng), 0.2 * float(rng.choice([-1, 1])))[1] for e in range(300))
    # Better: 1/20 at most for all regions together. Worse: an e-detector, which restarts, may err once in 20 times 4
    # events and more; bets on coin tosses lose in the mean, so that it rarely does.
    assert turned <= 20


def test_the_gain_of_a_region_is_shrunk_to_that_of_the_space() -> None:
    rng, regions = np.random.default_rng(3), Regions(DIM, CONFIG, 20)
    for _ in range(300):
        regions.add(_near(0, rng), 0.5)
    regions.add(axis(3, DIM), -1.0)
    gains = [region.gain for region in regions.describe()]
    few = regions.find(axis(3, DIM))
    assert few is not None
    assert 0.4 < gains[few] < 0.5
    assert max(gains) > 0.45


def test_opposite_queries_leave_a_centre_that_is_a_direction() -> None:
    regions = Regions(DIM, StrategyConfig(regions=1), 20)
    for event in range(20):
        regions.add(axis(0, DIM) * np.float32(-1 if event % 2 else 1), 0.0)
    (region,) = regions.describe()
    assert np.linalg.norm(region.centroid) == pytest.approx(1.0, abs=1e-5)


def test_a_continuation_goes_on_bit_for_bit() -> None:
    rng = np.random.default_rng(4)
    one, two = Regions(DIM, CONFIG, 20), Regions(DIM, CONFIG, 20)
    events = [(_near(e % 5, rng), float(rng.uniform(-1, 1))) for e in range(100)]
    for query, gain in events[:50]:
        one.add(query, gain)
    two.load_state({name: part.copy() for name, part in one.state().items()})
    for query, gain in events[50:]:
        one.add(query, gain)
        two.add(query, gain)
    for name, part in one.state().items():
        assert part.tobytes() == two.state()[name].tobytes()
    with pytest.raises(LearningError):
        two.load_state({**one.state(), "sums": np.full((5, 2), np.nan)})


def test_every_verdict_is_kept_and_no_other_is_taken() -> None:
    rng, regions = np.random.default_rng(5), Regions(DIM, CONFIG, 20)
    gains = (-0.5, 0.0, 0.5)
    for event in range(600):
        regions.add(_near(event % 3, rng), gains[event % 3])
    verdicts = [regions.verdict(axis(place, DIM)) for place in range(3)]
    assert verdicts == [Verdict.WORSE, Verdict.FOLLOWS, Verdict.BETTER]
    again = Regions(DIM, CONFIG, 20)
    again.load_state(regions.state())
    assert [again.verdict(axis(place, DIM)) for place in range(3)] == verdicts
    for wrong in (-2, 2):
        with pytest.raises(LearningError, match="expected -1, 0 or 1"):
            again.load_state({**regions.state(), "verdicts": np.full(4, wrong)})
    with pytest.raises(LearningError, match="counts"):
        again.load_state({**regions.state(), "counts": np.full(4, -1)})


def _proven(rng: np.random.Generator) -> Regions:
    """Two regions: the fusion is proven to be worse in the first, and nothing in the second."""
    regions = Regions(DIM, TWO, 20)
    for event in range(400):
        regions.add(_near(event % 2, rng), -0.3 if event % 2 == 0 else 0.0)
    return regions


def test_a_region_becomes_the_pattern_that_it_is_near_and_keeps_what_is_known() -> None:
    regions = _proven(np.random.default_rng(4))
    before = regions.describe()
    regions.become([7, 9], np.stack([axis(1, DIM), _near(0, np.random.default_rng(5))]))
    after = regions.describe()
    assert [region.pattern for region in after] == [9, 7]
    assert [(r.events, r.gain, r.verdict) for r in after] == [(r.events, r.gain, r.verdict) for r in before]
    assert regions.verdict(axis(0, DIM)) is Verdict.WORSE
    assert regions.verdict(axis(1, DIM)) is Verdict.FOLLOWS
    assert np.array_equal(after[1].centroid, axis(1, DIM))


def test_a_region_goes_where_its_pattern_goes_and_stays_where_it_was_when_that_is_gone() -> None:
    rng = np.random.default_rng(6)
    regions = _proven(rng)
    regions.become([7], axis(0, DIM)[np.newaxis])
    moved = axis(0, DIM) + axis(2, DIM)
    moved /= np.linalg.norm(moved)
    # Another pattern is nearer by now, and a region stays the pattern that it is.
    regions.become([8, 7], np.stack([axis(0, DIM), moved]))
    first = regions.describe()[0]
    assert first.pattern == 7
    assert np.array_equal(first.centroid, moved)
    assert first.verdict is Verdict.WORSE
    regions.become([8], axis(5, DIM)[np.newaxis])
    first = regions.describe()[0]
    assert first.pattern is None
    assert np.array_equal(first.centroid, moved)
    assert (first.verdict, first.events) == (Verdict.WORSE, 200)


def test_evidence_is_the_same_whether_or_not_a_region_is_a_pattern() -> None:
    alone, named = _proven(np.random.default_rng(8)), _proven(np.random.default_rng(8))
    named.become([3, 4], np.stack([region.centroid for region in alone.describe()]))
    for regions in (alone, named):
        rng = np.random.default_rng(9)
        for event in range(100):
            regions.add(_near(event % 2, rng), 0.4)
    for part in ("sums", "better", "worse", "started", "verdicts"):
        assert np.array_equal(alone.state()[part], named.state()[part])


def test_no_region_and_no_pattern_are_nothing_to_match() -> None:
    regions = Regions(DIM, CONFIG, 20)
    regions.become([1], axis(0, DIM)[np.newaxis])
    assert len(regions) == 0
    regions.add(axis(0, DIM), 0.1)
    regions.become([], np.zeros((0, DIM), dtype=np.float32))
    assert regions.describe()[0].pattern is None


def test_a_state_from_before_there_were_patterns_is_read() -> None:
    regions = _proven(np.random.default_rng(10))
    old = {name: part for name, part in regions.state().items() if name != "patterns"}
    again = Regions(DIM, TWO, 20)
    again.load_state(old)
    assert [(r.events, r.verdict, r.pattern) for r in again.describe()] == [
        (r.events, r.verdict, None) for r in regions.describe()
    ]
