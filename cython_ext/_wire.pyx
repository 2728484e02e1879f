# cython: language_level=3, boundscheck=False, wraparound=False
"""float32 arrays in the binary forms that Postgres receives."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t

cimport numpy as cnp

from sona_pg.errors import InvalidInput
from sona_pg.kernels._simd cimport float_vector

cnp.import_array()

cdef extern from "<arpa/inet.h>":
    uint32_t htonl(uint32_t x) noexcept nogil


def vector_wire(array):
    """A vector (dim,) in pgvector's form: int16 dimension, int16 zero, big-endian floats."""
    cdef cnp.ndarray vector = float_vector(array, -1, "vector")
    cdef Py_ssize_t i, n = cnp.PyArray_DIM(vector, 0)
    if not 1 <= n <= 16000:
        raise InvalidInput(f"the vector has {n} components, expected 1 to 16000")
    cdef const uint32_t *source = <const uint32_t *>cnp.PyArray_DATA(vector)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, 4 + 4 * n)
    cdef uint32_t *target = <uint32_t *>PyBytes_AS_STRING(out)
    target[0] = htonl(<uint32_t>n << 16)
    with nogil:
        for i in range(n):
            target[1 + i] = htonl(source[i])
    return out


def floats_wire(array):
    """A vector (n,) as real[]: one dimension, no nulls, lower bound 1, each element with its length."""
    cdef cnp.ndarray vector = float_vector(array, -1, "array")
    cdef Py_ssize_t i, n = cnp.PyArray_DIM(vector, 0)
    cdef const uint32_t *source = <const uint32_t *>cnp.PyArray_DATA(vector)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, 20 + 8 * n)
    cdef uint32_t *target = <uint32_t *>PyBytes_AS_STRING(out)
    target[0], target[1], target[2], target[3], target[4] = htonl(1), 0, htonl(700), htonl(<uint32_t>n), htonl(1)
    for i in range(n):
        target[5 + 2 * i], target[6 + 2 * i] = htonl(4), htonl(source[i])
    return out
