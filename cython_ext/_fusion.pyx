# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The learned fusion: features of candidates, the gradient and the step of their weights, and the best by a score."""

from libc.math cimport isfinite, isnan
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc

cimport numpy as cnp
import numpy as np

from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, LearningError
from sona_pg.kernels._simd cimport simd

cnp.import_array()

MOST_ORDERS = 1 << 24

cdef extern from "fusion.h":
    enum: SONA_FEATURES

    ctypedef struct sona_outcomes:
        Py_ssize_t events
        const double *similarity
        const int64_t *help_end
        const int64_t *help_item
        const double *help_reward
        const int64_t *miss_end
        const int64_t *miss_item

    ctypedef struct sona_nearness:
        Py_ssize_t neighbours
        Py_ssize_t misses_near
        double vote_kernel
        double familiar_from
        double familiar_width

    ctypedef struct sona_ground:
        double familiarity
        double gate
        double votes

    ctypedef struct sona_adam_double:
        double learning_rate
        double beta1
        double beta2
        double epsilon
        double c1
        double c2
        double average

    Py_ssize_t sona_visible(const sona_outcomes *near, const uint8_t *hidden, Py_ssize_t most,
                            int64_t *visible) noexcept nogil
    sona_ground sona_fusion_features(const float *frozen, const float *adapted, double query_dot, Py_ssize_t m,
                                     const int64_t *rows, Py_ssize_t n, const sona_outcomes *near,
                                     const int64_t *counts, const uint8_t *hidden, const sona_nearness *set,
                                     double *features, double *work) noexcept nogil
    double sona_listwise_gradient(const double *features, Py_ssize_t n, Py_ssize_t f, const double *weights,
                                  const double *targets, double weight, double *out, double *work) noexcept nogil
    int sona_adam_step(double *weights, double *served, double *m, double *v, const double *gradient, Py_ssize_t n,
                       const sona_adam_double *adam) noexcept nogil
    void sona_shuffled_sums(const double *given, const double *heights, Py_ssize_t kinds, Py_ssize_t n, uint64_t seed,
                            Py_ssize_t orders, int64_t *order, double *sums) noexcept nogil
    void sona_order_by_score(const double *scores, Py_ssize_t n, Py_ssize_t k, int64_t *best) noexcept nogil


cdef cnp.ndarray _array(object value, int dtype, int ndim, str what):
    """`value` as an aligned, contiguous array; itself if it is one. Another layout is copied, another dtype refused."""
    if not cnp.PyArray_Check(value) or not cnp.PyArray_EquivTypenums(cnp.PyArray_TYPE(<cnp.ndarray>value), dtype):
        name = np.dtype(cnp.PyArray_TypeObjectFromType(dtype)).name
        found = getattr(value, "dtype", type(value).__name__)
        raise InvalidInput(f"{what} is {found}, expected an array of {name}: convert it first")
    if cnp.PyArray_NDIM(<cnp.ndarray>value) != ndim:
        raise InvalidInput(f"{what} has shape {np.shape(value)}, expected {ndim} dimension{'s' if ndim > 1 else ''}")
    if cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>value):
        return <cnp.ndarray>value
    return np.array(value, dtype=cnp.PyArray_TypeObjectFromType(dtype), order="C")


cdef cnp.ndarray _by_item(object value, int dtype, Py_ssize_t m, str what):
    cdef cnp.ndarray array = _array(value, dtype, 1, what)
    if cnp.PyArray_DIM(array, 0) != m:
        raise InvalidInput(f"{what} has {cnp.PyArray_DIM(array, 0)} items, expected the table's {m}")
    return array


cdef cnp.ndarray _vector(object value, Py_ssize_t dim, str what):
    cdef cnp.ndarray array = _array(value, cnp.NPY_FLOAT64, 1, what)
    if cnp.PyArray_DIM(array, 0) != dim:
        raise DimensionMismatch(dim, cnp.PyArray_DIM(array, 0), what)
    return array


cdef double *_changed(object value, Py_ssize_t dim, str what) except? NULL:
    """Where a float64 vector (dim,) is that is changed in place."""
    if not (cnp.PyArray_Check(value) and cnp.PyArray_TYPE(<cnp.ndarray>value) == cnp.NPY_FLOAT64
            and cnp.PyArray_NDIM(<cnp.ndarray>value) == 1 and cnp.PyArray_ISCARRAY(<cnp.ndarray>value)):
        raise InvalidInput(f"{what} must be a contiguous, writeable float64 vector: it is changed in place")
    if cnp.PyArray_DIM(<cnp.ndarray>value, 0) != dim:
        raise DimensionMismatch(dim, cnp.PyArray_DIM(<cnp.ndarray>value, 0), what)
    return <double *>cnp.PyArray_DATA(<cnp.ndarray>value)


cdef cnp.ndarray _held(object value, int dtype, str what):
    """A copy that nobody can write to: what was checked once stays so."""
    cdef cnp.ndarray array = _array(value, dtype, 1, what)
    if array is value:
        array = cnp.PyArray_NewCopy(array, cnp.NPY_CORDER)
    cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
    return array


cdef int64_t _checked_events(cnp.ndarray ends, cnp.ndarray items, Py_ssize_t events, str what) except -2:
    """The largest of the items, -1 if there is none, of events that end where they must."""
    cdef const int64_t *end = <const int64_t *>cnp.PyArray_DATA(ends)
    cdef const int64_t *item = <const int64_t *>cnp.PyArray_DATA(items)
    cdef Py_ssize_t i, n = cnp.PyArray_DIM(items, 0)
    cdef int64_t before = 0, largest = -1
    if cnp.PyArray_DIM(ends, 0) != events:
        raise InvalidInput(f"{what}_ends has {cnp.PyArray_DIM(ends, 0)} events, expected {events}")
    for i in range(events):
        if end[i] < before:
            raise InvalidInput(f"{what}_ends falls from {before} to {end[i]}: they count the items of all events so far")
        before = end[i]
    if before != n:
        raise InvalidInput(f"{what}_ends ends at {before}, expected the number of {what}_items, {n}")
    for i in range(n):
        if item[i] < -1:
            raise InvalidInput(f"{what}_items holds {item[i]}, expected a row of the table, or -1 for none")
        largest = max(largest, item[i])
    return largest


cdef class OutcomeNeighbours:
    """The remembered events nearest to a query, nearest first, with items as rows of a table. It cannot be changed.

    Parameters
    ----------
    similarities
        float64 (e,), cosines of the events' queries to the one that asks.
    help_ends
        int64 (e,), by event where its items end among `help_items`.
    help_items
        int64, items that helped; -1 is one that is not in the table.
    help_rewards
        float64, by how much, above 0.
    miss_ends, miss_items
        The same of the items that were shown and did not help.

    Raises
    ------
    InvalidInput
        If they do not belong together, or hold what they must not.
    """
    cdef readonly cnp.ndarray similarities, help_ends, help_items, help_rewards, miss_ends, miss_items
    cdef sona_outcomes outcomes
    cdef int64_t largest

    def __cinit__(self, similarities, help_ends, help_items, help_rewards, miss_ends, miss_items):
        cdef Py_ssize_t i
        self.similarities = _held(similarities, cnp.NPY_FLOAT64, "similarities")
        self.help_ends = _held(help_ends, cnp.NPY_INT64, "help_ends")
        self.help_items = _held(help_items, cnp.NPY_INT64, "help_items")
        self.help_rewards = _held(help_rewards, cnp.NPY_FLOAT64, "help_rewards")
        self.miss_ends = _held(miss_ends, cnp.NPY_INT64, "miss_ends")
        self.miss_items = _held(miss_items, cnp.NPY_INT64, "miss_items")
        cdef sona_outcomes *o = &self.outcomes
        o.events = cnp.PyArray_DIM(self.similarities, 0)
        o.similarity = <const double *>cnp.PyArray_DATA(self.similarities)
        o.help_end = <const int64_t *>cnp.PyArray_DATA(self.help_ends)
        o.help_item = <const int64_t *>cnp.PyArray_DATA(self.help_items)
        o.help_reward = <const double *>cnp.PyArray_DATA(self.help_rewards)
        o.miss_end = <const int64_t *>cnp.PyArray_DATA(self.miss_ends)
        o.miss_item = <const int64_t *>cnp.PyArray_DATA(self.miss_items)
        for i in range(o.events):
            if not isfinite(o.similarity[i]):
                raise InvalidInput(f"similarity {o.similarity[i]}, expected a finite cosine")
        self.largest = max(
            _checked_events(self.help_ends, self.help_items, o.events, "help"),
            _checked_events(self.miss_ends, self.miss_items, o.events, "miss"),
        )
        if cnp.PyArray_DIM(self.help_rewards, 0) != cnp.PyArray_DIM(self.help_items, 0):
            raise InvalidInput(f"{len(self.help_items)} helped with {len(self.help_rewards)} rewards: one for each")
        for i in range(cnp.PyArray_DIM(self.help_rewards, 0)):
            if not (isfinite(o.help_reward[i]) and o.help_reward[i] > 0):
                raise InvalidInput(f"reward {o.help_reward[i]}, expected a finite number above 0")

    def __len__(self):
        return self.outcomes.events

    cdef const uint8_t *_hidden(self, cnp.ndarray hidden, Py_ssize_t m) except? NULL:
        """Where the flags of m items are, NULL without; after a check that the events name no others."""
        if self.largest >= m:
            raise InvalidInput(f"an event names item {self.largest} of a table of {m}: they belong to another table")
        if hidden is None:
            return NULL
        return <const uint8_t *>cnp.PyArray_DATA(hidden)

    def visible(self, hidden, Py_ssize_t neighbours):
        """Positions of the first `neighbours` events in which no item helped that is flagged in `hidden`.

        Parameters
        ----------
        hidden
            uint8 (m,) by item of the table, or None.
        neighbours
            So many at most.

        Returns
        -------
        ndarray
            int64, ascending.
        """
        cdef cnp.ndarray flags = None, found
        cdef const uint8_t *by_item = NULL
        cdef Py_ssize_t count, most
        if neighbours < 0:
            raise ConfigError(f"{neighbours} neighbours, expected at least 0")
        if hidden is not None:
            flags = _array(hidden, cnp.NPY_UINT8, 1, "hidden")
            by_item = self._hidden(flags, cnp.PyArray_DIM(flags, 0))
        most = min(neighbours, self.outcomes.events)
        found = np.empty(most, dtype=np.int64)
        cdef int64_t *positions = <int64_t *>cnp.PyArray_DATA(found)
        with nogil:
            count = sona_visible(&self.outcomes, by_item, most, positions)
        return found[:count]

    def helped(self, events, Py_ssize_t m):
        """Flags, uint8 (m,), of the items of a table that helped in these events.

        Parameters
        ----------
        events
            int64, positions of events.
        m
            Items of the table.
        """
        cdef cnp.ndarray positions = _array(events, cnp.NPY_INT64, 1, "events"), flags = np.zeros(max(m, 0), dtype=np.uint8)
        cdef const int64_t *at = <const int64_t *>cnp.PyArray_DATA(positions)
        cdef uint8_t *out = <uint8_t *>cnp.PyArray_DATA(flags)
        cdef const sona_outcomes *near = &self.outcomes
        cdef Py_ssize_t i, h, n = cnp.PyArray_DIM(positions, 0)
        for i in range(n):
            if not 0 <= at[i] < near.events:
                raise InvalidInput(f"event {at[i]} of {near.events}: take the positions that visible() gives")
            for h in range(near.help_end[at[i] - 1] if at[i] else 0, near.help_end[at[i]]):
                if near.help_item[h] >= m:
                    raise InvalidInput(f"an event names item {near.help_item[h]} of a table of {m}")
                if near.help_item[h] >= 0:
                    out[near.help_item[h]] = 1
        return flags


def fusion_features(frozen, adapted, double query_dot, rows, OutcomeNeighbours near not None, counts, hidden=None, *,
                    Py_ssize_t neighbours, Py_ssize_t misses_near, double vote_kernel, double familiar_from,
                    double familiar_width):
    """What is known of candidates, as `sona_pg.learning.fusion.FEATURES` names it.

    Parameters
    ----------
    frozen, adapted
        float32 (m,), cosines of the items of a table to the query q, and to the adapted query u; both are unit.
    query_dot
        q · u.
    rows
        int64 (n,), the candidates as rows of the table.
    near
        The events nearest to q.
    counts
        int64 (m,), in how many events each item helped.
    hidden
        uint8 (m,), items that are taken never to have helped, nor the events in which they did to have been; or None.
    neighbours, misses_near
        So many events say what helped, and so many of those, the nearest, what did not.
    vote_kernel
        Width of the kernel exp((cosine - 1) / width) by which events vote.
    familiar_from, familiar_width
        From which cosine the ground is familiar, and by how much more wholly so.

    Returns
    -------
    features, familiarity, gate
        float64 (n, 18); cosine of the nearest event, at least 0; how familiar the ground is, 0 to 1.

    Raises
    ------
    InvalidInput
        If a cosine is not finite, or a row, count or event does not belong to the table.
    ConfigError
        If a setting is out of its range.
    """
    cdef cnp.ndarray to_query = _array(frozen, cnp.NPY_FLOAT32, 1, "frozen")
    cdef Py_ssize_t i, m = cnp.PyArray_DIM(to_query, 0)
    cdef cnp.ndarray to_adapted = _by_item(adapted, cnp.NPY_FLOAT32, m, "adapted")
    cdef cnp.ndarray candidates = _array(rows, cnp.NPY_INT64, 1, "rows")
    cdef cnp.ndarray times = _by_item(counts, cnp.NPY_INT64, m, "counts")
    cdef cnp.ndarray flags = None if hidden is None else _by_item(hidden, cnp.NPY_UINT8, m, "hidden")
    cdef const uint8_t *by_item = near._hidden(flags, m)
    cdef Py_ssize_t n = cnp.PyArray_DIM(candidates, 0)
    cdef const float *f = <const float *>cnp.PyArray_DATA(to_query)
    cdef const float *u = <const float *>cnp.PyArray_DATA(to_adapted)
    cdef const int64_t *row = <const int64_t *>cnp.PyArray_DATA(candidates)
    cdef const int64_t *count = <const int64_t *>cnp.PyArray_DATA(times)
    cdef sona_nearness settings
    cdef sona_ground ground
    cdef cnp.ndarray table
    cdef double *x
    cdef double *work
    if neighbours < 0 or misses_near < 0:
        raise ConfigError(f"{neighbours} neighbours, {misses_near} misses: expected at least 0")
    if not (vote_kernel > 0 and familiar_width > 0 and isfinite(vote_kernel) and isfinite(familiar_width)
            and isfinite(familiar_from)):
        raise ConfigError(
            f"vote kernel {vote_kernel}, familiar from {familiar_from}, width {familiar_width}: "
            "expected above 0, finite, above 0"
        )
    if not (simd().all_finite(f, m) and simd().all_finite(u, m) and isfinite(query_dot)):
        raise InvalidInput("a cosine is NaN or infinite: check what the embedding model returned")
    for i in range(n):
        if not 0 <= row[i] < m:
            raise InvalidInput(f"candidate {row[i]} of a table of {m}, expected 0 to {m - 1}")
    for i in range(m):
        if count[i] < 0:
            raise InvalidInput(f"an item helped {count[i]} times, expected at least 0")
    settings.neighbours, settings.misses_near, settings.vote_kernel = neighbours, misses_near, vote_kernel
    settings.familiar_from, settings.familiar_width = familiar_from, familiar_width
    table = np.empty((n, SONA_FEATURES), dtype=np.float64)
    x = <double *>cnp.PyArray_DATA(table)
    work = <double *>malloc(3 * max(m, 1) * sizeof(double))
    if work == NULL:
        raise MemoryError
    with nogil:
        ground = sona_fusion_features(f, u, query_dot, m, row, n, &near.outcomes, count, by_item, &settings, x, work)
    free(work)
    if not isfinite(ground.votes):
        raise InvalidInput("the votes overflow: similarities must be cosines, and rewards moderate")
    return table, ground.familiarity, ground.gate


def listwise_gradient(features, weights, targets, double weight, out):
    """Add the gradient of a linear score's listwise loss: ``out += weight * (softmax(X @ w) - t) @ X``.

    Parameters
    ----------
    features
        X, float64 (n, f), at least one row.
    weights
        w, float64 (f,).
    targets
        t, float64 (n,), summing to 1.
    weight
        Factor of the gradient.
    out
        float64 (f,), contiguous and writeable; changed in place.

    Returns
    -------
    float
        The loss ``-Σ t log softmax(X w)``, in nats (Cao et al. 2007, ListNet's top-one loss).

    Raises
    ------
    LearningError
        If the loss or the gradient is not finite; `out` is then unchanged.
    """
    cdef cnp.ndarray table = _array(features, cnp.NPY_FLOAT64, 2, "features")
    cdef Py_ssize_t n = cnp.PyArray_DIM(table, 0), f = cnp.PyArray_DIM(table, 1)
    cdef cnp.ndarray by_feature = _vector(weights, f, "weights")
    cdef cnp.ndarray wanted = _array(targets, cnp.NPY_FLOAT64, 1, "targets")
    cdef const double *x = <const double *>cnp.PyArray_DATA(table)
    cdef const double *w = <const double *>cnp.PyArray_DATA(by_feature)
    cdef const double *t = <const double *>cnp.PyArray_DATA(wanted)
    cdef double *gradient = _changed(out, f, "out")
    cdef double *work
    cdef double loss
    if n == 0 or cnp.PyArray_DIM(wanted, 0) != n:
        raise InvalidInput(
            f"{n} candidates with {cnp.PyArray_DIM(wanted, 0)} targets: one target for each, and at least one candidate"
        )
    work = <double *>malloc((n + f) * sizeof(double))
    if work == NULL:
        raise MemoryError
    with nogil:
        loss = sona_listwise_gradient(x, n, f, w, t, weight, gradient, work)
    free(work)
    if isnan(loss):
        raise LearningError("the loss or its gradient is not finite: a feature or target is, or the weights have run away")
    return loss


def adam_step(weights, served, moment1, moment2, gradient, int64_t steps, double learning_rate, double average,
              double beta1=0.9, double beta2=0.999, double epsilon=1e-8):
    """One step of Adam (Kingma & Ba 2015), and of the moving average of the weights that is served.

    Parameters
    ----------
    weights, served, moment1, moment2
        float64 (f,), contiguous and writeable; changed in place.
    gradient
        float64 (f,).
    steps
        Number of this step, from 1.
    learning_rate
        Step size.
    average
        Weight of the old value in the served average; less in the first steps, (1 + steps) / (10 + steps).
    beta1, beta2, epsilon
        Adam's constants.

    Raises
    ------
    LearningError
        If the gradient is not finite, or its square would not be; nothing was changed.
    """
    cdef cnp.ndarray slope = _array(gradient, cnp.NPY_FLOAT64, 1, "gradient")
    cdef Py_ssize_t f = cnp.PyArray_DIM(slope, 0)
    cdef const double *g = <const double *>cnp.PyArray_DATA(slope)
    cdef double *w = _changed(weights, f, "weights")
    cdef double *mean = _changed(served, f, "served")
    cdef double *m = _changed(moment1, f, "moment1")
    cdef double *v = _changed(moment2, f, "moment2")
    cdef double t = <double>steps
    cdef sona_adam_double adam
    cdef int is_done
    if not (steps >= 1 and 0 <= learning_rate and isfinite(learning_rate) and 0 <= average <= 1):
        raise ConfigError(
            f"step {steps}, learning rate {learning_rate}, average {average}: expected at least 1, at least 0, 0 to 1"
        )
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and epsilon > 0 and isfinite(epsilon)):
        raise ConfigError(
            f"beta1 {beta1}, beta2 {beta2}, epsilon {epsilon}: expected 0 to below 1, 0 to below 1, above 0"
        )
    adam.learning_rate, adam.beta1, adam.beta2, adam.epsilon = learning_rate, beta1, beta2, epsilon
    adam.c1, adam.c2 = 1 - beta1 ** t, 1 - beta2 ** t
    adam.average = min(average, (1 + t) / (10 + t))
    with nogil:
        is_done = sona_adam_step(w, mean, m, v, g, f, &adam)
    if not is_done:
        raise LearningError("the gradient is not finite, or above 1e150: the weights have run away")


def order_by_score(scores, Py_ssize_t k):
    """Rows, int64 (min(k, n),), of the k highest scores, best first; equal ones in the order of rows.

    `scores` are float64 (n,), without NaN.
    """
    cdef cnp.ndarray by_row = _array(scores, cnp.NPY_FLOAT64, 1, "scores")
    cdef const double *score = <const double *>cnp.PyArray_DATA(by_row)
    cdef Py_ssize_t i, few, n = cnp.PyArray_DIM(by_row, 0)
    cdef cnp.ndarray best
    if k < 0:
        raise ConfigError(f"the {k} best, expected at least 0")
    for i in range(n):
        if isnan(score[i]):
            raise InvalidInput(f"score of row {i} is NaN: it has no place in an order")
    few = min(k, n)
    best = np.empty(few, dtype=np.int64)
    cdef int64_t *found = <int64_t *>cnp.PyArray_DATA(best)
    with nogil:
        sona_order_by_score(score, n, few, found)
    return best


def shuffled_sums(given, heights, uint64_t seed, Py_ssize_t orders):
    """``Σ given[i] heights[k, π(i)]`` for random orders π: what a ranking would be worth by chance.

    Parameters
    ----------
    given
        float64 (n,).
    heights
        float64 (kinds, n).
    seed, orders
        Randomness, and how many orders.

    Returns
    -------
    ndarray
        float64 (kinds, orders).
    """
    cdef cnp.ndarray worth = _array(given, cnp.NPY_FLOAT64, 1, "given")
    cdef cnp.ndarray table = _array(heights, cnp.NPY_FLOAT64, 2, "heights"), work, sums
    cdef Py_ssize_t n = cnp.PyArray_DIM(worth, 0), kinds = cnp.PyArray_DIM(table, 0)
    if cnp.PyArray_DIM(table, 1) != n:
        raise InvalidInput(f"heights have {cnp.PyArray_DIM(table, 1)} columns, expected {n}, one for each of given")
    if not 0 <= orders <= MOST_ORDERS or n > 2 ** 31:
        raise ConfigError(f"{orders} orders of {n}, expected 0 to {MOST_ORDERS}, of 2**31 at most")
    work, sums = np.empty(n, dtype=np.int64), np.empty((kinds, orders))
    cdef const double *g = <const double *>cnp.PyArray_DATA(worth)
    cdef const double *h = <const double *>cnp.PyArray_DATA(table)
    cdef int64_t *w = <int64_t *>cnp.PyArray_DATA(work)
    cdef double *out = <double *>cnp.PyArray_DATA(sums)
    with nogil:
        sona_shuffled_sums(g, h, kinds, n, seed, orders, w, out)
    return sums
