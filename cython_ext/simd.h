/* The vector primitives for every instruction set, and their choice at run time.
 *
 * Functions are static, allocate nothing and cannot fail. The instruction set is a property of single functions
 * (target attributes), never of the file: one build serves CPUs with and without AVX.
 */
#ifndef SONA_SIMD_H
#define SONA_SIMD_H

#include "simd_types.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#define SONA_X86 1
#include <immintrin.h>
#define SONA_INLINE static inline __attribute__((always_inline))
#define SONA_AVX2 __attribute__((target("avx2,fma")))
#define SONA_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma")))
#endif

/* ---- scalar --------------------------------------------------------------------------------------------------- */

static void dot_rows_scalar(const float *const *rows, ptrdiff_t n, const float *x, ptrdiff_t d, float *out) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const float *row = rows[i];
        /* Four sums: the loop is bound by the latency of the addition otherwise. */
        float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        ptrdiff_t j = 0;
        for (; j + 4 <= d; j += 4) {
            s0 += row[j] * x[j];
            s1 += row[j + 1] * x[j + 1];
            s2 += row[j + 2] * x[j + 2];
            s3 += row[j + 3] * x[j + 3];
        }
        for (; j < d; j++) s0 += row[j] * x[j];
        out[i] = (s0 + s1) + (s2 + s3);
    }
}

static void add_rows_scalar(const float *const *rows, ptrdiff_t n, const float *weight, ptrdiff_t d, float *out) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const float *row = rows[i];
        const float w = weight[i];
        for (ptrdiff_t j = 0; j < d; j++) out[j] += w * row[j];
    }
}

static void adam_row_scalar(float *param, float *m, float *v, float *served, const float *direction, float c,
                            ptrdiff_t d, const sona_adam *adam) {
    const float b1 = adam->beta1, b2 = adam->beta2;
    for (ptrdiff_t j = 0; j < d; j++) {
        const float g = c * direction[j];
        m[j] = b1 * m[j] + (1 - b1) * g;
        v[j] = b2 * v[j] + (1 - b2) * g * g;
        param[j] -= adam->step * m[j] / (sqrtf(v[j]) * adam->inv_sqrt_c2 + adam->epsilon);
        served[j] += adam->average * (param[j] - served[j]);
    }
}

static int all_finite_scalar(const float *x, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}

#ifdef SONA_X86
/* ---- AVX2 ------------------------------------------------------------------------------------------------------ */

SONA_AVX2 static inline __m256i tail_mask_avx2(ptrdiff_t left) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)left), lane);
}

SONA_AVX2 static inline float sum_avx2(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* `rows` is 1, 2 or 4 at compile time: x and `out` are then read once for that many rows. */
SONA_AVX2 SONA_INLINE void dot_block_avx2(const float *const *row, const int rows, const float *x, ptrdiff_t d,
                                          float *out) {
    __m256 even[4], odd[4];
    for (int i = 0; i < rows; i++) even[i] = odd[i] = _mm256_setzero_ps();
    ptrdiff_t j = 0;
    for (; j + 16 <= d; j += 16) {
        const __m256 x0 = _mm256_loadu_ps(x + j), x1 = _mm256_loadu_ps(x + j + 8);
        for (int i = 0; i < rows; i++) {
            even[i] = _mm256_fmadd_ps(_mm256_loadu_ps(row[i] + j), x0, even[i]);
            odd[i] = _mm256_fmadd_ps(_mm256_loadu_ps(row[i] + j + 8), x1, odd[i]);
        }
    }
    for (; j < d; j += 8) {
        const __m256i mask = tail_mask_avx2(d - j);
        const __m256 x0 = _mm256_maskload_ps(x + j, mask);
        for (int i = 0; i < rows; i++) even[i] = _mm256_fmadd_ps(_mm256_maskload_ps(row[i] + j, mask), x0, even[i]);
    }
    for (int i = 0; i < rows; i++) out[i] = sum_avx2(_mm256_add_ps(even[i], odd[i]));
}

SONA_AVX2 static void dot_rows_avx2(const float *const *rows, ptrdiff_t n, const float *x, ptrdiff_t d, float *out) {
    ptrdiff_t i = 0;
    for (; i + 4 <= n; i += 4) dot_block_avx2(rows + i, 4, x, d, out + i);
    for (; i + 2 <= n; i += 2) dot_block_avx2(rows + i, 2, x, d, out + i);
    if (i < n) dot_block_avx2(rows + i, 1, x, d, out + i);
}

SONA_AVX2 SONA_INLINE void add_block_avx2(const float *const *row, const int rows, const float *weight, ptrdiff_t d,
                                          float *out) {
    __m256 w[4];
    for (int i = 0; i < rows; i++) w[i] = _mm256_set1_ps(weight[i]);
    ptrdiff_t j = 0;
    for (; j + 8 <= d; j += 8) {
        __m256 s = _mm256_loadu_ps(out + j);
        for (int i = 0; i < rows; i++) s = _mm256_fmadd_ps(w[i], _mm256_loadu_ps(row[i] + j), s);
        _mm256_storeu_ps(out + j, s);
    }
    for (; j < d; j++)
        for (int i = 0; i < rows; i++) out[j] += weight[i] * row[i][j];
}

SONA_AVX2 static void add_rows_avx2(const float *const *rows, ptrdiff_t n, const float *weight, ptrdiff_t d,
                                    float *out) {
    ptrdiff_t i = 0;
    for (; i + 4 <= n; i += 4) add_block_avx2(rows + i, 4, weight + i, d, out);
    for (; i + 2 <= n; i += 2) add_block_avx2(rows + i, 2, weight + i, d, out);
    if (i < n) add_block_avx2(rows + i, 1, weight + i, d, out);
}

SONA_AVX2 static void adam_row_avx2(float *param, float *m, float *v, float *served, const float *direction, float c,
                                    ptrdiff_t d, const sona_adam *adam) {
    const __m256 b1 = _mm256_set1_ps(adam->beta1), n1 = _mm256_set1_ps(1 - adam->beta1);
    const __m256 b2 = _mm256_set1_ps(adam->beta2), n2 = _mm256_set1_ps(1 - adam->beta2);
    const __m256 cc = _mm256_set1_ps(c);
    const __m256 step = _mm256_set1_ps(adam->step), c2 = _mm256_set1_ps(adam->inv_sqrt_c2);
    const __m256 eps = _mm256_set1_ps(adam->epsilon), avg = _mm256_set1_ps(adam->average);
    ptrdiff_t j = 0;
    for (; j + 8 <= d; j += 8) {
        const __m256 g = _mm256_mul_ps(cc, _mm256_loadu_ps(direction + j));
        const __m256 mj = _mm256_fmadd_ps(n1, g, _mm256_mul_ps(b1, _mm256_loadu_ps(m + j)));
        const __m256 vj = _mm256_fmadd_ps(n2, _mm256_mul_ps(g, g), _mm256_mul_ps(b2, _mm256_loadu_ps(v + j)));
        const __m256 root = _mm256_fmadd_ps(_mm256_sqrt_ps(vj), c2, eps);
        const __m256 p = _mm256_sub_ps(_mm256_loadu_ps(param + j), _mm256_div_ps(_mm256_mul_ps(step, mj), root));
        const __m256 s = _mm256_loadu_ps(served + j);
        _mm256_storeu_ps(m + j, mj);
        _mm256_storeu_ps(v + j, vj);
        _mm256_storeu_ps(param + j, p);
        _mm256_storeu_ps(served + j, _mm256_fmadd_ps(avg, _mm256_sub_ps(p, s), s));
    }
    if (j < d) adam_row_scalar(param + j, m + j, v + j, served + j, direction + j, c, d - j, adam);
}

SONA_AVX2 static int all_finite_avx2(const float *x, ptrdiff_t n) {
    /* x * 0 is 0 for finite x and NaN otherwise, and a NaN stays in the sum. */
    __m256 s = _mm256_setzero_ps();
    const __m256 zero = s;
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8) s = _mm256_fmadd_ps(_mm256_loadu_ps(x + i), zero, s);
    return sum_avx2(s) == 0 && all_finite_scalar(x + i, n - i);
}

/* ---- AVX-512 --------------------------------------------------------------------------------------------------- */

/* The first `left` lanes, all of them from 16 on. */
SONA_AVX512 static inline __mmask16 tail_mask_avx512(ptrdiff_t left) {
    return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
}

SONA_AVX512 SONA_INLINE void dot_block_avx512(const float *const *row, const int rows, const float *x, ptrdiff_t d,
                                              float *out) {
    __m512 even[4], odd[4];
    for (int i = 0; i < rows; i++) even[i] = odd[i] = _mm512_setzero_ps();
    ptrdiff_t j = 0;
    for (; j + 32 <= d; j += 32) {
        const __m512 x0 = _mm512_loadu_ps(x + j), x1 = _mm512_loadu_ps(x + j + 16);
        for (int i = 0; i < rows; i++) {
            even[i] = _mm512_fmadd_ps(_mm512_loadu_ps(row[i] + j), x0, even[i]);
            odd[i] = _mm512_fmadd_ps(_mm512_loadu_ps(row[i] + j + 16), x1, odd[i]);
        }
    }
    for (; j < d; j += 16) {
        const __mmask16 mask = tail_mask_avx512(d - j);
        const __m512 x0 = _mm512_maskz_loadu_ps(mask, x + j);
        for (int i = 0; i < rows; i++)
            even[i] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, row[i] + j), x0, even[i]);
    }
    for (int i = 0; i < rows; i++) out[i] = _mm512_reduce_add_ps(_mm512_add_ps(even[i], odd[i]));
}

SONA_AVX512 static void dot_rows_avx512(const float *const *rows, ptrdiff_t n, const float *x, ptrdiff_t d,
                                        float *out) {
    ptrdiff_t i = 0;
    for (; i + 4 <= n; i += 4) dot_block_avx512(rows + i, 4, x, d, out + i);
    for (; i + 2 <= n; i += 2) dot_block_avx512(rows + i, 2, x, d, out + i);
    if (i < n) dot_block_avx512(rows + i, 1, x, d, out + i);
}

SONA_AVX512 SONA_INLINE void add_block_avx512(const float *const *row, const int rows, const float *weight,
                                              ptrdiff_t d, float *out) {
    __m512 w[4];
    for (int i = 0; i < rows; i++) w[i] = _mm512_set1_ps(weight[i]);
    ptrdiff_t j = 0;
    for (; j + 16 <= d; j += 16) {
        __m512 s = _mm512_loadu_ps(out + j);
        for (int i = 0; i < rows; i++) s = _mm512_fmadd_ps(w[i], _mm512_loadu_ps(row[i] + j), s);
        _mm512_storeu_ps(out + j, s);
    }
    if (j < d) {
        const __mmask16 mask = tail_mask_avx512(d - j);
        __m512 s = _mm512_maskz_loadu_ps(mask, out + j);
        for (int i = 0; i < rows; i++) s = _mm512_fmadd_ps(w[i], _mm512_maskz_loadu_ps(mask, row[i] + j), s);
        _mm512_mask_storeu_ps(out + j, mask, s);
    }
}

SONA_AVX512 static void add_rows_avx512(const float *const *rows, ptrdiff_t n, const float *weight, ptrdiff_t d,
                                        float *out) {
    ptrdiff_t i = 0;
    for (; i + 4 <= n; i += 4) add_block_avx512(rows + i, 4, weight + i, d, out);
    for (; i + 2 <= n; i += 2) add_block_avx512(rows + i, 2, weight + i, d, out);
    if (i < n) add_block_avx512(rows + i, 1, weight + i, d, out);
}

SONA_AVX512 static void adam_row_avx512(float *param, float *m, float *v, float *served, const float *direction,
                                        float c, ptrdiff_t d, const sona_adam *adam) {
    const __m512 b1 = _mm512_set1_ps(adam->beta1), n1 = _mm512_set1_ps(1 - adam->beta1);
    const __m512 b2 = _mm512_set1_ps(adam->beta2), n2 = _mm512_set1_ps(1 - adam->beta2);
    const __m512 cc = _mm512_set1_ps(c);
    const __m512 step = _mm512_set1_ps(adam->step), c2 = _mm512_set1_ps(adam->inv_sqrt_c2);
    const __m512 eps = _mm512_set1_ps(adam->epsilon), avg = _mm512_set1_ps(adam->average);
    for (ptrdiff_t j = 0; j < d; j += 16) {
        const __mmask16 k = tail_mask_avx512(d - j);
        const __m512 g = _mm512_mul_ps(cc, _mm512_maskz_loadu_ps(k, direction + j));
        const __m512 mj = _mm512_fmadd_ps(n1, g, _mm512_mul_ps(b1, _mm512_maskz_loadu_ps(k, m + j)));
        const __m512 vj =
            _mm512_fmadd_ps(n2, _mm512_mul_ps(g, g), _mm512_mul_ps(b2, _mm512_maskz_loadu_ps(k, v + j)));
        const __m512 root = _mm512_fmadd_ps(_mm512_sqrt_ps(vj), c2, eps);
        const __m512 p =
            _mm512_sub_ps(_mm512_maskz_loadu_ps(k, param + j), _mm512_div_ps(_mm512_mul_ps(step, mj), root));
        const __m512 s = _mm512_maskz_loadu_ps(k, served + j);
        _mm512_mask_storeu_ps(m + j, k, mj);
        _mm512_mask_storeu_ps(v + j, k, vj);
        _mm512_mask_storeu_ps(param + j, k, p);
        _mm512_mask_storeu_ps(served + j, k, _mm512_fmadd_ps(avg, _mm512_sub_ps(p, s), s));
    }
}

SONA_AVX512 static int all_finite_avx512(const float *x, ptrdiff_t n) {
    __mmask16 bad = 0;
    for (ptrdiff_t i = 0; i < n; i += 16) {
        const __mmask16 k = tail_mask_avx512(n - i);
        bad |= _mm512_fpclass_ps_mask(_mm512_maskz_loadu_ps(k, x + i), 0x99); /* quiet/signalling NaN, +-inf */
    }
    return bad == 0;
}

#endif /* SONA_X86 */

#include "outer.h"
#include "panels.h"

/* ---- choice ---------------------------------------------------------------------------------------------------- */

#define SONA_SIMD_TABLE(isa)                                                                                 \
    {                                                                                                        \
        #isa, dot_rows_##isa, add_rows_##isa, adam_row_##isa, all_finite_##isa, panel_scores_##isa,          \
            steady_dots_##isa, add_outer_##isa, add_squares_##isa                                            \
    }

static const sona_simd SIMD_SCALAR = SONA_SIMD_TABLE(scalar);
#ifdef SONA_X86
static const sona_simd SIMD_AVX2 = SONA_SIMD_TABLE(avx2);
static const sona_simd SIMD_AVX512 = SONA_SIMD_TABLE(avx512);
#endif

/* The implementation called `name` if this CPU can run it, else NULL. */
static const sona_simd *sona_simd_find(const char *name) {
#ifdef SONA_X86
    __builtin_cpu_init();
    if (!strcmp(name, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vl")
                   ? &SIMD_AVX512
                   : NULL;
    if (!strcmp(name, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &SIMD_AVX2 : NULL;
#endif
    return strcmp(name, "scalar") ? NULL : &SIMD_SCALAR;
}

#endif
