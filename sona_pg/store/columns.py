"""Many rows of numbers between Postgres and NumPy: binary COPY, whole columns at a time.

A row of fixed width is one element of a structured array in the wire's own order, so that nothing is done row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from sona_pg.errors import DatabaseError
from sona_pg.store.connection import Connection

Columns = dict[str, NDArray[np.generic]]

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"

BIGINT, DOUBLE = ">i8", ">f8"
"""Types of columns."""


def read_columns(
    connection: Connection, query: sql.Composed, names: Mapping[str, str], vector: tuple[str, int] | None = None
) -> Columns:
    """The rows of a query as columns, in the byte order of this machine.

    Parameters
    ----------
    query
        Gives bigint and float8 columns without NULL, and last, where `vector` says so, a vector column.
    names
        Of the columns, with `BIGINT` or `DOUBLE` for each, in order.
    vector
        Name and dimension of a last column of vectors: float32 (n, dim).

    Raises
    ------
    DatabaseError
        If a row has another width: a value is NULL, or of another type.
    """
    fields = _fields(names)
    if vector is not None:
        fields += [(_SIZE + vector[0], ">i4"), ("dim", ">i2"), ("unused", ">i2"), (vector[0], ">f4", (vector[1],))]
    row = np.dtype(fields)
    received = bytearray()
    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT BINARY)").format(query)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for block in copy:
            received += block
    start, end = len(_HEADER), len(received) - len(_TRAILER)
    if (end - start) % row.itemsize or received[:11] != _HEADER[:11]:
        raise DatabaseError(
            f"rows of {row.itemsize} bytes were expected, and {end - start} bytes came: a value is NULL"
        )
    rows = np.frombuffer(received, dtype=row, count=(end - start) // row.itemsize, offset=start)
    wanted = [*names, *([] if vector is None else [vector[0]])]
    return {name: np.ascontiguousarray(rows[name], dtype=rows[name].dtype.newbyteorder("=")) for name in wanted}


def write_columns(
    connection: Connection, table: str, names: Sequence[str], columns: Mapping[str, NDArray[np.generic]]
) -> None:
    """Append rows to a table, given by columns of int64 (bigint) or float64 (float8).

    Parameters
    ----------
    table
        Its name, as SQL.
    names
        The columns to write, in the order of the table's own.
    """
    row = np.dtype(_fields({name: BIGINT if columns[name].dtype.kind == "i" else DOUBLE for name in names}))
    length = len(columns[names[0]])
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.SQL(table), sql.SQL(", ").join(map(sql.Identifier, names))
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(_HEADER)
        for start in range(0, length, _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, length))
            rows = np.empty(part.stop - part.start, dtype=row)
            rows[_COUNT] = len(names)
            for name in names:
                rows[_SIZE + name], rows[name] = 8, columns[name][part]
            copy.write(rows.tobytes())
        copy.write(_TRAILER)


_ROWS_AT_ONCE = 50_000
"""So that what goes over the wire is not once more in memory as a whole."""

_COUNT, _SIZE = "number of fields", "size of "


def _fields(names: Mapping[str, str]) -> list[tuple[object, ...]]:
    """A row of the wire: how many fields, and before each how many bytes it has."""
    fields: list[tuple[object, ...]] = [(_COUNT, ">i2")]
    for name, kind in names.items():
        fields += [(_SIZE + name, ">i4"), (name, kind)]
    return fields
