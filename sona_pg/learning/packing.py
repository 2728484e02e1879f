"""Learned state as bytes: named arrays behind a checksum. Nothing in them can run code when they are read."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sona_pg.errors import LearningError

Arrays = dict[str, NDArray[np.generic]]

_DIGEST = hashlib.sha256().digest_size


def pack(header: Mapping[str, int], arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """What `unpack` reads: SHA-256, then an archive of the arrays and of what they belong to."""
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)  # type: ignore[arg-type]
    data = buffer.getvalue()
    return hashlib.sha256(data).digest() + data


def unpack(data: bytes, expected: Mapping[str, int], what: str) -> Arrays:
    """The arrays of what `pack` gave.

    Raises
    ------
    LearningError
        If the data are damaged, or belong to something else than `expected`.
    """
    digest, archive = data[:_DIGEST], data[_DIGEST:]
    if hashlib.sha256(archive).digest() != digest:
        raise LearningError(f"the {what}'s state is damaged (its checksum differs): deploy an earlier version")
    try:
        with np.load(io.BytesIO(archive), allow_pickle=False) as parts:
            arrays = {name: parts[name] for name in parts.files}
        header = json.loads(arrays.pop("header").tobytes())
    except (ValueError, TypeError, KeyError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as cause:
        raise LearningError(f"the {what}'s state lacks a part ({cause}): deploy an earlier version") from cause
    if header != dict(expected):
        raise LearningError(
            f"the {what}'s state is of {header}, expected {dict(expected)}: "
            "use the settings that the space was learned with"
        )
    return arrays
