"""What is evaluated on: splits by other code, and every refusal of the loaders."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, IoError
from sona_pg.evaluation import Collection, Feedback, SplitKind, load_collection, metrics
from sona_pg.evaluation.feedback import Judgement, judge
from sona_pg.evaluation.splits import disjoint_parts, linked_groups, make_split

from .documents import FloatMatrix, small


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
