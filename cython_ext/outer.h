/* Sums of outer products: what a batch of samples gives the gradient of a factor, and its Fisher information.
 *
 * out[c] += sum_i weight[i, c] * rows[i] for `count` rows of out, `weight` of shape (n, count); of the squares of the
 * rows in the second form. A tile of `out` stays in registers while all samples pass, and a sample is read once for up
 * to four rows of it.
 */
#ifndef SONA_OUTER_H
#define SONA_OUTER_H

static inline void add_outer_plain(const float *const *rows, ptrdiff_t n, const float *weight, ptrdiff_t count,
                                   ptrdiff_t d, const int squared, float *const *out) {
    for (ptrdiff_t i = 0; i < n; i++)
        for (ptrdiff_t c = 0; c < count; c++) {
            const float *row = rows[i];
            const float w = weight[i * count + c];
            float *sum = out[c];
            for (ptrdiff_t j = 0; j < d; j++) sum[j] += w * (squared ? row[j] * row[j] : row[j]);
        }
}

static void add_outer_scalar(const float *const *rows, ptrdiff_t n, const float *weight, ptrdiff_t count, ptrdiff_t d,
                             float *const *out) {
    add_outer_plain(rows, n, weight, count, d, 0, out);
}

static void add_squares_scalar(const float *const *rows, ptrdiff_t n, const float *weight, ptrdiff_t count,
                               ptrdiff_t d, float *const *out) {
    add_outer_plain(rows, n, weight, count, d, 1, out);
}

#ifdef SONA_X86

/* `width` rows of out at once, 1, 2 or 4 at compile time; `stride` is the number of columns of `weight`. */
SONA_AVX2 SONA_INLINE void outer_tile_avx2(const float *const *rows, ptrdiff_t n, const float *weight,
                                           ptrdiff_t stride, const int width, ptrdiff_t d, const int squared,
                                           float *const *out) {
    __m256 low[4], high[4];
    ptrdiff_t j = 0;
    for (; j + 16 <= d; j += 16) {
        for (int c = 0; c < width; c++) {
            low[c] = _mm256_loadu_ps(out[c] + j);
            high[c] = _mm256_loadu_ps(out[c] + j + 8);
        }
        for (ptrdiff_t i = 0; i < n; i++) {
            __m256 x0 = _mm256_loadu_ps(rows[i] + j), x1 = _mm256_loadu_ps(rows[i] + j + 8);
            if (squared) {
                x0 = _mm256_mul_ps(x0, x0);
                x1 = _mm256_mul_ps(x1, x1);
            }
            for (int c = 0; c < width; c++) {
                const __m256 w = _mm256_broadcast_ss(weight + i * stride + c);
                low[c] = _mm256_fmadd_ps(w, x0, low[c]);
                high[c] = _mm256_fmadd_ps(w, x1, high[c]);
            }
        }
        for (int c = 0; c < width; c++) {
            _mm256_storeu_ps(out[c] + j, low[c]);
            _mm256_storeu_ps(out[c] + j + 8, high[c]);
        }
    }
    for (; j < d; j += 8) {
        const __m256i mask = tail_mask_avx2(d - j);
        for (int c = 0; c < width; c++) low[c] = _mm256_maskload_ps(out[c] + j, mask);
        for (ptrdiff_t i = 0; i < n; i++) {
            __m256 x = _mm256_maskload_ps(rows[i] + j, mask);
            if (squared) x = _mm256_mul_ps(x, x);
            for (int c = 0; c < width; c++)
                low[c] = _mm256_fmadd_ps(_mm256_broadcast_ss(weight + i * stride + c), x, low[c]);
        }
        for (int c = 0; c < width; c++) _mm256_maskstore_ps(out[c] + j, mask, low[c]);
    }
}

SONA_AVX512 SONA_INLINE void outer_tile_avx512(const float *const *rows, ptrdiff_t n, const float *weight,
                                               ptrdiff_t stride, const int width, ptrdiff_t d, const int squared,
                                               float *const *out) {
    __m512 low[4], high[4];
    ptrdiff_t j = 0;
    for (; j + 32 <= d; j += 32) {
        for (int c = 0; c < width; c++) {
            low[c] = _mm512_loadu_ps(out[c] + j);
            high[c] = _mm512_loadu_ps(out[c] + j + 16);
        }
        for (ptrdiff_t i = 0; i < n; i++) {
            __m512 x0 = _mm512_loadu_ps(rows[i] + j), x1 = _mm512_loadu_ps(rows[i] + j + 16);
            if (squared) {
                x0 = _mm512_mul_ps(x0, x0);
                x1 = _mm512_mul_ps(x1, x1);
            }
            for (int c = 0; c < width; c++) {
                const __m512 w = _mm512_set1_ps(weight[i * stride + c]);
                low[c] = _mm512_fmadd_ps(w, x0, low[c]);
                high[c] = _mm512_fmadd_ps(w, x1, high[c]);
            }
        }
        for (int c = 0; c < width; c++) {
            _mm512_storeu_ps(out[c] + j, low[c]);
            _mm512_storeu_ps(out[c] + j + 16, high[c]);
        }
    }
    for (; j < d; j += 16) {
        const __mmask16 mask = tail_mask_avx512(d - j);
        for (int c = 0; c < width; c++) low[c] = _mm512_maskz_loadu_ps(mask, out[c] + j);
        for (ptrdiff_t i = 0; i < n; i++) {
            __m512 x = _mm512_maskz_loadu_ps(mask, rows[i] + j);
            if (squared) x = _mm512_mul_ps(x, x);
            for (int c = 0; c < width; c++)
                low[c] = _mm512_fmadd_ps(_mm512_set1_ps(weight[i * stride + c]), x, low[c]);
        }
        for (int c = 0; c < width; c++) _mm512_mask_storeu_ps(out[c] + j, mask, low[c]);
    }
}

#define SONA_OUTER(name, isa, TARGET, squared)                                                                     \
    TARGET static void name##_##isa(const float *const *rows, ptrdiff_t n, const float *weight, ptrdiff_t count,   \
                                    ptrdiff_t d, float *const *out) {                                              \
        ptrdiff_t c = 0;                                                                                           \
        for (; c + 4 <= count; c += 4) outer_tile_##isa(rows, n, weight + c, count, 4, d, squared, out + c);       \
        for (; c + 2 <= count; c += 2) outer_tile_##isa(rows, n, weight + c, count, 2, d, squared, out + c);       \
        if (c < count) outer_tile_##isa(rows, n, weight + c, count, 1, d, squared, out + c);                       \
    }

SONA_OUTER(add_outer, avx2, SONA_AVX2, 0)
SONA_OUTER(add_squares, avx2, SONA_AVX2, 1)
SONA_OUTER(add_outer, avx512, SONA_AVX512, 0)
SONA_OUTER(add_squares, avx512, SONA_AVX512, 1)

#undef SONA_OUTER
#endif /* SONA_X86 */

#endif
