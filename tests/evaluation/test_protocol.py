"""The protocol of an evaluation: a lift that is real, against baselines, strategies, and what is traced."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sona_pg.errors import ConfigError, SonaError
from sona_pg.evaluation import (
    Collection,
    CollectionReport,
    Feedback,
    MemorySystem,
    SplitKind,
    StrategySystem,
    SystemFactory,
    Trace,
    baselines,
    evaluate_collection,
    metrics,
    report_json,
)
from sona_pg.evaluation.protocol import Stream, trajectory_id
from sona_pg.evaluation.report import SplitResult
from sona_pg.evaluation.splits import make_split
from sona_pg.evaluation.trace import running_mean
from sona_pg.learning.strategies import Lesson, Strategy, Turn
from sona_pg.types import QueryTrajectory

from .documents import DOCS, FloatMatrix, small
from .documents import rotated as rotated


class Recorder:
    """A system that keeps what it is told and answers like the frozen embedding."""

    def __init__(self, collection: Collection) -> None:
        self.seen: list[QueryTrajectory] = []
        self.closed = 0
        self.docs = collection.unit_docs

    served = "adapted"

    def answer(self, queries: FloatMatrix) -> dict[str, NDArray[np.int64]]:
        return {"adapted": metrics.rank_documents(queries, self.docs)}

    def observe(self, trajectory: QueryTrajectory) -> None:
        assert not self.closed
        self.seen.append(trajectory)

    def close(self) -> None:
        self.closed += 1


class ShuffledOutcomes(MemorySystem):
    """Learns the outcomes of each answer as if they had been another document's."""

    def observe(self, trajectory: QueryTrajectory) -> None:
        random = np.random.RandomState(trajectory.id.int % 2**32)
        others = random.choice(DOCS, len(trajectory.steps), replace=False)
        steps = tuple(
            step._replace(item_id=f"doc-{doc}") for step, doc in zip(trajectory.steps, others.tolist(), strict=True)
        )
        super().observe(replace(trajectory, steps=steps))


def scores_of(report: CollectionReport) -> Iterable[NDArray[np.float64]]:
    for split in report.splits:
        for scores in (*split.strategies.values(), *split.baselines.values()):
            yield from scores


class TestProtocol:
    def test_every_event_is_seen_once_in_order_with_its_outcome(self) -> None:
        collection = small([{query % 20: 2.0, 19: 1.0} if query % 4 else {} for query in range(30)])
        systems: list[Recorder] = []

        def factory(of: Collection) -> Recorder:
            systems.append(Recorder(of))
            return systems[-1]

        ticks: list[tuple[int, int]] = []
        report = evaluate_collection(
            collection, splits=2, system_factory=factory, progress=lambda done, total: ticks.append((done, total))
        )
        parts = [make_split(collection, SplitKind.RANDOM, index) for index in range(2)]
        events = sum(len(split.stream) for split in parts)
        assert ticks == [(done, events) for done in range(1, events + 1)]
        assert report.events == events
        assert [system.closed for system in systems] == [1, 1]
        for split, system in zip(parts, systems, strict=True):
            frozen = metrics.rank_documents(collection.queries[list(split.stream)], collection.unit_docs)
            for event, trajectory in enumerate(system.seen):
                query = split.stream[event]
                assert trajectory.id == trajectory_id(collection, split, event)
                assert (trajectory.query_embedding == collection.queries[query]).all()
                shown = [step for step in trajectory.steps if step.position is not None]
                assert [step.item_id for step in shown] == [str(doc) for doc in frozen[event]]
                grades = collection.relevant[query]
                assert [s.reward for s in shown] == [grades.get(int(s.item_id or -1), 0) / 2 for s in shown]
                found = {int(s.item_id or -1) for s in trajectory.steps if s.reward}
                assert found == set(grades)

    def test_a_system_that_learns_nothing_changes_nothing(self) -> None:
        collection = small([{query % 20: 1.0} for query in range(30)])
        report = evaluate_collection(collection, splits=3, system_factory=Recorder)
        learned = report.learned
        assert (learned.gain_ndcg10, learned.gain_sd, learned.gain_ci95) == (0, 0, (0, 0))
        assert (learned.helped, learned.harmed, learned.unchanged) == (0, 0, 36)
        assert learned.quality == report.frozen.quality

    def test_a_system_is_closed_when_it_fails(self) -> None:
        systems: list[Recorder] = []

        class Failing(Recorder):
            def observe(self, trajectory: QueryTrajectory) -> None:
                systems.append(self)
                raise SonaError

        with pytest.raises(SonaError):
            evaluate_collection(small([{0: 1.0}] * 10), system_factory=Failing)
        assert systems[0].closed == 1

    def test_ids_are_distinct_and_the_same_in_every_run(self, rotated: Collection) -> None:
        splits = [make_split(rotated, kind, index) for kind in SplitKind for index in range(3)]
        ids = [trajectory_id(rotated, split, event) for split in splits for event in range(50)]
        assert len(set(ids)) == len(ids)
        assert ids[0] == uuid.UUID("42824926-d3e7-503d-b791-c6cd6d864c6f")

    def test_two_runs_agree_bit_for_bit(self, rotated: Collection) -> None:
        one, two = (evaluate_collection(rotated, splits=2, baselines=True) for _ in range(2))
        assert one == two
        assert all(np.array_equal(a, b) for a, b in zip(scores_of(one), scores_of(two), strict=True))

    @pytest.mark.parametrize("system", [MemorySystem, StrategySystem])
    def test_learning_beats_the_frozen_embedding(self, rotated: Collection, system: SystemFactory) -> None:
        report = evaluate_collection(rotated, splits=3, system_factory=system)
        learned = report.learned
        assert report.frozen.quality.ndcg10 < 0.5
        assert learned.quality.ndcg10 > 0.68
        assert min(learned.split_gains) > 0.2
        assert learned.gain_ci95 is not None
        assert learned.gain_ci95[0] > 0.2
        assert learned.helped > 3 * learned.harmed
        assert learned.helped + learned.harmed + learned.unchanged == 3 * 120

    @pytest.mark.parametrize("feedback", [Feedback.SHOWN, Feedback.THUMB])
    def test_less_feedback_teaches_less_but_teaches(self, rotated: Collection, feedback: Feedback) -> None:
        full, less = (
            evaluate_collection(rotated, splits=3, feedback=given, system_factory=MemorySystem).learned.gain_ndcg10
            for given in (Feedback.FULL, feedback)
        )
        assert 0.01 < less < full

    @pytest.mark.parametrize("system", [MemorySystem, StrategySystem])
    def test_what_was_learned_holds_on_documents_never_judged(self, rotated: Collection, system: SystemFactory) -> None:
        report = evaluate_collection(rotated, splits=3, split_kind=SplitKind.DISJOINT, system_factory=system)
        assert report.learned.gain_ndcg10 > 0.1

    def test_shuffled_outcomes_bring_nothing(self, rotated: Collection) -> None:
        report = evaluate_collection(rotated, splits=3, system_factory=ShuffledOutcomes)
        assert abs(report.learned.gain_ndcg10) < 0.04

    def test_no_split_is_refused(self, rotated: Collection) -> None:
        with pytest.raises(ConfigError, match="splits is 0, expected at least 1"):
            evaluate_collection(rotated, splits=0)

    def test_a_small_space_learns_the_first_events_of_the_same_streams(self, rotated: Collection) -> None:
        few, all = (evaluate_collection(rotated, splits=2, events=events) for events in (20, None))
        assert [split.events for split in few.splits] == [20, 20]
        assert [split.held_out for split in few.splits] == [split.held_out for split in all.splits]
        with pytest.raises(ConfigError, match="events is 0"):
            evaluate_collection(rotated, splits=1, events=0)


class TestBaselines:
    def test_outcomes_are_what_the_frozen_answers_brought(self) -> None:
        collection = small([{query % 20: 2.0, (query + 7) % 20: 1.0} for query in range(20)])
        split = make_split(collection, SplitKind.RANDOM, 0)
        frozen = metrics.rank_documents(collection.queries[list(split.stream)], collection.unit_docs)
        full, shown, thumb = (baselines.frozen_outcomes(collection, split, feedback) for feedback in Feedback)
        for event, query in enumerate(split.stream):
            rewards = {doc: grade / 2 for doc, grade in collection.relevant[query].items()}
            assert full[event] == rewards
            assert shown[event] == {doc: r for doc, r in rewards.items() if doc in frozen[event]}
            assert thumb[event] == {doc: r for doc, r in rewards.items() if doc == frozen[event, 0]}

    def test_remembered_by_hand(self) -> None:
        docs = np.eye(3, dtype=np.float32)
        # Query 0 was remembered with document 2; query 1 is equal to it and asks again, query 2 is far from both.
        queries = np.array([[1, 0.9, 0.8], [1, 0.9, 0.8], [-1, 0.2, 0.1]], dtype=np.float32)
        collection = Collection("hand", ["0", "1", "2"], docs, queries, [{2: 1.0}] * 3)
        split = replace(make_split(collection, SplitKind.RANDOM, 0), stream=(0,), held_out=(1, 2))
        assert baselines.remembered(collection, split, [{}]).tolist() == [[0, 1, 2], [1, 2, 0]]
        assert baselines.remembered(collection, split, [{2: 1.0}]).tolist() == [[2, 0, 1], [1, 2, 0]]

    def test_fewer_documents_than_a_ranking_shows(self) -> None:
        collection = small([{query % 8: 1.0} for query in range(60)], docs=8)
        report = evaluate_collection(collection, splits=1, baselines=True)
        assert all(strategy.quality.recall10 == 1.0 for strategy in report.baselines.values())

    def test_gradient_of_the_linear_map_against_differences(self) -> None:
        random = np.random.RandomState(0)
        weights = np.eye(5) + 0.1 * random.randn(5, 5)
        queries, docs = random.randn(4, 5), random.randn(6, 5) / 3
        targets = np.zeros((4, 6))
        targets[[0, 1, 2, 3], [0, 5, 2, 2]] = 1
        targets[1, 3] = np.nan

        def loss(at: NDArray[np.float64]) -> float:
            adapted = queries @ at
            logits = adapted / np.linalg.norm(adapted, axis=1, keepdims=True) @ docs.T / baselines.TEMPERATURE
            total = 0.0
            for row, found in zip(logits, targets, strict=True):
                kept = row[~np.isnan(found)]
                total += math.log(np.exp(kept - kept.max()).sum()) + kept.max() - row[found == 1][0]
            return total / len(queries)

        expected = np.zeros((5, 5))
        for i in range(5):
            for j in range(5):
                step = np.zeros((5, 5))
                step[i, j] = 1e-6
                expected[i, j] = (loss(weights + step) - loss(weights - step)) / 2e-6
        found = baselines._info_nce_gradient(weights, queries, docs, targets)  # type: ignore[arg-type]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)

    def test_rivals_run_on_the_same_splits(self, rotated: Collection) -> None:
        report = evaluate_collection(rotated, splits=2, baselines=True)
        assert set(report.baselines) == {"remembered", "offline_linear"}
        assert report.baselines["offline_linear"].gain_ndcg10 > 0.1
        assert report.baselines["remembered"].gain_ndcg10 > 0.05
        assert evaluate_collection(rotated, splits=2).learned == report.learned

    def test_without_outcomes_the_rivals_answer_like_the_frozen_embedding(self, rotated: Collection) -> None:
        split = make_split(rotated, SplitKind.RANDOM, 0)
        frozen = metrics.rank_documents(rotated.queries[list(split.held_out)], rotated.unit_docs)
        for rival in baselines.BASELINES.values():
            assert (rival(rotated, split, [{} for _ in split.stream]) == frozen).all()


class TestStrategies:
    def test_what_is_proven_answers_and_every_strategy_is_reported(self, rotated: Collection) -> None:
        report = evaluate_collection(rotated, splits=2)
        assert set(report.strategies) == {*(s.value for s in Strategy), "learned"}
        assert report.learned is report.strategies["learned"]
        assert min(report.learned.split_gains) > 0.15
        assert report.strategies["adapted"].gain_ndcg10 > 0.15

    def test_shuffled_outcomes_leave_the_answers_exactly_as_they_are(self, rotated: Collection) -> None:
        report = evaluate_collection(rotated, splits=3, shuffle_outcomes=True)
        assert report.learned.quality == report.frozen.quality
        assert (report.learned.helped, report.learned.harmed) == (0, 0)
        assert report.strategies["fusion"].gain_ndcg10 < -0.02, "it would have harmed"

    def test_learning_goes_on_through_the_held_out_part(self, rotated: Collection) -> None:
        once, continuing = (
            evaluate_collection(rotated, splits=2, split_kind=SplitKind.DISJOINT, continuing=goes_on)
            for goes_on in (False, True)
        )
        assert continuing.frozen == once.frozen
        assert continuing.learned.gain_ndcg10 > once.learned.gain_ndcg10

    def test_shuffling_moves_outcomes_and_loses_none(self) -> None:
        collection = small([{query % 20: 1.0} for query in range(30)])
        split = make_split(collection, SplitKind.RANDOM, 0)
        shown = np.arange(10)

        def outcomes(shuffled: bool) -> list[frozenset[str | None]]:
            stream = Stream(collection, split, Feedback.FULL, shuffle_outcomes=shuffled)
            events = range(len(split.stream))
            return [frozenset(s.item_id for s in stream.trajectory(e, shown).steps if s.reward) for e in events]

        straight, moved = outcomes(False), outcomes(True)
        assert straight != moved
        assert sorted(map(sorted, straight)) == sorted(map(sorted, moved))  # type: ignore[type-var, arg-type]


class TestTrace:
    def test_what_an_event_shows_is_what_its_answer_was_worth(self, rotated: Collection) -> None:
        report = evaluate_collection(rotated, splits=2, continuing=True)
        for split in report.splits:
            trace = trace_of(split)
            assert len(trace.lessons) == split.events + len(split.held_out)
            # Everything that helps becomes known here: the held-out part was measured by the same answers.
            for name, scores in split.strategies.items():
                gains = trace.gains(None if name == "learned" else Strategy(name))
                assert gains[split.events :] == pytest.approx(split.differences(scores), abs=1e-6)

    def test_every_event_has_its_lesson_and_tells_nothing_where_nothing_helped(self, rotated: Collection) -> None:
        seen: list[QueryTrajectory] = []

        class Spied(StrategySystem):
            def observe(self, trajectory: QueryTrajectory) -> None:
                seen.append(trajectory)
                super().observe(trajectory)

        (split,) = evaluate_collection(rotated, splits=1, feedback=Feedback.THUMB, system_factory=Spied).splits
        lessons = trace_of(split).lessons
        helped = [any(step.reward for step in trajectory.steps) for trajectory in seen]
        assert [bool(lesson.gains) for lesson in lessons] == helped
        assert 0 < sum(helped) < len(lessons) == split.events

    def test_turns_in_json_are_those_of_the_trace(self, rotated: Collection) -> None:
        report = evaluate_collection(rotated, splits=2)
        document = json.loads(json.dumps(report_json([report], {})))
        for split, found in zip(report.splits, document["collections"]["rotated"]["per_split"], strict=True):
            trace = trace_of(split)
            in_force = [*(lesson.in_force for lesson in trace.lessons), trace.in_force]
            assert in_force[0] is Strategy.FROZEN
            assert in_force[-1] is not Strategy.FROZEN
            turned = [(e, in_force[e], in_force[e + 1]) for e in range(split.events) if in_force[e] != in_force[e + 1]]
            assert [(turn["event"], turn["from"], turn["to"]) for turn in found["turns"]] == turned
            assert all(turn["reason"] for turn in found["turns"])

    def test_a_turn_at_the_last_event_is_told(self) -> None:
        frozen, fusion = Strategy.FROZEN, Strategy.FUSION
        turn = Turn(None, frozen, fusion, "proven")
        trace = Trace((Lesson(frozen, {}), Lesson(frozen, {frozen: 0.0, fusion: 0.5}, (turn,))), fusion)
        assert trace.turns == ((1, turn),)
        assert trace.gains(fusion).tolist() == pytest.approx([math.nan, 0.5], nan_ok=True)
        assert trace.gains().tolist() == pytest.approx([math.nan, 0.0], nan_ok=True)
        assert Trace((), frozen).turns == ()

    def test_a_system_need_not_tell(self, rotated: Collection) -> None:
        report = evaluate_collection(rotated, splits=1, system_factory=MemorySystem)
        assert report.splits[0].trace is None
        document = json.loads(json.dumps(report_json([report], {})))
        assert [found["turns"] for found in document["collections"]["rotated"]["per_split"]] == [[]]

    @given(st.lists(st.one_of(st.none(), st.integers(-5, 5)), max_size=20))
    def test_running_mean_against_other_code(self, values: list[int | None]) -> None:
        found = running_mean(np.array([np.nan if v is None else v for v in values], dtype=np.float64))
        for place, mean in enumerate(found):
            known = [v for v in values[: place + 1] if v is not None]
            assert mean == pytest.approx(sum(known) / len(known) if known else math.nan, nan_ok=True)


def trace_of(split: SplitResult) -> Trace:
    assert split.trace is not None
    return split.trace
