"""A search path that somebody else laid out, full of look-alikes, changes nothing that schema sona does."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sona_pg.store.connection import Connection, connect
from sona_pg.store.routines import sql_files

from .conftest import DIM, World

QUERY = "'[" + ",".join(["0.5"] * DIM) + "]'"
NEW = uuid.UUID(int=42)

ARCHIVED_NODE = (
    '{{"space_id": {space_id}, "node_id": 99, "kind": "item", "key": "99", "level": 0, "created_at": "2020-01-01",'
    ' "state": {{"importance": 0.5, "access_count": 1, "last_access": "2020-01-01", "consolidation_count": 0}}}}'
)
ARCHIVED_EDGE = (
    '{{"space_id": {space_id}, "kind": "given", "source_kind": "item", "source": "99", "target_kind": "item",'
    ' "target": "98", "weight": 0.5, "origin": "a test", "created_at": "2020-01-01", "updated_at": "2020-01-01",'
    ' "decayed_at": "2020-01-01"}}'
)
CALLS = {
    "_check_id": "SELECT sona._check_id('', 'an id')",
    "_check_reward": "SELECT sona._check_reward(2, 0, 1, 'a reward')",
    "_check_keys": "SELECT sona._check_keys('{{\"a\": 1}}', '{{a,b}}', '{{b}}')",
    "_check_strategy": "SELECT sona._check_strategy('none')",
    "_check_examination": "SELECT sona._check_examination('{{1,2}}')",
    "_answered_at": "SELECT sona._answered_at('{trajectory}', '2100-01-01')",
    "_find_trajectory": "SELECT (sona._find_trajectory('{trajectory}', {space})).strategy",
    "_known_entries": "SELECT sona._known_entries(t, 'infinity') FROM sona.trajectory t"
    " WHERE t.space_id OPERATOR(pg_catalog.=) {space_id} AND t.trajectory_id OPERATOR(pg_catalog.=) '{trajectory}'",
    "_in_force_because": "SELECT b.setting, b.reason FROM sona.trajectory t, sona._in_force_because(t, 'infinity') b"
    " WHERE t.space_id OPERATOR(pg_catalog.=) {space_id} AND t.trajectory_id OPERATOR(pg_catalog.=) '{trajectory}'",
    "_events_before": "SELECT pg_catalog.cardinality(ids), pg_catalog.cardinality(events)"
    f" FROM sona._events_before({{space_id}}, {DIM}, {{query}}, 1000, 3)",
    "_mapped_by": "SELECT sona._mapped_by({space_id}, 1, '{{adapter,micro}}', {query})",
    "_parts": "SELECT adapter, memory, cosine FROM sona._parts('fusion', 0.5, pg_catalog.array_fill("
    "0.5::pg_catalog.float8, '{{18}}'), 0.5, 0.6, 0.1, 0, 0.9, 2, 3, 0.6, 4, 0.9)",
    "why": "SELECT part, place, item_id, trajectory_id, amount, reason, detail FROM sona.why('{trajectory}', {space})",
    "_times": "SELECT sona._times({query}, 0.5)",
    "_mapped": "SELECT sona._mapped({space_id}, '{{adapter,micro}}', {query})",
    "_familiar": 'SELECT sona._familiar(0.6, \'{{"familiar_from": 0.5, "familiar_width": 0.3}}\')',
    "_strategy_for": "SELECT sona._strategy_for(s, g, {query}) FROM sona.space s"
    " JOIN sona.strategist g ON g.space_id OPERATOR(pg_catalog.=) s.space_id"
    " WHERE s.space_id OPERATOR(pg_catalog.=) {space_id}",
    "_near_events": "SELECT n.similarity, n.helped, n.rewards, n.unhelpful"
    f" FROM pg_catalog.unnest(sona._near_events({{space_id}}, {DIM}, {{query}}, 3)) n",
    "_item_distances": "SELECT items, distances, other_distances FROM sona._item_distances("
    "{space_id}, '{{1,2,gone}}', '{{\"id\": {{\"gte\": 1}}}}', {query}, {query})",
    "_nearest_items": "SELECT items, distances, other_distances FROM sona._nearest_items("
    '{space_id}, {query}, {query}, 5, \'{{"id": {{"gte": 1}}}}\')',
    "_widen_search": "SELECT sona._widen_search(60)",
    "_queries_index": "SELECT sona._queries_index({space_id})::pg_catalog.oid",
    "_near_queries": "SELECT sona._near_queries({space_id}, 3, 'r.helped') IS NULL",
    "_near_admitted": "SELECT sona._near_admitted({space_id}, 3, 'r.helped') IS NULL",
    "_check_may_index": "SELECT sona._check_may_index({space_id}, {login})",
    "_drop_queries_index": "SELECT sona._drop_queries_index({space_id}, {login})",
    "_score_items": "SELECT * FROM sona._score_items({space_id}, 'fusion', {query}, 5, '{{\"id\": {{\"gte\": 1}}}}')",
    "_answer": "SELECT * FROM sona._answer({space}, {query}, 5, NULL)",
    "_arm": "SELECT a.arm, a.propensity FROM sona.space s, sona._arm(s, 0.5, '{trajectory}') a"
    " WHERE s.space_id OPERATOR(pg_catalog.=) {space_id}",
    "_searched_space": "SELECT s.dim FROM sona._searched_space({space}, {query}, 3) s",
    "_changeable_space": "SELECT s.dim FROM sona._changeable_space({space}) s",
    "_check_loop": "SELECT sona._check_loop('instant')",
    "_in_windows": "SELECT sona._in_windows('{{22:00-06:00}}', 'UTC', '2026-01-01 23:00+00')",
    "_loop_backend": "SELECT sona._loop_backend({space_id}, 'deep') IS NULL",
    "_loop_key": "SELECT sona._loop_key({space_id}, 'deep') IS NULL",
    "run_cycle": "SELECT pg_catalog.int8gt(sona.run_cycle({space}, 'deep'), 0)",
    "set_schedule": "SELECT sona.set_schedule({space}, 'deep', cron => '0 3 * * 0', time_zone => 'Europe/Berlin',"
    " windows => '{{22:00-06:00}}', first_at => 'tomorrow')",
    "_check_control_share": "SELECT sona._check_control_share(0.6)",
    "_freeze": "SELECT sona._freeze({space_id}, 'a reason')",
    "_log_deployment": "SELECT sona._log_deployment({space_id}, 'deploy', '1', '2', 'a reason')",
    "_publish": "SELECT sona._publish({space_id}, 'a cause')",
    "_is_published": "SELECT sona._is_published({space_id})",
    "_version": "SELECT sona._version({space_id}, 'latest')",
    "_version_checksum": "SELECT sona._version_checksum(v, sona._version_rows({space_id}, 1))"
    " OPERATOR(pg_catalog.=) v.checksum FROM sona.adapter_version v"
    " WHERE v.space_id OPERATOR(pg_catalog.=) {space_id}",
    "_version_rows": "SELECT r.tier, r.down FROM pg_catalog.unnest(sona._version_rows({space_id}, 1)) r",
    "deploy": "SELECT sona.deploy({space}, '1', 'a reason')",
    "prune_versions": "SELECT sona.prune_versions({space}, 1)",
    "versions": "SELECT version, events, strategy FROM sona.versions({space})",
    "set_transfer": "SELECT sona.set_transfer({space}, true)",
    "set_control_share": "SELECT sona.set_control_share({space}, 0.1)",
    "_check_reason": "SELECT sona._check_reason(pg_catalog.repeat('a', 1001))",
    "_check_retention": "SELECT sona._check_retention('-1 day', 'steps')",
    "_btree_operator": "SELECT sona._btree_operator('integer[]', 3)",
    "_column_type": "SELECT sona._column_type('shop.items', 'id')::pg_catalog.oid",
    "_compared_as": "SELECT sona._compared_as('pg_catalog.varchar[]')::pg_catalog.oid",
    "_comparison": "SELECT sona._comparison('id', 'integer', 'in', '[1, 2]')",
    "_condition": "SELECT sona._condition('shop.items', '{{id}}', '{{\"id\": {{\"gte\": 1}}}}')",
    "_delete_orphan_scores": "SELECT sona._delete_orphan_scores({space_id}, 'infinity', 10)",
    "_delete_steps": "SELECT treated FROM sona._delete_steps({space_id}, '-infinity', 'infinity', 10)",
    "_delete_trajectories": "SELECT sona._delete_trajectories({space_id}, 'infinity', 10)",
    "_filtered_as": "SELECT sona._filtered_as('shop.items', 'id')::pg_catalog.oid",
    "_grantable_spaces": "SELECT {space_id} OPERATOR(pg_catalog.=) ANY (sona._grantable_spaces({login}))",
    "_index_queries": "SELECT sona._index_queries({space_id}, 7, {login})",
    "_indexed_embedding": "SELECT sona._indexed_embedding(3000)",
    "_indexed_type": "SELECT sona._indexed_type(3)",
    "_is_member": "SELECT sona._is_member({login})",
    "_items_of": "SELECT id_column FROM sona._items_of({space_id})",
    "_learned_trajectories": "SELECT pg_catalog.cardinality("
    "sona._learned_trajectories({space_id}, '-infinity', 'infinity', false, 10))",
    "_lock_learner": "SELECT sona._lock_learner({space_id})",
    "_may_grant": "SELECT sona._may_grant({space_id}, {login})",
    "_numbers": "SELECT sona._numbers('[1, null, 2.5]')",
    "_refuse": "SELECT sona._refuse('SN003', 'what was found', 'the way out')",
    "_search_items": 'SELECT * FROM sona._search_items({space_id}, {query}, 5, \'{{"id": {{"gte": 1}}}}\')',
    "_texts": "SELECT sona._texts('[1, null, \"a\"]')",
    "_unknown_space": "SELECT sona._unknown_space('it')",
    "_wrong_dimension": "SELECT sona._wrong_dimension(1, 2)",
    "adapt": "SELECT sona.adapt({space}, {query})",
    "admit_queries": "SELECT sona.admit_queries({space}, 0)",
    "apply_retention": "SELECT sona.apply_retention({space}, 10)",
    "create_space": "SELECT pg_catalog.int8eq(sona.create_space("
    "'made under it', 3, 'e', -1, 1, true, 'fusion', '{{1,0.5}}', 0.1), -1)",
    "drop_space": "SELECT sona.drop_space({space})",
    "grant_space": "SELECT sona.grant_space({space}, 'sona_app', false)",
    "describe_pattern": "SELECT sona.describe_pattern({space}, 1, 'a', 'b', 'c')",
    "_vectors_index": "SELECT sona._vectors_index('pattern', {space_id})::pg_catalog.oid",
    "_indexed_column": "SELECT sona._indexed_column('memory_node')",
    "_index_by_size": "SELECT sona._index_by_size('memory_node', {space}, 0)",
    "index_nodes": "SELECT sona.index_nodes({space}, 0)",
    "_check_node_kind": "SELECT sona._check_node_kind('item')",
    "_share": "SELECT sona._share(0.5, 'weight')",
    "add_memory_node": "SELECT sona.add_memory_node({space}, 'concept', 'a', {query}, 0.5, 0.5, 'title')",
    "add_memory_edge": "SELECT sona.add_memory_edge({space}, 'item', '1', 'item', '2', 0.5)",
    "forget_dreams": "SELECT sona.forget_dreams({space})",
    "restore_memory": "SELECT sona.restore_memory({space}, '{{}}')",
    "_restore_node": f"SELECT sona._restore_node('{ARCHIVED_NODE}', true)",
    "_restore_node_before": f"SELECT sona._restore_node_before('{ARCHIVED_NODE}')",
    "_restore_edge": f"SELECT sona._restore_edge('{ARCHIVED_EDGE}', true)",
    "_restore_edge_before": f"SELECT sona._restore_edge_before('{ARCHIVED_EDGE}')",
    "_archived_flaw": "SELECT sona._archived_flaw('node', '{{}}', 3)",
    "_edge_flaw": "SELECT sona._edge_flaw('given', 'item', 'a', 'item', 'b', 0.5) IS NULL",
    "_node_flaw": "SELECT sona._node_flaw('item', 'a', 0) IS NULL",
    "_node_state_flaw": "SELECT sona._node_state_flaw(0.5, 0.5, 1) IS NULL",
    "_merged_nodes": "SELECT pg_catalog.count(*) FROM sona._merged_nodes({space_id})",
    "_edge_key": "SELECT sona._edge_key('co_access', 'item', 'a', 'item', 'b')",
    "_near_nodes": "SELECT sona._near_nodes({space_id}, 3) IS NULL",
    "_spreading_kinds": "SELECT pg_catalog.cardinality(sona._spreading_kinds())",
    "_has_edge": "SELECT sona._has_edge({space_id}, 'item', '1')",
    "_spread": "SELECT kind, key, mass, hop FROM sona._spread({space_id}, '{{item}}', '{{1}}', '{{1}}', 2, 0.7)",
    "_related_items": 'SELECT * FROM sona._related_items({space_id}, {query}, 5, \'{{"id": {{"gte": 1}}}}\')',
    "related": "SELECT kind, key, activation, hop FROM sona.related({space}, {query}, 2, 5)",
    "_indexed_patterns": "SELECT sona._indexed_patterns({space_id}, 3, 'p.support') IS NULL",
    "_index_vectors": f"SELECT sona._index_vectors('pattern', {{space_id}}, {DIM}, {{login}})",
    "_drop_vectors_index": "SELECT sona._drop_vectors_index('pattern', {space_id}, {login})",
    "_count_accesses": "SELECT sona._count_accesses({space_id}, '{{1,2}}', '{{3,4}}')",
    "index_patterns": "SELECT sona.index_patterns({space}, 0)",
    "optimized_params": "SELECT parameter, value, confidence, source"
    " FROM sona.optimized_params({space}, {query}, '{{\"a\": 1}}')",
    "find_patterns": "SELECT pattern_id, similarity FROM sona.find_patterns({space}, {query}, 3)",
    "get_verdict": "SELECT parameter, value, decision FROM sona.get_verdict({space}, 1)",
    "nearest_queries": "SELECT similarity FROM sona.nearest_queries({space}, {query}, 3)",
    "new_trajectory_id": "SELECT pg_catalog.get_byte(pg_catalog.uuid_send(sona.new_trajectory_id()), 6)"
    " OPERATOR(pg_catalog./) 16",
    "recall": "SELECT item_id, rank, score, arm, version, strategy FROM sona.recall({space}, {query}, 5)",
    "recall_batch": "SELECT query, item_id, rank, score"
    " FROM sona.recall_batch({space}, ARRAY[{query}::public.vector, {query}::public.vector], 5)",
    "record": "SELECT sona.record({space}, {query}, '{{1,2}}', '{{1,0}}', 0.5, {new}, 'u', 's',"
    " '{{\"a\": 1}}', 5, '{{1,2}}', '{{0.5,0.25}}')",
    "record_batch": 'SELECT pg_catalog.count(*) FROM sona.record_batch({space}, \'[{{"query": [' + QUERY[2:-2] + "],"
    ' "item_ids": ["1"], "rewards": [1], "positions": [1], "scores": [0.5]}}]\')',
    "revoke_space": "SELECT sona.revoke_space({space}, 'sona_app')",
    "score": "SELECT sona.score('{trajectory}', 1, '1', 'reward', 'a score of its own', {space})",
    "score_batch": 'SELECT sona.score_batch({space}, \'[{{"trajectory": "{trajectory}", "value": 1}}]\')',
    "set_retention": "SELECT sona.set_retention({space}, '90 days', '30 days')",
    "set_strategy": "SELECT sona.set_strategy({space}, 'stake')",
    "set_items": "SELECT sona.set_items({space}, 'shop.items', 'id', 'embedding', NULL, '{{id}}')",
}
"""A call of every function, itself written so that no search path touches it."""

RAISING = {
    "_check_control_share", "_check_examination", "_check_id", "_check_loop", "_check_reason", "_check_retention",
    "_check_reward", "_check_strategy", "_refuse",
    "_unknown_space", "_wrong_dimension",
}  # fmt: skip
"""Functions whose call is an error by intention."""

VIEWS = [
    "archive",
    "concepts",
    "cycles",
    "deployments",
    "dreams",
    "edges",
    "errors",
    "forgetting",
    "harmed",
    "improvement",
    "integration",
    "ledger",
    "lift",
    "memory",
    "pattern_events",
    "patterns",
    "regions",
    "runs",
    "schedules",
    "status",
    "strategies",
    "tasks",
    "turns",
    "verdicts",
    "workers",
]

FOREIGN = {
    "_loop_backend": [(True,)],
    "_loop_key": [(False,)],
    "_arm": [],
    "_freeze": "42501",
    "_log_deployment": [(None,)],
    "_is_published": [(None,)],
    "_publish": "SN005",
    "_version": "SN005",
    "_version_checksum": [],
    "_version_rows": [],
    "_events_before": [(0, 0)],
    "_in_force_because": [],
    "_known_entries": [],
    "_mapped_by": [(QUERY[1:-1],)],
    "_delete_orphan_scores": [(0,)],
    "_delete_steps": [(0,)],
    "_delete_trajectories": [(0,)],
    "_items_of": [(None,)],
    "_learned_trajectories": [(0,)],
    "_lock_learner": "42501",
    "_grantable_spaces": [(False,)],
    "_check_may_index": "42501",
    "_drop_queries_index": "42501",
    "_index_queries": "42501",
    "_vectors_index": [(None,)],
    "_merged_nodes": [(0,)],
    "_near_nodes": [(False,)],
    "_restore_node": "42501",
    "_restore_node_before": [(False,)],
    "_restore_edge": "42501",
    "_restore_edge_before": [(False,)],
    "_indexed_patterns": [(False,)],
    "_index_vectors": "42501",
    "_drop_vectors_index": "42501",
    "_count_accesses": [(0,)],
    "_item_distances": "SN003",
    "_nearest_items": "SN009",
    "_queries_index": [(None,)],
    "_mapped": [(QUERY[1:-1],)],
    "_may_grant": [(False,)],
    "_near_events": [],
    "_near_queries": [(False,)],
    "_near_admitted": [(False,)],
    "_has_edge": [(False,)],
    "_spread": [],
    "_related_items": "SN009",
    "_score_items": "SN009",
    "_search_items": "SN009",
    "_strategy_for": [],
}
"""What calls about a space that is not granted give, where that is not SN001."""


def _outcome(connection: Connection, statement: str) -> object:
    """Rows, or SQLSTATE and message, of a statement that is rolled back."""
    try:
        with connection.transaction(force_rollback=True):
            return connection.execute(statement).fetchall()  # type: ignore[arg-type]
    except psycopg.Error as error:
        return error.sqlstate, error.diag.message_primary, error.diag.message_hint


def call(world: World, name: str, tenant: str, login: str) -> str:
    return CALLS[name].format(
        space=f"'{tenant}'",
        space_id=world.ids[tenant],
        trajectory=world.trajectories[tenant],
        query=QUERY,
        new=f"'{NEW}'",
        login=f"'{world.logins[login]}'",
    )


def test_every_function_is_called(world: World) -> None:
    with connect(world.url) as connection:
        rows = connection.execute("SELECT proname FROM pg_proc WHERE pronamespace = 'sona'::regnamespace").fetchall()
    assert sorted({row[0] for row in rows}) == sorted(CALLS)


@pytest.mark.parametrize("name", sorted(name for name in CALLS if "{space" in CALLS[name]))
def test_no_function_says_anything_of_another_space(world: World, name: str) -> None:
    statement = call(world, name, "beta", "alpha_worker")
    with psycopg.connect(world.login("alpha_worker"), autocommit=True) as own:
        found = _outcome(own, statement)
        assert (found[0] if isinstance(found, tuple) else found) == FOREIGN.get(name, "SN001")  # type: ignore[comparison-overlap]
        if "{trajectory}" in CALLS[name]:
            unnamed = f"SELECT sona.score('{world.trajectories['beta']}', 1)"
            assert _outcome(own, unnamed)[0] == "SN003"  # type: ignore[index]


# Look-alikes

_TRAP = """
CREATE SCHEMA evil;
CREATE SEQUENCE evil.used;
CREATE FUNCTION evil.boom() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    -- A sequence is not rolled back: it remembers even what an exception handler has swallowed.
    PERFORM pg_catalog.nextval('evil.used');
    RAISE EXCEPTION 'evil was used' USING ERRCODE = 'EV111';
END $$;
"""

_LOOK_ALIKES = """
DO $do$
DECLARE
    f record;
    kind text;
    made integer := 0;
    body text := 'BEGIN PERFORM evil.boom(); END';
BEGIN
    -- Every function of pg_catalog and of pgvector whose name stands in sql/, and every one of sona's own.
    FOR f IN
        SELECT p.oid, p.proname, p.pronargs,
               ARRAY(SELECT CASE WHEN t = '"any"'::pg_catalog.regtype THEN 'pg_catalog.text'
                                 ELSE pg_catalog.format_type(t, NULL) END
                     FROM pg_catalog.unnest(p.proargtypes) WITH ORDINALITY AS a (t, n) ORDER BY n) AS arguments,
               pg_catalog.format_type(p.prorettype, NULL) AS result, p.proretset AS is_set
        FROM pg_catalog.pg_proc p
        WHERE p.pronamespace IN ('pg_catalog'::pg_catalog.regnamespace, 'sona'::pg_catalog.regnamespace,
                                 (SELECT extnamespace FROM pg_catalog.pg_extension WHERE extname = 'vector'))
          AND (p.proname = ANY ('{names}'::pg_catalog.text[])
               OR p.pronamespace = 'sona'::pg_catalog.regnamespace
               OR p.oid IN (SELECT o.oprcode FROM pg_catalog.pg_operator o))
    LOOP
        BEGIN
            EXECUTE pg_catalog.format(
                'CREATE FUNCTION evil.%I(%s) RETURNS %s %s LANGUAGE plpgsql AS %L', f.proname,
                pg_catalog.array_to_string(f.arguments, ', '), CASE WHEN f.is_set THEN 'SETOF' END, f.result, body);
            made := made + 1;
        EXCEPTION WHEN OTHERS THEN NULL;  -- of arguments that no function can have but those built in
        END;
    END LOOP;
    IF made < 300 THEN RAISE EXCEPTION 'only % look-alikes could be made', made; END IF;
    made := 0;
    FOR f IN
        SELECT o.oprname, pg_catalog.format_type(o.oprleft, NULL) AS l, pg_catalog.format_type(o.oprright, NULL) AS r,
               pg_catalog.format_type(o.oprresult, NULL) AS result, o.oprleft = 0 AS is_prefix, o.oid
        FROM pg_catalog.pg_operator o
    LOOP
        BEGIN
            EXECUTE pg_catalog.format(
                'CREATE FUNCTION evil.operator_%s(%s) RETURNS %s LANGUAGE plpgsql AS %L', f.oid,
                CASE WHEN f.is_prefix THEN f.r ELSE f.l || ', ' || f.r END, f.result, body);
            EXECUTE pg_catalog.format(
                'CREATE OPERATOR evil.%s (FUNCTION = evil.operator_%s, %s RIGHTARG = %s)', f.oprname, f.oid,
                CASE WHEN NOT f.is_prefix THEN 'LEFTARG = ' || f.l || ',' END, f.r);
            made := made + 1;
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
    END LOOP;
    IF made < 500 THEN RAISE EXCEPTION 'only % operators could be made', made; END IF;
    -- A domain refuses any value; a table that looks like another has columns of no use.
    FOREACH kind IN ARRAY ARRAY['vector', 'halfvec', 'text', 'uuid', 'jsonb', 'regclass', 'regtype', 'name', 'oid']
    LOOP
        EXECUTE pg_catalog.format('CREATE DOMAIN evil.%I AS pg_catalog.text CHECK (evil.boom())', kind);
    END LOOP;
END $do$;
"""


@pytest.fixture(scope="module")
def trap(world: World, role: Callable[..., str]) -> str:
    """Schema evil, owned by an attacker, in which everything that sql/ names has a look-alike that leaves a trace."""
    attacker = role("attacker")
    words = set(re.findall(r"[a-z_][a-z_0-9]*", " ".join(text for _, text in sql_files())))
    with psycopg.connect(world.url, autocommit=True) as connection:
        granted = sql.SQL("GRANT CREATE ON DATABASE {} TO {}")
        connection.execute(granted.format(sql.Identifier(connection.info.dbname), sql.Identifier(attacker)))
    with psycopg.connect(make_conninfo(world.url, user=attacker), autocommit=True) as connection:
        connection.execute(_TRAP)
        connection.execute(_LOOK_ALIKES.replace("{names}", "{" + ",".join(sorted(words)) + "}"))  # type: ignore[arg-type]
        for name in _relations(connection):
            connection.execute(sql.SQL("CREATE TABLE evil.{} (trapped integer)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("GRANT ALL ON evil.{} TO PUBLIC").format(sql.Identifier(name)))
        connection.execute("GRANT USAGE ON SCHEMA evil TO PUBLIC; GRANT USAGE ON SEQUENCE evil.used TO PUBLIC")
        for look_alike in (
            "format(text, text)", "now()", "cardinality(anyarray)", "unnest(anyarray)", "to_regclass(text)",
            "array_fill(anyelement, integer[])", "sum(public.vector)", "vector_dims(public.vector)",
            "_refuse(text, text, text)",
        ):  # fmt: skip
            assert connection.execute("SELECT to_regprocedure(%s) IS NOT NULL", (f"evil.{look_alike}",)).fetchall() == [
                (True,)
            ], look_alike
        for look_alike in (
            "<=>(public.vector, public.vector)", "<#>(public.vector, public.vector)", "+(public.vector, public.vector)",
            "*(public.vector, public.vector)", "<>(integer, integer)", "=(text, text)", "=(bigint, bigint)",
            ">(integer, integer)", "||(text, text)", "->>(jsonb, text)",
        ):  # fmt: skip
            assert connection.execute("SELECT to_regoperator(%s) IS NOT NULL", (f"evil.{look_alike}",)).fetchall() == [
                (True,)
            ], look_alike
    return attacker


def _relations(connection: Connection) -> list[str]:
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'sona'::regnamespace AND relkind IN ('r', 'v')"
        " UNION ALL SELECT unnest(ARRAY['pg_class', 'pg_attribute', 'pg_proc', 'pg_namespace', 'pg_roles'])"
    ).fetchall()
    return [row[0] for row in rows]


@pytest.fixture(params=["evil, pg_temp, sona, public", "evil, pg_temp, sona, public, pg_catalog"])
def victim(world: World, trap: str, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A worker of alpha whose path begins with the attacker's schema, and whose session holds look-alikes too."""
    with psycopg.connect(world.login("alpha_worker"), autocommit=True) as made:
        for name in _relations(made):
            made.execute(sql.SQL("CREATE TEMPORARY TABLE {} (trapped integer)").format(sql.Identifier(name)))
        made.execute(sql.SQL("SET search_path = {}").format(sql.SQL(request.param)))
        yield made


def test_the_trap_works(world: World, victim: Connection) -> None:
    path = victim.execute("SHOW search_path").fetchall()[0][0]
    for statement in ("SELECT format('a', 'b')", "SELECT 1 <> 2", f"SELECT {QUERY}::public.vector <=> {QUERY}"):
        found = _outcome(victim, statement)
        # Where pg_catalog is not named it comes first, and only what it does not have can be shadowed.
        if "pg_catalog" in path or "<=>" in statement:
            assert isinstance(found, tuple), statement
            assert found[0] == "EV111", statement
    assert _outcome(victim, "SELECT trapped FROM learner") == []
    with psycopg.connect(world.url) as connection:
        assert connection.execute("SELECT is_called FROM evil.used").fetchall() == [(True,)]


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_function_gives_what_it_gives_on_a_clean_path(world: World, victim: Connection, name: str) -> None:
    statement = call(world, name, "alpha", "alpha_worker")
    assert isinstance(_is_unmoved(world, victim, statement), tuple if name in RAISING else list)


@pytest.mark.parametrize("strategy", ["learned", "frozen", "familiar", "boosted", "stake", "fusion", "related"])
def test_every_strategy_answers_as_on_a_clean_path(world: World, victim: Connection, strategy: str) -> None:
    # Asked what it remembers, so that the ground is familiar.
    query = (
        "(SELECT t.query FROM sona.trajectory t"
        f" WHERE t.trajectory_id OPERATOR(pg_catalog.=) '{world.trajectories['alpha']}')"
    )
    with connect(world.url) as connection:
        connection.execute("SELECT sona.set_strategy('alpha', %s)", (strategy,))
        try:
            for call in (
                f"SELECT sona.adapt('alpha', {query})",
                f"SELECT item_id, rank, score, strategy FROM sona.recall('alpha', {query}, 5)",
                f"SELECT item_id, rank, score FROM sona.recall('alpha', {query}, 5, '{{\"id\": 1}}')",
            ):
                assert _is_unmoved(world, victim, call)
        finally:
            connection.execute("SELECT sona.set_strategy('alpha', 'adapted')")


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_gives_what_it_gives_on_a_clean_path(world: World, victim: Connection, view: str) -> None:
    _is_unmoved(world, victim, f"SELECT * FROM sona.{view} v ORDER BY v OPERATOR(pg_catalog.*<)")


def test_every_view_is_looked_at(world: World) -> None:
    with connect(world.url) as connection:
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'sona'::regnamespace AND relkind = 'v' ORDER BY 1"
        ).fetchall()
    assert [row[0] for row in rows] == VIEWS


def _is_unmoved(world: World, victim: Connection, statement: str) -> object:
    trace = "SELECT last_value, is_called FROM evil.used"
    with (
        psycopg.connect(world.login("alpha_worker"), autocommit=True) as clean,
        psycopg.connect(world.url, autocommit=True) as witness,
    ):
        before = witness.execute(trace).fetchall()
        expected, found = _outcome(clean, statement), _outcome(victim, statement)
        assert found == expected
        assert witness.execute(trace).fetchall() == before
    return expected
