/* Log-determinants of the principal submatrices that keep or leave whole blocks of rows: a walk over subsets in depth.
 *
 * A subset is its prefix and one more block, so that it costs one more elimination. The elimination is a right-looking
 * Cholesky: what is left of the rows behind the block goes into the buffer of the next depth. Half of all subsets end
 * in the last block and eliminate nothing: in the mean over subsets the cost does not depend on their number.
 */
#ifndef SONA_PHI_H
#define SONA_PHI_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    ptrdiff_t blocks, block;
    double least_pivot; /* smaller ones, as a share of the row's own entry, are rounding errors */
    const double *diagonal;
    double *determinants;
    int64_t not_positive; /* the first subset that has no determinant above zero, or -1 */
} sona_subsets;

/* Numbers that the buffers of all depths have room for. */
static ptrdiff_t sona_subsets_room(ptrdiff_t blocks, ptrdiff_t block) {
    ptrdiff_t room = 0;
    for (ptrdiff_t left = 0; left <= blocks; left++) room += left * block * left * block;
    return room;
}

/* `rest` (order, order): rows from block `first` on, given the subset `mask`; its lower triangle is read. `free_room`
 * is what deeper walks may overwrite, of which each subset uses the beginning. 0 if a subset is not positive definite. */
static int sona_subsets_walk(sona_subsets *s, const double *rest, ptrdiff_t first, int64_t mask, double *free_room) {
    const ptrdiff_t order = (s->blocks - first) * s->block;
    for (ptrdiff_t next = first; next < s->blocks; next++) {
        const ptrdiff_t skipped = (next - first) * s->block, size = order - skipped;
        const int64_t subset = mask | (int64_t)1 << next;
        double log_determinant = s->determinants[mask];
        double *work = free_room;
        for (ptrdiff_t i = 0; i < size; i++) {
            memcpy(work + i * size, rest + (skipped + i) * order + skipped, (size_t)(i + 1) * sizeof(double));
        }
        for (ptrdiff_t k = 0; k < s->block; k++) {
            const double pivot = work[k * size + k];
            if (!(pivot > s->least_pivot * s->diagonal[next * s->block + k])) {
                s->not_positive = subset;
                return 0;
            }
            log_determinant += log(pivot);
            for (ptrdiff_t i = k + 1; i < size; i++) {
                const double factor = work[i * size + k] / pivot;
                /* Column k is kept for the rows below: row i reads the columns of rows above it. */
                for (ptrdiff_t j = k + 1; j <= i; j++) work[i * size + j] -= factor * work[j * size + k];
            }
        }
        s->determinants[subset] = log_determinant;
        if (next + 1 < s->blocks) {
            /* Packed behind the eliminated block, in place: rows only move forward. */
            const ptrdiff_t left = size - s->block;
            for (ptrdiff_t i = 0; i < left; i++) {
                memmove(work + i * left, work + (s->block + i) * size + s->block, (size_t)(i + 1) * sizeof(double));
            }
            if (!sona_subsets_walk(s, work, next + 1, subset, work + left * left)) return 0;
        }
    }
    return 1;
}

#endif
