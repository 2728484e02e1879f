"""Rows as JSON Lines or Parquet, written and read a few at a time."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import BinaryIO, cast

from sona_pg.errors import ConfigError, InvalidInput
from sona_pg.exchange.parquet_footer import claimed_values
from sona_pg.files import FilePath, new_file, open_file
from sona_pg.types import Json

Row = Mapping[str, Json]

MOST_ROWS = 100_000
"""More are not read from a file."""

_AT_ONCE = 500
_MOST_LINE = 16 << 20
_MOST_HEADER = 1 << 20
_MOST_BYTES = 1 << 30
_MOST_VALUES = 1 << 28
SEAL = "sha256"
"""Key of a header that holds what `rows_sha256` gives."""

_HEADER = "sona"
"""Key of a Parquet file's metadata that holds what the first line of JSON Lines does."""


class Kind(enum.Enum):
    """What a column holds."""

    WHOLE = "int64"
    NUMBER = "float64"
    TEXT = "string"
    VECTOR = "list<float32>"
    WHOLES = "list<int64>"
    JSON = "string of JSON"
    """In JSON Lines it is JSON itself."""


Columns = Mapping[str, Kind]


def is_parquet(path: FilePath) -> bool:
    """Whether the name of a file says that it is Parquet, and not JSON Lines.

    Raises
    ------
    ConfigError
        If it says neither, or Parquet and pyarrow is not installed.
    """
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    suffix = os.path.splitext(name)[1].lower() if isinstance(name, str) else None
    if suffix == ".parquet":
        _arrow()
        return True
    if suffix not in (".jsonl", ".ndjson"):
        raise ConfigError(f"{path!r} is neither *.jsonl nor *.parquet: the name of the file says what it is")
    return False


def write_rows(path: FilePath, columns: Columns, rows: Iterable[Row], header: Row | None = None) -> int:
    """Write rows to a file that is not there yet; gives how many.

    Parameters
    ----------
    header
        What is said of all of them: the first line of JSON Lines, the metadata of Parquet.

    Raises
    ------
    ConfigError
        If the name of the file says neither JSON Lines nor Parquet, or pyarrow is not installed.
    IoError
        If something is there already, or it cannot be written; nothing is left then.
    """
    write = _write_parquet if is_parquet(path) else _write_lines
    with new_file(path) as file:
        return write(file, columns, rows, header)


def rows_sha256(header: Row, rows: Iterable[Row]) -> str:
    """SHA-256 of rows and of what a header says of them but this, in hexadecimal; the same in each format.

    Raises
    ------
    InvalidInput
        If one holds what JSON cannot.
    """
    seal = _Seal(header)
    for row in rows:
        seal.add(row)
    return seal.sha256()


class _Seal:
    """Hashes a header and rows, one by one."""

    def __init__(self, header: Row) -> None:
        self._digest = hashlib.sha256()
        self.add({name: value for name, value in header.items() if name != SEAL})

    def add(self, row: Row) -> None:
        """Takes a row."""
        try:
            self._digest.update(json.dumps(row, sort_keys=True, allow_nan=False).encode() + b"\n")
        except (TypeError, ValueError, RecursionError) as cause:
            raise InvalidInput(f"a row holds what JSON cannot ({str(cause)[:200]})") from cause

    def sha256(self) -> str:
        """Of all that was taken."""
        return self._digest.hexdigest()


def _write_lines(file: BinaryIO, columns: Columns, rows: Iterable[Row], header: Row | None) -> int:
    count = 0
    for row in itertools.chain([] if header is None else [header], rows):
        file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        count += 1
    return count - (header is not None)


def _write_parquet(file: BinaryIO, columns: Columns, rows: Iterable[Row], header: Row | None) -> int:
    arrow = _arrow()
    metadata = None if header is None else {_HEADER: json.dumps(header)}
    types = {
        Kind.WHOLE: arrow.int64(),
        Kind.NUMBER: arrow.float64(),
        Kind.TEXT: arrow.string(),
        Kind.VECTOR: arrow.list_(arrow.float32()),
        Kind.WHOLES: arrow.list_(arrow.int64()),
        Kind.JSON: arrow.string(),
    }
    schema = arrow.schema([(name, types[kind]) for name, kind in columns.items()], metadata=metadata)
    coded = [name for name, kind in columns.items() if kind is Kind.JSON]
    count, left = 0, iter(rows)
    with arrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while batch := list(itertools.islice(left, _AT_ONCE)):
            made = [{**row, **{name: json.dumps(row[name]) for name in coded}} for row in batch]
            # A row group of its own: batches would wait in memory until there are a million rows.
            writer.write_table(arrow.Table.from_pylist(made, schema=schema))
            count += len(batch)
    return count


@contextlib.contextmanager
def opened_rows(path: FilePath, columns: Columns) -> Iterator[tuple[Row, Iterator[Row]]]:
    """The header of what `write_rows` has written, and its rows, one by one; each has these columns and no others.

    Raises
    ------
    ConfigError
        If the name of the file says neither JSON Lines nor Parquet, or pyarrow is not installed.
    IoError
        If it cannot be read.
    InvalidInput
        If it is damaged, cut off, changed, or something else, or has more than `MOST_ROWS` rows; at the row where that
        is seen, at the latest after the last one.
    """
    read = _read_parquet if is_parquet(path) else _read_lines
    with open_file(path, _MOST_BYTES) as file:
        header, rows = read(file, columns)
        yield header, _sealed(header, rows)


def _sealed(header: Row, rows: Iterator[Row]) -> Iterator[Row]:
    count, seal = 0, _Seal(header)
    for count, row in enumerate(rows, 1):
        if count > MOST_ROWS:
            raise InvalidInput(f"the file has more than {MOST_ROWS} rows: expected no more")
        yield row
        seal.add(row)
    if header.get("rows") != count or isinstance(header.get("rows"), bool):
        raise InvalidInput(f"the file has {count} rows, not as many as it says: it is cut off or changed")
    if header.get(SEAL) != seal.sha256():
        raise InvalidInput("the file was changed since it was exported, its checksum differs: export it again")


def _read_lines(file: BinaryIO, columns: Columns) -> tuple[Row, Iterator[Row]]:
    return _object(_line(file, 1), "line 1"), _later_lines(file, columns)


def _later_lines(file: BinaryIO, columns: Columns) -> Iterator[Row]:
    for number in itertools.count(2):
        line = _line(file, number)
        if not line:
            return
        row = _object(line, f"line {number}")
        if row.keys() != columns.keys():
            raise InvalidInput(_other_columns(f"line {number}", row, columns))
        yield row


def _line(file: BinaryIO, number: int) -> bytes:
    line = file.readline(_MOST_LINE)
    if line and not line.endswith(b"\n"):
        raise InvalidInput(f"line {number} of the file is cut off, or longer than {_MOST_LINE} bytes")
    return line


def _object(data: bytes | str, where: str) -> Row:
    try:
        found = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as cause:
        raise InvalidInput(f"{where} is no JSON that can be read ({str(cause)[:200]})") from cause
    if not isinstance(found, dict):
        raise InvalidInput(f"{where} is a {type(found).__name__}, expected a JSON object")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _read_parquet(file: BinaryIO, columns: Columns) -> tuple[Row, Iterator[Row]]:
    arrow = _arrow()
    try:
        values = claimed_values(file)
        opened = arrow.parquet.ParquetFile(file)
        metadata = opened.metadata
        header = (opened.schema_arrow.metadata or {}).get(_HEADER.encode(), b"")
        names = list(opened.schema_arrow.names)
    except (arrow.ArrowException, OSError, MemoryError, ValueError, RecursionError) as cause:
        raise InvalidInput(f"the file is no Parquet, or a damaged one ({str(cause)[:200]})") from cause
    if metadata.num_rows > MOST_ROWS or values > _MOST_VALUES or len(header) > _MOST_HEADER:
        raise InvalidInput(
            f"the file has {metadata.num_rows} rows of {values} values, expected at most {MOST_ROWS} rows"
        )
    if sorted(names) != sorted(columns):
        raise InvalidInput(_other_columns("the file", dict.fromkeys(names), columns))
    return _object(header, "the metadata of the file"), _parquet_rows(opened, columns)


def _parquet_rows(opened: ModuleType, columns: Columns) -> Iterator[Row]:
    arrow = _arrow()
    coded = [name for name, kind in columns.items() if kind is Kind.JSON]
    size = 0
    try:
        # One by one: what a few bytes of the file repeat a million times is never there as a whole.
        for batch in opened.iter_batches(batch_size=1):
            size += batch.nbytes
            if size > _MOST_BYTES:
                raise InvalidInput(f"the rows of the file take more than {_MOST_BYTES} bytes: expected no more")
            for row in batch.to_pylist():
                for name in coded:
                    if not isinstance(row[name], str):
                        raise InvalidInput(f"{name} of a row is {type(row[name]).__name__}, expected JSON as a string")
                    row[name] = json.loads(row[name], parse_constant=_refuse_constant)
                yield cast(Row, row)
    except InvalidInput:
        raise
    except (arrow.ArrowException, OSError, MemoryError, ValueError, RecursionError, OverflowError) as cause:
        raise InvalidInput(f"the rows of the file are damaged ({str(cause)[:200]})") from cause


def _other_columns(where: str, found: Row, columns: Columns) -> str:
    other = sorted(found.keys() ^ columns.keys())
    return f"{where} lacks, or has beside what it should: {', '.join(other)[:200]}"


def _arrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as cause:
        raise ConfigError(
            "Parquet needs pyarrow, which is not installed: pip install 'sona-pg[export]', or choose a name that ends "
            "in .jsonl"
        ) from cause
    return cast(ModuleType, pyarrow)
