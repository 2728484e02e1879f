"""All rows of a space, out of a database and into another one.

They are read in one snapshot, and written in one transaction: into temporary tables first, where they are looked at,
and from there, as a worker's role may, to where they belong. The space gets an id of its own in the database, and so do
rows whose ids are drawn for all spaces; whatever names them is told the new ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.abc import Buffer

from sona_pg.errors import InvalidInput, IoError
from sona_pg.store.connection import Connection, require_right, require_schema, snapshot_transaction, translated
from sona_pg.store.spaces import Space, get_space

KEY = "space_id"
_LEFT_OUT = ("space_grant",)
"""Who may use the space is for the other database to say: its roles are others."""

_DRAWN = {
    "strategy_turn": "turn_id",
    "deployment": "deployment_id",
    "score": "sequence",
    "memory_archive": "archive_id",
    "pending_trajectory": "pending_id",
    "error_log": "error_id",
}
"""Ids that say nothing but the order: they are drawn again, in that order."""

_RUNS = {
    "loop_run": ("run_id",),
    "pattern_history": ("run_id",),
    "pattern_state": ("run_id",),
    "memory_state": ("run_id",),
    "memory_snapshot": ("run_id",),
    "memory_archive": ("run_id",),
    "dream": ("run_id",),
    "strategist": ("patterns_run", "memory_run"),
}
"""Columns that name a run: of one that is deleted by now, too."""

_FLOATS, _FLOAT_ARRAYS = ("float4", "float8"), ("_float4", "_float8")
_NOT_FINITE = sql.SQL("('NaN', 'Infinity', '-Infinity')")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its name, and its type as the catalog calls it."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of what was staged.

    Parameters
    ----------
    space
        The space.
    items
        The application's own table, if it is there.
    items_missing
        Why it does not serve; None where it does, or the space never had one.
    """

    space: Space
    items: str | None
    items_missing: str | None


def tables_of(connection: Connection) -> dict[str, tuple[Column, ...]]:
    """The tables of schema sona with rows of spaces, and their columns but the key of the space."""
    with translated():
        rows = connection.execute(
            "SELECT c.relname, a.attname, t.typname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
            " JOIN pg_type t ON t.oid = a.atttypid WHERE c.relnamespace = to_regnamespace('sona')"
            " AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped AND c.relname <> ALL(%s)"
            " AND EXISTS (SELECT FROM pg_attribute k WHERE k.attrelid = c.oid AND k.attname = %s)"
            " ORDER BY c.relname, a.attname",
            (list(_LEFT_OUT), KEY),
        ).fetchall()
    found: dict[str, tuple[Column, ...]] = {}
    for table, name, kind in rows:
        found[table] = found.get(table, ()) + ((Column(name, kind),) if name != KEY else ())
    return found


# Out -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def snapshot(connection: Connection, name: str) -> Iterator[Space]:
    """The space called `name`, as it is at one moment for as long as this lasts; nobody waits for it.

    Raises
    ------
    UnknownSpace
        If there is none.
    SchemaMismatch
        If the schema is of another version of sona_pg.
    PermissionDenied
        If this role may not read all of it.
    """
    with snapshot_transaction(connection):
        require_schema(connection)
        space = get_space(connection, name)
        require_right(connection, "save a space", "sona.forgotten_user", "SELECT")
        yield space


def read_rows(
    connection: Connection, space: Space, table: str, columns: Sequence[Column], write: Callable[[Buffer], object]
) -> int:
    """Give `write` all rows of a table, as a binary COPY has them; how many they are."""
    statement = sql.SQL("COPY (SELECT {} FROM {} t WHERE t.space_id = {}) TO STDOUT (FORMAT binary)").format(
        _selected(columns), sql.Identifier("sona", table), sql.Literal(space.space_id)
    )
    with translated(), connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            for chunk in copy:
                write(chunk)
        return cursor.rowcount


def _selected(columns: Iterable[Column]) -> sql.Composed:
    """Columns of a table `t`; the name of another table instead of its number, which is this database's."""
    return sql.SQL(", ").join(
        sql.SQL(
            "(SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n"
            " ON n.oid = c.relnamespace WHERE c.oid = t.{name}) AS {name}"
            if column.kind == "regclass"
            else "t.{name}"
        ).format(name=sql.Identifier(column.name))
        for column in columns
    )


# In ------------------------------------------------------------------------------------------------------------


def _staged(table: str) -> sql.Identifier:
    return sql.Identifier("pg_temp", f"sona_load_{table}")


def stage_rows(
    connection: Connection, table: str, columns: Sequence[Column], chunks: Iterable[Buffer], refusal: Refusal
) -> int:
    """Put rows where they can be looked at, in the transaction of the caller; how many they are."""
    connection.execute(
        sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM {} t WHERE false").format(
            sql.Identifier(f"sona_load_{table}"), _selected(columns), sql.Identifier("sona", table)
        )
    )
    with _of_file(refusal), connection.cursor() as cursor:
        with cursor.copy(sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(_staged(table))) as copy:
            for chunk in chunks:
                copy.write(chunk)
        return cursor.rowcount


Refusal = Callable[[str], IoError]
"""Makes the error that says what is wrong with the file."""


@contextlib.contextmanager
def _of_file(refusal: Refusal) -> Iterator[None]:
    """What Postgres says of rows that it does not take is said of the file that they came from."""
    try:
        yield
    except psycopg.Error as error:
        state = error.sqlstate or ""
        if state[:2] in ("22", "23", "54", "SN") or state == "08P01":
            raise refusal(error.diag.message_primary or "Postgres does not take its rows") from error
        raise


def check_staged(
    connection: Connection,
    tables: Mapping[str, Sequence[Column]],
    name: str,
    dim: int,
    embedder: str | None,
    refusal: Refusal,
) -> None:
    """Refuse what no space holds: NaN, infinity, vectors of another dimension, more or less than one of what is one.

    Of the memory graph also kinds and weights that there are not, and what of its archive could not be brought back.

    Raises
    ------
    IoError
    """
    with _of_file(refusal):
        for table in ("space", "learner", "strategist"):
            row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(_staged(table))).fetchone()
            if row is None or row[0] != 1:
                raise refusal(f"it has {0 if row is None else row[0]} rows of {table}, expected 1")
        row = connection.execute(
            "SELECT t.name, t.dim, t.embedder, sona._check_id(t.name, 'the name of the space'),"
            " sona._check_strategy(t.strategy),"
            " sona._check_examination(t.examination), sona._check_control_share(t.control_share),"
            " CASE WHEN t.embedder IS NOT NULL THEN sona._check_id(t.embedder, 'the embedder') END"
            " FROM pg_temp.sona_load_space t"
        ).fetchone()
        if row is None or tuple(row[:3]) != (name, dim, embedder):
            raise refusal("its space is another than its manifest says")
        dims = connection.execute(
            "SELECT quote_ident(n.nspname) || '.vector_dims' FROM pg_extension e JOIN pg_namespace n"
            " ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
        ).fetchone()
        for table, columns in tables.items():
            wrong = [condition for column in columns for condition in _wrong(column, dim, dims[0] if dims else "")]
            if (
                wrong
                and connection.execute(
                    sql.SQL("SELECT FROM {} t WHERE {} LIMIT 1").format(_staged(table), sql.SQL(" OR ").join(wrong))
                ).fetchone()
                is not None
            ):
                raise refusal(f"{table} holds NaN, infinity, or a vector that has not {dim} dimensions")
        for table, flaw in _FLAWS.items():
            found = connection.execute(
                sql.SQL(
                    "SELECT f.flaw FROM {} t CROSS JOIN LATERAL (SELECT {} AS flaw) f WHERE f.flaw IS NOT NULL LIMIT 1"
                ).format(_staged(table), sql.SQL(flaw).format(sql.Literal(dim)))
            ).fetchone()
            if found is not None:
                raise refusal(f"{table} holds what no space does: {found[0]}")


_FLAWS: dict[str, LiteralString] = {
    "memory_edge": "sona._edge_flaw(t.kind, t.source_kind, t.source, t.target_kind, t.target, t.weight)",
    "memory_node": "sona._node_flaw(t.kind, t.key, t.level)",
    "memory_node_state": "sona._node_state_flaw(t.importance, t.quality, t.access_count)",
    "memory_archive": "sona._archived_flaw(t.entity, t.content, {})",
}
"""By table what is wrong with a row of it, or NULL."""


def _wrong(column: Column, dim: int, dims: str) -> Iterator[sql.Composed]:
    """What must not be true of a row."""
    name = sql.Identifier(column.name)
    if column.kind in _FLOATS:
        yield sql.SQL("t.{} IN {}").format(name, _NOT_FINITE)
    elif column.kind in _FLOAT_ARRAYS:
        yield sql.SQL("EXISTS (SELECT FROM unnest(t.{}) x WHERE x IN {})").format(name, _NOT_FINITE)
    elif column.kind == "vector":
        yield sql.SQL("{}(t.{}) <> {}").format(sql.SQL(dims), name, sql.Literal(dim))


def insert_staged(
    connection: Connection, tables: Mapping[str, Sequence[Column]], name: str, refusal: Refusal
) -> Loaded:
    """Write what was staged as the space `name`, for the role that writes; nobody sees it before the caller commits.

    Raises
    ------
    InvalidInput
        If there is a space of that name.
    IoError
        If the tables do not take the rows.
    """
    row = connection.execute("SELECT nextval(pg_get_serial_sequence('sona.space', 'space_id'))").fetchone()
    assert row is not None
    space_id = int(row[0])
    try:
        # The key goes with the space, for spools and for who was forgotten; a second space of it is another one.
        changed: dict[str, sql.Composable] = {
            "name": sql.Literal(name),
            "standby_of": sql.SQL("NULL"),
            "replaced_at": sql.SQL("NULL"),
            "space_key": sql.SQL(
                "CASE WHEN EXISTS (SELECT FROM sona.space x WHERE x.space_key = t.space_key) THEN gen_random_uuid()"
                " ELSE t.space_key END"
            ),
        }
        with _of_file(refusal):
            _insert(connection, space_id, "space", tables["space"], changed)
    except IoError as error:
        if isinstance(error.__cause__, psycopg.errors.UniqueViolation):
            raise _taken(name) from error
        raise
    connection.execute("INSERT INTO sona.space_grant (space_id, role_name) VALUES (%s, current_user)", (space_id,))
    with _of_file(refusal):
        _draw_runs(connection)
        for table, columns in tables.items():
            if table not in ("space", "deployment", "item_source"):
                _insert(connection, space_id, table, columns, _CHANGED.get(table, {}))
        _insert_deployments(connection, space_id, tables["deployment"])
        items, missing = _insert_items(connection, space_id)
    connection.execute(
        "SELECT sona._log_deployment(%s, 'load', NULL, NULL, 'loaded from a file: what stands before came with it')",
        (space_id,),
    )
    return Loaded(get_space(connection, name), items, missing)


def check_name(connection: Connection, name: str) -> None:
    """Refuse a role that may not load, and the name of a space that is there.

    Raises
    ------
    PermissionDenied, InvalidInput
    """
    require_right(connection, "load a space", "sona.forgotten_user", "INSERT")
    with translated():
        if connection.execute("SELECT FROM sona.space WHERE name = %s", (name,)).fetchone() is not None:
            raise _taken(name)


def _taken(name: str) -> InvalidInput:
    return InvalidInput(f"there is already a space {name!r}: load under another name (space=, --name)")


_CHANGED: dict[str, dict[str, sql.Composable]] = {
    # Their index is made anew.
    "remembered_query": {"admitted": sql.SQL("false")},
    "memory_edge": {
        "origin": sql.SQL(
            "coalesce((SELECT 'dreams of run ' || m.drawn FROM pg_temp.sona_load_run m"
            " WHERE t.kind = 'creative' AND t.origin = 'dreams of run ' || m.run), t.origin)"
        )
    },
}
"""What is not taken over as it is, by table and column."""


def _draw_runs(connection: Connection) -> None:
    """New numbers for all runs that are named anywhere, in their order."""
    named = sql.SQL(" UNION ").join(
        sql.SQL("SELECT t.{} FROM {} t").format(sql.Identifier(column), _staged(table))
        for table, columns in _RUNS.items()
        for column in columns
    )
    connection.execute(
        sql.SQL(
            "CREATE TEMP TABLE sona_load_run ON COMMIT DROP AS SELECT o.run,"
            " nextval(pg_get_serial_sequence('sona.loop_run', 'run_id')) AS drawn"
            " FROM (SELECT n.run FROM ({}) n (run) WHERE n.run IS NOT NULL ORDER BY n.run) o"
        ).format(named)
    )


def _insert(
    connection: Connection,
    space_id: int,
    table: str,
    columns: Sequence[Column],
    changed: Mapping[str, sql.Composable],
) -> None:
    """Write the staged rows of a table."""
    drawn, runs = _DRAWN.get(table), _RUNS.get(table, ())
    names = [column.name for column in columns if column.name != drawn]
    values: list[sql.Composable] = [sql.Literal(space_id)]
    for name in names:
        if name in runs:
            values.append(sql.SQL("{}.drawn").format(sql.Identifier(f"of_{name}")))
        else:
            values.append(changed.get(name, sql.SQL("t.{}").format(sql.Identifier(name))))
    joins = [
        sql.SQL(" LEFT JOIN pg_temp.sona_load_run {alias} ON {alias}.run = t.{name}").format(
            alias=sql.Identifier(f"of_{name}"), name=sql.Identifier(name)
        )
        for name in runs
    ]
    connection.execute(
        sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} t{}{}").format(
            sql.Identifier("sona", table),
            sql.SQL(", ").join(map(sql.Identifier, [KEY, *names])),
            sql.SQL(", ").join(values),
            _staged(table),
            sql.SQL("").join(joins),
            sql.SQL("" if drawn is None else " ORDER BY t.{}").format(sql.Identifier(drawn or "")),
        )
    )


def _insert_deployments(connection: Connection, space_id: int, columns: Sequence[Column]) -> None:
    """The audit trail: who did what and when, as the file has it, is said by the owner alone.

    To others, who cannot make it say such things of anybody, it is what the one who loads has to say of it.
    """
    row = connection.execute("SELECT has_table_privilege('sona.deployment', 'INSERT')").fetchone()
    if row is not None and row[0]:
        _insert(connection, space_id, "deployment", columns, {})
        return
    connection.execute(
        "INSERT INTO sona.deployment (space_id, action, before, after, reason) SELECT %s, t.action, t.before, t.after,"
        " concat_ws(': ', format('%%s by %%s', t.created_at, t.actor), t.reason)"
        " FROM pg_temp.sona_load_deployment t ORDER BY t.deployment_id",
        (space_id,),
    )


def _insert_items(connection: Connection, space_id: int) -> tuple[str | None, str | None]:
    """Name the application's own table of items, where that is here; its name, and why it does not serve."""
    row = connection.execute(
        "SELECT t.items, t.id_column, t.embedding_column, t.filter_columns, t.sampled_at, s.dim"
        " FROM pg_temp.sona_load_item_source t CROSS JOIN pg_temp.sona_load_space s"
    ).fetchone()
    if row is None:
        return None, None
    items, id_column, embedding_column, filters, sampled_at, dim = row
    if items is None:
        return None, "the table was gone when the space was saved"
    found = connection.execute(
        "SELECT format('%%I.%%I', n.nspname, c.relname), c.relkind IN ('r', 'p', 'm', 'f'),"
        " (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0"
        "  AND NOT a.attisdropped AND a.attname = %(id)s),"
        " (SELECT ARRAY[t.typname, a.atttypmod::text] FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
        "  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attname = %(embedding)s),"
        " ARRAY(SELECT f FROM unnest(%(filters)s::text[]) f WHERE sona._column_type(c.oid, f) IS NULL),"
        " has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')"
        # to_regclass is an error to a role that may not look into the schema.
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, parse_ident(%(items)s) named"
        " WHERE n.nspname = named[1] AND c.relname = named[2]",
        {"items": items, "id": id_column, "embedding": embedding_column, "filters": filters},
    ).fetchone()
    if found is None:
        return None, f"there is no table {items}"
    table, is_table, id_type, embedding, lacking, may_read = found
    if not is_table:
        # Whoever recalls runs the functions of a view: somebody has to say that it may be trusted.
        return None, f"{items} is a view here"
    if not may_read:
        return None, f"this role may not read {items}"
    if id_type is None or embedding is None or embedding[0] != "vector" or lacking:
        return None, f"{items} has other columns than it had"
    if embedding[1] not in ("-1", str(dim)) or not _has_dimension(connection, table, embedding_column, dim):
        return None, f"{items} has embeddings of another dimension than {dim}"
    connection.execute(
        "INSERT INTO sona.item_source (space_id, items, id_column, id_type, embedding_column, sampled_at,"
        " filter_columns) VALUES (%s, to_regclass(%s), %s, %s, %s, %s, %s)",
        (space_id, items, id_column, id_type, embedding_column, sampled_at, filters),
    )
    return table, None


def _has_dimension(connection: Connection, table: str, column: str, dim: int) -> bool:
    row = connection.execute(
        sql.SQL("SELECT t.{column} FROM {table} t WHERE t.{column} IS NOT NULL LIMIT 1").format(
            column=sql.Identifier(column), table=sql.SQL(table)
        ),
        binary=True,
    ).fetchone()
    return row is None or row[0].size == dim


def damaged_versions(connection: Connection, space: Space) -> list[int]:
    """Numbers of the versions that are not what was published."""
    rows = connection.execute(
        "SELECT v.version FROM sona.adapter_version v WHERE v.space_id = %s"
        " AND v.checksum IS DISTINCT FROM sona._version_checksum(v, sona._version_rows(v.space_id, v.version))"
        " ORDER BY v.version",
        (space.space_id,),
    ).fetchall()
    return [row[0] for row in rows]
