"""Trajectory ids: time-ordered, so that new rows land together in the index, and a source of seeds."""

from __future__ import annotations

import os
import random
import time
import uuid
from datetime import UTC, datetime, timedelta

# Not the system's generator: its call gives up the interpreter's lock, and a busy thread would hold up the recorder.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


_VERSION = 0x7 << 76 | 0x2 << 62
"""Version 7, and the variant of RFC 9562."""

_FREE = ~(0xF << 76 | 0x3 << 62)
"""The bits that these do not take."""


def new_trajectory_id() -> uuid.UUID:
    """A UUID of version 7 (RFC 9562): 48 bits of Unix milliseconds, then randomness."""
    return new_trajectory_ids(1)[0]


def new_trajectory_ids(count: int) -> list[uuid.UUID]:
    """So many of them, of the same millisecond."""
    now = (time.time_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF) << 80 | _VERSION
    draw, make = _random.getrandbits, uuid.UUID
    return [make(int=now | draw(80) & _FREE) for _ in range(count)]


def time_of(trajectory_id: uuid.UUID) -> datetime | None:
    """When an id was made, to the millisecond; None where it does not say, as only those of version 7 do."""
    if trajectory_id.version != 7:
        return None
    try:
        return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=trajectory_id.int >> 80)
    except OverflowError:
        return None


def learning_seed(trajectory_id: uuid.UUID, revision: int = 0) -> int:
    """64 bits that depend on the trajectory and the revision of its outcomes alone: a replay draws the same numbers."""
    value = trajectory_id.int
    return (value ^ (value >> 64) ^ (revision * 0x9E37_79B9_7F4A_7C15)) & 0xFFFF_FFFF_FFFF_FFFF
