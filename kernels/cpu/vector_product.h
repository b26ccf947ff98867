/* vector_product: products of small matrices that lie in the cache, and transposition. What blocks
 * of a scan are made of.
 *
 *   c[m,n] = from[m,n] by[n] + sum over k of a(m,k) b[k,n]
 *
 * A tile of c, TILE_ROWS x TILE_VECS vectors, stays in registers while k runs: per k one load of
 * each vector of b and one broadcast of each a. So a may lie in either order (a_row and a_step are
 * the distances along m and k), b and c have their columns together. Rows of c are a multiple of
 * TILE_ROWS and columns of LANES: operands are padded, so that there are no edges here. The sum
 * over k has one order. */
#ifndef KERNELS_CPU_VECTOR_PRODUCT_H
#define KERNELS_CPU_VECTOR_PRODUCT_H

#include "kernels/cpu/vector_transpose.h"

#if defined __AVX512F__
enum { TILE_ROWS = 8, TILE_VECS = 3 };
#else
enum { TILE_ROWS = 4, TILE_VECS = 3 };
#endif

struct product {
    int64_t rows, vecs, depth;
    const float *a;
    int64_t a_row, a_step;
    const float *b;
    int64_t b_row;
    float *c;
    int64_t c_row;
    const float *from; /* NULL: nothing; rows as far apart as those of c, which it may be */
    const float *by;
    int64_t by_step; /* 1, or 0 where by is one vector for all columns */
};

INLINE void product_tile(const struct product *p, const int vecs, int64_t row, int64_t vec) {
    const float *a = p->a + row * p->a_row, *b = p->b + vec * LANES;
    const int64_t a_row = p->a_row;
    const int64_t at = row * p->c_row + vec * LANES;
    const float *from = p->from ? p->from + at : NULL;
    float *c = p->c + at;
    vf sum[TILE_ROWS][TILE_VECS];
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vecs; v++)
            sum[r][v] = p->from ? load_real(from + r * p->c_row + v * LANES) *
                                      load_real(p->by + (vec + v) * LANES * p->by_step)
                                : vf_all(0);
    for (int64_t k = 0; k < p->depth; k++) {
        vf w[TILE_VECS];
#pragma GCC unroll 3
        for (int v = 0; v < vecs; v++) w[v] = load_real(b + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS; r++) {
            const vf x = vf_all(a[r * a_row]);
#pragma GCC unroll 3
            for (int v = 0; v < vecs; v++) sum[r][v] += x * w[v];
        }
        a += p->a_step;
        b += p->b_row;
    }
#pragma GCC unroll 8
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vecs; v++) store_real(c + r * p->c_row + v * LANES, sum[r][v]);
}

/* Panels of columns, so that a panel of b stays in the first cache for all rows. */
static inline void product(const struct product *p) {
    for (int64_t vec = 0; vec < p->vecs;) {
        const int64_t left = p->vecs - vec;
        const int vecs = left == 4 ? 2 : (int)least(left, TILE_VECS);
        for (int64_t row = 0; row < p->rows; row += TILE_ROWS) {
            if (vecs == 3) product_tile(p, 3, row, vec);
            else if (vecs == 2) product_tile(p, 2, row, vec);
            else product_tile(p, 1, row, vec);
        }
        vec += vecs;
    }
}

/* r = LANES rows from `from`, as columns. */
INLINE void transpose_rows(vf r[LANES], const float *from, int64_t row) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) r[i] = load_real(from + i * row);
    transpose(r);
}

/* to[n,m] = from[m,n], both multiples of LANES. */
static inline void transpose_all(float *to, int64_t to_row, const float *from, int64_t from_row,
                                 int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i += LANES)
        for (int64_t j = 0; j < n; j += LANES) {
            vf r[LANES];
            transpose_rows(r, from + i * from_row + j, from_row);
#pragma GCC unroll 16
            for (int k = 0; k < LANES; k++) store_real(to + (j + k) * to_row + i, r[k]);
        }
}

#endif
