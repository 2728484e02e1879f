"""A database that pg_dump wrote and pg_restore read answers, learns and guards as the one it was taken from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sona_pg.doctor import Verdict, examine
from sona_pg.store.migrate import migrate
from tests.acceptance import twins
from tests.acceptance.dumps import dump, restore

RECALLS = 100
"""``make upgrade-test`` takes 1,000."""


def test_what_is_restored_answers_learns_and_guards_alike(
    make_database: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SONA_HOME", str(tmp_path / "home"))
    original, copy = make_database(), make_database()
    migrate(original)
    twins.build(original)
    dump(original, tmp_path / "sona.dump")
    restore(copy, tmp_path / "sona.dump")
    each = RECALLS // len(twins.SPACES)
    assert list(twins.answers(copy, each)) == list(twins.answers(original, each))
    assert twins.access(copy) == twins.access(original)
    assert twins.learned_from(copy, twins.EVENTS, 20) == twins.learned_from(original, twins.EVENTS, 20)
    assert [found for found in examine(copy) if found.verdict is not Verdict.OK] == []
