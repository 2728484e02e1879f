"""Learned state as bytes: named arrays behind a checksum. Nothing in them can run code when they are read."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sona_pg.errors import LearningError

Arrays = dict[str, NDArray[np.generic]]

_DIGEST = hashlib.sha256().digest_size
_SQUEEZED = b"sona squeezed 1\n"
_UNREADABLE = (
    *(ValueError, TypeError, KeyError, AttributeError, OverflowError, SyntaxError),
    *(OSError, EOFError, MemoryError, RecursionError, RuntimeError, zlib.error),
)
"""What NumPy, zipfile and json raise at data that are not theirs."""


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
    header, arrays = unpack_any(data, what)
    if header != dict(expected):
        raise LearningError(
            f"the {what}'s state is of {header}, expected {dict(expected)}: "
            "use the settings that the space was learned with"
        )
    return arrays


def unpack_any(data: bytes, what: str) -> tuple[object, Arrays]:
    """Header, any JSON, and arrays of what `pack` gave, whatever it belongs to: the caller checks both.

    Takes no more memory than the data have, whatever they claim.

    Raises
    ------
    LearningError
        If the data are damaged.
    """
    digest, archive = data[:_DIGEST], data[_DIGEST:]
    if hashlib.sha256(archive).digest() != digest:
        raise LearningError(f"the {what}'s state is damaged (its checksum differs): deploy an earlier version")
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as members:
            if sum(member.file_size for member in members.infolist()) > len(archive):
                raise ValueError("it claims to be larger than it is")
        with np.load(io.BytesIO(archive), allow_pickle=False) as parts:
            arrays = {name: parts[name] for name in parts.files}
        header: object = json.loads(arrays.pop("header").tobytes())
    except (*_UNREADABLE, zipfile.BadZipFile) as cause:
        raise LearningError(f"the {what}'s state lacks a part ({cause}): deploy an earlier version") from cause
    return header, arrays


def squeeze(data: bytes, known: Mapping[str, NDArray[np.generic]]) -> bytes:
    """What `pack` gave in three quarters of the space, without a bit lost; `expand` undoes it.

    Parameters
    ----------
    data
        What `pack` gave.
    known
        Arrays that `expand` will be given again: those that are the same in `data`, bit for bit, are left out.
    """
    with np.load(io.BytesIO(data[_DIGEST:]), allow_pickle=False) as parts:
        arrays = {name: parts[name] for name in parts.files}
    plan: list[tuple[str, str, list[int], bool]] = []
    planes: list[bytes] = []
    for name, array in arrays.items():
        other = known.get(name)
        is_known = other is not None and other.dtype == array.dtype and other.tobytes() == array.tobytes()
        plan.append((name, array.dtype.str, list(array.shape), is_known))
        if not is_known:
            # Exponents beside exponents: they repeat, mantissas do not.
            planes.append(np.frombuffer(array.tobytes(), np.uint8).reshape(-1, array.itemsize).T.tobytes())
    head = json.dumps(plan).encode()
    return _SQUEEZED + zlib.compress(b"".join([len(head).to_bytes(4, "little"), head, *planes]))


def expand(data: bytes, known: Mapping[str, NDArray[np.generic]]) -> bytes:
    """What `pack` gave, of what `squeeze` made of it; anything else is given back as it is.

    Raises
    ------
    LearningError
        If the data are damaged, or `known` lacks a part that was left out.
    """
    if not data.startswith(_SQUEEZED):
        return data
    arrays: Arrays = {}
    try:
        body = zlib.decompress(data[len(_SQUEEZED) :])
        end = 4 + int.from_bytes(body[:4], "little")
        for name, kind, shape, is_known in json.loads(body[4:end]):
            dtype = np.dtype(kind)
            start, end = end, end + (0 if is_known else int(np.prod(shape)) * dtype.itemsize)
            planes = np.frombuffer(body[start:end], np.uint8).reshape(dtype.itemsize, -1)
            raw = known[name].tobytes() if is_known else planes.T.tobytes()
            arrays[name] = np.frombuffer(raw, dtype).reshape(shape)
        header = json.loads(arrays.pop("header").tobytes())
    except (zlib.error, ValueError, TypeError, KeyError) as cause:
        raise LearningError(f"the version's state is damaged ({cause}): deploy another version") from cause
    return pack(header, arrays)
