"""Records of the spool: trajectories and scores as bytes that can be checked one by one, and found again after damage.

A record is a frame (magic, length of the header, length of the floats, CRC-32 of both), a header in JSON, and the
vectors as little-endian float32. Nothing in it can run code when it is read.
"""

from __future__ import annotations

import json
import struct
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from sona_pg.errors import InvalidInput
from sona_pg.types import EMPTY, Answer, FloatVector, QueryTrajectory, Score, TrajectoryStep

Event = QueryTrajectory | Score

_MAGIC = b"\xf5SNr"
_FRAME = struct.Struct("<4sIII")
_FLOATS = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class Read:
    """What stands at a place of a segment.

    Parameters
    ----------
    event
        The event; None where bytes were skipped.
    end
        Where the next record begins.
    skipped
        Bytes that are no valid record, before `end`.
    is_torn
        Whether these are the beginning of a record whose rest was never written.
    """

    event: Event | None
    end: int
    skipped: int = 0
    is_torn: bool = False


def encode(event: Event) -> bytes:
    """An event as a record."""
    arrays: list[FloatVector] = []
    if isinstance(event, Score):
        fields: list[object] = [
            "score",
            event.trajectory_id.hex,
            event.value,
            event.item_id,
            event.name,
            event.score_id,
        ]
    else:
        steps: list[object] = []
        arrays.append(event.query_embedding)
        for activations, attention, reward, _, item_id, position in event.steps:
            steps.append(
                [item_id, None if position is None else int(position), reward, len(attention), len(activations)]
            )
            arrays += (attention, activations)
        a = event.answer
        fields = [
            "trajectory",
            event.id.hex,
            len(event.query_embedding),
            steps,
            event.final_quality,
            int(event.latency_us),
            event.user_id,
            event.session_id,
            event.metadata,
            [a.arm, int(a.version), a.strategy, float(a.propensity)],
        ]
    header = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    floats = b"".join([array.astype(_FLOATS, copy=False).tobytes() for array in arrays])
    return _FRAME.pack(_MAGIC, len(header), len(floats), zlib.crc32(floats, zlib.crc32(header))) + header + floats


def read_from(data: memoryview, start: int) -> Iterator[Read]:
    """The records from a place on; what is damaged is skipped, up to the next valid record or the end."""
    place = start
    while place < len(data):
        event, end = _event_at(data, place)
        if event is not None:
            yield Read(event, end)
            place = end
            continue
        begin, event = place, None
        while event is None and place < len(data):
            place = _find_magic(data, place + 1)
            event, end = _event_at(data, place)
        yield Read(None, place, place - begin, place >= len(data) and _is_torn(data, begin))


def _is_torn(data: memoryview, begin: int) -> bool:
    rest = data[begin : begin + _FRAME.size]
    if len(rest) < _FRAME.size:
        return bytes(rest[: len(_MAGIC)]) == _MAGIC[: len(rest)]
    magic, header_bytes, floats_bytes, _ = _FRAME.unpack(rest)
    return bool(magic == _MAGIC and begin + _FRAME.size + header_bytes + floats_bytes > len(data))


def _find_magic(data: memoryview, start: int) -> int:
    block = 1 << 20
    for place in range(start, len(data), block):
        # A magic that begins at the end of this block reaches into the next one.
        found = bytes(data[place : place + block + len(_MAGIC) - 1]).find(_MAGIC)
        if found >= 0:
            return place + found
    return len(data)


def _event_at(data: memoryview, place: int) -> tuple[Event | None, int]:
    """The event whose record begins here, and where it ends; None if there is no valid one."""
    if len(data) - place < _FRAME.size:
        return None, place
    magic, header_bytes, floats_bytes, checksum = _FRAME.unpack_from(data, place)
    begin, end = place + _FRAME.size, place + _FRAME.size + header_bytes + floats_bytes
    if magic != _MAGIC or end > len(data) or zlib.crc32(data[begin:end]) != checksum:
        return None, place
    try:
        return decode(bytes(data[begin : begin + header_bytes]), data[begin + header_bytes : end]), end
    except InvalidInput:
        return None, place


def decode(header: bytes, floats: bytes | memoryview) -> Event:
    """The event that a header and its floats stand for; what a space admits is for the door to say.

    Raises
    ------
    InvalidInput
        If they do not belong together, or are none of ours.
    """
    try:
        kind, *fields = cast(list[object], json.loads(header))
        vectors = np.frombuffer(floats, dtype=_FLOATS).astype(np.float32, copy=False)
        if kind == "score":
            trajectory_id, value, item_id, name, score_id = fields
            return Score(_uuid(trajectory_id), _number(value), _text_or_none(item_id), _text(name), _text(score_id))
        if kind == "trajectory":
            return _trajectory(fields, vectors)
    except (ValueError, TypeError, OverflowError, RecursionError) as cause:
        raise InvalidInput(f"a record of the spool is not what it should be ({cause}): it is left out") from cause
    raise InvalidInput(f"a record of the spool is of kind {kind!r}, expected score or trajectory: it is left out")


def _trajectory(fields: list[object], vectors: FloatVector) -> QueryTrajectory:
    id, dim, given_steps, quality, latency_us, user_id, session_id, metadata, answer = fields
    place = 0

    def take(size: object) -> FloatVector:
        nonlocal place
        begin, place = place, place + _whole(size)
        if place > len(vectors):
            raise ValueError("vectors are missing")
        vector = vectors[begin:place].copy() if place > begin else EMPTY
        vector.setflags(write=False)
        return vector

    query, steps = take(dim), []
    for item_id, position, reward, attention, activations in cast(list[list[object]], given_steps):
        weights, held = take(attention), take(activations)
        given = None if position is None else _whole(position)
        steps.append(TrajectoryStep(held, weights, _number_or_none(reward), 0.0, _text_or_none(item_id), given))
    if place != len(vectors):
        raise ValueError("there are vectors left")
    if not isinstance(metadata, dict):
        raise ValueError("metadata is no object")
    arm, version, strategy, propensity = cast(list[object], answer)
    return QueryTrajectory(
        id=_uuid(id),
        query_embedding=query,
        steps=tuple(steps),
        final_quality=_number_or_none(quality),
        latency_us=_whole(latency_us),
        user_id=_text_or_none(user_id),
        session_id=_text_or_none(session_id),
        metadata=metadata,
        answer=Answer(_text(arm), _whole(version), _text(strategy), _number(propensity)),
    )


def _uuid(value: object) -> uuid.UUID:
    return uuid.UUID(hex=_text(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no whole number")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} is no number")
    return float(cast(float, value))


def _number_or_none(value: object) -> float | None:
    return None if value is None else _number(value)
