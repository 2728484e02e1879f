# cython: language_level=3, boundscheck=False, wraparound=False
"""Graphs in compressed sparse rows: building, looking up, random walks, spreading activation, PageRank and rewiring."""

from libc.math cimport fabs, isfinite
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

cimport numpy as cnp
import numpy as np

from sona_pg.errors import InvalidInput, MemoryGraphError

cnp.import_array()

cdef extern from "graph.h":
    ctypedef struct sona_graph:
        const int64_t *indptr
        const int32_t *neighbours
        int64_t n
        int64_t entries

    uint64_t sona_stream(uint64_t seed, uint64_t number) noexcept nogil
    int sona_is_row(const sona_graph *g, int64_t node) noexcept nogil
    int sona_is_node(const sona_graph *g, int64_t node) noexcept nogil
    int64_t sona_entry(const sona_graph *g, int64_t node, int32_t neighbour) noexcept nogil
    void sona_adjacency(const int32_t *source, const int32_t *target, const float *weight, int64_t m, int64_t n,
                        const int64_t *indptr, int64_t *at, int32_t *unsorted, float *unsorted_weight,
                        int32_t *neighbours, float *weights) noexcept nogil
    int64_t sona_merge(int64_t *indptr, int32_t *neighbours, float *weights, int64_t n) noexcept nogil
    enum: SONA_WALKS
    int sona_walk(const sona_graph *g, const double *cumulative, const int32_t *starts, int64_t m, int64_t length,
                  double restart, double jump, uint64_t seed, uint64_t first, int32_t *nodes,
                  uint8_t *kinds) noexcept nogil
    int sona_spread(const sona_graph *g, const float *weights, const double *source, double factor,
                    double *to) noexcept nogil
    int sona_strengths(const sona_graph *g, const float *weights, double *strength) noexcept nogil
    double sona_spread_all(const sona_graph *g, const float *weights, const double *strength, const double *source,
                           double factor, double *to) noexcept nogil
    void sona_swap_edges(const int64_t *indptr, int32_t *neighbours, int64_t m, int32_t *source, int64_t *there,
                         int64_t *back, int64_t tries, uint64_t state) noexcept nogil

cdef object LARGEST = 2**31 - 1
"""Most nodes of a graph."""


cdef cnp.ndarray _vector(object value, int kind, Py_ssize_t size, str what):
    """`value` if it is a contiguous vector of that type and, unless negative, of that size."""
    if not (cnp.PyArray_Check(value) and cnp.PyArray_EquivTypenums(cnp.PyArray_TYPE(<cnp.ndarray>value), kind)
            and cnp.PyArray_NDIM(<cnp.ndarray>value) == 1 and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>value)):
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        expected = cnp.PyArray_DescrFromType(kind)
        raise InvalidInput(f"{what} is {found}, expected a contiguous vector of {expected}: convert it first")
    if size >= 0 and cnp.PyArray_DIM(<cnp.ndarray>value, 0) != size:
        raise InvalidInput(f"{what} has {cnp.PyArray_DIM(<cnp.ndarray>value, 0)} values, expected {size}")
    return <cnp.ndarray>value


cdef sona_graph _graph(object indptr, object neighbours) except *:
    """A view of both arrays, which the caller keeps."""
    cdef sona_graph g
    cdef cnp.ndarray rows = _vector(indptr, cnp.NPY_INT64, -1, "indptr")
    cdef cnp.ndarray entries = _vector(neighbours, cnp.NPY_INT32, -1, "neighbours")
    g.n = cnp.PyArray_DIM(rows, 0) - 1
    g.entries = cnp.PyArray_DIM(entries, 0)
    if not 0 <= g.n <= LARGEST:
        raise InvalidInput(f"indptr has {g.n + 1} values, expected one more than there are nodes, {LARGEST} at most")
    g.indptr = <const int64_t *>cnp.PyArray_DATA(rows)
    g.neighbours = <const int32_t *>cnp.PyArray_DATA(entries)
    return g


cdef object _damaged():
    return MemoryGraphError(
        "the graph's rows are damaged: indptr must rise from 0 to the number of entries, neighbours be nodes, "
        "and weights finite and not negative; build them with `adjacency`"
    )


cdef int _check_rows(const sona_graph *g) except -1:
    """Refuse rows of which one lies outside, and neighbours that are no nodes."""
    cdef int64_t i, e
    cdef bint is_sound = True
    with nogil:
        for i in range(g.n):
            is_sound = is_sound and sona_is_row(g, i)
        for e in range(g.entries):
            is_sound = is_sound and sona_is_node(g, g.neighbours[e])
    if not is_sound:
        raise _damaged()
    return 0


def adjacency(Py_ssize_t n, source, target, weight):
    """Undirected edges as compressed sparse rows, both directions, neighbours in their order.

    Parameters
    ----------
    n
        Number of nodes.
    source, target
        int32 (m,), 0 to n - 1, no self-loops.
    weight
        float32 (m,), finite and not negative. Weights of the same edge are added up, to 1 at most.

    Returns
    -------
    indptr, neighbours, weights
        int64 (n + 1,), int32 and float32 (entries,), two entries for each edge.

    Raises
    ------
    InvalidInput, MemoryGraphError
        If arrays are not of that kind, or an edge is none.
    """
    cdef cnp.ndarray a = _vector(source, cnp.NPY_INT32, -1, "source")
    cdef Py_ssize_t k, m = cnp.PyArray_DIM(a, 0), wrong = -1
    cdef cnp.ndarray b = _vector(target, cnp.NPY_INT32, m, "target"), w = _vector(weight, cnp.NPY_FLOAT32, m, "weight")
    cdef const int32_t *from_ = <const int32_t *>cnp.PyArray_DATA(a)
    cdef const int32_t *to = <const int32_t *>cnp.PyArray_DATA(b)
    cdef const float *each = <const float *>cnp.PyArray_DATA(w)
    cdef int64_t left
    cdef int64_t *start
    if not 0 <= n <= LARGEST:
        raise InvalidInput(f"n is {n}, expected 0 to {LARGEST}")
    indptr = np.zeros(n + 1, dtype=np.int64)
    start = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>indptr)
    with nogil:
        for k in range(m):
            if not (0 <= from_[k] < n and 0 <= to[k] < n and from_[k] != to[k] and each[k] >= 0 and isfinite(each[k])):
                wrong = k
                break
            start[from_[k] + 1] += 1
            start[to[k] + 1] += 1
        for k in range(n):
            start[k + 1] += start[k]
    if wrong >= 0:
        raise MemoryGraphError(
            f"edge {wrong} joins {from_[wrong]} and {to[wrong]} with weight {each[wrong]}, "
            f"expected two different nodes below {n} and a finite weight that is not negative"
        )
    neighbours, weights = np.empty(2 * m, dtype=np.int32), np.empty(2 * m, dtype=np.float32)
    unsorted, unsorted_weight = np.empty(2 * m, dtype=np.int32), np.empty(2 * m, dtype=np.float32)
    at = np.empty(n, dtype=np.int64)
    cdef int64_t *work = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>at)
    cdef int32_t *loose = <int32_t *>cnp.PyArray_DATA(<cnp.ndarray>unsorted)
    cdef float *loose_weight = <float *>cnp.PyArray_DATA(<cnp.ndarray>unsorted_weight)
    cdef int32_t *sorted_ = <int32_t *>cnp.PyArray_DATA(<cnp.ndarray>neighbours)
    cdef float *sorted_weight = <float *>cnp.PyArray_DATA(<cnp.ndarray>weights)
    with nogil:
        sona_adjacency(from_, to, each, m, n, start, work, loose, loose_weight, sorted_, sorted_weight)
        left = sona_merge(start, sorted_, sorted_weight, n)
    if left < 2 * m:
        neighbours, weights = neighbours[:left].copy(), weights[:left].copy()
    return indptr, neighbours, weights


def find_edges(indptr, neighbours, source, target):
    """By pair the place of its entry in the row of its source, -1 where it is no edge.

    Parameters
    ----------
    indptr, neighbours
        int64 (n + 1,) and int32 (entries,), rows sorted, as `adjacency` gives them.
    source, target
        int32 (m,), 0 to n - 1.

    Returns
    -------
    numpy.ndarray
        int64 (m,).

    Raises
    ------
    InvalidInput, MemoryGraphError
        If arrays are not of that kind, or a node is none.
    """
    cdef sona_graph g = _graph(indptr, neighbours)
    cdef cnp.ndarray a = _vector(source, cnp.NPY_INT32, -1, "source")
    cdef Py_ssize_t k, m = cnp.PyArray_DIM(a, 0)
    cdef cnp.ndarray b = _vector(target, cnp.NPY_INT32, m, "target")
    cdef const int32_t *from_ = <const int32_t *>cnp.PyArray_DATA(a)
    cdef const int32_t *to = <const int32_t *>cnp.PyArray_DATA(b)
    found = np.empty(m, dtype=np.int64)
    cdef int64_t *entry = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>found)
    cdef Py_ssize_t outside = -1, damaged = -1
    with nogil:
        for k in range(m):
            if not (sona_is_node(&g, from_[k]) and sona_is_node(&g, to[k])):
                outside = k
                break
            if not sona_is_row(&g, from_[k]):
                damaged = k
                break
            entry[k] = sona_entry(&g, from_[k], to[k])
    if outside >= 0:
        raise MemoryGraphError(f"pair {outside} is {from_[outside]}, {to[outside]}: expected nodes from 0 below {g.n}")
    if damaged >= 0:
        raise _damaged()
    return found


def walk(indptr, neighbours, cumulative, starts, Py_ssize_t length, double restart, double jump, uint64_t seed, *,
         uint64_t first=0):
    """Random walks with restarts and creative jumps.

    Every step goes back to the start with probability `restart`, to another node drawn uniformly with probability
    `jump`, and else along an edge, drawn by its weight. Where there is nowhere to go (no edge with a weight, or no
    other node to jump to) it is a restart, too. Every walk has a random stream of its own (splitmix64, from the seed
    and the number of the walk): it is the same whatever other walks are made beside it.

    Parameters
    ----------
    indptr, neighbours
        int64 (n + 1,) and int32 (entries,).
    cumulative
        float64 (entries,): running sum of weights over all entries, so that a row's own weights are its differences.
    starts
        int32 (m,), 0 to n - 1.
    length
        Nodes of a walk with its start, at least 1.
    restart, jump
        Probabilities, their sum at most 1.
    seed
        Of what is drawn.
    first
        Number of the first walk.

    Returns
    -------
    nodes, kinds
        int32 and uint8 (m, length); kinds are 0 start, 1 edge, 2 jump, 3 restart.

    Raises
    ------
    InvalidInput
        If arrays or numbers are not of that kind.
    MemoryGraphError
        If a start is no node, or a row that was walked on is damaged.
    """
    cdef sona_graph g = _graph(indptr, neighbours)
    cdef cnp.ndarray sums = _vector(cumulative, cnp.NPY_FLOAT64, g.entries, "cumulative")
    cdef cnp.ndarray begin = _vector(starts, cnp.NPY_INT32, -1, "starts")
    cdef Py_ssize_t i, m = cnp.PyArray_DIM(begin, 0), outside = -1
    cdef const int32_t *start = <const int32_t *>cnp.PyArray_DATA(begin)
    cdef const double *sum_ = <const double *>cnp.PyArray_DATA(sums)
    cdef int status = 0
    if length < 1:
        raise InvalidInput(f"length is {length}, expected at least 1, the start")
    if not (restart >= 0 and jump >= 0 and restart + jump <= 1):
        raise InvalidInput(f"restart {restart}, jump {jump}: expected probabilities with a sum of at most 1")
    nodes, kinds = np.empty((m, length), dtype=np.int32), np.empty((m, length), dtype=np.uint8)
    cdef int32_t *node = <int32_t *>cnp.PyArray_DATA(<cnp.ndarray>nodes)
    cdef uint8_t *kind = <uint8_t *>cnp.PyArray_DATA(<cnp.ndarray>kinds)
    with nogil:
        for i in range(m):
            if not sona_is_node(&g, start[i]):
                outside = i
                break
        i = 0
        while outside < 0 and not status and i < m:
            status = sona_walk(&g, sum_, start + i, min(m - i, <Py_ssize_t>SONA_WALKS), length, restart, jump, seed,
                               first + <uint64_t>i, node + i * length, kind + i * length)
            i += SONA_WALKS
    if outside >= 0:
        raise MemoryGraphError(f"walk {outside} starts at node {start[outside]}, expected 0 to below {g.n}")
    if status:
        raise _damaged()
    return nodes, kinds


def spread(indptr, neighbours, weights, mass, Py_ssize_t hops, double factor):
    """Spreading activation: ``Σ_h a_h`` with ``a_0 = mass`` and ``a_h = factor Pᵀ a_{h-1}``.

    P is the weights with rows that sum to 1; what lies on a node without edges goes no further.

    Parameters
    ----------
    indptr, neighbours, weights
        int64 (n + 1,), int32 and float32 (entries,), as `adjacency` gives them; weights of any size.
    mass
        float64 (n,), finite and not negative.
    hops
        How often it spreads, at least 0.
    factor
        What arrives of it, 0 to 1.

    Returns
    -------
    numpy.ndarray
        float64 (n,), the mass itself included.

    Raises
    ------
    InvalidInput
        If arrays or numbers are not of that kind.
    MemoryGraphError
        If a row that was reached is damaged.
    """
    cdef sona_graph g = _graph(indptr, neighbours)
    cdef cnp.ndarray w = _vector(weights, cnp.NPY_FLOAT32, g.entries, "weights")
    cdef cnp.ndarray given = _mass(mass, g.n)
    cdef const float *weight = <const float *>cnp.PyArray_DATA(w)
    cdef int64_t i
    cdef Py_ssize_t hop
    cdef int status = 0
    if hops < 0 or not 0 <= factor <= 1:
        raise InvalidInput(f"hops {hops}, factor {factor}: expected at least 0, and 0 to 1")
    total, now, then = given.copy(), given.copy(), np.zeros(g.n)
    cdef double *sum_ = <double *>cnp.PyArray_DATA(<cnp.ndarray>total)
    cdef double *here = <double *>cnp.PyArray_DATA(<cnp.ndarray>now)
    cdef double *there = <double *>cnp.PyArray_DATA(<cnp.ndarray>then)
    with nogil:
        for hop in range(hops):
            status = sona_spread(&g, weight, here, factor, there)
            if status:
                break
            for i in range(g.n):
                sum_[i] += there[i]
                here[i] = 0
            here, there = there, here
    if status:
        raise _damaged()
    return total


def personalised_pagerank(indptr, neighbours, weights, mass, double restart, double tolerance):
    """``restart (I - (1 - restart) Pᵀ)⁻¹ s`` by power iteration, s the mass with a sum of 1 (Haveliwala 2002).

    It is where an endless walk from s is to be found. P is the weights with rows that sum to 1; a node without edges
    goes back to s.

    Parameters
    ----------
    indptr, neighbours, weights
        As `spread` takes them.
    mass
        float64 (n,), finite, not negative, and not all zero.
    restart
        Above 0 to 1.
    tolerance
        Largest ``Σ |difference|`` to the solution, above 0.

    Returns
    -------
    numpy.ndarray
        float64 (n,), with a sum of 1.

    Raises
    ------
    InvalidInput
        If arrays or numbers are not of that kind.
    MemoryGraphError
        If a row is damaged.
    """
    cdef sona_graph g = _graph(indptr, neighbours)
    cdef cnp.ndarray w = _vector(weights, cnp.NPY_FLOAT32, g.entries, "weights")
    cdef cnp.ndarray given = _mass(mass, g.n)
    cdef const float *weight = <const float *>cnp.PyArray_DATA(w)
    cdef int64_t i
    cdef int status
    cdef double stuck, change, whole = 0, left = 2
    if not (0 < restart <= 1 and tolerance > 0):
        raise InvalidInput(f"restart {restart}, tolerance {tolerance}: expected above 0 to 1, and above 0")
    with np.errstate(over="ignore"):
        whole = given.sum()
    if not (whole > 0 and isfinite(whole)):
        raise InvalidInput(f"the mass has a sum of {whole}, expected a finite one above 0")
    begin, strengths = given / whole, np.empty(g.n)
    now, then = begin.copy(), np.zeros(g.n)
    cdef const double *s = <const double *>cnp.PyArray_DATA(<cnp.ndarray>begin)
    cdef double *here = <double *>cnp.PyArray_DATA(<cnp.ndarray>now)
    cdef double *there = <double *>cnp.PyArray_DATA(<cnp.ndarray>then)
    cdef double *strength = <double *>cnp.PyArray_DATA(<cnp.ndarray>strengths)
    with nogil:
        status = sona_strengths(&g, weight, strength)
    if status:
        raise _damaged()
    with nogil:
        # A step brings any two closer by 1 - restart, so what is left is at most a geometric sum of what has changed.
        # Rounding may keep that above a tolerance of a few bits: then the steps that the bound allows are enough.
        while left > tolerance:
            stuck = sona_spread_all(&g, weight, strength, here, 1 - restart, there)
            change = 0
            for i in range(g.n):
                there[i] += (restart + stuck) * s[i]
                change += fabs(there[i] - here[i])
                here[i] = 0
            here, there = there, here
            if change * (1 - restart) <= tolerance * restart:
                break
            left *= 1 - restart
    return now if here == <double *>cnp.PyArray_DATA(<cnp.ndarray>now) else then


cdef cnp.ndarray _mass(object mass, Py_ssize_t n):
    cdef cnp.ndarray given = _vector(mass, cnp.NPY_FLOAT64, n, "mass")
    cdef const double *value = <const double *>cnp.PyArray_DATA(given)
    cdef Py_ssize_t i
    for i in range(n):
        if not (value[i] >= 0 and isfinite(value[i])):
            raise InvalidInput(f"the mass of node {i} is {value[i]}, expected a finite number that is not negative")
    return given


def rewired(indptr, neighbours, Py_ssize_t tries, uint64_t seed):
    """Edges of a random graph with the same degrees, by swaps of the ends of two edges (Maslov & Sneppen 2002).

    Parameters
    ----------
    indptr, neighbours
        As `adjacency` gives them.
    tries
        How often a swap is tried; one that would make a self-loop or a second edge is left out.
    seed
        Of what is drawn.

    Returns
    -------
    source, target
        int32 (m,), m the number of edges. Edge k came from the k-th entry whose neighbour is above its row.

    Raises
    ------
    InvalidInput, MemoryGraphError
        If arrays are not of that kind, damaged or not symmetric, or `tries` is negative.
    """
    cdef sona_graph g = _graph(indptr, neighbours)
    if tries < 0:
        raise InvalidInput(f"tries is {tries}, expected at least 0")
    _check_rows(&g)
    rows = np.repeat(np.arange(g.n, dtype=np.int32), np.diff(indptr))
    if len(rows) != g.entries:
        raise _damaged()
    there = np.flatnonzero(rows < neighbours).astype(np.int64)
    source = rows[there]
    back = find_edges(indptr, neighbours, neighbours[there], source)
    if 2 * len(there) != g.entries or (back < 0).any():
        raise MemoryGraphError("the graph is not symmetric: every edge must stand in the rows of both of its nodes")
    mixed = neighbours.copy()
    cdef int64_t m = len(there)
    cdef int32_t *entry = <int32_t *>cnp.PyArray_DATA(<cnp.ndarray>mixed)
    cdef int32_t *from_ = <int32_t *>cnp.PyArray_DATA(<cnp.ndarray>source)
    cdef int64_t *out = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>there)
    cdef int64_t *home = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>back)
    if m > 1:
        with nogil:
            sona_swap_edges(g.indptr, entry, m, from_, out, home, tries, sona_stream(seed, 0))
    return source, mixed[there]
