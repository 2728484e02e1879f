"""Patterns of a space with their verdicts, as files, and into another space."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import cast

import numpy as np

from sona_pg.config import PatternConfig, VerdictConfig
from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.exchange.origin import embedder_of
from sona_pg.exchange.rows import SEAL, Columns, Kind, Row, opened_rows, rows_sha256, write_rows
from sona_pg.files import FilePath
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.portable import pattern_from_json, pattern_to_json
from sona_pg.learning.resumed_bank import ResumedBank
from sona_pg.learning.verdicts import Verdict
from sona_pg.loops.admission import checked_text, private_json
from sona_pg.store.connection import Connection
from sona_pg.store.exchange import ExportReader, export_reader, import_transaction
from sona_pg.store.spaces import Space
from sona_pg.types import Json

FORMAT = "sona patterns 1"

_COLUMNS: Columns = {
    **dict.fromkeys(("id", "cluster_size", "support", "access_count", "abstraction_level"), Kind.WHOLE),
    **dict.fromkeys(("total_weight", "avg_quality", "confidence"), Kind.NUMBER),
    **dict.fromkeys(("created_at", "last_accessed", "updated_at", "decayed_at"), Kind.NUMBER),
    **dict.fromkeys(("best_strategy", "title", "description", "content"), Kind.TEXT),
    "centroid": Kind.VECTOR,
    "children": Kind.WHOLES,
    "verdicts": Kind.JSON,
}
_MOST_WHOLE = 1 << 53
_MOST_LEVEL = 1000
_LAST_SECOND = 253_402_300_799.0
"""Of the year 9999."""


@dataclass(frozen=True, slots=True)
class PatternImport:
    """What an import of patterns did.

    Parameters
    ----------
    read
        Patterns of the file.
    created, merged
        How many are new, and how many became part of one that is near to them.
    known
        How many changed nothing: they were imported before, or are of this space itself, which has what they have.
    """

    read: int
    created: int
    merged: int
    known: int


@dataclass(frozen=True, slots=True)
class PatternFile:
    """Patterns of a file, checked.

    Parameters
    ----------
    dim, embedder
        Of the space that they come from.
    space, space_key
        Its name, and what names it beyond its database.
    patterns, verdicts
        As they are there; verdicts by id.
    digest
        SHA-256 of all of them, the same in each format.
    """

    dim: int
    embedder: str | None
    space: str
    space_key: uuid.UUID
    patterns: Sequence[LearnedPattern]
    verdicts: Mapping[int, Mapping[str, Verdict]]
    digest: str


def export_patterns(connection: Connection, space: Space, path: FilePath) -> int:
    """Write all patterns, with their verdicts and texts; gives how many.

    Raises
    ------
    ConfigError, IoError, DatabaseError
        If the file cannot be written, or the space not be read; no file is left then.
    """
    with export_reader(connection, space) as reader:
        header: Row = {
            "format": FORMAT,
            "rows": reader.count_patterns(),
            "dim": space.dim,
            "embedder": space.embedder,
            "space": space.name,
            "space_key": str(space.key),
        }
        # Read twice, at one moment: what the file begins with is known after the last row.
        header = {**header, SEAL: rows_sha256(header, _rows(reader))}
        return write_rows(path, _COLUMNS, _rows(reader), header)


def _rows(reader: ExportReader) -> Iterator[Row]:
    for pattern, verdicts in reader.patterns():
        yield {**pattern_to_json(pattern), "verdicts": cast(Json, verdicts)}


def read_patterns(path: FilePath) -> PatternFile:
    """The patterns of a file, all of them checked.

    Raises
    ------
    ConfigError, IoError
        If the file cannot be read.
    DimensionMismatch, InvalidInput
        If it is damaged, or something else.
    """
    patterns: list[LearnedPattern] = []
    verdicts: dict[int, dict[str, Verdict]] = {}
    with opened_rows(path, _COLUMNS) as (header, rows):
        dim, embedder, space, key = _checked_header(header)
        digest = hashlib.sha256(f"{dim} {embedder} {key}".encode())
        for place, row in enumerate(rows, 1):
            try:
                pattern, known = _checked_row(row, dim)
            except InvalidInput as cause:
                raise InvalidInput(f"pattern {place} of the file: {str(cause)[:300]}") from cause
            patterns.append(pattern)
            if known:
                verdicts[pattern.id] = known
            said = {**pattern_to_json(pattern), "verdicts": [verdict.to_json() for verdict in known.values()]}
            digest.update(json.dumps(said, sort_keys=True).encode())
    if len({pattern.id for pattern in patterns}) < len(patterns):
        raise InvalidInput("the file is damaged: an id stands twice")
    return PatternFile(dim, embedder, space, key, patterns, verdicts, digest.hexdigest())


def _checked_header(header: Row) -> tuple[int, str | None, str, uuid.UUID]:
    expected = {"format", "rows", "dim", "embedder", "space", "space_key", SEAL}
    if header.get("format") != FORMAT or header.keys() != expected:
        raise InvalidInput(f"this is no export of patterns: expected the format {FORMAT!r}, and what it says of itself")
    dim, embedder, space, key = (header[name] for name in ("dim", "embedder", "space", "space_key"))
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise InvalidInput("the dimension that the file says is no whole number")
    if embedder is not None and not isinstance(embedder, str):
        raise InvalidInput("the embedder that the file says is no text")
    if not isinstance(space, str) or not isinstance(key, str):
        raise InvalidInput("the space that the file says is no text")
    try:
        own = None if embedder is None else checked_text(embedder, "embedder")
        return dim, own, checked_text(space, "space"), uuid.UUID(key)
    except ValueError as cause:
        raise InvalidInput(f"what the file says of its space is damaged: {str(cause)[:300]}") from cause


def _checked_row(row: Row, dim: int) -> tuple[LearnedPattern, dict[str, Verdict]]:
    stored = {each.name: row[each.name] for each in fields(LearnedPattern)}
    try:
        pattern = pattern_from_json(stored, dim)
        if any(isinstance(child, bool) or not isinstance(child, int) for child in cast(list[Json], stored["children"])):
            raise InvalidInput("children are no whole numbers")
    except (InvalidInput, DimensionMismatch):
        raise
    except (TypeError, ValueError, OverflowError, AttributeError) as cause:
        raise InvalidInput(f"it is damaged ({str(cause)[:200]})") from cause
    _check_numbers(pattern)
    for name in ("best_strategy", "title", "description", "content"):
        text = getattr(pattern, name)
        if text is not None and ("\0" in text or not _is_unicode(text)):
            raise InvalidInput(f"{name} holds what Postgres cannot store: a NUL character, or no Unicode")
    kept = private_json({"verdicts": row["verdicts"]}, "its verdicts")["verdicts"]
    if not isinstance(kept, list) or not all(isinstance(one, dict) for one in kept):
        raise InvalidInput("its verdicts are no list of objects")
    known = {verdict.parameter: verdict for verdict in map(Verdict.from_json, kept)}
    if len(known) < len(kept):
        raise InvalidInput("there are two verdicts on one parameter")
    for name in known:
        checked_text(name, "a parameter")
    return pattern, known


def _check_numbers(pattern: LearnedPattern) -> None:
    for name in ("id", "cluster_size", "support", "access_count"):
        if not 0 <= getattr(pattern, name) < _MOST_WHOLE:
            raise InvalidInput(f"{name} is out of range")
    for name in ("avg_quality", "confidence"):
        if not 0 <= getattr(pattern, name) <= 1:
            raise InvalidInput(f"{name} is {getattr(pattern, name)!r}, expected 0 to 1")
    for name in ("created_at", "last_accessed", "updated_at", "decayed_at"):
        if not 0 <= getattr(pattern, name) <= _LAST_SECOND:
            raise InvalidInput(f"{name} is {getattr(pattern, name)!r}, expected seconds since 1970")
    if not 0 <= pattern.total_weight < _MOST_WHOLE or not 0 <= pattern.abstraction_level <= _MOST_LEVEL:
        raise InvalidInput("total_weight or abstraction_level is out of range")
    if not math.isclose(float(np.linalg.norm(pattern.centroid.astype(np.float64))), 1.0, abs_tol=1e-3):
        raise InvalidInput("its centroid is not of unit length")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def import_patterns(
    connection: Connection, space: Space, file: PatternFile, *, embedder: str | None = None
) -> PatternImport:
    """Take patterns that were read over into a space, all of them or none.

    Each becomes part of the pattern that it is near to, as a cycle merges them, or is a new one. What was imported
    before changes nothing. Neither do those of the space itself, but for what is gone since.

    Parameters
    ----------
    embedder
        Fingerprint of the embedding model, for a file that says none.

    Raises
    ------
    DimensionMismatch, EmbedderMismatch
        If they are of another dimension, or another embedding model.
    ConfigError
        If one has verdicts on more parameters than a pattern may.
    InvalidInput
        If the file is another export of a space from which patterns were imported already.
    PermissionDenied, DatabaseError
        If this role may not learn in the space, or the database does not take it.
    """
    if file.dim != space.dim:
        raise DimensionMismatch(space.dim, file.dim, "the file of patterns")
    with import_transaction(connection, space, embedder_of(file.embedder, embedder)) as t:
        before = t.imported_patterns()
        is_own = file.space_key == space.key
        held = before.get(file.space_key)
        if held == file.digest or not file.patterns:
            return PatternImport(len(file.patterns), 0, 0, len(file.patterns))
        if held is not None and not is_own:
            raise InvalidInput(
                f"patterns of space {file.space!r} were imported already, from another export: what both hold would "
                "count twice; import this one into a space that has none of them"
            )
        patterns, verdicts, last_id, now = t.bank()
        settings = PatternConfig(embedding_dim=space.dim)
        bank = ResumedBank(patterns, verdicts, last_id, settings, VerdictConfig())
        advance, became = bank.take_over(file.patterns, file.verdicts, now, is_own=is_own)
        new = {pattern.id for pattern in advance.created}
        texts, accesses = [], []
        for pattern in file.patterns:
            id = became.get(pattern.id)
            if id is None:
                continue
            if (pattern.title, pattern.description, pattern.content) != (None, None, None):
                texts.append((id, pattern.title, pattern.description, pattern.content))
            if pattern.access_count:
                accesses.append((id, pattern.access_count, pattern.last_accessed))
        done = PatternImport(len(file.patterns), len(new), len(became) - len(new), len(file.patterns) - len(became))
        if became:
            reason = f"{done.created} patterns of space {file.space!r} imported, {done.merged} merged"
            t.write_bank(advance, texts, accesses, f"{file.space_key} {file.digest}", reason[:500])
        return done
