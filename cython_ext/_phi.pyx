# cython: language_level=3, boundscheck=False, wraparound=False
"""Log-determinants of every principal submatrix: what integration is searched by."""

from libc.math cimport fabs, isfinite
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

cimport numpy as cnp
import numpy as np

from sona_pg.errors import InvalidInput, LearningError

cnp.import_array()

cdef extern from "phi.h":
    ctypedef struct sona_subsets:
        Py_ssize_t blocks
        Py_ssize_t block
        double least_pivot
        const double *diagonal
        double *determinants
        int64_t not_positive

    Py_ssize_t sona_subsets_room(Py_ssize_t blocks, Py_ssize_t block) noexcept nogil
    int sona_subsets_walk(sona_subsets *s, const double *rest, Py_ssize_t first, int64_t mask,
                          double *free_room) noexcept nogil

MOST_BLOCKS = 20
cdef double EPS = np.finfo(np.float64).eps


cdef int usable(const double[:, ::1] rows) except -1:
    """Refuse what is not finite or not symmetric, up to rounding."""
    cdef Py_ssize_t i, j, order = rows.shape[0]
    cdef double difference
    for i in range(order):
        for j in range(i + 1):
            if not (isfinite(rows[i, j]) and isfinite(rows[j, i])):
                raise InvalidInput(f"the matrix holds NaN or infinity in row {i}, column {j}")
            difference = fabs(rows[i, j] - rows[j, i])
            if difference > 1e-8 * (fabs(rows[i, i]) + fabs(rows[j, j])):
                raise InvalidInput(f"the matrix is not symmetric: entries ({i}, {j}) differ by {difference}")
    return 0


def subset_log_determinants(matrix, Py_ssize_t block=1):
    """Natural logarithms of the determinants of all principal submatrices that keep or leave whole blocks of rows.

    One walk over the subsets in depth, each made from its prefix by one elimination: O(2^n) in all, where single
    factorisations cost O(2^n n³).

    Parameters
    ----------
    matrix
        (n · block, n · block), symmetric and positive definite; of any float type, computed in float64.
    block
        Rows that belong together, at least 1.

    Returns
    -------
    log_determinants
        float64 (2^n,), in which bit i of the index tells whether block i is kept; 0.0 for none.

    Raises
    ------
    InvalidInput
        If it is not a finite symmetric matrix of up to 20 blocks.
    LearningError
        If it is not positive definite, or so nearly singular that rounding decides.
    """
    try:
        given = np.asarray(matrix)
    except ValueError as cause:
        raise InvalidInput(f"the matrix has rows of different lengths ({cause})") from cause
    if given.dtype.kind not in "fiub":
        raise InvalidInput(f"the matrix is of {given.dtype}, expected real numbers")
    if given.ndim != 2 or given.shape[0] != given.shape[1]:
        raise InvalidInput(f"the matrix has shape {given.shape}, expected (order, order)")
    rows = np.ascontiguousarray(given, dtype=np.float64)
    if block < 1 or rows.shape[0] % block:
        raise InvalidInput(f"a matrix of order {rows.shape[0]} has no blocks of {block} rows")
    cdef sona_subsets subsets
    cdef Py_ssize_t blocks = rows.shape[0] // block
    if blocks > MOST_BLOCKS:
        raise InvalidInput(
            f"the matrix has {blocks} blocks, expected {MOST_BLOCKS} at most: there are 2^{blocks} subsets"
        )
    cdef const double[:, ::1] view = rows
    usable(view)
    log_determinants = np.zeros(1 << blocks)
    if not blocks:
        return log_determinants
    diagonal = np.ascontiguousarray(np.diagonal(rows))
    cdef const double[::1] own = diagonal
    cdef double[::1] found = log_determinants
    cdef int is_positive
    cdef double *room = <double *>malloc(<size_t>sona_subsets_room(blocks, block) * sizeof(double))
    if room == NULL:
        raise MemoryError
    subsets.blocks, subsets.block = blocks, block
    subsets.least_pivot = 4 * rows.shape[0] * EPS
    subsets.diagonal, subsets.determinants, subsets.not_positive = &own[0], &found[0], -1
    with nogil:
        is_positive = sona_subsets_walk(&subsets, &view[0, 0], 0, 0, room)
    free(room)
    if not is_positive:
        members = [i for i in range(blocks) if subsets.not_positive >> i & 1]
        raise LearningError(
            f"the matrix is not positive definite in blocks {members}: "
            "one of them is a linear combination of others, or it is no covariance; a ridge on its diagonal helps"
        )
    return log_determinants
