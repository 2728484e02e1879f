/* Graphs in compressed sparse rows: random walks, spreading activation, PageRank, and degree-preserving rewiring.
 *
 * Row i of a graph is neighbours[indptr[i]] to neighbours[indptr[i + 1]]. Walks and spreading touch few rows, so rows
 * are checked where they are read, and not all of them beforehand: a function returns 0, or SONA_GRAPH_DAMAGED as soon
 * as a row or a neighbour lies outside, or a weight is negative or not finite.
 */
#ifndef SONA_GRAPH_H
#define SONA_GRAPH_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

enum { SONA_GRAPH_DAMAGED = -1 };
enum { SONA_WALKS = 32, SONA_FETCHED = 64 };
enum { SONA_STEP_START = 0, SONA_STEP_EDGE = 1, SONA_STEP_JUMP = 2, SONA_STEP_RESTART = 3 };

#define SONA_FETCH(address) __builtin_prefetch(address)

typedef struct {
    const int64_t *indptr;      /* n + 1 */
    const int32_t *neighbours;  /* entries */
    int64_t n, entries;
} sona_graph;

/* ---- random numbers ---------------------------------------------------------------------------------------------- */

/* splitmix64 (Steele et al. 2014) */
static uint64_t sona_mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static uint64_t sona_next(uint64_t *state) { return sona_mixed(*state += 0x9E3779B97F4A7C15u); }

/* State of a stream of its own: mixed twice, so that neither near seeds nor near numbers give shifted streams. */
static uint64_t sona_stream(uint64_t seed, uint64_t number) {
    return sona_mixed(sona_mixed(seed + 0x9E3779B97F4A7C15u) + (number + 1) * 0xD1342543DE82EF95u);
}

static double sona_unit(uint64_t *state) { return (double)(sona_next(state) >> 11) * 0x1p-53; }

/* size < 2^31: the bias is below 2^-32 * size */
static int64_t sona_less_than(uint64_t *state, int64_t size) {
    return (int64_t)(((sona_next(state) >> 32) * (uint64_t)size) >> 32);
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

static int sona_is_row(const sona_graph *g, int64_t node) {
    const int64_t begin = g->indptr[node], end = g->indptr[node + 1];
    return 0 <= begin && begin <= end && end <= g->entries;
}

static int sona_is_node(const sona_graph *g, int64_t node) { return 0 <= node && node < g->n; }

/* The entry of a neighbour in a sorted row, -1 where it is none. */
static int64_t sona_entry(const sona_graph *g, int64_t node, int32_t neighbour) {
    int64_t low = g->indptr[node], high = g->indptr[node + 1];
    const int64_t end = high;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (g->neighbours[middle] < neighbour) low = middle + 1;
        else high = middle;
    }
    return low < end && g->neighbours[low] == neighbour ? low : -1;
}

/* ---- building ---------------------------------------------------------------------------------------------------- */

/* Both directions of m edges as sorted rows; duplicates are still there. Rows of a symmetric matrix are its columns:
 * what is put into rows in any order, and then read row by row into columns, comes out sorted (Gustavson 1978). */
static void sona_adjacency(const int32_t *source, const int32_t *target, const float *weight, int64_t m, int64_t n,
                           const int64_t *indptr, int64_t *at /* WORK, n */, int32_t *unsorted /* WORK, 2 m */,
                           float *unsorted_weight /* WORK, 2 m */, int32_t *neighbours /* OUT, 2 m */,
                           float *weights /* OUT, 2 m */) {
    for (int64_t i = 0; i < n; i++) at[i] = indptr[i];
    for (int64_t k = 0; k < m; k++) {
        const int64_t there = at[source[k]]++, back = at[target[k]]++;
        unsorted[there] = target[k], unsorted_weight[there] = weight[k];
        unsorted[back] = source[k], unsorted_weight[back] = weight[k];
    }
    for (int64_t i = 0; i < n; i++) at[i] = indptr[i];
    for (int64_t i = 0; i < n; i++)
        for (int64_t e = indptr[i]; e < indptr[i + 1]; e++) {
            const int64_t to = at[unsorted[e]]++;
            neighbours[to] = (int32_t)i, weights[to] = unsorted_weight[e];
        }
}

/* Equal neighbours in sorted rows become one entry with the sum of their weights, 1 at most; how many are left. */
static int64_t sona_merge(int64_t *indptr /* INOUT, n + 1 */, int32_t *neighbours /* INOUT */,
                          float *weights /* INOUT */, int64_t n) {
    int64_t to = 0;
    for (int64_t i = 0, e = 0; i < n; i++) {
        const int64_t end = indptr[i + 1];
        indptr[i] = to;
        while (e < end) {
            const int32_t neighbour = neighbours[e];
            double sum = 0;
            for (; e < end && neighbours[e] == neighbour; e++) sum += (double)weights[e];
            neighbours[to] = neighbour, weights[to] = (float)(sum < 1 ? sum : 1);
            to++;
        }
    }
    indptr[n] = to;
    return to;
}

/* ---- walks ------------------------------------------------------------------------------------------------------- */

/* Has what a search in a row reads first brought into the cache. */
static void sona_fetch_row(const sona_graph *g, const double *cumulative, int64_t node) {
    const int64_t begin = g->indptr[node], end = g->indptr[node + 1], middle = begin + (end - begin) / 2;
    if (end == begin) return;
    const int64_t near = end < begin + SONA_FETCHED ? end : begin + SONA_FETCHED;
    for (int64_t e = begin - (begin > 0); e < near; e += 8) SONA_FETCH(cumulative + e);
    SONA_FETCH(cumulative + middle);
    SONA_FETCH(cumulative + end - 1);
    SONA_FETCH(g->neighbours + middle);
}

/* The next node along an edge of `node`, SONA_GRAPH_DAMAGED where its row is; `is_edge`: there is a weight. */
static int64_t sona_follow(const sona_graph *g, const double *cumulative, int64_t node, uint64_t *state, int *is_edge) {
    const int64_t begin = g->indptr[node], end = g->indptr[node + 1];
    const double base = begin > 0 ? cumulative[begin - 1] : 0, top = end > begin ? cumulative[end - 1] : base;
    if (!(top >= base) || isinf(top)) return SONA_GRAPH_DAMAGED;
    *is_edge = top > base;
    if (!*is_edge) return node;
    /* The first entry whose sum is above what was drawn; rounded up to the top, the last one with weight. */
    const double at = base + sona_unit(state) * (top - base);
    const int is_top = !(at < top);
    int64_t low = begin, high = end - 1;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (is_top ? cumulative[middle] < top : cumulative[middle] <= at) low = middle + 1;
        else high = middle;
    }
    const int64_t next = g->neighbours[low];
    return sona_is_node(g, next) ? next : SONA_GRAPH_DAMAGED;
}

/* Up to SONA_WALKS walks with restarts and jumps, step by step together: what a walk waits for is memory, and the rows
 * of all of them are fetched meanwhile. `cumulative` is the running sum of weights over all entries. */
static int sona_walk(const sona_graph *g, const double *cumulative, const int32_t *starts, int64_t m, int64_t length,
                     double restart, double jump, uint64_t seed, uint64_t first, int32_t *nodes /* OUT, m length */,
                     uint8_t *kinds /* OUT, m length */) {
    uint64_t state[SONA_WALKS];
    int64_t node[SONA_WALKS];
    for (int64_t w = 0; w < m; w++) {
        state[w] = sona_stream(seed, first + (uint64_t)w);
        node[w] = starts[w];
        nodes[w * length] = starts[w], kinds[w * length] = SONA_STEP_START;
    }
    for (int64_t i = 1; i < length; i++) {
        for (int64_t w = 0; w < m; w++) SONA_FETCH(g->indptr + node[w]);
        for (int64_t w = 0; w < m; w++) {
            const double drawn = sona_unit(&state[w]);
            uint8_t kind = SONA_STEP_RESTART;
            if (drawn >= restart + jump) {
                kind = SONA_STEP_EDGE;
                if (!sona_is_row(g, node[w])) return SONA_GRAPH_DAMAGED;
                sona_fetch_row(g, cumulative, node[w]);
            } else if (drawn >= restart && g->n > 1) {
                kind = SONA_STEP_JUMP;
                const int64_t other = sona_less_than(&state[w], g->n - 1);
                node[w] = other + (other >= node[w]);
            } else {
                node[w] = starts[w];
            }
            kinds[w * length + i] = kind;
        }
        for (int64_t w = 0; w < m; w++) {
            if (kinds[w * length + i] == SONA_STEP_EDGE) {
                int is_edge = 0;
                node[w] = sona_follow(g, cumulative, node[w], &state[w], &is_edge);
                if (node[w] == SONA_GRAPH_DAMAGED) return SONA_GRAPH_DAMAGED;
                if (!is_edge) node[w] = starts[w], kinds[w * length + i] = SONA_STEP_RESTART;
            }
            nodes[w * length + i] = (int32_t)node[w];
        }
    }
    return 0;
}

/* ---- activation -------------------------------------------------------------------------------------------------- */

/* to += factor * Pᵀ from, P the weights with rows that sum to 1; what lies on nodes without edges is lost. */
static int sona_spread(const sona_graph *g, const float *weights, const double *from, double factor,
                       double *to /* INOUT, n */) {
    for (int64_t i = 0; i < g->n; i++) {
        if (from[i] == 0) continue;
        if (!sona_is_row(g, i)) return SONA_GRAPH_DAMAGED;
        double strength = 0;
        for (int64_t e = g->indptr[i]; e < g->indptr[i + 1]; e++) {
            if (!(weights[e] >= 0) || !sona_is_node(g, g->neighbours[e])) return SONA_GRAPH_DAMAGED;
            strength += (double)weights[e];
        }
        if (isinf(strength)) return SONA_GRAPH_DAMAGED;
        if (strength == 0) continue;
        const double share = factor * from[i] / strength;
        for (int64_t e = g->indptr[i]; e < g->indptr[i + 1]; e++) to[g->neighbours[e]] += share * (double)weights[e];
    }
    return 0;
}

/* Sums of rows, of a graph that is all right. */
static int sona_strengths(const sona_graph *g, const float *weights, double *strength /* OUT, n */) {
    for (int64_t i = 0; i < g->n; i++) {
        if (!sona_is_row(g, i)) return SONA_GRAPH_DAMAGED;
        double sum = 0;
        for (int64_t e = g->indptr[i]; e < g->indptr[i + 1]; e++) {
            if (!(weights[e] >= 0) || !sona_is_node(g, g->neighbours[e])) return SONA_GRAPH_DAMAGED;
            sum += (double)weights[e];
        }
        if (isinf(sum)) return SONA_GRAPH_DAMAGED;
        strength[i] = sum;
    }
    return 0;
}

/* The same as `sona_spread` where all of the graph was looked at before; returns what is stuck. */
static double sona_spread_all(const sona_graph *g, const float *weights, const double *strength, const double *from,
                              double factor, double *to /* INOUT, n */) {
    double stuck = 0;
    for (int64_t i = 0; i < g->n; i++) {
        if (from[i] == 0) continue;
        if (strength[i] == 0) {
            stuck += factor * from[i];
            continue;
        }
        const double share = factor * from[i] / strength[i];
        const int64_t end = g->indptr[i + 1];
        for (int64_t e = g->indptr[i]; e < end; e++) to[g->neighbours[e]] += share * (double)weights[e];
    }
    return stuck;
}

/* ---- rewiring ---------------------------------------------------------------------------------------------------- */

/* Whether a - b is an edge, in the shorter of two unsorted rows. */
static int sona_are_joined(const int64_t *indptr, const int32_t *neighbours, int32_t a, int32_t b) {
    if (indptr[a + 1] - indptr[a] > indptr[b + 1] - indptr[b]) {
        const int32_t other = a;
        a = b, b = other;
    }
    int found = 0;
    for (int64_t e = indptr[a]; e < indptr[a + 1]; e++) found |= neighbours[e] == b;
    return found;
}

/* Edges a - b and c - d become a - d and c - b, where neither is there yet (Maslov & Sneppen 2002). Degrees stay, and
 * so do rows: only what is in them changes. Edge k has the entry there[k] in the row of source[k], and back[k] in that
 * of its other end. */
static void sona_swap_edges(const int64_t *indptr, int32_t *neighbours /* INOUT */, int64_t m,
                            int32_t *source /* INOUT, m */, int64_t *there /* INOUT, m */, int64_t *back /* INOUT, m */,
                            int64_t tries, uint64_t state) {
    for (int64_t k = 0; k < tries; k++) {
        const int64_t i = sona_less_than(&state, m), j = sona_less_than(&state, m);
        const int is_turned = (int)(sona_next(&state) >> 63);
        const int64_t ab = there[i], ba = back[i];
        const int64_t cd = is_turned ? back[j] : there[j], dc = is_turned ? there[j] : back[j];
        const int32_t a = source[i], b = neighbours[ab], d = neighbours[cd], c = neighbours[dc];
        if (a == c || a == d || b == c || b == d) continue;
        if (sona_are_joined(indptr, neighbours, a, d) || sona_are_joined(indptr, neighbours, c, b)) continue;
        neighbours[ab] = d, neighbours[dc] = a, neighbours[cd] = b, neighbours[ba] = c;
        back[i] = dc;
        source[j] = c, there[j] = cd, back[j] = ba;
    }
}

#endif
