"""The code of docs/export.md runs as it stands; what needs PEFT is run by tests/acceptance/peft.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sona_pg.store.connection import connect
from sona_pg.store.migrate import migrate

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_code_of_the_page_runs(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    migrate(empty_url)
    with connect(empty_url) as connection:
        connection.execute("CREATE TABLE public.articles (id integer PRIMARY KEY, embedding vector(16))")
        for item in (7, 8):
            embedding = np.random.default_rng(item).standard_normal(16).astype(np.float32)
            connection.execute("INSERT INTO public.articles VALUES (%s, %s)", (item, embedding))
    names: dict[str, Any] = {"url": empty_url}
    run = [block for block in BLOCKS if "import torch" not in block]
    assert len(run) == len(BLOCKS) - 1 >= 4
    for block in run:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["pairs"] == 1
    assert "imported: version 0 of space 'support' with 1 events" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"support-adapter", "patterns.jsonl", "pairs.jsonl"}
