/* product_few: c = or += a b^T for few rows of a, as generation has them: one a sequence. It waits for
 * b, which is read once, as it lies: nothing is copied. Both operands follow the contraction in
 * memory, so LANES units are multiplied at once and the lanes added at the end, in one order: bits
 * depend neither on the piece nor on threads. */
#ifndef KERNELS_CPU_PRODUCT_FEW_H
#define KERNELS_CPU_PRODUCT_FEW_H

#include "kernels/cpu/product.h"

/* Products with more rows are better off with panels. */
enum { FEW = 16 };

static inline bool product_is_few(const struct product *p) {
    return p->M <= FEW && !p->ta && p->tb;
}

static inline void put_one(const struct product *p, int64_t at, float x) {
    if (p->wide) {
        float *c = (float *)p->c + at;
        *c = p->add ? *c + x : x;
    } else {
        stored *c = (stored *)p->c + at;
        set(c, p->add ? get(c) + x : x);
    }
}

/* Short columns of b are no streams that the processor would see. One row of a, which waits for memory
 * alone, calls for them line after line in the order of memory, a part of the first cache ahead. */
enum { SHORT_BYTES = 2048, AHEAD_BYTES = 12288 };

static inline bool columns_are_short(const struct product *p) {
    return p->M == 1 && p->K * (int64_t)sizeof(stored) <= SHORT_BYTES;
}

/* rows x columns results from (i, j) on; those beyond i1 and j1 are computed from the last and
 * forgotten. While a group of columns is read the next one is called for. */
INLINE void few_tile(const struct product *p, int64_t i, int64_t i1, int64_t j, int64_t j1,
                     const int rows, const int columns, const bool are_short) {
    vf s[8][8];
    const stored *a[8], *b[8];
    const size_t next = (size_t)(columns * p->ldb) * sizeof(stored);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) a[r] = p->a + least(i + r, i1 - 1) * p->lda;
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++) b[c] = p->b + least(j + c, j1 - 1) * p->ldb;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++) s[r][c] = (vf){0};
    const char *line = (const char *)b[0] + AHEAD_BYTES;
    for (int64_t k = 0; k < p->K; k += LANES * UNIT) {
        const int64_t n = p->K - k;
        vf y[8];
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++, line += sizeof(vf)) {
            y[c] = units_along(b[c] + k, n);
            if (are_short) __builtin_prefetch(line, 0, 3);
            else __builtin_prefetch((const char *)(b[c] + k) + next, 0, 2);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const vf x = units_along(a[r] + k, n);
#pragma GCC unroll 8
            for (int c = 0; c < columns; c++) s[r][c] = add_product(s[r][c], x, y[c]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++) {
            const float sum = vf_sum(s[r][c]);
            if (i + r < i1 && j + c < j1) put_one(p, (i + r) * p->ldc + j + c, sum);
        }
}

/* As many sums as there are registers for. */
#if defined __AVX512F__
enum { FEW_1 = 8, FEW_2 = 8, FEW_4 = 5, FEW_8 = 3 };
#else
enum { FEW_1 = 8, FEW_2 = 4, FEW_4 = 2, FEW_8 = 1 };
#endif

/* Rows i0 to i1 and columns j0 to j1. b's columns are read by the rows of all blocks before the next. */
static void few_piece(const struct product *p, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    const int64_t rows = i1 - i0;
    if (rows == 1 && columns_are_short(p))
        for (int64_t j = j0; j < j1; j += 4) few_tile(p, i0, i1, j, j1, 1, 4, true);
    else if (rows == 1)
        for (int64_t j = j0; j < j1; j += FEW_1) few_tile(p, i0, i1, j, j1, 1, FEW_1, false);
    else if (rows == 2)
        for (int64_t j = j0; j < j1; j += FEW_2) few_tile(p, i0, i1, j, j1, 2, FEW_2, false);
    else if (rows <= 4)
        for (int64_t j = j0; j < j1; j += FEW_4) few_tile(p, i0, i1, j, j1, 4, FEW_4, false);
    else
        for (int64_t j = j0; j < j1; j += FEW_8)
            for (int64_t i = i0; i < i1; i += 8) few_tile(p, i, i1, j, j1, 8, FEW_8, false);
}

#endif
