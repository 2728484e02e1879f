"""A file that is not what was saved is refused, and nothing of it is written."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from sona_pg import IoError, SchemaMismatch, SonaEngine, SonaError, UnknownSpace
from sona_pg.loops.archiving import save_space
from sona_pg.store.connection import connect
from sona_pg.store.migrate import migrate

from . import saving
from .saving import NAME

PG_COPY = b"PGCOPY\n\xff\r\n\0"


@pytest.fixture
def origin(saved_space: tuple[str, Path]) -> str:
    return saved_space[0]


@pytest.fixture
def file(saved_space: tuple[str, Path]) -> Path:
    return saved_space[1]


@pytest.fixture(scope="module")
def target(make_database: Callable[[], str]) -> str:
    url = make_database()
    migrate(url)
    saving.make_items(url)
    return url


@pytest.fixture(scope="module")
def spoiled(make_database: Callable[[], str]) -> str:
    url = make_database()
    migrate(url)
    return url


@pytest.fixture(autouse=True)
def nothing_is_written(target: str) -> Iterator[None]:
    before = everything(target)
    yield
    assert everything(target) == before


def everything(url: str) -> list[tuple[object, ...]]:
    with connect(url) as connection:
        tables = [row[0] for row in connection.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'sona'::regnamespace AND relkind = 'r'"
        )]  # fmt: skip
        return [(t, connection.execute(f"SELECT count(*) FROM {t}").fetchone()) for t in sorted(tables)]


def refused(target: str, path: Path, match: str | None = None, kind: type[SonaError] = IoError) -> None:
    with pytest.raises(kind, match=match):
        SonaEngine.load(path, target)


def test_what_is_no_file_or_another_one(target: str, file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("not a file of ours\n" * 100)
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("../../etc/passwd", "root")
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing", "empty", "text", "zip", "fifo", "."):
        refused(target, tmp_path / name)


def test_a_truncated_file(target: str, file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    for length in (1, 22, len(data) // 3, len(data) // 2, len(data) - 1):
        (tmp_path / "short").write_bytes(data[:length])
        refused(target, tmp_path / "short")


def test_a_changed_bit_is_seen_wherever_it_matters(
    target: str, file: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    with zipfile.ZipFile(file) as archive:
        members = [
            (m.header_offset + 30 + len(m.filename), m.file_size) for m in archive.infolist() if m.file_size > 50
        ]
    data = file.read_bytes()
    places = [start + 30 + int(rng.integers(size - 30)) for start, size in members]
    for place in [*places, *rng.integers(len(data) - 2000, len(data), 10).tolist()]:
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "changed").write_bytes(changed)
        try:
            SonaEngine.load(tmp_path / "changed", target, background=False).close()
        except IoError:
            continue
        # Of the directory at the end some bits say nothing, like times.
        assert place > len(data) - 2000
        assert saving.rows_of(target, NAME)["trajectory_step"]
        with connect(target) as connection:
            connection.execute("SELECT sona.drop_space(%s)", (NAME,))


def test_a_compressed_file_is_no_way_to_fill_the_disk(target: str, file: Path, tmp_path: Path) -> None:
    def swell(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
        parts["score.copy"] = PG_COPY + bytes(50_000_000)

    forged = saving.forge(file, tmp_path / "bomb", swell, compression=zipfile.ZIP_DEFLATED)
    assert forged.stat().st_size < 1_000_000
    refused(target, forged, "compressed")


def tables_of(manifest: dict[str, object]) -> dict[str, dict[str, object]]:
    return cast(dict[str, dict[str, object]], manifest["tables"])


def _more(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    parts["../outside.copy"] = b"x"


def _less(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    del parts["score.copy"]


def _outside(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    parts["/etc/passwd.copy"] = parts.pop("score.copy")
    tables_of(manifest)["/etc/passwd"] = tables_of(manifest).pop("score")


def _other_table(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    parts["alembic_version.copy"] = parts["score.copy"]
    tables_of(manifest)["alembic_version"] = dict(tables_of(manifest)["score"])


def _count(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    tables_of(manifest)["trajectory"]["rows"] = 7


def _size(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    tables_of(manifest)["trajectory"]["bytes"] = 7


def _hash(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    tables_of(manifest)["trajectory"]["sha256"] = "0" * 64


def _column(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    tables_of(manifest)["trajectory"]["columns"] = [["pg_sleep(9)", "text"]]


def _name(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    manifest["space"] = "another"


def _dim(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    manifest["dim"] = 3


def _embedder(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    manifest["embedder"] = "another"


def _nothing(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    manifest["tables"] = {}
    parts.clear()


def _nested(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    nested: list[object] = []
    for _ in range(900):
        nested = [nested]
    manifest["dim"] = nested


def _negative(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    tables_of(manifest)["trajectory"]["rows"] = -1


def _garbage(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    parts["trajectory.copy"] = b"\\.\nDROP SCHEMA sona CASCADE;\n"


def _huge_field(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    data = bytearray(parts["trajectory.copy"])
    data[21:25] = struct.pack(">i", 0x3FFF_FFFF)
    parts["trajectory.copy"] = bytes(data)


def _no_end(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    parts["trajectory.copy"] = parts["trajectory.copy"][:-30]


def _no_rows(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    parts["learner.copy"] = PG_COPY + bytes(8) + b"\xff\xff"
    tables_of(manifest)["learner"]["rows"] = 0


def _twice(parts: dict[str, bytes], manifest: dict[str, object]) -> None:
    rows = parts["learner.copy"][19:-2]
    parts["learner.copy"] = PG_COPY + bytes(8) + rows + rows + b"\xff\xff"
    tables_of(manifest)["learner"]["rows"] = 2


@pytest.mark.parametrize(
    "change",
    [
        _more, _less, _outside, _other_table, _count, _size, _hash, _column, _name, _dim, _embedder, _nothing, _nested,
        _negative, _garbage, _huge_field, _no_end, _no_rows, _twice,
    ],
)  # fmt: skip
def test_a_forged_file(target: str, file: Path, tmp_path: Path, change: saving.Change) -> None:
    refused(target, saving.forge(file, tmp_path / "forged", change))


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"format": "sona space", "format_version": 1}', b" " * 2**21],
)
def test_a_manifest_that_is_none(target: str, tmp_path: Path, manifest: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("manifest.json", manifest)
    refused(target, tmp_path / "zip")


def test_another_format_and_another_revision_say_the_way_out(target: str, file: Path, tmp_path: Path) -> None:
    for key, value, kind, says in (
        ("format_version", 2, IoError, "version of sona-pg that wrote it"),
        ("format", "tar", IoError, "something else"),
        ("revision", "0009", SchemaMismatch, "run 'sona migrate' with this one, and save it again"),
        ("revision", "9999", SchemaMismatch, "9999"),
    ):

        def change(parts: dict[str, bytes], manifest: dict[str, object], key: str = key, value: object = value) -> None:
            manifest[key] = value

        refused(target, saving.forge(file, tmp_path / "forged", change), says, kind)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE sona.trajectory SET quality = 'NaN' WHERE space_id = %s", "NaN"),
        ("UPDATE sona.trajectory_step SET reward = 'Infinity' WHERE space_id = %s", "NaN"),
        ("UPDATE sona.remembered_query SET rewards = '{NaN}' WHERE space_id = %s", "NaN"),
        ("UPDATE sona.memory_edge SET weight = '-Infinity' WHERE space_id = %s", "NaN"),
        ("UPDATE sona.memory_edge SET weight = -5 WHERE space_id = %s", "an edge of weight -5"),
        (
            "UPDATE sona.memory_edge SET kind = 'bogus' WHERE space_id = %s AND kind = 'creative'",
            "an edge of kind 'bogus'",
        ),
        ("UPDATE sona.memory_node SET kind = 'bogus' WHERE space_id = %s AND kind = 'item'", "a node of kind 'bogus'"),
        ("UPDATE sona.memory_node_state SET importance = 7 WHERE space_id = %s", "a node of importance 7"),
        ("UPDATE sona.memory_archive SET content = '[1]' WHERE space_id = %s", "it holds no row"),
        ("UPDATE sona.memory_archive SET entity = 'bogus' WHERE space_id = %s", "it is of kind 'bogus'"),
        ("UPDATE sona.pattern SET centroid = '[1,2,3]' WHERE space_id = %s", "dimensions"),
        ("UPDATE sona.trajectory SET query = '[1,2,3]' WHERE space_id = %s", "dimensions"),
        ("UPDATE sona.learner SET state = 'no state' WHERE space_id = %s", "cannot be read"),
        ("UPDATE sona.strategist SET state = 'no state' WHERE space_id = %s", "cannot be read"),
        ("UPDATE sona.learner SET settings = '{\"adapter\": 3}' WHERE space_id = %s", "cannot be read"),
        ("UPDATE sona.strategist SET settings = '{\"nonsense\": 3}' WHERE space_id = %s", "cannot be read"),
        ("UPDATE sona.adapter_version SET known = 0.123 WHERE space_id = %s", "not what was published"),
    ],
)
def test_rows_that_no_space_holds(
    spoiled: str, file: Path, target: str, tmp_path: Path, statement: str, says: str
) -> None:
    """Saved by a database that holds them: all that the file says of itself is true."""
    name = f"spoiled {abs(hash(statement))}"
    SonaEngine.load(file, spoiled, space=name, background=False).close()
    with connect(spoiled) as connection:
        row = connection.execute("SELECT space_id FROM sona.space WHERE name = %s", (name,)).fetchone()
        assert row is not None
        assert connection.execute(statement, row).rowcount > 0
        save_space(connection, name, tmp_path / "rows")
    refused(target, tmp_path / "rows", says)


def test_a_file_that_cannot_be_written_leaves_what_was_there(origin: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with SonaEngine.connect(origin, space=NAME, background=False) as engine:
        for path in (tmp_path, tmp_path / "nowhere" / "file", Path("/dev/null/file")):
            with pytest.raises(IoError):
                engine.save(path)
        with connect(origin) as connection, pytest.raises(UnknownSpace):
            save_space(connection, "nobody", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "what was half written is left"
