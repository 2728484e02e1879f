"""Vectors on the wire: float32 arrays as pgvector and real[] have them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.pq import Format

from sona_pg.kernels import floats_wire, vector_wire

_FLOAT4_ARRAY = 1021
"""Object id of real[], fixed in every Postgres."""


class VectorDumper(Dumper):
    """A one-dimensional float32 array as pgvector's binary form: int16 dimension, int16 unused, big-endian floats."""

    format = Format.BINARY

    def dump(self, obj: NDArray[np.float32]) -> bytes:
        return vector_wire(obj)


class Float4ArrayDumper(Dumper):
    """A one-dimensional float32 array as real[]: psycopg's own takes lists, element by element in Python."""

    format = Format.BINARY
    oid = _FLOAT4_ARRAY

    def dump(self, obj: NDArray[np.float32]) -> bytes:
        return floats_wire(obj)


class VectorLoader(Loader):
    """pgvector's binary form as a float32 array."""

    format = Format.BINARY

    def load(self, data: Buffer) -> NDArray[np.float32]:
        return np.frombuffer(bytes(data), dtype=">f4", offset=4).astype(np.float32)


class VectorTextLoader(Loader):
    """pgvector's text form as a float32 array."""

    format = Format.TEXT

    def load(self, data: Buffer) -> NDArray[np.float32]:
        return np.array(bytes(data)[1:-1].split(b","), dtype=np.float32)
