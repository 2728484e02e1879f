"""Evaluation: metrics by hand, splits by other code, every refusal of the loaders, and a lift that is real."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, IoError, SonaError
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
    load_collection,
    metrics,
    report_json,
)
from sona_pg.evaluation.feedback import Judgement, judge
from sona_pg.evaluation.protocol import Stream, trajectory_id
from sona_pg.evaluation.report import SplitResult, confidence_interval
from sona_pg.evaluation.splits import disjoint_parts, linked_groups, make_split
from sona_pg.evaluation.trace import running_mean
from sona_pg.learning.strategies import Lesson, Strategy, Turn
from sona_pg.types import QueryTrajectory

FloatMatrix = NDArray[np.float32]
DIM, DOCS, QUERIES = 32, 100, 300


@pytest.fixture(scope="module")
def rotated() -> Collection:
    """Every query is its document, turned in the four planes in which documents differ most, and noise."""
    random = np.random.RandomState(7)
    docs = random.randn(DOCS, DIM) * np.array([3.0] * 8 + [1.0] * (DIM - 8))
    docs /= np.linalg.norm(docs, axis=1, keepdims=True)
    wanted = random.randint(0, DOCS, QUERIES)
    queries = docs[wanted].copy()
    angle = 1.25
    for plane in range(4):
        x, y = docs[wanted, 2 * plane], docs[wanted, 2 * plane + 1]
        queries[:, 2 * plane] = math.cos(angle) * x - math.sin(angle) * y
        queries[:, 2 * plane + 1] = math.sin(angle) * x + math.cos(angle) * y
    queries += 0.08 * random.randn(QUERIES, DIM)
    return Collection(
        "rotated",
        [f"doc-{row}" for row in range(DOCS)],
        docs.astype(np.float32),
        queries.astype(np.float32),
        [{int(doc): 1.0} for doc in wanted],
    )


def small(relevant: list[dict[int, float]], docs: int = 20) -> Collection:
    random = np.random.RandomState(0)
    return Collection(
        "small",
        [str(row) for row in range(docs)],
        random.randn(docs, 12).astype(np.float32),
        random.randn(len(relevant), 12).astype(np.float32),
        relevant,
    )


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


class TestSplits:
    def test_random_split_is_the_documented_permutation(self) -> None:
        split = make_split(small([{0: 1.0}] * 7), SplitKind.RANDOM, 3)
        order = np.random.RandomState(1003).permutation(7).tolist()
        assert (list(split.stream), list(split.held_out)) == (order[:4], order[4:])

    def test_random_split_literally(self) -> None:
        split = make_split(small([{0: 1.0}] * 10), SplitKind.RANDOM, 0)
        assert split.stream == (2, 6, 5, 1, 4, 9)
        assert split.held_out == (0, 8, 7, 3)

    def test_unjudged_queries_keep_their_place_and_are_left_out(self) -> None:
        judged = make_split(small([{0: 1.0}] * 10), SplitKind.RANDOM, 0)
        some = make_split(small([{} if query % 3 == 0 else {0: 1.0} for query in range(10)]), SplitKind.RANDOM, 0)
        assert some.stream == tuple(query for query in judged.stream if query % 3)
        assert some.held_out == tuple(query for query in judged.held_out if query % 3)

    def test_linked_groups_literally(self) -> None:
        relevant = [{5: 1.0}, {1: 1.0}, {}, {2: 1.0, 3: 1.0}, {1: 2.0, 2: 1.0}, {5: 1.0}]
        assert linked_groups(relevant) == [[0, 5], [1, 3, 4], [2]]

    def test_disjoint_split_literally(self) -> None:
        relevant = [{query // 2: 1.0} for query in range(10)]
        stream, held_out = disjoint_parts(relevant, 0)
        # RandomState(500) orders the five pairs 0 4 1 3 2; of .6 · 10 + 1 = 7 queries three pairs take 6.
        assert stream == [0, 1, 8, 9, 2, 3]
        assert held_out == [6, 7, 4, 5]

    @settings(max_examples=60)
    @given(
        relevant=st.lists(st.sets(st.integers(0, 30), max_size=2), min_size=1, max_size=40),
        index=st.integers(0, 9),
    )
    def test_disjoint_against_other_code(self, relevant: list[set[int]], index: int) -> None:
        stream, held_out = disjoint_parts([dict.fromkeys(docs, 1.0) for docs in relevant], index)
        assert sorted(stream + held_out) == list(range(len(relevant)))
        assert len(stream) <= 0.6 * len(relevant) + 1
        assert not {doc for q in stream for doc in relevant[q]} & {doc for q in held_out for doc in relevant[q]}
        assert (stream, held_out) == straightforward_disjoint(relevant, index)

    def test_a_collection_in_one_group_has_no_disjoint_split(self) -> None:
        with pytest.raises(InvalidInput, match="0 queries with a judged document to learn from and 8 to measure"):
            make_split(small([{0: 1.0}] * 8), SplitKind.DISJOINT, 0)

    def test_a_single_query_cannot_be_split(self) -> None:
        with pytest.raises(InvalidInput, match="expected at least one of each"):
            make_split(small([{0: 1.0}]), SplitKind.RANDOM, 0)


def straightforward_disjoint(relevant: list[set[int]], index: int) -> tuple[list[int], list[int]]:
    """Groups by flood fill."""
    groups: list[list[int]] = []
    for first in range(len(relevant)):
        if any(first in group for group in groups):
            continue
        group, docs = {first}, set(relevant[first])
        while more := {q for q, found in enumerate(relevant) if found & docs} - group:
            group |= more
            docs |= set().union(*(relevant[q] for q in more))
        groups.append(sorted(group))
    stream: list[int] = []
    held_out: list[int] = []
    for position in np.random.RandomState(500 + index).permutation(len(groups)):
        if len(stream) + len(groups[position]) <= 0.6 * len(relevant) + 1:
            stream += groups[position]
        else:
            held_out += groups[position]
    return stream, held_out


class TestFeedback:
    SHOWN = tuple(range(10, 20))
    GRADES = {11: 2.0, 13: 1.0, **dict.fromkeys(range(30, 36), 1.0)}  # noqa: RUF012

    def outcome(self, feedback: Feedback, grades: dict[int, float] | None = None, event: int = 0) -> list[Judgement]:
        known = self.GRADES if grades is None else grades
        return judge(known, self.SHOWN, feedback, best_grade=2.0, seed=(4, event))

    def test_shown(self) -> None:
        outcome = self.outcome(Feedback.SHOWN)
        assert [judged.doc for judged in outcome] == list(self.SHOWN)
        assert [judged.position for judged in outcome] == list(range(1, 11))
        assert [judged.reward for judged in outcome] == [0, 1.0, 0, 0.5, 0, 0, 0, 0, 0, 0]

    def test_full_marks_three_further_documents(self) -> None:
        outcome = self.outcome(Feedback.FULL)
        assert outcome[:10] == self.outcome(Feedback.SHOWN)
        further = outcome[10:]
        assert len({judged.doc for judged in further}) == len(further) == 3
        assert {judged.doc for judged in further} <= set(range(30, 36))
        assert {(judged.reward, judged.position) for judged in further} == {(0.5, None)}

    def test_full_draws_by_split_and_event(self) -> None:
        assert self.outcome(Feedback.FULL) == self.outcome(Feedback.FULL)
        drawn = {tuple(judged.doc for judged in self.outcome(Feedback.FULL, event=event)[10:]) for event in range(20)}
        assert len(drawn) > 5

    def test_full_marks_all_where_there_are_three(self) -> None:
        outcome = self.outcome(Feedback.FULL, {11: 2.0, 44: 1.0, 40: 2.0, 42: 1.0})
        assert outcome[10:] == [(40, 1.0, None), (42, 0.5, None), (44, 0.5, None)]

    def test_thumb_judges_the_first_alone(self) -> None:
        outcome = self.outcome(Feedback.THUMB, {10: 1.0, 11: 2.0})
        assert [judged.reward for judged in outcome] == [0.5] + [None] * 9
        assert [judged.position for judged in outcome] == list(range(1, 11))
        assert self.outcome(Feedback.THUMB)[0].reward == 0.0


def write_arrays(
    path: Path, docs: NDArray[np.generic], queries: NDArray[np.generic], qrels: str = "0\t1\t2\n1\t0\t1\n"
) -> Path:
    np.save(path / "docs.npy", docs)
    np.save(path / "queries.npy", queries)
    (path / "qrels.tsv").write_text(qrels)
    return path


def write_beir(path: Path, **files: str) -> Path:
    contents = {
        "corpus.jsonl": '{"_id": "d1", "title": "Cats", "text": "purr"}\n{"_id": "d2", "text": "Dogs bark"}\n',
        "queries.jsonl": '{"_id": "q1", "text": "dogs?"}\n{"_id": "q2", "text": "x"}\n{"_id": "q3", "text": "cats?"}\n',
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq3\td1\t2\nq1\td2\t1\nq2\td2\t0\n",
        **{name.replace("__", "."): text for name, text in files.items()},
    }
    (path / "qrels").mkdir()
    for name, text in contents.items():
        (path / name).write_text(text)
    return path


def embed(texts: list[str]) -> list[list[float]]:
    return [[float(len(text)), float(ord(text[0])), 1.0] for text in texts]


ARRAYS = np.eye(3), np.ones((2, 3))


class TestLoadArrays:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
    def test_reads_any_float(self, tmp_path: Path, dtype: str) -> None:
        path = write_arrays(tmp_path, ARRAYS[0].astype(dtype), ARRAYS[1].astype(dtype))
        collection = load_collection(path)
        assert collection.name == tmp_path.name
        assert collection.doc_ids == ["0", "1", "2"]
        assert collection.docs.dtype == collection.queries.dtype == np.dtype(np.float32)
        assert (collection.docs == np.eye(3)).all()
        assert collection.relevant == [{1: 2.0}, {0: 1.0}]
        assert collection.best_grade == 2.0

    def test_header_blanks_blank_lines_and_grades_of_nothing(self, tmp_path: Path) -> None:
        qrels = "query doc grade\n\n0 1 0.5\n0 2 0\r\n1\t0\t-1\n  1 2 3  \n0 1 1.5\n"
        assert load_collection(write_arrays(tmp_path, *ARRAYS, qrels)).relevant == [{1: 1.5}, {2: 3.0}]

    def test_a_directory_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(IoError, match="is not a directory: pass one that holds"):
            load_collection(tmp_path / "nowhere")

    def test_a_directory_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "holiday.jpg").touch()
        with pytest.raises(IoError, match=r"holds holiday.jpg: expected docs.npy"):
            load_collection(tmp_path)

    @pytest.mark.parametrize("name", ["docs.npy", "queries.npy", "qrels.tsv"])
    def test_a_missing_file(self, tmp_path: Path, name: str) -> None:
        (write_arrays(tmp_path, *ARRAYS) / name).unlink()
        with pytest.raises(IoError, match=f"{name} is missing"):
            load_collection(tmp_path)

    @pytest.mark.parametrize("contents", [b"", b"not numpy", b"\x93NUMPY\x01\x00"])
    def test_a_damaged_array(self, tmp_path: Path, contents: bytes) -> None:
        (write_arrays(tmp_path, *ARRAYS) / "docs.npy").write_bytes(contents)
        with pytest.raises(IoError, match=r"docs.npy is not a readable .npy file"):
            load_collection(tmp_path)

    def test_an_archive_in_place_of_an_array(self, tmp_path: Path) -> None:
        write_arrays(tmp_path, *ARRAYS)
        with (tmp_path / "docs.npy").open("wb") as file:
            np.savez(file, docs=np.eye(3))
        with pytest.raises(InvalidInput, match="an archive of arrays"):
            load_collection(tmp_path)

    def test_qrels_that_are_no_text(self, tmp_path: Path) -> None:
        (write_arrays(tmp_path, *ARRAYS) / "qrels.tsv").write_bytes(b"\xff\xfe\x00\x01")
        with pytest.raises(IoError, match="cannot be read as UTF-8"):
            load_collection(tmp_path)

    @pytest.mark.parametrize(
        ("docs", "queries", "message"),
        [
            (np.eye(3, dtype=np.int64), np.ones((2, 3)), "docs.npy holds dtype int64, expected one array of floats"),
            (np.ones(3), np.ones((2, 3)), r"docs.npy has shape \(3,\), expected \(rows, dimension\)"),
            (np.ones((0, 3)), np.ones((2, 3)), r"docs.npy has shape \(0, 3\)"),
            (np.eye(3), np.ones((0, 3)), r"queries.npy has shape \(0, 3\)"),
            (np.eye(3), np.array([[0, 0, 0], [0, np.nan, 0]]), "queries.npy holds NaN .* the first is row 1"),
            (np.full((3, 3), np.inf), np.ones((2, 3)), "docs.npy holds NaN or infinity in 3 rows"),
            (np.eye(3) * 1e300, np.ones((2, 3)), "docs.npy holds NaN or infinity in 3 rows"),
        ],
    )
    def test_arrays_that_are_no_embeddings(
        self, tmp_path: Path, docs: FloatMatrix, queries: FloatMatrix, message: str
    ) -> None:
        with pytest.raises(InvalidInput, match=message):
            load_collection(write_arrays(tmp_path, docs, queries))

    def test_differing_dimensions(self, tmp_path: Path) -> None:
        with pytest.raises(DimensionMismatch, match="has 4 dimensions, expected 3") as caught:
            load_collection(write_arrays(tmp_path, np.eye(3), np.ones((2, 4))))
        assert (caught.value.expected, caught.value.actual) == (3, 4)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("2\t0\t1", "line 2: query is 2, expected 0 to 1"),
            ("0\t3\t1", "line 2: document is 3, expected 0 to 2"),
            ("-1\t0\t1", "line 2: query is '-1', expected the number of its row"),
            ("0\t1.5\t1", "line 2: document is '1.5', expected the number of its row"),
            ("0\tx\t1", "line 2: document is 'x'"),
            ("0\t1\thigh", "line 2: grade is 'high', expected a finite number"),
            ("0\t1\tnan", "line 2: grade is 'nan'"),
            ("0\t1\tinf", "line 2: grade is 'inf'"),
            ("0\t1", "line 2: 2 fields"),
            ("0\t0\t1\t1", "line 2: 4 fields"),
            ("query\tdoc\tgrade", "line 2: grade is 'grade'"),
        ],
    )
    def test_a_malformed_line(self, tmp_path: Path, line: str, message: str) -> None:
        with pytest.raises(InvalidInput, match=rf"qrels.tsv, {message}"):
            load_collection(write_arrays(tmp_path, *ARRAYS, f"0\t1\t1\n{line}\n"))

    @pytest.mark.parametrize("qrels", ["", "query doc grade\n", "0 1 0\n"])
    def test_nothing_judged(self, tmp_path: Path, qrels: str) -> None:
        with pytest.raises(InvalidInput, match="no judgement with a grade above 0"):
            load_collection(write_arrays(tmp_path, *ARRAYS, qrels))


class TestLoadBeir:
    def test_reads_judged_queries_in_the_order_of_the_judgements(self, tmp_path: Path) -> None:
        seen: list[list[str]] = []

        def spy(texts: list[str]) -> list[list[float]]:
            seen.append(texts)
            return embed(texts)

        collection = load_collection(write_beir(tmp_path), spy)
        assert collection.doc_ids == ["d1", "d2"]
        assert collection.relevant == [{0: 2.0}, {1: 1.0}]
        assert seen == [["Cats purr", "Dogs bark"], ["cats?", "dogs?"]]
        assert collection.queries.tolist() == embed(["cats?", "dogs?"])

    def test_without_test_all_judgements_count(self, tmp_path: Path) -> None:
        write_beir(tmp_path)
        (tmp_path / "qrels/test.tsv").rename(tmp_path / "qrels/train.tsv")
        (tmp_path / "qrels/dev.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td1\t1\n")
        assert load_collection(tmp_path, embed).relevant == [{0: 1.0}, {0: 2.0}, {1: 1.0}]

    def test_texts_need_an_embedding_model(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="need an embedding model: pass one"):
            load_collection(write_beir(tmp_path))

    @pytest.mark.parametrize("name", ["queries.jsonl", "qrels/test.tsv"])
    def test_a_missing_file(self, tmp_path: Path, name: str) -> None:
        (write_beir(tmp_path) / name).unlink()
        with pytest.raises(IoError, match=r"queries.jsonl is missing|qrels holds no .tsv file"):
            load_collection(tmp_path, embed)

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"corpus.jsonl": '{"_id": "d1", "text": "a"}\n{oops\n'}, r"corpus.jsonl, line 2: not JSON"),
            ({"corpus.jsonl": '["d1"]\n'}, r"corpus.jsonl, line 1: .* expected an object with _id and text"),
            ({"queries.jsonl": '{"_id": "q1"}\n'}, r"queries.jsonl, line 1: .* expected an object with _id and text"),
            ({"corpus.jsonl": '{"_id": 1, "text": "a"}\n' * 2}, r"corpus.jsonl, line 2: _id '1' stands there twice"),
            ({"corpus.jsonl": ""}, r"corpus.jsonl is empty"),
            ({"qrels/test.tsv": "q1\td9\t1\n"}, r"test.tsv, line 1: 'd9' is not an _id of corpus.jsonl"),
            ({"qrels/test.tsv": "a\tb\tc\nq9\td1\t1\n"}, r"test.tsv, line 2: 'q9' is not an _id of queries.jsonl"),
            ({"qrels/test.tsv": "q1\td1\t0\n"}, "holds no score above 0"),
        ],
    )
    def test_malformed_files(self, tmp_path: Path, files: dict[str, str], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            load_collection(write_beir(tmp_path, **files), embed)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (lambda texts: [[1.0, 2.0]], "returned 1 vectors for 2 texts"),
            (lambda texts: [["a"]] * len(texts), "is not a matrix of numbers"),
            (lambda texts: [[math.nan]] * len(texts), "holds NaN or infinity"),
            (lambda texts: [1.0] * len(texts), r"has shape \(2,\)"),
        ],
    )
    def test_a_model_that_fails(self, tmp_path: Path, model: Callable[[list[str]], object], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            load_collection(write_beir(tmp_path), model)  # type: ignore[arg-type]


class TestCollection:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"doc_ids": ["0"] * 20}, "1 distinct document ids, expected 20"),
            ({"relevant": [{0: 1.0}]}, "1 lists of grades, expected 2"),
            ({"relevant": [{20: 1.0}, {}]}, "gives document 20 the grade 1.0"),
            ({"relevant": [{0: 0.0}, {}]}, "gives document 0 the grade 0.0"),
            ({"relevant": [{0: math.inf}, {}]}, "finite grade above 0"),
            ({"relevant": [{}, {}]}, "nothing to learn from"),
            ({"docs": np.full((20, 12), np.nan, dtype=np.float32)}, "holds NaN"),
        ],
    )
    def test_parts_that_do_not_fit_are_refused(self, change: dict[str, object], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            replace(small([{0: 1.0}, {1: 1.0}]), **change)  # type: ignore[arg-type]

    def test_documents_of_any_length_are_compared_by_cosine(self) -> None:
        docs = np.array([[5.0, 5.0], [1.0, 0.0]], dtype=np.float32)
        queries = np.array([[1.0, 0.1]], dtype=np.float32)
        collection = Collection("long", ["0", "1"], docs, queries, [{1: 1.0}])
        assert metrics.rank_documents(queries, collection.unit_docs).tolist() == [[1, 0]]


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
