"""Every function of schema sona with hostile arguments: typed refusals, a server that lives, sound tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from sona_pg.store.connection import Connection, connect, use_vector_schema

from . import budget, sql_values
from .budget import tries
from .sql_values import DIM, SPACES
from .sweep import learn_all, not_finite

OWN = re.compile("SN00[1-9]")
DATA = re.compile("22...|54...")
"""Values that are no values of their type, out of range, or too large: Postgres says which."""
OBJECT = re.compile("42...|55000|0A000")
"""The caller named a table or column that is not there, is none, or cannot be read."""
NAMES_OBJECTS = {
    "_answer",
    "_btree_operator",
    "_check_may_index",
    "_column_type",
    "_compared_as",
    "_comparison",
    "_condition",
    "_freeze",
    "_drop_vectors_index",
    "_drop_queries_index",
    "_filtered_as",
    "_grantable_spaces",
    "_index_vectors",
    "_index_queries",
    "_item_distances",
    "_lock_learner",
    "_may_grant",
    "_nearest_items",
    "_related_items",
    "_restore_edge",
    "_restore_edge_before",
    "_restore_node",
    "_restore_node_before",
    "_score_items",
    "_search_items",
    "grant_space",
    "recall",
    "recall_batch",
    "revoke_space",
    "set_items",
}
"""Functions that read a table, or ask for a role, that the caller has named."""

_SETUP = f"""
CREATE TABLE public.fuzz_items (id integer PRIMARY KEY, embedding vector({DIM}));
INSERT INTO public.fuzz_items SELECT n, ARRAY[sin(n), cos(n), sin(2 * n), 0.5]::vector FROM generate_series(1, 40) n;
CREATE VIEW public.fuzz_view AS SELECT id, embedding FROM public.fuzz_items;
CREATE MATERIALIZED VIEW public.fuzz_matview AS SELECT id, embedding FROM public.fuzz_items;
CREATE MATERIALIZED VIEW public.fuzz_unpopulated AS SELECT id, embedding FROM public.fuzz_items WITH NO DATA;
CREATE FOREIGN DATA WRAPPER fuzz_wrapper;
CREATE SERVER fuzz_server FOREIGN DATA WRAPPER fuzz_wrapper;
CREATE FOREIGN TABLE public.fuzz_foreign (id integer, embedding vector({DIM})) SERVER fuzz_server;
CREATE TABLE public.fuzz_parts (id integer, embedding vector({DIM})) PARTITION BY LIST (id);
CREATE TABLE public.fuzz_part PARTITION OF public.fuzz_parts DEFAULT;
INSERT INTO public.fuzz_parts SELECT id, embedding FROM public.fuzz_items;
CREATE SEQUENCE public.fuzz_sequence;
CREATE TYPE public.fuzz_row AS (id integer, embedding vector({DIM}));
CREATE TABLE public."quo""ted; DROP TABLE x" (id text, embedding vector, "i""d" text, "é" vector);
INSERT INTO public."quo""ted; DROP TABLE x" VALUES ('a''b', '[1,0,0,0]', '"', '[1,0,0,0]');
CREATE TABLE public.fuzz_long_ids AS SELECT repeat('x', 600) AS id, '[1,0,0,0]'::vector AS embedding;
CREATE TABLE public.fuzz_wrong_dim AS SELECT 1 AS id, '[1,0,0]'::vector AS embedding;
CREATE TABLE public.fuzz_nulls AS SELECT NULL::text AS id, '[1,0,0,0]'::vector AS embedding
    UNION ALL SELECT 'a', NULL UNION ALL SELECT 'a', '[1,0,0,0]' UNION ALL SELECT 'a', '[0,1,0,0]';
CREATE TABLE public.fuzz_zero AS SELECT 1 AS id, '[0,0,0,0]'::vector AS embedding UNION ALL SELECT 2, '[1,0,0,0]';
CREATE VIEW public.fuzz_failing AS SELECT 1 / (id - 1) AS id, embedding FROM public.fuzz_items;
CREATE TABLE public.fuzz_empty (id integer, embedding vector({DIM}));
CREATE TABLE public.fuzz_no_column ();
"""


class Parameter(NamedTuple):
    name: str
    type: str
    has_default: bool


class Function(NamedTuple):
    name: str
    parameters: tuple[Parameter, ...]


@pytest.fixture(scope="module")
def connection(url: str) -> Iterator[Connection]:
    with connect(url) as made:
        use_vector_schema(made)
        made.execute(_SETUP.encode())
        for number, space in enumerate(SPACES):
            # Each answers by another strategy, of those that ask everything that is remembered.
            made.execute(
                "SELECT sona.create_space(%s, %s, NULL, %s, 1, %s, %s)",
                (space, DIM, -(number % 2), number % 2 == 1, ("fusion", "stake", "adapted")[number]),
            )
            made.execute("SELECT sona.set_items(%s, 'public.fuzz_items', 'id', 'embedding')", (space,))
            for item in range(1, 9):
                made.execute(
                    "SELECT sona.record(%s, (SELECT embedding FROM public.fuzz_items WHERE id = %s), '{1,2}', '{1,0}')",
                    (space, item),
                )
        assert not learn_all(url, made)
        made.execute(
            "INSERT INTO sona.pattern (space_id, pattern_id, centroid, cluster_size, total_weight, avg_quality,"
            " confidence, support) SELECT s.space_id, i.id, i.embedding, 5, 5, 0.5, 0.3, 5"
            " FROM sona.space s, public.fuzz_items i WHERE s.name = ANY(%s)",
            (list(SPACES),),
        )
        made.execute(
            "SELECT sona.add_memory_node(s.name, k.kind, i.id::text, i.embedding)"
            " FROM sona.space s, public.fuzz_items i, unnest('{item,concept}'::text[]) k (kind)"
            " WHERE i.id < 10 AND s.name = ANY(%s)",
            (list(SPACES),),
        )
        made.execute(
            "INSERT INTO sona.pattern_state (space_id, settings) SELECT space_id, '{\"similarity_width\": 0.05}'"
            " FROM sona.space WHERE name = ANY(%s)",
            (list(SPACES),),
        )
        made.execute(
            "INSERT INTO sona.verdict (space_id, pattern_id, parameter, state, evidence, best_value, best_confidence)"
            " SELECT p.space_id, p.pattern_id, 'a', '{}', '[]',"
            "  '[1, 2.5, 1, \"x\"]'::jsonb -> (p.pattern_id %% 4)::int, 0.5"
            " FROM sona.pattern p JOIN sona.space s USING (space_id) WHERE s.name = ANY(%s)",
            (list(SPACES),),
        )
        yield made


@pytest.fixture(scope="module")
def functions(connection: Connection) -> dict[str, Function]:
    """Whatever a client can call, with its input parameters."""
    rows = connection.execute(
        "SELECT p.proname, array_agg(ARRAY[a.name, format_type(a.type, NULL), "
        " (a.n > p.pronargs - p.pronargdefaults)::text]"
        " ORDER BY a.n) FILTER (WHERE a.n IS NOT NULL)"
        " FROM pg_proc p LEFT JOIN LATERAL unnest(p.proargtypes::oid[], p.proargnames[1:p.pronargs])"
        " WITH ORDINALITY AS a (type, name, n) ON true"
        " WHERE p.pronamespace = 'sona'::regnamespace AND p.prorettype <> 'trigger'::regtype GROUP BY p.oid, p.proname"
    ).fetchall()
    found = {}
    for name, parameters in rows:
        taken = tuple(Parameter(n, t, d == "true") for n, t, d in parameters or ())
        key = f"{name} by {taken[1].name}" if name == "deploy" else name
        assert key not in found, f"sona.{name} is overloaded: the strategies go by its name"
        found[key] = Function(name, taken)
    return found


def call_of(function: Function) -> st.SearchStrategy[dict[str, str | None]]:
    """Good arguments, of which some are left out and up to three replaced by hostile ones."""
    own = sql_values.GOOD_OF.get(function.name, {})
    good = {
        p.name: own[p.name] if p.name in own else sql_values.GOOD[f"{p.name} {p.type}"] for p in function.parameters
    }
    hostile = {p.name: st.one_of(sql_values.HOSTILE[p.type], st.none()) for p in function.parameters}
    optional = [p.name for p in function.parameters if p.has_default]

    @st.composite
    def build(draw: st.DrawFn) -> dict[str, str | None]:
        left_out = draw(st.sets(st.sampled_from(optional))) if optional else set()
        given = [name for name in good if name not in left_out]
        changed = draw(st.sets(st.sampled_from(given), max_size=(min(len(given), 5) + 1) // 2)) if given else set()
        return {name: draw(hostile[name] if name in changed else good[name]) for name in given}

    return build()


def test_every_function_has_strategies(functions: dict[str, Function]) -> None:
    missing = [
        f"sona.{f.name}: {p.name} {p.type}"
        for f in functions.values()
        for p in f.parameters
        if p.type not in sql_values.HOSTILE
        or not (f"{p.name} {p.type}" in sql_values.GOOD or p.name in sql_values.GOOD_OF.get(f.name, {}))
    ]
    assert not missing, f"say in tests/fuzz/sql_values.py what is good of {missing}"
    assert len(functions) >= 20
    assert set(functions) == set(EVERY), "add the new function to EVERY, which fuzzes it"


EVERY = (
    "_answer",
    "_answered_at",
    "_archived_flaw",
    "_arm",
    "_btree_operator",
    "_changeable_space",
    "_check_control_share",
    "_check_examination",
    "_check_id",
    "_check_keys",
    "_check_loop",
    "_check_may_index",
    "_check_node_kind",
    "_check_reason",
    "_check_retention",
    "_check_reward",
    "_check_strategy",
    "_column_type",
    "_compared_as",
    "_comparison",
    "_condition",
    "_count_accesses",
    "_delete_orphan_scores",
    "_delete_steps",
    "_delete_trajectories",
    "_drop_queries_index",
    "_drop_vectors_index",
    "_edge_flaw",
    "_edge_key",
    "_events_before",
    "_familiar",
    "_filtered_as",
    "_find_trajectory",
    "_freeze",
    "_grantable_spaces",
    "_has_edge",
    "_in_force_because",
    "_in_windows",
    "_index_by_size",
    "_index_queries",
    "_index_vectors",
    "_indexed_column",
    "_indexed_embedding",
    "_indexed_patterns",
    "_indexed_type",
    "_is_member",
    "_is_published",
    "_item_distances",
    "_items_of",
    "_known_entries",
    "_learned_trajectories",
    "_lock_learner",
    "_log_deployment",
    "_loop_backend",
    "_loop_key",
    "_mapped",
    "_mapped_by",
    "_may_grant",
    "_merged_nodes",
    "_near_admitted",
    "_near_events",
    "_near_nodes",
    "_near_queries",
    "_nearest_items",
    "_node_flaw",
    "_node_state_flaw",
    "_numbers",
    "_parts",
    "_publish",
    "_queries_index",
    "_refuse",
    "_related_items",
    "_restore_edge",
    "_restore_edge_before",
    "_restore_node",
    "_restore_node_before",
    "_score_items",
    "_search_items",
    "_searched_space",
    "_share",
    "_spread",
    "_spreading_kinds",
    "_strategy_for",
    "_texts",
    "_times",
    "_unknown_space",
    "_vectors_index",
    "_version",
    "_version_checksum",
    "_version_rows",
    "_widen_search",
    "_wrong_dimension",
    "adapt",
    "add_memory_edge",
    "add_memory_node",
    "admit_queries",
    "apply_retention",
    "create_space",
    "deploy by version",
    "deploy by what",
    "describe_pattern",
    "drop_space",
    "find_patterns",
    "forget_dreams",
    "get_verdict",
    "grant_space",
    "index_nodes",
    "index_patterns",
    "nearest_queries",
    "new_trajectory_id",
    "optimized_params",
    "prune_versions",
    "recall",
    "recall_batch",
    "record",
    "record_batch",
    "related",
    "restore_memory",
    "revoke_space",
    "run_cycle",
    "score",
    "score_batch",
    "set_control_share",
    "set_items",
    "set_retention",
    "set_schedule",
    "set_strategy",
    "set_transfer",
    "versions",
    "why",
)


@pytest.mark.parametrize("name", EVERY)
def test_hostile_arguments_are_refused_with_an_error_of_their_own(
    name: str, connection: Connection, functions: dict[str, Function]
) -> None:
    function = functions[name]
    often = {"record": 8, "record_batch": 4, "set_items": 3}.get(name, 1)

    @tries(short=50 * often, full=1600 * often)
    @given(arguments=call_of(function))
    def every_input(arguments: dict[str, str | None]) -> None:
        call(connection, function, arguments)

    every_input()


_VALUE = dict.fromkeys(
    ("sona.adapter_version", "sona.space", "sona.strategist", "sona.trajectory"),
    "jsonb_populate_record(NULL::{}, %s::jsonb)",
)
"""How an argument is written that is no text of its type."""


def call(connection: Connection, function: Function, arguments: dict[str, str | None]) -> None:
    """One call; fails unless it succeeds or is refused in a way that tells the caller what is wrong."""
    types = {p.name: p.type for p in function.parameters}
    statement = sql.SQL("SELECT * FROM sona.{}({})").format(
        sql.Identifier(function.name),
        sql.SQL(", ").join(
            sql.SQL("{} => " + _VALUE.get(types[name], "%s::{}")).format(sql.Identifier(name), sql.SQL(types[name]))
            for name in arguments
        ),
    )
    budget.executed[f"sona.{function.name}"] += 1
    answer: list[tuple[object, ...]] = []
    refusal: psycopg.Error | None = None
    try:
        answer = connection.execute(statement, list(arguments.values())).fetchall()
    except psycopg.Error as error:
        refusal = error
    assert not connection.closed, refusal
    if refusal is not None:
        state = refusal.sqlstate or "none"
        budget.refused[f"sona.{function.name}", state] += 1
        assert function.name == "_refuse" or is_for_the_caller(function, state), f"{state}: {refusal}"
    assert not re.search(r"\b(nan|inf)\b", repr(answer)) or function.name in ("_numbers", "_parts")


def is_for_the_caller(function: Function, state: str) -> bool:
    """Whether an SQLSTATE says what of the arguments was wrong. What `_refuse` raises is for its caller to choose."""
    named = function.name in NAMES_OBJECTS and OBJECT.fullmatch(state)
    return bool(OWN.fullmatch(state) or DATA.fullmatch(state) or named)


def test_what_was_valid_is_learned_all_the_same(url: str, connection: Connection) -> None:
    connection.execute("SELECT sona.set_items(%s, 'public.fuzz_items', 'id', 'embedding')", (SPACES[0],))
    made = connection.execute("SELECT sona.record(%s, '[1,0,0,0]', '{1,2}', '{1,0}')", (SPACES[0],)).fetchall()[0][0]
    assert not learn_all(url, connection)
    learned = connection.execute("SELECT learned FROM sona.ledger WHERE trajectory_id = %s", (made,)).fetchall()
    assert learned == [("adapter",)]


def test_no_table_holds_a_number_that_is_none(connection: Connection) -> None:
    assert not not_finite(connection)
