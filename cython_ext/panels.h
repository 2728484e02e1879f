/* Products of many rows with many centroids, for every instruction set; simd.h chooses.
 *
 * Centroids lie in panels of 16: panel p holds component j of its 16 centroids at (p d + j) 16. Every lane sums on its
 * own, so no sum crosses lanes, and a component of a row is read once for all centroids of up to four panels.
 *
 * `steady_dots` is the same to the last bit on every instruction set: 16 partial sums, a product rounded before it is
 * added (-std=c11 contracts nothing), and one order in which the 16 are added. It decides what the faster sums cannot.
 */
#ifndef SONA_PANELS_H
#define SONA_PANELS_H

#include <stddef.h>

#define SONA_LANES 16

/* ---- scalar --------------------------------------------------------------------------------------------------- */

static void panel_scores_scalar(const float *const *rows, ptrdiff_t n, const float *panels, ptrdiff_t count,
                                ptrdiff_t d, float *out) {
    for (ptrdiff_t i = 0; i < n; i++)
        for (ptrdiff_t p = 0; p < count; p++) {
            const float *panel = panels + p * d * SONA_LANES;
            float sum[SONA_LANES] = {0};
            for (ptrdiff_t j = 0; j < d; j++)
                for (int lane = 0; lane < SONA_LANES; lane++) sum[lane] += rows[i][j] * panel[j * SONA_LANES + lane];
            for (int lane = 0; lane < SONA_LANES; lane++) out[(i * count + p) * SONA_LANES + lane] = sum[lane];
        }
}

static void steady_dots_scalar(const float *const *rows, ptrdiff_t n, const float *x, ptrdiff_t d, float *out) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const float *row = rows[i];
        float sum[SONA_LANES] = {0};
        ptrdiff_t j = 0;
        for (; j + SONA_LANES <= d; j += SONA_LANES)
            for (int lane = 0; lane < SONA_LANES; lane++) sum[lane] += row[j + lane] * x[j + lane];
        for (int lane = 0; j + lane < d; lane++) sum[lane] += row[j + lane] * x[j + lane];
        for (int width = SONA_LANES / 2; width; width /= 2)
            for (int lane = 0; lane < width; lane++) sum[lane] += sum[lane + width];
        out[i] = sum[0];
    }
}

#ifdef SONA_X86
/* ---- AVX2 ------------------------------------------------------------------------------------------------------ */

/* `rows` and `registers` are known at compile time: 6 x 2 sums stay in registers. */
SONA_AVX2 SONA_INLINE void panel_block_avx2(const float *const *row, const int rows, const float *panel, ptrdiff_t d,
                                            float *out, ptrdiff_t stride) {
    __m256 sum[6][2];
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    for (ptrdiff_t j = 0; j < d; j++) {
        const __m256 c0 = _mm256_loadu_ps(panel + j * SONA_LANES), c1 = _mm256_loadu_ps(panel + j * SONA_LANES + 8);
        for (int i = 0; i < rows; i++) {
            const __m256 x = _mm256_broadcast_ss(row[i] + j);
            sum[i][0] = _mm256_fmadd_ps(x, c0, sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(x, c1, sum[i][1]);
        }
    }
    for (int i = 0; i < rows; i++) {
        _mm256_storeu_ps(out + i * stride, sum[i][0]);
        _mm256_storeu_ps(out + i * stride + 8, sum[i][1]);
    }
}

SONA_AVX2 static void panel_scores_avx2(const float *const *rows, ptrdiff_t n, const float *panels, ptrdiff_t count,
                                        ptrdiff_t d, float *out) {
    const ptrdiff_t stride = count * SONA_LANES;
    for (ptrdiff_t p = 0; p < count; p++) {
        const float *panel = panels + p * d * SONA_LANES;
        float *to = out + p * SONA_LANES;
        ptrdiff_t i = 0;
        for (; i + 6 <= n; i += 6) panel_block_avx2(rows + i, 6, panel, d, to + i * stride, stride);
        for (; i + 3 <= n; i += 3) panel_block_avx2(rows + i, 3, panel, d, to + i * stride, stride);
        for (; i < n; i++) panel_block_avx2(rows + i, 1, panel, d, to + i * stride, stride);
    }
}

SONA_AVX2 SONA_INLINE void steady_block_avx2(const float *const *row, const int rows, const float *x, ptrdiff_t d,
                                             float *out) {
    __m256 low[6], high[6];
    for (int i = 0; i < rows; i++) low[i] = high[i] = _mm256_setzero_ps();
    ptrdiff_t j = 0;
    for (; j + 16 <= d; j += 16) {
        const __m256 x0 = _mm256_loadu_ps(x + j), x1 = _mm256_loadu_ps(x + j + 8);
        for (int i = 0; i < rows; i++) {
            low[i] = _mm256_add_ps(low[i], _mm256_mul_ps(_mm256_loadu_ps(row[i] + j), x0));
            high[i] = _mm256_add_ps(high[i], _mm256_mul_ps(_mm256_loadu_ps(row[i] + j + 8), x1));
        }
    }
    if (j < d) {
        const __m256i m0 = tail_mask_avx2(d - j), m1 = tail_mask_avx2(d - j - 8);
        const __m256 x0 = _mm256_maskload_ps(x + j, m0);
        const __m256 x1 = d - j > 8 ? _mm256_maskload_ps(x + j + 8, m1) : _mm256_setzero_ps();
        for (int i = 0; i < rows; i++) {
            low[i] = _mm256_add_ps(low[i], _mm256_mul_ps(_mm256_maskload_ps(row[i] + j, m0), x0));
            if (d - j > 8) high[i] = _mm256_add_ps(high[i], _mm256_mul_ps(_mm256_maskload_ps(row[i] + j + 8, m1), x1));
        }
    }
    for (int i = 0; i < rows; i++) out[i] = sum_avx2(_mm256_add_ps(low[i], high[i]));
}

SONA_AVX2 static void steady_dots_avx2(const float *const *rows, ptrdiff_t n, const float *x, ptrdiff_t d, float *out) {
    ptrdiff_t i = 0;
    for (; i + 4 <= n && i + 6 != n && i + 5 != n; i += 4) steady_block_avx2(rows + i, 4, x, d, out + i);
    /* What is left in one go: a sum alone waits for its own additions. */
    if (i + 6 == n) steady_block_avx2(rows + i, 6, x, d, out + i);
    else if (i + 5 == n) steady_block_avx2(rows + i, 5, x, d, out + i);
    else if (i + 3 == n) steady_block_avx2(rows + i, 3, x, d, out + i);
    else if (i + 2 == n) steady_block_avx2(rows + i, 2, x, d, out + i);
    else if (i + 1 == n) steady_block_avx2(rows + i, 1, x, d, out + i);
}

/* ---- AVX-512 --------------------------------------------------------------------------------------------------- */

SONA_AVX512 SONA_INLINE void panel_block_avx512(const float *const *row, const int rows, const float *panels,
                                                const int count, ptrdiff_t d, float *out, ptrdiff_t stride) {
    __m512 sum[6][4];
    for (int i = 0; i < rows; i++)
        for (int p = 0; p < count; p++) sum[i][p] = _mm512_setzero_ps();
    for (ptrdiff_t j = 0; j < d; j++) {
        __m512 c[4];
        for (int p = 0; p < count; p++) c[p] = _mm512_loadu_ps(panels + (p * d + j) * SONA_LANES);
        for (int i = 0; i < rows; i++) {
            const __m512 x = _mm512_set1_ps(row[i][j]);
            for (int p = 0; p < count; p++) sum[i][p] = _mm512_fmadd_ps(x, c[p], sum[i][p]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int p = 0; p < count; p++) _mm512_storeu_ps(out + i * stride + p * SONA_LANES, sum[i][p]);
}

SONA_AVX512 SONA_INLINE void panel_rows_avx512(const float *const *rows, ptrdiff_t n, const float *panels,
                                               const int count, ptrdiff_t d, float *out, ptrdiff_t stride) {
    ptrdiff_t i = 0;
    for (; i + 6 <= n; i += 6) panel_block_avx512(rows + i, 6, panels, count, d, out + i * stride, stride);
    for (; i + 3 <= n; i += 3) panel_block_avx512(rows + i, 3, panels, count, d, out + i * stride, stride);
    for (; i < n; i++) panel_block_avx512(rows + i, 1, panels, count, d, out + i * stride, stride);
}

SONA_AVX512 static void panel_scores_avx512(const float *const *rows, ptrdiff_t n, const float *panels,
                                            ptrdiff_t count, ptrdiff_t d, float *out) {
    const ptrdiff_t stride = count * SONA_LANES;
    ptrdiff_t p = 0;
    while (p < count) {
        const float *from = panels + p * d * SONA_LANES;
        float *to = out + p * SONA_LANES;
        const ptrdiff_t left = count - p;
        /* Five as three and two: a panel alone would read every component for one product. */
        if (left == 4 || left > 5) panel_rows_avx512(rows, n, from, 4, d, to, stride), p += 4;
        else if (left == 3 || left == 5) panel_rows_avx512(rows, n, from, 3, d, to, stride), p += 3;
        else if (left == 2) panel_rows_avx512(rows, n, from, 2, d, to, stride), p += 2;
        else panel_rows_avx512(rows, n, from, 1, d, to, stride), p += 1;
    }
}

SONA_AVX512 SONA_INLINE void steady_block_avx512(const float *const *row, const int rows, const float *x, ptrdiff_t d,
                                                 float *out) {
    __m512 sum[6];
    for (int i = 0; i < rows; i++) sum[i] = _mm512_setzero_ps();
    ptrdiff_t j = 0;
    for (; j + 16 <= d; j += 16) {
        const __m512 x0 = _mm512_loadu_ps(x + j);
        for (int i = 0; i < rows; i++)
            sum[i] = _mm512_add_ps(sum[i], _mm512_mul_ps(_mm512_loadu_ps(row[i] + j), x0));
    }
    if (j < d) {
        const __mmask16 mask = tail_mask_avx512(d - j);
        const __m512 x0 = _mm512_maskz_loadu_ps(mask, x + j);
        for (int i = 0; i < rows; i++)
            sum[i] = _mm512_add_ps(sum[i], _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, row[i] + j), x0));
    }
    for (int i = 0; i < rows; i++)
        out[i] = sum_avx2(_mm256_add_ps(_mm512_castps512_ps256(sum[i]), _mm512_extractf32x8_ps(sum[i], 1)));
}

SONA_AVX512 static void steady_dots_avx512(const float *const *rows, ptrdiff_t n, const float *x, ptrdiff_t d,
                                           float *out) {
    ptrdiff_t i = 0;
    for (; i + 4 <= n && i + 6 != n && i + 5 != n; i += 4) steady_block_avx512(rows + i, 4, x, d, out + i);
    /* What is left in one go: a sum alone waits for its own additions. */
    if (i + 6 == n) steady_block_avx512(rows + i, 6, x, d, out + i);
    else if (i + 5 == n) steady_block_avx512(rows + i, 5, x, d, out + i);
    else if (i + 3 == n) steady_block_avx512(rows + i, 3, x, d, out + i);
    else if (i + 2 == n) steady_block_avx512(rows + i, 2, x, d, out + i);
    else if (i + 1 == n) steady_block_avx512(rows + i, 1, x, d, out + i);
}
#endif /* SONA_X86 */

#endif
