/* product_few: c = or += a b^T for few rows of a, as generation has them: one a sequence. It waits
 * for b, which is read once, as it lies: nothing is copied. Both operands follow the contraction in
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

/* Short columns of b are no streams that the processor would see. They are called for line after
 * line in the order of memory, into the second cache; by one row, which waits for nothing else,
 * then also into the first, which has room for few lines on their way. */
enum { SHORT_BYTES = 2048, AHEAD_BYTES = 14336, NEAR_BYTES = 6144 };

static inline bool columns_are_short(const struct product *p) {
    return p->K * (int64_t)sizeof(stored) <= SHORT_BYTES;
}

enum { MOST_SUMS = 32 };

/* The units from k on, of which n numbers are there. */
INLINE void few_step(vf *sum, const stored *const *a, const stored *const *b, int64_t k, int64_t n,
                     const int rows, const int columns) {
    vf y[8];
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++) y[c] = units_along(b[c] + k, n);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        const vf x = units_along(a[r] + k, n);
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++)
            sum[r * columns + c] = add_product(sum[r * columns + c], x, y[c]);
    }
}

/* n results, one for each vector. */
INLINE void few_sums(float *to, vf *sum, const int n) {
    enum { WHOLE = MOST_SUMS / LANES };
#pragma GCC unroll 8
    for (int i = 0; i < WHOLE; i++)
        if (i < n / LANES) store_real(to + i * LANES, lane_sums(sum + i * LANES));
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (i < n % LANES) to[n / LANES * LANES + i] = vf_sum(sum[n / LANES * LANES + i]);
}

/* rows x columns results from (i, j) on; those beyond i1 and j1 are computed from the last and
 * forgotten. While a group of columns is read the next one is called for: by each block of rows
 * again, since a request that finds no room is lost. */
INLINE void few_tile(const struct product *p, int64_t i, int64_t i1, int64_t j, int64_t j1,
                     const int rows, const int columns, const bool are_short) {
    vf s[MOST_SUMS];
    const stored *a[4], *b[8];
    const size_t next = (size_t)(columns * p->ldb) * sizeof(stored);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) a[r] = p->a + least(i + r, i1 - 1) * p->lda;
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++) b[c] = p->b + least(j + c, j1 - 1) * p->ldb;
#pragma GCC unroll 32
    for (int n = 0; n < rows * columns; n++) s[n] = (vf){0};
    const char *line = (const char *)b[0];
    int64_t k = 0;
    for (; k + LANES * UNIT <= p->K; k += LANES * UNIT) {
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++, line += sizeof(vf)) {
            const char *ahead = are_short ? line + AHEAD_BYTES : (const char *)(b[c] + k) + next;
            __builtin_prefetch(ahead, 0, 2);
            if (are_short && rows == 1) __builtin_prefetch(line + NEAR_BYTES, 0, 3);
        }
        few_step(s, a, b, k, LANES * UNIT, rows, columns);
    }
    if (k < p->K) few_step(s, a, b, k, p->K - k, rows, columns);
    _Alignas(64) float sum[MOST_SUMS];
    stored narrow[MOST_SUMS];
    few_sums(sum, s, rows * columns);
    const bool plain = !p->wide && !p->add;
#pragma GCC unroll 8
    for (int n = 0; n < rows * columns; n += LANES) store(narrow + n, load_real(sum + n));
    for (int r = 0; r < rows && i + r < i1; r++) {
        const int64_t at = (i + r) * p->ldc + j;
        if (plain && j + columns <= j1) {
            memcpy((stored *)p->c + at, narrow + r * columns, (size_t)columns * sizeof *narrow);
            continue;
        }
        for (int c = 0; c < columns && j + c < j1; c++) put_one(p, at + c, sum[r * columns + c]);
    }
}

/* As many sums as there are registers for; of short columns as many as are a power of two. */
#if defined __AVX512F__
enum { FEW_1 = 8, FEW_2 = 8, FEW_4 = 6, SHORT_4 = 4 };
#else
enum { FEW_1 = 8, FEW_2 = 4, FEW_4 = 2, SHORT_4 = 2 };
#endif

#define FEW_COLUMNS(rows, columns, are_short)                                                      \
    for (int64_t j = j0; j < j1; j += (columns))                                                   \
        for (int64_t i = i0; i < i1; i += (rows))                                                  \
            few_tile(p, i, i1, j, j1, rows, columns, are_short);

/* Rows i0 to i1 and columns j0 to j1. b's columns are read by the rows of all blocks before the
 * next. */
static void few_piece(const struct product *p, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    const int64_t rows = i1 - i0;
    if (columns_are_short(p)) {
        if (rows == 1) FEW_COLUMNS(1, 4, true)
        else if (rows == 2) FEW_COLUMNS(2, FEW_2, true)
        else FEW_COLUMNS(4, SHORT_4, true)
    } else if (rows == 1) FEW_COLUMNS(1, FEW_1, false)
    else if (rows == 2) FEW_COLUMNS(2, FEW_2, false)
    else FEW_COLUMNS(4, FEW_4, false)
}

#undef FEW_COLUMNS
#endif
