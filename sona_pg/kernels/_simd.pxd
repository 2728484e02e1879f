cdef extern from "simd_types.h":
    ctypedef struct sona_adam:
        float beta1
        float beta2
        float step
        float inv_sqrt_c2
        float epsilon
        float average

    ctypedef struct sona_simd:
        const char *name
        void (*dot_rows)(const float *const *rows, Py_ssize_t n, const float *x, Py_ssize_t d, float *out) noexcept nogil
        void (*add_rows)(const float *const *rows, Py_ssize_t n, const float *weight, Py_ssize_t d, float *out) noexcept nogil
        int (*all_finite)(const float *x, Py_ssize_t n) noexcept nogil
        void (*panel_scores)(const float *const *rows, Py_ssize_t n, const float *panels, Py_ssize_t count, Py_ssize_t d,
                             float *out) noexcept nogil
        void (*steady_dots)(const float *const *rows, Py_ssize_t n, const float *x, Py_ssize_t d, float *out) noexcept nogil
        void (*add_outer)(const float *const *rows, Py_ssize_t n, const float *weight, Py_ssize_t count, Py_ssize_t d,
                          float *const *out) noexcept nogil
        void (*add_squares)(const float *const *rows, Py_ssize_t n, const float *weight, Py_ssize_t count, Py_ssize_t d,
                            float *const *out) noexcept nogil

cdef const sona_simd *simd() noexcept nogil
cdef object float_vector(object value, Py_ssize_t dim, str what)
