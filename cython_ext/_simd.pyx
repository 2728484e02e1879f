# cython: language_level=3, boundscheck=False, wraparound=False
"""The instruction set in use, and the vector primitives as functions of arrays."""

import os

from libc.math cimport fabsf, sqrtf
from libc.string cimport memcpy

cimport numpy as cnp
import numpy as np

from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput

cnp.import_array()

cdef extern from "simd.h":
    const sona_simd *sona_simd_find(const char *name) noexcept nogil

_NAMES = ("avx512", "avx2", "scalar")
cdef const sona_simd *_current = NULL


cdef const sona_simd *simd() noexcept nogil:
    return _current


def available():
    """Instruction sets that this CPU can run, best first."""
    return tuple(name for name in _NAMES if sona_simd_find(name.encode()) != NULL)


def use(str name not None):
    """Choose the instruction set of every kernel: 'auto', 'avx512', 'avx2' or 'scalar'.

    Raises
    ------
    ConfigError
        If there is no such implementation, or this CPU cannot run it.
    """
    global _current
    if name == "auto":
        name = available()[0]
    if name not in _NAMES:
        raise ConfigError(f"SONA_SIMD is {name!r}, expected one of auto, {', '.join(_NAMES)}")
    cdef const sona_simd *found = sona_simd_find(name.encode())
    if found == NULL:
        raise ConfigError(
            f"SONA_SIMD asks for {name!r}, but this CPU only runs {', '.join(available())}: choose one of these or 'auto'"
        )
    _current = found


def active():
    """Name of the instruction set in use."""
    return _current.name.decode()


use(os.environ.get("SONA_SIMD") or "auto")


cdef object float_vector(object value, Py_ssize_t dim, str what):
    """`value` as a finite, contiguous float32 vector of `dim` components (any length if dim < 0); itself if it is one."""
    cdef cnp.ndarray array
    if cnp.PyArray_CheckExact(value) and cnp.PyArray_TYPE(<cnp.ndarray>value) == cnp.NPY_FLOAT32 \
            and cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray>value) and cnp.PyArray_ISALIGNED(<cnp.ndarray>value) \
            and cnp.PyArray_ISNOTSWAPPED(<cnp.ndarray>value):
        array = <cnp.ndarray>value
    else:
        array = _converted(value, what)
    if cnp.PyArray_NDIM(array) != 1:
        raise InvalidInput(f"{what} has shape {np.shape(array)}, expected one dimension")
    if dim >= 0 and cnp.PyArray_DIM(array, 0) != dim:
        raise DimensionMismatch(dim, cnp.PyArray_DIM(array, 0), what)
    if not _current.all_finite(<const float *>cnp.PyArray_DATA(array), cnp.PyArray_DIM(array, 0)):
        raise InvalidInput(f"{what} holds NaN or infinity: check what the embedding model returned")
    return array


def _converted(value, str what):
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"dtype {array.dtype}")
        if array.ndim == 0:
            raise TypeError("a single number")
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, dtype=np.float32)
    except (TypeError, ValueError) as cause:
        raise InvalidInput(f"{what} is not a vector of numbers ({cause}): pass a sequence or an array of floats") from cause


def as_vector(value, Py_ssize_t dim=-1, str what="vector"):
    """`value` as a finite, contiguous float32 vector; the array itself if it is one already.

    Parameters
    ----------
    value
        Sequence or array of numbers, any float or integer type.
    dim
        Number of components expected; any if negative.
    what
        Name of the value in errors.

    Raises
    ------
    InvalidInput
        If it is no vector of finite numbers.
    DimensionMismatch
        If it has another number of components.
    """
    return float_vector(value, dim, what)


def owned(value, Py_ssize_t dim=-1, str what="vector"):
    """`value` as a finite float32 vector that nobody can write to: itself if it is one, else a copy."""
    cdef cnp.ndarray array, source
    cdef cnp.npy_intp size
    if is_held(value, dim):
        return value
    source = float_vector(value, dim, what)
    size = cnp.PyArray_DIM(source, 0)
    # NumPy's own copy gives up the interpreter's lock, and a busy thread would hold up the recorder.
    array = cnp.PyArray_EMPTY(1, &size, cnp.NPY_FLOAT32, 0)
    memcpy(cnp.PyArray_DATA(array), cnp.PyArray_DATA(source), <size_t>size * sizeof(float))
    cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
    return array


cpdef bint is_held(value, Py_ssize_t dim=-1):
    """Whether `value` is a finite float32 vector of `dim` components (any if negative) that nobody can write to."""
    cdef cnp.ndarray array
    if not cnp.PyArray_CheckExact(value):
        return False
    array = <cnp.ndarray>value
    # A view could still be written to through its base.
    return (
        cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT32 and cnp.PyArray_NDIM(array) == 1
        and not cnp.PyArray_ISWRITEABLE(array) and cnp.PyArray_BASE(array) == NULL
        and cnp.PyArray_ISCARRAY_RO(array)
        and (dim < 0 or cnp.PyArray_DIM(array, 0) == dim)
        and _current.all_finite(<const float *>cnp.PyArray_DATA(array), cnp.PyArray_DIM(array, 0))
    )


def single(double value):
    """`value` rounded to single precision."""
    return <float>value


def unit(cnp.ndarray vector not None):
    """`vector` (dim,), float32, contiguous, at unit length; itself if it has it already or is zero.

    "Already" is within the rounding of a float32 sum, so that a unit vector keeps its bits.
    """
    cdef const float *row
    cdef float *target
    cdef float square
    cdef Py_ssize_t i, d
    cdef cnp.ndarray scaled
    if cnp.PyArray_TYPE(vector) != cnp.NPY_FLOAT32 or cnp.PyArray_NDIM(vector) != 1 \
            or not cnp.PyArray_ISCARRAY_RO(vector):
        raise InvalidInput("expected a contiguous float32 vector: pass it through as_vector first")
    row = <const float *>cnp.PyArray_DATA(vector)
    d = cnp.PyArray_DIM(vector, 0)
    _current.dot_rows(&row, 1, row, d, &square)
    if fabsf(square - 1) < 1e-5:
        return vector
    if 1e-30 < square < 1e30:
        scaled = np.empty(d, dtype=np.float32)
        target = <float *>cnp.PyArray_DATA(scaled)
        square = sqrtf(square)
        for i in range(d):
            target[i] = row[i] / square
        return scaled
    # In double precision: the square of a float32 may overflow, or vanish.
    length = np.linalg.norm(vector.astype(np.float64))
    return vector if length == 0 else (vector / length).astype(np.float32)


def dot_rows(const float[:, ::1] rows, const float[::1] x, float[::1] out):
    """``out[i] = rows[i] · x`` for rows (n, d), x (d,), out (n,), all float32."""
    cdef Py_ssize_t i, n = rows.shape[0], d = rows.shape[1]
    cdef const float *row
    if x.shape[0] != d:
        raise DimensionMismatch(d, x.shape[0], "x")
    if out.shape[0] != n:
        raise DimensionMismatch(n, out.shape[0], "out")
    if d == 0:
        for i in range(n):
            out[i] = 0
        return
    with nogil:
        for i in range(n):
            row = &rows[i, 0]
            _current.dot_rows(&row, 1, &x[0], d, &out[i])


def add_rows(const float[:, ::1] rows, const float[::1] weight, float[::1] out):
    """``out += weight @ rows`` for rows (n, d), weight (n,), out (d,), all float32."""
    cdef Py_ssize_t i, j, m, n = rows.shape[0], d = rows.shape[1]
    cdef const float *quad[4]
    if weight.shape[0] != n:
        raise DimensionMismatch(n, weight.shape[0], "weight")
    if out.shape[0] != d:
        raise DimensionMismatch(d, out.shape[0], "out")
    if n == 0 or d == 0:
        return
    with nogil:
        i = 0
        while i < n:
            m = min(4, n - i)
            for j in range(m):
                quad[j] = &rows[i + j, 0]
            _current.add_rows(quad, m, &weight[i], d, &out[0])
            i += m
