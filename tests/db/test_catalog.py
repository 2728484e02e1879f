"""What the catalog says of schema sona: names, signatures, comments, volatility, safety in parallel, search paths."""

from __future__ import annotations

import re

import psycopg
import pytest

from sona_pg.store.connection import Connection, connect

from .conftest import World
from .test_search_path import RAISING, VIEWS, call

Rows = list[tuple[object, ...]]

FOREIGN = "alembic_version"
"""Alembic's own table."""

SURFACE = {
    "adapt": (["space text, query vector"], "vector"),
    "create_space": (["name text, dim integer"], "bigint"),
    "deploy": (["space text, what text", "space text, version bigint"], "bigint"),
    "find_patterns": (["space text, query vector, k integer"], "TABLE(pattern_id bigint, similarity double precision"),
    "get_verdict": (["space text, pattern_id bigint"], "TABLE(parameter text, value jsonb"),
    "optimized_params": (["space text, query vector"], "TABLE(parameter text, value jsonb, confidence"),
    "recall": (
        ["space text, query vector, k integer"],
        "TABLE(trajectory_id uuid, item_id text, rank integer, score real, arm text, version bigint, strategy text,"
        " propensity real)",
    ),
    "record": (
        ["space text, query vector, item_ids text[], rewards double precision[], quality double precision"],
        "uuid",
    ),
    "score": (["trajectory uuid, value double precision, item_id text, name text, score_id text"], "boolean"),
    "set_items": (["space text, items regclass, id_column name, embedding_column name"], "bigint"),
    "versions": (["space text"], "TABLE(version bigint"),
    "why": (["trajectory uuid"], "TABLE(part text"),
}
"""Functions that applications rely on: how their arguments begin, and how what they give does."""

UNSAFE = {
    **dict.fromkeys(
        ("_events_before", "find_patterns", "recall", "recall_batch", "optimized_params", "why"),
        "changes hnsw.ef_search, which a parallel worker may not",
    ),
    "_may_grant": "asks which id the session drew from a sequence, and catches the error where it drew none",
    "_check_may_index": "asks _may_grant",
    "_archived_flaw": "catches what cannot be read as a row, and a parallel worker cannot begin a subtransaction",
}
"""Functions that write nothing, and must not run in a parallel worker all the same; the reason."""

_WRITES = re.compile(
    r"\b(INSERT INTO|UPDATE|DELETE FROM|FOR SHARE|CREATE |DROP |TRUNCATE|EXPLAIN)\b|set_config|pg_advisory|uuid|random"
)


def _found(connection: Connection, statement: str) -> Rows:
    return connection.execute(statement).fetchall()  # type: ignore[arg-type]


def _functions(connection: Connection, columns: str) -> Rows:
    return _found(
        connection,
        f"SELECT p.proname, {columns} FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang"
        " WHERE p.pronamespace = 'sona'::regnamespace ORDER BY 1",
    )


def _undescribed(connection: Connection) -> Rows:
    """Relations, columns, functions and types without a comment."""
    return _found(
        connection,
        "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'sona'::regnamespace"
        f" AND c.relkind IN ('r', 'p', 'v', 'm') AND c.relname <> '{FOREIGN}'"
        " AND obj_description(c.oid, 'pg_class') IS NULL"
        " UNION ALL SELECT c.oid::regclass::text || '.' || a.attname FROM pg_class c"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')"
        f" AND c.relname <> '{FOREIGN}' AND col_description(c.oid, a.attnum) IS NULL"
        " UNION ALL SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'sona'::regnamespace"
        " AND obj_description(p.oid, 'pg_proc') IS NULL"
        " UNION ALL SELECT t.oid::regtype::text FROM pg_type t JOIN pg_class c ON c.oid = t.typrelid"
        " WHERE t.typnamespace = 'sona'::regnamespace AND c.relkind = 'c'"
        " AND obj_description(t.oid, 'pg_type') IS NULL",
    )


def _unpinned(connection: Connection) -> Rows:
    """Functions whose names a hostile search path could replace: those that are neither bound once nor pin theirs."""
    return _found(
        connection,
        "SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'sona'::regnamespace"
        " AND (p.prosqlbody IS NULL OR p.prosecdef)"
        " AND NOT coalesce(p.proconfig, '{}') @> ARRAY['search_path=pg_catalog, sona, pg_temp']",
    )


def _mislabelled(connection: Connection) -> list[str]:
    """Functions whose volatility or safety in parallel is not what they do."""
    found = _functions(
        connection,
        "p.provolatile::text, p.proparallel::text,"
        " coalesce(p.prosrc, '') || coalesce(pg_get_function_sqlbody(p.oid), '')",
    )
    writers = {str(name) for name, volatility, *_ in found if volatility == "v"}
    wrong = []
    for name, volatility, parallel, source in found:
        does = re.sub(r"--[^\n]*", "", str(source))
        # Of statements that are put together from texts, only what else they do is judged.
        itself = re.sub(r"'[^']*'", "", does)
        calls = set(re.findall(r"sona\.(\w+)\(", itself))
        if volatility == "v":
            if not _WRITES.search(does) and not calls & writers:
                wrong.append(f"{name} is VOLATILE and writes nothing")
            # A new id is a reading of the clock and of chance, in whichever process.
            if parallel != "u" and name != "new_trajectory_id":
                wrong.append(f"{name} writes and is not PARALLEL UNSAFE")
        elif (parallel == "u") != (name in UNSAFE):
            wrong.append(f"{name} only reads and is {'not ' if name in UNSAFE else ''}PARALLEL UNSAFE")
        if volatility == "i" and re.search(r"\b(FROM|JOIN) sona\.\w+\b(?!\()|now\(\)|current_", itself):
            wrong.append(f"{name} is IMMUTABLE and reads")
    return wrong


def test_what_applications_rely_on_is_there(connection: Connection) -> None:
    found = _functions(connection, "pg_get_function_identity_arguments(p.oid), pg_get_function_result(p.oid)")
    for name, (forms, result) in SURFACE.items():
        signatures = [(str(arguments), str(gives)) for function, arguments, gives in found if function == name]
        assert len(signatures) == len(forms), name
        for form in forms:
            assert any(arguments.startswith(form) and gives.startswith(result) for arguments, gives in signatures), name
    assert {"patterns", "lift", "forgetting", "dreams", "cycles", "workers", "errors", "status"} <= set(VIEWS)


def test_everything_has_a_comment(connection: Connection) -> None:
    assert _undescribed(connection) == []


def test_functions_ignore_a_hostile_search_path(connection: Connection) -> None:
    assert _unpinned(connection) == []


def test_volatility_and_parallel_safety_are_what_functions_do(connection: Connection) -> None:
    assert _mislabelled(connection) == []


def test_views_run_with_the_rights_of_the_caller(connection: Connection) -> None:
    loose = _found(
        connection,
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind = 'v'"
        " AND NOT coalesce(c.reloptions, '{}') @> '{security_invoker=true}'",
    )
    assert loose == []


def test_the_catalog_test_finds_what_is_wrong(empty_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as bare:
        bare.execute("CREATE SCHEMA sona")
        bare.execute("CREATE TABLE sona.plain (x integer)")
        bare.execute("CREATE VIEW sona.seen AS SELECT x FROM sona.plain")
        bare.execute("COMMENT ON TABLE sona.plain IS 'a table'")
        bare.execute("CREATE TYPE sona.pair AS (x integer)")
        body = "LANGUAGE plpgsql {} AS $$ BEGIN {} END $$"
        for name, labels, does in (
            ("timid", "VOLATILE", "RETURN;"),
            ("bold", "VOLATILE PARALLEL SAFE", "DELETE FROM sona.plain;"),
            ("rigid", "IMMUTABLE PARALLEL SAFE", "PERFORM x FROM sona.plain;"),
            ("slow", "STABLE", "PERFORM x FROM sona.plain;"),
        ):
            bare.execute(f"CREATE FUNCTION sona.{name}() RETURNS void {body.format(labels, does)}")  # type: ignore[arg-type]
        assert {row[0] for row in _undescribed(bare)} == {
            "sona.plain.x", "sona.seen", "sona.seen.x", "sona.pair",
            "sona.timid()", "sona.bold()", "sona.rigid()", "sona.slow()",
        }  # fmt: skip
        assert len(_unpinned(bare)) == 4
        assert _mislabelled(bare) == [
            "bold writes and is not PARALLEL UNSAFE",
            "rigid is IMMUTABLE and reads",
            "slow only reads and is PARALLEL UNSAFE",
            "timid is VOLATILE and writes nothing",
        ]


@pytest.fixture(scope="module")
def safe_functions(world: World) -> list[str]:
    with connect(world.url) as connection:
        return [str(name) for name, parallel in _functions(connection, "p.proparallel::text") if parallel == "s"]


def test_what_is_safe_in_parallel_gives_the_same_there(world: World, safe_functions: list[str]) -> None:
    """Every such function, called by a parallel worker, which the server refuses what is not safe there."""
    login = world.login("alpha_worker")
    in_workers = 0
    with psycopg.connect(login, autocommit=True) as alone, psycopg.connect(login, autocommit=True) as parallel:
        parallel.execute("SET debug_parallel_query = on")
        for name in safe_functions:
            if name in RAISING or name == "new_trajectory_id":
                continue
            statement = call(world, name, "alpha", "alpha_worker")
            assert _found(parallel, statement) == _found(alone, statement), name
            in_workers += "Gather" in str(_found(parallel, f"EXPLAIN {statement}"))
    assert in_workers > len(safe_functions) / 2
