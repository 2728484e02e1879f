"""The file that holds a space: a ZIP archive of the rows of its tables, and a manifest that says what they are.

Rows are as Postgres gives them to a binary COPY: exact, and the same in every version of it. Nothing is compressed, so
that a file can hold no more than its size.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import IO, BinaryIO, cast

from psycopg.abc import Buffer

from sona_pg.errors import IoError
from sona_pg.files import FilePath, replacing

FORMAT, FORMAT_VERSION = "sona space", 1
_MANIFEST, _SUFFIX = "manifest.json", ".copy"
_MOST_MANIFEST_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TableFile:
    """Rows of a table, as they are in a file.

    Parameters
    ----------
    columns
        Name and type of each, in order.
    rows, bytes, sha256
        How many, and what they are.
    """

    columns: tuple[tuple[str, str], ...]
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a file holds.

    Parameters
    ----------
    revision
        Of the schema that it was taken from.
    postgres
        Major version of the server.
    space, dim, embedder
        Name of the space, components of its vectors, and fingerprint of its embedder where one was declared.
    tables
        By name.
    """

    revision: str
    postgres: int
    space: str
    dim: int
    embedder: str | None
    tables: Mapping[str, TableFile]


class _Hashed:
    """A file that is written from its beginning to its end, with what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: Buffer) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


class ArchiveWriter:
    """Writes a file, table by table, and last what it holds; see `writing_archive`."""

    def __init__(self, file: BinaryIO) -> None:
        self._hashed = _Hashed(file)
        self._archive = zipfile.ZipFile(cast(IO[bytes], self._hashed), "w")
        self.tables: dict[str, TableFile] = {}

    @contextlib.contextmanager
    def table(self, name: str) -> Iterator[_Hashed]:
        """Takes the rows of a table; `add` says what they were."""
        with self._archive.open(zipfile.ZipInfo(name + _SUFFIX), "w", force_zip64=True) as member:
            yield _Hashed(cast(BinaryIO, member))

    def add(self, name: str, columns: tuple[tuple[str, str], ...], rows: int, written: _Hashed) -> None:
        """Enter a table into what the file holds."""
        self.tables[name] = TableFile(columns, rows, written.bytes, written.digest.hexdigest())

    def close(self, manifest: Manifest) -> None:
        """Write what the file holds."""
        held = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
        self._archive.writestr(zipfile.ZipInfo(_MANIFEST), json.dumps(held, indent=1))
        self._archive.close()

    def end(self) -> None:
        """Write nothing more, whatever has become of it."""
        with contextlib.suppress(OSError, ValueError):
            self._archive.close()

    @property
    def bytes(self) -> int:
        """Size of what was written."""
        return self._hashed.bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written, in hexadecimal."""
        return self._hashed.digest.hexdigest()


@contextlib.contextmanager
def writing_archive(path: FilePath) -> Iterator[ArchiveWriter]:
    """A file that is written whole or not at all.

    Raises
    ------
    IoError
        If it cannot be written.
    """
    with replacing(path) as file:
        writer = ArchiveWriter(file)
        try:
            yield writer
        finally:
            writer.end()


class ArchiveReader:
    """Reads a file that `ArchiveWriter` has written; nothing in it is believed that is not checked.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    IoError
        If it cannot be read, is of another kind, damaged, or of a later version of sona_pg.
    """

    def __init__(self, path: FilePath) -> None:
        self._path = path
        with self._reading():
            if not os.path.isfile(os.fspath(path)):
                raise FileNotFoundError("there is no such file")
            self._archive = zipfile.ZipFile(path)
        try:
            with self._reading():
                self.manifest = self._checked()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ArchiveReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def chunks(self, table: str) -> Iterator[bytes]:
        """The rows of a table, in bounded pieces; whoever takes the last one knows that they are what was written.

        Raises
        ------
        IoError
            If they are not.
        """
        said, digest, left = self.manifest.tables[table], hashlib.sha256(), self.manifest.tables[table].bytes
        with self._reading(), self._archive.open(table + _SUFFIX) as member:
            while chunk := member.read(_CHUNK_BYTES):
                digest.update(chunk)
                left -= len(chunk)
                if left < 0:
                    break
                yield chunk
            if left or digest.hexdigest() != said.sha256:
                raise self.refusal(f"the rows of {table} are not what was written")

    def refusal(self, why: str) -> IoError:
        """The error that says what is wrong with the file."""
        return IoError(f"{self._path!r} is not a space that was saved, or is damaged ({why}): save it again")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except IoError:
            raise
        except OSError as cause:
            raise IoError(f"{self._path!r} cannot be read ({cause}): pass the path of a file that was saved") from cause
        except (
            zipfile.BadZipFile,
            NotImplementedError,  # zipfile's, of a method of compression that it does not know
            RuntimeError,
            struct.error,
            ValueError,
            TypeError,
            LookupError,
            ArithmeticError,
            AttributeError,
            EOFError,
        ) as cause:
            raise self.refusal(str(cause)) from cause

    def _checked(self) -> Manifest:
        members = self._archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
            raise self.refusal("it holds what is compressed or encrypted")
        if sum(member.file_size for member in members) > os.path.getsize(self._path):
            raise self.refusal("it claims to hold more than its size")
        found = self._archive.getinfo(_MANIFEST)
        if found.file_size > _MOST_MANIFEST_BYTES:
            raise self.refusal("its manifest is too large")
        manifest = self._manifest(json.loads(self._archive.read(found)))
        sizes = {_MANIFEST: found.file_size} | {name + _SUFFIX: table.bytes for name, table in manifest.tables.items()}
        if sorted((member.filename, member.file_size) for member in members) != sorted(sizes.items()):
            raise self.refusal("its parts are not those that its manifest names")
        return manifest

    def _manifest(self, held: object) -> Manifest:
        if not isinstance(held, dict) or held.get("format") != FORMAT:
            raise self.refusal("its manifest is of something else")
        if held.get("format_version") != FORMAT_VERSION:
            raise IoError(
                f"{self._path!r} is of format {held.get('format_version')!r}, expected {FORMAT_VERSION}: load it with "
                "the version of sona-pg that wrote it"
            )
        tables = {
            _text(name): TableFile(
                tuple((_text(column), _text(kind)) for column, kind in table["columns"]),
                _whole(table["rows"]),
                _whole(table["bytes"]),
                _text(table["sha256"]),
            )
            for name, table in held["tables"].items()
        }
        embedder = held["embedder"]
        return Manifest(
            _text(held["revision"]),
            _whole(held["postgres"]),
            _text(held["space"]),
            _whole(held["dim"]),
            None if embedder is None else _text(embedder),
            tables,
        )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"its manifest holds {value!r}, expected a text")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"its manifest holds {value!r}, expected a whole number")
    return value
