"""Logged outcomes: documents, queries, and which documents helped which query."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, IoError
from sona_pg.learning.arrays import normalized_rows

FloatMatrix = NDArray[np.float32]

Embed = Callable[[list[str]], ArrayLike]
"""Gives a vector for each text, as rows."""


@dataclass(frozen=True)
class Collection:
    """Documents, queries, and the grades above 0 that are known.

    Parameters
    ----------
    name
        What reports call it.
    doc_ids
        One for each document, distinct.
    docs, queries
        float32 (documents, dim) and (queries, dim), finite.
    relevant
        For each query, grade above 0 by row of the document.

    Raises
    ------
    InvalidInput, DimensionMismatch
        If the parts do not fit together, hold NaN or infinity, or nothing is judged.
    """

    name: str
    doc_ids: list[str]
    docs: FloatMatrix
    queries: FloatMatrix
    relevant: list[dict[int, float]]

    def __post_init__(self) -> None:
        for what, matrix in (("docs", self.docs), ("queries", self.queries)):
            _check_matrix(matrix, f"{what} of {self.name}")
        if self.queries.shape[1] != self.docs.shape[1]:
            raise DimensionMismatch(self.docs.shape[1], self.queries.shape[1], f"queries of {self.name}")
        for what, found, expected in (
            ("distinct document ids", len(set(self.doc_ids)), len(self.docs)),
            ("lists of grades", len(self.relevant), len(self.queries)),
        ):
            if found != expected:
                raise InvalidInput(f"{self.name} has {found} {what}, expected {expected}: one for each row")
        for query, grades in enumerate(self.relevant):
            for doc, grade in grades.items():
                if not (0 <= doc < len(self.docs) and 0 < grade < math.inf):
                    raise InvalidInput(
                        f"query {query} of {self.name} gives document {doc} the grade {grade}, "
                        f"expected a document from 0 to {len(self.docs) - 1} and a finite grade above 0"
                    )
        if not any(self.relevant):
            raise InvalidInput(
                f"{self.name} has no judgement with a grade above 0: there is nothing to learn from or to measure by"
            )

    @cached_property
    def unit_docs(self) -> FloatMatrix:
        """The documents as unit rows: inner products with them order like cosines."""
        return normalized_rows(self.docs)

    @cached_property
    def best_grade(self) -> float:
        """The highest grade, worth a reward of 1."""
        return max(max(grades.values()) for grades in self.relevant if grades)


def load_collection(path: Path, embed: Embed | None = None) -> Collection:
    """Read a directory of logged outcomes.

    Either ``docs.npy``, ``queries.npy`` and ``qrels.tsv`` (row of the query, row of the document, grade), or the BEIR
    layout ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/test.tsv`` (without it, all of ``qrels/*.tsv``), of which
    the judged queries are kept. Fields are separated by tabs or blanks, a header is skipped, a grade of 0 or less is
    left out, and of two grades for the same pair the later counts.

    Parameters
    ----------
    path
        The directory; its name becomes that of the collection.
    embed
        Embedding model for the texts of the BEIR layout.

    Raises
    ------
    IoError
        If a file is missing or unreadable.
    ConfigError
        If there are only texts, and no `embed`.
    InvalidInput, DimensionMismatch
        If the contents are not what they should be.
    """
    path = Path(path).resolve()
    if not path.is_dir():
        raise IoError(f"{path} is not a directory: pass one that holds docs.npy, queries.npy and qrels.tsv")
    if any((path / name).exists() for name in ("docs.npy", "queries.npy", "qrels.tsv")):
        return _load_arrays(path)
    if (path / "corpus.jsonl").exists():
        if embed is None:
            raise ConfigError(
                f"{path} holds texts in the BEIR layout, which need an embedding model: pass one, "
                "or store the vectors as docs.npy and queries.npy with a qrels.tsv of their rows"
            )
        return _load_beir(path, embed)
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
    raise IoError(
        f"{path} holds {found}: expected docs.npy, queries.npy and qrels.tsv, or corpus.jsonl, queries.jsonl and qrels/"
    )


def _load_arrays(path: Path) -> Collection:
    docs, queries = _read_matrix(path / "docs.npy"), _read_matrix(path / "queries.npy")
    relevant: list[dict[int, float]] = [{} for _ in queries]
    for where, fields, grade in _read_qrels(path / "qrels.tsv"):
        query, doc = (
            _row(field, len(matrix), f"{where}: {what}")
            for field, matrix, what in zip(fields, (queries, docs), ("query", "document"), strict=True)
        )
        if grade > 0:
            relevant[query][doc] = grade
    return Collection(path.name, [str(row) for row in range(len(docs))], docs, queries, relevant)


def _load_beir(path: Path, embed: Embed) -> Collection:
    corpus, queries = _read_texts(path / "corpus.jsonl"), _read_texts(path / "queries.jsonl")
    test = path / "qrels" / "test.tsv"
    files = [test] if test.exists() else sorted((path / "qrels").glob("*.tsv"))
    if not files:
        raise IoError(f"{path / 'qrels'} holds no .tsv file: expected test.tsv with lines of query-id corpus-id score")
    row = {doc: index for index, doc in enumerate(corpus)}
    relevant: dict[str, dict[int, float]] = {}
    for file in files:
        for where, (query, doc), grade in _read_qrels(file):
            for field, known, source in ((query, queries, "queries.jsonl"), (doc, corpus, "corpus.jsonl")):
                if field not in known:
                    raise InvalidInput(f"{where}: {field!r} is not an _id of {source}: remove the line or add the text")
            if grade > 0:
                relevant.setdefault(query, {})[row[doc]] = grade
    if not relevant:
        raise InvalidInput(f"{path / 'qrels'} holds no score above 0: there is nothing to learn from or to measure by")
    return Collection(
        path.name,
        list(corpus),
        _embedded(list(corpus.values()), embed, "corpus.jsonl"),
        _embedded([queries[query] for query in relevant], embed, "queries.jsonl"),
        list(relevant.values()),
    )


def _read_matrix(file: Path) -> FloatMatrix:
    try:
        matrix = np.load(file, allow_pickle=False)
    except FileNotFoundError as cause:
        raise IoError(f"{file} is missing: store the vectors there with numpy.save, one row for each") from cause
    except (OSError, ValueError, EOFError) as cause:
        raise IoError(f"{file} is not a readable .npy file ({cause}): store it with numpy.save") from cause
    if not isinstance(matrix, np.ndarray) or not np.issubdtype(matrix.dtype, np.floating):
        found = f"dtype {matrix.dtype}" if isinstance(matrix, np.ndarray) else "an archive of arrays"
        raise InvalidInput(f"{file} holds {found}, expected one array of floats: store the embeddings")
    return _as_matrix(matrix, str(file))


def _embedded(texts: list[str], embed: Embed, what: str) -> FloatMatrix:
    matrix = _as_matrix(embed(texts), f"what the embedding model returned for {what}")
    if len(matrix) != len(texts):
        raise InvalidInput(f"the embedding model returned {len(matrix)} vectors for {len(texts)} texts of {what}")
    return matrix


def _as_matrix(values: ArrayLike, what: str) -> FloatMatrix:
    try:
        # A number beyond float32 becomes infinite here, and is refused with the others.
        with np.errstate(over="ignore"):
            matrix = np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError) as cause:
        raise InvalidInput(f"{what} is not a matrix of numbers ({cause})") from cause
    _check_matrix(matrix, what)
    return matrix


def _check_matrix(matrix: FloatMatrix, what: str) -> None:
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InvalidInput(f"{what} has shape {matrix.shape}, expected (rows, dimension), neither of them 0")
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        raise InvalidInput(
            f"{what} holds NaN or infinity in {bad.size} rows, the first is row {bad[0]}: embed these texts again"
        )


def _read_texts(file: Path) -> dict[str, str]:
    """Title and text by _id, in the order of the file."""
    texts: dict[str, str] = {}
    for where, line in _lines(file):
        try:
            entry = json.loads(line)
        except ValueError as cause:
            raise InvalidInput(f"{where}: not JSON ({cause}), expected one object with _id and text") from cause
        if not isinstance(entry, Mapping) or not {"_id", "text"} <= entry.keys():
            raise InvalidInput(f"{where}: {line[:80]!r}, expected an object with _id and text")
        identifier = str(entry["_id"])
        if identifier in texts:
            raise InvalidInput(f"{where}: _id {identifier!r} stands there twice, expected distinct ones: remove one")
        texts[identifier] = f"{entry.get('title') or ''} {entry['text']}".strip()
    if not texts:
        raise InvalidInput(f"{file} is empty, expected a line of JSON with _id and text for each entry")
    return texts


def _read_qrels(file: Path) -> Iterator[tuple[str, tuple[str, str], float]]:
    """File and line, query and document, and grade of each line."""
    for number, (where, line) in enumerate(_lines(file)):
        fields = line.split("\t") if "\t" in line else line.split()
        if number == 0 and not any(_is_number(field) for field in fields):
            continue
        if len(fields) != 3:
            raise InvalidInput(f"{where}: {len(fields)} fields in {line[:80]!r}, expected query, document and grade")
        query, doc, grade = (field.strip() for field in fields)
        if not _is_number(grade):
            raise InvalidInput(f"{where}: grade is {grade!r}, expected a finite number; 0 or less is not relevant")
        yield where, (query, doc), float(grade)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """File and line number, and text of each line that is not blank."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}, line {number}", line.strip()
    except FileNotFoundError as cause:
        raise IoError(f"{file} is missing: {file.parent} holds the other files of this layout, add it") from cause
    except (OSError, UnicodeDecodeError) as cause:
        raise IoError(f"{file} cannot be read as UTF-8 text ({cause})") from cause


def _is_number(field: str) -> bool:
    try:
        return math.isfinite(float(field))
    except ValueError:
        return False


def _row(field: str, rows: int, what: str) -> int:
    if not (field.isascii() and field.isdigit()):
        raise InvalidInput(f"{what} is {field!r}, expected the number of its row, counted from 0")
    if int(field) >= rows:
        raise InvalidInput(f"{what} is {field}, expected 0 to {rows - 1}: the array has {rows} rows, counted from 0")
    return int(field)
