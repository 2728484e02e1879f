/* Spherical k-means (Dhillon & Modha 2001) by Lloyd's steps (1982), seeded by greedy k-means++ (Arthur & Vassilvitskii
 * 2007, the better of 2 + ln k candidates).
 *
 *   label_i = argmax_c x_i . m_c,   m_c = Σ x_i / |Σ x_i| over its rows,   objective = Σ (1 - x_i . m_label)
 *
 * Rows and centroids have unit length, so that |x - m|² = 2 (1 - x . m). What is decided is the same on every
 * instruction set: near ties of the fast sums are decided by the steady ones, and sums are of doubles in one order.
 */
#ifndef SONA_KMEANS_H
#define SONA_KMEANS_H

#include "simd_types.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#define SONA_PANEL_LANES 16
/* Rows whose products with all centroids are kept before the best is looked for. */
#define SONA_ROWS_AT_ONCE 24
/* Squared distance of rows that are the same but for rounding. */
#define SONA_SAME 1e-5

static ptrdiff_t sona_panels(ptrdiff_t k) { return (k + SONA_PANEL_LANES - 1) / SONA_PANEL_LANES; }

/* Centroids (k, d) as panels; lanes without a centroid are zero. */
static void sona_pack_panels(const float *centroids /* IN */, ptrdiff_t k, ptrdiff_t d, float *panels /* OUT */) {
    memset(panels, 0, (size_t)(sona_panels(k) * SONA_PANEL_LANES * d) * sizeof(float));
    for (ptrdiff_t c = 0; c < k; c++) {
        float *to = panels + (c / SONA_PANEL_LANES) * d * SONA_PANEL_LANES + c % SONA_PANEL_LANES;
        for (ptrdiff_t j = 0; j < d; j++) to[j * SONA_PANEL_LANES] = centroids[c * d + j];
    }
}

/* The nearest of k centroids to a row, of scores that may each be wrong by half a margin; its steady score. */
static int64_t sona_best(const sona_simd *simd, const float *row, const float *scores, const float *centroids,
                         ptrdiff_t k, ptrdiff_t d, float margin, float *steady) {
    float most[SONA_PANEL_LANES];
    ptrdiff_t c = 0;
    for (int lane = 0; lane < SONA_PANEL_LANES; lane++) most[lane] = scores[0];
    for (; c + SONA_PANEL_LANES <= k; c += SONA_PANEL_LANES)
        for (int lane = 0; lane < SONA_PANEL_LANES; lane++)
            most[lane] = scores[c + lane] > most[lane] ? scores[c + lane] : most[lane];
    for (; c < k; c++) most[0] = scores[c] > most[0] ? scores[c] : most[0];
    for (int width = SONA_PANEL_LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; lane++) most[lane] = most[lane + width] > most[lane] ? most[lane + width] : most[lane];
    const float least = most[0] - margin;
    int64_t best = -1;
    for (c = 0; c < k; c++) {
        if (scores[c] < least) continue;
        float own;
        const float *centroid = centroids + c * d;
        simd->steady_dots(&centroid, 1, row, d, &own);
        if (best < 0 || own > *steady) best = c, *steady = own;
    }
    return best;
}

/* The nearest centroid of each row, the first of equal ones, and its cosine. */
static void sona_assign(const sona_simd *simd, const float *const *rows /* IN, n */, ptrdiff_t n,
                        const float *centroids /* IN, k x d */, const float *panels /* IN */, ptrdiff_t k, ptrdiff_t d,
                        int64_t *labels /* OUT, n */, float *scores /* OUT, n */,
                        float *work /* SONA_ROWS_AT_ONCE x panels x SONA_PANEL_LANES */) {
    const ptrdiff_t count = sona_panels(k), stride = count * SONA_PANEL_LANES;
    /* A sum of d products of unit vectors is wrong by d eps / 2 at most (Higham 2002, 3.1). */
    const float margin = 1.2e-7f * (float)(d + 16);
    for (ptrdiff_t i = 0; i < n; i += SONA_ROWS_AT_ONCE) {
        const ptrdiff_t some = n - i < SONA_ROWS_AT_ONCE ? n - i : SONA_ROWS_AT_ONCE;
        simd->panel_scores(rows + i, some, panels, count, d, work);
        for (ptrdiff_t r = 0; r < some; r++)
            labels[i + r] = sona_best(simd, rows[i + r], work + r * stride, centroids, k, d, margin, scores + i + r);
    }
}

static void sona_add_row(double *sum /* INOUT, d */, const float *row, ptrdiff_t d, double sign) {
    for (ptrdiff_t j = 0; j < d; j++) sum[j] += sign * (double)row[j];
}

/* Brings sums and counts (k) from the labels `before` (-1 for none) to those of now; how many rows changed theirs. */
static ptrdiff_t sona_move_rows(const float *const *rows, ptrdiff_t n, ptrdiff_t d, int64_t *before /* INOUT, n */,
                                const int64_t *labels /* IN, n */, double *sums /* INOUT, k x d */,
                                int64_t *counts /* INOUT, k */) {
    ptrdiff_t moved = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        if (before[i] == labels[i]) continue;
        if (before[i] >= 0) {
            sona_add_row(sums + before[i] * d, rows[i], d, -1);
            counts[before[i]]--;
        }
        sona_add_row(sums + labels[i] * d, rows[i], d, 1);
        counts[labels[i]]++;
        before[i] = labels[i];
        moved++;
    }
    return moved;
}

/* Gives each empty cluster the row that is furthest from its own centroid, of a cluster that has others. */
static void sona_fill_empty(const float *const *rows, ptrdiff_t n, ptrdiff_t k, ptrdiff_t d, int64_t *labels /* INOUT */,
                            float *scores /* INOUT */, double *sums /* INOUT */, int64_t *counts /* INOUT */) {
    for (ptrdiff_t c = 0; c < k; c++) {
        if (counts[c]) continue;
        ptrdiff_t furthest = -1;
        for (ptrdiff_t i = 0; i < n; i++)
            if (counts[labels[i]] > 1 && 2 - 2 * (double)scores[i] > SONA_SAME &&
                (furthest < 0 || scores[i] < scores[furthest]))
                furthest = i;
        if (furthest < 0) return;
        sona_add_row(sums + labels[furthest] * d, rows[furthest], d, -1);
        counts[labels[furthest]]--;
        memset(sums + c * d, 0, (size_t)d * sizeof(double));
        sona_add_row(sums + c * d, rows[furthest], d, 1);
        counts[c] = 1;
        labels[furthest] = c;
        scores[furthest] = 1;
    }
}

/* Centroids as the directions of the sums; where a sum has none (no rows, or they cancel) the centroid stays. */
static void sona_centroids(const double *sums /* IN, k x d */, const int64_t *counts /* IN */, ptrdiff_t k, ptrdiff_t d,
                           float *centroids /* INOUT, k x d */) {
    for (ptrdiff_t c = 0; c < k; c++) {
        const double *sum = sums + c * d;
        double square = 0;
        for (ptrdiff_t j = 0; j < d; j++) square += sum[j] * sum[j];
        if (counts[c] == 0 || square < 1e-10 * (double)counts[c]) continue;
        const double length = sqrt(square);
        for (ptrdiff_t j = 0; j < d; j++) centroids[c * d + j] = (float)(sum[j] / length);
    }
}

/* ---- seeding --------------------------------------------------------------------------------------------------- */

/* A number from 0 to 1 by splitmix64 (Steele et al. 2014). */
static double sona_uniform(uint64_t *seed) {
    uint64_t z = (*seed += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (double)(z >> 11) * 0x1p-53;
}

/* Squared distance of unit vectors with this product; that of the same vector is 0 whatever was rounded. */
static float sona_square_distance(float product) {
    const float square = 2 - 2 * product;
    return square > SONA_SAME ? square : 0;
}

/* Brings the squared distances of rows to their nearest centroid up to one more centroid; their sum. */
static double sona_closer(const sona_simd *simd, const float *const *rows, ptrdiff_t n, ptrdiff_t d,
                          const float *centroid, float *closest /* INOUT, n */) {
    float dots[64];
    double potential = 0;
    for (ptrdiff_t i = 0; i < n; i += 64) {
        const ptrdiff_t some = n - i < 64 ? n - i : 64;
        simd->steady_dots(rows + i, some, centroid, d, dots);
        for (ptrdiff_t r = 0; r < some; r++) {
            const float square = sona_square_distance(dots[r]);
            if (square < closest[i + r]) closest[i + r] = square;
            potential += (double)closest[i + r];
        }
    }
    return potential;
}

/* One centroid more: of `tries` rows drawn with probability ∝ closest, the one that leaves the least potential.
 * Returns the row, -1 if every row lies on a centroid. */
static ptrdiff_t sona_seed_one(const sona_simd *simd, const float *const *rows, ptrdiff_t n, ptrdiff_t d,
                               ptrdiff_t tries /* up to 64 */, uint64_t *seed, float *closest /* INOUT, n */,
                               double *potential /* INOUT */, float *work /* tries x n */) {
    ptrdiff_t drawn[64];
    const float *candidates[64];
    double at[64], left[64];
    float dots[64];
    if (!(*potential > 0)) return -1;
    for (ptrdiff_t t = 0; t < tries; t++) at[t] = sona_uniform(seed) * *potential, drawn[t] = -1, left[t] = 0;
    double sum = 0;
    ptrdiff_t last = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        if (closest[i] <= 0) continue;
        sum += (double)closest[i];
        last = i;
        for (ptrdiff_t t = 0; t < tries; t++)
            if (drawn[t] < 0 && at[t] < sum) drawn[t] = i;
    }
    for (ptrdiff_t t = 0; t < tries; t++) {
        if (drawn[t] < 0) drawn[t] = last;
        candidates[t] = rows[drawn[t]];
    }
    for (ptrdiff_t i = 0; i < n; i++) {
        simd->steady_dots(candidates, tries, rows[i], d, dots);
        for (ptrdiff_t t = 0; t < tries; t++) {
            const float square = sona_square_distance(dots[t]);
            const float now = square < closest[i] ? square : closest[i];
            work[i * tries + t] = now;
            left[t] += (double)now;
        }
    }
    ptrdiff_t best = 0;
    for (ptrdiff_t t = 1; t < tries; t++)
        if (left[t] < left[best]) best = t;
    for (ptrdiff_t i = 0; i < n; i++) closest[i] = work[i * tries + best];
    *potential = left[best];
    return drawn[best];
}

#endif
