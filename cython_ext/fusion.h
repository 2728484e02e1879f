/* The learned fusion: what the events nearest to a query say of items, as features, and one step on their weights.
 *
 * Of events e, nearest first, with similarity s_e to the query, and of an item i:
 *
 *   help_i = s of the first event in which it helped
 *   vote_i = Σ exp((s_e - 1) / κ) r_ei over the events in which it helped, by how much (r)
 *   miss_i = s of the first of the nearest events in which it was shown and did not help
 *
 * The query may be asked as if some items had never been seen: what those helped in is then hidden.
 */
#ifndef SONA_FUSION_H
#define SONA_FUSION_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SONA_FEATURES 18
/* Scale of cosines as logits. */
#define SONA_SHARPNESS 20.0
/* Directions shorter than this have no angle. */
#define SONA_SHORTEST 1e-12
/* The square of a larger gradient would overflow the second moments for good. */
#define SONA_LARGEST_GRADIENT 1e150

/* Items are rows of a table, -1 where they are not in it; those of event e end at help_end[e], and at miss_end[e]. */
typedef struct {
    ptrdiff_t events;
    const double *similarity;
    const int64_t *help_end;
    const int64_t *help_item;
    const double *help_reward;
    const int64_t *miss_end;
    const int64_t *miss_item;
} sona_outcomes;

typedef struct {
    ptrdiff_t neighbours, misses_near;
    double vote_kernel, familiar_from, familiar_width;
} sona_nearness;

/* How near the ground is, and the sum of all votes. */
typedef struct {
    double familiarity, gate, votes;
} sona_ground;

/* Kingma & Ba 2015, and the moving average that is served. */
typedef struct {
    double learning_rate, beta1, beta2, epsilon;
    double c1, c2;  /* 1 - beta1^t, 1 - beta2^t */
    double average; /* weight of the old value in the served average */
} sona_adam_double;

/* ---- remembered outcomes ---------------------------------------------------------------------------------------- */

static int sona_is_hidden(const sona_outcomes *near, ptrdiff_t event, const uint8_t *hidden /* by item, or NULL */) {
    if (hidden == NULL) return 0;
    for (int64_t j = event ? near->help_end[event - 1] : 0; j < near->help_end[event]; j++)
        if (near->help_item[j] >= 0 && hidden[near->help_item[j]]) return 1;
    return 0;
}

/* Positions of the first `most` events that are not hidden; returns how many. */
static ptrdiff_t sona_visible(const sona_outcomes *near, const uint8_t *hidden, ptrdiff_t most,
                              int64_t *visible /* OUT, most */) {
    ptrdiff_t count = 0;
    for (ptrdiff_t e = 0; e < near->events && count < most; e++)
        if (!sona_is_hidden(near, e, hidden)) visible[count++] = e;
    return count;
}

/* Gathers help, votes and misses of the m items of a table. */
static sona_ground sona_gather(const sona_outcomes *near, const uint8_t *hidden, const sona_nearness *set, ptrdiff_t m,
                               double *help /* OUT, m */, double *vote /* OUT, m */, double *miss /* OUT, m */) {
    sona_ground ground = {0, 0, 0};
    ptrdiff_t place = 0;
    /* NaN is "not yet": a similarity may be 0. */
    for (ptrdiff_t i = 0; i < m; i++) help[i] = miss[i] = NAN;
    memset(vote, 0, (size_t)m * sizeof *vote);
    for (ptrdiff_t e = 0; e < near->events && place < set->neighbours; e++) {
        if (sona_is_hidden(near, e, hidden)) continue;
        const double s = near->similarity[e], weight = exp((s - 1.0) / set->vote_kernel);
        if (place == 0) ground.familiarity = s > 0 ? s : 0;
        for (int64_t j = e ? near->help_end[e - 1] : 0; j < near->help_end[e]; j++) {
            const int64_t i = near->help_item[j];
            const double given = weight * near->help_reward[j];
            ground.votes += given;
            if (i < 0) continue;
            vote[i] += given;
            if (isnan(help[i])) help[i] = s;
        }
        if (place < set->misses_near)
            for (int64_t j = e ? near->miss_end[e - 1] : 0; j < near->miss_end[e]; j++) {
                const int64_t i = near->miss_item[j];
                if (i >= 0 && isnan(miss[i])) miss[i] = s;
            }
        place++;
    }
    for (ptrdiff_t i = 0; i < m; i++) {
        if (isnan(help[i])) help[i] = 0;
        if (isnan(miss[i])) miss[i] = 0;
    }
    ground.gate = fmin(fmax((ground.familiarity - set->familiar_from) / set->familiar_width, 0), 1);
    return ground;
}

/* ---- features --------------------------------------------------------------------------------------------------- */

static inline double sona_above(double value, double edge) { return value > edge ? value - edge : 0; }

/* Features of the rows of a table of m items that are candidates, (n, SONA_FEATURES). */
static sona_ground sona_fusion_features(const float *frozen /* IN, m */, const float *adapted /* IN, m */,
                                        double query_dot, ptrdiff_t m, const int64_t *rows /* IN, n */, ptrdiff_t n,
                                        const sona_outcomes *near, const int64_t *counts /* IN, m */,
                                        const uint8_t *hidden /* IN, m, or NULL */, const sona_nearness *set,
                                        double *features /* OUT */, double *work /* 3 m */) {
    static const double near_edge[3] = {0.5, 0.7, 0.85}, miss_edge[2] = {0.5, 0.8};
    double *help = work, *vote = help + m, *miss = vote + m;
    const sona_ground ground = sona_gather(near, hidden, set, m, help, vote, miss);
    const double g = ground.gate;

    /* |q + g (u - q)|² = (1 - g)² + g² + 2 g (1 - g) q·u for unit q and u */
    const double square = (1 - g) * (1 - g) + g * g + 2 * g * (1 - g) * query_dot;
    double norm = square > 0 ? sqrt(square) : 0, familiar[3], best = -INFINITY;
    if (norm < SONA_SHORTEST) norm = 1;
    for (int e = 0; e < 3; e++) familiar[e] = sona_above(ground.familiarity, near_edge[e]);
    for (ptrdiff_t k = 0; k < n; k++) best = frozen[rows[k]] > best ? frozen[rows[k]] : best;

    for (ptrdiff_t k = 0; k < n; k++) {
        const int64_t i = rows[k];
        const double f = frozen[i], u = adapted[i];
        const double count = hidden != NULL && hidden[i] ? 0 : (double)counts[i], ever = count > 0;
        double *x = features + k * SONA_FEATURES;
        x[0] = SONA_SHARPNESS * f;
        x[1] = SONA_SHARPNESS * (((1 - g) * f + g * u) / norm - f);
        x[2] = SONA_SHARPNESS * (u - f);
        /* Most items have no votes. */
        x[6] = vote[i] > 0 ? 2.0 * log1p(vote[i]) : 0;
        x[7] = ground.votes > 0 ? vote[i] / ground.votes : 0;
        for (int e = 0; e < 3; e++) {
            x[3 + e] = sona_above(help[i], near_edge[e]);
            x[8 + e] = x[3 + e] * (f - best);
            x[15 + e] = ever * familiar[e];
        }
        for (int e = 0; e < 2; e++) x[11 + e] = sona_above(miss[i], miss_edge[e]);
        x[13] = ever > 0 ? log1p(count) : 0;
        x[14] = ever;
    }
    return ground;
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

static double sona_dot_double(const double *a, const double *b, ptrdiff_t n) {
    /* Four sums: the loop is bound by the latency of the addition otherwise. */
    double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    ptrdiff_t j = 0;
    for (; j + 4 <= n; j += 4) {
        s0 += a[j] * b[j];
        s1 += a[j + 1] * b[j + 1];
        s2 += a[j + 2] * b[j + 2];
        s3 += a[j + 3] * b[j + 3];
    }
    for (; j < n; j++) s0 += a[j] * b[j];
    return (s0 + s1) + (s2 + s3);
}

/* out += weight (softmax(X w) - t) X. Returns the loss -Σ t log softmax(X w) in nats, or NaN (and changes nothing) if
 * it or the sum is not finite. */
static double sona_listwise_gradient(const double *features /* IN, n rows of f */, ptrdiff_t n, ptrdiff_t f,
                                     const double *weights /* IN, f */, const double *targets /* IN, n */,
                                     double weight, double *out /* INOUT, f */, double *work /* n + f */) {
    double *p = work, *sum = p + n, top = -INFINITY, total = 0, loss = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        p[i] = sona_dot_double(features + i * f, weights, f);
        top = p[i] > top ? p[i] : top;
    }
    double wanted = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const double score = p[i] - top;
        loss -= targets[i] * score;
        wanted += targets[i];
        total += p[i] = exp(score);
    }
    loss += wanted * log(total);
    if (!isfinite(loss)) return NAN;

    memset(sum, 0, (size_t)f * sizeof *sum);
    for (ptrdiff_t i = 0; i < n; i++) {
        const double share = weight * (p[i] / total - targets[i]), *row = features + i * f;
        for (ptrdiff_t j = 0; j < f; j++) sum[j] += share * row[j];
    }
    for (ptrdiff_t j = 0; j < f; j++)
        if (!isfinite(sum[j] += out[j])) return NAN;
    memcpy(out, sum, (size_t)f * sizeof *out);
    return loss;
}

/* Returns 0 (and changes nothing) if the gradient is out of range. */
static int sona_adam_step(double *weights /* INOUT, n */, double *served /* INOUT, n */, double *m /* INOUT, n */,
                          double *v /* INOUT, n */, const double *gradient /* IN, n */, ptrdiff_t n,
                          const sona_adam_double *adam) {
    for (ptrdiff_t j = 0; j < n; j++)
        if (!(fabs(gradient[j]) <= SONA_LARGEST_GRADIENT)) return 0;
    for (ptrdiff_t j = 0; j < n; j++) {
        const double g = gradient[j];
        m[j] += (1 - adam->beta1) * (g - m[j]);
        v[j] += (1 - adam->beta2) * (g * g - v[j]);
        weights[j] -= adam->learning_rate * (m[j] / adam->c1) / (sqrt(v[j] / adam->c2) + adam->epsilon);
        served[j] += (1 - adam->average) * (weights[j] - served[j]);
    }
    return 1;
}

/* ---- order ------------------------------------------------------------------------------------------------------ */

/* Whether row a comes after row b: lower, or equal and later. */
static inline int sona_after(const double *scores, int64_t a, int64_t b) {
    return scores[a] < scores[b] || (scores[a] == scores[b] && a > b);
}

static void sona_sift_down(const double *scores, int64_t *heap, ptrdiff_t size, ptrdiff_t at) {
    const int64_t row = heap[at];
    for (ptrdiff_t child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && sona_after(scores, heap[child + 1], heap[child])) child++;
        if (!sona_after(scores, heap[child], row)) break;
        heap[at] = heap[child];
    }
    heap[at] = row;
}

/* Rows of the k highest of n scores (k <= n), best first, equal ones in their own order: a heap of the k best so far,
 * the last of them on top, which is then sorted (Floyd 1964). */
static void sona_order_by_score(const double *scores /* IN, n, no NaN */, ptrdiff_t n, ptrdiff_t k,
                                int64_t *best /* OUT, k */) {
    if (k == 0) return;
    for (ptrdiff_t i = 0; i < k; i++) best[i] = i;
    for (ptrdiff_t at = k / 2; at-- > 0;) sona_sift_down(scores, best, k, at);
    for (ptrdiff_t i = k; i < n; i++)
        if (scores[i] > scores[best[0]]) {
            best[0] = i;
            sona_sift_down(scores, best, k, 0);
        }
    for (ptrdiff_t size = k - 1; size > 0; size--) {
        const int64_t last = best[0];
        best[0] = best[size];
        best[size] = last;
        sona_sift_down(scores, best, size, 0);
    }
}

/* ---- orders by chance ------------------------------------------------------------------------------------------ */

/* Σ given_i height_π(i) for random orders π, each from the one before by a shuffle (Fisher & Yates 1938; Durstenfeld
 * 1964) with splitmix64 (Steele et al. 2014). */
static void sona_shuffled_sums(const double *given /* IN, n */, const double *heights /* IN, kinds x n */, ptrdiff_t kinds,
                               ptrdiff_t n, uint64_t seed, ptrdiff_t orders, int64_t *order /* WORK, n */,
                               double *sums /* OUT, kinds x orders */) {
    for (ptrdiff_t i = 0; i < n; i++) order[i] = i;
    for (ptrdiff_t o = 0; o < orders; o++) {
        for (ptrdiff_t i = n - 1; i > 0; i--) {
            uint64_t z = (seed += 0x9E3779B97F4A7C15u);
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
            z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
            z ^= z >> 31;
            /* High bits times i + 1: a place from 0 to i. */
            const ptrdiff_t j = (ptrdiff_t)(((z >> 32) * (uint64_t)(i + 1)) >> 32);
            const int64_t held = order[i];
            order[i] = order[j];
            order[j] = held;
        }
        for (ptrdiff_t k = 0; k < kinds; k++) {
            double sum = 0;
            for (ptrdiff_t i = 0; i < n; i++) sum += given[i] * heights[k * n + order[i]];
            sums[k * orders + o] = sum;
        }
    }
}

#endif
