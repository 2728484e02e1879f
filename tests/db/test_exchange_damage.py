"""Files that are wrong, damaged or hostile are refused before anything is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from sona_pg import (
    ConfigError,
    DimensionMismatch,
    InvalidInput,
    IoError,
    SonaEngine,
)
from sona_pg.exchange import rows
from sona_pg.exchange.patterns import read_patterns
from sona_pg.exchange.rows import rows_sha256
from sona_pg.store.connection import Connection

from .conftest import DIM
from .exchanged import everything

Change = Callable[[list[Any]], None]


def row_of(**other: object) -> Change:
    def change(lines: list[Any]) -> None:
        lines[1] |= other

    return change


def header_of(**other: object) -> Change:
    def change(lines: list[Any]) -> None:
        lines[0] |= other

    return change


WRONG: dict[str, Change] = {
    "one row less": lambda lines: lines.pop(),
    "one row more": lambda lines: lines.append({**lines[1], "id": 99}),
    "an id twice": lambda lines: lines[2].update(id=lines[1]["id"]),
    "no header": lambda lines: lines.pop(0),
    "another format": header_of(format="sona patterns 2"),
    "a dimension that is none": header_of(dim="16"),
    "a key that is none": header_of(space_key="x"),
    "an embedder that is none": header_of(embedder=""),
    "a space that is none": header_of(space="a\0b"),
    "more in the header": header_of(more=1),
    "an unknown field": row_of(more=1),
    "a field less": lambda lines: lines[1].pop("support"),
    "another dimension": row_of(centroid=[1.0]),
    "a centroid of zeros": row_of(centroid=[0.0] * DIM),
    "a centroid that is long": row_of(centroid=[1e20] * DIM),
    "a centroid that is none": row_of(centroid=None),
    "a centroid of texts": row_of(centroid=["1"] * DIM),
    "a nested centroid": row_of(centroid=[[1.0] * DIM]),
    "a negative size": row_of(cluster_size=-1),
    "a fraction": row_of(support=0.5),
    "too many": row_of(support=1 << 60),
    "true": row_of(access_count=True),
    "a quality above 1": row_of(avg_quality=1.5),
    "no quality": row_of(avg_quality=None),
    "a time before 1970": row_of(created_at=-1),
    "a time beyond any": row_of(last_accessed=1e15),
    "a level beyond any": row_of(abstraction_level=10**6),
    "NUL": row_of(title="a\0b"),
    "a surrogate": row_of(content="\ud800"),
    "no text": row_of(title=3),
    "children that are none": row_of(children=[0.5]),
    "children that are no list": row_of(children=3),
    "verdicts that are none": row_of(verdicts={}),
    "verdicts of something": row_of(verdicts=[{"parameter": "k"}]),
    "deep verdicts": row_of(verdicts=json.loads("[" * 500 + "]" * 500)),
}


@pytest.mark.parametrize("name", WRONG)
def test_patterns_that_are_wrong_are_refused_before_anything_is_written(
    with_patterns: SonaEngine,
    open_space: Callable[..., SonaEngine],
    tmp_path: Path,
    connection: Connection,
    name: str,
) -> None:
    path = tmp_path / "patterns.jsonl"
    with_patterns.export_patterns(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    WRONG[name](lines)
    if lines[0].get("sha256") is not None:
        lines[0]["sha256"] = rows_sha256(lines[0], lines[1:])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = open_space(" other")
    before = everything(connection, other.space.name)
    with pytest.raises((InvalidInput, DimensionMismatch)) as refused:
        other.import_patterns(path)
    assert len(str(refused.value)) < 1000
    assert everything(connection, other.space.name) == before


def test_files_that_are_damaged_are_refused(
    with_patterns: SonaEngine, open_space: Callable[..., SonaEngine], tmp_path: Path, connection: Connection
) -> None:
    lines, parquet = tmp_path / "patterns.jsonl", tmp_path / "patterns.parquet"
    for path in (lines, parquet):
        with_patterns.export_patterns(path)
    other = open_space(" other")
    before = everything(connection, other.space.name)
    for path in (lines, parquet):
        whole = path.read_bytes()
        header = whole.split(b"\n")[0] + b"\n"
        for bad in (
            b"",
            whole[:-1],
            whole[: len(whole) // 2],
            whole[: len(header)] if path == lines else whole[8:],
            b"PAR1" + whole[4:-12] + b"\xff" * 8 + b"PAR1",
            whole.replace(b'"avg_quality": 0', b'"avg_quality": NaN0'),
            header + b"[" * 100_000 + b"\n",
            header + b'{"id": ' + b"9" * 5000 + b"}\n",
            b"\x80\x04c__main__\nnothing\n.",
        ):
            if bad == whole:
                continue
            path.write_bytes(bad)
            with pytest.raises(InvalidInput):
                other.import_patterns(path)
    with pytest.raises(ConfigError, match="neither"):
        other.import_patterns(tmp_path / "patterns.pickle")
    with pytest.raises(IoError):
        other.import_patterns(tmp_path / "nothing.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(IoError):
        other.import_patterns(tmp_path / "pipe.jsonl")
    assert everything(connection, other.space.name) == before


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_bit_that_changes_what_a_file_says_is_noticed(with_patterns: SonaEngine, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"patterns.{kind}"
    with_patterns.export_patterns(path)
    whole, good = path.read_bytes(), read_patterns(path)
    rng, refused = np.random.default_rng(1), 0
    for place in rng.choice(len(whole), 300, replace=False):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            found = read_patterns(path)
        except (InvalidInput, DimensionMismatch):
            refused += 1
            continue
        # What no reader sees may differ: padding and statistics of Parquet, the case of an exponent.
        assert (found.digest, found.space) == (good.digest, good.space)
    assert refused > 150


@pytest.mark.parametrize("change", [row_of(avg_quality=0.25), row_of(title="another"), header_of(space="another")])
def test_a_file_that_was_changed_and_says_nothing_wrong_is_refused(
    with_patterns: SonaEngine, tmp_path: Path, change: Change
) -> None:
    path = tmp_path / "patterns.jsonl"
    with_patterns.export_patterns(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InvalidInput, match="checksum"):
        read_patterns(path)
    del lines[0]["sha256"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InvalidInput, match="no export of patterns"):
        read_patterns(path)


def test_parquet_of_something_else_is_refused(open_space: Callable[..., SonaEngine], tmp_path: Path) -> None:
    path = tmp_path / "patterns.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1]}), path)
    with pytest.raises(InvalidInput):
        open_space().import_patterns(path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_more_rows_than_a_bank_holds_are_refused(
    with_patterns: SonaEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / f"patterns.{kind}"
    with_patterns.export_patterns(path)
    monkeypatch.setattr(rows, "MOST_ROWS", 4)
    assert with_patterns.import_patterns(path).known == 4
    monkeypatch.setattr(rows, "MOST_ROWS", 3)
    with pytest.raises(InvalidInput, match=r"at most 3|more than 3"):
        with_patterns.import_patterns(path)


def test_a_small_file_that_becomes_a_large_one_is_refused(
    with_patterns: SonaEngine, tmp_path: Path, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "patterns.parquet"
    connection.execute(
        "UPDATE sona.pattern SET content = repeat('x', 1000000) WHERE space_id = %s", (with_patterns.space.space_id,)
    )
    with_patterns.export_patterns(path)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(rows, "_MOST_BYTES", 2_500_000)
    with pytest.raises(InvalidInput, match="take more"):
        with_patterns.import_patterns(path)


def test_a_list_that_is_repeated_without_end_is_refused(
    with_patterns: SonaEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "patterns.parquet"
    with_patterns.export_patterns(path)
    table = pyarrow.parquet.read_table(path)
    long = pyarrow.array([[1.0] * 100_000] * len(table), pyarrow.list_(pyarrow.float32()))
    place = table.schema.get_field_index("centroid")
    pyarrow.parquet.write_table(table.set_column(place, table.schema.field(place), long), path)
    assert path.stat().st_size < 100_000
    with pytest.raises(DimensionMismatch):
        with_patterns.import_patterns(path)
    monkeypatch.setattr(rows, "_MOST_VALUES", 100_000)
    with pytest.raises(InvalidInput, match="values"):
        with_patterns.import_patterns(path)
