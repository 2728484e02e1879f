"""Metrics by hand, and the report of an evaluation."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona_pg.errors import InvalidInput
from sona_pg.evaluation import Collection, evaluate_collection, metrics, report_json
from sona_pg.evaluation.report import confidence_interval
from sona_pg.learning.strategies import Strategy

from .documents import DOCS, QUERIES
from .documents import rotated as rotated


class TestMetrics:
    RANKING = np.array([[4, 7, 1, 9, 0, 2, 3, 5, 6, 8]])

    def test_graded_ndcg_by_hand(self) -> None:
        # Found: grade 3 at rank 2, grade 1 at rank 5; 2 is at rank 6; document 11 was not found.
        grades = {7: 3.0, 0: 1.0, 2: 2.0, 11: 3.0}
        dcg = 3 / math.log2(3) + 1 / math.log2(6) + 2 / math.log2(7)
        ideal = 3 / 1 + 3 / math.log2(3) + 2 / 2 + 1 / math.log2(5)
        assert metrics.ndcg_at_10(self.RANKING, [grades]) == pytest.approx([dcg / ideal])

    def test_ideal_is_cut_at_ten(self) -> None:
        assert metrics.ndcg_at_10(self.RANKING, [dict.fromkeys(range(30), 1.0)]) == pytest.approx([1.0])

    def test_reciprocal_rank_recall_and_hit_by_hand(self) -> None:
        ranking = np.repeat(self.RANKING, 5, axis=0)
        relevant = [{4: 1.0}, {1: 2.0, 9: 1.0, 40: 1.0}, {2: 1.0, 41: 1.0}, {42: 3.0}, {7: 0.5, 8: 1.0}]
        assert metrics.mrr_at_10(ranking, relevant) == pytest.approx([1, 1 / 3, 1 / 6, 0, 1 / 10])
        assert metrics.recall_at_10(ranking, relevant) == pytest.approx([1, 2 / 3, 1 / 2, 0, 1])
        assert metrics.hit_at_5(ranking, relevant).tolist() == [1, 1, 0, 0, 0]

    def test_a_query_without_judgement_scores_zero(self) -> None:
        scores = metrics.score_ranking(self.RANKING, [{}])
        assert [metric.tolist() for metric in scores] == [[0.0]] * 4

    def test_fewer_documents_than_ten(self) -> None:
        ranking = metrics.rank_documents(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))
        assert ranking.tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1]]
        assert metrics.ndcg_at_10(ranking, [{1: 1.0}] * 3) == pytest.approx([1 / math.log2(3), 1, 1 / 2])

    @given(
        scores=st.lists(st.lists(st.integers(-3, 3), min_size=17, max_size=17), min_size=1, max_size=5),
        k=st.integers(1, 20),
    )
    def test_best_columns_is_a_stable_sort(self, scores: list[list[int]], k: int) -> None:
        matrix = np.array(scores, dtype=np.float32)
        assert (metrics.best_columns(matrix, k) == np.argsort(-matrix, axis=1, kind="stable")[:, :k]).all()

    def test_blocks_do_not_change_the_ranking(self, monkeypatch: pytest.MonkeyPatch) -> None:
        random = np.random.RandomState(0)
        queries, docs = random.randint(-2, 3, (50, 6)), random.randint(-2, 3, (40, 6))
        whole = metrics.rank_documents(queries.astype(np.float32), docs.astype(np.float32))
        monkeypatch.setattr(metrics, "_BLOCK_SCORES", 100)
        assert (metrics.rank_documents(queries.astype(np.float32), docs.astype(np.float32)) == whole).all()

    def test_a_query_that_is_not_finite_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="NaN or infinity"):
            metrics.rank_documents(np.full((1, 3), np.nan, dtype=np.float32), np.eye(3, dtype=np.float32))


class TestReport:
    def test_json_has_the_documented_layout(self, rotated: Collection) -> None:
        reports = [
            evaluate_collection(rotated, splits=2, baselines=True),
            evaluate_collection(replace(rotated, name="other"), splits=2),
        ]
        document = json.loads(json.dumps(report_json(reports, {"splits": 2}), allow_nan=False))
        assert set(document) == {"collections", "mean_gain_ndcg10", "config"}
        assert document["config"] == {"splits": 2}
        first, second = document["collections"]["rotated"], document["collections"]["other"]
        assert (first["queries"], first["docs"], first["splits"], first["events"]) == (QUERIES, DOCS, 2, 360)
        assert {"ndcg10", "mrr10", "recall10", "hit5"} == set(first["frozen"]) == set(first["learned"])
        assert first["gain_ndcg10"] == pytest.approx(first["learned"]["ndcg10"] - first["frozen"]["ndcg10"])
        assert first["helped"] + first["harmed"] + first["unchanged"] == 2 * 120
        assert set(first["strategies"]) == {*(s.value for s in Strategy), "learned"}
        assert set(first["baselines"]) == {"remembered", "offline_linear"}
        assert second["baselines"] == {}
        assert first["strategies"]["learned"]["gain_ndcg10"] == first["gain_ndcg10"]
        assert first["gain_sd"] == pytest.approx(np.std([s["gain_ndcg10"] for s in first["per_split"]], ddof=1))
        assert first["us_per_event"] > 0
        assert document["mean_gain_ndcg10"] == pytest.approx((first["gain_ndcg10"] + second["gain_ndcg10"]) / 2)

    def test_collections_of_one_name_are_refused(self, rotated: Collection) -> None:
        report = evaluate_collection(rotated, splits=1)
        assert report.learned.gain_sd == 0.0
        for reports in ([report, report], []):
            with pytest.raises(InvalidInput, match="distinct names: rename a directory"):
                report_json(reports, {})

    def test_interval_of_single_appearances_is_that_of_a_mean(self) -> None:
        differences = np.random.RandomState(0).randn(200)
        error = differences.std(ddof=1) / math.sqrt(200)
        interval = confidence_interval(np.arange(200), differences, float(differences.mean()))
        assert interval == pytest.approx(
            (differences.mean() - 1.96 * error, differences.mean() + 1.96 * error), abs=1e-5
        )

    def test_repeated_appearances_do_not_narrow_the_interval(self) -> None:
        differences = np.random.RandomState(0).randn(200)
        once = confidence_interval(np.arange(200), differences, 0.0)
        often = confidence_interval(np.tile(np.arange(200), 5), np.tile(differences, 5), 0.0)
        assert once == pytest.approx(often)

    def test_one_query_has_no_interval(self) -> None:
        assert confidence_interval(np.array([3, 3]), np.array([0.1, 0.2]), 0.15) is None
