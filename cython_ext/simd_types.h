/* The vector primitives that every kernel is made of; simd.h implements them for each instruction set.
 *
 * All work on float32. Row arguments are arrays of pointers, so that candidates are read where they lie instead of
 * being gathered first.
 */
#ifndef SONA_SIMD_TYPES_H
#define SONA_SIMD_TYPES_H

#include <stddef.h>

/* Kingma & Ba 2015 with the bias corrections folded into the two factors, and the moving average that is served. */
typedef struct {
    float beta1, beta2;
    float step;        /* learning rate / (1 - beta1^t) */
    float inv_sqrt_c2; /* 1 / sqrt(1 - beta2^t) */
    float epsilon;
    float average; /* weight of the new value in the served average */
} sona_adam;

typedef struct {
    const char *name;
    /* out[i] = rows[i] . x */
    void (*dot_rows)(const float *const *rows, ptrdiff_t n, const float *x, ptrdiff_t d, float *out);
    /* out += sum_i weight[i] * rows[i] */
    void (*add_rows)(const float *const *rows, ptrdiff_t n, const float *weight, ptrdiff_t d, float *out);
    /* One Adam step for a row whose gradient is c * direction. */
    void (*adam_row)(float *param, float *m, float *v, float *served, const float *direction, float c, ptrdiff_t d,
                     const sona_adam *adam);
    /* 1 if no element is NaN or infinite */
    int (*all_finite)(const float *x, ptrdiff_t n);
    /* out[i, c] = rows[i] . centroid c, for the centroids of `count` panels (panels.h) */
    void (*panel_scores)(const float *const *rows, ptrdiff_t n, const float *panels, ptrdiff_t count, ptrdiff_t d,
                         float *out);
    /* dot_rows with the same bits on every instruction set */
    void (*steady_dots)(const float *const *rows, ptrdiff_t n, const float *x, ptrdiff_t d, float *out);
    /* out[c] += sum_i weight[i, c] * rows[i] for `count` rows of out, and the same of the squares of rows (outer.h) */
    void (*add_outer)(const float *const *rows, ptrdiff_t n, const float *weight, ptrdiff_t count, ptrdiff_t d,
                      float *const *out);
    void (*add_squares)(const float *const *rows, ptrdiff_t n, const float *weight, ptrdiff_t count, ptrdiff_t d,
                        float *const *out);
} sona_simd;

#endif
