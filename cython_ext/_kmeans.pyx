# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Clusters of unit vectors, the cluster of a vector, and the nearest of many vectors."""

from libc.math cimport fabs, log
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cimport numpy as cnp
import numpy as np

from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.kernels._simd cimport simd, sona_simd

cnp.import_array()

cdef extern from "kmeans.h":
    enum: SONA_PANEL_LANES
    enum: SONA_ROWS_AT_ONCE
    Py_ssize_t sona_panels(Py_ssize_t k) noexcept nogil
    void sona_pack_panels(const float *centroids, Py_ssize_t k, Py_ssize_t d, float *panels) noexcept nogil
    void sona_assign(const sona_simd *simd, const float *const *rows, Py_ssize_t n, const float *centroids,
                     const float *panels, Py_ssize_t k, Py_ssize_t d, int64_t *labels, float *scores,
                     float *work) noexcept nogil
    Py_ssize_t sona_move_rows(const float *const *rows, Py_ssize_t n, Py_ssize_t d, int64_t *before,
                              const int64_t *labels, double *sums, int64_t *counts) noexcept nogil
    void sona_fill_empty(const float *const *rows, Py_ssize_t n, Py_ssize_t k, Py_ssize_t d, int64_t *labels,
                         float *scores, double *sums, int64_t *counts) noexcept nogil
    void sona_centroids(const double *sums, const int64_t *counts, Py_ssize_t k, Py_ssize_t d,
                        float *centroids) noexcept nogil
    double sona_uniform(uint64_t *seed) noexcept nogil
    double sona_closer(const sona_simd *simd, const float *const *rows, Py_ssize_t n, Py_ssize_t d,
                       const float *centroid, float *closest) noexcept nogil
    Py_ssize_t sona_seed_one(const sona_simd *simd, const float *const *rows, Py_ssize_t n, Py_ssize_t d,
                             Py_ssize_t tries, uint64_t *seed, float *closest, double *potential,
                             float *work) noexcept nogil

cdef extern from "fusion.h":
    void sona_order_by_score(const double *scores, Py_ssize_t n, Py_ssize_t k, int64_t *best) noexcept nogil


cdef cnp.ndarray _unit_rows(object value, str what):
    """`value` as rows (n, d) of unit length, float32 and contiguous; itself if it is that, else a copy."""
    cdef cnp.ndarray array
    cdef Py_ssize_t i, j, n, d
    cdef double square
    cdef const float *row
    if not cnp.PyArray_Check(value) or not cnp.PyArray_EquivTypenums(
            cnp.PyArray_TYPE(<cnp.ndarray>value), cnp.NPY_FLOAT32):
        found = getattr(value, "dtype", type(value).__name__)
        raise InvalidInput(f"{what} is {found}, expected an array of float32: convert it first")
    if cnp.PyArray_NDIM(<cnp.ndarray>value) != 2:
        raise InvalidInput(f"{what} has shape {np.shape(value)}, expected (n, dim)")
    array = <cnp.ndarray>value
    if not cnp.PyArray_ISCARRAY_RO(array):
        array = np.array(value, dtype=np.float32, order="C")
    n, d = cnp.PyArray_DIM(array, 0), cnp.PyArray_DIM(array, 1)
    if n and not d:
        raise InvalidInput(f"{what} has no components, expected at least one")
    squares = np.empty(n)
    cdef double[::1] square_of = squares
    cdef float dot
    cdef bint is_unit = True
    for i in range(n):
        row = <const float *>cnp.PyArray_DATA(array) + i * d
        simd().steady_dots(&row, 1, row, d, &dot)
        square_of[i] = dot
        # The same bound as that of `unit`: a unit vector keeps its bits.
        if not fabs(<double>dot - 1) < 1e-5:
            is_unit = False
    if is_unit:  # then nothing in it is NaN or infinite
        return array
    if not simd().all_finite(<const float *>cnp.PyArray_DATA(array), n * d):
        raise InvalidInput(f"{what} holds NaN or infinity: check what the embedding model returned")
    # In double precision: the square of a float32 may overflow, or vanish.
    lengths = np.sqrt(np.einsum("nd,nd->n", array, array, dtype=np.float64))
    if not lengths.all():
        raise InvalidInput(f"row {int(np.argmin(lengths))} of {what} is zero: it has no direction")
    lengths[np.abs(squares - 1) < 1e-5] = 1
    return np.ascontiguousarray(array / lengths[:, np.newaxis], dtype=np.float32)


cdef const float **_pointers(cnp.ndarray array) except? NULL:
    """Where the rows are; the caller frees it."""
    cdef Py_ssize_t i, n = cnp.PyArray_DIM(array, 0), d = cnp.PyArray_DIM(array, 1)
    cdef const float **rows = <const float **>malloc(<size_t>(n + 1) * sizeof(float *))
    if rows == NULL:
        raise MemoryError
    for i in range(n):
        rows[i] = <const float *>cnp.PyArray_DATA(array) + i * d
    return rows


def assign(rows, centroids):
    """The nearest centroid of each row by cosine, the first of equal ones, and the cosine.

    Parameters
    ----------
    rows
        float32 (n, dim). Rows of another length than 1 are scaled, in a copy.
    centroids
        float32 (k, dim), k >= 1; likewise.

    Returns
    -------
    labels, cosines
        int64 (n,), and float32 (n,).

    Raises
    ------
    InvalidInput
        If there is no centroid, or one is not float32, not finite, or zero.
    DimensionMismatch
        If they differ in their dimension.
    """
    cdef cnp.ndarray x = _unit_rows(rows, "rows"), m = _unit_rows(centroids, "centroids")
    cdef Py_ssize_t n = cnp.PyArray_DIM(x, 0), k = cnp.PyArray_DIM(m, 0), d = cnp.PyArray_DIM(m, 1)
    if k == 0:
        raise InvalidInput("there is no centroid, expected at least one")
    if cnp.PyArray_DIM(x, 1) != d:
        raise DimensionMismatch(d, cnp.PyArray_DIM(x, 1), "rows")
    cdef cnp.ndarray labels = np.empty(n, dtype=np.int64), scores = np.empty(n, dtype=np.float32)
    cdef cnp.ndarray panels = np.empty(sona_panels(k) * SONA_PANEL_LANES * d, dtype=np.float32)
    cdef cnp.ndarray work = np.empty(SONA_ROWS_AT_ONCE * sona_panels(k) * SONA_PANEL_LANES, dtype=np.float32)
    cdef const float **at = _pointers(x)
    with nogil:
        sona_pack_panels(<const float *>cnp.PyArray_DATA(m), k, d, <float *>cnp.PyArray_DATA(panels))
        sona_assign(simd(), at, n, <const float *>cnp.PyArray_DATA(m), <const float *>cnp.PyArray_DATA(panels), k, d,
                    <int64_t *>cnp.PyArray_DATA(labels), <float *>cnp.PyArray_DATA(scores),
                    <float *>cnp.PyArray_DATA(work))
    free(at)
    return labels, scores


def cluster_sums(rows, labels, Py_ssize_t k):
    """Sums of the rows of each cluster, in double precision and in the order of the rows, and how many these are.

    Parameters
    ----------
    rows
        float32 (n, dim). Rows of another length than 1 are scaled, in a copy.
    labels
        int64 (n,), 0 to below k.
    k
        Number of clusters, at least 1.

    Returns
    -------
    sums, counts
        float64 (k, dim), and int64 (k,).

    Raises
    ------
    InvalidInput
        If rows are not float32, not finite or zero, or labels are others.
    """
    cdef cnp.ndarray x = _unit_rows(rows, "rows"), own
    cdef Py_ssize_t i, n = cnp.PyArray_DIM(x, 0), d = cnp.PyArray_DIM(x, 1)
    cdef const int64_t *label
    if k < 1:
        raise InvalidInput(f"k is {k}, expected at least 1")
    found = np.asarray(labels)
    if found.dtype != np.int64 or found.shape != (n,):
        raise InvalidInput(f"labels are {found.dtype} {found.shape}, expected int64 ({n},)")
    own = np.ascontiguousarray(found)
    label = <const int64_t *>cnp.PyArray_DATA(own)
    for i in range(n):
        if not 0 <= label[i] < k:
            raise InvalidInput(f"row {i} has the label {label[i]}, expected 0 to {k - 1}")
    cdef cnp.ndarray before = np.full(n, -1, dtype=np.int64), sums = np.zeros((k, d)), counts = np.zeros(k, np.int64)
    cdef const float **at = _pointers(x)
    with nogil:
        sona_move_rows(at, n, d, <int64_t *>cnp.PyArray_DATA(before), label, <double *>cnp.PyArray_DATA(sums),
                       <int64_t *>cnp.PyArray_DATA(counts))
    free(at)
    return sums, counts


def top_k(rows, query, Py_ssize_t k, *, bint is_unit=False):
    """The k rows nearest to a query by cosine, nearest first, equal ones in the order of rows; exact.

    Parameters
    ----------
    rows
        float32 (n, dim). Rows of another length than 1 are scaled, in a copy.
    query
        float32 (dim,), of any length but zero.
    k
        How many; all of them if there are fewer.
    is_unit
        Whether the rows are known to be finite, contiguous and of unit length: they are not looked at first then.

    Returns
    -------
    places, cosines
        int64 (min(k, n),), and float32 of the same length.

    Raises
    ------
    InvalidInput
        If one is not float32, not finite or zero, or k is negative.
    DimensionMismatch
        If they differ in their dimension.
    """
    if k < 0:
        raise InvalidInput(f"k is {k}, expected a whole number from 0")
    cdef cnp.ndarray x
    if is_unit and cnp.PyArray_Check(rows) and cnp.PyArray_TYPE(<cnp.ndarray>rows) == cnp.NPY_FLOAT32 \
            and cnp.PyArray_NDIM(<cnp.ndarray>rows) == 2 and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>rows):
        x = <cnp.ndarray>rows
    else:
        x = _unit_rows(rows, "rows")
    cdef cnp.ndarray q = _unit_rows(np.asarray(query)[np.newaxis], "query")
    cdef Py_ssize_t i, n = cnp.PyArray_DIM(x, 0), d = cnp.PyArray_DIM(q, 1)
    if cnp.PyArray_DIM(x, 1) != d:
        raise DimensionMismatch(cnp.PyArray_DIM(x, 1), d, "query")
    k = min(k, n)
    cosines = np.empty(n, dtype=np.float32)
    cdef cnp.ndarray scores = np.empty(n), best = np.empty(k, dtype=np.int64)
    cdef float *cosine = <float *>cnp.PyArray_DATA(<cnp.ndarray>cosines)
    cdef double *score = <double *>cnp.PyArray_DATA(scores)
    cdef const float **at = _pointers(x)
    with nogil:
        simd().steady_dots(at, n, <const float *>cnp.PyArray_DATA(q), d, cosine)
        for i in range(n):
            score[i] = cosine[i]
        sona_order_by_score(score, n, k, <int64_t *>cnp.PyArray_DATA(best))
    free(at)
    return best, cosines[best]


cdef class _Lloyd:
    """What Lloyd's steps on one set of rows need."""
    cdef Py_ssize_t n, k, d
    cdef const float **rows
    cdef float *centroids
    cdef object labels_of, before_of, scores_of, sums_of, counts_of, panels_of, work_of

    def __cinit__(self, Py_ssize_t n, Py_ssize_t k, Py_ssize_t d):
        self.n, self.k, self.d = n, k, d
        self.labels_of = np.empty(n, dtype=np.int64)
        self.before_of = np.full(n, -1, dtype=np.int64)
        self.scores_of = np.empty(n, dtype=np.float32)
        self.sums_of = np.zeros((k, d))
        self.counts_of = np.zeros(k, dtype=np.int64)
        self.panels_of = np.empty(sona_panels(k) * SONA_PANEL_LANES * d, dtype=np.float32)
        self.work_of = np.empty(SONA_ROWS_AT_ONCE * sona_panels(k) * SONA_PANEL_LANES, dtype=np.float32)

    cdef Py_ssize_t run(self, Py_ssize_t max_iterations, double tolerance, double *objective):
        """Steps until nothing changes, or the objective falls by no more than that part; how many there were."""
        cdef int64_t *labels = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>self.labels_of)
        cdef int64_t *before = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>self.before_of)
        cdef float *scores = <float *>cnp.PyArray_DATA(<cnp.ndarray>self.scores_of)
        cdef double *sums = <double *>cnp.PyArray_DATA(<cnp.ndarray>self.sums_of)
        cdef int64_t *counts = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>self.counts_of)
        cdef float *panels = <float *>cnp.PyArray_DATA(<cnp.ndarray>self.panels_of)
        cdef float *work = <float *>cnp.PyArray_DATA(<cnp.ndarray>self.work_of)
        cdef Py_ssize_t i, c, moved, step = 0
        cdef double now, last = -1
        cdef bint is_empty
        with nogil:
            while True:
                sona_pack_panels(self.centroids, self.k, self.d, panels)
                sona_assign(simd(), self.rows, self.n, self.centroids, panels, self.k, self.d, labels, scores, work)
                moved = sona_move_rows(self.rows, self.n, self.d, before, labels, sums, counts)
                now = 0
                for i in range(self.n):
                    now += 1 - <double>scores[i]
                objective[0] = now
                if step == max_iterations or moved == 0 or (last >= 0 and last - now <= tolerance * last):
                    return step
                last = now
                is_empty = False
                for c in range(self.k):
                    is_empty = is_empty or counts[c] == 0
                if is_empty:
                    sona_fill_empty(self.rows, self.n, self.k, self.d, before, scores, sums, counts)
                sona_centroids(sums, counts, self.k, self.d, self.centroids)
                step += 1


def kmeans(rows, Py_ssize_t k, *, uint64_t seed=0, Py_ssize_t max_iterations=100, double tolerance=1e-3, start=None,
           Py_ssize_t batch_rows=20_000):
    """Up to k clusters of rows by direction: greedy k-means++ and Lloyd's steps, the same for the same seed.

    Of more than 2 `batch_rows` rows a random sample of that many is clustered first, then one four times as large from
    where that ended, up to all of them (nested mini-batches, Newling & Fleuret 2016).

    Parameters
    ----------
    rows
        float32 (n, dim). Rows of another length than 1 are scaled, in a copy.
    k
        Number of clusters, at least 1; fewer come back where there are fewer different rows.
    seed
        Of what is drawn.
    max_iterations
        Steps at most on one sample; 0 only assigns.
    tolerance
        A step that lowers the objective by no more than this part of it is the last one on its sample.
    start
        float32 (m, dim), m <= k: centroids to start from, of any length but zero; the others are seeded beside them.
    batch_rows
        Rows of the first sample.

    Returns
    -------
    centroids
        float32 (up to k, dim), of unit length, in the order of `start` where it is given; clusters without a row are
        left out.
    labels
        int64 (n,), the cluster of each row, the nearest centroid.
    objective
        ``Σ (1 - cosine)`` of rows to their centroids, half of the sum of squared distances to them.
    iterations
        Steps on all samples.

    Raises
    ------
    InvalidInput
        If rows are not float32, not finite or zero, or a number is out of range.
    DimensionMismatch
        If `start` has another dimension.
    """
    cdef cnp.ndarray x = _unit_rows(rows, "rows"), m, closest, work
    cdef Py_ssize_t n = cnp.PyArray_DIM(x, 0), d = cnp.PyArray_DIM(x, 1)
    cdef Py_ssize_t i, j, size, found = 0, tries, iterations = 0
    cdef const float **at
    cdef const float **sample
    cdef float *centroid
    cdef double potential, objective = 0
    cdef _Lloyd lloyd = None
    cdef uint64_t state = seed
    cdef int64_t[::1] order
    if k < 1 or max_iterations < 0 or batch_rows < 1:
        raise InvalidInput(f"k {k}, iterations {max_iterations}, rows of a batch {batch_rows}: expected at least 1, 0, 1")
    if not 0 <= tolerance < 1:
        raise InvalidInput(f"tolerance is {tolerance}, expected 0 to below 1")
    if n == 0:
        return np.empty((0, d), dtype=np.float32), np.empty(0, dtype=np.int64), 0.0, 0
    given = 0
    if start is not None:
        begun = _unit_rows(start, "start")
        given = len(begun)
        if given > k:
            raise InvalidInput(f"{given} centroids to start from, expected {k} at most")
        if given and begun.shape[1] != d:
            raise DimensionMismatch(d, begun.shape[1], "start")
    k = max(given, min(k, n))
    m = np.empty((k, d), dtype=np.float32)
    if given:
        m[:given] = begun
    centroid = <float *>cnp.PyArray_DATA(m)
    at = _pointers(x)
    sample = <const float **>malloc(<size_t>n * sizeof(float *))
    if sample == NULL:
        free(at)
        raise MemoryError
    try:
        sizes = [n]
        if n > 2 * batch_rows:
            sizes = []
            size = batch_rows
            while 2 * size < n:
                sizes.append(size)
                size *= 4
            sizes.append(n)
            order = np.arange(n, dtype=np.int64)
            for i in range(n - 1, 0, -1):
                j = <Py_ssize_t>(sona_uniform(&state) * (i + 1))
                order[i], order[j] = order[j], order[i]
        found = given
        for size in sizes:
            if size == n:
                memcpy(sample, at, <size_t>n * sizeof(float *))
            else:
                # In the order in which they lie.
                chosen = np.sort(np.asarray(order)[:size])
                for i, place in enumerate(chosen):
                    sample[i] = at[<Py_ssize_t>place]
            if size == sizes[0]:
                closest = np.full(size, 4, dtype=np.float32)
                potential = 4.0 * size
                for j in range(given):
                    potential = sona_closer(simd(), sample, size, d, centroid + j * d,
                                            <float *>cnp.PyArray_DATA(closest))
                if not found:
                    memcpy(centroid, sample[<Py_ssize_t>(sona_uniform(&state) * size)], <size_t>d * sizeof(float))
                    potential = sona_closer(simd(), sample, size, d, centroid, <float *>cnp.PyArray_DATA(closest))
                    found = 1
                tries = min(2 + <Py_ssize_t>log(<double>k), 64)
                if found < k:
                    work = np.empty(tries * size, dtype=np.float32)
                with nogil:
                    while found < k:
                        i = sona_seed_one(simd(), sample, size, d, tries, &state, <float *>cnp.PyArray_DATA(closest),
                                          &potential, <float *>cnp.PyArray_DATA(work))
                        if i < 0:
                            break
                        memcpy(centroid + found * d, sample[i], <size_t>d * sizeof(float))
                        found += 1
            lloyd = _Lloyd(size, found, d)
            lloyd.rows, lloyd.centroids = sample, centroid
            iterations += lloyd.run(max_iterations, tolerance, &objective)
    finally:
        free(at)
        free(sample)
    centroids, labels, counts = m[:found], lloyd.labels_of, lloyd.counts_of
    if not counts.all():
        kept = counts > 0
        centroids, labels = centroids[kept], (np.cumsum(kept) - 1)[labels]
    return np.ascontiguousarray(centroids), labels, objective, iterations
