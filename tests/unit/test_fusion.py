"""The fusion: features by hand, a gradient that is one, and a start that is the frozen ranking."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg.config import StrategyConfig
from sona_pg.errors import LearningError
from sona_pg.kernels import fusion_features
from sona_pg.learning.fusion import FEATURES, Fusion
from sona_pg.learning.remembered import InMemoryOutcomes, Remembered, Surroundings

from .samples import axis

CONFIG = StrategyConfig()


def _features(events: list[Remembered], counts: list[int], *cosines: float) -> tuple[NDArray[np.float64], float]:
    """Features of items a, b, ... asked about by a query, and by an adapted one that is nearer to all of them."""
    frozen = np.array(cosines, dtype=np.float32)
    names = "abc"[: len(frozen)]
    around = Surroundings(names, events, {n: axis(0, 3) for n in names}, dict(zip(names, counts, strict=True)))
    table, _, gate = fusion_features(
        frozen,
        frozen + np.float32(0.25),
        1.0,
        np.arange(len(frozen)),
        around.near,
        around.times_helped,
        neighbours=CONFIG.neighbours,
        misses_near=CONFIG.misses_near,
        vote_kernel=CONFIG.vote_kernel,
        familiar_from=CONFIG.familiar_from,
        familiar_width=CONFIG.familiar_width,
    )
    return table, gate


def test_features_by_hand() -> None:
    events = [Remembered(0.9, {"a": 1.0}, ("c",)), Remembered(0.6, {"a": 0.5, "b": 1.0}, ("a",))]
    table, _ = _features(events, [2, 1, 0], 0.5, 0.25, 0.75)
    votes = np.array([np.exp(-1.0) + 0.5 * np.exp(-4.0), np.exp(-4.0), 0.0])
    found = dict(zip(FEATURES, table.T, strict=True))
    expected = {
        "cosine": [10, 5, 15],
        "familiar": [5.0] * 3,
        "adapted": [5.0] * 3,
        "helped near .5": [0.4, 0.1, 0],
        "helped near .7": [0.2, 0, 0],
        "helped near .85": [0.05, 0, 0],
        "vote": 2 * np.log1p(votes),
        "share of the vote": votes / votes.sum(),
        "helped near .5, below the best": [0.4 * -0.25, 0.1 * -0.5, 0],
        "helped near .7, below the best": [0.2 * -0.25, 0, 0],
        "helped near .85, below the best": [0.05 * -0.25, 0, 0],
        "missed near .5": [0.1, 0, 0.4],
        "missed near .8": [0, 0, 0.1],
        "times helped": np.log1p([2, 1, 0]),
        "ever helped": [1, 1, 0],
        "ever helped, familiar .5": [0.4, 0.4, 0],
        "ever helped, familiar .7": [0.2, 0.2, 0],
        "ever helped, familiar .85": [0.05, 0.05, 0],
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)


def test_nothing_remembered_says_nothing() -> None:
    table, gate = _features([], [0, 0], 0.5, 0.25)
    assert not table[:, 3:].any()
    assert gate == 0


def test_ground_is_familiar_by_the_nearest_event() -> None:
    for similarity, gate in ((-0.5, 0.0), (0.5, 0.0), (0.65, 0.5), (0.8, 1.0), (1.0, 1.0)):
        assert _features([Remembered(similarity, {"a": 1.0}, ())], [1], 0.5)[1] == pytest.approx(gate)


def test_a_fresh_fusion_ranks_as_the_frozen_embedding_does() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((30, len(FEATURES)))
    assert (Fusion(CONFIG).score(table) == table[:, 0]).all()


def test_the_gradient_is_that_of_the_cross_entropy() -> None:
    rng = np.random.default_rng(1)
    fusion = Fusion(CONFIG)
    for _ in range(5):
        fusion.step(rng.standard_normal(len(FEATURES)))
    table, targets = rng.standard_normal((12, len(FEATURES))), np.zeros(12)
    targets[[2, 7]] = 0.25, 0.75

    def loss(weights: np.ndarray) -> float:  # type: ignore[type-arg]
        logits = table @ weights
        return float(np.log(np.exp(logits).sum()) - targets @ logits)

    found = fusion.gradient(table, targets)
    weights = fusion.state()["weights"]
    for place in range(len(FEATURES)):
        step = np.zeros(len(FEATURES))
        step[place] = 1e-6
        assert found[place] == pytest.approx((loss(weights + step) - loss(weights - step)) / 2e-6, abs=1e-6)


def test_steps_raise_what_helped() -> None:
    rng = np.random.default_rng(2)
    fusion = Fusion(CONFIG)
    for _ in range(300):
        table = rng.standard_normal((20, len(FEATURES)))
        targets = np.zeros(20)
        targets[np.argmax(table[:, 6])] = 1.0
        fusion.step(fusion.gradient(table, targets))
    table = rng.standard_normal((500, 20, len(FEATURES)))
    hits = [np.argmax(fusion.score(part)) == np.argmax(part[:, 6]) for part in table]
    assert np.mean(hits) > 0.7


def test_a_continuation_goes_on_bit_for_bit_and_damage_is_refused() -> None:
    rng = np.random.default_rng(3)
    one, two = Fusion(CONFIG), Fusion(CONFIG)
    gradients = rng.standard_normal((20, len(FEATURES)))
    for gradient in gradients[:10]:
        one.step(gradient)
    two.load_state({name: part.copy() for name, part in one.state().items()})
    for gradient in gradients[10:]:
        one.step(gradient)
        two.step(gradient)
    for name, part in one.state().items():
        assert part.tobytes() == two.state()[name].tobytes()
    with pytest.raises(LearningError):
        two.load_state({**one.state(), "weights": np.full(len(FEATURES), np.nan)})


def test_outcomes_in_memory_are_found_by_nearness() -> None:
    memory = InMemoryOutcomes(3)
    assert memory.near(axis(0, 3), 5) == []
    memory.add(axis(0, 3), {"a": 1.0}, ["b"])
    memory.add(axis(1, 3), {"b": 1.0}, [])
    memory.add(axis(0, 3), {"a": 0.5, "c": 1.0}, [])
    found = memory.near(axis(0, 3), 2)
    assert [event.similarity for event in found] == [1.0, 1.0]
    assert found[0].helped == {"a": 1.0}
    assert found[0].unhelpful == ("b",)
    names = "abc"
    around = Surroundings([], memory.near(axis(0, 3), 5), {n: axis(0, 3) for n in names}, {})
    assert around.candidates(1).tolist() == [0]
    assert around.candidates(5).tolist() == [0, 1, 2]
    assert around.candidates(5, np.array([1, 0, 0], dtype=np.uint8)).tolist() == [0, 1]
    assert memory.times_helped(["a", "b", "c", "d"]) == {"a": 2, "b": 1, "c": 1}
    for _ in range(200):
        memory.add(axis(2, 3), {"d": 1.0}, [])
    assert len(memory) == 203
    assert memory.times_helped(["d"]) == {"d": 200}
