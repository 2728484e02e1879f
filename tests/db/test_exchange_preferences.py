"""Preference pairs of what was judged, as files that others train on."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sona_pg import (
    InvalidInput,
    IoError,
    SonaEngine,
)

from .conftest import DIM
from .exchanged import read


def test_pairs_are_of_items_that_were_judged(judged: SonaEngine, tmp_path: Path) -> None:
    assert judged.export_preferences(tmp_path / "pairs.jsonl") == 4
    found = read(tmp_path / "pairs.jsonl")
    pairs = [(row["chosen_id"], row["rejected_id"], row["margin"]) for row in found]
    assert pairs == [("0", "3", 1.0), ("0", "2", 0.75), ("2", "3", 0.25), ("4", "3", 1.0)]
    assert found[0]["query"] == [1.0] * DIM
    assert uuid.UUID(found[0]["trajectory_id"]) == uuid.UUID(found[1]["trajectory_id"])
    assert all(row["margin"] == row["chosen_reward"] - row["rejected_reward"] for row in found)
    assert found[0].keys() == {
        *("trajectory_id", "query", "chosen_id", "rejected_id", "chosen_reward", "rejected_reward", "margin")
    }


def test_texts_are_there_where_they_were_asked_for(judged: SonaEngine, tmp_path: Path) -> None:
    assert judged.export_preferences(tmp_path / "a.jsonl", text_column="body", prompt_key="question") == 3
    first = read(tmp_path / "a.jsonl")[0]
    assert (first["prompt"], first["chosen"], first["rejected"]) == ("why?", "text 0", "text 3")
    assert judged.export_preferences(tmp_path / "b.jsonl", text_column="body") == 3
    assert judged.export_preferences(tmp_path / "c.jsonl", prompt_key="question") == 3
    assert judged.export_preferences(tmp_path / "d.jsonl", prompt_key="nothing") == 0


def test_parquet_has_the_same_pairs(judged: SonaEngine, tmp_path: Path) -> None:
    judged.export_preferences(tmp_path / "a.jsonl", text_column="body")
    judged.export_preferences(tmp_path / "a.parquet", text_column="body")
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist() == read(tmp_path / "a.jsonl")


def test_nothing_is_left_of_an_export_that_failed(judged: SonaEngine, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no column 'nowhere'"):
        judged.export_preferences(tmp_path / "a.jsonl", text_column="nowhere")
    assert os.listdir(tmp_path) == []
    (tmp_path / "mine.jsonl").write_text("mine")
    for export in (judged.export_preferences, judged.export_patterns):
        with pytest.raises(IoError, match="already"):
            export(tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "mine"
