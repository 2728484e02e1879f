"""A table that is added to the schema is saved and loaded as the others are."""

from __future__ import annotations

from sona_pg.store import archive
from sona_pg.store.schema import metadata

TABLES = [table for table in metadata.tables.values() if table.name not in ("space", "loop_run")]


def test_every_number_that_is_drawn_for_all_spaces_is_drawn_again() -> None:
    drawn = {table.name: column.name for table in TABLES for column in table.columns if column.identity is not None}
    assert drawn == archive._DRAWN


def test_whatever_names_a_run_is_told_its_new_number() -> None:
    runs: dict[str, tuple[str, ...]] = {"loop_run": ("run_id",)}
    for table in TABLES:
        named = tuple(c.name for c in table.columns if c.name == "run_id" or c.name.endswith("_run"))
        runs |= {table.name: named} if named else {}
    assert {table: set(columns) for table, columns in runs.items()} == {
        table: set(columns) for table, columns in archive._RUNS.items()
    }
