# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Low-rank maps x ↦ s (x A) B, their gradients, and the listwise step of the query adapter."""

from libc.math cimport fabsf, isfinite, sqrt
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc, realloc

cimport numpy as cnp
import numpy as np

from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, LearningError
from sona_pg.kernels._simd cimport float_vector, simd, sona_adam, sona_simd

cnp.import_array()

cdef extern from "listwise.h":
    ctypedef struct sona_listwise:
        Py_ssize_t dim
        Py_ssize_t rank
        float scale
        float temperature
        float **param
        float **moment1
        float **moment2
        float **served

    Py_ssize_t sona_draw(uint64_t seed, Py_ssize_t size, Py_ssize_t n, const int64_t *skip, Py_ssize_t skips,
                         int64_t *drawn) noexcept nogil
    double sona_listwise_step(const sona_simd *simd, const sona_listwise *w, const sona_adam *adam, const float *x,
                              const float *const *candidates, const float *target, Py_ssize_t n,
                              const float *extra, float *work) noexcept nogil


# Longer vectors would overflow the products of weights within a few steps.
cdef float LARGEST_SQUARE = 1e18
MOST_NEGATIVES = 1 << 20
LARGEST_POOL = 1 << 32
# Inputs and gradients that pass together: at most 64 samples, and fewer where they would leave the cache of a core.
cdef Py_ssize_t SAMPLES = 64
cdef Py_ssize_t SAMPLE_FLOATS = 32768


def aligned_zeros(Py_ssize_t rows, Py_ssize_t dim):
    """Zeros of shape (rows, dim), float32, beginning on a cache line."""
    cdef cnp.ndarray raw = np.zeros(rows * dim + 16, dtype=np.float32)
    cdef Py_ssize_t skip = (-(<size_t>cnp.PyArray_DATA(raw)) % 64) // 4
    return raw[skip : skip + rows * dim].reshape(rows, dim)


cdef float **row_pointers(cnp.ndarray block) except NULL:
    """Pointers to the rows of a contiguous (n, d) block; the caller frees them."""
    cdef Py_ssize_t i, n = cnp.PyArray_DIM(block, 0), d = cnp.PyArray_DIM(block, 1)
    cdef float **rows = <float **>malloc(max(n, 1) * sizeof(float *))
    if rows == NULL:
        raise MemoryError
    for i in range(n):
        rows[i] = <float *>cnp.PyArray_DATA(block) + i * d
    return rows


def empty_call(x, out):
    """Does nothing: what any compiled call with these arguments costs."""


def empty_call_views(const float[::1] x, float[::1] out):
    """Does nothing with two typed views: what a compiled call costs that checks its arguments."""


cdef class LowRank:
    """The map x ↦ scale · (x A) B with A (dim, rank) and B (rank, dim).

    `weights` holds the columns of A and then the rows of B, as one float32 block of shape (2 rank, dim). A map that was
    never changed is exactly zero: `forward` leaves the bits of its output alone.

    Parameters
    ----------
    dim, rank
        Numbers of components.
    scale
        Factor of the output.
    """
    cdef readonly Py_ssize_t dim, rank
    cdef readonly cnp.ndarray weights
    cdef float _scale
    cdef bint zero
    cdef float **rows
    cdef float *z

    def __cinit__(self, Py_ssize_t dim, Py_ssize_t rank, float scale=1.0, *args, **kwargs):
        if dim < 1 or rank < 1:
            raise ConfigError(f"dimension {dim} and rank {rank} must be at least 1")
        self.dim, self.rank = dim, rank
        self.set_scale(scale)
        self.weights = aligned_zeros(2 * rank, dim)
        self.rows = row_pointers(self.weights)
        self.z = <float *>malloc(rank * sizeof(float))
        if self.z == NULL:
            raise MemoryError
        self.zero = True

    def __dealloc__(self):
        free(self.rows)
        free(self.z)

    @property
    def scale(self):
        """Factor of the output."""
        return self._scale

    def set_scale(self, float scale):
        """Set the factor of the output; it must be finite."""
        if not isfinite(scale):
            raise ConfigError(f"scale is {scale}, expected a finite number")
        self._scale = scale

    @property
    def is_zero(self):
        """Whether the map is exactly zero, because B is."""
        return bool(self.zero)

    def load(self, weights):
        """Replace all weights by a finite block of shape (2 rank, dim)."""
        block = np.asarray(weights, dtype=np.float32)
        if block.shape != (2 * self.rank, self.dim):
            raise InvalidInput(f"weights have shape {block.shape}, expected {(2 * self.rank, self.dim)}")
        if not np.isfinite(block).all():
            raise InvalidInput("weights hold NaN or infinity: the state they came from is damaged")
        self.weights[...] = block
        self.refresh()

    def refresh(self):
        """Look again whether B is zero, after `weights` was written to."""
        self.zero = not self.weights[self.rank :].any()

    def forward(self, x, out):
        """Add the mapped input to the output: ``out += scale * (x @ A) @ B``.

        Parameters
        ----------
        x
            Vector (dim,); converted to float32 where it is not.
        out
            float32 vector (dim,), contiguous and writeable; changed in place.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If a vector has another dimension, or holds NaN or infinity; `out` is then unchanged.
        """
        cdef cnp.ndarray v = self._input(x)
        cdef float *target = self._output(out)
        cdef const sona_simd *k = simd()
        cdef Py_ssize_t i
        if self.zero:
            if not k.all_finite(<const float *>cnp.PyArray_DATA(v), self.dim):
                raise InvalidInput("input holds NaN or infinity: check what the embedding model returned")
            return
        k.dot_rows(<const float *const *>self.rows, self.rank, <const float *>cnp.PyArray_DATA(v), self.dim, self.z)
        for i in range(self.rank):
            # A NaN or infinity anywhere in the input makes this product NaN or infinite: the check costs no pass.
            if not isfinite(self.z[i]):
                raise InvalidInput("input holds NaN or infinity: check what the embedding model returned")
            self.z[i] *= self._scale
        k.add_rows(<const float *const *>self.rows + self.rank, self.rank, self.z, self.dim, target)

    def forward_batch(self, const float[:, ::1] x, float[:, ::1] out):
        """``out += scale * (x @ A) @ B`` for n rows at once: x and out (n, dim), float32, contiguous."""
        cdef Py_ssize_t row, i, n = x.shape[0]
        cdef const sona_simd *k = simd()
        cdef float *z
        if x.shape[1] != self.dim:
            raise DimensionMismatch(self.dim, x.shape[1], "input")
        if out.shape[1] != self.dim:
            raise DimensionMismatch(self.dim, out.shape[1], "output")
        if out.shape[0] != n:
            raise InvalidInput(f"output has {out.shape[0]} rows, expected {n}")
        if n == 0:
            return
        if not k.all_finite(&x[0, 0], n * self.dim):
            raise InvalidInput("input holds NaN or infinity: check what the embedding model returned")
        if self.zero:
            return
        z = <float *>malloc(self.rank * sizeof(float))
        if z == NULL:
            raise MemoryError
        with nogil:
            for row in range(n):
                k.dot_rows(<const float *const *>self.rows, self.rank, &x[row, 0], self.dim, z)
                for i in range(self.rank):
                    z[i] *= self._scale
                k.add_rows(<const float *const *>self.rows + self.rank, self.rank, z, self.dim, &out[row, 0])
        free(z)

    def backward(self, x, gradient, float[:, ::1] out, float weight=1.0):
        """Add the gradient of the weights, given that of the output.

        ``∂/∂A_k = scale (B_k·g) x`` and ``∂/∂B_k = scale (x·A_k) g`` (Hu et al. 2021), times `weight`.

        Parameters
        ----------
        x, gradient
            Input and gradient at the output, vectors (dim,).
        out
            float32 block (2 rank, dim) in the layout of `weights`; changed in place.
        """
        cdef cnp.ndarray v = float_vector(x, self.dim, "input")
        cdef cnp.ndarray g = float_vector(gradient, self.dim, "gradient")
        cdef const float *xp = <const float *>cnp.PyArray_DATA(v)
        cdef const float *gp = <const float *>cnp.PyArray_DATA(g)
        cdef const sona_simd *k = simd()
        cdef Py_ssize_t i
        cdef float factor, xx, gg
        k.dot_rows(&xp, 1, xp, self.dim, &xx)
        k.dot_rows(&gp, 1, gp, self.dim, &gg)
        if not (xx < LARGEST_SQUARE and gg < LARGEST_SQUARE):
            raise InvalidInput("input or gradient is longer than 1e9: scale the vectors down")
        if out.shape[0] != 2 * self.rank or out.shape[1] != self.dim:
            raise InvalidInput(f"out has shape {(out.shape[0], out.shape[1])}, expected {(2 * self.rank, self.dim)}")
        k.dot_rows(<const float *const *>self.rows + self.rank, self.rank, gp, self.dim, self.z)
        for i in range(self.rank):
            factor = weight * self._scale * self.z[i]
            k.add_rows(&xp, 1, &factor, self.dim, &out[i, 0])
        k.dot_rows(<const float *const *>self.rows, self.rank, xp, self.dim, self.z)
        for i in range(self.rank):
            factor = weight * self._scale * self.z[i]
            k.add_rows(&gp, 1, &factor, self.dim, &out[self.rank + i, 0])

    def backward_batch(self, const float[:, ::1] x, const float[:, ::1] gradient, float[:, ::1] out, float weight=1.0,
                       bint up_only=False):
        """Add the gradient of the weights over n samples, given those of the output: `backward` for rows at once.

        ``∂/∂A = scale (G Bᵀ)ᵀ X`` and ``∂/∂B = scale (X A)ᵀ G``, times `weight`.

        Parameters
        ----------
        x, gradient
            Inputs and gradients at the output, float32 (n, dim), contiguous.
        out
            float32 block (2 rank, dim) in the layout of `weights`; changed in place.
        up_only
            Whether A is frozen: `out` is then (rank, dim), the gradient of B.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If a shape does not fit, or a row holds NaN or is longer than 1e9; `out` is then unchanged.
        """
        self._accumulate(x, gradient, out, weight, up_only, False)

    def fisher_batch(self, const float[:, ::1] x, const float[:, ::1] gradient, float[:, ::1] out, float weight=1.0,
                     bint up_only=False):
        """Add the squares of the gradients of single samples: the diagonal of the empirical Fisher information.

        A sample's gradient is an outer product, so its squares are one too, and their sum is ``scale² ((G Bᵀ)²)ᵀ X²``
        and ``scale² ((X A)²)ᵀ G²``. Arguments and errors as of `backward_batch`; `weight` multiplies the squares.
        """
        self._accumulate(x, gradient, out, weight, up_only, True)

    cdef int _accumulate(self, const float[:, ::1] x, const float[:, ::1] gradient, float[:, ::1] out, float weight,
                         bint up_only, bint squares) except -1:
        cdef Py_ssize_t n = x.shape[0], d = self.dim, r = self.rank, begin, count, i
        cdef Py_ssize_t expected = r if up_only else 2 * r, block = max(8, min(SAMPLES, SAMPLE_FLOATS // d))
        cdef const sona_simd *k = simd()
        cdef const float *row
        cdef float square
        if x.shape[1] != d:
            raise DimensionMismatch(d, x.shape[1], "input")
        if gradient.shape[1] != d:
            raise DimensionMismatch(d, gradient.shape[1], "gradient")
        if gradient.shape[0] != n:
            raise InvalidInput(f"gradient has {gradient.shape[0]} rows, expected {n}")
        if out.shape[0] != expected or out.shape[1] != d:
            raise InvalidInput(f"out has shape {(out.shape[0], out.shape[1])}, expected {(expected, d)}")
        for i in range(2 * n):
            row = &x[i, 0] if i < n else &gradient[i - n, 0]
            k.dot_rows(&row, 1, row, d, &square)
            if not square < LARGEST_SQUARE:
                raise InvalidInput("an input or gradient holds NaN, or is longer than 1e9: scale the vectors down")
        cdef const float **samples = <const float **>malloc((2 * block + 2 * r) * sizeof(void *))
        cdef float *z = <float *>malloc(2 * block * r * sizeof(float))
        if samples == NULL or z == NULL:
            free(samples)
            free(z)
            raise MemoryError
        cdef float **sums = <float **>(samples + 2 * block)
        for i in range(expected):
            sums[i] = &out[i, 0]
        with nogil:
            begin = 0
            while begin < n:
                count = min(block, n - begin)
                # X A goes with the gradients, and G Bᵀ with the inputs.
                for i in range(count):
                    samples[i] = &gradient[begin + i, 0]
                    samples[count + i] = &x[begin + i, 0]
                    k.dot_rows(<const float *const *>self.rows, r, samples[count + i], d, z + i * r)
                    if not up_only:
                        k.dot_rows(<const float *const *>self.rows + r, r, samples[i], d, z + (count + i) * r)
                for i in range(count * expected):
                    z[i] *= self._scale
                    z[i] *= weight * z[i] if squares else weight
                for i in range(expected // r):
                    (k.add_squares if squares else k.add_outer)(samples + i * count, count, z + i * count * r, r, d,
                                                                sums + expected - (i + 1) * r)
                begin += count
        free(samples)
        free(z)
        return 0

    def add(self, float[:, ::1] step, float factor):
        """``weights += factor * step`` for a block (2 rank, dim)."""
        cdef const float *row
        cdef float weight = factor
        if step.shape[0] != 2 * self.rank or step.shape[1] != self.dim:
            raise InvalidInput(f"step has shape {(step.shape[0], step.shape[1])}, expected {(2 * self.rank, self.dim)}")
        row = &step[0, 0]
        simd().add_rows(&row, 1, &weight, 2 * self.rank * self.dim, self.rows[0])
        if self.zero:
            self.refresh()

    cdef inline cnp.ndarray _input(self, object x):
        if cnp.PyArray_CheckExact(x) and cnp.PyArray_TYPE(<cnp.ndarray>x) == cnp.NPY_FLOAT32 \
                and cnp.PyArray_NDIM(<cnp.ndarray>x) == 1 and cnp.PyArray_DIM(<cnp.ndarray>x, 0) == self.dim \
                and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>x):
            return <cnp.ndarray>x
        return float_vector(x, self.dim, "input")

    cdef inline float *_output(self, object out) except NULL:
        if not (cnp.PyArray_Check(out) and cnp.PyArray_TYPE(<cnp.ndarray>out) == cnp.NPY_FLOAT32
                and cnp.PyArray_NDIM(<cnp.ndarray>out) == 1 and cnp.PyArray_ISCARRAY(<cnp.ndarray>out)):
            raise InvalidInput("output must be a contiguous, writeable float32 vector: it is changed in place")
        if cnp.PyArray_DIM(<cnp.ndarray>out, 0) != self.dim:
            raise DimensionMismatch(self.dim, cnp.PyArray_DIM(<cnp.ndarray>out, 0), "output")
        return <float *>cnp.PyArray_DATA(<cnp.ndarray>out)


cdef class ListwiseTrainer:
    """Trains a low-rank map by one Adam step per judged list, and keeps the moving average that is served.

    Parameters
    ----------
    trained, served
        The map that is trained, and the one that holds the average of its weights; changed in place.
    temperature
        τ of the softmax over cosines.
    beta1, beta2, epsilon
        Adam's constants (Kingma & Ba 2015).
    """
    cdef readonly LowRank trained, served
    cdef readonly cnp.ndarray moment1, moment2
    cdef public Py_ssize_t steps
    cdef readonly float temperature, beta1, beta2, epsilon
    cdef float **m
    cdef float **v
    cdef void *scratch
    cdef size_t scratch_bytes
    cdef bint busy

    def __cinit__(self, LowRank trained not None, LowRank served not None, float temperature, float beta1, float beta2,
                  float epsilon):
        if (served.dim, served.rank) != (trained.dim, trained.rank):
            raise ConfigError("the trained and the served map differ in dimension or rank")
        if not (temperature > 0 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and epsilon > 0 and isfinite(temperature)):
            raise ConfigError(
                f"temperature {temperature}, beta1 {beta1}, beta2 {beta2}, epsilon {epsilon}: "
                "expected above 0, 0 to below 1, 0 to below 1, above 0"
            )
        self.trained, self.served = trained, served
        self.temperature, self.beta1, self.beta2, self.epsilon = temperature, beta1, beta2, epsilon
        self.moment1 = aligned_zeros(2 * trained.rank, trained.dim)
        self.moment2 = aligned_zeros(2 * trained.rank, trained.dim)
        self.m, self.v = row_pointers(self.moment1), row_pointers(self.moment2)
        self.steps = 0

    def __dealloc__(self):
        free(self.m)
        free(self.v)
        free(self.scratch)

    cdef int _reserve(self, size_t needed) except -1:
        cdef void *grown
        if needed > self.scratch_bytes:
            grown = realloc(self.scratch, needed)
            if grown == NULL:
                raise MemoryError
            self.scratch, self.scratch_bytes = grown, needed
        return 0

    def step(self, x, list items not None, list targets not None, const float[:, ::1] pool,
             const int64_t[::1] skip, uint64_t seed, Py_ssize_t negatives, float learning_rate, float average,
             const float[:, ::1] extra=None):
        """One step on one list: `items` with their target weights, and random rows of `pool` as negatives.

        Parameters
        ----------
        x
            Query, vector (dim,).
        items, targets
            Vectors (dim,) that were judged, and non-negative weights, not all zero; they are scaled to sum to 1.
        pool
            float32 (n, dim), may be empty; rows in `skip` are not drawn.
        seed, negatives
            Randomness of the draw, and how many rows to draw.
        learning_rate, average
            Adam's step size; weight of the old value in the served average.
        extra
            Gradient of what else is part of the loss, float32 (2 rank, dim) in the layout of `LowRank.weights`.

        Returns
        -------
        float
            The loss of the list before the step, in nats.

        Raises
        ------
        LearningError
            If the loss or a gradient is out of range, or another thread is training; nothing was changed.
        """
        cdef Py_ssize_t i, count, n, d = self.trained.dim, r = self.trained.rank
        cdef cnp.ndarray query = float_vector(x, d, "query")
        cdef list kept = [float_vector(item, d, "item") for item in items]
        cdef list wanted = [float(value) for value in targets]
        cdef double total = 0
        cdef const float *pool_rows = NULL
        cdef const int64_t *skip_rows = NULL
        cdef const float *extra_rows = NULL
        cdef sona_listwise w
        cdef sona_adam adam
        cdef double loss
        n = len(kept)
        if len(wanted) != n or n == 0:
            raise InvalidInput(f"{n} items with {len(wanted)} targets: one target for each, and at least one item")
        if pool.shape[0] and pool.shape[1] != d:
            raise DimensionMismatch(d, pool.shape[1], "pool")
        if not 0 <= negatives <= MOST_NEGATIVES or pool.shape[0] > LARGEST_POOL:
            raise ConfigError(
                f"{negatives} negatives of a pool of {pool.shape[0]}, expected at most {MOST_NEGATIVES} of {LARGEST_POOL}"
            )
        if not (0 <= learning_rate and isfinite(learning_rate) and 0 <= average <= 1):
            raise ConfigError(f"learning rate {learning_rate}, average {average}: expected at least 0, and 0 to 1")
        if extra is not None:
            if extra.shape[0] != 2 * r or extra.shape[1] != d:
                raise InvalidInput(f"extra has shape {(extra.shape[0], extra.shape[1])}, expected {(2 * r, d)}")
            extra_rows = &extra[0, 0]
        if self.busy:
            raise LearningError("the adapter is being trained by another thread: one at a time")
        cdef Py_ssize_t most = n + negatives
        self._reserve(most * (sizeof(void *) + sizeof(int64_t) + 2 * sizeof(float)) + (2 * d + 2 * r) * sizeof(float))
        cdef const float **candidates = <const float **>self.scratch
        cdef int64_t *drawn = <int64_t *>(candidates + most)
        cdef float *target = <float *>(drawn + most)
        cdef float *work = target + most
        for i in range(n):
            candidates[i] = <const float *>cnp.PyArray_DATA(<cnp.ndarray>kept[i])
            target[i] = <float><double>wanted[i]
            if not target[i] >= 0 or not isfinite(target[i]):
                raise InvalidInput(f"target {wanted[i]}, expected a finite number of at least 0")
            total += target[i]
        if not total > 0 or not isfinite(total):
            raise InvalidInput("the targets sum to nothing: a list without anything helpful teaches nothing")
        count = n
        if pool.shape[0] and negatives:
            pool_rows = &pool[0, 0]
            skip_rows = &skip[0] if skip.shape[0] else NULL
            count += sona_draw(seed, pool.shape[0], negatives, skip_rows, skip.shape[0], drawn)
        for i in range(n):
            target[i] = <float>(target[i] / total)
        for i in range(n, count):
            candidates[i] = pool_rows + drawn[i - n] * d
            target[i] = 0
        w.dim, w.rank, w.scale, w.temperature = d, r, self.trained._scale, self.temperature
        w.param, w.moment1, w.moment2, w.served = self.trained.rows, self.m, self.v, self.served.rows
        cdef double t = self.steps + 1
        adam.beta1, adam.beta2, adam.epsilon = self.beta1, self.beta2, self.epsilon
        adam.step = <float>(learning_rate / (1 - (<double>self.beta1) ** t))
        adam.inv_sqrt_c2 = <float>(1 / sqrt(1 - (<double>self.beta2) ** t))
        adam.average = <float>(1 - <double>average)
        self.busy = True
        with nogil:
            loss = sona_listwise_step(simd(), &w, &adam, <const float *>cnp.PyArray_DATA(query), candidates, target,
                                      count, extra_rows, work)
        self.busy = False
        if loss < 0:
            raise LearningError("the loss is not finite, or its gradient out of range: the query is the zero vector, or the weights have run away")
        self.steps += 1
        self.trained.zero = self.served.zero = False
        return loss


def draw(uint64_t seed, Py_ssize_t size, Py_ssize_t n, const int64_t[::1] skip):
    """Up to n distinct rows of a pool of `size`, none of them in `skip`: the negatives that `step` uses."""
    if not 0 <= n <= MOST_NEGATIVES or not 0 <= size <= LARGEST_POOL:
        raise ConfigError(f"{n} rows of a pool of {size}, expected at most {MOST_NEGATIVES} of {LARGEST_POOL}")
    cdef cnp.ndarray drawn = np.empty(n, dtype=np.int64)
    cdef Py_ssize_t count = 0
    if n and size:
        count = sona_draw(seed, size, n, &skip[0] if skip.shape[0] else NULL, skip.shape[0],
                          <int64_t *>cnp.PyArray_DATA(drawn))
    return drawn[:count]
