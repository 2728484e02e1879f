"""The schema and its statements can be distributed by `space_id`: every key has it, every statement says which."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sona_pg import SonaEngine
from sona_pg.store.connection import Connection

from .space_predicates import KEY, REFERENCE, TABLES, definitions, findings, of_tree
from .statements import ACROSS_SPACES, Watch

SQL = sorted((Path(__file__).resolve().parents[2] / "sql").glob("*.sql"))

BOOKKEEPING = {"alembic_version": "the revision of the schema: one row"}
"""Tables of the schema that are of no space, and no part of it."""

KEYS_OF_A_REFERENCE = {
    "space_name_key": "names are unique among all spaces",
}

DEFINED_ACROSS_SPACES = {
    "_check_loop": "whether any worker has ever run a loop of that name",
    "lift": "its groups are those of one space each, so that every node has all of its own",
}
"""Definitions of sql/ that read all spaces, and why."""


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_every_table_has_the_space_in_its_key(connection: Connection) -> None:
    found = {
        name: columns[:1]
        for name, columns in connection.execute(
            "SELECT c.relname, (SELECT array_agg(a.attname::text ORDER BY k.n) FROM pg_index i,"
            "  unnest(i.indkey) WITH ORDINALITY k (attnum, n) JOIN pg_attribute a ON a.attnum = k.attnum"
            "  WHERE i.indrelid = c.oid AND a.attrelid = c.oid AND i.indisprimary)"
            " FROM pg_class c WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind IN ('r', 'p')"
        )
    }
    assert set(found) == TABLES | set(BOOKKEEPING)
    assert {name for name, columns in found.items() if columns != [KEY]} == set(BOOKKEEPING)


def test_every_unique_index_begins_with_the_space(connection: Connection) -> None:
    rows = connection.execute(
        "SELECT i.indexrelid::regclass::text, a.attname FROM pg_index i"
        " JOIN pg_class c ON c.oid = i.indrelid"
        " LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
        " WHERE c.relnamespace = 'sona'::regnamespace AND i.indisunique AND c.relname <> ALL (%s)",
        (list(BOOKKEEPING),),
    ).fetchall()
    assert len(rows) > len(TABLES)
    assert {name.removeprefix("sona.") for name, first in rows if first != KEY} == set(KEYS_OF_A_REFERENCE)


def test_every_foreign_key_stays_in_its_space(connection: Connection) -> None:
    rows = connection.execute(
        "SELECT o.conname, o.confrelid::regclass::text, ARRAY(SELECT a.attname::text FROM unnest(o.conkey) k"
        "  JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = k),"
        " ARRAY(SELECT a.attname::text FROM unnest(o.confkey) k"
        "  JOIN pg_attribute a ON a.attrelid = o.confrelid AND a.attnum = k)"
        " FROM pg_constraint o WHERE o.contype = 'f' AND o.connamespace = 'sona'::regnamespace"
    ).fetchall()
    assert rows
    for name, referenced, columns, keys in rows:
        # A distributed table may refer to a reference table, and to what lies beside it.
        assert (columns[0], keys[0]) == (KEY, KEY), name
        assert referenced.removeprefix("sona.") in REFERENCE or len(columns) > 1, name


def test_exclusion_constraints_and_triggers_cross_no_space(connection: Connection) -> None:
    (constraints,) = connection.execute(
        "SELECT count(*) FROM pg_constraint WHERE connamespace = 'sona'::regnamespace AND contype = 'x'"
    ).fetchone() or (None,)
    (triggers,) = connection.execute(
        "SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
        " WHERE c.relnamespace = 'sona'::regnamespace AND NOT t.tgisinternal"
    ).fetchone() or (None,)
    assert (constraints, triggers) == (0, 0)


# ---- statements of sql/ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SQL, ids=lambda path: path.stem)
def test_functions_and_views_say_which_space(path: Path) -> None:
    for definition in definitions(path.read_text().replace("@vector@", "public")):
        found = {part for tree in definition.trees for part in of_tree(tree)}
        if definition.name in DEFINED_ACROSS_SPACES or path.stem == "070_policies":
            continue
        if definition.is_view:
            # By the name of the space, which is a table on every node: with it in WHERE, one space is read.
            found = {part for part in found if part.is_untied}
        assert not found, f"{path.name}: {definition.name} does not say the space of {sorted(p.table for p in found)}"


def test_statements_that_functions_put_together_say_which_space() -> None:
    """Their parts are texts: where one names a table, space_id must stand in it too."""
    found = [
        (definition.name, text)
        for path in SQL
        for definition in definitions(path.read_text().replace("@vector@", "public"))
        for text in definition.texts
    ]
    assert {"_near_queries", "_near_admitted", "set_items"} <= {name for name, _ in found}
    assert [name for name, text in found if KEY not in text and not re.match("(GRANT|REVOKE) ", text)] == []


def test_everything_of_sql_was_looked_at(connection: Connection) -> None:
    found = {d.name: d for path in SQL for d in definitions(path.read_text().replace("@vector@", "public"))}
    made = {
        name
        for (name,) in connection.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'sona'::regnamespace"
            " UNION SELECT relname FROM pg_class WHERE relnamespace = 'sona'::regnamespace AND relkind = 'v'"
        )
    }
    assert made <= set(found)
    assert sum(bool(definition.trees) for definition in found.values()) == len(found)
    assert set(DEFINED_ACROSS_SPACES) <= made


# ---- statements of the product: every test of this folder looks at them (conftest) -----------------------------------


def test_what_is_sent_is_looked_at(statement_watch: Watch, engine: SonaEngine, rng: np.random.Generator) -> None:
    answer = engine.recall(rng.standard_normal(16).astype(np.float32), 5)
    engine.record(answer, rewards={answer.items[0].item_id: 1.0})
    engine.flush()
    seen = {origin.partition(":")[0] for origin, _ in statement_watch.sent}
    assert {"store/learning.py", "store/spaces.py", "store/search.py"} <= seen
    assert not statement_watch.wrong


def test_a_statement_that_does_not_say_is_found_out() -> None:
    watch = Watch()
    watch.see("SELECT count(*) FROM sona.trajectory", "store/some.py:f")
    assert len(watch.wrong) == 1
    watch.see("SELECT count(*) FROM sona.trajectory", next(iter(ACROSS_SPACES)))
    assert len(watch.wrong) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT FROM sona.trajectory WHERE trajectory_id = %s",
        "SELECT FROM sona.trajectory WHERE space_id > %s",
        "SELECT FROM sona.trajectory WHERE space_id = %s OR trajectory_id = %s",
        "SELECT FROM sona.trajectory t WHERE space_id = %s AND EXISTS (SELECT FROM sona.score s"
        " WHERE s.trajectory_id = t.trajectory_id)",
        "SELECT FROM sona.trajectory t JOIN sona.score s USING (trajectory_id) WHERE t.space_id = %s",
        "SELECT FROM sona.trajectory t JOIN sona.score s USING (space_id, trajectory_id)",
        "SELECT FROM sona.trajectory JOIN sona.space s USING (space_id) WHERE s.dim = %s",
        "WITH gone AS (DELETE FROM sona.score WHERE score_id = %s RETURNING *) SELECT FROM gone WHERE space_id = %s",
        "UPDATE sona.learner SET version = 1",
        "UPDATE sona.learner l SET version = 1 FROM sona.trajectory t WHERE t.space_id = %s",
        "INSERT INTO sona.score (score_id, value) VALUES (%s, %s)",
        "INSERT INTO sona.score (space_id, score_id) VALUES (%s, %s) ON CONFLICT (score_id) DO NOTHING",
        "INSERT INTO sona.score (space_id, score_id) SELECT %s, score_id FROM sona.score WHERE value = 1",
        "COPY sona.score (score_id, value) FROM STDIN",
        "COPY (SELECT * FROM sona.score) TO STDOUT",
        "CREATE TEMP TABLE t AS SELECT * FROM sona.score",
        "SELECT (SELECT max(ordinal) FROM sona.learning_event) FROM sona.learner WHERE space_id = %s",
    ],
)
def test_found_out(statement: str) -> None:
    assert findings(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT FROM sona.trajectory WHERE space_id = %(space)s",
        "SELECT FROM sona.trajectory WHERE space_id = ANY(%s)",
        "SELECT FROM sona.trajectory t JOIN sona.score s USING (space_id, trajectory_id) WHERE s.space_id = %s",
        "SELECT FROM sona.trajectory t JOIN sona.space s USING (space_id) WHERE s.name = %s",
        "SELECT FROM sona.trajectory JOIN sona.space USING (space_id) WHERE name = 'docs'",
        "SELECT FROM sona.trajectory t WHERE space_id = %s AND EXISTS (SELECT FROM sona.score s"
        " WHERE s.space_id = t.space_id AND s.trajectory_id = t.trajectory_id)",
        "SELECT FROM sona.trajectory t WHERE (t.space_id, t.trajectory_id) IN (SELECT %s, u FROM unnest(%s) u)",
        "SELECT FROM unnest(%s) x (space_id) JOIN sona.learner USING (space_id)",
        "DELETE FROM sona.score s USING pg_temp.gone g WHERE s.space_id = %s AND s.score_id = g.score_id",
        "COPY sona.score (space_id, score_id, value) FROM STDIN (FORMAT BINARY)",
        "CREATE TEMP TABLE t AS SELECT * FROM sona.memory_node WHERE false",
        "SELECT FROM sona.space",
        "SELECT 1",
    ],
)
def test_not_found_fault_with(statement: str) -> None:
    assert not findings(statement)
