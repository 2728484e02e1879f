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


cdef inline int same(Py_ssize_t expected, Py_ssize_t found, str what) except -1:
    if found != expected:
        raise InvalidInput(f"{what} has {found} parameters, expected {expected}: all vectors belong to one model")
    return 0


cdef inline int not_negative(float value, str what) except -1:
    if not (value >= 0 and isfinite(value)):
        raise ConfigError(f"{what} is {value}, expected a finite number of at least 0")
    return 0


cdef inline int finite(int is_finite, str what) except -1:
    if not is_finite:
        raise LearningError(f"{what} is not finite: a gradient or a parameter is NaN, infinite or has run away")
    return 0


def fisher_average(float[::1] fisher, const float[:, ::1] gradients, float weight):
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
    cdef Py_ssize_t n = gradients.shape[0], p = fisher.shape[0]
    cdef const sona_ewc *k = loops()
    cdef float *mean = NULL
    cdef int is_usable
    same(p, gradients.shape[1], "a gradient")
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
            is_usable = k.squarable(&gradients[0, 0], p)
            if is_usable:
                k.fisher(&fisher[0], &gradients[0, 0], p, weight)
        else:
            is_usable = k.mean_square(&gradients[0, 0], n, p, mean)
            if is_usable:
                k.blend(&fisher[0], mean, p, weight)
    free(mean)
    if not is_usable:
        raise LearningError("a gradient is NaN, infinite, or above 1e18: the Fisher is a mean of squares")


def constrain(const float[::1] gradient, const float[::1] theta, const float[::1] stiffness, const float[::1] pull,
              float learning_rate, float[::1] out):
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
    cdef Py_ssize_t p = gradient.shape[0]
    cdef int is_finite
    same(p, theta.shape[0], "theta")
    same(p, stiffness.shape[0], "stiffness")
    same(p, pull.shape[0], "pull")
    same(p, out.shape[0], "out")
    not_negative(learning_rate, "learning rate")
    if p == 0:
        return
    with nogil:
        is_finite = loops().constrain(&gradient[0], &theta[0], &stiffness[0], &pull[0], p, learning_rate, &out[0])
    finite(is_finite, "the constrained gradient")


def proximal(const float[::1] theta, const float[::1] stiffness, const float[::1] pull, float step,
             const float[::1] steps, float[::1] out):
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
    cdef Py_ssize_t p = theta.shape[0]
    cdef const float *each = NULL
    cdef int is_finite
    same(p, stiffness.shape[0], "stiffness")
    same(p, pull.shape[0], "pull")
    same(p, out.shape[0], "out")
    not_negative(step, "step")
    if p == 0:
        return
    if steps is not None:
        same(p, steps.shape[0], "steps")
        each = &steps[0]
    with nogil:
        is_finite = loops().proximal(&theta[0], &stiffness[0], &pull[0], p, step, each, &out[0])
    finite(is_finite, "the result of the proximal step")


def add_drift(const float[::1] fisher, const float[::1] theta, const float[::1] anchor, float weight, float[::1] out):
    """``out += weight * F * (θ - θ*) ** 2``: what each parameter's drift from θ* costs, float32 (p,) all of them.

    Raises
    ------
    InvalidInput, ConfigError
        If lengths or the weight do not fit.
    LearningError
        If the result is not finite.
    """
    cdef Py_ssize_t p = fisher.shape[0]
    cdef int is_finite
    same(p, theta.shape[0], "theta")
    same(p, anchor.shape[0], "anchor")
    same(p, out.shape[0], "out")
    not_negative(weight, "weight")
    if p == 0:
        return
    with nogil:
        is_finite = loops().drift(&fisher[0], &theta[0], &anchor[0], p, weight, &out[0])
    finite(is_finite, "the cost of drift")
