/* The listwise step: one exact gradient step of a low-rank query adapter on one judged list.
 *
 *   u = x + s (x A) B,  û = u / |u|,  p = softmax(C û / τ),  loss = -Σ t_i log p_i
 *
 * Back-propagated through the normalisation (Cao et al. 2007, ListNet's top-one loss):
 *
 *   ∂loss/∂û = Cᵀ(p - t) / τ,  g = ∂loss/∂u = (∂û - (∂û·û) û) / |u|
 *   ∂/∂B_k = s (x·A_k) g,      ∂/∂A_k = s (B_k·g) x
 *
 * What else is part of the loss comes as its gradient, `extra`.
 */
#ifndef SONA_LISTWISE_H
#define SONA_LISTWISE_H

#include "simd_types.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    ptrdiff_t dim, rank;
    float scale, temperature;
    /* rank rows of A followed by rank rows of B, each of `dim` floats */
    float *const *param;
    float *const *moment1;
    float *const *moment2;
    float *const *served;
} sona_listwise;

/* Draws up to n distinct rows of a pool of `size` that are not in `skip`; returns how many.
 * splitmix64 (Steele et al. 2014): the same seed gives the same rows on every machine. */
static ptrdiff_t sona_draw(uint64_t seed, ptrdiff_t size, ptrdiff_t n, const int64_t *skip /* IN */, ptrdiff_t skips,
                           int64_t *drawn /* OUT, n */) {
    ptrdiff_t count = 0;
    for (ptrdiff_t draw = 0; draw < n; draw++) {
        uint64_t z = (seed += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        const int64_t row = (int64_t)(((z >> 32) * (uint64_t)size) >> 32);
        int seen = 0;
        for (ptrdiff_t i = 0; i < skips && !seen; i++) seen = skip[i] == row;
        for (ptrdiff_t i = 0; i < count && !seen; i++) seen = drawn[i] == row;
        if (!seen) drawn[count++] = row;
    }
    return count;
}

/* Squares of gradients above this would overflow the second moments for good. */
#define SONA_LARGEST_SQUARE 1e30f

/* Returns the loss, or a negative number (and changes nothing) if it or a gradient is out of range. */
static double sona_listwise_step(const sona_simd *simd, const sona_listwise *w, const sona_adam *adam,
                                 const float *x /* IN, dim */, const float *const *candidates /* IN, n rows */,
                                 const float *target /* IN, n, sums to 1 */, ptrdiff_t n,
                                 const float *extra /* IN, 2 rank rows of dim, or NULL */,
                                 float *work /* 2 dim + n + 2 rank */) {
    const ptrdiff_t d = w->dim, r = w->rank;
    float *u = work, *g = u + d, *p = g + d, *z = p + n, *back = z + r;
    const float *const *A = (const float *const *)w->param, *const *B = A + r;

    simd->dot_rows(A, r, x, d, z);
    for (ptrdiff_t k = 0; k < r; k++) z[k] *= w->scale;
    memcpy(u, x, (size_t)d * sizeof *u);
    simd->add_rows(B, r, z, d, u);

    float norm;
    const float *self = u;
    simd->dot_rows(&self, 1, u, d, &norm);
    norm = sqrtf(norm);
    if (!(norm > 0) || !isfinite(norm)) return -1;
    for (ptrdiff_t j = 0; j < d; j++) u[j] /= norm;

    simd->dot_rows(candidates, n, u, d, p);
    float top = p[0];
    for (ptrdiff_t i = 1; i < n; i++) top = p[i] > top ? p[i] : top;
    double sum = 0, loss = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const float score = (p[i] - top) / w->temperature;
        loss -= (double)target[i] * score;
        sum += p[i] = expf(score);
    }
    loss += log(sum);
    if (!isfinite(loss)) return -1;
    for (ptrdiff_t i = 0; i < n; i++) p[i] = (p[i] / (float)sum - target[i]) / w->temperature;

    memset(g, 0, (size_t)d * sizeof *g);
    simd->add_rows(candidates, n, p, d, g);
    float along;
    const float *gradient = g;
    simd->dot_rows(&gradient, 1, u, d, &along);
    for (ptrdiff_t j = 0; j < d; j++) g[j] = (g[j] - along * u[j]) / norm;

    /* Both factors step from the same point: B·g is taken before B moves. */
    simd->dot_rows(B, r, g, d, back);
    float gg, xx;
    simd->dot_rows(&gradient, 1, g, d, &gg);
    simd->dot_rows(&x, 1, x, d, &xx);
    for (ptrdiff_t k = 0; k < r; k++) {
        const float of_up = z[k] * z[k] * gg, of_down = w->scale * w->scale * back[k] * back[k] * xx;
        if (!(of_up < SONA_LARGEST_SQUARE && of_down < SONA_LARGEST_SQUARE)) return -1;
    }
    for (ptrdiff_t k = 0; extra && k < 2 * r; k++) {
        const float *row = extra + k * d;
        float square;
        simd->dot_rows(&row, 1, row, d, &square);
        if (!(square < SONA_LARGEST_SQUARE)) return -1;
    }
    for (ptrdiff_t k = 0; k < 2 * r; k++) {
        /* Of A and of B: the gradient is this direction times this factor. */
        const float *direction = k < r ? x : g;
        float factor = k < r ? w->scale * back[k] : z[k - r];
        if (extra) {
            memcpy(u, extra + k * d, (size_t)d * sizeof *u); /* u is not needed any more */
            simd->add_rows(&direction, 1, &factor, d, u);
            direction = u;
            factor = 1;
        }
        simd->adam_row(w->param[k], w->moment1[k], w->moment2[k], w->served[k], direction, factor, d, adam);
    }
    return loss;
}

#endif
