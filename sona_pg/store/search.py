"""Search over the application's own table of items."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from psycopg import sql
from psycopg.errors import UndefinedColumn
from psycopg.types.json import Jsonb

from sona_pg.config import StoreConfig
from sona_pg.errors import DatabaseError, InvalidInput, SonaError
from sona_pg.kernels import single
from sona_pg.store.reader import Reader
from sona_pg.store.spaces import Space
from sona_pg.types import FloatVector, Json

Filter = Mapping[str, Json]
"""{"column": value}, {"column": [values]} or {"column": {"gte": value, "lt": value}}, all of which must hold."""

_SOURCE_SECONDS = 1.0
"""How long a search goes by the items table that it knows, before it looks again which one is named."""


class Found(NamedTuple):
    """An item that was found.

    Parameters
    ----------
    item_id
        Its id, as text.
    rank
        1-based place.
    score
        Cosine to the query that was asked; of a strategy that knows more than that, its score on the same scale.
    """

    item_id: str
    rank: int
    score: float


class _Source:
    """An items table, and the statements that ask it.

    Parameters
    ----------
    table
        Its name, as SQL.
    id_column, id_type, embedding_column
        Its columns of ids, with their type as SQL, and of embeddings.
    vector_schema
        The schema of pgvector, as SQL.
    """

    def __init__(self, table: str, id_column: str, id_type: str, embedding_column: str, vector_schema: str) -> None:
        # Without an index every row passes the inner level: ids become text behind the limit.
        self._nearest = sql.SQL(
            "SELECT n.id::text, n.distance FROM (SELECT t.{id}, t.{embedding} {operator} %s"
            " FROM {table} t WHERE t.{embedding} IS NOT NULL ORDER BY 2 LIMIT "
        ).format(
            id=sql.Identifier(id_column),
            embedding=sql.Identifier(embedding_column),
            table=sql.SQL(table),
            operator=sql.SQL("OPERATOR({}.<=>)").format(sql.SQL(vector_schema)),
        )
        self._table, self._id_column, self._id_type = table, id_column, id_type
        self._made: dict[int | str, sql.SQL] = {}

    def nearest(self, k: int) -> sql.SQL:
        """The statement that gives the k items nearest to a vector, with their distance."""
        # A literal limit: behind a parameter it would be unknown, and the statement planned at every call.
        return self._once(k, lambda: self._nearest + sql.SQL("{}) n (id, distance)").format(k))

    def texts(self, column: str) -> sql.SQL:
        """The statement that gives items, by a list of their ids, with what is in a column."""
        return self._once(
            column,
            lambda: sql.SQL(
                "SELECT t.{id}::text, t.{text}::text FROM {table} t WHERE t.{id} = ANY(%s::text[]::{type}[])"
            ).format(
                id=sql.Identifier(self._id_column),
                text=sql.Identifier(column),
                table=sql.SQL(self._table),
                type=sql.SQL(self._id_type),
            ),
        )

    def _once(self, key: int | str, compose: Callable[[], sql.Composed]) -> sql.SQL:
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = sql.SQL(compose().as_string(None))
        return found


class ItemSearch:
    """Searches the items of a space. Safe to use from several threads.

    Where the server may keep prepared statements, the plain search runs as one, planned once. It orders items as
    `sona.recall` does; which of those at the distance of the last one are among the k is up to the plan of either.

    Parameters
    ----------
    space
        The space.
    config
        Settings.
    """

    def __init__(self, space: Space, config: StoreConfig) -> None:
        self._space = space
        self._config = config
        self._source: _Source | None = None
        self._look_again_at = 0.0

    async def nearest(self, reader: Reader, query: FloatVector, k: int, filter: Filter | None = None) -> list[Found]:
        """The k items nearest to a query (dim,) by cosine, best first.

        Raises
        ------
        InvalidInput
            If the filter names a column that was not declared, or a value of another type.
        DatabaseError
            If the table cannot be searched.
        """
        found = None if filter else await self._nearest_prepared(reader, query, k)
        if found is not None:
            return found
        rows = await reader.rows(
            "SELECT item_id, rank, score FROM sona._search_items(%s, %s, %s, %s) ORDER BY rank",
            (self._space.space_id, query, k, None if filter is None else Jsonb(filter)),
            binary=True,
        )
        return [Found(*row) for row in rows]

    async def answer(
        self, reader: Reader, query: FloatVector, k: int, filter: Filter | None = None
    ) -> tuple[list[Found], int, str]:
        """The k best items for a query (dim,) by the strategy in force; and its version and name.

        Raises
        ------
        InvalidInput, DatabaseError
            As `nearest`.
        """
        rows = await reader.rows(
            # The space may have another name by now: one of another embedder has taken its place.
            "SELECT item_id, rank, score, version, strategy FROM sona._answer("
            "(SELECT name FROM sona.space WHERE space_id = %s), %s, %s, %s) ORDER BY rank",
            (self._space.space_id, query, k, None if filter is None else Jsonb(filter)),
            binary=True,
        )
        version, strategy = rows[0][3:] if rows else (0, "frozen")
        return [Found(*row[:3]) for row in rows], version, strategy

    async def _nearest_prepared(self, reader: Reader, query: FloatVector, k: int) -> list[Found] | None:
        """As `nearest`; None where that takes the function: it says what is wrong, and searches exhaustively."""
        with contextlib.suppress(SonaError):
            source = await self._source_of_items(reader) if self._config.prepare_statements else None
            if source is None:
                return None
            rows = await reader.rows(source.nearest(k), (query,), prepare=True, binary=True)
            if len(rows) < k:
                return None
            # An index returns almost in order; ties go by the id.
            rows.sort(key=_by_distance)
            return [Found(item, rank, _score(distance)) for rank, (item, distance) in enumerate(rows, 1)]
        return None

    async def _source_of_items(self, reader: Reader) -> _Source | None:
        """The items table, as it was named not long ago; None where that was never said."""
        if time.monotonic() >= self._look_again_at:
            rows = await reader.rows(
                "SELECT i.items::text, i.id_column, format_type(a.atttypid, a.atttypmod), i.embedding_column,"
                " (SELECT quote_ident(nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
                "  WHERE extname = 'vector') FROM sona._items_of(%s) i"
                " JOIN pg_attribute a ON a.attrelid = i.items AND a.attname = i.id_column",
                (self._space.space_id,),
            )
            self._source = _Source(*rows[0]) if rows else None
            self._look_again_at = time.monotonic() + _SOURCE_SECONDS
        return self._source

    async def texts(self, reader: Reader, ids: Sequence[str], column: str) -> dict[str, str | None]:
        """Texts of items by id, from a column of the items table; an item that is gone is left out.

        Raises
        ------
        InvalidInput
            If there is no such column.
        DatabaseError
            If it cannot be read.
        """
        source = await self._source_of_items(reader)
        if source is None:
            return {}
        statement, parameters = source.texts(column), (list(ids),)
        try:
            return dict(await reader.rows(statement, parameters, prepare=self._config.prepare_statements))
        except DatabaseError as error:
            if isinstance(error.__cause__, UndefinedColumn):
                raise InvalidInput(
                    f"the table of items has no column {column!r}: name the one that holds their text (text_column=, "
                    "--text-column)"
                ) from error
            raise

    def look_again(self) -> None:
        """The items table was named anew."""
        self._look_again_at = 0.0


def _by_distance(row: tuple[str, float]) -> tuple[bool, float, str]:
    """Order of items: ties go by the id, and what has no distance comes last."""
    item, distance = row
    return (False, distance, item) if distance == distance else (True, 0.0, item)


def _score(distance: float) -> float:
    """The cosine; a vector of zeros has no direction, and counts as unrelated."""
    return single(1.0 - distance) if distance == distance else 0.0
