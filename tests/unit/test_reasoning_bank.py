"""The reasoning bank: extraction, identity, verdicts and recommendations, its state, and bad input."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.bank_worlds import usefulness
from sona_pg.config import PatternConfig, VerdictConfig
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput
from sona_pg.learning.arrays import normalized_rows
from sona_pg.learning.hierarchy import pattern_hierarchy
from sona_pg.learning.portable import bank_to_json
from sona_pg.learning.reasoning_bank import ReasoningBank
from sona_pg.learning.recommendation import (
    Best,
    NearPattern,
    Recommendation,
    best_value,
    best_values,
    optimized_params,
)
from sona_pg.learning.recorded import quality_of
from sona_pg.learning.verdicts import Outcome, Verdict
from sona_pg.types import EMPTY, Answer, Json, QueryTrajectory, TrajectoryStep

DIM = 24


def trajectory(query: Sequence[float] | np.ndarray, quality: float | None = 0.8, **others: object) -> QueryTrajectory:
    return QueryTrajectory(uuid.UUID(int=1), np.asarray(query, np.float32), final_quality=quality, **others)  # type: ignore


def topics(random: np.random.Generator, n: int, k: int, noise: float = 0.15) -> np.ndarray:
    centres = normalized_rows(np.random.default_rng(9).standard_normal((k, DIM), dtype=np.float32))
    rows = centres[np.arange(n) % k] + np.float32(noise) * random.standard_normal((n, DIM), dtype=np.float32)
    return normalized_rows(rows)


def filled(rows: np.ndarray, quality: float | None = 0.8, **settings: int | float) -> ReasoningBank:
    given = {"embedding_dim": DIM, "k_clusters": 8} | settings
    bank = ReasoningBank(PatternConfig(**given))  # type: ignore[arg-type]
    for row in rows:
        bank.add_trajectory(trajectory(row, quality))
    return bank


# ---- extraction ------------------------------------------------------------------------------------------------------


def test_extraction_of_none_one_and_many() -> None:
    random = np.random.default_rng(0)
    bank = filled(topics(random, 0, 8), min_cluster_size=1)
    assert bank.extract_patterns() == []
    bank.add_trajectory(trajectory(topics(random, 1, 8)[0] * 3, 0.7))
    (only,) = bank.extract_patterns(now=5.0)
    assert (only.cluster_size, only.avg_quality, only.created_at) == (1, pytest.approx(0.7), 5.0)
    assert np.linalg.norm(only.centroid) == pytest.approx(1, abs=1e-5)
    many = filled(topics(random, 400, 8))
    patterns = many.extract_patterns(now=5.0)
    assert [p.cluster_size for p in patterns] == [50] * 8
    assert [p.id for p in patterns] == list(range(1, 9))
    assert all(p.support == 50 and p.confidence > 0.8 and p.avg_quality == pytest.approx(0.8) for p in patterns)
    assert many.get_pattern(3) is patterns[2]
    assert many.get_pattern(99) is None
    assert many.stats().unclustered == 0


def test_fewer_trajectories_than_clusters_are_fewer_clusters() -> None:
    bank = filled(topics(np.random.default_rng(0), 11, 2), min_cluster_size=5)
    assert sorted(p.cluster_size for p in bank.extract_patterns()) == [5, 6]
    few = filled(topics(np.random.default_rng(0), 4, 1), min_cluster_size=5)
    assert few.extract_patterns() == []
    assert (few.stats().unclustered, few.stats().waiting) == (4, 4)
    # They are counted once there are enough.
    few.add_trajectory(trajectory(topics(np.random.default_rng(1), 1, 1)[0]))
    (pattern,) = few.extract_patterns()
    assert (pattern.cluster_size, pattern.total_weight, few.stats().waiting) == (5, 5, 0)


def test_the_same_query_again_and_again_is_one_pattern() -> None:
    bank = filled(np.repeat(topics(np.random.default_rng(0), 1, 1), 100, axis=0))
    (pattern,) = bank.extract_patterns()
    assert pattern.cluster_size == 100
    assert np.isfinite(pattern.centroid).all()


def test_missing_quality_is_not_a_bad_one() -> None:
    bank = filled(topics(np.random.default_rng(0), 20, 1), None, k_clusters=1)
    (pattern,) = bank.extract_patterns(now=0.0)
    assert (pattern.avg_quality, pattern.support, pattern.confidence) == (bank.config.prior_quality, 0, 0)
    assert bank.prune_patterns(now=1e12) == []
    step = TrajectoryStep(EMPTY, EMPTY, 0.5, 0.0, "a")
    assert quality_of(trajectory([1.0], None, steps=(step, step._replace(reward=1.0)))) == 0.75
    assert quality_of(trajectory([1.0], None, steps=(step._replace(reward=None),))) is None


# ---- identity --------------------------------------------------------------------------------------------------------


def test_unchanged_trajectories_change_nothing() -> None:
    bank = filled(topics(np.random.default_rng(0), 400, 8, 0.4))
    first = bank.extract_patterns(now=1.0)
    again = bank.extract_patterns(now=2.0)
    assert all(a is b for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("noise", [0.15, 0.3])
def test_ids_live_through_turnover(noise: float) -> None:
    random = np.random.default_rng(0)
    bank = filled(topics(random, 800, 8, noise), max_trajectories=800)
    before = {p.id: p for p in bank.extract_patterns(now=0.0)}
    for cycle in range(1, 11):
        for row in topics(random, 80, 8, noise):
            bank.add_trajectory(trajectory(row))
        after = {p.id: p for p in bank.extract_patterns(now=float(cycle))}
        assert set(after) == set(before)
        assert all(float(after[id].centroid @ before[id].centroid) >= 0.95 for id in before)
        before = after
    assert bank.stats().evicted == 800
    # Every trajectory was counted once.
    assert sum(p.total_weight for p in before.values()) == pytest.approx(1600, rel=1e-3)
    assert sum(p.support for p in before.values()) == 1600
    assert sum(p.cluster_size for p in before.values()) == 800


def test_what_is_new_gets_a_new_id_and_what_is_gone_stays_known() -> None:
    random = np.random.default_rng(0)
    bank = filled(topics(random, 200, 4), max_trajectories=200, k_clusters=4)
    old = {p.id for p in bank.extract_patterns(now=0.0)}
    rows = topics(random, 400, 8)[np.arange(400) % 8 >= 4]
    for row in rows:
        bank.add_trajectory(trajectory(row))
    after = {p.id for p in bank.extract_patterns(now=1.0)}
    assert old < after
    assert len(after) == 8
    assert len(old) == 4


def test_near_duplicates_become_the_older_one() -> None:
    random = np.random.default_rng(0)
    bank, other = filled(topics(random, 200, 4), k_clusters=4), filled(topics(random, 200, 8))
    bank.extract_patterns(now=5.0)
    other.extract_patterns(now=1.0)
    renamed = bank.import_(other.export(), now=6.0)
    assert len(renamed) == 8
    assert {p.id for p in bank.patterns} == set(renamed.values()) | {1, 2, 3, 4}
    assert len(bank.patterns) == 8
    assert {1, 2, 3, 4} <= set(renamed.values())
    assert sum(p.cluster_size for p in bank.patterns) == 400
    assert bank.consolidate_patterns() == {}


def test_the_buffer_is_a_circle_and_clear_keeps_patterns() -> None:
    bank = filled(topics(np.random.default_rng(0), 150, 8), max_trajectories=100)
    assert (bank.trajectory_count, bank.stats().evicted) == (100, 50)
    patterns = bank.extract_patterns()
    bank.clear()
    assert bank.trajectory_count == 0
    assert bank.extract_patterns() == patterns


def test_equal_banks_have_equal_patterns() -> None:
    rows = topics(np.random.default_rng(0), 300, 8, 0.5)
    one, other = (filled(rows).extract_patterns(now=3.0) for _ in range(2))
    assert [(p.id, p.centroid.tobytes(), p.cluster_size) for p in one] == [
        (p.id, p.centroid.tobytes(), p.cluster_size) for p in other
    ]


# ---- finding and pruning ---------------------------------------------------------------------------------------------


def test_similar_patterns_are_found_and_counted() -> None:
    bank = filled(topics(np.random.default_rng(0), 400, 8))
    bank.extract_patterns(now=0.0)
    target = bank.patterns[4]
    found = bank.find_similar(target.centroid * 5, 3)
    assert found[0][0] is target
    assert found[0][1] == pytest.approx(1, abs=1e-5)
    assert [c for _, c in found] == sorted((c for _, c in found), reverse=True)
    assert target.access_count == 0
    bank.find_similar(target.centroid, 1, now=50.0)
    counted = bank.get_pattern(target.id)
    assert counted is not None
    assert (counted.access_count, counted.last_accessed) == (1, 50.0)
    assert len(bank.find_similar(target.centroid, 100)) == 8
    assert bank.find_similar(target.centroid, 3, min_quality=0.9) == []
    assert ReasoningBank(PatternConfig(embedding_dim=DIM)).find_similar(target.centroid) == []


def test_only_poor_unused_and_old_patterns_are_pruned() -> None:
    bank = filled(topics(np.random.default_rng(0), 100, 4), 0.1, k_clusters=4)
    bank.extract_patterns(now=0.0)
    for _ in range(bank.config.prune_accesses):
        bank.find_similar(bank.patterns[0].centroid, 1, now=1.0)
    late = bank.config.prune_age_seconds + 2
    assert bank.prune_patterns(now=late - 3) == []
    assert bank.prune_patterns(now=late) == [2, 3, 4]
    assert [p.id for p in bank.patterns] == [1]
    assert bank.stats().unclustered == 75


def test_text_is_attached_and_survives_extraction() -> None:
    random = np.random.default_rng(0)
    bank = filled(topics(random, 100, 4), k_clusters=4)
    bank.extract_patterns()
    bank.attach_text(2, title="refunds", description="what it costs")
    for row in topics(random, 40, 4):
        bank.add_trajectory(trajectory(row))
    bank.extract_patterns()
    kept = bank.get_pattern(2)
    assert kept is not None
    assert (kept.title, kept.description, kept.content, kept.cluster_size) == ("refunds", "what it costs", None, 35)
    with pytest.raises(InvalidInput, match="no pattern 77"):
        bank.attach_text(77, title="x")


# ---- verdicts and recommendations ------------------------------------------------------------------------------------


def planted(events: int = 800) -> ReasoningBank:
    """A bank where even topics want model a, odd ones b, and an effort of 40."""
    random = np.random.default_rng(0)
    bank = ReasoningBank(PatternConfig(embedding_dim=DIM, k_clusters=4))
    for i, row in enumerate(topics(random, events, 4)):
        model, effort = "ab"[random.integers(2)], [20, 40, 80][random.integers(3)]
        quality = 0.5 + 0.2 * (model == "ab"[i % 4 % 2]) + 0.1 * (effort == 40) + 0.05 * random.standard_normal()
        parameters: dict[str, Json] = {"model": model, "effort": effort}
        answer = Answer(strategy=("frozen", "fusion")[random.integers(2)])
        quality += 0.1 * (answer.strategy == "fusion")
        bank.add_trajectory(
            trajectory(
                row, quality, metadata={"parameters": parameters, "precision": 0.5, "recall": 0.25}, answer=answer
            )
        )
    bank.extract_patterns(now=0.0)
    return bank


def test_verdicts_say_what_worked_in_each_pattern() -> None:
    bank = planted()
    queries = topics(np.random.default_rng(1), 4, 4, 0.1)
    for topic, query in enumerate(queries):
        pattern = bank.find_similar(query, 1)[0][0]
        evidence = {(e.parameter, e.value): e for e in bank.get_verdict(pattern.id)}
        best, other = "ab"[topic % 2], "ba"[topic % 2]
        assert evidence["model", best].decision == 1
        assert evidence["model", best].improvement == pytest.approx(0.2, abs=0.05)
        assert evidence["model", other].decision == -1
        assert evidence["model", best].p_adjusted < 1e-6
        assert evidence["effort", 40].improvement > 0.05
        assert evidence["model", best].precision == pytest.approx(0.5)
        assert evidence["model", best].recall == pytest.approx(0.25)
        assert pattern.best_strategy == "fusion"
        found = bank.optimized_params(query, defaults={"model": "c", "unknown": 3})
        assert found["model"].value == best
        assert found["model"].source[0] == pattern.id
        assert found["model"].confidence > 0.8
        assert found["effort"].value == 40
        assert found["unknown"] == Recommendation(3)
    assert bank.get_verdict(99) == []


def test_nothing_known_is_the_default() -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=DIM))
    query = topics(np.random.default_rng(1), 1, 1)[0]
    assert bank.optimized_params(query) == {}
    assert bank.optimized_params(query, defaults={"x": None, "y": 1}) == {
        "x": Recommendation(None),
        "y": Recommendation(1),
    }


def best(value: Json, other: Json) -> dict[str, Best | None]:
    return best_values({"x": sure(value, other)}, VerdictConfig())


def sure(value: Json, other: Json) -> Verdict:
    return Verdict("x").updated([Outcome(value, 0.9), Outcome(other, 0.1)] * 40, VerdictConfig())


def test_numbers_are_interpolated_and_categories_voted() -> None:
    width = 0.1
    near = [NearPattern(1, 0.9, best(1.0, 9.0)), NearPattern(2, 0.8, best(3.0, 9.0))]
    weight = math.exp(-1)
    found = optimized_params(near, width)["x"]
    assert found.value == pytest.approx((1 + 3 * weight) / (1 + weight), abs=1e-6)
    assert found.source == (1, 2)
    assert 0.95 <= found.confidence <= 1
    whole = [NearPattern(1, 0.9, best(10, 90)), NearPattern(2, 0.9, best(21, 90))]
    assert optimized_params(whole, width)["x"].value == 16
    votes = [
        NearPattern(1, 0.9, best("a", "z")),
        NearPattern(2, 0.89, best("b", "z")),
        NearPattern(3, 0.89, best("b", "z")),
    ]
    chosen = optimized_params(votes, width)["x"]
    assert (chosen.value, chosen.source) == ("b", (2, 3))
    assert chosen.confidence < 0.7
    mixed = [NearPattern(1, 0.9, best(1, 2)), NearPattern(2, 0.5, best("b", "z"))]
    assert optimized_params(mixed, width)["x"].value == 1
    huge = [NearPattern(id, 0.9, {"x": (1.5e308, 1.0)}) for id in (1, 2, 3)] + [
        NearPattern(4, 0.9, {"x": (1.6e308, 1.0)})
    ]
    assert optimized_params(huge, width)["x"].value == pytest.approx(1.525e308)
    far = [NearPattern(1, 0.9, {"x": None}), NearPattern(2, -0.9, {"x": ("b", 0.5)})]
    assert optimized_params(far, 1e-3)["x"].value == "b"


def test_what_is_proven_to_be_worse_is_not_recommended() -> None:
    verdict = sure("a", "z")
    assert best_value(verdict, VerdictConfig()) == ("a", pytest.approx(1, abs=0.05))
    assert best_value(Verdict("x").updated([Outcome("a", 0.9)] * 9, VerdictConfig()), VerdictConfig()) is None


@pytest.mark.parametrize("seed", [0, 1])
def test_recommendations_reach_the_oracle_and_beat_a_default(seed: int) -> None:
    found = usefulness(seed, dim=64)
    assert found.recommended >= 0.95 * found.oracle
    assert found.recommended > found.default + 0.1


def test_too_long_and_too_many_parameters_are_skipped_and_counted() -> None:
    bank = ReasoningBank(
        PatternConfig(embedding_dim=2, min_cluster_size=1), VerdictConfig(max_value_bytes=10, max_parameters=2)
    )
    bank.add_trajectory(trajectory([1, 0]), parameters={"a": "x" * 20, "b": 1, "c": 2, "d": 3})
    bank.add_trajectory(trajectory([1, 0]), parameters={"e": 1})
    (pattern,) = bank.extract_patterns()
    assert {e.parameter for e in bank.get_verdict(pattern.id)} == {"b", "c"}
    assert bank.stats().skipped_parameters == 3


# ---- state and bad input ---------------------------------------------------------------------------------------------


def test_export_and_import_keep_everything() -> None:
    bank = planted(400)
    bank.attach_text(1, title="t")
    exported = json.loads(json.dumps(bank.export()))
    other = ReasoningBank(bank.config)
    assert other.import_(exported) == {p.id: p.id for p in bank.patterns}
    for one, two in zip(bank.patterns, other.patterns, strict=True):
        assert one.centroid.tobytes() == two.centroid.tobytes()
        assert one.avg_quality == two.avg_quality
        assert (one.title, one.support, one.best_strategy) == (two.title, two.support, two.best_strategy)
        assert bank.get_verdict(one.id) == other.get_verdict(two.id)
    with pytest.raises(ConfigError, match="max_parameters"):
        ReasoningBank(bank.config, VerdictConfig(max_parameters=1)).import_(exported)


def test_import_refuses_another_dimension_and_damage_and_takes_nothing() -> None:
    bank = planted(200)
    exported = bank.export()
    with pytest.raises(DimensionMismatch, match="the exported bank has 24 dimensions, expected 8"):
        ReasoningBank(PatternConfig(embedding_dim=8)).import_(exported)
    first = dict(exported["patterns"][0])  # type: ignore
    other = ReasoningBank(bank.config)
    for damage in (
        {},
        {"format": "x"},
        exported | {"dimension": None},
        exported | {"patterns": None},
        exported | {"patterns": [first, first]},
        exported | {"patterns": [first | {"centroid": [0.0] * DIM}]},
        exported | {"patterns": [first | {"centroid": [math.nan] * DIM}]},
        exported | {"patterns": [first | {"centroid": [1.0]}]},
        exported | {"patterns": [first | {"cluster_size": -1}]},
        exported | {"patterns": [first | {"avg_quality": "good"}]},
        exported | {"patterns": [first | {"title": 3}]},
        exported | {"verdicts": {"99": []}},
        exported | {"verdicts": {"1": [{}]}},
        exported | {"verdicts": {"a": []}},
    ):
        with pytest.raises((InvalidInput, DimensionMismatch)):
            other.import_(damage)
        assert other.patterns == []


@pytest.mark.parametrize(
    ("given", "parameters", "match"),
    [
        (trajectory([0.0, 0.0]), None, "zero"),
        (trajectory([math.nan, 0.0]), None, "NaN"),
        (trajectory([1.0, 0.0], math.inf), None, "finite"),
        (trajectory([1.0, 0.0]), {"a": math.nan}, "finite"),
        (trajectory([1.0, 0.0]), {"a": object()}, "no JSON"),
        (trajectory([1.0, 0.0]), {1: 2}, "expected a text"),
        (trajectory([1.0, 0.0]), [1], "expected values by name"),
        (trajectory([1.0, 0.0], metadata={"parameters": 3}), None, "expected values by name"),
        (trajectory([1.0, 0.0], metadata={"precision": 2.0}), None, "expected 0 to 1"),
        (trajectory([1.0, 0.0], metadata={"recall": "x"}), None, "expected a number"),
    ],
)
def test_bad_trajectories_are_refused_and_nothing_is_kept(
    given: QueryTrajectory, parameters: object, match: str
) -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=2))
    with pytest.raises(InvalidInput, match=match):
        bank.add_trajectory(given, parameters=parameters)  # type: ignore[arg-type]
    assert bank.trajectory_count == 0


def test_other_dimensions_and_bad_numbers_are_refused() -> None:
    bank = ReasoningBank(PatternConfig(embedding_dim=2))
    with pytest.raises(DimensionMismatch):
        bank.add_trajectory(trajectory([1.0, 0.0, 0.0]))
    with pytest.raises(DimensionMismatch):
        bank.find_similar([1.0])
    with pytest.raises(InvalidInput, match="zero"):
        bank.find_similar([0.0, 0.0])
    for k in (-1, 1.5, True):
        with pytest.raises(InvalidInput, match="k is"):
            bank.find_similar([1.0, 0.0], k)  # type: ignore[arg-type]


def test_trajectories_are_taken_in_together_or_not_at_all() -> None:
    rows = topics(np.random.default_rng(0), 6, 2)
    together, one_by_one = ReasoningBank(PatternConfig(embedding_dim=DIM)), filled(rows)
    together.add_trajectories([trajectory(row) for row in rows])
    assert together.trajectory_count == one_by_one.trajectory_count == 6
    long = {"parameters": {"prompt": "x" * 2000}}
    for bad in (
        trajectory(np.zeros(DIM)),
        trajectory(np.ones(DIM + 1)),
        "none",
        trajectory(rows[0], metadata={"recall": 2}),
    ):
        with pytest.raises((InvalidInput, DimensionMismatch)):
            together.add_trajectories([trajectory(rows[0], metadata=long), bad])  # type: ignore[list-item]
    # Nor is anything counted of what was refused.
    assert (together.trajectory_count, together.stats().skipped_parameters) == (6, 0)
    with pytest.raises(InvalidInput):
        together.add_trajectories("abc")  # type: ignore[arg-type]


# ---- levels ----------------------------------------------------------------------------------------------------------


def test_patterns_of_patterns_are_not_among_those_that_they_are_made_of() -> None:
    rows = topics(np.random.default_rng(3), 160, 8)
    bank = filled(rows, quality=0.05)
    base = bank.extract_patterns(now=0.0)
    metas = pattern_hierarchy(base, next_id=100, now=0.0).patterns
    other = filled(rows[:0])
    moved = other.import_(bank_to_json(DIM, [*base, *metas], {}), now=0.0)
    own = {moved[pattern.id] for pattern in base}
    above = {moved[meta.id]: meta for meta in metas if meta.abstraction_level == 1}
    assert len(own) == 8
    assert len(above) >= 2
    # One that is as near as can be to a meta-pattern finds a pattern, and the meta-pattern where it is asked for.
    for id, meta in above.items():
        assert {pattern.id for pattern, _ in other.find_similar(meta.centroid, 100)} == own
        assert other.find_similar(meta.centroid, 1, level=1)[0][0].id == id
    assert other.find_similar(rows[0], 5, level=9) == []
    with pytest.raises(InvalidInput, match="level is -1"):
        other.find_similar(rows[0], level=-1)
    # Clusters never become meta-patterns, though these are where trajectories are.
    for meta in above.values():
        for _ in range(5):
            other.add_trajectory(trajectory(meta.centroid, 0.05))
    extracted = {pattern.id: pattern for pattern in other.extract_patterns(now=1.0)}
    for id, meta in above.items():
        assert extracted[id].cluster_size == meta.cluster_size
        assert np.array_equal(extracted[id].centroid, meta.centroid)
    assert len(extracted) > len(moved)
    # What is of low quality, unused and old goes, and the level above does not go with it.
    gone = other.prune_patterns(now=1e12)
    assert own <= set(gone)
    assert {pattern.id for pattern in other.patterns} == {moved[meta.id] for meta in metas}
