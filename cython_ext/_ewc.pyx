# cython: language_level=3, boundscheck=False, wraparound=False
"""Elastic weight consolidation: the Fisher's moving average, the constraint in proximal form, and the cost of drift."""

from libc.math cimport isfinite
from libc.stdlib cimport free, malloc

cimport numpy as cnp

from sona_pg.errors import ConfigError, InvalidInput, LearningError
from sona_pg.kernels._simd cimport simd

cnp.import_array()

cdef extern from "ewc.h":
    ctypedef struct sona_ewc:
        int (*squarable)(const float *x, Py_ssize_t n) noexcept nogil
        void (*fisher)(float *fisher, const float *gradient, Py_ssize_t p, float weight) noexcept nogil
        void (*blend)(float *fisher, const float *mean, Py_ssize_t p, float weight) noexcept nogil
        int (*mean_square)(const float *gradients, Py_ssize_t n, Py_ssize_t p, float *out) noexcept nogil
        int (*constrain)(const float *gradient, const float *theta, const float *stiffness, const float *pull,
                         Py_ssize_t p, float rate, float *out) noexcept nogil
        int (*proximal)(const float *theta, const float *stiffness, const float *pull, Py_ssize_t p, float step,
                        const float *steps, float *out) noexcept nogil
        int (*drift)(const float *fisher, const float *theta, const float *anchor, Py_ssize_t p, float weight,
                     float *out) noexcept nogil

    const sona_ewc *sona_ewc_find(const char *name) noexcept nogil


cdef inline const sona_ewc *loops() noexcept nogil:
    return sona_ewc_find(simd().name)


cdef const float *vector(object value, Py_ssize_t p, str what) except? NULL:
    """The numbers of a contiguous float32 vector of p; typed views of five arrays would cost two microseconds."""
    cdef cnp.ndarray array
    if not (cnp.PyArray_Check(value) and cnp.PyArray_TYPE(<cnp.ndarray>value) == cnp.NPY_FLOAT32
            and cnp.PyArray_NDIM(<cnp.ndarray>value) == 1 and cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray>value)
            and cnp.PyArray_ISNOTSWAPPED(<cnp.ndarray>value)):
        raise InvalidInput(f"{what} is not a contiguous float32 vector: pass it through as_vector first")
    array = <cnp.ndarray>value
    if cnp.PyArray_DIM(array, 0) != p:
        raise InvalidInput(
            f"{what} has {cnp.PyArray_DIM(array, 0)} parameters, expected {p}: all vectors belong to one model"
        )
    return <const float *>cnp.PyArray_DATA(array)


cdef float *target(object value, Py_ssize_t p, str what) except? NULL:
    """The same of one that is written to."""
    cdef const float *numbers = vector(value, p, what)
    if not cnp.PyArray_ISWRITEABLE(<cnp.ndarray>value):
        raise InvalidInput(f"{what} is read-only: it is changed in place")
    return <float *>numbers


cdef inline int not_negative(float value, str what) except -1:
    if not (value >= 0 and isfinite(value)):
        raise ConfigError(f"{what} is {value}, expected a finite number of at least 0")
    return 0


cdef inline int finite(int is_finite, str what) except -1:
    if not is_finite:
        raise LearningError(f"{what} is not finite: a gradient or a parameter is NaN, infinite or has run away")
    return 0


def fisher_average(fisher, cnp.ndarray gradients not None, float weight):
    """``fisher += weight * (mean(gradients ** 2) - fisher)``, the mean over per-sample gradients.

    Parameters
    ----------
    fisher
        float32 (p,); changed in place.
    gradients
        float32 (n, p), the gradient of one sample in each row; at least one.
    weight
        Of the new mean, 0 to 1.

    Raises
    ------
    InvalidInput, ConfigError
        If shapes or the weight do not fit; nothing was changed.
    LearningError
        If a gradient is not finite, or its square leaves the range of float32; nothing was changed.
    """
    if not (cnp.PyArray_TYPE(gradients) == cnp.NPY_FLOAT32 and cnp.PyArray_NDIM(gradients) == 2
            and cnp.PyArray_IS_C_CONTIGUOUS(gradients) and cnp.PyArray_ISNOTSWAPPED(gradients)):
        raise InvalidInput("gradients are not a contiguous float32 matrix: pass them through as_matrix first")
    cdef Py_ssize_t n = cnp.PyArray_DIM(gradients, 0), p = cnp.PyArray_DIM(gradients, 1)
    cdef const float *rows = <const float *>cnp.PyArray_DATA(gradients)
    cdef float *f = target(fisher, p, "the Fisher")
    cdef const sona_ewc *k = loops()
    cdef float *mean = NULL
    cdef int is_usable
    if n == 0:
        raise InvalidInput("no gradients: the Fisher is a mean over at least one sample")
    if not 0 <= weight <= 1:
        raise ConfigError(f"weight is {weight}, expected 0 to 1")
    if p == 0:
        return
    if n > 1:
        mean = <float *>malloc(p * sizeof(float))
        if mean == NULL:
            raise MemoryError
    with nogil:
        if n == 1:
            is_usable = k.squarable(rows, p)
            if is_usable:
                k.fisher(f, rows, p, weight)
        else:
            is_usable = k.mean_square(rows, n, p, mean)
            if is_usable:
                k.blend(f, mean, p, weight)
    free(mean)
    if not is_usable:
        raise LearningError("a gradient is NaN, infinite, or above 1e18: the Fisher is a mean of squares")


def constrain(cnp.ndarray gradient not None, theta, stiffness, pull, float learning_rate, out):
    """``out = (g + S θ - T) / (1 + η S)``: a step of η along it is the exact proximal step of the penalty.

    Parameters
    ----------
    gradient, theta, out
        float32 (p,); `out` may be one of the others.
    stiffness, pull
        S = Σ λ_k F_k, not negative, and T = Σ λ_k F_k θ*_k, float32 (p,).
    learning_rate
        η, not negative.

    Raises
    ------
    InvalidInput, ConfigError
        If lengths or the learning rate do not fit.
    LearningError
        If the result is not finite.
    """
    cdef Py_ssize_t p = gradient.size
    cdef const float *g = vector(gradient, p, "gradient")
    cdef const float *at = vector(theta, p, "theta")
    cdef const float *s = vector(stiffness, p, "stiffness")
    cdef const float *t = vector(pull, p, "pull")
    cdef float *result = target(out, p, "out")
    cdef int is_finite
    not_negative(learning_rate, "learning rate")
    with nogil:
        is_finite = loops().constrain(g, at, s, t, p, learning_rate, result)
    finite(is_finite, "the constrained gradient")


def proximal(cnp.ndarray theta not None, stiffness, pull, float step, steps, out):
    """``out = (θ + η T) / (1 + η S)``, with one step size for all parameters, or one for each.

    Parameters
    ----------
    theta, out
        float32 (p,), after the optimiser's step on the gradient alone; they may be the same array.
    stiffness, pull
        As `constrain` takes them.
    step, steps
        η, not negative; `steps` (p,), where it is not None, is used instead.

    Raises
    ------
    InvalidInput, ConfigError
        If lengths or the step size do not fit.
    LearningError
        If the result is not finite.
    """
    cdef Py_ssize_t p = theta.size
    cdef const float *at = vector(theta, p, "theta")
    cdef const float *s = vector(stiffness, p, "stiffness")
    cdef const float *t = vector(pull, p, "pull")
    cdef const float *each = NULL if steps is None else vector(steps, p, "steps")
    cdef float *result = target(out, p, "out")
    cdef int is_finite
    not_negative(step, "step")
    with nogil:
        is_finite = loops().proximal(at, s, t, p, step, each, result)
    finite(is_finite, "the result of the proximal step")


def add_drift(cnp.ndarray fisher not None, theta, anchor, float weight, out):
    """``out += weight * F * (θ - θ*) ** 2``: what each parameter's drift from θ* costs, float32 (p,) all of them.

    Raises
    ------
    InvalidInput, ConfigError
        If lengths or the weight do not fit.
    LearningError
        If the result is not finite.
    """
    cdef Py_ssize_t p = fisher.size
    cdef const float *f = vector(fisher, p, "the Fisher")
    cdef const float *at = vector(theta, p, "theta")
    cdef const float *from_here = vector(anchor, p, "anchor")
    cdef float *result = target(out, p, "out")
    cdef int is_finite
    not_negative(weight, "weight")
    with nogil:
        is_finite = loops().drift(f, at, from_here, p, weight, result)
    finite(is_finite, "the cost of drift")
