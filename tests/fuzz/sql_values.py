"""Arguments for the functions of schema sona, as text: good ones by parameter, hostile ones by type."""

from __future__ import annotations

import json
from uuid import UUID

from hypothesis import strategies as st

from sona_pg.config import STRATEGIES

Text = st.SearchStrategy[str | None]

DIM = 4
SPACES = ("fuzz", "fuzz range", 'fuzz "quo\'ted"; --')
RELATIONS = (
    "public.fuzz_view", "public.fuzz_matview", "public.fuzz_unpopulated", "public.fuzz_foreign", "public.fuzz_parts",
    "public.fuzz_sequence", "public.fuzz_items_pkey", "public.fuzz_row", 'public."quo""ted; DROP TABLE x"',
    "public.fuzz_long_ids", "public.fuzz_wrong_dim", "public.fuzz_nulls", "public.fuzz_zero", "public.fuzz_failing",
    "public.fuzz_empty", "public.fuzz_no_column", "pg_catalog.pg_class", "sona.trajectory", "sona.item_sample",
    "public.missing", "missing.missing", '""', "", "0", "4294967295", "-", 'public."', "a.b.c.d",
)  # fmt: skip

TYPES = (
    "json", "xml", "point", "name", '"char"', "bpchar", '"bit"', "oidvector", "int2vector", "regclass", "record",
    "anyarray", "unknown", "public.fuzz_row", "public.fuzz_row[]", "public.fuzz_items", "information_schema.yes_or_no",
    "json[]", "int4multirange", "missing", "", "0", "-", "4294967295",
)  # fmt: skip

_EXTREME_TEXT = (
    "", " ", "\t\n\r", "a", "'", '"', "\\", "$1", "%s", "--", "{}", "NULL", "\U0010ffff", "\ufdd0", "\ufeff",
    "e\u0301" * 40,
    "\u202e\u2066", "🏳️‍🌈" * 20, "x" * 499, "x" * 500, "x" * 501, "é" * 250, "é" * 251, "x" * 5_000, "x" * 100_000,
    "\x01\x7f", "sona", "public", "pg_read_all_data",
)  # fmt: skip
text = st.one_of(
    st.sampled_from(_EXTREME_TEXT), st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40)
)

_EXTREME_NUMBERS = (
    "0", "-0", "1", "-1", "0.5", "NaN", "Infinity", "-Infinity", "1e-46", "-1e-320", "3.5e38", "-1e39", "1.7e308",
    "1e309",
    "1.0000001", "0.99999999", "",
)  # fmt: skip
number = st.one_of(st.sampled_from(_EXTREME_NUMBERS), st.floats(width=32).map(repr))
_EXTREME_INTS = (
    "0", "1", "-1", "2", "10", "10000", "10001", "32768", "16000", "16001", "2000", "4000", "2147483647", "-2147483648",
    "2147483648", "9223372036854775807", "-9223372036854775808", "9223372036854775808", "1.5", "",
)  # fmt: skip
integer = st.one_of(st.sampled_from(_EXTREME_INTS), st.integers(-(2**31), 2**31 - 1).map(str))


def _quoted(element: str | None) -> str:
    return "NULL" if element is None else '"' + element.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _array(elements: list[str | None]) -> str:
    return "{" + ",".join(map(_quoted, elements)) + "}"


def arrays(element: Text, size: int = 6) -> Text:
    """Arrays of one dimension, of several, with other lower bounds, empty, and no arrays at all."""
    flat = st.lists(st.one_of(element, st.none()), max_size=size)
    return st.one_of(
        flat.map(_array),
        st.builds(lambda part, low: f"[{low}:{low + len(part) - 1}]={_array(part)}" if part else "{}",
                  flat, st.integers(-3, 3)),
        st.lists(element, min_size=2, max_size=2).map(lambda pair: "{" + _array(pair) + "," + _array(pair) + "}"),
        st.lists(element, min_size=2, max_size=2).map(lambda pair: "{{" + _array(pair) + "}}"),
        st.sampled_from(("{}", "{NULL}", "{", "[0:0]={1}", "{{1},{2}}", "{1,{2}}", _array(["1"] * 10_001))),
    )  # fmt: skip


def _vector(numbers: list[str]) -> str:
    return "[" + ",".join(numbers) + "]"


_component = st.one_of(
    st.sampled_from(("0", "-0", "1", "-1", "1e-45", "1e-38", "3.4e38", "-3.4e38", "1e20")),
    st.floats(-4, 4, width=32).map(repr),
)
unit_vector = st.lists(st.floats(-1, 1, width=16).map(repr), min_size=DIM, max_size=DIM).map(_vector)
extreme_vector = st.lists(_component, min_size=DIM, max_size=DIM).map(_vector)
vector = st.one_of(
    extreme_vector,
    st.lists(_component, min_size=1, max_size=8).map(_vector),
    st.sampled_from(
        ("[0,0,0,0]", "[]", "[NaN,0,0,0]", "[Infinity,0,0,0]", "[1e39,0,0,0]", "[1,2,3,4", "", _vector(["1"] * 16_000),
         _vector(["1"] * 16_001))
    ),
)  # fmt: skip

# A handful of ids, so that scores find trajectories and ids are given twice.
_ids = st.integers(1, 400).map(lambda n: str(UUID(int=n)))
uuid = st.one_of(
    _ids,
    st.sampled_from(("", "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "x")),
    st.uuids().map(str),
)

_leaf = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(("", "x" * 600, "NaN", "Infinity", "\0", "\U0010ffff", str(UUID(int=1)), "[1,2,3,4]")),
)  # fmt: skip
_json = st.recursive(
    _leaf, lambda part: st.one_of(st.lists(part, max_size=3), st.dictionaries(st.text(max_size=3), part, max_size=3)),
    max_leaves=5,
)  # fmt: skip
json_text = st.one_of(
    _json.map(json.dumps),
    st.sampled_from(("", "{", "null", "[]", "{}", "[null]", '"x"', "1e400", '{"a":1,"a":2}', "[" * 200 + "]" * 200,
                     "[" * 20_000 + "]" * 20_000, json.dumps({"k": "x" * 1_100_000}))),
)  # fmt: skip

_RECORD = {
    "query": st.lists(st.floats(-1, 1, width=16), min_size=DIM, max_size=DIM),
    "item_ids": st.lists(st.sampled_from(("1", "2", "3", "40")), min_size=2, max_size=2),
    "rewards": st.lists(st.sampled_from((0, 1, 0.5, None)), min_size=2, max_size=2),
}
_records = st.lists(
    st.tuples(
        st.fixed_dictionaries(_RECORD),
        st.dictionaries(
            st.sampled_from(("query", "item_ids", "rewards", "quality", "trajectory_id", "user_id", "session_id",
                             "metadata",
                             "latency_us", "positions", "scores", "activations", "arm", "version", "strategy",
                             "propensity", "reward")),
            _json, max_size=2,
        ),
    ).map(lambda pair: pair[0] | pair[1]),
    max_size=3,
).map(json.dumps)  # fmt: skip
_scores = st.lists(
    st.tuples(
        st.fixed_dictionaries({"trajectory": _ids, "value": st.sampled_from((0, 1, 0.25))}),
        st.dictionaries(st.sampled_from(("trajectory", "value", "item_id", "name", "score_id", "x")), _json,
                        max_size=2),
    ).map(lambda pair: pair[0] | pair[1]),
    max_size=3,
).map(json.dumps)  # fmt: skip

GOOD: dict[str, Text] = {
    "activations vector[]": st.lists(unit_vector, min_size=2, max_size=2).map(_array),
    "arm text": st.sampled_from(("learned", "control")),
    "batch integer": st.sampled_from(("1", "100", "1000")),
    "before timestamp with time zone": st.sampled_from(("2020-01-01", "9999-01-01")),
    "caller name": st.sampled_from(("postgres", "nobody")),
    "columns text": st.just("r.helped"),
    "other vector": unit_vector,
    "entry jsonb": st.sampled_from(('{"a": 1}', '{"b": [1]}', "{}")),
    "known text[]": st.just("{a,b}"),
    "lists text[]": st.just("{b}"),
    "compared regtype": st.sampled_from(("integer", "text", "integer[]", "public.vector")),
    "dim integer": st.sampled_from(("1", "4", "2000", "4000", "16000")),
    "embedder text": st.just("model"),
    "embedding_column name": st.just("embedding"),
    "examination real[]": st.sampled_from(("{1,0.5}", "{0.25}")),
    "expected integer": st.just("4"),
    "factor double precision": st.sampled_from(("0", "0.5", "1")),
    "filter jsonb": st.sampled_from(('{"id": 1}', '{"id": [1, 2]}', '{"id": {"gte": 1, "ne": null}}', "{}")),
    "filter_columns text[]": st.just("{id}"),
    "found integer": st.just("3"),
    "g sona.strategist": st.builds(
        lambda space, in_force, is_sane, weights: json.dumps(
            {"space_id": space, "in_force": in_force, "is_sane": is_sane, "weights": weights}
        ),
        st.integers(1, 3),
        st.sampled_from(("frozen", "stake", "fusion")),
        st.booleans(),
        st.sampled_from((None, [1.0] * 18)),
    ),
    "high real": st.just("1"),
    "hint text": st.just("hint"),
    "id text": st.just("id"),
    "id_column name": st.just("id"),
    "counts bigint[]": st.sampled_from(("{1,2}", "{0,-1}", "{9223372036854775807,9223372036854775807}")),
    "defaults jsonb": st.sampled_from(("{}", '{"a": 1, "z": null}')),
    "ids bigint[]": st.sampled_from(("{1,2}", "{3,3}", "{99}")),
    "ids text[]": st.sampled_from(("{1,2,40}", "{1,1}", "{gone}")),
    "implicit_feedback boolean": st.sampled_from(("true", "false")),
    "item_column text": st.just("id"),
    "item_id text": st.sampled_from(("1", "2", "40")),
    "item_ids text[]": st.lists(st.sampled_from(("1", "2", "3", "40")), min_size=2, max_size=2).map(_array),
    "item_type regtype": st.sampled_from(("varchar", "name[]", "json", "int4range", "public.vector")),
    "items regclass": st.just("public.fuzz_items"),
    "k integer": st.sampled_from(("1", "10", "10000")),
    "keep integer": st.sampled_from(("1", "100")),
    "keep_exact integer": st.sampled_from(("0", "5", "10000")),
    "kept interval": st.just("90 days"),
    "latency_us bigint": st.just("12"),
    "list jsonb": st.sampled_from(('["1", "2"]', "[1, 2.5]", "[]", "null")),
    "low real": st.just("0"),
    "may_write boolean": st.sampled_from(("true", "false")),
    "message text": st.just("message"),
    "metadata jsonb": st.just('{"model": "small"}'),
    "name text": st.sampled_from(("reward", "click")),
    "operand jsonb": st.sampled_from(("1", "[1, 2]", "null")),
    "operator text": st.sampled_from(("eq", "ne", "gte", "in")),
    "positions integer[]": st.sampled_from(("{1,2}", "{NULL,1}")),
    "action text": st.just("deploy"),
    "after text": st.just("2"),
    "before text": st.just("1"),
    "cause text": st.just("a cause"),
    "control_share double precision": st.sampled_from(("0", "0.05", "0.5")),
    "parts sona.version_row[]": st.just("{}"),
    "reason text": st.just("a reason"),
    "share double precision": st.sampled_from(("0", "0.05", "0.5")),
    "state bytea": st.none(),
    "suspected_share real": st.sampled_from(("0", "0.5")),
    "v sona.adapter_version": st.builds(
        lambda strategy, weights: json.dumps(
            {
                "space_id": 1,
                "version": 1,
                "state": "\\x00",
                "in_force": strategy,
                "weights": weights,
                "known": 0,
                "strange": 0,
                "unseen": 0,
            }
        ),
        st.sampled_from(STRATEGIES),
        st.sampled_from((None, [1.0] * 18)),
    ),
    "propensity double precision": st.just("0.5"),
    "quality double precision": st.sampled_from(("0", "0.5", "1")),
    "queries vector[]": st.lists(unit_vector, min_size=2, max_size=2).map(_array),
    "query vector": unit_vector,
    "records jsonb": _records,
    "reward_max double precision": st.just("1"),
    "reward_min double precision": st.sampled_from(("0", "-1")),
    "rewards double precision[]": st.sampled_from(("{1,0}", "{NULL,0.5}", "{1,1}")),
    "role name": st.sampled_from(("sona_app", "sona_worker")),
    "role_name text": st.sampled_from(("postgres", "nobody")),
    "s sona.space": st.builds(
        lambda space, strategy: json.dumps({"space_id": space, "dim": DIM, "strategy": strategy}),
        st.integers(1, 3),
        st.sampled_from(STRATEGIES),
    ),
    "sample_size integer": st.sampled_from(("0", "1", "100")),
    "score_id text": st.integers(0, 10_000).map(str),
    "scores double precision[]": st.sampled_from(("{0.5,0.25}", "{NULL,-1}")),
    "scores jsonb": _scores,
    "session_id text": st.just("session"),
    "settings jsonb": st.just('{"familiar_from": 0.5, "familiar_width": 0.3}'),
    "similarity double precision": st.sampled_from(("0.6", "0.9", "-1")),
    "since timestamp with time zone": st.sampled_from(("0001-01-01", "2020-01-01")),
    "space text": st.sampled_from(SPACES),
    "space_id bigint": st.sampled_from(("1", "2", "3")),
    "state text": st.just("SN003"),
    "steps interval": st.just("30 days"),
    "strategy integer": st.sampled_from(("1", "3", "5")),
    "strategy text": st.sampled_from(STRATEGIES),
    "tiers text[]": st.sampled_from(("{adapter,micro}", "{proven}", "{careful}", "{}")),
    "trajectories interval": st.just("90 days"),
    "trajectory uuid": _ids,
    "trajectory_id uuid": _ids,
    "user_id text": st.just("user"),
    "v vector": unit_vector,
    "value double precision": st.sampled_from(("0", "0.5", "1")),
    "version bigint": st.just("3"),
    "what text": st.just("a value"),
    "with_steps boolean": st.sampled_from(("true", "false")),
    "answered_at timestamp with time zone": st.sampled_from(("2020-01-01", "9999-01-01")),
    "recorded_at timestamp with time zone": st.sampled_from(("2020-01-01", "9999-01-01")),
    "entries bigint": st.sampled_from(("0", "5", "1000")),
    "w double precision[]": st.just("{" + ",".join(["0.5"] * 18) + "}"),
    "title text": st.sampled_from(("", "a title", "x" * 1000)),
    "description text": st.sampled_from(("", "a description")),
    "content text": st.sampled_from(("", "a content")),
    "pattern_id bigint": st.integers(0, 9).map(str),
    "of text": st.sampled_from(("pattern", "memory_node")),
    "kind text": st.sampled_from(("concept", "episode", "item")),
    "key text": st.sampled_from(("1", "2", "a key", "learned 1")),
    "embedding vector": unit_vector,
    "importance double precision": st.sampled_from(("0", "0.5", "1")),
    "source_kind text": st.sampled_from(("concept", "episode", "item")),
    "source text": st.sampled_from(("1", "2")),
    "target_kind text": st.sampled_from(("concept", "episode", "item")),
    "target text": st.sampled_from(("1", "2")),
    "weight double precision": st.sampled_from(("0", "0.5", "1")),
    "archive_ids bigint[]": st.sampled_from(("{1,2}", "{}")),
    "content jsonb": st.sampled_from(
        (
            '{"node_id": 9, "kind": "episode", "key": "9", "state": {"node_id": 9, "importance": 0.5}}',
            '{"kind": "given", "source_kind": "item", "source": "1", "target_kind": "item", "target": "2"}',
        )
    ),
    "entity text": st.sampled_from(("node", "edge", "node before", "edge before")),
    "level integer": st.sampled_from(("0", "1")),
    "access_count bigint": st.sampled_from(("0", "7")),
    "was_merged boolean": st.sampled_from(("true", "false")),
    "kinds text[]": st.sampled_from(("{item,concept}", "{item}", "{}")),
    "keys text[]": st.sampled_from(("{1,2}", "{1}", "{}")),
    "masses double precision[]": st.sampled_from(("{0.5,0.25}", "{1}", "{}")),
    "hops integer": st.sampled_from(("0", "1", "3")),
    "start integer": st.sampled_from(("1", "5", "100")),
    "allowed boolean": st.sampled_from(("true", "false")),
    "frozen double precision": st.sampled_from(("0", "0.5", "1")),
    "other double precision": st.sampled_from(("0", "0.5", "1")),
    "familiar double precision": st.sampled_from(("0", "0.5", "1")),
    "below double precision": st.sampled_from(("0", "0.5", "1")),
    "help double precision": st.sampled_from(("0", "0.5", "1")),
    "vote double precision": st.sampled_from(("0", "0.5", "1")),
    "votes double precision": st.sampled_from(("0", "0.5", "1")),
    "miss double precision": st.sampled_from(("0", "0.5", "1")),
    "times double precision": st.sampled_from(("0", "0.5", "1")),
    "familiarity double precision": st.sampled_from(("0", "0.5", "1")),
    "loop text": st.sampled_from(("background", "deep")),
    "windows text[]": st.sampled_from(("{}", "{22:00-06:00}", "{00:00-12:00,12:00-23:59}")),
    "time_zone text": st.sampled_from(("UTC", "Europe/Berlin", "Asia/Kathmandu")),
    "moment timestamp with time zone": st.sampled_from(("2020-01-01", "9999-01-01", "2026-10-25 02:30+02")),
    "every interval": st.sampled_from(("1 hour", "1 second", "366 days")),
    "cron text": st.sampled_from(("0 3 * * 0", "*/5 1-3 1,15 JAN *")),
    "amount bigint": st.sampled_from(("1", "100", "9223372036854775807")),
    "first_at timestamp with time zone": st.sampled_from(("tomorrow", "9999-12-31")),
    "enabled boolean": st.sampled_from(("true", "false")),
    "t sona.trajectory": st.builds(
        lambda space, id, strategy: json.dumps(
            {"space_id": space, "trajectory_id": id, "query": "[1,0,0,0]", "strategy": strategy, "arm": "learned"}
        ),
        st.integers(1, 3),
        _ids,
        st.sampled_from(STRATEGIES),
    ),
}
"""By name and type of the parameter. A function with another one fails the test until it stands here."""

GOOD_OF: dict[str, dict[str, Text]] = {
    # A space that is dropped is one that create_space has made.
    "drop_space": {"space": st.integers(0, 60).map(lambda n: f"made {n}")},
    "create_space": {"name": st.integers(0, 60).map(lambda n: f"made {n}")},
    "deploy": {"what": st.sampled_from(("1", "2", "rollback", "latest", "frozen"))},
    # Of an interval and a cron expression only one is good.
    "set_schedule": {"cron": st.none()},
    "_version": {"what": st.sampled_from(("1", "2", "rollback", "latest", "frozen"))},
}

HOSTILE: dict[str, Text] = {
    "bigint": integer,
    "bigint[]": arrays(integer),
    # A state is for a learner to write, who may write any.
    "bytea": st.sampled_from(("\\xg", "\\x0", "\\")),
    "boolean": st.sampled_from(("true", "false", "", "maybe")),
    "double precision": number,
    "double precision[]": arrays(number),
    "integer": integer,
    "integer[]": arrays(integer),
    "interval": st.sampled_from(("1 day", "-1 day", "0", "1 month -29 days", "178000000 years", "infinity", "", "x")),
    "jsonb": json_text,
    "name": text,
    "real": number,
    "real[]": arrays(number),
    "regclass": st.sampled_from(RELATIONS),
    "regtype": st.sampled_from(TYPES),
    # A row of a table stands as JSON.
    "sona.adapter_version": json_text,
    "sona.space": json_text,
    "sona.strategist": json_text,
    "sona.trajectory": json_text,
    "sona.version_row[]": st.sampled_from(("{}", "{NULL}", '{"(1,1,adapter,0,,)"}', "x")),
    "text": text,
    "text[]": arrays(text),
    "timestamp with time zone": st.sampled_from(("now", "9999-12-31", "0001-01-01", "tomorrow", "x")),
    "uuid": uuid,
    "vector": vector,
    "vector[]": arrays(vector, 3),
}
"""By type; NULL goes to every one as well."""
