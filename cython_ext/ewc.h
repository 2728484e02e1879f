/* Elastic weight consolidation, element by element: the loops are written once, and compiled for each instruction set.
 *
 * Every loop reads each array once and is bound by memory, so the compiler's own vectors are as fast as any. Nothing
 * is contracted (-std=c11) and no sum crosses elements: the results are the same to the last bit on every instruction
 * set. Those that return something tell whether all is finite; `out` may be the array that it replaces.
 */
#ifndef SONA_EWC_H
#define SONA_EWC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#define SONA_EWC_X86 1
#endif

#define SONA_BLOCK 1024
#define SONA_BODY static inline __attribute__((always_inline))

typedef struct {
    const char *name;
    int (*squarable)(const float *x, ptrdiff_t n);
    void (*fisher)(float *fisher, const float *gradient, ptrdiff_t p, float weight);
    void (*blend)(float *fisher, const float *mean, ptrdiff_t p, float weight);
    int (*mean_square)(const float *gradients, ptrdiff_t n, ptrdiff_t p, float *out);
    int (*constrain)(const float *gradient, const float *theta, const float *stiffness, const float *pull,
                     ptrdiff_t p, float rate, float *out);
    int (*proximal)(const float *theta, const float *stiffness, const float *pull, ptrdiff_t p, float step,
                    const float *steps, float *out);
    int (*drift)(const float *fisher, const float *theta, const float *anchor, ptrdiff_t p, float weight, float *out);
} sona_ewc;

/* Exponent and mantissa: below INFINITE exactly for finite numbers, and an integer maximum goes into vectors. */
#define INFINITE 0x7f800000
#define LARGEST_GRADIENT 0x5d5e0b6b /* 1e18 */
SONA_BODY int32_t magnitude(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x7fffffff;
}

SONA_BODY int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

/* Whether the squares of all of them are numbers of float32, with room for a sum. */
SONA_BODY int squarable_body(const float *x, ptrdiff_t n) {
    /* Four maxima: the loop is bound by the latency of one otherwise. */
    const ptrdiff_t quarter = n / 4;
    int32_t a = 0, b = 0, c = 0, d = 0;
    for (ptrdiff_t j = 0; j < quarter; j++) {
        a = larger(a, magnitude(x[j]));
        b = larger(b, magnitude(x[quarter + j]));
        c = larger(c, magnitude(x[2 * quarter + j]));
        d = larger(d, magnitude(x[3 * quarter + j]));
    }
    for (ptrdiff_t j = 4 * quarter; j < n; j++) a = larger(a, magnitude(x[j]));
    return larger(larger(a, b), larger(c, d)) < LARGEST_GRADIENT;
}

/* F + a (g^2 - F), of one gradient */
SONA_BODY void fisher_body(float *fisher, const float *gradient, ptrdiff_t p, float weight) {
#pragma GCC ivdep
    for (ptrdiff_t j = 0; j < p; j++) fisher[j] += weight * (gradient[j] * gradient[j] - fisher[j]);
}

/* F + a (m - F), of a mean of squares */
SONA_BODY void blend_body(float *fisher, const float *mean, ptrdiff_t p, float weight) {
#pragma GCC ivdep
    for (ptrdiff_t j = 0; j < p; j++) fisher[j] += weight * (mean[j] - fisher[j]);
}

/* mean g^2, with the squares of four rows added before they meet the sum */
SONA_BODY int mean_square_body(const float *gradients, ptrdiff_t n, ptrdiff_t p, float *out) {
    int32_t largest = 0;
    const float each = 1 / (float)n;
    for (ptrdiff_t begin = 0; begin < p; begin += SONA_BLOCK) {
        const ptrdiff_t size = p - begin < SONA_BLOCK ? p - begin : SONA_BLOCK;
        float *restrict sum = out + begin;
        memset(sum, 0, (size_t)size * sizeof(float));
        ptrdiff_t i = 0;
        for (; i + 4 <= n; i += 4) {
            const float *a = gradients + i * p + begin, *b = a + p, *c = b + p, *d = c + p;
            for (ptrdiff_t j = 0; j < size; j++) sum[j] += (a[j] * a[j] + b[j] * b[j]) + (c[j] * c[j] + d[j] * d[j]);
        }
        for (; i < n; i++) {
            const float *a = gradients + i * p + begin;
            for (ptrdiff_t j = 0; j < size; j++) sum[j] += a[j] * a[j];
        }
        for (ptrdiff_t j = 0; j < size; j++) {
            largest = larger(largest, magnitude(sum[j]));
            sum[j] *= each;
        }
    }
    return largest < INFINITE;
}

/* (g + S theta - T) / (1 + eta S) */
SONA_BODY int constrain_body(const float *gradient, const float *theta, const float *stiffness, const float *pull,
                             ptrdiff_t p, float rate, float *out) {
    int32_t largest = 0;
#pragma GCC ivdep
    for (ptrdiff_t j = 0; j < p; j++) {
        const float value = (gradient[j] + stiffness[j] * theta[j] - pull[j]) / (1 + rate * stiffness[j]);
        largest = larger(largest, magnitude(value));
        out[j] = value;
    }
    return largest < INFINITE;
}

/* (theta + eta T) / (1 + eta S), with one step size for all, or one for each */
SONA_BODY int proximal_body(const float *theta, const float *stiffness, const float *pull, ptrdiff_t p, float step,
                            const float *steps, float *out) {
    int32_t largest = 0;
    if (steps) {
#pragma GCC ivdep
        for (ptrdiff_t j = 0; j < p; j++) {
            const float value = (theta[j] + steps[j] * pull[j]) / (1 + steps[j] * stiffness[j]);
            largest = larger(largest, magnitude(value));
            out[j] = value;
        }
    } else {
#pragma GCC ivdep
        for (ptrdiff_t j = 0; j < p; j++) {
            const float value = (theta[j] + step * pull[j]) / (1 + step * stiffness[j]);
            largest = larger(largest, magnitude(value));
            out[j] = value;
        }
    }
    return largest < INFINITE;
}

/* out += a F (theta - theta*)^2 */
SONA_BODY int drift_body(const float *fisher, const float *theta, const float *anchor, ptrdiff_t p, float weight,
                         float *out) {
    int32_t largest = 0;
#pragma GCC ivdep
    for (ptrdiff_t j = 0; j < p; j++) {
        const float moved = theta[j] - anchor[j];
        const float value = out[j] + weight * fisher[j] * (moved * moved);
        largest = larger(largest, magnitude(value));
        out[j] = value;
    }
    return largest < INFINITE;
}

#define SONA_EWC_FOR(isa, target)                                                                                    \
    target static int squarable_##isa(const float *x, ptrdiff_t n) { return squarable_body(x, n); }                  \
    target static void fisher_##isa(float *fisher, const float *gradient, ptrdiff_t p, float weight) {               \
        fisher_body(fisher, gradient, p, weight);                                                                    \
    }                                                                                                                \
    target static void blend_##isa(float *fisher, const float *mean, ptrdiff_t p, float weight) {                    \
        blend_body(fisher, mean, p, weight);                                                                         \
    }                                                                                                                \
    target static int mean_square_##isa(const float *gradients, ptrdiff_t n, ptrdiff_t p, float *out) {              \
        return mean_square_body(gradients, n, p, out);                                                               \
    }                                                                                                                \
    target static int constrain_##isa(const float *gradient, const float *theta, const float *stiffness,            \
                                      const float *pull, ptrdiff_t p, float rate, float *out) {                      \
        return constrain_body(gradient, theta, stiffness, pull, p, rate, out);                                       \
    }                                                                                                                \
    target static int proximal_##isa(const float *theta, const float *stiffness, const float *pull, ptrdiff_t p,    \
                                     float step, const float *steps, float *out) {                                   \
        return proximal_body(theta, stiffness, pull, p, step, steps, out);                                           \
    }                                                                                                                \
    target static int drift_##isa(const float *fisher, const float *theta, const float *anchor, ptrdiff_t p,        \
                                  float weight, float *out) {                                                        \
        return drift_body(fisher, theta, anchor, p, weight, out);                                                    \
    }                                                                                                                \
    static const sona_ewc EWC_##isa = {#isa, squarable_##isa, fisher_##isa, blend_##isa, mean_square_##isa, constrain_##isa, proximal_##isa, drift_##isa};

SONA_EWC_FOR(scalar, )
#ifdef SONA_EWC_X86
SONA_EWC_FOR(avx2, __attribute__((target("avx2"))))
SONA_EWC_FOR(avx512, __attribute__((target("avx512f,avx512dq,avx512vl,prefer-vector-width=512"))))
#endif

/* The loops of the instruction set that was chosen. */
static const sona_ewc *sona_ewc_find(const char *name) {
#ifdef SONA_EWC_X86
    if (!strcmp(name, "avx512")) return &EWC_avx512;
    if (!strcmp(name, "avx2")) return &EWC_avx2;
#endif
    (void)name;
    return &EWC_scalar;
}

#endif
