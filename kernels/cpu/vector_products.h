/* vector_products: small matrix products on blocks that lie in the cache, for kernels by vectors.
 *
 *   c[r][lanes] = from[r][lanes] factor[lanes] + sum over k of a[r, k] b[k][lanes]
 *
 * Numbers of `a` are spread over all lanes, rows of `b` and `c` are vectors. A tile of c stays in
 * registers while k runs, so one load of `b` serves ROWS rows and one of `a` serves WIDE vectors.
 * As `a` is read one number at a time it may be laid out in any way; no panels are packed for it.
 *
 * A unit is 32 bits: a float; or, where stored numbers are BF16 and the processor multiplies pairs
 * of them (sums in float), two neighbours along k. The text is the same, k counts half as far. What
 * must not be rounded is multiplied as floats everywhere. The sum over k has one order. */
#ifndef KERNELS_CPU_VECTOR_PRODUCTS_H
#define KERNELS_CPU_VECTOR_PRODUCTS_H

#include "kernels/cpu/vector_transpose.h"

#if defined STORED_BF16 && defined __AVX512BF16__
enum { PAIR = 2 };
typedef uint32_t unit __attribute__((may_alias, aligned(2)));
#else
enum { PAIR = 1 };
typedef float unit;
#endif

/* As many accumulators as 32 or 16 registers hold beside WIDE + 1 factors. */
#if defined __AVX512F__
enum { ROWS = 8, WIDE = 3 };
#else
enum { ROWS = 4, WIDE = 3 };
#endif

INLINE int64_t units(int64_t numbers) {
    return (numbers + PAIR - 1) / PAIR;
}

INLINE vf load_units(const unit *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store_units(unit *p, vf v) {
    memcpy(p, &v, sizeof v);
}

INLINE vf spread_float(const unit *p) {
    float x;
    memcpy(&x, p, sizeof x);
    return vf_all(x);
}

INLINE vf spread(const unit *p) {
#if defined STORED_BF16 && defined __AVX512BF16__
    return (vf)_mm512_set1_epi32((int)*p);
#else
    return vf_all(*p);
#endif
}

INLINE vf multiply_add(vf sum, vf x, vf y) {
#if defined STORED_BF16 && defined __AVX512BF16__
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#else
    return sum + x * y;
#endif
}

/* One unit in each lane, of PAIR numbers. */
INLINE vf pair_up(const vf x[PAIR]) {
#if defined STORED_BF16 && defined __AVX512BF16__
    const vu low = __builtin_convertvector(bf16_of_vf(x[0]), vu);
    return (vf)(low | __builtin_convertvector(bf16_of_vf(x[1]), vu) << 16);
#else
    return x[0];
#endif
}

/* What a product begins with: nothing, what is in c, that times a factor of each lane, or what
 * is in `from` times one factor. */
enum begin { FRESH, ADDED, SCALED, FADED };

/* Distances are in units (of a and b) and floats (of c and `from`). */
struct product {
    float *c;
    const void *a, *b;
    const float *factor;
    int64_t ldc, lda, ldb, rows, depth;
    int64_t vectors;
    enum begin begin;
    const float *from; /* rows as far apart as those of c, which it may be */
};

INLINE vf begin_factor(const struct product *p, int64_t v) {
    if (p->begin == ADDED) return vf_all(1);
    return p->begin == SCALED ? load_real(p->factor + v * LANES) : vf_all(*p->factor);
}

/* lda is the distance of a's rows, and its k follow each other; or if `columns` the other way.
 * pairs: units are those of stored numbers, else floats. */
INLINE void tile(const struct product *p, int64_t r0, int64_t v0, const int rows, const int wide,
                 const bool columns, const bool pairs) {
    const int64_t ldc = p->ldc, ldb = p->ldb, depth = p->depth;
    const int64_t rs = columns ? 1 : p->lda, ks = columns ? p->lda : 1;
    float *c = p->c + r0 * ldc + v0 * LANES;
    const unit *a = (const unit *)p->a + r0 * rs, *b = (const unit *)p->b + v0 * LANES;
    vf sum[ROWS][WIDE];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int w = 0; w < wide; w++) sum[r][w] = (vf){0};
    if (p->begin != FRESH) {
        const float *from = p->begin == FADED ? p->from + r0 * ldc + v0 * LANES : c;
        vf factor[WIDE];
#pragma GCC unroll 8
        for (int w = 0; w < wide; w++) factor[w] = begin_factor(p, v0 + w);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int w = 0; w < wide; w++)
                sum[r][w] = load_real(from + r * ldc + w * LANES) * factor[w];
    }
    for (int64_t k = 0; k < depth; k++, a += ks, b += ldb) {
        vf y[WIDE];
#pragma GCC unroll 8
        for (int w = 0; w < wide; w++) y[w] = load_units(b + w * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const vf x = pairs ? spread(a + r * rs) : spread_float(a + r * rs);
#pragma GCC unroll 8
            for (int w = 0; w < wide; w++)
                sum[r][w] = pairs ? multiply_add(sum[r][w], x, y[w]) : sum[r][w] + x * y[w];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int w = 0; w < wide; w++) store_real(c + r * ldc + w * LANES, sum[r][w]);
}

INLINE void strip(const struct product *p, int64_t v0, const int wide, const bool columns,
                  const bool pairs) {
    int64_t r = 0;
    for (; r + ROWS <= p->rows; r += ROWS) tile(p, r, v0, ROWS, wide, columns, pairs);
    if (ROWS > 4 && r + 4 <= p->rows) tile(p, r, v0, 4, wide, columns, pairs), r += 4;
    if (r + 2 <= p->rows) tile(p, r, v0, 2, wide, columns, pairs), r += 2;
    if (r < p->rows) tile(p, r, v0, 1, wide, columns, pairs);
}

/* Four vectors are two and two, not three and one. */
INLINE void strips(const struct product *p, const bool columns, const bool pairs) {
    for (int64_t v = 0, wide; v < p->vectors; v += wide) {
        const int64_t left = p->vectors - v;
        wide = left > 4 || left == 3 ? 3 : left > 1 ? 2 : 1;
        if (wide == 3) strip(p, v, 3, columns, pairs);
        else if (wide == 2) strip(p, v, 2, columns, pairs);
        else strip(p, v, 1, columns, pairs);
    }
}

static __attribute__((noinline, unused)) void product_of_rows(const struct product *p) {
    strips(p, false, PAIR > 1);
}

static __attribute__((noinline, unused)) void product_of_columns(const struct product *p) {
    strips(p, true, PAIR > 1);
}

/* The same where a and b are floats, whatever is stored. */
static __attribute__((noinline, unused)) void product_of_float_rows(const struct product *p) {
    strips(p, false, false);
}

static __attribute__((noinline, unused)) void product_of_float_columns(const struct product *p) {
    strips(p, true, false);
}

#endif
