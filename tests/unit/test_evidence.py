"""Evidence: tests that hold their level at any time of looking, and stakes as sure as they may be."""

from __future__ import annotations

import numpy as np
import pytest

from sona_pg.config import StrategyConfig
from sona_pg.errors import LearningError
from sona_pg.learning.evidence import Gate, SanityTest, Stake, log_rank_gain

CONFIG = StrategyConfig()


def _gate() -> Gate:
    return Gate(CONFIG.gate_threshold, CONFIG.gate_later)


def _sanity() -> SanityTest:
    return SanityTest(1, CONFIG.sanity_window, CONFIG.sanity_open, CONFIG.sanity_close)


def _events_until(gate: Gate, differences: np.ndarray) -> int | None:  # type: ignore[type-arg]
    return next((event for event, d in enumerate(differences) if gate.add(float(d))), None)


def test_a_gate_opens_without_a_difference_as_rarely_as_it_says() -> None:
    rng = np.random.default_rng(0)
    streams = rng.choice([-0.6, -0.2, 0.0, 0.0, 0.2, 0.6], size=(400, 500))
    opened = sum(_events_until(_gate(), stream) is not None for stream in streams)
    assert opened <= 0.07 * len(streams), "at most 1 in 20, whenever one looks"


def test_a_gate_opens_soon_where_there_is_a_difference_and_closes_soon_after_it_turned() -> None:
    rng = np.random.default_rng(1)
    opened, closed = [], []
    for _ in range(60):
        gate = _gate()
        event = _events_until(gate, np.clip(rng.normal(0.1, 0.3, 600), -1, 1))
        assert event is not None
        opened.append(event)
        for d in np.clip(rng.normal(0.1, 0.3, 300), -1, 1):
            gate.add(float(d))
        closed.append(_events_until(gate, np.clip(rng.normal(-0.1, 0.3, 600), -1, 1)) or 600)
    assert np.median(opened) < 150
    assert np.median(closed) < 100


def test_a_bad_past_does_not_hold_up_a_gate() -> None:
    rng = np.random.default_rng(2)
    opened = {}
    for later in (0.0, CONFIG.gate_later):
        gate = Gate(CONFIG.gate_threshold, later)
        for d in np.clip(rng.normal(-0.1, 0.3, 300), -1, 1):
            gate.add(float(d))
        opened[later] = _events_until(gate, np.full(300, 0.1))
    assert opened[0.0] is None
    assert opened[CONFIG.gate_later] is not None


def test_extreme_differences_keep_the_capital_finite() -> None:
    gate = _gate()
    turns = sum(gate.add(d) for d in [1.0] * 5000 + [-1.0] * 5000 + [0.0] * 10)
    assert turns == 2
    assert np.isfinite(gate.capital)


def test_noise_never_passes_the_sanity_test() -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        test = _sanity()
        for p in rng.uniform(size=400):
            test.add(float(p))
            assert not test.is_open


def test_outcomes_that_belong_to_their_queries_pass_it_within_twenty_events_until_they_stop() -> None:
    rng = np.random.default_rng(4)
    test = _sanity()
    for _ in range(20):
        test.add(float(rng.uniform(0, 0.02)))
    assert test.is_open
    for _ in range(60):
        test.add(float(rng.uniform()))
    assert not test.is_open


def test_the_smallest_p_values_are_finite() -> None:
    test = _sanity()
    for _ in range(100):
        test.add(0.0)
    assert test.is_open
    assert np.isfinite(test.log_capital)


def test_a_stake_is_as_high_as_it_is_sure() -> None:
    stake = Stake(1.0, 0.1)
    assert stake.share == 0.0
    shares = []
    for _ in range(100):
        stake.add(0.1)
        shares.append(stake.share)
    assert shares == sorted(shares)
    assert shares[0] < 0.7
    assert shares[-1] > 0.999
    for _ in range(150):
        stake.add(-0.1)
    assert stake.share == 0.0


def test_recent_events_count_more_in_a_stake() -> None:
    forgetful, faithful = Stake(0.9, 0.1), Stake(1.0, 0.1)
    for d in [0.2] * 200 + [-0.2] * 30:
        forgetful.add(d)
        faithful.add(d)
    assert forgetful.share == 0.0
    assert faithful.share > 0.99


def test_an_event_that_counts_for_nothing_changes_no_stake() -> None:
    stake = Stake(1.0, 0.1)
    stake.add(0.5)
    before = stake.share
    stake.add(-1.0, 0.0)
    assert stake.share == before


def test_log_rank_gain_by_hand() -> None:
    assert log_rank_gain([1], [1]) == 0.0
    assert log_rank_gain([4], [1]) == pytest.approx(np.log(6 / 3))
    assert log_rank_gain([4, 1], [1, 4]) == pytest.approx(0.0)
    assert log_rank_gain([1000], [1]) == 1.0
    assert log_rank_gain([1], [1000]) == -1.0


def test_a_continuation_goes_on_bit_for_bit_and_damage_is_refused() -> None:
    rng = np.random.default_rng(5)
    differences = rng.uniform(-1, 1, 60)
    for make in (_gate, _sanity, lambda: Stake(0.99, 0.1)):
        one, two = make(), make()
        for d in differences[:30]:
            one.add(float(abs(d)))
        two.load_state({name: part.copy() for name, part in one.state().items()})
        for d in differences[30:]:
            one.add(float(abs(d)))
            two.add(float(abs(d)))
        for name, part in one.state().items():
            assert part.tobytes() == two.state()[name].tobytes()
        with pytest.raises(LearningError):
            two.load_state({})
